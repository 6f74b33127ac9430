"""The list of Slurm's nodes, for those who need not have it fresh."""

from __future__ import annotations

import asyncio
import time

from slurm_health.model import Node
from slurm_health.outage import Outage
from slurm_health.slurm import Slurm, SlurmError

BELIEVED = 60.0  # seconds that the list is believed
RETRY = 2.0  # seconds until it is asked for again where there was no answer


class Inventory:
    def __init__(self, slurm: Slurm, outage: Outage) -> None:
        self.slurm, self.outage = slurm, outage
        self.known: dict[str, Node] = {}
        self.at = 0.0  # when it was asked for (monotonic)
        self.asking: asyncio.Task[dict[str, Node]] | None = None  # on behalf of all who wait

    async def nodes(self) -> dict[str, Node]:
        """At most a minute old. A stale list is better than none."""
        if time.monotonic() - self.at > BELIEVED or not self.known:
            if self.asking is None or self.asking.done():
                self.asking = asyncio.create_task(self.slurm.nodes())
            elif self.known:
                return self.known
            try:
                self.known = await asyncio.shield(self.asking)
                self.at = time.monotonic()
            except SlurmError as error:
                if not self.known:
                    raise
                self.outage.slurm(error)
                # A stopped slurmctld costs the deadline: not for each report in its turn.
                self.at = time.monotonic() - BELIEVED + RETRY
        return self.known
