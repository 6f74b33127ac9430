"""What must outlive a restart of the node's daemon: a few small files in one folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class State:
    """What cannot be read was never written. A full disk costs memory over a restart, nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)

    def text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def value(self, name: str) -> object:
        """The JSON value in a file, None where there is none."""
        try:
            value: object = json.loads(self.text(name) or "null")
        except (ValueError, RecursionError):
            return None
        return value

    def save(self, name: str, text: str, synced: bool = False) -> None:
        """Whole or not at all. `synced`: it must outlive a loss of power, too."""
        path = self.folder / name
        draft = path.with_name(f".{name}")
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                if synced:
                    file.flush()
                    os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            log.error("%s: %s", path, error.strerror)
