"""Jobs on their way back that are in each other's way, by a Slurm whose slurmd forgets slowly."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from test_web import FakeSlurm, asynchronous

from slurm_health.config import Config
from slurm_health.controller import running
from slurm_health.ledger import Ledger
from slurm_health.model import Finding, Job, Severity, Urgency
from slurm_health.outage import Outage
from slurm_health.policy.job import HELD_BY_PROLOG
from slurm_health.rescue import Rescue
from slurm_health.slurm import Rejected, Slurm
from slurm_health.wire import NodeReport

LINK = Finding("IB_PORT_DOWN", Severity.CRITICAL, "mlx5_4/1", "down", "DOWN", Urgency.NOW, 1.0, "b/1", True)
FIRST, SECOND = 7, 8
SOON = 20.0  # seconds; a turn that is not given up lasts half as long again


@dataclass
class Played(FakeSlurm):
    """Two jobs on n1 and n2 that wait for two minutes after a requeue. The second one's nodes can be kept."""

    there: dict[int, Job] = field(
        default_factory=lambda: {
            number: Job(number, str(number), "RUNNING", size=2, nodes=("n1", "n2"), started=time.time())
            for number in (FIRST, SECOND)
        }
    )
    ledger: Ledger = field(init=False)
    kept: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    async def jobs(self, ids: Iterable[int]) -> dict[int, Job]:
        return {number: self.there[number] for number in ids}

    async def comments(self, ids: Iterable[int]) -> dict[int, str]:
        return {}

    async def stranded(self) -> dict[str, str]:
        return {}

    async def standing(self, label: str) -> tuple[int, int]:
        return 100, 0

    async def set_nice(self, label: str, nice: int) -> None: ...

    async def reserve(self, name: str, nodes: Iterable[str]) -> None:
        if name.endswith(str(FIRST)):
            raise Rejected("Requested reservation overlaps with another reservation")
        self.kept.add(name)

    async def unreserve(self, name: str) -> None:
        self.kept.discard(name)

    async def requeue(self, label: str, incomplete: bool, hold: bool = False) -> None:
        waits = Job(int(label), label, "PENDING", restarts=1, size=2, begins=time.time() + 120)
        self.there[waits.id] = waits

    async def start_now(self, label: str) -> None:
        self.started.append(label)

    async def release(self, label: str) -> None:
        self.released.append(label)

    def shown(self, number: int, state: str, **changes: Any) -> None:
        self.there[number] = replace(self.there[number], state=state, **changes)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110  (of a loop that announces nothing)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def broken(tmp_path: Path) -> AsyncIterator[Played]:
    """n2 has broken, and both jobs are cared for."""
    played = Played()
    protocol: Slurm = played
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.open()
    ledger.take(NodeReport("n2", opened=(LINK,), standing=(LINK.moment,)), time.time())
    [incident] = ledger.open_incidents()
    for job in played.there.values():
        ledger.touch(incident, job, 0, 0.0, time.time())
    config = Config.model_validate({"mode": "requeue"})
    rescue = Rescue(config, ledger, protocol, Outage())
    rescue.out.add("n2")
    async with running(rescue.follow()):
        await until(lambda: played.started == [str(FIRST)])
        played.ledger = ledger
        yield played
    ledger.engine.dispose()


@asynchronous
async def test_who_waits_for_his_turn_keeps_no_nodes_from_whose_turn_it_is(tmp_path: Path) -> None:
    async with broken(tmp_path) as played:
        await until(lambda: not played.kept)
        assert played.started == [str(FIRST)]


@asynchronous
async def test_a_job_that_is_cancelled_before_it_is_seen_running_gives_up_its_turn(tmp_path: Path) -> None:
    async with broken(tmp_path) as played:
        played.shown(FIRST, "CANCELLED", ended=time.time())
        await until(lambda: str(SECOND) in played.started)


@asynchronous
async def test_a_job_that_was_not_launched_though_slurm_said_it_runs_is_released(tmp_path: Path) -> None:
    """Slurm finds out after 20 s, and holds it."""

    def outcomes() -> list[str]:
        [story] = played.ledger.stories()
        return [one["outcome"] for one in story["jobs"] if one["job"] == FIRST]

    async with broken(tmp_path) as played:
        played.shown(FIRST, "RUNNING", nodes=("n1", "n3"))
        await until(lambda: outcomes() == ["runs again"])
        played.shown(FIRST, "PENDING", restarts=2, nodes=(), reason=HELD_BY_PROLOG)
        await until(lambda: str(FIRST) in played.released)
        played.shown(FIRST, "RUNNING", nodes=("n1", "n4"), reason="None")
        await until(lambda: outcomes() == ["runs again"])
        [story] = played.ledger.stories()
        assert "n[1,4]" in [one["ran_nodes"] for one in story["jobs"]]
        # Whoever holds it otherwise means it.
        played.shown(FIRST, "PENDING", restarts=3, nodes=(), reason="JobHeldUser")
        await until(lambda: str(SECOND) in played.started)
        assert played.released == [str(FIRST)]


@asynchronous
async def test_what_wakes_it_does_not_keep_it_from_its_end(tmp_path: Path) -> None:
    """A ledger that is lost ends it, in the moment in which the report comes that shows that."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    protocol: Slurm = Played()
    for steps in range(5):  # of the loop, between the one and the other
        rescue = Rescue(Config(), ledger, protocol, Outage())
        followed = asyncio.create_task(rescue.follow())
        await asyncio.sleep(0.1)
        rescue.wake()
        for _ in range(steps):
            await asyncio.sleep(0)
        followed.cancel()
        done, _ = await asyncio.wait({followed}, timeout=SOON)
        assert done
        with contextlib.suppress(asyncio.CancelledError):
            await followed
    ledger.engine.dispose()
