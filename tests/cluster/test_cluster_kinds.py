"""What becomes of each kind of job whose GPU breaks, and of those who depend on it."""

import contextlib
import os
import subprocess
import time

import pytest
from test_cluster_requeue import done, requeued

pytestmark = pytest.mark.cluster


def story(incident):
    return [(job["job"], job["outcome"]) for job in incident["jobs"]]


def waiting(cluster, end):
    """A script that runs until the file `go` is there, and ends so."""
    (cluster.jobs / "go").unlink(missing_ok=True)
    return f"while [ ! -e {cluster.jobs}/go ]; do sleep 0.02; done; {end}"


@pytest.mark.parametrize(
    "kind, dies", [("afterok", False), ("afterany", False), ("afternotok", False), ("afterok", True)]
)
def test_who_depends_on_a_job_waits_until_it_has_come_back_and_ended(cluster, kind, dies):
    first = f"[ ${{SLURM_RESTART_COUNT:-0}} = 0 ] && {{ {waiting(cluster, 'exit 3')}; }}; sleep 3"
    job = cluster.running(first, "--gpus=8")
    after = cluster.submit("true", f"--dependency={kind}:{job}")
    [node] = cluster.nodes_of(job)
    cluster.xid(node)
    if dies:
        (cluster.jobs / "go").touch()
    requeued(cluster, job, node, many=1)
    assert story(cluster.ran_again(node=node)) == [(job, "runs again")]
    assert (cluster.state(after), cluster.runs(after)) == ("PENDING", [])
    cluster.until(lambda: cluster.state(job), "COMPLETED")
    if kind == "afternotok":
        never = lambda: cluster.ask("squeue", "-h", "-j", after, "-o", "%T %r")  # noqa: E731
        cluster.until(never, "PENDING DependencyNeverSatisfied")
        assert cluster.runs(after) == []
        cluster.ask("scancel", after)
    else:
        cluster.until(lambda: cluster.state(after), "COMPLETED")
        assert len(cluster.runs(after)) == 1


def test_a_job_that_an_admin_suspended_is_requeued_and_stays_held(cluster):
    """By Slurm. Whoever suspended it says when it may run, and it does so elsewhere."""
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    cluster.ask("scontrol", "suspend", job)
    cluster.until(lambda: cluster.state(job), "SUSPENDED")
    cluster.xid(node)
    assert story(cluster.ran_again(node=node)) == [(job, "held by somebody else: JobHeldAdmin")]
    assert (cluster.state(job), cluster.restarts(job)) == ("PENDING", 1)
    assert "held by somebody else: JobHeldAdmin" in cluster.health("job", job).stdout
    cluster.ask("scontrol", "release", job)
    then = int(time.time())
    cluster.until(lambda: int(time.time()) > then, True)
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # which it would do in two minutes
    requeued(cluster, job, node, many=1)
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 1)


@pytest.fixture
def urgent_partition(cluster):
    cluster.ask("scontrol", "create", "PartitionName=urgent", "Nodes=ALL", "PriorityTier=10")
    yield
    cluster.ask("scancel", "--partition=urgent")
    cluster.until(lambda: cluster.ask("squeue", "-h", "-p", "urgent"), "")
    cluster.ask("scontrol", "delete", "PartitionName=urgent")


@pytest.mark.parametrize("first", ["fault", "preemption"])
def test_a_job_that_is_preempted_meanwhile_is_requeued_once(cluster, urgent_partition, first):
    """By Slurm, which then lets it wait. Who made it leave is brought back from the node that broke."""
    for other in ("n2", "n3", "n4"):
        cluster.drain(other, "out of this test")
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    cluster.freeze("controller")
    if first == "fault":
        cluster.xid(node)
    urgent = cluster.running("sleep 300", "--partition=urgent", "--gpus=8")
    assert (cluster.nodes_of(urgent), cluster.restarts(job)) == ((node,), 1)
    if first == "preemption":
        cluster.xid(node)
    cluster.thaw("controller")
    cluster.until(lambda: cluster.restarts(urgent), 1)
    cluster.resume("n2")
    requeued(cluster, urgent, node, many=1)
    told = dict(story(cluster.ran_again(node=node)))
    assert told.pop(urgent) == "runs again"
    assert set(told.items()) <= {(job, "requeued by somebody else")}
    assert (cluster.state(job), cluster.restarts(job)) == ("PENDING", 1)
    assert (cluster.state(urgent), cluster.restarts(urgent)) == ("RUNNING", 1)


def test_a_job_that_has_ended_and_is_still_leaving_is_left_alone(cluster):
    job = cluster.running(waiting(cluster, "exit 0"), "--gpus=8")
    [node] = cluster.nodes_of(job)
    cluster.freeze(f"slurmd:{node}")
    (cluster.jobs / "go").touch()
    cluster.until(lambda: cluster.state(job), "COMPLETING")
    code = cluster.xid(node)
    cluster.until(lambda: cluster.reason(node), lambda reason: code in reason)
    assert cluster.state(job) == "COMPLETING"
    cluster.thaw(f"slurmd:{node}")
    cluster.until(lambda: cluster.state(job), "COMPLETED")
    assert story(cluster.ran_again(node=node)) == [(job, "COMPLETED: not ours to bring back")]
    assert (cluster.restarts(job), len(cluster.runs(job))) == (0, 1)
    cluster.until(lambda: cluster.node_state(node), "drained")


@pytest.mark.parametrize("command", [["srun"], ["salloc"]], ids=" ".join)
def test_an_interactive_job_is_told_and_never_requeued(cluster, command):
    argv = [*command, "--gpus=8", "--job-name=hands-on", "sleep", "300"]
    env = {**os.environ, **cluster.box.env()}
    with (
        subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as typed,
        contextlib.ExitStack() as left,
    ):
        left.callback(typed.kill)
        name = ("squeue", "-h", "-n", "hands-on", "-t", "running", "-o", "%A %N")
        job, node = cluster.until(lambda: cluster.ask(*name), len).split()
        code = cluster.xid(node)
        incident = cluster.ran_again(node=node, code=code)
        assert story(incident) == [(job, "interactive: Slurm cannot requeue it")]
        assert [len(done(incident, kind)) for kind in ("drain", "requeue", "tell")] == [1, 0, 1]
        assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
        assert cluster.node_state(node) == "draining"
        cluster.ask("scancel", job)
        _, said = typed.communicate()
    assert f": {code}(" in said
    assert "not requeued: interactive" in said


def test_a_job_that_may_not_be_requeued_is_told(cluster):
    job = cluster.running("sleep 300", "--no-requeue", "--gpus=8")
    [node] = cluster.nodes_of(job)
    code = cluster.xid(node)
    assert story(cluster.ran_again(node=node)) == [(job, "its owner wants no requeue (--no-requeue)")]
    words = "not requeued: its owner wants no requeue (--no-requeue)"
    said = cluster.until(lambda: cluster.output(job), lambda text: words in text)
    assert f": {code}(" in said
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
