"""The whole way from a fault in a fake machine to its finding, as the node's daemon goes it."""

import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_health import rules
from slurm_health.baseline import Baseline, Expectations, begin, expect, learn
from slurm_health.host import Host
from slurm_health.model import Finding, Report, Severity, Urgency
from slurm_health.probes.disk import disk
from slurm_health.probes.gpu import Worker
from slurm_health.probes.infiniband import InfiniBand
from slurm_health.probes.kernel import KernelLog, readings
from slurm_health.probes.memory import memory
from slurm_health.probes.nic import Nic
from slurm_health.probes.pcie import Pcie
from slurm_health.probes.system import System
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.library import build

BOOK = rules.load()
GPU3 = "0000:5d:00.0"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler for the fake NVML")
    return str(build(tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"))


class Node:
    """A healthy machine of 8 GPUs, 8 InfiniBand ports and 2 NICs, learned, and what is found of it."""

    def __init__(self, root: Path, library: str) -> None:
        self.machine = Machine.build(root, "n1")
        self.host = Host(root)
        self.worker = Worker(self.host, library, folder=root)
        self.log = KernelLog(self.host)
        self.links, self.nics, self.pcie = InfiniBand(self.host), Nic(self.host), Pcie(self.host)
        self.system = System(self.host, ["munge"])
        self.known = begin(Baseline(), "boot")
        self.memory = rules.begin(None, "boot")
        self.now = 1000.0
        assert self.look() == ()
        assert len(self.known.gpus) == 8
        assert len(self.known.ports) == 8
        assert len(self.known.nics) == 2

    def gpus(self) -> Report:
        self.worker.ask(time.monotonic())
        select.select([self.worker.fileno()], [], [], 10)
        report = self.worker.answer(time.monotonic())
        assert report is not None
        return report

    def look(self, later: float = 0.0, gpus: Report | None = None) -> tuple[Finding, ...]:
        self.now += later
        events = tuple(readings(self.log.read(), "boot", time.time(), self.log.clock()))
        reports = (
            Report("kernel", events),
            gpus or self.gpus(),
            Report("infiniband", tuple(self.links.look())),
            Report("nic", tuple(self.nics.look())),
            Report("pcie", tuple(self.pcie.look())),
            Report("memory", tuple(memory(self.host))),
            Report("disk", tuple(disk(self.host))),
            Report("system", tuple(self.system.look())),
        )
        expected = [one for report in reports for one in expect(self.known, Expectations(), report)]
        found, self.memory = rules.judge(BOOK, expected, self.memory, self.now)
        sick = {one.device for one in found if one.severity is Severity.CRITICAL}
        for report in reports:
            self.known, _ = learn(self.known, report, sick)
        return found


@pytest.fixture
def node(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(tmp_path / "nvml"))
    made = Node(tmp_path, library)
    yield made
    made.worker.stop()
    made.log.close()


def shape(found: tuple[Finding, ...]) -> list[tuple[str, str, Urgency]]:
    return [(one.code, one.device, one.job) for one in found if one.severity is Severity.CRITICAL]


@pytest.mark.parametrize(
    ("fault", "hold", "code", "device", "job"),
    [
        ({"fault": "gpu-lost", "gpu": 3}, 0, "GPU_MISSING", GPU3, Urgency.NOW),
        ({"fault": "gpu-gone", "gpu": 3}, 0, "GPU_MISSING", GPU3, Urgency.NOW),
        ({"fault": "ecc", "gpu": 3}, 0, "GPU_ECC_UNCORRECTED", GPU3, Urgency.FINISH),
        ({"fault": "remap-pending", "gpu": 3}, 0, "GPU_REMAP_PENDING", GPU3, Urgency.FINISH),
        ({"fault": "remap-failed", "gpu": 3}, 0, "GPU_REMAP_FAILED", GPU3, Urgency.CHECKPOINT),
        ({"fault": "recovery-action", "gpu": 3, "code": 2}, 0, "GPU_RECOVERY_ACTION", GPU3, Urgency.FINISH),
        ({"fault": "retired", "gpu": 3}, 0, "GPU_PAGES_RETIRED", GPU3, Urgency.FINISH),
        ({"fault": "nvlink-down", "gpu": 3}, 15, "GPU_NVLINK_DOWN", GPU3, Urgency.FINISH),
        ({"fault": "fabric", "gpu": 3}, 300, "GPU_FABRIC", GPU3, Urgency.FINISH),
        ({"fault": "hot", "gpu": 3, "code": 94}, 15, "GPU_HOT", GPU3, Urgency.FINISH),
        ({"fault": "driver-failed"}, 0, "GPU_DRIVER_FAILED", "", Urgency.FINISH),
        ({"fault": "ib-down", "port": 4}, 5, "IB_PORT_DOWN", "mlx5_4/1", Urgency.NOW),
        ({"fault": "ib-slow", "port": 4}, 60, "IB_PORT_SLOW", "mlx5_4/1", Urgency.FINISH),
        ({"fault": "ib-gone", "port": 4}, 10, "IB_DEVICE_MISSING", "mlx5_4/1", Urgency.NOW),
        ({"fault": "nic-down", "port": 1}, 5, "NIC_DOWN", "eth1", Urgency.NOW),
        ({"fault": "nic-gone", "port": 1}, 10, "NIC_MISSING", "eth1", Urgency.NOW),
        ({"fault": "ib-pcie-degraded", "port": 3}, 60, "PCIE_DEGRADED", "0000:5e:00.0", Urgency.FINISH),
        ({"fault": "mem-missing"}, 0, "MEM_MISSING", "", Urgency.FINISH),
        ({"fault": "disk-readonly"}, 0, "DISK_READ_ONLY", "dm-0", Urgency.FINISH),
    ],
    ids=lambda value: value["fault"] if isinstance(value, dict) else "",
)
def test_a_state_comes_and_goes(
    node: Node, fault: dict[str, object], hold: int, code: str, device: str, job: Urgency
) -> None:
    node.machine.inject(**fault)  # type: ignore[arg-type]
    first = node.look()
    if hold:
        assert first == ()
        assert node.look(hold - 1) == ()
        node.now += 1
    for _ in range(3 if code == "GPU_DRIVER_FAILED" else 1):
        found = node.look()
    assert shape(found) == [(code, device, job)]
    assert all(one.lasting for one in found)
    node.machine.clear()
    assert shape(node.look(1)) == [(code, device, job)]
    assert node.look(29) == found
    assert node.look(1) == ()


@pytest.mark.parametrize(
    ("fault", "hold", "code", "device"),
    [
        ({"fault": "disk-full"}, 60, "DISK_FULL", "nvme0n1p2"),
        ({"fault": "disk-full", "text": "inodes"}, 60, "DISK_FULL", "nvme0n1p2"),
        ({"fault": "pids-full"}, 0, "HOST_PIDS", ""),
        ({"fault": "clock-unsynced"}, 1800, "HOST_CLOCK", ""),
        ({"fault": "service-stopped"}, 60, "HOST_SERVICE", "munge.service"),
        ({"fault": "task-stuck", "gpu": 3}, 60, "KERNEL_HUNG_TASK", ""),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_a_user_can_do_to_a_host_only_warns(
    node: Node, fault: dict[str, object], hold: int, code: str, device: str
) -> None:
    node.machine.inject(**fault)  # type: ignore[arg-type]
    node.look()
    assert node.look(hold and hold - 1) == () or not hold
    node.look(1)
    [found] = node.look(hold)  # a stuck task shows as such at the second look
    assert (found.code, found.device, found.severity, found.job) == (
        *(code, device),
        *(Severity.WARNING, Urgency.NONE),
    )
    node.machine.clear()
    node.look(1)
    assert node.look(31) == ()


@pytest.mark.parametrize(
    ("fault", "code", "device", "severity"),
    [
        ({"fault": "ib-flap", "port": 4}, "IB_FLAP", "mlx5_4/1", Severity.CRITICAL),
        ({"fault": "ib-errors", "port": 4}, "IB_ERRORS", "mlx5_4/1", Severity.CRITICAL),
        ({"fault": "nic-flap", "port": 1}, "NIC_FLAP", "eth1", Severity.WARNING),
        ({"fault": "nic-errors", "port": 1}, "NIC_ERRORS", "eth1", Severity.WARNING),
        ({"fault": "ib-pcie-errors", "port": 3}, "PCIE_ERRORS", "0000:5e:00.0", Severity.CRITICAL),
        ({"fault": "mem-ecc"}, "MEM_ECC_UNCORRECTED", "mc0", Severity.CRITICAL),
        ({"fault": "mem-ecc", "text": "ce", "code": 5000}, "MEM_ECC_CORRECTED", "mc0", Severity.WARNING),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_is_counted_is_found_at_the_next_look(
    node: Node, fault: dict[str, object], code: str, device: str, severity: Severity
) -> None:
    node.machine.inject(**fault)  # type: ignore[arg-type]
    [found] = node.look(30)
    assert (found.code, found.device, found.severity) == (code, device, severity)


@pytest.mark.parametrize(
    ("code", "job"),
    [(79, Urgency.NOW), (48, Urgency.NOW), (119, Urgency.NOW), (74, Urgency.FINISH), (149, Urgency.FINISH),
     (154, Urgency.FINISH)],
)  # fmt: skip
def test_a_fatal_xid_is_one_finding(node: Node, code: int, job: Urgency) -> None:
    node.machine.inject("xid", gpu=3, code=code)
    assert shape(node.look()) == [(f"GPU_XID_{code}", GPU3, job)]
    assert node.look(1) == ()


@pytest.mark.parametrize("code", [13, 31, 43, 45, 63, 68, 69, 94, 109, 137, 145, 4711])
def test_what_does_not_act(node: Node, code: int) -> None:
    node.machine.inject("xid", gpu=3, code=code)
    [found] = node.look()
    assert (found.code, found.severity, found.job) == (f"GPU_XID_{code}", Severity.WARNING, Urgency.NONE)


def test_nvswitches(node: Node) -> None:
    node.machine.inject("sxid", code=20034)
    node.machine.inject("sxid", code=12028)
    found = node.look()
    assert shape(found) == [("NVSWITCH_SXID_20034", "0000:05:00.0", Urgency.FINISH)]
    assert [one.code for one in found] == ["NVSWITCH_SXID_20034", "NVSWITCH_SXID_12028"]


@pytest.mark.parametrize("fault", ["user-kmsg", "kmsg"])
def test_what_a_user_writes_is_nothing(node: Node, fault: str) -> None:
    text = "NVRM: Xid (PCI:0000:5d:00): 79"
    if fault == "kmsg":  # the kernel's own line about a program with such a name
        text = f"{text[:15]}[77]: segfault at 0 ip 401136 sp 7ffc error 4 in {text}"
    node.machine.inject(fault, text=text)
    assert node.look() == ()


def test_a_hang_and_its_end(node: Node) -> None:
    node.machine.inject("driver-hang")
    asked = time.monotonic()
    node.worker.ask(asked)
    report = node.worker.overdue(asked + 10.1)
    assert report is not None
    assert shape(node.look(gpus=report)) == [("GPU_DRIVER_HUNG", "", Urgency.FINISH)]
    node.machine.clear()
    select.select([node.worker.fileno()], [], [], 10)
    late = node.worker.answer(time.monotonic())
    assert late is not None
    assert node.look(1, gpus=late) != ()
    assert node.look(30) == ()


def test_a_healthy_machine_stays_healthy(node: Node) -> None:
    for _ in range(5):
        assert node.look(15) == ()


# -- what counts over time ---------------------------------------------------------------


def codes(found: tuple[Finding, ...]) -> list[str]:
    return [one.code for one in found]


def pass_by(node: Node, seconds: float) -> list[str]:
    """Looks each 15 s, as the daemon's at NVML; the codes at the end."""
    found: tuple[Finding, ...] = ()
    for _ in range(round(seconds / 15)):
        found = node.look(15)
    return codes(found)


@pytest.mark.parametrize("reason", ["thermal", "power-brake", "slowdown"])
def test_throttling_for_seconds_is_normal_and_for_minutes_is_told(node: Node, reason: str) -> None:
    node.machine.inject("throttle", gpu=3, text=reason)
    assert pass_by(node, 45) == []
    node.machine.clear()
    assert pass_by(node, 600) == []  # what was is over
    node.machine.inject("throttle", gpu=3, text=reason)
    assert pass_by(node, 90) == ["GPU_THROTTLED"]
    node.machine.clear()
    assert pass_by(node, 60) == ["GPU_THROTTLED"]  # it still was most of the window
    assert pass_by(node, 600) == []


def test_a_power_cap_is_normal_however_long(node: Node) -> None:
    node.machine.inject("throttle", gpu=3, text="power-cap")
    assert pass_by(node, 900) == []


@pytest.mark.parametrize(
    ("fault", "code"), [("nvlink-errors", "GPU_NVLINK_ERRORS"), ("gpu-pcie-replay", "GPU_PCIE_DEGRADED")]
)
def test_errors_are_told_by_how_fast_they_come(node: Node, fault: str, code: str) -> None:
    node.machine.inject(fault, gpu=3, code=67)  # some, as every long-lived node has
    assert pass_by(node, 120) == []
    node.machine.inject(fault, gpu=3, code=2000)
    assert pass_by(node, 60) == [code]
    assert pass_by(node, 5400) == []  # none came since


def test_nvlink_errors_as_blackwell_counts_them(node: Node) -> None:
    node.machine.inject("nvml", gpu=3, text="nvlink5 1")
    node.machine.inject("nvlink-errors", gpu=3, code=67)
    assert pass_by(node, 120) == []
    node.machine.inject("nvlink-errors", gpu=3, code=2000)
    assert pass_by(node, 60) == ["GPU_NVLINK_ERRORS"]
    assert pass_by(node, 5400) == []


def test_what_was_counted_before_we_looked_is_no_news(node: Node) -> None:
    node.machine.inject("nvlink-errors", gpu=3, code=100_000)
    node.memory = rules.begin(None, "boot")
    assert pass_by(node, 120) == []


@pytest.mark.parametrize(
    ("fault", "code", "seconds"),
    [
        ({"fault": "sram"}, "GPU_ECC_UNCORRECTED", 60),
        ({"fault": "fan"}, "GPU_FAN", 45),
        ({"fault": "hot", "code": 92}, "GPU_HOT", 45),
        ({"fault": "gpu-pcie-slow"}, "GPU_PCIE_DEGRADED", 75),
        ({"fault": "fabric-health"}, "GPU_FABRIC", 135),
        ({"fault": "vbios", "text": "1.2.3"}, "GPU_DRIFT", 195),
        ({"fault": "mig"}, "GPU_DRIFT", 195),
    ],
    ids=lambda value: str(value.get("fault")) if isinstance(value, dict) else "",
)
def test_what_takes_its_time_to_be_sure_of(
    node: Node, fault: dict[str, object], code: str, seconds: float
) -> None:
    node.machine.inject(**fault, gpu=3)  # type: ignore[arg-type]
    assert pass_by(node, seconds) == [code]
    node.machine.clear()
    assert pass_by(node, 120) == []


def test_a_gpu_that_comes_back_is_as_it_was(node: Node) -> None:
    node.machine.inject("gpu-lost", gpu=3)
    assert pass_by(node, 60) == ["GPU_MISSING"]
    node.machine.clear()
    assert pass_by(node, 60) == []


def test_a_row_that_waits_and_then_cannot_be_remapped(node: Node) -> None:
    node.machine.inject("remap-pending", gpu=3)
    assert pass_by(node, 15) == ["GPU_REMAP_PENDING"]
    node.machine.inject("remap-failed", gpu=3)
    assert sorted(pass_by(node, 15)) == ["GPU_REMAP_FAILED", "GPU_REMAP_PENDING"]
    node.machine.clear()
    assert pass_by(node, 60) == []
