"""What several nodes should have, in as few [[nodes]] sections as say it, and how they differ.

Pure: from tables as `config generate` prints them, one for each node, to the text of a configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ClusterShell.NodeSet import NodeSet

Section = Mapping[str, Any]


def merge(sections: Sequence[Section]) -> str:
    """One section for all nodes that have the same, the most common first. Above each other one stands how it
    differs from the first: a node that lacks something shows here."""
    alike: dict[str, tuple[NodeSet, Section]] = {}
    for section in sections:
        has = {key: value for key, value in section.items() if key != "match"}
        nodes, _ = alike.setdefault(json.dumps(has, sort_keys=True), (NodeSet(), has))
        nodes.update(section["match"])
    groups = sorted(alike.values(), key=lambda group: (-len(group[0]), str(group[0])))
    usual = groups[0][1]
    return "\n\n".join(
        "\n".join([*differences(str(nodes), has, usual), render(str(nodes), has)]) for nodes, has in groups
    )


def differences(who: str, has: Section, usual: Section) -> list[str]:
    """A comment for each key in which they differ."""
    one, other = _flat(has), _flat(usual)
    lines = []
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            ours, theirs = (_value(side[key]) if key in side else "none" for side in (one, other))
            lines.append(f"# {who}: {key} is {ours}, elsewhere {theirs}")
    return lines


def render(match: str, has: Section) -> str:
    """A [[nodes]] section as people write it."""
    lines, tables = ["[[nodes]]", f"match = {_value(match)}"], []
    for key, value in has.items():
        if isinstance(value, Mapping) and any(not name.isidentifier() for name in value):
            tables += [f"[nodes.{key}]", *(f"{_key(name)} = {_value(it)}" for name, it in value.items())]
        else:
            lines.append(f"{key} = {_value(value)}")
    return "\n".join([*lines, *tables])


def _flat(table: Section, at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{at}{_key(key)}"
        flat |= _flat(value, f"{where}.") if isinstance(value, Mapping) else {where: value}
    return flat


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else _value(name)


def _value(value: object) -> str:
    """TOML; what is not a table is written as in JSON."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(it)}' for key, it in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
