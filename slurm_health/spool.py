"""What a node found and the controller has not yet receipted: on disk, in order, bounded."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from slurm_health import wire
from slurm_health.model import Finding, Severity

log = logging.getLogger(__name__)

MOST = 1000  # findings: some 300 KB at their largest


class Spool:
    """A file of findings, one JSON line each. When it is full, warnings go before critical ones, old before
    new. A disk that cannot be written costs durability, not the findings: they stay in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0
        self.waiting: dict[str, Finding] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        self.sound = not text or text.endswith("\n")  # the file holds what waits, in whole lines
        for line in text.splitlines():
            try:
                found = wire.finding(json.loads(line))
            except (ValueError, TypeError, AttributeError, RecursionError):
                continue  # torn by a crash: the kernel log or the next pass brings it again
            self.waiting[found.moment] = found

    def add(self, findings: Iterable[Finding]) -> bool:
        """Keep findings that are new here; whether any was. On disk when this returns."""
        new = {found.moment: found for found in findings if found.moment not in self.waiting}
        if not new:
            return False
        self.waiting |= new
        if len(self.waiting) > MOST:
            self._drop(len(self.waiting) - MOST)
            self.sound = False
        if self.sound:
            self._append(new.values())
        else:
            self._write()
        return True

    def receipted(self, moments: Iterable[str]) -> None:
        """The controller has these."""
        done = [moment for moment in moments if self.waiting.pop(moment, None)]
        if done:
            self._write()

    def _drop(self, many: int) -> None:
        order = sorted(self.waiting.values(), key=lambda one: (one.severity is Severity.CRITICAL, one.since))
        for found in order[:many]:
            del self.waiting[found.moment]
        self.dropped += many
        log.error("spool full: %d findings dropped so far", self.dropped)

    def _append(self, findings: Iterable[Finding]) -> None:
        self.sound = self._save(os.O_APPEND, self.path, findings)

    def _write(self) -> None:
        draft = self.path.with_name(f"{self.path.name}.new")
        self.sound = self._save(os.O_TRUNC, draft, self.waiting.values())
        if self.sound:
            draft.rename(self.path)

    def _save(self, how: int, path: Path, findings: Iterable[Finding]) -> bool:
        left = "".join(json.dumps(wire.plain(found)) + "\n" for found in findings).encode()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o640)
            try:
                while left:  # a disk that fills up takes a part, and says so only when asked again
                    left = left[os.write(handle, left) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            log.error("spool %s: %s", path, error.strerror)
            return False
        return True
