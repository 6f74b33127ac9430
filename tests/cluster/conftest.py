"""One real cluster for the tests in this folder, healed before each of them.

Faults go in through the sandbox, jobs through sbatch; what is looked at is what a user can see: Slurm's own
commands, a job's output, `slurm-health ... --json` and the verdict that the prolog reads.
"""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ClusterShell.NodeSet import NodeSet

from slurm_health import client, config
from slurm_health.sandbox import SandboxError
from slurm_health.sandbox import cluster as sandbox
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.slurm import Site
from slurm_health.slurm.scontrol import RELEASE

ROOT = str(Path(sandbox.__file__).parents[2])
NOBODY = pwd.getpwnam("nobody")
# By numbers: sbatch 26.05 knows no --uid=nobody.
OF_NOBODY = (f"--uid={NOBODY.pw_uid}", f"--gid={NOBODY.pw_gid}")
# Which way to Slurm the controller takes; docs/SLURM.md has the outcome of each.
BACKEND = os.environ.get("SLURM_HEALTH_TEST_BACKEND", "auto")
PATIENCE = 30.0  # seconds; what is waited for takes far less on an idle machine
SERVING = ("idle", "mixed", "allocated", "completing")
LOOK = 0.05  # seconds between two questions to Slurm

# Any number of nodes may go out, but where a test is about the budget. A link that came back is well at once,
# and NVML is asked each second: both so that tests need not wait. That a link goes down in one test after
# another is no flapping.
SITE = """
[budget]
at_least = 100
window_at_least = 100

[probes]
gpu_every = "1s"
gpu_deadline = "5s"

# Some that jobs survive, to be told of in time.
[[rule]]
code = "GPU_XID_54"
job = "checkpoint"
[[rule]]
code = "GPU_XID_155"
job = "checkpoint"

[[rule]]
code = "IB_PORT_DOWN"
clear = "0s"
[[rule]]
code = "NIC_DOWN"
clear = "0s"
[[rule]]
code = "IB_FLAP"
enabled = false
[[rule]]
code = "NIC_FLAP"
enabled = false
[[rule]]
code = "GPU_MISSING"
clear = "0s"
[[rule]]
code = "GPU_DRIVER_HUNG"
clear = "0s"
[[rule]]
code = "GPU_DRIVER_FAILED"
clear = "0s"
"""

# A site's own prolog, which runs before ours and takes its time while the node's file `hold` is there; while
# `untold` is, Slurm says nothing of GPUs to it, as 22.05 does now and then after slurmctld was killed.
SITE_PROLOG = """\
#!/bin/sh
while [ -e {folder}/nodes/$SLURMD_NODENAME/hold ]; do
    : > {folder}/nodes/$SLURMD_NODENAME/held
    /bin/sleep 0.05
done
[ -e {folder}/nodes/$SLURMD_NODENAME/untold ] && unset SLURM_JOB_GPUS
. {folder}/etc/prolog
"""

# Jobs of a partition of a higher tier have others make room, by a requeue; a test makes one.
PREEMPTION = ("PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE")
# A node takes the same Xid of the same GPU within a minute for one event.
BURST = 65.0
XIDS = (48, 62, 95, 119, 79)


class Cluster:
    """A sandbox as admins and users meet it. `NODES` nodes of eight GPUs, two InfiniBand ports, one NIC."""

    NODES = 4

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ct-", dir="/tmp"))
        self.box = Sandbox(self.folder)
        self.names = [f"n{number}" for number in range(1, self.NODES + 1)]
        self.jobs = self.folder / "jobs"
        self.said = {}  # (node, GPU, Xid) that were injected: when
        self.first = 0  # incidents up to this one are of earlier tests
        self.first_job = 0
        self.marks = {}
        self.resumed = []  # by this test

    def up(self):
        hook = self.folder.with_name(f"{self.folder.name}.prolog")
        hook.write_text(SITE_PROLOG.format(folder=self.folder))
        hook.chmod(0o755)
        self.box.up(
            nodes=self.NODES,
            gpus=8,
            ports=2,
            nics=1,
            # Heterogeneous jobs are started by backfill alone, each 30 s unless told.
            slurm_conf=[
                f"Prolog={hook}",
                "SchedulerParameters=batch_sched_delay=0,bf_interval=1",
                *PREEMPTION,
            ],
            site_toml=SITE,
        )
        self.jobs.mkdir()
        self.jobs.chmod(0o1777)
        self.config = config.load(str(self.box.layout.config))
        if BACKEND != "auto":
            file = self.box.layout.etc / "conf.d/backend.toml"
            file.parent.mkdir()
            file.write_text(f'[slurm]\nbackend = "{BACKEND}"')
            self.restart("controller")
        self.look()
        assert BACKEND in ("auto", self.backend)

    def look(self):
        """Note which Slurm this is, and which way to it is in use."""
        self.slurm = self.box.status()["slurm"]
        self.site = Site(0, tuple(map(int, RELEASE.search(self.slurm).groups())))
        self.backend = self.until(self._way, bool)

    def _way(self):
        """The way to Slurm that the controller has taken, "" until it has decided."""
        slurm = self.health_json("status")["slurm"]
        return "" if "not said" in slurm["why"] else slurm["backend"]

    def down(self):
        if self.box.exists:
            self.box.down()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_name(f"{self.folder.name}.prolog").unlink(missing_ok=True)

    # Waiting

    def until(self, look, wanted, seconds=PATIENCE):
        """Wait until look() is `wanted` (or, where that can be called, satisfies it); what it was then."""
        end = time.monotonic() + seconds
        fits = wanted if callable(wanted) else lambda seen: seen == wanted
        while not fits(seen := look()):
            assert time.monotonic() < end, f"after {seconds:g} s still: {seen!r}"
            time.sleep(LOOK)
        return seen

    # Slurm

    def ask(self, *argv, check=True, box=None):
        env = {**os.environ, **(box or self.box).env()}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script, *options):
        """A batch job that first notes its run: restart count, nodes and GPUs; its id."""
        what = '"${SLURM_RESTART_COUNT:-0} $SLURM_JOB_NODELIST ${SLURM_JOB_GPUS:-none}"'
        label = "${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
        script = f"echo {what} >> {self.jobs}/runs.{label}\n{script}"
        output = f"--output={self.jobs}/%j.out"
        return self.ask("sbatch", "--parsable", "--chdir=/", output, *options, "--wrap", script)

    def running(self, script="sleep 300", *options):
        """Submit a job and wait until its script runs."""
        job = self.submit(script, *options)
        self.until(lambda: self.runs(job), len)
        return job

    def runs(self, job):
        """(restart count, nodes, GPU ordinals) of each time that the job's script was started."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.jobs / f"runs.{job}").read_text().splitlines()
            found = [line.split() for line in lines]
            return [(int(count), tuple(NodeSet(nodes)), gpus) for count, nodes, gpus in found]
        return []

    def nodes_of(self, job):
        return self.runs(job)[-1][1]

    def output(self, job):
        return (self.jobs / f"{job}.out").read_text()

    def state(self, job):
        return self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def restarts(self, job):
        return int(self.ask("squeue", "-h", "-t", "all", "-j", job, "-O", "RestartCnt"))

    def reason(self, node):
        """Why a node is out, "none" while it serves: 24.11 shows the old reason of one that was resumed."""
        state, reason = self._sinfo()[node]
        return "none" if state in SERVING else reason

    def node_state(self, node):
        return self._sinfo()[node][0]

    def _sinfo(self):
        """State and reason of each node. Asked for one alone, slurmctld 26.05 may call it draining long after
        its last job has ended: until somebody asks for all."""
        lines = self.ask("sinfo", "-h", "-N", "-o", "%N|%T|%E").splitlines()
        return {name: (state, reason) for name, state, reason in (line.split("|", 2) for line in lines)}

    def serves(self, node):
        return self.node_state(node) in SERVING

    def resume(self, node):
        self.resumed.append(node)
        self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def drain(self, node, reason):
        self.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")

    # slurm-health

    def health(self, *arguments):
        """`slurm-health ...` as on a shell's line."""
        env = {**os.environ, **self.box.env(), "PYTHONPATH": ROOT}
        argv = [sys.executable, "-m", "slurm_health", *arguments]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)

    def health_json(self, *arguments):
        return json.loads(self.health(*arguments, "--json").stdout)

    def incidents(self, **which):
        """This test's incidents, oldest first, closed ones too, as `incidents --json` gives them."""
        found = client.ask(self.config, "GET", "/v1/incidents?all=1")
        found = self.of_this_test(found)
        return [one for one in reversed(found) if all(one[key] == value for key, value in which.items())]

    def of_this_test(self, found):
        """Incidents without those of earlier tests, and without jobs that ended just before the fault."""
        found = [one for one in found if one["id"] > self.first]
        return [one | {"jobs": [job for job in one["jobs"] if job["id"] > self.first_job]} for one in found]

    def incident(self, fits=bool, **which):
        """The one incident of these properties, once it is there and fits."""
        [found] = self.until(lambda: self.incidents(**which), lambda seen: len(seen) == 1 and fits(seen[0]))
        return found

    def ran_again(self, **which):
        """The incident, once all its jobs' stories are at their end and those that run again say so."""
        found = self.incident(lambda one: one["jobs"] and all(job["settled"] for job in one["jobs"]), **which)
        for one in found["jobs"]:
            if one["outcome"] == "runs again":
                self.started(one["job"], one["restarts"] + 1)
        return found

    def started(self, job, restarts):
        """Wait until the script of that run has said so: to Slurm it runs before it has begun."""
        self.until(lambda: self.runs(job), lambda runs: not runs or runs[-1][0] >= restarts)

    def verdict(self, node):
        return (self.box.layout.node(node) / "run/verdict").read_text().split(" ", 2)[0]

    @contextlib.contextmanager
    def configured(self, toml):
        """The controller with another site configuration."""
        self.configure(toml)
        try:
            self.restart("controller")
            yield
        finally:
            self.configure("")
            self.restart("controller")

    def configure(self, toml):
        """What the site's configuration says further, for daemons that are started from now on."""
        file = self.box.layout.etc / "conf.d/test.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(toml)

    def restart(self, daemon, number=signal.SIGTERM):
        self.box.stop(daemon, number)
        self.start(daemon)

    def start(self, daemon):
        self.box.start(daemon)
        self.until(lambda: self.box.ready(daemon), True)
        if daemon == "controller":  # a killed one's threads may hold its port for a moment
            self.until(self._refusal, "")

    def _refusal(self):
        """Why the controller does not answer, "" where it does."""
        try:
            client.ask(self.config, "GET", "/v1/incidents?limit=1")
        except client.ClientError as error:
            return str(error) or repr(error)
        return ""

    def freeze(self, daemon):
        """As a daemon that is slow: it lives and says nothing."""
        self.box.stop(daemon, signal.SIGSTOP)

    def thaw(self, daemon):
        self.box.stop(daemon, signal.SIGCONT)

    # Faults

    def inject(self, node, fault, **how):
        return self.box.inject(node, fault, **how)

    def xid(self, node, gpu=None, code=None, kill=False):
        """An Xid that costs the GPU, and that this GPU has not had for a minute; its incident's code.

        Which GPU, and which Xid, where that does not matter.
        """
        gpus = (
            range(7) if gpu is None else gpu if isinstance(gpu, list) else [gpu]
        )  # a job here has 7 or all 8
        codes = XIDS if code is None else code if isinstance(code, tuple) else [code]
        faults = [(node, n, xid) for xid in codes for n in gpus]

        def new():
            return [one for one in faults if time.monotonic() - self.said.get(one, -BURST) >= BURST]

        [fault, *_] = self.until(new, len, BURST)
        self.said[fault] = time.monotonic()
        _, gpu, code = fault
        self.inject(node, "xid", gpu=gpu, code=code, kill=kill)
        return f"GPU_XID_{code}"

    # Between tests

    def heal(self):
        """All daemons run, no job, no fault, no pause, no open incident; each node is idle and says `ok`."""
        self.configure("")
        for name in self.names:
            for file in ("hold", "held", "untold"):
                (self.box.layout.node(name) / file).unlink(missing_ok=True)
        for daemon in self.box.status()["daemons"]:
            if daemon["alive"]:
                os.kill(daemon["pid"], signal.SIGCONT)
            else:
                self.start(daemon["name"])
        if jobs := self.ask("squeue", "-h", "-r", "-o", "%A").split():
            self.ask("scancel", "--signal=KILL", *jobs, check=False)
            self.ask("scancel", *jobs, check=False)
        for name in self.names:
            if self.box.machine(name).faults():
                self.box.clear(name)
        self.health("unpause")
        self.until(lambda: self.ask("squeue", "-h"), "", 60)
        self.until(self._ails, [])
        everything = client.ask(self.config, "GET", "/v1/incidents?all=1&limit=1")
        self.first = everything[0]["id"] if everything else 0
        self.first_job = max(map(int, self.ask("squeue", "-h", "-t", "all", "-o", "%A").split()), default=0)
        self.marks = {path: path.stat().st_size for path in self._logs()}
        self.resumed = []

    def only_drained(self):
        """Check that no node was set DOWN since, nor put back but by the test or as the ledger tells."""
        states = re.findall(r"update_node: node (\S+) state set to (\w+)", self.log("ctld/slurmctld.log"))
        back = sorted(node for node, state in states if not state.startswith("DRAIN"))
        if back != sorted(self.resumed):
            acts = [
                act for one in self.incidents() for act in one["actions"] if act["kind"] in ("resume", "down")
            ]
            assert back == sorted([*self.resumed, *(act["target"] for act in acts)])

    def _ails(self):
        """What is not yet well; what can be done about it is done."""
        states = self.ask("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
        ails = [line for line in states if not line.endswith(" idle")]
        for name, state in (line.split() for line in ails):
            if state.startswith(("drain", "down")):
                self.resume(name)
        for one in client.ask(self.config, "GET", "/v1/incidents"):
            ails.append(f"incident {one['id']}")
            client.ask(self.config, "POST", f"/v1/incidents/{one['id']}/close", {})
        return ails + [f"{name} says {said}" for name in self.names if (said := self.verdict(name)) != "ok"]

    def _logs(self):
        patterns = (
            "ctld/controller.out",
            "ctld/slurmctld.log",
            "nodes/*/log/node.out",
            "nodes/*/log/slurmd.log",
        )
        return sorted(path for pattern in patterns for path in self.folder.glob(pattern))

    def log(self, name):
        """What a log (its path in the sandbox) has got since the test began."""
        path = self.folder / name
        return path.read_text(errors="replace")[self.marks.get(path, 0) :]

    def logs(self):
        """What all daemons have logged since the test began."""
        for path in self._logs():
            if text := self.log(str(path.relative_to(self.folder))).strip():
                yield str(path.relative_to(self.folder)), text


def pytest_collection_modifyitems(items):
    """Files are dealt out whole, in this order: that of eight minutes goes first, others beside it."""
    items.sort(key=lambda item: item.path.stem != "test_cluster_failover")


@pytest.fixture(scope="session")
def _standing():
    """The cluster that stands, if any: [Cluster] or []."""
    if os.geteuid() != 0 or not all(
        shutil.which(name, path=sandbox._PATH) for name in ("slurmctld", "slurmd", "munged")
    ):
        pytest.skip("needs root and Slurm")
    standing = []
    yield standing
    for one in standing:
        one.down()


BEYOND = (AssertionError, SandboxError, client.ClientError)  # what a cluster that cannot be healed says


def _begun():
    one = Cluster()
    try:
        one.up()
        one.heal()
    except BEYOND:
        one.down()
        raise
    return one


@pytest.fixture
def cluster(_standing):
    """The cluster, healed; a new one where the last test left it beyond healing. In no test may we have done
    more to a node than drain it."""
    if _standing:
        try:
            _standing[0].heal()
        except BEYOND as error:
            print(f"a new cluster, since the last is beyond healing: {error}")
            _standing.pop().down()
    if not _standing:
        _standing.append(_begun())
    yield _standing[0]
    _standing[0].only_drained()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure brings what the daemons said meanwhile; each outcome, of which Slurm by which way it is."""
    if found := getattr(item, "funcargs", {}).get("cluster"):
        item.user_properties = [("slurm", found.slurm), ("backend", found.backend)]
    report = yield
    if report.failed and found:
        asked = (("squeue", "-a", "-o", "%all"), ("scontrol", "-o", "show", "nodes"))
        report.sections += [(" ".join(words), found.ask(*words, check=False)[-8000:]) for words in asked]
        report.sections += [(f"{name} of the sandbox", text[-8000:]) for name, text in found.logs()]
    return report
