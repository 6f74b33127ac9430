"""What NVML tells of this machine's GPUs, each field once, and what asking costs: on a machine with a driver.

    python bench/gpu.py [--passes 100] [--library FILE] [--fake N]

Needs no root and changes nothing. `--fake N` asks the sandbox's library about N GPUs instead, and counts its
calls; that says what our side costs, not what a driver does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from machine import machine

from slurm_health.probes.gpu.board import EACH_PASS, LINK_COUNTS, LINK_ERRORS, LINK_RATES, SLOW
from slurm_health.probes.gpu.library import Library
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.library import build

CALLS = "SLURM_HEALTH_FAKE_NVML_CALLS"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--library", default="", help="another libnvidia-ml")
    parser.add_argument("--fake", type=int, metavar="N", help="GPUs of the sandbox's library")
    given = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        file = given.library
        if given.fake is not None:
            file = str(build(Path(folder) / "libnvidia-ml.so.1"))
            Machine.build(Path(folder) / "n1", "n1", gpus=given.fake, ports=0, nics=0)
            os.environ["SLURM_HEALTH_FAKE_NVML"] = f"{folder}/n1/nvml"
        library = Library(file)
        first = library.ask()
        if first["error"]:
            raise SystemExit(f"NVML: {first['error']}")
        walls, cpus = [], []
        for _ in range(given.passes):
            wall, cpu = time.perf_counter(), time.process_time()
            library.ask()
            walls.append((time.perf_counter() - wall) * 1000)
            cpus.append((time.process_time() - cpu) * 1000)
        calls: list[list[str]] = []
        if given.fake is not None:
            os.environ[CALLS] = f"{folder}/calls"
            for _ in range(SLOW):
                Path(os.environ[CALLS]).write_text("")
                library.ask()
                calls.append(Path(os.environ[CALLS]).read_text().split())
    boards = list(library.boards.values())
    said = {row[0]: row for row in first["readings"] if row[1] in ("", boards[0].device if boards else "")}
    fast, slow = [ms for n, ms in enumerate(walls, 1) if n % SLOW], walls[SLOW - 1 :: SLOW]
    print(f"{about}.\n{len(boards)} GPUs, driver {said['gpu.driver_version'][2]}.\n")
    print("| pass | median, ms | worst, ms |\n| --- | ---: | ---: |")
    for name, times in (("each", fast), (f"each {SLOW}th, with what changes slowly", slow)):
        print(f"| {name} | {statistics.median(times):.2f} | {max(times):.2f} |")
    print(f"\nCPU of a pass in the mean {statistics.mean(cpus):.2f} ms", end="")
    print(f": {statistics.mean(cpus) / 15000:.4%} of a core at one each 15 s.")
    if calls:
        few, many = sorted(calls, key=len)[0], sorted(calls, key=len)[-1]
        print(f"Calls of NVML: {len(few)} a pass, {len(many)} in each {SLOW}th.")
        names = Counter(many)
        print(f"Most often {', '.join(f'{name} {count}' for name, count in names.most_common(3))}.")
    print("\n| reading | value on the first GPU |\n| --- | --- |")
    for name, row in sorted(said.items()):
        hidden = name in ("gpu.uuid", "gpu.serial")
        print(f"| {name} | {'(read)' if hidden else row[2]} |")
    if boards:
        lacks = sorted(map(str, boards[0].without))
        print(f"\nNot supported by the first GPU: {', '.join(lacks) or 'nothing that was asked'}.")
    each = len(EACH_PASS) + len(boards[0].links if boards else ())
    more = sum(len(boards[0].links) + len(sums) for _, sums in LINK_ERRORS.values()) if boards else 0
    since = len(boards[0].links) * len((*LINK_COUNTS, *LINK_RATES)) if boards else 0
    print(f"Fields asked in one call: {each} a pass; {more} of NVLink errors in each {SLOW}th", end="")
    print(f" (from Blackwell on, {since} more).")


if __name__ == "__main__":
    main()
