"""The admin's hand counts more than ours."""

import pytest

pytestmark = pytest.mark.cluster


def test_a_node_that_an_admin_drained_is_not_touched(cluster):
    cluster.drain("n2", "fan, ticket 4711")
    since = cluster.ask("sinfo", "-h", "-n", "n2", "-o", "%E %H")
    code = cluster.xid("n2")
    incident = cluster.incident(lambda one: one["held"], code=code)
    assert incident["held"] == "drained by somebody else: fan, ticket 4711"
    assert incident["actions"] == []
    assert cluster.ask("sinfo", "-h", "-n", "n2", "-o", "%E %H") == since
    assert cluster.verdict("n2") != "bad"
    # Its RESUME tells that the admin has seen what stands against the node.
    cluster.resume("n2")
    cluster.incident(lambda one: one["acknowledged"] and one["actions"] == [], code=code)
    cluster.running("sleep 300", "-w", "n2", "--gpus=8")


def test_our_reason_with_an_admins_addition_is_the_admins(cluster):
    first = cluster.xid("n2", gpu=3)
    cluster.until(lambda: cluster.verdict("n2"), "bad")
    ours = cluster.reason("n2")
    assert ours.startswith(f"slurm-health: {first}(")
    cluster.drain("n2", f"{ours}; RMA 4711, bob")
    held = f"drained by somebody else: {ours}; RMA 4711, bob"
    cluster.incident(lambda one: one["held"] == held, code=first)
    second = cluster.xid("n2", gpu=4)
    incident = cluster.incident(lambda one: one["held"] == held, code=second, device="0000:9a:00.0")
    assert incident["actions"] == []
    for one in cluster.incidents():
        cluster.health("incidents", "close", str(one["id"]))
    third = cluster.xid("n2", gpu=5)
    incident = cluster.incident(lambda one: one["held"] == held, code=third, device="0000:ab:00.0")
    assert incident["actions"] == []
    assert cluster.reason("n2") == f"{ours}; RMA 4711, bob"
    assert cluster.node_state("n2") == "drained"


def test_a_resume_stands_until_there_is_new_evidence(cluster):
    cluster.inject("n1", "gpu-lost", gpu=3)
    cluster.until(lambda: cluster.verdict("n1"), "bad")
    job = cluster.submit("sleep 300", "-w", "n1", "--gpus=7")
    cluster.until(
        lambda: cluster.ask("squeue", "-h", "-j", job, "-o", "%r"), lambda why: "ReqNodeNotAvail" in why
    )
    cluster.resume("n1")
    # The fault is still there, and the job waits: it runs, whether or not our prolog refused it at first.
    cluster.until(lambda: cluster.runs(job), len)
    incident = cluster.incident(lambda one: one["acknowledged"], code="GPU_MISSING")
    assert not incident["closed"]
    cluster.until(lambda: cluster.verdict("n1"), "warn")
    assert cluster.serves("n1")
    assert cluster.reason("n1") == "none"
    assert cluster.state(job) == "RUNNING"

    code = cluster.xid("n1", gpu=5)
    cluster.until(lambda: cluster.reason("n1"), lambda reason: reason.startswith(f"slurm-health: {code}("))
    cluster.until(lambda: cluster.verdict("n1"), "bad")
    # Had the old fault drained it again, this would be its reason.
    assert [act["kind"] for act in cluster.incident(code="GPU_MISSING")["actions"]].count("drain") == 1


def test_a_fault_right_after_a_resume_is_new_evidence(cluster):
    """The controller looks every two seconds: what breaks in between, no admin has weighed."""
    first = cluster.xid("n1", gpu=0)
    cluster.incident(lambda one: one["seconds_to_drained"] is not None, code=first)
    cluster.resume("n1")
    second = cluster.xid("n1", gpu=0)
    cluster.until(lambda: cluster.reason("n1"), lambda reason: reason.startswith(f"slurm-health: {second}("))
    assert cluster.incident(code=first)["closed_by"] == "an admin's RESUME"


def test_so_is_one_while_our_prolog_still_refuses_jobs(cluster):
    """The job that came at once had the node drained anew, by Slurm, before the RESUME was seen."""
    first = cluster.xid("n1", gpu=0)
    cluster.until(lambda: cluster.reason("n1"), lambda reason: reason.startswith(f"slurm-health: {first}("))
    cluster.until(lambda: cluster.verdict("n1"), "bad")
    job = cluster.submit("sleep 300", "-w", "n1", "--gpus=8")
    cluster.freeze("controller")
    cluster.resume("n1")
    cluster.until(lambda: cluster.reason("n1"), "Prolog error")
    second = cluster.xid("n1", gpu=0)
    cluster.thaw("controller")
    cluster.until(lambda: cluster.reason("n1"), lambda reason: reason.startswith(f"slurm-health: {second}("))
    assert cluster.incident(code=first)["closed_by"] == "an admin's RESUME"
    assert cluster.health_json("status")["drained"] == "n1"
    cluster.until(
        lambda: cluster.ask("squeue", "-h", "-j", job, "-o", "%r"), lambda why: "ReqNodeNotAvail" in why
    )
