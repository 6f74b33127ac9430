"""What a technician needs to find a device: which parts of the machine its name stands for. Pure.

Remembered by device, from readings while it could still tell: a lost GPU says neither UUID nor serial number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from slurm_health.model import Finding, Reading, Value

Names = Mapping[str, Mapping[str, Value]]

# Which reading tells which part.
PARTS = {
    "gpu.index": "gpu",  # NVML's, as nvidia-smi counts; it shifts when a GPU vanishes
    "gpu.name": "model",
    "gpu.uuid": "uuid",
    "gpu.serial": "serial",
    "gpu.minor": "minor",
    "infiniband.guid": "guid",
    "infiniband.gpu": "beside",
    "infiniband.plane": "plane",
    "infiniband.pci": "pci",
    "nic.mac": "mac",
    "nic.pci": "pci",
    "disk.model": "model",
    "disk.serial": "serial",
    "disk.pci": "pci",
}
WORDS = {
    "gpu": "GPU {}",
    "disk": "disk {}",
    "model": "{}",
    "uuid": "{}",
    "serial": "serial {}",
    "minor": "/dev/nvidia{}",
    "hca": "HCA {}",
    "port": "port {}",
    "guid": "GUID {}",
    "plane": "plane {}",
    "beside": "beside GPU {}",
    "interface": "interface {}",
    "mac": "MAC {}",
    "pci": "PCI {}",
}
# A disk, or a partition of one: what the kernel's log and the mounts name.
DISK = re.compile(r"(nvme\d+n\d+|mmcblk\d+|[hsv]d[a-z]+)(?:p?\d+)?")
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def recall(saved: object) -> Names:
    """The names from what was saved (or None, or anything)."""
    rows = saved.items() if isinstance(saved, dict) else ()
    return {str(device): dict(names) for device, names in rows if isinstance(names, dict)}


def learn(known: Names, readings: Iterable[Reading]) -> Names:
    """The names with those in these readings; the same object when none is new."""
    news: dict[str, dict[str, Value]] = {}
    for one in readings:
        if one.name in PARTS and known.get(one.device, {}).get(one.name) != one.value:
            news.setdefault(one.device, {})[one.name] = one.value
    if not news:
        return known
    replaced = {device for device in news if "gpu.uuid" in news[device]}  # by another GPU
    return {
        device: {**(known.get(device, {}) if device not in replaced else {}), **news.get(device, {})}
        for device in known.keys() | news.keys()
    }


def hardware(device: str, known: Names) -> dict[str, Value]:
    """Its parts: of a GPU `gpu`, `model`, `uuid`, `serial`, `minor`; of a port `hca`, `port`, `guid`,
    `beside` (the nearest GPUs) and `plane` ("2 of 4" beside one); of a network interface `interface`, `mac`;
    of a disk `disk`, `model`, `serial`; and `pci`. What was never told is absent. A partition stands for its
    disk, a PCI address (or an NVMe controller, "nvme0") for all that sits there.
    """
    disk = DISK.fullmatch(device)
    each = [
        _parts(one, known.get(one, {})) for one in (disk[1] if disk else device, *sorted(_at(device, known)))
    ]
    found = {part: dict.fromkeys(its[part] for its in each if part in its) for part in WORDS}
    return {
        part: next(iter(values)) if len(values) == 1 else " ".join(map(str, values))
        for part, values in found.items()
        if values
    }


def _at(device: str, known: Names) -> Iterator[str]:
    for other, its in known.items():
        addresses = (its.get(name) for name in ("infiniband.pci", "nic.pci", "disk.pci"))
        if device in addresses or (device.startswith("nvme") and other.startswith(f"{device}n")):
            yield other


def _parts(device: str, its: Mapping[str, Value]) -> dict[str, Value]:
    parts = {PARTS[name]: value for name, value in its.items() if name in PARTS}
    if ADDRESS.fullmatch(device):
        parts["pci"] = device
    elif any(name.startswith("infiniband.") for name in its):
        parts["hca"], _, port = device.partition("/")
        parts["port"] = int(port) if port.isdecimal() else port
    elif any(name.startswith("nic.") for name in its):
        parts["interface"] = device
    elif any(name.startswith("disk.") for name in its):
        parts["disk"] = device
    return parts


def named(finding: Finding, known: Names) -> Finding:
    """The finding with the hardware that its device is."""
    return replace(finding, hardware=hardware(finding.device, known))


def words(parts: Mapping[str, Value]) -> str:
    """The same for people: "GPU 3, NVIDIA H100, GPU-9a..., serial 1650, /dev/nvidia3, PCI 0000:5d:00.0"."""
    return ", ".join(form.format(parts[part]) for part, form in WORDS.items() if part in parts)
