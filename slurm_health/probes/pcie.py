"""PCIe links and their errors, from /sys/bus/pci/devices.

https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-bus-pci (current_link_*, max_link_*) and
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from slurm_health.host import Host
from slurm_health.model import Reading

DEVICES = "sys/bus/pci/devices"
BUSES = "sys/class/pci_bus"
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
# PCI classes (pci.ids) by what they begin with. What else is on a board (USB, the BMC's graphics) trains its
# link as it likes. VGA (0x0300) is a GPU when NVIDIA made it, else as likely a BMC's.
KINDS = {"0x02": "network", "0x0108": "nvme", "0x0302": "gpu", "0x0380": "gpu", "0x12": "gpu"}
VGA, BRIDGE = "0x0300", "0x0604"
# How a device is known in a copied tree that left its class out: by what hangs below it.
BELOW = {"infiniband": "network", "net": "network", "nvme": "nvme"}
NVIDIA, AMD = "0x10de", "0x1002"
IDENTITY = ("vendor", "device", "subsystem_vendor", "subsystem_device")
AER = {"fatal": "TOTAL_ERR_FATAL", "nonfatal": "TOTAL_ERR_NONFATAL", "correctable": "TOTAL_ERR_COR"}
LANES = 32  # the most that PCIe knows; a device that does not answer shows 63


@dataclass(frozen=True, slots=True)
class Slot:
    """What does not change while a device is there. `width` (lanes) and `speed` (GT/s) are the most that both
    the card and the slot can, 0 where that is not told. `model` is the same for identical cards, "" where
    that is not told.
    """

    folder: str
    kind: str
    model: str
    width: int
    speed: float
    idles: bool


class Bus:
    """What is on the PCI bus of one machine."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._known: dict[str, tuple[str, str]] = {}

    def devices(self) -> Mapping[str, tuple[str, str]]:
        """By address a device's class and vendor ("0x020700", "0x15b3"), "" where that is not told. Read once
        while a device is there: a big node has hundreds."""
        text = self.host.text
        self._known = {
            address: known
            if all(known := self._known.get(address, ("", "")))
            else (text(f"{DEVICES}/{address}/class") or "", text(f"{DEVICES}/{address}/vendor") or "")
            for address in self.host.names(DEVICES)
        }
        return self._known


class Pcie:
    """The PCIe devices of one machine that jobs use: network adapters, NVMe disks, GPUs, switches."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._slots: dict[str, Slot | None] = {}

    def look(self) -> Iterator[Reading]:
        """For each device `pcie.width` (lanes) and `pcie.full_width`, `pcie.speed` and `pcie.full_speed`
        (GT/s; not of GPUs, which slow their links down at rest) and `pcie.model`; for these, graphics boards
        (which narrow theirs as well, nvidia-smi(1): NVML tells it under load) and bridges `pcie.fatal`,
        `pcie.nonfatal` and `pcie.correctable`: errors since boot. What slot and card can is no reading where
        it is not told.
        """
        host = self._host
        addresses = host.names(DEVICES) or self._by_bus()
        self._slots = {
            address: self._slots[address] if address in self._slots else self._slot(address)
            for address in addresses
        }
        for address, slot in self._slots.items():
            if slot is None:
                continue
            if slot.kind not in ("bridge", "graphics"):
                yield from self._link(address, slot)
            for name, total in AER.items():
                count = _total(host.text(f"{slot.folder}/aer_dev_{name}"), total)
                if count is not None:
                    yield Reading(f"pcie.{name}", address, count, f"{count} {name} errors since boot")

    def _link(self, address: str, slot: Slot) -> Iterator[Reading]:
        width = lanes(self._host.text(f"{slot.folder}/current_link_width"))
        if width is None:
            return  # gone, or asleep
        yield Reading("pcie.width", address, width)
        if slot.width:
            yield Reading("pcie.full_width", address, slot.width)
        if slot.model:
            yield Reading("pcie.model", address, slot.model)
        speed = transfers(self._host.text(f"{slot.folder}/current_link_speed"))
        if speed is None or slot.idles:
            return
        yield Reading("pcie.speed", address, speed)
        if slot.speed:
            yield Reading("pcie.full_speed", address, slot.speed)

    def _by_bus(self) -> list[str]:
        """The same devices as the bridges above them list them, for a copied tree that has these only."""
        return [
            address
            for bus in self._host.names(BUSES)
            for address in self._host.names(f"{BUSES}/{bus}/device")
            if ADDRESS.fullmatch(address)
        ]

    def _slot(self, address: str) -> Slot | None:
        """None for what is not looked at."""
        host = self._host
        folder = f"{DEVICES}/{address}"
        # where a copied tree has devices by their buses only, all that it has is looked at
        what = kind(host, folder) if host.exists(folder) else "device"
        if not what or host.exists(f"{folder}/physfn"):
            return None  # a virtual function has no link of its own
        if not host.exists(f"{folder}/current_link_width"):
            folder = f"{BUSES}/{address[:-5]}/device/{address}"
        words = [host.text(f"{folder}/{name}") or "" for name in IDENTITY]
        above = ancestry(host, folder)[:-1]
        if (host.text(f"{folder}/class") or "").startswith(VGA):
            what = "graphics"
        if what == "bridge" and len(above) % 2:
            what = "switch"  # a port's link is below it, a switch's is above: they take turns from the root
        # without a port above it a card is a virtual machine's, which cannot see the slot
        ends = [folder, f"{DEVICES}/{above[-1]}"] if above else []
        width = min((lanes(host.text(f"{end}/max_link_width")) or 0 for end in ends), default=0)
        speed = min((transfers(host.text(f"{end}/max_link_speed")) or 0.0 for end in ends), default=0.0)
        model = ":".join(words) if words[0] else "infiniband" * host.exists(f"{DEVICES}/{address}/infiniband")
        idles = what == "gpu" or (what == "switch" and words[0] in (NVIDIA, AMD))
        return Slot(folder, what, model, width, speed, idles)


def ancestry(host: Host, folder: str) -> tuple[str, ...]:
    """The PCI addresses from the host bridge (exclusive) down to the device whose folder it is, inclusive."""
    chain: tuple[str, ...] = ()
    for part in host.place(folder).split("/"):
        if part.startswith("pci"):
            chain = ()  # a domain within a domain (Intel's VMD)
        elif ADDRESS.fullmatch(part):
            chain += (part,)
    return chain


def gpus(host: Host) -> dict[str, tuple[str, ...]]:
    """The GPUs on the bus, and the way to each from the processor."""
    folders = {address: f"{DEVICES}/{address}" for address in host.names(DEVICES)}
    return {
        address: ancestry(host, folder) for address, folder in folders.items() if kind(host, folder) == "gpu"
    }


def kind(host: Host, folder: str) -> str:
    """ "network", "nvme", "gpu", "bridge"; "" for what jobs do not use."""
    number = host.text(f"{folder}/class")
    if number is None:
        return next((kind for name, kind in BELOW.items() if host.exists(f"{folder}/{name}")), "")
    if number.startswith(BRIDGE):
        return "bridge"
    if number.startswith(VGA):
        return "gpu" if host.text(f"{folder}/vendor") == NVIDIA else ""
    return next((kind for prefix, kind in KINDS.items() if number.startswith(prefix)), "")


def lanes(text: str | None) -> int | None:
    """ "16" -> 16; what is no width of a link that is up is None."""
    return int(text) if text and text.isascii() and text.isdigit() and 0 < int(text[:9]) <= LANES else None


def transfers(text: str | None) -> float | None:
    """ "16.0 GT/s PCIe", "8 GT/s" -> GT/s; "Unknown" is None."""
    number, _, unit = (text or "").partition(" ")
    try:
        speed = float(number)
    except ValueError:
        return None
    return speed if unit.startswith("GT/s") and 0 < speed < 1000 else None


def _total(text: str | None, name: str) -> int | None:
    """The count in a file of lines "NAME count"."""
    for line in (text or "").splitlines():
        word, _, count = line.partition(" ")
        if word == name and count.isascii() and count.isdigit():
            return int(count)
    return None
