"""The baseline on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

from slurm_health.baseline.facts import KINDS, Baseline


def load(path: Path) -> Baseline:
    """What save() wrote; an empty baseline for a file that is absent, torn or another program's."""
    try:
        # what earlier versions did not learn is not there
        data = {"pcie": {}, "memory": {}, "disks": {}, "clock": {}} | json.loads(path.read_text())
        kinds = [{str(name): dict(facts) for name, facts in data[kind].items()} for kind in KINDS]
        return Baseline(str(data["boot"]), *kinds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Baseline()


def save(path: Path, baseline: Baseline) -> None:
    """Write it, whole or not at all. Raises OSError."""
    data = {"boot": baseline.boot, **{kind: dict(getattr(baseline, kind)) for kind in KINDS}}
    draft = path.with_name(path.name + ".new")
    with draft.open("w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
