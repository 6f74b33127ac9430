"""What PCIe links were at their best, and what their readings mean beside that. Pure.

Of each link: `width` (lanes) and `speed` (GT/s).
"""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.baseline.facts import Devices, Expectations, Facts, most
from slurm_health.model import Reading, Value

PEERS = 4  # so many identical adapters, and one of them is measured by the others


def learn(known: Devices, facts: Devices, sick: set[str]) -> dict[str, Facts]:
    return most(known, "pcie", facts, ("width", "speed"), sick)


def expect(known: Devices, expectations: Expectations, facts: Devices) -> Iterator[Reading]:
    """`pcie.degraded` (less than it was, or should be) and `pcie.below` (what slot and card can)."""
    links = {device: link(seen, "pcie.") for device, seen in facts.items() if "pcie.width" in seen}
    peers: dict[Value, list[tuple[int, float]]] = {}
    for device, now in links.items():
        if "pcie.model" in facts[device]:
            peers.setdefault(facts[device]["pcie.model"], []).append(now)
    for device, now in links.items():
        seen, said = facts[device], words(now)
        usual = expectations.pcie.get(device) or link(known.get(device, {}))
        if any(usual):
            yield Reading("pcie.degraded", device, _less(now, usual), f"{said} instead of {words(usual)}")
        full = link(seen, "pcie.full_")
        others = peers.get(seen.get("pcie.model", ""), [])
        if any(full):
            yield Reading("pcie.below", device, _less(now, full), f"{said}, slot and card can {words(full)}")
        elif len(others) >= PEERS:
            # what the slot can is not told: then all others of the same make, if they agree, tell it
            best = max(others)
            odd = _less(now, best) and others.count(best) == len(others) - 1
            yield Reading("pcie.below", device, odd, f"{said}, all others of its make {words(best)}")


def link(facts: Facts, prefix: str = "") -> tuple[int, float]:
    """Lanes and GT/s, 0 for what is not known."""
    width, speed = facts.get(f"{prefix}width"), facts.get(f"{prefix}speed")
    return width if isinstance(width, int) else 0, speed if isinstance(speed, int | float) else 0.0


def _less(one: tuple[int, float], than: tuple[int, float]) -> bool:
    return one[0] < than[0] or 0 < one[1] < than[1]


def words(link: tuple[int, float]) -> str:
    """As the configuration has it: "16 GT/s x16", "x16" where the speed is not known."""
    width, speed = link
    return " ".join([f"{speed:g} GT/s"] * bool(speed) + [f"x{width}"] * bool(width))
