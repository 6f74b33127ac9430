"""PCIe links: what is looked at, what slot and card can, what it means beside the baseline."""

from pathlib import Path

import nodes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health.baseline import Baseline, Expectations, expect, learn
from slurm_health.expected import section
from slurm_health.host import Host
from slurm_health.model import Reading, Report
from slurm_health.probes.pcie import Bus, Pcie, ancestry, lanes, transfers

NOTHING = Expectations()
HCA = "0000:19:00.0"
WAY = ("0000:15:01.0", "0000:16:00.0", "0000:17:01.0", HCA)


def device(root: Path, *way: str, **files: str) -> None:
    """A device (the last) and the bridges between it and the processor."""
    home = "sys/devices/pci0000:15"
    for address in way:
        home += f"/{address}"
        nodes.link(root, f"sys/bus/pci/devices/{address}", f"../../../{home.removeprefix('sys/')}")
        kind = {"class": "0x060400" if address != way[-1] else "0x020700"}
        link = {"current_link_width": "16", "current_link_speed": "32.0 GT/s PCIe"}
        full = {"max_link_width": "16", "max_link_speed": "32.0 GT/s PCIe"}
        own = files if address == way[-1] else {}
        nodes.write(root, {f"{home}/{name}": text for name, text in (kind | link | full | own).items()})


def look(root: Path) -> Report:
    return Report("pcie", tuple(Pcie(Host(root)).look()))


def found(root: Path, known: Baseline | None, expected: Expectations = NOTHING) -> set[tuple[str, str]]:
    readings = expect(known, expected, look(root))
    return {(one.name, one.device) for one in readings if one.value is True}


def values(report: Report) -> dict[tuple[str, str], object]:
    return {(one.name, one.device): one.value for one in report.readings}


def test_a_link_as_it_is(tmp_path: Path) -> None:
    device(
        tmp_path,
        *WAY,
        aer_dev_fatal="DLP 0\nTOTAL_ERR_FATAL 0",
        aer_dev_nonfatal="TOTAL_ERR_NONFATAL 2",
        aer_dev_correctable="RxErr 7\nTOTAL_ERR_COR 7",
    )
    assert {name: value for (name, at), value in values(look(tmp_path)).items() if at == HCA} == {
        "pcie.width": 16,
        "pcie.full_width": 16,
        "pcie.speed": 32.0,
        "pcie.full_speed": 32.0,
        "pcie.fatal": 0,
        "pcie.nonfatal": 2,
        "pcie.correctable": 7,
    }
    assert ancestry(Host(tmp_path), f"sys/bus/pci/devices/{HCA}") == WAY


def test_of_bridges_only_switches_have_a_link_of_their_own(tmp_path: Path) -> None:
    device(tmp_path, *WAY)
    assert {at for (name, at) in values(look(tmp_path)) if name == "pcie.width"} == {HCA, "0000:16:00.0"}


def test_a_slot_that_can_less_is_no_fault_of_the_card(tmp_path: Path) -> None:
    device(tmp_path, "0000:15:01.0", HCA, max_link_width="32", max_link_speed="64.0 GT/s PCIe")
    assert found(tmp_path, None) == set()
    device(tmp_path, "0000:15:01.0", HCA, current_link_width="8")
    assert found(tmp_path, None) == {("pcie.below", HCA)}


def test_a_virtual_machine_does_not_see_the_slot(tmp_path: Path) -> None:
    device(tmp_path, HCA, current_link_width="8")
    known, _ = learn(Baseline(), look(tmp_path))
    assert found(tmp_path, known) == set()
    device(tmp_path, HCA, current_link_width="4")
    assert found(tmp_path, known) == {("pcie.degraded", HCA)}


@pytest.mark.parametrize(
    "worse", [{"current_link_width": "8"}, {"current_link_speed": "16.0 GT/s PCIe"}], ids=["width", "speed"]
)
def test_a_link_below_what_it_had(tmp_path: Path, worse: dict[str, str]) -> None:
    device(tmp_path, *WAY)
    known, _ = learn(Baseline(), look(tmp_path))
    assert found(tmp_path, known) == set()
    device(tmp_path, *WAY, **worse)
    assert ("pcie.degraded", HCA) in found(tmp_path, known)
    assert learn(known, look(tmp_path))[0] is known  # the most that it ever had


def test_a_gpu_may_slow_its_link_down_but_not_narrow_it(tmp_path: Path) -> None:
    gpu = {"class": "0x030200", "vendor": "0x10de"}
    device(tmp_path, *WAY, **gpu)
    known, _ = learn(Baseline(), look(tmp_path))
    device(tmp_path, *WAY, **gpu, current_link_speed="2.5 GT/s PCIe")
    assert found(tmp_path, known) == set()
    device(tmp_path, *WAY, **gpu, current_link_width="4")
    assert ("pcie.degraded", HCA) in found(tmp_path, known)


@pytest.mark.parametrize("kind", ["0x0c0330", "0x030000", "0x088000"])
def test_what_jobs_do_not_use_is_not_looked_at(tmp_path: Path, kind: str) -> None:
    device(tmp_path, "0000:15:01.0", HCA, **{"class": kind, "current_link_width": "1"})
    assert not any(at == HCA for _, at in values(look(tmp_path)))


def test_a_virtual_function_has_no_link(tmp_path: Path) -> None:
    device(tmp_path, "0000:15:01.0", HCA, **{"physfn/class": "0x020700", "current_link_width": "0"})
    assert not any(at == HCA for _, at in values(look(tmp_path)))


def test_a_device_that_sleeps_or_went_is_no_reading(tmp_path: Path) -> None:
    device(tmp_path, "0000:15:01.0", HCA, current_link_width="63", current_link_speed="Unknown")
    assert not any(name == "pcie.width" for name, _ in values(look(tmp_path)))


def test_what_the_site_expects(tmp_path: Path) -> None:
    device(tmp_path, *WAY)
    assert found(tmp_path, None, Expectations(pcie={HCA: (16, 64.0)})) == {("pcie.degraded", HCA)}
    assert found(tmp_path, None, Expectations(pcie={HCA: (16, 0.0)})) == set()
    known, _ = learn(Baseline(), look(tmp_path))
    assert f'"{HCA}" = "32 GT/s x16"' in section(known, "n1")


def test_where_the_slot_says_nothing_identical_cards_do(tmp_path: Path) -> None:
    untold = {"max_link_width": "", "max_link_speed": "Unknown", "vendor": "0x15b3", "device": "0x1021"}
    for number in range(4):
        device(tmp_path, f"0000:{number}9:00.0", **untold)
    assert found(tmp_path, None) == set()
    device(tmp_path, "0000:29:00.0", **untold, current_link_speed="8.0 GT/s PCIe")
    assert found(tmp_path, None) == {("pcie.below", "0000:29:00.0")}
    device(tmp_path, "0000:39:00.0", **untold, current_link_speed="8.0 GT/s PCIe")
    assert found(tmp_path, None) == set()  # two and two: nobody knows


@given(st.text(max_size=30))
def test_no_text_raises(text: str) -> None:
    assert lanes(text) is None or 0 < (lanes(text) or 0) <= 32
    assert transfers(text) is None or (transfers(text) or 0) > 0


def test_readings_of_what_is_ignored_mean_nothing() -> None:
    report = Report("pcie", (Reading("pcie.width", HCA, 8), Reading("pcie.full_width", HCA, 16)))
    assert expect(None, Expectations(ignore=(HCA,)), report) == ()


def test_a_device_on_the_bus_is_read_once_while_it_is_there(tmp_path: Path) -> None:
    bus, folder = Bus(Host(tmp_path)), tmp_path / "sys/bus/pci/devices/0000:17:00.0"
    assert bus.devices() == {}
    folder.mkdir(parents=True)
    assert bus.devices() == {"0000:17:00.0": ("", "")}
    for name, number in (("class", "0x020700"), ("vendor", "0x15b3")):
        (folder / name).write_text(f"{number}\n")
    assert bus.devices() == {"0000:17:00.0": ("0x020700", "0x15b3")}
    (folder / "class").write_text("0x020000\n")
    assert bus.devices() == {"0000:17:00.0": ("0x020700", "0x15b3")}
    folder.rename(folder.with_name("0000:18:00.0"))  # gone, and another one is there
    assert bus.devices() == {"0000:18:00.0": ("0x020000", "0x15b3")}
