"""Durations as people write them: "5s", "2m", "1h", "1d", "250ms"."""

from __future__ import annotations

import re

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_GRAMMAR = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.ASCII)


def seconds(value: object) -> float:
    """Seconds in "5s", "2m", "1h", "1d", "250ms", or a plain number of seconds; else ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value < float("inf"):
            return float(value)
    elif isinstance(value, str) and (match := _GRAMMAR.fullmatch(value.strip())):
        return float(match[1]) * UNITS[match[2]]
    raise ValueError(f'{value!r} is not a duration such as "5s", "2m" or "1h"')


def short(span: float) -> str:
    """A duration as `seconds` reads it, in its largest whole unit: "90s", "10m", "1d"."""
    unit = next((unit for unit in ("d", "h", "m") if span >= UNITS[unit] and not span % UNITS[unit]), "s")
    return f"{span / UNITS[unit]:g}{unit}"


def words(span: float) -> str:
    """A span for people: "4.7 s", "2 m 05 s", "3 h 10 m", "5 d 2 h"."""
    if span < 60:
        return f"{span:.1f} s"
    minutes, rest = divmod(round(span), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} m"
    return f"{hours // 24} d {hours % 24} h"
