"""What NVIDIA's kernel drivers and NVML call things, and what we call them."""

from __future__ import annotations

# nvmlDeviceGpuRecoveryAction_t (nvml.h), by its numbers; the kernel log's words for them differ by driver
RECOVERY_ACTIONS = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "bus_reset",
    "system_reboot",
)


def address(name: str) -> str:
    """A PCI address as findings name it (0000:3b:00.0): from the kernel's own (sysfs), from NVML's with eight
    digits and capitals (00000000:3B:00.0), or from the kernel log's without a function (0000:3b:00).
    """
    domain, _, rest = name.lower().partition(":")
    return f"{domain.lstrip('0').rjust(4, '0')}:{rest}" + ("" if "." in rest else ".0")


def recovery_action(number: int) -> str:
    """The word for a recovery action, "unknown_<n>" for one that is newer than this table."""
    return RECOVERY_ACTIONS[number] if 0 <= number < len(RECOVERY_ACTIONS) else f"unknown_{number}"
