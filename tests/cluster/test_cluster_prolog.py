"""A fault between a job's allocation and its prolog: the job is refused, and is not left held for that."""

import pytest

from slurm_health.sandbox.cluster import Sandbox

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("which", [0, 1], ids=["batch_host", "other_node"])
def test_a_job_that_our_prolog_refuses_runs_elsewhere(cluster, which):
    hold = [cluster.box.layout.node(name) / "hold" for name in cluster.names]
    for file in hold:
        file.touch()
    job = cluster.submit("sleep 300", "-N2", "--gpus-per-node=8")
    nodes = cluster.until(
        lambda: [name for name in cluster.names if (cluster.box.layout.node(name) / "held").exists()],
        lambda nodes: len(nodes) == 2,
    )
    broken = nodes[which]
    code = cluster.xid(broken)
    cluster.until(lambda: cluster.verdict(broken), "bad")
    for file in hold:
        file.unlink()
    # Slurm 22.05 may start the script for an instant although a prolog has just failed elsewhere.
    runs = cluster.until(lambda: cluster.runs(job), lambda runs: [run for run in runs if run[0] == 1])
    assert broken not in runs[-1][1]
    assert cluster.reason(broken).startswith(f"slurm-health: {code}(")
    incident = cluster.ran_again(code=code)
    [victim] = incident["jobs"]
    assert (victim["job"], victim["outcome"]) == (job, "runs again")
    assert victim["refused"] < victim["running"]
    assert [act["outcome"] for act in incident["actions"] if act["kind"] == "release"] == ["done"]
    assert cluster.state(job) == "RUNNING"
    assert [name for name in cluster.names if not cluster.serves(name)] == [broken]


@pytest.fixture
def stock(cluster):
    """A folder for a plain Slurm beside the cluster."""
    box = Sandbox(f"{cluster.folder}-stock")
    yield box
    box.down()


def test_stock_slurm_leaves_such_a_job_held(cluster, stock, tmp_path):
    """What we are for: the same with a prolog that fails, and nobody to look after the job."""
    hook = tmp_path / "prolog"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    stock.up(nodes=1, gpus=0, ports=0, nics=0, health=False, slurm_conf=[f"Prolog={hook}"])
    cluster.ask("sbatch", "--chdir=/", "--output=/dev/null", "--wrap", "true", box=stock)
    look = ("squeue", "-h", "-O", "Reason:40")
    cluster.until(lambda: cluster.ask(*look, box=stock), "launch failed requeued held")
    assert cluster.ask("sinfo", "-h", "-o", "%E", box=stock) == "Prolog error"


def test_a_resume_stands_also_against_our_own_refusal(cluster):
    """The controller learns of the RESUME only after the prolog has refused a job for the old verdict."""
    code = cluster.xid("n1")
    cluster.until(lambda: cluster.verdict("n1"), "bad")
    job = cluster.submit("sleep 300", "-w", "n1", "--gpus=8")
    cluster.until(
        lambda: cluster.ask("squeue", "-h", "-j", job, "-o", "%r"), lambda why: "ReqNodeNotAvail" in why
    )
    cluster.freeze("controller")
    cluster.resume("n1")
    cluster.until(lambda: cluster.reason("n1"), "Prolog error")
    cluster.until(
        lambda: cluster.ask("squeue", "-h", "-j", job, "-O", "Reason:40"), "launch failed requeued held"
    )
    cluster.thaw("controller")
    [(restarts, nodes, _)] = cluster.until(lambda: cluster.runs(job), len)
    assert (restarts, nodes) == (1, ("n1",))
    assert cluster.serves("n1")
    assert cluster.reason("n1") == "none"
    assert cluster.verdict("n1") != "bad"
    incident = cluster.incident(lambda one: one["acknowledged"], code=code)
    assert [act["outcome"] for act in incident["actions"] if act["kind"] == "resume"] == ["done"]
    assert len([act for act in incident["actions"] if act["kind"] == "drain"]) == 1
