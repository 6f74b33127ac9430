"""The verdict file: one printable line, replaced whole, fresh for as long as the daemon lives."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health.model import Severity
from slurm_health.sinks import verdict
from slurm_health.sinks.verdict import HEARTBEAT, VerdictFile, line, word


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the machine's uptime."""
    now = [1000.0]
    monkeypatch.setattr(verdict, "uptime", lambda: now[0])

    def to(moment: float) -> None:
        now[0] = moment

    return to


@given(st.sampled_from(["ok", "warn", "bad"]), st.text(), st.floats(0, 1e9))
def test_a_line_is_printable_ascii_whatever_the_text(state: str, text: str, at: float) -> None:
    assert re.fullmatch(r"(ok|warn|bad) \d+( [!-~]([ -~]*[!-~])?)?\n", line(state, text, at))
    assert line(state, text, at).split()[:2] == [state, str(int(at))]


def test_bad_is_a_decision_and_never_an_observation() -> None:
    assert word([Severity.CRITICAL], "") == "warn"
    assert word([Severity.WARNING], "") == "warn"
    assert word([Severity.OK], "") == "ok"
    assert word([], "") == "ok"
    assert word([], "", "GPU_XID_79() gone") == "warn"
    assert word([], "GPU_XID_79() gone", "GPU_HOT() too hot") == "bad"


def test_uptime_is_the_real_kernels(tmp_path: Path) -> None:
    before = int(float(Path("/proc/uptime").read_text().split()[0]))
    VerdictFile(tmp_path).write("ok", "")
    after = int(float(Path("/proc/uptime").read_text().split()[0]))
    state, uptime = (tmp_path / "verdict").read_text().split()
    assert state == "ok"
    assert before <= int(uptime) <= after


def test_a_change_is_written_at_once_and_else_a_heartbeat(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    file = VerdictFile(tmp_path)
    file.write("ok", "")
    clock(1000 + HEARTBEAT - 0.1)
    file.write("ok", "")
    assert file.path.read_text() == "ok 1000\n"
    file.write("warn", "a note")
    assert file.path.read_text() == "warn 1004 a note\n"
    file.write("warn", "another")
    assert file.path.read_text() == "warn 1004 another\n"
    clock(1004.9 + HEARTBEAT)
    file.write("warn", "another")
    assert file.path.read_text() == "warn 1009 another\n"
    clock(5)  # an uptime that went back is no reason to fall silent
    file.write("warn", "another")
    assert file.path.read_text() == "warn 5 another\n"
    assert HEARTBEAT < 10


def test_anybody_may_read_and_only_its_owner_write(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        VerdictFile(tmp_path).write("ok", "")
    finally:
        os.umask(before)
    assert (tmp_path / "verdict").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["verdict"]


def test_a_reader_sees_an_old_line_or_a_new_one(tmp_path: Path, clock: Callable[[float], None]) -> None:
    file = VerdictFile(tmp_path)
    file.write("ok", "")
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(file.path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(300):
            file.write("bad", "x" * 150)
            file.write("ok", "")
    finally:
        stop.set()
        reader.join()
    assert seen <= {"ok 1000\n", f"bad 1000 {'x' * 150}\n"}


def test_a_link_in_the_drafts_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / ".verdict.new").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        VerdictFile(tmp_path).write("ok", "")
    assert target.read_text() == "precious"


def test_a_failed_write_is_tried_again_and_leaves_the_old_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    file = VerdictFile(folder)
    file.write("ok", "")
    folder.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        file.write("bad", "x")
    assert file.said == ("ok", "")
    (tmp_path / "away").rename(folder)
    file.write("bad", "x")
    assert file.path.read_text().startswith("bad ")


FULL = """
import sys
from pathlib import Path
from slurm_health.sinks.verdict import VerdictFile

folder = Path(sys.argv[1])
file = VerdictFile(folder)
file.write("ok", "")
try:
    with open(folder / "ballast", "wb") as ballast:
        while True:
            ballast.write(b"x" * 4096)
            ballast.flush()
except OSError:
    pass
try:
    file.write("bad", "x" * 100)
except OSError as error:
    print("full", error.errno)
print((folder / "verdict").read_text().split()[0], sorted(path.name for path in folder.iterdir()))
(folder / "ballast").unlink()
file.write("bad", "x" * 100)
print((folder / "verdict").read_text().split()[0])
"""


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="only root can mount")
def test_a_full_tmpfs_keeps_the_old_line_and_no_draft(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FULL)
    (tmp_path / "run").mkdir()
    mount = 'mount -t tmpfs -o size=16k none "$1" && shift && exec "$@"'
    shown = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            mount,
            "sh",
            f"{tmp_path}/run",
            sys.executable,
            script,
            f"{tmp_path}/run",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if shown.returncode == 32:
        pytest.skip("mounts are not allowed here")
    assert shown.stderr == ""
    assert shown.stdout.splitlines() == ["full 28", "ok ['ballast', 'verdict']", "bad"]
