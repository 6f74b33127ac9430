"""A job's owner learns which of its ranks sat on the GPU that broke."""

import pytest

pytestmark = pytest.mark.cluster


MILD = '[[rule]]\ncode = "GPU_REMAP_PENDING"\nseverity = "warning"'


def test_the_rank_on_the_broken_gpu_is_told(cluster):
    step = "sh -c 'echo $$ > {0}/pid.$SLURM_JOB_ID.$SLURM_PROCID; exec sleep 300'"
    srun = f"srun --gpus-per-task=4 --ntasks-per-node=2 {step.format(cluster.jobs)}"
    job = cluster.running(srun, "-N2", "--ntasks-per-node=2", "--gpus-per-node=8", "--open-mode=append")
    pids = [cluster.jobs / f"pid.{job}.{rank}" for rank in range(4)]
    cluster.until(lambda: all(file.exists() and file.read_text() for file in pids), True)
    broken = cluster.nodes_of(job)[1]  # with ranks 2 and 3
    cluster.configure(MILD)
    cluster.restart(f"node:{broken}")
    cluster.inject(broken, "process", gpu=5, code=int(pids[3].read_text()))
    cluster.inject(broken, "remap-pending", gpu=0)  # when that is told, NVML was asked since
    cluster.incident(code="GPU_REMAP_PENDING")
    cluster.configure("")
    code = cluster.xid(broken, gpu=5)

    incident = cluster.ran_again(code=code)
    assert [(one["job"], one["ranks"]) for one in incident["jobs"]] == [(job, "3")]
    words = f"slurm-health: rank 3 on {broken}: {code}("
    assert words in cluster.until(lambda: cluster.output(job), lambda said: "runs again on" in said)
    assert words in cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:500")
    assert f"job {job} of root (on the device: rank 3): ran again on" in cluster.health("job", job).stdout
    cluster.restart(f"node:{broken}")
