"""Acts of ours: written down before they are done, their outcome after."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from slurm_health.ledger.outbox import Outbox
from slurm_health.ledger.schema import actions
from slurm_health.ledger.store import Store, find, insert, update

NO_ANSWER = "no answer"  # the outcome of an act that may have happened, or may yet


class Acts(Store):
    """Those on nodes and on jobs, each for an incident."""

    outbox: Outbox

    def intend(self, incident: int, kind: str, target: str, now: float, detail: str = "") -> int:
        """Write down what is about to be done; its number, for `settle`."""
        with self.transaction() as connection:
            return insert(
                connection, actions, incident=incident, kind=kind, target=target, detail=detail, intended=now
            )

    def settle(self, action: int, outcome: str, now: float) -> None:
        with self.transaction() as connection:
            update(connection, actions, action, done=now, outcome=outcome)
            if outcome == "done":
                self.outbox.done(connection, action, now)

    def unsettled(self, kind: str, target: str) -> list[Any]:
        """Acts that were intended and whose outcome is not known: a crash came in between."""
        with self.transaction(write=False) as connection:
            these = find(connection, actions, kind=kind, target=target, done=0)
            return sorted(these, key=lambda row: int(row.id))

    def conclude(self, kind: str, target: str, now: float, shown: str = "") -> bool:
        """Give acts that a crash left without an outcome one: the last of the detail that Slurm shows was
        done, of the others nobody knows. Whether one was."""
        with self.together():
            rows = self.unsettled(kind, target)
            last = max((row.id for row in rows if shown and row.detail == shown), default=None)
            for row in rows:
                self.settle(row.id, "done" if row.id == last else NO_ANSWER, now)
        return last is not None

    def attempts(self, kind: str, since: float) -> list[Any]:
        """Acts whose outcome is not known, and those since then that got no answer: both may yet be done."""
        with self.transaction(write=False) as connection:
            return unanswered(connection, kind, since)

    def would(self, incident: int, kind: str, target: str, why: str, now: float) -> bool:
        """Write down once what would have been done, and why it is not; whether that was news."""
        with self.transaction() as connection:
            this = {"incident": incident, "kind": kind, "target": target}
            told = find(connection, (actions.c.id,), **this).first()
            if not told:
                insert(connection, actions, **this, intended=now, done=now, outcome=f"not done: {why}")
            return not told

    def drained_since(self, then: float, under_way: bool = False) -> set[str]:
        """The nodes that we drained since then, back or not; or those whose drain is not settled, of any
        time."""
        query = sa.select(actions.c.target).where(
            actions.c.kind == "drain", ~actions.c.outcome.like("not done%")
        )
        query = query.filter_by(done=0) if under_way else query.where(actions.c.intended >= then)
        with self.transaction(write=False) as connection:
            return set(connection.scalars(query))

    def done_since(self, kind: str, target: str, detail: str, then: float) -> int:
        """How often exactly this was done since then."""
        these = {"kind": kind, "target": target, "detail": detail, "outcome": "done"}
        query = sa.select(sa.func.count(actions.c.id)).filter_by(**these)
        with self.transaction(write=False) as connection:
            return int(connection.scalar(query.where(actions.c.intended >= then)) or 0)


def unanswered(connection: Connection, kind: str, since: float) -> list[Any]:
    of_kind = sa.select(actions).filter_by(kind=kind)
    late = of_kind.filter_by(outcome=NO_ANSWER).where(actions.c.intended >= since, actions.c.done > 0)
    # Two questions, since no index answers an OR.
    rows = [row for query in (of_kind.filter_by(done=0), late) for row in connection.execute(query)]
    return sorted(rows, key=lambda row: int(row.id))
