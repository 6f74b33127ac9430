"""Old kernel logs in every form they come in: what the kernel said in each line, and nothing of others.

Understands raw /dev/kmsg records, dmesg (plain, --ctime, --human, --show-delta, --time-format, --decode),
journalctl -k (all its short forms), syslog's files (also "message repeated N times"), pstore's form, and bare
messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from slurm_health.probes.kernel import parse_record

_RAW = re.compile(r"\d{1,10},\d{1,19},\d{1,19},[^;]*;", re.ASCII)
_ZONE = r"(?:Z|[+-]\d\d:?\d\d)?"
_SECOND = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
# facility and level as `dmesg --decode` prints them
_DECODED = re.compile(r"(\w+) *:(\w+) *: ", re.ASCII)
_LEVELS = {"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
# pstore keeps the priority: facility times eight and level
_PRIORITY = re.compile(r"<(\d{1,5})>", re.ASCII)
_DELTA = r"(?: ?< *\d+\.\d+ ?>)"  # the time since the line before
_CALLER = r"(?:\[ *[TC]\d+\] ?)?"  # a kernel that names the thread or the processor (CONFIG_PRINTK_CALLER)
# what stands before the message where only the kernel can have written it
_DMESG = re.compile(
    rf"(?:\[(?: *\+?\d+\.\d+{_DELTA}?|{_DELTA}|[A-Z][a-z]{{2}}[ \d]\d \d\d:\d\d)\] ?|"
    rf"\[[A-Z][a-z]{{2}} [A-Z][a-z]{{2}} [ \d]?\d \d\d:\d\d:\d\d \d{{4}}{_DELTA}?\] |"
    rf"{_SECOND}(?:[.,]\d{{1,9}})?{_ZONE} |\[\.\.\.\] )?{_CALLER}",
    re.ASCII,
)
_UPTIME = rf"(?:\[ *\d+\.\d+\] ?)?{_CALLER}"
# a syslog or journal line names who wrote it; "kernel" without a process number is the kernel. Months and
# days in any language; no comma in the second, which is dmesg's, where the kernel's words stand next.
_JOURNAL = re.compile(
    rf"(?:{_SECOND}(?:\.\d{{1,9}})?{_ZONE}|\S{{2,8}} +\d{{1,2}} \d\d:\d\d:\d\d(?:\.\d+)?|"
    rf"\d{{9,10}}\.\d{{6}}|\S{{2,8}} {_SECOND}(?:\.\d+)? [A-Z][A-Z0-9:+-]{{1,8}}) +"
    rf"(?:[A-Za-z0-9._-]+ (?P<who>[^\s:\[\]]+)(?P<pid>\[\d+\])?|kernel): {_UPTIME}",
    re.ASCII,
)
# the same when its date was cut off, or the host's name, too
_UNDATED = re.compile(rf"(?:[A-Za-z0-9._-]{{1,64}} )?kernel: {_UPTIME}", re.ASCII)
_REPEATED = re.compile(rf"message repeated \d+ times: \[ ?{_UPTIME}(.*)\]", re.ASCII)
_BREAK = "#012"  # what rsyslog makes of a line break inside a message
# one message of NVIDIA's driver that dmesg prints over three lines
_FIRST = "NVRM: The NVIDIA GPU "
_FURTHER = ("NVRM: (PCI ID: ", "NVRM: installed in this system ", "NVRM: fallen off the bus ")


def message(line: str) -> str | None:
    """The kernel's message in a line of a log, or None where another than the kernel may have written it."""
    if _RAW.match(line):
        record = parse_record(line.encode("utf-8", "surrogateescape"))
        return record.text if record is not None and record.facility == 0 else None
    if (decoded := _DECODED.match(line)) and decoded[2] in _LEVELS:
        if decoded[1] != "kern":
            return None
        line = line[decoded.end() :]
    if priority := _PRIORITY.match(line):
        if int(priority[1]) > 7:
            return None
        line = line[priority.end() :]
    if journal := _JOURNAL.match(line):
        if journal["who"] not in ("kernel", None) or journal["pid"]:
            return None
        text = line[journal.end() :].replace(_BREAK, "\n")
    else:
        stamp = _DMESG.match(line)
        text = line[stamp.end() :] if stamp else line
        undated = _UNDATED.match(text)
        text = text[undated.end() :] if undated else text
    repeated = _REPEATED.fullmatch(text)
    return repeated[1] if repeated else text


def messages(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each line's number and message; a message that was printed over several lines whole, at its first."""
    first: tuple[int, str] | None = None
    for number, line in enumerate(lines, 1):
        text = message(line.rstrip("\r\n"))
        if first is not None:
            if text is not None and (further := text.lstrip(" ")).startswith(_FURTHER):
                first = (first[0], f"{first[1]}\n{further}")
                continue
            yield first
            first = None
        if text is not None and text.startswith(_FIRST) and "\n" not in text:
            first = (number, text)
        elif text is not None:
            yield number, text
    if first is not None:
        yield first
