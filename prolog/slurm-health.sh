#!/bin/sh
# Slurm prolog: note the job on its card, and refuse it where the controller has condemned this node.
#
# Builtins only: it forks nothing, asks nobody over the network and needs no PATH. Executed by slurmd, or
# sourced by a wrapper that sets SLURM_HEALTH_RUN. Only a `bad` verdict of the last 60 seconds exits 1 (Slurm
# then drains the node and requeues the job); whatever else it meets, it exits 0 and says nothing.
# No redirect stands on a special builtin (`:`, `exec`) and no unchecked number in an arithmetic expansion:
# either ends dash with 2 when it fails, which would drain the node.

fail_closed=0 # 1 refuses jobs, too, where the verdict is absent, stale or garbled

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

refuse() {
    mark refused
    printf 'slurm-health: %.200s\n' "$1" >&2
    exit 1
}

told() { # lines: what sbatch's options of our SPANK plugin ask, what the controller has the next run told
    lines=
    asked=${SPANK_SLURM_HEALTH-}
    comment=${SLURM_JOB_COMMENT-}
    [ "${#asked}" -le 80 ] && case $asked in
    '' | *[!ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789=@\ ]*) ;;
    *) lines="asked=$asked$feed" ;;
    esac
    [ "${#comment}" -le 4096 ] && case $comment in
    *'slurm-health-was: attempt='*' bad_nodes='*' reason='*)
        comment=${comment##*slurm-health-was: attempt=}
        attempt=${comment%%" bad_nodes="*}
        comment=${comment#*" bad_nodes="}
        reason=${comment#*" reason="}
        reason=${reason%%;*}
        comment=${comment%%" reason="*}
        number "$attempt" && case $comment$reason in
        *[![:print:]]*) ;;
        *) lines="${lines}attempt=$attempt${feed}bad_nodes=$comment${feed}reason=$reason$feed" ;;
        esac
        ;;
    esac
}
feed='
'

now=
{ IFS=. read -r now _ </proc/uptime; } 2>/dev/null

# The card comes before the verdict: a job that is let in is always known to the node. `uptime` is its last
# line and makes it whole, since bash writes line by line (dash writes it at once).
card=
job=${SLURM_JOB_ID-}
uid=${SLURM_JOB_UID-}
gpus=${SLURM_JOB_GPUS-}
restarts=${SLURM_JOB_RESTART_COUNT:-0}
if number "$job" && number "$restarts" && number "$now"; then
    card=$run/jobs/$job.$restarts
    number "$uid" || uid=
    case $gpus in *[![:graph:]]*) gpus='?' ;; esac # a line feed would forge lines; ? is unknown, empty is none
    told
    { printf 'job=%s\nuid=%s\ngpus=%s\nrestarts=%s\n%suptime=%s\n' \
        "$job" "$uid" "$gpus" "$restarts" "$lines" "$now" >"$card"; } 2>/dev/null
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
    refuse "$text"
fi

[ "$fail_closed" = 1 ] && refuse 'this node has no fresh verdict'
exit 0
