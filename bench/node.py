"""What the node's daemon costs at rest: CPU time and memory of all its processes; and how long a scan takes.

    python bench/node.py [--seconds 60] [--gpus 8] [--ports 9] [--nics 2] [--grow] [--dir DIR]

As root, on a sandbox of one node. CPU is what the scheduler counted for every thread of the daemon and of
its children over the span (/proc/PID/task/TID/schedstat, in nanoseconds). Memory is the proportional set size
(Pss in /proc/PID/smaps_rollup): a page that n processes share counts 1/n. Here a good many processes run the
same Python, on a node only these two may; so it is also summed up as if nobody else shared anything: what is
private to a process, and each file's shared pages once. A scan is a whole process, from its start to its end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from machine import machine

from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

Size = tuple[int, int, int]  # GPUs, InfiniBand ports, NICs
SCANS = 11
GROWING: tuple[Size, ...] = ((1, 1, 1), (4, 4, 2), (8, 9, 2), (16, 18, 2), (16, 36, 4))


def family(pid: int) -> list[psutil.Process]:
    daemon = psutil.Process(pid)
    return [daemon, *daemon.children(recursive=True)]


def cpu(processes: list[psutil.Process]) -> list[float]:
    """Seconds of CPU so far, by process."""
    seconds = []
    for process in processes:
        threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
        seconds.append(sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9)
    return seconds


def wakeups(processes: list[psutil.Process]) -> int:
    """Times that threads of these processes went to sleep by themselves so far."""
    total = 0
    for process in processes:
        for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
            line = next(x for x in status.read_text().splitlines() if x.startswith("voluntary_ctxt_switches"))
            total += int(line.split()[1])
    return total


def pss(process: psutil.Process) -> float:
    """MiB."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no Pss of {process.pid}: needs root and Linux 4.14")


def alone(processes: list[psutil.Process]) -> list[float]:
    """MiB of each process as if no other program shared anything with them: the first one of the family that
    maps a file pays for its pages."""
    paid: dict[tuple[str, str], int] = {}
    found = []
    for process in processes:
        kib, key = 0, ("", "")
        for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                key = (words[4], words[2]) if words[4] != "0" else ("", "")  # inode, offset
            elif words[0] in ("Private_Clean:", "Private_Dirty:"):
                kib += int(words[1])
            elif words[0] in ("Shared_Clean:", "Shared_Dirty:"):
                more = max(0, int(words[1]) - paid.get(key, 0)) if key[0] else int(words[1])
                paid[key] = paid.get(key, 0) + more
                kib += more
        found.append(kib / 1024)
    return found


def scan(box: Sandbox) -> list[tuple[float, float]]:
    """Seconds and CPU seconds of some full scans of the same machine, the shortest first."""
    hardware = box.layout.hardware("n1")
    environment = os.environ | {
        "SLURM_HEALTH_NVML_LIBRARY": str(box.layout.library),
        "SLURM_HEALTH_FAKE_NVML": str(hardware / "nvml"),
    }
    argv = [sys.executable, "-m", "slurm_health", "scan", "--root", str(hardware)]
    argv += ["--config", str(box.layout.config)]
    seconds = []
    for _ in range(SCANS):
        began, before = time.monotonic(), os.times()
        subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        spent = sum(after[2:4]) - sum(before[2:4])  # of children, as user and as system
        seconds.append((time.monotonic() - began, spent))
    return sorted(seconds)


@dataclass(frozen=True, slots=True)
class Process:
    """`cpu` in % of one core; memory in MiB: `pss`, and what it would be `alone`."""

    name: str
    cpu: float
    pss: float
    alone: float


@dataclass(frozen=True, slots=True)
class Rest:
    """What a daemon's processes cost at rest, wake-ups a second, and scans in seconds, of CPU too."""

    processes: list[Process]
    wakeups: float
    scans: list[tuple[float, float]]

    @property
    def scan(self) -> str:
        """The cells of the median scan, the longest, and the CPU seconds in the median."""
        seconds, spent = zip(*self.scans, strict=True)
        return f"{statistics.median(seconds):.2f} | {seconds[-1]:.2f} | {statistics.median(spent):.2f}"

    @property
    def all(self) -> Process:
        sums = [sum(getattr(one, what) for one in self.processes) for what in ("cpu", "pss", "alone")]
        return Process("all", *sums)


def at_rest(folder: Path, size: Size, seconds: float) -> Rest:
    gpus, ports, nics = size
    box = Sandbox(folder)
    box.up(nodes=1, gpus=gpus, ports=ports, nics=nics)
    try:
        pid = box.pid("node:n1")
        assert pid
        # The first passes learn what is there; after a minute without news links are only glanced at.
        await_until(lambda: len(family(pid)) > 1, 10)
        time.sleep(80)
        processes = family(pid)
        before, woken, began = cpu(processes), wakeups(processes), time.monotonic()
        time.sleep(seconds)
        span = time.monotonic() - began
        shares = [(now - then) / span * 100 for now, then in zip(cpu(processes), before, strict=True)]
        woken = wakeups(processes) - woken
        names = ["daemon", *["NVML worker"] * (len(processes) - 1)]
        together = [pss(process) for process in processes]
        rows = zip(names, shares, together, alone(processes), strict=True)
        return Rest([Process(*row) for row in rows], woken / span, scan(box))
    finally:
        box.down()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--ports", type=int, default=9)
    parser.add_argument("--nics", type=int, default=2)
    parser.add_argument("--grow", action="store_true", help="from 1 GPU and 1 port to 16 and 36 instead")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    print(f"{machine()}.")
    if given.grow:
        print(f"{given.seconds:.0f} s at rest for each size.\n")
        print("| GPUs | InfiniBand ports | NICs | CPU, % of one core | PSS, MiB | wake-ups a second ", end="")
        print("| a scan, s | worst | its CPU, s |\n|" + " ---: |" * 9)
        for size in GROWING:
            rest = at_rest(given.dir, size, given.seconds)
            print(f"| {size[0]} | {size[1]} | {size[2]} | {rest.all.cpu:.3f} | {rest.all.pss:.1f} ", end="")
            print(f"| {rest.wakeups:.1f} | {rest.scan} |", flush=True)
        return
    rest = at_rest(given.dir, (given.gpus, given.ports, given.nics), given.seconds)
    print(f"{given.gpus} GPUs, {given.ports} InfiniBand ports, {given.nics} NICs;", end=" ")
    print(f"{given.seconds:.0f} s at rest, {rest.wakeups:.1f} wake-ups a second.\n")
    print("| process | CPU, % of one core | PSS, MiB | the same if nobody else shared, MiB |")
    print("| --- | ---: | ---: | ---: |")
    for one in [*rest.processes, rest.all]:
        print(f"| {one.name} | {one.cpu:.3f} | {one.pss:.1f} | {one.alone:.1f} |")
    print(f"\n| a scan, s | worst | its CPU, s |\n| ---: | ---: | ---: |\n| {rest.scan} |")
    met = rest.all.cpu <= 0.2 and rest.all.pss <= 48 and rest.scans[SCANS // 2][0] <= 1
    print(f"\nGoal: 0.2 %, 48 MiB of PSS, a scan within 1 s: {'met' if met else 'missed'}.")


if __name__ == "__main__":
    main()
