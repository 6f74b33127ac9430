"""What a kernel message says happened, and the pieces that the grammars of all drivers are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """What a message says happened: a Reading without its when."""

    name: str
    device: str
    value: int | str
    pid: int = 0
    detail: str = ""


ANY = r"[^\x00-\x1f\x7f]"  # a line break or another control character inside a message fits no grammar
PCI = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"  # as dev_name() of a PCI device
DISK = r"[a-z][A-Za-z0-9_.!-]{1,31}"  # DISK_NAME_LEN 32
COMM = rf"{ANY}{{1,64}}"  # 15 bytes (TASK_COMM_LEN); workers and other programs' quotes have more


def grammar(pattern: str) -> re.Pattern[str]:
    """A pattern for a whole message. Digits are ASCII's: the kernel prints no others."""
    return re.compile(pattern, re.ASCII)
