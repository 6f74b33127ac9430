"""The command line: exit statuses, help, options wherever they stand, what is said when nobody answers."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from slurm_health import __version__, rules, signing
from slurm_health.cli import main

ROOT = Path(__file__).parents[1]
EX_USAGE, EX_CONFIG = 64, 78


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of this machine's."""
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    monkeypatch.setenv("SLURM_HEALTH_CONFIG", str(empty))
    monkeypatch.delenv("SLURM_HEALTH_SANDBOX", raising=False)


def call(*words: str) -> Result:
    return CliRunner().invoke(main, [*words])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- help and usage


def commands(group: click.Group, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *words, name)


ALL = dict(commands(main))


def test_the_commands_are_the_promised_ones() -> None:
    assert {" ".join(words) for words in ALL} >= {
        *("scan", "status", "incidents", "job", "explain", "probes", "replay", "pause", "unpause"),
        *("incidents list", "incidents show", "incidents close", "config check", "config show"),
        *("node", "controller", "sandbox up", "sandbox inject", "sandbox clear", "sandbox status"),
        *("sandbox env", "sandbox run", "sandbox down", "sandbox demo", "sandbox machine"),
    }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_says_what_it_does_and_names_every_option(words: tuple[str, ...]) -> None:
    result = call(*words, "--help")
    assert result.exit_code == 0
    command = ALL[words]
    assert command.help
    assert command.help.splitlines()[0].split(":")[0].rstrip(".") in " ".join(result.output.split())
    for parameter in command.params:
        for name in parameter.opts:
            if parameter.param_type_name == "option":
                assert re.search(rf"^ +(-., )?{name}\b", result.output, re.MULTILINE), name
    assert call(*words, "-h").output == result.output


def test_help_of_the_whole_and_its_version() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert all(words[0] in result.output for words in ALL)
    assert call("--version").output == f"slurm-health, version {__version__}\n"


@pytest.mark.parametrize("words", [(), ("incidents",), ("config",), ("sandbox",)], ids=" ".join)
def test_a_list_of_commands_says_of_each_in_a_whole_line_what_it_does(words: tuple[str, ...]) -> None:
    assert "..." not in call(*words, "--help").output.partition("Commands:")[2]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("stauts",),
        ("scan", "--jsn"),
        ("scan", "now"),
        ("scan", "--root", "/nonexistent"),
        ("incidents", "shwo"),
        ("incidents", "show"),
        ("incidents", "show", "x"),
        ("incidents", "close"),
        ("incidents", "list", "--limit", "0"),
        ("job",),
        ("job", "x"),
        ("job", "\u00b2"),
        ("job", ""),
        ("explain", "NO_SUCH_CODE"),
        ("config",),
        ("config", "chekc"),
        ("replay",),
        ("replay", "--kmsg", "/nonexistent"),
        ("pause", "soon"),
        ("pause", "-1"),
        ("sandbox",),
        ("sandbox", "up", "--nodes", "0"),
        ("sandbox", "inject", "n1"),
    ],
    ids=" ".join,
)
def test_a_typo_never_reads_as_a_sick_node(words: tuple[str, ...]) -> None:
    result = call(*words)
    assert result.exit_code == EX_USAGE, result.output
    assert result.output
    assert "Traceback" not in result.output


# -- configuration


@pytest.mark.parametrize(
    "words",
    [
        ("config", "check"),
        ("config", "show"),
        ("scan",),
        ("status",),
        ("incidents",),
        ("incidents", "show", "1"),
        ("job", "7"),
        ("pause",),
        ("unpause",),
        ("node",),
        ("controller",),
    ],
    ids=" ".join,
)
def test_every_mistake_in_the_configuration_and_78(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text('mode = "x"\ncolour = 1\n[budget]\npercent = "all"\n')
    result = call(*words, "--config", str(file))
    assert result.exit_code == EX_CONFIG
    said = result.stderr.splitlines()
    assert len(said) == 3
    assert all(line.startswith(f"{file}: ") for line in said)
    missing = call(*words, "--config", str(tmp_path / "missing"))
    assert (missing.exit_code, missing.stderr) == (EX_CONFIG, f"{tmp_path}/missing: no such file\n")


def test_config_check_says_which_file_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "right.toml"
    file.write_text('mode = "drain"\n')
    assert call("config", "check", "--config", str(file)).output == f"{file}: no mistakes\n"
    monkeypatch.delenv("SLURM_HEALTH_CONFIG")
    monkeypatch.setattr("slurm_health.sources.DEFAULT_PATH", tmp_path / "absent/config.toml")
    result = call("config", "check")
    assert (result.exit_code, result.output) == (
        0,
        f"{tmp_path}/absent/config.toml does not exist: the defaults hold\n",
    )


def test_config_show_says_where_each_value_is_from(tmp_path: Path) -> None:
    file = tmp_path / "right.toml"
    file.write_text('mode = "drain"\n[[nodes]]\nmatch = "n1"\ngpus = 8\n')
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/more.toml").write_text("[budget]\npercent = 7\n")
    result = call("config", "show", "--config", str(file))
    assert result.exit_code == 0
    lines = {line.split(" = ")[0].strip(): line for line in result.output.splitlines()}
    assert lines["mode"].endswith(f"# {file}")
    assert lines["budget.percent"].endswith(f"# {tmp_path}/conf.d/more.toml")
    assert lines["budget.at_least"].endswith("# default")
    shown = json.loads(call("config", "show", "--json", "--config", str(file)).output)
    assert (shown["mode"], shown["budget"]["percent"], shown["nodes"][0]["gpus"]) == ("drain", 7, 8)


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("nosuch://x", 78, "[ledger] url: "),
        ("sqlite:///{folder}", 74, "unable to open database file (it and its folder must be writable"),
    ],
)
def test_a_ledger_that_cannot_be_used_is_said(tmp_path: Path, url: str, status: int, words: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[ledger]\nurl = "{url.format(folder=tmp_path)}"\n')
    result = call("controller", "--config", str(config))
    assert (result.exit_code, words in result.stderr) == (status, True)


# -- a controller that is away


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("incidents",),
        ("incidents", "list"),
        ("incidents", "show", "1"),
        ("job", "7"),
        ("pause",),
    ],
    ids=" ".join,
)
def test_nobody_answers(words: tuple[str, ...], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("k" * 64)
    port = free_port()
    config = tmp_path / "config.toml"
    config.write_text(f'controller = "127.0.0.1:{port}"\n[auth]\nmethod = "hmac"\nkey_file = "{key}"\n')
    result = call(*words, "--config", str(config))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert re.fullmatch(
        rf"slurm-health: the controller at 127\.0\.0\.1:{port} does not answer \(.*\); .*`controller =`.*\n",
        result.stderr,
    )


def test_a_question_that_cannot_be_signed(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[auth]\nmethod = "hmac"\nkey_file = "{tmp_path}/absent"\n')
    result = call("status", "--config", str(config))
    assert result.exit_code == 3
    assert result.stderr == (
        f"slurm-health: cannot sign the question: {tmp_path}/absent: No such file or directory\n"
    )


# -- a controller that answers


@dataclass
class Answering:
    """Answers every question with what is laid out, and notes what was asked."""

    config: Path
    address: str
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    answer: object = None
    status: int = 200


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Answering]:
    with answering(tmp_path) as said:
        yield said


@contextlib.contextmanager
def answering(folder: Path) -> Iterator[Answering]:
    key = folder / "key"
    key.touch(0o600)
    key.write_text("k" * 64)
    door = signing.Hmac(str(key))

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            door.signer(self.headers["Authorization"], signing.payload(self.command, self.path, body))
            said.asked.append((self.command, self.path, json.loads(body) if body else None))
            answer = said.answer if isinstance(said.answer, bytes) else json.dumps(said.answer).encode()
            self.send_response(said.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = respond  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        config = folder / "config.toml"
        address = f"127.0.0.1:{server.server_port}"
        config.write_text(f'controller = "{address}"\n[auth]\nmethod = "hmac"\nkey_file = "{key}"\n')
        said = Answering(config, address)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield said
        server.shutdown()
        thread.join()


STATUS: dict[str, Any] = {
    "controller": {"version": "1", "address": "head:6821", "mode": "drain"},
    "slurm": {"backend": "commands", "why": "no pyslurm", "trouble": ""},
    "ledger": {"url": "sqlite:////ledger.db", "trouble": "", "aside": ""},
    "worst": "ok",
    "nodes": 4,
    "reporting": 4,
    "silent": "",
    "drained": "",
    "pauses": [],
    "troubled": [],
}
STORY: dict[str, Any] = {
    "id": 3,
    "node": "n1",
    "code": "GPU_XID_79",
    "device": "0000:5d:00.0",
    "severity": "critical",
    "job": "now",
    "hardware": {"gpu": 3, "serial": "1650", "pci": "0000:5d:00.0"},
    "text": "GPU has fallen off the bus",
    "state": "open",
    "count": 1,
    "held": "",
    "since": "2026-01-02T03:04:05.000+00:00",
    "opened": "2026-01-02T03:04:05.100+00:00",
    "seen": "2026-01-02T03:04:05.100+00:00",
    "cleared": None,
    "acknowledged": None,
    "closed": None,
    "closed_by": "",
    "evidence": [{"at": "2026-01-02T03:04:05.000+00:00", "line": "NVRM: Xid (PCI:0000:5d:00): 79"}],
    "jobs": [],
    "actions": [],
    "seconds_to_drained": None,
    "seconds_to_running": None,
}


@pytest.mark.parametrize(
    ("worst", "trouble", "ledger", "expected"),
    [
        ("ok", "", "", 0),
        ("warning", "", "", 1),
        ("critical", "", "", 2),
        ("ok", "slurmctld is silent", "", 3),
        ("ok", "", "disk is full", 3),
    ],
)
def test_the_status_is_the_clusters(
    controller: Answering, worst: str, trouble: str, ledger: str, expected: int
) -> None:
    controller.answer = STATUS | {
        "worst": worst,
        "slurm": {"backend": "commands", "why": "no pyslurm", "trouble": trouble},
        "ledger": {"url": "sqlite:////ledger.db", "trouble": ledger, "aside": "ledger.db.corrupt-x"},
    }
    plain = call("status", "--config", str(controller.config))
    assert (plain.exit_code, plain.stderr) == (expected, "")
    assert all(
        words in plain.stdout for words in (trouble, ledger, "ledger.db.corrupt-x", "by commands: no pyslurm")
    )
    as_json = call("status", "--json", "--config", str(controller.config))
    states = {"controllers": [{"address": controller.address, "state": "acts"}]}
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (expected, controller.answer | states)
    assert controller.asked == [("GET", "/v1/status", None)] * 2


@pytest.mark.parametrize(
    "words",
    [
        ("incidents", "--json", "--config", "FILE"),
        ("incidents", "--json", "--config", "FILE", "list"),
        ("incidents", "list", "--json", "--config", "FILE"),
        ("incidents", "--json", "list", "--config", "FILE"),
        ("incidents", "--config", "FILE", "list", "--json"),
    ],
    ids=" ".join,
)
def test_options_stand_before_or_after_the_verb(controller: Answering, words: tuple[str, ...]) -> None:
    controller.answer = [STORY]
    result = call(*(str(controller.config) if word == "FILE" else word for word in words))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == [STORY]
    assert controller.asked == [("GET", "/v1/incidents?node=&all=0&limit=200", None)]


def test_incidents_for_people(controller: Answering) -> None:
    controller.answer = [STORY]
    at = ("--config", str(controller.config))
    listed = call("incidents", *at)
    assert "GPU_XID_79(0000:5d:00.0)" in listed.stdout
    shown = call("incidents", *at, "show", "3")
    assert "NVRM: Xid (PCI:0000:5d:00): 79" in shown.stdout
    assert "GPU 3, serial 1650, PCI 0000:5d:00.0" in shown.stdout
    assert json.loads(call("incidents", *at, "--json", "show", "3").stdout) == STORY
    controller.answer = []
    assert call("incidents", *at).stdout == "no incidents\n"
    none = call("incidents", "show", "4", *at)
    assert (none.exit_code, "there is no incident 4" in none.stderr) == (EX_USAGE, True)


def test_questions_are_asked_as_they_were_meant(controller: Answering) -> None:
    controller.answer = [STORY]
    at = ("--config", str(controller.config))
    call("incidents", "list", "--all", "--node", "n1&all=0 \u00fc", "--limit", "5", *at)
    call("incidents", "close", "3", *at)
    call("job", "4711_3", *at)
    controller.answer = {"done": "paused: n[1-2]"}
    paused = call("pause", "2h", "--nodes", "n[1-2]", "--reason", "swap", *at)
    assert paused.stdout == "paused: n[1-2]\n"
    call("pause", *at)
    call("unpause", *at)
    assert controller.asked == [
        ("GET", "/v1/incidents?node=n1%26all%3D0%20%C3%BC&all=1&limit=5", None),
        ("POST", "/v1/incidents/3/close", {}),
        ("GET", "/v1/jobs/4711_3", None),
        ("POST", "/v1/pause", {"nodes": "n[1-2]", "seconds": 7200.0, "reason": "swap"}),
        ("POST", "/v1/pause", {"nodes": "", "seconds": 0, "reason": ""}),
        ("POST", "/v1/unpause", {"nodes": ""}),
    ]


def test_a_job_that_nothing_touched(controller: Answering) -> None:
    controller.answer = []
    result = call("job", "4711", "--config", str(controller.config))
    assert (result.exit_code, result.stdout) == (0, "no incident touched job 4711, or it is not yours\n")
    assert json.loads(call("job", "4711", "--json", "--config", str(controller.config)).stdout) == []


@pytest.mark.parametrize(("status", "code"), [(400, EX_USAGE), (404, EX_USAGE), (403, 3), (500, 3), (503, 3)])
def test_a_refusal_is_passed_on_in_its_words(controller: Answering, status: int, code: int) -> None:
    controller.answer, controller.status = b"uid 1000 may not do this\n", status
    result = call("pause", "--config", str(controller.config))
    assert result.exit_code == code
    assert result.stderr.endswith("says: uid 1000 may not do this\n")


def test_an_answer_that_is_none_of_ours(controller: Answering) -> None:
    controller.answer = b"<html>It works!</html>"
    result = call("status", "--config", str(controller.config))
    assert result.exit_code == 3
    assert "Traceback" not in result.output
    assert "controller" in result.stderr


# -- this machine


def run(*words: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, with little in its environment."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "slurm_health", *words],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_scan_as_an_ordinary_user_on_a_machine_without_gpus() -> None:
    if list(Path("/dev").glob("nvidia*")) or Path("/sys/class/infiniband").exists():
        pytest.skip("this machine has what the test is about the absence of")
    # Nobody, who may only read where this Python is installed, be it in root's home.
    only_read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search", "--no-new-privs"]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *only_read]
    prefix = nobody if os.getuid() == 0 else []
    result = run("scan", "--json", prefix=prefix)
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert (result.returncode, said["verdict"], said["findings"]) == (0, "ok", [])
    assert set(said) == {"node", "verdict", "findings", "reports"}
    assert {report["probe"] for report in said["reports"]} >= {"kernel", "gpu", "infiniband", "nic"}
    for report in said["reports"]:
        assert set(report) == {"probe", "seconds", "readings", "error"}
    plain = run("scan", prefix=prefix)
    assert plain.returncode == 0
    assert "gpu" in plain.stdout.lower()


def test_scan_of_another_root_and_its_expectations(tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()
    (tmp_path / "config.toml").write_text('[[nodes]]\nmatch = "n1"\ninfiniband = { ports = 2 }\n')
    at = ("--root", str(tmp_path / "machine"), "--config", str(tmp_path / "config.toml"))
    expected = run("scan", "--json", "--node", "n1", *at)
    said = json.loads(expected.stdout)
    assert said["node"] == "n1"
    assert [found["code"] for found in said["findings"]] == ["IB_DEVICE_MISSING"]
    assert (expected.returncode, said["verdict"]) == (2, "critical")


def test_probes_and_explanations() -> None:
    listed = json.loads(call("probes", "--json").output)
    assert {probe["probe"] for probe in listed} >= {"kernel", "gpu", "infiniband", "nic"}
    assert all(set(probe) == {"probe", "about", "codes"} for probe in listed)
    codes = call("explain").output.split()
    assert "GPU_XID_79" in codes
    page = call("explain", "gpu_xid_79")
    assert page.exit_code == 0
    assert "GPU_XID_79" in page.output
    said = json.loads(call("explain", "--json").output)
    assert {row["code"] for row in said} == set(codes)
    assert all(set(row) == {"code", "severity", "job", "text", "seen"} for row in said)
    lost = [row for row in said if row["code"] == "GPU_XID_79"]
    assert {(row["severity"], row["job"]) for row in lost} == {("critical", "now")}
    assert json.loads(call("explain", "gpu_xid_79", "--json").output) == lost
    [new] = json.loads(call("explain", "GPU_XID_999", "--json").output)
    assert (new["code"], new["severity"]) == ("GPU_XID_999", "warning")
    assert call("explain", "GPU_XID", "--json").exit_code == 64


def test_replay(tmp_path: Path) -> None:
    file = tmp_path / "kmsg"
    file.write_text(
        "4,1,1000,-;usb 1-1: new device\n"
        "4,2,2000,-;NVRM: Xid (PCI:0000:5d:00): 79, pid=1234, name=python, GPU has fallen off the bus.\n"
        "12,3,3000,-;NVRM: Xid (PCI:0000:5d:00): 79, pid=1234, name=python, GPU has fallen off the bus.\n"
    )
    result = call("replay", "--kmsg", str(file), "--json")
    [event] = [json.loads(line) for line in result.stdout.splitlines()]
    assert set(event) == {"line", "code", "device", "severity", "xid", "pid", "text"}
    assert (event["line"], event["code"], event["device"], event["xid"], event["pid"]) == (
        2, "GPU_XID_79", "0000:5d:00.0", 79, 1234)  # fmt: skip
    assert call("replay", "--kmsg", str(file)).stderr == "1 hardware event\n"


# -- the daemons


def test_the_controller_says_why_it_cannot_start(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("k" * 64)
    config = tmp_path / "config.toml"

    def said(**changes: str) -> str:
        values = {"url": f"sqlite:///{tmp_path}/ledger.db", "key": str(key), "port": str(free_port())}
        values |= changes
        config.write_text(
            f'controller = "127.0.0.1:{values["port"]}"\n[ledger]\nurl = "{values["url"]}"\n'
            f'[auth]\nmethod = "hmac"\nkey_file = "{values["key"]}"\n[slurm]\nbin = "{tmp_path}"\n'
        )
        result = run("controller", "--config", str(config))
        assert result.returncode not in (0, 2)
        assert "Traceback" not in result.stderr
        return result.stderr

    assert "unable to open database file" in said(url=f"sqlite:///{tmp_path}")
    assert "absent: No such file" in said(key=f"{tmp_path}/absent")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"cannot serve on port {port}" in said(port=port)


def test_the_node_daemon_says_which_folder_it_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("node", "--run", str(tmp_path / "file/run"), "--state", str(tmp_path / "state"))
    assert result.returncode not in (0, 2)
    assert f"{tmp_path}/file/run" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupt_is_no_traceback(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    process = subprocess.Popen(
        [sys.executable, "-m", "slurm_health", "replay", "--kmsg", str(tmp_path / "kmsg")],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, (tmp_path / "kmsg").open("w"):
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=20) == 130


@pytest.mark.parametrize(("words", "out"), [(("explain",), "closed"), (("scan", "--every", "50ms"), "read")])
def test_a_closed_pipe_is_no_traceback_and_no_warning(words: tuple[str, ...], out: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "slurm_health", *words],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stderr
        if out == "read":
            assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=20) == 128 + signal.SIGPIPE


def test_a_mistake_of_ours_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "load", lambda _: 1 / 0)
    result = call("probes")
    assert (result.exit_code, "ZeroDivisionError" in result.stderr) == (70, True)


# -- several controllers


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Answering, Answering]]:
    """The first stands by, the second acts; the configuration of the first names both."""
    (tmp_path / "other").mkdir()
    with answering(tmp_path) as first, answering(tmp_path / "other") as second:
        first.config.write_text(
            f'controller = ["{first.address}", "{second.address}"]\n'
            f'[auth]\nmethod = "hmac"\nkey_file = "{tmp_path}/other/key"\n'
        )
        first.status, first.answer = 421, f"stands by: {second.address} acts\n".encode()
        yield first, second


def test_the_one_that_acts_is_asked(pair: tuple[Answering, Answering]) -> None:
    first, second = pair
    second.answer = {"done": "paused: n1"}
    result = call("pause", "--nodes", "n1", "--config", str(first.config))
    assert (result.exit_code, result.stdout) == (0, "paused: n1\n")
    assert first.asked == second.asked


def test_a_refusal_is_not_asked_for_twice(pair: tuple[Answering, Answering]) -> None:
    first, second = pair
    first.status, first.answer = 403, b"uid 1000 may not do this"
    result = call("pause", "--config", str(first.config))
    assert (result.exit_code, second.asked) == (3, [])


def test_status_says_who_acts_and_who_stands_by(pair: tuple[Answering, Answering]) -> None:
    first, second = pair
    second.answer = STATUS
    result = call("status", "--config", str(first.config))
    assert result.exit_code == 0
    assert f" {first.address} stands by\n" in result.stdout
    assert f" {second.address} acts\n" in result.stdout
    said = json.loads(call("status", "--json", "--config", str(first.config)).stdout)
    assert said["controllers"] == [
        {"address": first.address, "state": "stands by"},
        {"address": second.address, "state": "acts"},
    ]
    text = first.config.read_text()
    first.config.write_text(text.replace(first.address, f"127.0.0.1:{free_port()}"))
    result = call("status", "--config", str(first.config))
    assert (result.exit_code, "does not answer" in result.stdout) == (0, True)


def test_nobody_acts(pair: tuple[Answering, Answering]) -> None:
    first, second = pair
    words = "stands by: nobody acts, and slurmctld acts on ctl9"
    for one in pair:
        one.status, one.answer = 421, words.encode()
    for command in ("status", "incidents"):
        result = call(command, "--config", str(first.config))
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr == "".join(
            f"slurm-health: the controller at {one.address} says: {words}\n" for one in (first, second)
        )


@pytest.mark.parametrize("words", [("status",), ("env",), ("run", "true"), ("inject", "n1", "ib-down")])
def test_a_sandbox_that_is_not_there_is_said(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_HEALTH_SANDBOX", str(tmp_path / "none"))
    result = call("sandbox", *words)
    assert (result.exit_code, result.stdout) == (69, "")
    assert result.stderr == (
        f"Error: there is no sandbox in {tmp_path}/none: slurm-health sandbox up starts one\n"
    )
