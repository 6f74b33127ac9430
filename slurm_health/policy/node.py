"""What is to be done with a node."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from slurm_health.model import Card, Incident, Node
from slurm_health.policy.touch import SLACK

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
FORGETS = 600.0  # seconds after a drain in which a new slurmctld that does not know it may have lost it


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


def elsewhere(node: Node) -> str:
    """What somebody or something else is doing with the node, which is then left alone, or ""."""
    busy = sorted(node.flags & ELSEWHERE)
    return f"node is {'+'.join(busy).lower()}" if busy else ""


def obstacle(node: Node, outlook: Outlook) -> str:
    """Why a node in service is not drained though it should be, or ""."""
    if outlook.mode == "observe":
        return "mode is observe"
    if outlook.paused:
        return "paused"
    if busy := elsewhere(node):
        return busy
    return outlook.spent


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
    if busy := elsewhere(node):
        return busy
    if neighbours := ", ".join(sorted(others)):
        return f"job {neighbours} is on it, too"
    return ""
