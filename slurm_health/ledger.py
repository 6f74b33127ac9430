"""What happened, on disk: incidents, their evidence, the jobs they touched, and every act of ours.

SQLite in WAL by default, any SQLAlchemy URL otherwise. An act is written down before it is done and its
outcome after, so that a crash in between can be mended by asking Slurm what is true.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from slurm_health.model import Hurt, Incident, Job, Severity, Urgency, Victim
from slurm_health.wire import NodeReport

log = logging.getLogger(__name__)

metadata = sa.MetaData()

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("node", sa.String(256), nullable=False),
    sa.Column("code", sa.String(40), nullable=False),
    sa.Column("device", sa.String(100), nullable=False),
    sa.Column("severity", sa.Integer, nullable=False),
    sa.Column("job", sa.String(12), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("opened", sa.Float, nullable=False),
    sa.Column("lasting", sa.Boolean, nullable=False),
    sa.Column("moment", sa.String(300), nullable=False),
    sa.Column("count", sa.Integer, nullable=False, default=1),
    sa.Column("seen", sa.Float, nullable=False),
    sa.Column("cleared", sa.Float, nullable=False, default=0.0),
    sa.Column("acknowledged", sa.Float, nullable=False, default=0.0),
    sa.Column("closed", sa.Float, nullable=False, default=0.0),
    sa.Column("closed_by", sa.Text, nullable=False, default=""),
    sa.Column("held", sa.Text, nullable=False, default=""),
)
sa.Index(
    "one_open_incident_per_fault",
    incidents.c.node,
    incidents.c.code,
    incidents.c.device,
    unique=True,
    sqlite_where=incidents.c.closed == 0,
    postgresql_where=incidents.c.closed == 0,
)
# SQLite adds the id to each index: what is found through one of these comes in the order of ids.
sa.Index("ix_incidents_closed", incidents.c.closed)
sa.Index("ix_incidents_of_node_closed", incidents.c.node, incidents.c.closed)
sa.Index("ix_incidents_of_node_standing", incidents.c.node, incidents.c.lasting, incidents.c.cleared)
sa.Index("ix_incidents_of_node_severity", incidents.c.node, incidents.c.severity)

evidence = sa.Table(
    "evidence",
    metadata,
    sa.Column("node", sa.String(256), primary_key=True),
    sa.Column("moment", sa.String(300), primary_key=True),
    sa.Column("incident", sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
)

actions = sa.Table(
    "actions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("incident", sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("target", sa.String(256), nullable=False),
    sa.Column("detail", sa.Text, nullable=False, default=""),
    sa.Column("intended", sa.Float, nullable=False),
    sa.Column("done", sa.Float, nullable=False, default=0.0),
    sa.Column("outcome", sa.Text, nullable=False, default=""),
)
sa.Index("ix_actions_done", actions.c.kind, actions.c.done)
sa.Index("ix_actions_intended", actions.c.kind, actions.c.intended)

victims = sa.Table(
    "victims",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("incident", sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("job", sa.BigInteger, nullable=False),
    sa.Column("restarts", sa.Integer, nullable=False),
    # Slurm counts job ids from 1 again when its state is lost; a later life of the same id is another job.
    sa.Column("life", sa.Integer, nullable=False, default=0),
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("node", sa.String(256), nullable=False),
    sa.Column("urgency", sa.String(12), nullable=False),
    sa.Column("began", sa.Float, nullable=False, server_default="0"),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("touched", sa.Float, nullable=False),
    sa.Column("refused", sa.Float, nullable=False, default=0.0),
    sa.Column("requeued", sa.Float, nullable=False, default=0.0),
    sa.Column("started", sa.Float, nullable=False, default=0.0),
    sa.Column("running", sa.Float, nullable=False, default=0.0),
    sa.Column("ran", sa.Float, nullable=False, default=0.0),
    sa.Column("ran_nodes", sa.Text, nullable=False, default=""),
    sa.Column("settled", sa.Float, nullable=False, default=0.0, index=True),
    sa.Column("outcome", sa.Text, nullable=False, default=""),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.UniqueConstraint("job", "restarts", "life", name="each_run_once"),
)

touches = sa.Table(
    "touches",
    metadata,
    sa.Column("incident", sa.ForeignKey("incidents.id"), primary_key=True),
    sa.Column("victim", sa.ForeignKey("victims.id"), primary_key=True, index=True),
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("boot", sa.String(64), nullable=False, default=""),
    sa.Column("reported", sa.Float, nullable=False, default=0.0),  # when it last said something new
    sa.Column("blind", sa.Text, nullable=False, default=""),
    # The drain that is ours: its words, Slurm's ReasonTime of it, and when we did it; "" when none is.
    sa.Column("reason", sa.Text, nullable=False, default="", index=True),
    sa.Column("reason_time", sa.BigInteger, nullable=False, default=0),
    sa.Column("drained", sa.Float, nullable=False, default=0.0),
)

pauses = sa.Table(
    "pauses",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("nodes", sa.Text, nullable=False),  # a hostlist, "" for the whole cluster
    sa.Column("begins", sa.Float, nullable=False),
    sa.Column("ends", sa.Float, nullable=False),  # 0: until unpause
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
)

LIFE = 7 * 86400.0  # seconds after which the same job id and restart count is taken for another job
NO_ANSWER = "no answer"  # the outcome of an act that may have happened, or may yet
EVIDENCE = 1000  # lines kept for one incident: a storm must not fill the disk
EVIDENCE_LISTED = 10  # lines of each incident where many are listed
PATIENCE = 5000  # milliseconds that the start waits for another program's lock
SHORT_PATIENCE = 100  # the same while serving, where all wait with it
RETRY = 1.0  # seconds after which a report that says nothing new tries whether a trouble is over

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# After these a connection stays as it is, whatever becomes of the file.
_STUCK = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_UNREAD = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
_WRITABLE = f"it and its folder must be writable for uid {os.geteuid()}"
_REMEDIES = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_BUSY: "another program holds its lock, an open sqlite3 or a second controller: end that",
    sqlite3.SQLITE_CANTOPEN: _WRITABLE,
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_PERM: _WRITABLE,
    sqlite3.SQLITE_IOERR: "its disk is full or fails, the kernel log may say more",
}


class LedgerError(Exception):
    """The ledger cannot be opened or used, in words that name it."""


class WrongLedger(LedgerError):
    """It never can be: the url is none, or a newer release wrote it."""


class LedgerLost(LedgerError):
    """What was in use is corrupt or gone. Nothing works until `open` has begun anew."""


class _Shared(threading.local):
    """The transaction of `together`: of its thread only, people's questions are answered on others."""

    connection: Connection | None = None


class Ledger:
    """The one writer of the database. Each method is one short transaction: all of it or nothing, and what
    one reads is of one moment. `trouble` says why the last write failed, "" when it did not."""

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.make_url(url)
            self.engine = sa.create_engine(self.url)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise WrongLedger(f"[ledger] url: {error}") from error
        self.sqlite = self.engine.dialect.name == "sqlite"
        if self.sqlite:
            sa.event.listen(self.engine, "connect", self._pragmas)
            sa.event.listen(self.engine, "begin", _begin)
        name = self.url.database if self.sqlite else ""
        self.file = Path(name) if name and name != ":memory:" and not name.startswith("file:") else None
        self.name = str(self.file or self.url.render_as_string())
        self.identity: tuple[int, int] | None = None  # device and inode of the file in use
        self.patience = PATIENCE
        self.trouble = ""
        self.said: set[str] = set()  # the words of this trouble that were logged
        self.tried = 0.0  # when a write last failed (monotonic)
        self.lost = ""  # why it can no longer be used
        self.corrupt = False
        self.when_lost: Callable[[], object] = lambda: None
        self.aside: Path | None = None  # where a corrupt file was put since the process began
        self.shared = _Shared()
        self.told: dict[str, tuple[str, str, frozenset[str]]] = {}  # node -> what it last said that was new
        self.open()

    def open(self) -> None:
        """Begin to use it, or begin anew after it was lost. A corrupt file is set aside, never deleted."""
        self.lost, self.identity, self.patience = "", None, PATIENCE
        self.told.clear()
        if self.file:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(f"{self.name}: its folder cannot be made: {error.strerror}") from error
            if self.corrupt or not self.file.exists():
                self._set_aside()
        self.engine.dispose()
        try:
            self._migrate()
        except LedgerLost:
            if not self.file:
                raise
            self._set_aside()
            self.lost = ""
            self._migrate()
        if self.file:
            self.identity = _identity(self.file.stat())
        self.patience, self.corrupt = SHORT_PATIENCE, False
        self._rejoice()

    def _migrate(self) -> None:
        # Half a second of imports that only the controller's start should pay.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._transaction() as connection:
            if (
                self.sqlite
                and (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok"
            ):
                raise self._lose(f"corrupt: {found}", corrupt=True)
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise WrongLedger(f"{self.name}: {error}; a newer release may have written it") from error

    def _set_aside(self) -> None:
        """Move the file, or what is left of one, out of the way. It is never deleted nor written over."""
        assert self.file
        suffixes = [end for end in ("", "-wal", "-shm") if self.file.with_name(self.file.name + end).exists()]
        if suffixes:
            base = self.file.with_name(f"{self.file.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}")
            names = itertools.chain([base], (base.with_name(f"{base.name}.{n}") for n in itertools.count(2)))
            aside = next(
                name
                for name in names
                if not any(name.with_name(name.name + end).exists() for end in ("", "-wal", "-shm"))
            )
            try:
                for end in suffixes:
                    self.file.with_name(self.file.name + end).rename(aside.with_name(aside.name + end))
            except OSError as error:
                raise LedgerError(f"{self.name}: cannot be set aside: {error.strerror}") from error
            self.aside = aside
            log.error("%s: set aside as %s, a new ledger is begun", self.name, aside)
        # Not before: closing a moved file's last connection neither writes to it nor deletes its -wal.
        self.engine.dispose()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have all that is written inside written at once, or not at all. Nothing may be awaited inside."""
        with self._transaction() as connection:
            outer, self.shared.connection = self.shared.connection, connection
            try:
                yield
            finally:
                self.shared.connection = outer

    @contextmanager
    def _transaction(self, write: bool = True) -> Iterator[Connection]:
        if self.shared.connection is not None:
            yield self.shared.connection
            return
        if self.lost:
            raise LedgerLost(self.lost)
        if write:
            self._must_be_there()
        try:
            with self.engine.connect() as connection:
                before = 0
                if self.sqlite and write:
                    driver: Any = connection.connection.driver_connection
                    # Who is in trouble already does not wait again.
                    driver.execute(f"PRAGMA busy_timeout={0 if self.trouble else self.patience}").close()
                    before = driver.total_changes
                    connection.execution_options(begin="BEGIN IMMEDIATE")
                with connection.begin():
                    yield connection
                changed = write and (not self.sqlite or driver.total_changes > before)
        except sa.exc.DBAPIError as error:
            raise self._mourn(error) from error
        if changed:  # a write of nothing succeeds on a full disk too
            self._rejoice()

    def _must_be_there(self) -> None:
        """SQLite goes on writing to a file that was deleted or moved away, without a word."""
        if not self.file or not self.identity:
            return
        try:
            identity = _identity(self.file.stat())
        except FileNotFoundError:
            if self.file.parent.is_dir():
                raise self._lose("it has vanished") from None
            raise self._say(f"{self.name}: its folder has vanished") from None
        except OSError as error:
            raise self._say(f"{self.name}: {error.strerror}") from error
        if identity != self.identity:
            raise self._lose("another file is in its place")

    def _mourn(self, error: sa.exc.DBAPIError) -> LedgerError:
        code = getattr(error.orig, "sqlite_errorcode", 0)
        if code & 0xFF in _CORRUPT:
            return self._lose(f"corrupt: {error.orig}", corrupt=True)
        if code & 0xFF in _STUCK or code in _UNREAD:
            self.engine.dispose()
        remedy = _REMEDIES.get(code & 0xFF, "")
        return self._say(f"{self.name}: {error.orig}{remedy and f' ({remedy})'}")

    def _say(self, words: str) -> LedgerError:
        if words not in self.said:
            log.error("ledger %s", words)
        self.said.add(words)
        self.trouble, self.tried = words, time.monotonic()
        return LedgerError(words)

    def _lose(self, why: str, corrupt: bool = False) -> LedgerLost:
        self.corrupt |= corrupt
        self.lost = str(self._say(f"{self.name}: {why}"))
        self.when_lost()
        return LedgerLost(self.lost)

    def _rejoice(self) -> None:
        if self.trouble:
            log.warning("ledger %s: is written again", self.name)
            self.trouble = ""
            self.said.clear()

    def _pragmas(self, connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, not before the first write
        # busy_timeout first, so that a reader's lock cannot make the switch to WAL fail.
        for pragma in (
            f"busy_timeout={self.patience}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
        ):
            try:
                connection.execute(f"PRAGMA {pragma}").close()
            except sqlite3.DatabaseError as error:
                # The first statement says it too. Who fails here is closed at once, and its -wal deleted.
                if error.sqlite_errorcode & 0xFF not in _CORRUPT:
                    raise

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
        with self._transaction() as connection:
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

    def unknown(self, node: str, standing: Sequence[str]) -> list[str]:
        """Those of a node's standing moments that were never told here: by a ledger that was lost they were,
        or they fell out of a full spool. What was told and is closed is known."""
        if not standing:
            return []
        told = sa.select(evidence.c.moment).filter_by(node=node).where(evidence.c.moment.in_(standing))
        with self._transaction(write=False) as connection:
            known = set(connection.scalars(told))
        return [moment for moment in standing if moment not in known]

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
                ),
            )
        line = found.evidence if not same or same._mapping["count"] < EVIDENCE else ""
        connection.execute(
            evidence.insert().values(node=node, moment=found.moment, incident=number, at=since, line=line)
        )
        return int(number)

    # Incidents

    def open_incidents(self, nodes: Collection[str] | None = None) -> list[Incident]:
        """The open incidents of these nodes, or all, oldest first."""
        query = sa.select(*_INCIDENT).filter_by(closed=0).order_by(incidents.c.id)
        if nodes is not None:
            query = query.where(incidents.c.node.in_(list(nodes)))
        with self._transaction(write=False) as connection:
            return [_incident(row) for row in connection.execute(query)]

    def outlook(self, most: int) -> tuple[int, Severity, list[Incident]]:
        """How many incidents are open, the worst severity of those not acknowledged, and the `most` worst."""
        heeded = sa.case((incidents.c.acknowledged == 0, incidents.c.severity), else_=int(Severity.OK))
        worst = sa.select(*_INCIDENT).filter_by(closed=0)
        worst = worst.order_by(incidents.c.severity.desc(), incidents.c.id).limit(most)
        with self._transaction(write=False) as connection:
            many, severity = connection.execute(
                sa.select(sa.func.count(), sa.func.max(heeded)).where(incidents.c.closed == 0)
            ).one()
            rows = [_incident(row) for row in connection.execute(worst)]
            return many, Severity(severity or 0), rows

    def troubled(self) -> list[str]:
        """The nodes with an open incident."""
        with self._transaction(write=False) as connection:
            return list(connection.scalars(sa.select(incidents.c.node).filter_by(closed=0).distinct()))

    def incident(self, number: int) -> Incident | None:
        with self._transaction(write=False) as connection:
            row = connection.execute(sa.select(*_INCIDENT).filter_by(id=number)).first()
            return _incident(row) if row else None

    def latest(self, node: str, before: float = 1e12) -> Incident | None:
        """The last critical incident of a node that was opened before then, open or not."""
        with self._transaction(write=False) as connection:
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
        with self._transaction() as connection:
            for number in numbers:
                row = connection.execute(sa.select(incidents).filter_by(id=number)).one()
                over = not row.lasting or row.cleared
                done = {"closed": now, "closed_by": "an admin's RESUME"} if over else {}
                _update(connection, incidents, number, acknowledged=now, held="", **done)

    def close(self, number: int, by: str, now: float) -> None:
        with self._transaction() as connection:
            _update(connection, incidents, number, closed=now, closed_by=by)

    def hold(self, number: int, why: str) -> None:
        """Note why nothing is done about it ("" when something is)."""
        with self._transaction() as connection:
            _update(connection, incidents, number, held=why)

    def close_quiet(self, now: float, quiet: float) -> None:
        """Close what only warned, cannot end by itself, and has not been seen for `quiet` seconds."""
        with self._transaction() as connection:
            connection.execute(
                incidents.update()
                .where(incidents.c.closed == 0, ~incidents.c.lasting, incidents.c.seen < now - quiet)
                .where(incidents.c.severity < int(Severity.CRITICAL))
                .values(closed=now, closed_by="quiet")
            )

    def forget(self, before: float) -> None:
        """Drop incidents closed before then, with all that hangs on them. What stands still is kept: its
        moment must stay known."""
        with self._transaction() as connection:
            old = sa.select(incidents.c.id).where(incidents.c.closed > 0, incidents.c.closed < before)
            old = old.where(~incidents.c.lasting | (incidents.c.cleared > 0))
            olds = connection.scalars(old).all()
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
        with self._transaction() as connection:
            return _insert(
                connection,
                actions.insert().values(
                    incident=incident, kind=kind, target=target, detail=detail, intended=now
                ),
            )

    def settle(self, action: int, outcome: str, now: float) -> None:
        with self._transaction() as connection:
            _update(connection, actions, action, done=now, outcome=outcome)

    def unsettled(self, kind: str, target: str) -> list[Any]:
        """Acts that were intended and whose outcome is not known: a crash came in between."""
        with self._transaction(write=False) as connection:
            return list(
                connection.execute(
                    sa.select(actions).filter_by(kind=kind, target=target, done=0).order_by(actions.c.id)
                )
            )

    def attempts(self, kind: str, since: float) -> list[Any]:
        """Acts whose outcome is not known, and those since then that got no answer: both may yet be done."""
        with self._transaction(write=False) as connection:
            return _attempts(connection, kind, since)

    def would(self, incident: int, kind: str, target: str, why: str, now: float) -> None:
        """Write down once what would have been done, and why it is not."""
        with self._transaction() as connection:
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

    def drained_since(self, then: float, under_way: bool = False) -> set[str]:
        """The nodes that we drained since then, back or not; or those whose drain is not settled, of any
        time."""
        query = sa.select(actions.c.target).where(
            actions.c.kind == "drain", ~actions.c.outcome.like("not done%")
        )
        query = query.filter_by(done=0) if under_way else query.where(actions.c.intended >= then)
        with self._transaction(write=False) as connection:
            return set(connection.scalars(query))

    # Nodes

    def nodes_in_question(self, since: float) -> set[str]:
        """The nodes that are out by us, that should be, or that a drain since then may yet put out."""
        pressing = sa.select(incidents.c.node).filter_by(
            closed=0, acknowledged=0, severity=int(Severity.CRITICAL)
        )
        ours = sa.select(nodes.c.name).where(nodes.c.reason > "")
        with self._transaction(write=False) as connection:
            return {
                *connection.scalars(pressing),
                *connection.scalars(ours),
                *(row.target for row in _attempts(connection, "drain", since)),
            }

    def node(self, name: str) -> Any | None:
        with self._transaction(write=False) as connection:
            return connection.execute(sa.select(nodes).filter_by(name=name)).first()

    def drained(self, name: str, reason: str, reason_time: int, at: float) -> None:
        """The node is out by us, with these words and this ReasonTime; "" when it no longer is."""
        with self._transaction() as connection:
            _upsert(
                connection,
                nodes,
                {"name": name},
                {"reason": reason, "reason_time": reason_time, "drained": at},
            )

    def out_by_us(self) -> list[Any]:
        with self._transaction(write=False) as connection:
            return list(connection.execute(sa.select(nodes).where(nodes.c.reason > "")))

    # Jobs

    def touch(self, incident: Incident, job: Job, restarts: int, refused: float, now: float) -> bool:
        """Note that the fault touches this run of the job; whether that was news."""
        with self._transaction() as connection:
            if job.completing and restarts == job.restarts:
                # Slurm counts a requeue before the run that it ends has left the node: that is no new run.
                before = (victims.c.job == job.id) & (victims.c.restarts == restarts - 1)
                run = sa.select(victims.c.id).join(touches).where(before, touches.c.incident == incident.id)
                if connection.execute(run).first():
                    return False
            same = connection.execute(
                sa.select(victims).filter_by(job=job.id, restarts=restarts).order_by(victims.c.life.desc())
            ).first()
            life = 0
            if same and same.settled and now - same.touched > LIFE:
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
                        began=job.started if job.restarts == restarts else 0.0,
                        node=incident.node,
                        urgency=str(incident.job),
                        since=incident.since,
                        touched=now,
                        refused=refused,
                    ),
                )
            else:
                number = same.id
                if refused and not same.refused:  # its story is not at the end that it seemed to have
                    _update(connection, victims, number, refused=refused, settled=0.0, outcome="")
                if same.urgency != Urgency.NOW and incident.job is Urgency.NOW and not same.settled:
                    _update(connection, victims, number, urgency=str(Urgency.NOW), since=incident.since)
            linked = connection.scalar(
                sa.select(touches.c.victim).filter_by(incident=incident.id, victim=number)
            )
            if not linked:
                connection.execute(touches.insert().values(incident=incident.id, victim=number))
            return not linked

    def pending_victims(self) -> list[Victim]:
        """The jobs whose story is not at its end."""
        with self._transaction(write=False) as connection:
            return [_victim(row) for row in connection.execute(sa.select(*_VICTIM).filter_by(settled=0))]

    def hurts(self, job: int, now: float) -> list[Hurt]:
        """The faults that each run of this job met, oldest first. One that our prolog refused met none."""
        query = (
            sa.select(victims.c.node, incidents.c.code, victims.c.began, victims.c.since)
            .join(incidents, incidents.c.id == victims.c.incident)
            .where(victims.c.job == job, victims.c.touched > now - LIFE, victims.c.refused == 0)
        )
        with self._transaction(write=False) as connection:
            return [Hurt(*row) for row in connection.execute(query.order_by(victims.c.restarts))]

    def victim(self, number: int, **changes: Any) -> None:
        with self._transaction() as connection:
            _update(connection, victims, number, **changes)

    # Pauses

    def pause(self, hostlist: str, ends: float, reason: str, by: str, now: float) -> None:
        with self._transaction() as connection:
            connection.execute(
                pauses.insert().values(nodes=hostlist, begins=now, ends=ends, reason=reason, by=by)
            )

    def unpause(self, hostlist: str) -> int:
        """Lift the pauses of exactly this hostlist; how many there were."""
        with self._transaction() as connection:
            return int(connection.execute(pauses.delete().where(pauses.c.nodes == hostlist)).rowcount)

    def pauses(self, now: float) -> list[Any]:
        with self._transaction(write=False) as connection:
            return list(
                connection.execute(sa.select(pauses).where((pauses.c.ends == 0) | (pauses.c.ends > now)))
            )

    # Stories, for people

    def stories(
        self,
        wanted: Sequence[int] | None = None,
        node: str = "",
        job: int = 0,
        every: bool = False,
        limit: int = 200,
    ) -> list[dict[str, Any]]:
        """Whole incidents, newest first: evidence, jobs and acts. Times are seconds since the epoch."""
        query = sa.select(incidents).order_by(incidents.c.id.desc()).limit(limit)
        if wanted is not None:
            query = query.where(incidents.c.id.in_(wanted))
        elif not every:
            query = query.filter_by(closed=0)
        if node:
            query = query.filter_by(node=node)
        if job:
            of_job = sa.select(touches.c.incident).join(victims, victims.c.id == touches.c.victim)
            query = query.where(incidents.c.id.in_(of_job.where(victims.c.job == job)))
        with self._transaction(write=False) as connection:
            found = [dict(row._mapping) for row in connection.execute(query)]
            numbers = [row["id"] for row in found]
            lines = _lines(connection, numbers, EVIDENCE if len(numbers) == 1 else EVIDENCE_LISTED)
            acts = _by_incident(connection, actions, numbers, actions.c.id)
            touched: dict[int, list[dict[str, Any]]] = {}
            for job_of in connection.execute(
                sa.select(touches.c.incident.label("of"), victims)
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


def _begin(connection: Connection) -> None:
    # A writer takes its lock before it reads what it decides on; who only reads sees one moment.
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


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
