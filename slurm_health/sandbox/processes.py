"""Whose process is it: step daemons and jobs of one sandbox, told apart from everything else on the machine.

Slurm forks its step daemons away from slurmd (their parent is init, their command line only
"slurmstepd: [1.0]"), but each holds its node's slurmd.log open, and whatever a job starts carries SLURM_CONF
and SLURMD_NODENAME in its environment (srun(1), OUTPUT ENVIRONMENT VARIABLES) or descends from a step daemon.
Our own daemons carry MARK, which Slurm does not hand on to jobs, and which is found even if we were
interrupted before their pid was noted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from slurm_health.sandbox.daemon import identity
from slurm_health.sandbox.slurmconf import Layout

MARK = "SLURM_HEALTH_SANDBOX_DAEMON"  # the sandbox's folder


def job_processes(layout: Layout, node: str, whole_host: bool = False) -> list[int]:
    """The processes of all jobs on a node: what step daemons started, not they. `whole_host`: the node has
    this host for itself, so every job's is meant."""
    log = "" if whole_host else str(layout.node(node) / "log/slurmd.log")
    conf = str(layout.slurm_conf)
    found: set[int] = set()
    for process in _here():
        try:
            if _is_step_daemon(process, log):
                found.update(child.pid for child in process.children(recursive=True))
            else:
                env = process.environ()
                here = (env.get("SLURM_CONF"), env.get("SLURMD_NODENAME")) == (conf, node)
                if (here or whole_host) and "SLURM_JOB_ID" in env:
                    found.add(process.pid)
        except psutil.Error:
            continue
    return sorted(found - step_daemons(log))


def strays(layout: Layout) -> list[tuple[int, int]]:
    """(pid, identity) of everything that belongs to the sandbox, but for this process and its ancestors."""
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    conf, nodes = str(layout.slurm_conf), str(layout.folder / "nodes") + "/"
    found: dict[int, int | None] = {}
    for process in _here():
        try:
            if process.pid in mine:
                continue
            env = process.environ()
            ours = env.get(MARK) == str(layout.folder)
            job = env.get("SLURM_CONF") == conf and "SLURM_JOB_ID" in env
            daemon = _is_step_daemon(process, nodes)
            if not (ours or job or daemon):
                continue
            for one in [process, *(process.children(recursive=True) if daemon else ())]:
                found[one.pid] = identity(one.pid)
        except psutil.Error:
            continue
    return [(pid, born) for pid, born in found.items() if born is not None and pid not in mine]


def step_daemons(log: str) -> set[int]:
    """The step daemons whose log begins with `log`: a node's slurmd.log, or "" for all of this host."""
    return {process.pid for process in _here() if _is_step_daemon(process, log)}


def _here() -> Iterator[psutil.Process]:
    """All processes but those of containers: these may have the same paths, and mean others."""
    for process in psutil.process_iter():
        try:
            same = Path(f"/proc/{process.pid}/root").samefile("/")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:  # then neither can be read whose it is
            same = True
        if same:
            yield process


def _is_step_daemon(process: psutil.Process, log: str) -> bool:
    """Whether it is a slurmstepd whose log begins with `log`."""
    try:
        if not process.name().startswith("slurmstepd"):
            return False
        return any(
            os.readlink(path).startswith(log)  # noqa: PTH115  (a descriptor's target need not be a path)
            for path in Path(f"/proc/{process.pid}/fd").iterdir()
        )
    except (OSError, psutil.Error):
        return False
