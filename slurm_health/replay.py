"""Old kernel logs read as the daemon reads the live one.

Understands raw /dev/kmsg records, dmesg (plain, --ctime, --time-format iso, --decode), journalctl -k (short
and short-iso), pstore's form, and bare messages. A line that another facility or a userspace program wrote
yields nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from slurm_health.model import Severity
from slurm_health.probes.kernel import Event, parse_message, parse_record, reading
from slurm_health.rules import RuleBook

_RAW = re.compile(r"\d{1,10},\d{1,19},\d{1,19},[^;]*;", re.ASCII)
_STAMP = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
# facility and level as `dmesg --decode` prints them
_DECODED = re.compile(r"(\w+) *:(\w+) *: ", re.ASCII)
# what stands before the message where only the kernel can have written it
_DMESG = re.compile(
    r"(?:<\d{1,3}>)?(?:\[ *\d+\.\d+\] ?|\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\] |"
    rf"{_STAMP} |\[\.\.\.\] )?",
    re.ASCII,
)
# a syslog or journal line names who wrote it; "kernel" without a process number is the kernel
_JOURNAL = re.compile(
    rf"(?:{_STAMP}|[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?) [A-Za-z0-9._-]+ "
    r"(?P<who>[^\s:\[\]]+)(?:\[\d+\])?: (?:\[ *\d+\.\d+\] ?)?",
    re.ASCII,
)


def message(line: str) -> str | None:
    """The kernel's message in a line of a log, or None where another than the kernel may have written it."""
    if _RAW.match(line):
        record = parse_record(line.encode("utf-8", "surrogateescape"))
        return record.text if record is not None and record.facility == 0 else None
    if (decoded := _DECODED.match(line)) and decoded[2] in _LEVELS:
        if decoded[1] != "kern":
            return None
        line = line[decoded.end() :]
    if journal := _JOURNAL.match(line):
        own = journal["who"] == "kernel" and "[" not in journal[0].partition("kernel")[2].partition(":")[0]
        return line[journal.end() :] if own else None
    stamp = _DMESG.match(line)
    return line[stamp.end() :] if stamp else line


_LEVELS = {"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}


def replay(lines: Iterable[str], book: RuleBook) -> Iterator[dict[str, Any]]:
    """One object for each line that is a hardware event: what `replay --kmsg FILE --json` prints."""
    for number, line in enumerate(lines, 1):
        text = message(line.rstrip("\r\n"))
        event = parse_message(text) if text is not None else None
        if event is not None and text is not None:
            yield _object(number, text, event, book)


def _object(number: int, text: str, event: Event, book: RuleBook) -> dict[str, Any]:
    judged = book.opinion(reading(event, text, str(number), 0.0))
    code, severity = (judged[0], judged[1].severity) if judged else ("", Severity.WARNING)
    return {
        "line": number,
        "code": code,
        "device": event.device,
        "severity": str(severity),
        "xid": event.value if event.name == "kernel.xid" else None,
        "pid": event.pid or None,
        "text": text,
    }
