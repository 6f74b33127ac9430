"""What each node is told: to take jobs or to refuse them, and why."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict

from slurm_health.wire import Decision


class Decisions:
    """`of` is what a node should do, `await_change` waits until that is something new."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.made: dict[str, Decision] = {}
        self.changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def of(self, node: str) -> Decision:
        return self.made.get(node, Decision(mode=self.mode))

    def make(self, node: str, refuse: str = "", note: str = "") -> None:
        """Have a node refuse jobs for these words, or take them; `note` is what is wrong with it then."""
        decision = Decision(refuse, note, self.mode)
        if self.of(node) != decision:
            self.made[node] = decision
            self.changed.pop(node, asyncio.Event()).set()  # the next long poll waits on a new one

    async def await_change(self, node: str, known: str, patience: float) -> Decision:
        """The decision on a node, as soon as it is no longer the known one."""
        end = time.monotonic() + patience
        while self.of(node).version == known and (left := end - time.monotonic()) > 0:
            event = self.changed[node]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await event.wait()
        return self.of(node)
