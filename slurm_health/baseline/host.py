"""What a host's disks and clock were. Pure.

Of a disk: `writable`, once it was. Of the clock "": `synchronised`, once it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from slurm_health.baseline.facts import Devices, Facts
from slurm_health.model import Reading


def learn_disks(known: Devices, facts: Devices) -> dict[str, Facts]:
    fresh = {device for device, seen in facts.items() if seen.get("disk.read_only") is False}
    return {**known, **{device: {"writable": True} for device in fresh}}


def expect_disks(known: Devices, readings: tuple[Reading, ...]) -> Iterator[Reading]:
    """`disk.locked`: read-only, and was not."""
    for one in readings:
        if one.name == "disk.read_only" and one.device in known:
            yield replace(one, name="disk.locked")


def learn_clock(known: Devices, facts: Devices) -> dict[str, Facts]:
    kept = facts.get("", {}).get("system.clock") is True
    return {"": {"synchronised": True}} if kept else dict(known)


def expect_clock(known: Devices, readings: tuple[Reading, ...]) -> Iterator[Reading]:
    """`system.unsynced`: the clock is not kept, and was."""
    # where the kernel is never told (PTP, chrony without rtcsync), it has nothing to lose
    for one in readings:
        if one.name == "system.clock" and known:
            yield replace(one, name="system.unsynced", value=not one.value)
