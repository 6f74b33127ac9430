"""What is not the hardware's fault is recorded at most, and what the kernel did not say is not even that."""

import pytest

pytestmark = pytest.mark.cluster


def untouched(cluster):
    """Whether slurmctld was asked for no change of a node or a job."""
    said = cluster.log("ctld/slurmctld.log")
    return not any(word in said for word in ("update_node", "update_job", "Requeuing"))


def test_errors_of_applications_are_recorded_and_nothing_is_done(cluster):
    job = cluster.running("sleep 300", "-N4", "--gpus-per-node=8")
    assert cluster.nodes_of(job) == tuple(cluster.names)
    codes = (13, 31, 43, 45)
    for node in cluster.names:
        for code in codes:
            cluster.xid(node, code=code)
    found = cluster.until(cluster.incidents, lambda found: len(found) == len(codes) * len(cluster.names))
    assert {(one["node"], one["code"]) for one in found} == {
        (node, f"GPU_XID_{code}") for node in cluster.names for code in codes
    }
    for one in cluster.incidents():
        assert (one["severity"], one["job"], one["actions"], one["jobs"]) == ("warning", "none", [], [])
        assert one["evidence"]
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
    assert [cluster.reason(node) for node in cluster.names] == ["none"] * 4
    assert "bad" not in [cluster.verdict(node) for node in cluster.names]
    assert untouched(cluster)
    assert cluster.health("status").returncode == 1


def test_what_a_user_can_bring_about_is_recorded_and_nothing_is_done(cluster):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    for fault, code in (
        ("hung-task", "KERNEL_HUNG_TASK"),
        ("oom", "KERNEL_OOM"),
        ("lockup", "KERNEL_LOCKUP"),
    ):
        cluster.inject(node, fault)
        incident = cluster.incident(code=code, node=node)
        assert (incident["severity"], incident["job"], incident["actions"], incident["jobs"]) == (
            "warning", "none", [], []
        )  # fmt: skip
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
    assert cluster.reason(node) == "none"
    assert cluster.verdict(node) != "bad"
    assert untouched(cluster)


def test_a_fatal_pcie_error_of_a_gpu_drains_its_node_and_lets_the_job_end(cluster):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    cluster.inject(node, "aer", gpu=2, text="corrected")
    cluster.inject(node, "aer", gpu=2)
    cluster.until(lambda: cluster.reason(node).partition(") ")[0], "slurm-health: PCIE_ERRORS(0000:3a:00.0")
    incident = cluster.incident(code="PCIE_ERRORS", node=node)
    assert (incident["severity"], incident["job"], incident["count"]) == ("critical", "finish", 1)
    assert "(Fatal) error message received from 0000:3a:00.0" in incident["evidence"][0]["line"]
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)


def test_what_the_kernel_did_not_say_is_nothing(cluster):
    xid = "NVRM: Xid (PCI:0000:5d:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    crash = (
        "segfault at 0 ip 000055d0c0de1139 sp 00007ffc3d2e4a10 error 4 in a.out[55d0c0de1000+1000]"
        " likely on CPU 3 (core 3, socket 0)"
    )
    cluster.inject("n1", "user-kmsg", text=xid)
    cluster.inject("n1", "user-kmsg", text=f"systemd[1]: {xid}")
    for line in (
        f"kernel: {xid}",
        f"Nov 21 05:18:11 n1 kernel: {xid}",
        f"[ 4108.281337] {xid}",
        f"NVRM: Xid (PCI:[4242]: {crash}",
        f"NVRM: Xid 79[4242]: {crash}",
        f"x\n{xid}",
    ):
        cluster.inject("n1", "kmsg", text=line)
    cluster.xid("n1", code=13)  # read after all of these
    cluster.until(cluster.incidents, len)
    assert [(one["code"], one["severity"]) for one in cluster.incidents()] == [("GPU_XID_13", "warning")]
    assert cluster.reason("n1") == "none"
    assert untouched(cluster)
