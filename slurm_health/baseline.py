"""What a node remembers of its healthy devices, and what its readings mean beside that.

A missing GPU or a dead port leaves nothing to read; only who knows what was there can say that it is gone. So
a node learns, from healthy readings only, its GPUs (PCI address, UUID), its InfiniBand ports that were ACTIVE
and its NICs that had a carrier, and how fast they ran; its PCIe links, its memory, its disks, its clock. The
site's configuration may say more (Expectations).

Pure, but for load() and save().
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from slurm_health import gpus
from slurm_health.gpus import Facts
from slurm_health.model import Reading, Report, Value

Devices = Mapping[str, Facts]
KINDS = ("gpus", "ports", "nics", "pcie", "memory", "disks", "clock")
PEERS = 4  # so many identical adapters, and one of them is measured by the others


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the site's configuration says that a node should have; None: it does not say.

    Rates in Gb/s, memory in GiB; of PCIe links by address their width (lanes) and speed (GT/s, 0: any).
    `ignore` holds patterns of devices that are never judged. The InfiniBand numbers are for ports whose link
    layer is InfiniBand: an Ethernet port of the same adapter is a NIC.
    """

    gpus: int | None = None
    ib_ports: int | None = None
    ib_gbps: float | None = None
    nic_ports: int | None = None
    nic_gbps: float | None = None
    memory: float | None = None
    pcie: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    services: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def ignored(self, device: str) -> bool:
        return any(fnmatchcase(device, glob) for glob in self.ignore)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was learned: by device, its facts. `boot` is the boot that the error counts belong to.

    A GPU's facts stand in gpus.py.
    A port's: rate (Gb/s), layer, pci. A NIC's: speed (Mb/s), pci, master (its bond). A PCIe link's: width
    (lanes), speed (GT/s). Of memory "": total (GiB); of a controller: ecc (uncorrected errors at first
    sight). A disk's: writable. The clock's: synchronised.
    """

    boot: str = ""
    gpus: Devices = field(default_factory=dict)
    ports: Devices = field(default_factory=dict)
    nics: Devices = field(default_factory=dict)
    pcie: Devices = field(default_factory=dict)
    memory: Devices = field(default_factory=dict)
    disks: Devices = field(default_factory=dict)
    clock: Devices = field(default_factory=dict)


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


def section(baseline: Baseline, match: str) -> str:
    """The [[nodes]] section of the configuration that expects what was learned of a healthy node."""
    lines = ["[[nodes]]", f'match = "{match}"']
    if baseline.gpus:
        lines.append(f"gpus = {len(baseline.gpus)}")
    ports = [
        its.get("rate") for its in baseline.ports.values() if its.get("layer", "InfiniBand") == "InfiniBand"
    ]
    speeds = [its.get("speed") for its in baseline.nics.values()]
    for key, rates, unit in (("infiniband", ports, 1.0), ("nics", speeds, 1000.0)):
        known = [rate / unit for rate in rates if isinstance(rate, int | float)]
        if rates:
            slowest = f", gbps = {min(known):g}" if known else ""
            lines.append(f"{key} = {{ ports = {len(rates)}{slowest} }}")
    if "total" in (memory := baseline.memory.get("", {})):
        lines.append(f"memory = {memory['total']}")
    if baseline.pcie:
        lines.append("[nodes.pcie]")
        lines += [f'"{address}" = "{_words(_link(its))}"' for address, its in sorted(baseline.pcie.items())]
    return "\n".join(lines)


# -- files -------------------------------------------------------------------------------


def load(path: Path) -> Baseline:
    """What save() wrote; an empty baseline for a file that is absent, torn or another program's."""
    try:
        # what earlier versions did not learn is not there
        data = {"pcie": {}, "memory": {}, "disks": {}, "clock": {}} | json.loads(path.read_text())
        kinds = [{str(name): dict(facts) for name, facts in data[kind].items()} for kind in KINDS]
        return Baseline(str(data["boot"]), *kinds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Baseline()


def save(path: Path, baseline: Baseline) -> None:
    """Write it, whole or not at all. Raises OSError."""
    data = {"boot": baseline.boot, **{kind: dict(getattr(baseline, kind)) for kind in KINDS}}
    draft = path.with_name(path.name + ".new")
    with draft.open("w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


# -- learning ----------------------------------------------------------------------------


def learn(baseline: Baseline, report: Report, sick: Iterable[str] = ()) -> tuple[Baseline, tuple[str, ...]]:
    """The baseline with what a report shows of healthy devices, and a line for each change worth a record.

    `sick` are the devices with a critical finding: nothing is learned of them, and of no GPU when it holds ""
    (the driver). The same object comes back when there is nothing new.
    """
    if report.error:
        return baseline, ()
    facts = _by_device(report.readings)
    ill = set(sick)
    if report.probe == "gpu" and not {"", "*"} & ill:
        known, notes = gpus.learn(baseline.gpus, facts, ill, baseline.boot)
        return baseline if known == baseline.gpus else replace(baseline, gpus=known), notes
    if report.probe == "infiniband":
        return _learn_ports(baseline, facts, ill)
    if report.probe == "nic":
        return _learn_nics(baseline, facts, ill)
    if report.probe == "pcie":
        pcie = _most(baseline.pcie, "pcie", facts, ("width", "speed"), ill)
        return baseline if pcie == baseline.pcie else replace(baseline, pcie=pcie), ()
    if report.probe == "memory":
        return _learn_memory(baseline, facts), ()
    if report.probe == "disk":
        return _learn_disks(baseline, facts), ()
    if report.probe == "system" and facts.get("", {}).get("system.clock") is True and not baseline.clock:
        return replace(baseline, clock={"": {"synchronised": True}}), ()
    return baseline, ()


def _by_device(readings: Iterable[Reading]) -> dict[str, Facts]:
    facts: dict[str, Facts] = {}
    for reading in readings:
        facts.setdefault(reading.device, {})[reading.name] = reading.value
    return facts


def _learn_ports(
    baseline: Baseline, facts: dict[str, Facts], sick: set[str]
) -> tuple[Baseline, tuple[str, ...]]:
    ports = dict(baseline.ports)
    notes = []
    for device, seen in facts.items():
        rate = seen.get("infiniband.rate")
        up = seen.get("infiniband.state") == "ACTIVE" and seen.get("infiniband.phys_state") == "LinkUp"
        if not up or not isinstance(rate, int | float) or device in sick:
            continue
        known = ports.get(device)
        before = known.get("rate", 0) if known else 0
        new: Facts = {"rate": max(rate, before) if isinstance(before, int | float) else rate}
        for fact in ("layer", "pci"):
            if (value := seen.get(f"infiniband.{'link_layer' if fact == 'layer' else fact}")) is not None:
                new[fact] = value
        notes += _renamed(ports, device, new, facts)
        if known is None:
            notes.append(f"InfiniBand port {device} ({rate:g} Gb/s) is new")
        ports[device] = new
    return baseline if ports == baseline.ports else replace(baseline, ports=ports), tuple(notes)


def _learn_nics(
    baseline: Baseline, facts: dict[str, Facts], sick: set[str]
) -> tuple[Baseline, tuple[str, ...]]:
    nics = dict(baseline.nics)
    notes = []
    for device, seen in facts.items():
        # only a full pass has the address, by which a renamed port is known again
        if seen.get("nic.carrier") is not True or device in sick or "nic.pci" not in seen:
            continue
        known = nics.get(device)
        new: Facts = {"pci": seen["nic.pci"]}
        speeds = [
            speed for speed in (seen.get("nic.speed"), (known or {}).get("speed")) if isinstance(speed, int)
        ]
        if speeds:
            new["speed"] = max(speeds)
        master = seen.get("nic.master", (known or {}).get("master"))
        if master is not None:
            new["master"] = master
        notes += _renamed(nics, device, new, facts)
        if known is None:
            notes.append(f"network port {device} is new")
        nics[device] = new
    return baseline if nics == baseline.nics else replace(baseline, nics=nics), tuple(notes)


def _renamed(known: dict[str, Facts], device: str, new: Facts, facts: Mapping[str, Facts]) -> list[str]:
    """Drop the old name of a device that has another one now (udev renames after the first pass)."""
    notes = []
    for other, its in list(known.items()):
        same_port = other.partition("/")[2] == device.partition("/")[2]
        if other not in facts and same_port and "pci" in new and its.get("pci") == new["pci"]:
            notes.append(f"{other} is called {device} now")
            del known[other]
    return notes


def _most(
    known: Devices, kind: str, facts: dict[str, Facts], names: Iterable[str], sick: Iterable[str] = ()
) -> dict[str, Facts]:
    """What is known of each device, with the most that it ever showed of some numbers."""
    learned = dict(known)
    for device in facts.keys() - set(sick):
        for name in names:
            value, before = facts[device].get(f"{kind}.{name}"), learned.get(device, {}).get(name, 0)
            if isinstance(value, int | float) and isinstance(before, int | float):
                learned[device] = {**learned.get(device, {}), name: max(value, before)}
    return learned


def _learn_memory(baseline: Baseline, facts: dict[str, Facts]) -> Baseline:
    memory = _most(baseline.memory, "memory", facts, ("total",))
    for device, seen in facts.items():
        errors, before = seen.get("memory.uncorrected"), memory.get(device, {}).get("ecc")
        if isinstance(errors, int):
            memory[device] = {"ecc": min(errors, before) if isinstance(before, int) else errors}
    return baseline if memory == baseline.memory else replace(baseline, memory=memory)


def _learn_disks(baseline: Baseline, facts: dict[str, Facts]) -> Baseline:
    fresh = {device for device, seen in facts.items() if seen.get("disk.read_only") is False}
    if fresh <= baseline.disks.keys():
        return baseline
    return replace(baseline, disks={**baseline.disks, **{device: {"writable": True} for device in fresh}})


# -- expecting ---------------------------------------------------------------------------


def expect(baseline: Baseline | None, expectations: Expectations, report: Report) -> tuple[Reading, ...]:
    """A report's readings, without ignored devices, and what they mean beside the baseline.

    Of GPUs those of gpus.py; `infiniband.down`,
    `.never_up`, `.slow`, `.missing`; `nic.down`, `.degraded`, `.slow`, `.missing`; `pcie.degraded`, `.below`
    (what slot and card can); `memory.share` (percent of what there was), `.ecc_risen`, `.ecc_before`;
    `disk.locked` (read-only, and was not); `system.unsynced` (the clock, and it was not). States are True or
    False (a good reading ends a finding); what cannot be told is absent. None for a baseline: none is
    remembered.
    """
    readings = tuple(one for one in report.readings if not expectations.ignored(one.device))
    if report.error:
        return readings
    facts = _by_device(readings)
    known = baseline or Baseline()
    derived: Iterable[Reading] = ()
    if report.probe == "gpu":
        derived = gpus.expect(known.gpus, expectations.gpus, facts, readings)
    elif report.probe == "infiniband":
        derived = _expect_ports(known, expectations, facts)
    elif report.probe == "nic":
        derived = _expect_nics(known, expectations, facts)
    elif report.probe == "pcie":
        derived = _expect_pcie(known, expectations, facts)
    elif report.probe == "memory":
        derived = _expect_memory(known, expectations, facts, readings)
    elif report.probe == "disk":
        derived = _expect_disks(known, readings)
    elif report.probe == "system":
        derived = _expect_clock(known, readings)
    return (*readings, *(one for one in derived if not expectations.ignored(one.device)))


def _expect_ports(
    baseline: Baseline, expectations: Expectations, facts: dict[str, Facts]
) -> Iterator[Reading]:
    # an Ethernet port is judged as a NIC: its admin may take it down, bonding takes its device away
    ports = {
        device: seen
        for device, seen in facts.items()
        if "infiniband.state" in seen and seen.get("infiniband.link_layer", "InfiniBand") == "InfiniBand"
    }
    active = [device for device, seen in ports.items() if seen["infiniband.state"] == "ACTIVE"]
    wanted = expectations.ib_ports
    for device, seen in ports.items():
        up = seen["infiniband.state"] == "ACTIVE"
        physical = seen.get("infiniband.phys_state", "physical state unknown")
        state = f"state {seen['infiniband.state']}, {physical}"
        if device in baseline.ports:
            yield Reading("infiniband.down", device, not up, state)
            yield Reading("infiniband.never_up", device, False)
        else:
            if up or wanted is not None:
                short = wanted is not None and len(active) < wanted
                yield Reading("infiniband.down", device, not up and short, state)
            never = not up and seen.get("infiniband.phys_state") != "Disabled"
            yield Reading("infiniband.never_up", device, never, state)
        rate = seen.get("infiniband.rate")
        usual = expectations.ib_gbps or baseline.ports.get(device, {}).get("rate")
        if up and isinstance(rate, int | float) and isinstance(usual, int | float):
            slow = f"{rate:g} Gb/s instead of {usual:g}"
            yield Reading("infiniband.slow", device, rate < usual, slow)
    if "infiniband.listed" not in facts.get("", {}):
        return
    addresses = {seen["infiniband.pci"] for seen in facts.values() if "infiniband.pci" in seen}
    for device, its in baseline.ports.items():
        if device in facts:
            yield Reading("infiniband.missing", device, False)
        elif its.get("layer", "InfiniBand") == "InfiniBand" and its.get("pci") not in addresses:
            yield Reading(
                "infiniband.missing", device, True, f"not in /sys/class/infiniband ({its.get('pci')})"
            )
    if wanted is not None:
        missing = len(ports) < wanted
        yield Reading("infiniband.missing", "", missing, f"{len(ports)} of {wanted} InfiniBand ports")


def _expect_nics(
    baseline: Baseline, expectations: Expectations, facts: dict[str, Facts]
) -> Iterator[Reading]:
    nics = {device: seen for device, seen in facts.items() if "nic.up" in seen or "nic.carrier" in seen}
    wanted = expectations.nic_ports
    linked = [device for device, seen in nics.items() if seen.get("nic.carrier") is True]
    masters = {seen["nic.master"] for seen in nics.values() if "nic.master" in seen}
    for device, seen in nics.items():
        carrier = seen.get("nic.carrier")
        if seen.get("nic.up") is False:  # its admin's will is no fault, and ends one
            dead = False
        elif carrier is None:
            continue
        else:
            dead = not carrier
        covered = seen.get("nic.bond") is True
        known = baseline.nics.get(device)
        if known is not None or (wanted is not None and len(linked) < wanted) or not dead or covered:
            no_link = f"no carrier (PCI {seen['nic.pci']})" if "nic.pci" in seen else "no carrier"
            yield Reading("nic.down", device, dead and not covered, no_link)
            master = (known or {}).get("master")
            left = not dead and master in masters and "nic.master" not in seen
            why = no_link if dead else f"no longer in {master}"
            yield Reading("nic.degraded", device, (dead and covered) or left, why)
        speed = seen.get("nic.speed")
        configured = expectations.nic_gbps
        usual = configured * 1000 if configured else baseline.nics.get(device, {}).get("speed")
        if carrier is True and isinstance(speed, int) and isinstance(usual, int | float):
            yield Reading("nic.slow", device, speed < usual, f"{speed} Mb/s instead of {usual:g}")
    bus = {device for device, seen in facts.items() if "nic.on_pci" in seen}
    addresses = {seen["nic.pci"] for seen in facts.values() if "nic.pci" in seen}
    if "nic.listed" not in facts.get("", {}):
        return  # a fast pass does not say what is on the bus
    for device, its in baseline.nics.items():
        if device in facts:
            yield Reading("nic.missing", device, False)
        elif its.get("pci") not in addresses and its.get("pci") not in bus:
            yield Reading("nic.missing", device, True, f"{its.get('pci')} is no longer on PCI")
    if wanted is not None:
        yield Reading("nic.missing", "", len(nics) < wanted, f"{len(nics)} of {wanted} network ports")


def _expect_pcie(
    baseline: Baseline, expectations: Expectations, facts: dict[str, Facts]
) -> Iterator[Reading]:
    links = {device: _link(seen, "pcie.") for device, seen in facts.items() if "pcie.width" in seen}
    peers: dict[Value, list[tuple[int, float]]] = {}
    for device, link in links.items():
        if "pcie.model" in facts[device]:
            peers.setdefault(facts[device]["pcie.model"], []).append(link)
    for device, link in links.items():
        seen = facts[device]
        usual = expectations.pcie.get(device) or _link(baseline.pcie.get(device, {}))
        now = _words(link)
        if any(usual):
            yield Reading("pcie.degraded", device, _less(link, usual), f"{now} instead of {_words(usual)}")
        full = _link(seen, "pcie.full_")
        others = peers.get(seen.get("pcie.model", ""), [])
        if any(full):
            yield Reading("pcie.below", device, _less(link, full), f"{now}, slot and card can {_words(full)}")
        elif len(others) >= PEERS:
            # what the slot can is not told: then all others of the same make, if they agree, tell it
            most = max(others)
            odd = _less(link, most) and others.count(most) == len(others) - 1
            yield Reading("pcie.below", device, odd, f"{now}, all others of its make {_words(most)}")


def _link(facts: Facts, prefix: str = "") -> tuple[int, float]:
    """Lanes and GT/s, 0 for what is not known."""
    width, speed = facts.get(f"{prefix}width"), facts.get(f"{prefix}speed")
    return width if isinstance(width, int) else 0, speed if isinstance(speed, int | float) else 0.0


def _less(link: tuple[int, float], than: tuple[int, float]) -> bool:
    return link[0] < than[0] or 0 < link[1] < than[1]


def _words(link: tuple[int, float]) -> str:
    width, speed = link
    return " ".join([f"{speed:g} GT/s"] * bool(speed) + [f"x{width}"] * bool(width))


def _expect_memory(
    baseline: Baseline, expectations: Expectations, facts: dict[str, Facts], readings: tuple[Reading, ...]
) -> Iterator[Reading]:
    total = facts.get("", {}).get("memory.total")
    usual = expectations.memory or baseline.memory.get("", {}).get("total")
    if isinstance(total, int | float) and isinstance(usual, int | float) and usual > 0:
        yield Reading("memory.share", "", round(100 * total / usual, 1), f"{total:g} GiB of {usual:g}")
    for one in readings:
        if one.name == "memory.uncorrected" and isinstance(one.value, int):
            first = baseline.memory.get(one.device, {}).get("ecc")
            before = min(first, one.value) if isinstance(first, int) else one.value
            yield Reading("memory.ecc_risen", one.device, one.value - before, one.evidence)
            yield Reading("memory.ecc_before", one.device, before, one.evidence)


def _expect_disks(baseline: Baseline, readings: tuple[Reading, ...]) -> Iterator[Reading]:
    for one in readings:
        if one.name == "disk.read_only" and one.device in baseline.disks:
            yield replace(one, name="disk.locked")


def _expect_clock(baseline: Baseline, readings: tuple[Reading, ...]) -> Iterator[Reading]:
    # where the kernel is never told (PTP, chrony without rtcsync), it has nothing to lose
    for one in readings:
        if one.name == "system.clock" and baseline.clock:
            yield replace(one, name="system.unsynced", value=not one.value)
