"""Memory: how much there is, and its errors as the memory controllers' drivers (EDAC) count them.

https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-devices-edac and proc_meminfo(5)
"""

from __future__ import annotations

from collections.abc import Iterator

from slurm_health.host import Host
from slurm_health.model import Reading

CONTROLLERS = "sys/devices/system/edac/mc"
KIB = 1 << 20  # in a GiB


def memory(host: Host) -> Iterator[Reading]:
    """`memory.total` (GiB that Linux can use); for each controller ("mc0") `memory.uncorrected` and
    `memory.corrected`: errors since its driver was loaded, and in the evidence which modules had them.
    """
    for line in (host.text("proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if name == "MemTotal" and unit == "kB" and number.isascii() and number.isdigit():
            yield Reading("memory.total", "", round(int(number) / KIB, 1))
            break
    for name in host.names(CONTROLLERS):
        if not name.startswith("mc"):
            continue
        for kind, prefix in (("uncorrected", "ue"), ("corrected", "ce")):
            count = host.number(f"{CONTROLLERS}/{name}/{prefix}_count")
            if count is not None and count >= 0:
                where = _modules(host, f"{CONTROLLERS}/{name}", prefix) if count else ""
                yield Reading(f"memory.{kind}", name, count, f"{count} {kind} errors{where}")


def _modules(host: Host, folder: str, prefix: str) -> str:
    """The memory modules that had errors, by what the board calls them."""
    found = []
    for name in host.names(folder):
        if not name.startswith(("dimm", "rank")):
            continue
        if count := host.number(f"{folder}/{name}/dimm_{prefix}_count"):
            found.append(f"{host.text(f'{folder}/{name}/dimm_label') or name}: {count}")
    return f" ({', '.join(found)})" if found else ""
