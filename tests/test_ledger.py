"""What the ledger promises: nothing counted twice, nothing lost in a crash, nothing deleted unasked."""

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_health import ledger as ledger_module
from slurm_health.ledger import (
    FAULT_GONE,
    NO_ANSWER,
    Ledger,
    LedgerError,
    LedgerLost,
    WrongLedger,
    incidents,
    schema,
    store,
)
from slurm_health.ledger.incidents import EVIDENCE
from slurm_health.ledger.stories import LISTED
from slurm_health.ledger.victims import LIFE
from slurm_health.model import Finding, Hurt, Incident, Job, Notice, Severity, Urgency
from slurm_health.wire import NodeReport

T = 1_700_000_000.0
GPU = "0000:5d:00.0"
XID = Finding("GPU_XID_79", Severity.CRITICAL, GPU, "gone", "NVRM: Xid 79", Urgency.NOW, T, "b/1", False)
NOTICE = Notice(1, T, "help", Severity.CRITICAL, 1, "n1", "", "look")
LINK = Finding("IB_PORT_DOWN", Severity.CRITICAL, "mlx5_4/1", "down", "DOWN", Urgency.NOW, T, "b/IB/1", True)


def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state/ledger.db"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All that is promised, of both kinds of ledger; what is about a file, of the one that is in a file."""
    if {"ledger", "shared"} & set(metafunc.fixturenames):
        kinds = ["sqlite"] if "file" in metafunc.fixturenames else ["sqlite", "postgresql"]
        metafunc.parametrize("kind", kinds, scope="module")


@pytest.fixture
def ledger(kind: str, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    if kind == "sqlite":
        opened = Ledger(url(request.getfixturevalue("file")))
    else:
        opened = Ledger(request.getfixturevalue("server").database())
    yield opened
    opened.engine.dispose()


def report(*opened: Finding, standing: tuple[str, ...] | None = None, **fields: Any) -> NodeReport:
    """What a node says; every lasting finding in it stands, unless said otherwise."""
    stand = tuple(one.moment for one in opened if one.lasting) if standing is None else standing
    return NodeReport("n1", **{"boot": "b", "opened": opened, "standing": stand, **fields})


def rows(ledger: Ledger, table: sa.Table) -> list[Any]:
    with ledger.engine.connect() as connection:
        return list(connection.execute(sa.select(table)))


def only(ledger: Ledger) -> Incident:
    [incident] = ledger.open_incidents()
    return incident


# -- reports


def test_a_report_that_comes_twice_counts_once(ledger: Ledger) -> None:
    first = ledger.take(report(XID, LINK), T + 1)
    assert len(first) == 2
    before = ledger.stories()
    assert ledger.take(report(XID, LINK), T + 2) == []
    assert ledger.stories() == before


def test_a_moment_that_comes_in_another_report_counts_once(ledger: Ledger) -> None:
    ledger.take(report(XID), T + 1)
    assert ledger.take(report(replace(XID, text="in other words"), LINK), T + 2) == [2]
    assert [one.count for one in ledger.open_incidents()] == [1, 1]
    other = replace(report(XID), node="n2")
    assert ledger.take(other, T + 3) == [3]  # the same number on another node is another event


def test_a_fault_that_repeats_is_one_incident_that_counts(ledger: Ledger) -> None:
    ledger.take(report(XID), T + 1)
    again = replace(XID, moment="b/2", evidence="again", since=T + 5)
    assert ledger.take(report(again), T + 6) == [1]
    found = only(ledger)
    assert (found.count, found.since, found.opened, found.seen) == (2, T, T + 1, T + 6)
    [story] = ledger.stories()
    assert [line["line"] for line in story["evidence"]] == ["NVRM: Xid 79", "again"]


def test_one_fault_on_each_device_and_node(ledger: Ledger) -> None:
    ledger.take(report(XID, replace(XID, device="0000:18:00.0", moment="b/2"),
                       replace(XID, code="GPU_XID_48", moment="b/3")), T)  # fmt: skip
    ledger.take(replace(report(XID), node="n2"), T)
    assert len(ledger.open_incidents()) == 4
    assert [one.id for one in ledger.open_incidents(["n2"])] == [4]


def test_a_worse_repeat_raises_severity_and_a_milder_one_lowers_nothing(ledger: Ledger) -> None:
    mild = replace(LINK, severity=Severity.WARNING, job=Urgency.NONE, text="never up", moment="b/IB/0")
    ledger.take(report(mild), T)
    ledger.take(report(LINK), T + 1)
    assert (only(ledger).severity, only(ledger).job, only(ledger).text) == (
        Severity.CRITICAL, Urgency.NOW, "down")  # fmt: skip
    ledger.take(report(replace(mild, moment="b/IB/2")), T + 2)
    assert (only(ledger).severity, only(ledger).job, only(ledger).text) == (
        Severity.CRITICAL, Urgency.NOW, "down")  # fmt: skip


def test_evidence_from_the_future_is_of_now(ledger: Ledger) -> None:
    ledger.take(report(replace(XID, since=T + 9999)), T + 1)
    assert only(ledger).since == T + 1
    ledger.take(report(replace(LINK, since=0.0)), T + 2)
    assert ledger.open_incidents()[1].since == T + 2


def test_a_storm_keeps_counting_and_stops_storing(ledger: Ledger) -> None:
    many = EVIDENCE + 50
    for start in range(0, many, 500):
        storm = [replace(XID, moment=f"b/{n}") for n in range(start, min(start + 500, many))]
        ledger.take(report(*storm), T)
    assert only(ledger).count == many
    [story] = ledger.stories()
    assert len(story["evidence"]) == EVIDENCE
    assert ledger.take(report(replace(XID, moment=f"b/{many - 1}")), T) == []


# -- what stands, what has cleared


def test_a_lasting_fault_that_no_longer_stands_closes(ledger: Ledger) -> None:
    ledger.take(report(LINK), T)
    assert ledger.take(report(standing=(LINK.moment,)), T + 5) == []
    assert ledger.take(report(standing=()), T + 9) == [1]
    assert ledger.open_incidents() == []
    found = ledger.incident(1)
    assert found
    assert (found.cleared, found.closed, found.closed_by) == (T + 9, T + 9, "cleared")
    assert ledger.take(report(standing=()), T + 12) == []


def test_an_event_cannot_clear(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    assert ledger.take(report(standing=()), T + 9) == []
    assert only(ledger).cleared == 0


def test_what_put_the_node_out_stays_open_when_it_clears(ledger: Ledger) -> None:
    ledger.take(report(LINK), T)
    ledger.drained("n1", only(ledger).reason, 1000, T + 1)
    assert ledger.take(report(standing=()), T + 9) == [1]
    assert (only(ledger).cleared, only(ledger).closed, only(ledger).pressing) == (T + 9, 0, True)
    ledger.take(report(replace(LINK, moment="b/IB/2")), T + 20)
    assert (only(ledger).cleared, only(ledger).count) == (0, 2)


def test_a_mere_warning_on_a_drained_node_closes_when_it_clears(ledger: Ledger) -> None:
    ledger.take(report(replace(LINK, severity=Severity.WARNING)), T)
    ledger.drained("n1", "slurm-health: another", 1000, T + 1)
    ledger.take(report(standing=()), T + 9)
    assert ledger.open_incidents() == []


def test_one_node_clears_nothing_of_another(ledger: Ledger) -> None:
    ledger.take(report(LINK), T)
    ledger.take(replace(report(standing=()), node="n2"), T + 1)
    assert only(ledger).cleared == 0


# -- an admin's word


def test_a_resume_closes_what_cannot_end_and_overrules_what_stands(ledger: Ledger) -> None:
    ledger.take(report(XID, LINK), T)
    ledger.hold(2, "drained by somebody else: x")
    ledger.acknowledge([1, 2], T + 5)
    xid, link = ledger.incident(1), ledger.incident(2)
    assert xid
    assert link
    assert (xid.acknowledged, xid.closed, xid.closed_by) == (T + 5, T + 5, "an admin's RESUME")
    assert (link.acknowledged, link.closed, link.held, link.pressing) == (T + 5, 0, "", False)
    ledger.take(report(standing=()), T + 9)
    assert ledger.open_incidents() == []


def test_new_evidence_after_a_resume_is_a_new_incident(ledger: Ledger) -> None:
    ledger.take(report(LINK), T)
    ledger.acknowledge([1], T + 5)
    ledger.take(report(standing=(LINK.moment,)), T + 6)
    assert not only(ledger).pressing  # the same moment is old evidence
    ledger.take(report(replace(LINK, moment="b/IB/2", since=T + 7)), T + 8)
    assert (only(ledger).id, only(ledger).pressing, only(ledger).since) == (2, True, T + 7)
    old = ledger.incident(1)
    assert old
    assert (old.closed, old.closed_by) == (T + 8, "new evidence")


def test_a_cleared_fault_that_is_overruled_is_closed(ledger: Ledger) -> None:
    ledger.take(report(LINK), T)
    ledger.drained("n1", "slurm-health: x", 1000, T)
    ledger.take(report(standing=()), T + 1)
    ledger.acknowledge([1], T + 5)
    assert ledger.open_incidents() == []


def test_closing_by_hand(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    ledger.close(1, "alice", T + 3)
    assert ledger.open_incidents() == []
    ledger.take(report(replace(XID, moment="b/9")), T + 9)
    assert only(ledger).id == 2


def test_only_quiet_warnings_close_by_themselves(ledger: Ledger) -> None:
    warned = replace(XID, code="GPU_XID_43", severity=Severity.WARNING, moment="b/2")
    ledger.take(report(XID, warned, replace(LINK, severity=Severity.WARNING)), T)
    ledger.close_quiet(T + 10, 60)
    assert len(ledger.open_incidents()) == 3
    ledger.close_quiet(T + 61, 60)
    assert [one.code for one in ledger.open_incidents()] == ["GPU_XID_79", "IB_PORT_DOWN"]


def test_the_latest_critical_incident_of_a_node(ledger: Ledger) -> None:
    assert ledger.latest("n1") is None
    ledger.take(report(XID, LINK, replace(LINK, device="x/1", moment="b/3", severity=Severity.WARNING)), T)
    ledger.close(2, "alice", T)
    latest = ledger.latest("n1")
    assert latest
    assert latest.id == 2


# -- jobs


def test_the_faults_that_each_run_of_a_job_met(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    ledger.take(replace(report(replace(XID, moment="b/9")), node="n2"), T + 50)
    first, second = ledger.open_incidents()
    touch(ledger, first, began=T - 60)
    touch(ledger, second, restarts=1, began=T + 20)
    touch(ledger, second, restarts=2, refused=T + 60)  # turned away: it met nothing
    touch(ledger, second, job=8)
    assert ledger.hurts(7, T + 100) == [
        Hurt("n1", XID.code, 0, T - 60, first.since),
        Hurt("n2", XID.code, 1, T + 20, second.since),
    ]
    assert ledger.hurts(7, T + 100 + LIFE) == []


def touch(ledger: Ledger, incident: Incident, now: float = T, **changes: Any) -> bool:
    said = {"job": 7, "restarts": 0, "label": "7", "uid": 1000, "refused": 0.0, "began": 0.0, **changes}
    restarts, refused = said["restarts"], said["refused"]
    job = Job(
        said["job"],
        said["label"],
        said.get("state", "RUNNING"),
        restarts=restarts,
        uid=said["uid"],
        started=said["began"],
        completing=said.get("completing", False),
    )
    return ledger.touch(incident, job, restarts, refused, now)


def test_each_run_of_a_job_is_touched_once(ledger: Ledger) -> None:
    ledger.take(report(XID, LINK), T)
    xid, link = ledger.open_incidents()
    assert touch(ledger, xid)
    assert not touch(ledger, xid, now=T + 1)
    assert touch(ledger, link)  # news to that incident, but the same victim
    [victim] = ledger.pending_victims()
    assert (victim.job, victim.restarts, victim.incident, victim.node) == (7, 0, xid.id, "n1")
    assert touch(ledger, xid, restarts=1)
    assert len(ledger.pending_victims()) == 2
    assert [len(story["jobs"]) for story in ledger.stories()] == [1, 2]


def test_a_requeued_job_that_still_leaves_the_node_is_not_touched_again(ledger: Ledger) -> None:
    """Slurm shows it with the restart count of the run to come."""
    ledger.take(report(XID, LINK), T)
    xid, link = ledger.open_incidents()
    assert touch(ledger, xid)
    assert not touch(ledger, xid, restarts=1, completing=True)
    assert [one.restarts for one in ledger.pending_victims()] == [0]
    assert touch(ledger, link, restarts=1, completing=True)  # nobody noted its first run


def test_a_settled_run_is_not_taken_up_again(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    touch(ledger, only(ledger))
    ledger.victim(1, settled=T + 5, outcome="runs again")
    assert not touch(ledger, only(ledger), now=T + 60)
    assert ledger.pending_victims() == []


def test_the_same_number_much_later_is_another_job(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    touch(ledger, only(ledger))
    late = T + LIFE + 1
    assert not touch(ledger, only(ledger), now=late)  # never while its story goes on
    ledger.victim(1, settled=T + 5)
    assert touch(ledger, only(ledger), now=late)
    [victim] = ledger.pending_victims()
    assert victim.id == 2
    assert not touch(ledger, only(ledger), now=late + 1)


def test_the_same_number_that_began_after_the_story_is_another_job(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    touch(ledger, only(ledger), began=T - 60)
    ledger.victim(1, settled=T + 5)
    assert not touch(ledger, only(ledger), now=T + 9, began=T - 60)
    assert not touch(ledger, only(ledger), now=T + 9, began=T + 7, state="PENDING")
    assert touch(ledger, only(ledger), now=T + 9, began=T + 7)


def test_a_more_urgent_fault_hastens_a_victim_and_a_lesser_one_does_not(ledger: Ledger) -> None:
    finish = replace(XID, code="GPU_ECC_UNCORRECTED", job=Urgency.FINISH, moment="b/2", lasting=True)
    later = replace(XID, since=T + 50)
    ledger.take(report(finish, later), T + 60)
    ecc, xid = ledger.open_incidents()
    touch(ledger, ecc)
    touch(ledger, xid)
    [victim] = ledger.pending_victims()
    assert (victim.urgency, victim.since) == (Urgency.NOW, T + 50)
    touch(ledger, ecc, now=T + 70)
    assert ledger.pending_victims()[0].urgency is Urgency.NOW


def test_a_more_urgent_fault_of_a_job_that_was_left_to_finish_is_a_new_story(ledger: Ledger) -> None:
    finish = replace(XID, code="GPU_ECC_UNCORRECTED", job=Urgency.FINISH, moment="b/2", lasting=True)
    ledger.take(report(finish), T)
    touch(ledger, only(ledger))
    ledger.victim(1, settled=T + 130, outcome="left to finish")
    ledger.take(report(XID, standing=("b/2",)), T + 200)
    xid = ledger.open_incidents()[1]
    touch(ledger, xid)
    [victim] = ledger.pending_victims()
    assert (victim.id, victim.urgency, victim.outcome) == (1, Urgency.NOW, "")
    ledger.victim(1, requeued=T + 201, settled=T + 203, outcome="runs again")
    touch(ledger, replace(xid, id=1))
    assert ledger.pending_victims() == []


def test_the_requeues_of_a_job_are_counted_over_its_runs(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    incident = only(ledger)
    for restarts in (0, 1, 3):
        touch(ledger, incident, restarts=restarts)
    assert ledger.requeues(7, 1000, 4) == 0
    for number in (1, 2, 3):
        ledger.victim(number, requeued=T + number)
    assert [ledger.requeues(7, 1000, restarts) for restarts in (0, 1, 2, 3, 4)] == [0, 1, 2, 2, 3]
    assert ledger.requeues(7, 1001, 4) == 0  # another's job of the same number
    ledger.victim(2, refused=T)  # our prolog sent it back, it was no requeue
    assert ledger.requeues(7, 1000, 4) == 2


def test_another_fault_as_mild_changes_nothing(ledger: Ledger) -> None:
    finish = replace(XID, code="GPU_ECC_UNCORRECTED", job=Urgency.FINISH, moment="b/2")
    ledger.take(report(finish, replace(finish, code="GPU_REMAP_FAILED", moment="b/3", since=T + 50)), T + 60)
    for incident in ledger.open_incidents():
        touch(ledger, incident)
    [victim] = ledger.pending_victims()
    assert (victim.urgency, victim.since) == (Urgency.FINISH, T)


def test_a_refusal_is_noted_once(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    touch(ledger, only(ledger))
    touch(ledger, only(ledger), refused=T + 3)
    touch(ledger, only(ledger), refused=T + 9)
    assert ledger.pending_victims()[0].refused == T + 3


# -- acts


def test_an_act_is_unsettled_until_its_outcome_is_known(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    number = ledger.intend(1, "drain", "n1", T, "words")
    [row] = ledger.unsettled("drain", "n1")
    assert (row.id, row.detail) == (number, "words")
    assert ledger.unsettled("drain", "n2") == ledger.unsettled("requeue", "n1") == []
    ledger.settle(number, "done", T + 1)
    assert ledger.unsettled("drain", "n1") == []


def test_of_acts_that_a_crash_cut_short_the_last_that_slurm_shows_was_done(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    for detail in ("restarts=0", "restarts=1", "restarts=1", "restarts=2"):
        ledger.intend(1, "requeue", "7", T, detail)
    ledger.intend(1, "requeue", "8", T, "restarts=1")

    def outcomes() -> list[str]:
        return [row.outcome for row in sorted(rows(ledger, schema.actions), key=lambda row: row.id)]

    assert ledger.conclude("requeue", "7", T + 1, "restarts=1")
    assert outcomes() == [NO_ANSWER, NO_ANSWER, "done", NO_ANSWER, ""]
    assert not ledger.conclude("requeue", "7", T + 1, "restarts=1")
    assert not ledger.conclude("requeue", "8", T + 1)
    assert outcomes() == [NO_ANSWER, NO_ANSWER, "done", NO_ANSWER, NO_ANSWER]


def test_what_would_have_been_done_is_said_once(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    for moment in range(3):
        ledger.would(1, "drain", "n1", "mode is observe", T + moment)
    [row] = rows(ledger, schema.actions)
    assert (row.outcome, row.done) == ("not done: mode is observe", T)


def test_the_budget_counts_drains_done_and_under_way(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    ledger.would(1, "drain", "would", "paused", T + 50)
    ledger.settle(ledger.intend(1, "drain", "failed", T + 50), "not done: Slurm says no", T + 50)
    ledger.settle(ledger.intend(1, "drain", "done", T + 50), "done", T + 50)
    ledger.settle(ledger.intend(1, "drain", "old", T), "done", T)
    ledger.settle(ledger.intend(1, "requeue", "7", T + 50), "done", T + 50)
    ledger.intend(1, "drain", "going on", T + 50)
    assert ledger.drained_since(T + 10) == {"done", "going on"}
    assert ledger.drained_since(0, under_way=True) == {"going on"}


def test_nodes_out_by_us(ledger: Ledger) -> None:
    ledger.drained("n1", "slurm-health: x", 1000, T)
    ledger.drained("n2", "slurm-health: y", 1000, T)
    ledger.drained("n1", "", 0, 0.0)
    assert [row.name for row in ledger.out_by_us()] == ["n2"]
    assert ledger.node("n3") is None
    ledger.take(report(blind={"gpu": "no answer"}), T)
    row = ledger.node("n1")
    assert row
    assert (row.blind, row.reported, row.boot) == ("gpu: no answer", T, "b")


def test_pauses(ledger: Ledger) -> None:
    ledger.pause("", 0.0, "work", "alice", T)
    ledger.pause("n[1-4]", T + 60, "", "bob", T)
    assert [row.by for row in ledger.pauses(T + 59)] == ["alice", "bob"]
    assert [row.by for row in ledger.pauses(T + 60)] == ["alice"]
    assert ledger.unpause("n[1-2]") == 0
    assert ledger.unpause("n[1-4]") == 1
    assert ledger.unpause("") == 1
    assert ledger.pauses(T) == []


# -- forgetting


def test_forgetting_drops_all_that_hangs_on_an_incident_and_nothing_else(ledger: Ledger) -> None:
    ledger.take(report(XID, LINK), T)
    xid, link = ledger.open_incidents()
    for incident, number in ((xid, 7), (link, 8)):
        touch(ledger, incident, job=number)
        ledger.intend(incident.id, "requeue", str(number), T)
    touch(ledger, link, job=7)  # a victim that both touched
    touch(ledger, xid, job=8)
    ledger.close(xid.id, "alice", T + 5)
    ledger.forget(T + 5)
    assert len(rows(ledger, schema.incidents)) == 2
    ledger.forget(T + 6)
    [story] = ledger.stories(every=True)
    assert (story["id"], [job["job"] for job in story["jobs"]]) == (link.id, [8])
    for table in (schema.evidence, schema.actions):
        assert {row.incident for row in rows(ledger, table)} == {link.id}
    assert [tuple(row) for row in rows(ledger, schema.touches)] == [(link.id, 2, "")]
    if ledger.sqlite:  # else it checks by itself
        with ledger.engine.connect() as connection:
            assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []


def test_forgetting_many(ledger: Ledger) -> None:
    for start in (0, 500, 1000):
        many = (replace(XID, device=f"d{n}", moment=f"b/{n}") for n in range(start, start + 500))
        ledger.take(report(*many), T)
    with ledger.engine.begin() as connection:
        connection.execute(schema.incidents.update().values(closed=T + 1))
    ledger.forget(T + 2)
    for table in schema.metadata.sorted_tables:
        if table.name not in ("nodes", "leases"):
            assert rows(ledger, table) == []


# -- stories


def test_stories_are_newest_first_and_bounded(ledger: Ledger) -> None:
    ledger.take(report(*(replace(XID, device=f"d{n}", moment=f"b/{n}") for n in range(20))), T)
    ledger.take(replace(report(LINK), node="n2"), T)
    ledger.close(20, "alice", T)
    assert [row["id"] for row in ledger.stories(limit=2)] == [21, 19]
    assert [row["id"] for row in ledger.stories(limit=3, every=True)] == [21, 20, 19]
    assert [row["id"] for row in ledger.stories(node="n2")] == [21]
    assert [row["id"] for row in ledger.stories(wanted=[20])] == [20]
    assert ledger.stories(wanted=[99]) == []
    touch(ledger, ledger.open_incidents(["n2"])[0], job=4711)
    assert [row["id"] for row in ledger.stories(job="4711", every=True)] == [21]
    assert ledger.stories(job="4712", every=True) == []


def test_the_hardware_of_an_incident_is_what_was_last_seen_there(ledger: Ledger) -> None:
    ledger.take(report(replace(XID, hardware={"gpu": 3, "serial": "1650"})), T)
    ledger.take(report(replace(XID, moment="b/2")), T + 1)  # not told: an older daemon
    assert ledger.stories()[0]["hardware"] == {"gpu": 3, "serial": "1650"}
    ledger.take(report(replace(XID, moment="b/3", hardware={"gpu": 3, "serial": "1651"})), T + 2)
    assert ledger.stories()[0]["hardware"] == {"gpu": 3, "serial": "1651"}


# -- crashes and broken disks


CHILD = """
import sys
from slurm_health.ledger import Ledger
from slurm_health.model import Finding, Severity
from slurm_health.wire import NodeReport

ledger = Ledger(sys.argv[1])
found = Finding("GPU_XID_79", Severity.CRITICAL, "gpu", "gone", moment="b/1", lasting=False)
ledger.take(NodeReport("n1", opened=(found,)), 1.0)
ledger.settle(ledger.intend(1, "drain", "n1", 2.0, "first"), "done", 2.5)
ledger.intend(1, "requeue", "7", 3.0, "restarts=0")
print("intended", flush=True)
sys.stdin.read()
"""


def test_an_intention_survives_a_kill_between_it_and_its_outcome(file: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, url(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout
        assert child.stdout.readline() == b"intended\n"
        os.kill(child.pid, signal.SIGKILL)
    ledger = Ledger(url(file))
    assert ledger.aside is None
    [row] = ledger.unsettled("requeue", "7")
    assert (row.incident, row.detail, row.intended, row.outcome) == (1, "restarts=0", 3.0, "")
    assert ledger.unsettled("drain", "n1") == []
    assert ledger.take(NodeReport("n1", opened=(replace(XID, moment="b/1"),)), T) == []
    ledger.engine.dispose()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"\0" * 8192], ids=["text", "zeros"])
def test_a_corrupt_ledger_is_set_aside_and_never_deleted(
    file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    ledger = Ledger(url(file))
    assert ledger.aside
    assert ledger.aside.parent == file.parent
    assert ledger.aside.read_bytes() == content
    assert f"{file}: set aside as {ledger.aside}" in errors(caplog)[-1]
    ledger.take(report(XID), T)
    assert only(ledger).code == "GPU_XID_79"
    ledger.engine.dispose()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize("page", [0, 1, -1], ids=["schema", "second", "last"])
def test_a_ledger_with_a_broken_page_is_set_aside(file: Path, page: int) -> None:
    """However deep: the start reads all of it."""
    filled = Ledger(url(file))
    filled.take(report(*(replace(XID, device=f"d{n}", moment=f"b/{n}") for n in range(500))), T)
    filled.engine.dispose()
    content = bytearray(file.read_bytes())
    at = page * 4096 if page >= 0 else len(content) - 4096
    content[at + 100 : at + 4096] = b"\xff" * 3996
    file.write_bytes(content)
    ledger = Ledger(url(file))
    assert ledger.aside
    assert ledger.aside.read_bytes() == bytes(content)
    assert ledger.open_incidents() == []
    ledger.engine.dispose()


def test_nothing_that_was_set_aside_is_written_over(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260102T030405")
    file.parent.mkdir()
    beside = file.with_name(f"{file.name}.corrupt-20260102T030405.2-wal")
    beside.write_bytes(b"somebody's")
    for content in (b"first" * 1000, b"second" * 1000):
        file.write_bytes(content)
        file.with_name(f"{file.name}-wal").write_bytes(content)
        ledger = Ledger(url(file))
        assert ledger.aside
        assert ledger.aside.read_bytes() == content
        assert ledger.aside.with_name(f"{ledger.aside.name}-wal").read_bytes() == content
        ledger.engine.dispose()
    assert beside.read_bytes() == b"somebody's"


def test_what_is_left_of_a_deleted_ledger_is_set_aside(file: Path) -> None:
    file.parent.mkdir()
    file.with_name(f"{file.name}-wal").write_bytes(b"acts")
    ledger = Ledger(url(file))
    assert ledger.aside
    assert ledger.aside.with_name(f"{ledger.aside.name}-wal").read_bytes() == b"acts"
    ledger.engine.dispose()


def spoil(file: Path, header: bool) -> None:
    """Write rubbish over a ledger in use, as a disk or an admin may, and have it read again."""
    with sqlite3.connect(file) as other:
        other.execute("INSERT INTO pauses VALUES (99, '', 0, 1, '', '')")
        other.commit()
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    other.close()
    with file.open("r+b") as raw:
        raw.seek(0 if header else 4096)
        raw.write(b"\xa5" * (file.stat().st_size - (0 if header else 4096)))


@pytest.mark.parametrize("header", [True, False], ids=["header", "middle"])
def test_a_ledger_that_becomes_corrupt_in_use_is_lost_and_begun_anew(
    ledger: Ledger, file: Path, header: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.take(report(XID, LINK), T)
    told: list[bool] = []
    ledger.when_lost = lambda: told.append(True)
    spoil(file, header)
    spoilt = file.read_bytes()
    with pytest.raises(LedgerLost, match=r"ledger\.db: corrupt: "):
        ledger.take(report(replace(XID, moment="b/2")), T + 1)
    assert told == [True]
    assert ledger.trouble == ledger.lost == errors(caplog)[0].removeprefix("ledger ")
    with pytest.raises(LedgerLost):  # it is not read or written any more
        ledger.open_incidents()
    ledger.open()
    assert ledger.aside
    assert ledger.aside.read_bytes() == spoilt
    assert (ledger.lost, ledger.trouble, ledger.open_incidents()) == ("", "", [])
    assert ledger.take(report(replace(XID, moment="b/2"), standing=(LINK.moment,)), T + 2) == [1]
    assert ledger.unknown("n1", [LINK.moment]) == [LINK.moment]


def test_a_wal_that_was_cut_off_is_read_anew(ledger: Ledger, file: Path) -> None:
    """SQLite calls what is missing of it an I/O error, for as long as the file stays open."""
    ledger.take(report(XID), T)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.execute("INSERT INTO pauses VALUES (99, '', 0, 1, '', '')")  # so that nothing in memory counts
        other.execute("UPDATE incidents SET count = 7")
    os.truncate(file.with_name(f"{file.name}-wal"), 0)
    with pytest.raises(LedgerError, match="disk I/O error"):
        ledger.take(report(LINK), T)
    assert ledger.take(report(LINK), T) == [2]
    assert [one.count for one in ledger.open_incidents()] == [1, 1]


def test_a_ledger_that_has_vanished_is_not_written_to(ledger: Ledger, file: Path) -> None:
    ledger.take(report(XID), T)
    ledger.take(report(), T)
    file.unlink()
    assert only(ledger)  # what it held is known still
    with pytest.raises(LedgerLost, match="vanished"):
        ledger.hold(1, "paused")
    ledger.open()
    assert ledger.open_incidents() == []
    ledger.take(report(), T)  # no news to the last one, but to this
    assert ledger.node("n1") is not None
    assert ledger.aside
    assert sorted(path.name for path in file.parent.glob("*.corrupt-*")) == [
        f"{ledger.aside.name}-shm", f"{ledger.aside.name}-wal"]  # fmt: skip


def test_another_ledger_in_its_place_is_taken_up(ledger: Ledger, file: Path, tmp_path: Path) -> None:
    other = Ledger(url(tmp_path / "other.db"))
    other.take(report(LINK), T)
    other.engine.dispose()
    ledger.take(report(XID), T)
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink()
    (tmp_path / "other.db").rename(file)
    with pytest.raises(LedgerLost, match="another file"):
        ledger.take(report(XID), T)
    ledger.open()
    assert only(ledger).code == "IB_PORT_DOWN"
    assert ledger.aside is None


def test_a_folder_that_is_away_is_a_trouble_until_it_is_back(
    ledger: Ledger, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.take(report(XID), T)
    away = file.parent.rename(file.parent.with_name("away"))
    for _ in range(3):
        with pytest.raises(LedgerError, match="folder has vanished"):
            ledger.take(report(LINK), T)
    assert "folder has vanished" in ledger.trouble
    assert len(errors(caplog)) == 1
    away.rename(file.parent)
    assert ledger.take(report(LINK), T) == [2]
    assert ledger.trouble == ""


def test_a_ledger_survives_reopening(file: Path) -> None:
    first = Ledger(url(file))
    first.take(report(XID), T)
    first.engine.dispose()
    again = Ledger(url(file))
    assert only(again).code == "GPU_XID_79"
    assert again.aside is None
    again.engine.dispose()


def test_a_full_disk_is_said_and_survived(
    ledger: Ledger, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.take(report(XID), T)

    def bounded(connection: sqlite3.Connection, _: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}").close()

    ledger.engine.dispose()
    sa.event.listen(ledger.engine, "connect", bounded)
    storm = [replace(XID, moment=f"c/{n}", evidence="x" * 900) for n in range(500)]
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"ledger\.db: database or disk is full \(make room"):
            ledger.take(report(*storm), T + 1)
        ledger.close_quiet(T, 60)  # which has nothing to write, so it is no proof of room
        assert "disk is full" in ledger.trouble
    assert len(errors(caplog)) == 1
    assert only(ledger).count == 1  # all of the report or nothing
    sa.event.remove(ledger.engine, "connect", bounded)
    ledger.engine.dispose()
    assert ledger.take(report(*storm), T + 2)
    assert only(ledger).count == 501
    assert ledger.trouble == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 6 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("the disk that is full for real needs a mount, which is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    return ballast


def test_what_was_kept_on_a_disk_that_fills_up_stays_kept(small_disk: Path) -> None:
    """The -wal cannot grow, nor can the file at a checkpoint: what was said to be written is, all of it."""
    ledger = Ledger(url(small_disk / "ledger.db"))

    def told(number: int) -> NodeReport:
        return report(replace(XID, device=f"d{number}", moment=f"b/{number}", evidence="x" * 900))

    kept = [number for number in range(20) if ledger.take(told(number), T)]
    ballast = fill(small_disk)
    for number in range(20, 2000):
        try:
            ledger.take(told(number), T)
        except LedgerError:
            break
        kept.append(number)
    else:
        raise AssertionError("the disk never was full")
    assert ledger.trouble
    assert [one.device for one in ledger.open_incidents()] == [f"d{number}" for number in kept]
    ledger.engine.dispose()  # as after a kill: without a last checkpoint, there is no room for one
    ballast.unlink()
    again = Ledger(url(small_disk / "ledger.db"))
    assert again.aside is None
    assert [one.device for one in again.open_incidents()] == [f"d{number}" for number in kept]
    assert ledger.take(told(2000), T)
    assert ledger.trouble == ""
    again.engine.dispose()
    ledger.engine.dispose()


def test_a_ledger_that_is_read_only_is_a_trouble(ledger: Ledger, file: Path) -> None:
    def read_only(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA query_only=1").close()

    ledger.engine.dispose()
    sa.event.listen(ledger.engine, "connect", read_only)
    with pytest.raises(LedgerError, match=r"readonly database .*writable for uid"):
        ledger.take(report(XID), T)
    sa.event.remove(ledger.engine, "connect", read_only)
    assert ledger.take(report(XID), T)  # as soon as it can be written, without a restart


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="its folder cannot be made"):
        Ledger(url(tmp_path / "file/below/ledger.db"))


def test_a_ledger_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="unable to open database file"):
        Ledger(url(tmp_path))


def test_a_ledger_of_a_newer_release_is_said_and_left_as_it_is(ledger: Ledger, file: Path) -> None:
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match="newer release"):
        Ledger(url(file))
    assert [path.name for path in file.parent.iterdir() if "corrupt" in path.name] == []


@pytest.mark.parametrize("url", ["", "no url", "nosuch://x"])
def test_a_url_that_is_none_is_said(url: str) -> None:
    with pytest.raises(WrongLedger, match=r"^\[ledger\] url: "):
        Ledger(url)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root can read everything, so the test is not root for a while."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)


def test_a_ledger_that_may_not_be_read_is_not_taken_for_corrupt(nobody: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "ledger.db")
        file.write_bytes(b"whatever it holds")
        file.chmod(0)
        with pytest.raises(LedgerError, match=r"ledger\.db: unable to open .*must be writable for uid"):
            Ledger(url(file))
        assert [path.name for path in file.parent.iterdir()] == ["ledger.db"]


@pytest.fixture
def locked(ledger: Ledger, file: Path) -> Iterator[sqlite3.Connection]:
    """An admin's sqlite3 in the middle of something."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield other
    other.close()


def test_a_ledger_that_is_locked_at_the_start_is_said_and_left_as_it_is(
    ledger: Ledger, locked: sqlite3.Connection, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE", 1)
    with pytest.raises(LedgerError, match=r"ledger\.db: database is locked \(another program"):
        Ledger(url(file))
    assert not list(file.parent.glob("*.corrupt-*"))


def test_a_lock_holds_up_nothing_but_the_write_and_loses_nothing(
    ledger: Ledger, locked: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with pytest.raises(LedgerError, match="locked"):
            ledger.take(report(XID, LINK), T)
        with pytest.raises(LedgerError, match="locked"):
            ledger.drained("n1", "slurm-health: x", 1, T)
        assert ledger.open_incidents() == []  # readers go on
    assert len(errors(caplog)) == 1
    with ledger.engine.connect() as connection:  # who knows of the trouble does not wait for it
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 0
    locked.execute("COMMIT")
    assert ledger.take(report(XID, LINK), T + 9) == [1, 2]
    assert ledger.take(report(XID, LINK), T + 9) == []
    assert [one.count for one in ledger.open_incidents()] == [1, 1]
    assert ledger.trouble == ""


def test_a_quiet_report_tries_whether_the_trouble_is_over(
    ledger: Ledger, locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked.execute("COMMIT")
    ledger.take(report(), T)
    locked.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerError):
        ledger.close(1, "an admin, who does not try again", T)
    locked.execute("COMMIT")
    assert ledger.take(report(), T + 1) == []
    assert ledger.trouble  # one a second is enough
    monkeypatch.setattr(incidents, "RETRY", 0.0)
    ledger.take(report(), T + 2)
    assert ledger.trouble == ""


# -- what nobody told it, and what it was told already


def test_what_stands_and_was_never_told_is_asked_for(ledger: Ledger) -> None:
    assert ledger.unknown("n1", []) == []
    ledger.take(report(LINK, standing=(LINK.moment, "b/x")), T)
    assert ledger.unknown("n1", [LINK.moment, "b/x"]) == ["b/x"]
    assert ledger.unknown("n2", [LINK.moment]) == [LINK.moment]
    ledger.acknowledge([1], T)
    assert ledger.unknown("n1", [LINK.moment]) == []
    ledger.close(1, "alice", T)
    assert ledger.unknown("n1", [LINK.moment]) == []


def test_what_a_person_closed_while_it_stands_is_said(ledger: Ledger) -> None:
    ledger.take(report(LINK, standing=(LINK.moment,)), T)
    assert ledger.closed("n1", [LINK.moment]) == []
    ledger.acknowledge([1], T)
    assert ledger.closed("n1", [LINK.moment]) == []  # an admin's RESUME overrules it, no more
    ledger.close(1, "alice", T)
    assert ledger.closed("n1", [LINK.moment, "b/x"]) == [LINK.moment]
    assert ledger.closed("n2", [LINK.moment]) == []
    assert ledger.closed("n1", []) == []


def test_what_new_evidence_closed_was_closed_by_nobody(ledger: Ledger) -> None:
    ledger.take(report(LINK, standing=(LINK.moment,)), T)
    ledger.acknowledge([1], T)
    ledger.take(report(replace(LINK, moment="b/again"), standing=(LINK.moment, "b/again")), T + 1)
    assert ledger.closed("n1", [LINK.moment, "b/again"]) == []


def test_what_was_closed_while_it_stands_is_not_forgotten_before_it_has_cleared(ledger: Ledger) -> None:
    ledger.take(report(LINK), T)
    ledger.close(1, "alice", T + 1)
    ledger.take(report(standing=(LINK.moment,)), T + 2)
    ledger.forget(T + 9)
    assert ledger.unknown("n1", [LINK.moment]) == []
    assert ledger.take(report(standing=()), T + 10) == []  # no news: it was closed
    closed = ledger.incident(1)
    assert closed
    assert (closed.closed, closed.closed_by, closed.cleared) == (T + 1, "alice", T + 10)
    ledger.forget(T + 11)
    assert ledger.incident(1) is None


def changes(ledger: Ledger) -> int:
    with ledger.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        return int(driver.total_changes)


def test_a_report_without_news_is_not_written(ledger: Ledger, file: Path) -> None:
    ledger.take(report(LINK), T)
    ledger.take(report(standing=(LINK.moment,)), T + 1)
    before = changes(ledger)
    for _ in range(3):
        assert ledger.take(report(standing=(LINK.moment,)), T + 2) == []
    assert changes(ledger) == before
    ledger.take(report(standing=(LINK.moment,), blind={"gpu": "no answer"}), T + 3)
    ledger.take(report(standing=(LINK.moment,), boot="c"), T + 4)
    row = ledger.node("n1")
    assert row
    assert (row.boot, row.blind, row.reported) == ("c", "", T + 4)
    ledger.acknowledge([1], T + 5)
    assert ledger.take(report(standing=(LINK.moment,), boot="c"), T + 6) == []
    assert ledger.take(report(standing=(), boot="c"), T + 7) == [1]  # its end is noticed all the same


def test_the_first_report_after_a_restart_is_written(ledger: Ledger, file: Path) -> None:
    ledger.take(report(LINK), T)
    again = Ledger(url(file))
    assert again.take(report(standing=()), T + 1) == [1]
    again.engine.dispose()


def test_a_report_that_could_not_be_kept_is_not_taken_for_known(
    ledger: Ledger, locked: sqlite3.Connection
) -> None:
    locked.execute("COMMIT")
    ledger.take(report(LINK), T)
    locked.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerError):
        ledger.take(report(standing=()), T + 1)
    locked.execute("COMMIT")
    assert ledger.take(report(standing=()), T + 2) == [1]


# -- the schema


def test_the_migrations_make_what_the_code_expects(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_durable_enough(ledger: Ledger, file: Path) -> None:
    ledger.take(report(), T)
    with ledger.engine.connect() as connection:
        said = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert said == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 100, "synchronous": 1}


def test_a_ledger_of_the_first_release_is_brought_up_to_date_with_all_it_holds(file: Path) -> None:
    file.parent.mkdir()
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(ledger_module.__file__).parents[1] / "migrations"))
    engine = sa.create_engine(url(file))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql(
            "INSERT INTO incidents VALUES"
            " (1, 'n1', 'GPU_XID_79', 'd', 2, 'now', 't', 1, 1, 0, 'b/1', 1, 1, 0, 0, 0, '', '')"
        )
    engine.dispose()
    ledger = Ledger(url(file))
    test_the_migrations_make_what_the_code_expects(ledger)
    assert (only(ledger).code, only(ledger).moment) == ("GPU_XID_79", "b/1")
    assert ledger.stories()[0]["hardware"] == {}
    ledger.engine.dispose()


def test_a_migration_that_breaks_off_leaves_all_as_it_was(ledger: Ledger, file: Path) -> None:
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_incidents_closed")  # the first that 0002 makes
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(LedgerError, match="already exists"):
        Ledger(url(file))
    with ledger.engine.connect() as connection:
        names = {index["name"] for index in sa.inspect(connection).get_indexes("incidents")}
    assert "ix_incidents_closed" not in names


CALLS: dict[str, Callable[[Ledger, Incident], object]] = {
    "take": lambda ledger, _: ledger.take(report(replace(XID, moment="b/2")), T),
    "raised": lambda ledger, _: ledger.raised("n1", replace(LINK, code="NODE_SILENT", moment="silent"), T),
    "acknowledge": lambda ledger, _: ledger.acknowledge([1, 2], T),
    "close": lambda ledger, _: ledger.close(2, "alice", T),
    "hold": lambda ledger, _: ledger.hold(1, "paused"),
    "close_quiet": lambda ledger, _: ledger.close_quiet(T, 60),
    "forget": lambda ledger, _: ledger.forget(T + 9),
    "intend": lambda ledger, _: ledger.intend(1, "drain", "n1", T),
    "settle": lambda ledger, _: ledger.settle(1, "done", T),
    "conclude": lambda ledger, _: ledger.conclude("requeue", "7", T),
    "would": lambda ledger, _: ledger.would(1, "drain", "n1", "paused", T),
    "drained": lambda ledger, _: ledger.drained("n1", "slurm-health: x", 1, T),
    "touch": lambda ledger, incident: touch(ledger, incident, job=8),
    "victim": lambda ledger, _: ledger.victim(1, refused=T),
    "pause": lambda ledger, _: ledger.pause("", 0.0, "", "alice", T),
    "unpause": lambda ledger, _: ledger.unpause(""),
    "together": lambda ledger, _: ledger_together(ledger),
    "notice": lambda ledger, _: ledger.notice("help", 1, "look", T),
    "about to send": lambda ledger, _: ledger.outbox.about_to_send([NOTICE], T),
    "sent": lambda ledger, _: ledger.outbox.sent([NOTICE]),
}
QUESTIONS: dict[str, Callable[[Ledger], object]] = {
    "unknown": lambda ledger: ledger.unknown("n1", [LINK.moment]),
    "closed": lambda ledger: ledger.closed("n1", [LINK.moment]),
    "open_incidents": lambda ledger: ledger.open_incidents(),
    "of nodes": lambda ledger: ledger.open_incidents(["n1", "n2"]),
    "outlook": lambda ledger: ledger.outlook(5),
    "troubled": lambda ledger: ledger.troubled(),
    "nodes_in_question": lambda ledger: ledger.nodes_in_question(T),
    "attempts": lambda ledger: ledger.attempts("drain", T),
    "hurts": lambda ledger: ledger.hurts(7, T),
    "requeues": lambda ledger: ledger.requeues(7, 1000, 1),
    "incident": lambda ledger: ledger.incident(1),
    "latest": lambda ledger: ledger.latest("n1", T),
    "unsettled": lambda ledger: ledger.unsettled("drain", "n1"),
    "ranks": lambda ledger: ledger.ranks(1, 1),
    "done_since": lambda ledger: ledger.done_since("resume", "n1", FAULT_GONE, T),
    "drained_since": lambda ledger: ledger.drained_since(T),
    "under way": lambda ledger: ledger.drained_since(0, under_way=True),
    "node": lambda ledger: ledger.node("n1"),
    "reporters": lambda ledger: ledger.reporters(),
    "out_by_us": lambda ledger: ledger.out_by_us(),
    "pending_victims": lambda ledger: ledger.pending_victims(),
    "pauses": lambda ledger: ledger.pauses(T),
    "stories": lambda ledger: ledger.stories(),
    "stories of a job": lambda ledger: ledger.stories(job="7", every=True),
    "waiting": lambda ledger: ledger.outbox.waiting("mail"),
    "stories of a node": lambda ledger: ledger.stories(node="n1"),
}


def ledger_together(ledger: Ledger) -> None:
    with ledger.together(), ledger.together():
        ledger.hold(1, "paused")
        assert ledger.open_incidents()
        ledger.hold(2, "paused")


def asked(ledger: Ledger, call: Callable[[], object]) -> list[tuple[str, Any]]:
    """The statements that it runs, and BEGIN where the driver begins a transaction by itself."""
    found: list[tuple[str, Any]] = []

    def listen(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        found.append((statement, parameters))

    def began(_: Any) -> None:
        found.append(("BEGIN", None))

    sa.event.listen(ledger.engine, "before_cursor_execute", listen)
    if not ledger.sqlite:
        sa.event.listen(ledger.engine, "begin", began)
    call()
    sa.event.remove(ledger.engine, "before_cursor_execute", listen)
    if not ledger.sqlite:
        sa.event.remove(ledger.engine, "begin", began)
    return found


@pytest.mark.parametrize("name", [*CALLS, *QUESTIONS])
def test_each_call_is_one_transaction_that_reads_no_whole_table(ledger: Ledger, name: str) -> None:
    """A writer has its lock before it reads what it decides on."""
    ledger.outbox.ways, ledger.outbox.events = ("mail", "webhook"), ("incident", "requeue", "help")
    ledger.take(report(XID, LINK), T)
    incident = ledger.open_incidents()[0]
    touch(ledger, incident)
    ledger.intend(1, "requeue", "7", T)
    if name in CALLS:
        statements = asked(ledger, lambda: CALLS[name](ledger, incident))
    else:
        statements = asked(ledger, lambda: QUESTIONS[name](ledger))
    begins = [statement for statement, _ in statements if statement.startswith("BEGIN")]
    writes = ledger.sqlite and name in CALLS
    assert begins == [statements[0][0]] == (["BEGIN IMMEDIATE"] if writes else ["BEGIN"])
    if "pause" in name or name == "reporters" or not ledger.sqlite:
        return  # a handful of rows; asked once; and PostgreSQL plans by what is in them
    with ledger.engine.connect() as connection:
        for statement, parameters in statements:
            if statement.startswith(("SELECT", "UPDATE", "DELETE")):
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                scans = [row.detail for row in plan if row.detail.startswith("SCAN")]
                of_tables = [scan for scan in scans if not scan.startswith(("SCAN (subquery", "SCAN anon"))]
                assert of_tables == [], statement


def test_all_that_the_ledger_can_do_is_among_these() -> None:
    public = {name for name, what in vars(Ledger).items() if callable(what) and not name.startswith("_")}
    assert public - {"open"} == {*CALLS, *QUESTIONS} & public


# -- ranks, and nodes that came back


def test_the_ranks_of_each_fault_are_kept_apart(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    incident = only(ledger)
    run = Job(7, "7", "RUNNING")
    ledger.touch(incident, run, 0, 0.0, T, ranks="3,5-7")
    [victim] = ledger.pending_victims()
    assert ledger.ranks(incident.id, victim.id) == "3,5-7"
    assert ledger.ranks(incident.id + 1, victim.id) == ""
    [story] = ledger.stories()
    assert [job["ranks"] for job in story["jobs"]] == ["3,5-7"]


def test_only_returns_of_late_for_a_fault_that_was_gone_count(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    incident = only(ledger)
    for node, at, why, outcome in (
        ("n1", T, FAULT_GONE, "done"),
        ("n1", T - 100, FAULT_GONE, "done"),
        ("n1", T, FAULT_GONE, "not done: x"),
        ("n1", T, "our hook failed after a RESUME", "done"),
        ("n2", T, FAULT_GONE, "done"),
    ):
        ledger.settle(ledger.intend(incident.id, "resume", node, at, why), outcome, at)
    assert ledger.done_since("resume", "n1", FAULT_GONE, T - 50) == 1
    assert ledger.done_since("resume", "n1", FAULT_GONE, T - 100) == 2


# -- all of it


FINDINGS = st.builds(
    Finding,
    st.sampled_from(["GPU_XID_79", "IB_PORT_DOWN"]),
    st.sampled_from([Severity.WARNING, Severity.CRITICAL]),
    st.sampled_from(["a", "b"]),
    st.just("text"),
    job=st.sampled_from(Urgency),
    since=st.floats(T, T + 100),
    moment=st.integers(0, 12).map(str),
    lasting=st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.builds(report, *[FINDINGS] * 2),
        st.builds(report, standing=st.lists(st.integers(0, 12).map(str), max_size=4).map(tuple)),
        st.sampled_from(["acknowledge", "close", "drain", "resume"]),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def shared(kind: str, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    server = kind == "postgresql" and request.getfixturevalue("server")
    opened = Ledger(server.database() if server else "sqlite://")
    yield opened
    opened.engine.dispose()


@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_whatever_nodes_and_admins_do(shared: Ledger, steps: list[Any]) -> None:
    with shared.engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    for number, step in enumerate(steps):
        now = T + 200 + number
        if step == "acknowledge":
            shared.acknowledge([one.id for one in shared.open_incidents()], now)
        elif step == "close":
            for one in shared.open_incidents():
                shared.close(one.id, "alice", now)
        elif step in ("drain", "resume"):
            shared.drained("n1", "x" if step == "drain" else "", 1, now)
        else:
            shared.take(step, now)
            before = shared.stories(every=True)
            shared.take(step, now + 0.5)  # heard twice
            assert shared.stories(every=True) == before
        found = shared.open_incidents()
        faults = [(one.node, one.code, one.device) for one in found]
        assert len(faults) == len(set(faults))
    stories = shared.stories(every=True, limit=1000)
    assert all(story["count"] == len(rows_of(shared, story["id"])) for story in stories)


def rows_of(ledger: Ledger, incident: int) -> list[Any]:
    return [row for row in rows(ledger, schema.evidence) if row.incident == incident]


# -- at a glance


def test_the_outlook_counts_all_and_shows_the_worst(ledger: Ledger) -> None:
    assert ledger.outlook(5) == (0, Severity.OK, [])
    assert ledger.troubled() == []
    mild = [replace(LINK, severity=Severity.WARNING, device=f"mlx5_{n}/1", moment=f"b/{n}") for n in range(8)]
    ledger.take(report(*mild), T)
    ledger.take(replace(report(XID), node="n2"), T)
    many, worst, shown = ledger.outlook(3)
    assert (many, worst) == (9, Severity.CRITICAL)
    assert [(one.node, one.id) for one in shown] == [("n2", 9), ("n1", 1), ("n1", 2)]
    assert sorted(ledger.troubled()) == ["n1", "n2"]
    ledger.acknowledge([9], T + 1)  # cannot end by itself: closed
    assert ledger.outlook(3)[:2] == (8, Severity.WARNING)
    ledger.acknowledge(range(1, 9), T + 1)
    assert ledger.outlook(0) == (8, Severity.OK, [])
    assert ledger.troubled() == ["n1"]


def test_a_listing_shows_few_lines_of_each_incident(ledger: Ledger) -> None:
    lines = 3 * LISTED
    for device in ("a", "b"):
        storm = [
            replace(XID, device=device, moment=f"{device}/{n}", since=T - lines + n, evidence=str(n))
            for n in range(lines)
        ]
        ledger.take(report(*storm), T)
    for story in ledger.stories():
        shown = [one["line"] for one in story["evidence"]]
        assert shown == [str(n) for n in range(LISTED)]
    [story] = ledger.stories(wanted=[1])
    assert len(story["evidence"]) == lines


def test_who_asks_on_another_thread_stays_out_of_a_transaction(ledger: Ledger) -> None:
    seen: list[list[str]] = []
    with ledger.together():
        ledger.take(report(XID), T)
        asking = threading.Thread(target=lambda: seen.append(ledger.troubled()))
        asking.start()
        asking.join()
        seen.append(ledger.troubled())
    assert seen == [[], ["n1"]]
