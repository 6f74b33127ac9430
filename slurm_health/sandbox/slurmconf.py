"""The text of a sandbox's configuration files. Pure: paths and numbers in, text out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What the running release needs beyond the common lines: (from this release on, file, line). The common lines
# are understood by every release from 22.05 to 26.05.
DIALECT: tuple[tuple[tuple[int, int], str, str], ...] = (
    # cgroup.conf(5), 23.02: without systemd and a writable cgroup tree slurmd may refuse to start otherwise.
    ((23, 2), "cgroup.conf", "CgroupPlugin=disabled"),
    # slurm.conf(5), 25.11: sbatch --requeue=expedite is refused otherwise.
    ((25, 11), "slurm.conf", "SlurmctldParameters=enable_expedited_requeue"),
)

CPUS_PER_GPU = 8  # an HGX H100 host has about 12 to 28 cores a GPU; enough that GPUs, not CPUs, bound a node
MEMORY_MB = 65536  # pretended (config_overrides), so that jobs which ask for memory are accepted


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things of a sandbox are."""

    folder: Path

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def ctld(self) -> Path:
        return self.folder / "ctld"

    @property
    def munge(self) -> Path:
        return self.folder / "munge"

    @property
    def daemons(self) -> Path:
        return self.folder / "daemons"

    def node(self, name: str) -> Path:
        return self.folder / "nodes" / name

    def hardware(self, name: str) -> Path:
        return self.node(name) / "hardware"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def config(self) -> Path:
        return self.etc / "config.toml"

    @property
    def library(self) -> Path:
        return self.folder / "libnvidia-ml.so.1"

    @property
    def munge_socket(self) -> Path:
        return self.munge / "socket"


def _key(line: str) -> str:
    return line.split("=", 1)[0].strip().lower()


def slurm_conf(
    layout: Layout,
    hostname: str,
    ports: Sequence[int],
    nodes: Sequence[str],
    gpus: int,
    extra: Sequence[str] = (),
    hooks: bool = True,
    spoken: Sequence[str] = (),
) -> str:
    """slurm.conf. `spoken` is what this release needs. A line of `extra` replaces ours of the same name;
    Slurm's own times keep their defaults.
    """
    folder = layout.folder
    cpus = CPUS_PER_GPU * max(gpus, 1)
    gres = f" Gres=gpu:{gpus}" if gpus else ""
    lines = [
        "ClusterName=sandbox",
        f"SlurmctldHost={hostname}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={layout.munge_socket}",
        f"StateSaveLocation={layout.ctld}/state",
        f"SlurmctldPidFile={layout.ctld}/slurmctld.pid",
        f"SlurmctldLogFile={layout.ctld}/slurmctld.log",
        f"SlurmdSpoolDir={folder}/nodes/%n/spool",
        f"SlurmdPidFile={folder}/nodes/%n/slurmd.pid",
        f"SlurmdLogFile={folder}/nodes/%n/log/slurmd.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "SlurmdParameters=config_overrides",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "ReturnToService=2",
        "JobRequeue=1",
        "PrologFlags=Alloc,DeferBatch",
        "SchedulerParameters=batch_sched_delay=0",
        *spoken,
    ]
    if hooks:
        lines += [f"Prolog={layout.etc}/prolog", f"Epilog={layout.etc}/epilog"]
    if gpus:
        lines.append("GresTypes=gpu")
    replaced = {_key(line) for line in extra if "=" in line} - {"nodename", "partitionname"}
    lines = [line for line in lines if _key(line) not in replaced]
    lines += extra
    lines += [
        f"NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
        f" RealMemory={MEMORY_MB}{gres} State=UNKNOWN"
        for name, port in zip(nodes, ports[1:], strict=True)
    ]
    lines.append("PartitionName=main Nodes=ALL Default=YES OverSubscribe=NO State=UP")
    return "\n".join(lines) + "\n"


def gres_conf(layout: Layout, nodes: Sequence[str], gpus: int) -> str:
    """gres.conf: each node's GPUs are device nodes of its own."""
    if not gpus:
        return ""
    span = f"[0-{gpus - 1}]" if gpus > 1 else "0"
    return "".join(
        f"NodeName={name} Name=gpu File={layout.hardware(name)}/dev/nvidia{span}\n" for name in nodes
    )


def dialect(version: tuple[int, int]) -> dict[str, list[str]]:
    """The lines that this release needs, by file."""
    files: dict[str, list[str]] = {}
    for since, name, line in DIALECT:
        if version >= since:
            files.setdefault(name, []).append(line)
    return files


def config_toml(layout: Layout, port: int, mode: str, site: str = "") -> str:
    """Our own configuration, the site's text after it."""
    return (
        f"""\
mode = "{mode}"
controller = "127.0.0.1:{port}"

[auth]
munge_socket = "{layout.munge_socket}"

[slurm]
conf = "{layout.slurm_conf}"

[ledger]
url = "sqlite:///{layout.ctld}/ledger.db"

{site.strip()}
""".rstrip()
        + "\n"
    )


def hook(layout: Layout, script: Path) -> str:
    """A prolog or epilog for many nodes on one host: names the node's run folder, sources the script."""
    return f"""\
#!/bin/sh
SLURM_HEALTH_RUN={shlex.quote(f"{layout.folder}/nodes/")}$SLURMD_NODENAME/run
. {shlex.quote(str(script))}
"""
