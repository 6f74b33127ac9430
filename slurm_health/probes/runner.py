"""Runs probes beside the main loop: each on a thread of its own, each call with a deadline.

A call that hangs (a driver may, in sysfs too) costs its thread and nothing else: it is reported, not started
again while it is out, and does not hold up the process's exit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from slurm_health.model import Reading, Report

Call = Callable[[], Iterable[Reading]]


@dataclass(slots=True)
class _Outstanding:
    began: float
    deadline: float
    told: bool = False


class Runner:
    """Probes on threads. All times are time.monotonic(). Use it from one thread."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._done: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._desks: dict[str, queue.SimpleQueue[Call | None]] = {}
        self._out: dict[str, _Outstanding] = {}

    def fileno(self) -> int:
        """Readable when collect() has something from a probe that came back."""
        return self._wake

    def start(self, name: str, call: Call, deadline: float, now: float) -> bool:
        """Have call's readings fetched; False, and nothing done, while the last call of that name is out."""
        if name in self._out:
            return False
        self._out[name] = _Outstanding(now, deadline)
        desk = self._desks.get(name)
        if desk is None:
            desk = self._desks[name] = queue.SimpleQueue()
            # a daemon thread: a probe that never returns must not keep the process
            threading.Thread(target=self._work, args=(name, desk), name=f"probe {name}", daemon=True).start()
        desk.put(call)
        return True

    def collect(self, now: float) -> list[Report]:
        """What came back since, and once for each call whose deadline has passed a report that says so.

        What comes back late is a report like any other.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        reports = []
        while True:
            try:
                report = self._done.get_nowait()
            except queue.Empty:
                break
            self._out.pop(report.probe, None)
            reports.append(report)
        for name, call in self._out.items():
            if not call.told and now - call.began > call.deadline:
                call.told = True
                reports.append(Report(name, (), f"no answer within {call.deadline:g} s", now - call.began))
        return reports

    def outstanding(self) -> dict[str, float]:
        """The probes that are out, and since when."""
        return {name: call.began for name, call in self._out.items()}

    def close(self) -> None:
        """Let idle threads end. Never waits."""
        for desk in self._desks.values():
            desk.put(None)

    def _work(self, name: str, desk: queue.SimpleQueue[Call | None]) -> None:
        while (call := desk.get()) is not None:
            began = time.monotonic()
            try:
                report = Report(name, tuple(call()), "", time.monotonic() - began)
            except Exception as error:  # a probe's fault is a report, whatever it is
                what = f"{type(error).__name__}: {error}"
                report = Report(name, (), what, time.monotonic() - began)
            self._done.put(report)
            os.eventfd_write(self._wake, 1)
