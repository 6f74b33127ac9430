"""What is to be done with a job that a fault touched."""

from __future__ import annotations

from dataclasses import dataclass

from slurm_health.model import Job, Urgency, Victim, Wish
from slurm_health.policy.queue import waits
from slurm_health.policy.touch import DIES_WITHIN, NOT_EXPEDITED, SLACK

CONFIRM = 1.0  # a batch step that runs this long was launched (a revoked credential fails it at once)
LAUNCHES_WITHIN = 30.0  # of a launch that Slurm finds failed: slurmd waits 20 s for a prolog (22.05, req.c)
LAUNCHES = 2  # times that a launch of ours which failed at once is tried again
# squeue's Reason of a job that a failed prolog sent back (job_reason_string, Slurm 22.05 to 26.05).
HELD_BY_PROLOG = "launch failed requeued held"
LIVE = frozenset({"RUNNING", "SUSPENDED", "CONFIGURING", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
DIED = frozenset({"FAILED", "NODE_FAIL"})
# squeue shows COMPLETING whatever a job will be next; with one of these reasons it will be FAILED or
# NODE_FAIL (a cancelled job has none, one out of time TimeLimit). Its orphaned steps can take seconds to end.
DEATHS = ("NonZeroExitCode", "JobLaunchFailure", "NodeDown", "RaisedSignal")


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now. `hot`: look again in a fraction of a second."""

    hot: bool = False


@dataclass(frozen=True, slots=True)
class Requeue:
    """`incomplete`: only if it has not ended. `hold`: why it shall not run before an admin has looked."""

    incomplete: bool
    hold: str = ""


@dataclass(frozen=True, slots=True)
class Adopt:
    """Slurm has requeued it for our epilog: to be followed like one of ours."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Once for each run. Whoever does not trap it is killed by it: only for who asked."""

    name: str
    steps: str


@dataclass(frozen=True, slots=True)
class Release:
    pass


@dataclass(frozen=True, slots=True)
class Lift:
    """Put it before all others that wait, until it runs."""


@dataclass(frozen=True, slots=True)
class StartNow:
    pass


@dataclass(frozen=True, slots=True)
class Ran:
    """It runs again: its batch step is there and stayed."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The end of its story, in a few words. `tell`: its owner must help himself, and hears so."""

    outcome: str
    tell: bool = False


Step = Wait | Requeue | Adopt | Signal | Release | Lift | StartNow | Ran | Settle


@dataclass(frozen=True, slots=True)
class Terms:
    """On which a job is brought back. `may`: its node is out and the site wants requeues; `start`: when its
    wait may be ended at the earliest (see `earliest`). `first`: it goes before all that wait. `expedites`:
    Slurm runs some again by itself.
    """

    wish: Wish
    may: bool
    start: float = 0.0
    first: bool = False
    expedites: bool = False


def treat(victim: Victim, job: Job | None, terms: Terms, now: float) -> Step:
    """The next step for a job that a fault touched.

    A live job goes as its urgency says. One that died of the fault (FAILED or NODE_FAIL, the same run, within
    120 s of the first evidence or in the grace after our signal) is brought back too. Nothing else is ever
    resurrected: not a script either that takes our signal for the end of its work and exits 0.
    """
    if job is None:
        return Settle("Slurm no longer knows it")
    if victim.urgency is Urgency.NONE:
        return Settle("left alone")
    if job.restarts > victim.restarts:
        if not (victim.requeued or victim.refused):
            return _others(job, terms)
        return _follow(victim, job, terms, now)
    if job.restarts < victim.restarts:
        return Settle("another job has its number")
    if job.completing and (terms.expedites or not job.reason.startswith(DEATHS)):
        return Wait(hot=True)  # where Slurm may run it again itself: it does when the last epilog has ended
    if job.nodes and victim.node not in job.nodes and not (job.completing or job.het):
        # Noted while it left the node, requeued already: Slurm then shows the count of the run to come.
        return Settle(f"this run was never on {victim.node}")
    if job.state in LIVE:
        return _live(victim, job, terms, now)
    if job.state in DIED or job.completing:
        if not victim.since - SLACK - 1 <= job.ended <= _blamed_until(victim, terms.wish):
            return Settle("failed for its own reasons")
        return _back(job, terms, incomplete=False)
    if job.state == "PENDING":
        return Wait()
    return Settle(f"{job.state}: not ours to bring back")


def _others(job: Job, terms: Terms) -> Step:
    """After a requeue that was not ours. Who else's lets no job run again without a wait?"""
    if (job.state, job.reason) == NOT_EXPEDITED:
        return Release() if terms.may else Wait()
    if terms.expedites and job.state in LIVE:
        return Adopt()
    if _held_by_prolog(job):
        return Settle("held after a failed prolog")
    return Settle("requeued by somebody else")


def _blamed_until(victim: Victim, wish: Wish) -> float:
    """Until when a death counts as the fault's, or our signal's."""
    grace = victim.signalled + wish.grace + SLACK if victim.signalled else 0.0
    return max(victim.since + DIES_WITHIN, grace)


def _live(victim: Victim, job: Job, terms: Terms, now: float) -> Step:
    wish, back = terms.wish, _back(job, terms, incomplete=True)
    if not wish.requeue:
        return back
    urgency = victim.urgency
    if urgency is Urgency.CHECKPOINT and not (wish.signal or victim.signalled):
        urgency = wish.unasked
    if urgency is Urgency.FINISH:
        return Settle("left to finish") if now - victim.since > DIES_WITHIN else Wait()
    if urgency is Urgency.NOW or not isinstance(back, Requeue) or job.state == "CONFIGURING":
        return back
    if job.state != "RUNNING":
        return Wait()  # it is stopped and could not save anything
    if not victim.signalled:
        return Signal(wish.signal, wish.steps)
    return back if now >= victim.signalled + wish.grace else Wait(hot=now - victim.signalled < 30)


def _back(job: Job, terms: Terms, incomplete: bool) -> Step:
    if not terms.wish.requeue:
        return Settle("its owner wants no requeue (slurm-health: off)", tell=True)
    if not job.batch:
        return Settle("interactive: Slurm cannot requeue it", tell=True)
    if not job.requeueable:
        return Settle("its owner wants no requeue (--no-requeue)", tell=True)
    return Requeue(incomplete) if terms.may else Wait()


def _follow(victim: Victim, job: Job, terms: Terms, now: float) -> Step:
    """After its requeue, by us or by Slurm for our hooks."""
    if _held_by_prolog(job):
        return Release()
    if job.state == "PENDING" and not job.completing:
        if "Held" in job.reason or "held" in job.reason:
            if victim.lifted != victim.nice:  # its own place cannot be given back to who is held
                return Wait()
            return Settle(f"held by somebody else: {job.reason}")
        if terms.first and not victim.placed:
            return Lift()
        if waits(victim, job, now):
            return _end_wait(victim, now, terms.start)
        return Wait(hot=now - max(victim.requeued, victim.refused) < 30)
    if job.completing:
        return Wait(hot=True)
    if runs(job):
        if victim.running and now - victim.running >= CONFIRM:
            return Ran()
        return Wait(hot=True)
    if job.state in LIVE:
        return Wait(hot=True)
    if job.state in DIED and not victim.ran and job.ended - job.started <= SLACK and victim.tries < LAUNCHES:
        return Requeue(incomplete=False) if terms.may else Wait()
    return Ran() if job.state == "COMPLETED" else Settle(f"{job.state} after its requeue")


def _end_wait(victim: Victim, now: float, start: float) -> Step:
    """Once. Slurm loses it without a word while the job is COMPLETING, so it is sent again after 3 s."""
    if now < start or (victim.started and now - victim.started < 3):
        return Wait(hot=True)
    return StartNow()


def launch_failed(victim: Victim, job: Job) -> bool:
    """Whether Slurm holds a job that was brought back, since its launch failed."""
    return _held_by_prolog(job) and job.restarts > victim.restarts


def _held_by_prolog(job: Job) -> bool:
    return job.state == "PENDING" and not job.completing and job.reason == HELD_BY_PROLOG


def holds_on(job: Job) -> bool:
    """Whether a job that Slurm lists on a node is still there."""
    return job.completing or job.state in LIVE


def runs(job: Job) -> bool:
    """Whether its prologs are done and its batch step was sent off."""
    return job.state in LIVE and job.state != "CONFIGURING" and job.reason != "Prolog"
