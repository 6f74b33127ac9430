"""The lease of a ledger that several controllers share: one has it, and nobody writes without."""

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from postgresql import Server

from slurm_health.ledger import Lease, Ledger, LedgerError, LedgerLost, WrongLedger, schema
from slurm_health.ledger import lease as lease_module
from slurm_health.ledger.lease import LASTS, SPARE
from slurm_health.model import Finding, Severity
from slurm_health.sandbox.daemon import await_until
from slurm_health.wire import NodeReport

XID = Finding("GPU_XID_79", Severity.CRITICAL, "0000:5d:00.0", "gone", moment="b/1", lasting=False)
REPORT = NodeReport("n1", opened=(XID,))


class Seat:
    """A controller's ledger and its lease."""

    def __init__(self, url: str, name: str, address: str = "") -> None:
        self.ledger = Ledger(url)
        self.lease = Lease(self.ledger, address or f"{name}:6821", name)


@pytest.fixture
def url(server: Server) -> str:
    return server.database()


@pytest.fixture
def seats(url: str) -> Iterator[tuple[Seat, Seat]]:
    pair = Seat(url, "ctl1"), Seat(url, "ctl2")
    yield pair
    for seat in pair:
        seat.ledger.engine.dispose()


def expire(seat: Seat, within: float = 0.0) -> None:
    """As if it had not been renewed for long."""
    with seat.ledger.transaction(fenced=False) as connection:
        connection.execute(schema.leases.update().values(until=lease_module._NOW + within))


def acts(seat: Seat) -> list[str]:
    with seat.ledger.transaction(write=False) as connection:
        return list(connection.scalars(sa.select(schema.actions.c.kind)))


def test_one_has_it(seats: tuple[Seat, Seat]) -> None:
    first, second = seats
    assert first.lease.holder() == ""
    assert first.lease.take()
    assert not second.lease.take()
    assert not second.lease.resume()
    assert first.lease.holder() == second.lease.holder() == "ctl1:6821"


def test_many_that_start_at_once(url: str) -> None:
    """The migration too is done by one of them."""
    seats = [Seat(url, f"ctl{n}") for n in range(8)]
    barrier, won = threading.Barrier(len(seats)), []

    def take(seat: Seat) -> None:
        barrier.wait()
        if seat.lease.take():
            won.append(seat)

    threads = [threading.Thread(target=take, args=(seat,)) for seat in seats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = won
    assert {seat.lease.holder() for seat in seats} == {winner.lease.address}
    for seat in seats:
        seat.ledger.engine.dispose()


def test_it_runs_out_unless_it_is_renewed(seats: tuple[Seat, Seat]) -> None:
    first, second = seats
    first.lease.take()
    expire(first)
    assert second.lease.holder() == ""
    first.lease.renew()  # nobody was there
    assert not second.lease.take()
    expire(first)
    assert second.lease.take()
    with pytest.raises(LedgerLost, match="taken by ctl2:6821"):
        first.lease.renew()


def test_who_gives_it_up_is_not_waited_for(seats: tuple[Seat, Seat]) -> None:
    first, second = seats
    first.lease.take()
    second.lease.give_up()  # it has none
    assert first.lease.holder() == "ctl1:6821"
    first.lease.give_up()
    assert not first.lease.resume()
    assert second.lease.take()


def test_a_restart_goes_on_where_it_was(url: str, seats: tuple[Seat, Seat]) -> None:
    first, _ = seats
    first.lease.take()
    again = Seat(url, "ctl1")
    assert not again.lease.take()
    assert again.lease.resume()
    with pytest.raises(LedgerLost):
        first.ledger.take(REPORT, 1.0)
    # Two hosts to which one configuration gives the same address are two all the same.
    other = Seat(url, "ctl2", address="ctl1:6821")
    assert not other.lease.resume()
    for seat in (again, other):
        seat.ledger.engine.dispose()


def test_nothing_is_written_by_who_has_lost_it(seats: tuple[Seat, Seat]) -> None:
    """It slept: it has not noticed yet that its lease is gone."""
    first, second = seats
    first.lease.take()
    first.ledger.take(REPORT, 1.0)
    expire(first)
    with pytest.raises(LedgerError, match="run out"):
        first.ledger.intend(1, "drain", "n1", 2.0)
    assert not first.ledger.lost
    assert second.lease.take()
    gone = threading.Event()
    first.ledger.when_lost = gone.set
    with pytest.raises(LedgerLost, match="taken by ctl2:6821"):
        first.ledger.intend(1, "drain", "n1", 2.0)
    assert gone.is_set()
    assert acts(second) == []
    assert second.ledger.intend(1, "drain", "n1", 2.0) == 1
    first.ledger.open()  # and stands by from now on
    assert [one.code for one in first.ledger.open_incidents()] == ["GPU_XID_79"]


def test_all_of_a_transaction_or_the_next_holder(seats: tuple[Seat, Seat]) -> None:
    """It runs out in the middle of writing: whoever takes it waits, and sees what was written."""
    first, second = seats
    first.lease.take()
    first.ledger.take(REPORT, 1.0)
    taken: list[bool] = []
    taking = threading.Thread(target=lambda: taken.append(second.lease.take()))
    expire(first, within=0.5)
    with first.ledger.together():
        assert await_until(lambda: second.lease.holder() == "", 5)
        taking.start()
        assert await_until(lambda: waiting(second), 10)
        first.ledger.intend(1, "drain", "n1", 2.0)
        assert taken == []
    taking.join()
    assert (taken, acts(second)) == ([True], ["drain"])


def waiting(seat: Seat) -> bool:
    """Whether somebody waits for a lock."""
    words = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with seat.ledger.transaction(write=False) as connection:
        return bool(connection.exec_driver_sql(words).scalar())


def test_an_act_is_begun_only_while_the_lease_lasts_long_enough(
    seats: tuple[Seat, Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = seats
    with pytest.raises(LedgerError):
        first.lease.must_last()
    first.lease.take()
    first.lease.must_last()
    now = lease_module._boottime()
    monkeypatch.setattr(lease_module, "_boottime", lambda: now + LASTS - SPARE + 0.1)
    with pytest.raises(LedgerError, match="renewed"):
        first.lease.must_last()
    first.lease.renew()
    first.lease.must_last()


def test_a_server_that_is_away_is_a_trouble_and_no_loss(
    server: Server, seats: tuple[Seat, Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = seats
    first.lease.take()
    server.stop()
    try:
        with pytest.raises(LedgerError):
            first.ledger.take(REPORT, 1.0)
        assert first.ledger.trouble
        assert not first.ledger.lost
        with pytest.raises(LedgerError):
            Ledger(server.url("ledger1"))
    finally:
        server.start()
    monkeypatch.setattr("slurm_health.ledger.store.RETRY", 0.0)
    first.lease.renew()
    assert first.ledger.take(REPORT, 1.0) == [1]
    assert first.ledger.trouble == ""


def test_a_question_that_it_cannot_hold_is_no_trouble(seats: tuple[Seat, Seat]) -> None:
    """Any user may ask for these."""
    first, _ = seats
    for wanted in ({"wanted": [10**12 - 1]}, {"node": "n\x00"}):
        with pytest.raises(LedgerError):
            first.ledger.stories(**wanted)  # type: ignore[arg-type]
    assert first.ledger.trouble == ""


def test_a_ledger_in_a_file_has_none() -> None:
    with pytest.raises(WrongLedger, match="postgresql"):
        Lease(Ledger("sqlite://"), "ctl1:6821", "ctl1")
