"""The consequence of what is known: what to do with a node, what to do with a job it hurt. Pure.

No I/O, no clock, no log: plain values in, plain values out. The controller carries out what is said here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from slurm_health.model import Card, Hurt, Incident, Job, Node, Severity, Urgency, Victim, Wish

DIES_WITHIN = 120.0  # seconds after the first evidence in which a job's death counts as the fault's
SLACK = 2.0  # Slurm's times are whole seconds, and a link's fault is seen up to a second late
CONFIRM = 1.0  # a batch step that runs this long was launched (a revoked credential fails it at once)
LAUNCHES_WITHIN = 30.0  # of a launch that Slurm finds failed: slurmd waits 20 s for a prolog (22.05, req.c)
LAUNCHES = 2  # times that a launch of ours which failed at once is tried again

# Node states in which somebody or something else is at work (sinfo(1), NODE STATE CODES).
ELSEWHERE = frozenset(
    {
        "MAINT",
        "MAINTENANCE",
        "REBOOT",
        "REBOOT_ISSUED",
        "REBOOT_REQUESTED",
        "POWERING_DOWN",
        "POWERED_DOWN",
        "POWER_DOWN",
        "POWERING_UP",
        "POWER_UP",
        "FUTURE",
    }
)
# What slurmctld writes when a hook fails; only where a card says that the hook was ours is it ours to rename.
HOOK_REASONS = frozenset({"Prolog error", "Epilog error"})
# How a drain that is not ours is noted; when it ends, an admin has seen what stands against the node.
DRAINED_BY_OTHERS = "drained by somebody else"
# What a job may have broken itself: only who holds the device is touched (of PCIe devices GPUs are held).
DEVICE_CODES = ("GPU_", "NVSWITCH_", "PCIE_")
FORGETS = 600.0  # seconds after a drain in which a new slurmctld that does not know it may have lost it
SUSPECTS = 2  # nodes that a job may break the same way before it is held and the next one left alone
SUSPECT = "suspect job: "  # how it is noted that a node is left alone
# squeue's Reason of a job that a failed prolog sent back (job_reason_string, Slurm 22.05 to 26.05).
HELD_BY_PROLOG = "launch failed requeued held"
# ... and its state and Reason when it was to be expedited, exited non-zero, and no epilog failed.
NOT_EXPEDITED = ("REQUEUE_HOLD", "job requeued in held state")
# ... of who needs nodes that are out: by name (sbatch -w), or so many that too few are left.
MISSING = ("ReqNodeNotAvail", "Nodes required for job are DOWN, DRAINED")
# ... and of who needs nodes that are reserved. 26.05 says "May be reserved for other job" of drained ones.
RESERVED = "ReqNodeNotAvail, Reserved"
FOREMOST = 0xFFFFFFFE  # the highest priority that a job can have (slurm.h: one more is INFINITE)
NICEST = -0x7FFFFFFD  # the lowest nice value that Slurm takes (sbatch(1), --nice: +/- 2147483645)


class Do(StrEnum):
    """What is to be done with a node."""

    NOTHING = "nothing"  # and `why` says why, unless there is nothing wrong
    DRAIN = "drain"
    STAND = "stand"  # it is out by us: refuse jobs, care for the victims
    LEAVE = "leave"  # it is out by somebody else: care for the victims only
    YIELD = "yield"  # an admin resumed it over our heads: acknowledge
    UNDO = "undo"  # our refusal drained it after an admin's RESUME: acknowledge, and resume


@dataclass(frozen=True, slots=True)
class Drained:
    """The drain that the ledger says is ours: its words and Slurm's ReasonTime of it."""

    reason: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What else bears on a node: the site's mode, a pause, whether the budget has room (else why not)."""

    mode: str
    paused: bool = False
    spent: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    do: Do
    why: str = ""
    reason: str = ""


def judge(
    node: Node | None,
    incidents: Iterable[Incident],
    ours: Drained,
    attempted: Iterable[str],
    outlook: Outlook,
    refused: bool,
) -> Judgement:
    """What is to be done with a node that has these open incidents.

    `attempted` are the reasons of drains of ours that got no answer: they may have happened, or may yet.
    `refused`: a hook that failed on the node was ours (see `our_hook`).
    """
    pressing = [one for one in incidents if one.pressing]
    if node is None:
        return Judgement(Do.NOTHING, "Slurm does not know this node" if pressing else "")
    is_ours = bool(ours.reason) and node.reason == ours.reason and node.since == ours.since
    if ours.reason and not node.out:
        return Judgement(Do.YIELD, "resumed by an admin")
    if not pressing:
        if node.out and (is_ours or node.reason in attempted):
            return Judgement(Do.STAND)
        if refused and node.reason == "Prolog error" and "DRAIN" in node.flags:
            return Judgement(Do.UNDO, "drained for our prolog, and nothing stands against it")
        return Judgement(Do.NOTHING)
    first = min(pressing, key=lambda one: (one.since, one.id))
    if node.out:
        if is_ours or node.reason in attempted:
            return Judgement(Do.STAND, reason=node.reason)
        if node.reason in HOOK_REASONS and refused and "DRAIN" in node.flags:
            if ours.reason:  # Slurm writes this only on a node in service: an admin had resumed it
                return Judgement(Do.UNDO, "resumed by an admin, then drained for our hook")
            if outlook.mode != "observe":
                return Judgement(Do.DRAIN, reason=first.reason)
        how = DRAINED_BY_OTHERS if "DRAIN" in node.flags else "down"
        return Judgement(Do.LEAVE, f"{how}: {node.reason or 'no reason given'}")
    if any(one.held.startswith(DRAINED_BY_OTHERS) for one in pressing):
        return Judgement(Do.YIELD, "resumed by an admin")
    if why := obstacle(node, outlook):
        return Judgement(Do.NOTHING, why)
    return Judgement(Do.DRAIN, reason=first.reason)


def our_hook(node: Node | None, ours: Drained, cards: Iterable[Card], first: float | None) -> bool:
    """Whether a hook that failed on the node was ours: our prolog refused a job since the first evidence
    (with none, as Slurm noted the failure), or a job ended as Slurm noted "Epilog error" while we had the
    node out (our epilog then fails for each).
    """
    if first is None:
        first = node.since - 1 if node else math.inf
    epilog = node.since if node and ours.reason and node.reason == "Epilog error" else 0
    return any(
        (card.refused and card.refused >= first - SLACK) or (epilog and abs(card.ended - epilog) <= SLACK + 1)
        for card in cards
    )


def lost(ours: Drained, node: Node | None, do: Do) -> bool:
    """Whether a drain that was ours is somebody else's now: other words, or the same written again. Slurm's
    own words after a hook failed say nothing yet: the card that tells whose hook it was may be under way."""
    if not ours.reason or node is None or not node.out or do is Do.STAND:
        return False
    return (node.reason, node.since) != (ours.reason, ours.since) and node.reason not in HOOK_REASONS


def was_back(ours: Drained, node: Node) -> bool:
    """Whether a node that we drained is in service, or was: Slurm then drained it anew for a failed hook."""
    return bool(ours.reason) and (not node.out or node.reason in HOOK_REASONS)


def forgot(booted: float, drained: float, shown: float) -> bool:
    """Whether a drain of ours that no longer stands was lost and not ended by an admin: slurmctld was killed
    within the seconds in which it had not written it down (SAVE_MAX_WAIT, 5 s), and started anew (`booted`)
    after it last showed it (`shown`)."""
    return math.floor(shown) <= booted <= drained + FORGETS


def returns(
    node: Node, pressing: Iterable[Incident], codes: Iterable[str], after: float, times: int, now: float
) -> bool:
    """Whether a node that is out by us may serve again: all that stands against it is of these codes (shell
    patterns) and has been gone for `after` seconds, twice as long for each of the `times` that it came back
    of late."""
    against = list(pressing)
    if "DRAIN" not in node.flags or node.flags & (ELSEWHERE | {"DOWN", "FAIL", "NOT_RESPONDING"}):
        return False
    patterns = list(codes)
    if not all(one.cleared and any(fnmatchcase(one.code, glob) for glob in patterns) for one in against):
        return False
    return bool(against) and now - max(one.cleared for one in against) >= after * 2**times


def spared(node: Node, ours: Drained, others: Iterable[str]) -> str:
    """Why a node that keeps a job from ending is not set DOWN, which would end all that is on it, or ""."""
    if (node.reason, node.since) != (ours.reason, ours.since) or not ours.reason:
        return "its drain is not ours"
    if busy := sorted(node.flags & ELSEWHERE):
        return f"node is {'+'.join(busy).lower()}"
    if neighbours := ", ".join(sorted(others)):
        return f"job {neighbours} is on it, too"
    return ""


def obstacle(node: Node, outlook: Outlook) -> str:
    """Why a node in service is not drained though it should be, or ""."""
    if outlook.mode == "observe":
        return "mode is observe"
    if outlook.paused:
        return "paused"
    if busy := sorted(node.flags & ELSEWHERE):
        return f"node is {'+'.join(busy).lower()}"
    return outlook.spent


@dataclass(slots=True)
class Room:
    """What the budget leaves: which of the `total` nodes are out by us or about to be, which were drained
    within the window, and the site's limits on both as (percent, number), of which the larger counts."""

    total: int
    out: set[str]
    recent: set[str]
    limit: tuple[float, int]
    window_limit: tuple[float, int]

    def obstacle(self, name: str) -> str:
        """Why this node may not be drained on top of the others, or ""."""
        out, recent = (len(some) - (name in some) for some in (self.out, self.recent))
        most, most_recent = (self._most(limit) for limit in (self.limit, self.window_limit))
        if out >= most:
            return f"budget spent: {out} of {self.total} nodes are out by us, at most {most} may be"
        if recent >= most_recent:
            return f"budget spent: {recent} nodes drained lately, at most {most_recent} may be in the window"
        return ""

    def _most(self, limit: tuple[float, int]) -> int:
        percent, number = limit
        return max(number, math.floor(self.total * percent / 100))

    def take(self, name: str) -> None:
        self.out.add(name)
        self.recent.add(name)


def everyones(incident: Incident) -> bool:
    """Whether the fault touches all jobs of its node: a link, memory, the host. Not a GPU or a switch."""
    return not incident.code.startswith(DEVICE_CODES)


def touched(incident: Incident, cards: Iterable[Card]) -> list[Card]:
    """The cards of the jobs that held the broken device when it broke, or held it when they died of it.

    A driver or an NVSwitch is broken for all who hold a GPU. A GPU that cannot be named touches nobody for
    sure, and a card whose devices are not known is not guessed at.
    """

    def holds(card: Card) -> bool:
        if card.devices is None:
            return False
        if incident.code.startswith(("GPU_DRIVER_", "NVSWITCH_")):
            return bool(card.devices)
        return incident.device in card.devices

    return [card for card in present(incident, cards) if holds(card)]


def present(incident: Incident, cards: Iterable[Card]) -> list[Card]:
    """The cards of the jobs that were on the node when it broke."""
    return [card for card in cards if not card.ended or card.ended >= incident.since - SLACK]


def held_back(job: Job, card: Card) -> bool:
    """Whether the job died in the run of this card and was held: it shows no node any more."""
    return job.restarts == card.restarts + 1 and (job.state, job.reason) == NOT_EXPEDITED


def broke(hurts: Iterable[Hurt], progress: float) -> tuple[str, ...]:
    """The nodes on which the last runs of a job met the same fault of a GPU, one run after the other.

    A run that had lasted `progress` seconds before it had nothing to do with the faults of the runs before.
    """
    nodes: list[str] = []
    later: Hurt | None = None
    for one in sorted(hurts, key=lambda one: one.since, reverse=True):
        if not one.code.startswith(DEVICE_CODES):
            break
        if later and (one.code != later.code or later.since - later.began >= progress):
            break
        if one.node not in nodes:
            nodes.append(one.node)
        later = one
    return tuple(reversed(nodes))


def hurt(incident: Incident, job: Job) -> bool:
    """Whether a fault of the whole node touches this job that Slurm lists on it."""
    return not job.ended or job.ended >= math.floor(incident.since) - SLACK


# Jobs


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

LIVE = frozenset({"RUNNING", "SUSPENDED", "CONFIGURING", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
DIED = frozenset({"FAILED", "NODE_FAIL"})
# squeue shows COMPLETING whatever a job will be next; with one of these reasons it will be FAILED or
# NODE_FAIL (a cancelled job has none, one out of time TimeLimit). Its orphaned steps can take seconds to end.
DEATHS = ("NonZeroExitCode", "JobLaunchFailure", "NodeDown", "RaisedSignal")


def treat(
    victim: Victim,
    job: Job | None,
    wish: Wish,
    may: bool,
    now: float,
    start: float = 0.0,
    first: bool = False,
    expedites: bool = False,
) -> Step:
    """The next step for a job that a fault touched. `may`: its node is out and the site wants requeues;
    `start`: when its wait may be ended at the earliest (see `earliest`). `first`: it goes before all that
    wait. `expedites`: Slurm runs some again by itself.

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
            return _others(job, may, expedites)
        return _follow(victim, job, may, now, start, first)
    if job.restarts < victim.restarts:
        return Settle("another job has its number")
    if job.completing and (expedites or not job.reason.startswith(DEATHS)):
        return Wait(hot=True)  # where Slurm may run it again itself: it does when the last epilog has ended
    if job.nodes and victim.node not in job.nodes and not (job.completing or job.het):
        # Noted while it left the node, requeued already: Slurm then shows the count of the run to come.
        return Settle(f"this run was never on {victim.node}")
    if job.state in LIVE:
        return _live(victim, job, wish, may, now)
    if job.state in DIED or job.completing:
        if not victim.since - SLACK - 1 <= job.ended <= _blamed_until(victim, wish):
            return Settle("failed for its own reasons")
        return _back(job, wish, may, incomplete=False)
    if job.state == "PENDING":
        return Wait()
    return Settle(f"{job.state}: not ours to bring back")


def _blamed_until(victim: Victim, wish: Wish) -> float:
    """Until when a death counts as the fault's, or our signal's."""
    grace = victim.signalled + wish.grace + SLACK if victim.signalled else 0.0
    return max(victim.since + DIES_WITHIN, grace)


def _live(victim: Victim, job: Job, wish: Wish, may: bool, now: float) -> Step:
    if not wish.requeue:
        return _back(job, wish, may, incomplete=True)
    urgency = victim.urgency
    if urgency is Urgency.CHECKPOINT and not (wish.signal or victim.signalled):
        urgency = wish.unasked
    if urgency is Urgency.FINISH:
        return Settle("left to finish") if now - victim.since > DIES_WITHIN else Wait()
    back = _back(job, wish, may, incomplete=True)
    if urgency is Urgency.NOW or not isinstance(back, Requeue) or job.state == "CONFIGURING":
        return back
    if job.state != "RUNNING":
        return Wait()  # it is stopped and could not save anything
    if not victim.signalled:
        return Signal(wish.signal, wish.steps)
    return back if now >= victim.signalled + wish.grace else Wait(hot=now - victim.signalled < 30)


def _back(job: Job, wish: Wish, may: bool, incomplete: bool) -> Step:
    if not wish.requeue:
        return Settle("its owner wants no requeue (slurm-health: off)", tell=True)
    if not job.batch:
        return Settle("interactive: Slurm cannot requeue it", tell=True)
    if not job.requeueable:
        return Settle("its owner wants no requeue (--no-requeue)", tell=True)
    return Requeue(incomplete) if may else Wait()


def _follow(victim: Victim, job: Job, may: bool, now: float, start: float, first: bool) -> Step:
    """After its requeue, by us or by Slurm for our hooks."""
    if job.state == "PENDING" and not job.completing:
        if job.reason == HELD_BY_PROLOG:
            return Release()
        if "Held" in job.reason or "held" in job.reason:
            if victim.lifted != victim.nice:  # its own place cannot be given back to who is held
                return Wait()
            return Settle(f"held by somebody else: {job.reason}")
        if first and not victim.placed:
            return Lift()
        if waits(victim, job, now):
            return _end_wait(victim, now, start)
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
        return Requeue(incomplete=False) if may else Wait()
    return Ran() if job.state == "COMPLETED" else Settle(f"{job.state} after its requeue")


def launch_failed(victim: Victim, job: Job) -> bool:
    """Whether Slurm holds a job that was brought back, since its launch failed."""
    waits_held = job.state == "PENDING" and not job.completing and job.reason == HELD_BY_PROLOG
    return waits_held and job.restarts > victim.restarts


def _others(job: Job, may: bool, expedites: bool) -> Step:
    """After a requeue that was not ours. Who else's lets no job run again without a wait?"""
    if (job.state, job.reason) == NOT_EXPEDITED:
        return Release() if may else Wait()
    if expedites and job.state in LIVE:
        return Adopt()
    if job.state == "PENDING" and not job.completing and job.reason == HELD_BY_PROLOG:
        return Settle("held after a failed prolog")
    return Settle("requeued by somebody else")


def waits(victim: Victim, job: Job, now: float) -> bool:
    """Whether Slurm lets a requeued job wait for a time. The start that backfill plans looks alike, but has
    another reason."""
    begins = job.state == "PENDING" and job.begins > now + 1
    return begins and (not victim.started or job.reason == "BeginTime")


def keeps(victim: Victim, job: Job, now: float) -> bool:
    """Whether the healthy nodes of a job are still kept for it: until nothing else keeps it from starting."""
    leaves = job.restarts == victim.restarts or job.completing
    return leaves or (waits(victim, job, now) and not victim.started)


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


def foremost(priority: int, nice: int) -> int:
    """The nice value that puts a job of this priority and nice value before all others.

    Slurm takes the nice value off the priority, whichever way it computes that, and knows 32 bits: more than
    what is missing to the highest would come out as little.
    """
    return max(nice - (FOREMOST - priority), NICEST)


def holds_on(job: Job) -> bool:
    """Whether a job that Slurm lists on a node is still there."""
    return job.completing or job.state in LIVE


def runs(job: Job) -> bool:
    """Whether its prologs are done and its batch step was sent off."""
    return job.state in LIVE and job.state != "CONFIGURING" and job.reason != "Prolog"


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


def _end_wait(victim: Victim, now: float, start: float) -> Step:
    """Once. Slurm loses it without a word while the job is COMPLETING, so it is sent again after 3 s."""
    if now < start or (victim.started and now - victim.started < 3):
        return Wait(hot=True)
    return StartNow()


def verdict(findings: Iterable[Severity], refuse: str) -> str:
    """The word for the verdict file: `bad` is the controller's decision, never an observation."""
    if refuse:
        return "bad"
    return "warn" if any(severity > Severity.OK for severity in findings) else "ok"
