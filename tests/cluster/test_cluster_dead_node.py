"""A node dies with all that runs on it. Slurm gives it up and requeues its job; its wait is ended."""

import contextlib
import os
import signal
import time
import uuid

import pytest

from slurm_health.sandbox.processes import job_processes, step_daemons

pytestmark = pytest.mark.cluster

PATIENCE = 90.0  # seconds: it is asked about after 35 s of silence
BEGUN = 13.0  # seconds: BatchStartTimeout of 1 s and MessageTimeout of 10 s, each in whole seconds


@contextlib.contextmanager
def slurm_with(cluster, *lines):
    """slurm.conf says these, too."""
    file = cluster.box.layout.slurm_conf
    conf = file.read_text()
    file.write_text("\n".join([conf, *lines, ""]))
    cluster.ask("scontrol", "reconfigure")
    try:
        yield
    finally:
        file.write_text(conf)
        cluster.ask("scontrol", "reconfigure")


def kill_host(cluster, node):
    """Everything on it in one instant, as when its power goes."""
    layout = cluster.box.layout
    for daemon in (f"slurmd:{node}", f"node:{node}"):
        cluster.box.stop(daemon, signal.SIGKILL)
    jobs = job_processes(layout, node)
    for pid in [*step_daemons(str(layout.node(node) / "log/slurmd.log")), *jobs]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start_host(cluster, node):
    for daemon in (f"node:{node}", f"slurmd:{node}"):
        cluster.start(daemon)


def reported(cluster, node):
    """The node has reported its job: with something else that it had to say."""
    cluster.xid(node, code=13)
    cluster.incident(code="GPU_XID_13")


def closed_by(cluster):
    [one] = cluster.incidents(code="NODE_SILENT")
    return one["closed_by"]


def test_the_job_of_a_dead_node_runs_elsewhere(cluster):
    job = cluster.running("sleep 300", "-N2", "--gpus-per-node=8", "--open-mode=append")
    _, node = cluster.nodes_of(job)
    reported(cluster, node)
    with slurm_with(cluster, "SlurmdTimeout=10"):
        kill_host(cluster, node)
        cluster.until(lambda: cluster.node_state(node), "down*", PATIENCE)
        cluster.until(lambda: cluster.incidents(code="NODE_SILENT"), len, PATIENCE)
    incident = cluster.ran_again(code="NODE_SILENT")
    assert (incident["node"], incident["severity"]) == (node, "warning")
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    assert [act["kind"] for act in incident["actions"]] == ["lift", "start", "lower", "tell"]
    assert cluster.restarts(job) == 1
    assert node not in cluster.nodes_of(job)
    assert "has not reported" in cluster.output(job)
    start_host(cluster, node)
    cluster.until(lambda: cluster.node_state(node), "idle")
    cluster.until(lambda: closed_by(cluster), "cleared")
    assert cluster.verdict(node) == "ok"
    assert cluster.restarts(job) == 1


def test_the_job_of_a_node_that_came_back_rebooted(cluster):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    reported(cluster, node)

    with slurm_with(cluster, "BatchStartTimeout=1"):
        kill_host(cluster, node)
        hardware = cluster.box.layout.hardware(node)
        (hardware / "proc/sys/kernel/random/boot_id").write_text(f"{uuid.uuid4()}\n")
        (hardware / "dev/kmsg").write_text("")  # of earlier tests: the kernel's own log is empty after a boot
        # Slurm misses the job when slurmd registers, if it was last heard of so long ago that it has begun.
        dead = time.time()
        cluster.until(time.time, lambda now: now > dead + BEGUN)
        start_host(cluster, node)
        cluster.until(lambda: cluster.restarts(job), 1)
    incident = cluster.ran_again(code="NODE_SILENT")
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    assert [act["kind"] for act in incident["actions"]] == ["lift", "start", "lower", "tell"]
    assert cluster.restarts(job) == 1
    assert len(cluster.runs(job)) == 2


def test_observing_it_is_only_told(cluster):
    with cluster.configured('mode = "observe"'), slurm_with(cluster, "SlurmdTimeout=10"):
        job = cluster.running("sleep 300", "--gpus=8")
        [node] = cluster.nodes_of(job)
        reported(cluster, node)
        kill_host(cluster, node)
        incident = cluster.until(
            lambda: cluster.incidents(code="NODE_SILENT"), lambda seen: seen and seen[0]["actions"], PATIENCE
        )[0]
        assert cluster.state(job) == "PENDING"
        assert [(act["kind"], act["outcome"]) for act in incident["actions"]] == [
            ("start", "not done: mode is observe")
        ]
        assert incident["jobs"] == []
        start_host(cluster, node)
        cluster.until(lambda: cluster.node_state(node), "idle")


def test_a_daemon_that_ends_is_no_dead_node(cluster):
    """Slurm does not give up a node whose slurmd answers."""
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    cluster.box.stop(f"node:{node}", signal.SIGKILL)
    incident = cluster.until(lambda: cluster.incidents(code="NODE_SILENT"), len, 120)[0]
    assert incident["jobs"] == incident["actions"] == []
    assert cluster.health("status").returncode == 1
    assert cluster.state(job) == "RUNNING"
    assert cluster.serves(node)
    cluster.start(f"node:{node}")
    cluster.until(lambda: closed_by(cluster), "cleared")
