"""Opinions: what a reading means, as data (rules.toml, xid.toml), and how it is judged.

Pure: no files but the two tables, no clock, no log. What must outlive a restart is in Memory, a JSON value.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

from slurm_health.duration import seconds
from slurm_health.model import Finding, Reading, Severity, Urgency, Value

BURST = 2.0  # seconds in which events of one code on one device are one finding
EVIDENCE = 500  # characters of evidence that are kept
WORDS = 64  # characters of a rule's text, so that every reason fits in 120

Memory = dict[str, Any]


# -- conditions --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Is:
    """Bad when the value is one of these."""

    values: tuple[Value, ...]

    def holds(self, value: Value) -> bool:
        return any(type(value) is type(other) and value == other for other in self.values)


@dataclass(frozen=True, slots=True)
class IsNot:
    """Bad when the value is none of these."""

    values: tuple[Value, ...]

    def holds(self, value: Value) -> bool:
        return not Is(self.values).holds(value)


@dataclass(frozen=True, slots=True)
class Above:
    """Bad when the value is a number above the limit."""

    limit: float

    def holds(self, value: Value) -> bool:
        return _number(value) and float(value) > self.limit


@dataclass(frozen=True, slots=True)
class Below:
    """Bad when the value is a number below the limit."""

    limit: float

    def holds(self, value: Value) -> bool:
        return _number(value) and float(value) < self.limit


Condition = Is | IsNot | Above | Below


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- rules -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """An opinion on a lasting state. `hold`, `clear` in seconds; `times` counts consecutive bad readings."""

    code: str
    reading: str
    when: Condition
    severity: Severity
    text: str
    job: Urgency = Urgency.FINISH
    device: str = "*"
    ignore: tuple[str, ...] = ()
    hold: float = 0.0
    times: int = 1
    clear: float = 30.0
    enabled: bool = True
    why: str = ""
    advice: str = ""
    source: str = ""

    def judges(self, device: str) -> bool:
        return fnmatchcase(device, self.device) and not any(fnmatchcase(device, glob) for glob in self.ignore)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What an event means. `fault`: hardware, driver, application or unknown."""

    text: str
    fault: str
    severity: Severity
    job: Urgency
    advice: str
    when: Mapping[str, Opinion] = field(default_factory=dict)

    def on(self, detail: str) -> Opinion:
        """The opinion on this event with a detail ("fatal"), where there is one of its own."""
        return self.when.get(detail, self)


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All opinions. `unknown` is for a code that the table lacks, by the reading's name."""

    rules: tuple[Rule, ...]
    events: Mapping[str, Mapping[int, Opinion]]
    unknown: Mapping[str, Opinion]
    advice: Mapping[str, str]
    by_reading: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    def opinion(self, reading: Reading) -> tuple[str, Opinion] | None:
        """The code of an event and what it means, or None for a reading that is no event of the tables."""
        table = self.events.get(reading.name)
        if table is None or not isinstance(reading.value, int):
            return None
        known = table.get(reading.value, self.unknown[reading.name])
        return f"{EVENTS[reading.name]}_{reading.value}", known.on(reading.detail)


EVENTS = {"kernel.xid": "GPU_XID", "kernel.sxid": "NVSWITCH_SXID"}
FAULTS = ("hardware", "driver", "application", "unknown")


class RuleError(ValueError):
    """Mistakes in rules, all of them: `errors` is a list of lines, each beginning with its place."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


def load(overrides: Sequence[Mapping[str, Any]] = ()) -> RuleBook:
    """The shipped rules, changed by a site's. Raises RuleError with every mistake.

    An override is a table as in rules.toml. With a shipped code it changes only what it names, in all rules
    of that code, or in the one for its `reading`. A code of its own is a new rule. `enabled = false` ends
    one. For an event (`code = "GPU_XID_31"`) it may name severity, job, text and enabled.
    """
    errors: list[str] = []
    shipped = tomllib.loads(files(__package__).joinpath("rules.toml").read_text())
    tables = tomllib.loads(files(__package__).joinpath("xid.toml").read_text())
    advice = tables["advice"]
    rules = [_rule(f"rules.toml rule {n}", row, None, errors) for n, row in enumerate(shipped["rule"])]
    assert len({(rule.code, rule.reading) for rule in rules if rule}) == len(rules)
    events = {
        name: {int(code): _opinion(row, advice) for code, row in tables[section].items()}
        for name, section in (("kernel.xid", "xid"), ("kernel.sxid", "sxid"))
    }
    unknown = {
        "kernel.xid": _opinion(tables["unknown"]["xid"], advice),
        "kernel.sxid": _opinion(tables["unknown"]["sxid"], advice),
    }
    for number, override in enumerate(overrides):
        _override(f"rules[{number}]", override, rules, events, unknown, errors)
    if errors:
        raise RuleError(errors)
    active = tuple(rule for rule in rules if rule is not None and rule.enabled)
    index: dict[str, tuple[Rule, ...]] = {}
    for rule in active:
        index[rule.reading] = (*index.get(rule.reading, ()), rule)
    return RuleBook(active, events, unknown, advice, index)


def _opinion(row: Mapping[str, Any], advice: Mapping[str, str]) -> Opinion:
    plain = Opinion(
        row["text"],
        row["fault"],
        Severity[row.get("severity", "warning").upper()],
        Urgency(row.get("job", "none")),
        advice[row["advice"]],
    )
    special = {
        detail: replace(
            plain,
            severity=Severity[change["severity"].upper()],
            job=Urgency(change["job"]),
            advice=advice[change["advice"]] if "advice" in change else plain.advice,
        )
        for detail, change in row.get("when", {}).items()
    }
    return replace(plain, when=special)


def _override(
    place: str,
    row: Mapping[str, Any],
    rules: list[Rule | None],
    events: dict[str, dict[int, Opinion]],
    unknown: Mapping[str, Opinion],
    errors: list[str],
) -> None:
    code = row.get("code")
    if not isinstance(code, str):
        errors.append(f"{place}.code: a code is missing, such as IB_PORT_DOWN")
        return
    for name, prefix in EVENTS.items():
        number = code.removeprefix(prefix + "_")
        if number != code and number.isascii() and number.isdigit():
            _override_event(place, row, name, int(number), events, unknown, errors)
            return
    reading = row.get("reading")
    matches = [
        index
        for index, rule in enumerate(rules)
        if rule is not None and rule.code == code and reading in (None, rule.reading)
    ]
    if matches:
        for index in matches:
            rules[index] = _rule(place, row, rules[index], errors)
    else:
        rules.append(_rule(place, row, None, errors))


def _override_event(
    place: str,
    row: Mapping[str, Any],
    name: str,
    number: int,
    events: dict[str, dict[int, Opinion]],
    unknown: Mapping[str, Opinion],
    errors: list[str],
) -> None:
    old = events[name].get(number, unknown[name])
    changes: dict[str, Any] = {}
    for key, value in row.items():
        if key == "code":
            continue
        check = _KEYS.get(key) if key in ("severity", "job", "text", "enabled") else None
        if check is None:
            errors.append(f"{place}.{key}: an event has no such key (severity, job, text, enabled)")
            continue
        try:
            changes[key] = check(value)
        except ValueError as error:
            errors.append(f"{place}.{key}: {error}")
    if not changes.pop("enabled", True):
        changes["severity"] = Severity.OK
    # the site's word holds whatever the line's detail
    events[name][number] = replace(old, **changes, when={})


def _rule(place: str, row: Mapping[str, Any], old: Rule | None, errors: list[str]) -> Rule | None:
    values: dict[str, Any] = {}
    count = len(errors)
    for key, value in row.items():
        check = _KEYS.get(key)
        if check is None:
            errors.append(f"{place}.{key}: no such key")
            continue
        try:
            values[key] = check(value)
        except ValueError as error:
            errors.append(f"{place}.{key}: {error}")
    if old is None:
        for key in ("code", "reading", "when", "severity", "text"):
            if key not in row:
                errors.append(f"{place}.{key}: missing in a rule of its own ({row.get('code', '?')})")
    if len(errors) > count:
        return old
    return replace(old, **values) if old is not None else Rule(**values)


def _words(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text")
    return value.strip()


def _code(value: object) -> str:
    code = _words(value)
    if not code.isascii() or not code.replace("_", "").isalnum() or code != code.upper() or len(code) > 40:
        raise ValueError(f"{code!r} is not a code (capitals, digits and _, at most 40)")
    return code


def _short(value: object) -> str:
    text = _words(value)
    if len(text) > WORDS or not text.isascii() or not text.isprintable():
        raise ValueError(f"must be plain ASCII of at most {WORDS} characters")
    return text


def _severity(value: object) -> Severity:
    if value not in ("ok", "warning", "critical"):
        raise ValueError(f"{value!r} is not ok, warning or critical")
    return Severity[str(value).upper()]


def _urgency(value: object) -> Urgency:
    try:
        return Urgency(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not now, checkpoint, finish or none") from None


def _globs(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(glob, str) for glob in value):
        return tuple(value)
    raise ValueError("must be a list of device patterns")


def _times(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1000:
        raise ValueError("must be a whole number from 1 to 1000")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _condition(value: object) -> Condition:
    if isinstance(value, Mapping) and len(value) == 1:
        [(key, limit)] = value.items()
        if key in ("is", "not"):
            values = tuple(limit) if isinstance(limit, list | tuple) else (limit,)
            if values and all(isinstance(one, str | int | float | bool) for one in values):
                return Is(values) if key == "is" else IsNot(values)
        elif key in ("above", "below") and _number(limit):
            return Above(float(limit)) if key == "above" else Below(float(limit))
    raise ValueError("must be one of { is = }, { not = }, { above = }, { below = }")


_KEYS: dict[str, Any] = {
    "code": _code,
    "reading": _words,
    "when": _condition,
    "severity": _severity,
    "text": _short,
    "job": _urgency,
    "device": _words,
    "ignore": _globs,
    "hold": seconds,
    "times": _times,
    "clear": seconds,
    "enabled": _flag,
    "why": _words,
    "advice": _words,
    "source": _words,
}


# -- judging -----------------------------------------------------------------------------


def begin(saved: object, boot: str) -> Memory:
    """A memory for this boot from what was saved (or None, or anything). What stood still stands; what had
    not yet lasted long enough in another boot is forgotten.
    """
    memory: Memory = {"boot": boot, "watch": {}, "events": {}}
    if not isinstance(saved, dict):
        return memory
    same = saved.get("boot") == boot
    watch = saved.get("watch")
    for key, entry in watch.items() if isinstance(watch, dict) else ():
        if _sound(entry) and (same or entry["moment"]) and isinstance(key, str) and key.count("|") == 2:
            memory["watch"][key] = dict(entry)
    events = saved.get("events")
    if same and isinstance(events, dict):
        memory["events"] = {key: at for key, at in events.items() if isinstance(key, str) and _number(at)}
    return memory


def _sound(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and all(_number(entry.get(key)) for key in ("since", "last", "count"))
        and all(isinstance(entry.get(key), str) for key in ("moment", "evidence"))
        and (entry.get("good") is None or _number(entry["good"]))
    )


def judge(
    book: RuleBook, readings: Iterable[Reading], memory: Memory, now: float
) -> tuple[tuple[Finding, ...], Memory]:
    """All findings that stand, and the events among the readings; and the memory for the next time.

    `now` is seconds since the epoch by a clock that does not jump (set once, then counted on by a steady
    one): holds are measured with it. A finding ends only when a good reading of the same name and device has
    lasted for its rule's `clear`. An absent reading says nothing. The order of readings does not matter.
    """
    watch = dict(memory.get("watch", {}))
    events = {key: at for key, at in memory.get("events", {}).items() if 0 <= now - at < BURST}
    boot = memory.get("boot", "")
    found: dict[tuple[str, ...], Finding] = {}
    for reading in readings:
        if reading.moment:
            finding = _event(book, reading)
            if finding is None:
                continue
            key = f"{finding.code}|{finding.device}|{finding.severity}|{finding.job}"
            first = found.get(("event", key))
            if (first is None and key not in events) or (first is not None and _age(finding) < _age(first)):
                found["event", key] = finding
            continue
        for rule in book.by_reading.get(reading.name, ()):
            if rule.judges(reading.device):
                _state(rule, reading, watch, boot, now)
    events |= {key[1]: now for key in found}
    rules = {(rule.code, rule.reading): rule for rule in book.rules}
    for key, entry in list(watch.items()):
        code, name, device = key.split("|")
        rule_of = rules.get((code, name))
        if rule_of is None or not rule_of.judges(device):
            del watch[key]
        elif entry["moment"] and rule_of.severity > Severity.OK:
            finding = Finding(
                code,
                rule_of.severity,
                device,
                rule_of.text,
                entry["evidence"],
                rule_of.job,
                entry["since"],
                entry["moment"],
            )
            worse = found.get(("state", code, device))
            if worse is None or finding.severity > worse.severity:
                found["state", code, device] = finding
    order = sorted(found.values(), key=lambda one: (-one.severity, one.since, one.code, one.device))
    return tuple(order), {"boot": boot, "watch": watch, "events": events}


def _age(finding: Finding) -> tuple[float, int, str]:
    """Orders events: by time, and within one by sequence number."""
    return finding.since, len(finding.moment), finding.moment


def _event(book: RuleBook, reading: Reading) -> Finding | None:
    judged = book.opinion(reading)
    if judged is None:
        return None
    code, opinion = judged
    if opinion.severity is Severity.OK:
        return None
    return Finding(
        code,
        opinion.severity,
        reading.device,
        opinion.text,
        reading.evidence[:EVIDENCE],
        opinion.job,
        reading.at,
        reading.moment,
        lasting=False,
    )


def _state(rule: Rule, reading: Reading, watch: dict[str, Any], boot: str, now: float) -> None:
    key = f"{rule.code}|{rule.reading}|{reading.device}"
    entry = watch.get(key)
    if not rule.when.holds(reading.value):
        if entry is None:
            return
        if not entry["moment"]:
            del watch[key]  # it did not last
            return
        good = _shifted(entry, now)["good"]
        good = now if good is None else good
        if now - good >= rule.clear:
            del watch[key]
        else:
            watch[key] = {**_shifted(entry, now), "good": good, "last": now}
        return
    if entry is None:
        evidence = reading.evidence or f"{reading.name} is {reading.value}"
        entry = {"since": now, "last": now, "count": 0, "moment": "", "good": None, "evidence": evidence}
        entry["evidence"] = entry["evidence"][:EVIDENCE]
    entry = {**_shifted(entry, now), "count": entry["count"] + 1, "good": None, "last": now}
    if not entry["moment"] and now - entry["since"] >= rule.hold and entry["count"] >= rule.times:
        entry["moment"] = f"{boot}/{rule.code}/{reading.device}/{round(entry['since'] * 1000)}"
    watch[key] = entry


def _shifted(entry: dict[str, Any], now: float) -> dict[str, Any]:
    """A clock that was set back takes the unfinished holds with it."""
    back = entry["last"] - now
    if back <= 0:
        return entry
    good = entry["good"]
    shifted = {**entry, "good": None if good is None else good - back}
    return shifted if entry["moment"] else {**shifted, "since": entry["since"] - back}
