"""GPUs on the PCI bus, whether or not a driver answers for them."""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.model import Reading
from slurm_health.probes.nvidia import address
from slurm_health.probes.pcie import DEVICES, NVIDIA, Bus

CLASSES = ("0x0300", "0x0302")  # PCI ids: VGA and 3D controllers


def pci(bus: Bus) -> Iterator[Reading]:
    """NVIDIA GPUs on the PCI bus, driver or not: `gpu.on_pci`, and `gpu.kernel_driver` where there is one.

    https://docs.kernel.org/PCI/sysfs-pci.html; cached by the kernel: no access to the device, cannot hang.
    """
    for name, (number, vendor) in bus.devices().items():
        if vendor == NVIDIA and number[:6] in CLASSES:
            device = address(name)
            yield Reading("gpu.on_pci", device, True)
            if driver := bus.host.link(f"{DEVICES}/{name}/driver"):
                yield Reading("gpu.kernel_driver", device, driver)
