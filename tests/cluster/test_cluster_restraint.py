"""Where we are not to act, Slurm is not touched, no job refused, and it is told what would have been done."""

import pytest

pytestmark = pytest.mark.cluster


def changes(cluster):
    """What slurmctld was asked to change since the test began."""
    said = cluster.log("ctld/slurmctld.log").splitlines()
    return [line for line in said if any(word in line for word in ("update_node", "update_job", "Requeuing"))]


def held_back(cluster, job, node, code, why):
    """Check that a fault under a job was noted and no more."""
    acts = [("drain", node, f"not done: {why}"), ("requeue", job, f"not done: {why}")]
    incident = cluster.incident(lambda one: len(one["actions"]) == len(acts), code=code, node=node)
    assert incident["held"] == why
    assert [(act["kind"], act["target"], act["outcome"]) for act in incident["actions"]] == acts
    assert all(act["done"] for act in incident["actions"])
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
    assert cluster.reason(node) == "none"
    cluster.until(lambda: cluster.verdict(node), "warn")
    assert "refuse jobs" not in cluster.log(f"nodes/{node}/log/node.out")
    return incident


def test_mode_observe(cluster):
    job = cluster.running("sleep 300", "--gpus=7")
    [node] = cluster.nodes_of(job)
    with cluster.configured('mode = "observe"'):
        code = cluster.xid(node)
        held_back(cluster, job, node, code, "mode is observe")
        [shown] = cluster.health_json("incidents")
        assert shown["held"] == "mode is observe"
        assert "mode is observe" in cluster.health("status").stdout
        cluster.running("sleep 300", "-w", node, "--gpus=1")
        assert changes(cluster) == []


def test_pause_and_unpause(cluster):
    job = cluster.running("sleep 300", "--gpus=7")
    [node] = cluster.nodes_of(job)
    assert cluster.health("pause", "1h", "--reason", "switch is being replaced").returncode == 0
    code = cluster.xid(node)
    held_back(cluster, job, node, code, "paused")
    cluster.running("sleep 300", "-w", node, "--gpus=1")
    assert changes(cluster) == []
    assert cluster.health("unpause").returncode == 0
    cluster.until(lambda: len(cluster.runs(job)), 2)
    assert cluster.reason(node).startswith(f"slurm-health: {code}(")
    incident = cluster.ran_again(code=code)
    assert incident["held"] == ""


def test_a_spent_budget(cluster):
    with cluster.configured("[budget]\nat_least = 2\nwindow_at_least = 100"):
        for node in ("n1", "n2"):
            cluster.xid(node)
            cluster.until(lambda node=node: cluster.verdict(node), "bad")
        job = cluster.running("sleep 300", "--gpus=7")
        [node] = cluster.nodes_of(job)
        code = cluster.xid(node)
        held_back(cluster, job, node, code, "budget spent: 2 of 4 nodes are out by us, at most 2 may be")
        cluster.running("sleep 300", "-w", node, "--gpus=1")
        assert [line.split("update_node: node ")[1].split()[0] for line in changes(cluster)] == [
            "n1",
            "n1",
            "n2",
            "n2",
        ]
        # When there is room again the fault is still known.
        cluster.resume("n1")
        cluster.until(
            lambda: cluster.reason(node), lambda reason: reason.startswith(f"slurm-health: {code}(")
        )
        cluster.until(lambda: len(cluster.runs(job)), 2)
