"""The cluster's one writer: takes reports, decides, acts on Slurm, follows what it did to its end.

Everything is driven by what the ledger and Slurm say now, never by what was meant to happen next: after a
crash, an outage of slurmctld or an admin's hand the same loops find what is left to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ClusterShell.NodeSet import NodeSet

from slurm_health import policy
from slurm_health.config import Config
from slurm_health.ledger import Ledger, LedgerError
from slurm_health.model import Card, Incident, Job, Node, Severity, Urgency, Victim
from slurm_health.policy import Do
from slurm_health.slurm import Rejected, Site, Slurm, SlurmError
from slurm_health.wire import Decision, NodeReport

log = logging.getLogger(__name__)

TICK = 2.0  # seconds between looks at nodes that are out by us or should be
SULK = 60.0  # seconds until a drain that Slurm rejected is tried again
FRESH = 0.25  # seconds that Slurm's word on a node is acted upon: an admin may act at the same moment
HOT = 0.1  # seconds between looks at a job that is about to change
INVENTORY = 60.0  # seconds that the list of Slurm's nodes is believed
SKEW = 2.0  # seconds that a node's clock may be off ours
REFUSALS = 3  # times that Slurm may reject the requeue of one job before it is given up
COMMENT = 1000  # characters of AdminComment that we let grow


class Controller:
    """`run` keeps going until cancelled. `heed` is given each report; `decision` is what a node should do."""

    def __init__(self, config: Config, ledger: Ledger, slurm: Slurm) -> None:
        self.config, self.ledger, self.slurm = config, ledger, slurm
        self.cards: dict[str, tuple[Card, ...]] = {}
        self.reported: dict[str, tuple[float, str]] = {}  # node -> when, verdict
        self.decisions: dict[str, Decision] = {}
        self.changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.out: set[str] = set()  # nodes that Slurm showed out of service
        self.shown_out: dict[str, float] = {}  # node -> when Slurm was asked that last showed it out (epoch)
        self.acted: dict[str, float] = {}  # node -> when we last changed it in Slurm (monotonic)
        self.not_before: dict[str, float] = {}  # node -> when a drain that Slurm rejected is tried again
        self.inventory: dict[str, Node] = {}
        self.inventory_at = 0.0
        self.locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.tasks: set[asyncio.Task[None]] = set()
        self.victims_changed = asyncio.Event()
        self.completing: dict[int, float] = {}  # victim -> when its job was last seen COMPLETING
        self.site: Site | None = None  # until Slurm has said it
        self.site_trouble = ""
        self.began = time.time()
        self.trouble = ""  # Slurm's silence, in its words

    # What comes in

    def heed(self, report: NodeReport) -> Decision:
        """Write a report down and have its consequences drawn. LedgerError when it cannot be kept."""
        report = _in_our_time(report, time.time())
        changed = self.ledger.take(report, time.time())
        self.cards[report.node] = report.cards
        self.reported[report.node] = (time.time(), report.verdict)
        if changed or report.opened or any(card.refused for card in report.cards):
            for number in changed:
                if incident := self.ledger.incident(number):
                    log.log(
                        logging.ERROR if incident.pressing else logging.WARNING,
                        "%s: incident %d %s(%s) %s%s",
                        incident.node,
                        number,
                        incident.code,
                        incident.device,
                        incident.text,
                        " has cleared" if incident.cleared else "",
                    )
            self.look_at(report.node)
        return self.decision(report.node)

    def decision(self, node: str) -> Decision:
        return self.decisions.get(node, Decision(mode=self.config.mode))

    def look_at(self, node: str, state: Node | None = None, asked: float = 0.0) -> None:
        """Have a node reconciled in the background; `state` is what Slurm said when asked at that time."""
        task = asyncio.create_task(self._reconcile_safely(node, state, asked))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _decide(self, node: str, decision: Decision) -> None:
        if self.decision(node) == decision:
            return
        self.decisions[node] = decision
        self.changed.pop(node, asyncio.Event()).set()  # the next long poll waits on a new one

    async def await_change(self, node: str, known: str, patience: float) -> Decision:
        """The decision on a node, as soon as it is no longer the known one."""
        end = time.monotonic() + patience
        while self.decision(node).version == known and (left := end - time.monotonic()) > 0:
            event = self.changed[node]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), left)
        return self.decision(node)

    async def nodes(self) -> dict[str, Node]:
        """Slurm's nodes, at most a minute old. A stale list is better than none."""
        if time.monotonic() - self.inventory_at > INVENTORY or not self.inventory:
            try:
                self.inventory = await self.slurm.nodes()
                self.inventory_at = time.monotonic()
            except SlurmError as error:
                if not self.inventory:
                    raise
                self._mourn(error)
        return self.inventory

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

    # The loops

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._follow())
            group.create_task(self._keep_house())

    async def _watch(self) -> None:
        """Each two seconds, in one call, look at the nodes that are out by us or should be."""
        while True:
            with self._surviving("watch"):
                pressing: dict[str, list[Incident]] = defaultdict(list)
                if self.config.mode != "observe":
                    for one in self.ledger.open_incidents(at_least=Severity.CRITICAL):
                        if one.pressing:
                            pressing[one.node].append(one)
                ours = {row.name: _drained(row) for row in self.ledger.out_by_us()}
                if names := {*pressing, *ours}:
                    asked = time.monotonic()
                    states = await self.slurm.nodes(names)
                    self._rejoice()
                    spent = self._spent("", len(await self.nodes()))
                    for name in sorted(names):
                        state = states.get(name)
                        outlook = policy.Outlook(self.config.mode, self._paused(name), spent)
                        if (state and state.out) != (name in self.out) or not policy.settled(
                            state,
                            pressing.get(name, ()),
                            ours.get(name, policy.Drained()),
                            outlook,
                            time.time(),
                        ):
                            self.look_at(name, state, asked)
            await asyncio.sleep(TICK)

    async def _follow(self) -> None:
        """Take each touched job a step further, until its story is at its end."""
        while True:
            wait = TICK
            self.victims_changed.clear()
            with self._surviving("follow"):
                await self.learn_site()
                victims = self.ledger.pending_victims()
                self.completing = {one.id: self.completing.get(one.id, 0.0) for one in victims}
                jobs = await self.slurm.jobs(victim.job for victim in victims)
                if victims:
                    self._rejoice()
                if await self._treat_all(victims, jobs):
                    wait = HOT
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.victims_changed.wait(), wait)

    async def _keep_house(self) -> None:
        while True:
            with self._surviving("housekeeping"):
                now = time.time()
                self.ledger.close_quiet(now, self.config.ledger.quiet)
                self.ledger.forget(now - self.config.ledger.keep)
            await asyncio.sleep(60)

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Any:
        """No answer from Slurm or the disk ends a loop: the next round is the next try."""
        try:
            yield
        except SlurmError as error:
            self._mourn(error)
        except LedgerError as error:
            log.error("%s: %s", what, error)
        except Exception:
            log.exception("%s", what)

    def _mourn(self, error: Exception) -> None:
        if str(error) != self.trouble:
            log.error("Slurm: %s", error)
            self.trouble = str(error)

    def _rejoice(self) -> None:
        if self.trouble:
            log.info("Slurm answers again")
            self.trouble = ""

    # Nodes

    async def _reconcile_safely(self, node: str, state: Node | None, asked: float) -> None:
        with self._surviving(node):
            async with self.locks[node]:
                # What Slurm said before our last act on the node is history.
                await self._reconcile(node, state if asked > self.acted.get(node, 0.0) else None, asked)

    async def _reconcile(self, name: str, state: Node | None, asked: float) -> None:
        incidents = self.ledger.open_incidents(name)
        record = self.ledger.node(name)
        ours = _drained(record)
        pressing = [one for one in incidents if one.pressing]
        cards = self.cards.get(name, ())
        if not pressing and not ours.reason:
            self._decide(name, Decision(mode=self.config.mode))
            self.out.discard(name)
            await self._touch_refused(name, cards)
            return
        total = len(await self.nodes()) if pressing else 0
        if state is None or time.monotonic() - asked > FRESH:
            asked = time.monotonic()
            state = (await self.slurm.nodes([name])).get(name)
            self._rejoice()
        if state and state.out:
            self._shown_out(name, asked)
        attempted = {row.detail: row for row in self.ledger.unsettled("drain", name)}
        first = min((one.since for one in pressing), default=0.0)
        refused = policy.our_hook(state, ours, cards, first)
        # No await from here to the intention: two nodes must not take the budget's last place both.
        outlook = policy.Outlook(
            self.config.mode, self._paused(name), self._spent(name, total) if pressing else ""
        )
        judged = policy.judge(state, incidents, ours, attempted, outlook, refused)
        why_not = judged.why if judged.do is Do.NOTHING else ""
        if policy.lost(ours, state, judged.do):
            self.ledger.drained(name, "", 0, 0.0)
        if judged.do is Do.DRAIN:
            if time.monotonic() >= self.not_before.get(name, 0.0):
                await self._drain(name, judged.reason, pressing, attempted)
        elif judged.do is Do.STAND:
            assert state
            for row in attempted.values():
                self.ledger.settle(row.id, "done", time.time())
            if not ours.reason:
                self.ledger.drained(name, state.reason, state.since, time.time())
            self._out(name, pressing, refuse=not outlook.paused and outlook.mode != "observe")
        elif judged.do is Do.LEAVE:
            for one in pressing:
                if one.held != judged.why:
                    self.ledger.hold(one.id, judged.why)
            self.out.add(name)
            self._decide(name, self._noted(pressing))
        elif judged.do in (Do.YIELD, Do.UNDO):
            pressing = await self._yield(name, incidents, pressing, undo=judged.do is Do.UNDO)
        else:
            self.out.discard(name)
            for one in pressing:
                if one.held != why_not:
                    log.error("%s: stays in service with incident %d: %s", name, one.id, why_not)
                    self.ledger.hold(one.id, why_not)
                    self.ledger.would(one.id, "drain", name, why_not, time.time())
            self._decide(name, self._noted(pressing))
        await self._touch_refused(name, cards)  # first: a job that we refused is to be released
        record = self.ledger.node(name)
        for one in pressing:
            # Jobs that it touches may still show: in the first minutes, and when the node goes out.
            if time.time() - max(one.opened, record.drained if record else 0.0) <= policy.DIES_WITHIN:
                await self._touch(one, cards, why_not)

    def _out(self, name: str, pressing: list[Incident], refuse: bool = True) -> None:
        """The node is out by us: no job shall start there."""
        self.out.add(name)
        for one in pressing:
            if one.held:
                self.ledger.hold(one.id, "")
        if pressing and refuse:
            self._decide(name, Decision(refuse=_words(pressing[0]), mode=self.config.mode))
        else:
            self._decide(name, self._noted(pressing))
        self.victims_changed.set()

    def _noted(self, pressing: list[Incident]) -> Decision:
        return Decision(note=_words(pressing[0]) if pressing else "", mode=self.config.mode)

    async def _drain(
        self, name: str, reason: str, pressing: list[Incident], attempted: dict[str, Any]
    ) -> None:
        """Drain, refuse, read back. The intention is on disk before, the outcome after."""
        for row in attempted.values():
            self.ledger.settle(row.id, "not done: interrupted", time.time())
        action = self.ledger.intend(pressing[0].id, "drain", name, time.time(), reason)
        self._decide(name, Decision(refuse=_words(pressing[0]), mode=self.config.mode))
        try:
            await self.slurm.drain([name], reason)
            self.acted[name] = time.monotonic()
        except Rejected as error:
            self.ledger.settle(action, f"not done: {error}", time.time())
            self.not_before[name] = time.monotonic() + SULK
            self._decide(name, self._noted(pressing))
            log.error("%s: %s", name, error)
            return
        state = (await self.slurm.nodes([name])).get(name)
        now = time.time()
        if state and state.out and state.reason == reason:
            self._shown_out(name, self.acted[name])
            self.ledger.drained(name, reason, state.since, now)
            self.ledger.settle(action, "done", now)
            log.error("%s: drained: %s", name, reason)
            self._out(name, pressing)
        else:
            # Somebody wrote over it between our write and our look: it is theirs now.
            self.ledger.settle(action, f"not done: Slurm shows {state.reason if state else 'no node'!r}", now)

    async def _yield(
        self, name: str, incidents: Iterable[Incident], pressing: list[Incident], undo: bool
    ) -> list[Incident]:
        """An admin put the node back: that stands until there is new evidence, which is returned.

        Slurm does not say when that was. What came since it last showed the node out counts as new: at most
        two seconds old, it is nothing that an admin has weighed.
        """
        now = time.time()
        since = math.inf if undo else self.shown_out.get(name, math.inf)
        old = [one.id for one in incidents if one.severity is Severity.CRITICAL and one.seen <= since]
        fresh = [one for one in pressing if one.id not in old]
        self.ledger.acknowledge(old, now)
        for one in fresh:
            self.ledger.hold(one.id, "")
        self.ledger.drained(name, "", 0, 0.0)
        self.out.discard(name)
        # What has ended, or cannot, is closed with it and is no longer worth a note.
        still = [one for one in self.ledger.open_incidents(name) if one.severity is Severity.CRITICAL]
        self._decide(name, self._noted(still))
        log.warning("%s: resumed by an admin; its %d open incidents are acknowledged", name, len(old))
        if fresh:
            self.look_at(name)
        if undo and pressing:
            action = self.ledger.intend(
                pressing[0].id, "resume", name, now, "our hook failed after a RESUME"
            )
            await self.slurm.resume([name])
            self.acted[name] = time.monotonic()
            self.ledger.settle(action, "done", time.time())
        return fresh

    def _shown_out(self, name: str, asked: float) -> None:
        self.shown_out[name] = time.time() - (time.monotonic() - asked)

    def _paused(self, name: str) -> bool:
        return any(not row.nodes or name in NodeSet(row.nodes) for row in self.ledger.pauses(time.time()))

    def _spent(self, name: str, total: int) -> str:
        site = self.config.budget
        out = {row.name for row in self.ledger.out_by_us()} | self.ledger.drained_since(0, under_way=True)
        return policy.budget(
            total,
            len(out - {name}),
            len(self.ledger.drained_since(time.time() - site.window) - {name}),
            site.percent,
            site.at_least,
            site.window_percent,
            site.window_at_least,
        )

    # Jobs

    async def _touch(self, incident: Incident, cards: Iterable[Card], why_not: str) -> None:
        """Note which jobs the fault touches."""
        if incident.job is Urgency.NONE:
            return
        if not policy.everyones(incident):
            held = {card.job: card for card in sorted(policy.touched(incident, cards), key=_run)}
            jobs = list((await self.slurm.jobs(held)).values())
            found = [(job, held[job.id].restarts) for job in jobs if job.restarts >= held[job.id].restarts]
        else:
            jobs = await self.slurm.jobs_on(incident.node)
            found = [(job, job.restarts) for job in jobs if policy.hurt(incident, job)]
        news = False
        for job, restarts in found:
            if why_not or self.config.mode != "requeue":
                why = why_not or f"mode is {self.config.mode}"
                if job.completing or job.state in policy.LIVE | policy.DIED:  # no other would be requeued
                    self.ledger.would(incident.id, "requeue", job.label, why, time.time())
            else:
                news |= self._note_victim(incident, job, restarts)
        if news:
            self.victims_changed.set()

    async def _touch_refused(self, node: str, cards: Iterable[Card]) -> None:
        """Whoever refuses a job must also release it."""
        fresh = {card.job: card for card in cards if card.refused and time.time() - card.refused < 600}
        for number, job in (await self.slurm.jobs(fresh)).items():
            card = fresh[number]
            # The fault of that time: a card outlives it, and later ones have nothing to do with the job.
            # (A node's clock may be behind ours; held for ever would be worse than a wrong story.)
            incident = self.ledger.latest(node, card.refused + policy.SLACK) or self.ledger.latest(node)
            if incident is None or job.restarts < card.restarts:
                continue
            if self._note_victim(incident, job, card.restarts, card.refused):
                self.victims_changed.set()

    def _note_victim(self, incident: Incident, job: Job, restarts: int, refused: float = 0.0) -> bool:
        return self.ledger.touch(incident, job.id, restarts, job.label, job.uid, refused, time.time())

    async def _treat_all(self, victims: Iterable[Victim], jobs: Mapping[int, Job]) -> bool:
        """A step for each; whether to look again soon. One that fails does not hold up the others."""
        steps = [self._treat(victim, jobs.get(victim.job)) for victim in victims]
        results = await asyncio.gather(*steps, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                with self._surviving("follow"):
                    raise result
        return any(result is True for result in results)

    async def _treat(self, victim: Victim, job: Job | None) -> bool:
        """One step for one job; whether to look again soon."""
        now = time.time()
        if job and job.restarts > victim.restarts and not victim.requeued:
            # Requeued, and not noted: by us before a crash, or by Slurm after our prolog's refusal.
            for row in self.ledger.unsettled("requeue", victim.label):
                if row.detail != f"restarts={victim.restarts}":
                    continue
                self.ledger.settle(row.id, "done", now)
                self.ledger.victim(victim.id, requeued=now)
                return True
        may = victim.node in self.out and self.config.mode == "requeue" and not self._paused(victim.node)
        if job and job.completing:
            self.completing[victim.id] = now
        start = (
            policy.earliest(victim, job, self.completing.get(victim.id, 0.0), self.forgets_slowly)
            if job
            else 0.0
        )
        step = policy.treat(victim, job, may, now, start)
        if job and job.restarts > victim.restarts and policy.runs(job) and not victim.running:
            self.ledger.victim(victim.id, running=now, ran_nodes=str(NodeSet.fromlist(list(job.nodes))))
        match step:
            case policy.Wait():
                return step.hot
            case policy.Settle():
                await self._settle(victim, step.outcome)
                return False
            case policy.Ran():
                assert job
                await self._ran(victim, job)
                return False
            case _:
                assert job
                return await self._move(victim, job, step)

    async def _move(self, victim: Victim, job: Job, step: policy.Step) -> bool:
        """Requeue, release or start a job, written down before and after."""
        kind = {policy.Requeue: "requeue", policy.Release: "release", policy.StartNow: "start"}[type(step)]
        if isinstance(step, policy.Requeue) and step.incomplete:
            await self._tell(victim, job, f"{self._cause(victim)}; job {victim.label} is requeued")
        detail = f"restarts={job.restarts}"
        action = self.ledger.intend(victim.incident, kind, victim.label, time.time(), detail)
        try:
            if isinstance(step, policy.Requeue):
                await self.slurm.requeue(victim.label, step.incomplete)
            elif isinstance(step, policy.Release):
                await self.slurm.release(victim.label)
            else:
                await self.slurm.start_now(victim.label)
        except Rejected as error:
            self.ledger.settle(action, f"not done: {error}", time.time())
            self.ledger.victim(victim.id, tries=victim.tries + 1)
            if victim.tries + 1 >= REFUSALS:
                await self._settle(victim, f"{kind} refused by Slurm: {error}")
            return True
        except SlurmError as error:
            # Whether a requeue happened will show in the job's restarts; the others are simply sent again.
            if kind != "requeue":
                self.ledger.settle(action, f"no answer: {error}", time.time())
            raise
        now = time.time()
        if isinstance(step, policy.Requeue):
            after = (await self.slurm.jobs([job.id])).get(job.id)
            if after and after.restarts > job.restarts:
                relaunch = job.restarts > victim.restarts
                self.ledger.victim(
                    victim.id, requeued=now, started=0.0, running=0.0, tries=victim.tries + relaunch
                )
                self.ledger.settle(action, "done", now)
                log.warning("job %s: requeued off %s", victim.label, victim.node)
            else:
                self.ledger.settle(action, "not done: it had ended", now)
        else:
            changes = {"requeued": now} if isinstance(step, policy.Release) else {"started": now}
            self.ledger.victim(victim.id, **changes)
            self.ledger.settle(action, "done", now)
        return True

    async def _ran(self, victim: Victim, job: Job) -> None:
        now = time.time()
        where = str(NodeSet.fromlist(list(job.nodes))) or victim.ran_nodes
        running = victim.running or job.started
        self.ledger.victim(
            victim.id, running=running, ran=now, ran_nodes=where, settled=now, outcome="runs again"
        )
        log.warning(
            "job %s: runs again on %s, %.1f s after the fault", victim.label, where, running - victim.since
        )
        story = f"{self._cause(victim)}; requeued, runs again on {where} after {running - victim.since:.1f} s"
        await self._tell(victim, job, story)
        await self._annotate(victim, story)

    async def _settle(self, victim: Victim, outcome: str) -> None:
        self.ledger.victim(victim.id, settled=time.time(), outcome=outcome)
        log.info("job %s: %s", victim.label, outcome)

    def _cause(self, victim: Victim) -> str:
        incident = self.ledger.incident(victim.incident)
        return f"slurm-health: {victim.node}: {_words(incident) if incident else 'fault'}"

    async def _tell(self, victim: Victim, job: Job, text: str) -> None:
        """A line in the job's stderr. That it cannot be told must not keep it from being helped."""
        if job.state not in policy.LIVE or not job.batch:
            return
        action = self.ledger.intend(victim.incident, "tell", victim.label, time.time(), text)
        try:
            await self.slurm.tell(victim.label, text)
            outcome = "done"
        except SlurmError as error:
            outcome = f"not done: {error}"
        self.ledger.settle(action, outcome, time.time())

    async def _annotate(self, victim: Victim, text: str) -> None:
        """Append to AdminComment, where other tools may have written too."""
        try:
            before = await self.slurm.comment(victim.label)
            both = f"{before}; {text}" if before else text
            if text not in before and len(both) <= COMMENT:
                await self.slurm.set_comment(victim.label, both)
        except SlurmError as error:
            log.warning("job %s: AdminComment: %s", victim.label, error)


def _in_our_time(report: NodeReport, now: float) -> NodeReport:
    """The report with its times by our clock, where the node's goes wrong: they are compared with Slurm's."""
    ahead = report.sent - now
    if not report.sent or abs(ahead) <= SKEW:
        return report
    log.warning("%s: its clock is %+.1f s off ours", report.node, ahead)

    def ours(at: float) -> float:
        return at - ahead if at else 0.0

    return replace(
        report,
        opened=tuple(replace(found, since=ours(found.since)) for found in report.opened),
        cards=tuple(
            replace(card, started=ours(card.started), ended=ours(card.ended), refused=ours(card.refused))
            for card in report.cards
        ),
    )


def _drained(record: Any) -> policy.Drained:
    return policy.Drained(record.reason, record.reason_time) if record else policy.Drained()


def _run(card: Card) -> int:
    return card.restarts


def _words(incident: Incident) -> str:
    return f"{incident.code}({incident.device}) {incident.text}"


@contextlib.asynccontextmanager
async def running(controller: Controller) -> AsyncIterator[None]:
    """The controller's loops, for as long as the context lasts."""
    task = asyncio.create_task(controller.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
