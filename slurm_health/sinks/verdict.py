"""The verdict file, which the prolog reads: `<ok|warn|bad> <uptime> <text>`, one line.

`uptime` is the real kernel's, in whole seconds as in /proc/uptime, so that neither a step of the wall clock
nor a reboot can fake freshness.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from slurm_health.host import uptime
from slurm_health.model import Severity

HEARTBEAT = 5.0  # seconds; the prolog takes a verdict for stale after 60, and 10 is promised
NAME = "verdict"


def word(findings: Iterable[Severity], refuse: str, note: str = "") -> str:
    """The first word: `bad` is the controller's decision, never an observation. `note`: its word to warn."""
    if refuse:
        return "bad"
    return "warn" if note or any(severity > Severity.OK for severity in findings) else "ok"


def line(state: str, text: str, at: float) -> str:
    """The file's content. Text is kept to printable ASCII: a shell will read it."""
    words = "".join(c if c.isascii() and c.isprintable() else " " for c in text)
    return f"{state} {int(at)} {words.strip()}".rstrip() + "\n"


class VerdictFile:
    """Replaces the file by atomic rename, so that a reader sees an old line or a new one, never half."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.written = 0.0
        self.said = ("", "")

    def write(self, state: str, text: str) -> None:
        """Write at a change, and as a heartbeat. OSError when the file system has no room."""
        now = uptime()
        if (state, text) == self.said and 0 <= now - self.written < HEARTBEAT:
            return
        draft = self.path.with_name(f".{NAME}.new")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(handle, 0o644)
            os.write(handle, line(state, text, now).encode())
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        finally:
            os.close(handle)
        draft.rename(self.path)
        self.written, self.said = now, (state, text)
