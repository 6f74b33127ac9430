"""What a node learns of its healthy devices, and what it then misses. (Links: test_links.py.)"""

import json

import pytest

from slurm_health.baseline import Baseline, Expectations, begin, expect, forget, learn, plain, recall
from slurm_health.model import Reading, Report, Value

NOTHING = Expectations()
Facts = dict[tuple[str, str], Value]


def gpus(*numbers: int, driver: str = "ok", bus: tuple[int, ...] = (), **facts: Value) -> Report:
    """A report of GPUs 0, 1, ... each with an address and a UUID by its number."""
    readings = [Reading("gpu.driver", "", driver)]
    for number in numbers:
        device = f"0000:{number:02x}:00.0"
        readings += [
            Reading("gpu.uuid", device, facts.get("uuid", f"GPU-{number}")),
            Reading("gpu.minor", device, number),
        ]
        readings += [
            Reading("gpu.lost", device, False),
            Reading("gpu.ecc_uncorrected", device, facts.get("ecc", 0)),
        ]
    readings += [Reading("gpu.on_pci", f"0000:{number:02x}:00.0", True) for number in bus or numbers]
    return Report("gpu", tuple(readings))


def facts(known: Baseline | None, report: Report, expected: Expectations = NOTHING) -> Facts:
    return {(one.name, one.device): one.value for one in expect(known, expected, report)}


def missing(known: Baseline | None, report: Report, expected: Expectations = NOTHING) -> set[str]:
    return {
        device
        for (name, device), value in facts(known, report, expected).items()
        if name == "gpu.missing" and value
    }


@pytest.fixture
def known() -> Baseline:
    return learn(begin(Baseline(), "boot"), gpus(1, 2, 3))[0]


def test_a_node_learns_its_gpus(known: Baseline) -> None:
    assert known.gpus["0000:02:00.0"] == {"uuid": "GPU-2", "minor": 2, "boot": "boot", "ecc": 0}
    assert learn(known, gpus(1, 2, 3))[0] is known


def test_a_gpu_that_no_longer_answers_is_missing(known: Baseline) -> None:
    assert missing(known, gpus(1, 2, 3)) == set()
    assert missing(known, gpus(1, 3)) == {"0000:02:00.0"}
    assert facts(known, gpus(1, 3))["gpu.missing", "0000:01:00.0"] is False


def test_the_evidence_says_whether_it_is_still_on_the_bus(known: Baseline) -> None:
    words = {one.evidence for one in expect(known, NOTHING, gpus(1, 3, bus=(1, 2, 3))) if one.value is True}
    assert "GPU-2 does not answer, still on PCI" in words
    words = {one.evidence for one in expect(known, NOTHING, gpus(1, 3)) if one.value is True}
    assert "GPU-2 does not answer, no longer on PCI" in words


def test_a_lost_gpu_is_missing_known_or_not(known: Baseline) -> None:
    lost = Reading("gpu.lost", "0000:02:00.0", True, "GPU is lost")
    report = Report("gpu", (*gpus(1, 3).readings, lost))
    assert missing(known, report) == missing(None, report) == {"0000:02:00.0"}


@pytest.mark.parametrize("driver", ["failed", "hung"])
def test_nothing_is_missing_while_the_driver_does_not_answer(known: Baseline, driver: str) -> None:
    assert missing(known, gpus(driver=driver)) == set()
    assert learn(known, gpus(9, driver=driver))[0] is known


def test_a_probe_that_failed_teaches_and_tells_nothing(known: Baseline) -> None:
    failed = Report("gpu", gpus(1).readings, "the NVML process ended")
    assert missing(known, failed) == set()
    assert learn(known, failed)[0] is known


def test_a_number_in_the_configuration(known: Baseline) -> None:
    eight = Expectations(gpus=3)
    assert missing(None, gpus(1, 2, 3), eight) == set()
    assert missing(None, gpus(1, 3, bus=(1, 2, 3)), eight) == {"0000:02:00.0"}
    assert missing(None, gpus(1, 3), eight) == {""}
    assert missing(known, gpus(1, 3), eight) == {"0000:02:00.0"}
    assert facts(None, gpus(1, 2, 3), eight)["gpu.missing", ""] is False


def test_a_gpu_that_a_virtual_machine_has_is_not_the_one_that_is_missing() -> None:
    seen = gpus(1, 3, bus=(0, 1, 2, 3))
    given = Reading("gpu.kernel_driver", "0000:00:00.0", "vfio-pci")
    report = Report("gpu", (*seen.readings, given))
    assert missing(None, report, Expectations(gpus=2)) == set()
    assert missing(None, report, Expectations(gpus=3)) == {"0000:02:00.0"}


def test_a_gpu_replaced_over_a_reboot_is_learned(known: Baseline) -> None:
    new = gpus(1, 2, 3, uuid="GPU-new")
    same_boot, notes = learn(known, Report("gpu", gpus(2, uuid="GPU-new").readings))
    assert (same_boot.gpus, notes) == (known.gpus, ())
    after, notes = learn(begin(known, "next boot"), Report("gpu", gpus(2, uuid="GPU-new").readings))
    assert after.gpus["0000:02:00.0"]["uuid"] == "GPU-new"
    assert "replaced" in notes[0]
    assert missing(known, new) == set()


def test_a_gpu_that_moved_is_not_missing(known: Baseline) -> None:
    moved = Report("gpu", (*gpus(1, 3).readings, *gpus(5, uuid="GPU-2").readings[1:]))
    assert missing(begin(known, "next boot"), moved) == set()
    after, notes = learn(begin(known, "next boot"), moved)
    assert set(after.gpus) == {"0000:01:00.0", "0000:03:00.0", "0000:05:00.0"}
    assert any("moved" in note for note in notes)


def test_a_sick_node_teaches_nothing(known: Baseline) -> None:
    empty = begin(Baseline(), "boot")
    assert learn(empty, gpus(1, 2), sick=["0000:01:00.0"])[0].gpus.keys() == {"0000:02:00.0"}
    assert learn(empty, gpus(1, 2), sick=[""])[0] is empty


def test_errors_count_from_first_sight_in_a_boot(known: Baseline) -> None:
    assert facts(known, gpus(1, ecc=0))["gpu.ecc_risen", "0000:01:00.0"] == 0
    assert facts(known, gpus(1, ecc=2))["gpu.ecc_risen", "0000:01:00.0"] == 2
    learned, _ = learn(known, gpus(1, ecc=2))
    assert facts(learned, gpus(1, ecc=2))["gpu.ecc_risen", "0000:01:00.0"] == 2  # learning forgives nothing


def test_old_errors_are_old() -> None:
    first = gpus(1, ecc=5)
    empty = begin(Baseline(), "boot")
    seen = facts(empty, first)
    assert ("gpu.ecc_risen", "0000:01:00.0") not in seen
    assert seen["gpu.ecc_before", "0000:01:00.0"] == 5
    known, _ = learn(empty, first)
    assert facts(known, first)["gpu.ecc_risen", "0000:01:00.0"] == 0
    assert facts(known, gpus(1, ecc=6))["gpu.ecc_risen", "0000:01:00.0"] == 1
    reset, _ = learn(known, gpus(1, ecc=0))
    assert facts(reset, gpus(1, ecc=1))["gpu.ecc_risen", "0000:01:00.0"] == 1


def test_a_new_boot_counts_from_nothing(known: Baseline) -> None:
    assert facts(begin(known, "next"), gpus(1, ecc=1))["gpu.ecc_risen", "0000:01:00.0"] == 1


def test_without_a_count_there_is_no_reading(known: Baseline) -> None:
    report = Report("gpu", tuple(one for one in gpus(1).readings if one.name != "gpu.ecc_uncorrected"))
    assert not any(name.startswith("gpu.ecc") for name, _ in facts(known, report))


def test_forgetting(known: Baseline) -> None:
    assert missing(forget(known, "0000:02:*"), gpus(1, 3)) == set()


def test_ignored_devices_are_gone_from_the_readings(known: Baseline) -> None:
    seen = facts(known, gpus(1, 3), Expectations(ignore=("0000:02:00.0", "0000:01:*")))
    assert {device for _, device in seen} == {"", "0000:03:00.0"}


def test_it_is_kept_as_json(known: Baseline) -> None:
    assert recall(json.loads(json.dumps(plain(known)))) == known


@pytest.mark.parametrize(
    "saved", [None, {}, [], 3, {"boot": "b"}, {"boot": "b", "gpus": 1, "ports": {}, "nics": {}}], ids=str
)
def test_what_is_torn_is_an_empty_baseline(saved: object) -> None:
    assert recall(saved) == Baseline()
