"""A job that breaks one node after the other is itself suspect."""

import time

import pytest

from slurm_health.host import uptime

pytestmark = pytest.mark.cluster


def test_a_job_that_breaks_nodes_is_held_and_the_third_node_left_alone(cluster):
    code = cluster.xid("n4", code=79)  # a node less: the job has one to go to each time
    job = cluster.running("sleep 300", "--gpus=8")
    met = []
    for runs in (1, 2):
        cluster.until(lambda runs=runs: len(cluster.runs(job)), runs)
        [node] = cluster.nodes_of(job)
        cluster.xid(node, code=79)
        cluster.until(lambda node=node: cluster.reason(node), lambda reason: code in reason)
        met.append(node)
    why = f"held: it met {code} on {met[0]}, {met[1]}, each time soon after it had begun"
    second = cluster.ran_again(node=met[1])
    assert [one["outcome"] for one in second["jobs"]] == [why]
    cluster.until(lambda: (cluster.state(job), cluster.restarts(job)), ("PENDING", 2))
    assert "held" in cluster.ask("squeue", "-h", "-j", job, "-o", "%r").lower()
    assert why in cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000")
    assert f"job {job} is held: it met {code} on" in cluster.output(job)
    assert f"job {job} of uid 0 is held" in cluster.log("ctld/controller.out")

    then = int(time.time())
    cluster.until(lambda: int(time.time()) > then, True)
    cluster.ask("scontrol", "release", job)  # an admin takes it upon him, and ends Slurm's own wait
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    cluster.until(lambda: len(cluster.runs(job)), 3)
    [third] = cluster.nodes_of(job)
    assert third not in met
    cluster.xid(third, code=79)
    left = cluster.incident(lambda one: one["held"] and len(one["actions"]) == 2, node=third)
    assert left["held"].startswith(f"suspect job: {job} met {code} on {met[0]}, {met[1]}, {third},")
    assert {(act["kind"], act["outcome"]) for act in left["actions"]} == {
        ("drain", f"not done: {left['held']}"),
        ("requeue", f"not done: {left['held']}"),
    }
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 2)
    # It stays so when the job is gone, until there is evidence that cannot be its own.
    cluster.ask("scancel", job)
    cluster.until(lambda: cluster.node_state(third), "idle")
    another = cluster.running("sleep 300", "-w", third, "--gpus=8")
    ended = next((cluster.box.layout.node(third) / "run/jobs").glob(f"{job}.*")).read_text()
    up = int(ended.partition("ended=")[2].split()[0])
    cluster.until(uptime, lambda now: now > up + 4)
    assert cluster.serves(third)
    cluster.xid(third, code=79)
    cluster.until(lambda: cluster.reason(third), lambda reason: code in reason)
    cluster.until(lambda: cluster.restarts(another), 1)
