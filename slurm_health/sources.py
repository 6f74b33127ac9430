"""Where the configuration is. What stands in it is for config.py to say, which takes a while to import."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_PATH = Path("/etc/slurm-health/config.toml")
PROBES = Path("/etc/slurm-health/probes.d")  # the site's own probes, unless the configuration has others
VARIABLE = "SLURM_HEALTH_CONFIG"


def path(explicit: str | None = None) -> Path:
    """The file as given, else SLURM_HEALTH_CONFIG, else /etc/slurm-health/config.toml."""
    return Path(explicit or os.environ.get(VARIABLE) or DEFAULT_PATH)


def files(explicit: str | None = None) -> list[Path]:
    """The file and `conf.d/*.toml` beside it, in order: those that there are. FileNotFoundError where it is
    named and missing; the default one may be."""
    main = path(explicit)
    parts = sorted((main.parent / "conf.d").glob("*.toml"))
    if main.exists():
        return [main, *parts]
    if explicit or os.environ.get(VARIABLE):
        raise FileNotFoundError(f"{main}: no such file")
    return parts


def given(explicit: str | None = None) -> bool:
    """Whether there is a configuration to read: a file is there, or one is named."""
    return bool(explicit or os.environ.get(VARIABLE) or files())
