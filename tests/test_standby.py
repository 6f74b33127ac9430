"""Whose turn it is to act."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import Server

from slurm_health import standby as standby_module
from slurm_health.ledger import Ledger, LedgerError, WrongLedger, alone
from slurm_health.sandbox.daemon import await_until
from slurm_health.slurm import Slurm, Unreachable
from slurm_health.standby import Standby, own

BOTH = ("ctl1:6821", "ctl2:6821")


class Ping:
    """A Slurm that only says which slurmctld answers."""

    def __init__(self, **up: bool) -> None:
        self.up: dict[str, bool] | None = up

    async def ping(self) -> dict[str, bool]:
        if self.up is None:
            raise Unreachable("no answer in 10 s")
        return self.up


@pytest.fixture
def url(server: Server) -> str:
    return server.database()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby_module, "LOOK", 0.01)
    monkeypatch.setattr(standby_module, "RENEWAL", 0.01)


@pytest.fixture
def ledgers() -> Iterator[list[Ledger]]:
    opened: list[Ledger] = []
    yield opened
    for ledger in opened:
        ledger.engine.dispose()


@pytest.fixture
def on(url: str, ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def made(host: str, ping: Ping, addresses: tuple[str, ...] = BOTH) -> Standby:
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        ledgers.append(Ledger(url))
        slurm: Slurm = ping  # type: ignore[assignment]
        return Standby(addresses, ledgers[-1], slurm)

    return made


async def look(standby: Standby) -> str:
    assert standby.lease
    return await standby._try(standby.lease)


PINGS = [
    # what scontrol ping says, who may take it, what the other one says
    (
        {"ctl1": True, "ctl2": True},
        "ctl1",
        "stands by: nobody acts, but ctl1:6821 is beside the slurmctld that does",
    ),
    (
        {"ctl1": False, "ctl2": True},
        "ctl2",
        "stands by: nobody acts, but ctl2:6821 is beside the slurmctld that does",
    ),
    (
        {"ctl1": False, "ctl2": False},
        "ctl1",
        "stands by: nobody acts, but ctl1:6821 is beside the slurmctld that does",
    ),
    ({"ctl2": True}, "ctl2", "stands by: nobody acts, but ctl2:6821 is beside the slurmctld that does"),
    (
        {"ctl2.cluster": True},
        "ctl2",
        "stands by: nobody acts, but ctl2:6821 is beside the slurmctld that does",
    ),
]


@pytest.mark.parametrize(("said", "wins", "other"), PINGS)
def test_it_is_taken_beside_the_slurmctld_that_acts(on, said: dict[str, bool], wins: str, other: str) -> None:  # type: ignore[no-untyped-def]
    ping = Ping(**said)
    loses = "ctl2" if wins == "ctl1" else "ctl1"
    assert asyncio.run(look(on(loses, ping))) == other
    winner = on(wins, ping)
    assert asyncio.run(look(winner)) == ""
    winner.must_act()
    assert asyncio.run(look(on(loses, ping))) == f"stands by: {wins}:6821 acts"


@pytest.mark.parametrize("said", [{"head": True}, {}])
def test_where_none_is_beside_it_whoever_comes_first_takes_it(on, said: dict[str, bool]) -> None:  # type: ignore[no-untyped-def]
    assert asyncio.run(look(on("ctl2", Ping(**said)))) == ""
    assert asyncio.run(look(on("ctl1", Ping(**said)))) == "stands by: ctl2:6821 acts"


def test_a_holder_keeps_it_and_a_restart_resumes_it_while_slurmctld_is_silent(on) -> None:  # type: ignore[no-untyped-def]
    ping = Ping(ctl1=True, ctl2=True)
    first = on("ctl1", ping)
    assert asyncio.run(look(first)) == ""
    ping.up = None
    assert asyncio.run(look(on("ctl1", ping))) == ""
    assert asyncio.run(look(on("ctl2", ping))) == "stands by: ctl1:6821 acts"


def test_nobody_takes_it_while_nothing_is_known(on) -> None:  # type: ignore[no-untyped-def]
    ping = Ping()
    ping.up = None
    with pytest.raises(Unreachable):
        asyncio.run(look(on("ctl1", ping)))


def test_it_acts_until_another_has_taken_it(on) -> None:  # type: ignore[no-untyped-def]
    first, second = on("ctl1", Ping(ctl1=True)), on("ctl2", Ping(ctl1=False, ctl2=True))
    acting: list[str] = []

    async def act(one: Standby) -> None:
        acting.append(one.address)
        await asyncio.Event().wait()

    async def until(condition) -> None:  # type: ignore[no-untyped-def]
        assert await asyncio.to_thread(await_until, condition, 10)

    async def story() -> None:
        lost = asyncio.Event()
        assert first.lease
        first.lease.store.when_lost = lost.set
        tasks = [asyncio.create_task(first.run(lambda: act(first)))]
        await until(lambda: acting)
        tasks.append(asyncio.create_task(second.run(lambda: act(second))))
        await until(lambda: second.why == "stands by: ctl1:6821 acts")
        for _ in range(10):
            await asyncio.sleep(standby_module.RENEWAL)
        assert (acting, first.why) == (["ctl1:6821"], "")
        first.give_up()  # as if it had run out: it would renew it, were it awake
        assert second.lease
        assert second.lease.take()
        await lost.wait()
        await until(lambda: len(acting) == 2 or second.why == "")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())


# -- which of them it is


@pytest.mark.parametrize(
    ("addresses", "here"),
    [
        (("slurmctl:6821",), "slurmctl:6821"),
        (BOTH, "ctl2:6821"),
        (("ctl1.cluster:1", "ctl2.cluster:2"), "ctl2.cluster:2"),
        (("198.51.100.1:6821", "127.0.0.1:6821"), "127.0.0.1:6821"),
    ],
)
def test_its_own_address(addresses: tuple[str, ...], here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ctl2.cluster")
    assert own(addresses) == here


@pytest.mark.parametrize("addresses", [("198.51.100.1:1", "198.51.100.2:1"), ("127.0.0.1:1", "127.0.0.1:2")])
def test_a_host_that_is_none_of_them_or_several(addresses: tuple[str, ...]) -> None:
    with pytest.raises(WrongLedger, match="this host"):
        own(addresses)


# -- a ledger in a file

HOLDER = """
import sys
from slurm_health.ledger import alone
with alone(sys.argv[1]):
    print("alone", flush=True)
    sys.stdin.read()
"""


def test_two_controllers_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm_health.ledger.store.PATIENCE", 100)
    url = f"sqlite:///{tmp_path}/in/ledger.db"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout
        assert other.stdout.readline() == b"alone\n"
        with pytest.raises(LedgerError, match="another controller uses it"), alone(url):
            pass
        with alone(f"sqlite:///{tmp_path}/in/another.db"):
            pass
        os.kill(other.pid, signal.SIGKILL)
    with alone(url):
        pass


def test_a_server_or_memory_is_not_locked(tmp_path: Path) -> None:
    for url in ("sqlite://", "postgresql+psycopg://nowhere/x"):
        with alone(url), alone(url):
            pass


def test_several_controllers_need_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ctl1")
    slurm: Slurm = Ping()  # type: ignore[assignment]
    with pytest.raises(WrongLedger, match="postgresql"):
        Standby(BOTH, Ledger("sqlite://"), slurm)
    assert Standby(BOTH[:1], Ledger("sqlite://"), slurm).lease is None
