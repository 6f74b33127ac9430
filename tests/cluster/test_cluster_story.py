"""What a job's owner can find out: what it cost, and why it does not run."""

import datetime
import json
import time

import pytest
from conftest import NOBODY, OF_NOBODY
from receivers import webhook
from test_cluster_access import as_nobody
from test_cluster_checkpoint import DOOMED

pytestmark = pytest.mark.cluster

BY_NOBODY = ("setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups")
SAVES = """
save() { scontrol update jobid=$SLURM_JOB_ID comment="slurm-health: signal=USR1@60 saved=$(date +%s.%N)"; }
trap 'save; exit 1' USR1
save; touch {0}/saved.$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}
sleep 300 & wait
"""


@pytest.mark.parametrize("code", [DOOMED, 79], ids=["signalled", "not"])
def test_a_job_that_says_when_it_saved_learns_what_it_lost(cluster, code):
    began = time.time()
    script = SAVES.replace("{0}", str(cluster.jobs)).replace("{{", "{").replace("}}", "}")
    job = cluster.running(script, "--gpus=8", "--comment=slurm-health: signal=USR1@60", *OF_NOBODY)
    mark = cluster.jobs / f"saved.{job}.0"
    cluster.until(mark.exists, True)
    saved = time.time()
    [node] = cluster.nodes_of(job)
    incident = cluster.ran_again(code=cluster.xid(node, code=code))
    [told] = json.loads(as_nobody(cluster, "job", job, "--json").stdout)
    [its] = told["jobs"]
    assert told["id"] == incident["id"]
    assert its["lost_since"] == "saved"
    if code == DOOMED:  # it saved once more when it was signalled, and ended
        assert its["lost_at_most"] <= its["lost_if_saved_at_signal"]
    else:
        requeued = datetime.datetime.fromisoformat(its["requeued"]).timestamp()
        assert requeued - saved - 0.01 <= its["lost_at_most"] <= requeued - began
        assert its["lost_if_saved_at_signal"] is None
    short = as_nobody(cluster, "job", job).stdout
    assert f"job {job} of nobody, restart 0" in short
    assert f"broke     {node}, GPU " in short
    assert f"runs      on {','.join(cluster.nodes_of(job))} since " in short
    assert "of its work, since it said that it had saved" in short


def test_one_that_says_nothing_is_told_what_it_lost_at_most(cluster):
    job = cluster.running("sleep 300", "--gpus=8", *OF_NOBODY)
    [node] = cluster.nodes_of(job)
    cluster.ran_again(code=cluster.xid(node))
    [told] = json.loads(as_nobody(cluster, "job", job, "--json").stdout)
    [its] = told["jobs"]
    assert its["lost_since"] == "began"
    assert "of its work, since this run began" in as_nobody(cluster, "job", job).stdout
    assert f"no incident touched job {job}, or it is not yours" not in cluster.health("job", job).stdout
    other = cluster.running("sleep 300")
    assert as_nobody(cluster, "job", other).stdout == f"no incident touched job {other}, or it is not yours\n"


def test_a_job_that_needs_more_nodes_than_are_left_is_told(cluster):
    job = cluster.running("sleep 300", "-N4", "--gpus-per-node=8", *OF_NOBODY)
    cluster.xid("n2")
    why = "waits for nodes that are out of service, such as n2: "
    cluster.incident(lambda one: any(why in job["outcome"] for job in one["jobs"]), node="n2")
    fewer = f"scontrol update jobid={job} NumNodes=3"
    told = as_nobody(cluster, "job", job).stdout
    assert f"now       {why}" in told
    assert f"`{fewer}` has it run on fewer than its 4" in told
    note = cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000")
    assert why in note
    assert fewer in note
    assert f"job {job}: {why}" in cluster.log("ctld/controller.out")
    cluster.running("sleep 300")  # who needs fewer runs meanwhile
    cluster.ask(*BY_NOBODY, *fewer.split())
    cluster.ran_again(node="n2")
    assert cluster.nodes_of(job) == ("n1", "n3", "n4")
    assert "; requeued, runs again on n[1,3-4] after " in cluster.output(job)


def test_a_job_that_asks_for_its_broken_node_by_name_is_told(cluster):
    """It waits for ever, and lets others run meanwhile; its owner can let it go elsewhere."""
    with (
        webhook() as hook,
        cluster.configured(f'notify.webhook = "http://127.0.0.1:{hook.port}/"\nnotify.gather = 0'),
    ):
        job = cluster.running("sleep 300", "--gpus=8", "--nodelist=n2", *OF_NOBODY)
        cluster.xid("n2")
        why = "waits for nodes that are out of service, such as n2: ReqNodeNotAvail"
        incident = cluster.incident(lambda one: any(why in job["outcome"] for job in one["jobs"]), node="n2")
        assert [one["settled"] for one in incident["jobs"]] == [None]
        told = as_nobody(cluster, "job", job).stdout
        assert f"now       {why}" in told
        assert f"scontrol update jobid={job} ReqNodeList=" in told
        note = cluster.until(lambda: cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000"), bool)
        assert f"{why}" in note
        assert f"job {job}: {why}" in cluster.log("ctld/controller.out")

        def asked():
            return [
                one["text"] for _, _, said in hook.taken for one in said["events"] if one["event"] == "help"
            ]

        [text] = cluster.until(asked, len)
        assert text.startswith(f"job {job} of uid ")
        assert why in text
        cluster.restart("controller")
        cluster.running("sleep 300")  # all others run
        cluster.ask("scontrol", "update", f"jobid={job}", "ReqNodeList=")
        cluster.ran_again(node="n2")
        assert "n2" not in cluster.nodes_of(job)
        assert len(asked()) == 1
        assert cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000").count(why) == 1
