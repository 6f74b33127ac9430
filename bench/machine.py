"""On what was measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path


def machine() -> str:
    """The machine in a line: figures of different ones cannot be compared."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = []
    if bash := shutil.which("bash"):
        versions.append(
            subprocess.run([bash, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        )
    if shutil.which("dpkg-query"):
        query = ["dpkg-query", "-W", "-f=dash ${Version}", "dash"]
        versions.append(subprocess.run(query, capture_output=True, text=True).stdout)
    versions.append(f"Python {platform.python_version()}")
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()} {platform.machine()}, "
        f"{', '.join(filter(None, versions))}; load average before the run {load:.1f}"
    )
