"""How many nodes may be out by us."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Room:
    """What the budget leaves: which of the `total` nodes are out by us or about to be, which were drained
    within the window, and the site's limits on both as (percent, number), of which the larger counts."""

    total: int
    out: set[str]
    recent: set[str]
    limit: tuple[float, int]
    window_limit: tuple[float, int]

    def obstacle(self, name: str) -> str:
        """Why this node may not be drained on top of the others, or ""."""
        out, recent = (len(some) - (name in some) for some in (self.out, self.recent))
        most, most_recent = (self._most(limit) for limit in (self.limit, self.window_limit))
        if out >= most:
            return f"budget spent: {out} of {self.total} nodes are out by us, at most {most} may be"
        if recent >= most_recent:
            return f"budget spent: {recent} nodes drained lately, at most {most_recent} may be in the window"
        return ""

    def _most(self, limit: tuple[float, int]) -> int:
        percent, number = limit
        return max(number, math.floor(self.total * percent / 100))

    def take(self, name: str) -> None:
        self.out.add(name)
        self.recent.add(name)
