"""What readings mean now, by the rules and by what is remembered of earlier ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from slurm_health import duration
from slurm_health.model import Finding, Reading, Severity
from slurm_health.rules import window
from slurm_health.rules.book import Opinion, Rises, Rule, RuleBook

BURST = 2.0  # seconds in which events of one code on one device are one finding
EVIDENCE = 500  # characters of evidence that are kept
ROUNDED = 0.001  # seconds after which a sum of spans is reached for all its rounding
MOST = 5000  # windows, and unfinished holds, that are remembered: devices with names without end cost no more
WIDTHS = {f"{bits}bit": 2**bits - 1 for bits in (4, 8, 16, 32)}  # where a counter stops

Memory = dict[str, Any]
TABLES = ("watch", "windows", "ended", "events")


def begin(saved: object, boot: str) -> Memory:
    """A memory for this boot from what was saved (or None, or anything). What stood still stands; what had
    not yet lasted long enough in another boot, and what was counted then, is forgotten.
    """
    memory: Memory = {"boot": boot, **{table: {} for table in TABLES}}
    if not isinstance(saved, dict):
        return memory
    same = saved.get("boot") == boot
    for table, sound in (("watch", _sound), ("windows", window.sound), ("ended", _pair), ("events", _number)):
        rows = saved.get(table)
        for key, row in rows.items() if isinstance(rows, dict) else ():
            lives = same or (table == "watch" and sound(row) and row["moment"])
            if lives and sound(row) and isinstance(key, str) and key.count("|") >= 2:
                memory[table][key] = row
    return memory


def _sound(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and all(_number(entry.get(key)) for key in ("since", "last", "count"))
        and all(isinstance(entry.get(key), str) for key in ("moment", "evidence"))
        and all(entry.get(key) is None or _number(entry[key]) for key in ("good", "clear"))
    )


def _pair(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(map(_number, row))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def release(book: RuleBook, memory: Memory, moments: Collection[str]) -> Memory:
    """The memory without those of these findings that only an admin ends; the same one when none is."""
    ended = [
        key
        for key, entry in memory["watch"].items()
        if entry["moment"] in moments and (rule := _asking(book, key)) and rule.clear == "never"
    ]
    if not ended:
        return memory
    return {**memory, "watch": {key: row for key, row in memory["watch"].items() if key not in ended}}


def counting(memory: Memory) -> bool:
    """Whether something has come within a window, so that the memory is worth saving now and then."""
    return any(one["steps"] or one.get("who") for one in memory["windows"].values())


def ends(book: RuleBook, memory: Memory, after: float) -> dict[str, float]:
    """By a reading's name, the first moment later than `after` at which a hold, a `lasts` or a `clear` is
    over, if what was seen last goes on until then. Who looks again at that moment waits no longer than that,
    however seldom looks come by themselves.
    """
    first: dict[str, float] = {}

    def end(rule: Rule, at: float, seen: float) -> None:
        if at > max(after, seen):  # what a rule asks for besides, so many looks, is not hurried
            first[rule.reading] = min(at, first.get(rule.reading, at))

    for key, entry in memory["watch"].items():
        if (rule := _asking(book, key)) is None:
            continue
        if entry["good"] is not None:
            end(rule, entry["good"] + (entry.get("clear") or rule.cool), entry["last"])
        elif not entry["moment"] and entry["count"] + 1 >= rule.times:
            end(rule, entry["since"] + rule.hold, entry["last"])
    for key, seen in memory["windows"].items():
        if seen["last"] is True and (rule := _asking(book, key)):  # of a state, and it was bad
            at = seen["at"] + rule.lasts - window.total(seen, seen["at"], rule.within) + ROUNDED
            if not seen["steps"] or seen["steps"][0][0] >= at - rule.within:  # none of it is over by then
                end(rule, at, seen["at"])
    return first


def _asking(book: RuleBook, key: str) -> Rule | None:
    """The rule by whose key something is remembered, None where there is none any more."""
    code, name, _ = key.split("|", 2)
    return book.by_key.get(f"{code}|{name}")


def judge(
    book: RuleBook, readings: Iterable[Reading], memory: Memory, now: float
) -> tuple[tuple[Finding, ...], Memory]:
    """All findings that stand, and the events among the readings; and the memory for the next time.

    `now` is seconds since the epoch by a clock that does not jump (set once, then counted on by a steady
    one): holds and windows are measured with it. A finding ends only when good readings of the same name and
    device have lasted for its rule's `clear`. An absent reading says nothing. The order of readings does not
    matter.
    """
    memory = {"boot": memory["boot"], **{table: dict(memory[table]) for table in TABLES}}
    events = []
    for reading in readings:
        if reading.moment:
            events.append(reading)
            continue
        for rule in book.by_reading.get(reading.name, ()):
            if rule.judges(reading.device):
                _state(rule, reading, memory, now)
    found = [*_events(book, sorted(events, key=_age), memory, now), *_standing(book, memory).values()]
    _bound(memory)
    order = sorted(found, key=lambda one: (-one.severity, one.since, one.code, one.device))
    return tuple(order), memory


# -- states ------------------------------------------------------------------------------


def _state(rule: Rule, reading: Reading, memory: Memory, now: float) -> None:
    watch, key = memory["watch"], rule.key(reading.device)
    entry = watch.get(key)
    bad, evidence = _bad(rule, reading, key, memory["windows"], now)
    if not bad:
        if entry is None or bad is None:
            return
        if not entry["moment"]:
            del watch[key]  # it did not last
            return
        of_this_boot = entry["moment"].startswith(f"{memory['boot']}/")
        if rule.clear == "never" or (rule.clear == "boot" and of_this_boot):
            return
        clear = entry.get("clear") or rule.cool
        entry = _shifted(entry, now)
        good = now if entry["good"] is None else entry["good"]
        if now >= good + clear:
            del watch[key]
            memory["ended"][key] = [now, clear]
        else:
            watch[key] = {**entry, "good": good, "last": now}
        return
    if entry is None:
        evidence = (evidence or f"{reading.name} is {reading.value}")[:EVIDENCE]
        entry = {"since": now, "last": now, "count": 0, "moment": "", "good": None, "evidence": evidence}
    entry = {**_shifted(entry, now), "count": entry["count"] + 1, "good": None, "last": now}
    held = now >= entry["since"] + rule.hold
    if not entry["moment"] and held and entry["count"] >= rule.times:
        entry["moment"] = f"{memory['boot']}/{rule.code}/{reading.device}/{round(entry['since'] * 1000)}"
        if clear := _grown(rule, memory["ended"].pop(key, None), entry["since"]):
            entry["clear"] = clear
    watch[key] = entry


def _bad(
    rule: Rule, reading: Reading, key: str, windows: dict[str, Any], now: float
) -> tuple[bool | None, str]:
    """Whether it is bad, None where it says nothing; and the evidence."""
    if isinstance(rule.when, Rises):
        value = reading.value
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return None, ""
        windows[key] = seen = window.rise(windows.get(key), value, now, rule.within)
        risen = window.total(seen, now, rule.within)
        if risen >= rule.when.by:
            words = f"{reading.name} rose by {risen:g} within {duration.short(rule.within)}, to {value}"
            return True, f"{reading.evidence}; {words}" if reading.evidence else words
        # at its end a counter no longer shows what comes: that is not good news
        return (None if value == WIDTHS.get(reading.detail) else False), ""
    bad = rule.when.holds(reading.value)
    if not rule.lasts:
        return bad, reading.evidence
    spent = window.spend(windows.get(key), bad, now, rule.within)
    if spent is None:
        windows.pop(key, None)
        return False, ""
    windows[key] = spent
    lasted = window.total(spent, now, rule.within)
    if lasted < rule.lasts:
        return False, ""
    words = f"{reading.evidence or f'{reading.name} was {reading.value}'}, for {lasted:.0f} s"
    return True, f"{words} within {duration.short(rule.within)}"


def _grown(rule: Rule, ended: list[float] | None, since: float) -> float | None:
    """How long a finding that came back must be good: twice as long as the last time. None: as ever."""
    if ended is None or not 0 <= since - ended[0] <= rule.flaps:
        return None
    return max(rule.cool, min(2 * ended[1], rule.flaps))


def _shifted(entry: dict[str, Any], now: float) -> dict[str, Any]:
    """A clock that was set back takes the unfinished holds with it."""
    back = entry["last"] - now
    if back <= 0:
        return entry
    good = entry["good"]
    shifted = {**entry, "good": None if good is None else good - back}
    return shifted if entry["moment"] else {**shifted, "since": entry["since"] - back}


def _standing(book: RuleBook, memory: Memory) -> dict[tuple[str, str], Finding]:
    """The worst finding of each code and device. What no rule asks for any more is forgotten."""
    found: dict[tuple[str, str], Finding] = {}
    watch = memory["watch"]
    for key, entry in list(watch.items()):
        code, _, device = key.split("|", 2)
        rule = _asking(book, key)
        if rule is None or not rule.judges(device):
            del watch[key]
        elif entry["moment"] and rule.severity > Severity.OK:
            worse = found.get((code, device))
            if worse is None or rule.severity > worse.severity:
                found[code, device] = Finding(
                    code,
                    rule.severity,
                    device,
                    rule.text,
                    entry["evidence"],
                    rule.job,
                    entry["since"],
                    entry["moment"],
                )
    return found


def _bound(memory: Memory) -> None:
    """Of too many windows and unfinished holds, those looked at last stay."""
    for table, when in (("windows", "at"), ("watch", "last"), ("ended", 0)):
        rows = memory[table]
        if len(rows) > MOST:
            free = {key: row for key, row in rows.items() if table != "watch" or not row["moment"]}
            for key in sorted(free, key=lambda key: free[key][when])[: len(rows) - MOST // 2]:
                del rows[key]


# -- events ------------------------------------------------------------------------------


def _age(event: Reading) -> tuple[float, int, str]:
    """Orders events: by time, and within one by sequence number."""
    return event.at, len(event.moment), event.moment


def _events(book: RuleBook, events: list[Reading], memory: Memory, now: float) -> list[Finding]:
    """What the events mean, the first of each burst."""
    told = {key: at for key, at in memory["events"].items() if 0 <= now - at < BURST}
    found: dict[str, Finding] = {}
    for event in events:
        for finding in _meanings(book, event, memory["windows"], now):
            key = f"{finding.code}|{finding.device}|{finding.severity}|{finding.job}"
            if key not in told:
                found.setdefault(key, finding)
    memory["events"] = told | dict.fromkeys(found, now)
    return list(found.values())


def _meanings(book: RuleBook, event: Reading, windows: dict[str, Any], now: float) -> list[Finding]:
    """What one event means: for each code the worst that the tables and the rules say of it."""
    said: dict[str, Finding] = {}

    def say(code: str, opinion: Opinion | Rule, evidence: str) -> None:
        if code in said and opinion.severity <= said[code].severity:
            return
        # a moment names one finding: of several codes only the first has the event's own
        moment = event.moment if code == next(iter(said), code) else f"{event.moment}/{code}"
        said[code] = Finding(
            code,
            opinion.severity,
            event.device,
            opinion.text,
            evidence[:EVIDENCE],
            opinion.job,
            event.at,
            moment,
            lasting=False,
        )

    if judged := book.opinion(event):
        say(*judged, event.evidence)
    for rule in book.by_reading.get(event.name, ()):
        if rule.judges(event.device) and rule.when.holds(event.value):
            many = _strikes(rule, event, windows, now)
            if many >= rule.times:
                words = f" (the {many:g}. within {duration.short(rule.within)})" if rule.within else ""
                say(rule.code, rule, f"{event.evidence[: EVIDENCE - len(words)]}{words}")
    return [finding for finding in said.values() if finding.severity > Severity.OK]


def _strikes(rule: Rule, event: Reading, windows: dict[str, Any], now: float) -> float:
    """How often it has come within the rule's window, with this one; 1 where the rule has none."""
    if not rule.within:
        return rule.times
    key = rule.key(event.device)
    if not rule.distinct:
        windows[key] = window.strike(windows.get(key), event.at, now, rule.within, BURST)
        return window.total(windows[key], event.at, rule.within)
    run, _, uid = event.job.partition("/")
    if who := uid if rule.distinct == "user" else run:
        windows[key] = window.sight(windows.get(key), who, event.at, now, rule.within, rule.times)
        return len(windows[key]["who"])
    return 0
