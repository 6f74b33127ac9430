"""The cluster's one writer: takes reports, has their consequences drawn, and writes all of it down.

Everything is driven by what the ledger and Slurm say now, never by what was meant to happen next: after a
crash, an outage of slurmctld or an admin's hand the same loops find what is left to do. What becomes of nodes
is the business of drain.py, what becomes of their jobs that of rescue.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

from slurm_health import policy
from slurm_health.config import Config
from slurm_health.decisions import Decisions
from slurm_health.drain import Drains
from slurm_health.inventory import Inventory
from slurm_health.ledger import Ledger
from slurm_health.model import Card
from slurm_health.outage import Outage
from slurm_health.rescue import Rescue
from slurm_health.silence import Silence
from slurm_health.sinks.notify import Notify
from slurm_health.slurm import Site, Slurm
from slurm_health.wire import Decision, Malformed, NodeReport

log = logging.getLogger(__name__)

LINES = 10  # incidents of one report that are logged one by one
SKEW = 2.0  # seconds that a node's clock may be off ours


class Controller:
    """`run` keeps going until cancelled. `heed` takes each report; `decisions` has what nodes should do."""

    def __init__(self, config: Config, ledger: Ledger, slurm: Slurm) -> None:
        self.config, self.ledger, self.slurm = config, ledger, slurm
        self.outage = Outage()
        self.inventory = Inventory(slurm, self.outage)
        self.decisions = Decisions(config.mode)
        self.cards: dict[str, tuple[Card, ...]] = {}
        self.reported: dict[str, tuple[float, str]] = {}  # node -> when, verdict
        last = self.reported, self.cards
        self.rescue = Rescue(config, ledger, slurm, self.outage)
        seat = config, ledger, slurm, self.rescue, self.outage
        self.drains = Drains(*seat, self.inventory, self.decisions, *last)
        self.silence = Silence(*seat, *last)
        self.notify = Notify(config.notify, ledger, self.outage)
        self.heard: dict[str, tuple[str, int]] = {}  # node -> its daemon's life, number of its last report
        self.began = time.time()

    @property
    def site(self) -> Site | None:
        """What Slurm says once and for all, None until it has."""
        return self.rescue.site

    def heed(self, report: NodeReport) -> Decision:
        """Write a report down and have its consequences drawn. LedgerError when it cannot be kept, Malformed
        when a later one was heard before."""
        life, number = self.heard.get(report.node, ("", 0))
        if report.life and report.life == life and report.number < number:
            raise Malformed(f"{report.node}: a later report was heard before this one")
        report = _in_our_time(report, time.time())
        self.heard[report.node] = report.life, report.number
        self.silence.heard(report)
        self.cards[report.node] = report.cards
        self.reported[report.node] = (time.time(), report.verdict)
        changed = [
            one for number in self.ledger.take(report, time.time()) if (one := self.ledger.incident(number))
        ]
        for incident in changed[:LINES]:
            level = logging.ERROR if incident.pressing else logging.WARNING
            what = " has cleared" if incident.cleared else ""
            log.log(level, "%s: incident %d %s%s", incident.node, incident.id, incident.words, what)
        if len(changed) > LINES:
            log.warning("%s: and %d incidents more", report.node, len(changed) - LINES)
        for incident in changed:
            if incident.held.startswith(policy.touch.SUSPECT):  # this evidence may be of another job
                self.ledger.hold(incident.id, "")
        if changed or report.opened or any(card.refused for card in report.cards):
            self.drains.look_at(report.node)
        return self.decisions.of(report.node)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.drains.follow())
            group.create_task(self.rescue.follow())
            group.create_task(self.silence.follow())
            group.create_task(self.notify.follow())
            group.create_task(self.rescue.fence.run())
            group.create_task(self._keep_house())

    async def _keep_house(self) -> None:
        while True:
            with self.outage.survived("housekeeping"):
                now = time.time()
                self.ledger.close_quiet(now, self.config.ledger.quiet)
                self.ledger.forget(now - self.config.ledger.keep)
            await asyncio.sleep(60)


def _in_our_time(report: NodeReport, now: float) -> NodeReport:
    """The report with its times by our clock, where the node's goes wrong: Slurm's go by ours.

    The node measures it. Where it has not, a report from our future goes wrong for sure; one from our
    past may only have been long under way.
    """
    ahead = max(0.0, report.sent - now) if report.ahead is None else report.ahead
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


@contextlib.asynccontextmanager
async def running(loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """What keeps going, for as long as the context lasts."""
    task = asyncio.create_task(loops)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
