"""Jobs submitted with --requeue=expedite, which Slurm itself runs again at once where our epilog failed."""

import re
import time

import pytest

from slurm_health.policy.touch import SLACK

pytestmark = pytest.mark.cluster

# It lives until it is told to die, and dies in its own way: Slurm expedites none that a signal ended.
DIES = "until [ -e {0}/die ]; do sleep 0.05; done; rm {0}/die; exit 3"
FINISH = 143  # an Xid after which jobs may go on


@pytest.fixture(autouse=True)
def _expedites(cluster):
    if tuple(map(int, re.findall(r"\d+", cluster.slurm)[:2])) < (25, 11):
        pytest.skip("this Slurm does not expedite (from 25.11)")


def expedited(cluster, *options):
    script = f"[ ${{SLURM_RESTART_COUNT:-0}} = 0 ] || exec sleep 300; {DIES.format(cluster.jobs)}"
    return cluster.running(script, "--requeue=expedite", "--open-mode=append", *options)


def die(cluster):
    (cluster.jobs / "die").touch()


def story(incident):
    return [(act["kind"], act["outcome"]) for act in incident["actions"]]


def test_it_runs_at_once_on_its_good_node_and_another(cluster):
    job = expedited(cluster, "-N2", "--gpus-per-node=8")
    broken, good = cluster.nodes_of(job)
    code = cluster.xid(broken, code=FINISH)
    cluster.until(lambda: cluster.verdict(broken), "bad")
    die(cluster)
    incident = cluster.ran_again(code=code)
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    assert story(incident) == [("drain", "done"), ("tell", "done")]
    assert good in cluster.nodes_of(job)
    assert broken not in cluster.nodes_of(job)
    assert (cluster.restarts(job), len(cluster.runs(job))) == (1, 2)
    assert re.search(rf"{broken}, GPU \d: {code}\(", cluster.output(job))
    assert cluster.reason(broken).startswith(f"slurm-health: {code}(")
    assert f"job {job} of root: ran again on" in cluster.health("job", job).stdout


def test_a_live_one_is_requeued_as_any_other(cluster):
    job = expedited(cluster, "-N2", "--gpus-per-node=8")
    broken, _ = cluster.nodes_of(job)
    code = cluster.xid(broken)
    incident = cluster.ran_again(code=code)
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    assert (cluster.restarts(job), len(cluster.runs(job))) == (1, 2)
    assert broken not in cluster.nodes_of(job)


@pytest.mark.parametrize("fault", ["xid", "ib-down"])
def test_one_that_died_before_we_knew_is_released(cluster, fault):
    """Its epilogs were all well, so Slurm holds it; the fault was the node's."""
    job = expedited(cluster, "-N2", "--gpus-per-node=8")
    broken, _ = cluster.nodes_of(job)
    cluster.box.stop("controller")
    if fault == "xid":
        cluster.xid(broken)
    else:
        cluster.inject(broken, fault, port=1)
    spool = cluster.box.layout.node(broken) / "state/spool"
    cluster.until(lambda: spool.exists() and re.search("GPU_XID|IB_PORT_DOWN", spool.read_text()), bool)
    die(cluster)
    cluster.until(lambda: cluster.state(job), "REQUEUE_HOLD")
    cluster.start("controller")
    incident = cluster.ran_again(node=broken)
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    assert ("release", "done") in story(incident)
    assert "requeue" not in dict(story(incident))
    assert (cluster.restarts(job), len(cluster.runs(job))) == (1, 2)
    assert broken not in cluster.nodes_of(job)


def test_one_that_died_of_its_own_stays_held(cluster):
    job = expedited(cluster, "--gpus=8")
    [node] = cluster.nodes_of(job)
    die(cluster)
    cluster.until(lambda: cluster.state(job), "REQUEUE_HOLD")
    died = time.time()
    cluster.until(lambda: time.time() > died + SLACK + 1, True)
    other = cluster.xid(node)
    cluster.until(lambda: cluster.verdict(node), "bad")
    assert cluster.incident(code=other)["jobs"] == []
    assert cluster.state(job) == "REQUEUE_HOLD"
