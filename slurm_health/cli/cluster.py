"""Commands that ask the controller, from any host of the cluster."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from slurm_health.cli.shell import EX_USAGE, LEVELS, Group, config_option, json_option, load_config, show


def _ask(config_file: str | None, method: str, target: str, body: dict[str, Any] | None = None) -> Any:
    from slurm_health.client import ask

    return _answer(ask, load_config(config_file), method, target, body)


def _answer(question: Callable[..., Any], *arguments: Any) -> Any:
    from slurm_health.client import ClientError

    try:
        return question(*arguments)
    except ClientError as error:
        for line in str(error).splitlines():
            click.echo(f"slurm-health: {line}", err=True)
        sys.exit(EX_USAGE if error.mistaken else LEVELS["unknown"])


@click.command()
@json_option
@config_option
def status(as_json: bool, config_file: str | None) -> None:
    """Show the cluster: mode, nodes out or silent, open incidents.

    Exit status: 0 ok, 1 warning, 2 critical, 3 unknown (the controller does not answer, or cannot act for
    want of Slurm or its ledger).
    """
    from slurm_health import client, text

    said = _answer(client.status, load_config(config_file))
    show(said, as_json, text.status)
    unknown = said["slurm"]["trouble"] or said["ledger"]["trouble"]
    sys.exit(LEVELS["unknown"] if unknown else LEVELS[said["worst"]])


@click.group(cls=Group, invoke_without_command=True)
@json_option
@config_option
@click.pass_context
def incidents(context: click.Context, as_json: bool, config_file: str | None) -> None:
    """Show what broke and what was done (list by default)."""
    if context.invoked_subcommand is None:
        context.invoke(incidents_list, as_json=as_json, config_file=config_file)
    context.obj = {"as_json": as_json, "config_file": config_file}


def _either(context: click.Context, as_json: bool, config_file: str | None) -> tuple[bool, str | None]:
    """Options may stand before or after the verb."""
    before = context.obj or {}
    return as_json or before.get("as_json", False), config_file or before.get("config_file")


@incidents.command("list")
@click.option("--all", "every", is_flag=True, help="Closed ones too.")
@click.option("--node", default="", help="Only of this node.")
@click.option(
    "--limit", default=200, show_default=True, type=click.IntRange(1, 1000), help="At most so many."
)
@json_option
@config_option
@click.pass_context
def incidents_list(
    context: click.Context,
    as_json: bool,
    config_file: str | None,
    every: bool = False,
    node: str = "",
    limit: int = 200,
) -> None:
    """List open incidents, newest first."""
    from slurm_health import text

    as_json, config_file = _either(context, as_json, config_file)
    target = f"/v1/incidents?node={quote(node)}&all={int(every)}&limit={limit}"
    show(_ask(config_file, "GET", target), as_json, text.incidents)


@incidents.command("show")
@click.argument("number", metavar="ID", type=int)
@json_option
@config_option
@click.pass_context
def incidents_show(context: click.Context, number: int, as_json: bool, config_file: str | None) -> None:
    """Show one incident: evidence, acts, what became of its jobs."""
    from slurm_health import text

    as_json, config_file = _either(context, as_json, config_file)
    found = _ask(config_file, "GET", f"/v1/incidents/{number}")
    if not found:
        raise click.UsageError(f"there is no incident {number}")
    show(found[0], as_json, text.story)


@incidents.command("close")
@click.argument("number", metavar="ID", type=int)
@json_option
@config_option
@click.pass_context
def incidents_close(context: click.Context, number: int, as_json: bool, config_file: str | None) -> None:
    """Close an incident that was dealt with. The node stays drained until you resume it in Slurm."""
    from slurm_health import text

    as_json, config_file = _either(context, as_json, config_file)
    found = _ask(config_file, "POST", f"/v1/incidents/{number}/close", {})
    show(found[0], as_json, text.story)


@click.command()
@click.argument("number", metavar="ID")
@json_option
@config_option
def job(number: str, as_json: bool, config_file: str | None) -> None:
    """Show what happened to a job, and why. Its owner needs no root."""
    from slurm_health import text

    if not re.fullmatch(r"[0-9]{1,12}(_[0-9]{1,10})?", number):
        raise click.UsageError(f"{number}: not a job id, such as 4711 or, of an array, 4711_3")
    found = _ask(config_file, "GET", f"/v1/jobs/{number}")
    show(found, as_json, lambda rows: text.job(number, rows))


@click.command()
@click.argument("span", metavar="[DURATION]", required=False)
@click.option("--nodes", default="", metavar="HOSTLIST", help="Only these nodes; else the whole cluster.")
@click.option("--reason", default="", help="Why, for those who will ask.")
@config_option
def pause(span: str | None, nodes: str, reason: str, config_file: str | None) -> None:
    """Touch nothing, for DURATION ("2h") or until unpause.

    What breaks meanwhile is recorded.
    """
    from slurm_health import duration

    try:
        seconds = duration.seconds(span) if span else 0
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    body = {"nodes": nodes, "seconds": seconds, "reason": reason}
    click.echo(_ask(config_file, "POST", "/v1/pause", body)["done"])


@click.command()
@click.option("--nodes", default="", metavar="HOSTLIST", help="As given to pause; else the cluster's pause.")
@config_option
def unpause(nodes: str, config_file: str | None) -> None:
    """Lift a pause."""
    click.echo(_ask(config_file, "POST", "/v1/unpause", {"nodes": nodes})["done"])
