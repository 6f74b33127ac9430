"""What happened, on disk: incidents, their evidence, the jobs they touched, and every act of ours.

SQLite in WAL by default, any SQLAlchemy URL otherwise. An act is written down before it is done and its
outcome after, so that a crash in between can be mended by asking Slurm what is true.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from slurm_health.ledger.acts import NO_ANSWER, Acts
from slurm_health.ledger.incidents import Incidents
from slurm_health.ledger.lease import Lease
from slurm_health.ledger.nodes import Nodes
from slurm_health.ledger.outbox import Outbox
from slurm_health.ledger.schema import pauses
from slurm_health.ledger.store import LedgerError, LedgerLost, WrongLedger, alone, insert
from slurm_health.ledger.stories import Stories
from slurm_health.ledger.victims import RUNS_AGAIN, Victims

__all__ = [
    "FAULT_GONE",
    "NO_ANSWER",
    "RUNS_AGAIN",
    "Lease",
    "Ledger",
    "LedgerError",
    "LedgerLost",
    "WrongLedger",
    "alone",
]

FAULT_GONE = "the fault is gone"  # why we put a node back into service


class Ledger(Incidents, Acts, Nodes, Victims, Stories):
    """The one writer of the database: its parts together. Each method is one short transaction, all of it or
    nothing, and what one reads is of one moment.
    """

    def __init__(self, url: str) -> None:
        self.outbox = Outbox(self)
        super().__init__(url)

    # Pauses

    def pause(self, hostlist: str, ends: float, reason: str, by: str, now: float) -> None:
        with self.transaction() as connection:
            insert(connection, pauses, nodes=hostlist, begins=now, ends=ends, reason=reason, by=by)

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
