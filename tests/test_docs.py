"""The README and the sample configuration say what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from slurm_health import config, rules
from slurm_health.cli import main

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(main.commands))
def test_each_command_is_in_the_readme(name: str) -> None:
    command = main.commands[name]
    table = README[README.index("### Commands") : README.index("### Files")]
    assert f"`{name}" in table
    if isinstance(command, click.Group):
        row = next(line for line in table.splitlines() if f"`{name}" in line)
        assert all(verb in row for verb in command.commands)


PAGES = [TOP / "README.md", TOP / "docker/README.md", *sorted((TOP / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_each_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_each_page_is_named_in_the_readme() -> None:
    assert all(f"](docs/{page.name}" in README for page in PAGES if page.parent.name == "docs")


def keys(model: type[BaseModel], at: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys(inner, f"{at}{name}.")
        else:
            found.add(f"{at}{name}")
    return found


def uncommented() -> dict[str, object]:
    """The sample with every setting switched on: comments that read like TOML are what an admin would try."""
    lines = []
    for line in (TOP / "etc/config.toml").read_text().splitlines():
        line = re.sub(r"^#(?=[a-z_]+ +?=|\[)", "", line)
        lines.append(line if not line.startswith("#") else "")
    return tomllib.loads("\n".join(lines))


def test_the_sample_shows_each_key_with_its_default() -> None:
    sample = uncommented()
    defaults = config.Config().model_dump()
    shown = set()
    for name, value in sample.items():
        if name in ("nodes", "rule"):
            shown.add(name)
        elif isinstance(value, dict):
            shown |= {f"{name}.{key}" for key in value}
        else:
            shown.add(name)
    assert shown == keys(config.Config)
    given = config.Config.model_validate(
        {k: v for k, v in sample.items() if k not in ("nodes", "rule", "controller")}
    )
    assert given.model_dump() | {"controller": ""} == defaults | {"controller": ""}


def test_how_soon_it_is_found_was_measured_for_each_fault() -> None:
    results = (TOP / "bench/RESULTS.md").read_text()
    section = results[results.index("## Detection") : results.index("## Recall")]
    measured = set(re.findall(r"^\| .+? \| ([A-Z0-9_]+) \| 32 \|", section, re.MULTILINE))
    said = set(re.findall(r"Not injected: .+", section, re.DOTALL)[0].replace(",", " ").split())
    assert {rule.code for rule in rules.load().rules} - measured <= said
