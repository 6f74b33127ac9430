"""Who the processes on the GPUs are, from /proc (proc(5)): user, name, and what Slurm told them to be.

Reading a process's environment waits for its memory map, which a driver that hangs may hold: so this runs on
a thread of its own (runner.py), and never in the loop that must answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from slurm_health.host import Host
from slurm_health.model import Reading

MPS = "nvidia-cuda-mps"  # nvidia-cuda-mps-server and -control, as far as the kernel keeps a name
MOST = 128  # processes that one look reads; 8 GPUs with a rank each are 8


def process(host: Host, running: Iterable[Reading]) -> Iterator[Reading]:
    """Of each process that NVML named (`gpu.process`): `process.uid` (the real one), `process.name`, and
    where its environment says so `process.job` (SLURM_JOB_ID) and `process.rank` (SLURM_PROCID, 0 for the
    job's first task). Device and pid are those of the `gpu.process`.

    The environment is the user's to write: who uses it compares the uid with the job's. A server of NVIDIA's
    MPS is left out where root's daemon started it: it runs as the user who came first, and stays.
    """
    for one in list(running)[:MOST]:
        folder = f"proc/{one.pid}"
        status, uid = _status(host, folder)
        if uid is None:
            continue  # it has ended, or its number is of another pid namespace
        if status.get("Name", "").strip() == MPS:
            above, owner = _status(host, f"proc/{status.get('PPid', '').strip()}")
            if above.get("Name", "").strip() == MPS and owner == 0:
                continue
        environment = dict(
            entry.partition("=")[::2] for entry in (host.text(f"{folder}/environ") or "").split("\0")
        )
        yield Reading("process.uid", one.device, uid, pid=one.pid)
        yield Reading("process.name", one.device, status.get("Name", "").strip(), pid=one.pid)
        job, rank = (_number([environment.get(key, "")]) for key in ("SLURM_JOB_ID", "SLURM_PROCID"))
        if job is not None:
            yield Reading("process.job", one.device, job, pid=one.pid)
        if rank is not None:
            yield Reading("process.rank", one.device, rank, pid=one.pid)


def _status(host: Host, folder: str) -> tuple[dict[str, str], int | None]:
    """What a process's status says, and its real uid, None where it does not say."""
    lines = (host.text(f"{folder}/status") or "").splitlines()
    status = dict(line.partition(":")[::2] for line in lines)
    return status, _number(status.get("Uid", "").split("\t")[1:2])


def _number(words: list[str]) -> int | None:
    word = words[0] if words else ""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 10 else None
