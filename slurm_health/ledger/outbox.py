"""What people are still to be told, by which way: written with what happened, gone when it was sent.

A notice is in the same transaction as the outcome that it tells, so that none is lost or made up by a crash.
That it is about to be sent is written down before: a ledger that takes no word sends none, over and over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from slurm_health.ledger.schema import actions, incidents, notices
from slurm_health.ledger.store import Store, find, insert
from slurm_health.model import Notice, Severity

MOST = 1000  # notices in one message

# What is told of an act that is done. Of one to hold a job its reason is told, which no act has.
ACTS = {  # kind of act: event, words
    "drain": ("drain", "{node} is drained: {words}"),
    "down": ("drain", "{node} is off and set DOWN, to let its job go: {words}"),
    "requeue": ("requeue", "job {job} is requeued off {node}: {words}"),
    "resume": ("resume", "{node} serves again: {words}"),
}
_NOTICE = [notices.c[field.name] for field in fields(Notice)]


class Outbox:
    """What waits to be told. `ways` are how it goes, nowhere without one; `events` say of what; `severity` is
    how bad a fault must be that is told when it is found."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ways: Collection[str] = ()
        self.events: Collection[str] = ()
        self.severity = Severity.CRITICAL

    def found(self, connection: Connection, incident: int, now: float) -> None:
        """An incident was opened, or has become worse."""
        self.put(connection, "incident", incident, "{node}: {words}", now)

    def done(self, connection: Connection, action: int, now: float) -> None:
        """One of our acts is done."""
        if self.ways:
            act = find(connection, actions, id=action).one()
            if act.kind in ACTS:
                event, text = ACTS[act.kind]
                job = act.target if event == "requeue" else ""
                self.put(connection, event, act.incident, text, now, job)

    def put(
        self, connection: Connection, event: str, incident: int, text: str, now: float, job: str = ""
    ) -> None:
        """Note it. In the text {node}, {words} and {job} stand for the incident's and the job's."""
        if not self.ways or event not in self.events:
            return
        row = find(connection, incidents, id=incident).one()
        if event == "incident" and row.severity < self.severity:
            return
        words = f"{row.code}({row.device}) {row.text}".rstrip()
        for part, value in (("{node}", row.node), ("{job}", job), ("{words}", words)):
            text = text.replace(part, value)
        what = {"severity": row.severity, "incident": incident, "node": row.node, "job": job, "text": text}
        for way in self.ways:
            insert(connection, notices, way=way, event=event, at=now, **what)

    def waiting(self, way: str) -> list[Notice]:
        """What is to go this way, oldest first."""
        query = sa.select(*_NOTICE).filter_by(way=way).order_by(notices.c.at, notices.c.id).limit(MOST)
        with self.store.transaction(write=False) as connection:
            return [_notice(row) for row in connection.execute(query)]

    def about_to_send(self, some: Iterable[Notice], now: float) -> None:
        with self.store.transaction() as connection:
            these = notices.c.id.in_([one.id for one in some])
            connection.execute(notices.update().where(these).values(tried=now, tries=notices.c.tries + 1))

    def sent(self, some: Iterable[Notice]) -> None:
        with self.store.transaction() as connection:
            connection.execute(notices.delete().where(notices.c.id.in_([one.id for one in some])))

    def forget(self, connection: Connection, before: float) -> None:
        """What nobody has taken since then."""
        old = notices.c.way.in_(self.ways) & (notices.c.at < before)
        connection.execute(notices.delete().where(old))

    def forget_other_ways(self) -> None:
        """Those that were to go where nothing goes any more."""
        with self.store.transaction() as connection:
            connection.execute(notices.delete().where(notices.c.way.not_in(self.ways)))


def _notice(row: Sequence[Any]) -> Notice:
    number, at, event, severity, *rest = row
    return Notice(number, at, event, Severity(severity), *rest)
