"""The spool: what was found is not lost to a crash, an outage or a full disk, and the spool stays bounded."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_health import spool as spool_module
from slurm_health import wire
from slurm_health.model import Finding, Severity, Urgency
from slurm_health.spool import MOST, Spool

XID = Finding(
    "GPU_XID_79",
    Severity.CRITICAL,
    "0000:5d:00.0",
    "gone",
    "NVRM: Xid",
    Urgency.NOW,
    1.7e9,
    "b/1",
    False,
)


def numbered(number: int, severity: Severity = Severity.CRITICAL) -> Finding:
    return replace(XID, moment=f"b/{number}", severity=severity, since=1.7e9 + number)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_findings_are_on_disk_when_add_returns(file: Path) -> None:
    spool = Spool(file)
    assert spool.add([numbered(1), numbered(2)])
    assert Spool(file).waiting == {"b/1": numbered(1), "b/2": numbered(2)}
    assert file.stat().st_mode & 0o777 == 0o640


def test_what_was_told_is_not_news(file: Path) -> None:
    spool = Spool(file)
    spool.add([XID])
    before = file.read_bytes()
    assert not spool.add([XID])
    assert not spool.add([])
    assert not Spool(file).add([XID])
    assert file.read_bytes() == before


def test_a_receipt_removes_and_stays_removed(file: Path) -> None:
    spool = Spool(file)
    spool.add([numbered(n) for n in range(4)])
    spool.receipted(["b/1", "b/3", "never heard of"])
    assert list(spool.waiting) == ["b/0", "b/2"]
    assert list(Spool(file).waiting) == ["b/0", "b/2"]
    before = file.stat()
    spool.receipted(["b/1"])
    assert file.stat().st_mtime_ns == before.st_mtime_ns  # nothing to write


CHILD = """
import sys
from pathlib import Path
from slurm_health.model import Finding, Severity
from slurm_health.spool import Spool

spool = Spool(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    spool.add([Finding("GPU_XID_79", Severity.CRITICAL, "gpu", "gone", moment=f"b/{number}")])
    print(number, flush=True)
    if number % 7 == 0:
        spool.receipted([f"b/{number - 3}"])
        print(3 - number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 6, 23])
def test_a_kill_loses_nothing_that_was_said(file: Path, after: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(file)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout
        said = [int(child.stdout.readline()) for _ in range(after)]
        os.kill(child.pid, signal.SIGKILL)
        said += [int(line) for line in child.stdout.read().splitlines()]
    added = {f"b/{number}" for number in said if number > 0}
    receipted = {f"b/{-number}" for number in said if number < 0}
    waiting = set(Spool(file).waiting)
    assert added - receipted <= waiting | {f"b/{max(said) - 3}"}  # a receipt that was not said yet may count
    assert not waiting & receipted


def test_a_torn_last_line_costs_that_line_alone(file: Path) -> None:
    Spool(file).add([numbered(n) for n in range(3)])
    whole = file.read_bytes()
    for cut in range(len(whole) - len(whole.splitlines()[-1]), len(whole) - 1):
        file.write_bytes(whole[:cut])
        spool = Spool(file)
        assert list(spool.waiting) == ["b/0", "b/1"]
        assert spool.add([numbered(9)])
        assert list(Spool(file).waiting) == ["b/0", "b/1", "b/9"]


@pytest.mark.parametrize(
    "line",
    ["", "{", "null", "[]", "7", '"text"', "{}", '{"code": 7}', "\x00" * 40, "[" * 100_000, '{"moment": {}}'],
)
def test_a_line_of_rubbish_costs_that_line_alone(file: Path, line: str) -> None:
    good = [json.dumps(wire.plain(numbered(n))) for n in (1, 2)]
    file.write_text(f"{good[0]}\n{line}\n{good[1]}\n")
    assert list(Spool(file).waiting) == ["b/1", "b/2"]


def test_bytes_that_are_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\n" + json.dumps(wire.plain(XID)).encode() + b"\n")
    assert list(Spool(file).waiting) == ["b/1"]


def test_a_full_spool_drops_old_warnings_first(file: Path) -> None:
    spool = Spool(file)
    spool.add([numbered(n, Severity.CRITICAL) for n in range(10)])
    spool.add([numbered(n, Severity.WARNING) for n in range(10, MOST)])
    assert (len(spool.waiting), spool.dropped) == (MOST, 0)
    spool.add([numbered(MOST + n) for n in range(5)])
    assert (len(spool.waiting), spool.dropped) == (MOST, 5)
    assert {f"b/{n}" for n in (*range(10), *range(15, MOST + 5))} == set(spool.waiting)
    assert Spool(file).waiting == spool.waiting


def test_a_spool_full_of_critical_findings_drops_the_oldest(file: Path) -> None:
    spool = Spool(file)
    spool.add([numbered(n) for n in range(MOST + 3)])
    assert set(spool.waiting) == {f"b/{n}" for n in range(3, MOST + 3)}
    spool.add([numbered(0, Severity.WARNING)])
    assert "b/0" not in spool.waiting


def test_a_long_outage_does_not_grow_the_file(file: Path) -> None:
    spool = Spool(file)
    largest = replace(XID, text="t" * 64, evidence="e" * 500)
    for start in range(0, 3 * MOST, 500):
        spool.add([replace(largest, moment=f"b/{n}") for n in range(start, start + 500)])
    assert len(file.read_bytes().splitlines()) <= MOST
    assert file.stat().st_size < 1 << 20


# -- a disk without room


@contextmanager
def no_room(beyond: int = 0) -> Iterator[None]:
    """No file of this process may be longer: write(2) does as on a full disk, with EFBIG for ENOSPC."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_keeps_findings_in_memory(file: Path) -> None:
    spool = Spool(file)
    with no_room():
        assert spool.add([numbered(1)])
        spool.add([numbered(2)])
        spool.receipted(["b/1"])
    assert list(spool.waiting) == ["b/2"]
    assert Spool(file).waiting == {}
    spool.add([numbered(3)])  # there is room again
    assert list(Spool(file).waiting) == ["b/2", "b/3"]


def test_a_disk_that_fills_up_within_a_write_costs_no_other_line(file: Path) -> None:
    spool = Spool(file)
    spool.add([numbered(1)])
    with no_room(file.stat().st_size + 50):
        spool.add([numbered(2)])
    assert list(spool.waiting) == ["b/1", "b/2"]
    spool.add([numbered(3)])
    assert list(Spool(file).waiting) == ["b/1", "b/2", "b/3"]


def test_a_full_disk_leaves_the_old_file_whole_when_it_is_rewritten(file: Path) -> None:
    spool = Spool(file)
    spool.add([numbered(n) for n in range(20)])
    with no_room():
        spool.receipted(["b/0"])
    # Told once more after a crash, which the controller knows by its moment: never lost.
    assert set(Spool(file).waiting) == {f"b/{n}" for n in range(20)}


def test_a_disk_that_fills_up_within_a_rewrite_leaves_the_old_file_whole(file: Path) -> None:
    spool = Spool(file)
    spool.add([numbered(n) for n in range(20)])
    with no_room(file.stat().st_size // 2):
        spool.receipted(["b/0"])
    assert set(Spool(file).waiting) == {f"b/{n}" for n in range(20)}


def test_a_folder_that_is_gone_costs_durability_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "gone/spool")
    assert spool.add([XID])
    spool.receipted(["b/1"])
    assert spool.waiting == {}


# -- any course of events


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "receipt", "restart"]), st.lists(st.integers(0, 30), max_size=8)),
        max_size=20,
    )
)
def test_the_file_says_what_waits(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[int]]]
) -> None:
    file = tmp_path_factory.mktemp("spool") / "spool"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "MOST", 20)
        spool, expected = Spool(file), set[str]()
        for what, numbers in steps:
            if what == "add":
                spool.add([numbered(n, Severity.WARNING if n % 2 else Severity.CRITICAL) for n in numbers])
                expected |= {f"b/{n}" for n in numbers}
            elif what == "receipt":
                spool.receipted(f"b/{n}" for n in numbers)
                expected -= {f"b/{n}" for n in numbers}
            else:
                spool = Spool(file)
            assert set(spool.waiting) <= expected
            assert len(spool.waiting) == min(20, len(spool.waiting))
            assert Spool(file).waiting == spool.waiting
            expected = set(spool.waiting)
