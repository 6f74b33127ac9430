"""Nodes: who has reported, and who is out by us."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from slurm_health.ledger.acts import unanswered
from slurm_health.ledger.schema import incidents, nodes
from slurm_health.ledger.store import Store, find, upsert
from slurm_health.model import Severity


class Nodes(Store):
    """Those of the cluster."""

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
                *(row.target for row in unanswered(connection, "drain", since)),
            }

    def node(self, name: str) -> Any | None:
        with self.transaction(write=False) as connection:
            return find(connection, nodes, name=name).first()

    def reporters(self) -> set[str]:
        """The nodes that have reported."""
        with self.transaction(write=False) as connection:
            return set(connection.scalars(sa.select(nodes.c.name).where(nodes.c.reported > 0)))

    def drained(self, name: str, reason: str, reason_time: int, at: float) -> None:
        """The node is out by us, with these words and this ReasonTime; "" when it no longer is."""
        with self.transaction() as connection:
            upsert(
                connection,
                nodes,
                {"name": name},
                {"reason": reason, "reason_time": reason_time, "drained": at},
            )

    def out_by_us(self) -> list[Any]:
        with self.transaction(write=False) as connection:
            return list(connection.execute(sa.select(nodes).where(nodes.c.reason > "")))
