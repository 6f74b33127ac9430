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
# nvmlGpuFabricState_t; 0 is a GPU without a fabric
FABRIC_STATES = {1: "not_started", 2: "in_progress", 3: "completed"}
# NVML_GPU_FABRIC_HEALTH_MASK_*: what is wrong, where it stands in the mask, and the values that say so
FABRIC_HEALTH = (
    ("degraded bandwidth", 0, 0x3, {1}),
    ("route recovery in progress", 2, 0x3, {1}),
    ("unhealthy route", 4, 0x3, {1}),
    ("access timeout recovery", 6, 0x3, {1}),
    ("incorrect configuration", 8, 0xF, set(range(2, 16))),
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
