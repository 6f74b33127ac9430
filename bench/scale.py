"""One controller and thousands of nodes: how soon a wave of faults is out of service, how soon jobs are back.

    python bench/scale.py [--nodes 12500] [--failing 1000] [--jobs 200] [--dir DIR]

As root. A real slurmctld with that many configured nodes that do not exist, and a controller; the nodes'
daemons are played by this program, which sends signed reports over HTTP as they do. Five measurements, in
one run: all nodes report at once (a restarted controller); all send their heartbeat, spread over 30 s (what
the controller costs then); some break within one second, each with an Xid of one of its eight GPUs (until
Slurm shows the last one drained, and how many commands that took); each of these has nine incidents more
(what the controller costs at rest then, and its answer to `status`); all InfiniBand ports of two real nodes
full of one-CPU jobs die (until the last of those jobs was requeued, and until the last one ran again).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import aiohttp
import psutil
from machine import machine
from testbed import calmly, slurm

from slurm_health import config, signing, wire
from slurm_health.client import ask
from slurm_health.model import Finding, Severity, Urgency
from slurm_health.sandbox.cluster import Sandbox

LANES = 64  # connections that this program sends over
REAL = 4
BUDGET = "[budget]\npercent = 20\nwindow_percent = 20\n"
WRAPPER = '#!/bin/sh\necho "$0 $*" >> {log}\nexec {program} "$@"\n'


class Crowd:
    """The nodes that do not exist, and what they say."""

    def __init__(self, box: Sandbox, nodes: int) -> None:
        self.config = config.load(str(box.layout.config))
        self.names = [f"g{number}" for number in range(1, nodes + 1)]
        self.signature = signing.signature("munge", str(box.layout.munge_socket))
        self.url = f"http://127.0.0.1:{self.config.addresses[0][1]}"
        self.waits: list[float] = []

    async def say(self, client: aiohttp.ClientSession, name: str, *opened: Finding) -> None:
        report = wire.NodeReport(name, boot="b", sent=time.time(), opened=opened, verdict="ok")
        body = wire.encode(report)
        for patience in (0.1, 0.5, 2.0, 5.0):
            seal = self.signature.sign(signing.payload("POST", "/v1/report", body))
            began = time.monotonic()
            with contextlib.suppress(aiohttp.ClientError):
                async with client.post("/v1/report", data=body, headers={"Authorization": seal}) as answer:
                    if answer.status == 200:
                        self.waits.append(time.monotonic() - began)
                        return
            await asyncio.sleep(patience)
        raise SystemExit(f"{name}: not heard")

    async def all_say(self, names: list[str], seconds: float = 0.0, *opened: Finding) -> None:
        """Each of them one report, spread over some seconds."""
        self.waits.clear()
        connector = aiohttp.TCPConnector(limit=LANES)
        began = time.monotonic()
        async with (
            aiohttp.ClientSession(self.url, connector=connector) as client,
            asyncio.TaskGroup() as all_,
        ):
            for number, name in enumerate(names):
                delay = began + seconds * number / len(names) - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                mine = [broken(found, name, number) for found in opened]
                all_.create_task(self.say(client, name, *mine))


def broken(found: Finding, name: str, number: int) -> Finding:
    """That finding on one of the node's GPUs."""
    device = f"0000:{number % 8:02x}:00.0"
    return replace(found, device=device, since=time.time(), moment=f"b/{name}/{found.code}")


XID = Finding(
    "GPU_XID_79",
    Severity.CRITICAL,
    "",
    "GPU has fallen off the bus",
    evidence="NVRM: Xid (PCI:0000:00:00): 79, GPU has fallen off the bus.",
    job=Urgency.NOW,
    lasting=False,
)


@contextlib.contextmanager
def counted(folder: Path) -> Iterator[Path]:
    """Slurm's commands, in a folder of their own, which note each call."""
    folder.mkdir()
    log = folder / "calls"
    log.touch()
    for name in ("scontrol", "sinfo", "squeue"):
        (folder / name).write_text(WRAPPER.format(log=log, program=shutil.which(name)))
        (folder / name).chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def calls(folder: Path, since: int = 0) -> Counter[str]:
    """Commands called, by what they do."""
    lines = (folder / "calls").read_text().splitlines()[since:]
    return Counter(
        "drain"
        if "State=DRAIN" in line
        else Path(line.split()[0]).name + " " + line.split()[1]
        if "scontrol" in line
        else Path(line.split()[0]).name
        for line in lines
    )


def drained(box: Sandbox) -> int:
    return sum(map(int, slurm(box, "sinfo", "-h", "-t", "drain", "-o", "%D").split()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=12500)
    parser.add_argument("--failing", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--heartbeat", type=float, default=30.0, help="seconds of heartbeats")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    print(f"{machine()}.")
    box = Sandbox(given.dir)
    with counted(given.dir.with_name(f"{given.dir.name}-bin")) as commands:
        lines = [
            "SlurmdTimeout=0",  # nobody asks whether they live
            f"NodeName=g[1-{given.nodes}] NodeAddr=127.0.0.1 Port=1 CPUs=8 State=UNKNOWN",
            f"MaxJobCount={given.jobs * 4 + 1000}",
        ]
        gpus = given.jobs // 8 + 1  # the sandbox gives a node four CPUs for each
        box.up(nodes=REAL, gpus=gpus, ports=1, nics=0, slurm_conf=lines, site_toml=BUDGET)
        try:
            more = box.layout.etc / "conf.d/bench.toml"
            more.parent.mkdir()
            more.write_text(f'[slurm]\nbin = "{commands}"\n')
            box.stop("controller")
            box.start("controller")
            run(box, given, commands)
        finally:
            box.down()


def run(box: Sandbox, given: argparse.Namespace, commands: Path) -> None:
    crowd = Crowd(box, given.nodes)
    process = psutil.Process(box.pid("controller"))

    def cpu() -> float:
        return sum(process.cpu_times()[:2])

    print(f"\n{given.nodes} nodes; {os.cpu_count()} cores for slurmctld, the controller and this program\n")
    print("| what | |\n| --- | --- |")
    spent, began = cpu(), time.monotonic()
    asyncio.run(crowd.all_say(crowd.names))
    took = time.monotonic() - began
    each = (cpu() - spent) / given.nodes * 1e3
    print(f"| all report at once | heard after {took:.1f} s, {each:.2f} ms of the controller's CPU each |")
    spent, began = cpu(), time.monotonic()
    asyncio.run(crowd.all_say(crowd.names, given.heartbeat))
    took = time.monotonic() - began
    rate, share = given.nodes / given.heartbeat, (cpu() - spent) / took * 100
    memory = process.memory_full_info().pss / 2**20
    median, worst = statistics.median(crowd.waits) * 1e3, max(crowd.waits) * 1e3
    print(
        f"| heartbeats, {rate:.0f} a second | {share:.0f} % of one core, {memory:.0f} MiB;"
        f" answered in {median:.1f} ms, worst {worst:.0f} ms |"
    )
    failing = random.Random(1).sample(crowd.names, given.failing)
    since = len((commands / "calls").read_text().splitlines())
    began = time.monotonic()
    asyncio.run(crowd.all_say(failing, 1.0, XID))
    sent = time.monotonic() - began
    calmly(lambda: drained(box) >= given.failing, 60)
    took = time.monotonic() - began
    made = calls(commands, since)
    print(
        f"| {given.failing} fail within a second (reports heard after {sent:.1f} s) |"
        f" {drained(box)} drained after {took:.1f} s, {made['drain']} calls for it,"
        f" {sum(made.values())} in all |"
    )
    worse = [replace(XID, code=f"GPU_XID_{code}") for code in (46, 48, 62, 64, 74, 94, 95, 119, 140)]
    asyncio.run(crowd.all_say(failing, 5.0, *worse))
    time.sleep(5)
    spent, began = cpu(), time.monotonic()
    time.sleep(20)
    share = (cpu() - spent) / (time.monotonic() - began) * 100
    times = []
    for _ in range(9):
        began = time.monotonic()
        status = ask(crowd.config, "GET", "/v1/status")
        times.append((time.monotonic() - began) * 1e3)
    print(
        f"| at rest with {status['open_incidents']} open incidents | {share:.0f} % of one core,"
        f" {process.memory_full_info().pss / 2**20:.0f} MiB;"
        f" `status` in {statistics.median(times):.0f} ms, worst {max(times):.0f} ms |"
    )
    jobs(box, given, crowd)
    print(f"| the controller's memory at the end | {process.memory_full_info().pss / 2**20:.0f} MiB |")


def jobs(box: Sandbox, given: argparse.Namespace, crowd: Crowd) -> None:
    """Two real nodes full of jobs lose their only link; two others stand by."""
    slurm(box, "scontrol", "update", "nodename=n[3-4]", "state=drain", "reason=spare")
    words = ["sbatch", "--parsable", "-N1", "-n1", "-o", "/dev/null", "--array", f"1-{given.jobs}"]
    array = slurm(box, *words, "--wrap", "sleep 900").strip()

    def seen(what: str) -> Counter[str]:
        return Counter(slurm(box, "squeue", "-h", "-r", "-j", array, "-O", f"{what}:20").split())

    if not calmly(lambda: seen("State")["RUNNING"] == given.jobs, 120):
        raise SystemExit(f"the jobs do not run: {seen('State')}")
    slurm(box, "scontrol", "update", "nodename=n[3-4]", "state=resume")
    began = time.monotonic()
    for node in ("n1", "n2"):
        box.inject(node, "ib-down", port=0)
    calmly(lambda: seen("RestartCnt")["1"] == given.jobs, 120)
    requeued = time.monotonic() - began
    calmly(lambda: seen("State")["RUNNING"] == given.jobs, 180)
    ran = time.monotonic() - began
    rows = [
        row for node in ("n1", "n2") for row in ask(crowd.config, "GET", f"/v1/incidents?node={node}&all=1")
    ]
    done = sorted(
        datetime.fromisoformat(act["done"])
        for row in rows
        for act in row["actions"]
        if (act["kind"], act["outcome"]) == ("requeue", "done")
    )
    rate = len(done) / (done[-1] - done[0]).total_seconds() if len(done) > 1 else 0.0
    print(
        f"| {given.jobs} jobs on two nodes whose links die |"
        f" requeued after {requeued:.1f} s, {rate:.0f} a second; running again after {ran:.1f} s;"
        f" {dict(seen('RestartCnt'))} restarts |"
    )


if __name__ == "__main__":
    main()
