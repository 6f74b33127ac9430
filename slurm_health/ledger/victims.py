"""Victims: the runs of jobs that a fault touched, and how far each story is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from slurm_health.ledger.schema import incidents, touches, victims
from slurm_health.ledger.store import Store, find, insert, update
from slurm_health.model import Hurt, Incident, Job, Urgency, Victim

RUNS_AGAIN = "runs again"  # the outcome that we are here for
LIFE = 7 * 86400.0  # seconds after which the same job id and restart count is taken for another job

# As the model has them: what is selected is turned into values without a look at the names.
_VICTIM = tuple(victims.c[field.name] for field in fields(Victim))


class Victims(Store):
    """Those of all incidents."""

    def touch(
        self,
        incident: Incident,
        job: Job,
        restarts: int,
        refused: float,
        now: float,
        requeued: float = 0.0,
        ranks: str = "",
        asked: str = "",
    ) -> bool:
        """Note that the fault touches this run of the job, and its `ranks` on the device; whether that was
        news. `requeued`: when Slurm had requeued it for that by itself."""
        with self.transaction() as connection:
            if job.completing and restarts == job.restarts:
                # Slurm counts a requeue before the run that it ends has left the node: that is no new run.
                before = (victims.c.job == job.id) & (victims.c.restarts == restarts - 1)
                run = sa.select(victims.c.id).join(touches).where(before, touches.c.incident == incident.id)
                if connection.execute(run).first():
                    return False
            same = connection.execute(
                sa.select(victims).filter_by(job=job.id, restarts=restarts).order_by(victims.c.life.desc())
            ).first()
            life, began = 0, job.started if job.restarts == restarts else 0.0
            if same and same.settled:
                # It is this run, or slurmctld has lost its state and counts from 1 again.
                later = job.state != "PENDING" and began > same.settled  # a waiting job's start is a guess
                if later or now - same.touched > LIFE:
                    life, same = same.life + 1, None
            if same is None:
                number = insert(
                    connection,
                    victims,
                    incident=incident.id,
                    job=job.id,
                    restarts=restarts,
                    life=life,
                    label=job.label,
                    uid=job.uid,
                    began=began,
                    node=incident.node,
                    urgency=str(incident.job),
                    since=incident.since,
                    touched=now,
                    refused=refused,
                    requeued=requeued,
                    asked=asked,
                )
            else:
                number = same.id
                if refused and not same.refused:  # its story is not at the end that it seemed to have
                    update(connection, victims, number, refused=refused, settled=0.0, outcome="")
                if requeued and not same.requeued:
                    update(connection, victims, number, requeued=requeued, settled=0.0, outcome="")
                elif _more_urgent(incident.job, Urgency(same.urgency)) and not same.requeued:
                    now_is = {"urgency": str(incident.job), "since": incident.since}
                    update(connection, victims, number, **now_is, settled=0.0, outcome="")
            link = {"incident": incident.id, "victim": number}
            linked = find(connection, touches, **link).first()
            if not linked:
                connection.execute(touches.insert(), {**link, "ranks": ranks})
            return not linked

    def ranks(self, incident: int, victim: int) -> str:
        """Which ranks of a touched job sat on the broken device, folded ("3,5-7"), "" where unknown."""
        with self.transaction(write=False) as connection:
            return find(connection, (touches.c.ranks,), incident=incident, victim=victim).scalar() or ""

    def pending_victims(self) -> list[Victim]:
        """The jobs whose story is not at its end."""
        with self.transaction(write=False) as connection:
            return [_victim(row) for row in find(connection, _VICTIM, settled=0)]

    def just_ran(self, since: float) -> list[Victim]:
        """The jobs whose story ended since then in that they run again."""
        query = sa.select(*_VICTIM).where(victims.c.settled > since, victims.c.outcome == RUNS_AGAIN)
        with self.transaction(write=False) as connection:
            return [_victim(row) for row in connection.execute(query)]

    def hurts(self, job: int, now: float) -> list[Hurt]:
        """The faults that each run of this job met, oldest first. One that our prolog refused met none."""
        query = (
            sa.select(victims.c.node, incidents.c.code, victims.c.restarts, victims.c.began, victims.c.since)
            .join(incidents, incidents.c.id == victims.c.incident)
            .where(victims.c.job == job, victims.c.touched > now - LIFE, victims.c.refused == 0)
        )
        with self.transaction(write=False) as connection:
            return [Hurt(*row) for row in connection.execute(query.order_by(victims.c.restarts))]

    def requeues(self, job: int, uid: int, restarts: int) -> int:
        """How often this job was requeued for faults before this run. Its restart count never falls: where it
        does, an older job had the same number."""
        query = sa.select(victims.c.restarts, victims.c.requeued, victims.c.refused)
        query = query.where(victims.c.job == job, victims.c.uid == uid).order_by(victims.c.id.desc())
        many = 0
        with self.transaction(write=False) as connection:
            for row in connection.execute(query):
                if row.restarts < restarts:
                    restarts = row.restarts
                    many += bool(row.requeued and not row.refused)
        return many

    def victim(self, number: int, **changes: Any) -> None:
        with self.transaction() as connection:
            update(connection, victims, number, **changes)


def _more_urgent(one: Urgency, other: Urgency) -> bool:
    order = list(Urgency)
    return order.index(one) < order.index(other)


def _victim(row: Sequence[Any]) -> Victim:
    number, incident, job, restarts, label, uid, node, urgency, *rest = row
    return Victim(number, incident, job, restarts, label, uid, node, Urgency(urgency), *rest)
