"""The owner of a job that a fault touched: what they wrote for us, and what we tell them."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from ClusterShell.NodeSet import NodeSet

from slurm_health import policy, wishes
from slurm_health.config import Config
from slurm_health.ledger import Ledger
from slurm_health.model import Job, Urgency, Victim, Wish
from slurm_health.slurm import Slurm, SlurmError

log = logging.getLogger(__name__)

COMMENT = 4000  # characters of AdminComment that we let grow: ten requeues are some 2000


class Owner:
    """`listen` and `wish` are what they say; `tell` is a line in the job's stderr, `annotate` one in its
    AdminComment, `brief` what its next run finds. That they cannot be told keeps no job from being helped."""

    def __init__(self, config: Config, ledger: Ledger, slurm: Slurm) -> None:
        self.config, self.ledger, self.slurm = config, ledger, slurm
        self.corrected: set[int] = set()  # victims whose owners were told what is wrong with their words
        wanted = config.requeue
        self.unsaid = Wish(  # of a job whose owner said nothing
            wanted.budget,
            wanted.signal.replace("none", ""),
            wanted.grace,
            wanted.steps,
            Urgency(wanted.unasked),
        )

    async def listen(self, victims: list[Victim]) -> list[Victim]:
        """The victims, each with what its owner wrote for us: asked of Slurm once, and kept."""
        new = [one for one in victims if one.comment is None]
        if not new:
            return victims
        said = await self.slurm.comments(one.job for one in new)
        heard = {one.id: wishes.ours(said.get(one.job, "")) for one in new}
        with self.ledger.together():
            for number, comment in heard.items():
                self.ledger.victim(number, comment=comment, saved=wishes.saved(comment))
        return [replace(one, comment=heard.get(one.id, one.comment)) for one in victims]

    async def wish(self, victim: Victim, job: Job | None) -> Wish:
        """What is wanted for the job. What we cannot make out its owner is told once."""
        wanted = self.config.requeue
        words = f"{victim.comment or ''}; {wishes.MARK} {victim.asked}"  # options overrule the comment
        wish, why = wishes.read(words, self.unsaid, wanted.budget_max, wanted.grace_max)
        if why and job and victim.id not in self.corrected:
            self.corrected.add(victim.id)
            if await self._append(victim, f"slurm-health: {why}"):
                await self._say(victim, job, f"slurm-health: {why}")
        return wish

    async def tell(self, victim: Victim, job: Job, what: str) -> None:
        """A line in the job's stderr, or its srun's or salloc's: what broke, and what becomes of the job."""
        await self._say(victim, job, f"{self._cause(victim)}; {what}")

    async def annotate(self, victim: Victim, what: str) -> None:
        """The same in its AdminComment."""
        await self._append(victim, f"{self._cause(victim)}; {what}")

    async def brief(self, victim: Victim) -> None:
        """Have the next run find in its environment why it was brought back (see spank/). What travels with a
        job to its nodes is its comment: only of who speaks to us there, or by our options, is it written to.
        """
        if not (victim.comment or victim.asked):
            return
        incident = self.ledger.incident(victim.incident)
        attempt = self.ledger.requeues(victim.job, victim.uid, victim.restarts + 1)
        bad = NodeSet.fromlist([one.node for one in self.ledger.hurts(victim.job, time.time())])
        try:
            before = (await self.slurm.comments([victim.job])).get(victim.job, "")
            if saved := wishes.saved(before):  # it may have done so since, as its signal told it to
                self.ledger.victim(victim.id, saved=saved)
            after = wishes.told(before, attempt, str(bad), incident.words if incident else "")
            await self.slurm.set_owners_comment(victim.label, after)
        except SlurmError as error:
            log.warning("job %s: Comment: %s", victim.label, error)

    def _cause(self, victim: Victim) -> str:
        incident = self.ledger.incident(victim.incident)
        if incident is None:
            return f"slurm-health: {victim.node}: fault"
        ranks = self.ledger.ranks(victim.incident, victim.id)
        where = f"{_who(ranks)} on {incident.place}" if ranks else incident.place
        return f"slurm-health: {where}: {incident.words}"

    async def _say(self, victim: Victim, job: Job, text: str) -> None:
        if job.state not in policy.job.LIVE:
            return
        self.ledger.conclude("tell", victim.label, time.time())
        action = self.ledger.intend(victim.incident, "tell", victim.label, time.time(), text)
        try:
            await self.slurm.tell(victim.label, text)
            outcome = "done"
        except SlurmError as error:
            outcome = f"not done: {error}"
        self.ledger.settle(action, outcome, time.time())

    async def _append(self, victim: Victim, text: str) -> bool:
        """Other tools may have written to the AdminComment, too; whether it was news."""
        try:
            before = await self.slurm.comment(victim.label)
            both = f"{before}; {text}" if before else text
            if text in before:
                return False
            if len(both) <= COMMENT:
                await self.slurm.set_comment(victim.label, both)
        except SlurmError as error:
            log.warning("job %s: AdminComment: %s", victim.label, error)
        return True


def _who(ranks: str) -> str:
    return f"rank {ranks}" if ranks.isdigit() else f"ranks {ranks}"
