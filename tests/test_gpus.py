"""What a GPU's readings mean beside what it was when it was healthy. (Missing, ECC: test_baseline.py.)"""

from dataclasses import replace

import pytest

from slurm_health.baseline import Baseline, Expectations, begin, expect, learn
from slurm_health.cards import leftovers
from slurm_health.model import Card, Reading, Report, Value

A, B, C, D = (f"0000:{n:02x}:00.0" for n in (0x18, 0x2A, 0x3A, 0x5D))
LINKS = ",".join(map(str, range(18)))


def board(**changed: Value) -> dict[str, Value]:
    healthy: dict[str, Value] = {
        "lost": False, "name": "H100", "vbios": "96", "persistence": True, "mig": False, "ecc": True,
        "nvlinks_up": LINKS, "nvlinks_down": "", "fabric": "completed",
        "pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16,
        "utilization": 90, "pstate": 0,
    }  # fmt: skip
    return healthy | changed


def node(driver: str = "570", **boards: dict[str, Value]) -> Report:
    """A report of GPUs a, b, ..."""
    places = {"a": A, "b": B, "c": C, "d": D}
    readings = [Reading("gpu.driver", "", "ok"), Reading("gpu.driver_version", "", driver)]
    for name, its in boards.items():
        readings += [Reading(f"gpu.{key}", places[name], value) for key, value in its.items()]
        readings.append(Reading("gpu.uuid", places[name], f"GPU-{name}"))
    return Report("gpu", tuple(readings))


def known(report: Report, boot: str = "boot") -> Baseline:
    return learn(begin(Baseline(), boot), report)[0]


def says(baseline: Baseline | None, report: Report, name: str, device: str = A) -> Value | None:
    readings = expect(baseline, Expectations(), report)
    return {(one.name, one.device): one.value for one in readings}.get((f"gpu.{name}", device))


def words(baseline: Baseline, report: Report, name: str) -> str:
    return next(one.evidence for one in expect(baseline, Expectations(), report) if one.name == f"gpu.{name}")


HEALTHY = known(node(a=board(), b=board()))


def test_a_healthy_node_is_as_it_was() -> None:
    for baseline in (HEALTHY, None):
        report = node(a=board(), b=board())
        derived = expect(baseline, Expectations(), report)[len(report.readings) :]
        assert len(derived) > 10
        assert not any(one.value for one in derived)
    assert learn(HEALTHY, node(a=board(), b=board()))[0] is HEALTHY


def test_a_link_that_was_active_is_missed_and_named() -> None:
    down = node(a=board(nvlinks_up="0,1,2", nvlinks_down="3,7"), b=board())
    assert says(HEALTHY, down, "nvlink_down") is True
    assert words(HEALTHY, down, "nvlink_down") == "NVLink 3, 7 inactive; it was active"
    assert says(HEALTHY, down, "nvlink_down", B) is False
    assert says(learn(HEALTHY, down)[0], down, "nvlink_down") is True  # learning forgives nothing


def test_a_link_that_does_not_tell_is_not_missed() -> None:
    assert says(HEALTHY, node(a=board(nvlinks_up="0,1,2"), b=board()), "nvlink_down") is False


def test_twelve_of_eighteen_links_are_normal_where_all_have_twelve() -> None:
    few = board(nvlinks_up="0,1,2", nvlinks_down=",".join(map(str, range(3, 18))))
    report = node(a=few, b=few)
    assert says(known(report), report, "nvlink_down") is False
    assert says(known(report), report, "nvlink_fewer") is False


def test_fewer_links_than_its_like_from_the_first_look_on() -> None:
    report = node(a=board(nvlinks_up="0,1", nvlinks_down="2"), b=board(nvlinks_up="0,1,2"))
    assert [says(known(report), report, "nvlink_fewer", device) for device in (A, B)] == [True, False]


def test_boards_that_bridges_join_two_by_two_leave_others_without() -> None:
    pair, single = board(nvlinks_up="0,1,2,3"), board(nvlinks_up="", nvlinks_down="0,1,2,3")
    for boards in ({"a": pair, "b": pair, "c": single}, {"a": pair, "b": pair, "c": single, "d": single}):
        assert says(None, node(**boards), "nvlink_fewer", C) is False
    assert says(None, node(a=pair, b=pair, c=single, d=pair), "nvlink_fewer", C) is True


def test_with_mig_the_links_are_off_and_that_is_no_fault() -> None:
    assert says(HEALTHY, node(a=board(mig=True, nvlinks_up="", nvlinks_down=LINKS)), "nvlink_down") is None


def test_a_board_without_links_or_fabric_says_nothing_of_them() -> None:
    plain = {key: value for key, value in board().items() if not key.startswith(("nvlink", "fabric"))}
    report = node(a=plain)
    names = {one.name for one in expect(known(report), Expectations(), report)}
    assert not {name for name in names if name.startswith(("gpu.nvlink", "gpu.fabric"))}


def test_a_fabric_that_was_complete_is_missed_and_one_that_never_was_is_only_told() -> None:
    alone = node(a=board(fabric="in_progress"))
    assert (says(HEALTHY, alone, "fabric_lost"), says(HEALTHY, alone, "fabric_incomplete")) == (True, False)
    new = known(alone)
    assert (says(new, alone, "fabric_lost"), says(new, alone, "fabric_incomplete")) == (False, True)


@pytest.mark.parametrize("fact", ["generation", "width"])
def test_the_pcie_link_is_judged_under_load_only(fact: str) -> None:
    slow = {f"pcie_{fact}": 4}
    assert says(HEALTHY, node(a=board(**slow)), "pcie_slow") is True
    for idle in ({"utilization": 0}, {"pstate": 8}):
        assert says(HEALTHY, node(a=board(**slow, **idle)), "pcie_slow") is None
    assert says(HEALTHY, node(a=board(utilization=0)), "pcie_slow") is False  # full speed is good news always


def test_without_a_load_that_can_be_told_a_slow_link_is_not() -> None:
    mig = {key: value for key, value in board(pcie_width=8).items() if key != "utilization"}
    assert says(HEALTHY, node(a=mig), "pcie_slow") is None


def test_a_slot_that_never_gave_more_is_told_but_not_called_a_change() -> None:
    eight = node(a=board(pcie_width=8))
    assert (says(known(eight), eight, "pcie_slow"), says(known(eight), eight, "pcie_below")) == (False, True)
    narrow = node(a=board(pcie_width=8, pcie_width_max=8))
    assert says(known(narrow), narrow, "pcie_below") is False


def test_a_virtual_machine_does_not_see_its_slots() -> None:
    eight = node(a=board(pcie_width=8, virtual=True))
    assert says(known(eight), eight, "pcie_below") is None
    assert says(HEALTHY, eight, "pcie_slow") is True


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vbios": "97"}, "vbios was 96, is 97"),
        ({"persistence": False}, "persistence was on, is off"),
        ({"mig": True}, "mig was off, is on"),
        ({"ecc": False}, "ecc_mode was on, is off"),
    ],
)
def test_what_is_set_otherwise_than_it_was(changed: dict[str, Value], said: str) -> None:
    report = node(a=board(**changed))
    assert says(HEALTHY, report, "drift") is True
    assert words(HEALTHY, report, "drift") == said
    assert says(learn(HEALTHY, report)[0], report, "drift") is True
    again = learn(begin(HEALTHY, "next boot"), report)[0]
    assert says(again, report, "drift") is False  # a boot makes it meant


def test_a_gpu_that_was_swapped_is_told_until_the_next_boot() -> None:
    """No GPU changes while the machine runs; after a boot the new one is what belongs here."""
    swapped = node(a=board(), b=board())
    swapped = replace(swapped, readings=tuple(
        replace(one, value="GPU-x") if (one.name, one.device) == ("gpu.uuid", A) else one
        for one in swapped.readings
    ))  # fmt: skip
    assert words(HEALTHY, swapped, "drift") == "another GPU: GPU-a was here, GPU-x is"
    assert says(HEALTHY, swapped, "missing") is False
    assert learn(HEALTHY, swapped)[0] == HEALTHY
    after, notes = learn(begin(HEALTHY, "next boot"), swapped)
    assert notes == (f"GPU {A} was replaced: GPU-a -> GPU-x",)
    assert says(after, swapped, "drift") is False


def test_a_gpu_that_was_swapped_over_a_reboot_is_said_once() -> None:
    old, new = node(a=board(serial="1650")), node(a=board(serial="1660"))
    new = replace(new, readings=tuple(
        replace(one, value="GPU-x") if one.name == "gpu.uuid" else one for one in new.readings
    ))  # fmt: skip
    had = known(old)
    assert says(had, old, "swapped") is False
    assert says(had, new, "swapped") is False  # nobody changes a GPU of a running machine
    after, _ = learn(begin(had, "next boot"), new)
    assert says(after, new, "swapped") is True
    assert words(after, new, "swapped") == "GPU-a (serial 1650) was here, GPU-x is"
    assert says(learn(after, new)[0], new, "swapped") is False


def test_a_gpu_with_less_memory_than_it_had() -> None:
    whole, half = (node(a=board(memory_total=size)) for size in (79.6, 39.8))
    had = known(whole)
    assert says(had, whole, "memory_share") == 100
    after, _ = learn(had, half)
    assert says(after, half, "memory_share") == 50  # learning forgives nothing
    assert says(after, node(a=board()), "memory_share") is None
    assert says(None, half, "memory_share") is None


def test_a_board_keeps_the_bits_of_its_ecc_in_its_memory() -> None:
    without, with_ecc = (
        node(a=board(memory_total=size, ecc=mode)) for size, mode in ((24.0, False), (22.5, True))
    )
    assert says(known(without), with_ecc, "memory_share") is None
    after = learn(begin(known(without), "next boot"), with_ecc)[0]
    assert says(after, with_ecc, "memory_share") == 100
    assert says(after, node(a=board(memory_total=11.2)), "memory_share") == 49.8


def test_another_driver_under_a_running_node() -> None:
    assert words(HEALTHY, node("575", a=board()), "drift") == "driver was 570, is 575"


def test_a_vbios_that_most_others_do_not_have() -> None:
    odd = node(a=board(vbios="97"), b=board(), c=board(), d=board())
    assert [says(None, odd, "drift", device) for device in (A, B, C, D)] == [True, False, False, False]
    half = node(a=board(vbios="97"), b=board(vbios="97"), c=board(), d=board())
    assert not any(says(None, half, "drift", device) for device in (A, B, C, D))
    other = node(a=board(vbios="97", name="A10"), b=board(), c=board(), d=board())
    assert says(None, other, "drift") is False


# -- what is left of jobs ----------------------------------------------------------------


RUN = Card(7, 0, 1000, (A,), started=100.0)
ENDED = Card(7, 0, 1000, (A,), started=100.0, ended=200.0)


def sat(count: int = 1, **its: Value) -> tuple[Reading, ...]:
    facts: dict[str, Value] = {"processes": count, "memory_used": 4096, "mig": False} | its
    return tuple(Reading(f"gpu.{name}", A, value) for name, value in facts.items())


def whose(uid: int = 1000) -> tuple[Reading, ...]:
    said = {"uid": uid, "name": "python3", "job": 7}
    return tuple(Reading(f"process.{name}", A, value, pid=77) for name, value in said.items())  # type: ignore[arg-type]


def left(*runs: Card, gpus: tuple[Reading, ...], by: tuple[Reading, ...] = ()) -> dict[str, Value]:
    return {one.name.removeprefix("gpu."): one.value for one in leftovers(runs, gpus, by)}


def test_a_process_after_its_jobs_end() -> None:
    assert left(ENDED, gpus=sat(), by=whose()) == {"leftover": True, "leftover_memory": 0}
    [said, _] = leftovers([ENDED], sat(), whose())
    assert said.evidence == "pid 77 (python3) of uid 1000, job 7"


def test_a_process_of_a_living_job() -> None:
    assert left(RUN, gpus=sat(), by=whose()) == {"leftover": False, "leftover_memory": 0}


def test_a_process_on_a_gpu_that_another_job_holds_elsewhere() -> None:
    assert left(Card(8, 0, 1000, (B,), 100.0), gpus=sat(), by=whose())["leftover"] is True


def test_nothing_is_told_where_a_living_jobs_gpus_are_unknown() -> None:
    assert left(ENDED, Card(8, 0, 1000, None, 100.0), gpus=sat(), by=whose()) == {}


def test_nothing_is_told_without_cards_or_with_mig() -> None:
    assert left(gpus=sat(), by=whose()) == {}
    assert left(ENDED, gpus=sat(mig=True), by=whose()) == {}


def test_root_and_who_cannot_be_seen_are_no_leftovers() -> None:
    assert left(ENDED, gpus=sat(), by=whose(uid=0))["leftover"] is False
    assert left(ENDED, gpus=sat())["leftover"] is False


def test_an_empty_gpu_is_good_news_and_its_memory_a_fact() -> None:
    assert left(ENDED, gpus=sat(0)) == {"leftover": False, "leftover_memory": 4096}
    assert left(gpus=sat(0)) == {"leftover": False}
    assert left(ENDED, gpus=sat(0, drawing=2)) == {"leftover": False, "leftover_memory": 0}
