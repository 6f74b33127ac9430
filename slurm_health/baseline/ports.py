"""What InfiniBand ports were when they were up, and what their readings mean beside that. Pure.

Of each port: `rate` (Gb/s), `layer` (its link layer) and `pci` (its adapter's address).
"""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.baseline.facts import Devices, Expectations, Facts, Learned, rate, renamed
from slurm_health.model import Reading


def learn(known: Devices, facts: Devices, sick: set[str]) -> Learned:
    """The ports with what is new of those that are up."""
    ports = dict(known)
    notes = []
    for device, seen in facts.items():
        now = seen.get("infiniband.rate")
        up = seen.get("infiniband.state") == "ACTIVE" and seen.get("infiniband.phys_state") == "LinkUp"
        if not up or not isinstance(now, int | float) or device in sick:
            continue
        before = ports.get(device, {}).get("rate", 0)
        new: Facts = {"rate": max(now, before) if isinstance(before, int | float) else now}
        for fact in ("layer", "pci"):
            if (value := seen.get(f"infiniband.{'link_layer' if fact == 'layer' else fact}")) is not None:
                new[fact] = value
        notes += renamed(ports, device, new, facts)
        if device not in known:
            notes.append(f"InfiniBand port {device} ({now:g} Gb/s) is new")
        ports[device] = new
    return ports, tuple(notes)


def expect(known: Devices, expectations: Expectations, facts: Devices) -> Iterator[Reading]:
    """`infiniband.down`, `.never_up` and `.slow` of the ports that are here; `.missing`."""
    # an Ethernet port is judged as a NIC: its admin may take it down, bonding takes its device away. EFA is
    # neither (its link layer is "Unknown") and has nobody else to look at it
    ports = {
        device: seen
        for device, seen in facts.items()
        if "infiniband.state" in seen and seen.get("infiniband.link_layer") != "Ethernet"
    }
    active = [device for device, seen in ports.items() if seen["infiniband.state"] == "ACTIVE"]
    cards = {_card(ports[device]) for device in active} - {""}
    wanted = expectations.ib_ports
    for device, seen in ports.items():
        up = seen["infiniband.state"] == "ACTIVE"
        physical = seen.get("infiniband.phys_state", "physical state unknown")
        state = f"state {seen['infiniband.state']}, {physical}"
        if device in known:
            yield Reading("infiniband.down", device, not up, state)
            yield Reading("infiniband.never_up", device, False)
        else:
            if up or wanted is not None:
                short = wanted is not None and len(active) < wanted
                yield Reading("infiniband.down", device, not up and short, state)
            # of a card with two plugs often one is used
            unused = seen.get("infiniband.phys_state") == "Disabled" or _card(seen) in cards
            never = not up and not unused
            yield Reading("infiniband.never_up", device, never, state)
        now = seen.get("infiniband.rate")
        configured = rate(device, expectations.ib_rates, expectations.ib_gbps)
        usual = configured or known.get(device, {}).get("rate")
        if up and isinstance(now, int | float) and isinstance(usual, int | float):
            yield Reading("infiniband.slow", device, now < usual, f"{now:g} Gb/s instead of {usual:g}")
    if "infiniband.listed" not in facts.get("", {}):
        return
    addresses = {seen["infiniband.pci"] for seen in facts.values() if "infiniband.pci" in seen}
    for device, its in known.items():
        if device in facts:
            yield Reading("infiniband.missing", device, False)
        elif its.get("layer") != "Ethernet" and its.get("pci") not in addresses:
            yield Reading(
                "infiniband.missing", device, True, f"not in /sys/class/infiniband ({its.get('pci')})"
            )
    if wanted is not None:
        missing = len(ports) < wanted
        yield Reading("infiniband.missing", "", missing, f"{len(ports)} of {wanted} InfiniBand ports")


def _card(seen: Facts) -> str:
    """Its PCI address without the function, "" where it has none."""
    return str(seen["infiniband.pci"]).partition(".")[0] if "infiniband.pci" in seen else ""
