"""What a technician needs to find a device: which parts of the machine its name stands for. Pure.

Remembered by device, from readings while it could still tell: a lost GPU says neither UUID nor serial number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
}
WORDS = {
    "gpu": "GPU {}",
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
    and `pci`. What was never told is absent. A PCI address stands for all that sits there.
    """
    there = sorted(
        other for other, its in known.items() if device in (its.get("infiniband.pci"), its.get("nic.pci"))
    )
    each = [_parts(one, known.get(one, {})) for one in (device, *there)]
    found = {part: dict.fromkeys(its[part] for its in each if part in its) for part in WORDS}
    return {
        part: next(iter(values)) if len(values) == 1 else " ".join(map(str, values))
        for part, values in found.items()
        if values
    }


def _parts(device: str, its: Mapping[str, Value]) -> dict[str, Value]:
    parts = {PARTS[name]: value for name, value in its.items() if name in PARTS}
    if ADDRESS.fullmatch(device):
        parts["pci"] = device
    elif any(name.startswith("infiniband.") for name in its):
        parts["hca"], _, port = device.partition("/")
        parts["port"] = int(port) if port.isdecimal() else port
    elif any(name.startswith("nic.") for name in its):
        parts["interface"] = device
    return parts


def named(finding: Finding, known: Names) -> Finding:
    """The finding with the hardware that its device is."""
    return replace(finding, hardware=hardware(finding.device, known))


def words(parts: Mapping[str, Value]) -> str:
    """The same for people: "GPU 3, NVIDIA H100, GPU-9a..., serial 1650, /dev/nvidia3, PCI 0000:5d:00.0"."""
    return ", ".join(form.format(parts[part]) for part, form in WORDS.items() if part in parts)
