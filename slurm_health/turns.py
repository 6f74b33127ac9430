"""Jobs that come back to one node take turns, where slurmd forgets slowly.

Until 22.05 a slurmd looks at most once in two whole seconds for ended runs to forget, of all its jobs
together (slurm_cred.c:_clear_expired_job_states). Whoever is started there sooner is started without its
prolog. Nothing here is written down: after a crash of ours the first ones may come too soon.
"""

from __future__ import annotations

import math
from collections.abc import Set

from slurm_health.model import Job, Victim

LAUNCH = 30.0  # seconds within which a job that was sent off is seen running, or never
FORGETS = 2.0  # whole seconds that a slurmd takes from one run to the next


class Turns:
    """Times are seconds since the epoch. A victim's turn is that of its job's next run."""

    def __init__(self) -> None:
        self.left: dict[int, float] = {}  # victim -> when its job was last seen COMPLETING
        self.had: dict[int, frozenset[str]] = {}  # victim -> the nodes that it was seen on
        self.taken: dict[int, float] = {}  # victim -> until when no other may start on a node that it had

    def see(self, victim: Victim, job: Job, now: float) -> None:
        if job.completing:
            self.left[victim.id] = now
        if job.nodes and (job.completing or job.restarts == victim.restarts):
            self.had[victim.id] = self.had.get(victim.id, frozenset()) | set(job.nodes)

    def free(self, victim: Victim) -> bool:
        """Whether no other job is just starting on a node that both had."""
        mine = self.had.get(victim.id, frozenset())
        others = (number for number in self.taken if number != victim.id)
        return not any(mine & self.had.get(number, frozenset()) for number in others)

    def take(self, victim: Victim, now: float) -> None:
        self.taken[victim.id] = now + LAUNCH

    def done(self, victim: Victim, now: float) -> None:
        """Its job runs, or never will: others need only wait for what slurmd needs."""
        if victim.id in self.taken:
            self.taken[victim.id] = math.floor(now) + FORGETS

    def forget(self, known: Set[int], now: float) -> None:
        """All victims but the known ones and those whose turns last."""
        self.taken = {number: until for number, until in self.taken.items() if until > now}
        self.left = {number: when for number, when in self.left.items() if number in known}
        known = known | self.taken.keys()
        self.had = {number: nodes for number, nodes in self.had.items() if number in known}
