"""The tables of opinions, and how a site changes them: rules.toml, xid.toml, [[rule]]."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pkgutil import get_data
from typing import Any, Literal

from slurm_health.duration import seconds
from slurm_health.model import Reading, Severity, Urgency, Value

COOL = 30.0  # seconds that a finding must be good again to end, where its rule names no other
WORDS = 64  # characters of a rule's text, so that every reason fits in 120


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


@dataclass(frozen=True, slots=True)
class Rises:
    """Bad when a counter has risen by so much or more within the rule's window."""

    by: float

    def holds(self, value: Value) -> bool:
        return False  # no value says it alone


Condition = Is | IsNot | Above | Below | Rises


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- rules -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """An opinion, as the header of rules.toml has it. Spans in seconds, 0 where there is none.

    `case` tells rules of one code and reading apart.
    """

    code: str
    reading: str
    when: Condition
    severity: Severity
    text: str
    job: Urgency = Urgency.FINISH
    device: str = "*"
    ignore: tuple[str, ...] = ()
    case: str = ""
    hold: float = 0.0
    lasts: float = 0.0
    times: int = 1
    within: float = 0.0
    distinct: Literal["", "job", "user"] = ""
    clear: float | Literal["never", "boot"] = COOL
    flaps: float = 3600.0
    enabled: bool = True
    why: str = ""
    advice: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """What tells this rule from all others: "code|reading", or "code|reading:case"."""
        return f"{self.code}|{self.reading}:{self.case}" if self.case else f"{self.code}|{self.reading}"

    def key(self, device: str) -> str:
        """What a memory calls this rule on a device."""
        return f"{self.name}|{device}"

    @property
    def cool(self) -> float:
        """Seconds of good readings that end a finding that may end."""
        return self.clear if isinstance(self.clear, int | float) else COOL

    def judges(self, device: str) -> bool:
        if self.device == "*" and not self.ignore:
            return True
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
    by_key: Mapping[str, Rule] = field(default_factory=dict)  # Rule.name -> rule

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
    of that code, or in those for its `reading` and `case`. A code or reading of its own is a new rule.
    `enabled = false` ends one. For an event (`code = "GPU_XID_31"`, without a reading) it may name severity,
    job, text and enabled.
    """
    errors: list[str] = []
    shipped, tables = _shipped("rules.toml"), _shipped("xid.toml")
    advice = tables["advice"]
    rules = [_rule(f"rules.toml rule {n}", row, None, errors) for n, row in enumerate(shipped["rule"])]
    assert len({rule.name for rule in rules if rule}) == len(rules), "a rule's code, reading and case"
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
    return _bound(active, events, unknown, advice)


def _shipped(name: str) -> dict[str, Any]:
    """A table of this package. pkgutil reads it, for importlib.resources imports ten times as much."""
    return tomllib.loads((get_data("slurm_health", name) or b"").decode())


def at_once(book: RuleBook) -> RuleBook:
    """The same opinions without patience, for a single look: a state that is bad now has lasted."""
    rules = [
        replace(rule, hold=0.0, lasts=0.0, times=rule.times if rule.within and not rule.lasts else 1)
        for rule in book.rules
    ]
    return _bound(tuple(rules), book.events, book.unknown, book.advice)


def _bound(
    rules: tuple[Rule, ...],
    events: Mapping[str, Mapping[int, Opinion]],
    unknown: Mapping[str, Opinion],
    advice: Mapping[str, str],
) -> RuleBook:
    index: dict[str, tuple[Rule, ...]] = {}
    for rule in rules:
        index[rule.reading] = (*index.get(rule.reading, ()), rule)
    return RuleBook(rules, events, unknown, advice, index, {rule.name: rule for rule in rules})


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
    reading, case = row.get("reading"), row.get("case")
    matches = [
        index
        for index, rule in enumerate(rules)
        if rule is not None
        and rule.code == code
        and reading in (None, rule.reading)
        and case in (None, rule.case)
    ]
    for name, prefix in EVENTS.items():
        number = code.removeprefix(prefix + "_")
        if reading is None and number != code and number.isascii() and number.isdigit():
            _override_event(place, row, name, int(number), events, unknown, errors)
            if row.get("enabled") is not False:
                return  # its repeats have rules of their own
            row = {"code": code, "enabled": False}
            if not matches:
                return
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
    rule = replace(old, **values) if old is not None else Rule(**values)
    errors += [f"{place}.{wrong}" for wrong in _contradictions(rule)]
    return rule


def _contradictions(rule: Rule) -> list[str]:
    """What each key allows and the keys together do not."""
    windowed = isinstance(rule.when, Rises) or rule.lasts or rule.times > 1
    wrong = []
    if isinstance(rule.when, Rises) and rule.lasts:
        wrong.append("lasts: is for states, rises for counters")
    if (isinstance(rule.when, Rises) or rule.lasts) and not rule.within:
        wrong.append('within: missing; { rises = } and lasts need a window, such as within = "10m"')
    if rule.within and not windowed:
        wrong.append("within: needs { rises = }, lasts or times")
    if rule.lasts > rule.within > 0:
        wrong.append("lasts: is longer than within")
    if rule.distinct and not (rule.within and rule.times > 1):
        wrong.append("distinct: needs times and within")
    return wrong


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


def _distinct(value: object) -> str:
    if value not in ("job", "user"):
        raise ValueError(f"{value!r} is not job or user")
    return str(value)


def _clear(value: object) -> float | str:
    return str(value) if value in ("never", "boot") else seconds(value)


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
        elif key == "rises" and _number(limit) and limit > 0:
            return Rises(float(limit))
    raise ValueError("must be one of { is = }, { not = }, { above = }, { below = }, { rises = }")


_KEYS: dict[str, Any] = {
    "code": _code,
    "reading": _words,
    "when": _condition,
    "severity": _severity,
    "text": _short,
    "job": _urgency,
    "device": _words,
    "ignore": _globs,
    "case": _words,
    "hold": seconds,
    "lasts": seconds,
    "times": _times,
    "within": seconds,
    "distinct": _distinct,
    "clear": _clear,
    "flaps": seconds,
    "enabled": _flag,
    "why": _words,
    "advice": _words,
    "source": _words,
}
