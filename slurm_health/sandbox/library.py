"""The fake NVML library, compiled where it is needed from nvml.c."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from slurm_health.sandbox import SandboxError

SOURCE = Path(__file__).with_name("nvml.c")


def build(target: Path) -> Path:
    """Compile the library to `target`, replaced whole; SandboxError names the packages that are missing."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SandboxError("not installed: gcc libc6-dev (Debian: apt-get install them), for fake GPUs")
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    argv = [compiler, "-O1", "-shared", "-fPIC", "-o", str(fresh), str(SOURCE), "-lpthread"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        raise SandboxError(
            f"cannot compile {SOURCE.name}; are gcc and libc6-dev installed?\n{done.stderr.strip()[-2000:]}"
        )
    fresh.replace(target)
    return target
