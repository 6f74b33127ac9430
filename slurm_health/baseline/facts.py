"""What is remembered of a node's devices, and what its configuration expects of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from slurm_health.model import Reading, Value

Facts = dict[str, Value]
Devices = Mapping[str, Facts]
Learned = tuple[dict[str, Facts], tuple[str, ...]]  # and a line for each change worth a record
KINDS = ("gpus", "ports", "nics", "pcie", "memory", "disks", "clock")


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the site's configuration says that a node should have; None: it does not say.

    Rates in Gb/s, those of `ib_rates` and `nic_rates` by pattern of ports that differ from the others; memory
    in GiB; `gpu_models` are patterns of NVML's names; of PCIe links by address their width (lanes) and speed
    (GT/s, 0: any). `ignore` holds patterns of devices that are never judged. The InfiniBand numbers are for
    ports whose link layer is not Ethernet: an Ethernet port of the same adapter is a NIC.
    """

    gpus: int | None = None
    ib_ports: int | None = None
    ib_gbps: float | None = None
    nic_ports: int | None = None
    nic_gbps: float | None = None
    memory: float | None = None
    gpu_memory: float | None = None
    gpu_models: tuple[str, ...] = ()
    ib_rates: dict[str, float] = field(default_factory=dict)
    nic_rates: dict[str, float] = field(default_factory=dict)
    pcie: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    services: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def ignored(self, device: str) -> bool:
        return bool(self.ignore) and any(fnmatchcase(device, glob) for glob in self.ignore)


def rate(device: str, rates: dict[str, float], others: float | None) -> float | None:
    """What is configured for a port: of the patterns that match it the last, as with sections."""
    return next((gbps for glob, gbps in reversed(rates.items()) if fnmatchcase(device, glob)), others)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was learned: by device, its facts. `boot` is the boot that the error counts belong to.

    The facts of each kind stand in the module of its name; disks and clock in host.py.
    """

    boot: str = ""
    gpus: Devices = field(default_factory=dict)
    ports: Devices = field(default_factory=dict)
    nics: Devices = field(default_factory=dict)
    pcie: Devices = field(default_factory=dict)
    memory: Devices = field(default_factory=dict)
    disks: Devices = field(default_factory=dict)
    clock: Devices = field(default_factory=dict)


def plain(baseline: Baseline) -> dict[str, object]:
    """A JSON value that `recall` reads."""
    return {"boot": baseline.boot, **{kind: dict(getattr(baseline, kind)) for kind in KINDS}}


def recall(saved: object) -> Baseline:
    """What `plain` made; an empty baseline for what is torn or another program's."""
    if not isinstance(saved, dict):
        return Baseline()
    # what earlier versions did not learn is not there
    data: dict[str, Any] = {"pcie": {}, "memory": {}, "disks": {}, "clock": {}} | saved
    try:
        kinds = [{str(name): dict(facts) for name, facts in data[kind].items()} for kind in KINDS]
        return Baseline(str(data["boot"]), *kinds)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Baseline()


def begin(baseline: Baseline, boot: str) -> Baseline:
    """The baseline for this boot. Error counts of the driver start at 0 with it."""
    if baseline.boot == boot:
        return baseline
    gpus = {name: {**facts, "ecc": 0} for name, facts in baseline.gpus.items()}
    memory = {name: facts | ({"ecc": 0} if "ecc" in facts else {}) for name, facts in baseline.memory.items()}
    return replace(baseline, boot=boot, gpus=gpus, memory=memory)


def forget(baseline: Baseline, device: str) -> Baseline:
    """The baseline without what matches a pattern: a part was taken out, or a lower rate is meant."""

    def kept(devices: Devices) -> Devices:
        return {name: facts for name, facts in devices.items() if not fnmatchcase(name, device)}

    return Baseline(baseline.boot, *(kept(getattr(baseline, kind)) for kind in KINDS))


def by_device(readings: Iterable[Reading]) -> dict[str, Facts]:
    facts: dict[str, Facts] = {}
    for reading in readings:
        facts.setdefault(reading.device, {})[reading.name] = reading.value
    return facts


def most(
    known: Devices, kind: str, facts: Devices, names: Iterable[str], sick: Iterable[str] = ()
) -> dict[str, Facts]:
    """What is known of each device, with the most that it ever showed of some numbers."""
    learned = dict(known)
    for device in facts.keys() - set(sick):
        for name in names:
            value, before = facts[device].get(f"{kind}.{name}"), learned.get(device, {}).get(name, 0)
            if isinstance(value, int | float) and isinstance(before, int | float):
                learned[device] = {**learned.get(device, {}), name: max(value, before)}
    return learned


def renamed(known: dict[str, Facts], device: str, new: Facts, facts: Devices) -> list[str]:
    """Drop the old name of a device that has another one now (udev renames after the first pass)."""
    notes = []
    for other, its in list(known.items()):
        same_port = other.partition("/")[2] == device.partition("/")[2]
        if other not in facts and same_port and "pci" in new and its.get("pci") == new["pci"]:
            notes.append(f"{other} is called {device} now")
            del known[other]
    return notes
