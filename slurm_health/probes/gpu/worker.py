"""The daemon's side of the process that NVML lives in: no threads, never two of them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

from slurm_health.host import Host
from slurm_health.model import Reading, Report, Value
from slurm_health.probes.gpu.pci import pci
from slurm_health.probes.pcie import Bus

LIBRARY = "SLURM_HEALTH_NVML_LIBRARY"  # in the environment: another libnvidia-ml file
PATIENCE = 60.0  # seconds that a hung process keeps after its deadline, before it is told to end
GRACE = 10.0  # seconds between telling it and killing it


class Worker:
    """Asks NVML through a process of its own. All times are time.monotonic(). Call it from the main thread.

    `library` names another libnvidia-ml file; `folder` is where the process is noted, so that a restarted
    daemon does not start a second one; `expected` says that this node should have GPUs, so that a driver that
    cannot be talked to is a fault even with none on PCI.
    """

    def __init__(
        self, host: Host, library: str = "", deadline: float = 10.0, folder: Path | None = None,
        expected: bool = False,
    ) -> None:  # fmt: skip
        self.host, self.bus = host, Bus(host)
        self.library = library
        self.deadline = deadline
        self.expected = expected
        self.note = folder / "gpu-worker.pid" if folder else None
        self._epoll = select.epoll()
        self._process: _Process | None = None
        self._orphan = _Process.noted(self.note) if self.note else None
        self._stdin = self._stdout = -1
        self._buffer = b""
        self._asked: float | None = None
        self._number = 0
        self._told: float | None = None  # when SIGTERM was sent
        self._reported: float | None = None

    def fileno(self) -> int:
        """What to poll for an answer. Constant, also when the process is another one."""
        return self._epoll.fileno()

    def ask(self, now: float) -> None:
        """Ask, starting the process when there is none. Nothing happens while an answer is outstanding."""
        if self._orphan is not None:
            if self._orphan.alive():
                if self._asked is None:
                    self._asked = now
                    self._orphan.signal(signal.SIGTERM)
                return
            self._orphan = None
            self._settle()
        if self._asked is not None:
            return
        if self._process is None:
            self._start()
        self._number += 1
        self._asked = now
        with contextlib.suppress(OSError):  # it has ended: answer() finds that out
            os.write(self._stdin, b"%d\n" % self._number)

    def answer(self, now: float) -> Report | None:
        """The answer, when all of it is there, or why there will be none. For when fileno() is readable."""
        if self._stdout < 0:
            return None
        ended = False
        while True:
            try:
                data = os.read(self._stdout, 65536)
            except BlockingIOError:
                break
            if not data:
                ended = True
                break
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        asked = self._asked
        report = None
        for line in lines:
            report = self._report(line, now) or report
        if ended:
            how = self._reap()
            if report is None and asked is not None:
                self._settle()
                report = Report("gpu", tuple(pci(self.bus)), f"the NVML process ended ({how})", now - asked)
        return report

    def overdue(self, now: float) -> Report | None:
        """A report that the driver hangs, once the deadline has passed and then once a deadline.

        Also deals with the process that hangs: left in peace for a minute (it may come back), then told to
        end, killed only if that did nothing. Another is started only when it is gone.
        """
        if self._asked is None or now - self._asked <= self.deadline:
            return None
        self._press(now)
        if self._asked is None:
            return None
        if self._reported is not None and now - self._reported < self.deadline:
            return None
        self._reported = now
        evidence = f"no answer from NVML for {self.deadline:g} s"
        hung = Reading("gpu.driver", "", "hung", evidence)
        return Report("gpu", (hung, *pci(self.bus)), "", now - self._asked)

    @property
    def pid(self) -> int:
        """The process, 0 when there is none."""
        return self._process.pid if self._process else 0

    def stop(self) -> bool:
        """End the process: SIGTERM, then SIGKILL when that did nothing in 1 s. Whether it is gone (1.5 s)."""
        process = self._process or self._orphan
        gone = True
        if process is not None:
            process.signal(signal.SIGTERM)
            gone = process.gone(1.0)
            if not gone:
                process.signal(signal.SIGKILL)
                gone = process.gone(0.5)
        self._forget(gone)
        self._epoll.close()
        return gone

    def _start(self) -> None:
        """posix_spawn: no fork of a daemon's memory, no import of subprocess."""
        above, below = os.pipe2(os.O_CLOEXEC)
        outer, inner = os.pipe2(os.O_CLOEXEC)
        package = str(Path(__file__).resolve().parents[3])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        if self.library:
            environment[LIBRARY] = self.library
        arguments = [sys.executable, "-s", "-m", "slurm_health.probes.gpu.library", str(os.getpid())]
        actions = [(os.POSIX_SPAWN_DUP2, above, 0), (os.POSIX_SPAWN_DUP2, inner, 1)]
        try:
            pid = os.posix_spawn(
                sys.executable, arguments, environment, file_actions=actions,
                setsigmask=[], setsigdef=[signal.SIGTERM, signal.SIGPIPE],
            )  # fmt: skip
        except BaseException:
            os.close(below)
            os.close(outer)
            raise
        finally:
            os.close(above)
            os.close(inner)
        self._process = _Process(pid)
        self._process.write(self.note)
        self._stdin, self._stdout = below, outer
        os.set_blocking(outer, False)
        self._epoll.register(outer, select.EPOLLIN)
        self._buffer = b""

    def _report(self, line: bytes, now: float) -> Report | None:
        asked = self._asked if self._asked is not None else now
        try:
            said = json.loads(line)
            readings = [_reading(*row) for row in said["readings"]]
            failure, number = str(said["error"]), int(said["ask"])
        except (ValueError, KeyError, TypeError):
            return None  # a library that prints to standard output
        if number != self._number:
            return None
        self._settle()
        bus = list(pci(self.bus))
        error = ""
        if not failure:
            readings.insert(0, Reading("gpu.driver", "", "ok"))
        elif self._driver_expected(bus):
            readings.insert(0, Reading("gpu.driver", "", "failed", failure))
        elif bus:
            error = f"GPUs on PCI without NVIDIA's driver; NVML: {failure}"
        return Report("gpu", (*readings, *bus), error, now - asked)

    def _driver_expected(self, bus: list[Reading]) -> bool:
        """GPUs that the site gave to a virtual machine or to nouveau need no NVML."""
        if self.expected:
            return True
        if any(reading.name == "gpu.kernel_driver" and reading.value == "nvidia" for reading in bus):
            return True
        taken = {reading.device for reading in bus if reading.name == "gpu.kernel_driver"}
        free = any(reading.name == "gpu.on_pci" and reading.device not in taken for reading in bus)
        return free and self.host.exists("sys/module/nvidia")

    def _settle(self) -> None:
        self._asked = self._told = self._reported = None

    def _press(self, now: float) -> None:
        process = self._orphan or self._process
        if process is None or self._asked is None:
            return
        if not process.alive():
            self._forget(True)
            self._orphan = None
            self._settle()
        elif self._told is None:
            if now - self._asked > self.deadline + PATIENCE:
                process.signal(signal.SIGTERM)
                self._told = now
        elif now - self._told > GRACE:
            process.signal(signal.SIGKILL)

    def _reap(self) -> str:
        """How the process that closed its output ended."""
        process = self._process
        if process is not None and not process.gone(0.5):
            process.signal(signal.SIGTERM)
            if not process.gone(0.5):
                self._orphan = process  # it cannot be ended; no other is started beside it
        how = process.how if process is not None else ""
        self._forget(self._orphan is None)
        return how

    def _forget(self, gone: bool) -> None:
        for fd in (self._stdin, self._stdout):
            if fd >= 0:
                if fd == self._stdout:
                    self._epoll.unregister(fd)
                os.close(fd)
        self._stdin = self._stdout = -1
        self._process = None
        if gone and self.note:
            self.note.unlink(missing_ok=True)


def _reading(name: str, device: str, value: Value, evidence: str, pid: int = 0) -> Reading:
    if not isinstance(value, str | int | float | bool):
        raise TypeError(value)
    return Reading(name, device, value, evidence, pid=pid)


class _Process:
    """One process, known by number and start time, so that a number used again is not taken for it."""

    def __init__(self, pid: int, started: str = "") -> None:
        self.pid = pid
        self.started = started or _started(pid)
        self.how = ""

    @classmethod
    def noted(cls, note: Path) -> _Process | None:
        """The process that an earlier daemon noted, when it is still there."""
        try:
            pid, started = note.read_text().split()
            process = cls(int(pid), started)
        except (OSError, ValueError):
            return None
        # waitpid(2) means others by 0, 1 and below; a number beyond the kernel's largest is no process
        return process if 1 < process.pid <= 2**22 and process.alive() else None

    def write(self, note: Path | None) -> None:
        if note is not None:
            # a full or read-only folder costs the protection against a second process, no more
            with contextlib.suppress(OSError):
                note.write_text(f"{self.pid} {self.started}\n")

    def alive(self) -> bool:
        """Whether it still runs; a zombie of ours is reaped and counts as gone."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # not ours, or reaped already
            return bool(self.started) and _started(self.pid) == self.started
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self.how = f"signal {-code}" if code < 0 else f"exit status {code}"
            self.started = ""
        return not pid

    def gone(self, seconds: float) -> bool:
        """Wait until it is gone, at most so long."""
        end = time.monotonic() + seconds
        pause = 0.001
        while self.alive():
            if time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        return True

    def signal(self, number: int) -> None:
        """Send it a signal; through a pidfd that is checked after it was opened, never to a later process."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if self.started and _started(self.pid) == self.started:
                signal.pidfd_send_signal(fd, number)
        except OSError:
            pass
        finally:
            os.close(fd)


def _started(pid: int) -> str:
    """A process's start time in clock ticks since boot (proc_pid_stat(5), field 22), "" when it is gone."""
    stat = Host().text(f"proc/{pid}/stat")
    fields = stat.rpartition(")")[2].split() if stat else []
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""
