"""What becomes of the jobs that a fault touched: found, requeued, released, followed until they run again.

Each job is treated a step at a time by what Slurm says of it now (see policy.job.treat), all jobs of a round
in as few questions to Slurm as there are kinds of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from ClusterShell.NodeSet import NodeSet
from ClusterShell.RangeSet import RangeSet

from slurm_health import policy
from slurm_health.config import Config
from slurm_health.fence import Fence
from slurm_health.ledger import RUNS_AGAIN, Ledger
from slurm_health.model import Card, Hurt, Incident, Job, Urgency, Victim, Wish
from slurm_health.outage import Outage
from slurm_health.owner import Owner
from slurm_health.place import Place
from slurm_health.slurm import Rejected, Site, Slurm, SlurmError
from slurm_health.turns import Turns

log = logging.getLogger(__name__)

TICK = 2.0  # seconds between looks at jobs of which nothing is expected
HOT = 0.1  # seconds between looks at a job that is about to change
REFUSAL = 600.0  # seconds in which a job that our prolog turned away is looked for
REFUSALS = 3  # times that Slurm may reject the requeue of one job before it is given up
MISSING = 10.0  # seconds that a job lacks nodes before that is told


@dataclass(frozen=True, slots=True)
class Fault:
    """What a look at a node found that may have hurt jobs."""

    node: str
    pressing: list[Incident]
    cards: tuple[Card, ...]
    drained: float  # when it went out by us, 0.0 when it did not
    why_not: str  # why nothing is done about it


class Rescue:
    """`note` is told of faults and finds their jobs; `follow` keeps going until cancelled."""

    def __init__(self, config: Config, ledger: Ledger, slurm: Slurm, outage: Outage) -> None:
        self.config, self.ledger, self.slurm = config, ledger, slurm
        self.out: set[str] = set()  # nodes that Slurm showed out of service: from no other is a job requeued
        self.outage = outage
        self.place = Place(config, ledger, slurm)
        self.fence = Fence(config, ledger, slurm, outage)
        self.changed = asyncio.Event()
        self.owner = Owner(config, ledger, slurm)
        self.turns = Turns()
        self.site: Site | None = None
        self.site_trouble = ""
        self.missing: dict[int, float] = {}  # victim -> since when it misses nodes

    def wake(self) -> None:
        """There may be a next step for a job."""
        self.changed.set()

    def paused(self) -> Callable[[str], bool]:
        """Whether a node is paused, as things are now."""
        rows = self.ledger.pauses(time.time())
        everywhere = any(not row.nodes for row in rows)
        named = {name for row in rows for name in NodeSet(row.nodes)}
        return lambda node: everywhere or node in named

    # Whose jobs

    async def note(self, faults: Iterable[Fault]) -> None:
        """Note which jobs the faults touch: whoever held the device, was on the node, or was turned away."""
        now = time.time()
        recent, refused, ids, wide = [], [], set(), set()
        for fault in faults:
            for card in fault.cards:
                if card.refused and now - card.refused < REFUSAL:
                    refused.append((fault.node, card))
                    ids.add(card.job)
            for one in fault.pressing:
                # Jobs that it touches may still show: in the first minutes, and when the node goes out.
                if one.job is Urgency.NONE or now - max(one.opened, fault.drained) > policy.touch.DIES_WITHIN:
                    continue
                recent.append((fault, one))
                ids |= {card.job for card in policy.touch.cards_of(one, fault.cards)}
                if policy.touch.everyones(one):
                    wide.add(fault.node)
        jobs = await self.slurm.jobs(ids)
        there = await self.slurm.jobs_on(wide) if wide else []
        news = False
        with self.ledger.together():
            for node, card in refused:  # first: whoever refuses a job must also release it
                news |= self._note_refused(node, card, jobs.get(card.job))
            for fault, one in recent:
                for job, restarts, ranks in policy.touch.runs(one, fault.cards, jobs, there):
                    news |= self._note_touched(fault, one, job, restarts, _folded(ranks))
        if news:
            self.wake()

    def _note_refused(self, node: str, card: Card, job: Job | None) -> bool:
        # The fault of that time: a card outlives it, and later ones have nothing to do with the job.
        # (A node's clock may be behind ours; held for ever would be worse than a wrong story.)
        incident = self.ledger.latest(node, card.refused + policy.touch.SLACK) or self.ledger.latest(node)
        if incident is None or job is None or job.restarts < card.restarts:
            return False
        return self._note(incident, job, card.restarts, card.refused, asked=card.asked)

    def _note_touched(self, fault: Fault, incident: Incident, job: Job, restarts: int, ranks: str) -> bool:
        if not fault.why_not and self.config.mode == "requeue":
            asked = next((card.asked for card in fault.cards if card.job == job.id), "")
            return self._note(incident, job, restarts, ranks=ranks, asked=asked)
        why = fault.why_not or f"mode is {self.config.mode}"
        if job.completing or job.state in policy.job.LIVE | policy.job.DIED:  # no other would be requeued
            self.ledger.would(incident.id, "requeue", job.label, why, time.time())
        return False

    def adopt(self, number: int, job: Job, restarts: int) -> None:
        """Follow a job that Slurm itself has requeued for what this incident tells."""
        if incident := self.ledger.incident(number):
            self._note(incident, job, restarts, requeued=time.time())
            self.wake()

    def _note(
        self,
        incident: Incident,
        job: Job,
        restarts: int,
        refused: float = 0.0,
        requeued: float = 0.0,
        ranks: str = "",
        asked: str = "",
    ) -> bool:
        if job.label.isdigit():  # a heterogeneous job is brought back as a whole, whatever part was touched
            job = replace(job, id=int(job.label))
        return self.ledger.touch(incident, job, restarts, refused, time.time(), requeued, ranks, asked)

    def suspect(self, job: int, *more: Hurt) -> str:
        """Why a job is suspect of breaking nodes itself, these faults counted too; "" when it is not."""
        hurts = [*self.ledger.hurts(job, time.time()), *more]
        nodes = policy.touch.broke(hurts, self.config.requeue.progress)
        if len(nodes) < policy.touch.SUSPECTS + len(more):
            return ""
        return f"met {hurts[-1].code} on {', '.join(nodes)}, each time soon after it had begun"

    # Their way back

    async def follow(self) -> None:
        """Take each touched job a step further, until its story is at its end."""
        while True:
            wait = TICK
            self.changed.clear()
            with self.outage.survived("jobs"):
                await self.learn_site()
                recent = self.ledger.just_ran(time.time() - policy.job.LAUNCHES_WITHIN)
                victims = await self.owner.listen([*self.ledger.pending_victims(), *recent])
                self._forget(victims)
                jobs = await self.slurm.jobs(victim.job for victim in victims)
                if victims:
                    self.outage.over()
                if await self._treat_all(victims, jobs):
                    wait = HOT
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.changed.wait()

    async def learn_site(self) -> None:
        """Ask Slurm once what does not change. Nothing waits for it: what is safe for every release holds."""
        if self.site is None:
            try:
                self.site = await self.slurm.site()
            except SlurmError as error:
                if str(error) != self.site_trouble:
                    self.site_trouble = str(error)
                    log.warning("only root may report until Slurm has said who SlurmUser is: %s", error)

    @property
    def forgets_slowly(self) -> bool:
        return self.site is None or self.site.forgets_slowly

    def _forget(self, victims: Collection[Victim]) -> None:
        """What was remembered of jobs whose story has ended."""
        known = {one.id for one in victims}
        self.turns.forget(known, time.time())
        self.owner.corrected &= known
        self.missing = {number: since for number, since in self.missing.items() if number in known}

    async def _treat_all(self, victims: Iterable[Victim], jobs: Mapping[int, Job]) -> bool:
        """A step for each; whether to look again soon. One that fails does not hold up the others."""
        paused = self.paused()
        steps = [self._treat(victim, jobs.get(victim.job), paused) for victim in victims]
        results = await asyncio.gather(*steps, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                with self.outage.survived("jobs"):
                    raise result
        return any(result is True for result in results)

    async def _treat(self, victim: Victim, job: Job | None, paused: Callable[[str], bool]) -> bool:
        """One step for one job; whether to look again soon."""
        now = time.time()
        if victim.settled:
            return job is not None and self._reopened(victim, job, now)
        wish = await self.owner.wish(victim, job)
        again = job is not None and job.restarts > victim.restarts
        if again and await self._catch_up(victim, wish, now):
            return True
        if victim.signalled and self.ledger.unsettled("signal", victim.label):
            self.ledger.conclude("signal", victim.label, now)
        may = victim.node in self.out and self.config.mode == "requeue" and not paused(victim.node)
        start = 0.0
        if job:
            self.turns.see(victim, job, now)
            left = self.turns.left.get(victim.id, 0.0)
            start = policy.queue.earliest(victim, job, left, self.forgets_slowly)
            if job.completing and may:
                self.fence.hear(victim, job, now)
            if not victim.outcome:
                await self._miss(victim, job, now)
        if job is None or (job.size > 1 and not policy.queue.keeps(victim, job, now)):
            await self.place.let_go(victim)
        expedites = self.site is not None and self.site.expedites
        terms = policy.job.Terms(wish, may, start, self.place.first, expedites)
        step = policy.job.treat(victim, job, terms, now)
        if job and again and policy.job.runs(job) and not victim.running:
            self.ledger.victim(victim.id, running=now, ran_nodes=str(NodeSet.fromlist(list(job.nodes))))
            self.turns.done(victim, now)
        if isinstance(step, policy.job.Wait):
            return step.hot
        if isinstance(step, policy.job.Settle):
            await self._end(victim, job, step)
            return False
        assert job
        match step:
            case policy.job.Signal():
                await self._signal(victim, job, step, wish.grace)
            case policy.job.Requeue():
                hold = self.suspect(victim.job) or self.spent(victim, wish)
                await self._requeue(victim, job, replace(step, hold=hold))
            case policy.job.Adopt():
                self.ledger.victim(victim.id, requeued=now)
                log.warning("job %s: Slurm has requeued it off %s, expedited", victim.label, victim.node)
            case policy.job.Release():
                await self._release(victim, job)
            case policy.job.Lift():
                await self.place.lift(victim)
            case policy.job.StartNow():
                await self._start(victim, job)
            case policy.job.Ran():
                await self._ran(victim, job)
        return not isinstance(step, policy.job.Ran)

    def _reopened(self, victim: Victim, job: Job, now: float) -> bool:
        """Take up a story whose job was told to run again, where Slurm finds now that it was not launched."""
        if not policy.job.launch_failed(victim, job):
            return False
        log.warning("job %s: Slurm could not launch it on %s", victim.label, victim.ran_nodes)
        anew = {"requeued": now, "started": 0.0, "running": 0.0, "ran": 0.0, "placed": 0.0}
        self.ledger.victim(victim.id, **anew, settled=0.0, outcome="")
        return True

    async def _catch_up(self, victim: Victim, wish: Wish, now: float) -> bool:
        """Note a requeue that is done and not noted: by us before a crash, or by itself, as many scripts do,
        after our signal. Whether there was one."""
        for kind in ("requeue", "hold"):
            if not self.ledger.unsettled(kind, victim.label):
                continue  # each tenth of a second: no writer's lock for nothing
            why = self.suspect(victim.job) or self.spent(victim, wish)
            with self.ledger.together():
                done = self.ledger.conclude(kind, victim.label, now, f"restarts={victim.restarts}")
                if done:
                    self.ledger.victim(victim.id, requeued=victim.requeued or now)
                    if kind == "hold":
                        self._notice_held(victim, f"held: it {why}")
            if done:
                await self._comfort(victim)
                if kind == "hold":
                    await self._held(victim, why)
                return True
        if victim.signalled and not victim.requeued:
            self.ledger.victim(victim.id, requeued=now)
            await self.owner.brief(victim)
            return True
        return False

    def spent(self, victim: Victim, wish: Wish) -> str:
        """Why a job may not be requeued once more; "" when it may."""
        many = self.ledger.requeues(victim.job, victim.uid, victim.restarts)
        if many < wish.requeue:
            return ""
        return f"was requeued {many} times for faults already, and {wish.requeue} are allowed"

    async def _signal(self, victim: Victim, job: Job, step: policy.job.Signal, grace: float) -> None:
        """Have a job save its work. Once: what is written down before is that it was signalled."""
        what = f"SIG{step.name} now, and is requeued in {grace:g} s if it has not ended"
        await self.owner.tell(victim, job, f"job {victim.label} gets {what}")
        now = time.time()
        with self.ledger.together():
            detail = f"restarts={job.restarts} {step.name} steps={step.steps}"
            action = self.ledger.intend(victim.incident, "signal", victim.label, now, detail)
            self.ledger.victim(victim.id, signalled=now)
        try:
            await self.slurm.signal(victim.label, step.name, step.steps)
            outcome = "done"
        except Rejected as error:
            outcome = f"not done: {error}"
        self.ledger.settle(action, outcome, time.time())
        log.warning("job %s: signal %s: %s", victim.label, step.name, outcome)

    async def _requeue(self, victim: Victim, job: Job, step: policy.job.Requeue) -> None:
        if step.incomplete:
            what = f"is held: it {step.hold}" if step.hold else "is requeued"
            await self.owner.tell(victim, job, f"job {victim.label} {what}")
            if not step.hold:
                await self.place.keep(victim, job, self.out)
        kind, hold = ("hold" if step.hold else "requeue"), bool(step.hold)
        action = await self._act(
            victim, job, kind, lambda: self.slurm.requeue(victim.label, step.incomplete, hold)
        )
        if not action:
            return
        after = (await self.slurm.jobs([job.id])).get(job.id)
        if after is None or after.restarts <= job.restarts:
            self.ledger.settle(action, "not done: it had ended", time.time())
            return
        if not step.incomplete:
            await self._comfort(victim)
        tries = victim.tries + (job.restarts > victim.restarts)  # its launch had failed
        with self.ledger.together():
            self._done(victim, action, requeued=time.time(), started=0.0, running=0.0, tries=tries)
            if hold:
                self._notice_held(victim, f"held: it {step.hold}")
        log.warning("job %s: requeued off %s", victim.label, victim.node)
        await self.owner.brief(victim)
        if hold:
            await self._held(victim, step.hold)

    async def _release(self, victim: Victim, job: Job) -> None:
        if action := await self._act(victim, job, "release", lambda: self.slurm.release(victim.label)):
            self._done(victim, action, requeued=time.time())

    async def _start(self, victim: Victim, job: Job) -> None:
        """End its wait, when it is its turn."""
        if job.size > 1 and self.forgets_slowly:
            if not self.turns.free(victim):
                await self.place.let_go(victim)  # they are whose turn it is
                return
            self.turns.take(victim, time.time())
        if action := await self._act(victim, job, "start", lambda: self.slurm.start_now(victim.label)):
            self._done(victim, action, started=time.time())
            await self.place.let_go(victim)  # not before: now it is the first to get them

    async def _act(self, victim: Victim, job: Job, kind: str, call: Callable[[], Awaitable[None]]) -> int:
        """Do something to a job, written down before; its number in the ledger, 0 where Slurm refuses it.
        Where Slurm does not answer, what becomes of the job tells whether it was done."""
        self.ledger.conclude(kind, victim.label, time.time())
        detail = f"restarts={job.restarts}"
        action = self.ledger.intend(victim.incident, kind, victim.label, time.time(), detail)
        try:
            await call()
        except Rejected as error:
            self.ledger.settle(action, f"not done: {error}", time.time())
            self.ledger.victim(victim.id, tries=victim.tries + 1)
            if victim.tries + 1 >= REFUSALS:
                why = f"{kind} refused by Slurm: {error}"
                what = f"job {victim.label}: {why}"
                self.ledger.notice("help", victim.incident, what, time.time(), victim.label)
                await self._settle(victim, why)
            return 0
        return action

    def _done(self, victim: Victim, action: int, **changes: float) -> None:
        with self.ledger.together():
            self.ledger.victim(victim.id, **changes)
            self.ledger.settle(action, "done", time.time())

    async def _comfort(self, victim: Victim) -> None:
        """Have those wait for it again who were to start when it had ended well, and saw it fail."""
        try:
            for label, dependency in (await self.slurm.stranded()).items():
                if anew := policy.queue.renewed(dependency, victim):
                    action = self.ledger.intend(victim.incident, "wait", label, time.time(), anew)
                    await self.slurm.set_dependency(label, anew)
                    self.ledger.settle(action, "done", time.time())
        except SlurmError as error:
            log.warning("job %s: who depends on it may wait for ever: %s", victim.label, error)

    # The end of its story

    async def _ran(self, victim: Victim, job: Job) -> None:
        await self.place.lower(victim)
        now = time.time()
        where = str(NodeSet.fromlist(list(job.nodes))) or victim.ran_nodes
        running = victim.running or job.started
        log.warning(
            "job %s: runs again on %s, %.1f s after the fault", victim.label, where, running - victim.since
        )
        story = f"requeued, runs again on {where} after {running - victim.since:.1f} s"
        await self.owner.tell(victim, job, story)
        await self.owner.annotate(victim, story)
        with self.ledger.together():  # last: what a crash keeps from being told is told then
            for kind in ("release", "start", "tell"):
                self.ledger.conclude(kind, victim.label, now, f"restarts={job.restarts}")
            what = f"job {victim.label} runs again on {where}, {running - victim.since:.1f} s after the fault"
            self.ledger.notice("ran", victim.incident, what, now, victim.label)
            self.fence.forget(victim)
            self.ledger.victim(
                victim.id, running=running, ran=now, ran_nodes=where, settled=now, outcome=RUNS_AGAIN
            )

    async def _miss(self, victim: Victim, job: Job, now: float) -> None:
        """Tell of a job that waits for nodes that are out. Slurm says so for a moment of others too."""
        if not policy.queue.misses_nodes(victim, job, now):
            self.missing.pop(victim.id, None)
            return
        if now - self.missing.setdefault(victim.id, now) < MISSING:
            return
        gone = self.turns.had.get(victim.id, frozenset({victim.node})) & self.out
        such = f", such as {NodeSet.fromlist(sorted(gone))}" if gone else ""
        why = f"waits for nodes that are out of service{such}: {job.reason}"
        hint = policy.queue.ways_on(job, len(gone))
        with self.ledger.together():
            self.ledger.victim(victim.id, outcome=f"{why}; {hint}")
            what = f"job {victim.label} of uid {victim.uid} {why}"
            self.ledger.notice("help", victim.incident, what, now, victim.label)
        log.warning("job %s: %s", victim.label, why)
        await self.owner.annotate(victim, f"{why}; {hint}")

    def _notice_held(self, victim: Victim, how: str) -> None:
        what = f"job {victim.label} of uid {victim.uid} is {how}"
        self.ledger.notice("hold", victim.incident, what, time.time(), victim.label)

    async def _held(self, victim: Victim, why: str) -> None:
        await self._settle(victim, f"held: it {why}")
        log.error("job %s of uid %d is held: it %s", victim.label, victim.uid, why)
        await self.owner.annotate(victim, f"held: it {why}")

    async def _end(self, victim: Victim, job: Job | None, step: policy.job.Settle) -> None:
        if step.outcome.startswith("held"):
            self._notice_held(victim, step.outcome)
        if job and step.tell:
            await self.owner.tell(victim, job, f"not requeued: {step.outcome}")
        await self._settle(victim, step.outcome)

    async def _settle(self, victim: Victim, outcome: str) -> None:
        await self.place.lower(victim)
        await self.place.let_go(victim)
        self.fence.forget(victim)
        now = time.time()
        self.turns.done(victim, now)
        with self.ledger.together():
            for kind in ("release", "start", "tell"):  # what got no answer
                self.ledger.conclude(kind, victim.label, now)
            self.ledger.victim(victim.id, settled=now, outcome=outcome)
        log.info("job %s: %s", victim.label, outcome)


def _folded(ranks: Iterable[int]) -> str:
    return str(RangeSet.fromlist(map(str, ranks)))
