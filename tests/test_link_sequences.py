"""Links and hosts over time, on fake hardware: each sequence opens and ends exactly what it should."""

from pathlib import Path

import pytest

from slurm_health import identity, rules
from slurm_health.baseline import Baseline, Expectations, begin, expect, learn
from slurm_health.host import Host
from slurm_health.model import Report, Severity
from slurm_health.probes.infiniband import RESTLESS, InfiniBand
from slurm_health.probes.memory import memory
from slurm_health.probes.nic import Nic
from slurm_health.probes.pcie import Pcie
from slurm_health.sandbox.hardware import Machine

BOOK = rules.load()
PORT = "sys/class/infiniband/mlx5_1/ports/1"
EVERY = 30.0  # seconds between looks at counters, as the daemon has it


class Node:
    """A machine, looked at as the daemon does, and which findings opened and ended: "+CODE(device)"."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.host = Host(machine.folder)
        self.links, self.nics, self.pcie = InfiniBand(self.host), Nic(self.host), Pcie(self.host)
        self.known = begin(Baseline(), "boot")
        self.memory = rules.begin(None, "boot")
        self.now = 1000.0
        self.told: list[str] = []
        self.standing: set[str] = set()
        self.run(60)

    def run(self, seconds: float) -> None:
        """Let time pass, with a look at everything every 30 s and a glance at links every second."""
        end = self.now + seconds
        while self.now < end:
            self.now += 1
            full = self.now % EVERY == 0
            reports = [
                Report("infiniband", tuple(self.links.look() if full else self.links.glance() or ())),
                Report("nic", tuple(self.nics.look() if full else self.nics.glance() or ())),
            ]
            if full:
                reports += [
                    Report("pcie", tuple(self.pcie.look())),
                    Report("memory", tuple(memory(self.host))),
                ]
            self._judge([report for report in reports if report.readings])

    def _judge(self, reports: list[Report]) -> None:
        readings = []
        for report in reports:
            self.known, _ = learn(self.known, report, {one.partition("(")[2][:-1] for one in self.standing})
            readings += expect(self.known, Expectations(), report)
        found, self.memory = rules.judge(BOOK, readings, self.memory, self.now)
        standing = {f"{one.code}({one.device})" for one in found if one.severity > Severity.OK}
        self.told += [f"+{one}" for one in sorted(standing - self.standing)]
        self.told += [f"-{one}" for one in sorted(self.standing - standing)]
        self.standing = standing

    def write(self, name: str, text: str) -> None:
        (self.host.root / name).write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.build(tmp_path, "n1", gpus=2, ports=2, nics=2)


@pytest.fixture
def node(machine: Machine) -> Node:
    made = Node(machine)
    assert made.told == []
    return made


def lose(node: Node, seconds: float, down: str = "1") -> None:
    """A port that is down for so long; `down`: what its counter shows then."""
    node.machine.inject("ib-down", port=1)
    node.write(f"{PORT}/counters/link_downed", down)
    node.run(seconds)
    node.machine.clear()


def test_links_that_are_lost_too_briefly_are_a_flap(node: Node) -> None:
    for number in range(3):
        lose(node, 3, str(number + 1))
        node.run(600)
    assert node.told == ["+IB_FLAP(mlx5_1/1)"]
    node.run(4 * 3600)
    assert node.told == ["+IB_FLAP(mlx5_1/1)", "-IB_FLAP(mlx5_1/1)"]


def test_two_losses_are_no_flap(node: Node) -> None:
    for number in range(2):
        lose(node, 3, str(number + 1))
        node.run(600)
    node.run(3 * 3600)
    lose(node, 3, "3")  # the window has moved on
    node.run(600)
    assert node.told == []


def test_a_link_that_stays_down(node: Node) -> None:
    lose(node, 20)
    node.run(120)
    assert node.told == ["+IB_PORT_DOWN(mlx5_1/1)", "-IB_PORT_DOWN(mlx5_1/1)"]


@pytest.mark.parametrize(
    ("fault", "found"), [("ib-down", "+IB_PORT_DOWN(mlx5_1/1)"), ("nic-down", "+NIC_DOWN(eth1)")]
)
def test_a_look_at_counters_hides_no_loss_from_the_glances_after_it(
    node: Node, fault: str, found: str
) -> None:
    node.run(90 + (EVERY - 1 - node.now) % EVERY)  # at rest, and the next look reads counters, too
    assert (node.now + 1) % EVERY == 0
    node.machine.inject(fault, port=1)
    node.run(8)
    assert node.told == [found]


def test_a_link_that_decays_slowly(node: Node) -> None:
    for count in range(1, 360):  # one symbol error in a minute: what a link may have
        node.write(f"{PORT}/counters/symbol_error", str(count))
        node.run(60)
    assert node.told == []
    for count in range(360, 600):  # three
        node.write(f"{PORT}/counters/symbol_error", str(count))
        node.run(20)
    assert node.told == ["+IB_ERRORS(mlx5_1/1)"]
    node.run(3 * 3600)
    assert node.told == ["+IB_ERRORS(mlx5_1/1)", "-IB_ERRORS(mlx5_1/1)"]


def test_a_counter_that_was_at_its_end_says_nothing(machine: Machine) -> None:
    for number in range(2):
        counters = machine.folder / f"sys/class/infiniband/mlx5_{number}/ports/1/counters"
        for name, end in (
            ("link_downed", 255),
            ("excessive_buffer_overrun_errors", 15),
            ("symbol_error", 65535),
        ):
            (counters / name).write_text(f"{end}\n")
    node = Node(machine)
    node.run(3600)
    assert node.told == []
    node.write(f"{PORT}/counters/link_downed", "0")  # perfquery -R
    node.run(600)
    assert node.told == []
    node.write(f"{PORT}/counters/link_downed", "3")
    node.run(60)
    assert node.told == ["+IB_FLAP(mlx5_1/1)"]


def test_a_counter_that_reaches_its_end_keeps_its_finding(node: Node) -> None:
    node.write(f"{PORT}/counters/link_downed", "255")
    node.run(6 * 3600)
    assert node.told == ["+IB_FLAP(mlx5_1/1)"]  # it no longer shows what comes: no good news
    node.write(f"{PORT}/counters/link_downed", "0")
    node.run(6 * 3600)
    assert node.told == ["+IB_FLAP(mlx5_1/1)", "-IB_FLAP(mlx5_1/1)"]


def test_an_adapter_that_goes_and_comes_back(node: Node) -> None:
    device = node.host.root / "sys/class/infiniband/mlx5_1"
    target = device.readlink()
    device.unlink()
    node.run(60)
    assert node.told == ["+IB_DEVICE_MISSING(mlx5_1/1)"]
    device.symlink_to(target)
    node.run(120)
    assert node.told == ["+IB_DEVICE_MISSING(mlx5_1/1)", "-IB_DEVICE_MISSING(mlx5_1/1)"]


def test_a_network_adapter_that_goes_is_missed_from_the_first_glance_on(node: Node) -> None:
    node.machine.inject("nic-gone", port=1)
    node.run(25)  # the next look at everything ends the wait that a glance began
    assert node.told == ["+NIC_MISSING(eth1)"]
    node.machine.clear()
    node.run(120)
    assert node.told == ["+NIC_MISSING(eth1)", "-NIC_MISSING(eth1)"]


def test_a_reset_takes_a_pcie_link_back_to_what_it_was(node: Node) -> None:
    node.machine.inject("ib-pcie-degraded", port=1)
    node.run(600)
    node.machine.clear()
    node.run(600)
    assert node.told == ["+PCIE_DEGRADED(0000:2b:00.0)", "-PCIE_DEGRADED(0000:2b:00.0)"]


def test_memory_errors_stand_until_the_next_boot(node: Node) -> None:
    node.machine.inject("mem-ecc")
    node.run(7200)
    assert node.told == ["+MEM_ECC_UNCORRECTED(mc0)"]
    node.write("sys/devices/system/edac/mc/mc0/ue_count", "0")
    node.known = begin(node.known, "next")
    node.memory = rules.begin(node.memory, "next")
    node.run(120)
    assert node.told == ["+MEM_ECC_UNCORRECTED(mc0)", "-MEM_ECC_UNCORRECTED(mc0)"]


def test_a_daemon_that_starts_again_still_counts(node: Node) -> None:
    lose(node, 3, "2")
    node.run(600)
    node.memory = rules.begin(node.memory, "boot")
    lose(node, 3, "3")
    node.run(60)
    assert node.told == ["+IB_FLAP(mlx5_1/1)"]


def test_at_rest_a_glance_says_nothing_and_sees_everything(node: Node) -> None:
    said = [tuple(node.links.glance() or ()) for _ in range(RESTLESS + 1)]
    assert said[-1] == ()
    assert node.links.glance() is None
    node.machine.inject("ib-down", port=0)
    assert any(one.value == "DOWN" for one in tuple(node.links.glance() or ()))
    said = [tuple(node.links.glance() or ()) for _ in range(RESTLESS)]
    assert said[-1] == ()


def test_the_finding_names_gpu_and_guid(node: Node) -> None:
    node.machine.inject("ib-down", port=1)
    report = Report("infiniband", tuple(node.links.look()))
    [down] = [
        one
        for one in expect(node.known, Expectations(), report)
        if one.name == "infiniband.down" and one.value
    ]
    assert down.evidence == "state DOWN, Polling"
    assert identity.words(identity.hardware(down.device, identity.learn({}, report.readings))) == (
        "HCA mlx5_1, port 1, GUID a088:c203:0001:002b, beside GPU 0000:2a:00.0, PCI 0000:2b:00.0"
    )
