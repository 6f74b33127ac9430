"""Whether jobs that are started again on the same batch host get there, beside impatient scripts.

    python bench/relaunch.py [--relaunches 300] [--quick] [--dir DIR]

As root. Each round: eight jobs of one CPU and one GPU per node, side by side on the same two of three nodes.
At a random moment of the second all eight GPUs of their second node break (an Xid line each), so that all
eight are requeued at once and find their batch host and the spare. They end on the first signal: nothing but
what is measured parts their two runs. slurmd takes a run that was sent off in the second of the requeue for
the one that was revoked, and the job dies ("Job credential revoked"). A relaunch is as it should be when the
job runs again on the same batch host, was restarted once, and no log knows of a launch that failed; whether
its prolog ran on every node that it has now is counted beside that. A quarter as many relaunches follow after
an InfiniBand port went down (at its poll's moment of the second, its hold set to none): that is a fault of
the whole node.

The rivals are scripts on stock Slurm, in a sandbox without us, that drain the node and requeue all eight
(`scontrol requeue Incomplete`) at a random moment, too, and then end their wait with `scontrol update
starttime=now`: again and again until they run; once, as soon as they are PENDING; once, in a later whole
second than the requeue; never.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ClusterShell.NodeSet import NodeSet
from machine import machine
from testbed import BUDGET, START_WITHIN, ask_status, calmly, keep, moment, slurm, up

from slurm_health import config
from slurm_health.client import ask
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

JOBS = 8  # side by side
NODES = 3  # two of them for the jobs: when the second breaks, only the first and the third are left
BACK_WITHIN = 30.0  # seconds; a job that is not back by then counts as lost
OWN_WAIT = 200.0  # the same where Slurm's own wait (121 s) is not ended
PAUSE = 0.05  # seconds between two questions of a rival to Slurm
SITE = BUDGET + '[[rule]]\ncode = "IB_PORT_DOWN"\nhold = "0s"\nclear = "0s"\n'
# The same Xid of the same GPU within a minute is one event: take another one each time.
XIDS = (79, 46, 48, 62, 95, 119, 120, 140, 158, 167, 169, 173)
JOB = """#!/bin/sh
echo "$(date +%s.%N) ${SLURM_RESTART_COUNT:-0} $SLURMD_NODENAME $SLURM_JOB_NODELIST"
exec sleep 600
"""
LAUNCH_FAILED = re.compile(r"revoked|non-startable|launch fail|not launch", re.IGNORECASE)


@dataclass
class Relaunch:
    """What became of one job."""

    job: str
    fault: str
    requeued: float = 0.0  # when the requeue was done (epoch)
    seconds: float = 0.0  # from the fault to running again, 0.0 when it did not
    host: tuple[str, str] = ("", "")  # batch host of the first and the second run
    restarts: int = -1
    state: str = ""
    unchecked: list[str] = field(default_factory=list)  # nodes of the new run whose prolog did not run
    log: list[str] = field(default_factory=list)  # what was logged of failed launches
    note: str = ""

    @property
    def died(self) -> bool:
        """Whether its launch failed, also when it was brought back after that."""
        return bool(self.log) or self.state == "FAILED"

    @property
    def back(self) -> bool:
        return self.seconds > 0

    @property
    def same_host(self) -> bool:
        return self.back and self.host[0] == self.host[1]

    @property
    def good(self) -> bool:
        return self.same_host and self.restarts == 1 and not (self.died or self.note)


class Bench:
    """Rounds of eight jobs on one sandbox. How a round's fault is dealt with is the subclass's."""

    def __init__(self, box: Sandbox, name: str) -> None:
        self.box, self.name = box, name
        self.chance = random.Random(name)
        self.done: list[Relaunch] = []
        self.script = box.folder / "job.sh"
        self.script.write_text(JOB)

    def run(self, rounds: int, raw: Path | None) -> list[Relaunch]:
        for number in range(rounds):
            some = self._round(number)
            self.done += some
            if raw:
                with raw.open("a") as file:
                    for one in some:
                        print(json.dumps({"contender": self.name, **asdict(one)}), file=file)
            bad = sum(not one.good for one in some)
            if bad or number % 10 == 9:
                line = f"{self.name}, round {number + 1}: {bad} of {len(some)} not as they should be"
                print(line, file=sys.stderr, flush=True)
        return self.done

    # What a round does

    def fault(self, number: int, node: str, jobs: Sequence[str]) -> tuple[str, float]:
        """Break the node; the fault's name, and when it was."""
        raise NotImplementedError

    def wait(self, jobs: Sequence[str], over: Callable[[], bool]) -> None:
        """Until `over`, or too long."""
        await_until(over, BACK_WITHIN)

    def requeued(self, node: str, since: float) -> dict[str, float]:
        """Wait until all is at its end; when each job was requeued."""
        raise NotImplementedError

    def heal(self, node: str, since: float) -> None:
        slurm(self.box, "scontrol", "update", f"nodename={node}", "state=resume")

    def checked(self, node: str, job: str) -> bool:
        """Whether the prolog of the job's second run ran on the node."""
        raise NotImplementedError

    def _round(self, number: int) -> list[Relaunch]:
        # Side by side on two nodes: with one more job there would be no GPU left on them.
        words = ["--parsable", "--requeue", "--open-mode=append", f"--output={self.box.folder}/job-%j.out"]
        words += ["-N2", "--ntasks-per-node=1", "-c1", "--gpus-per-node=1", str(self.script)]
        jobs = [slurm(self.box, "sbatch", *words).strip() for _ in range(JOBS)]
        if not await_until(lambda: all(self._starts(job) for job in jobs), START_WITHIN):
            raise SystemExit(f"round {number}: not all started\n{slurm(self.box, 'squeue')}")
        places = {self._starts(job)[0][1:] for job in jobs}
        if len(places) != 1:
            raise SystemExit(f"round {number}: the jobs are not side by side: {places}")
        [(host, where)] = places
        [broken] = NodeSet(where) - NodeSet(host)
        time.sleep(self.chance.random())  # Slurm works in whole seconds: come at any time within one
        fault, since = self.fault(number, broken, jobs)
        self.wait(jobs, lambda: all(len(self._starts(job)) > 1 for job in jobs))
        requeued = self.requeued(broken, since)
        some = [self._look(job, fault, since, requeued.get(job, 0.0)) for job in jobs]
        slurm(self.box, "scancel", *jobs)
        calmly(lambda: not slurm(self.box, "squeue", "-h"), START_WITHIN)
        self.heal(broken, since)
        calmly(lambda: slurm(self.box, "sinfo", "-h", "-o", "%T").split() == ["idle"], START_WITHIN)
        return some

    def _look(self, job: str, fault: str, since: float, requeued: float) -> Relaunch:
        one = Relaunch(job, fault, requeued)
        [shown] = self._squeue([job], "%T %r")
        one.state, reason = shown.split(" ", 1)
        one.restarts = int(slurm(self.box, "squeue", "-h", "-t", "all", "-j", job, "-O", "RestartCnt"))
        starts = self._starts(job)
        one.host = (starts[0][1], starts[1][1] if len(starts) > 1 else "")
        if len(starts) > 1:
            one.seconds = starts[1][0] - since
            one.unchecked = [node for node in NodeSet(starts[1][2]) if not self.checked(node, job)]
        if len(starts) > 2:
            one.note = f"started {len(starts)} times"
        if one.state != "RUNNING":
            one.note = reason
        one.log = [line for line in self._logged() if re.search(rf"\bjob(id)?[= ]{job}\b", line, re.I)]
        return one

    def _squeue(self, jobs: Sequence[str], what: str) -> list[str]:
        return slurm(self.box, "squeue", "-h", "-t", "all", "-j", ",".join(jobs), "-o", what).splitlines()

    def _starts(self, job: str) -> list[tuple[float, str, str]]:
        """When each start was, the batch host, and all nodes."""
        try:
            lines = (self.box.folder / f"job-{job}.out").read_text().splitlines()
        except FileNotFoundError:
            return []
        words = [line.split() for line in lines if line[:1].isdigit()]
        return [(float(at), host, nodes) for at, _, host, nodes in words]

    def _logged(self) -> Iterator[str]:
        """What slurmctld and the slurmds say of launches that failed."""
        for pattern in ("ctld/slurmctld.log", "nodes/*/log/slurmd.log"):
            for path in self.box.folder.glob(pattern):
                for line in path.read_text(errors="replace").splitlines():
                    if LAUNCH_FAILED.search(line):
                        yield f"{path.stem}: {line}"


class Ours(Bench):
    """slurm-health on duty."""

    def __init__(self, box: Sandbox, gpus: int) -> None:
        super().__init__(box, "slurm-health")
        self.gpus = gpus  # rounds until it is a port that breaks
        self.config = config.load(str(box.layout.config))

    def fault(self, number: int, node: str, jobs: Sequence[str]) -> tuple[str, float]:
        if number >= self.gpus:
            return "port", float(self.box.inject(node, "ib-down", port=0)["at"])
        code = XIDS[number % len(XIDS)]
        return "GPUs", min(self.box.inject(node, "xid", code=code, gpu=gpu)["at"] for gpu in range(JOBS))

    def requeued(self, node: str, since: float) -> dict[str, float]:
        def over() -> bool:
            settled = [bool(job["settled"]) for one in self._incidents(node, since) for job in one["jobs"]]
            return len(settled) >= JOBS and all(settled)

        calmly(over, 10.0)
        acts = [act for one in self._incidents(node, since) for act in one["actions"]]
        acts = [act for act in acts if (act["kind"], act["outcome"]) == ("requeue", "done")]
        return {act["target"]: moment(act["done"]) for act in reversed(acts)}

    def heal(self, node: str, since: float) -> None:
        """The admin's part. The node counts as back when the controller has noticed, too."""
        self.box.clear(node)
        super().heal(node, since)
        calmly(lambda: all(one["state"] == "closed" for one in self._incidents(node, since)), 10.0)

    def checked(self, node: str, job: str) -> bool:
        return (self.box.layout.node(node) / f"run/jobs/{job}.1").exists()

    def _incidents(self, node: str, since: float) -> list[dict[str, Any]]:
        rows = ask(self.config, "GET", f"/v1/incidents?node={node}&all=1&limit={2 * JOBS}")
        return [row for row in rows if moment(row["seen"]) >= since - 1]


class Script(Bench):
    """An admin's script on stock Slurm: `when` says whether it ends a job's wait now."""

    def __init__(self, box: Sandbox, name: str, cards: Path) -> None:
        super().__init__(box, name)
        self.cards, self.when = cards, RIVALS[name]
        self.patience = OWN_WAIT if name == NEVER else BACK_WITHIN
        self.at = 0.0

    def fault(self, number: int, node: str, jobs: Sequence[str]) -> tuple[str, float]:
        since = time.time()
        slurm(self.box, "scontrol", "update", f"nodename={node}", "state=drain", "reason=GPU broken")
        slurm(self.box, "scontrol", "requeue", "Incomplete", ",".join(jobs))
        self.at = time.time()
        return "", since

    def wait(self, jobs: Sequence[str], over: Callable[[], bool]) -> None:
        sent: Counter[str] = Counter()
        end = time.monotonic() + self.patience
        while not over() and time.monotonic() < end:
            shown = [line.split() for line in self._squeue(jobs, "%i %T")]
            for job, state in shown:
                if state in ("PENDING", "COMPLETING") and self.when(state, self.at, sent[job]):
                    sent[job] += 1
                    with contextlib.suppress(RuntimeError):  # it has just started
                        slurm(self.box, "scontrol", "update", f"jobid={job}", "starttime=now")
            if all(state == "FAILED" or len(self._starts(job)) > 1 for job, state in shown):
                return
            time.sleep(PAUSE)

    def requeued(self, node: str, since: float) -> dict[str, float]:
        time.sleep(1.0)  # for what dies late
        return {}

    def checked(self, node: str, job: str) -> bool:
        return (self.cards / f"{job}.1.{node}").exists()


NEVER = "a script, never: Slurm's own wait"
# Whether to end a job's wait now: its state, when it was requeued, how often that was sent.
RIVALS: dict[str, Callable[[str, float, int], bool]] = {
    "a script, again and again at once": lambda state, requeued, sent: True,
    "a script, once as soon as it is PENDING": lambda state, requeued, sent: state == "PENDING" and not sent,
    "a script, once in the next whole second": lambda state, requeued, sent: (
        state == "PENDING" and not sent and int(time.time()) > int(requeued)
    ),
    NEVER: lambda state, requeued, sent: False,
}

HEAD = (
    "| who | relaunches | died at launch | not back | on another host | restarted more than once"
    " | a prolog did not run | median | p95 | worst |\n| --- |" + " ---: |" * 9
)


def row(name: str, some: Sequence[Relaunch]) -> str:
    seconds = sorted(one.seconds for one in some if one.back)
    spread = [
        statistics.median(seconds) if seconds else 0.0,
        statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else 0.0,
        seconds[-1] if seconds else 0.0,
    ]
    counts = [
        len(some),
        sum(one.died for one in some),
        sum(not one.back for one in some),
        sum(one.back and not one.same_host for one in some),
        sum(one.restarts > 1 for one in some),
        sum(bool(one.unchecked) for one in some),
    ]
    return f"| {name} | {' | '.join(map(str, counts))} | {' | '.join(f'{one:.2f}' for one in spread)} |"


def ours(rounds: int, given: argparse.Namespace) -> None:
    ports = -(-rounds // 4)
    box = Sandbox(given.dir)
    with up(box, nodes=NODES, gpus=JOBS, ports=1, nics=1, site_toml=SITE):
        # Nodes that start before their controller try again after a while: not what is measured here.
        calmly(lambda: ask_status(box)["reporting"] == NODES, START_WITHIN)
        some = Ours(box, rounds).run(rounds + ports, given.raw)
        keep(box, given.keep_logs)
    for fault, words in (("GPUs", "eight GPUs at once"), ("port", "an InfiniBand port")):
        print(row(f"slurm-health, {words}", [one for one in some if one.fault == fault]))
    tenths = Counter(int(one.requeued * 10) % 10 for one in some if one.requeued and one.fault == "GPUs")
    print("\nRequeues for GPUs in each tenth of the second:", ", ".join(str(tenths[n]) for n in range(10)))
    bad = [one for one in some if not one.good]
    print(f"\nNot as they should be: {len(bad) or 'none'}", *bad, sep="\n- ", flush=True)


def stock(rounds: int, given: argparse.Namespace) -> None:
    box = Sandbox(given.dir)
    with tempfile.TemporaryDirectory() as outside:
        cards, hook = Path(outside) / "cards", Path(outside) / "prolog"
        cards.mkdir()
        card = '"$SLURM_JOB_ID.$SLURM_JOB_RESTART_COUNT.$SLURMD_NODENAME"'
        hook.write_text(f"#!/bin/sh\n: > {cards}/{card}\n")
        hook.chmod(0o755)
        with up(box, nodes=NODES, gpus=JOBS, slurm_conf=[f"Prolog={hook}"], health=False):
            for name in RIVALS:
                if given.quick and name == NEVER:
                    continue
                many = 1 if name == NEVER else rounds
                print(row(name, Script(box, name, cards).run(many, given.raw)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--relaunches", type=int, default=300, help="of ours, in rounds of eight")
    parser.add_argument("--rival-rounds", type=int, default=10, help="of eight, for each script")
    parser.add_argument("--quick", action="store_true", help="two rounds each, Slurm's own wait left out")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="where all logs of ours go")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="append every relaunch here, as JSON lines")
    parser.add_argument("--only", choices=["ours", "stock"], help="just this")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    print(f"{machine()}.\n\n{HEAD}", flush=True)
    if given.only != "ours":
        stock(2 if given.quick else given.rival_rounds, given)
    if given.only != "stock":
        ours(2 if given.quick else -(-given.relaunches // JOBS), given)


if __name__ == "__main__":
    main()
