"""A fault that a job survives, but should leave: it is signalled if it asked, and loses nothing.

And the other words that its owner may write for us: how often, or not at all.
"""

import sys

import pytest
from conftest import OF_NOBODY
from test_cluster_crashes import DRAIN, REQUEUE, STORY, all_was_done_once, ordeal
from test_cluster_requeue import bus, requeued

pytestmark = pytest.mark.cluster

DOOMED = (156, 155, 54)  # Xids of a GPU that works still (the latter two by the site's word)
# Notes each USR1 that comes, and goes on or ends as the test says; counts on from what was saved.
TRAINING = """\
saved={folder}/saved.$SLURM_JOB_ID
trap 'echo signalled >>$saved; {then}' USR1
[ -e $saved ] && echo resumed >>$saved
while :; do sleep 0.1 & wait; done
"""


@pytest.fixture
def train(cluster):
    """Submit a job that saves its work at USR1; its id, and its node."""

    def train(then, words, *options):
        script = TRAINING.format(folder=cluster.jobs, then=then)
        job = cluster.running(script, "--gpus=8", f"--comment=slurm-health: {words}", *options)
        return job, cluster.nodes_of(job)[0]

    return train


def saved(cluster, job):
    file = cluster.jobs / f"saved.{job}"
    return file.read_text().split() if file.exists() else []


def of_kind(incident, kind):
    return [act["outcome"] for act in incident["actions"] if act["kind"] == kind]


def the_seconds(incident, first, then):
    """Between two acts."""
    from datetime import datetime

    when = {act["kind"]: datetime.fromisoformat(act["done"]) for act in incident["actions"]}
    return (when[then] - when[first]).total_seconds()


def test_a_job_that_saves_its_work_and_ends_comes_back_at_once(cluster, train):
    job, node = train("exit 1", "signal=USR1@600")
    code = cluster.xid(node, code=DOOMED)
    requeued(cluster, job, node, many=1)
    incident = cluster.ran_again(code=code)
    assert of_kind(incident, "signal") == of_kind(incident, "requeue") == ["done"]
    assert cluster.until(lambda: saved(cluster, job), lambda lines: len(lines) == 2)
    assert saved(cluster, job) == ["signalled", "resumed"]
    [victim] = incident["jobs"]
    assert (victim["urgency"], victim["outcome"]) == ("checkpoint", "runs again")


@pytest.mark.parametrize("then", [":", "trap '' USR1"], ids=["saves", "saves_and_heeds_no_more"])
def test_a_job_that_saves_its_work_and_goes_on_is_requeued_after_its_grace(cluster, train, then):
    job, node = train(then, "signal=USR1@4", "--open-mode=append")
    code = cluster.xid(node, code=DOOMED)
    requeued(cluster, job, node, many=1)
    incident = cluster.ran_again(code=code)
    assert of_kind(incident, "signal") == of_kind(incident, "requeue") == ["done"]
    assert the_seconds(incident, "signal", "requeue") >= 4
    cluster.until(lambda: saved(cluster, job), ["signalled", "resumed"])
    said = cluster.output(job)
    assert f"job {job} gets SIGUSR1 now, and is requeued in 4 s if it has not ended" in said


def test_a_job_that_ignores_its_signal_is_requeued_all_the_same(cluster):
    job = cluster.running("trap '' USR1; sleep 300", "--gpus=8", "--comment=slurm-health: signal=USR1@2")
    [node] = cluster.nodes_of(job)
    code = cluster.xid(node, code=DOOMED)
    requeued(cluster, job, node, many=1)
    incident = cluster.ran_again(code=code)
    assert of_kind(incident, "signal") == of_kind(incident, "requeue") == ["done"]


def test_a_job_that_does_not_trap_what_it_asked_for_dies_of_it_and_comes_back(cluster):
    job = cluster.running("sleep 300", "--gpus=8", "--comment=slurm-health: signal=USR1@600")
    [node] = cluster.nodes_of(job)
    cluster.xid(node, code=DOOMED)
    requeued(cluster, job, node, many=1)


def test_a_job_that_requeues_itself_is_followed_as_if_by_us(cluster, train):
    job, node = train("scontrol requeue $SLURM_JOB_ID; sleep 60", "signal=USR1@600")
    code = cluster.xid(node, code=DOOMED)
    requeued(cluster, job, node, many=1)
    incident = cluster.ran_again(code=code)
    assert of_kind(incident, "signal") == ["done"]
    assert of_kind(incident, "requeue") == []
    assert [one["outcome"] for one in incident["jobs"]] == ["runs again"]
    assert cluster.restarts(job) == 1


def test_a_job_that_exits_0_after_its_signal_has_completed(cluster, train):
    job, node = train("exit 0", "signal=USR1@600")
    code = cluster.xid(node, code=DOOMED)
    incident = cluster.ran_again(code=code)
    assert [one["outcome"] for one in incident["jobs"]] == ["COMPLETED: not ours to bring back"]
    assert (cluster.state(job), cluster.restarts(job)) == ("COMPLETED", 0)


def test_who_did_not_ask_is_not_signalled(cluster):
    """USR1 would have killed it. What the fault means to it is for the site to say."""
    (cluster.jobs / "go").unlink(missing_ok=True)
    script = f"while [ ! -e {cluster.jobs}/go ]; do sleep 0.1; done"
    job = cluster.running(script, "--gpus=8")
    [node] = cluster.nodes_of(job)
    code = cluster.xid(node, code=DOOMED)
    cluster.incident(lambda one: one["jobs"] and of_kind(one, "drain") == ["done"], code=code)
    (cluster.jobs / "go").touch()
    incident = cluster.ran_again(code=code)
    assert [one["outcome"] for one in incident["jobs"]] == ["COMPLETED: not ours to bring back"]
    assert [act["kind"] for act in incident["actions"]] == ["drain"]
    (cluster.jobs / "go").unlink()
    with cluster.configured('[requeue]\nunasked = "now"'):
        job = cluster.running(script, "--gpus=8")
        [node] = cluster.nodes_of(job)
        code = cluster.xid(node, code=DOOMED)
        requeued(cluster, job, node, many=1)
        assert of_kind(cluster.ran_again(code=code, node=node), "signal") == []


# As torchrun's workers, whose parent ignores the signal: a shell could not trap what it was born to ignore.
WORKER = """
import os, pathlib, signal
jobs, job, rank = pathlib.Path("{0}"), os.environ["SLURM_JOB_ID"], os.environ["SLURM_PROCID"]
signal.signal(signal.SIGUSR1, lambda *_: (jobs / f"got.{{job}}").open("a").write(f"{{rank}}\\n"))
(jobs / f"up.{{job}}.{{rank}}").touch()
while True: signal.pause()
"""


@pytest.mark.parametrize("steps", ["batch", "all"])
def test_the_signal_goes_to_the_script_or_to_all_its_steps(cluster, steps):
    """All the processes of its steps. Whoever gets it notes so, or is killed by it."""
    up = f"touch {cluster.jobs}/up.$SLURM_JOB_ID.$SLURM_PROCID"
    if steps == "all":
        (cluster.jobs / "worker.py").write_text(WORKER.format(cluster.jobs))
        script = f"srun sh -c 'trap \"\" USR1; {sys.executable} {cluster.jobs}/worker.py; exit'"
    else:
        script = f"trap 'echo script >>{cluster.jobs}/got.$SLURM_JOB_ID' USR1; "
        script += f"srun sh -c '{up}; while :; do sleep 1; done' & while :; do wait; done"
    words = f"--comment=slurm-health: signal=USR1@3 steps={steps}"
    job = cluster.running(script, "-N2", "--gpus-per-node=8", words)
    cluster.until(lambda: len(list(cluster.jobs.glob(f"up.{job}.*"))), 2)
    node = cluster.nodes_of(job)[1]
    cluster.xid(node, code=DOOMED)
    requeued(cluster, job, node)
    got = (cluster.jobs / f"got.{job}").read_text().split()
    assert sorted(got) == (["0", "1"] if steps == "all" else ["script"])


def test_of_an_array_only_the_task_on_the_device_is_signalled(cluster):
    script = TRAINING.format(folder=cluster.jobs, then="exit 1")
    array = cluster.submit(script, "--array=0-1", "--gpus=1", "--comment=slurm-health: signal=USR1@600")
    tasks = [f"{array}_{number}" for number in (0, 1)]
    cluster.until(lambda: all(cluster.runs(task) for task in tasks), True)
    [node] = {cluster.nodes_of(task)[0] for task in tasks}
    cluster.xid(node, gpu=int(cluster.runs(tasks[1])[0][2]), code=DOOMED)
    requeued(cluster, tasks[1], node, many=1)
    assert (cluster.state(tasks[0]), len(cluster.runs(tasks[0]))) == ("RUNNING", 1)


SENT = ["ledger intend signal", "slurm signal", "ledger settle signal done"]


@pytest.mark.parametrize(
    ("dies_at", "outcome"), [(SENT[0], "no answer"), (SENT[1], "no answer"), (SENT[2], "done")], ids=SENT
)
def test_the_controller_dies_around_its_signal(cluster, train, dies_at, outcome):
    """One signal at most, and one requeue: what was about to be sent is not sent again."""
    job, node = train(":", "signal=USR1@3")
    others = DRAIN | REQUEUE | STORY | {*SENT, "ledger victim signalled", "slurm requeue incomplete"}
    with ordeal(cluster, "controller") as controller:
        controller.begin(others - {dies_at})
        code = cluster.xid(node, code=DOOMED)
        incident = controller.over({dies_at})
        all_was_done_once(cluster, incident, job, node, code)
        assert of_kind(incident, "signal") == [outcome]
    sent = [] if dies_at == SENT[0] else ["signalled", "resumed"]
    cluster.until(lambda: saved(cluster, job), sent)


# The owner's other words


@pytest.mark.parametrize("code", [DOOMED, 79], ids=["checkpoint", "now"])
def test_who_says_off_is_left_alone(cluster, code, train):
    job, node = train(":", "off signal=USR1@1")
    incident = cluster.ran_again(code=cluster.xid(node, code=code))
    assert [one["outcome"] for one in incident["jobs"]] == ["its owner wants no requeue (slurm-health: off)"]
    assert (cluster.state(job), cluster.restarts(job), saved(cluster, job)) == ("RUNNING", 0, [])
    assert cluster.node_state(node) == "draining"


def test_a_job_is_requeued_as_often_as_allowed_then_held_and_its_owner_told(cluster):
    job = cluster.running(
        "sleep 300", "--gpus=8", "--open-mode=append", "--comment=slurm-health: requeue=1", *OF_NOBODY
    )
    [node] = cluster.nodes_of(job)
    cluster.xid(node, code=48)
    requeued(cluster, job, node, many=1)
    cluster.ran_again(node=node)
    [node] = cluster.nodes_of(job)
    code = cluster.xid(node, code=62)
    incident = cluster.ran_again(node=node, code=code)
    why = "was requeued 1 times for faults already, and 1 are allowed"
    assert [one["outcome"] for one in incident["jobs"]] == [f"held: it {why}"]
    assert of_kind(incident, "hold") == ["done"]
    cluster.until(lambda: (cluster.state(job), cluster.restarts(job)), ("PENDING", 2))
    assert "held" in cluster.ask("squeue", "-h", "-j", job, "-o", "%r").lower()
    assert f"held: it {why}" in cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000")
    assert f"job {job} is held: it {why}" in cluster.output(job)
    assert f"is held: it {why}" in cluster.log("ctld/controller.out")


def test_what_is_not_understood_is_told_once_and_the_defaults_hold(cluster):
    words = "--comment=slurm-health: requeue=many"
    job = cluster.running("sleep 300", "--gpus=8", "--open-mode=append", words)
    for runs, code in ((1, 48), (2, 62)):
        cluster.until(lambda runs=runs: len(cluster.runs(job)), runs)
        [node] = cluster.nodes_of(job)
        cluster.xid(node, code=code)
        cluster.ran_again(node=node)
    cluster.until(lambda: len(cluster.runs(job)), 3)
    assert cluster.output(job).count("'requeue=many' is not understood (write requeue=5, or off)") == 1
    note = cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000")
    assert note.count("is not understood") == 1


HOSTILE = "\n".join(
    (
        "x; slurm-health: off",
        "{0}|RUNNING|slurm-health: off",
        "{0} slurm-health: off",
        "(null) %A {0} %k $(touch {1}/evil) `touch {1}/evil`; scontrol update nodename=ALL state=down",
        "x" * 200 + "\N{BUG}" * 50,  # sbatch takes 1024 bytes
    )
)


def test_no_comment_and_no_name_does_anything_to_another_job(cluster):
    victim = cluster.running("sleep 300", "--gpus=4")
    [node] = cluster.nodes_of(victim)
    text = HOSTILE.format(victim, cluster.jobs)
    evil = cluster.running("sleep 300", "--gpus=4", f"--comment={text}", f"--job-name={text}", *OF_NOBODY)
    assert cluster.nodes_of(evil) == (node,)
    gpus = [int(cluster.runs(job)[0][2].split(",")[0]) for job in (victim, evil)]
    for gpu in gpus:
        cluster.xid(node, gpu=gpu)
    requeued(cluster, victim, node, many=1)
    cluster.ran_again(device=bus(cluster, node, gpus[0]))
    incident = cluster.ran_again(device=bus(cluster, node, gpus[1]))
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [
        (evil, "its owner wants no requeue (slurm-health: off)")
    ]
    assert not (cluster.jobs / "evil").exists()
    assert all(cluster.serves(name) for name in cluster.names if name != node)
