"""Which nodes are out of service: looked at, drained, given back to whoever resumed them, or resumed.

All nodes that need a look are looked at together: one question to Slurm, one drain for each reason, one look
back, whether one node has failed or a thousand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slurm_health import policy
from slurm_health.config import Config
from slurm_health.decisions import Decisions
from slurm_health.inventory import Inventory
from slurm_health.ledger import FAULT_GONE, NO_ANSWER, Ledger
from slurm_health.model import Card, Hurt, Incident, Node, Severity
from slurm_health.outage import Outage
from slurm_health.policy.node import Do
from slurm_health.rescue import Fault, Rescue
from slurm_health.slurm import Rejected, Slurm
from slurm_health.wire import HEARTBEAT

log = logging.getLogger(__name__)

TICK = 2.0  # seconds between looks at nodes that are out by us or should be
AT_ONCE = 8  # reasons drained for between two looks: what Slurm said must not grow old meanwhile
LATE = 60.0  # seconds in which a drain that got no answer may still come to pass (6 x MessageTimeout)
SULK = 60.0  # seconds until a drain that Slurm rejected is tried again
FLAPPING = 86400.0  # seconds in which a node's returns are counted
SILENT = 3 * HEARTBEAT  # seconds without a word after which what a node said last is not believed


@dataclass(slots=True)
class Case:
    """A node that is looked at: what stands against it, what is ours about it, and what came of the look."""

    name: str
    incidents: list[Incident]
    pressing: list[Incident]
    cards: tuple[Card, ...]
    ours: policy.node.Drained = field(default_factory=policy.node.Drained)
    drained: float = 0.0  # when we drained it (epoch)
    attempts: list[Any] = field(default_factory=list)  # drains of ours that may have happened, or may yet
    state: Node | None = None
    forgotten: bool = False  # Slurm no longer knows that we drained it
    why_not: str = ""  # why nothing is done about it

    @property
    def matters(self) -> bool:
        """Whether Slurm must be asked about it."""
        return bool(self.pressing or self.ours.reason or self.attempts or self.refused)

    @property
    def refused(self) -> bool:
        """Whether our prolog has just turned a job away: Slurm drains the node for that, at once."""
        return any(time.time() - card.refused < LATE for card in self.cards)

    @property
    def shown_out(self) -> bool:
        """Whether Slurm shows it out, and not for a hook that has just failed on a node that an admin had
        resumed: the card that tells whose hook it was may be under way."""
        if self.state is None or not self.state.out:
            return False
        return not policy.node.was_back(self.ours, self.state) or time.time() - self.state.since >= LATE


class Drains:
    """`look_at` names nodes of which something was heard, `follow` keeps going until cancelled.

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
        inventory: Inventory,
        decisions: Decisions,
        reported: Mapping[str, tuple[float, str]],
        cards: Mapping[str, tuple[Card, ...]],
    ) -> None:
        self.config, self.ledger, self.slurm = config, ledger, slurm
        self.rescue, self.outage, self.inventory, self.decisions = rescue, outage, inventory, decisions
        self.reported, self.cards = reported, cards
        self.out = rescue.out
        self.due: set[str] = set()  # nodes to be looked at now
        self.woken = asyncio.Event()
        self.shown_out: dict[str, float] = {}  # node -> when we asked that it was last shown out (epoch)
        self.not_before: dict[str, float] = {}  # node -> when a drain that Slurm rejected is tried again
        self.turned_away: set[str] = set()  # nodes where our prolog has just refused a job

    def look_at(self, *names: str) -> None:
        """Have nodes looked at, now."""
        self.due.update(names)
        self.woken.set()

    async def follow(self) -> None:
        """Look at the nodes of which something was heard at once, and each two seconds at all that are out by
        us or should be."""
        tick = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tick - time.monotonic()):
                    await self.woken.wait()
            self.woken.clear()
            with self.outage.survived("nodes"):
                if time.monotonic() >= tick:
                    tick = time.monotonic() + TICK
                    self.due |= self.ledger.nodes_in_question(time.time() - LATE) | self.turned_away
                await self.attend()

    async def attend(self) -> None:
        """Look at the nodes that are due. They still are when Slurm or the ledger does not answer."""
        names, self.due = self.due, set()
        try:
            await self._look(names)
        except Exception:
            self.due |= names
            raise

    # A look

    async def _look(self, names: Collection[str]) -> None:
        """Bring these nodes to where the incidents that stand against them want them."""
        if not names:
            return
        cases = self._cases(names)
        wanted = [case for case in cases if case.matters]
        total = len(await self.inventory.nodes()) if any(case.pressing for case in wanted) else 0
        if wanted:
            asked = time.time()
            states = await self.slurm.nodes(case.name for case in wanted)
            self.outage.over()
            for case in wanted:
                case.state = states.get(case.name)
            await self._recall(wanted)
            for case in wanted:
                if case.shown_out:
                    self.shown_out[case.name] = asked
        paused, room = self.rescue.paused(), self._room(total)
        drains: dict[str, list[Case]] = defaultdict(list)
        for case in cases:
            (self.turned_away.add if case.refused else self.turned_away.discard)(case.name)
            if not case.matters:
                self.decisions.make(case.name)
                self.out.discard(case.name)
                continue
            outlook = policy.node.Outlook(self.config.mode, paused(case.name), room.obstacle(case.name))
            reason = await self._judge(case, outlook)
            if reason and len(drains) == AT_ONCE and reason not in drains:
                self.look_at(case.name)  # after these
            elif reason:
                room.take(case.name)
                drains[reason].append(case)
        if drains:
            await self._drain_all(drains)
        await self.rescue.note(
            Fault(case.name, case.pressing, case.cards, case.drained, case.why_not) for case in cases
        )

    def _cases(self, names: Collection[str]) -> list[Case]:
        incidents: dict[str, list[Incident]] = defaultdict(list)
        for one in self.ledger.open_incidents(names):
            incidents[one.node].append(one)
        attempts: dict[str, list[Any]] = defaultdict(list)
        for kind in ("drain", "down"):
            for row in self.ledger.attempts(kind, time.time() - LATE):
                attempts[row.target].append(row)
        ours = {row.name: row for row in self.ledger.out_by_us()}
        cases = []
        for name in sorted(names):
            case = Case(
                name,
                incidents[name],
                [one for one in incidents[name] if one.pressing],
                self.cards.get(name, ()),
                attempts=attempts[name],
            )
            if row := ours.get(name):
                case.ours, case.drained = policy.node.Drained(row.reason, row.reason_time), row.drained
            cases.append(case)
        return cases

    async def _recall(self, cases: Iterable[Case]) -> None:
        """Take drains that slurmctld forgot when it was killed for none at all: no admin ended them."""
        back = [case for case in cases if case.state and policy.node.was_back(case.ours, case.state)]
        booted = (await self.slurm.site()).booted if back else 0.0
        for case in back:
            if policy.node.forgot(booted, case.drained, self.shown_out.get(case.name, case.drained)):
                log.error("%s: slurmctld was started anew and has forgotten that it is drained", case.name)
                self.ledger.drained(case.name, "", 0, 0.0)
                self.out.discard(case.name)
                case.ours, case.drained, case.forgotten = policy.node.Drained(), 0.0, True

    def _room(self, total: int) -> policy.budget.Room:
        site = self.config.budget
        return policy.budget.Room(
            total,
            {row.name for row in self.ledger.out_by_us()} | self.ledger.drained_since(0, under_way=True),
            self.ledger.drained_since(time.time() - site.window),
            (site.percent, site.at_least),
            (site.window_percent, site.window_at_least),
        )

    async def _judge(self, case: Case, outlook: policy.node.Outlook) -> str:
        """Draw the consequence for one node: all but a drain, whose reason is returned."""
        name, state = case.name, case.state
        first = min((one.since for one in case.pressing), default=None)
        refused = case.forgotten or policy.node.our_hook(state, case.ours, case.cards, first)
        attempted = {row.detail for row in case.attempts}
        judged = policy.node.judge(state, case.incidents, case.ours, attempted, outlook, refused)
        if policy.node.lost(case.ours, state, judged.do):
            self.ledger.drained(name, "", 0, 0.0)
        now = time.time()
        if judged.do is Do.DRAIN and (why := self._suspect(case)):
            judged = policy.node.Judgement(Do.NOTHING, why)
        news = judged.do is Do.STAND and state is not None and case.ours != _shown(state)
        with self.ledger.together():  # a drain that is done and not ours would be somebody else's
            self._conclude(case.attempts, state.reason if news and state else "", now)
            if news and state:
                self.ledger.drained(name, state.reason, state.since, now)
                case.drained = now
        if judged.do is Do.DRAIN:
            return judged.reason if time.monotonic() >= self.not_before.get(name, 0.0) else ""
        if judged.do is Do.STAND and self._returns(case, outlook, now):
            await self._return(case)
        elif judged.do is Do.STAND:
            self._out(case, refuse=not outlook.paused and outlook.mode != "observe")
        elif judged.do is Do.LEAVE:
            self._hold(case.pressing, judged.why)
            self.out.add(name)
            self.decisions.make(name, note=_noted(case.pressing))
        elif judged.do is Do.YIELD:
            self._yield(case, ours=True)
            self.out.discard(name)
            if case.pressing:
                self.look_at(name)
        elif judged.do is Do.UNDO:
            return await self._undo(case, outlook)
        else:
            self._leave_in_service(case, judged.why, now)
        return ""

    def _suspect(self, case: Case) -> str:
        """Why the node is left in service: all that stands against it was met by jobs that are suspect of
        breaking nodes themselves. "" when something else stands against it.
        """
        why = ""
        for one in case.pressing:
            if one.held.startswith(policy.touch.SUSPECT):  # its card may be gone by now
                why = one.held
                continue
            holders = [] if policy.touch.everyones(one) else policy.touch.touched(one, case.cards)
            for card in holders:
                if card.ended and card.ended < one.seen - policy.touch.SLACK:
                    continue  # the last evidence came after it
                fault = Hurt(case.name, one.code, card.restarts, card.started, one.since)
                if what := self.rescue.suspect(card.job, fault):
                    why = f"{policy.touch.SUSPECT}{card.job} {what}"
                    break
            else:
                return ""
        return why

    def _hold(self, incidents: Iterable[Incident], why: str) -> None:
        for one in incidents:
            if one.held != why:
                self.ledger.hold(one.id, why)

    def _leave_in_service(self, case: Case, why: str, now: float) -> None:
        """Nothing is done about the node: if something is wrong with it, say why."""
        case.why_not = why
        self.out.discard(case.name)
        for one in case.pressing:
            if one.held != why:
                log.error("%s: stays in service with incident %d: %s", case.name, one.id, why)
                with self.ledger.together():
                    if self.ledger.would(one.id, "drain", case.name, why, now):
                        words = f"{case.name} stays in service with {one.words}: {why}"
                        self.ledger.notice("help", one.id, words, now)
        self._hold(case.pressing, why)
        self.decisions.make(case.name, note=_noted(case.pressing))

    # Out of service

    async def _drain_all(self, drains: dict[str, list[Case]]) -> None:
        """Drain, refuse, look back. The intentions are on disk before, the outcomes after."""
        intended: dict[str, int] = {}
        with self.ledger.together():
            now = time.time()
            for reason, cases in drains.items():
                for case in cases:
                    intended[case.name] = self.ledger.intend(
                        case.pressing[0].id, "drain", case.name, now, reason
                    )
        for cases in drains.values():
            for case in cases:
                self.decisions.make(case.name, refuse=case.pressing[0].words)
        work = (self._drain(reason, cases, intended) for reason, cases in drains.items())
        results = await asyncio.gather(*work, return_exceptions=True)
        drained = [case for some in results if not isinstance(some, BaseException) for case in some]
        if drained:
            await self._look_back(drained, intended)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _drain(self, reason: str, cases: list[Case], intended: dict[str, int]) -> list[Case]:
        """Drain nodes for the same reason in one call; those that Slurm took."""
        try:
            await self.slurm.drain([case.name for case in cases], reason)
        except Rejected as error:
            if len(cases) > 1:  # one name that Slurm no longer knows must not keep the others in service
                return [case for one in cases for case in await self._drain(reason, [one], intended)]
            [case] = cases
            self.ledger.settle(intended[case.name], f"not done: {error}", time.time())
            self.not_before[case.name] = time.monotonic() + SULK
            self.decisions.make(case.name, note=_noted(case.pressing))
            log.error("%s: %s", case.name, error)
            return []
        return cases

    async def _look_back(self, cases: list[Case], intended: dict[str, int]) -> None:
        asked = time.time()
        states = await self.slurm.nodes(case.name for case in cases)
        with self.ledger.together():
            for case in cases:
                state, reason, now = states.get(case.name), case.pressing[0].reason, time.time()
                number = intended[case.name]
                if state and state.out and state.reason == reason:
                    self.shown_out[case.name] = asked
                    self.ledger.drained(case.name, reason, state.since, now)
                    self.ledger.settle(number, "done", now)
                    case.drained = now
                    log.error("%s: drained: %s", case.name, reason)
                    self._out(case)
                else:
                    # Somebody wrote over it between our write and our look: it is theirs now.
                    shown = repr(state.reason) if state else "no node"
                    self.ledger.settle(number, f"not done: Slurm shows {shown}", now)

    def _conclude(self, attempts: Iterable[Any], shown: str, now: float) -> None:
        """Give drains that got no answer an outcome. The last of the reason that Slurm shows was done, any
        other may still come to pass.
        """
        for row in reversed(list(attempts)):
            if shown and row.detail == shown:
                self.ledger.settle(row.id, "done", now)
                shown = ""
            elif not row.done:
                self.ledger.settle(row.id, NO_ANSWER, now)

    def _out(self, case: Case, refuse: bool = True) -> None:
        """The node is out by us: no job shall start there."""
        self.out.add(case.name)
        self._hold(case.pressing, "")
        if case.pressing and refuse:
            self.decisions.make(case.name, refuse=case.pressing[0].words)
        else:
            self.decisions.make(case.name, note=_noted(case.pressing))
        self.rescue.wake()

    # Back in service

    def _yield(self, case: Case, ours: bool) -> None:
        """An admin put the node back: that stands until there is new evidence, which remains pressing.
        `ours`: a resume of ours that a crash cut short was this one.

        Slurm does not say when that was. What came since it last showed our drain counts as new: at most two
        seconds old, it is nothing that an admin has weighed.
        """
        name, now = case.name, time.time()
        for row in self.ledger.unsettled("resume", name):
            self.ledger.settle(row.id, "done" if ours else NO_ANSWER, now)
        since = self.shown_out.get(name, math.inf)
        old = [one.id for one in case.incidents if one.severity is Severity.CRITICAL and one.seen <= since]
        case.pressing = [one for one in case.pressing if one.id not in old]
        with self.ledger.together():
            self.ledger.acknowledge(old, now)
            self._hold(case.pressing, "")
            self.ledger.drained(name, "", 0, 0.0)
        case.drained = 0.0
        # What has ended, or cannot, is closed with it and is no longer worth a note.
        still = [one for one in self.ledger.open_incidents([name]) if one.severity is Severity.CRITICAL]
        self.decisions.make(name, note=_noted(still))
        if old or ours:
            log.warning("%s: resumed by an admin; its %d open incidents are acknowledged", name, len(old))

    async def _undo(self, case: Case, outlook: policy.node.Outlook) -> str:
        """Put a node back that our hook drained after an admin's RESUME; the reason to keep it out instead
        where there is newer evidence."""
        blamed = case.pressing[0] if case.pressing else self.ledger.latest(case.name)
        self._yield(case, ours=False)
        if case.pressing and case.state:
            if not (policy.node.obstacle(case.state, outlook) or self._suspect(case)):
                return case.pressing[0].reason
            self.look_at(case.name)
        self.out.discard(case.name)
        if blamed:
            why = "our hook failed after a RESUME"
            action = self.ledger.intend(blamed.id, "resume", case.name, time.time(), why)
            await self.slurm.resume([case.name])
            self.ledger.settle(action, "done", time.time())
        return ""

    def _returns(self, case: Case, outlook: policy.node.Outlook, now: float) -> bool:
        """Whether the site wants it back, its fault has been gone for long enough, and its daemon, which sees
        all that it should, says so now."""
        site = self.config.resume
        if site.mode == "off" or outlook.paused or outlook.mode == "observe":
            return False
        if case.state is None or case.ours != _shown(case.state):
            return False
        when, _ = self.reported.get(case.name, (0.0, ""))
        known = self.ledger.node(case.name)
        if now - when > SILENT or known is None or known.blind:
            return False
        times = self.ledger.done_since("resume", case.name, FAULT_GONE, now - FLAPPING)
        return policy.node.returns(case.state, case.pressing, site.codes, site.after, times, now)

    async def _return(self, case: Case) -> None:
        """Put a node back into service whose fault is gone."""
        name, now = case.name, time.time()
        self.ledger.conclude("resume", name, now)
        action = self.ledger.intend(case.pressing[0].id, "resume", name, now, FAULT_GONE)
        try:
            await self.slurm.resume([name])
        except Rejected as error:
            self.ledger.settle(action, f"not done: {error}", time.time())
            self._out(case)
            return
        now = time.time()
        with self.ledger.together():
            for one in case.pressing:
                self.ledger.close(one.id, FAULT_GONE, now)
            self.ledger.drained(name, "", 0, 0.0)
            self.ledger.settle(action, "done", now)
        log.warning("%s: serves again: %s", name, "; ".join(one.words for one in case.pressing))
        case.pressing, case.drained = [], 0.0
        self.out.discard(name)
        self.decisions.make(name)


def _shown(state: Node) -> policy.node.Drained:
    return policy.node.Drained(state.reason, state.since)


def _noted(pressing: Iterable[Incident]) -> str:
    """What is wrong with a node that takes jobs all the same."""
    return next((one.words for one in pressing), "")
