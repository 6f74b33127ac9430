"""The kernel log: what the kernel itself says of its hardware. One file here for each driver's grammar.

Only facility 0 is the kernel: what a process writes to /dev/kmsg gets another one (printk.c, devkmsg_write).
But a line of facility 0 may *begin* with text of a user's choosing: a process name ("NAME[pid]: segfault
...", at most 15 bytes, TASK_COMM_LEN) or a network interface's name (at most 15 bytes, without ':' and white
space), and longer such text (a path, a label, a mount option, a group's name) stands after the kernel's own
words. So each grammar spans the whole message, and what it asks of the first 16 bytes and of those that
follow cannot be written by such a name and the kernel's own words around it. Where a driver's true line
quotes a name, the name stands where it cannot change what the line means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from slurm_health.model import Reading
from slurm_health.probes.kernel import disk, memory, mlx5, nvidia, pci, tasks
from slurm_health.probes.kernel.event import Event
from slurm_health.probes.kernel.log import KernelLog
from slurm_health.probes.kernel.record import Record, parse_record

__all__ = [
    "Event",
    "KernelLog",
    "Record",
    "nvml_knows",
    "parse_message",
    "parse_record",
    "reading",
    "readings",
]

EVIDENCE = 500  # characters of a kernel line that are kept
LONGEST = 2048  # characters that a grammar looks at; no message is longer (printk.c, PRINTK_MESSAGE_MAX)
# memory errors and what becomes of their rows (48, 63, 64, 94, 95, 171, 172), the recovery action (154)
TOLD_BY_NVML = frozenset({48, 63, 64, 94, 95, 154, 171, 172})

# words of a message -> the grammar that must then match all of it; a new class is one more pair
GRAMMARS: tuple[tuple[str, Callable[[str], Event | None]], ...] = (
    ("NVRM: Xid (", nvidia.xid),
    ("fallen off the bus", nvidia.off_bus),
    ("SXid (", nvidia.sxid),
    (" error received: ", pci.aer),
    (" error message received from ", pci.aer),
    (" Bus Error: severity=", pci.aer),
    (" aer_status: ", pci.aer),
    (" containment event, ", pci.aer),
    ("mlx5", mlx5.mlx5),
    ("EDAC ", memory.memory),
    ("[Hardware Error]: ", memory.memory),
    ("mce: ", memory.memory),
    ("Memory failure: ", memory.memory),
    ("nvme", disk.disk),
    (" error, dev ", disk.disk),
    ("Buffer I/O error on dev", disk.disk),
    ("md/", disk.disk),
    ("sd ", disk.disk),
    ("-fs ", disk.filesystem),
    ("XFS", disk.filesystem),
    ("BTRFS", disk.filesystem),
    ("Remounting filesystem read-only", disk.filesystem),
    (": writeback error on inode ", disk.filesystem),
    ("Aborting journal", disk.filesystem),
    ("JBD2: ", disk.filesystem),
    (" blocked ", tasks.hung),
    ("lockup - ", tasks.lockup),
    ("hard LOCKUP", tasks.lockup),
    ("INFO: rcu_", tasks.lockup),
    ("oom-kill", tasks.oom),
    ("ut of memory", tasks.oom),
)


def parse_message(text: str) -> Event | None:
    """The hardware event that a kernel message states, or None. Never raises."""
    if len(text) > LONGEST:
        return None
    for words, grammar in GRAMMARS:
        if words in text and (event := grammar(text)):
            return event
    return None


def readings(records: Iterable[Record], boot: str, now: float, clock: float) -> list[Reading]:
    """The events among records. `now` is the epoch, `clock` the log's clock (KernelLog.clock()), both now."""
    found = []
    for record in records:
        if record.facility == 0 and (event := parse_message(record.text)):
            at = min(now, now - (clock - record.microseconds / 1e6))
            found.append(reading(event, record.text, f"{boot}/{record.sequence}", at))
    return found


def reading(event: Event, text: str, moment: str, at: float) -> Reading:
    """An event with its evidence and its when."""
    return Reading(
        event.name, event.device, event.value, text[:EVIDENCE], moment, at, event.pid, event.detail
    )


def nvml_knows(event: Reading) -> bool:
    """Whether NVML can say more of an event: what a memory error left behind on its GPU."""
    return event.name == "kernel.xid" and event.value in TOLD_BY_NVML
