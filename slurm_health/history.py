"""Recorded looks at a node, judged again: what these rules, or others, would have found and when.

A history is what `scan --json --every 15s` prints: a look a line, each with its time. It is gone through as
the node's daemon goes: learning what is healthy, judging, remembering.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slurm_health import baseline, rules
from slurm_health.model import Finding, Reading, Report, Severity


@dataclass(frozen=True, slots=True)
class Look:
    """What all probes brought at one time (seconds since the epoch), in one boot."""

    node: str
    at: float
    boot: str
    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A finding `opened` or `closed` at this time, or an event `happened`."""

    at: float
    what: str
    finding: Finding

    @property
    def fault(self) -> tuple[str, str, str, Severity]:
        """The same under both sets of rules when all of this is the same."""
        return self.what, self.finding.code, self.finding.device, self.finding.severity


def looks(lines: Iterable[str]) -> Iterator[Look]:
    """The looks of a history. ValueError names the first line that is none."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _look(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} is no look of `scan --json --every 15s`: {error!r}"
                ) from None


def _look(said: dict[str, Any]) -> Look:
    reports = tuple(
        Report(
            str(one["probe"]),
            tuple(Reading(**reading) for reading in one["readings"]),
            str(one["error"]),
            float(one["seconds"]),
        )
        for one in said["reports"]
    )
    return Look(str(said["node"]), datetime.fromisoformat(said["at"]).timestamp(), str(said["boot"]), reports)


class Course:
    """The course of things under one set of rules."""

    def __init__(self, book: rules.RuleBook, expectations: baseline.Expectations) -> None:
        self.book, self.expectations = book, expectations
        self.known = baseline.Baseline()
        self.memory = rules.begin(None, "")
        self.standing: dict[str, Finding] = {}
        self.told: set[str] = set()  # moments of events: each look shows all of its boot

    def see(self, look: Look) -> list[Change]:
        """What changes with this look."""
        if look.boot != self.memory["boot"]:
            self.memory = rules.begin(self.memory, look.boot)
        self.known = baseline.begin(self.known, look.boot)
        sick = [found.device for found in self.standing.values() if found.severity is Severity.CRITICAL]
        readings: list[Reading] = []
        for report in look.reports:
            self.known, _ = baseline.learn(self.known, report, sick)
            readings += baseline.expect(self.known, self.expectations, report)
        fresh = [one for one in readings if not one.moment or one.moment not in self.told]
        self.told |= {one.moment for one in fresh if one.moment}
        found, self.memory = rules.judge(self.book, fresh, self.memory, look.at)
        before, self.standing = self.standing, {one.moment: one for one in found if one.lasting}
        changes = [Change(one.since, "happened", one) for one in found if not one.lasting]
        changes += [Change(look.at, "opened", one) for key, one in self.standing.items() if key not in before]
        changes += [Change(look.at, "closed", one) for key, one in before.items() if key not in self.standing]
        return changes


def compare(
    history: Iterable[Look],
    now: rules.RuleBook,
    new: rules.RuleBook,
    expected: Callable[[str], baseline.Expectations],
) -> Iterator[tuple[str, Change, str]]:
    """Every change: on which node, and under which rules: "both", only "now" or only "new"."""
    courses: dict[str, tuple[Course, Course]] = {}
    for look in history:
        if look.node not in courses:
            expectations = expected(look.node)
            courses[look.node] = Course(now, expectations), Course(new, expectations)
        ours, theirs = (
            {change.fault: change for change in course.see(look)} for course in courses[look.node]
        )
        for fault in sorted(ours.keys() | theirs.keys()):
            by = "both" if fault in ours and fault in theirs else "now" if fault in ours else "new"
            yield look.node, ours.get(fault) or theirs[fault], by
