"""One daemon of the sandbox: started detached, remembered in a file, ended by exactly who it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from slurm_health.sandbox import SandboxError

# Signals that Python or a caller may have changed and that a daemon must get in their first state.
_DEFAULT_SIGNALS = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "PIPE", "USR1", "USR2")]
_TICK = 0.02  # seconds between two looks at a condition that the kernel does not announce


def await_until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_TICK)
    return True


def identity(pid: int) -> int | None:
    """When the process began, in clock ticks since boot, None where none lives: a zombie does not.

    Field 22 of /proc/PID/stat (proc(5)); unlike a time of day it stays the same when the clock is set.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def end(processes: Iterable[tuple[int, int]], patience: float) -> None:
    """SIGTERM to each (pid, identity), SIGKILL to those that live on after `patience` seconds."""
    condemned = list(processes)

    def living() -> list[int]:
        return [pid for pid, born in condemned if identity(pid) == born]

    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        for pid in living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)  # a stopped process cannot end
        if await_until(lambda: not living(), seconds):
            return


class Daemon:
    """A daemon known by name. How to start it, and who it is, stand in `folder`/`name`.json."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._file = folder / f"{name}.json"

    @property
    def record(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return record

    @property
    def known(self) -> bool:
        return self._file.exists()

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        record = self.record
        pid, born = record.get("pid"), record.get("born")
        return int(pid) if pid and born is not None and identity(pid) == born else None

    def describe(self, argv: list[str], env: Mapping[str, str], log: Path, output: Path) -> None:
        """Note how to start it. `log` is what it writes itself, `output` gets its stdout and stderr."""
        self._note({"argv": argv, "env": dict(env), "log": str(log), "output": str(output)})

    def start(self) -> int:
        """Start it in a session of its own and in /, so that it outlives and holds up nobody."""
        if running := self.pid:
            return running
        record = self.record
        if not record:
            raise SandboxError(f"there is no daemon {self.name} in this sandbox")
        began = time.time()
        output = os.open(record["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", 'cd / && exec "$@"', "sh", *record["argv"]],
                record["env"],
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=_DEFAULT_SIGNALS,
            )
        except OSError as error:
            raise SandboxError(f"cannot start {record['argv'][0]}: {error.strerror}") from error
        finally:
            os.close(output)
            os.close(null)
        self._note(record | {"pid": pid, "born": identity(pid), "started": began})
        return pid

    def stop(self, number: int = signal.SIGTERM, patience: float = 10.0) -> None:
        """Send the signal and, where it ends a process, wait until it has ended."""
        record = self.record
        pid = self.pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGQUIT) and not await_until(
            lambda: identity(pid) != record["born"], patience
        ):
            raise SandboxError(f"{self.name} (pid {pid}) lives {patience:.0f} s after signal {int(number)}")

    def last_words(self, lines: int = 12) -> str:
        """The end of its log, or of its output where it has written no log, headed by the file's name."""
        record = self.record
        for name in ("log", "output"):
            with contextlib.suppress(OSError, KeyError):
                text = Path(record[name]).read_text(errors="replace").rstrip().splitlines()[-lines:]
                if text:
                    return "\n  ".join([f"{record[name]}:", *text])
        return f"{record.get('log', self.name)} is empty"

    def _note(self, record: dict[str, Any]) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(record, indent=1))
        fresh.replace(self._file)
