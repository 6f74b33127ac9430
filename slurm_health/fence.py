"""A job that cannot end because its node is dead is let go: the node is made sure to be off, then set DOWN.

Slurm shows such a job COMPLETING for ever: slurmd does not answer, a process cannot be killed, an epilog
hangs. DOWN lets it go, and kills all else on the node. A process that only seems dead may still be writing
its checkpoint: nothing is done unless the site's command has said that the node is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time

from slurm_health import policy
from slurm_health.config import Config
from slurm_health.ledger import Ledger
from slurm_health.model import Job, Victim
from slurm_health.outage import Outage
from slurm_health.slurm import Rejected, Slurm

log = logging.getLogger(__name__)

AGAIN = 60.0  # seconds until the next try for the same job
LOSES = "Slurm before 24.11 would lose GPUs of the job's next nodes; it goes when slurmd is started anew"


class Fence:
    """`hear` is told of jobs that are seen leaving their nodes; `run` keeps going until cancelled, and deals
    with one at a time."""

    def __init__(self, config: Config, ledger: Ledger, slurm: Slurm, outage: Outage) -> None:
        self.config, self.ledger, self.slurm, self.outage = config, ledger, slurm, outage
        self.stuck: asyncio.Queue[tuple[Victim, Job]] = asyncio.Queue()
        self.not_before: dict[int, float] = {}  # victim -> when it is looked at again

    def hear(self, victim: Victim, job: Job, now: float) -> None:
        """A job is COMPLETING. It is stuck when that has lasted."""
        since = max(job.ended if job.ended <= now else 0.0, victim.requeued, victim.since)
        if now - since >= self.config.fence.after and now >= self.not_before.get(victim.id, 0.0):
            self.not_before[victim.id] = now + AGAIN
            self.stuck.put_nowait((victim, job))

    def forget(self, victim: Victim) -> None:
        self.not_before.pop(victim.id, None)

    async def run(self) -> None:
        while True:
            victim, job = await self.stuck.get()
            with self.outage.survived("fence"):
                await self._let_go(victim, job)

    async def _let_go(self, victim: Victim, job: Job) -> None:
        name = victim.node
        here = [one for one in await self.slurm.jobs_on([name]) if policy.job.holds_on(one)]
        known = self.ledger.node(name)
        ours = policy.node.Drained(known.reason, known.reason_time) if known else policy.node.Drained()
        state = (await self.slurm.nodes([name])).get(name)
        if all(one.id != job.id for one in here) or state is None or "DOWN" in state.flags:
            return  # it has gone meanwhile, or another node keeps it
        why = policy.node.spared(state, ours, [one.label for one in here if one.label != job.label])
        if not self.config.fence.command:
            why = why or "no fence command is configured"
        if (await self.slurm.site()).loses_gpus:
            why = why or LOSES
        if why := why or await self._off(victim):
            self._tell(victim, why)
        else:
            await self._down(victim, ours.reason)

    def _tell(self, victim: Victim, why: str) -> None:
        """A stuck job is an admin's to free: it is said once, and stands in the incident."""
        words, now = (
            f"job {victim.label} is stuck on {victim.node}, which is not set DOWN: {why}",
            time.time(),
        )
        with self.ledger.together():
            if self.ledger.would(victim.incident, "down", victim.node, why, now):
                log.error("%s", words)
                self.ledger.notice("help", victim.incident, words, now, victim.label)

    async def _off(self, victim: Victim) -> str:
        """Have the node off, by the command, now or before a crash, for this run of the job; "", or what went
        wrong.
        """
        run = f"job {victim.label}, restarts={victim.restarts}"
        if self.ledger.done_since("fence", victim.node, run, victim.since):
            return ""
        for row in self.ledger.unsettled("fence", victim.node):
            self.ledger.settle(row.id, "not done: it was cut short", time.time())
        action = self.ledger.intend(victim.incident, "fence", victim.node, time.time(), run)
        wrong = await self._command(victim.node)
        self.ledger.settle(action, f"not done: {wrong}" if wrong else "done", time.time())
        return wrong

    async def _command(self, node: str) -> str:
        """Run the site's command; what went wrong, or ""."""
        site = self.config.fence
        argv = [part.replace("{node}", node) for part in site.command]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                process_group=0,
            )
        except OSError as error:
            return f"{argv[0]}: {error.strerror}"
        try:
            async with asyncio.timeout(site.deadline):
                _, said = await process.communicate()
        except TimeoutError:
            return f"{argv[0]}: no end in {site.deadline:g} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        words = said.decode(errors="replace").strip()[-200:]
        return f"{argv[0]}: {words or f'exit {process.returncode}'}" if process.returncode else ""

    async def _down(self, victim: Victim, reason: str) -> None:
        action = self.ledger.intend(victim.incident, "down", victim.node, time.time(), reason)
        try:
            await self.slurm.down([victim.node], reason)
        except Rejected as error:
            self.ledger.settle(action, f"not done: {error}", time.time())
            return
        # Its drain has a new time now: the controller, which looks at it each two seconds, writes both down.
        log.error("%s: is off; set DOWN, so that job %s can go", victim.node, victim.label)
