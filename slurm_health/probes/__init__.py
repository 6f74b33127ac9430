"""Probes state facts: what they read is a Reading, what they could not read is nothing.

A probe reads files below a Host, or asks NVML. It runs no commands, changes nothing, and knows no thresholds,
no Slurm and no ledger. A new one is a file here and a line in PROBES.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe as the `probes` command lists it; `codes` are what rules make of its readings."""

    name: str
    about: str
    codes: tuple[str, ...]


PROBES = (
    Probe(
        "kernel",
        "the kernel log: what drivers report of GPUs and NVSwitches (Xid, SXid), PCIe (AER), adapters (mlx5),"
        " memory (EDAC, MCE, GHES), disks and file systems; hung tasks, lockups, want of memory",
        (
            "GPU_XID_<n>",
            "NVSWITCH_SXID_<n>",
            "PCIE_ERRORS",
            "NIC_HEALTH",
            "MEM_ECC_UNCORRECTED",
            "DISK_ERRORS",
            "DISK_READ_ONLY",
            "KERNEL_HUNG_TASK",
            "KERNEL_LOCKUP",
            "KERNEL_OOM",
        ),
    ),
    Probe(
        "gpu",
        "GPUs by NVML and on the PCI bus: presence, memory errors, NVLink, clocks, heat, PCIe, their needs",
        (
            "GPU_MISSING",
            "GPU_DRIVER_FAILED",
            "GPU_DRIVER_HUNG",
            "GPU_ECC_UNCORRECTED",
            "GPU_REMAP_PENDING",
            "GPU_REMAP_FAILED",
            "GPU_RECOVERY_ACTION",
            "GPU_PAGES_RETIRED",
            "GPU_NVLINK_DOWN",
            "GPU_NVLINK_ERRORS",
            "GPU_FABRIC",
            "GPU_THROTTLED",
            "GPU_HOT",
            "GPU_FAN",
            "GPU_PCIE_DEGRADED",
            "GPU_DRIFT",
        ),
    ),
    Probe(
        "process",
        "the processes on GPUs: whose they are, which job's, which rank",
        ("GPU_LEFTOVER_PROCESS",),
    ),
    Probe(
        "infiniband",
        "InfiniBand ports: state, physical state, rate",
        ("IB_PORT_DOWN", "IB_PORT_SLOW", "IB_DEVICE_MISSING"),
    ),
    Probe(
        "nic",
        "physical Ethernet ports: carrier, speed",
        ("NIC_DOWN", "NIC_SLOW", "NIC_MISSING"),
    ),
)
