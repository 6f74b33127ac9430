"""A training that lasts through fault after fault, and the examples that we give to users."""

import datetime
import random
import sys
from itertools import pairwise

import pytest
from conftest import ROOT
from test_cluster_checkpoint import DOOMED

pytestmark = pytest.mark.cluster

FAULTS, STEPS, SAVE_EACH = 20, 600, 5
# Each step's result hangs on all before it. Notes (run, step, when) of each in a log that the test reads.
TRAINING = """
import os, pathlib, signal, sys, time
folder = pathlib.Path("{folder}")
saved, log = folder / "saved", (folder / "log").open("a", buffering=1)
step, value = map(int, saved.read_text().split()) if saved.exists() else (0, 1)
run, leave = os.environ.get("SLURM_RESTART_COUNT", "0"), []
signal.signal(signal.SIGUSR1, lambda *_: leave.append(1))
print(run, step, time.time(), file=log)
while step < {steps}:
    time.sleep(0.15)
    step, value = step + 1, (value * 31 + step) % 1000003
    print(run, step, time.time(), file=log)
    if leave or step % {save_each} == 0 or step == {steps}:
        fresh = saved.with_name("fresh")
        fresh.write_text(f"{{step}} {{value}}")
        fresh.replace(saved)
    if leave:
        sys.exit(1)
"""


def right_result():
    value = 1
    for step in range(STEPS):
        value = (value * 31 + step) % 1_000_003
    return f"{STEPS} {value}"


@pytest.fixture
def log(cluster, tmp_path):
    """What each run of the training has noted: {run: [(step, when), ...]}."""
    (tmp_path / "log").touch()
    (tmp_path / "train.py").write_text(TRAINING.format(folder=tmp_path, steps=STEPS, save_each=SAVE_EACH))

    def log():
        runs = {}
        for line in (tmp_path / "log").read_text().splitlines():
            run, step, when = line.split()
            runs.setdefault(int(run), []).append((int(step), float(when)))
        return runs

    log.folder = tmp_path
    return log


def broken(cluster, chance, node):
    """Break something under the job; whether it is told to save its work first."""
    fault = chance.choice(["dies", "lives", "doomed", "link", "lost"])
    if fault in ("dies", "lives"):
        cluster.xid(node, kill=fault == "dies")
    elif fault == "doomed":
        cluster.xid(node, code=DOOMED)
    elif fault == "link":
        cluster.inject(node, "ib-down", port=chance.randrange(2))
    else:
        cluster.inject(node, "gpu-lost", gpu=chance.randrange(8))
    return fault == "doomed"


def mended(cluster, node):
    cluster.box.clear(node)
    if not cluster.serves(node):
        cluster.resume(node)
    cluster.until(lambda: cluster.serves(node), True)
    cluster.until(lambda: cluster.verdict(node), lambda said: said in ("ok", "warn"))


def test_a_training_under_twenty_faults_ends_with_the_right_result(cluster, log):
    """Each fault costs at most the work since the last checkpoint, and none where the job was signalled."""
    chance = random.Random(20)
    asked = set()  # runs that were told to save their work
    with cluster.configured(f'[requeue]\nbudget = {FAULTS}\nprogress = "0s"'):
        words = "--comment=slurm-health: signal=USR1@60"
        job = cluster.running(f"exec {sys.executable} {log.folder}/train.py", "--gpus=8", words)
        for run in range(FAULTS):
            enough = SAVE_EACH + chance.randrange(SAVE_EACH)
            cluster.until(lambda run=run, enough=enough: len(log().get(run, [])) > enough, True)
            node = cluster.nodes_of(job)[0]
            if broken(cluster, chance, node):
                asked.add(run)
            cluster.until(lambda run=run: len(cluster.runs(job)), run + 2)
            mended(cluster, node)
        cluster.until(lambda: cluster.state(job), "COMPLETED", 300)
        assert (log.folder / "saved").read_text() == right_result()
        runs = log()
        assert sorted(runs) == list(range(FAULTS + 1))
        lost = {run: steps[-1][0] - runs[run + 1][0][0] for run, steps in runs.items() if run < FAULTS}
        assert all(0 <= steps <= SAVE_EACH for steps in lost.values()), lost
        assert all(lost[run] == 0 for run in asked), lost
        assert sum(steps[-1][0] - steps[0][0] for steps in runs.values()) == STEPS + sum(lost.values())
        the_ledger_tells_the_same(cluster, job, runs)


def the_ledger_tells_the_same(cluster, job, runs):
    """One story for each run that met a fault; between them the time that the job really ran."""
    told = sorted(
        (one for incident in cluster.incidents() for one in incident["jobs"] if one["job"] == job),
        key=lambda one: one["restarts"],
    )
    first = {one["restarts"]: one for one in told}
    assert sorted(first) == list(range(FAULTS))
    assert all(one["outcome"] == "runs again" for one in told)
    moment = lambda text: datetime.datetime.fromisoformat(text).timestamp()  # noqa: E731
    for before, after in pairwise(first.values()):
        ran = moment(after["requeued"]) - moment(before["running"])
        steps = runs[after["restarts"]]
        assert ran == pytest.approx(steps[-1][1] - steps[0][1], abs=3.0)


def test_the_shell_example_loses_nothing(cluster):
    saved = cluster.jobs / "example"
    saved.unlink(missing_ok=True)
    settings = f"CHECKPOINT={saved} STEPS=80 SECONDS_A_STEP=0.1 SAVE_EACH=1000"
    words = "--comment=slurm-health: signal=USR1@60"
    script = f"export {settings}; exec bash {ROOT}/examples/resume.sh"
    job = cluster.running(script, "--gpus=8", "--open-mode=append", words)
    [node] = cluster.nodes_of(job)
    cluster.until(lambda: cluster.output(job), lambda said: "begins at step 0" in said)
    cluster.until(lambda: cluster.ask("squeue", "-h", "-j", job, "-o", "%M"), "0:02")  # some steps are done
    cluster.xid(node, code=DOOMED)
    cluster.until(lambda: cluster.state(job), "COMPLETED", 60)
    said = [line for line in cluster.output(job).splitlines() if line.startswith(("run ", "done"))]
    assert len(said) == 3
    assert not said[1].endswith(" 0")
    assert said[2] == "done: 80 steps"
