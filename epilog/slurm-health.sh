#!/bin/sh
# Slurm epilog: note the job's end on its card, and fail where the controller has condemned this node.
#
# A failed epilog drains the node (it is drained already, with our reason) and, on Slurm 25.11.3 and later,
# restarts at once a job that asked for --requeue=expedite. Rules and reasons as in the prolog: builtins only,
# exit 1 only for a `bad` verdict of the last 60 seconds, and 0 whatever else happens.

set +euC # a wrapper's shell options must not turn a failed read into a drained node
LC_ALL=C
run=${SLURM_HEALTH_RUN:-/run/slurm-health}

number() { # decimal, never read as octal, within every shell's arithmetic
    case $1 in
    '' | *[!0123456789]* | 0?* | ???????????*) return 1 ;;
    esac
}

mark() { # only on a card that was written: one that holds `ended` alone would name no job
    [ -f "$card" ] && [ -s "$card" ] && { printf '%s=%s\n' "$1" "$now" >>"$card"; } 2>/dev/null
}

now=
{ IFS=. read -r now _ </proc/uptime; } 2>/dev/null

job=${SLURM_JOB_ID-}
restarts=${SLURM_JOB_RESTART_COUNT:-0}
if number "$job" && number "$restarts" && number "$now"; then
    # When a job is requeued, slurmctld has counted the restart before this epilog: the card is the last run's.
    card=$run/jobs/$job.$restarts
    [ -f "$card" ] || card=$run/jobs/$job.$((restarts - 1))
    mark ended
fi

# `<ok|warn|bad> <uptime> <text>`. An ordinary file only: reading from a FIFO would wait for ever.
line=
[ -f "$run/verdict" ] && { IFS= read -r line <"$run/verdict" || line=; } 2>/dev/null
state=
at=
case $line in
'ok '* | 'warn '* | 'bad '*)
    state=${line%% *}
    line=${line#* }
    at=${line%% *}
    ;;
esac
if number "$at" && number "$now" && [ "$at" -le "$now" ] && [ "$((now - at))" -le 60 ]; then
    [ "$state" = bad ] || exit 0
    text=${line#"$at"}
    text=${text# }
    case $text in '' | *[![:print:]]*) text='this node is refused, for a reason that cannot be printed' ;; esac
    printf 'slurm-health: %.200s\n' "$text" >&2
    exit 1
fi
exit 0
