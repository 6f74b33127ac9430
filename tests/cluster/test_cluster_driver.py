"""NVML that hangs or fails is a finding, not the end of the daemon."""

import psutil
import pytest

pytestmark = pytest.mark.cluster


def heartbeat(cluster, node):
    return int((cluster.box.layout.node(node) / "run/verdict").read_text().split()[1])


def test_a_driver_that_hangs_is_named_and_holds_up_nothing(cluster):
    daemon = psutil.Process(cluster.box.pid("node:n1"))
    cluster.inject("n1", "driver-hang")
    incident = cluster.incident(
        lambda one: any(act["done"] for act in one["actions"]), code="GPU_DRIVER_HUNG"
    )
    assert incident["severity"] == "critical"
    assert "5 s" in incident["evidence"][0]["line"]
    assert cluster.reason("n1").startswith("slurm-health: GPU_DRIVER_HUNG() ")
    cluster.until(lambda: cluster.verdict("n1"), "bad")
    beat = heartbeat(cluster, "n1")
    cluster.until(lambda: heartbeat(cluster, "n1"), lambda now: now > beat)
    cluster.xid("n1", code=13)  # and it goes on sensing
    cluster.incident(code="GPU_XID_13")
    children = daemon.children(recursive=True)
    assert children
    cluster.box._daemon("node:n1").stop(patience=5.0)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_driver_that_fails_while_gpus_are_on_pci_drains(cluster):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    cluster.inject(node, "driver-failed")
    cluster.until(
        lambda: cluster.reason(node), lambda reason: reason.startswith("slurm-health: GPU_DRIVER_FAILED() ")
    )
    incident = cluster.incident(lambda one: one["jobs"], code="GPU_DRIVER_FAILED")
    assert incident["evidence"][0]["line"]
    # Who holds its GPU already may not need the driver's management: it is left to end.
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
    assert cluster.node_state(node) == "draining"
