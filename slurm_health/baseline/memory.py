"""How much memory there was, and which of its errors are new. Pure.

Of memory "": `total` (GiB); of a memory controller: `ecc` (uncorrected errors at first sight in this boot).
"""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.baseline.facts import Devices, Expectations, Facts, most
from slurm_health.model import Reading


def learn(known: Devices, facts: Devices) -> dict[str, Facts]:
    memory = most(known, "memory", facts, ("total",))
    for device, seen in facts.items():
        errors, before = seen.get("memory.uncorrected"), memory.get(device, {}).get("ecc")
        if isinstance(errors, int):
            memory[device] = {"ecc": min(errors, before) if isinstance(before, int) else errors}
    return memory


def expect(
    known: Devices, expectations: Expectations, facts: Devices, readings: tuple[Reading, ...]
) -> Iterator[Reading]:
    """`memory.share` (percent of what there was), `.ecc_risen` and `.ecc_before` (see learn)."""
    total = facts.get("", {}).get("memory.total")
    usual = expectations.memory or known.get("", {}).get("total")
    if isinstance(total, int | float) and isinstance(usual, int | float) and usual > 0:
        yield Reading("memory.share", "", round(100 * total / usual, 1), f"{total:g} GiB of {usual:g}")
    for one in readings:
        if one.name == "memory.uncorrected" and isinstance(one.value, int):
            first = known.get(one.device, {}).get("ecc")
            before = min(first, one.value) if isinstance(first, int) else one.value
            yield Reading("memory.ecc_risen", one.device, one.value - before, one.evidence)
            yield Reading("memory.ecc_before", one.device, before, one.evidence)
