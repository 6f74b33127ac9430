"""Physical Ethernet ports, from /sys/class/net.

https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-net
"""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.host import Host
from slurm_health.model import Reading

CLASS = "sys/class/net"
ETHERNET = 1  # ARPHRD_ETHER in <linux/if_arp.h>; 32 is IPoIB, whose ports infiniband.py reads
IFF_UP = 0x1  # <linux/if.h>
CONTROLLER = "0x0200"  # PCI class: Ethernet controller


def nic(host: Host, fast: bool = False) -> Iterator[Reading]:
    """Each physical port's `nic.up` (by its admin), `nic.carrier`, `nic.speed` (Mb/s), the `nic.pci` address
    of its device, and `nic.bond`, whether it is in a bond that has a carrier; and `nic.on_pci` for each
    Ethernet controller. No virtual interfaces, virtual functions, IPoIB, nor USB (a board controller's, which
    comes and goes). `fast` reads only what changes when a link goes down.
    """
    for name in host.names(CLASS):
        folder = f"{CLASS}/{name}"
        if not _physical(host, folder):
            continue
        if (flags := host.number(f"{folder}/flags")) is not None:
            yield Reading("nic.up", name, bool(flags & IFF_UP))
        # fails with EINVAL while the port is down by its admin: then no reading
        if (carrier := host.number(f"{folder}/carrier")) is not None:
            yield Reading("nic.carrier", name, bool(carrier))
        if host.exists(f"{folder}/bonding_slave"):
            yield Reading("nic.bond", name, host.number(f"{folder}/master/carrier") == 1)
        if fast:
            continue
        if (speed := host.number(f"{folder}/speed")) is not None and 0 < speed < 2**31 - 1:
            yield Reading("nic.speed", name, speed)
        if pci := host.link(f"{folder}/device"):
            yield Reading("nic.pci", name, pci)
    if not fast:
        for name in host.names("sys/bus/pci/devices"):
            if (host.text(f"sys/bus/pci/devices/{name}/class") or "").startswith(CONTROLLER):
                yield Reading("nic.on_pci", name, True)


def _physical(host: Host, folder: str) -> bool:
    if host.link(f"{folder}/device") is None and not host.exists(f"{folder}/device"):
        return False
    if host.number(f"{folder}/type") not in (ETHERNET, None):
        return False
    return not host.exists(f"{folder}/device/physfn") and host.link(f"{folder}/device/subsystem") != "usb"
