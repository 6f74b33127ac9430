"""What the node's daemon costs at rest: CPU time and memory of all its processes.

    python bench/node.py [--seconds 60] [--gpus 8] [--ports 9] [--nics 2] [--grow] [--dir DIR]

As root, on a sandbox of one node. CPU is what the scheduler counted for every thread of the daemon and of
its children over the span (/proc/PID/task/TID/schedstat, in nanoseconds). Memory is the proportional set size
(Pss in /proc/PID/smaps_rollup): a page that n processes share counts 1/n. Here a good many processes run the
same Python, on a node only these two may; so it is also summed up as if nobody else shared anything: what is
private to a process, and each file's shared pages once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import psutil

from prolog import machine
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

Size = tuple[int, int, int]  # GPUs, InfiniBand ports, NICs
Row = tuple[str, float, float, float]
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


def at_rest(folder: Path, size: Size, seconds: float) -> tuple[list[Row], float]:
    """Of each process its name, CPU (% of one core), PSS and what it would be alone (MiB); and wake-ups a
    second."""
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
        names = ["daemon", *["NVML worker"] * (len(processes) - 1)]
        together = [pss(process) for process in processes]
        rows = [*zip(names, shares, together, alone(processes), strict=True)]
        return rows, (wakeups(processes) - woken) / span
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
        print("| GPUs | InfiniBand ports | NICs | CPU, % of one core | PSS, MiB |")
        print("| ---: | ---: | ---: | ---: | ---: |")
        for size in GROWING:
            rows, _ = at_rest(given.dir, size, given.seconds)
            share, some = sum(row[1] for row in rows), sum(row[2] for row in rows)
            print(f"| {size[0]} | {size[1]} | {size[2]} | {share:.3f} | {some:.1f} |", flush=True)
        return
    rows, wakes = at_rest(given.dir, (given.gpus, given.ports, given.nics), given.seconds)
    print(f"{given.gpus} GPUs, {given.ports} InfiniBand ports, {given.nics} NICs;", end=" ")
    print(f"{given.seconds:.0f} s at rest, {wakes:.0f} wake-ups a second.\n")
    print("| process | CPU, % of one core | PSS, MiB | the same if nobody else shared, MiB |")
    print("| --- | ---: | ---: | ---: |")
    whole = ("all", *(sum(row[column] for row in rows) for column in (1, 2, 3)))
    for who, share, some, all_of_it in [*rows, whole]:
        print(f"| {who} | {share:.3f} | {some:.1f} | {all_of_it:.1f} |")
    met = whole[1] <= 0.2 and whole[2] <= 48
    print(f"\nGoal: 0.2 % and 48 MiB of PSS: {'met' if met else 'missed'}.")


if __name__ == "__main__":
    main()
