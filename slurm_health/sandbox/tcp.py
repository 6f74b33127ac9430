"""Which TCP ports are whose, of all sandboxes on this host.

That nobody listens on a port does not make it free: its sandbox may only just start, or a test of it has
stopped the daemon. So each port has a link in one folder, to its sandbox's; who has none may take it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

from slurm_health.sandbox import SandboxError

PORTS = range(20000, 32000)  # below the ports that Linux gives to outgoing connections (32768 and above)
CLAIMS = Path("/run/slurm-health-sandboxes")


def claim(folder: Path, count: int) -> list[int]:
    """Ports for the sandbox in a folder, on which nobody listens: its own until `release`, or until the
    folder is gone."""
    with _locked():
        taken = set()
        for link in CLAIMS.iterdir():
            if link.exists():  # the folder that it leads to
                taken.add(int(link.name))
            else:
                link.unlink()
        free = (port for port in random.sample(PORTS, len(PORTS)) if port not in taken and _unheard(port))
        found = list(itertools.islice(free, count))
        if len(found) < count:
            raise SandboxError(f"no {count} free TCP ports from {PORTS.start} to {PORTS.stop - 1}")
        for port in found:
            (CLAIMS / str(port)).symlink_to(folder)
    return found


def release(folder: Path) -> None:
    """Give back all ports of the sandbox in a folder."""
    if not CLAIMS.is_dir():
        return
    with _locked():
        for link in CLAIMS.iterdir():
            if link.readlink() == folder:
                link.unlink()


def listens(port: int) -> bool:
    """Whether somebody on this host answers there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _unheard(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("", port))
            return True
    return False


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    try:
        CLAIMS.mkdir(mode=0o755, exist_ok=True)
        handle = os.open(CLAIMS, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SandboxError(f"cannot make {CLAIMS}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
