"""Whoever of us or of Slurm was away when it happened: it is made good, and done once."""

import signal

import pytest

pytestmark = pytest.mark.cluster


def acts(incident, kind):
    return [act["outcome"] for act in incident["actions"] if act["kind"] == kind]


def saved(cluster, job):
    """Wait until slurmctld has saved what it knows by now, which it does when something has changed."""
    file = cluster.box.layout.ctld / "state/job_state"
    when = lambda: file.stat().st_mtime_ns if file.exists() else 0  # noqa: E731
    before = when()
    cluster.ask("scontrol", "update", f"JobId={job}", "JobName=changed")
    cluster.until(when, lambda now: now != before)


def all_followed_once(cluster, job, node, code):
    cluster.until(lambda: len(cluster.runs(job)), 2)
    assert cluster.reason(node).startswith(f"slurm-health: {code}(")
    incident = cluster.ran_again(code=code)
    assert incident["count"] == len(incident["evidence"]) == 1
    assert acts(incident, "drain") == acts(incident, "requeue") == ["done"]
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    assert len(cluster.incidents()) == 1
    assert len(cluster.runs(job)) == 2
    assert cluster.restarts(job) == 1


@pytest.mark.parametrize("kill", [False, True], ids=["lives_on", "dies_with_it"])
def test_the_controller_was_down(cluster, kill):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    cluster.box.stop("controller")
    code = cluster.xid(node, kill=kill)
    if kill:
        cluster.until(lambda: cluster.state(job), "FAILED")
    spool = cluster.box.layout.node(node) / "state/spool"
    cluster.until(lambda: spool.exists() and code in spool.read_text(), True)
    cluster.start("controller")
    all_followed_once(cluster, job, node, code)


def test_slurmctld_does_not_answer_for_a_while(cluster):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    with cluster.configured('[slurm]\ndeadline = "2s"'):
        cluster.freeze("slurmctld")
        code = cluster.xid(node)
        cluster.until(
            lambda: cluster.health_json("status")["slurm"]["trouble"], lambda words: "no answer" in words
        )
        assert cluster.health("status").returncode == 3
        cluster.thaw("slurmctld")
        all_followed_once(cluster, job, node, code)
        assert [name for name in cluster.names if not cluster.serves(name)] == [node]
        cluster.until(lambda: cluster.health_json("status")["slurm"]["trouble"], "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
def test_slurmctld_is_gone_while_actions_are_under_way(cluster, how):
    """A killed one forgets what it was told in its last seconds, drains too."""
    submitted = [cluster.running("sleep 300", "--gpus=8") for _ in range(2)]
    jobs = {cluster.nodes_of(job)[0]: job for job in submitted}
    saved(cluster, submitted[0])
    codes = {node: cluster.xid(node) for node in jobs}
    cluster.until(lambda: [act for one in cluster.incidents() for act in one["actions"]], len)
    cluster.restart("slurmctld", how)
    for node, code in codes.items():
        incident = cluster.ran_again(code=code, node=node)
        assert cluster.reason(node).startswith(f"slurm-health: {code}(")
        assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(jobs[node], "runs again")]
        assert (incident["acknowledged"], incident["closed"]) == (None, None)
    for node, job in jobs.items():
        assert node not in cluster.nodes_of(job)
        assert len(cluster.runs(job)) == 2
    assert len(cluster.incidents()) == 2
