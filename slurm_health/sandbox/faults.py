"""The faults a fake machine can have, and the very lines that a kernel prints with them.

Lines follow what NVIDIA's driver and the kernel print on real machines: Xid messages as in
https://docs.nvidia.com/deploy/xid-errors, SXid as in the Fabric Manager user guide, "pid=..., name=..." as
drivers since 470 add to them; the kernel's own (kernel.toml) as Linux 5.15 to 6.14 has them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from slurm_health.sandbox import SandboxError


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault: the name to inject it by, what it needs to be told, and what it does."""

    name: str
    needs: frozenset[str]
    text: str


def _fault(name: str, needs: str, text: str) -> Fault:
    return Fault(name, frozenset(needs.split()), text)


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        _fault("xid", "code gpu", "the driver's Xid line in the kernel log, and nothing else"),
        _fault("sxid", "code", "an NVSwitch's SXid line in the kernel log"),
        _fault("gpu-off-bus", "gpu", "Xid 79 and every NVML call on that GPU says that it is lost"),
        _fault("gpu-lost", "gpu", "every NVML call on that GPU says that it is lost, the kernel nothing"),
        _fault("gpu-gone", "gpu", "the GPU is in no list any more: NVML's indices shift"),
        _fault("ecc", "gpu", "an uncorrectable ECC error is counted"),
        _fault("remap-pending", "gpu", "a memory row waits to be remapped by a reset"),
        _fault("remap-failed", "gpu", "a memory row could not be remapped"),
        _fault("recovery-action", "gpu", "the driver asks for a recovery action (code, 1: reset the GPU)"),
        _fault("driver-failed", "", "NVML cannot talk to the driver (code: what it says, 9: not loaded)"),
        _fault("driver-hang", "", "every NVML call, or the one that text names, does not return"),
        _fault(
            "throttle",
            "gpu",
            "clocks held down (text: thermal, power-brake, slowdown, sw-thermal, power-cap)",
        ),
        _fault("hot", "gpu", "the GPU is hot (code: degrees, 90; slows down at 92, shuts down at 95)"),
        _fault("fan", "gpu", "the fan cannot be read"),
        _fault("nvlink-down", "gpu", "an NVLink is inactive (code: which, 3)"),
        _fault("nvlink-errors", "gpu", "an NVLink has counted errors (code: how many, 1000)"),
        _fault("retired", "gpu", "a memory page waits to be retired, as on boards before the A100"),
        _fault("sram", "gpu", "SRAM errors have exceeded their threshold"),
        _fault("gpu-pcie-slow", "gpu", "the PCIe link runs at half its width under load"),
        _fault("gpu-pcie-replay", "gpu", "the PCIe link has repeated packets (code: how many, 1000)"),
        _fault("fabric", "gpu", "the GPU is not in the NVLink fabric (code: its state, 2: in progress)"),
        _fault("fabric-health", "gpu", "the GPU has an unhealthy route in the NVLink fabric"),
        _fault("vbios", "gpu text", "the GPU has another VBIOS"),
        _fault("mig", "gpu", "MIG mode is on"),
        _fault("memory-used", "gpu code", "so many MiB are in use, by no process"),
        _fault("process", "gpu code", "process code is on the GPU (text: a fake one with that environment)"),
        _fault("nvml", "gpu text", "NVML tells this of the GPU (text: a key of nvml.c and a number)"),
        _fault("nvml-error", "text code", "the NVML call that text names returns code (on GPU gpu or all)"),
        _fault("ib-down", "port", "an InfiniBand port is down"),
        _fault("ib-slow", "port", "an InfiniBand port has half its rate"),
        _fault("nic-down", "port", "an Ethernet port has lost its carrier"),
        _fault("ib-flap", "port", "an InfiniBand port has lost its link and got it back (code times, 3)"),
        _fault("ib-errors", "port", "an InfiniBand port counts errors (code: 200, text: symbol_error)"),
        _fault("nic-slow", "port", "an Ethernet port has a tenth of its speed"),
        _fault("aer", "gpu", "PCIe errors of that GPU (text: fatal, nonfatal or corrected; fatal)"),
        _fault("mlx5", "port", "an adapter's health (text: compromised, command, cable or hot; compromised)"),
        _fault("memory", "", "a memory error of the host (text: uncorrected or corrected; uncorrected)"),
        _fault("disk", "", "a disk (text: dead, timeout, medium or io; dead)"),
        _fault("filesystem", "", "an error of the file system on a disk"),
        _fault("readonly", "", "the same, and the file system goes read-only"),
        _fault("hung-task", "", "a program waits in the kernel for two minutes"),
        _fault("lockup", "", "a processor is stuck in the kernel (text: soft, hard or stall; soft)"),
        _fault("oom", "", "the kernel ends a program for want of memory (text: group or host; group)"),
        _fault("nic-flap", "port", "an Ethernet port has lost its carrier and got it back (code times, 4)"),
        _fault("nic-errors", "port", "an Ethernet port counts errors (code: 500, text: rx_crc_errors)"),
        _fault("ib-pcie-degraded", "port", "an InfiniBand adapter has half its PCIe lanes"),
        _fault("ib-pcie-errors", "port", "an InfiniBand adapter counts PCIe errors (code: 1, text: fatal)"),
        _fault("mem-ecc", "", "memory errors are counted (code: 1, text: ue, or ce for corrected ones)"),
        _fault("mem-missing", "", "the firmware has left out a memory module"),
        _fault("disk-full", "", "the root file system is full (text: inodes)"),
        _fault("disk-readonly", "", "/scratch has turned read-only"),
        _fault("pids-full", "", "process numbers are used up"),
        _fault("clock-unsynced", "", "nobody sets the clock"),
        _fault("service-stopped", "", "a service has ended (text: which, munge)"),
        _fault("task-stuck", "gpu", "a process that holds the GPU waits in the kernel for ever"),
        _fault("ib-gone", "port", "an InfiniBand adapter is gone, from PCI too"),
        _fault("nic-gone", "port", "an Ethernet adapter is gone, from PCI too"),
        _fault("kmsg", "text", "a line of the kernel's own in the kernel log"),
        _fault("user-kmsg", "text", "the same written by a program (/dev/kmsg marks it as not the kernel's)"),
    )
}

# What the driver says after the number, process and name. One line each, as seen on real machines.
_XID = {
    13: "Graphics SM Warp Exception on (GPC 8, TPC 5, SM 0): Out Of Range Address",
    31: "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7f1c_6e000000."
    " Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
    43: "Ch 00000008",
    45: "Ch 00000008",
    48: "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at physAddr"
    " 0x1f8a3c440 partition 2, subpartition 1.",
    62: "2c34(25b4) 00000000 00000000",
    63: "Row Remapper: New row (0x00000001f8a3c440) marked for remapping, reset gpu to activate.",
    64: "Row Remapper: Failed to remap row (0x00000001f8a3c440)",
    74: "NVLink: fatal error detected on link 3(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)",
    79: "GPU has fallen off the bus.",
    92: "High single-bit ECC error rate",
    94: "Contained: SM (0x1). RST: No, D-RST: No",
    95: "Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
    119: "Timeout after 6s of waiting for RPC response from GPU{gpu} GSP! Expected function 76"
    " (GSP_RM_CONTROL) (0x20803032 0x58c).",
    120: "GSP task exception: Unhandled exception",
    140: "Uncorrectable ECC error detected on SRAM",
    145: "RLW_RXPIPE Nonfatal XC0 i0 Link 13"
    " (0x00000004 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)",
    149: "NETIR_LINK_EVT Fatal XC0 i0 Link 03"
    " (0x004505c6 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)",
    154: "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
}
# Xids that the driver raises for a process of its own accord know its name; the others print '<unknown>'.
_OF_PROCESS = {13, 31, 43, 45, 119}
_NAMELESS = {154}  # printed without a process at all

_SXID = {
    12028: "Non-fatal, Link 32 egress non-posted PRIV error (First)",
    20034: "Fatal, Link 30 LTSSM Fault Up",
}


def xid_lines(code: int, gpu: int, pci: str, serial: str, pid: int = 0, program: str = "") -> list[str]:
    """What the NVIDIA driver prints at an Xid: the line itself and those it prints beside it."""
    bus = pci.rsplit(".", 1)[0]
    said = _XID.get(code, "unknown error").replace("{gpu}", str(gpu))
    who = f"pid={pid}, name={program}, " if pid else "pid='<unknown>', name=<unknown>, "
    if code in _NAMELESS:
        who = ""
    elif code in _OF_PROCESS and not pid:
        who = "pid=2815167, name=pt_main_thread, "
    lines = [f"NVRM: Xid (PCI:{bus}): {code}, {who}{said}"]
    if code == 79:
        lines += [
            f"NVRM: GPU {pci}: GPU has fallen off the bus.",
            f"NVRM: GPU {pci}: GPU serial number is {serial}.",
            "NVRM: A GPU crash dump has been created. If possible, please run",
            "NVRM: nvidia-bug-report.sh as root to collect this data before",
            "NVRM: the NVIDIA kernel module is unloaded.",
        ]
    if code == 119:
        buffer = "GSP RPC buffer contains function 76 (GSP_RM_CONTROL) and data 0x20803032 0x58c."
        lines.append(f"NVRM: GPU{gpu} {buffer}")
    return lines


def sxid_lines(code: int, switch: int, pci: str) -> list[str]:
    """What the NVSwitch driver prints at an SXid."""
    said = _SXID.get(code, "Non-fatal, Link 12 unknown error")
    head = f"nvidia-nvswitch{switch}: SXid (PCI:{pci}): {code}, "
    severity = "Severity 1 Engine instance 30 Sub-engine instance 00"
    return [head + said, head + severity, head + "Data {0x50610002, 0x10100030}"]


# What the kernel prints with the other faults, by fault and kind.
_LINES: dict[str, dict[str, str]] = tomllib.loads(files(__package__).joinpath("kernel.toml").read_text())


def spoken(fault: str) -> bool:
    """Whether a fault is nothing but words of the kernel."""
    return fault in _LINES


def kernel_lines(fault: str, kind: str | None, pci: str = "") -> list[str]:
    """What the kernel prints with a fault of a kind, about a device."""
    kinds = _LINES[fault]
    words = kinds.get(kind or next(iter(kinds)))
    if words is None:
        raise SandboxError(f"{fault} is one of {', '.join(kinds)}, not {kind}")
    return words.strip("\n").replace("{pci}", pci).replace("{port}", f"{pci[:4]}:00:01.0").split("\n")


def check(name: str, given: Mapping[str, object]) -> Fault:
    """The fault of that name; SandboxError says which exist, or what it must be told and is not."""
    fault = FAULTS.get(name)
    if fault is None:
        raise SandboxError(f"there is no fault {name}, there are: {', '.join(FAULTS)}")
    missing = sorted(need for need in fault.needs & given.keys() if given[need] is None)
    if missing:
        raise SandboxError(f"{name} needs {', '.join(missing)} ({fault.text})")
    return fault
