"""The place of a job on its way back: first in the queue, its healthy nodes kept until it starts."""

from __future__ import annotations

import time

from ClusterShell.NodeSet import NodeSet

from slurm_health import policy
from slurm_health.config import Config
from slurm_health.ledger import Ledger
from slurm_health.model import Job, Victim
from slurm_health.slurm import Rejected, Slurm


class Place:
    """`lift` and `lower` are a pair, so are `keep` and `let_go`. Each is written down before and after."""

    def __init__(self, config: Config, ledger: Ledger, slurm: Slurm) -> None:
        self.first = config.requeue.place == "top"  # whether a job on its way back goes before all that wait
        self.ledger, self.slurm = ledger, slurm

    async def lift(self, victim: Victim) -> None:
        """Put it first in the queue by its nice value, which is nobody's way to say how old a job is. Its own
        one is on disk before."""
        priority, nice = await self.slurm.standing(victim.label)
        if not priority:
            return  # held just now: Slurm takes a new nice value for a release
        own, lifted = victim.nice, victim.lifted
        if own == lifted:
            own, lifted = nice, policy.queue.foremost(priority, nice)
        elif nice not in (own, lifted):  # while we were away somebody has given it another
            self.ledger.victim(victim.id, lifted=own, placed=time.time())
            return
        self.ledger.conclude("lift", victim.label, time.time())
        with self.ledger.together():
            self.ledger.victim(victim.id, nice=own, lifted=lifted)
            detail = f"nice {own} to {lifted}"
            action = self.ledger.intend(victim.incident, "lift", victim.label, time.time(), detail)
        try:
            await self.slurm.set_nice(victim.label, lifted)
            outcome = "done"
        except Rejected as error:  # it waits where it is
            outcome, lifted = f"not done: {error}", own
        with self.ledger.together():
            self.ledger.victim(victim.id, lifted=lifted, placed=time.time())
            self.ledger.settle(action, outcome, time.time())

    async def lower(self, victim: Victim) -> None:
        """Give it its own nice value back, unless somebody has chosen another for it meanwhile."""
        if victim.lifted == victim.nice:
            return
        self.ledger.conclude("lower", victim.label, time.time())
        detail = f"nice {victim.lifted} to {victim.nice}"
        action = self.ledger.intend(victim.incident, "lower", victim.label, time.time(), detail)
        try:
            priority, nice = await self.slurm.standing(victim.label)
            outcome = "done"
            if not priority:
                outcome = "not done: it is held, and would be released by that"
            elif nice == victim.lifted:
                await self.slurm.set_nice(victim.label, victim.nice)
            elif nice != victim.nice:
                outcome = f"not done: somebody has set it to {nice}"
        except Rejected as error:
            outcome = f"not done: {error}"
        with self.ledger.together():
            self.ledger.victim(victim.id, lifted=victim.nice)
            self.ledger.settle(action, outcome, time.time())

    async def keep(self, victim: Victim, job: Job, out: set[str]) -> None:
        """Keep the queue off the nodes of a job that are not out, until its wait is ended: Slurm would give
        them away at once. The act is under way as long as they are kept; they are free again in a minute
        anyhow."""
        nodes = sorted(set(job.nodes) - out)
        if not (self.first and nodes):
            return
        where = str(NodeSet.fromlist(nodes))
        action = self.ledger.intend(victim.incident, "keep", victim.label, time.time(), where)
        try:
            await self.slurm.reserve(_reservation(victim), nodes)
        except Rejected as error:
            self.ledger.settle(action, f"not done: {error}", time.time())

    async def let_go(self, victim: Victim) -> None:
        """Free the nodes that were kept."""
        if kept := self.ledger.unsettled("keep", victim.label):
            await self.slurm.unreserve(_reservation(victim))
            with self.ledger.together():
                for row in kept:
                    self.ledger.settle(row.id, "done", time.time())


def _reservation(victim: Victim) -> str:
    return f"slurm-health-{victim.job}"
