"""Time from a fault to the job running again, with idle spares and with a full queue, beside stock Slurm.

    python bench/place.py [--rounds 300] [--stock 12] [--lanes 6] [--only plain] [--dir DIR]

As root. Each round: a fresh job of two whole nodes (a batch script and one step), whose second node breaks at
any moment of a second: Xid 79 in the kernel log. The clock stops when its batch script writes its first line
again. Lanes run side by side, each in a partition of four nodes of its own.

`idle spares`: the lane's two other nodes have nothing to do. `a full queue`: they run jobs of one node and 3
to 9 s, and a thousand more of these wait, with a higher priority than the job: it gets the next node that
comes free, or waits behind them all. The time is parted where as many of them have ended as the job lacks
nodes: one, or two where a plain job died, as Slurm then gives its good node away, too.

`plain`: in every second round the job's task on the broken node dies in the same instant. `expedited` (Slurm
25.11 or later, else left out): jobs ask for --requeue=expedite, and the task always dies, for one that lives
on is requeued as any other.

Stock Slurm is a sandbox without us that knows of the fault at its very instant: an admin's script drains the
node and requeues the job, or, where Slurm expedites, the epilog fails on the broken node from then on.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ClusterShell.NodeSet import NodeSet
from machine import machine
from testbed import BUDGET, HEAD, START_WITHIN, Job, ask_status, by_hand, calmly, figures, slurm, up

from slurm_health import config
from slurm_health.client import ask
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

BACK_WITHIN = 180.0  # seconds; a job that is not back by then counts as lost
NODES = 4  # of a lane, two for its job
EXPEDITES = (25, 11)  # from this release on
# The queue stands before the job that comes back, which stood before the queue when it was fresh.
FRESH = ["-N2", "--ntasks-per-node=1", "--nice=-10000"]
QUEUE = ["-N1", "--nice=-5000", "--array=0-999", "--time=1", "-o", "/dev/null"]
SLEEP = "sleep $((3 + 5 * SLURM_ARRAY_TASK_ID % 7))"
# Backfill plans in minutes, and would give away what waits for the first in the queue for seconds.
SCHEDULER = "SchedulerParameters=batch_sched_delay=0,bf_resolution=1"


@dataclass(frozen=True)
class Setting:
    expedited: bool
    full: bool
    ours: bool

    @property
    def kind(self) -> str:
        return "expedited" if self.expedited else "plain"

    @property
    def epilog(self) -> bool:
        """Whether an epilog of the bench's own tells Slurm which node is broken."""
        return self.expedited and not self.ours

    def __str__(self) -> str:
        place, who = "a full queue" if self.full else "idle spares", "with us" if self.ours else "stock"
        return f"{self.kind}, {place}, {who}"


@dataclass
class Round:
    dies: bool
    fault: float = 0.0  # epoch
    free: float = 0.0  # as many of the queue's jobs had ended as it lacked nodes
    running: float = 0.0
    failure: str = ""

    @property
    def seconds(self) -> float:
        return self.running - self.fault

    @property
    def waited(self) -> float:
        """Until nodes came free: whatever is done, it takes so long."""
        return self.free - self.fault

    @property
    def rest(self) -> float:
        return self.running - self.free


class Lane:
    """Rounds one after the other, in a partition of its own. `over`: somebody has had enough."""

    def __init__(self, box: Sandbox, setting: Setting, name: str, over: threading.Event) -> None:
        self.box, self.setting, self.name, self.over = box, setting, name, over
        self.config = config.load(str(box.layout.config)) if setting.ours else config.Config()
        self.ends = box.folder / f"ends-{name}"  # of the queue's jobs
        self.chance = random.Random(name)
        self.job: Job | None = None

    def run(self, rounds: int) -> list[Round]:
        done: list[Round] = []
        while len(done) < rounds and not self.over.is_set():
            one = Round(dies=self.setting.expedited or len(done) % 2 == 1)
            done.append(one)
            try:
                self._measure(one, self._fresh(), gpu=len(done) % 8)
            except Exception as error:  # a round that fails is counted, the others go on
                one.failure = f"{type(error).__name__}: {error}"
            if not self.over.is_set() and (one.failure or len(done) % 10 == 0):
                print(f"{self.setting}, {self.name}, {len(done)}: {one}", file=sys.stderr, flush=True)
        return done

    def _fresh(self) -> Job:
        """A job that runs, on the nodes of the one before; the others are as they should be."""
        common = ["-p", self.name, "--exclusive"]
        expedite = ["--requeue=expedite"] if self.setting.expedited else []
        before, self.job = self.job, Job.submit(self.box, *common, *FRESH, *expedite)
        job = self.job
        if before:
            slurm(self.box, "scancel", before.number)
        if not (self._until(job.starts, START_WITHIN) and job.await_step()):
            raise TimeoutError(f"job {job.number} never started: {job.shown()}")
        slurm(self.box, "scontrol", "update", f"JobId={job.number}", "Nice=0")
        if self.setting.full and not before:
            wrapped = f"{SLEEP}; date +%s.%N >>{self.ends}"
            slurm(self.box, "sbatch", *common, *QUEUE, "--wrap", wrapped)
        self._heal()
        spares = 0 if self.setting.full else NODES - 2
        if not self._until(lambda: len(self._nodes("idle")) == spares, START_WITHIN, 0.25):
            raise TimeoutError(f"these nodes are idle: {self._nodes('idle')}")
        return job

    def _heal(self) -> None:
        """The admin's part. No job comes to the node before all have noticed."""
        for node in self._nodes("drain"):
            self.box.clear(node)
            (self.box.folder / f"sick-{node}").unlink(missing_ok=True)
            if self.setting.ours:
                for one in self._incidents(node):
                    ask(self.config, "POST", f"/v1/incidents/{one['id']}/close", {})
                self._until(lambda node=node: self._verdict(node) == "ok", START_WITHIN)
            slurm(self.box, "scontrol", "update", f"nodename={node}", "state=resume")
            if self.setting.ours:
                self._until(lambda node=node: node not in self._drained(), START_WITHIN, 0.25)

    def _measure(self, one: Round, job: Job, gpu: int) -> None:
        node = list(NodeSet(job.starts()[0][1]))[1]
        time.sleep(self.chance.random())  # Slurm works in whole seconds: come at any time within one
        one.fault = self._break(job, node, gpu, one.dies)
        if not self._until(lambda: len(job.starts()) > 1, BACK_WITHIN):
            raise TimeoutError(f"job {job.number}: not back after {BACK_WITHIN:.0f} s: {job.shown()}")
        one.running, where = job.starts()[1]
        if node in NodeSet(where):
            one.failure = f"job {job.number} runs again on {where}, with {node} among them"
        if self.setting.full:
            lacks = 2 if one.dies and not self.setting.expedited else 1
            ends = [at for at in map(float, self.ends.read_text().split()) if one.fault < at < one.running]
            one.free = [*ends, one.running, one.running][lacks - 1]
        if self.setting.ours:  # a job that ends before it has been noted is not what is measured
            self._until(lambda: self._noted(node, job), START_WITHIN, 0.25)

    def _break(self, job: Job, node: str, gpu: int, dies: bool) -> float:
        """When it was."""
        if self.setting.ours:
            return float(self.box.inject(node, "xid", code=79, gpu=gpu, kill=dies)["at"])
        if self.setting.epilog:
            (self.box.folder / f"sick-{node}").touch()
        at = float(self.box.inject(node, "kmsg", text="the fault", kill=dies)["at"])
        if not self.setting.epilog:
            by_hand(self.box, job, node)
        return at

    def _nodes(self, state: str) -> list[str]:
        """The lane's nodes in a state."""
        return slurm(self.box, "sinfo", "-h", "-p", self.name, "-N", "-t", state, "-o", "%N").split()

    def _incidents(self, node: str, which: str = "") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = ask(self.config, "GET", f"/v1/incidents?node={node}{which}")
        return rows

    def _drained(self) -> NodeSet:
        """The nodes that the controller takes for drained by itself."""
        return NodeSet(ask_status(self.box)["drained"])

    def _verdict(self, node: str) -> str:
        return (self.box.layout.node(node) / "run/verdict").read_text().split(" ", 1)[0]

    def _noted(self, node: str, job: Job) -> bool:
        """Whether the job's story is at its end."""
        rows = self._incidents(node, "&all=1&limit=3")
        return any(one["job"] == job.number and one["settled"] for row in rows for one in row["jobs"])

    def _until(self, condition: Callable[[], object], seconds: float, pause: float = 0.0) -> bool:
        return await_until(lambda: self.over.is_set() or condition() or time.sleep(pause), seconds)


def measure(setting: Setting, given: argparse.Namespace) -> list[Round]:
    """All rounds of a setting, on a sandbox of its own."""
    rounds, lanes = (given.rounds, given.lanes) if setting.ours else (given.stock, given.stock)
    box, nodes, over = Sandbox(given.dir), NODES * lanes, threading.Event()
    conf = [SCHEDULER, f"MaxJobCount={2000 * lanes}"]
    conf += [f"Epilog={box.folder}/epilog"] if setting.epilog else []
    for lane in range(lanes):
        conf.append(f"PartitionName=lane{lane} Nodes=n[{NODES * lane + 1}-{NODES * (lane + 1)}]")
    gpus = 8 if setting.ours else 0
    with up(
        box, nodes=nodes, gpus=gpus, ports=0, nics=0, slurm_conf=conf, site_toml=BUDGET, health=setting.ours
    ):
        if setting.ours:
            calmly(lambda: ask_status(box)["reporting"] == nodes, START_WITHIN)
        if setting.epilog:
            (box.folder / "epilog").write_text(f'#!/bin/sh\n[ ! -e "{box.folder}/sick-$SLURMD_NODENAME" ]\n')
            (box.folder / "epilog").chmod(0o755)
        with ThreadPoolExecutor(lanes) as pool:
            try:
                tasks = [
                    pool.submit(Lane(box, setting, f"lane{lane}", over).run, len(range(lane, rounds, lanes)))
                    for lane in range(lanes)
                ]
                return [one for task in tasks for one in task.result()]
            except BaseException:
                over.set()
                raise


def report(setting: Setting, rounds: Sequence[Round]) -> list[str]:
    """The table's rows of one setting."""
    good = [one for one in rounds if not one.failure]
    lost = f" ({len(rounds) - len(good)} more: not back)" if len(good) < len(rounds) else ""
    rows = [figures(f"{setting}{lost}", [one.seconds for one in good])]
    parts = {"": good}
    if setting.ours and not setting.expedited:
        parts = {
            "... its task lives on": [one for one in good if not one.dies],
            "... its task dies in the same instant": [one for one in good if one.dies],
        }
    for name, some in parts.items():
        rows += [figures(name, [one.seconds for one in some])] if name else []
        if setting.full and some:
            rows.append(figures("... until what it lacks came free", [one.waited for one in some]))
            rows.append(figures("... and from then on", [one.rest for one in some]))
    return rows


def release() -> tuple[int, ...]:
    said = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", said)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300, help="faults per setting")
    parser.add_argument("--stock", type=int, default=12, help="the same on stock Slurm, all at once")
    parser.add_argument("--lanes", type=int, default=6, help="faults side by side")
    parser.add_argument("--only", choices=["plain", "expedited"], help="just these")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    print(f"{machine()}.\n\n{HEAD}", flush=True)
    for setting in itertools.starmap(Setting, itertools.product((False, True), (False, True), (True, False))):
        wanted = given.only in (None, setting.kind) and (given.rounds if setting.ours else given.stock)
        if wanted and (release() >= EXPEDITES or not setting.expedited):
            print("\n".join(report(setting, measure(setting, given))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
