"""What the ledger promises: nothing counted twice, nothing lost in a crash, nothing deleted unasked."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_health import ledger as ledger_module
from slurm_health.ledger import EVIDENCE, LIFE, Ledger, LedgerError
from slurm_health.model import Finding, Hurt, Incident, Job, Severity, Urgency
from slurm_health.wire import NodeReport

T = 1_700_000_000.0
GPU = "0000:5d:00.0"
XID = Finding("GPU_XID_79", Severity.CRITICAL, GPU, "gone", "NVRM: Xid 79", Urgency.NOW, T, "b/1", False)
LINK = Finding("IB_PORT_DOWN", Severity.CRITICAL, "mlx5_4/1", "down", "DOWN", Urgency.NOW, T, "b/IB/1", True)


def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state/ledger.db"


@pytest.fixture
def ledger(file: Path) -> Iterator[Ledger]:
    opened = Ledger(url(file))
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
        Hurt("n1", XID.code, T - 60, first.since),
        Hurt("n2", XID.code, T + 20, second.since),
    ]
    assert ledger.hurts(7, T + 100 + LIFE) == []


def touch(ledger: Ledger, incident: Incident, now: float = T, **changes: Any) -> bool:
    said = {"job": 7, "restarts": 0, "label": "7", "uid": 1000, "refused": 0.0, "began": 0.0, **changes}
    restarts, refused = said["restarts"], said["refused"]
    job = Job(
        said["job"], said["label"], "RUNNING", restarts=restarts, uid=said["uid"], started=said["began"]
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


def test_what_would_have_been_done_is_said_once(ledger: Ledger) -> None:
    ledger.take(report(XID), T)
    for moment in range(3):
        ledger.would(1, "drain", "n1", "mode is observe", T + moment)
    [row] = rows(ledger, ledger_module.actions)
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
    assert len(rows(ledger, ledger_module.incidents)) == 2
    ledger.forget(T + 6)
    [story] = ledger.stories(every=True)
    assert (story["id"], [job["job"] for job in story["jobs"]]) == (link.id, [8])
    for table in (ledger_module.evidence, ledger_module.actions):
        assert {row.incident for row in rows(ledger, table)} == {link.id}
    assert [tuple(row) for row in rows(ledger, ledger_module.touches)] == [(link.id, 2)]
    with ledger.engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []


def test_forgetting_many(ledger: Ledger) -> None:
    for start in (0, 500, 1000):
        many = (replace(XID, device=f"d{n}", moment=f"b/{n}") for n in range(start, start + 500))
        ledger.take(report(*many), T)
    with ledger.engine.begin() as connection:
        connection.execute(ledger_module.incidents.update().values(closed=T + 1))
    ledger.forget(T + 2)
    for table in ledger_module.metadata.sorted_tables:
        if table.name != "nodes":
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
    assert [row["id"] for row in ledger.stories(job=4711, every=True)] == [21]
    assert ledger.stories(job=4712, every=True) == []


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
def test_a_corrupt_ledger_is_set_aside_and_never_deleted(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    ledger = Ledger(url(file))
    assert ledger.aside
    assert ledger.aside.parent == file.parent
    assert ledger.aside.read_bytes() == content
    ledger.take(report(XID), T)
    assert only(ledger).code == "GPU_XID_79"
    ledger.engine.dispose()


def test_a_ledger_with_a_broken_schema_page_is_set_aside(file: Path) -> None:
    Ledger(url(file)).engine.dispose()
    content = bytearray(file.read_bytes())
    content[100:4096] = b"\xff" * 3996
    file.write_bytes(content)
    ledger = Ledger(url(file))
    assert ledger.aside
    assert ledger.aside.read_bytes() == bytes(content)
    ledger.engine.dispose()


def test_a_ledger_survives_reopening(file: Path) -> None:
    first = Ledger(url(file))
    first.take(report(XID), T)
    first.engine.dispose()
    again = Ledger(url(file))
    assert only(again).code == "GPU_XID_79"
    assert again.aside is None
    again.engine.dispose()


def test_a_full_disk_is_said_and_survived(ledger: Ledger) -> None:
    ledger.take(report(XID), T)

    def bounded(connection: sqlite3.Connection, _: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}").close()

    ledger.engine.dispose()
    sa.event.listen(ledger.engine, "connect", bounded)
    storm = [replace(XID, moment=f"c/{n}", evidence="x" * 900) for n in range(500)]
    with pytest.raises(LedgerError, match=r"ledger\.db: database or disk is full"):
        ledger.take(report(*storm), T + 1)
    assert only(ledger).count == 1  # all of the report or nothing
    sa.event.remove(ledger.engine, "connect", bounded)
    ledger.engine.dispose()
    assert ledger.take(report(*storm), T + 2)
    assert only(ledger).count == 501


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


def test_a_ledger_that_another_process_locks_is_said(ledger: Ledger, file: Path) -> None:
    def impatient(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA busy_timeout=1").close()

    ledger.engine.dispose()
    sa.event.listen(ledger.engine, "connect", impatient)
    other = sqlite3.connect(file)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            ledger.take(report(XID), T)
        assert ledger.open_incidents() == []  # readers go on
    finally:
        other.close()


# -- the schema


def test_the_migrations_make_what_the_code_expects(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, ledger_module.metadata) == []


def test_durable_enough(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        said = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert said == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 5000, "synchronous": 1}


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
def shared() -> Iterator[Ledger]:
    opened = Ledger("sqlite://")
    yield opened
    opened.engine.dispose()


@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_whatever_nodes_and_admins_do(shared: Ledger, steps: list[Any]) -> None:
    with shared.engine.begin() as connection:
        for table in reversed(ledger_module.metadata.sorted_tables):
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
    return [row for row in rows(ledger, ledger_module.evidence) if row.incident == incident]
