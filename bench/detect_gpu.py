"""How soon a fault of a GPU is found: from its injection into fake hardware to the node daemon's finding.

    python bench/detect_gpu.py [CLASS ...] [--times 30] [--nodes 6] [--dir DIR]

No Slurm and no controller: real node daemons (`slurm-health node`, NVML each 15 s as shipped), each on a fake
machine of 8 GPUs. In each round every GPU of every node gets one fault, at a time of chance within 15 s; then
all are healed. What a rule waits for (hold, lasts, times) is the site's choice and left out here: it is set
to nothing, and stands beside the figures, to be added.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prolog import machine
from slurm_health import duration, rules
from slurm_health.sandbox.daemon import await_until
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.library import build

ROOT = Path(__file__).parents[1]
EVERY = 15.0  # seconds between passes over NVML, as shipped
GPUS = 8
# the fault, what it is told, the code that it must be found as
CLASSES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Xid 79": ("xid", {"code": 79}, "GPU_XID_79"),
    "GPU lost": ("gpu-lost", {}, "GPU_MISSING"),
    "GPU gone": ("gpu-gone", {}, "GPU_MISSING"),
    "ECC": ("ecc", {}, "GPU_ECC_UNCORRECTED"),
    "SRAM": ("sram", {}, "GPU_ECC_UNCORRECTED"),
    "remap pending": ("remap-pending", {}, "GPU_REMAP_PENDING"),
    "remap failed": ("remap-failed", {}, "GPU_REMAP_FAILED"),
    "pages retired": ("retired", {}, "GPU_PAGES_RETIRED"),
    "recovery action": ("recovery-action", {}, "GPU_RECOVERY_ACTION"),
    "NVLink down": ("nvlink-down", {}, "GPU_NVLINK_DOWN"),
    "NVLink errors": ("nvlink-errors", {}, "GPU_NVLINK_ERRORS"),
    "fabric": ("fabric", {}, "GPU_FABRIC"),
    "throttled": ("throttle", {"text": "thermal"}, "GPU_THROTTLED"),
    "hot": ("hot", {"code": 94}, "GPU_HOT"),
    "fan": ("fan", {}, "GPU_FAN"),
    "PCIe degraded": ("gpu-pcie-slow", {}, "GPU_PCIE_DEGRADED"),
    "PCIe replays": ("gpu-pcie-replay", {}, "GPU_PCIE_DEGRADED"),
    "drift": ("vbios", {"text": "1.2.3"}, "GPU_DRIFT"),
}
PATIENCE = 5 * EVERY + 10  # what is asked each fourth pass comes within 60 s


@dataclass
class Node:
    """A node daemon on a machine of its own."""

    folder: Path
    library: Path
    seen: int = 0
    had: set[tuple[str, int]] = field(default_factory=set)  # classes that each GPU had
    found: dict[tuple[str, str], float] = field(default_factory=dict)  # code, device -> when

    def __post_init__(self) -> None:
        self.machine = Machine.build(self.folder / "hardware", self.folder.name, gpus=GPUS, ports=1, nics=1)
        self.log = self.folder / "log"
        key = self.folder / "key"
        key.write_text("k" * 32)
        key.chmod(0o600)
        patience = {(rule.code, rule.reading): rule for rule in rules.load().rules}
        eager = "".join(
            f'[[rule]]\ncode = "{code}"\nreading = "{reading}"\nclear = "1s"\nflaps = "0s"\nhold = "0s"\n'
            + ('lasts = "0s"\nwithin = "0s"\n' if rule.lasts else "times = 1\n" if not rule.within else "")
            for (code, reading), rule in patience.items()
            if code.startswith("GPU_") and not rule.distinct
        )
        config = self.folder / "config.toml"
        config.write_text(
            f'controller = "127.0.0.1:9"\n[auth]\nmethod = "hmac"\nkey_file = "{key}"\n'
            f'[probes]\nfolder = "{self.folder}/probes.d"\n{eager}'
        )
        words = ["node", "--config", config, "--name", self.folder.name, "--root", self.machine.folder,
                 "--run", self.folder / "run", "--state", self.folder / "state"]  # fmt: skip
        environment = os.environ | {
            "SLURM_HEALTH_FAKE_NVML": f"{self.machine.folder}/nvml",
            "SLURM_HEALTH_NVML_LIBRARY": str(self.library),
            "PYTHONPATH": str(ROOT),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slurm_health", *map(str, words)],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def look(self) -> None:
        """Read what the log says since the last look."""
        now, text = time.time(), self.log.read_text(errors="replace")
        for line in text[self.seen :].splitlines():
            for word in line.split():
                code, bracket, device = word.partition("(")
                if bracket and code.startswith("GPU_") and "has cleared" not in line:
                    self.found.setdefault((code, device.rstrip("):")), now)
        self.seen = len(text) if text.endswith("\n") else text.rindex("\n") + 1 if "\n" in text else 0

    def ready(self) -> bool:
        return "ready: first pass" in self.log.read_text(errors="replace")


def rounds(classes: list[str], times: int, seats: int) -> Iterator[list[str]]:
    """All injections in an order of chance, as many at a time as there are GPUs."""
    wanted = [name for name in classes for _ in range(times)]
    random.shuffle(wanted)
    while wanted:
        yield wanted[:seats]
        wanted = wanted[seats:]


def run(nodes: list[Node], wanted: list[str], pci: list[str]) -> Iterator[tuple[str, float | None]]:
    """One round: the class and the seconds until it was found, None when it was not."""
    free = [(node, gpu) for node in nodes for gpu in range(GPUS)]
    random.shuffle(free)
    began = time.time()
    plan = []
    for name in wanted:
        # no seat has a class twice: what counts in a window is still bad in the next round
        seat = next(seat for seat in free if (name, seat[1]) not in seat[0].had)
        free.remove(seat)
        seat[0].had.add((name, seat[1]))
        plan.append((random.uniform(0, EVERY), name, seat))
    plan.sort(key=lambda item: item[0])
    pending: dict[tuple[int, str, str], tuple[str, float, Node]] = {}
    queue = iter(plan)
    upcoming = next(queue, None)
    while upcoming or (pending and time.time() - began < EVERY + PATIENCE):
        while upcoming and time.time() - began >= upcoming[0]:
            _, name, (node, gpu) = upcoming
            fault, told, code = CLASSES[name]
            at = node.machine.inject(fault, gpu=gpu, **told)["at"]
            pending[id(node), code, pci[gpu]] = (name, at, node)
            upcoming = next(queue, None)
        for node in nodes:
            node.look()
        for key, (name, at, node) in list(pending.items()):
            when = node.found.get(key[1:])
            if when is not None:
                del pending[key]
                yield name, when - at
        time.sleep(0.01)
    for name, _, _ in pending.values():
        yield name, None
    for node in nodes:
        node.machine.clear()
    time.sleep(5 * EVERY)  # what is asked each fourth pass is seen to be good, too
    for node in nodes:
        node.look()
        node.found.clear()


def waits(code: str, name: str) -> str:
    """What the shipped rules of a code wait for, before it is a finding."""
    reading = {"PCIe replays": "gpu.pcie_replay", "SRAM": "gpu.sram_threshold", "hot": "gpu.shutdown_margin",
               "fabric": "gpu.fabric_lost", "NVLink down": "gpu.nvlink_down", "throttled": "gpu.hw_thermal",
               "PCIe degraded": "gpu.pcie_slow"}.get(name)  # fmt: skip
    for rule in rules.load().rules:
        if rule.code == code and reading in (None, rule.reading):
            spans = [duration.short(span) for span in (rule.hold or rule.lasts,) if span]
            passes = [f"{rule.times} passes"] if rule.times > 1 else []
            return ", ".join([*spans, *passes]) or "-"
    return "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classes", nargs="*", metavar="CLASS", help=", ".join(CLASSES))
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-detect"), help="its folder")
    given = parser.parse_args()
    if unknown := set(given.classes) - CLASSES.keys():
        parser.error(f"no class {', '.join(sorted(unknown))}")
    about, classes = machine(), given.classes or list(CLASSES)
    given.dir.mkdir(parents=True)
    library = build(given.dir / "libnvidia-ml.so.1")
    nodes = []
    taken: dict[str, list[float | None]] = {name: [] for name in classes}
    began = time.monotonic()
    try:
        for number in range(1, given.nodes + 1):
            (given.dir / f"n{number}").mkdir()
            nodes.append(Node(given.dir / f"n{number}", library))
            time.sleep(EVERY / given.nodes)  # so that their passes do not coincide
        assert await_until(lambda: all(node.ready() for node in nodes), 60)
        time.sleep(5 * EVERY)  # counters have a first value, read each fourth pass
        boards = [line.split() for line in (nodes[0].machine.folder / "nvml").read_text().splitlines()]
        pci = [words[2] for words in boards if words[0] == "gpu"]
        for wanted in rounds(classes, given.times, given.nodes * GPUS):
            for name, seconds in run(nodes, wanted, pci):
                taken[name].append(seconds)
    finally:
        for node in nodes:
            node.process.terminate()
        for node in nodes:
            node.process.wait(10)
    print(f"{about}.\n{given.nodes} daemons of {GPUS} GPUs, {time.monotonic() - began:.0f} s in all.\n")
    print("| fault | code | n | found | median, s | worst, s | then the rule waits |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for name in classes:
        seconds = sorted(one for one in taken[name] if one is not None)
        median, worst = (statistics.median(seconds), seconds[-1]) if seconds else (float("nan"),) * 2
        code = CLASSES[name][2]
        print(
            f"| {name} | {code} | {len(taken[name])} | {len(seconds)} | {median:.2f} | {worst:.2f} "
            f"| {waits(code, name)} |"
        )


if __name__ == "__main__":
    main()
