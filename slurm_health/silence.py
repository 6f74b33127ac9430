"""Nodes that have fallen silent: said once, and the wait of the jobs that Slurm then requeues is ended.

NODE_SILENT is a warning and never acts by itself: nothing is drained or requeued for it. But slurmctld gives
up a node that does not answer it either (SlurmdTimeout), or that comes back rebooted, and requeues its jobs
itself. Like all requeued jobs these then wait for two minutes. Which they are is known from the cards that
the node last reported.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import datetime

from slurm_health import policy, wire
from slurm_health.config import Config
from slurm_health.ledger import Ledger
from slurm_health.model import Card, Finding, Job, Severity, Urgency
from slurm_health.outage import Outage
from slurm_health.rescue import Rescue
from slurm_health.slurm import Slurm
from slurm_health.wire import NodeReport

log = logging.getLogger(__name__)

TICK = 2.0  # seconds between looks
QUIET = wire.HEARTBEAT + 5.0  # seconds without a word after which Slurm is asked about a node that had jobs
SILENT = 3 * wire.HEARTBEAT  # seconds without a word after which a node is called silent
STALL = 5 * TICK  # seconds between two looks after which it was us who could not listen
Run = tuple[int, int]  # job, restarts


class Silence:
    """`heard` is told of each report, `follow` keeps going until cancelled.

    `reported` (node -> when it last reported, its verdict) and `cards` (node -> those of that report) are the
    controller's own.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        slurm: Slurm,
        rescue: Rescue,
        outage: Outage,
        reported: Mapping[str, tuple[float, str]],
        cards: Mapping[str, tuple[Card, ...]],
    ) -> None:
        self.config, self.ledger, self.slurm = config, ledger, slurm
        self.rescue, self.outage = rescue, outage
        self.reported, self.cards = reported, cards
        self.known: set[str] = set()  # nodes that have ever reported, to us or before we were started
        self.boots: dict[str, str] = {}
        self.rebooted: dict[str, set[Run]] = {}  # node -> what ran there when it went down
        self.quiet: dict[str, set[Run]] = {}  # node -> what ran there when it fell quiet
        self.back: set[str] = set()  # those of them that report again; Slurm may yet give them up
        self.said: set[str] = set()  # nodes that are known to be silent
        self.settled: set[Run] = set()  # what ran on them and needs nothing more
        self.looked = self.listening = time.time()  # since when we hear whatever is said

    def heard(self, report: NodeReport) -> None:
        """A node reports. To be called before its cards replace those of its last report."""
        if self.boots.get(report.node, report.boot) != report.boot:
            self.rebooted[report.node] = self.quiet.get(report.node, set()) | self._runs(report.node)
        self.boots[report.node] = report.boot
        self.back |= {report.node} & self.quiet.keys()
        self.said.discard(report.node)

    async def follow(self) -> None:
        while True:
            with self.outage.survived("silent nodes"):
                await self.look(time.time())
            await asyncio.sleep(TICK)

    async def look(self, now: float) -> None:
        if now - self.looked > STALL:
            self.listening = now
        self.looked = now
        if not self.known:
            self.known = self.ledger.reporters()
        self.known |= self.reported.keys()
        ages = {name: now - max(self._heard(name), self.listening) for name in self.known}
        known = self.quiet.keys() - self.back
        await self._fell_quiet([name for name, age in ages.items() if age > QUIET and name not in known])
        silent = {name for name, age in ages.items() if age > SILENT and name not in self.said}
        self.rebooted = {name: runs for name, runs in self.rebooted.items() if runs - self.settled}
        ran = self.quiet | self.rebooted
        self.settled &= {run for runs in ran.values() for run in runs}
        lost = {name for name, runs in ran.items() if runs - self.settled}
        self._returned(self.back - lost)
        if not silent | lost:
            return
        states = await self.slurm.nodes(silent | lost)
        for name in sorted(silent):
            self.said.add(name)
            if name in states and not policy.node.elsewhere(states[name]):
                self._open(name, f"Slurm calls it {'+'.join(sorted(states[name].flags)).lower()}")
        down = {
            name for name in lost & states.keys() if "DOWN" in states[name].flags or name in self.rebooted
        }
        jobs = await self.slurm.jobs(job for name in down for job, _ in ran[name])
        paused = self.rescue.paused()
        for name in sorted(down):
            if not paused(name):
                self._adopt(name, ran[name] - self.settled, jobs)
        answers = {name for name in states if not states[name].flags & {"DOWN", "NOT_RESPONDING"}}
        self._returned(self.back & answers)

    def _returned(self, names: Iterable[str]) -> None:
        for name in names:
            self.back.discard(name)
            del self.quiet[name]

    async def _fell_quiet(self, names: list[str]) -> None:
        """Note what runs on nodes that have just fallen quiet: a job may be younger than the last report."""
        if not names:
            return
        jobs = [job for job in await self.slurm.jobs_on(names) if job.state in policy.job.LIVE]
        for name in names:
            self.quiet[name] = self._runs(name) | {
                (one.id, one.restarts) for one in jobs if name in one.nodes
            }
            self.back.discard(name)

    def _runs(self, node: str) -> set[Run]:
        cards = self.cards.get(node, ())
        return {(card.job, card.restarts) for card in cards if not (card.ended or card.refused)}

    def _adopt(self, node: str, runs: Iterable[Run], jobs: Mapping[int, Job]) -> None:
        """Have the jobs that Slurm requeued off the node followed; the others are none of ours."""
        for number, restarts in runs:
            job = jobs.get(number)
            if job and (job.completing or (job.restarts == restarts and job.state in policy.job.LIVE)):
                continue  # Slurm is about to
            self.settled.add((number, restarts))
            if not job or (job.restarts, job.state) != (restarts + 1, "PENDING") or job.begins <= time.time():
                continue
            why = "it came back rebooted" if node in self.rebooted else "Slurm has given it up"
            incident = self._open(node, f"{why}, and requeued job {job.label}")
            if self.config.mode == "requeue":
                log.warning("job %s: requeued by Slurm off %s: %s", job.label, node, why)
                self.rescue.adopt(incident, job, restarts)
            else:
                self.ledger.would(incident, "start", job.label, f"mode is {self.config.mode}", time.time())

    def _heard(self, node: str) -> float:
        return self.reported.get(node, (0.0, ""))[0]

    def _open(self, node: str, evidence: str) -> int:
        since = self._heard(node) or self.listening
        finding = Finding(
            "NODE_SILENT",
            Severity.WARNING,
            "",
            "the node's daemon has not reported to the controller",
            f"not heard since {datetime.fromtimestamp(since):%H:%M:%S}; {evidence}",
            Urgency.FINISH,
            since,
            f"silent/{node}/{round(since * 1000)}/{evidence}",
        )
        return self.ledger.raised(node, finding, time.time())
