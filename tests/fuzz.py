"""Hostile kernel lines and half-written files for a bounded time: nothing crashes, is found, or grows.

    python tests/fuzz.py [--seconds 60] [--seed 0]

Each look at a fake machine meets some files of its /sys cut short, emptied, gone, or full of rubbish, whole
again at the next look; and kernel lines that nearly are a driver's, hold names of a user's choosing, or come
from a program. A machine that is well stays without a finding, whatever it is shown.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import tracemalloc
from pathlib import Path

from slurm_health import baseline, rules
from slurm_health.baseline import Baseline, Expectations
from slurm_health.host import Host
from slurm_health.model import Finding, Report
from slurm_health.probes.kernel import KernelLog, readings
from slurm_health.sandbox.hardware import Machine
from slurm_health.scan import scan

LINES = 1000  # kernel lines a second
TORN = 20  # files at a time
SETTLED = 20  # looks after which memory no longer grows
BOOT = "boot"
# What drivers print, which a hostile line is nearly. None of these stands here as a driver prints it.
SHAPES = (
    "NVRM: Xid (PCI:{pci}): {word}, pid={number}, name={word}",
    "NVRM: Xid (PCI:{word}): 79, GPU has fallen off the bus.",
    "{name}[{number}]: segfault at 0 ip {pci} sp 7ffc error 4 in NVRM: Xid (PCI:{pci}): 79",
    "{name}: NVRM: Xid (PCI:{pci}): 79, pid=1",
    " NVRM: Xid (PCI:{pci}): 79, pid=1",
    "{name}\\x0aNVRM: Xid (PCI:{pci}): 79, pid=1",
    "mlx5_core {pci}: {word}",
    "EXT4-fs {word} (device {name}): {word}",
    "{name}: link becomes ready",
    "{word}",
)
NAMES = ("NVRM: Xid (PCI:", "nvme0n1", "mlx5_core", "EDAC MC0", "a" * 15, "\x1b[2J", "é", "\u202e", "")


class Prey:
    """A machine that is well, and what the node's daemon makes of what it is shown."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.machine, self.kmsg = folder / "machine", folder / "log/dev/kmsg"
        Machine.build(self.machine, "n1", gpus=0, ports=4, nics=2)
        self.kmsg.parent.mkdir(parents=True)
        self.kmsg.touch()
        self.log = KernelLog(Host(folder / "log"))
        self.book = rules.load()
        self.known = baseline.begin(Baseline(), BOOT)
        self.memory = rules.begin(None, BOOT)
        self.files = sorted(path for path in (self.machine / "sys").rglob("*") if path.is_file())
        self.sequence, self.looks, self.now = 0, 0, 1e9

    def look(self) -> tuple[Finding, ...]:
        """One pass of everything, a second after the last."""
        self.now += 1.0
        self.looks += 1
        found: list[Finding] = []
        events = tuple(readings(self.log.read(), BOOT, self.now, self.log.clock()))
        seen = scan(Host(self.machine), Expectations(), self.book, "/none").reports
        for report in (Report("kernel", events), *(one for one in seen if one.probe != "kernel")):
            self.known, _ = baseline.learn(self.known, report)
            expected = baseline.expect(self.known, Expectations(), report)
            found_now, self.memory = rules.judge(self.book, expected, self.memory, self.now)
            found += found_now
        return tuple(found)

    def shout(self, lines: int) -> None:
        """Hostile lines in the kernel log, some of them from programs (facility 1) and some torn."""
        with self.kmsg.open("ab") as log:
            for _ in range(lines):
                self.sequence += 1
                head = f"{self.chance.choice([4, 6, 12])},{self.sequence},{self.sequence},-;"
                log.write(self.chance.choice([head, head, head, "", "4,"]).encode() + self._line() + b"\n")

    def _line(self) -> bytes:
        text = self.chance.choice(SHAPES).format(
            pci=self.chance.choice(["0000:17:00", "0000:zz:00", "17:00.0", "0" * 40]),
            number=self.chance.choice([0, -1, 2**70]),
            name=self.chance.choice(NAMES),
            word="".join(self.chance.choices("!:aé\u202e", k=self.chance.randrange(30))),
        )
        raw = bytearray(text.replace("\n", " ").encode())
        for _ in range(self.chance.randrange(3)):
            if raw:
                raw[self.chance.randrange(len(raw))] = self.chance.choice([0, 0x80, 0xFF, 9])
        return bytes(raw).replace(b"\n", b" ") * self.chance.choice([1, 1, 1, 1, 40])

    def tear(self, many: int) -> dict[Path, bytes]:
        """Some files as they are while they are written, or while their device goes; what they held."""
        held = {}
        for path in self.chance.sample(self.files, min(many, len(self.files))):
            held[path] = whole = path.read_bytes()
            how = self.chance.choice(["cut", "empty", "gone", "rubbish", "folder"])
            path.unlink()
            if how == "cut":
                path.write_bytes(whole[: self.chance.randrange(len(whole) or 1)])
            elif how == "empty":
                path.write_bytes(b"")
            elif how == "rubbish":
                many = self.chance.choice([3, 5000])
                path.write_bytes(bytes(self.chance.choices(b"\x00\xff\xfe:;x -\n", k=many)))
            elif how == "folder":
                path.mkdir()
        return held

    def mend(self, held: dict[Path, bytes]) -> None:
        for path, whole in held.items():
            if path.is_dir():
                path.rmdir()
            path.write_bytes(whole)


def hunt(folder: Path, seed: int, seconds: float, looks: int) -> tuple[int, int, int, list[Finding]]:
    """Until the time is over or so many looks are done: looks, lines, bytes that it grew by once it was
    settled, and what was found."""
    prey = Prey(folder, seed)
    found = list(prey.look())
    began, end = prey.sequence, time.monotonic() + seconds
    early = 0
    tracemalloc.start()
    try:
        while time.monotonic() < end and prey.looks < looks:
            held = prey.tear(TORN)
            prey.shout(LINES)
            found += prey.look()
            prey.mend(held)
            found += prey.look()
            now = tracemalloc.get_traced_memory()[0]
            if prey.looks <= SETTLED:
                early = now
        return prey.looks, prey.sequence - began, now - early, found
    finally:
        tracemalloc.stop()
        prey.log.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        looks, lines, grown, found = hunt(Path(folder), given.seed, given.seconds, 10**9)
    print(f"{looks} looks, {lines} lines: {len(found)} findings, {grown / 1024:.0f} KiB more memory")
    for one in found[:20]:
        print(f"  {one.code}({one.device}) {one.evidence}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
