"""What a job's owner asks of us, in a comment: `slurm-health: requeue=5 signal=USR1@120 steps=all`, or `off`.
And what the job itself may tell there while it runs: `saved=1700000000`, when it last saved its work.

Anybody may write anything there, and other tools do: what is ours begins with `slurm-health:` and ends at a
`;` or with the text. A later word overrules an earlier one. What is not understood changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import replace

from slurm_health.model import Wish

SIGNALS = ("USR1", "USR2", "TERM", "INT", "HUP")
LONGEST = 200  # characters that are read after each `slurm-health:`
PARTS = 4  # so many of these are read, the last ones
MARK = "slurm-health:"
TOLD = "slurm-health-was:"
_OURS = re.compile(r"(?<![\w-])slurm-health:((?:(?!slurm-health:)[^;|\"'}\r\n])*)")
_NUMBER = re.compile(r"\d{1,6}", re.ASCII)
_MOMENT = re.compile(r"\d{1,11}(\.\d{1,9})?", re.ASCII)


def ours(comment: str) -> str:
    """What of a comment is meant for us, as one text that `read` understands, or ""."""
    parts = [" ".join(match[1].split()) for match in _OURS.finditer(comment)]
    return "; ".join(f"slurm-health: {part[:LONGEST]}" for part in parts[-PARTS:] if part)


def read(comment: str, site: Wish, most: int, longest: float) -> tuple[Wish, str]:
    """The wish in a comment, and what its owner must be told about it, or "".

    `site` holds where nothing is said, and as a whole where something is not understood; but `off` always
    holds. `most` requeues and `longest` seconds of grace are the site's bounds.
    """
    words = [word for match in _OURS.finditer(ours(comment)) for word in match[1].split()]
    if "off" in words:
        return replace(site, requeue=0), ""
    wish, told = site, []
    for word in words:
        try:
            wish = _heed(wish, word)
        except ValueError as error:
            return site, f"the comment {word[:30]!a} is not understood ({error}): this site's defaults hold"
    if wish.requeue > max(most, site.requeue):
        told.append(f"requeue={wish.requeue} is more than this site's {most}")
        wish = replace(wish, requeue=max(most, site.requeue))
    if wish.grace > max(longest, site.grace):
        told.append(f"{wish.grace:g} s of grace are more than this site's {longest:g}")
        wish = replace(wish, grace=max(longest, site.grace))
    return wish, "; ".join(told)


def saved(comment: str) -> float:
    """When a job last saved its work, by its own words: seconds since the epoch, 0 where it does not say."""
    words = (word for match in _OURS.finditer(ours(comment)) for word in match[1].split())
    moments = [word[6:] for word in words if word.startswith("saved=")]
    return float(moments[-1]) if moments and _MOMENT.fullmatch(moments[-1]) else 0.0


def told(comment: str, attempt: int, bad_nodes: str, reason: str) -> str:
    """The comment with what the next run is to be told at its end, in place of what the last one was."""
    before = comment.partition(TOLD)[0].rstrip("; ")
    words = reason.replace(";", ",")
    now = f"{TOLD} attempt={attempt} bad_nodes={bad_nodes} reason={words}"
    return f"{before}; {now}" if before else now


def _heed(wish: Wish, word: str) -> Wish:
    """The wish with this word heeded too; ValueError says what could be written instead."""
    key, _, value = word.partition("=")
    if key == "requeue":
        if not _NUMBER.fullmatch(value):
            raise ValueError("write requeue=5, or off")
        return replace(wish, requeue=int(value))
    if key == "signal":
        name, at, grace = value.removeprefix("SIG").partition("@")
        if name not in (*SIGNALS, "none") or (at and not _NUMBER.fullmatch(grace)):
            raise ValueError(f"write signal=USR1@120: {', '.join(SIGNALS)} or none, and the seconds of grace")
        wish = replace(wish, signal="" if name == "none" else name)
        return replace(wish, grace=float(grace)) if at else wish
    if key == "steps":
        if value not in ("batch", "all"):
            raise ValueError("write steps=batch or steps=all")
        return replace(wish, steps=value)
    if key == "saved":  # of its work, not of how it is to be brought back
        if not _MOMENT.fullmatch(value):
            raise ValueError("write saved=$(date +%s)")
        return wish
    raise ValueError("known are requeue=, signal=, steps=, saved= and off")
