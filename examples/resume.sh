#!/bin/bash
#SBATCH --job-name=resume --requeue --open-mode=append
#SBATCH --comment="slurm-health: signal=USR1@60"
# A job in plain shell that loses nothing: it counts to STEPS, and goes on where it was, as often as it is started.

checkpoint=${CHECKPOINT:-$HOME/resume.$SLURM_JOB_ID}
step=0
[ -s "$checkpoint" ] && read -r step <"$checkpoint"
echo "run ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST begins at step $step"

save() { # whole or not at all, whenever we are killed
    echo "$step" >"$checkpoint.new" && mv "$checkpoint.new" "$checkpoint"
}
trap 'save; exit 1' USR1 # not exit 0, which says that all is done

while [ "$step" -lt "${STEPS:-600}" ]; do
    sleep "${SECONDS_A_STEP:-1}" & # your work, in the background: bash runs a trap only while it waits
    wait $!
    step=$((step + 1))
    [ $((step % ${SAVE_EACH:-60})) -ne 0 ] || save
done
echo "done: $step steps"
