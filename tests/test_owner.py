"""What a job's owner reads in its AdminComment, however often it came back."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from test_web import XID, FakeSlurm, asynchronous

from slurm_health.config import Config
from slurm_health.ledger import Ledger
from slurm_health.model import Job, Victim
from slurm_health.owner import COMMENT, Owner
from slurm_health.slurm import Slurm
from slurm_health.wire import NodeReport

OTHERS = "node list by site tool"
HELD = "held: it was requeued 10 times for faults already, and 10 are allowed"


@dataclass
class Noting(FakeSlurm):
    note: str = OTHERS

    async def comment(self, label: str) -> str:
        return self.note

    async def set_comment(self, label: str, text: str) -> None:
        self.note = text


def owner_and_victim(tmp_path: Path, noting: Noting) -> tuple[Owner, Victim]:
    protocol: Slurm = noting
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.open()
    ledger.take(NodeReport("gpu017", opened=(replace(XID, text="GPU has fallen off the bus"),)), time.time())
    [incident] = ledger.open_incidents()
    ledger.touch(incident, Job(7, "7", "RUNNING"), 0, 0.0, time.time(), ranks="0-7")
    [victim] = ledger.pending_victims()
    return Owner(Config(), ledger, protocol), victim


@asynchronous
async def test_why_it_is_held_finds_room_after_as_many_requeues_as_an_owner_may_ask_for(
    tmp_path: Path,
) -> None:
    noting = Noting()
    owner, victim = owner_and_victim(tmp_path, noting)
    for number in range(Config().requeue.budget_max):
        await owner.annotate(victim, f"requeued, runs again on gpu[001-{number:03}] after 3.0 s")
    await owner.annotate(victim, HELD)
    await owner.annotate(victim, HELD)  # said again after a crash
    cause = "slurm-health: ranks 0-7 on gpu017: GPU_XID_79(0000:5d:00.0) GPU has fallen off the bus; "
    assert noting.note.startswith(f"{OTHERS}; {cause}requeued, runs again on gpu[001-000] after 3.0 s; ")
    assert noting.note.endswith(f"; {cause}{HELD}")
    assert noting.note.count(HELD) == 1


@asynchronous
async def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    noting = Noting()
    owner, victim = owner_and_victim(tmp_path, noting)
    for number in range(100):
        await owner.annotate(victim, f"requeued, runs again on n{number}")
    assert COMMENT - 200 < len(noting.note) <= COMMENT
