"""What network ports were when they had a link, and what their readings mean beside that. Pure.

Of each NIC: `pci` (where it has an address), `speed` (Mb/s), and `master` (its bond).
"""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.baseline.facts import Devices, Expectations, Facts, Learned, rate, renamed
from slurm_health.model import Reading


def learn(known: Devices, facts: Devices, sick: set[str]) -> Learned:
    """The NICs with what is new of those that have a carrier."""
    nics = dict(known)
    notes = []
    for device, seen in facts.items():
        if seen.get("nic.carrier") is not True or device in sick:
            continue
        before = known.get(device, {})
        new: Facts = {}
        if (
            pci := seen.get("nic.pci", before.get("pci"))
        ) is not None:  # by which a renamed port is known again
            new["pci"] = pci
        speeds = [speed for speed in (seen.get("nic.speed"), before.get("speed")) if isinstance(speed, int)]
        if speeds:
            new["speed"] = max(speeds)
        master = seen.get("nic.master", before.get("master"))
        if master is not None:
            new["master"] = master
        notes += renamed(nics, device, new, facts)
        if device not in known:
            notes.append(f"network port {device} is new")
        nics[device] = new
    return nics, tuple(notes)


def expect(known: Devices, expectations: Expectations, facts: Devices) -> Iterator[Reading]:
    """`nic.down`, `.degraded` (a bond without one of its ports) and `.slow` of the ports that are here;
    `.missing`."""
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
        its = known.get(device)
        if its is not None or (wanted is not None and len(linked) < wanted) or not dead or covered:
            yield Reading("nic.down", device, dead and not covered, "no carrier")
            master = (its or {}).get("master")
            left = not dead and master in masters and "nic.master" not in seen
            why = "no carrier" if dead else f"no longer in {master}"
            yield Reading("nic.degraded", device, (dead and covered) or left, why)
        speed = seen.get("nic.speed")
        configured = rate(device, expectations.nic_rates, expectations.nic_gbps)
        usual = configured * 1000 if configured else known.get(device, {}).get("speed")
        if carrier is True and isinstance(speed, int) and isinstance(usual, int | float):
            yield Reading("nic.slow", device, speed < usual, f"{speed} Mb/s instead of {usual:g}")
    bus = {device for device, seen in facts.items() if "nic.on_pci" in seen}
    addresses = {seen["nic.pci"] for seen in facts.values() if "nic.pci" in seen}
    if "nic.listed" not in facts.get("", {}):
        return  # a fast pass does not say what is on the bus
    for device, its in known.items():
        if device in facts:
            yield Reading("nic.missing", device, False)
        elif "pci" in its and its["pci"] not in addresses and its["pci"] not in bus:
            gone = f"{its['pci']} is no longer on PCI"
            # a virtual machine's host takes an accelerated port away for a while, and may bring another: the
            # one over it goes on
            spared = nics.get(str(its.get("master")), {}).get("nic.carrier") is True
            yield Reading("nic.missing", device, not spared, gone)
            yield Reading("nic.degraded", device, spared and its["master"] not in masters, gone)
    if wanted is not None:
        yield Reading("nic.missing", "", len(nics) < wanted, f"{len(nics)} of {wanted} network ports")
