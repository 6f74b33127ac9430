"""Sixteen nodes: all break at once, and one job breaks them one after the other."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from ClusterShell.NodeSet import NodeSet
from conftest import OF_NOBODY, Cluster
from test_cluster_access import as_nobody
from test_cluster_requeue import done

pytestmark = pytest.mark.cluster

BUDGET = "[budget]\nat_least = 2\nwindow_at_least = 2"  # as a site has it that says nothing


class Large(Cluster):
    NODES = 16


@pytest.fixture(scope="module")
def _large(_standing):
    while _standing:  # one cluster at a time
        _standing.pop().down()
    one = Large()
    try:
        one.up()
        yield one
    finally:
        one.down()


@pytest.fixture
def cluster(_large):
    _large.heal()
    yield _large
    _large.only_drained()


def drains(cluster):
    said = cluster.log("ctld/slurmctld.log").splitlines()
    return sorted(line.split()[3] for line in said if "state set to DRAIN" in line)


def test_a_poison_job_drains_two_nodes_and_its_owner_can_read_why_it_is_held(cluster):
    job = cluster.running("sleep 300", "--gpus=8", *OF_NOBODY)
    met = []
    for runs in (1, 2):
        cluster.until(lambda runs=runs: len(cluster.runs(job)), runs)
        met += cluster.nodes_of(job)
        code = cluster.xid(met[-1], code=79)
    why = f"it met {code} on {met[0]}, {met[1]}, each time soon after it had begun"
    cluster.ran_again(node=met[1])
    cluster.until(lambda: (cluster.state(job), cluster.restarts(job)), ("PENDING", 2))
    assert f"held: {why}" in as_nobody(cluster, "job", job).stdout
    assert f"held: {why}" in cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000")
    assert f"job {job} of uid 65534 is held: {why}" in cluster.log("ctld/controller.out")
    assert drains(cluster) == sorted(met)
    assert [name for name in cluster.names if not cluster.serves(name)] == sorted(
        met, key=cluster.names.index
    )


@pytest.fixture
def limited(cluster):
    with cluster.configured(BUDGET):
        yield


def test_a_storm_stays_inside_the_budget(cluster, limited):
    """Two nodes go out, their jobs come back; the others serve on, their jobs run on, and it is told why."""
    jobs = {}
    for _ in range(6):
        job = cluster.running("sleep 300", "--gpus=8")
        jobs[cluster.nodes_of(job)[0]] = job
    with ThreadPoolExecutor(len(cluster.names)) as pool:
        for said in [pool.submit(cluster.xid, name, 3, 79) for name in cluster.names]:
            said.result()
    found = cluster.until(
        cluster.incidents,
        lambda seen: len(seen) == 16 and all(one["held"] or done(one, "drain") for one in seen),
        60,
    )
    out = [one["node"] for one in found if done(one, "drain")]
    assert len(out) == 2
    assert NodeSet(cluster.health_json("status")["drained"]) == NodeSet.fromlist(out)
    late = "budget spent: 2 nodes drained lately, at most 2 may be in the window"
    many = "budget spent: 2 of 16 nodes are out by us, at most 2 may be"
    assert {one["held"] for one in found if one["node"] not in out} <= {many, late}
    for node in set(jobs) & set(out):
        cluster.until(lambda node=node: cluster.restarts(jobs[node]), 1)
        cluster.ran_again(node=node)
        assert not set(cluster.nodes_of(jobs[node])) & set(out)
    # When a node is back the window is still spent.
    cluster.resume(out[0])
    cluster.until(lambda: {one["held"] for one in cluster.incidents() if one["node"] not in out}, {late})
    assert drains(cluster) == sorted(out)
    assert [name for name in cluster.names if not cluster.serves(name)] == out[1:]
    for node in set(jobs) - set(out):
        assert (cluster.state(jobs[node]), cluster.restarts(jobs[node])) == ("RUNNING", 0)
