"""A job's owner learns which of its ranks sat on the GPU that broke."""

import contextlib

import pytest

pytestmark = pytest.mark.cluster
MILD = '[[rule]]\ncode = "GPU_REMAP_PENDING"\nseverity = "warning"'


@contextlib.contextmanager
def seen(cluster, node, gpu, pid):
    """A process is on a GPU, and NVML was asked since."""
    cluster.configure(MILD)
    cluster.restart(f"node:{node}")
    cluster.inject(node, "process", gpu=gpu, code=pid)
    cluster.inject(node, "remap-pending", gpu=0)
    cluster.incident(code="GPU_REMAP_PENDING")
    cluster.configure("")
    yield
    cluster.restart(f"node:{node}")


def test_the_rank_on_the_broken_gpu_is_told(cluster):
    step = "sh -c 'echo $$ > {0}/pid.$SLURM_JOB_ID.$SLURM_PROCID; exec sleep 300'"
    srun = f"srun --gpus-per-task=4 --ntasks-per-node=2 {step.format(cluster.jobs)}"
    job = cluster.running(srun, "-N2", "--ntasks-per-node=2", "--gpus-per-node=8", "--open-mode=append")
    pids = [cluster.jobs / f"pid.{job}.{rank}" for rank in range(4)]
    cluster.until(lambda: all(file.exists() and file.read_text() for file in pids), True)
    broken = cluster.nodes_of(job)[1]  # with ranks 2 and 3
    with seen(cluster, broken, gpu=5, pid=int(pids[3].read_text())):
        code = cluster.xid(broken, gpu=5)

    incident = cluster.ran_again(code=code)
    assert [(one["job"], one["ranks"]) for one in incident["jobs"]] == [(job, "3")]
    words = f"slurm-health: rank 3 on {broken}, GPU 5: {code}("
    assert words in cluster.until(lambda: cluster.output(job), lambda said: "runs again on" in said)
    assert words in cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:500")
    told = cluster.health("job", job).stdout
    assert f"broke     rank 3 on {broken}, GPU 5: " in told
    assert f"job {job} of root (on GPU 5: rank 3): ran again on" in told


def test_a_job_whose_prolog_was_told_of_no_gpu_holds_what_it_is_seen_on(cluster):
    """And nobody else does: not the job beside it, to which other GPUs were given."""
    hide = [cluster.box.layout.node(name) / "untold" for name in cluster.names]
    pid = cluster.jobs / "pid"
    pid.unlink(missing_ok=True)
    neighbour = cluster.running("sleep 300", "--gpus=4")
    for file in hide:
        file.touch()
    job = cluster.running(f"echo $$ > {pid}; sleep 300", "--gpus=4")
    [[_, (node,), gpus]], [[_, where, _]] = cluster.runs(job), cluster.runs(neighbour)
    assert where == (node,)
    assert "\ngpus=\n" in (cluster.box.layout.node(node) / f"run/jobs/{job}.0").read_text()
    for file in hide:
        file.unlink()
    gpu = int(gpus.split(",")[2])
    cluster.until(lambda: pid.exists() and pid.read_text(), bool)
    with seen(cluster, node, gpu, int(pid.read_text())):
        code = cluster.xid(node, gpu)

    incident = cluster.ran_again(code=code)
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    assert [restarts for restarts, _, _ in cluster.runs(job)] == [0, 1]
    assert node not in cluster.nodes_of(job)
    assert (cluster.state(neighbour), cluster.restarts(neighbour)) == ("RUNNING", 0)
