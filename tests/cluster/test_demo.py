"""The demo tells a true story: what it prints is what happened, and it leaves nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from ClusterShell.NodeSet import NodeSet

from slurm_health.sandbox import cluster, demo
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        os.geteuid() != 0
        or not all(shutil.which(p, path=cluster._PATH) for p in ("slurmctld", "slurmd", "munged")),
        reason="needs root and Slurm",
    ),
]


@pytest.fixture
def folder():
    """A short path (sockets live in the folder) for a sandbox that must be gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    yield path
    if path.exists():
        if Sandbox(path).exists:
            Sandbox(path).down()
        else:
            path.rmdir()


def left_of(folder):
    """Processes that have anything to do with the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and any(str(folder) in word for word in words):
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


def test_demo_tells_the_story_and_cleans_up(folder):
    said = []
    assert demo.demo(Sandbox(folder), said.append) == 0
    text = "\n".join(said)
    broken = re.search(r"inject (n\d) gpu-off-bus --gpu 3", text)[1]
    ran_on = re.search(r"run again, on (n\[\S+\])", text)[1]
    assert broken not in NodeSet(ran_on)
    # The timeline, in the order of its times.
    acts = re.findall(r"^  [\d:.]{12} +([+-]\d+\.\d\d) s  (.*)$", text, re.MULTILINE)
    assert [float(at) for at, _ in acts] == sorted(float(at) for at, _ in acts)
    told = "\n".join(words for _, words in acts)
    assert re.search(
        rf"\AGPU 3 of {broken} breaks\n"
        rf"the daemon on {broken} sees it: GPU_XID_79\(0000:5d:00\.0\)\n"
        r"the controller hears of it: incident \d+\n"
        rf"{broken} is drained.*\njob 1 is told why.*\njob 1 is requeued\n",
        told,
    ), told
    assert not re.search(r"^\w+ \d+$", told, re.MULTILINE), "an act is told by its name in the ledger"
    steps = [int(step) for step in re.findall(r"^  [\d:.]+ n\d: step (\d+)$", text, re.MULTILINE)]
    step = int(re.search(r"it has resumed from step (\d+)", told)[1])
    assert step >= demo.STEPS
    # What people see: sinfo's reason, the incident, and the job's output with every step once.
    assert re.search(rf"^  {broken} drain\S*: slurm-health: GPU_XID_79\(0000:5d:00\.0\) ", text, re.MULTILINE)
    assert re.search(rf"^  incident \d+  {broken}  GPU_XID_79", text, re.MULTILINE)
    output = steps[-(max(steps)) :]
    assert output == list(range(1, max(steps) + 1))
    assert max(steps) > step
    assert re.search(rf"start 2 on {re.escape(ran_on)}, resumed from step {step}$", text, re.MULTILINE)
    assert not folder.exists()
    assert left_of(folder) == []


def test_demo_says_what_is_missing_and_keeps_the_logs(folder, tmp_path, monkeypatch):
    """Where nothing may be done to the node the job goes on there, and that is no happy end."""

    class Observing(Sandbox):
        def up(self, **how):
            super().up(mode="observe", **how)

    monkeypatch.setattr(demo, "BACK_WITHIN", 3.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = []
    assert demo.demo(Observing(folder), said.append) == 1
    text = "\n".join(said)
    for missing in (
        r"is not drained with our reason",
        r"no drain that was done: \['not done: mode is observe'\]",
        r"no requeue that was done",
        r"job 1 is RUNNING on n\S+ after 0 restarts",
        r"job 1 has not resumed",
    ):
        assert re.search(missing, text), missing
    logs = Path(re.search(r"^logs .*: (/\S+)$", text, re.MULTILINE)[1])
    assert "incident 1 GPU_XID_79" in (logs / "ctld/controller.out").read_text()
    assert "step 3" in (logs / "train.out").read_text()
    assert not folder.exists()
    assert left_of(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(folder, number):
    words = [sys.executable, "-m", "slurm_health", "sandbox", "--dir", str(folder), "demo"]
    root = str(Path(cluster.__file__).parents[2])
    with subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert await_until(lambda: (folder / "train.out").exists(), 60)
        running.send_signal(number)
        running.communicate(timeout=60)
        assert running.returncode == 128 + number
    assert not folder.exists()
    assert left_of(folder) == []


def test_demo_keeps_the_sandbox_up_when_asked_to(folder):
    said = []
    assert demo.demo(Sandbox(folder), said.append, keep=True) == 0
    assert f'$ eval "$(slurm-health sandbox --dir {folder} env)"' in "\n".join(said)
    assert all(daemon["alive"] for daemon in Sandbox(folder).status()["daemons"])
