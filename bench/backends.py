"""What each way to Slurm costs, and whether pyslurm's process grows.

    python bench/backends.py [--nodes 12500] [--jobs 200] [--repeats 50] [--calls 0] [--dir DIR]

As root, where pyslurm is installed for the running Slurm. A real slurmctld with four real nodes and that many
configured ones that do not exist; `--jobs` one-CPU jobs run on the four. Each operation is done by turns by
the commands and by pyslurm. `--calls 100000` asks pyslurm's process that often (nodes, one node, jobs, jobs
of a node, a job that does not exist; each thousandth time a drain and a resume) and shows its memory and its
files.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
from machine import machine
from testbed import calmly, slurm

from slurm_health.sandbox.cluster import Sandbox
from slurm_health.slurm import Rejected
from slurm_health.slurm.api import Api
from slurm_health.slurm.scontrol import Commands

REAL = 4
Act = Callable[[], Awaitable[object]]


async def timed(act: Act) -> float:
    began = time.perf_counter()
    await act()
    return (time.perf_counter() - began) * 1e3


def row(what: str, seen: list[list[float]]) -> None:
    cells = [f"{statistics.median(one):.1f} | {max(one):.1f}" if one else " | " for one in seen]
    print(f"| {what} | {' | '.join(cells)} |", flush=True)


async def costs(box: Sandbox, backends: list[Commands], given: argparse.Namespace) -> None:
    names = [f"g{number}" for number in range(1, given.nodes + 1)] or ["n4"]
    some = names[:: max(1, len(names) // 1000)][:1000]
    labels = slurm(box, "squeue", "-h", "-r", "-o", "%F_%K").split()
    print(f"\n{given.nodes} absent nodes, {len(labels)} jobs; milliseconds\n")
    print("| what | " + " | ".join(f"{one.name}, median | worst" for one in backends) + " |")
    print("| --- |" + " ---: |" * (2 * len(backends)))

    async def measure(what: str, make: Callable[[Commands], Act], after: Act | None = None) -> None:
        seen: list[list[float]] = [[] for _ in backends]
        for _ in range(given.repeats):
            for number, backend in enumerate(backends):
                seen[number].append(await timed(make(backend)))
                if after:
                    await after()
        row(what, seen)

    serial = iter(range(10**9))

    def drain(backend: Commands, which: list[str]) -> Act:
        reason = f"slurm-health: bench {next(serial)}"
        return lambda: backend.drain(which, reason)

    first = backends[0]
    jobs = sorted((await first.jobs_on(["n1"])), key=lambda job: job.id)
    await measure("load all nodes", lambda backend: backend.nodes)
    await measure("load one node", lambda backend: lambda: backend.nodes(names[:1]))
    await measure("the jobs of one node", lambda backend: lambda: backend.jobs_on(["n1"]))
    await measure("one job", lambda backend: lambda: backend.jobs([jobs[0].id]))
    await measure(
        "drain one node", lambda backend: drain(backend, names[:1]), lambda: first.resume(names[:1])
    )
    if len(some) > 1:
        what = f"drain {len(some):,} nodes in one call"
        await measure(what, lambda backend: drain(backend, some), lambda: first.resume(some))
    seen: list[list[float]] = [[] for _ in backends]
    for number, label in enumerate(labels[: 2 * given.repeats]):
        which = number % len(backends)
        seen[which].append(await timed(lambda label=label, which=which: backends[which].requeue(label, True)))
    row("requeue a job (`scontrol` in both)", seen)


async def leaks(api: Api, calls: int) -> None:
    number = (await api.jobs_on(["n1"]))[0].id
    acts: list[Act] = [
        api.nodes,
        lambda: api.nodes(["n1"]),
        lambda: api.jobs([number]),
        lambda: api.jobs_on(["n1"]),
        lambda: api.jobs([99999999]),
        lambda: api.comment("99999999"),
    ]
    process = api.worker.process
    assert process
    child = psutil.Process(process.pid)
    print(f"\n{calls} calls\n\n| calls | RSS, MiB | files | sockets | calls a second |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    began, last = time.monotonic(), 0
    for done in range(calls + 1):
        if done in (0, 1000) or done % (calls // 10) == 0:
            rate = (done - last) / (time.monotonic() - began)
            rss = child.memory_info().rss / 2**20
            links = len(child.net_connections())
            print(f"| {done:,} | {rss:.1f} | {child.num_fds()} | {links} | {rate:.0f} |", flush=True)
            began, last = time.monotonic(), done
        if done % 1000 == 999:
            await api.drain(["n4"], f"slurm-health: bench {done}")
            await api.resume(["n4"])
        try:
            await acts[done % len(acts)]()
        except Rejected as error:
            assert "Invalid job id" in str(error)
    ours = psutil.Process().num_fds()
    print(f"\nthe same process all the time: {process is api.worker.process}; files of its parent: {ours}")


async def run(box: Sandbox, given: argparse.Namespace) -> None:
    os.environ["SLURM_CONF"] = str(box.layout.slurm_conf)
    async with Api(deadline=60, auto=True) as api:
        await api.site()
        print(f"Slurm by {api.name}: {api.why}.")
        if api.name != "pyslurm":
            raise SystemExit("nothing to compare with")
        if given.repeats:
            await costs(box, [Commands(deadline=60), api], given)
        if given.calls:
            await leaks(api, given.calls)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=12500)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    print(f"{machine()}.")
    box = Sandbox(given.dir)
    lines = ["SlurmdTimeout=0"]  # nobody asks whether they live
    if given.nodes:
        lines.append(f"NodeName=g[1-{given.nodes}] NodeAddr=127.0.0.1 Port=1 CPUs=8 State=UNKNOWN")
    gpus = given.jobs // REAL // 8 + 1  # the sandbox gives a node eight CPUs for each
    box.up(nodes=REAL, gpus=gpus, ports=0, nics=0, slurm_conf=lines, health=False)
    try:
        words = ["sbatch", "--parsable", "-N1", "-n1", "-o", "/dev/null", "--array", f"1-{given.jobs}"]
        array = slurm(box, *words, "--wrap", "sleep 3600").strip()

        def running() -> bool:
            return len(slurm(box, "squeue", "-h", "-r", "-t", "R", "-j", array).split("\n")) > given.jobs

        if not calmly(running, 120):
            raise SystemExit("the jobs do not run")
        asyncio.run(run(box, given))
    finally:
        box.down()


if __name__ == "__main__":
    main()
