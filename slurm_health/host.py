"""The only door to a machine: everything under /sys, /proc and /dev goes through a Host.

`Host(root)` reads the machine below `root`, so that a folder can stand for a machine. What a kernel tells by
a system call only, such a folder says in a file beside sys/ and proc/: `statvfs`, `adjtimex`.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

LARGEST = 1 << 20  # no file that a probe reads is longer; a stray one must not fill the memory
TIME_ERROR = 5  # <sys/timex.h>: what adjtimex(2) returns while the clock is not synchronised


class Host:
    """Files of one machine. What cannot be read is None, never zero and never an exception."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)
        self._prefix = f"{self.root}/".replace("//", "/")

    def path(self, name: str) -> Path:
        return self.root / name

    def text(self, name: str | Path) -> str | None:
        """The stripped content of a file (its first MiB), or None where it cannot be read or is empty."""
        # plain system calls: read_text takes three times as long, and this runs every second
        try:
            handle = os.open(f"{self._prefix}{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            return None
        content = b""
        try:
            while len(content) < LARGEST and (part := os.read(handle, 65536)):
                content += part
        except OSError:
            return None
        finally:
            os.close(handle)
        return content.decode("utf-8", "replace").strip() or None

    def number(self, name: str | Path) -> int | None:
        """The whole number in a file (decimal or 0x...), or None."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return int(text, 0)
        except ValueError:
            return None

    def names(self, folder: str | Path) -> list[str]:
        """The sorted names in a folder; none where it cannot be read."""
        try:
            return sorted(os.listdir(f"{self._prefix}{folder}"))  # noqa: PTH208 (a tenth of iterdir's cost)
        except (OSError, ValueError):
            return []

    def link(self, name: str | Path) -> str | None:
        """The last part of where a symbolic link points, or None."""
        try:
            return os.readlink(f"{self._prefix}{name}").rpartition("/")[2]  # noqa: PTH115 (as above)
        except (OSError, ValueError):
            return None

    def place(self, name: str | Path) -> str:
        """Where a file really is below the root, all symbolic links followed; "" where that leads outside."""
        try:
            found = os.path.realpath(f"{self._prefix}{name}")
            home = os.path.realpath(self.root)
        except (OSError, ValueError):
            return ""
        return found[len(home) :].lstrip("/") if found.startswith(home) else ""

    def exists(self, name: str | Path) -> bool:
        return os.path.exists(f"{self._prefix}{name}")  # noqa: PTH110 (as above)

    def glob(self, pattern: str) -> Iterator[Path]:
        """Paths below root (relative to it) that match, sorted."""
        return iter(sorted(path.relative_to(self.root) for path in self.root.glob(pattern)))

    def space(self, mount: str) -> tuple[int, int, int, int] | None:
        """A mounted file system's blocks (all, free to users) and inodes (all, free), as statvfs(2) has them;
        a folder that stands for a machine says them in lines `mount blocks free inodes free`. May hang with
        the disk.
        """
        if self._prefix != "/":
            for line in (self.text("statvfs") or "").splitlines():
                name, *numbers = line.split()
                if name == mount and len(numbers) == 4 and all(one.isdigit() for one in numbers):
                    return int(numbers[0]), int(numbers[1]), int(numbers[2]), int(numbers[3])
            return None
        try:
            found = os.statvfs(mount)
        except (OSError, ValueError):
            return None
        # to users all but root's reserve counts, as df(1) has it
        return (
            found.f_blocks - found.f_bfree + found.f_bavail,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
        )

    def clock_error(self) -> bool | None:
        """Whether the kernel holds its clock for not synchronised (adjtimex(2) returns TIME_ERROR); None
        where it does not say. A folder that stands for a machine has what adjtimex returns in `adjtimex`.
        """
        if self._prefix != "/":
            told = self.number("adjtimex")
            return None if told is None else told == TIME_ERROR
        timex = ctypes.create_string_buffer(512)  # struct timex: modes = 0, nothing is set; 208 bytes of it
        told = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
        return None if told < 0 else told == TIME_ERROR

    def booted(self) -> float:
        """Seconds since this machine booted (/proc/uptime, proc(5)), infinite where it does not say."""
        try:
            return float((self.text("proc/uptime") or "").partition(" ")[0])
        except ValueError:
            return math.inf

    def boot_id(self) -> str:
        """A name for this boot: /proc/sys/kernel/random/boot_id (random(4)), "" where it cannot be told."""
        return self.text("proc/sys/kernel/random/boot_id") or ""


def uptime() -> float:
    """Seconds since boot as /proc/uptime counts them (CLOCK_BOOTTIME), whatever the Host's root."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
