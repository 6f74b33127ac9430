"""What only hosts of their own can go through: their power, their network. `make docker-faults`.

Most of it is Slurm's own waiting. With a SlurmdTimeout of 30 s a silent node is given up, with 300 s not yet.
"""

import json
import subprocess
import time
from pathlib import Path

import pytest
from ClusterShell.NodeSet import NodeSet
from demo import START, Containers

FAULT = str(Path(__file__).with_name("fault"))
PATIENCE = 60.0  # seconds
GIVEN_UP = 120.0  # seconds in which Slurm gives a node up; with SlurmdTimeout=30 it took 49 to 53 s
MINUTE = 60.0  # seconds that a cable is out
# Seconds in which a node that was given up is asked again who it is: each 30th ping, and these are each
# third of SlurmdTimeout (ping_nodes.c); one that is started says so itself.
ASKED_AGAIN = 360.0


def settled(incidents, many=1):
    """Whether there are so many, and all their jobs' stories are at their end."""
    return len(incidents) == many and all(
        one["jobs"] and all(job["settled"] for job in one["jobs"]) for one in incidents
    )


class Cluster(Containers):
    """The containers as an admin and a user meet them."""

    def fault(self, host, *words):
        subprocess.run([FAULT, host, *words], check=True, timeout=PATIENCE)

    def until(self, look, wanted, seconds=PATIENCE):
        end = time.monotonic() + seconds
        fits = wanted if callable(wanted) else lambda seen: seen == wanted
        while not fits(seen := look()):
            assert time.monotonic() < end, f"after {seconds:g} s still: {seen!r}"
            time.sleep(0.2)
        return seen

    def running(self, *options):
        script = "echo $SLURM_RESTART_COUNT $SLURM_JOB_NODELIST >>runs.$SLURM_JOB_ID; sleep 600"
        job = self.run("sbatch", "--parsable", *options, "--wrap", script).strip()
        self.until(lambda: self.runs(job), len)
        return job

    def runs(self, job):
        """The nodes of each time that the job's script was started."""
        return [tuple(NodeSet(line.split()[-1])) for line in self.read(f"runs.{job}").splitlines()]

    def restarts(self, job):
        return int(self.run("squeue", "-h", "-t", "all", "-j", job, "-O", "RestartCnt"))

    def node(self, name):
        return self.on("ctld", "sinfo", "-h", "-N", "-n", name, "-o", "%T %E").strip()

    def incidents(self, code=""):
        found = json.loads(self.on("ctld", "slurm-health", "incidents", "list", "--all", "--json"))
        return [one for one in found if one["code"].startswith(code)]

    def ran_again(self, code):
        """The one incident of this code, once all its jobs' stories are at their end."""
        [found] = self.until(lambda: self.incidents(code), settled)
        return found

    def xid(self, node):
        self.on(node, "slurm-health", "sandbox", "inject", node, "xid", "79", "--gpu", "3")

    def saved(self, job):
        """Wait until slurmctld has saved what it knows by now; what it has not is lost when it is killed."""

        def when():
            return self.on("ctld", "stat", "-c", "%y", "/var/spool/slurmctld/job_state")

        before = when()
        self.on("ctld", "scontrol", "update", f"JobId={job}", f"AdminComment={before.strip()}")
        self.until(when, lambda now: now != before)

    def gives_up_after(self, seconds):
        line = f"SlurmdTimeout={seconds}"
        self.on("ctld", "sh", "-c", f"echo {line} >>/etc/slurm/nodes.conf; scontrol reconfigure")


def acts(incident, kind):
    return [act["outcome"] for act in incident["actions"] if act["kind"] == kind]


@pytest.fixture
def cluster():
    place = Cluster()
    assert not place.compose("ps", "-q").strip(), "the cluster is up: make docker-down ends it"
    try:
        place.compose("up", "-d", "--wait", "--build", limit=START)
        yield place
    finally:
        place.compose("down", "-v", "-t", "3")


def test_a_node_dies(cluster):
    cluster.gives_up_after(30)
    job = cluster.running("-N2", "--gpus-per-node=8")
    [[_, dead]] = cluster.runs(job)
    cluster.fault(dead, "kill")
    died = time.monotonic()
    cluster.until(lambda: cluster.node(dead), lambda state: state.startswith("down"), GIVEN_UP)
    print(f"{dead} is DOWN after {time.monotonic() - died:.0f} s")
    cluster.until(lambda: cluster.runs(job), lambda runs: len(runs) > 1)
    print(f"job {job} runs again after {time.monotonic() - died:.0f} s")
    incident = cluster.ran_again("NODE_SILENT")
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    cluster.fault(dead, "start")
    cluster.until(lambda: cluster.node(dead), "idle none")
    cluster.until(lambda: [one["closed_by"] for one in cluster.incidents()], ["cleared"])
    assert (cluster.restarts(job), len(cluster.runs(job))) == (1, 2)
    assert dead not in cluster.runs(job)[1]


@pytest.mark.parametrize("timeout", [300, 30])
def test_a_gpu_fails_while_its_node_is_cut_off(cluster, timeout):
    """One drain, one requeue, whether Slurm gave the node up meanwhile or only its GPU is the reason."""
    cluster.gives_up_after(timeout)
    job = cluster.running("--gpus=8")
    [[node]] = cluster.runs(job)
    cluster.fault(node, "cut")
    cut = time.monotonic()
    cluster.xid(node)
    cluster.until(lambda: time.monotonic() > cut + MINUTE, True, 2 * MINUTE)
    assert cluster.incidents("GPU_") == []
    assert cluster.restarts(job) == 0 or timeout == 30
    cluster.fault(node, "join")
    cluster.until(lambda: cluster.runs(job), lambda runs: len(runs) > 1)
    print(f"job {job} runs again after {time.monotonic() - cut:.0f} s")
    drained = "drained slurm-health: GPU_XID_79("
    cluster.until(lambda: cluster.node(node), lambda state: state.startswith(drained), ASKED_AGAIN)
    print(f"{node} is drained after {time.monotonic() - cut:.0f} s")
    if timeout == 300:
        cluster.ran_again("GPU_XID_79")
    [incident] = cluster.incidents("GPU_")
    assert acts(incident, "drain") == ["done"]
    asked = [outcome for one in cluster.incidents() for outcome in acts(one, "requeue")]
    assert asked == ["done"] or (asked == [] and timeout == 30)
    assert (cluster.restarts(job), len(cluster.runs(job))) == (1, 2)
    assert node not in cluster.runs(job)[1]


@pytest.mark.parametrize("gone", ["stopped", "crashed"])
def test_slurmctld_is_gone_while_actions_are_under_way(cluster, gone):
    submitted = [cluster.running("--gpus=8") for _ in range(2)]
    jobs = {cluster.runs(job)[0][0]: job for job in submitted}
    cluster.saved(submitted[-1])
    for node in jobs:
        cluster.xid(node)
    if gone == "crashed":
        cluster.fault("ctld", "crash", "slurmctld")
    else:
        cluster.fault("ctld", "stop", "slurmctld")
        cluster.fault("ctld", "begin", "slurmctld")
    for one in cluster.until(cluster.incidents, lambda seen: settled(seen, 2)):
        assert [(job["job"], job["outcome"]) for job in one["jobs"]] == [(jobs[one["node"]], "runs again")]
        assert (one["closed"], one["acknowledged"]) == (None, None)
    for node, job in jobs.items():
        assert cluster.node(node).startswith("drained slurm-health: GPU_XID_79(")
        runs = cluster.runs(job)
        # What slurmctld had not saved it has forgotten, a run that had begun elsewhere too.
        assert len(runs) == 2 or (len(runs) > 2 and gone == "crashed")
        assert not jobs.keys() & {name for run in runs[1:] for name in run}
