"""Sliding windows: how much of something came within the last so many seconds, in bounded memory.

A window is a JSON value. Its `steps` are spans [from, to, amount], in order; an amount counts as spread
evenly over its span. `at` is the time of the last look, `last` what it showed, `before` the value from which
a counter fell and when it had it. All times are seconds by one clock; where that was set back, how long
things took is not known, and a window begins anew.
"""

from __future__ import annotations

from typing import Any

STEPS = 64  # about so many steps are kept, whatever the interval of looking: close ones become one
GAP = 0.25  # of the window: what is not looked at for longer is not taken to have gone on meanwhile

Steps = list[list[float]]
Window = dict[str, Any]


def total(window: Window, now: float, within: float) -> float:
    """How much came within the last `within` seconds."""
    steps: Steps = window["steps"]
    if not steps:
        return 0
    edge = now - within
    return sum(
        amount if start >= edge else amount * (end - edge) / (end - start)
        for start, end, amount in steps
        if end > edge
    )


def rise(window: Window | None, value: int, now: float, within: float) -> Window:
    """The window of a counter that shows `value` now. At first sight nothing has come.

    A counter that got smaller was reset, and what it shows has come since; but not before the next look,
    which shows whether it was only misread: then it has the old value again, or more.
    """
    if window is None:
        return {"at": now, "last": value, "before": None, "steps": []}
    floor, since = window["before"] or (window["last"], window["at"])
    if now < window["at"]:
        return {"at": now, "last": max(value, floor), "before": None, "steps": []}
    came, before = 0, None
    if value >= floor:
        came = value - floor
    elif window["before"] is None or value < window["last"]:
        before = [floor, since]
    else:
        came = value
    steps = _with(window["steps"], since, now, came, within)
    return {"at": now, "last": value, "before": before, "steps": steps}


def spend(window: Window | None, bad: bool, now: float, within: float) -> Window | None:
    """The window of a state that is bad now, or is not: seconds between two bad looks count. None for one
    that was never bad."""
    if window is None or now < window["at"]:
        return {"at": now, "last": True, "before": None, "steps": []} if bad else None
    gap = now - window["at"]
    came = gap if bad and window["last"] and gap <= within * GAP else 0.0
    steps = _with(window["steps"], window["at"], now, came, within)
    return {"at": now, "last": bad, "before": None, "steps": steps} if bad or steps else None


def strike(window: Window | None, at: float, now: float, within: float, burst: float) -> Window:
    """The window of an event that came at `at`. What follows within `burst` seconds belongs to it; what is
    not later has been counted already."""
    if window is None or now < window["at"]:
        return {"at": at, "last": 0, "before": None, "steps": [[at, at, 1]]}
    if at - window["at"] < burst:
        return window
    return {**window, "at": at, "steps": _with(window["steps"], at, at, 1, within)}


def sight(window: Window | None, who: str, at: float, now: float, within: float, most: int) -> Window:
    """The window of those (at most so many) whom an event met: each counts once."""
    known = {} if window is None or now < window["at"] else window["who"]
    others = [(one, then) for one, then in known.items() if then > now - within and one != who]
    latest = sorted([*others, (who, at)], key=lambda item: item[1])[-most:]
    return {"at": latest[-1][1], "last": 0, "before": None, "steps": [], "who": dict(latest)}


def sound(window: object) -> bool:
    """Whether this is a window, and not what a torn file left of one."""
    if not isinstance(window, dict) or not _number(window.get("at")):
        return False
    steps, who = window.get("steps"), window.get("who", {})
    return (
        isinstance(window.get("last"), int)
        and (window.get("before") is None or _pair(window["before"]))
        and isinstance(steps, list)
        and all(isinstance(step, list) and len(step) == 3 and all(map(_number, step)) for step in steps)
        and all(start <= end for start, end, _ in steps)
        and isinstance(who, dict)
        and all(map(_number, who.values()))
    )


def _pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _with(steps: Steps, start: float, end: float, amount: float, within: float) -> Steps:
    kept = [step for step in steps if step[1] > end - within] if steps else []
    if not amount:
        return kept
    if kept and end - kept[-1][0] <= 2 * within / STEPS:
        start, _, before = kept.pop()
        amount += before
    return [*kept, [start, end, amount]]
