"""Commands that look at this machine or at a file, and ask nobody."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from slurm_health import sources
from slurm_health.cli.shell import (
    EX_CONFIG,
    EX_UNAVAILABLE,
    LEVELS,
    Cannot,
    Group,
    config_option,
    hostname,
    json_option,
    load_config,
    root_option,
    show,
)


@click.command()
@json_option
@config_option
@root_option
@click.option("--node", "name", help="Which [[nodes]] sections apply; else this host's name.")
@click.option("--every", help="Look again and again, such as 15s: with --json a history for `replay`.")
def scan(as_json: bool, config_file: str | None, root: str, name: str | None, every: str | None) -> None:
    """Look at this machine: no root, no Slurm, nothing is changed.

    Exit status: 0 ok, 1 warning, 2 critical, 3 unknown (a probe could not tell).
    """
    import time
    from dataclasses import replace

    from slurm_health import duration, rules, scan
    from slurm_health.baseline import Expectations
    from slurm_health.host import Host

    name = name or hostname()
    if sources.given(config_file):
        config = load_config(config_file)
        expectations, book = Expectations(**config.expected(name)), rules.load(config.rule)
        folder = config.probes.folder
    else:  # what reads a configuration takes as long to import as all the rest
        expectations, book, folder = Expectations(), rules.load(), sources.PROBES
    try:
        pause = duration.seconds(every) if every else 0.0
    except ValueError as error:
        raise click.UsageError(f"--every: {error}") from None
    if not Path(root).is_dir():
        raise click.UsageError(f"--root {root}: no such folder")
    library = os.environ.get("SLURM_HEALTH_NVML_LIBRARY", "")
    own = folder if Path(root) == Path("/") else None  # the site's probes look at this machine
    while True:
        began, host = time.time(), Host(root)
        seen = replace(scan.scan(host, expectations, book, library, folder=own), node=name)
        if not every:
            show(seen.json() if as_json else seen, as_json, scan.Scan.text)
            sys.exit(LEVELS[seen.verdict])
        look = {"at": _iso(began), "boot": host.boot_id(), **seen.json()}
        click.echo(json.dumps(look) if as_json else f"{look['at']} {seen.text()}")
        time.sleep(max(0.0, began + pause - time.time()))


@click.command()
@json_option
@config_option
def probes(as_json: bool, config_file: str | None) -> None:
    """List the probes, the site's own too, and their codes."""
    from slurm_health import rules
    from slurm_health.probes import PROBES, site

    config = load_config(config_file)
    rows = [{"probe": probe.name, "about": probe.about, "codes": list(probe.codes)} for probe in PROBES]
    own = {rule.code: "" for rule in rules.load(config.rule).rules if rule.reading.startswith("site.")}
    try:
        programs = site.programs(config.probes.folder)
    except OSError as error:
        programs = []
        click.echo(str(error), err=True)
    rows += [{"probe": f"site/{one.name}", "about": str(one), "codes": list(own)} for one in programs]
    show(
        rows,
        as_json,
        lambda rows: "\n\n".join(
            f"{row['probe']}: {row['about']}\n  {', '.join(row['codes'])}" for row in rows
        ),
    )


@click.command()
@click.argument("code", required=False)
@click.option("--markdown", is_flag=True, help="All of them in tables, as in docs/FAULTS.md.")
@json_option
@config_option
def explain(code: str | None, markdown: bool, as_json: bool, config_file: str | None) -> None:
    """Say what CODE means, how it is seen, what is done then.

    Without CODE all are listed. With a configuration the site's own rules are in it, too.
    """
    from slurm_health import explain, rules

    book = rules.load(load_config(config_file).rule)
    if markdown:
        click.echo(explain.markdown(book), nl=False)
        return
    try:
        said = explain.page(code, book) if code else "\n".join(explain.codes(book))
        show(explain.rows(book, code or "") if as_json else said, as_json, str)
    except KeyError as error:
        raise click.UsageError(str(error.args[0])) from None


@click.command()
@click.argument("readings", required=False, type=click.File("r"))
@click.option("--rules", "others", metavar="FILE", help="TOML of [[rule]] tables: what they would change.")
@click.option(
    "--kmsg",
    "file",
    metavar="FILE",
    type=click.File("r", errors="replace"),
    help="A kernel log: raw /dev/kmsg, dmesg (plain, -T, --time-format iso) or journalctl short-iso.",
)
@json_option
@config_option
def replay(readings: Any, others: str | None, file: Any, as_json: bool, config_file: str | None) -> None:
    """Judge what was recorded as the node daemon would have.

    READINGS is a history as `scan --json --every 15s` prints it: shown is which findings opened and closed
    when, and with --rules which would under those rules too, or only under them. --kmsg reads a kernel log
    and prints the hardware events in it.
    """
    if (readings is None) == (file is None):
        raise click.UsageError("name a history of readings, or a kernel log with --kmsg")
    config = load_config(config_file)
    if file is not None:
        _replay_log(file, as_json, config)
    else:
        _replay_readings(readings, others, as_json, config)


def _replay_log(file: Any, as_json: bool, config: Any) -> None:
    from slurm_health import replay, rules

    many = 0
    for event in replay.replay(file, rules.load(config.rule)):
        many += 1
        if as_json:
            click.echo(json.dumps(event))
        else:
            fault = f"{event['code']}({event['device']})"
            click.echo(f"{event['line']:>6}  {event['severity']:8}  {fault}  {event['text']}")
    if not as_json:
        click.echo(f"{many} hardware event{'' if many == 1 else 's'}", err=True)


def _replay_readings(file: Any, others: str | None, as_json: bool, config: Any) -> None:
    import tomllib

    from slurm_health import history, rules
    from slurm_health.baseline import Expectations

    now = new = rules.load(config.rule)
    if others:
        try:
            new = rules.load([*config.rule, *tomllib.loads(Path(others).read_text()).get("rule", [])])
        except (OSError, tomllib.TOMLDecodeError, rules.RuleError) as error:
            for line in str(error).splitlines():
                click.echo(f"{others}: {line}", err=True)
            sys.exit(EX_CONFIG)
    try:
        looks = history.looks(file)
        for node, change, by in history.compare(
            looks, now, new, lambda node: Expectations(**config.expected(node))
        ):
            found, at = change.finding, _iso(change.at)
            row = {"node": node, "at": at, "what": change.what, "code": found.code, "device": found.device,
                   "severity": str(found.severity), "evidence": found.evidence, "rules": by}  # fmt: skip
            only = "" if by == "both" else f"  only with {others if by == 'new' else 'the rules in force'}"
            words = f"{at}  {node}  {change.what:8}  {found.severity!s:8}  {found.code}({found.device}){only}"
            click.echo(json.dumps(row) if as_json else words)
    except ValueError as error:
        raise click.UsageError(f"{file.name}: {error}") from None


@click.group(cls=Group)
def config() -> None:
    """Check, show and begin the configuration."""


@config.command("check")
@click.option("--notify", is_flag=True, help="Send a test message by each way that [notify] names.")
@config_option
def config_check(notify: bool, config_file: str | None) -> None:
    """Name every mistake with its file and path.

    Exit status: 0 no mistake, 78 mistakes; with --notify 69 where a message cannot be sent.
    """
    loaded = load_config(config_file)
    file = sources.path(config_file)
    click.echo(f"{file}: no mistakes" if file.exists() else f"{file} does not exist: the defaults hold")
    if notify:
        import asyncio

        from slurm_health.sinks.notify import test

        outcomes = asyncio.run(test(loaded.notify, hostname()))
        for way, why in outcomes.items():
            click.echo(f"{way}: {f'not sent: {why}' if why else 'sent'}", err=bool(why))
        if not outcomes:
            raise click.UsageError("[notify] names neither mail nor webhook")
        if any(outcomes.values()):
            sys.exit(EX_UNAVAILABLE)


@config.command("show")
@json_option
@config_option
def config_show(as_json: bool, config_file: str | None) -> None:
    """Print what is in force, and which file each value came from."""
    from slurm_health import config

    try:
        values, origins = config.read(config_file)
    except config.ConfigError as error:
        for mistake in error.mistakes:
            click.echo(mistake, err=True)
        sys.exit(EX_CONFIG)
    said = values.model_dump(mode="json")
    if as_json:
        click.echo(json.dumps(said, indent=1))
        return
    rows = sorted(_flat(said).items())
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        click.echo(f"{key.ljust(width)} = {json.dumps(value):24} # {origins.get(key, 'default')}")


@config.command("generate")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@root_option
@click.option("--match", help="For which nodes; else this host.")
def config_generate(files: tuple[str, ...], root: str, match: str | None) -> None:
    """Print a [[nodes]] section that expects what this machine has.

    Run it on a healthy node.

    With FILES, what it printed on several nodes: one section for all that have the same, and how the others
    differ.
    """
    from slurm_health import baseline, expected, rules, scan
    from slurm_health.host import Host

    if files:
        click.echo(_merged(files))
        return
    library = os.environ.get("SLURM_HEALTH_NVML_LIBRARY", "")
    seen = scan.scan(Host(root), baseline.Expectations(), rules.load(), library)
    if seen.verdict not in ("ok", "warning"):
        click.echo(seen.text(), err=True)
        raise Cannot("this machine is not healthy: what it lacks would be expected of none")
    learned = baseline.Baseline()
    for report in seen.reports:
        learned, _ = baseline.learn(learned, report)
    click.echo(expected.section(learned, match or hostname()))


def _merged(files: tuple[str, ...]) -> str:
    from slurm_health import config, expected

    try:
        return expected.merge([one for file in files for one in config.sections(Path(file))])
    except config.ConfigError as error:
        raise click.UsageError(f"no output of `config generate`: {error}") from None


def _flat(table: dict[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")
