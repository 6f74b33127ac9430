"""Runs probes beside the main loop: on threads, each call with a deadline.

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

RELIEF = 1.0  # seconds that a call may take before those that wait behind it get another thread

Call = Callable[[], Iterable[Reading] | None]
Calls = queue.SimpleQueue[tuple[str, Call] | None]


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
        self._desks: dict[str, _Worker] = {}
        self._out: dict[str, _Outstanding] = {}

    def fileno(self) -> int:
        """Readable when collect() has something from a probe that came back and has something to say."""
        return self._wake

    def start(self, name: str, call: Call, deadline: float, now: float, desk: str = "") -> bool:
        """Have call's readings fetched; False, and nothing done, while the last call of that name is out.

        A call that returns None has nothing new to say, and wakes nobody. Those of one desk are done one
        after the other: what is due together wakes one thread, not several that take turns. Without one, a
        call has its name's.
        """
        if name in self._out:
            return False
        self._out[name] = _Outstanding(now, deadline)
        desk = desk or name
        if desk not in self._desks:
            self._hire(desk, queue.SimpleQueue())
        self._desks[desk].calls.put((name, call))
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
        for desk, worker in list(self._desks.items()):
            if worker.holds_up(now):
                worker.relieved = True
                self._hire(desk, worker.calls)
        return reports

    def outstanding(self) -> dict[str, float]:
        """The probes that are out, and since when."""
        return {name: call.began for name, call in self._out.items()}

    def close(self) -> None:
        """Let idle threads end. Never waits."""
        for worker in self._desks.values():
            worker.calls.put(None)

    def _hire(self, desk: str, calls: Calls) -> None:
        self._desks[desk] = _Worker(f"probe {desk}", calls, self._came)
        self._desks[desk].start()

    def _came(self, report: Report, news: bool) -> None:
        """From a worker's thread."""
        self._done.put(report)
        if news:
            os.eventfd_write(self._wake, 1)


class _Worker(threading.Thread):
    """Does the calls of a desk, one after the other. A `relieved` one ends when its call comes back."""

    def __init__(self, name: str, calls: Calls, came: Callable[[Report, bool], None]) -> None:
        # a daemon thread: a probe that never returns must not keep the process
        super().__init__(name=name, daemon=True)
        self.calls, self.came = calls, came
        self.relieved = False
        self.since: float | None = None  # when the call that it is in began

    def holds_up(self, now: float) -> bool:
        """Whether others have waited too long for the present call."""
        since = self.since
        return since is not None and now - since > RELIEF and not self.calls.empty()

    def run(self) -> None:
        while not self.relieved and (task := self.calls.get()) is not None:
            name, call = task
            self.since = began = time.monotonic()
            try:
                found = call()
                report = Report(name, tuple(found or ()), "", time.monotonic() - began)
                news = found is not None
            except Exception as error:  # a probe's fault is a report, whatever it is
                what = f"{type(error).__name__}: {error}"
                report, news = Report(name, (), what, time.monotonic() - began), True
            self.since = None
            self.came(report, news)
