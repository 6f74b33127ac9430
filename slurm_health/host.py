"""The only door to a machine's files: everything under /sys, /proc and /dev goes through a Host.

`Host(root)` reads the machine below `root`, so that a folder can stand for a machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path


class Host:
    """Files of one machine. What cannot be read is None, never zero and never an exception."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)

    def path(self, name: str) -> Path:
        return self.root / name

    def text(self, name: str | Path) -> str | None:
        """The stripped content of a file, or None where it cannot be read or is empty."""
        try:
            return (self.root / name).read_text(encoding="utf-8", errors="replace").strip() or None
        except (OSError, ValueError):
            return None

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
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        except OSError:
            return []

    def link(self, name: str | Path) -> str | None:
        """The last part of where a symbolic link points, or None."""
        try:
            return (self.root / name).readlink().name
        except OSError:
            return None

    def exists(self, name: str | Path) -> bool:
        return (self.root / name).exists()

    def glob(self, pattern: str) -> Iterator[Path]:
        """Paths below root (relative to it) that match, sorted."""
        return iter(sorted(path.relative_to(self.root) for path in self.root.glob(pattern)))

    def boot_id(self) -> str:
        """A name for this boot: /proc/sys/kernel/random/boot_id (random(4)), "" where it cannot be told."""
        return self.text("proc/sys/kernel/random/boot_id") or ""


def uptime() -> float:
    """Seconds since boot as /proc/uptime counts them (CLOCK_BOOTTIME), whatever the Host's root."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
