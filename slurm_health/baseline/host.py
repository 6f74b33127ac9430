"""What a host's disks and clock were. Pure.

Of a disk: `writable`, once it was, and the `mount` point where it was. Of the clock "": `synchronised`, once
it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from slurm_health.baseline.facts import Devices, Facts
from slurm_health.model import Reading, Value


def learn_disks(known: Devices, facts: Devices) -> dict[str, Facts]:
    fresh = {device: seen for device, seen in facts.items() if seen.get("disk.read_only") is False}
    return {**known, **{device: {"writable": True, "mount": _mount(seen)} for device, seen in fresh.items()}}


def expect_disks(known: Devices, facts: Devices, readings: tuple[Reading, ...]) -> Iterator[Reading]:
    """`disk.locked`: read-only, and was not."""
    # after a boot a name may be another disk's: only at the same place it is the same
    for one in readings:
        if one.name == "disk.read_only" and (its := known.get(one.device)):
            same = its.get("mount") == _mount(facts[one.device])
            yield replace(one, name="disk.locked", value=one.value is True and same)


def _mount(seen: Facts) -> Value:
    return seen.get("disk.mount", "")


def learn_clock(known: Devices, facts: Devices) -> dict[str, Facts]:
    kept = facts.get("", {}).get("system.clock") is True
    return {"": {"synchronised": True}} if kept else dict(known)


def expect_clock(known: Devices, readings: tuple[Reading, ...]) -> Iterator[Reading]:
    """`system.unsynced`: the clock is not kept, and was."""
    # where the kernel is never told (PTP, chrony without rtcsync), it has nothing to lose
    for one in readings:
        if one.name == "system.clock" and known:
            yield replace(one, name="system.unsynced", value=not one.value)
