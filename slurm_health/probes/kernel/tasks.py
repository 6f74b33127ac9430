"""Programs and processors that stand still, and programs that the kernel ended for want of memory.

kernel/hung_task.c (check_hung_task), kernel/watchdog.c and watchdog_hld.c (soft and hard lockup),
kernel/workqueue.c, kernel/rcu/tree_stall.h, mm/oom_kill.c (dump_header, dump_oom_summary,
__oom_kill_process). Any of it may be a program's doing.
"""

from __future__ import annotations

from slurm_health.probes.kernel.event import ANY, COMM, Event, grammar

_HUNG = grammar(
    rf"(?:INFO: )?task {COMM}:(\d{{1,10}}) blocked(?: in I/O wait)? "
    r"for more than \d{1,10} seconds\."
)
_SOFT = grammar(
    r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#\d{1,5} stuck for \d{1,10}s! "
    rf"\[{COMM}:(\d{{1,10}})\]"
)
_HARD = grammar(
    rf"(?:NMI )?watchdog: (?:CPU\d{{1,5}}: )?Watchdog detected hard LOCKUP on cpu \d{{1,5}}(?:\b{ANY}*)?"
)
_POOL = grammar(rf"BUG: workqueue lockup - pool {ANY}{{1,200}} stuck for \d{{1,10}}s!")
_STALL = grammar(
    r"(?:rcu: )?INFO: rcu_[a-z_]{1,32} (?:self-detected stall on CPU|"
    rf"detected (?:expedited )?stalls?(?: on (?:CPUs/)?tasks:|, but )){ANY}*"
)
_INVOKED = grammar(
    rf"{ANY}{{1,20}} invoked oom-killer: gfp_mask=0x[0-9a-f]+(?:\([A-Za-z0-9_|]+\))?,"
    r"(?: +nodemask=[^ ]{1,64},)? +order=-?\d+, (?:oom_score_adj|oom_adj|oomkilladj)=-?\d+"
)
_CHOSEN = grammar(rf"oom-kill:constraint=[A-Z_]+(?:,{ANY}*?(?:,pid=(\d{{1,10}}),uid=\d{{1,10}})?)?")
_KILLED = grammar(
    rf"(?:Memory cgroup out of memory|Out of memory)(?: \([a-z_]+\))?: Kill(?:ed)? process (\d{{1,10}})"
    rf"(?:, UID \d{{1,10}},| )? ?\({COMM}\){ANY}*"
)
_NOBODY = grammar(r"(?:Memory cgroup out of memory|Out of memory) and no killable processes\.{0,3}")


def hung(text: str) -> Event | None:
    """A program that waits in the kernel for too long, with its pid."""
    match = _HUNG.fullmatch(text)
    return Event("kernel.hung_task", "", "hung", int(match[1])) if match else None


def lockup(text: str) -> Event | None:
    """A processor that runs the kernel without end: "soft" (with the pid), "hard" (interrupts off),
    "workqueue", or a "stall" that RCU noticed.
    """
    if match := _SOFT.fullmatch(text):
        return Event("kernel.lockup", "", "soft", int(match[1]))
    for value, words in (("hard", _HARD), ("workqueue", _POOL), ("stall", _STALL)):
        if words.fullmatch(text):
            return Event("kernel.lockup", "", value)
    return None


def oom(text: str) -> Event | None:
    """Memory ran out, for a job's group or the whole host: "invoked", or "killed" with the pid."""
    if match := _KILLED.fullmatch(text) or _CHOSEN.fullmatch(text):
        return Event("kernel.oom", "", "killed", int(match[1] or 0))
    if _INVOKED.fullmatch(text) or _NOBODY.fullmatch(text):
        return Event("kernel.oom", "", "invoked")
    return None
