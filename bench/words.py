"""What the words of a kernel or a driver are read as, on machines that nobody has seen.

    cd linux && git grep -E '"[^"]{6,}"' -- '*.c' '*.h' | python bench/words.py

Takes every string of source code (grep's lines, each with its file), fills in its places, puts it behind what
drivers print before their words, and prints each that is taken for an event. What is no fault among these is
a false alarm wherever that source runs.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial

from slurm_health.probes.kernel import Event, parse_message

BEFORE = (
    "", "NVRM: ", "NVRM: GPU 0000:3b:00.0: ", "nvidia 0000:3b:00.0: ", "nvidia-nvswitch0: ",
    "pcieport 0000:3b:00.0: ", "pcieport 0000:3b:00.0: AER: ", "pcieport 0000:3b:00.0: DPC: ",
    "mlx5_core 0000:3b:00.0: ", "mlx5_core 0000:3b:00.0: poll_health:800:(pid 0): ",
    "EDAC MC0: ", "EDAC DEVICE0: ", "mce: ", "[Hardware Error]: ", "{1}[Hardware Error]: ",
    "Memory failure: ", "nvme nvme0: ", "block nvme0n1: ", "sd 0:0:0:0: [sda] ", "md/raid1:md0: ",
    "EXT4-fs (sda1): ", "XFS (sda1): ", "BTRFS info (device sda1): ", "JBD2: ", "watchdog: ", "rcu: ",
)  # fmt: skip
NAMES = ("sda1", "nvme0", "0000:3b:00.0")  # what may stand for %s
STRING = re.compile(r'"((?:[^"\\]|\\.){6,})"')
PLACE = re.compile(r"%[-+ #0]*(?:\*|\d+)?(?:\.(?:\*|\d+))?(?:hh?|ll?|[zjtLq])?(p[A-Za-z]{0,3}\d*|[a-zA-Z%])")


def strings(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each string once, with the file that has it first."""
    seen = set()
    for line in lines:
        file, _, code = line.partition(":")
        for match in STRING.finditer(code):
            if match[1] not in seen:
                seen.add(match[1])
                yield file, match[1].replace("\\n", "").replace('\\"', '"').replace("\\t", "\t")


def value(name: str, place: re.Match[str]) -> str:
    """What stands for one place of a format."""
    if place[1][0] in "sp":
        return name
    return "0x1f" if "#" in place[0] else {"%": "%", "c": "a", "x": "1f", "X": "1F"}.get(place[1], "3")


def read(words: str) -> tuple[Event, str] | None:
    """The first event that a string is read as, and the message that was."""
    for text in dict.fromkeys(PLACE.sub(partial(value, name), words) for name in NAMES):
        for before in BEFORE:
            if event := parse_message(before + text):
                return event, before + text
    return None


def main() -> None:
    count = 0
    for file, words in strings(io.TextIOWrapper(sys.stdin.buffer, errors="replace")):
        count += 1
        if found := read(words):
            event, text = found
            print(f"{file}: {event.name} {event.value}: {text}")
    print(f"{count} strings", file=sys.stderr)


if __name__ == "__main__":
    main()
