"""Which of several controllers may write: one row, by the database's own clock.

The holder renews it. Each write looks at the row in its own transaction and keeps it locked to the end, so
that none can be written after another controller has taken it: whoever was stopped meanwhile finds out before
it intends anything. What it had intended before and has not begun, `must_last` keeps it from.
"""

from __future__ import annotations

import math
import secrets
import time

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from slurm_health.ledger.schema import leases
from slurm_health.ledger.store import LedgerError, Store, WrongLedger

LASTS = 30.0  # seconds that it lasts when it is not renewed
SPARE = 10.0  # seconds that it must still last when an act is begun: Slurm's default MessageTimeout

# Not now(), which is when the transaction began: it may have waited for the row.
_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)


class Lease:
    """The right to write, for the controller at `address` on `host`. Only a server's ledger has one."""

    def __init__(self, store: Store, address: str, host: str) -> None:
        if not store.shared:
            raise WrongLedger("[ledger] url: several controllers need postgresql+psycopg://HOST/DATABASE")
        self.store, self.address, self.host = store, address, host
        self.life = secrets.token_hex(16)
        self.renewed = -math.inf  # when its last renewal was sent off, by a clock that no stop of ours stops

    def holder(self) -> str:
        """The address of whoever holds it, "" when nobody does."""
        with self.store.transaction(write=False) as connection:
            held = sa.select(leases.c.holder).where(leases.c.until > _NOW)
            return connection.scalar(held) or ""

    def take(self) -> bool:
        """Take it where nobody holds it; whether that was so."""
        return self._extend(leases.c.until <= _NOW)

    def resume(self) -> bool:
        """Take it from an earlier life of this controller, which is dead: only for who has its port."""
        mine = (leases.c.holder == self.address) & (leases.c.host == self.host)
        return self._extend(mine & (leases.c.until > _NOW))

    def renew(self) -> None:
        """LedgerLost when another has taken it."""
        if not self._extend(leases.c.life == self.life):
            raise self._lost(self.holder())

    def give_up(self) -> None:
        with self.store.transaction(fenced=False) as connection:
            connection.execute(leases.update().where(leases.c.life == self.life).values(until=0.0))

    def must_last(self) -> None:
        """LedgerError when it may not last until an act that is begun now has ended."""
        if _boottime() - self.renewed > LASTS - SPARE:
            raise LedgerError("the lease has not been renewed in time: nothing is done")

    def _extend(self, where: sa.ColumnElement[bool]) -> bool:
        asked = _boottime()
        mine = {"holder": self.address, "host": self.host, "life": self.life, "until": _NOW + LASTS}
        with self.store.transaction(fenced=False) as connection:
            taken = bool(connection.execute(leases.update().where(where).values(mine)).rowcount)
        if taken:
            self.renewed, self.store.fence = asked, self._check
        return taken

    def _check(self, connection: Connection) -> None:
        row = connection.execute(
            sa.select(
                leases.c.life, leases.c.holder, (leases.c.until > _NOW).label("lasts")
            ).with_for_update()
        ).one()
        if row.life != self.life:
            raise self._lost(row.holder)
        if not row.lasts:  # nobody has it: it can still be renewed
            raise LedgerError("the lease has run out")

    def _lost(self, holder: str) -> LedgerError:
        return self.store.lose(f"its lease is taken by {holder or 'nobody'}")


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
