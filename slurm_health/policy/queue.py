"""How a requeued job waits in Slurm's queue, and what helps it on."""

from __future__ import annotations

import math
import re

from slurm_health.model import Job, Victim

# squeue's Reason of who needs nodes that are out: by name (sbatch -w), or so many that too few are left.
MISSING = ("ReqNodeNotAvail", "Nodes required for job are DOWN, DRAINED")
# ... and of who needs nodes that are reserved. 26.05 says "May be reserved for other job" of drained ones.
RESERVED = "ReqNodeNotAvail, Reserved"
FOREMOST = 0xFFFFFFFE  # the highest priority that a job can have (slurm.h: one more is INFINITE)
NICEST = -0x7FFFFFFD  # the lowest nice value that Slurm takes (sbatch(1), --nice: +/- 2147483645)


def waits(victim: Victim, job: Job, now: float) -> bool:
    """Whether Slurm lets a requeued job wait for a time. The start that backfill plans looks alike, but has
    another reason."""
    begins = job.state == "PENDING" and job.begins > now + 1
    return begins and (not victim.started or job.reason == "BeginTime")


def keeps(victim: Victim, job: Job, now: float) -> bool:
    """Whether the healthy nodes of a job are still kept for it: until nothing else keeps it from starting."""
    leaves = job.restarts == victim.restarts or job.completing
    return leaves or (waits(victim, job, now) and not victim.started)


def earliest(victim: Victim, job: Job, completing: float, forgets_slowly: bool) -> float:
    """When the wait of a requeued job may be ended: in a later whole second than its requeue, else slurmd
    takes the new credential for the revoked one and the job dies at its launch.

    Where slurmd forgets slowly, a job that may get some of its nodes again waits 2 s from when it was last
    seen COMPLETING, so that their prologs run.
    """
    requeued = max(victim.requeued, victim.refused)
    if forgets_slowly and job.size > 1:
        return math.floor(max(requeued, completing)) + 2.0
    return math.floor(requeued) + 1.0


def foremost(priority: int, nice: int) -> int:
    """The nice value that puts a job of this priority and nice value before all others.

    Slurm takes the nice value off the priority, whichever way it computes that, and knows 32 bits: more than
    what is missing to the highest would come out as little.
    """
    return max(nice - (FOREMOST - priority), NICEST)


def misses_nodes(victim: Victim, job: Job, now: float) -> bool:
    """Whether nodes that a job needs are out, now that it might run again: it waits until they are back."""
    back = job.restarts > victim.restarts and job.state == "PENDING" and not waits(victim, job, now)
    return back and job.reason.startswith(MISSING) and not job.reason.startswith(RESERVED)


def ways_on(job: Job, gone: int) -> str:
    """What its owner can do for a job that misses so many of its nodes. Slurm's reason tells not always by
    what it asked for them."""
    update = f"`scontrol update jobid={job.label}"
    ways = ["it runs when they serve again"]
    if job.reason.startswith("ReqNodeNotAvail"):
        ways.append(f"where it names them (-w), {update} ReqNodeList=` lets it go elsewhere")
    if 0 < gone < job.size and not job.het:
        ways.append(f"{update} NumNodes={job.size - gone}` has it run on fewer than its {job.size}")
    return "; ".join(ways)


def renewed(dependency: str, victim: Victim) -> str:
    """What a job shall wait for anew that waits for ever because this one had failed (squeue's Dependency);
    "" where it does for another's failure, too: who no longer stands in Slurm's memory counts as fulfilled.
    """
    failed = re.findall(r"(\d+)(?:_[\d*]+)?\(failed\)", dependency)
    own = {str(victim.job), victim.label.partition("_")[0]}
    return re.sub(r"\(\w+\)", "", dependency) if failed and own >= set(failed) else ""
