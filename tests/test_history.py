"""Recorded looks judged again, under the rules in force and under others."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from slurm_health import rules
from slurm_health.baseline import Expectations
from slurm_health.cli import main
from slurm_health.history import Course, compare, looks
from slurm_health.model import Severity
from slurm_health.sandbox.hardware import Machine

BOOK = rules.load()


def line(second: int, down: bool, boot: str = "b", events: tuple[int, ...] = (), node: str = "n1") -> str:
    port = [["state", "DOWN" if down else "ACTIVE"], ["phys_state", "Polling" if down else "LinkUp"],
            ["rate", 400], ["link_layer", "InfiniBand"], ["pci", "0000:9a:00.0"]]  # fmt: skip
    xid = {"name": "kernel.xid", "device": "0000:3b:00.0", "value": 79}
    log = [{**xid, "moment": f"{boot}/{n}", "at": 1.8e9 + n} for n in events]
    reports = [
        (
            "infiniband",
            [{"name": f"infiniband.{name}", "device": "mlx5_0/1", "value": v} for name, v in port],
        ),
        ("kernel", log),
    ]
    look = {
        "at": f"2027-01-15T08:{second // 60:02d}:{second % 60:02d}+00:00",
        "boot": boot,
        "node": node,
        "verdict": "ok",
        "findings": [],
        "reports": [
            {"probe": probe, "seconds": 0.1, "readings": readings, "error": ""} for probe, readings in reports
        ],
    }
    return json.dumps(look)


HISTORY = [line(second, down=60 <= second < 120) for second in range(0, 240, 15)]


def nothing(node: str) -> Expectations:
    return Expectations()


def call(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_findings_open_and_close_as_the_daemon_would_have_it() -> None:
    course = Course(BOOK, Expectations())
    seen = [
        (round(change.at - 1.8e9), change.what, change.finding.code)
        for look in looks(HISTORY)
        for change in course.see(look)
    ]
    assert seen == [(75, "opened", "IB_PORT_DOWN"), (150, "closed", "IB_PORT_DOWN")]


def test_an_event_of_the_whole_boot_happens_once() -> None:
    course = Course(BOOK, Expectations())
    lines = [line(0, False, events=(5,)), line(15, False, events=(5, 14)), line(30, False, "c", events=(5,))]
    seen = [(change.at - 1.8e9, change.what) for look in looks(lines) for change in course.see(look)]
    assert seen == [(5, "happened"), (14, "happened"), (5, "happened")]


def test_other_rules_side_by_side() -> None:
    patient = rules.load([{"code": "IB_PORT_DOWN", "reading": "infiniband.down", "hold": "10m"}])
    mild = rules.load([{"code": "IB_PORT_DOWN", "severity": "warning"}])
    both = [by for _, _, by in compare(looks(HISTORY), BOOK, BOOK, nothing)]
    assert both == ["both", "both"]
    lost = [(change.what, by) for _, change, by in compare(looks(HISTORY), BOOK, patient, nothing)]
    assert lost == [("opened", "now"), ("closed", "now")]
    other = [(change.what, by) for _, change, by in compare(looks(HISTORY), BOOK, mild, nothing)]
    assert sorted(other) == [("closed", "new"), ("closed", "now"), ("opened", "new"), ("opened", "now")]


def test_nodes_do_not_mix() -> None:
    mixed = [
        one for second in range(0, 60, 10) for one in (line(second, False), line(second, True, node="n2"))
    ]
    seen = {(node, change.finding.code, change.finding.severity) for node, change, _ in
            compare(looks(mixed), BOOK, BOOK, nothing)}  # fmt: skip
    assert seen == {("n2", "IB_PORT_DOWN", Severity.WARNING)}  # which was never seen to be up


@pytest.mark.parametrize(
    "bad", ["{", "[]", "{}", '{"node": "n1"}', line(0, False).replace('"value"', '"worth"')]
)
def test_what_is_no_history_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match=r"line 2 is no look of `scan --json --every 15s`"):
        list(looks([HISTORY[0], bad]))


def test_the_command(tmp_path: Path) -> None:
    file, new = tmp_path / "history", tmp_path / "new.toml"
    file.write_text("\n".join(HISTORY) + "\n")
    new.write_text('[[rule]]\ncode = "IB_PORT_DOWN"\nreading = "infiniband.down"\nhold = "10m"\n')
    plain = call("replay", str(file))
    assert plain.exit_code == 0, plain.output
    assert [one.split()[2] for one in plain.output.splitlines()] == ["opened", "closed"]
    compared = call("replay", str(file), "--rules", str(new), "--json")
    assert [json.loads(one)["rules"] for one in compared.output.splitlines()] == ["now", "now"]
    assert "only with the rules in force" in call("replay", str(file), "--rules", str(new)).output
    new.write_text('[[rule]]\ncode = "IB_PORT_DOWN"\nhold = "soon"\n')
    assert call("replay", str(file), "--rules", str(new)).exit_code == 78
    assert call("replay").exit_code == 64
    file.write_text("nothing\n")
    assert "line 1 is no look" in call("replay", str(file)).output


def test_a_scan_again_and_again_is_a_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.build(tmp_path / "hardware", "n1", gpus=0, ports=1, nics=1)
    machine.inject("kmsg", text="NVRM: Xid (PCI:0000:18:00): 13, pid=1, name=a, Graphics Exception: x")
    waits: list[float] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        if seconds < 5:
            sleep(seconds)
        else:
            waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", pause)
    monkeypatch.setenv("SLURM_HEALTH_NVML_LIBRARY", "/none")
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(tmp_path / "hardware/nvml"))
    done = call("scan", "--json", "--every", "15s", "--root", str(tmp_path / "hardware"))
    history = list(looks(done.output.splitlines()[:2]))
    assert [one.boot for one in history] == [history[0].boot] * 2
    course = Course(BOOK, Expectations())
    assert [change.finding.code for look in history for change in course.see(look)] == ["GPU_XID_13"]
    assert call("scan", "--every", "often").exit_code != 0
