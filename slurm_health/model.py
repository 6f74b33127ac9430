"""The nouns: facts, opinions about them, what Slurm says, and what follows from both.

Frozen values that every other module passes around. Nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Severity(IntEnum):
    """How bad a finding is. *Unknown* is no severity: it is the absence of a report."""

    OK = 0
    WARNING = 1
    CRITICAL = 2

    def __str__(self) -> str:
        return self.name.lower()


class Urgency(StrEnum):
    """What a fault means to the jobs it touches.

    NOW: the device is lost or results are suspect, requeue at once. CHECKPOINT: leave soon (until the signal
    of a later release exists, as FINISH). FINISH: let the job end; requeue it only if it dies of the fault.
    NONE: the job is left alone in every case.
    """

    NOW = "now"
    CHECKPOINT = "checkpoint"
    FINISH = "finish"
    NONE = "none"


Value = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Reading:
    """A fact, without an opinion.

    `moment` is set on events (something that happened once, such as a kernel log line) and names the event
    uniquely on its node: "<boot id>/<kernel sequence number>". It is empty on states (something that holds).
    `at` is the event's own time (seconds since the epoch), 0 for states. `pid` is the process that the
    kernel named, 0 where it named none.
    """

    name: str
    device: str
    value: Value
    evidence: str = ""
    moment: str = ""
    at: float = 0.0
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What one run of one probe brought back, or why it brought nothing."""

    probe: str
    readings: tuple[Reading, ...] = ()
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a reading broke.

    `since` is the time of the first evidence (before any hold), `moment` names this occurrence uniquely on
    its node, for states as well as for events. `lasting` is False for events: they happen and cannot end.
    """

    code: str
    severity: Severity
    device: str
    text: str
    evidence: str = ""
    job: Urgency = Urgency.FINISH
    since: float = 0.0
    moment: str = ""
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class Card:
    """A job as its prolog noted it on one node (see prolog/slurm-health.sh). Times are epoch seconds.

    `devices` holds the PCI addresses of the job's GPUs, or None where they cannot be told (never guessed).
    `ended` and `refused` are 0 until they happen.
    """

    job: int
    restarts: int
    uid: int = 0
    devices: tuple[str, ...] | None = None
    started: float = 0.0
    ended: float = 0.0
    refused: float = 0.0


@dataclass(frozen=True, slots=True)
class Node:
    """What Slurm says of a node. `flags` are its state words, upper case ("IDLE", "DRAIN", "MAINT", ...).

    `since` is ReasonTime in seconds since the epoch, 0 where Slurm has none.
    """

    name: str
    flags: frozenset[str] = frozenset()
    reason: str = ""
    since: int = 0
    address: str = ""

    @property
    def out(self) -> bool:
        """Whether no new job can start here (squeue and sinfo call it drained, draining, down or failing)."""
        return bool(self.flags & {"DRAIN", "DOWN", "FAIL"})


@dataclass(frozen=True, slots=True)
class Job:
    """What Slurm says of a job (one array task, one component of a heterogeneous job).

    `id` is Slurm's own number for it; `label` is how commands must name it (`7_2` for an array task, the
    leader of a heterogeneous job). `ended` is 0 while it lives.
    """

    id: int
    label: str
    state: str
    completing: bool = False
    reason: str = ""
    restarts: int = 0
    uid: int = 0
    batch: bool = True
    requeueable: bool = True
    nodes: tuple[str, ...] = ()
    started: float = 0.0
    ended: float = 0.0
    begins: float = 0.0


@dataclass(frozen=True, slots=True)
class Device:
    """What a node remembers of a healthy device: its identity and how well it ran."""

    name: str
    facts: dict[str, Value] = field(default_factory=dict)
