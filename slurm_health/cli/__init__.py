"""The command line. Every heavy import is inside the command that needs it."""

from __future__ import annotations

import click

from slurm_health import __version__
from slurm_health.cli import cluster, daemons, machine
from slurm_health.cli.sandbox import sandbox
from slurm_health.cli.shell import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="slurm-health")
def main() -> None:
    """Node health and automatic requeue for Slurm."""


for command in (
    machine.scan,
    cluster.status,
    cluster.incidents,
    cluster.job,
    machine.explain,
    machine.probes,
    machine.config,
    machine.replay,
    cluster.pause,
    cluster.unpause,
    daemons.node,
    daemons.controller,
    sandbox,
):
    main.add_command(command)
