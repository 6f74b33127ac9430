"""One record of the kernel log, as in https://docs.kernel.org/admin-guide/abi-testing.html (dev-kmsg)."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the kernel log. `microseconds` since boot, by the log's own clock."""

    facility: int
    level: int
    sequence: int
    microseconds: int
    text: str


_PREFIX = re.compile(r"(\d{1,10}),(\d{1,19}),(\d{1,19}),[^;,]?(?:,[^;]*)?;(.*)", re.ASCII | re.DOTALL)
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def parse_record(line: bytes) -> Record | None:
    """One record in /dev/kmsg's form (its first line; no dictionary), or None where it is malformed."""
    match = _PREFIX.fullmatch(line.decode("utf-8", "replace"))
    if not match:
        return None
    priority = int(match[1])
    text = match[4]
    if "\\x" in text:
        raw = _ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), text.encode())
        text = raw.decode("utf-8", "replace")
    return Record(priority >> 3, priority & 7, int(match[2]), int(match[3]), text)
