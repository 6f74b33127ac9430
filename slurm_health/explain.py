"""A page for each code: what it means, how it is seen, what happens to the node and its jobs, what to do.

Made from the same tables that judge (rules.toml, xid.toml), so that it cannot say something else.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import groupby

from slurm_health import rules
from slurm_health.duration import short
from slurm_health.model import Severity, Urgency
from slurm_health.rules import Above, Below, Is, IsNot, Opinion, Rises, Rule, RuleBook

NODE = {
    Severity.OK: "nothing, it is not recorded",
    Severity.WARNING: "recorded as a warning; the node stays in service",
    Severity.CRITICAL: "taken out of service, as the mode and the budget allow",
}
JOBS = {
    Urgency.NOW: "the jobs it touches are requeued at once",
    Urgency.CHECKPOINT: "jobs that asked for a signal save their work and are requeued, others may end",
    Urgency.FINISH: "running jobs may end; one that dies of it is requeued",
    Urgency.NONE: "left alone",
}
FAULTS = {
    "hardware": "the hardware's (or its firmware's)",
    "driver": "the driver's (or the firmware's)",
    "application": "an application's",
    "unknown": "not known",
}
SOURCES = {
    "kernel.xid": "https://docs.nvidia.com/deploy/xid-errors/",
    "kernel.sxid": "https://docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide/",
}
LINES = {
    "kernel.xid": 'the kernel log: "NVRM: Xid (PCI:...): {n}, ..."',
    "kernel.sxid": 'the kernel log: "nvidia-nvswitch<n>: SXid (PCI:...): {n}, ..."',
}
# codes that other parts of the program raise
ELSEWHERE = {
    "NODE_SILENT": (
        "the node's daemon has not reported to the controller",
        "the controller: no report for longer than its limit (a report comes at least every 30 s)",
        "recorded as a warning; it never acts by itself",
        "left alone; where Slurm gives the node up, too, and requeues them, their two minutes' wait is ended",
        "Look at slurm-health on the node (systemctl status slurm-health-node) and at the network between.",
    ),
    "SLURM_UNREACHABLE": (
        "slurmctld does not answer the controller",
        "the controller: its calls to Slurm pass their deadlines",
        "nothing can be done until it answers; what was decided is tried again",
        "left alone",
        "Look at slurmctld (scontrol ping, sdiag). A slow slurmctld never counts against a node.",
    ),
}


def codes(book: RuleBook | None = None) -> list[str]:
    """Every code that can occur today, sorted (those of events by number)."""
    book = book or rules.load()
    plain = {rule.code for rule in book.rules} | ELSEWHERE.keys()
    events = [
        f"{rules.EVENTS[name]}_{number}" for name, table in book.events.items() for number in sorted(table)
    ]
    return sorted(plain - set(events)) + events


def rows(book: RuleBook | None = None, code: str = "") -> list[dict[str, str]]:
    """Each opinion on each code, or on this one: `code`, `severity`, `job`, `text` and how it is `seen`."""
    book = book or rules.load()
    wanted = code.strip().upper()
    found: list[tuple[str, Rule | Opinion, str]] = [(rule.code, rule, _seen(rule)) for rule in book.rules]
    for name, prefix in rules.EVENTS.items():
        numbers = {number: LINES[name].format(n=number) for number in sorted(book.events[name])}
        if match := re.fullmatch(rf"{prefix}_(\d+)", wanted):  # one that no table has
            numbers.setdefault(int(match[1]), LINES[name].format(n=match[1]))
        for number, seen in numbers.items():
            found.append((f"{prefix}_{number}", book.events[name].get(number, book.unknown[name]), seen))
    said = [
        {"code": its, "severity": str(one.severity), "job": _jobs(one), "text": one.text, "seen": seen}
        for its, one, seen in found
    ]
    for its, (about, seen, *_) in ELSEWHERE.items():
        said.append({"code": its, "severity": "warning", "job": "none", "text": about, "seen": seen})
    return [row for row in said if wanted in ("", row["code"])]


def page(code: str, book: RuleBook | None = None) -> str:
    """The page of a code. KeyError, with codes that look like it, where there is none."""
    book = book or rules.load()
    code = code.strip().upper()
    for name, prefix in rules.EVENTS.items():
        if match := re.fullmatch(rf"{prefix}_(\d{{1,6}})", code, re.ASCII):
            number = int(match[1])
            opinion = book.events[name].get(number, book.unknown[name])
            repeats = [_rule_page(rule) for rule in book.rules if rule.code == f"{prefix}_{number}"]
            return "\n\n".join([_event_page(f"{prefix}_{number}", name, number, opinion), *repeats])
    if code in ELSEWHERE:
        about, seen, node, jobs, advice = ELSEWHERE[code]
        return "\n".join(
            [f"{code}: {about}", *_lines(("seen by", seen), ("node", node), ("jobs", jobs), ("do", advice))]
        )
    found = [rule for rule in book.rules if rule.code == code]
    if not found:
        near = get_close_matches(code, codes(book), 5, 0.5)
        hint = f"; there is {', '.join(near)}" if near else "; `slurm-health explain` lists them"
        raise KeyError(f"no code {code}{hint}")
    return "\n\n".join(_rule_page(rule) for rule in found)


def markdown(book: RuleBook | None = None) -> str:
    """Every rule and every event in tables: docs/FAULTS.md."""
    book = book or rules.load()
    tables = [HEAD]
    of_probe = sorted(book.rules, key=lambda rule: rule.reading.partition(".")[0])
    for probe, group in groupby(of_probe, key=lambda rule: rule.reading.partition(".")[0]):
        rows = [
            (rule.code, rule.text, _seen(rule), str(rule.severity), _jobs(rule), _cleared(rule), rule.source)
            for rule in group
        ]
        table = _table(("code", "fault", "seen by", "severity", "jobs", "ends", "source"), rows)
        tables.append(f"## {probe}\n\n{table}")
    for name, prefix in rules.EVENTS.items():
        events = [
            (f"{prefix}_{number}", one.text, one.fault, str(one.severity), _jobs(one), _special(one))
            for number, one in sorted(book.events[name].items())
        ]
        table = _table(("code", "event", "whose fault", "severity", "jobs", "but if"), events)
        tables.append(f"## {prefix}\n\nSource: {SOURCES[name]}\n\n{table}")
    return "\n\n".join(tables) + "\n"


HEAD = """# What is found, and by which rule

Made from rules.toml and xid.toml by `slurm-health explain --markdown`; `slurm-health explain CODE` says more.
*jobs* is what becomes of the jobs that a fault touches once its node is out: requeued `now`, let to `finish`
(and requeued if they die of it), or `none` of it. *ends* is how long it must be good again; longer when it
comes back soon. Thresholds are the packaged ones: a site's `[[rule]]` changes any."""


def _jobs(one: Rule | Opinion) -> str:
    return str(one.job) if one.severity is Severity.CRITICAL else "none"


def _special(opinion: Opinion) -> str:
    return "; ".join(
        f"{detail}: {one.severity}, {_jobs(one)}" for detail, one in sorted(opinion.when.items())
    )


def _cleared(rule: Rule) -> str:
    if rule.reading.startswith("kernel."):
        return ""  # what happened does not end
    return short(rule.clear) if isinstance(rule.clear, int | float) else rule.clear


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _rule_page(rule: Rule) -> str:
    rows = [
        ("means", rule.why),
        ("seen by", _seen(rule)),
        ("severity", str(rule.severity)),
        ("node", NODE[rule.severity]),
        ("jobs", JOBS[rule.job] if rule.severity is Severity.CRITICAL else JOBS[Urgency.NONE]),
        ("ends", "" if rule.reading.startswith("kernel.") else _ends(rule)),  # what happened does not end
        ("do", rule.advice),
        ("source", rule.source),
    ]
    return "\n".join([f"{rule.code}: {rule.text}", *_lines(*rows)])


def _seen(rule: Rule) -> str:
    match rule.when:
        case Is(values):
            what = "is " + " or ".join(_shown(value) for value in values)
        case IsNot(values):
            what = "is not " + ", nor ".join(_shown(value) for value in values)
        case Above(limit):
            what = f"is above {limit:g}"
        case Below(limit):
            what = f"is below {limit:g}"
        case Rises(by):
            what = f"rises by {by:g} or more"
    lasts = f", for {short(rule.lasts)} in all" if rule.lasts else ""
    held = f", for {rule.hold:g} s" if rule.hold else ""
    often = f", {rule.times} times" if rule.times > 1 else ""
    if rule.distinct:
        often = f", in {rule.times} {rule.distinct}s"
    elif often and (rule.lasts or not rule.within or isinstance(rule.when, Rises)):
        often += " in a row"
    within = f" within {short(rule.within)}" if rule.within else ""
    if rule.lasts or isinstance(rule.when, Rises):
        return f"{rule.reading} {what}{lasts}{within}{held}{often}"
    return f"{rule.reading} {what}{held}{often}{within}"


def _ends(rule: Rule) -> str:
    if rule.clear == "never":
        return "when its incident is closed (slurm-health incidents close ID)"
    if rule.clear == "boot":
        return "with the next boot"
    again = f"; for longer each time that it comes back within {short(rule.flaps)}" if rule.flaps else ""
    return f"when it has been good again for {rule.cool:g} s{again}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _event_page(code: str, name: str, number: int, opinion: Opinion) -> str:
    rows = [
        ("seen by", LINES[name].format(n=number)),
        ("whose fault", FAULTS[opinion.fault]),
        *_consequence(opinion),
        ("do", opinion.advice),
    ]
    for detail, special in opinion.when.items():
        more = f" {special.advice}" if special.advice != opinion.advice else ""
        rows += [("but if", f"{detail}: {special.severity}; {_sentence(special)}.{more}")]
    rows += [("source", SOURCES[name])]
    return "\n".join([f"{code}: {opinion.text}", *_lines(*rows)])


def _consequence(opinion: Opinion) -> list[tuple[str, str]]:
    jobs = JOBS[opinion.job] if opinion.severity is Severity.CRITICAL else JOBS[Urgency.NONE]
    return [("severity", str(opinion.severity)), ("node", NODE[opinion.severity]), ("jobs", jobs)]


def _sentence(opinion: Opinion) -> str:
    if opinion.severity is not Severity.CRITICAL:
        return NODE[opinion.severity]
    return f"{NODE[opinion.severity]}; {JOBS[opinion.job]}"


def _lines(*rows: tuple[str, str]) -> list[str]:
    lines = []
    for title, words in rows:
        if words:
            lines += textwrap.wrap(
                words, 96, initial_indent=f"  {title:<14}", subsequent_indent=" " * 16,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return lines
