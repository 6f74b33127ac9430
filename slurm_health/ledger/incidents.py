"""Incidents: what nodes report becomes them; they repeat, clear, are overruled, closed and forgotten."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from slurm_health.ledger.outbox import Outbox
from slurm_health.ledger.schema import actions, evidence, incidents, nodes, touches, victims
from slurm_health.ledger.store import RETRY, Store, find, insert, update, upsert
from slurm_health.model import Finding, Incident, Severity, Urgency
from slurm_health.wire import NodeReport

EVIDENCE = 1000  # lines kept for one incident: a storm must not fill the disk
OURS = ("cleared", "quiet", "new evidence", "an admin's RESUME")  # closed_by, where nobody did by hand

# As the model has them: what is selected is turned into values without a look at the names.
_INCIDENT = tuple(incidents.c[field.name] for field in fields(Incident))


class Incidents(Store):
    """Those of all nodes."""

    outbox: Outbox

    def __init__(self, url: str) -> None:
        self.told: dict[str, tuple[str, str, frozenset[str]]] = {}  # node -> what it last said that was new
        super().__init__(url)

    def open(self) -> None:
        self.told.clear()
        super().open()

    def take(self, report: NodeReport, now: float) -> list[int]:
        """Write a report down; the ids of the incidents that it opened, repeated or cleared.

        One that says what the last one said is not written: what stands can only clear by another report.
        """
        blind = "; ".join(f"{probe}: {why}" for probe, why in sorted(report.blind.items()))
        said = (report.boot, blind, frozenset(report.standing))
        due = self.trouble and time.monotonic() - self.tried >= RETRY
        if not report.opened and not due and self.told.get(report.node) == said:
            return []
        self.told.pop(report.node, None)
        changed: list[int] = []
        with self.transaction() as connection:
            upsert(
                connection,
                nodes,
                {"name": report.node},
                {"boot": report.boot, "reported": now, "blind": blind},
            )
            for found in report.opened:
                if self._told(connection, report.node, found.moment):
                    continue  # told before: the receipt was lost
                changed.append(self._open(connection, report.node, found, now))
            standing = set(report.standing)
            lasting = find(connection, incidents, node=report.node, cleared=0, lasting=True).all()
            gone = [row for row in lasting if row.moment not in standing]
            drained = gone and find(connection, (nodes.c.reason,), name=report.node).scalar()
            for row in gone:
                done: dict[str, Any] = {}
                if not row.closed:  # else it was closed while it stood: now it may be forgotten
                    changed.append(row.id)
                    # One that put the node out stays open until the node is back: somebody must look.
                    if row.severity != Severity.CRITICAL or row.acknowledged or not drained:
                        done = {"closed": now, "closed_by": "cleared"}
                update(connection, incidents, row.id, cleared=now, **done)
        self.told[report.node] = said
        return changed

    def raised(self, node: str, finding: Finding, now: float) -> int:
        """Open or repeat an incident that the controller itself found; its number. It clears with the node's
        next report."""
        self.told.pop(node, None)
        with self.transaction() as connection:
            told = self._told(connection, node, finding.moment)
            return told or self._open(connection, node, finding, now)

    def unknown(self, node: str, standing: Sequence[str]) -> list[str]:
        """Those of a node's standing moments that were never told here: by a ledger that was lost they were,
        or they fell out of a full spool. What was told and is closed is known."""
        if not standing:
            return []
        told = sa.select(evidence.c.moment).filter_by(node=node).where(evidence.c.moment.in_(standing))
        with self.transaction(write=False) as connection:
            known = set(connection.scalars(told))
        return [moment for moment in standing if moment not in known]

    def closed(self, node: str, standing: Sequence[str]) -> list[str]:
        """Those of a node's standing moments whose incident a person has closed."""
        if not standing:
            return []
        query = (
            sa.select(evidence.c.moment)
            .join(incidents, incidents.c.id == evidence.c.incident)
            .where(evidence.c.node == node, evidence.c.moment.in_(standing))
            .where(incidents.c.closed > 0, incidents.c.closed_by.not_in(OURS))
        )
        with self.transaction(write=False) as connection:
            return list(connection.scalars(query))

    def _told(self, connection: Connection, node: str, moment: str) -> int:
        """The incident that this was told of, 0 if it is news."""
        return find(connection, (evidence.c.incident,), node=node, moment=moment).scalar() or 0

    def _open(self, connection: Connection, node: str, found: Any, now: float) -> int:
        same = find(connection, incidents, node=node, code=found.code, device=found.device, closed=0).first()
        since = min(found.since or now, now)
        if same and same.acknowledged:
            # New evidence after an admin's RESUME is a new incident; the overruled one is history.
            update(connection, incidents, same.id, closed=now, closed_by="new evidence")
            same = None
        if same:
            changes = {
                "count": same._mapping["count"] + 1,
                "seen": now,
                "cleared": 0.0,
                "moment": found.moment,
                "hardware": found.hardware or same.hardware,  # another part may sit there now
            }
            if found.severity > same.severity:
                changes |= {"severity": int(found.severity), "job": str(found.job), "text": found.text}
            update(connection, incidents, same.id, **changes)
            number = same.id
        else:
            number = insert(
                connection,
                incidents,
                node=node,
                code=found.code,
                device=found.device,
                severity=int(found.severity),
                job=str(found.job),
                text=found.text,
                since=since,
                opened=now,
                seen=now,
                lasting=found.lasting,
                moment=found.moment,
                hardware=found.hardware,
            )
        if not same or found.severity > same.severity:
            self.outbox.found(connection, int(number), now)
        line = found.evidence if not same or same._mapping["count"] < EVIDENCE else ""
        told = {"node": node, "moment": found.moment, "incident": number, "at": since, "line": line}
        connection.execute(evidence.insert(), told)
        return int(number)

    def open_incidents(self, nodes: Collection[str] | None = None) -> list[Incident]:
        """The open incidents of these nodes, or all, those with the oldest evidence first."""
        query = sa.select(*_INCIDENT).filter_by(closed=0).order_by(incidents.c.since, incidents.c.id)
        if nodes is not None:
            query = query.where(incidents.c.node.in_(list(nodes)))
        with self.transaction(write=False) as connection:
            return [_incident(row) for row in connection.execute(query)]

    def outlook(self, most: int) -> tuple[int, Severity, list[Incident]]:
        """How many incidents are open, the worst severity of those not acknowledged, and the `most` worst."""
        heeded = sa.case((incidents.c.acknowledged == 0, incidents.c.severity), else_=int(Severity.OK))
        worst = sa.select(*_INCIDENT).filter_by(closed=0)
        worst = worst.order_by(incidents.c.severity.desc(), incidents.c.id).limit(most)
        with self.transaction(write=False) as connection:
            many, severity = connection.execute(
                sa.select(sa.func.count(), sa.func.max(heeded)).where(incidents.c.closed == 0)
            ).one()
            rows = [_incident(row) for row in connection.execute(worst)]
            return many, Severity(severity or 0), rows

    def troubled(self) -> list[str]:
        """The nodes with an open incident."""
        with self.transaction(write=False) as connection:
            return list(connection.scalars(sa.select(incidents.c.node).filter_by(closed=0).distinct()))

    def incident(self, number: int) -> Incident | None:
        with self.transaction(write=False) as connection:
            row = find(connection, _INCIDENT, id=number).first()
            return _incident(row) if row else None

    def latest(self, node: str, before: float = 1e12) -> Incident | None:
        """The last critical incident of a node that was opened before then, open or not."""
        with self.transaction(write=False) as connection:
            row = connection.execute(
                sa.select(*_INCIDENT)
                .filter_by(node=node, severity=int(Severity.CRITICAL))
                .where(incidents.c.opened <= before)
                .order_by(incidents.c.id.desc())
                .limit(1)
            ).first()
            return _incident(row) if row else None

    def acknowledge(self, numbers: Iterable[int], now: float) -> None:
        """An admin's RESUME overrules these. What cannot end by itself, or has ended, is closed with it."""
        with self.transaction() as connection:
            for number in numbers:
                row = find(connection, incidents, id=number).one()
                over = not row.lasting or row.cleared
                done = {"closed": now, "closed_by": "an admin's RESUME"} if over else {}
                update(connection, incidents, number, acknowledged=now, held="", **done)

    def close(self, number: int, by: str, now: float) -> None:
        with self.transaction() as connection:
            update(connection, incidents, number, closed=now, closed_by=by)

    def hold(self, number: int, why: str) -> None:
        """Note why nothing is done about it ("" when something is)."""
        with self.transaction() as connection:
            update(connection, incidents, number, held=why)

    def close_quiet(self, now: float, quiet: float) -> None:
        """Close what only warned, cannot end by itself, and has not been seen for `quiet` seconds."""
        with self.transaction() as connection:
            connection.execute(
                incidents.update()
                .where(incidents.c.closed == 0, ~incidents.c.lasting, incidents.c.seen < now - quiet)
                .where(incidents.c.severity < int(Severity.CRITICAL))
                .values(closed=now, closed_by="quiet")
            )

    def forget(self, before: float) -> None:
        """Drop incidents closed before then, with all that hangs on them, and notices that nobody took since.
        What stands still is kept: its moment must stay known."""
        with self.transaction() as connection:
            old = sa.select(incidents.c.id).where(incidents.c.closed > 0, incidents.c.closed < before)
            old = old.where(~incidents.c.lasting | (incidents.c.cleared > 0))
            olds = connection.scalars(old).all()
            self.outbox.forget(connection, before)
            for start in range(0, len(olds), 500):
                some = olds[start : start + 500]
                gone = connection.scalars(sa.select(victims.c.id).where(victims.c.incident.in_(some))).all()
                connection.execute(
                    touches.delete().where(touches.c.incident.in_(some) | touches.c.victim.in_(gone))
                )
                connection.execute(victims.delete().where(victims.c.id.in_(gone)))
                for table in (evidence, actions):
                    connection.execute(table.delete().where(table.c.incident.in_(some)))
                connection.execute(incidents.delete().where(incidents.c.id.in_(some)))


def _incident(row: Sequence[Any]) -> Incident:
    number, node, code, device, severity, job, *rest = row
    return Incident(number, node, code, device, Severity(severity), Urgency(job), *rest)
