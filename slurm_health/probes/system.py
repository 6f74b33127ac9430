"""What all of a host needs: processes that are not stuck with a GPU, numbers for more, services, a clock.

proc_pid_stat(5), proc_loadavg(5), https://docs.kernel.org/admin-guide/cgroup-v2.html, adjtimex(2)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from slurm_health.host import Host
from slurm_health.model import Reading

GPU = re.compile(r"nvidia\d+")
IDLE = 0.5  # a task that was in D state for the last minute makes a load average of 0.6 by itself
GROUPS = "sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice"  # cgroup v2 and v1


class System:
    """One machine. `services` are systemd units that should: "munge", "x.service"."""

    def __init__(self, host: Host, services: Sequence[str] = ()) -> None:
        self._host = host
        self._services = [name if "." in name else f"{name}.service" for name in services]
        self._waiting: dict[str, tuple[str, ...]] = {}

    def look(self) -> Iterator[Reading]:
        """`system.stuck`: whether a task has waited in the kernel (state D), without once running, since the
        last look, while it holds a GPU or stands in NVIDIA's driver; `system.ids`, percent of the process
        numbers in use; `system.service`, whether a service runs; `system.clock`, whether the kernel takes
        the clock for synchronised.
        """
        host = self._host
        load, tasks = _load(host.text("proc/loadavg"))
        if load is not None:
            yield from self._stuck(load)
        most = [
            number
            for name in ("pid_max", "threads-max")
            if (number := host.number(f"proc/sys/kernel/{name}")) is not None and number > 0
        ]
        if tasks is not None and most:
            limit = min(most)
            share = round(100 * tasks / limit, 1)
            yield Reading("system.ids", "", share, f"{tasks} tasks of {limit} (pid_max, threads-max)")
        for unit in self._services:
            if (running := self._runs(unit)) is not None:
                said = f"{unit} {'runs' if running else 'does not run'}"
                yield Reading("system.service", unit, running, said)
        if (error := host.clock_error()) is not None:
            said = "not synchronised" if error else "synchronised"
            yield Reading("system.clock", "", not error, f"adjtimex(2): the clock is {said}")

    def _stuck(self, load: float) -> Iterator[Reading]:
        before, self._waiting = self._waiting, {}
        stuck = []
        # at rest nobody waits, and the processes need not be looked through
        for pid in self._host.names("proc") if load > IDLE else ():
            for task, name, mark in self._waits(pid) if pid.isdigit() else ():
                self._waiting[task] = mark
                if before.get(task) == mark and (held := self._held(task)) is not None:
                    stuck.append(f"{name} (pid {pid}){held}")
        yield Reading("system.stuck", "", bool(stuck), f"in state D: {', '.join(stuck)}" if stuck else "")

    def _waits(self, pid: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """A process in state D, or what is left in it of one whose first thread has ended; and what changes
        as soon as it runs: its start and its switches.
        """
        state, name, threads, start = self._state(pid)
        tasks = [pid] if state == "D" else []
        if state == "Z" and threads > 1:
            tasks = [f"{pid}/task/{number}" for number in self._host.names(f"proc/{pid}/task")]
            tasks = [task for task in tasks if self._state(task)[0] == "D"]
        for task in tasks:
            status = self._host.text(f"proc/{task}/status") or ""
            yield task, name, (start, *(one for one in status.splitlines() if "ctxt_switches:" in one))

    def _state(self, task: str) -> tuple[str, str, int, str]:
        """Its state's letter, its name, how many threads it has and when it started."""
        text = self._host.text(f"proc/{task}/stat") or ""
        name, _, rest = text.partition("(")[2].rpartition(")")
        words = rest.split()
        if len(words) < 20 or not words[17].isdigit():
            return "", "", 0, ""
        return words[0], name, int(words[17]), words[19]

    def _held(self, task: str) -> str | None:
        """What a task has of a GPU; None: nothing."""
        folder = f"proc/{task}/fd"
        links = {self._host.link(f"{folder}/{number}") or "" for number in self._host.names(folder)}
        gpus = sorted(name for name in links if GPU.fullmatch(name))
        if gpus:
            return f", holds {' '.join(gpus)}"
        # on its way out it has closed its files, and hangs in the driver's part of it
        return ", in NVIDIA's driver" if "[nvidia" in (self._host.text(f"proc/{task}/stack") or "") else None

    def _runs(self, unit: str) -> bool | None:
        """Whether a unit has processes; None where that cannot be seen."""
        group = next((group for group in GROUPS if self._host.exists(group)), None)
        if group is None:
            return None
        if not self._host.exists(f"{group}/{unit}"):
            return False  # systemd takes the group of a unit that has ended away
        if events := self._host.text(f"{group}/{unit}/cgroup.events"):
            return "populated 1" in events.splitlines()
        return True if self._host.text(f"{group}/{unit}/cgroup.procs") else None


def _load(text: str | None) -> tuple[float | None, int | None]:
    """The load of the last minute and the number of tasks: "0.20 0.18 0.12 1/80 11206"."""
    words = (text or "").split()
    try:
        return float(words[0]), int(words[3].partition("/")[2])
    except (IndexError, ValueError):
        return None, None
