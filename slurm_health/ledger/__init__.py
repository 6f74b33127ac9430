"""What happened, on disk: incidents, their evidence, the jobs they touched, and every act of ours.

SQLite in WAL by default, any SQLAlchemy URL otherwise. An act is written down before it is done and its
outcome after, so that a crash in between can be mended by asking Slurm what is true.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from slurm_health.ledger.lease import Lease
from slurm_health.ledger.outbox import Outbox
from slurm_health.ledger.schema import actions, evidence, incidents, nodes, pauses, touches, victims
from slurm_health.ledger.store import RETRY, LedgerError, LedgerLost, Store, WrongLedger, alone
from slurm_health.model import Finding, Hurt, Incident, Job, Severity, Urgency, Victim
from slurm_health.wire import NodeReport

__all__ = [
    "FAULT_GONE",
    "NO_ANSWER",
    "Lease",
    "Ledger",
    "LedgerError",
    "LedgerLost",
    "WrongLedger",
    "alone",
]

LIFE = 7 * 86400.0  # seconds after which the same job id and restart count is taken for another job
FAULT_GONE = "the fault is gone"  # why we put a node back into service
NO_ANSWER = "no answer"  # the outcome of an act that may have happened, or may yet
EVIDENCE = 1000  # lines kept for one incident: a storm must not fill the disk
EVIDENCE_LISTED = 10  # lines of each incident where many are listed
OURS = (
    "cleared",
    "quiet",
    "new evidence",
    "an admin's RESUME",
)  # closed_by, where nobody did by hand


class Ledger(Store):
    """The one writer of the database. Each method is one short transaction: all of it or nothing, and what
    one reads is of one moment.
    """

    def __init__(self, url: str) -> None:
        self.told: dict[str, tuple[str, str, frozenset[str]]] = {}  # node -> what it last said that was new
        self.outbox = Outbox(self)
        super().__init__(url)

    def open(self) -> None:
        self.told.clear()
        super().open()

    # What nodes report

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
            _upsert(
                connection,
                nodes,
                {"name": report.node},
                {"boot": report.boot, "reported": now, "blind": blind},
            )
            for found in report.opened:
                if connection.scalar(
                    sa.select(evidence.c.incident).filter_by(node=report.node, moment=found.moment)
                ):
                    continue  # told before: the receipt was lost
                changed.append(self._open(connection, report.node, found, now))
            standing = set(report.standing)
            lasting = connection.execute(
                sa.select(
                    incidents.c.id,
                    incidents.c.moment,
                    incidents.c.severity,
                    incidents.c.acknowledged,
                    incidents.c.closed,
                ).filter_by(node=report.node, cleared=0, lasting=True)
            ).all()
            drained = connection.scalar(sa.select(nodes.c.reason).filter_by(name=report.node))
            for row in lasting:
                if row.moment in standing:
                    continue
                done: dict[str, Any] = {}
                if not row.closed:  # else it was closed while it stood: now it may be forgotten
                    changed.append(row.id)
                    # One that put the node out stays open until the node is back: somebody must look.
                    if row.severity != Severity.CRITICAL or row.acknowledged or not drained:
                        done = {"closed": now, "closed_by": "cleared"}
                _update(connection, incidents, row.id, cleared=now, **done)
        self.told[report.node] = said
        return changed

    def raised(self, node: str, finding: Finding, now: float) -> int:
        """Open or repeat an incident that the controller itself found; its number. It clears with the node's
        next report."""
        self.told.pop(node, None)
        with self.transaction() as connection:
            told = sa.select(evidence.c.incident).filter_by(node=node, moment=finding.moment)
            return int(connection.scalar(told) or self._open(connection, node, finding, now))

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

    def _open(self, connection: Connection, node: str, found: Any, now: float) -> int:
        same = connection.execute(
            sa.select(incidents).filter_by(node=node, code=found.code, device=found.device, closed=0)
        ).first()
        since = min(found.since or now, now)
        if same and same.acknowledged:
            # New evidence after an admin's RESUME is a new incident; the overruled one is history.
            _update(connection, incidents, same.id, closed=now, closed_by="new evidence")
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
            _update(connection, incidents, same.id, **changes)
            number = same.id
        else:
            number = _insert(
                connection,
                incidents.insert().values(
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
                ),
            )
        if not same or found.severity > same.severity:
            self.outbox.found(connection, int(number), now)
        line = found.evidence if not same or same._mapping["count"] < EVIDENCE else ""
        connection.execute(
            evidence.insert().values(node=node, moment=found.moment, incident=number, at=since, line=line)
        )
        return int(number)

    # Incidents

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
            row = connection.execute(sa.select(*_INCIDENT).filter_by(id=number)).first()
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
                row = connection.execute(sa.select(incidents).filter_by(id=number)).one()
                over = not row.lasting or row.cleared
                done = {"closed": now, "closed_by": "an admin's RESUME"} if over else {}
                _update(connection, incidents, number, acknowledged=now, held="", **done)

    def close(self, number: int, by: str, now: float) -> None:
        with self.transaction() as connection:
            _update(connection, incidents, number, closed=now, closed_by=by)

    def hold(self, number: int, why: str) -> None:
        """Note why nothing is done about it ("" when something is)."""
        with self.transaction() as connection:
            _update(connection, incidents, number, held=why)

    def reconsider(self, numbers: Collection[int], why: str) -> None:
        """Those of these incidents about which nothing was done for such a reason are to be judged anew."""
        if numbers:
            held = incidents.c.id.in_(numbers) & incidents.c.held.startswith(why, autoescape=True)
            with self.transaction() as connection:
                connection.execute(incidents.update().where(held).values(held=""))

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

    # Acts

    def intend(self, incident: int, kind: str, target: str, now: float, detail: str = "") -> int:
        """Write down what is about to be done; its number, for `settle`."""
        with self.transaction() as connection:
            return _insert(
                connection,
                actions.insert().values(
                    incident=incident, kind=kind, target=target, detail=detail, intended=now
                ),
            )

    def settle(self, action: int, outcome: str, now: float) -> None:
        with self.transaction() as connection:
            _update(connection, actions, action, done=now, outcome=outcome)
            if outcome == "done":
                self.outbox.done(connection, action, now)

    def unsettled(self, kind: str, target: str) -> list[Any]:
        """Acts that were intended and whose outcome is not known: a crash came in between."""
        with self.transaction(write=False) as connection:
            return list(
                connection.execute(
                    sa.select(actions).filter_by(kind=kind, target=target, done=0).order_by(actions.c.id)
                )
            )

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
            return _attempts(connection, kind, since)

    def would(self, incident: int, kind: str, target: str, why: str, now: float) -> bool:
        """Write down once what would have been done, and why it is not; whether that was news."""
        with self.transaction() as connection:
            told = connection.scalar(
                sa.select(actions.c.id).filter_by(incident=incident, kind=kind, target=target)
            )
            if not told:
                connection.execute(
                    actions.insert().values(
                        incident=incident,
                        kind=kind,
                        target=target,
                        intended=now,
                        done=now,
                        outcome=f"not done: {why}",
                    )
                )
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

    # Nodes

    def nodes_in_question(self, since: float) -> set[str]:
        """The nodes that are out by us, that should be, or that a drain since then may yet put out."""
        pressing = sa.select(incidents.c.node).filter_by(
            closed=0, acknowledged=0, severity=int(Severity.CRITICAL)
        )
        ours = sa.select(nodes.c.name).where(nodes.c.reason > "")
        with self.transaction(write=False) as connection:
            return {
                *connection.scalars(pressing),
                *connection.scalars(ours),
                *(row.target for row in _attempts(connection, "drain", since)),
            }

    def node(self, name: str) -> Any | None:
        with self.transaction(write=False) as connection:
            return connection.execute(sa.select(nodes).filter_by(name=name)).first()

    def reporters(self) -> set[str]:
        """The nodes that have reported."""
        with self.transaction(write=False) as connection:
            return set(connection.scalars(sa.select(nodes.c.name).where(nodes.c.reported > 0)))

    def drained(self, name: str, reason: str, reason_time: int, at: float) -> None:
        """The node is out by us, with these words and this ReasonTime; "" when it no longer is."""
        with self.transaction() as connection:
            _upsert(
                connection,
                nodes,
                {"name": name},
                {"reason": reason, "reason_time": reason_time, "drained": at},
            )

    def out_by_us(self) -> list[Any]:
        with self.transaction(write=False) as connection:
            return list(connection.execute(sa.select(nodes).where(nodes.c.reason > "")))

    # Jobs

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
                number = _insert(
                    connection,
                    victims.insert().values(
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
                    ),
                )
            else:
                number = same.id
                if refused and not same.refused:  # its story is not at the end that it seemed to have
                    _update(connection, victims, number, refused=refused, settled=0.0, outcome="")
                if requeued and not same.requeued:
                    _update(connection, victims, number, requeued=requeued, settled=0.0, outcome="")
                elif _more_urgent(incident.job, Urgency(same.urgency)) and not same.requeued:
                    now_is = {"urgency": str(incident.job), "since": incident.since}
                    _update(connection, victims, number, **now_is, settled=0.0, outcome="")
            linked = connection.scalar(
                sa.select(touches.c.victim).filter_by(incident=incident.id, victim=number)
            )
            if not linked:
                connection.execute(touches.insert().values(incident=incident.id, victim=number, ranks=ranks))
            return not linked

    def ranks(self, incident: int, victim: int) -> str:
        """Which ranks of a touched job sat on the broken device, folded ("3,5-7"), "" where unknown."""
        query = sa.select(touches.c.ranks).filter_by(incident=incident, victim=victim)
        with self.transaction(write=False) as connection:
            return connection.scalar(query) or ""

    def pending_victims(self) -> list[Victim]:
        """The jobs whose story is not at its end."""
        with self.transaction(write=False) as connection:
            return [_victim(row) for row in connection.execute(sa.select(*_VICTIM).filter_by(settled=0))]

    def hurts(self, job: int, now: float) -> list[Hurt]:
        """The faults that each run of this job met, oldest first. One that our prolog refused met none."""
        query = (
            sa.select(victims.c.node, incidents.c.code, victims.c.began, victims.c.since)
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
            _update(connection, victims, number, **changes)

    # Pauses

    def pause(self, hostlist: str, ends: float, reason: str, by: str, now: float) -> None:
        with self.transaction() as connection:
            connection.execute(
                pauses.insert().values(nodes=hostlist, begins=now, ends=ends, reason=reason, by=by)
            )

    def unpause(self, hostlist: str) -> int:
        """Lift the pauses of exactly this hostlist; how many there were."""
        with self.transaction() as connection:
            return int(connection.execute(pauses.delete().where(pauses.c.nodes == hostlist)).rowcount)

    def pauses(self, now: float) -> list[Any]:
        with self.transaction(write=False) as connection:
            return list(
                connection.execute(sa.select(pauses).where((pauses.c.ends == 0) | (pauses.c.ends > now)))
            )

    # What people are told unasked

    def notice(self, event: str, incident: int, text: str, now: float, job: str = "") -> None:
        """Have it told that this happened, of the fault of an incident."""
        if self.outbox.ways:
            with self.transaction() as connection:
                self.outbox.put(connection, event, incident, text, now, job)

    # Stories, for people

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
            lines = _lines(connection, numbers, EVIDENCE if len(numbers) == 1 else EVIDENCE_LISTED)
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


def _attempts(connection: Connection, kind: str, since: float) -> list[Any]:
    of_kind = sa.select(actions).filter_by(kind=kind)
    late = of_kind.filter_by(outcome=NO_ANSWER).where(actions.c.intended >= since, actions.c.done > 0)
    # Two questions, since no index answers an OR.
    rows = [row for query in (of_kind.filter_by(done=0), late) for row in connection.execute(query)]
    return sorted(rows, key=lambda row: int(row.id))


def _more_urgent(one: Urgency, other: Urgency) -> bool:
    order = list(Urgency)
    return order.index(one) < order.index(other)


def _insert(connection: Connection, insert: sa.Insert) -> int:
    """Run it; the new row's number."""
    key = connection.execute(insert).inserted_primary_key
    assert key
    return int(key[0])


def _update(connection: Connection, table: sa.Table, number: int, **changes: Any) -> None:
    connection.execute(table.update().where(table.c.id == number).values(**changes))


def _upsert(
    connection: Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    if not connection.execute(table.update().filter_by(**key).values(**values)).rowcount:
        connection.execute(table.insert().values(**key, **values))


# As the model has them: what is selected is turned into values without a look at the names.
_INCIDENT = [incidents.c[field.name] for field in fields(Incident)]
_VICTIM = [victims.c[field.name] for field in fields(Victim)]


def _incident(row: Sequence[Any]) -> Incident:
    number, node, code, device, severity, job, *rest = row
    return Incident(number, node, code, device, Severity(severity), Urgency(job), *rest)


def _victim(row: Sequence[Any]) -> Victim:
    number, incident, job, restarts, label, uid, node, urgency, *rest = row
    return Victim(number, incident, job, restarts, label, uid, node, Urgency(urgency), *rest)
