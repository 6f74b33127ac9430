"""InfiniBand ports, from /sys/class/infiniband.

https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-class-infiniband
"""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.host import Host
from slurm_health.model import Reading

CLASS = "sys/class/infiniband"


def infiniband(host: Host, fast: bool = False) -> Iterator[Reading]:
    """Each port's `infiniband.state` ("ACTIVE"), `phys_state` ("LinkUp"), `link_layer` ("InfiniBand"),
    `rate` (Gb/s) and the `pci` address of its device; device as in "mlx5_4/1". Virtual functions are left
    out: their link follows the physical function's. `fast` reads only what changes when a link goes down.
    """
    for name in host.names(CLASS):
        folder = f"{CLASS}/{name}"
        if host.exists(f"{folder}/device/physfn"):
            continue
        pci = host.link(f"{folder}/device")
        for number in host.names(f"{folder}/ports"):
            port = f"{folder}/ports/{number}"
            device = f"{name}/{number}"
            for fact in ("state", "phys_state"):
                if word := _word(host.text(f"{port}/{fact}")):
                    yield Reading(f"infiniband.{fact}", device, word)
            if layer := host.text(f"{port}/link_layer"):
                yield Reading("infiniband.link_layer", device, layer)
            if pci:
                yield Reading("infiniband.pci", device, pci)
            if not fast and (rate := _rate(host.text(f"{port}/rate"))) is not None:
                yield Reading("infiniband.rate", device, rate)


def _word(text: str | None) -> str | None:
    """ "4: ACTIVE" -> "ACTIVE"; anything else is no reading."""
    number, colon, word = (text or "").partition(": ")
    return word if colon and number.isdigit() and word else None


def _rate(text: str | None) -> float | None:
    """ "400 Gb/sec (4X NDR)" -> 400.0; a port that is down may say 0 or less, which is no rate."""
    number, _, unit = (text or "").partition(" ")
    try:
        rate = float(number)
    except ValueError:
        return None
    return rate if unit.startswith("Gb/sec") and 0 < rate < 1e6 else None
