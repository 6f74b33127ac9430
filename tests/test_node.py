"""The node's daemon on a fake machine: what it says, when, and what it survives.

The controller is played by a small HTTP server; NVML by the fake library, where a compiler is installed.
"""

import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from test_link import Controller, wait

from slurm_health import config, rules, wire
from slurm_health.host import uptime
from slurm_health.model import Card, Finding, Reading, Report, Severity, Urgency
from slurm_health.node import ALONE, BEAT, SAVE, STUCK, NodeDaemon
from slurm_health.sandbox.daemon import await_until, identity
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.library import build
from slurm_health.sinks import verdict as verdict_module
from slurm_health.wire import Decision

ROOT = Path(__file__).parents[1]
QUICK = '[probes]\nlinks_every = "100ms"\ngpu_every = "200ms"\ngpu_deadline = "500ms"\n'
WITHOUT_GPU = "gpu = false\n"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler")
    return build(tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1")


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    played = Controller(tmp_path / "key")
    played.start()
    yield played
    played.stop()


@dataclass
class Daemon:
    """`slurm-health node` as a process, on a machine of 2 GPUs, an InfiniBand and an Ethernet port."""

    folder: Path
    controller: Controller
    library: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    prefix: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.machine = Machine.build(self.folder / "hardware", "n1", gpus=2, ports=1, nics=1)
        self.run, self.state = self.folder / "run", self.folder / "state"
        self.log = self.folder / "log"
        gpu = "" if self.library else WITHOUT_GPU
        (self.folder / "config.toml").write_text(self.controller.config + QUICK + gpu)

    def start(self) -> None:
        words = ["node", "--config", f"{self.folder}/config.toml", "--name", "n1", "--root",
                 f"{self.folder}/hardware", "--run", str(self.run), "--state", str(self.state)]  # fmt: skip
        env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        env["SLURM_HEALTH_FAKE_NVML"] = f"{self.folder}/hardware/nvml"
        if self.library:
            env["SLURM_HEALTH_NVML_LIBRARY"] = str(self.library)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "slurm_health", *words], env=env, stdout=log, stderr=log
            )

    def kill(self, number: int = signal.SIGKILL, patience: float = 20.0) -> int:
        assert self.process
        self.process.send_signal(number)
        code = self.process.wait(patience)
        self.process = None
        return code

    @property
    def verdict(self) -> str:
        """The verdict's line, without its uptime."""
        try:
            state, _, rest = (self.run / "verdict").read_text().rstrip("\n").partition(" ")
        except FileNotFoundError:
            return ""
        return f"{state} {rest.partition(' ')[2]}".rstrip()

    def wait_for(self, condition: str) -> None:
        assert await_until(lambda: re.fullmatch(condition, self.verdict), 30), self.words()

    def words(self) -> str:
        return f"{self.verdict}\n{self.log.read_text()}"


@pytest.fixture
def daemon(tmp_path: Path, controller: Controller, library: Path) -> Iterator[Daemon]:
    it = Daemon(tmp_path, controller, library)
    yield it
    if it.process:
        it.kill()


@pytest.fixture
def blind(tmp_path: Path, controller: Controller) -> Iterator[Daemon]:
    """One without NVML, which starts faster."""
    it = Daemon(tmp_path, controller)
    yield it
    if it.process:
        it.kill()


# -- a life


def test_a_fault_from_the_first_line_to_the_end(daemon: Daemon, controller: Controller) -> None:
    daemon.start()
    daemon.wait_for("ok")  # the first pass is done
    wait(lambda: controller.reports)
    first = controller.reports[0]
    assert (first.node, first.opened, first.standing) == ("n1", (), ())
    boot = (daemon.machine.folder / "proc/sys/kernel/random/boot_id").read_text().strip()
    assert first.boot == boot
    assert (daemon.run.stat().st_mode & 0o777, (daemon.run / "jobs").stat().st_mode & 0o777) == (0o755, 0o755)

    daemon.machine.inject("xid", gpu=1, code=79)
    wait(lambda: "GPU_XID_79" in controller.codes)
    found = next(found for report in controller.reports for found in report.opened)
    assert (found.severity, found.job, found.lasting) == (Severity.CRITICAL, Urgency.NOW, False)
    assert found.moment.startswith(f"{boot}/")
    assert found.evidence.startswith("NVRM: Xid (PCI:0000:2a:00): 79")
    assert daemon.verdict == "ok"  # that it is bad is not for the node to say

    controller.decide(Decision("GPU_XID_79(0000:2a:00.0) gone", mode="drain"))
    daemon.wait_for(r"bad GPU_XID_79\(0000:2a:00\.0\) gone")
    controller.decide(Decision(note="paused by alice"))
    daemon.wait_for("warn paused by alice")
    controller.decide(Decision())
    daemon.wait_for("ok")

    assert daemon.kill(signal.SIGTERM, patience=5) == 0
    assert not (daemon.run / "gpu-worker.pid").exists()
    assert (daemon.state / "spool").read_text() == ""


def test_nvml_is_asked_at_once_what_a_memory_error_left_behind(
    daemon: Daemon, controller: Controller
) -> None:
    slow = (daemon.folder / "config.toml").read_text().replace('gpu_every = "200ms"', 'gpu_every = "1h"')
    (daemon.folder / "config.toml").write_text(slow)
    daemon.start()
    daemon.wait_for("ok")
    daemon.machine.inject("remap-pending", gpu=1)
    daemon.machine.inject("xid", gpu=1, code=63)
    wait(lambda: {"GPU_XID_63", "GPU_REMAP_PENDING"} <= set(controller.codes))
    found = {one.code: one for report in controller.reports for one in report.opened}
    assert (found["GPU_XID_63"].severity, found["GPU_REMAP_PENDING"].severity) == (
        Severity.WARNING,
        Severity.CRITICAL,
    )


def test_each_probe_looks_again_when_what_it_saw_has_lasted(daemon: Daemon, controller: Controller) -> None:
    program = daemon.folder / "probes.d/tape"
    program.parent.mkdir()
    program.write_text("""#!/bin/sh\necho '{"name": "site.tape", "value": false}'\n""")
    program.chmod(0o755)
    seldom = "".join(f'{what}_every = "1h"\n' for what in ("gpu", "host", "counters", "site"))
    (daemon.folder / "config.toml").write_text(
        f"""{controller.config}[probes]\n{seldom}folder = "{program.parent}"
        [[nodes]]\nmatch = "n1"\nservices = ["munge"]\ninfiniband = {{ gbps = 400 }}
        [[rule]]\ncode = "SITE_TAPE"\nreading = "site.tape"\nwhen = {{ is = false }}
        severity = "warning"\ntext = "no tape"\nhold = "1s"\n"""
        + "".join(
            f'[[rule]]\ncode = "{code}"\nhold = "1s"\n'
            for code in ("GPU_HOT", "HOST_SERVICE", "IB_PORT_SLOW")
        )
    )
    daemon.machine.inject("hot", code=94)
    daemon.machine.inject("service-stopped")
    daemon.machine.inject("ib-slow")
    daemon.start()
    wait(lambda: {"GPU_HOT", "HOST_SERVICE", "IB_PORT_SLOW", "SITE_TAPE"} <= set(controller.codes))


def test_ranks_are_remembered_when_they_and_their_gpu_are_gone(
    daemon: Daemon, controller: Controller
) -> None:
    (daemon.run / "jobs").mkdir(parents=True)
    (daemon.run / "jobs/7.0").write_text("job=7\nuid=1000\ngpus=1\nrestarts=0\nuptime=1\n")
    daemon.machine.inject("process", gpu=1, code=77, text="SLURM_JOB_ID=7 SLURM_PROCID=37")
    daemon.start()
    daemon.wait_for("ok")

    def ranks(code: str) -> object:
        """What the report said that brought this code."""
        for report in controller.reports:
            if any(found.code == code for found in report.opened):
                return [dict(card.ranks) for card in report.cards]
        return None

    def seen() -> bool:  # a report goes out only with news
        daemon.machine.inject("xid", gpu=0, code=79)
        wait(lambda: ranks("GPU_XID_79"))
        return dict(controller.reports[-1].cards[0].ranks) == {"0000:2a:00.0": (37,)}

    assert await_until(seen, 30)
    daemon.machine.clear()  # the process ends ...
    daemon.machine.inject("gpu-gone", gpu=1)  # ... for its GPU is gone
    wait(lambda: ranks("GPU_MISSING"))
    assert ranks("GPU_MISSING") == [{"0000:2a:00.0": (37,)}]


def test_a_process_that_outlives_its_job_is_told_with_whose_it_is_until_it_ends(
    daemon: Daemon, controller: Controller
) -> None:
    with (daemon.folder / "config.toml").open("a") as config:
        config.write('[[rule]]\ncode = "GPU_LEFTOVER_PROCESS"\nhold = "0s"\nclear = "0s"\n')
    card = daemon.run / "jobs/7.0"
    card.parent.mkdir(parents=True)
    card.write_text("job=7\nuid=1000\ngpus=1\nrestarts=0\nuptime=1\n")
    daemon.machine.inject("process", gpu=1, code=77, text="SLURM_JOB_ID=7 SLURM_PROCID=37")
    daemon.start()
    daemon.wait_for("ok")
    with card.open("a") as file:
        file.write(f"ended={int(uptime())}\n")
    wait(lambda: "GPU_LEFTOVER_PROCESS" in controller.codes)
    found = next(one for report in controller.reports for one in report.opened)
    assert (found.device, found.severity, found.job) == ("0000:2a:00.0", Severity.WARNING, Urgency.NONE)
    assert found.evidence == "pid 77 (python3) of uid 1000, job 7"
    assert found.hardware["gpu"] == 1
    daemon.machine.clear()
    daemon.wait_for("ok")


def test_a_gpu_that_was_swapped_while_the_node_was_off_is_on_record(
    daemon: Daemon, controller: Controller
) -> None:
    daemon.start()
    daemon.wait_for("ok")
    daemon.kill(signal.SIGTERM)
    facts = daemon.machine.folder / "machine.json"
    old = json.loads(facts.read_text())["gpus"][1]
    facts.write_text(facts.read_text().replace(old["uuid"], "GPU-other").replace(old["serial"], "1660"))
    daemon.machine.clear()
    (daemon.machine.folder / "proc/sys/kernel/random/boot_id").write_text("another boot\n")
    daemon.start()
    wait(lambda: "GPU_DRIFT" in controller.codes)
    found = next(one for report in controller.reports for one in report.opened)
    assert (found.device, found.severity, found.job) == ("0000:2a:00.0", Severity.WARNING, Urgency.NONE)
    assert found.evidence == f"{old['uuid']} (serial {old['serial']}) was here, GPU-other is"
    assert (found.hardware["uuid"], found.hardware["serial"]) == ("GPU-other", "1660")
    assert controller.codes.count("GPU_DRIFT") == 1


def test_a_hung_driver_is_a_finding_and_not_a_hung_daemon(daemon: Daemon, controller: Controller) -> None:
    daemon.machine.inject("driver-hang")
    daemon.start()
    wait(lambda: "GPU_DRIVER_HUNG" in controller.codes)
    daemon.wait_for("warn GPU_DRIVER_HUNG.*")
    pid = int((daemon.run / "gpu-worker.pid").read_text().split()[0])
    assert daemon.kill(signal.SIGTERM, patience=5) == 0
    assert await_until(lambda: identity(pid) is None, 10)


# -- a controller that is away


def test_what_was_found_alone_is_told_later(blind: Daemon, controller: Controller) -> None:
    controller.stop()
    blind.start()
    blind.wait_for("ok")
    blind.machine.inject("xid", gpu=0, code=79)
    spool = blind.state / "spool"
    wait(lambda: spool.exists() and "GPU_XID_79" in spool.read_text())
    blind.kill()  # and it outlives the daemon
    controller.start()
    blind.start()
    wait(lambda: "GPU_XID_79" in controller.codes)
    wait(lambda: spool.read_text() == "")


def test_a_refusal_that_was_not_refused_is_told_at_once(blind: Daemon, controller: Controller) -> None:
    blind.start()
    wait(lambda: controller.reports)
    uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    card = blind.run / "jobs/7.0"
    card.write_text(f"job=7\nuid=1000\ngpus=\nrestarts=0\nuptime={uptime}\nrefused={uptime}\n")
    wait(lambda: any(card.refused for report in controller.reports for card in report.cards))
    [told] = controller.reports[-1].cards
    assert (told.job, told.uid, told.devices) == (7, 1000, ())
    assert abs(told.refused - time.time()) < 600


def test_a_job_that_slipped_in_before_the_verdict_is_told_at_once(
    blind: Daemon, controller: Controller
) -> None:
    controller.decide(Decision("GPU_XID_79"))
    blind.start()
    wait(lambda: blind.verdict.startswith("bad"))
    uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    (blind.run / "jobs/7.0").write_text(f"job=7\nuid=1000\ngpus=0\nrestarts=0\nuptime={uptime}\n")
    wait(lambda: [card.job for card in controller.reports[-1].cards] == [7])


# -- kills


def told(controller: Controller, code: int) -> bool:
    return f"GPU_XID_{code}" in controller.codes


def test_nothing_is_lost_or_told_twice_over_kills_at_any_moment(
    blind: Daemon, controller: Controller
) -> None:
    chance = random.Random(4711)
    codes = [79, 48, 95, 94, 64, 74]
    for code in codes:
        blind.start()
        await_until(lambda: blind.verdict, chance.random())  # at any moment, also before it is ready
        blind.machine.inject("xid", gpu=0, code=code)
        await_until(partial(told, controller, code), chance.random() * 0.3)
        blind.kill()
    blind.start()
    wait(lambda: set(controller.codes) >= {f"GPU_XID_{code}" for code in codes})
    wait(lambda: (blind.state / "spool").read_text() == "")
    found = {(one.code, one.moment) for report in controller.reports for one in report.opened}
    seen = [code for code, _ in found]
    assert len(seen) == len(set(seen))  # one occurrence each, however often it was told
    blind.kill()
    many = len(controller.reports)
    (blind.state / "memory.json").unlink()  # which knows for a minute what was just told: not enough
    blind.start()
    wait(lambda: len(controller.reports) > many)
    blind.machine.inject("xid", gpu=1, code=79)
    wait(lambda: [one.device for report in controller.reports[many:] for one in report.opened])
    news = [one for report in controller.reports[many:] for one in report.opened]
    assert {(one.code, one.device) for one in news} == {("GPU_XID_79", "0000:2a:00.0")}


def test_a_full_tmpfs_does_not_end_the_daemon(blind: Daemon, controller: Controller) -> None:
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can mount")
    mount = 'mount -t tmpfs -o size=32k none "$1" || exit 32; shift; exec "$@"'
    blind.run.mkdir()
    blind.prefix = ["unshare", "-m", "sh", "-c", mount, "sh", str(blind.run)]
    blind.start()
    assert blind.process
    inside = Path(f"/proc/{blind.process.pid}/root{blind.run}")
    wait(lambda: controller.reports or (blind.process and blind.process.poll() is not None))
    if blind.process.poll() == 32:
        blind.process = None
        pytest.skip("mounts are not allowed here")
    wait(lambda: (inside / "verdict").exists())
    with (inside / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(b"x" * 4096)
    controller.decide(Decision("GPU_XID_79() gone"))
    wait(lambda: "verdict" in blind.log.read_text() and "No space left" in blind.log.read_text())
    blind.machine.inject("xid", gpu=0, code=79)
    wait(lambda: "GPU_XID_79" in controller.codes)  # it goes on observing
    assert (inside / "verdict").read_text().startswith("ok ")
    (inside / "ballast").unlink()
    wait(lambda: (inside / "verdict").read_text().startswith("bad "))
    assert blind.kill(signal.SIGTERM, patience=5) == 0


# -- within the process, where time can be set


CRITICAL = Finding("GPU_XID_79", Severity.CRITICAL, "0000:5d:00.0", "gone", moment="b/1", since=1.0)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[NodeDaemon]:
    """A daemon that is not running: its parts are called one by one."""
    yield from daemon_in(tmp_path, "")


@pytest.fixture
def wary(tmp_path: Path) -> Iterator[NodeDaemon]:
    """One of a site where a node that is alone refuses jobs."""
    yield from daemon_in(tmp_path, 'when_alone = "refuse"\n')


def daemon_in(folder: Path, more: str) -> Iterator[NodeDaemon]:
    hardware = folder / "hardware"
    if not hardware.exists():
        Machine.build(hardware, "n1", gpus=2, ports=1, nics=1)
    (folder / "config.toml").write_text(more + QUICK + WITHOUT_GPU)
    site = config.load(str(folder / "config.toml"))
    made = NodeDaemon(site, "n1", str(hardware), folder / "run", folder / "state")
    made.unseen.clear()
    made.link.last_heard = time.monotonic()
    yield made
    if made.log:
        made.log.close()
    for number in (made.wake_read, made.wake_write):
        os.close(number)


def said(daemon: NodeDaemon) -> str:
    daemon._publish()
    line = daemon.verdict.path.read_text().split(maxsplit=2)
    return " ".join([line[0], *line[2:]]).strip()


def test_bad_is_the_controllers_word_and_never_the_nodes_own(here: NodeDaemon) -> None:
    here.standing = (CRITICAL,)
    assert said(here) == "warn GPU_XID_79(0000:5d:00.0) gone"
    here.decision = Decision("by the controller's will")
    assert said(here) == "bad by the controller's will"
    here.standing = ()
    assert said(here) == "bad by the controller's will"
    here.decision = Decision()
    assert said(here) == "ok"


def test_a_decision_lapses_with_the_controllers_silence(here: NodeDaemon) -> None:
    here.decision = Decision("by the controller's will")
    here.link.last_heard -= ALONE - 5
    assert said(here).startswith("bad")
    here.link.last_heard -= 10
    assert said(here) == "ok"
    here.standing = (CRITICAL,)
    assert said(here) == "warn GPU_XID_79(0000:5d:00.0) gone"
    here.link.last_heard = time.monotonic()
    assert said(here).startswith("bad")


def test_a_wary_node_refuses_alone_and_only_for_what_is_critical(wary: NodeDaemon) -> None:
    wary.standing = (CRITICAL,)
    assert said(wary).startswith("warn")  # the controller is heard and has not refused
    wary.link.last_heard -= ALONE + 5
    assert said(wary) == "bad GPU_XID_79(0000:5d:00.0) gone"
    wary.standing = (Finding("NIC_SLOW", Severity.WARNING, "eth0", "slow", moment="b/2"),)
    assert said(wary) == "warn NIC_SLOW(eth0) slow"
    wary.standing = ()
    assert said(wary) == "ok"


def test_before_the_first_pass_nothing_is_known(here: NodeDaemon) -> None:
    here.unseen = {"nic"}
    here._publish()
    assert not here.verdict.path.exists()
    here.decision = Decision("by the controller's will")
    here._publish()
    assert here.verdict.path.read_text().startswith("bad ")


def test_the_heartbeat_goes_on_while_nothing_changes(
    here: NodeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(verdict_module, "uptime", lambda: now)
    written = set()
    for _ in range(20):
        here._beat(time.monotonic())
        written.add(int(here.verdict.path.read_text().split()[1]))
        now += BEAT
    stamps = sorted(written)
    assert stamps[-1] - stamps[0] >= 50
    assert max(later - earlier for earlier, later in itertools.pairwise(stamps)) <= 10


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 100, b"{", b"[]", b'{"watch": 7}', b"\xff\xfe", b"b 1 2 3"])
def test_rubbish_in_the_state_folder_costs_memory_alone(tmp_path: Path, rubbish: bytes) -> None:
    state = tmp_path / "state"
    state.mkdir()
    for name in ("memory.json", "baseline.json", "cursor", "spool"):
        (state / name).write_bytes(rubbish)
    for made in daemon_in(tmp_path, ""):
        assert said(made) == "ok"
        assert made.compose().opened == ()


def test_a_state_folder_without_room_is_survived(here: NodeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    for name in (".memory.json", ".cursor", ".baseline.json"):
        (here.state.folder / name).mkdir()
    here._remember()
    here._judge([Reading("kernel.xid", "0000:5d:00.0", 79, "Xid 79", "b/9", time.time())])
    assert [one.code for one in here.compose().opened] == ["GPU_XID_79"]
    assert "Is a directory" in caplog.text


def test_why_a_probe_is_blind_is_said_once_and_until_it_sees(
    here: NodeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        here._report(Report("nic", error="OSError: a line\nfeed"))
    assert here.compose().blind == {"nic": "OSError: a line feed"}
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1
    here._report(Report("nic"))
    assert here.compose().blind == {}


def test_no_name_that_a_user_chose_keeps_a_report_from_being_heard(
    blind: Daemon, controller: Controller
) -> None:
    blind.start()
    wait(lambda: controller.reports)
    line = "NVRM: Xid (PCI:0000:18:00): 13, pid=4711, name={}, Graphics Exception: x"
    for name in ("a\u200bb", "\u0085", "\u202egpj", "\ue000", "\U000e0001"):
        blind.machine.inject("kmsg", text=line.format(name))
    wait(lambda: "GPU_XID_13" in controller.codes)
    assert all(found.evidence.isprintable() for one in controller.reports for found in one.opened)


def test_a_report_is_what_the_wire_takes(here: NodeDaemon) -> None:
    evidence = "a\x1b[2J\ud800" + "x" * 2000
    here._judge([Reading("kernel.xid", "0000:5d:00.0", 79, evidence, "b/9", time.time())])
    report = here.compose()
    assert wire.node_report(wire.encode(report)).opened[0].code == "GPU_XID_79"


def test_more_findings_than_one_report_holds_are_told_in_turn(here: NodeDaemon) -> None:
    many = wire.MANY + 100
    here.spool.add([
        Finding("GPU_XID_79", Severity.CRITICAL, f"d{n}", "gone", moment=f"b/{n}") for n in range(many)
    ])  # fmt: skip
    first = here.compose()
    assert len(first.opened) == wire.MANY
    here.link.news.clear()
    here._receipt(first)
    assert here.link.news.is_set()
    second = here.compose()
    assert len(second.opened) == 100
    assert not {one.moment for one in first.opened} & {one.moment for one in second.opened}
    here.link.news.clear()
    here._receipt(second)
    assert not here.link.news.is_set()
    assert here.compose().opened == ()


def test_what_stands_and_is_unknown_to_the_controller_is_told_again(here: NodeDaemon) -> None:
    here.epoch -= 60
    here._judge([Reading("infiniband.down", "mlx5_0/1", True, "state DOWN")])
    here.epoch += 60
    here._judge([Reading("infiniband.down", "mlx5_0/1", True, "state DOWN")])
    told = here.compose()
    [stands] = told.opened
    here._receipt(told)
    here.link.news.clear()
    here._receipt(here.compose(), frozenset({"another"}))  # one that has cleared meanwhile
    assert here.compose().opened == ()
    here._receipt(here.compose(), frozenset({stands.moment}))
    assert here.link.news.is_set()
    [again] = here.compose().opened
    assert replace(again, since=0.0) == replace(stands, since=0.0)
    assert abs(again.since - stands.since) < 1
    assert stands.moment in here.spool.path.read_text()
    here._receipt(here.compose())
    assert here.compose().opened == ()


def test_what_stands_is_not_news_after_a_restart(tmp_path: Path) -> None:
    port = Reading("infiniband.down", "mlx5_0/1", True, "state DOWN")
    for made in daemon_in(tmp_path, ""):
        made.epoch -= 60
        made._judge([port])
        made.epoch += 60
        made._judge([port])
        [stands] = made.standing
        assert [one.moment for one in made.compose().opened] == [stands.moment]
        made._receipt(made.compose())
        made._remember()
    for again in daemon_in(tmp_path, ""):
        assert [one.moment for one in again.standing] == [stands.moment]
        again._judge([port])
        report = again.compose()
        assert (report.opened, report.standing) == ((), (stands.moment,))
        assert json.loads((tmp_path / "state/memory.json").read_text())


def test_whose_job_an_event_was_is_told_to_the_rules(
    here: NodeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"reading": "kernel.xid", "when": {"is": 13}, "severity": "critical", "text": "in two jobs",
           "times": 2, "within": "1h", "distinct": "job"}  # fmt: skip
    here.book = rules.load([{"code": "GPU_XID_13", **row}])
    gpu, at = "0000:18:00.0", time.time() - 100
    jobs = [Card(7, 0, 1000, (gpu,), at - 10, ended=at + 5), Card(8, 0, 1000, (gpu,), at + 10)]
    monkeypatch.setattr(here.tenants, "look", lambda now: jobs)
    assert here.log
    log = here.host.path("dev/kmsg")
    line = "4,{n},{us},-;NVRM: Xid (PCI:0000:18:00): 13, pid=1, name=a, x\n"
    clock = here.log.clock()
    with log.open("a") as file:
        for number, then in ((1, 100.0), (2, 97.0), (3, 80.0)):  # two of the one job, one of the other
            file.write(line.format(n=number, us=int((clock - then) * 1e6)))
    here._kernel()
    found = {one.moment.rpartition("/")[2]: one.severity for one in here.compose().opened}
    assert found == {"1": Severity.WARNING, "3": Severity.CRITICAL}


def test_what_counts_up_is_saved_now_and_then(here: NodeDaemon) -> None:
    row = {"reading": "x.count", "when": {"rises": 9}, "within": "1h", "severity": "warning", "text": "x"}
    here.book = rules.load([{"code": "OWN", **row}])
    file = here.state.folder / "memory.json"
    here._judge([Reading("x.count", "d", 1)])
    here.saved -= SAVE
    here._beat(time.monotonic())
    assert not file.exists()  # at rest there is nothing to save
    here._judge([Reading("x.count", "d", 2)])
    here.saved -= SAVE
    here._beat(time.monotonic())
    assert json.loads(file.read_text())["windows"]["OWN|x.count|d"]["last"] == 2
    here._judge([Reading("x.count", "d", 3)])
    here._beat(time.monotonic())
    assert json.loads(file.read_text())["windows"]["OWN|x.count|d"]["last"] == 2  # not each time


def test_a_probe_of_the_sites_own(here: NodeDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "probes.d"
    probes = here.config.probes.model_copy(update={"folder": folder})
    here.config = here.config.model_copy(update={"probes": probes})
    row = {"reading": "site.x", "when": {"above": 3}, "severity": "warning", "text": "too much of x"}
    here.book = rules.load([{"code": "SITE_X", **row}])
    here._visit()
    assert here.compose().blind == {}  # a site without any
    folder.mkdir(mode=0o755)
    program = folder / "x"
    program.write_text("""#!/bin/sh\necho '{"name": "site.x", "device": "d", "value": 4}'\n""")
    program.chmod(0o755)
    here._visit()
    wait(lambda: here._collect() or here.standing)
    assert [(one.code, one.device) for one in here.compose().opened] == [("SITE_X", "d")]
    program.write_text("#!/bin/sh\necho no luck >&2; exit 1\n")
    here._visit()
    wait(lambda: here._collect() or "no luck" in here.compose().blind.get("site/x", ""))
    assert here.standing  # a probe that fails ends nothing
    folder.chmod(0o777)
    here._visit()
    assert "written by others" in here.compose().blind["site"]


def test_what_an_admin_closes_ends_where_only_that_ends_it(here: NodeDaemon) -> None:
    row = {"when": {"is": True}, "severity": "critical", "text": "it is bad"}
    sticky = {"code": "STICKY", "reading": "a.b", "clear": "never", **row}
    here.book = rules.load([sticky, {"code": "OTHER", "reading": "a.c", **row}])
    here._judge([Reading("a.b", "d|1", True), Reading("a.c", "d", True)])
    here._judge([Reading("a.b", "d|1", False)])
    moments = frozenset(one.moment for one in here.standing)
    here._receipt(here.compose())
    assert len(here.standing) == 2
    here._receipt(here.compose(), frozenset(), moments)
    assert [one.code for one in here.standing] == ["OTHER"]
    assert "STICKY" not in (here.state.folder / "memory.json").read_text()
    here._judge([Reading("a.b", "d|1", True)])  # it is still so
    assert [one.code for one in here.compose().opened] == ["STICKY"]


def test_a_lost_gpu_is_named_over_a_restart(tmp_path: Path) -> None:
    gpu = "0000:5d:00.0"
    names = [("gpu.uuid", "GPU-9a"), ("gpu.serial", "1650"), ("gpu.minor", 3)]
    for made in daemon_in(tmp_path, ""):
        made._report(Report("gpu", tuple(Reading(name, gpu, value) for name, value in names)))
    for again in daemon_in(tmp_path, ""):
        again._judge([Reading("kernel.xid", gpu, 79, "NVRM: gone", "b/9", time.time())])
        [found] = again.compose().opened
        assert found.evidence == "NVRM: gone"
        assert found.hardware == {"uuid": "GPU-9a", "serial": "1650", "minor": 3, "pci": gpu}


@pytest.mark.parametrize(("seconds", "found"), [("60.5 100.0", 0), ("3600.1 1.0", 2), ("nan", 2), ("", 2)])
def test_links_may_train_after_a_boot(tmp_path: Path, seconds: str, found: int) -> None:
    def port(state: str, errors: int) -> Report:
        facts = {"state": state, "phys_state": "LinkUp", "rate": 400, "symbol_error": errors}
        said = [Reading(f"infiniband.{name}", "mlx5_0/1", value) for name, value in facts.items()]
        return Report("infiniband", (Reading("infiniband.listed", "", 1), *said))

    for made in daemon_in(tmp_path, ""):
        made._report(port("ACTIVE", 0))
        root = made.host.root
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/uptime").write_text(seconds)
    for again in daemon_in(tmp_path, ""):
        for errors in (0, 60000, 60000):
            again._report(port("INIT", errors))
            again.epoch += 10  # it has lasted
        assert len(again.standing) == found


def test_a_probe_that_does_not_come_back_is_a_finding(here: NodeDaemon) -> None:
    back = threading.Event()

    def hangs() -> Iterator[Reading]:
        back.wait()
        yield from ()

    here.runner.start("disk", hangs, 5, time.monotonic() - STUCK - 1)
    here._beat(time.monotonic())
    assert [(one.code, one.device, str(one.severity)) for one in here.standing] == [
        ("PROBE_STUCK", "disk", "warning")
    ]
    here._beat(time.monotonic())
    assert len(here.standing) == 1
    back.set()
    assert await_until(lambda: here._collect() or here._beat(time.monotonic()) or not here.standing, 20)


def test_a_look_that_is_due_while_its_probe_is_out_is_owed(here: NodeDaemon) -> None:
    back = threading.Event()

    def hangs() -> Iterator[Reading]:
        back.wait()
        yield from ()

    here.runner.start("infiniband", hangs, 5, time.monotonic())
    here.waits = {"infiniband": 0.0}
    here._end_waits(time.monotonic())
    assert (here.owed, here.waits) == ({"infiniband"}, {})
    back.set()
    assert await_until(lambda: here._collect() or not here.runner.outstanding(), 20)
    here._look()
    assert here.owed == set()
    assert await_until(lambda: here._collect() or not here.runner.outstanding(), 20)
    assert here.baseline.ports["mlx5_0/1"]["rate"] == 400  # which a glance does not read
