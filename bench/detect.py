"""Time from a fault of a link or a host to the node daemon's finding, for each class of faults.

    python bench/detect.py [--nodes 32] [--only CLASS,CLASS] [--dir DIR]

Each node is a real node daemon with the packaged rules and intervals, over the files of a fake machine of
its own; no Slurm, no controller. On every node each class is injected once, on a device of its own, at a
moment of its own within a minute, so that the looks are met at any phase. The clock starts when the fault is
written and stops when the daemon logs its finding. "Of it waited" is what the rule waits by design before it
believes what it sees.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from prolog import machine
from slurm_health import rules
from slurm_health.sandbox.daemon import await_until
from slurm_health.sandbox.hardware import Machine

FINDING = re.compile(r"\S+ \S+ (?:WARNING|ERROR) ([A-Z0-9_]+)\(([^)]*)\) ")  # as the daemon logs it
SPREAD = 60.0  # seconds within which a class is injected
PATIENCE = 420.0  # seconds after which a fault counts as missed
CONFIG = """\
controller = "127.0.0.1:1"
[auth]
method = "hmac"
key_file = "{folder}/key"
[probes]
gpu = false
[[nodes]]
match = "{name}"
services = ["munge"]
"""


class Class(NamedTuple):
    """What is injected, and the finding that must come of it: its code, device and reading."""

    fault: dict[str, Any]
    code: str
    device: str
    reading: str

    def names(self, told: re.Match[str]) -> bool:
        return told.groups() == (self.code, self.device)


def _class(fault: str, code: str, device: str, reading: str, port: int | None = None) -> Class:
    return Class({"fault": fault, **({} if port is None else {"port": port})}, code, device, reading)


CLASSES = {
    "InfiniBand port down": _class("ib-down", "IB_PORT_DOWN", "mlx5_0/1", "infiniband.down", 0),
    "InfiniBand port at half its rate": _class("ib-slow", "IB_PORT_SLOW", "mlx5_1/1", "infiniband.slow", 1),
    "InfiniBand flap (3 losses)": _class("ib-flap", "IB_FLAP", "mlx5_2/1", "infiniband.link_downed", 2),
    "InfiniBand symbol errors": _class("ib-errors", "IB_ERRORS", "mlx5_3/1", "infiniband.symbol_error", 3),
    "network port down": _class("nic-down", "NIC_DOWN", "eth0", "nic.down", 0),
    "network port at a tenth of its speed": _class("nic-slow", "NIC_SLOW", "eth1", "nic.slow", 1),
    "network port flap (4 losses)": _class("nic-flap", "NIC_FLAP", "eth2", "nic.carrier_downs", 2),
    "network port errors": _class("nic-errors", "NIC_ERRORS", "eth3", "nic.rx_crc_errors", 3),
    "PCIe link at half its width": _class(
        "ib-pcie-degraded", "PCIE_DEGRADED", "0000:9b:00.0", "pcie.degraded", 4
    ),
    "PCIe fatal error": _class("ib-pcie-errors", "PCIE_ERRORS", "0000:ac:00.0", "pcie.fatal", 5),
    "memory error, uncorrected": _class("mem-ecc", "MEM_ECC_UNCORRECTED", "mc0", "memory.ecc_risen"),
    "memory missing": _class("mem-missing", "MEM_MISSING", "", "memory.share"),
    "disk full": _class("disk-full", "DISK_FULL", "nvme0n1p2", "disk.used"),
    "disk read-only": _class("disk-readonly", "DISK_READ_ONLY", "dm-0", "disk.locked"),
    "process stuck with a GPU": _class("task-stuck", "KERNEL_HUNG_TASK", "", "system.stuck"),
    "service ended": _class("service-stopped", "HOST_SERVICE", "munge.service", "system.service"),
}


class Node:
    """A node daemon and its machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.machine = Machine.build(folder / "machine", name, gpus=1, ports=8, nics=4)
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(folder=folder, name=name))
        (folder / "key").write_text("0" * 64)
        (folder / "key").chmod(0o600)
        self.log, self.read = folder / "log", 0
        argv = [sys.executable, "-m", "slurm_health", "node", "--config", str(self.config), "--name", name]
        argv += [
            "--root",
            str(self.machine.folder),
            "--run",
            str(folder / "run"),
            "--state",
            str(folder / "state"),
        ]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(argv, stderr=out, stdout=out, cwd=folder, env=dict(os.environ))

    def found(self) -> list[str]:
        """What it has logged since the last time."""
        with self.log.open() as file:
            file.seek(self.read)
            text = file.read()
            self.read = file.tell()
        return text.splitlines()


def measure(nodes: list[Node], wanted: dict[str, Class]) -> tuple[dict[str, list[float]], list[str]]:
    """By class the seconds until each fault was found (infinity: it was not), and every other finding."""
    began = time.monotonic()
    due = sorted((random.uniform(0, SPREAD), number, name) for number in range(len(nodes)) for name in wanted)
    waiting: dict[tuple[int, str], float] = {}
    took: dict[str, list[float]] = {name: [] for name in wanted}
    other: list[str] = []
    while (due or waiting) and time.monotonic() - began < PATIENCE:
        while due and due[0][0] <= time.monotonic() - began:
            _, number, name = due.pop(0)
            waiting[number, name] = nodes[number].machine.inject(**wanted[name].fault)["at"]
        for number, node in enumerate(nodes):
            for line in node.found():
                told = FINDING.match(line)
                whose = [key for key in waiting if key[0] == number and told and wanted[key[1]].names(told)]
                for key in whose:
                    took[key[1]].append(time.time() - waiting.pop(key))
                if told and not whose:
                    other.append(line)
        time.sleep(0.05)
    for _, name in waiting:
        took[name].append(float("inf"))
    return {name: sorted(seconds) for name, seconds in took.items()}, other


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=32, help="so many injections of each class")
    parser.add_argument("--only", default="", help="these classes only, by their faults: ib-down,mem-ecc")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    about = machine()
    wanted = {
        name: one
        for name, one in CLASSES.items()
        if not given.only or one.fault["fault"] in given.only.split(",")
    }
    book = rules.load()
    nodes = [Node(given.dir / f"n{number}", f"n{number}") for number in range(given.nodes)]
    try:
        ready = await_until(lambda: all("ready: " in node.log.read_text() for node in nodes), 120)
        assert ready, "some node is not ready"
        time.sleep(35)  # the counters have been seen once, and again
        for node in nodes:
            node.found()
        took, other = measure(nodes, wanted)
    finally:
        for node in nodes:
            node.process.terminate()
        for node in nodes:
            node.process.wait(20)
        shutil.rmtree(given.dir)
    print(f"{about}.\n{given.nodes} injections of each class, on {given.nodes} node daemons.\n")
    print("| fault | finding | median, s | worst, s | of it waited, s | missed |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, seconds in took.items():
        one = wanted[name]
        hold = max(rule.hold for rule in book.rules if (rule.code, rule.reading) == (one.code, one.reading))
        found = [second for second in seconds if second != float("inf")]
        median, worst = (statistics.median(found), found[-1]) if found else (float("nan"), float("nan"))
        missed = len(seconds) - len(found)
        print(f"| {name} | {one.code} | {median:.1f} | {worst:.1f} | {hold:g} | {missed} |")
    print(f"\nOther findings: {len(other)}.")
    for line in other[:5]:
        print(f"    {line}")


if __name__ == "__main__":
    main()
