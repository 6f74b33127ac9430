"""What all commands share: options, exit statuses, how errors and results are printed."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

# Exit status: health (as Nagios has it) below 4, our own troubles from sysexits.h above.
LEVELS = {"ok": 0, "warning": 1, "critical": 2, "unknown": 3}
EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_IOERR = 74
EX_CONFIG = 78


class Cannot(click.ClickException):
    """Why a command cannot do its work, in a line."""

    exit_code = EX_UNAVAILABLE


class Group(click.Group):
    """No typo, closed pipe or mistake of ours reads as a sick node. Commands are listed in our order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `| head` has seen enough; what is left to flush goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options | {"standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help())
            sys.exit(EX_USAGE)
        except click.UsageError as error:
            error.show()
            sys.exit(EX_USAGE)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)
        except Exception:
            traceback.print_exc()
            sys.exit(EX_SOFTWARE)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="The configuration; else $SLURM_HEALTH_CONFIG, else /etc/slurm-health/config.toml.",
)
root_option = click.option(
    "--root", default="/", metavar="DIR", help="Read DIR/sys, DIR/proc, DIR/dev/kmsg, not this machine's."
)


def load_config(config_file: str | None) -> Any:
    from slurm_health import config

    try:
        return config.load(config_file)
    except config.ConfigError as error:
        for mistake in error.mistakes:
            click.echo(mistake, err=True)
        sys.exit(EX_CONFIG)


def show(value: Any, as_json: bool, words: Callable[[Any], str]) -> None:
    click.echo(json.dumps(value, indent=1) if as_json else words(value))


def hostname() -> str:
    """The node's name in Slurm, which is the host's up to the first dot (slurmd(8) -N)."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
