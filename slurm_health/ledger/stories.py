"""Whole stories, for people and for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from slurm_health.ledger.incidents import EVIDENCE
from slurm_health.ledger.schema import actions, evidence, incidents, touches, victims
from slurm_health.ledger.store import Store

LISTED = 10  # lines of evidence of each incident where many are listed


class Stories(Store):
    """Incidents with all that hangs on them."""

    def stories(
        self,
        wanted: Sequence[int] | None = None,
        node: str = "",
        job: str = "",
        uid: int | None = None,
        every: bool = False,
        limit: int = 200,
    ) -> list[dict[str, Any]]:
        """Whole incidents, newest first: evidence, jobs and acts. Times are seconds since the epoch. `job`:
        by its number or its label, and where `uid` is given only this user's."""
        query = sa.select(incidents).order_by(incidents.c.id.desc()).limit(limit)
        if wanted is not None:
            query = query.where(incidents.c.id.in_(wanted))
        elif not every:
            query = query.filter_by(closed=0)
        if node:
            query = query.filter_by(node=node)
        if job:
            of_job = sa.select(touches.c.incident).join(victims, victims.c.id == touches.c.victim)
            named = victims.c.label == job
            if job.isdecimal():
                named |= victims.c.job == int(job)
            of_job = of_job.where(named)
            if uid is not None:
                of_job = of_job.where(victims.c.uid == uid)
            query = query.where(incidents.c.id.in_(of_job))
        with self.transaction(write=False) as connection:
            found = [dict(row._mapping) for row in connection.execute(query)]
            numbers = [row["id"] for row in found]
            lines = _lines(connection, numbers, EVIDENCE if len(numbers) == 1 else LISTED)
            acts = _by_incident(connection, actions, numbers, actions.c.id)
            touched: dict[int, list[dict[str, Any]]] = {}
            for job_of in connection.execute(
                sa.select(touches.c.incident.label("of"), touches.c.ranks, victims)
                .join(victims, victims.c.id == touches.c.victim)
                .where(touches.c.incident.in_(numbers))
                .order_by(victims.c.id)
            ):
                touched.setdefault(job_of.of, []).append(dict(job_of._mapping))
        for row in found:
            row["evidence"] = [{"at": line["at"], "line": line["line"]} for line in lines.get(row["id"], [])]
            row["actions"] = acts.get(row["id"], [])
            row["jobs"] = touched.get(row["id"], [])
        return found


def _lines(connection: Connection, numbers: Sequence[int], most: int) -> dict[int, list[Any]]:
    """The first lines of evidence of each incident."""
    rank = sa.func.row_number().over(partition_by=evidence.c.incident, order_by=evidence.c.at).label("rank")
    some = sa.select(evidence, rank).where(evidence.c.incident.in_(numbers), evidence.c.line != "").subquery()
    found: dict[int, list[Any]] = {}
    for row in connection.execute(sa.select(some).where(some.c.rank <= most).order_by(some.c.at)):
        found.setdefault(row.incident, []).append(row._mapping)
    return found


def _by_incident(
    connection: Connection, table: sa.Table, numbers: Sequence[int], order: Any
) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for row in connection.execute(sa.select(table).where(table.c.incident.in_(numbers)).order_by(order)):
        found.setdefault(row.incident, []).append(dict(row._mapping))
    return found
