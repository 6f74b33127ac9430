"""The ledger's disk is full, its file corrupt, gone or locked: nothing is done that is not written down,
prologs go on, and when it can be written again all that is left to do is done once."""

import contextlib
import shutil
import sqlite3
import subprocess
import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from test_cluster_outages import all_followed_once

pytestmark = pytest.mark.cluster


@pytest.fixture
def folder():
    """A place for another ledger."""
    made = Path(tempfile.mkdtemp(prefix="ctl-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def small_disk(folder):
    """A file system of its own for the ledger, of 6 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a disk that is full needs a mount, which is not permitted here: NOT TESTED")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def ledger_in(cluster, folder):
    """The controller keeps a ledger of its own there; incidents count from 1."""
    first = cluster.first
    with cluster.configured(f'[ledger]\nurl = "sqlite:///{folder}/ledger.db"\n'):
        cluster.first = 0
        yield folder / "ledger.db"
    cluster.first = first


def fill(disk):
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return ballast


def trouble(cluster):
    return cluster.health_json("status")["ledger"]["trouble"]


def errors(cluster, *words):
    """The lines of the controller's log at level ERROR that hold all these words."""
    lines = cluster.log("ctld/controller.out").splitlines()
    return [line for line in lines if " ERROR " in line and all(word in line for word in words)]


def test_the_ledgers_disk_is_full(cluster, small_disk):
    with ledger_in(cluster, small_disk):
        job = cluster.running("sleep 300", "--gpus=8")
        [node] = cluster.nodes_of(job)
        ballast = fill(small_disk)
        other = next(name for name in cluster.names if name != node)
        code = cluster.xid(node)
        words = cluster.until(lambda: trouble(cluster), len)
        assert "disk is full" in words or "disk I/O error" in words
        assert cluster.health("status").returncode == 3
        assert words in cluster.health("status").stdout
        spool = cluster.box.layout.node(node) / "state/spool"
        assert code in spool.read_text()
        # Healthy nodes take jobs, their prologs have the last verdict.
        assert cluster.verdict(other) == "ok"
        more = cluster.running("sleep 300", "-w", other, "--gpus=8")
        assert len(errors(cluster, "ledger", words)) == 1
        assert all(cluster.serves(name) for name in cluster.names)
        assert (cluster.restarts(job), len(cluster.runs(job))) == (0, 1)
        ballast.unlink()
        all_followed_once(cluster, job, node, code)
        cluster.until(lambda: trouble(cluster), "")
        cluster.until(spool.read_text, "")
        assert cluster.health("status").returncode == 2  # the incident, truly
        assert (cluster.state(more), len(cluster.runs(more))) == ("RUNNING", 1)


def spoil(file):
    """Write rubbish over all but its first page, and have what is in memory read again."""
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("INSERT INTO pauses VALUES (99, 'nowhere', 0, 1, '', '')")
        other.commit()
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xa5" * (file.stat().st_size - 4096))
    return file.read_bytes()


def set_aside(cluster, file):
    """Where the corrupt ledger lies, as `status` and the log say it."""
    aside = cluster.until(
        lambda: cluster.health_json("status")["ledger"]["aside"] if not cluster._refusal() else "", len
    )
    assert aside.startswith(f"{file}.corrupt-")
    assert errors(cluster, str(file), aside)
    return Path(aside)


def test_the_ledger_becomes_corrupt_while_it_is_used(cluster, folder):
    with ledger_in(cluster, folder) as file:
        job = cluster.running("sleep 300", "--gpus=8")
        [node] = cluster.nodes_of(job)
        spoilt = spoil(file)
        code = cluster.xid(node)
        all_followed_once(cluster, job, node, code)
        assert set_aside(cluster, file).read_bytes() == spoilt
        assert trouble(cluster) == ""


def began(incidents):
    """When each fault began, by its code: seconds since the epoch."""
    return {one["code"]: datetime.fromisoformat(one["since"]).timestamp() for one in incidents}


@pytest.mark.parametrize("how", ["corrupt", "gone"])
def test_a_ledger_that_was_lost_becomes_true_again(cluster, folder, how):
    """The node says again what stands there. It is drained, but not by what the new ledger knows: whoever
    did it, it is theirs."""
    with ledger_in(cluster, folder) as file:
        cluster.inject("n1", "ib-down", port=0)
        cluster.inject("n1", "gpu-lost", gpu=3)
        cluster.until(lambda: {one["code"] for one in cluster.incidents()}, {"IB_PORT_DOWN", "GPU_MISSING"})
        reason = cluster.until(lambda: cluster.reason("n1"), lambda said: said.startswith("slurm-health: "))
        cluster.until(lambda: cluster.verdict("n1"), "bad")
        before = began(cluster.incidents())
        if how == "corrupt":
            spoilt = spoil(file)
            cluster.health("pause", "1s", "--nodes", "n4")  # anything that writes
            assert set_aside(cluster, file).read_bytes() == spoilt
        else:
            file.unlink()
            cluster.health("pause", "1s", "--nodes", "n4")
        held = cluster.until(
            lambda: [one["held"] for one in cluster.incidents()] if not cluster._refusal() else [],
            lambda found: len(found) == 2 and all(found),
        )
        assert held == [f"drained by somebody else: {reason}"] * 2
        assert began(cluster.incidents(state="open")) == pytest.approx(before, abs=0.1)
        assert all(one["actions"] == [] for one in cluster.incidents())
        cluster.box.clear("n1")
        cluster.until(lambda: cluster.incidents(state="open"), [])
        assert cluster.reason("n1") == reason
        assert not cluster.serves("n1")
        cluster.resume("n1")
        job = cluster.running("sleep 300", "-w", "n1", "--gpus=8")  # no stale verdict refuses it
        assert len(cluster.runs(job)) == 1


def test_the_ledgers_folder_is_away_for_a_while(cluster, folder):
    inside = folder / "in"
    inside.mkdir()
    with ledger_in(cluster, inside):
        job = cluster.running("sleep 300", "--gpus=8")
        [node] = cluster.nodes_of(job)
        away = inside.rename(folder / "away")
        code = cluster.xid(node)
        cluster.until(lambda: trouble(cluster), lambda words: "folder has vanished" in words)
        assert all(cluster.serves(name) for name in cluster.names)
        away.rename(inside)
        all_followed_once(cluster, job, node, code)
        cluster.until(lambda: trouble(cluster), "")


def test_an_admin_holds_the_ledgers_lock(cluster, folder):
    with ledger_in(cluster, folder) as file:
        job = cluster.running("sleep 300", "--gpus=8")
        [node] = cluster.nodes_of(job)
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            code = cluster.xid(node)
            cluster.until(lambda: trouble(cluster), lambda words: "locked" in words)
            assert cluster.health("status").returncode == 3  # it answers
            assert len(errors(cluster, "locked")) == 1
            assert all(cluster.serves(name) for name in cluster.names)
        all_followed_once(cluster, job, node, code)
        cluster.until(lambda: trouble(cluster), "")
        assert not list(file.parent.glob("*.corrupt-*"))
