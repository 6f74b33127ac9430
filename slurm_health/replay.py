"""Old kernel logs read as the daemon reads the live one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from slurm_health.logformats import messages
from slurm_health.model import Severity
from slurm_health.probes.kernel import Event, parse_message, reading
from slurm_health.rules import RuleBook


def replay(lines: Iterable[str], book: RuleBook) -> Iterator[dict[str, Any]]:
    """One object for each line that is a hardware event: what `replay --kmsg FILE --json` prints."""
    for number, text in messages(lines):
        event = parse_message(text)
        if event is not None:
            yield _object(number, text, event, book)


def _object(number: int, text: str, event: Event, book: RuleBook) -> dict[str, Any]:
    code, severity = _alone(event, book)
    return {
        "line": number,
        "code": code,
        "device": event.device,
        "severity": str(severity),
        "xid": event.value if event.name == "kernel.xid" else None,
        "pid": event.pid or None,
        "text": text,
    }


def _alone(event: Event, book: RuleBook) -> tuple[str, Severity]:
    """The code of an event, and how bad it is by itself: "ok" where only its repeats are."""
    if judged := book.opinion(reading(event, "", "alone", 0.0)):
        return judged[0], judged[1].severity
    rules = [rule for rule in book.by_reading.get(event.name, ()) if rule.when.holds(event.value)]
    alone = [rule.severity for rule in rules if not rule.within and rule.judges(event.device)]
    return rules[0].code if rules else "", max(alone, default=Severity.OK)
