"""What GPUs were when they were healthy, and what their readings mean beside that. Pure.

Of each GPU, by PCI address: `uuid`, `minor`, `boot` (when they were learned), `ecc` (uncorrected errors at
first sight), `nvlinks` ("0,1,2": links that were up), `fabric` ("completed" once it was), `generation` and
`width` (the best that its PCIe link ran at), `model`, `serial`, `memory` (GiB, the most it had), and what is
set on it: `driver`, `vbios`, `persistence`, `mig`, `ecc_mode`. `was`: which GPU it has replaced, until it is
learned again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase

from slurm_health.baseline.facts import Devices, Expectations, Facts, Learned
from slurm_health.model import Reading, Value

LOAD = 10  # percent: an idle GPU runs its PCIe link slowly to save power
MANY = 3  # others of a kind that have NVLinks make a board without any odd
COMPUTING = 2  # the highest number of a P-state in which GPUs compute
MAKE = {"gpu.minor": "minor", "gpu.name": "model", "gpu.serial": "serial"}
SETTINGS = {
    "gpu.vbios": "vbios",
    "gpu.persistence": "persistence",
    "gpu.mig": "mig",
    "gpu.ecc": "ecc_mode",
}


def learn(before: Devices, facts: Devices, sick: set[str], boot: str) -> Learned:
    """The GPUs with what is new of healthy ones, and a line for each change worth a record."""
    gpus = dict(before)
    node = facts.get("", {})
    if node.get("gpu.driver") != "ok":
        return gpus, ()
    notes = []
    for device, seen in facts.items():
        uuid = seen.get("gpu.uuid")
        if uuid is None or seen.get("gpu.lost") is not False or device in sick:
            continue
        known = gpus.get(device)
        if known and known.get("uuid") != uuid and known.get("boot") == boot:
            continue  # no GPU changes while the machine runs: not believed before the next boot
        errors = seen.get("gpu.ecc_uncorrected")
        new: Facts = {"uuid": uuid, "boot": boot}
        new |= {fact: seen[reading] for reading, fact in MAKE.items() if reading in seen}
        if isinstance(errors, int):
            first = known.get("ecc") if known and known.get("uuid") == uuid else None
            new["ecc"] = min(errors, first) if isinstance(first, int) else errors
        elif known and "ecc" in known:
            new["ecc"] = known["ecc"]
        same = known if known and known.get("uuid") == uuid else {}
        new |= _best(seen, same) | _settings(seen, node, same if same.get("boot") == boot else {})
        if known and known.get("uuid") != uuid:
            serial = f" (serial {known['serial']})" if "serial" in known else ""
            new["was"] = f"{known.get('uuid')}{serial}"
            notes.append(f"GPU {device} was replaced: {known.get('uuid')} -> {uuid}")
        for other, its in list(gpus.items()):
            if other != device and its.get("uuid") == uuid:
                notes.append(f"GPU {uuid} moved: {other} -> {device}")
                del gpus[other]
        if known is None:
            notes.append(f"GPU {device} ({uuid}) is new")
        gpus[device] = new
    return gpus, tuple(notes)


def _best(seen: Facts, same: Facts) -> Facts:
    """The best that NVLinks, fabric and PCIe link were ever seen at, and the most memory."""
    new: Facts = {}
    links = _numbers(seen.get("gpu.nvlinks_up")) | _numbers(same.get("nvlinks"))
    if links:
        new["nvlinks"] = ",".join(map(str, sorted(links)))
    if "completed" in (seen.get("gpu.fabric"), same.get("fabric")):
        new["fabric"] = "completed"
    for fact in ("generation", "width"):
        speeds = [one for one in (seen.get(f"gpu.pcie_{fact}"), same.get(fact)) if isinstance(one, int)]
        if speeds:
            new[fact] = max(speeds)
    totals = (seen.get("gpu.memory_total"), same.get("memory") if _same_ecc(seen, same) else None)
    if sizes := [one for one in totals if isinstance(one, int | float)]:
        new["memory"] = max(sizes)
    return new


def _same_ecc(seen: Facts, its: Facts) -> bool:
    """Boards with GDDR memory keep their ECC's bits in it: with ECC they have less."""
    return seen.get("gpu.ecc") == its.get("ecc_mode")


def _settings(seen: Facts, node: Facts, before: Facts) -> Facts:
    """What is set: as first seen in this boot, since nothing of it is meant to change under jobs."""
    new = {fact: seen[reading] for reading, fact in SETTINGS.items() if reading in seen}
    if "gpu.driver_version" in node:
        new["driver"] = node["gpu.driver_version"]
    return new | {fact: before[fact] for fact in (*SETTINGS.values(), "driver") if fact in before}


def _numbers(links: Value | None) -> set[int]:
    return {int(link) for link in str(links).split(",")} if links else set()


def expect(
    known: Devices, expectations: Expectations, facts: Devices, readings: tuple[Reading, ...]
) -> Iterator[Reading]:
    """What readings mean beside what is known and what the configuration asks for.

    `gpu.missing`, `gpu.ecc_risen` (errors since first sight), `gpu.ecc_before`; `gpu.nvlink_down`,
    `gpu.nvlink_fewer` (than its like), `gpu.fabric_lost`, `gpu.fabric_incomplete`; `gpu.pcie_slow` (than it
    was) and `gpu.pcie_below` (what board and slot can), under load; `gpu.other_model`, `gpu.memory_share`
    (percent of what it had); `gpu.swapped` (over a reboot, said once) and `gpu.drift`.
    """
    wanted = expectations.gpus
    if facts.get("", {}).get("gpu.driver") != "ok":
        return
    words = {one.device: one.evidence for one in readings if one.name == "gpu.lost" and one.value is True}
    answering = {device for device, seen in facts.items() if seen.get("gpu.lost") is False}
    uuids = {facts[device].get("gpu.uuid") for device in answering}
    gone: dict[str, str] = {device: f"NVML: {evidence}" for device, evidence in words.items() if device}
    for device, its in known.items():
        if device not in answering and device not in gone and its.get("uuid") not in uuids:
            bus = "still on PCI" if facts.get(device, {}).get("gpu.on_pci") else "no longer on PCI"
            gone[device] = f"{its.get('uuid')} does not answer, {bus}"
    short = 0 if wanted is None else wanted - len(answering)
    if short > len(gone):
        silent = [
            device
            for device, seen in facts.items()
            if seen.get("gpu.on_pci") and device not in answering and not _given_away(seen)
        ]
        for device in silent:
            if len(gone) < short and device not in gone:
                gone[device] = f"on PCI, but not known to the driver; {wanted} GPUs are configured"
    for device in sorted(answering | gone.keys()):
        yield Reading("gpu.missing", device, device in gone, gone.get(device, ""))
    if wanted is not None or "" in words:
        # those that cannot be named
        unnamed = short > len(gone) or ("" in words and not gone)
        evidence = f"{len(answering)} of {wanted} GPUs" if short > 0 else f"NVML: {words.get('', '')}"
        yield Reading("gpu.missing", "", unnamed, evidence if unnamed else "")
    for device in sorted(answering):
        count = facts[device].get("gpu.ecc_uncorrected")
        if not isinstance(count, int):
            continue
        first = known.get(device, {}).get("ecc")
        if isinstance(first, int):
            risen = max(0, count - first)
            yield Reading("gpu.ecc_risen", device, risen, f"{risen} uncorrected errors since this boot")
        before = first if isinstance(first, int) else count
        yield Reading(
            "gpu.ecc_before", device, min(before, count), f"{before} uncorrected errors when first seen"
        )
    names = {device: facts[device].get("gpu.name") for device in answering}
    for device in sorted(answering):
        seen, its = facts[device], known.get(device, {})
        like = [facts[other] for other in answering if other != device and names[other] == names[device]]
        yield from _nvlinks(device, seen, its, like)
        yield from _fabric(device, seen, its)
        yield from _pcie(device, seen, its)
        yield from _make(device, seen, its, expectations)
        yield from _drift(device, seen, its, like, facts.get("", {}).get("gpu.driver_version"))


def _given_away(seen: Facts) -> bool:
    """To a virtual machine, or nouveau: another driver than NVIDIA's has it."""
    return seen.get("gpu.kernel_driver", "nvidia") != "nvidia"


def _nvlinks(device: str, seen: Facts, its: Facts, like: list[Facts]) -> Iterator[Reading]:
    """A board without NVLinks has none; with MIG on, they are off; and how many are wired is the maker's."""
    if "gpu.nvlinks_up" not in seen or seen.get("gpu.mig") is True:
        return
    dead = _numbers(seen.get("gpu.nvlinks_down")) & _numbers(its.get("nvlinks"))
    words = ", ".join(map(str, sorted(dead)))
    yield Reading(
        "gpu.nvlink_down", device, bool(dead), f"NVLink {words} inactive; it was active" if dead else ""
    )
    up = _numbers(seen["gpu.nvlinks_up"])
    # of boards that bridges join some may have none: only where all others agree, and are many, it is odd
    others = {len(_numbers(other.get("gpu.nvlinks_up"))) for other in like}
    most = max(others, default=0)
    fewer = len(up) < most and not dead and len(others) == 1 and (bool(up) or len(like) >= MANY)
    yield Reading(
        "gpu.nvlink_fewer", device, fewer, f"{len(up)} NVLinks active; others of its kind have {most}"
    )


def _fabric(device: str, seen: Facts, its: Facts) -> Iterator[Reading]:
    state = seen.get("gpu.fabric")
    if state is None:
        return
    incomplete, was = state != "completed", its.get("fabric") == "completed"
    words = f"fabric: {str(state).replace('_', ' ')}"
    yield Reading("gpu.fabric_lost", device, incomplete and was, words)
    yield Reading("gpu.fabric_incomplete", device, incomplete and not was, words)


def _pcie(device: str, seen: Facts, its: Facts) -> Iterator[Reading]:
    """The link saves power when idle: that it is slow is told under load only, that it is not at any time.
    What the slot can is not to be seen from within a virtual machine."""
    busy = seen.get("gpu.utilization")
    loaded = (
        isinstance(busy, int) and busy >= LOAD and seen.get("gpu.pstate", COMPUTING) in range(COMPUTING + 1)
    )
    slow, below, words = False, False, []
    for fact, unit in (("generation", "generation"), ("width", "lanes")):
        now, usual = seen.get(f"gpu.pcie_{fact}"), its.get(fact, 0)
        most = seen.get(f"gpu.pcie_{fact}_max", 0)
        if not isinstance(now, int) or not isinstance(usual, int) or not isinstance(most, int):
            return
        slow |= now < usual
        below |= max(now, usual) < most
        words.append(f"{unit} {now} of {max(usual, most)}")
    evidence = f"PCIe {', '.join(words)}, at {busy} % load"
    if loaded or not slow:
        yield Reading("gpu.pcie_slow", device, slow, evidence)
    if (loaded or not below) and not seen.get("gpu.virtual"):
        yield Reading("gpu.pcie_below", device, below, evidence)


def _make(device: str, seen: Facts, its: Facts, expectations: Expectations) -> Iterator[Reading]:
    model, wanted = str(seen.get("gpu.name", "")), expectations.gpu_models
    if model and wanted:
        other = not any(fnmatchcase(model, glob) for glob in wanted)
        yield Reading("gpu.other_model", device, other, f"{model} instead of {' or '.join(wanted)}")
    total = seen.get("gpu.memory_total")
    usual = expectations.gpu_memory or (its.get("memory") if _same_ecc(seen, its) else None)
    if isinstance(total, int | float) and isinstance(usual, int | float) and usual > 0:
        share = round(100 * total / usual, 1)
        yield Reading("gpu.memory_share", device, share, f"{total:g} GiB of {usual:g}")


def _drift(
    device: str, seen: Facts, its: Facts, like: list[Facts], driver: Value | None
) -> Iterator[Reading]:
    was = its.get("was")
    swap = f"{was} was here, {its.get('uuid')} is" if was else ""
    yield Reading("gpu.swapped", device, bool(was), swap)
    words = []
    if its.get("uuid", seen.get("gpu.uuid")) != seen.get("gpu.uuid"):
        words.append(f"another GPU: {its['uuid']} was here, {seen.get('gpu.uuid')} is")
    for reading, fact in SETTINGS.items():
        now = seen.get(reading)
        if now is None:
            continue
        if fact in its and its[fact] != now:
            words.append(f"{fact} was {_shown(its[fact])}, is {_shown(now)}")
        if fact in ("vbios", "ecc_mode"):
            others = Counter(other[reading] for other in like if reading in other)
            usual, count = next(iter(others.most_common(1)), (now, 0))
            if usual != now and count > (len(like) + 1) / 2:
                words.append(f"{fact} is {_shown(now)}, on {count} others {_shown(usual)}")
    if driver is not None and its.get("driver", driver) != driver:
        words.append(f"driver was {its['driver']}, is {driver}")
    yield Reading("gpu.drift", device, bool(words), "; ".join(words))


def _shown(value: Value) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
