"""Files that are missing, torn, unreadable or vanish while they are read: no probe falls over, and nothing is
found that is not there."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_health import rules
from slurm_health.baseline import Baseline, Expectations, begin, expect, learn
from slurm_health.host import Host
from slurm_health.model import Finding, Reading, Report, Severity
from slurm_health.probes.disk import disk
from slurm_health.probes.infiniband import InfiniBand
from slurm_health.probes.memory import memory
from slurm_health.probes.nic import Nic
from slurm_health.probes.pcie import Pcie
from slurm_health.probes.system import System
from slurm_health.sandbox.hardware import Machine

BOOK = rules.load()
# What a file's reading may bring instead of what it holds; None: it cannot be read.
TORN = st.one_of(
    st.none(),
    st.sampled_from(["", "0", "-1", "<n/a>", "N/A (no PMA)", "4294967295", "4: ", "Unknown", "0x", "\udcff"]),
    st.integers(0, 6),  # so many of its characters
)


class Torn(Host):
    """A machine of which `tears` says how some files read: by their number, in the order of first reading."""

    def __init__(self, root: Path, tears: dict[int, str | int | None]) -> None:
        super().__init__(root)
        self.tears = tears
        self.order: dict[str, int] = {}

    def text(self, name: str | Path) -> str | None:
        whole = super().text(name)
        number = self.order.setdefault(str(name), len(self.order))
        if number not in self.tears:
            return whole
        torn = self.tears[number]
        return (whole or "")[:torn] or None if isinstance(torn, int) else torn or None


def reports(host: Host) -> Iterator[Report]:
    looks: dict[str, Callable[[], Iterable[Reading]]] = {
        "infiniband": InfiniBand(host).look,
        "nic": Nic(host).look,
        "pcie": Pcie(host).look,
        "memory": lambda: memory(host),
        "disk": lambda: disk(host),
        "system": System(host, ["munge", "slurmd"]).look,
    }
    for name, look in looks.items():
        yield Report(name, tuple(look()))


def judged(host: Host, known: Baseline | None) -> tuple[Finding, ...]:
    """What is found at once, without any hold."""
    readings = [one for report in reports(host) for one in expect(known, Expectations(), report)]
    return rules.judge(rules.at_once(BOOK), readings, rules.begin(None, "boot"), 1000.0)[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    Machine.build(folder, "n1", gpus=2, ports=2, nics=2)
    return folder


@pytest.fixture(scope="module")
def known(root: Path) -> Baseline:
    baseline = begin(Baseline(), "boot")
    for report in reports(Host(root)):
        baseline, _ = learn(baseline, report)
    return baseline


def test_a_healthy_machine_shows_nothing(root: Path, known: Baseline) -> None:
    assert judged(Host(root), known) == judged(Host(root), None) == ()
    assert all((known.ports, known.nics, known.pcie, known.memory, known.disks, known.clock))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tears=st.dictionaries(st.integers(0, 700), st.none() | st.just(""), max_size=200))
def test_what_cannot_be_read_is_never_a_fault(
    root: Path, known: Baseline, tears: dict[int, str | None]
) -> None:
    assert judged(Torn(root, dict(tears)), known) == ()
    assert judged(Torn(root, dict(tears)), None) == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tears=st.dictionaries(st.integers(0, 700), TORN, max_size=60))
def test_nothing_that_a_file_says_stops_a_probe(
    root: Path, known: Baseline, tears: dict[int, str | int | None]
) -> None:
    host = Torn(root, tears)
    for report in reports(host):
        learned, _ = learn(known, report)
        assert all(isinstance(one, Reading) for one in expect(learned, Expectations(), report))
    assert all(one.severity <= Severity.CRITICAL for one in judged(host, None))


class Vanishing(Host):
    """A machine whose folders go while they are read: after so many readings of files nothing is there."""

    def __init__(self, root: Path, after: int) -> None:
        super().__init__(root)
        self.left = after

    def text(self, name: str | Path) -> str | None:
        self.left -= 1
        return super().text(name) if self.left > 0 else None

    def names(self, folder: str | Path) -> list[str]:
        return super().names(folder) if self.left > 0 else []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(after=st.integers(0, 700))
def test_devices_may_vanish_while_they_are_read(root: Path, known: Baseline, after: int) -> None:
    gone = {"IB_DEVICE_MISSING", "NIC_MISSING"}  # that they are
    assert {one.code for one in judged(Vanishing(root, after), known)} <= gone
    assert judged(Vanishing(root, after), None) == ()


@given(text=st.text(max_size=200))
@settings(max_examples=40, deadline=None)
def test_mounts_of_any_spelling(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("mounts")
    (folder / "proc/1").mkdir(parents=True)
    (folder / "proc/1/mounts").write_bytes(text.encode("utf-8", "surrogatepass"))
    (folder / "statvfs").write_bytes(os.fsencode(text.encode("utf-8", "replace").decode()))
    for one in disk(Host(folder)):
        assert one.name in ("disk.read_only", "disk.used", "disk.inodes")
