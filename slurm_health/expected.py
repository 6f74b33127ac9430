"""What nodes should have, as [[nodes]] sections: of one node what it was seen to have; of several as few as
say it, and how they differ.

Pure: from what was learned, or from what `config generate` printed of each, to the text of a configuration.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ClusterShell.NodeSet import NodeSet

from slurm_health.baseline import Baseline, pcie
from slurm_health.model import Value

Section = Mapping[str, Any]


def section(baseline: Baseline, match: str) -> str:
    """The section that expects what was learned of a healthy node."""
    return render(match, _has(baseline))


def _has(baseline: Baseline) -> dict[str, Any]:
    has: dict[str, Any] = {}
    if baseline.gpus:
        has["gpus"] = len(baseline.gpus)
    if models := sorted({str(its["model"]) for its in baseline.gpus.values() if "model" in its}):
        has["gpu"] = {"model": models[0] if len(models) == 1 else models}
    if sizes := _numbers(its.get("memory") for its in baseline.gpus.values()):
        has["gpu"] = {**has.get("gpu", {}), "memory": min(sizes)}
    ports = {name: its.get("rate") for name, its in baseline.ports.items() if its.get("layer") != "Ethernet"}
    speeds = {name: _gbps(its.get("speed")) for name, its in baseline.nics.items()}
    has |= {key: _links(rates) for key, rates in (("infiniband", ports), ("nics", speeds)) if rates}
    if "total" in (whole := baseline.memory.get("", {})):
        has["memory"] = whole["total"]
    if baseline.pcie:
        has["pcie"] = {address: pcie.words(pcie.link(its)) for address, its in sorted(baseline.pcie.items())}
    return has


def _links(rates: Mapping[str, Value | None]) -> dict[str, Any]:
    """How many ports, the rate of most of them (of two as common the higher), and those of the others."""
    has: dict[str, Any] = {"ports": len(rates)}
    if known := Counter(_numbers(rates.values())):
        has["gbps"] = usual = max(known, key=lambda rate: (known[rate], rate))
        if others := {name: rate for name, rate in sorted(rates.items()) if rate not in (usual, None)}:
            has["rates"] = others
    return has


def _gbps(speed: Value | None) -> float | None:
    return speed / 1000 if isinstance(speed, int) else None


def _numbers(values: Iterable[Value | None]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)]


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
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return json.dumps(value, ensure_ascii=False)
