"""GPUs on the PCI bus, whether or not a driver answers for them."""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.host import Host
from slurm_health.model import Reading
from slurm_health.probes.nvidia import address

PCI = "sys/bus/pci/devices"
VENDOR, CLASSES = "0x10de", ("0x0300", "0x0302")  # PCI ids: NVIDIA; VGA and 3D controllers


def pci(host: Host) -> Iterator[Reading]:
    """NVIDIA GPUs on the PCI bus, driver or not: `gpu.on_pci`, and `gpu.kernel_driver` where there is one.

    https://docs.kernel.org/PCI/sysfs-pci.html; cached by the kernel: no access to the device, cannot hang.
    """
    for name in host.names(PCI):
        if host.text(f"{PCI}/{name}/vendor") != VENDOR:
            continue
        if (host.text(f"{PCI}/{name}/class") or "")[:6] not in CLASSES:
            continue
        device = address(name)
        yield Reading("gpu.on_pci", device, True)
        if driver := host.link(f"{PCI}/{name}/driver"):
            yield Reading("gpu.kernel_driver", device, driver)
