"""What a technician needs to find a device: all that names it beside the name that findings use. Pure.

Remembered by device, from readings while it could still tell: a lost GPU says neither UUID nor serial number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from slurm_health.model import Finding, Reading, Value

Names = Mapping[str, Mapping[str, Value]]

# In this order. A port's `place` holds its adapter's PCI address and GUID.
NAMES = {
    "gpu.minor": "/dev/nvidia{}",
    "gpu.name": "{}",
    "gpu.uuid": "{}",
    "gpu.serial": "serial {}",
    "infiniband.place": "{}",
    "infiniband.pci": "PCI {}",
    "nic.pci": "PCI {}",
}


def recall(saved: object) -> Names:
    """The names from what was saved (or None, or anything)."""
    rows = saved.items() if isinstance(saved, dict) else ()
    return {str(device): dict(names) for device, names in rows if isinstance(names, dict)}


def learn(known: Names, readings: Iterable[Reading]) -> Names:
    """The names with those in these readings; the same object when none is new."""
    news: dict[str, dict[str, Value]] = {}
    for one in readings:
        if one.name in NAMES and known.get(one.device, {}).get(one.name) != one.value:
            news.setdefault(one.device, {})[one.name] = one.value
    if not news:
        return known
    replaced = {device for device in news if "gpu.uuid" in news[device]}  # by another GPU
    return {
        device: {**(known.get(device, {}) if device not in replaced else {}), **news.get(device, {})}
        for device in known.keys() | news.keys()
    }


def named(finding: Finding, known: Names) -> Finding:
    """The finding with what names its device at the end of its evidence, where it does not stand there."""
    words: list[str] = []
    said = finding.evidence
    its = known.get(finding.device, {})
    of_adapter = [
        device for device, names in known.items() if finding.device and finding.device in names.values()
    ]
    for word in (*(NAMES[name].format(its[name]) for name in NAMES if name in its), *sorted(of_adapter)):
        if word not in said:
            words.append(word)
            said += word
    return replace(finding, evidence=f"{finding.evidence} [{', '.join(words)}]".strip()) if words else finding
