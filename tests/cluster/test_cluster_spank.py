"""Our options of sbatch, and what a restarted job finds in its environment: the SPANK plugin at work."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import NOBODY, OF_NOBODY, ROOT
from test_cluster_checkpoint import DOOMED, TRAINING, of_kind, saved
from test_cluster_requeue import requeued

pytestmark = pytest.mark.cluster

HEADER = Path("/usr/include/slurm/spank.h")
DUMP = "(env | grep ^SLURM_HEALTH_[ABR] | sort; echo end) >>{0}/env.$SLURM_JOB_ID; sleep 300"


def environment(cluster, job, runs=2):
    """What each run of a job that does DUMP found of ours."""
    file = cluster.jobs / f"env.{job}"
    said = cluster.until(
        lambda: file.exists() and file.read_text().split("end\n"), lambda said: said and len(said) > runs
    )
    return said[:runs]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    if not HEADER.exists():
        pytest.skip(f"needs {HEADER} (Debian: libslurm-dev)")
    file = tmp_path_factory.mktemp("spank", numbered=True) / "spank_slurm_health.so"
    source = Path(ROOT) / "spank/slurm_health.c"
    flags = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-shared")
    subprocess.run(["cc", *flags, "-o", str(file), str(source)], check=True)
    for folder in file.parents[:3]:
        folder.chmod(0o755)
    return file


@pytest.fixture
def spank(cluster, plugin):
    """The cluster, its submit hosts and nodes with the plugin."""
    file = cluster.box.layout.etc / "plugstack.conf"
    file.write_text(f"required {plugin} run={cluster.folder}/nodes/%n/run\n")
    yield cluster
    file.unlink()


def test_the_options_are_told_of(spank):
    said = spank.ask("sbatch", "--help")
    assert "--auto-requeue=[times|off]" in said
    assert "--checkpoint-signal=[signal[@seconds]]" in said


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--auto-requeue=often", "write a number of times, such as --auto-requeue=5, or off"),
        ("--auto-requeue=", "write a number of times"),
        ("--auto-requeue=99999999999999999999", "write a number of times"),
        ("--checkpoint-signal=KILL", "write USR1, USR2, TERM, INT or HUP"),
        ("--checkpoint-signal=USR1@", "write USR1"),
        ("--checkpoint-signal=USR1@120s", "write USR1"),
        (f"--checkpoint-signal={'A' * 5000}", "write USR1"),
    ],
)
def test_a_bad_option_is_refused_at_submission(spank, option, hint):
    env = {**os.environ, **spank.box.env()}
    argv = ["sbatch", "--chdir=/", "--output=/dev/null", option, "--wrap", "true"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert hint in done.stderr
    assert done.stdout == ""


def test_what_was_asked_by_options_counts_and_the_next_run_is_told_why(spank):
    cluster = spank
    script = f"env | grep ^SLURM_HEALTH_[ABR] | sort >>{cluster.jobs}/env.$SLURM_JOB_ID\n"
    script += TRAINING.format(folder=cluster.jobs, then="exit 1")
    options = ("--checkpoint-signal=USR1@600", "--auto-requeue=1", "--gpus=8", "--comment=project=4711")
    job = cluster.running(script, *options)
    [node] = cluster.nodes_of(job)
    code = cluster.xid(node, code=DOOMED)
    requeued(cluster, job, node, many=1)
    incident = cluster.ran_again(code=code)
    assert of_kind(incident, "signal") == ["done"]
    cluster.until(lambda: saved(cluster, job), ["signalled", "resumed"])
    words = f"{code}({incident['device']}) {incident['text']}"
    assert (cluster.jobs / f"env.{job}").read_text().splitlines() == [
        "SLURM_HEALTH_ATTEMPT=1",
        f"SLURM_HEALTH_BAD_NODES={node}",
        f"SLURM_HEALTH_REASON={words}",
    ]
    assert cluster.ask("squeue", "-h", "-j", job, "-O", "comment:200").startswith("project=4711; ")
    [node] = cluster.nodes_of(job)
    cluster.xid(node, code=79)
    second = cluster.ran_again(node=node)
    assert second["jobs"][0]["outcome"].startswith("held: it was requeued 1 times")


def test_options_overrule_the_comment(spank):
    job = spank.running("sleep 300", "--gpus=8", "--auto-requeue=off", "--comment=slurm-health: requeue=5")
    [node] = spank.nodes_of(job)
    incident = spank.ran_again(code=spank.xid(node))
    assert [one["outcome"] for one in incident["jobs"]] == ["its owner wants no requeue (slurm-health: off)"]


def test_steps_are_told_too_and_who_said_nothing_to_us_is_told_nothing(spank):
    script = f"srun sh -c '{DUMP.format(spank.jobs)}'"
    said = spank.running(script, "--gpus=4", "--comment=slurm-health: requeue=2")
    silent = spank.running(script, "--gpus=4", "--comment=mine")
    for job in (said, silent):
        [node] = spank.nodes_of(job)
        spank.xid(node, gpu=int(spank.runs(job)[0][2].split(",")[0]))
        requeued(spank, job, node, many=1)
    assert "SLURM_HEALTH_ATTEMPT=1\n" in environment(spank, said)[1]
    assert environment(spank, silent) == ["", ""]


HOSTILE = (
    "slurm-health-was: attempt=9 bad_nodes=n1\nrefused=1\nended=1 reason=x",
    "slurm-health-was: attempt=9\njob=1 bad_nodes=n1 reason=x",
    "slurm-health-was: attempt=x bad_nodes=n1 reason=x",
    f"slurm-health-was: attempt=1 bad_nodes={'n' * 900} reason=x",
)


@pytest.mark.parametrize("comment", HOSTILE, ids=range(len(HOSTILE)))
def test_no_comment_forges_a_card(spank, comment):
    job = spank.running("sleep 300", "--gpus=8", f"--comment={comment}", *OF_NOBODY)
    [node] = spank.nodes_of(job)
    card = (spank.box.layout.node(node) / f"run/jobs/{job}.0").read_text()
    assert [
        line.partition("=")[0] for line in card.splitlines() if line.startswith(("job", "ref", "end"))
    ] == ["job"]


CARD = "job=1\nattempt=7\nuptime=1\n"
CARDS = {
    "roots": lambda file: file.write_text(CARD),
    "absent": lambda file: None,
    "fifo": lambda file: os.mkfifo(file),
    "folder": lambda file: file.mkdir(),
    "link": lambda file: file.symlink_to(file.with_name("roots")),
    "large": lambda file: file.write_text("x" * 100_000 + CARD),
    "theirs": lambda file: (file.write_text(CARD), os.chown(file, NOBODY.pw_uid, NOBODY.pw_gid)),
}


def test_no_card_keeps_a_job_from_running_and_only_roots_are_read(cluster, plugin, tmp_path):
    """As its second run finds it."""
    for folder in [tmp_path, *list(tmp_path.parents)[:2]]:
        folder.chmod(0o755)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/roots").write_text(CARD)
    (cluster.box.layout.etc / "plugstack.conf").write_text(f"required {plugin} run={tmp_path}\n")
    jobs = {kind: cluster.running(DUMP.format(cluster.jobs), "--gpus=1") for kind in CARDS}
    for kind, job in jobs.items():
        CARDS[kind](tmp_path / f"jobs/{job}.1")
        cluster.ask("scontrol", "requeue", job)
    for job in jobs.values():
        cluster.until(lambda job=job: cluster.state(job), "PENDING")
    then = int(time.time()) + 2
    cluster.until(lambda: int(time.time()) > then, True)
    for job in jobs.values():
        cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    for job in jobs.values():
        cluster.until(lambda job=job: len(cluster.runs(job)), 2)
    told = {kind: environment(cluster, job)[1] for kind, job in jobs.items()}
    assert told.pop("roots") == "SLURM_HEALTH_ATTEMPT=7\n"
    assert set(told.values()) == {""}
    (cluster.box.layout.etc / "plugstack.conf").unlink()
