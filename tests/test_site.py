"""A site's own probes: what they say becomes readings; what they do wrong costs them their readings."""

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from slurm_health import rules
from slurm_health.baseline import Expectations
from slurm_health.host import Host
from slurm_health.model import Reading
from slurm_health.probes.site import LARGEST, programs, running, site, stop
from slurm_health.sandbox.daemon import await_until
from slurm_health.sandbox.hardware import Machine
from slurm_health.scan import scan

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "probes.d"
    made.mkdir(mode=0o755)
    return made


def program(folder: Path, body: str, name: str = "own") -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def test_what_it_prints_are_readings(folder: Path) -> None:
    file = program(
        folder,
        """echo '{"name": "site.raid", "device": "md0", "value": true, "evidence": "[U_]"}'; echo
        echo '{"name": "site.count", "value": 255, "detail": "8bit"}'""",
    )
    assert site(file, 5) == (
        Reading("site.raid", "md0", True, "[U_]"),
        Reading("site.count", "", 255, detail="8bit"),
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo first >&2; echo why not >&2; exit 3", "own: exit status 3: why not"),
        ("kill -9 $$", "own: ended by signal 9"),
        ("echo '{}'; exit 1", "own: exit status 1"),
        ("echo hello", "line 1: "),
        ("echo '[]'", "line 1: not an object"),
        ("""echo '{"name": "gpu.lost", "value": true}'""", 'line 1: name: must begin with "site."'),
        ("""echo '{"name": "site.x"}'""", "value"),
        ("""echo '{"name": "site.x", "value": null}'""", "value"),
        ("""echo '{"name": "site.x", "value": [1]}'""", "value"),
        ("""echo '{"name": "site.x", "value": NaN}'""", "value"),
        ("""echo '{"name": "site.x", "value": 1, "device": 7}'""", "device"),
        ("""printf '{"name": "site.x", "value": 1, "device": "a\\\\u0007"}'""", "device"),
        ("""echo '{"name": "site.x", "value": 1, "moment": "a/1"}'""", "not an object of"),
        ("yes", f"prints more than {LARGEST >> 10} KiB"),
        ("yes >&2", f"prints more than {LARGEST >> 10} KiB"),
        ("yes '' | head -1001", "prints more than 1000 lines"),
        (r"printf '\377\376{'", "line 1: "),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_read(folder: Path, body: str, words: str) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        site(program(folder, body), 10)
    assert words in str(caught.value)


def alive(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}").exists()
        and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    )


def test_at_its_deadline_it_ends_with_all_its_children(folder: Path) -> None:
    note = folder / "pids"
    file = program(folder, f"(trap '' TERM; sleep 1000) & echo $! > {note}; trap '' TERM; sleep 1000")
    with pytest.raises(TimeoutError, match=r"ended after 0\.5 s"):
        site(file, 0.5)
    assert await_until(lambda: not alive(int(note.read_text())), 5)
    assert not running


def test_a_child_that_stays_is_not_waited_for(folder: Path) -> None:
    note = folder / "pids"
    file = program(folder, f"""sleep 1000 & echo $! > {note}; echo '{{"name": "site.x", "value": 1}}'""")
    assert [one.value for one in site(file, 60)] == [1]
    assert await_until(lambda: not alive(int(note.read_text())), 5)


def test_a_daemon_that_stops_leaves_none_behind(folder: Path) -> None:
    file = program(folder, "sleep 1000")
    errors: list[str] = []

    def run() -> None:
        try:
            site(file, 60)
        except ChildProcessError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    assert await_until(lambda: running, 10)
    stop()
    thread.join(10)
    assert errors == ["own: ended by signal 9"]


def test_it_has_no_input_and_a_plain_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SECRET", "x")
    words = """cat; printf '{"name": "site.x", "value": "%s", "device": "%s"}' "$PWD" "${SECRET-none}" """
    assert site(program(folder, words), 10) == (Reading("site.x", "none", "/"),)


# -- who may put one there


def test_only_programs_are_taken(folder: Path) -> None:
    assert programs(folder / "none") == []
    for name in ("b", "a-1", "a~", ".hidden", "a.rpmsave", "a.dpkg-old"):
        program(folder, "", name)
    program(folder, "", "README").chmod(0o644)
    assert [one.name for one in programs(folder)] == ["a-1", "b"]


def test_a_folder_that_others_can_write_is_refused(folder: Path) -> None:
    folder.chmod(0o775)
    with pytest.raises(PermissionError, match="can be written by others: chmod go-w it"):
        programs(folder)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_program_that_others_can_write_is_refused(folder: Path, mode: int) -> None:
    file = program(folder, f"touch {folder}/ran")
    file.chmod(mode)
    with pytest.raises(PermissionError, match="can be written by others"):
        site(file, 5)
    assert not (folder / "ran").exists()


def test_another_users_program_and_a_link_are_refused(folder: Path) -> None:
    file = program(folder, "")
    link = folder / "link"
    link.symlink_to(file)
    with pytest.raises(PermissionError, match="not a plain file"):
        site(link, 5)
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(file, 1000, 1000)
    with pytest.raises(PermissionError, match="belongs to uid 1000: chown root it"):
        site(file, 5)
    os.chown(folder, 1000, 1000)
    with pytest.raises(PermissionError, match="belongs to uid 1000"):
        programs(folder)


# -- the whole way


RULE = {"code": "SITE_RAID", "reading": "site.raid_degraded", "when": {"is": True}, "severity": "warning",
        "text": "an array runs without one of its disks", "hold": "2m"}  # fmt: skip


def test_a_scan_runs_them(folder: Path, tmp_path: Path) -> None:
    Machine.build(tmp_path / "hardware", "n1", gpus=0, ports=0, nics=0)
    program(folder, """echo '{"name": "site.raid_degraded", "device": "md0", "value": true}'""", "raid")
    program(folder, "echo no luck >&2; exit 1", "worse")
    began = time.monotonic()
    seen = scan(Host(tmp_path / "hardware"), Expectations(), rules.load([RULE]), "/none", folder=folder)
    assert [(one.code, one.device) for one in seen.findings] == [("SITE_RAID", "md0")]
    errors = {one.probe: one.error for one in seen.reports if one.error}
    assert "no luck" in errors["site/worse"]
    assert time.monotonic() - began < 60


def test_the_example_reads_mdstat(tmp_path: Path) -> None:
    mdstat = tmp_path / "mdstat"
    mdstat.write_text(
        "Personalities : [raid1] [raid6] [raid5] [raid4]\n"
        "md0 : active raid1 sdb1[1](F) sda1[0]\n      976630336 blocks super 1.2 [2/1] [U_]\n"
        "      bitmap: 3/8 pages [12KB], 65536KB chunk\n\n"
        "md127 : active raid5 sdd1[3] sdc1[1] sdb2[0]\n"
        "      1953260544 blocks super 1.2 level 5, 512k chunk, algorithm 2 [3/3] [UUU]\n\n"
        "md2 : active raid0 sde1[1] sdd2[0]\n      1000 blocks super 1.2 512k chunks\n\n"
        "unused devices: <none>\n"
    )
    raid = ROOT / "etc/probes.d/raid"
    body = f"exec {raid} {mdstat}"
    made = tmp_path / "probes.d"
    made.mkdir(mode=0o755)
    assert site(program(made, body), 10) == (
        Reading("site.raid_degraded", "md0", True, "[U_]"),
        Reading("site.raid_degraded", "md127", False, "[UUU]"),
    )
    gone = subprocess.run([raid, tmp_path / "none"], capture_output=True, text=True, check=False, timeout=10)
    assert gone.returncode != 0
    assert gone.stdout == ""
