"""A job that cannot end on a dead node is let go, once the site's command has said that the node is off.

Where that is not known, or Slurm would lose GPUs by it, people are told.
"""

import contextlib
import signal

import pytest
from test_cluster_requeue import done

from slurm_health.fence import LOSES

pytestmark = pytest.mark.cluster


@contextlib.contextmanager
def fencing(cluster, script):
    """The controller with a fence command; what it writes to."""
    said, command = cluster.folder / "fenced", cluster.folder / "fence"
    said.unlink(missing_ok=True)
    command.write_text(f"#!/bin/sh\necho $1 >> {said}\n{script}\n")
    command.chmod(0o755)
    words = f'command = ["{command}", "{{node}}"]' if script else ""
    with cluster.configured(f'[fence]\n{words}\nafter = "1s"'):
        yield said


def stuck(cluster, *options):
    """A job whose broken node does not answer slurmctld: it is requeued, and stays COMPLETING. (job, node)"""
    job = cluster.running("sleep 300", *options)
    node = cluster.nodes_of(job)[0]
    cluster.freeze(f"slurmd:{node}")
    cluster.xid(node, gpu=[int(gpu) for gpu in cluster.runs(job)[0][2].split(",")])
    cluster.until(lambda: (cluster.state(job), cluster.restarts(job)), ("COMPLETING", 1))
    return job, node


def used(cluster):
    """How many GPUs slurmctld counts as in use on each node."""
    lines = cluster.ask("sinfo", "-h", "-N", "-O", "NodeList:20,GresUsed:60").splitlines()
    return dict(line.split() for line in lines)


def told(cluster):
    """Why the node is not set DOWN."""
    incident = cluster.incident(lambda one: [act for act in one["actions"] if act["kind"] == "down"])
    [why] = [act["outcome"] for act in incident["actions"] if act["kind"] == "down"]
    assert why.startswith("not done: ")
    assert not done(incident, "down")
    return why.removeprefix("not done: ")


def test_a_job_that_is_stuck_on_a_dead_node_runs_elsewhere(cluster):
    """And whatever lets it go, no GPU is lost with it."""
    with fencing(cluster, "exit 0") as said:
        job, node = stuck(cluster, "-N2", "--gpus-per-node=8")
        if cluster.site.loses_gpus:
            assert told(cluster) == LOSES
            assert not said.exists()
            cluster.restart(f"slurmd:{node}", signal.SIGKILL)
        incident = cluster.ran_again()
        assert [one["outcome"] for one in incident["jobs"]] == ["runs again"]
        [_, (restarts, nodes, _)] = cluster.runs(job)
        assert (restarts, node in nodes) == (1, False)
        assert cluster.health_json("status")["drained"] == node  # still ours
        if not cluster.site.loses_gpus:
            assert said.read_text() == f"{node}\n"
            incident = cluster.incident(lambda one: done(one, "down"))
            assert len(done(incident, "fence")) == len(done(incident, "down")) == 1
            # Where slurmd answers a last time it does not stay so: it is drained all the same.
            assert f"node {node} state set to DOWN" in cluster.log("ctld/slurmctld.log")
        cluster.ask("scancel", job)
        cluster.until(lambda: cluster.ask("squeue", "-h"), "")
        assert set(used(cluster).values()) == {"gpu:0"}
        cluster.thaw(f"slurmd:{node}")


@pytest.mark.parametrize(
    "script, why",
    [("", "no fence command is configured"), ("echo no such outlet >&2; exit 3", "no such outlet")],
    ids=["none", "fails"],
)
def test_a_node_that_may_still_be_writing_is_not_set_down(cluster, script, why):
    with fencing(cluster, script):
        job, node = stuck(cluster, "--gpus=8")
        if script and cluster.site.loses_gpus:
            why = LOSES
        assert told(cluster).endswith(why)
        assert why in cluster.log("ctld/controller.out")
        assert why in cluster.health("job", job).stdout
        assert cluster.state(job) == "COMPLETING"
        cluster.thaw(f"slurmd:{node}")
        assert [one["outcome"] for one in cluster.ran_again()["jobs"]] == ["runs again"]
        cluster.until(lambda: cluster.node_state(node), "drained")


def test_a_neighbour_is_not_ended_for_it(cluster):
    with fencing(cluster, "exit 0") as said:
        neighbour = cluster.running("sleep 300", "--gpus=4", "-w", "n1")
        job, node = stuck(cluster, "--gpus=4", "-w", "n1")
        assert told(cluster) == f"job {neighbour} is on it, too"
        assert not said.exists()
        assert (cluster.state(neighbour), cluster.restarts(neighbour)) == ("RUNNING", 0)
        assert cluster.state(job) == "COMPLETING"
        cluster.thaw(f"slurmd:{node}")
