"""Time from a fault to the node daemon's finding, for each class of faults.

    python bench/detect.py [--nodes 32] [--only FAULT,FAULT] [--dir DIR]     (as root, who may mount)

Each node is a real node daemon with the packaged rules and intervals, over a fake machine of its own; no
Slurm, no controller. On every node each class is injected once, on a device of its own or on one where it
hides no other, at a moment of its own within a minute, so that the looks are met at any phase. What ails the
whole driver follows after the rest. The clock starts when the fault is written and stops when the daemon logs
its finding. "Of it waited" is what the rule waits by design before it believes what it sees.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine

from slurm_health import duration, rules
from slurm_health.host import uptime
from slurm_health.node import STUCK
from slurm_health.sandbox.daemon import await_until
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.library import build
from slurm_health.sandbox.sysfs import SWITCHES

FINDING = re.compile(r"(\S+ \S+) (?:WARNING|ERROR) ([A-Z0-9_]+)\(([^)]*)\) ")  # as the daemon logs it
SPREAD = 60.0  # seconds within which a class is injected
PATIENCE = 300.0  # seconds, beyond what its rule waits, after which a fault counts as missed
SETTLED = 75.0  # seconds until all counters have been seen once, and again
CONFIG = """\
controller = "127.0.0.1:1"
[auth]
method = "hmac"
key_file = "{folder}/key"
[probes]
folder = "{folder}/probes.d"
[[nodes]]
match = "{name}"
services = ["munge"]
"""


class Class(NamedTuple):
    """What is injected, and the finding that must come of it: its code, device and reading. A device may be
    {gpu} or {port}: the PCI address of the fault's."""

    code: str
    device: str
    reading: str
    fault: dict[str, Any]

    def waits(self, book: rules.RuleBook) -> tuple[float, int]:
        """How long its rule waits (seconds), and for how many looks; what the kernel says it says once."""
        if self.reading == "probe.stuck":
            return STUCK, 1
        for rule in () if self.reading.startswith("kernel.") else book.by_reading[self.reading]:
            if rule.code == self.code:
                return rule.hold or rule.lasts, rule.times
        return 0.0, 1


def _class(code: str, device: str, reading: str, fault: str, /, **told: Any) -> Class:
    return Class(code, device, reading, {"fault": fault, **told})


GPU, ADAPTER = "{gpu}", "{port}"
CLASSES = {
    "Xid 79": _class("GPU_XID_79", GPU, "kernel.xid", "xid", gpu=2, code=79),
    "SXid 20034": _class("NVSWITCH_SXID_20034", SWITCHES[0], "kernel.sxid", "sxid", code=20034),
    "GPU lost": _class("GPU_MISSING", GPU, "gpu.missing", "gpu-lost", gpu=0),
    "GPU gone": _class("GPU_MISSING", GPU, "gpu.missing", "gpu-gone", gpu=1),
    "ECC": _class("GPU_ECC_UNCORRECTED", GPU, "gpu.ecc_risen", "ecc", gpu=2),
    "SRAM": _class("GPU_ECC_UNCORRECTED", GPU, "gpu.sram_threshold", "sram", gpu=3),
    "remap pending": _class("GPU_REMAP_PENDING", GPU, "gpu.remap_pending", "remap-pending", gpu=3),
    "remap failed": _class("GPU_REMAP_FAILED", GPU, "gpu.remap_failed", "remap-failed", gpu=4),
    "pages retired": _class("GPU_PAGES_RETIRED", GPU, "gpu.pages_pending", "retired", gpu=5),
    "recovery action": _class(
        "GPU_RECOVERY_ACTION", GPU, "gpu.recovery_action", "recovery-action", gpu=5, code=1
    ),
    "NVLink down": _class("GPU_NVLINK_DOWN", GPU, "gpu.nvlink_down", "nvlink-down", gpu=2),
    "NVLink errors": _class("GPU_NVLINK_ERRORS", GPU, "gpu.nvlink_crc", "nvlink-errors", gpu=3),
    "fabric": _class("GPU_FABRIC", GPU, "gpu.fabric_lost", "fabric", gpu=4),
    "throttled": _class("GPU_THROTTLED", GPU, "gpu.hw_thermal", "throttle", gpu=6, text="thermal"),
    "hot": _class("GPU_HOT", GPU, "gpu.shutdown_margin", "hot", gpu=6, code=94),
    "fan": _class("GPU_FAN", GPU, "gpu.fan_failed", "fan", gpu=7),
    "PCIe of a GPU degraded": _class("GPU_PCIE_DEGRADED", GPU, "gpu.pcie_slow", "gpu-pcie-slow", gpu=6),
    "PCIe of a GPU repeats": _class("GPU_PCIE_DEGRADED", GPU, "gpu.pcie_replay", "gpu-pcie-replay", gpu=7),
    "another VBIOS": _class("GPU_DRIFT", GPU, "gpu.drift", "vbios", gpu=7, text="1.2.3"),
    "InfiniBand port down": _class("IB_PORT_DOWN", "mlx5_0/1", "infiniband.down", "ib-down", port=0),
    "InfiniBand port at half its rate": _class(
        "IB_PORT_SLOW", "mlx5_1/1", "infiniband.slow", "ib-slow", port=1
    ),
    "InfiniBand flap (3 losses)": _class("IB_FLAP", "mlx5_2/1", "infiniband.link_downed", "ib-flap", port=2),
    "InfiniBand symbol errors": _class(
        "IB_ERRORS", "mlx5_3/1", "infiniband.symbol_error", "ib-errors", port=3
    ),
    "adapter's health (kernel log)": _class("NIC_HEALTH", ADAPTER, "kernel.mlx5", "mlx5", port=6),
    "network port down": _class("NIC_DOWN", "eth0", "nic.down", "nic-down", port=0),
    "network port at a tenth of its speed": _class("NIC_SLOW", "eth1", "nic.slow", "nic-slow", port=1),
    "network port flap (4 losses)": _class("NIC_FLAP", "eth2", "nic.carrier_downs", "nic-flap", port=2),
    "network port errors": _class("NIC_ERRORS", "eth3", "nic.rx_crc_errors", "nic-errors", port=3),
    "PCIe link at half its width": _class(
        "PCIE_DEGRADED", ADAPTER, "pcie.degraded", "ib-pcie-degraded", port=4
    ),
    "PCIe fatal error counted": _class("PCIE_ERRORS", ADAPTER, "pcie.fatal", "ib-pcie-errors", port=5),
    "PCIe fatal error (kernel log)": _class("PCIE_ERRORS", GPU, "kernel.aer", "aer", gpu=7),
    "memory error, uncorrected": _class("MEM_ECC_UNCORRECTED", "mc0", "memory.ecc_risen", "mem-ecc"),
    "memory missing": _class("MEM_MISSING", "", "memory.share", "mem-missing"),
    "disk full": _class("DISK_FULL", "nvme0n1p2", "disk.used", "disk-full"),
    "disk read-only": _class("DISK_READ_ONLY", "dm-0", "disk.locked", "disk-readonly"),
    "disk times out (kernel log)": _class("DISK_ERRORS", "nvme0", "kernel.disk", "disk", text="timeout"),
    "InfiniBand adapter gone": _class(
        "IB_DEVICE_MISSING", "mlx5_7/1", "infiniband.missing", "ib-gone", port=7
    ),
    "network adapter gone": _class("NIC_MISSING", "eth4", "nic.missing", "nic-gone", port=4),
    "memory errors, corrected": _class(
        "MEM_ECC_CORRECTED", "mc0", "memory.corrected", "mem-ecc", code=2000, text="ce"
    ),
    "program ended for want of memory (kernel log)": _class("KERNEL_OOM", "", "kernel.oom", "oom"),
    "process left by a job that ended": _class(
        "GPU_LEFTOVER_PROCESS", GPU, "gpu.leftover", "job-ended", gpu=7
    ),
    "process numbers used up": _class("HOST_PIDS", "", "system.ids", "pids-full"),
    "clock no longer synchronised": _class("HOST_CLOCK", "", "system.unsynced", "clock-unsynced"),
    "processor stuck (kernel log)": _class("KERNEL_LOCKUP", "", "kernel.lockup", "lockup"),
    "process stuck with a GPU": _class("KERNEL_HUNG_TASK", "", "system.stuck", "task-stuck", gpu=0),
    "service ended": _class("HOST_SERVICE", "munge.service", "system.service", "service-stopped"),
}
# What ails all GPUs would hide the rest; so would a probe that hangs.
DRIVER = (
    {
        "driver hangs": _class("GPU_DRIVER_HUNG", "", "gpu.driver", "driver-hang"),
        "files of /sys do not answer": _class("PROBE_STUCK", "memory", "probe.stuck", "sysfs-hang"),
    },
    {"driver failed": _class("GPU_DRIVER_FAILED", "", "gpu.driver", "driver-failed")},
)


class Node:
    """A node daemon and its machine, on which a job runs. `hung` is a folder that does not answer."""

    def __init__(self, folder: Path, name: str, library: Path, hung: Path) -> None:
        self.hung = hung
        self.machine = Machine.build(folder / "machine", name, gpus=8, ports=8, nics=5)
        self.machine.inject("process", gpu=7, code=4242, text="SLURM_JOB_ID=7")
        self.card = folder / "run/jobs/7.0"
        self.card.parent.mkdir(parents=True)
        self.card.write_text("job=7\nuid=1000\ngpus=7\nrestarts=0\nuptime=1\n")
        self.facts = json.loads((self.machine.folder / "machine.json").read_text())
        (folder / "config.toml").write_text(CONFIG.format(folder=folder, name=name))
        (folder / "key").write_text("0" * 64)
        (folder / "key").chmod(0o600)
        self.log, self.read = folder / "log", 0
        argv = [sys.executable, "-m", "slurm_health", "node", "--config", folder / "config.toml"]
        argv += ["--name", name, "--root", self.machine.folder]
        argv += ["--run", folder / "run", "--state", folder / "state"]
        environment = os.environ | {
            "SLURM_HEALTH_FAKE_NVML": str(self.machine.folder / "nvml"),
            "SLURM_HEALTH_NVML_LIBRARY": str(library),
        }
        with self.log.open("wb") as out:
            self.process = subprocess.Popen([*map(str, argv)], stderr=out, stdout=out, env=environment)

    def ready(self) -> bool:
        return "ready: " in self.log.read_text()

    def device(self, one: Class) -> str:
        gpu, port = one.fault.get("gpu", 0), one.fault.get("port", 0)
        return one.device.format(gpu=self.facts["gpus"][gpu]["pci"], port=self.facts["ports"][port])

    def suffer(self, one: Class) -> float:
        """Have that fault; when it was there (epoch)."""
        match one.fault["fault"]:
            case "job-ended":  # as the epilog notes it
                with self.card.open("a") as card:
                    card.write(f"ended={uptime():.0f}\n")
            case "sysfs-hang":
                controllers = self.machine.folder / "sys/devices/system/edac/mc"
                controllers.rename(controllers.with_name("answering"))
                controllers.symlink_to(self.hung)
            case _:
                self.machine.inject(**one.fault)
        return time.time()

    def found(self) -> list[re.Match[str]]:
        """The findings that it has logged since the last time."""
        with self.log.open() as file:
            file.seek(self.read)
            lines = file.readlines()
            if lines and not lines[-1].endswith("\n"):
                lines.pop()  # half written: the next time
            self.read += sum(len(line.encode()) for line in lines)
        return [told for line in lines if (told := FINDING.match(line))]


@contextmanager
def hanging(folder: Path) -> Iterator[Path]:
    """A folder whose files never answer: FUSE without a server (mount(2), fuse(4))."""
    folder.mkdir()
    libc, where = ctypes.CDLL(None, use_errno=True), os.fsencode(folder)
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    try:
        if libc.mount(b"hung", where, b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount: only root may")
        yield folder / "files"
    finally:
        os.close(server)  # whoever waits gets an error
        libc.umount(where)


def measure(
    nodes: list[Node], wanted: dict[str, Class], patience: float
) -> tuple[dict[str, list[float]], list[str]]:
    """By class the seconds until each fault was found, and every other finding."""
    began = time.monotonic()
    due = sorted((random.uniform(0, SPREAD), number, name) for number in range(len(nodes)) for name in wanted)
    waiting: dict[tuple[int, str, str], tuple[str, float]] = {}  # node, code, device -> class, since when
    took: dict[str, list[float]] = {name: [] for name in wanted}
    other: list[str] = []
    while (due or waiting) and time.monotonic() - began < patience:
        while due and due[0][0] <= time.monotonic() - began:
            _, number, name = due.pop(0)
            node, one = nodes[number], wanted[name]
            waiting[number, one.code, node.device(one)] = (name, node.suffer(one))
        for number, node in enumerate(nodes):
            for told in node.found():
                if whose := waiting.pop((number, told[2], told[3]), None):
                    at = datetime.strptime(told[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
                    took[whose[0]].append(max(0.0, at - whose[1]))
                else:
                    other.append(told.string.rstrip())
        time.sleep(0.1)
    return took, other


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=32, help="so many injections of each class")
    parser.add_argument("--only", default="", help="these classes only, by their faults: ib-down,mem-ecc")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-health-bench"), help="its folder")
    given = parser.parse_args()
    book = rules.load()
    only = set(filter(None, given.only.split(",")))
    rounds = [
        {name: one for name, one in classes.items() if not only or one.fault["fault"] in only}
        for classes in (CLASSES, *DRIVER)
    ]
    given.dir.mkdir(parents=True)
    print(f"{machine()}.\n{given.nodes} injections of each class, on {given.nodes} node daemons.\n")
    with hanging(given.dir / "hung") as hung:
        nodes: list[Node] = []
        try:
            _rounds(given, nodes, hung, [wanted for wanted in rounds if wanted], book)
        finally:
            for node in nodes:
                node.process.terminate()
            for node in nodes:
                node.process.wait(20)
    shutil.rmtree(given.dir)


def _rounds(
    given: argparse.Namespace,
    nodes: list[Node],
    hung: Path,
    rounds: list[dict[str, Class]],
    book: rules.RuleBook,
) -> None:
    """Measure one after the other, and print each as it ends."""
    library = build(given.dir / "libnvidia-ml.so.1")
    for number in range(given.nodes):
        (given.dir / f"n{number}").mkdir()
        nodes.append(Node(given.dir / f"n{number}", f"n{number}", library, hung))
        assert await_until(nodes[-1].ready, 120), "a node is not ready"
    print("| fault | finding | found | median, s | worst, s | of it waited |")
    print("| --- | --- | ---: | ---: | ---: | --- |", flush=True)
    other: list[str] = []
    for wanted in rounds:
        time.sleep(SETTLED)
        for node in nodes:
            other += [told.string.rstrip() for told in node.found()]
        waits = {name: one.waits(book) for name, one in wanted.items()}
        took, others = measure(nodes, wanted, PATIENCE + max(span for span, _ in waits.values()))
        other += others
        for name, seconds in took.items():
            median, worst = (statistics.median(seconds), max(seconds)) if seconds else (float("nan"),) * 2
            span, looks = waits[name]
            waited = [duration.short(span)] * bool(span) + [f"{looks} looks"] * (looks > 1)
            row = f"{name} | {wanted[name].code} | {len(seconds)} | {median:.2f} | {worst:.2f}"
            print(f"| {row} | {', '.join(waited) or '-'} |", flush=True)
        for node in nodes:
            node.machine.clear()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\nOther findings: {len(other)}. Load average at the end: {load}.")
    for line in other[:10]:
        print(f"    {line}")


if __name__ == "__main__":
    main()
