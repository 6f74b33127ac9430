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
        "InfiniBand ports: state, physical state, rate, flaps, error counters; those of RoCE",
        ("IB_PORT_DOWN", "IB_PORT_SLOW", "IB_DEVICE_MISSING", "IB_FLAP", "IB_ERRORS"),
    ),
    Probe(
        "nic",
        "physical Ethernet ports: carrier, speed, bonds, flaps, error counters",
        ("NIC_DOWN", "NIC_SLOW", "NIC_MISSING", "NIC_FLAP", "NIC_ERRORS"),
    ),
    Probe(
        "pcie",
        "PCIe links of network adapters, NVMe disks, GPUs and switches: width, speed, errors (AER)",
        ("PCIE_DEGRADED", "PCIE_ERRORS"),
    ),
    Probe(
        "memory",
        "memory: how much there is, errors that the controllers count (EDAC)",
        ("MEM_MISSING", "MEM_ECC_UNCORRECTED", "MEM_ECC_CORRECTED"),
    ),
    Probe(
        "disk",
        "local file systems: space, inodes, whether they can be written",
        ("DISK_FULL", "DISK_READ_ONLY"),
    ),
    Probe(
        "system",
        "processes stuck with a GPU, process numbers, services, the clock; probes that hang",
        ("KERNEL_HUNG_TASK", "HOST_PIDS", "HOST_SERVICE", "HOST_CLOCK", "PROBE_STUCK"),
    ),
)
