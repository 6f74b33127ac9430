"""Time from a fault to the drained node and to the job running on healthy nodes, beside stock Slurm.

    python bench/requeue.py [--rounds 300] [--lanes 3] [--quick] [--dir DIR]

As root. Each round: a fresh job (a batch script and one step), in turn on two nodes with a fault on its
batch host, on two nodes with a fault on the other one, and on one node; the fault is Xid 79 in the kernel
log, and in every second round the job's processes on that node die in the same instant. The clock starts
when the line is written. It stops for the drain when the controller has read it back from Slurm, for the
job when its own batch script writes its first line again (the time the controller noted is printed beside
it). Then an admin resumes the node, and the next job comes. There are always idle spares. Some lanes run
side by side on one sandbox, each waiting for its own job only.

Stock Slurm is a sandbox without us, where an admin's script drains and requeues at the fault's very instant.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ClusterShell.NodeSet import NodeSet
from machine import machine
from testbed import (
    BUDGET,
    HEAD,
    START_WITHIN,
    Job,
    ask_status,
    by_hand,
    calmly,
    figures,
    keep,
    moment,
    slurm,
    up,
)

from slurm_health import config, text
from slurm_health.client import ask
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

BACK_WITHIN = 30.0  # seconds; a job that is not back by then counts as lost


@dataclass
class Round:
    number: int
    dies: bool
    drained: float = 0.0  # seconds after the fault
    noted: float = 0.0  # the job runs again, by the controller's clock
    running: float = 0.0  # the same, by the job's own output
    failure: str = ""
    acts: list[tuple[str, float, float]] = field(default_factory=list)  # kind, intended, done

    @property
    def nodes(self) -> int:
        """How many the job has."""
        return 1 if self.number // 2 % 3 == 2 else 2

    @property
    def broken(self) -> int:
        """Which of them breaks; the first is the batch host."""
        return 1 if self.number // 2 % 3 == 1 else 0


class Bench:
    """Rounds on one sandbox, several lanes at a time."""

    def __init__(self, box: Sandbox, rounds: int, raw: Path | None) -> None:
        self.box, self.raw = box, raw
        self.config = config.load(str(box.layout.config))
        self.todo: Iterator[int] = iter(range(rounds))
        self.lock = threading.Lock()
        self.chance = random.Random(rounds)
        self.rounds: list[Round] = []

    def run(self, lanes: int) -> list[Round]:
        with ThreadPoolExecutor(lanes) as pool:
            for lane in [pool.submit(self._lane) for _ in range(lanes)]:
                lane.result()
        return sorted(self.rounds, key=lambda one: one.number)

    def _lane(self) -> None:
        while True:
            with self.lock:
                number = next(self.todo, None)
            if number is None:
                return
            one = Round(number, dies=number % 2 == 1)
            try:
                self._round(one)
            except Exception as error:  # a round that fails is counted, the others go on
                one.failure = one.failure or f"{type(error).__name__}: {error}"
            with self.lock:
                self.rounds.append(one)
                done = len(self.rounds)
                if self.raw:
                    with self.raw.open("a") as file:
                        print(json.dumps(asdict(one)), file=file)
            if one.failure or done % 10 == 0:
                print(f"{done} rounds. {one}", file=sys.stderr, flush=True)

    def _round(self, one: Round) -> None:
        how = [f"-N{one.nodes}", "--gpus-per-node=8", "--ntasks-per-node=1", "--exclusive"]
        job = Job.submit(self.box, *how)
        if not (job.await_start(1, START_WITHIN) and job.await_step()):
            one.failure = f"job {job.number} never started: {job.shown()}"
            return
        node = list(NodeSet(job.starts()[0][1]))[one.broken]
        time.sleep(self.chance.random())  # Slurm works in whole seconds: come at any time within one
        fault = self.box.inject(node, "xid", code=79, gpu=one.number % 8, kill=one.dies)
        back = job.await_start(2, BACK_WITHIN)
        story: dict[str, Any] = {}
        mine: dict[str, Any] = {}

        def over() -> bool:
            story.update(self._story(node, fault["at"]))
            # A job that has just left the node may be touched as well: Slurm's times are whole seconds.
            mine.update(next((one for one in story.get("jobs", ()) if one["job"] == job.number), {}))
            return bool(mine.get("settled"))

        settled = calmly(over, 10.0)
        if back:
            at, where = job.starts()[1]
            one.running = at - fault["at"]
            if node in NodeSet(where):
                one.failure = f"job {job.number} runs again on {where}, with {node} among them"
        else:
            one.failure = f"job {job.number} not back after {BACK_WITHIN:.0f} s: {job.shown()}"
        acts = story.get("actions", ())
        drains = [act["done"] for act in acts if (act["kind"], act["outcome"]) == ("drain", "done")]
        one.drained = moment(drains[0]) - fault["at"] if drains else 0.0
        one.acts = [
            (act["kind"], *(round(moment(act[key]) - fault["at"], 3) for key in ("intended", "done")))
            for act in acts
        ]
        noted = moment(mine.get("running"))
        one.noted = noted - fault["at"] if noted else 0.0
        if not one.failure and not (drains and noted and settled):
            one.failure = f"job {job.number}: the incident is not at its end"
        if one.failure:
            when = datetime.fromtimestamp(fault["at"])
            one.failure += f"; {node}, fault at {when}\n{text.story(story) if story else 'no incident'}"
        slurm(self.box, "scancel", job.number)
        self._heal(node, fault["at"])

    def _story(self, node: str, since: float) -> dict[str, Any]:
        """The incident of this fault: the first that was seen since then."""
        rows = ask(self.config, "GET", f"/v1/incidents?node={node}&all=1&limit=3")
        return next((row for row in reversed(rows) if moment(row["seen"]) >= since - 1), {})

    def _heal(self, node: str, since: float) -> None:
        """The admin's part. The node counts as back when the controller has noticed, too."""
        self.box.clear(node)
        calmly(lambda: not slurm(self.box, "squeue", "-h", "-w", node), START_WITHIN)
        slurm(self.box, "scontrol", "update", f"nodename={node}", "state=resume")
        calmly(lambda: self._story(node, since).get("state") == "closed", 10.0)


def report(rounds: Sequence[Round]) -> list[str]:
    good = [one for one in rounds if not one.failure]
    rows = [figures("fault to drained", [one.drained for one in rounds if one.drained])]
    for nodes, words in ((1, "one node"), (2, "two nodes")):
        mine = [one for one in good if one.nodes == nodes]
        for name, some in {
            f"fault to running again, a job of {words}": mine,
            "... it lives on": [one for one in mine if not one.dies],
            "... it dies in the same instant on the batch host": [
                one for one in mine if one.dies and not one.broken
            ],
            "... its task dies in the same instant on the other node": [
                one for one in mine if one.dies and one.broken
            ],
        }.items():
            rows += [figures(name, [one.running for one in some])] if some else []
    rows.append(figures("fault to running again, all", [one.running for one in good]))
    rows.append(figures("the same, as the controller notes it", [one.noted for one in good]))
    return rows


def lost(rounds: Sequence[Round]) -> str:
    failures = [one for one in rounds if one.failure]
    said = f"Jobs that did not come back within {BACK_WITHIN:.0f} s, or not as they should: "
    return said + (f"{len(failures)}" if failures else "none") + "".join(
        f"\n- round {one.number} ({'dies' if one.dies else 'lives on'}): {one.failure}" for one in failures
    )  # fmt: skip


def ours(delay: int, rounds: int, given: argparse.Namespace) -> None:
    box, lanes = Sandbox(given.dir), given.lanes
    lines = [f"SchedulerParameters=batch_sched_delay={delay}"]
    with up(box, nodes=4 * lanes, gpus=8, ports=2, nics=1, slurm_conf=lines, site_toml=BUDGET):
        # Nodes that start before their controller try again after a while: not what is measured here.
        calmly(lambda: ask_status(box)["reporting"] == 4 * lanes, START_WITHIN)
        began = time.monotonic()
        done = Bench(box, rounds, given.raw).run(lanes)
        took = time.monotonic() - began
        keep(box, given.keep_logs)
    setting = f"batch_sched_delay={delay}" + (" (Slurm's default)" if delay else "")
    print(f"\n### {setting}: {rounds} faults, {lanes} at a time on {4 * lanes} nodes, in {took:.0f} s\n")
    print("\n".join([HEAD, *report(done)]) + f"\n\n{lost(done)}", flush=True)


# Stock Slurm


def stock(folder: Path, rounds: int) -> None:
    """What Slurm does alone, with an admin's script that is as quick as can be."""
    box = Sandbox(folder)
    with tempfile.TemporaryDirectory() as outside:
        hook = Path(outside) / "prolog"
        hook.write_text(f'#!/bin/sh\n[ ! -e "{outside}/sick-$SLURMD_NODENAME" ]\n')
        hook.chmod(0o755)
        Path(outside).chmod(0o755)
        nodes = 2 * rounds + 5
        with up(box, nodes=nodes, gpus=0, ports=0, nics=0, slurm_conf=[f"Prolog={hook}"], health=False):
            slurm_version = box.status()["slurm"]
            with ThreadPoolExecutor(rounds + 1) as pool:
                held = pool.submit(_refused, box, Path(outside))
                seconds = list(pool.map(lambda number: _alone(box, dies=number % 2 == 1), range(rounds)))
                (box.folder / "enough").touch()
                shown = held.result()
    print(f"\n### Stock {slurm_version}, an admin's script drains and requeues at the fault's instant\n")
    print(HEAD)
    came = [one for one in seconds if one]
    print(figures("fault to running again", came))
    print(f"\nNot back after 180 s: {len(seconds) - len(came)}.")
    print(f"A job that a prolog refused, after {shown[0]:.0f} s: `{shown[1]}` (held until released).")


def _alone(box: Sandbox, dies: bool) -> float:
    job = Job.submit(box, "-N2", "--ntasks-per-node=1", "--exclusive")
    if not (job.await_start(1, START_WITHIN) and job.await_step()):
        return 0.0
    node = list(NodeSet(job.starts()[0][1]))[1]
    fault = box.inject(node, "kmsg", text="the fault", kill=dies)
    if not by_hand(box, job, node) or not job.await_start(2, 180.0):
        return 0.0
    return job.starts()[1][0] - fault["at"]


def _refused(box: Sandbox, outside: Path) -> tuple[float, str]:
    """A node breaks between allocation and prolog: how long the job has waited in the end, and its state."""
    (outside / "sick-n1").touch()
    began = time.monotonic()
    job = Job.submit(box, "-w", "n1", "-N1", "--exclusive")
    await_until((box.folder / "enough").exists, 240.0)
    return time.monotonic() - began, job.shown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300, help="faults per setting")
    parser.add_argument("--lanes", type=int, default=3, help="faults side by side")
    parser.add_argument("--quick", action="store_true", help="20 rounds each, no stock Slurm")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="where all logs go")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="append every round here, as JSON lines")
    parser.add_argument("--only", choices=["0", "default", "stock"], action="append", help="just these")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    rounds = 20 if given.quick else given.rounds
    which = given.only or (["0", "default"] if given.quick else ["0", "default", "stock"])
    print(f"{machine()}.")
    for setting, delay in (("0", 0), ("default", 3)):
        if setting in which:
            ours(delay, rounds, given)
    if "stock" in which:
        stock(given.dir, 3)


if __name__ == "__main__":
    main()
