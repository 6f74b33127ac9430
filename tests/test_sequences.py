"""Faults over hours on a fake machine: each opens and closes exactly the incidents that it should."""

import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_sensing import GPU3, Node, library

from slurm_health.model import Finding, Report

__all__ = ["library"]
PORT = "mlx5_4/1"
MINUTE, HOUR = 60.0, 3600.0


class Story:
    """What a node tells over time: (seconds, what, code, device) for each incident that opens and closes."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.began = node.now
        self.standing: dict[str, Finding] = {}
        self.told: list[tuple[int, str, str, str]] = []
        # one answer of NVML's for each state of the machine: asking it at every step takes minutes
        self.gpus = node.gpus()

    def changed(self) -> None:
        self.gpus = self.node.gpus()

    def look(self, later: float, gpus: Report | None = None) -> None:
        found = {one.moment: one for one in self.node.look(later, gpus or self.gpus) if one.lasting}
        at = round(self.node.now - self.began)
        for what, ones, others in (("opened", found, self.standing), ("closed", self.standing, found)):
            new = [one for moment, one in ones.items() if moment not in others]
            self.told += sorted((at, what, one.code, one.device) for one in new)
        self.standing = found

    def goes_on(self, seconds: float, every: float = 15.0, each: Callable[[], object] = lambda: None) -> None:
        for _ in range(round(seconds / every)):
            each()
            self.look(every)

    def inject(self, fault: str, **how: object) -> None:
        self.node.machine.inject(fault, **how)  # type: ignore[arg-type]
        self.changed()

    def clear(self) -> None:
        self.node.machine.clear()
        self.changed()

    @property
    def changes(self) -> list[tuple[str, str]]:
        """What opened (+) and closed (-), in order."""
        return [("+" if what == "opened" else "-") + code for _, what, code, _ in self.told]

    def count(self, counter: str, by: int) -> Callable[[], object]:
        """Have a counter of the port rise."""
        file = self.node.host.path(f"sys/class/infiniband/mlx5_4/ports/1/counters/{counter}")
        return lambda: file.write_text(f"{int(file.read_text()) + by}\n")


@pytest.fixture
def story(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(tmp_path / "nvml"))
    node = Node(tmp_path, library)
    yield Story(node)
    node.worker.stop()
    node.log.close()


def test_a_healthy_day(story: Story) -> None:
    story.goes_on(24 * HOUR, every=10 * MINUTE)
    assert story.told == []


# -- links -------------------------------------------------------------------------------


def flap(story: Story, times: int) -> None:
    for _ in range(times):
        story.inject("ib-down", port=4)
        story.goes_on(10, every=1)
        story.clear()
        story.goes_on(20, every=1)


def test_a_link_that_is_lost_once(story: Story) -> None:
    flap(story, 1)
    story.goes_on(HOUR, every=5)
    assert story.told == [(6, "opened", "IB_PORT_DOWN", PORT), (45, "closed", "IB_PORT_DOWN", PORT)]


def test_what_comes_back_again_and_again_is_watched_longer(story: Story) -> None:
    for _ in range(4):
        story.inject("nic-down", port=1)
        story.goes_on(10, every=1)
        story.clear()
        while any(one.code == "NIC_DOWN" for one in story.standing.values()):
            assert story.node.now < story.began + HOUR
            story.look(1)
        story.goes_on(10, every=1)
    times = [at for at, _, code, _ in story.told if code == "NIC_DOWN"]
    lasted = [closed - opened for opened, closed in zip(times[::2], times[1::2], strict=True)]
    assert lasted == [35, 65, 125, 245]  # and so on: 30 s of a link that is up, doubled


def test_a_link_that_flaps_is_one_incident_until_it_rests(story: Story) -> None:
    flap(story, 6)
    downs = [one for one in story.told if one[2] == "IB_PORT_DOWN"]
    assert downs == [(6, "opened", "IB_PORT_DOWN", PORT)]
    assert ("opened", "IB_FLAP", PORT) in [one[1:] for one in story.told]
    story.goes_on(6 * HOUR, every=10 * MINUTE)
    assert story.changes == ["+IB_PORT_DOWN", "+IB_FLAP", "-IB_PORT_DOWN", "-IB_FLAP"]


def test_a_link_that_decays_slowly(story: Story) -> None:
    story.goes_on(6 * HOUR, 10 * MINUTE, story.count("symbol_error", 10))  # 60 an hour: within what is normal
    assert story.told == []
    story.goes_on(3 * HOUR, 10 * MINUTE, story.count("symbol_error", 30))
    assert story.changes == ["+IB_ERRORS"]
    story.goes_on(6 * HOUR, 10 * MINUTE)
    assert story.changes == ["+IB_ERRORS", "-IB_ERRORS"]


def test_a_counter_at_its_end_and_reset(story: Story) -> None:
    file = story.node.host.path("sys/class/infiniband/mlx5_4/ports/1/counters/symbol_error")
    file.write_text("65535\n")  # in one look: an adapter that counted while nobody looked
    story.node.memory = {**story.node.memory, "windows": {}}
    story.goes_on(6 * HOUR, 10 * MINUTE)
    assert story.told == []  # what it shows says nothing of when
    file.write_text("0\n")  # an admin resets it (perfquery -R)
    story.goes_on(HOUR, 10 * MINUTE)
    story.goes_on(HOUR, 10 * MINUTE, story.count("symbol_error", 10))
    assert story.told == []
    story.goes_on(2 * HOUR, 10 * MINUTE, story.count("symbol_error", 100))
    assert story.changes == ["+IB_ERRORS"]
    file.write_text("65535\n")
    story.goes_on(6 * HOUR, 10 * MINUTE)
    assert story.changes == ["+IB_ERRORS"]  # it goes on, unseen: not good news
    file.write_text("0\n")
    story.goes_on(3 * HOUR, 10 * MINUTE)
    assert story.changes == ["+IB_ERRORS", "-IB_ERRORS"]


# -- GPUs --------------------------------------------------------------------------------


def test_a_row_waits_to_be_remapped_and_then_cannot_be(story: Story) -> None:
    story.inject("remap-pending", gpu=3)
    story.goes_on(10 * MINUTE)
    assert story.told == [(15, "opened", "GPU_REMAP_PENDING", GPU3)]
    story.inject("remap-failed", gpu=3)
    story.goes_on(10 * MINUTE)
    assert story.told[1:] == [(615, "opened", "GPU_REMAP_FAILED", GPU3)]
    story.clear()  # the GPU was replaced
    story.goes_on(10 * MINUTE)
    assert sorted(story.changes[2:]) == ["-GPU_REMAP_FAILED", "-GPU_REMAP_PENDING"]


def test_a_gpu_that_is_lost_and_comes_back(story: Story) -> None:
    for fault in ("gpu-lost", "gpu-gone"):
        story.told = []
        story.inject(fault, gpu=3)
        story.goes_on(HOUR)
        story.clear()
        story.goes_on(HOUR)
        assert [(what, code, device) for _, what, code, device in story.told] == [
            ("opened", "GPU_MISSING", GPU3),
            ("closed", "GPU_MISSING", GPU3),
        ]


def test_clocks_that_are_held_down_for_seconds_and_for_minutes(story: Story) -> None:
    for _ in range(3):
        story.inject("throttle", gpu=3, text="thermal")
        story.goes_on(15)
        story.clear()
        story.goes_on(5 * MINUTE)
    assert story.told == []
    story.inject("throttle", gpu=3, text="thermal")
    story.goes_on(3 * MINUTE)
    assert [(code, device) for _, _, code, device in story.told] == [("GPU_THROTTLED", GPU3)]
    story.clear()
    story.goes_on(HOUR)
    assert story.changes == ["+GPU_THROTTLED", "-GPU_THROTTLED"]


class Counted(Story):
    """A GPU whose driver counts how long its clocks were held down."""

    held = 0.0

    def hold(self, seconds: float, key: str = "hw-thermal-time") -> None:
        """They were, since the last look; nothing shows of it now."""
        self.held += seconds
        self.node.machine.inject("nvml", gpu=3, text=f"{key} {self.held * 1e9:.0f}")
        self.changed()


@pytest.fixture
def counted(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(tmp_path / "nvml"))
    monkeypatch.setattr("slurm_health.sandbox.sysfs.DRIVER", "590.44")
    node = Node(tmp_path, library)
    yield Counted(node)
    node.worker.stop()
    node.log.close()


@pytest.mark.parametrize("key", ["hw-thermal-time", "power-brake-time"])
def test_clocks_that_are_held_down_between_looks(counted: Counted, key: str) -> None:
    counted.hold(0, key)
    counted.goes_on(15)
    for _ in range(4):
        counted.hold(5, key)  # at the start of a load
        counted.goes_on(5 * MINUTE)
    assert counted.told == []
    for _ in range(8):
        counted.hold(12, key)
        counted.goes_on(30)
    assert [(what, code, device) for _, what, code, device in counted.told] == [
        ("opened", "GPU_THROTTLED", GPU3)
    ]
    counted.goes_on(HOUR)
    assert counted.changes == ["+GPU_THROTTLED", "-GPU_THROTTLED"]


def test_a_short_throttle_at_each_look_is_not_taken_for_a_long_one(counted: Counted) -> None:
    counted.hold(0)
    counted.look(15)
    counted.node.machine.inject("throttle", gpu=3, text="thermal")
    for _ in range(24):
        counted.hold(1)  # a second of each quarter of a minute, always when it is looked at
        counted.look(15)
    assert counted.told == []


def test_a_driver_that_hangs_and_comes_back(story: Story) -> None:
    story.node.machine.inject("driver-hang")
    asked = time.monotonic()
    story.node.worker.ask(asked)
    for deadline in range(1, 5):
        report = story.node.worker.overdue(asked + deadline * 10.1)
        assert report is not None
        story.look(10.0, report)
    assert story.told == [(10, "opened", "GPU_DRIVER_HUNG", "")]
    story.node.machine.clear()
    select.select([story.node.worker.fileno()], [], [], 10)
    late = story.node.worker.answer(time.monotonic())
    assert late is not None
    story.look(15.0, late)
    story.changed()
    story.goes_on(HOUR)
    assert story.told[1:] == [(85, "closed", "GPU_DRIVER_HUNG", "")]


def test_a_driver_that_fails_and_comes_back(story: Story) -> None:
    story.inject("driver-failed")
    story.look(2.0)
    story.look(2.0)
    assert story.told == []  # reloading it takes a moment
    story.look(2.0)
    assert story.changes == ["+GPU_DRIVER_FAILED"]
    story.clear()
    story.goes_on(HOUR)
    assert story.changes == ["+GPU_DRIVER_FAILED", "-GPU_DRIVER_FAILED"]


def test_a_reboot_in_the_middle(story: Story) -> None:
    from slurm_health import baseline, rules

    story.inject("gpu-lost", gpu=3)
    story.goes_on(MINUTE)
    story.clear()
    story.node.memory = rules.begin(story.node.memory, "another boot")
    story.node.known = baseline.begin(story.node.known, "another boot")
    assert story.changes == ["+GPU_MISSING"]
    story.goes_on(HOUR)
    assert story.changes == ["+GPU_MISSING", "-GPU_MISSING"]
