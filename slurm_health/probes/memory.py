"""Memory: how much there is, and its errors as the memory controllers' drivers (EDAC) count them.

https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-devices-edac, .../stable/sysfs-devices-node,
proc_meminfo(5), and NVIDIA's open kernel modules, nv-procfs.c (numa_status).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from slurm_health.host import Host
from slurm_health.model import Reading

CONTROLLERS = "sys/devices/system/edac/mc"
NUMA = "sys/devices/system/node"
GPUS = "proc/driver/nvidia/gpus"
TOTAL = re.compile(r"^(?:Node \d+ )?MemTotal: +(\d+) kB$", re.MULTILINE | re.ASCII)
KIB = 1 << 20  # in a GiB


def memory(host: Host) -> Iterator[Reading]:
    """`memory.total` (GiB that Linux can use, and those that it keeps for a crash kernel, whose size is the
    admin's to change); for each controller ("mc0") `memory.uncorrected` and `memory.corrected`: errors since
    its driver was loaded, and in the evidence which modules had them.
    """
    if total := _total(host, "proc/meminfo"):
        kept = (host.number("sys/kernel/kexec_crash_size") or 0) >> 10
        yield Reading("memory.total", "", round((total + kept - _of_gpus(host)) / KIB, 1))
    for name in host.names(CONTROLLERS):
        if not name.startswith("mc"):
            continue
        for kind, prefix in (("uncorrected", "ue"), ("corrected", "ce")):
            count = host.number(f"{CONTROLLERS}/{name}/{prefix}_count")
            if count is not None and count >= 0:
                where = _modules(host, f"{CONTROLLERS}/{name}", prefix) if count else ""
                yield Reading(f"memory.{kind}", name, count, f"{count} {kind} errors{where}")


def _total(host: Host, file: str) -> int:
    """KiB, 0 where it is not told."""
    found = TOTAL.search(host.text(file) or "")
    return int(found[1]) if found else 0


def _of_gpus(host: Host) -> int:
    """KiB of GPUs beside Grace processors: Linux has them as its own, in NUMA nodes without a processor, as
    long as NVIDIA's driver is loaded."""
    if not any(host.exists(f"{GPUS}/{gpu}/numa_status") for gpu in host.names(GPUS)):
        return 0
    nodes = [name for name in host.names(NUMA) if re.fullmatch(r"node\d+", name)]
    return sum(
        _total(host, f"{NUMA}/{name}/meminfo") for name in nodes if not host.text(f"{NUMA}/{name}/cpulist")
    )


def _modules(host: Host, folder: str, prefix: str) -> str:
    """The memory modules that had errors, by what the board calls them."""
    found = []
    for name in host.names(folder):
        if not name.startswith(("dimm", "rank")):
            continue
        if count := host.number(f"{folder}/{name}/dimm_{prefix}_count"):
            found.append(f"{host.text(f'{folder}/{name}/dimm_label') or name}: {count}")
    return f" ({', '.join(found)})" if found else ""
