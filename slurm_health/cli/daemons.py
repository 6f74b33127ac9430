"""The two daemons."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from slurm_health.cli.shell import (
    EX_CONFIG,
    EX_IOERR,
    Cannot,
    config_option,
    hostname,
    load_config,
    root_option,
)


def _log(verbose: bool) -> None:
    """To standard error with the level as journald reads it (sd-daemon(3)); plain on a terminal."""
    levels = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

    class Journal(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            mark = f"<{levels.get(record.levelno, 6)}>"
            return "\n".join(mark + line for line in super().format(record).splitlines())

    handler = logging.StreamHandler()
    under_systemd = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(
        Journal("%(message)s")
        if under_systemd
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)


class NoLedger(Cannot):
    """Trying again may help: systemd does."""

    exit_code = EX_IOERR


class Misconfigured(Cannot):
    """Trying again does not help."""

    exit_code = EX_CONFIG


@click.command()
@config_option
@root_option
@click.option("--name", help="This node's name in Slurm; else the host's short name.")
@click.option("--run", "run_dir", type=click.Path(path_type=Path), help="Verdict and cards; else run_dir.")
@click.option(
    "--state", "state_dir", type=click.Path(path_type=Path), help="Outlives a restart; else state_dir."
)
@click.option("--verbose", is_flag=True, help="Log more.")
def node(
    config_file: str | None,
    root: str,
    name: str | None,
    run_dir: Path | None,
    state_dir: Path | None,
    verbose: bool,
) -> None:
    """Run the node's daemon: sense, judge, report.

    It keeps the verdict that the prolog reads.
    """
    from slurm_health.node import NodeDaemon

    config = load_config(config_file)
    _log(verbose)
    try:
        daemon = NodeDaemon(
            config, name or hostname(), root, run_dir or config.run_dir, state_dir or config.state_dir
        )
    except OSError as error:
        raise Cannot(f"{error.filename}: {error.strerror}") from None
    daemon.run()


@click.command()
@config_option
@click.option("--verbose", is_flag=True, help="Log more.")
def controller(config_file: str | None, verbose: bool) -> None:
    """Run the controller, beside slurmctld: decide, act, answer."""
    import asyncio

    from slurm_health.controller import Controller
    from slurm_health.ledger import Ledger, LedgerError, WrongLedger, alone
    from slurm_health.signing import Refused
    from slurm_health.slurm.api import Absent, reach
    from slurm_health.standby import Standby
    from slurm_health.web import serve

    config = load_config(config_file)
    _log(verbose)
    site = config.slurm

    async def seat(ledger: Ledger) -> None:
        async with reach(site.backend, site.conf, site.bin, site.deadline) as slurm:
            standby = Standby(config.controller, ledger, slurm)
            slurm.must_act = standby.must_act
            await serve(config, ledger, Controller(config, ledger, slurm), standby)

    try:
        with alone(config.ledger.url):
            ledger = Ledger(config.ledger.url)
            while True:
                asyncio.run(seat(ledger))
                if not ledger.lost:
                    break
                # As after a crash: what the controller remembers goes with its ledger, all is asked again.
                ledger.open()
    except (WrongLedger, Absent) as error:
        raise Misconfigured(str(error)) from None
    except LedgerError as error:
        raise NoLedger(str(error)) from None
    except Refused as error:
        raise Cannot(str(error)) from None
    except OSError as error:
        ports = " or ".join(dict.fromkeys(str(port) for _, port in config.addresses))
        raise Cannot(f"cannot serve on port {ports}: {error.strerror}") from None
