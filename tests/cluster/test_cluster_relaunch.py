"""Jobs whose batch host stays are started there again: none dies of its launch, none misses its prolog."""

import time

import pytest

pytestmark = pytest.mark.cluster

JOBS = 4  # bench/relaunch.py has eight, hundreds of times


def test_jobs_are_started_again_on_the_same_batch_host(cluster):
    """A launch in the very second of the requeue would be refused there: "Job credential revoked"."""
    cluster.drain("n4", "out of this test")  # the only way back is by the first node and the third
    alike = ["-N2", "--ntasks-per-node=1", "-c1", "--gpus-per-node=1"]
    jobs = [cluster.submit("exec sleep 300", *alike) for _ in range(JOBS)]
    cluster.until(lambda: all(cluster.runs(job) for job in jobs), True)
    assert {cluster.nodes_of(job) for job in jobs} == {("n1", "n2")}
    # Early in a second: there is time to do wrong in the same one.
    cluster.until(lambda: time.time() % 1, lambda part: part < 0.2)
    for gpu in range(JOBS):
        cluster.xid("n2", gpu=gpu)

    story = lambda: [job for one in cluster.incidents(node="n2") for job in one["jobs"]]  # noqa: E731
    told = cluster.until(story, lambda told: len(told) == JOBS and all(one["settled"] for one in told))
    assert {(one["job"], one["outcome"]) for one in told} == {(job, "runs again") for job in jobs}
    for job in jobs:
        cluster.started(job, 1)
        assert [run[:2] for run in cluster.runs(job)] == [(0, ("n1", "n2")), (1, ("n1", "n3"))]
        assert cluster.ask("squeue", "-h", "-j", job, "-o", "%T %B") == "RUNNING n1"
        assert cluster.restarts(job) == 1
        for node in ("n1", "n3"):  # its prolog ran there, though slurmd forgets one run in two seconds
            assert (cluster.box.layout.node(node) / f"run/jobs/{job}.1").exists()
    for said in ("ctld/slurmctld.log", "nodes/n1/log/slurmd.log", "nodes/n3/log/slurmd.log"):
        assert "revoked" not in cluster.log(said)
        assert "do not launch" not in cluster.log(said)
