"""Physical Ethernet ports, from /sys/class/net.

https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-net and .../sysfs-class-net-statistics
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from slurm_health.host import Host
from slurm_health.model import Reading
from slurm_health.probes import pcie

CLASS = "sys/class/net"
ETHERNET = 1  # ARPHRD_ETHER in <linux/if_arp.h>; 32 is IPoIB, whose ports infiniband.py reads
IFF_UP = 0x1  # <linux/if.h>
CONTROLLER = "0x02"  # PCI class: network controllers, whatever they talk (a port of several kinds: 0x0280)
RESTLESS = 60  # glances that still see everything after something changed
ERRORS = ("rx_crc_errors", "rx_errors", "tx_errors")
# phys_port_name of a port that stands for another's virtual function (Documentation/networking/switchdev.rst;
# of a host's, on its DPU: "pf0hpf"; with its plug's number first: "p0pf0vf3")
REPRESENTOR = re.compile(r"(p\d+)?(c\d+)?pf\d+((vf|sf)\d+|hpf)?")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Nic:
    """The Ethernet ports of one machine that have a plug: no virtual interfaces, virtual functions and their
    stand-ins, sub-functions, IPoIB, Wi-Fi, nor USB (a board controller's, which comes and goes). In a virtual
    machine what its host gave it stands for a plug.
    """

    def __init__(self, host: Host) -> None:
        self._host, self._bus = host, pcie.Bus(host)
        self._plugs: dict[tuple[str, str], str | None] = {}
        self._links: dict[str, tuple[str | None, str | None]] = {}
        self._rest = 0

    def glance(self) -> Iterator[Reading] | None:
        """What look says of links only; None when none has changed for a minute."""
        links = {name: self._link(name) for name in self._links}
        self._rest = self._rest + 1 if links == self._links and links else 0
        return self.look(slow=False) if self._rest < RESTLESS else None

    def look(self, slow: bool = True) -> Iterator[Reading]:
        """Each port's `nic.up` (by its admin), `nic.carrier`, `nic.pci`, and where another carries on without
        it `nic.master`, the name of the bond (or of Hyper-V's port over an accelerated one), and `nic.bond`,
        whether that has a carrier. With `slow` also
        `nic.mac`, `nic.speed` (Mb/s), `nic.carrier_downs` (how often it lost its link) and error counts; and,
        also when a port has gone, `nic.on_pci` for each Ethernet controller, and how many are `nic.listed`.
        """
        host = self._host
        before, self._links = self._links, {}
        for name in host.names(CLASS):
            if (pci := self._plug(name)) is None:
                continue
            folder = f"{CLASS}/{name}"
            flags, carrier = self._links[name] = self._link(name)
            if (number := _number(flags)) is not None:
                yield Reading("nic.up", name, bool(number & IFF_UP))
            # fails with EINVAL while the port is down by its admin: then no reading
            if (number := _number(carrier)) is not None:
                yield Reading("nic.carrier", name, bool(number))
            spared = host.exists(f"{folder}/bonding_slave") or host.exists(f"{folder}/master/device")
            if spared and (master := host.link(f"{folder}/master")):  # a bridge spares none of its ports
                yield Reading("nic.master", name, master)
                yield Reading("nic.bond", name, host.number(f"{folder}/master/carrier") == 1)
            if pci:
                yield Reading("nic.pci", name, pci)
            if slow:
                yield from self._slow(name, folder)
        if self._links != before:
            self._rest = 0
        if slow or before.keys() - self._links.keys():
            yield Reading("nic.listed", "", len(self._links))
            for name, (kind, _) in self._bus.devices().items():
                if kind.startswith(CONTROLLER):
                    yield Reading("nic.on_pci", name, True)

    def _link(self, name: str) -> tuple[str | None, str | None]:
        return self._host.text(f"{CLASS}/{name}/flags"), self._host.text(f"{CLASS}/{name}/carrier")

    def _slow(self, name: str, folder: str) -> Iterator[Reading]:
        host = self._host
        # in a bond all its ports show the address of one
        mac = host.text(f"{folder}/bonding_slave/perm_hwaddr") or host.text(f"{folder}/address") or ""
        if MAC.fullmatch(mac):
            yield Reading("nic.mac", name, mac)
        if (speed := host.number(f"{folder}/speed")) is not None and 0 < speed < 2**31 - 1:
            yield Reading("nic.speed", name, speed)
        downs = host.number(f"{folder}/carrier_down_count")
        if downs is None and (changes := host.number(f"{folder}/carrier_changes")) is not None:
            downs = changes // 2  # Linux before 4.16
        if downs is not None:
            yield Reading("nic.carrier_downs", name, downs, f"lost its link {downs} times since boot")
        for counter in ERRORS:
            if (count := host.number(f"{folder}/statistics/{counter}")) is not None:
                yield Reading(f"nic.{counter}", name, count, f"{counter} {count}")

    def _plug(self, name: str) -> str | None:
        """The PCI address of a physical port, "" where it has none (Hyper-V's), None for any other; told once
        for each device."""
        folder = f"{CLASS}/{name}"
        device = self._host.link(f"{folder}/device")
        if device is None and not self._host.exists(f"{folder}/device"):
            return None
        key = (name, device or "")
        if key not in self._plugs:
            host = self._host
            physical = (
                host.number(f"{folder}/type") in (ETHERNET, None)
                and not host.exists(f"{folder}/device/physfn")
                and not host.exists(f"{folder}/phy80211")
                and host.link(f"{folder}/device/subsystem") not in ("usb", "auxiliary")
                and not REPRESENTOR.fullmatch(host.text(f"{folder}/phys_port_name") or "")
            )
            # of a virtio port it is that of the device above
            way = (key[1],) if pcie.ADDRESS.fullmatch(key[1]) else pcie.ancestry(host, f"{folder}/device")
            self._plugs[key] = "".join(way[-1:]) if physical else None
        return self._plugs[key]


def _number(text: str | None) -> int | None:
    try:
        return int(text or "", 0)
    except ValueError:
        return None
