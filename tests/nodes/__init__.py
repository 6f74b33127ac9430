"""Machines made of files, for tests: what /sys shows of GPUs, InfiniBand ports and NICs."""

from __future__ import annotations

from pathlib import Path


def write(root: Path, files: dict[str, str]) -> None:
    """Write files below root; an empty text is a file whose read fails on a live kernel."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n" if text else "")


def link(root: Path, name: str, target: str) -> None:
    """A symbolic link below root, replaced when it is there."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def gpu(root: Path, pci: str, driver: str = "nvidia", kind: str = "0x030200") -> None:
    """A GPU on the PCI bus (10de is NVIDIA)."""
    write(root, {f"sys/bus/pci/devices/{pci}/vendor": "0x10de", f"sys/bus/pci/devices/{pci}/class": kind})
    if driver:
        link(root, f"sys/bus/pci/devices/{pci}/driver", f"../../../bus/pci/drivers/{driver}")


def port(
    root: Path,
    name: str,
    number: int = 1,
    state: str = "4: ACTIVE",
    phys: str = "5: LinkUp",
    rate: str = "400 Gb/sec (4X NDR)",
    layer: str = "InfiniBand",
    pci: str = "",
) -> None:
    """A port of an RDMA device."""
    folder = f"sys/class/infiniband/{name}"
    files = {"state": state, "phys_state": phys, "rate": rate, "link_layer": layer}
    write(root, {f"{folder}/ports/{number}/{file}": text for file, text in files.items()})
    if pci:
        link(root, f"{folder}/device", f"../../../{pci}")


def nic(
    root: Path,
    name: str,
    pci: str = "0000:40:00.0",
    carrier: str = "1",
    speed: str = "100000",
    flags: str = "0x1003",
    kind: str = "1",
) -> None:
    """A network interface, physical when it has a PCI address."""
    folder = f"sys/class/net/{name}"
    write(
        root,
        {
            f"{folder}/type": kind,
            f"{folder}/flags": flags,
            f"{folder}/carrier": carrier,
            f"{folder}/speed": speed,
        },
    )
    if pci:
        write(root, {f"sys/bus/pci/devices/{pci}/class": "0x020000"})
        link(root, f"{folder}/device", f"../../../{pci}")
