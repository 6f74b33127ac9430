"""The nouns: facts, opinions about them, what Slurm says, and what follows from both.

Frozen values that every other module passes around. Nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    NOW: the device is lost or results are suspect, requeue at once. CHECKPOINT: it still runs and should
    leave: signal it, if it asked for that (see Wish), and requeue it after its grace. FINISH: let the job
    end; requeue it only if it dies of the fault. NONE: the job is left alone in every case.
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
    kernel named, 0 where it named none. `detail` is the one lower-case word beside the value that an opinion
    may need ("fatal", "nonfatal", "drain_and_reset"; of a counter the width at which it stops: "4bit",
    "8bit", "16bit", "32bit"), empty where there is none. `job` is whose an event on a GPU was, "4711.0/1000"
    (job, restarts, uid), empty where that is not known.
    """

    name: str
    device: str
    value: Value
    evidence: str = ""
    moment: str = ""
    at: float = 0.0
    pid: int = 0
    detail: str = ""
    job: str = ""


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
    `hardware` says by what a person finds the device (see identity.py).
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
    hardware: Mapping[str, Value] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Wish:
    """How a job is to be brought back: its owner's words, the site's where the owner said nothing.

    `requeue`: how often we may, 0 never. `signal` ("USR1", "" none) goes to the batch script alone or to
    "all" of the job's steps (not the script), `grace` seconds before a requeue that can wait. `unasked`: what
    such a fault means to a job without a signal, NOW or FINISH; the site's word alone.
    """

    requeue: int = 3
    signal: str = ""
    grace: float = 60.0
    steps: str = "batch"
    unasked: Urgency = Urgency.FINISH


@dataclass(frozen=True, slots=True)
class Card:
    """A job as its prolog noted it on one node (see prolog/slurm-health.sh). Times are epoch seconds.

    `devices` holds the PCI addresses of the job's GPUs, or None where they cannot be told (never guessed); of
    a job whose prolog was told of none, those that its processes were seen on.
    `ended` and `refused` are 0 until they happen. `ranks` says which ranks of the job were last seen on which
    device, also when it or they are gone; a device on which none was ever seen is not in it. `asked`: what
    its owner asks by our options of sbatch.
    """

    job: int
    restarts: int
    uid: int = 0
    devices: tuple[str, ...] | None = None
    started: float = 0.0
    ended: float = 0.0
    refused: float = 0.0
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    asked: str = ""


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
    leader of a heterogeneous job). `size` is its number of nodes. `ended` is 0 while it lives. `het`: it is
    one component of several, and shows its own nodes only.
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
    size: int = 1
    nodes: tuple[str, ...] = ()
    started: float = 0.0
    ended: float = 0.0
    begins: float = 0.0
    het: bool = False


@dataclass(frozen=True, slots=True)
class Incident:
    """The life of a finding in the ledger. Times are seconds since the epoch, 0 until they happen.

    `since` is the first evidence, `cleared` when a lasting fault was gone, `acknowledged` when an admin's
    RESUME overruled it, `held` why nothing was done (or "").
    """

    id: int
    node: str
    code: str
    device: str
    severity: Severity
    job: Urgency
    text: str
    since: float
    opened: float
    lasting: bool = True
    moment: str = ""
    count: int = 1
    seen: float = 0.0
    cleared: float = 0.0
    acknowledged: float = 0.0
    closed: float = 0.0
    closed_by: str = ""
    held: str = ""
    hardware: Mapping[str, Value] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> str:
        """Where it broke, as people look for it: "gpu017, GPU 5"."""
        return f"{self.node}, GPU {self.hardware['gpu']}" if "gpu" in self.hardware else self.node

    @property
    def pressing(self) -> bool:
        """Whether it still asks for the node to be out: nobody closed or overruled it."""
        return self.severity is Severity.CRITICAL and not (self.closed or self.acknowledged)

    @property
    def words(self) -> str:
        """The fault as people read it: the same words for the same fault."""
        return f"{self.code}({self.device}) {self.text}"

    @property
    def reason(self) -> str:
        """The drain reason, at most 120 characters."""
        return f"slurm-health: {self.words}".rstrip()[:120].rstrip()


@dataclass(frozen=True, slots=True)
class Hurt:
    """A fault that a run of a job met: where, which, the run's restart count, when the run had begun (0 where
    that is not known) and when the fault came.
    """

    node: str
    code: str
    run: int
    began: float
    since: float


@dataclass(frozen=True, slots=True)
class Victim:
    """A job that a fault touched, and how far it has come since. One for each (job, restart count).

    `requeued`, `started` (its wait was ended), `ran` and `settled` are 0 until they happen; `outcome` says in
    a few words how it ended. `refused`: our prolog turned it away. `signalled`: told to save its work.
    `comment`: what its owner wrote for us, None until Slurm has said; `asked`: the same by options of sbatch.
    `nice` is its own nice value, `lifted` the one that puts it first in the queue, `placed` when it got that.
    """

    id: int
    incident: int
    job: int
    restarts: int
    label: str
    uid: int
    node: str
    urgency: Urgency
    since: float
    refused: float = 0.0
    requeued: float = 0.0
    started: float = 0.0
    running: float = 0.0
    ran: float = 0.0
    ran_nodes: str = ""
    settled: float = 0.0
    outcome: str = ""
    tries: int = 0
    nice: int = 0
    lifted: int = 0
    placed: float = 0.0
    signalled: float = 0.0
    comment: str | None = None
    asked: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened and that people are to be told of: `event` says of which kind, `job` whose.
    `tries`: how often it was about to be sent, last when it was `tried`."""

    id: int
    at: float
    event: str
    severity: Severity
    incident: int
    node: str
    job: str
    text: str
    tries: int = 0
    tried: float = 0.0
