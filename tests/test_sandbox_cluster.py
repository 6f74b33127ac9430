"""The sandbox is a real Slurm: it starts, runs jobs, breaks on request, and leaves nothing behind."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from slurm_health.sandbox import SandboxError, cluster
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until
from slurm_health.sandbox.processes import MARK, strays
from slurm_health.sandbox.slurmconf import Layout

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
    """A short path (sockets live in the folder), gone afterwards with whatever is left of a sandbox."""
    path = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    yield path
    if path.exists():
        if Sandbox(path).exists:
            Sandbox(path).down()
        else:
            shutil.rmtree(path)
    assert left_of(path) == []


@pytest.fixture
def sandbox(folder):
    box = Sandbox(folder)
    box.up(nodes=2, gpus=4, ports=1, nics=1, health=False)
    return box


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


def ask(box, *argv):
    done = subprocess.run(argv, env={**os.environ, **box.env()}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def submit(box, script, *options):
    return ask(box, "sbatch", "--parsable", "--output", f"{box.folder}/%j.out", *options, "--wrap", script)


def state(box, job):
    return ask(box, "squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def running(box, script, *options):
    """Submit a job and wait until its script has said "ready"."""
    job = submit(box, f"touch {box.folder}/$SLURM_JOB_ID.ready; {script}", *options)
    assert await_until((box.folder / f"{job}.ready").exists, 30), state(box, job)
    return job


def test_up_runs_jobs_on_gpus_and_down_leaves_nothing(folder):
    box = Sandbox(folder)
    said = []
    box.up(nodes=2, gpus=4, ports=1, nics=1, health=False, progress=said.append)
    status = box.status()
    assert json.loads(json.dumps(status)) == status
    assert [(node["name"], node["state"], node["faults"]) for node in status["nodes"]] == [
        ("n1", "idle", []),
        ("n2", "idle", []),
    ]
    assert [d["name"] for d in status["daemons"]] == ["munged", "slurmctld", "slurmd:n1", "slurmd:n2"]
    assert all(daemon["alive"] for daemon in status["daemons"])
    assert re.search(r"up in \d+\.\d s: 2 nodes of 4 GPUs", said[-1])
    job = submit(box, "srun sh -c 'echo $SLURMD_NODENAME $SLURM_STEP_GPUS'", "-N2", "--gpus-per-node=2")
    assert await_until(lambda: state(box, job) == "COMPLETED", 30)
    assert sorted((folder / f"{job}.out").read_text().split("\n")) == ["", "n1 0,1", "n2 0,1"]
    assert ask(box, "sinfo", "-h", "-N", "-o", "%n %N") == "n1 n1\nn2 n2"
    box.down()
    assert not folder.exists()
    assert left_of(folder) == []
    box.down()


def test_two_jobs_share_a_node(sandbox):
    jobs = [running(sandbox, "sleep 100", "-w", "n1", "--gpus=2") for _ in range(2)]
    assert [state(sandbox, job) for job in jobs] == ["RUNNING", "RUNNING"]


def test_nodes_share_no_file(sandbox):
    inodes = [
        {(path.lstat().st_dev, path.lstat().st_ino) for path in sandbox.layout.node(name).rglob("*")}
        for name in ("n1", "n2")
    ]
    assert not inodes[0] & inodes[1]


def test_slurms_own_times_stay_at_their_defaults(sandbox):
    shown = ask(sandbox, "scontrol", "show", "config")
    for name, value in {
        "KillWait": "30 sec",
        "MinJobAge": "300 sec",
        "MessageTimeout": "10 sec",
        "BatchStartTimeout": "10 sec",
        "SlurmdTimeout": "300 sec",
    }.items():
        assert re.search(rf"^{name}\s+= {value}$", shown, re.MULTILINE), name
    assert "cred_expire" not in shown
    assert re.search(r"^PrologFlags\s+= Alloc,DeferBatch$", shown, re.MULTILINE)
    assert not re.search(r"^Prolog(\[\d+\])?\s+= /", shown, re.MULTILINE)  # Prolog[0] since 24.05


def test_a_line_of_the_callers_replaces_ours(folder):
    box = Sandbox(folder)
    box.up(
        nodes=1,
        gpus=0,
        ports=0,
        nics=0,
        health=False,
        slurm_conf=["schedulerparameters = defer", "KillWait=7"],
    )
    shown = ask(box, "scontrol", "show", "config")
    assert re.search(r"^SchedulerParameters\s+= defer$", shown, re.MULTILINE)
    assert re.search(r"^KillWait\s+= 7 sec$", shown, re.MULTILINE)
    assert "batch_sched_delay" not in (folder / "etc/slurm.conf").read_text()


def test_two_sandboxes_live_side_by_side(sandbox):
    other_folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    other = Sandbox(other_folder)
    try:
        other.up(nodes=1, gpus=0, ports=0, nics=0, health=False)
        job = submit(other, "exit 3")
        assert await_until(lambda: state(other, job) == "FAILED", 30)
        assert ask(sandbox, "squeue", "-h", "-t", "all") == ""
    finally:
        other.down()
    assert not other_folder.exists()
    assert all(daemon["alive"] for daemon in sandbox.status()["daemons"])
    assert sandbox.ready("slurmctld")


def test_up_twice_says_so_and_harms_nothing(sandbox):
    pids = [sandbox.pid(d["name"]) for d in sandbox.status()["daemons"]]
    with pytest.raises(SandboxError, match="already up"):
        sandbox.up(nodes=1, health=False)
    assert [sandbox.pid(d["name"]) for d in sandbox.status()["daemons"]] == pids


def test_down_ends_jobs_even_those_that_ignore_it(sandbox):
    stubborn = "trap '' TERM INT; while :; do sleep 1; done"
    running(sandbox, f'setsid sh -c "{stubborn}" & {stubborn}')
    sandbox.down()
    assert left_of(sandbox.folder) == []


def test_down_ends_a_stopped_daemon(sandbox):
    sandbox.stop("slurmctld", signal.SIGSTOP)
    sandbox.down()
    assert left_of(sandbox.folder) == []


def test_down_leaves_other_processes_alone(sandbox):
    """A shell in the sandbox's environment is the user's, not ours."""
    with subprocess.Popen(["sleep", "100"], env={**os.environ, **sandbox.env()}) as bystander:
        sandbox.down()
        assert bystander.poll() is None
        bystander.kill()


def test_a_reused_pid_is_not_ours_to_end(sandbox):
    with subprocess.Popen(["sleep", "100"]) as stranger:
        record = sandbox.layout.daemons / "slurmd:n1.json"
        ours = json.loads(record.read_text())
        record.write_text(json.dumps({**ours, "pid": stranger.pid}))
        assert sandbox.pid("slurmd:n1") is None
        sandbox.down()
        assert stranger.poll() is None
        stranger.kill()
    assert left_of(sandbox.folder) == []


@pytest.mark.parametrize("moment", ["wrote", "munged", "slurmctld", "all nodes idle"])
def test_interrupted_up_leaves_nothing(folder, moment):
    def interrupt(line):
        if moment in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sandbox(folder).up(nodes=2, gpus=0, ports=0, nics=0, health=False, progress=interrupt)
    assert not folder.exists()
    assert left_of(folder) == []


def test_failing_daemon_is_named_with_its_last_words(folder):
    with pytest.raises(SandboxError, match=r"(?s)slurmctld ended at its start\n.*/ctld/.*NoSuchPlugin"):
        Sandbox(folder).up(nodes=1, health=False, slurm_conf=["SelectType=select/NoSuchPlugin"])
    assert not folder.exists()
    assert left_of(folder) == []


def test_remains_of_a_dead_sandbox_are_cleared_away(sandbox):
    job = running(sandbox, "sleep 100")
    for daemon in sandbox.status()["daemons"]:
        sandbox.stop(daemon["name"], signal.SIGKILL)
    sandbox.up(nodes=1, gpus=0, ports=0, nics=0, health=False)
    assert [node["name"] for node in sandbox.status()["nodes"]] == ["n1"]
    assert not (sandbox.folder / f"{job}.ready").exists()


def test_folders_of_others_are_not_touched(folder):
    (folder / "precious").touch()
    for act in (lambda: Sandbox(folder).up(nodes=1, health=False), Sandbox(folder).down):
        with pytest.raises(SandboxError, match="not a sandbox of ours"):
            act()
    assert (folder / "precious").exists()
    (folder / "precious").unlink()
    (folder / "sandbox.json").write_text("{}")
    os.chown(folder, 65534, 65534)
    with pytest.raises(SandboxError, match="not a sandbox of ours"):
        Sandbox(folder).down()
    os.chown(folder, 0, 0)


def test_paths_that_slurm_cannot_hold_are_refused():
    with pytest.raises(SandboxError, match="too long"):
        Sandbox("/tmp/" + "x" * 80).up()
    with pytest.raises(SandboxError, match="cannot hold such a path"):
        Sandbox("/tmp/a b").up()


def test_missing_packages_are_named(folder, monkeypatch):
    monkeypatch.setattr(cluster, "_PATH", str(folder))
    with pytest.raises(SandboxError, match="not installed: munge slurm-client slurmctld slurmd"):
        Sandbox(folder).up(health=False)


def test_questions_to_no_sandbox_are_answered(folder):
    for act in (
        Sandbox(folder).status,
        lambda: Sandbox(folder).run(["true"]),
        lambda: Sandbox(folder).clear("n1"),
    ):
        with pytest.raises(SandboxError, match="there is no sandbox"):
            act()


def test_run_gives_the_environment_and_the_status(sandbox):
    assert sandbox.run(["sh", "-c", "scontrol ping >/dev/null && exit 5"]) == 5
    assert sandbox.run(["sh", "-c", "kill -9 $$"]) == 137
    with pytest.raises(SandboxError, match="cannot run nosuchcommand"):
        sandbox.run(["nosuchcommand"])


def test_daemons_stop_and_start_one_by_one(sandbox):
    with pytest.raises(SandboxError, match="no daemon node:n1 in this sandbox, there are munged, slurmctld"):
        sandbox.pid("node:n1")
    old = sandbox.pid("slurmd:n2")
    sandbox.stop("slurmd:n2", signal.SIGKILL)
    assert sandbox.pid("slurmd:n2") is None
    new = sandbox.start("slurmd:n2")
    assert new == sandbox.pid("slurmd:n2") != old
    sandbox.stop("slurmctld")
    assert not sandbox.ready("slurmctld")
    assert [node["state"] for node in sandbox.status()["nodes"]] == ["unknown", "unknown"]
    sandbox.start("slurmctld")
    assert await_until(lambda: sandbox.ready("slurmctld"), 30)


def test_faults_show_in_status_until_cleared(sandbox):
    done = sandbox.inject("n2", "xid", gpu=3, code=79)
    assert done["node"] == "n2"
    one, two = (node["faults"] for node in sandbox.status()["nodes"])
    assert (one, [{"node": "n2", **fault} for fault in two]) == ([], [done])
    assert "Xid (PCI:0000:5d:00): 79" in (sandbox.layout.hardware("n2") / "dev/kmsg").read_text()
    assert sandbox.clear("n2")["cleared"] == ["xid"]
    assert sandbox.status()["nodes"][1]["faults"] == []
    with pytest.raises(SandboxError, match="no node n3 in this sandbox, there are n1, n2"):
        sandbox.inject("n3", "driver-hang")


def test_kill_takes_the_jobs_of_that_node_and_no_others(sandbox):
    here = running(sandbox, "srun sleep 100", "-w", "n1", "--gpus=2")
    there = running(sandbox, "srun sleep 100", "-w", "n2", "--gpus=2")
    assert await_until(lambda: ".0 " in ask(sandbox, "squeue", "-h", "-s", "-o", "%i "), 30)
    done = sandbox.inject("n1", "gpu-off-bus", gpu=0, kill=True)
    assert done["killed"] >= 2
    assert await_until(lambda: state(sandbox, here) == "FAILED", 30)
    assert state(sandbox, there) == "RUNNING"
    assert {node["state"] for node in sandbox.status()["nodes"]} <= {
        "idle",
        "mixed",
        "allocated",
        "completing",
    }


def test_jobs_of_ordinary_users_run(sandbox):
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(
        ["srun", "--chdir=/", "id", "-u"],
        env={"PATH": os.environ["PATH"], **sandbox.env()},
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{nobody.pw_uid}\n", "")


def test_daemons_outlive_the_command_that_started_them(folder):
    up = f"Sandbox({str(folder)!r}).up(nodes=1, health=False)"
    script = f"from slurm_health.sandbox.cluster import Sandbox; {up}"
    root = str(Path(cluster.__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": root},
        check=True,
    )
    box = Sandbox(folder)
    assert all(daemon["alive"] for daemon in box.status()["daemons"])
    for daemon in box.status()["daemons"]:
        assert os.getsid(daemon["pid"]) == daemon["pid"]
        assert Path(f"/proc/{daemon['pid']}/cwd").readlink() == Path("/")


def test_a_process_of_a_container_with_a_sandbox_of_the_same_name_is_left_alone(tmp_path):
    wait = "import os, sys, time; os.chroot(sys.argv[1]); print(flush=True); time.sleep(600)"
    env = {**os.environ, MARK: str(tmp_path)}
    (tmp_path / "container").mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", wait, root], env=env, stdout=subprocess.PIPE)
        for root in ("/", tmp_path / "container")
    ]
    try:
        for one in processes:
            assert one.stdout.readline()
        assert [pid for pid, _ in strays(Layout(tmp_path))] == [processes[0].pid]
    finally:
        for one in processes:
            one.kill()
            one.communicate()
