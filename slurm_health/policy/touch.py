"""Whom a fault touches, and who brings it about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from slurm_health.model import Card, Hurt, Incident, Job

DIES_WITHIN = 120.0  # seconds after the first evidence in which a job's death counts as the fault's
SLACK = 2.0  # Slurm's times are whole seconds, and a link's fault is seen up to a second late
CARD = 1.0  # the times of a card are seconds without their fraction
# What a job may have broken itself: only who holds the device is touched (of PCIe devices GPUs are held).
DEVICE_CODES = ("GPU_", "NVSWITCH_", "PCIE_")
SUSPECTS = 2  # nodes that a job may break the same way before it is held and the next one left alone
SUSPECT = "suspect job: "  # how it is noted that a node is left alone
# squeue's state and Reason of a job that was to be expedited, exited non-zero, and no epilog failed.
NOT_EXPEDITED = ("REQUEUE_HOLD", "job requeued in held state")


def everyones(incident: Incident) -> bool:
    """Whether the fault touches all jobs of its node: a link, memory, the host. Not a GPU or a switch."""
    return not incident.code.startswith(DEVICE_CODES)


def touched(incident: Incident, cards: Iterable[Card]) -> list[Card]:
    """The cards of the jobs that held the broken device when it broke, or held it when they died of it; of a
    job's runs the last one comes last.

    A driver or an NVSwitch is broken for all who hold a GPU. A GPU that cannot be named touches nobody for
    sure, and a card whose devices are not known is not guessed at. Nor does a fault touch who had left before
    another came, and that one had the device when it broke.
    """

    def holds(card: Card) -> bool:
        if card.devices is None:
            return False
        if incident.code.startswith(("GPU_DRIVER_", "NVSWITCH_")):
            return bool(card.devices)
        return incident.device in card.devices

    held = list(filter(holds, present(incident, cards)))
    sure = incident.since - CARD
    here = [card.started for card in held if card.started <= sure and not 0 < card.ended <= sure]
    came = max(here, default=0.0)
    return sorted((card for card in held if not 0 < card.ended <= came), key=lambda card: card.restarts)


def present(incident: Incident, cards: Iterable[Card]) -> list[Card]:
    """The cards of the jobs that were on the node when it broke."""
    return [card for card in cards if not card.ended or card.ended >= incident.since - SLACK]


def hurt(incident: Incident, job: Job) -> bool:
    """Whether a fault of the whole node touches this job that Slurm lists on it."""
    return not job.ended or job.ended >= math.floor(incident.since) - SLACK


def held_back(job: Job, card: Card) -> bool:
    """Whether the job died in the run of this card and was held: it shows no node any more."""
    return job.restarts == card.restarts + 1 and (job.state, job.reason) == NOT_EXPEDITED


def cards_of(incident: Incident, cards: Iterable[Card]) -> list[Card]:
    """The cards of the jobs that it may touch."""
    return present(incident, cards) if everyones(incident) else touched(incident, cards)


Run = tuple[Job, int, tuple[int, ...]]  # a job, its restart count then, its ranks on the device


def runs(
    incident: Incident, cards: Iterable[Card], known: Mapping[int, Job], there: Iterable[Job]
) -> list[Run]:
    """The runs that the fault touched. `known` are the cards' jobs, by number; `there` are those that Slurm
    lists on the node, where the fault is everyone's."""
    cards = [card for card in cards_of(incident, cards) if card.job in known]
    if everyones(incident):
        listed = [job for job in there if incident.node in job.nodes and hurt(incident, job)]
        held: list[Run] = [
            (known[card.job], card.restarts, ()) for card in cards if held_back(known[card.job], card)
        ]
        return [(job, job.restarts, ()) for job in listed] + held
    last = {card.job: card for card in cards}
    return [
        (known[card.job], card.restarts, card.ranks.get(incident.device, ()))
        for card in last.values()
        if known[card.job].restarts >= card.restarts
    ]


def broke(hurts: Iterable[Hurt], progress: float) -> tuple[str, ...]:
    """The nodes on which the last runs of a job met the same fault of a GPU, one run after the other.

    A run that had lasted `progress` seconds before it had nothing to do with the faults of the runs before.
    Of one that met it on several nodes the last counts: what breaks many at a time is no job.
    """
    nodes: list[str] = []
    later: Hurt | None = None
    for one in sorted(hurts, key=lambda one: one.since, reverse=True):
        if not one.code.startswith(DEVICE_CODES):
            break
        if later and one.run == later.run:
            continue
        if later and (one.code != later.code or later.since - later.began >= progress):
            break
        if one.node not in nodes:
            nodes.append(one.node)
        later = one
    return tuple(reversed(nodes))
