"""Where the ledger is kept: its file or server, its transactions, and what becomes of it in trouble.

A disk that is full, a lock that somebody holds or a server that is away is a trouble, which ends by itself. A
SQLite file that is corrupt is set aside, never deleted; one that was deleted or replaced is begun anew.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

log = logging.getLogger(__name__)

PATIENCE = 5000  # milliseconds that the start waits for another program's lock
SHORT_PATIENCE = 100  # the same while serving, where all wait with it
RETRY = 1.0  # seconds after which a server that was away is tried again: each try may cost seconds

# For libpq (its documentation, 34.1.2); milliseconds, and seconds for connect_timeout. A holder of the lease
# that stands still in the middle of a transaction must not keep the row from the next one.
_SERVER = {
    "application_name": "slurm-health",
    "connect_timeout": "3",
    "tcp_user_timeout": "5000",
    "options": f"-c lock_timeout={PATIENCE} -c idle_in_transaction_session_timeout=10000",
}
_MIGRATING = 6821  # the advisory lock of whoever migrates

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


class _Inner(threading.local):
    """The transaction of `together`: of its thread only, people's questions are answered on others."""

    connection: Connection | None = None


class Store:
    """The database and its transactions. `trouble` says why the last write failed, "" when it did not."""

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.make_url(url)
            self.engine = self.reader = _engine(self.url)
        except ImportError as error:
            raise WrongLedger(f"[ledger] url: {error}; slurm-health[postgresql] brings psycopg") from error
        except sa.exc.ArgumentError as error:
            raise WrongLedger(f"[ledger] url: {error}") from error
        self.sqlite = self.engine.dialect.name == "sqlite"
        self.shared = self.engine.dialect.name == "postgresql"  # whether several controllers may have it
        if self.sqlite:
            sa.event.listen(self.engine, "connect", self._pragmas)
            sa.event.listen(self.engine, "begin", _begin)
        else:
            self.reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
        self.file = _file(self.url)
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
        self.inner = _Inner()
        self.fence: Callable[[Connection], None] | None = None  # called by each write, first
        self.open()

    def open(self) -> None:
        """Begin to use it, or begin anew after it was lost. A corrupt file is set aside, never deleted."""
        self.lost, self.identity, self.patience, self.fence = "", None, PATIENCE, None
        self.tried = 0.0
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
        config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
        with self.transaction() as connection:
            if (
                self.sqlite
                and (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok"
            ):
                raise self.lose(f"corrupt: {found}", corrupt=True)
            if self.shared:  # several may start at once
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
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
        with self.transaction() as connection:
            outer, self.inner.connection = self.inner.connection, connection
            try:
                yield
            finally:
                self.inner.connection = outer

    @contextmanager
    def transaction(self, write: bool = True, fenced: bool = True) -> Iterator[Connection]:
        if self.inner.connection is not None:
            yield self.inner.connection
            return
        if self.lost:
            raise LedgerLost(self.lost)
        if self.trouble and not self.sqlite and time.monotonic() - self.tried < RETRY:
            raise LedgerError(self.trouble)
        if write:
            self._must_be_there()
        try:
            with (self.engine if write else self.reader).connect() as connection:
                before = 0
                if self.sqlite and write:
                    driver: Any = connection.connection.driver_connection
                    # Who is in trouble already does not wait again.
                    driver.execute(f"PRAGMA busy_timeout={0 if self.trouble else self.patience}").close()
                    before = driver.total_changes
                    connection.execution_options(begin="BEGIN IMMEDIATE")
                with connection.begin():
                    if write and fenced and self.fence:
                        self.fence(connection)
                    yield connection
                changed = write and (not self.sqlite or driver.total_changes > before)
        except sa.exc.DataError as error:  # a value that it cannot hold, somebody's question most likely
            raise LedgerError(f"{self.name}: {error.orig}") from error
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
                raise self.lose("it has vanished") from None
            raise self._say(f"{self.name}: its folder has vanished") from None
        except OSError as error:
            raise self._say(f"{self.name}: {error.strerror}") from error
        if identity != self.identity:
            raise self.lose("another file is in its place")

    def _mourn(self, error: sa.exc.DBAPIError) -> LedgerError:
        code = getattr(error.orig, "sqlite_errorcode", 0)
        if code & 0xFF in _CORRUPT:
            return self.lose(f"corrupt: {error.orig}", corrupt=True)
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

    def lose(self, why: str, corrupt: bool = False) -> LedgerLost:
        """It can no longer be used by this process as it is; what is to be raised."""
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


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Be the only controller of a SQLite ledger, else LedgerError. A server's has a lease for that."""
    file = _file(sa.make_url(url)) if url.startswith("sqlite") else None
    if not file:
        yield
        return
    lock = file.with_name(f"{file.name}.lock")  # closing the ledger itself would undo SQLite's own locks
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise LedgerError(f"{lock}: {error.strerror} ({_WRITABLE})") from error
    try:
        end = time.monotonic() + PATIENCE / 1000
        while not _locked(handle):
            if time.monotonic() > end:
                raise LedgerError(f"{file}: another controller uses it; end that one, or give each its own")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _file(url: sa.URL) -> Path | None:
    """The file of a SQLite ledger that is in one."""
    name = url.database if url.get_backend_name() == "sqlite" else ""
    return Path(name) if name and name != ":memory:" and not name.startswith("file:") else None


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_driver_name().startswith("psycopg"):
        url = url.set(query={**_SERVER, **url.query})
    return sa.create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite")


def _begin(connection: Connection) -> None:
    # A writer takes its lock before it reads what it decides on; who only reads sees one moment.
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


# Statements are made once: to make one anew takes SQLAlchemy four times as long as to run it.


def find(
    connection: Connection, what: sa.Table | tuple[sa.Column[Any], ...], **its: Any
) -> sa.CursorResult[Any]:
    """Rows of a table, or these columns of them, in which the columns named by `its` have its values."""
    return connection.execute(_select(what, tuple(its)), its)


def insert(connection: Connection, table: sa.Table, **values: Any) -> int:
    """Add a row; its number."""
    key = connection.execute(table.insert(), values).inserted_primary_key
    assert key
    return int(key[0])


def update(connection: Connection, table: sa.Table, number: int, **changes: Any) -> None:
    connection.execute(_update(table, ("id",)), {"its_id": number, **changes})


def upsert(
    connection: Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    its = {f"its_{name}": value for name, value in key.items()}
    if not connection.execute(_update(table, tuple(key)), {**its, **values}).rowcount:
        connection.execute(table.insert(), {**key, **values})


@functools.cache
def _select(what: sa.Table | tuple[sa.Column[Any], ...], names: tuple[str, ...]) -> sa.Select[Any]:
    columns = (what,) if isinstance(what, sa.Table) else what
    return sa.select(*columns).filter_by(**{name: sa.bindparam(name) for name in names})


@functools.cache
def _update(table: sa.Table, names: tuple[str, ...]) -> sa.Update:
    return table.update().filter_by(**{name: sa.bindparam(f"its_{name}") for name in names})
