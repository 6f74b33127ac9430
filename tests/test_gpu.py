"""GPUs: what NVML says, what it does not, and the process it lives in when it fails, hangs or dies."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nodes
import pytest

import slurm_health
from slurm_health.baseline import Baseline, Expectations, begin, expect, learn
from slurm_health.host import Host
from slurm_health.model import Reading, Report, Value
from slurm_health.probes.gpu import Worker, pci
from slurm_health.probes.gpu.board import SLOW, Board
from slurm_health.probes.gpu.library import Library
from slurm_health.probes.gpu.worker import GRACE, PATIENCE, _Process, _started
from slurm_health.probes.nvidia import address, recovery_action
from slurm_health.probes.pcie import Bus

SOURCE = Path(slurm_health.__file__).parent / "sandbox/nvml.c"
LOST, UNKNOWN, NOT_SUPPORTED, MISMATCH, NO_PERMISSION = 15, 999, 3, 18, 4  # nvmlReturn_t
GPUS = ("0000:18:00.0", "0000:2a:00.0", "0000:3a:00.0")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not SOURCE.exists():
        pytest.skip("no C compiler for the fake NVML")
    target = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", target, SOURCE, "-lpthread"], check=True)
    return str(target)


class Machine:
    """Three GPUs on PCI, and the text that the fake library answers from."""

    def __init__(self, root: Path, library: str) -> None:
        self.root = root
        self.library = library
        self.host = Host(root)
        self.state = root / "nvml"
        for name in GPUS:
            nodes.gpu(root, name)
        self.set()

    def set(self, *lines: str, gpus: int = len(GPUS), driver: str = "570.1") -> None:
        rows = [f"gpu {n} {GPUS[n]} GPU-{n} 165{n} {n} NVIDIA H100" for n in range(gpus)]
        draft = self.state.with_suffix(".new")
        draft.write_text("\n".join([f"driver {driver}", *rows, *lines, "end", ""]))
        draft.replace(self.state)


@pytest.fixture
def machine(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, library)
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(made.state))
    return made


@pytest.fixture
def worker(machine: Machine) -> Iterator[Worker]:
    made = Worker(machine.host, machine.library, deadline=10.0, folder=machine.root)
    yield made
    pid = made.pid
    made.stop()
    assert not pid or not _started(pid)


def get(worker: Worker, now: float | None = None) -> Report:
    """Ask and wait for the answer."""
    worker.ask(time.monotonic() if now is None else now)
    return wait(worker)


def wait(worker: Worker) -> Report:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        select.select([worker.fileno()], [], [], 20)
        if report := worker.answer(time.monotonic()):
            return report
    raise AssertionError("no answer")


def facts(report: Report) -> dict[tuple[str, str], Value]:
    return {(one.name, one.device): one.value for one in report.readings}


def driver(report: Report) -> Value | None:
    return facts(report).get(("gpu.driver", ""))


# -- what is read ------------------------------------------------------------------------


def test_a_healthy_node(worker: Worker) -> None:
    report = get(worker)
    assert report.error == ""
    seen = facts(report)
    assert seen["gpu.driver", ""] == "ok"
    assert seen["gpu.driver_version", ""] == "570.1"
    assert {key[0].removeprefix("gpu."): value for key, value in seen.items() if key[1] == GPUS[1]} == (
        {"uuid": "GPU-1", "serial": "1651", "name": "NVIDIA H100", "vbios": "96.00.89.00.01", "minor": 1}
        | {"index": 1}
        | {"lost": False, "on_pci": True, "kernel_driver": "nvidia", "recovery_action": "none"}
        | {"ecc_uncorrected": 0, "ecc_aggregate": 0, "sram_threshold": False}
        | {"remap_pending": False, "remap_failed": False}
        | {"pages_pending": False, "pages_retired": 0, "fan_failed": False}
        | {"persistence": True, "mig": False, "ecc": True}
        | {"nvlinks_up": ",".join(map(str, range(18))), "nvlinks_down": ""}
        | {"nvlink_crc": 0, "nvlink_replay": 0, "nvlink_recovery": 0}
        | {"fabric": "completed", "fabric_health": "healthy"}
        | {"temperature": 34, "memory_temperature": 39}
        | {"slowdown_margin": 58, "shutdown_margin": 61, "memory_margin": 56}
        | {"hw_thermal": False, "hw_power_brake": False, "hw_slowdown": False, "sw_thermal": False}
        | {"pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16}
        | {
            "pcie_replay": 0,
            "pstate": 0,
            "utilization": 0,
            "memory_total": 79.6,
            "memory_used": 0,
            "processes": 0,
            "drawing": 0,
            "virtual": False,
        }
    )


@pytest.mark.parametrize("limit", [8, 4294967288])
def test_a_limit_that_is_no_temperature_is_none(machine: Machine, worker: Worker, limit: int) -> None:
    machine.set(f"set 1 shutdown {limit}", f"set 1 slowdown {limit}", f"set 1 memory-limit {limit}")
    assert not {name for name, device in facts(get(worker)) if "_margin" in name and device == GPUS[1]}


def test_memory_that_linux_shares_is_not_told_as_in_use(machine: Machine, worker: Worker) -> None:
    machine.set("set 0 addressing 2", "set 0 memory-used 2147483648", "set 0 virtualization 1")
    seen = facts(get(worker))
    assert ("gpu.memory_used", GPUS[0]) not in seen
    assert seen["gpu.memory_total", GPUS[0]] == 79.6
    assert (seen["gpu.virtual", GPUS[0]], seen["gpu.virtual", GPUS[1]]) == (True, False)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("set 1 ecc-volatile 7", "gpu.ecc_uncorrected", 7),
        ("set 1 remap-pending 1", "gpu.remap_pending", True),
        ("set 1 remap-failed 1", "gpu.remap_failed", True),
        ("set 1 recovery 4", "gpu.recovery_action", "drain_and_reset"),
        ("set 1 recovery 42", "gpu.recovery_action", "unknown_42"),
        ("set 1 lost 1", "gpu.lost", True),
        ("set 1 ecc-aggregate 9", "gpu.ecc_aggregate", 9),
        ("set 1 sram-threshold 1", "gpu.sram_threshold", True),
        ("set 1 retired-pending 1", "gpu.pages_pending", True),
        ("set 1 retired-dbe 12", "gpu.pages_retired", 12),
        ("set 1 nvlinks-down 136", "gpu.nvlinks_down", "3,7"),
        ("link 1 5 crc 4", "gpu.nvlink_crc", 4),
        ("link 1 5 replay 5", "gpu.nvlink_replay", 5),
        ("link 1 5 recovery 6", "gpu.nvlink_recovery", 6),
        ("set 1 throttle 72", "gpu.hw_thermal", True),
        ("set 1 throttle 136", "gpu.hw_power_brake", True),
        ("set 1 throttle 8", "gpu.hw_slowdown", True),
        ("set 1 throttle 36", "gpu.sw_thermal", True),
        ("set 1 temperature 91", "gpu.slowdown_margin", 1),
        ("set 1 temperature 91", "gpu.shutdown_margin", 4),
        ("set 1 memory-temperature 97", "gpu.memory_margin", -2),
        ("set 1 fan -1", "gpu.fan_failed", True),
        ("set 1 link-width 8", "gpu.pcie_width", 8),
        ("set 1 link-gen 1", "gpu.pcie_generation", 1),
        ("set 1 replay 67", "gpu.pcie_replay", 67),
        ("set 1 fabric 2", "gpu.fabric", "in_progress"),
        ("set 1 fabric-status 999", "gpu.fabric", "failed"),
        ("set 1 fabric-mask 410", "gpu.fabric_health", "unhealthy route"),
        ("set 1 persistence 0", "gpu.persistence", False),
        ("set 1 mig 1", "gpu.mig", True),
        ("vbios 1 96.00.74.00.0D", "gpu.vbios", "96.00.74.00.0D"),
        ("set 1 memory-used 2147483648", "gpu.memory_used", 2048),
        ("process 1 77 1073741824", "gpu.process", 77),
    ],
)
def test_what_is_wrong_is_read(machine: Machine, worker: Worker, line: str, name: str, value: Value) -> None:
    get(worker)
    machine.set(line)
    for _ in range(SLOW):  # some of it is not asked each time
        seen = facts(get(worker))
        if seen.get((name, GPUS[1])) == value:
            break
    assert seen[name, GPUS[1]] == value
    assert seen.get((name, GPUS[0])) != value


def own(report: Report, device: str = GPUS[0]) -> dict[str, Value]:
    return {name: value for (name, where), value in facts(report).items() if where == device}


def test_a_hardware_slowdown_that_has_a_reason_is_told_once(machine: Machine, worker: Worker) -> None:
    machine.set("set 0 throttle 72")
    seen = own(get(worker))
    assert (seen["gpu.hw_thermal"], seen["gpu.hw_slowdown"]) == (True, False)


def test_the_load_and_the_admin_do_not_throttle(machine: Machine, worker: Worker) -> None:
    machine.set(f"set 0 throttle {0x1 | 0x2 | 0x4 | 0x10 | 0x100}")
    seen = own(get(worker))
    assert not any(
        seen[f"gpu.{name}"] for name in ("hw_thermal", "hw_power_brake", "hw_slowdown", "sw_thermal")
    )


def test_limits_relative_to_the_boards_own_as_from_ada_on(machine: Machine, worker: Worker) -> None:
    machine.set("set 0 margin 56", "set 0 slowdown-margin -2", "set 0 shutdown-margin -8")
    seen = own(get(worker))
    assert (seen["gpu.slowdown_margin"], seen["gpu.shutdown_margin"]) == (58, 64)


def test_link_errors_name_the_links(machine: Machine, worker: Worker) -> None:
    machine.set("link 0 3 crc 12", "link 0 17 crc 1")
    [crc] = [one for one in get(worker).readings if one.name == "gpu.nvlink_crc" and one.device == GPUS[0]]
    assert (crc.value, crc.evidence) == (13, "by link 3: 12, 17: 1")


def test_links_as_boards_before_hopper_tell_of_them(machine: Machine, worker: Worker) -> None:
    machine.set(
        "set 0 nvlinks 12", "set 0 nvlinks-down 2", "link 0 3 crc 12",
        *(f"fail field{n} -1 {NOT_SUPPORTED}" for n in (161, 162, 163, 165)),
    )  # fmt: skip
    seen = own(get(worker))
    assert (seen["gpu.nvlinks_down"], seen["gpu.nvlink_crc"], seen["gpu.nvlink_recovery"]) == ("1", 12, 0)


def test_links_as_blackwell_counts_them(machine: Machine, worker: Worker) -> None:
    what = ("overrun", "receive", "integrity", "discards", "recovery-failed", "recovery", "symbol")
    machine.set(
        "set 0 nvlink5 1",
        *(f"link 0 3 {name} {number}" for number, name in enumerate(what, 1)),
        f"link 0 7 symbol-ber {4 << 8 | 11}",
        f"link 0 8 symbol-ber {9 << 8 | 13}",
    )
    report = get(worker)
    seen = {
        name.removeprefix("gpu.nvlink_"): value for name, value in own(report).items() if "nvlink_" in name
    }
    assert seen == {
        **{name.replace("-", "_"): number for number, name in enumerate(what, 1)},
        "symbol_ber": 4e-11,
        "effective_ber": 15e-255,  # no errors
    }
    said = {one.name: one.evidence for one in report.readings if one.device == GPUS[0]}
    assert (said["gpu.nvlink_overrun"], said["gpu.nvlink_symbol_ber"]) == ("by link 3: 1", "4e-11 on link 7")
    assert own(report, GPUS[1])["gpu.nvlink_crc"] == 0  # Hopper has none of these
    assert "gpu.nvlink_symbol" not in own(report, GPUS[1])


def test_link_counts_that_are_blank_or_fail_are_no_reading(machine: Machine, worker: Worker) -> None:
    machine.set(
        "set 0 nvlink5 1",
        *(f"link 0 {link} receive {2**32 - 1}" for link in range(18)),
        *(f"fail field{number} -1 {code}" for number, code in ((211, NOT_SUPPORTED), (222, UNKNOWN))),
    )
    seen = own(get(worker))
    assert not {"gpu.nvlink_receive", "gpu.nvlink_integrity", "gpu.nvlink_symbol_ber"} & seen.keys()
    assert seen["gpu.nvlink_recovery"] == 0


HELD = ("set 0 sw-thermal-time 1500000000", "set 0 hw-thermal-time 2999999999", "set 0 power-brake-time 0")


@pytest.mark.parametrize("driver", ["575.51", "580.65", "590.44"])
def test_how_long_clocks_were_held_down_is_counted(machine: Machine, worker: Worker, driver: str) -> None:
    """Their numbers moved with R590; what stands there in other drivers is not taken for them."""
    machine.set(*HELD, "set 0 throttle 72", "set 0 nvlink5 1", driver=driver)
    first = own(get(worker))
    assert [first[f"gpu.{name}_time"] for name in ("sw_thermal", "hw_thermal", "hw_power_brake")] == [
        1500, 2999, 0
    ]  # fmt: skip
    assert first["gpu.hw_thermal"] is True  # one look cannot tell a rise
    assert {name for name in own(get(worker)) if "thermal" in name or "brake" in name} == {
        "gpu.sw_thermal_time", "gpu.hw_thermal_time", "gpu.hw_power_brake_time"
    }  # fmt: skip
    assert "gpu.hw_thermal_time" not in own(get(worker), GPUS[1])  # not supported: sampled as ever
    assert own(get(worker), GPUS[1])["gpu.hw_thermal"] is False


@pytest.mark.parametrize("driver", ["570.124", "", "x"])
def test_older_drivers_count_heat_alone(machine: Machine, worker: Worker, driver: str) -> None:
    machine.set(*HELD, "set 0 nvlink5 1", driver=driver or "0")
    get(worker)
    seen = own(get(worker))
    assert seen["gpu.sw_thermal_time"] == 1500
    assert "gpu.sw_thermal" not in seen
    assert not {"gpu.hw_thermal_time", "gpu.hw_power_brake_time"} & seen.keys()
    assert seen["gpu.hw_thermal"] is False


def test_another_field_in_the_place_of_a_count_is_no_reading(machine: Machine) -> None:
    """A driver that numbers the fields otherwise than we think: power smoothing, of another type."""
    machine.set(*HELD, "set 0 nvlink5 1", driver="570.124")
    library = Library(machine.library)
    library.ask()
    board = Board(library.nvml, library.nvml.nvmlDeviceGetHandleByIndex(0), "580.65")
    seen = [{name: value for name, _, value, *_ in board.read()} for _ in range(2)][1]
    assert library.nvml.nvmlDeviceGetFieldValues(board.handle, [252])[0].nvmlReturn == 0
    assert "gpu.hw_thermal_time" not in seen
    assert seen["gpu.hw_thermal"] is False


def test_an_older_fabric_call(machine: Machine, worker: Worker) -> None:
    machine.set("set 0 fabric-summary -1000", f"fail nvmlDeviceGetGpuFabricInfoV 1 {13}")
    report = get(worker)
    assert own(report)["gpu.fabric_health"] == "healthy"
    assert own(report, GPUS[1])["gpu.fabric"] == "completed"
    assert "gpu.fabric_health" not in own(report, GPUS[1])


def test_a_plain_board_has_no_reading_of_what_it_lacks(machine: Machine, worker: Worker) -> None:
    """A board for workstations: no ECC, NVLink, MIG, fabric, no memory sensor; a fan."""
    lacks = ("memory-temperature", "memory-limit", "mig", "sram-threshold", "retired-pending")
    machine.set(
        *(f"set 0 {key} -1000" for key in lacks),
        *("set 0 ecc 0", "set 0 nvlinks 0", "set 0 fabric 0", "set 0 fan 40"),
    )
    seen = own(get(worker))
    assert seen["gpu.fan_failed"] is False
    absent = (
        "ecc_uncorrected",
        "ecc_aggregate",
        "sram",
        "nvlink",
        "fabric",
        "memory_temperature",
        "memory_margin",
        "mig",
        "pages",
    )
    assert not [name for name in seen if name.removeprefix("gpu.").startswith(absent)]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, 13, 6, UNKNOWN])
def test_every_call_may_fail_by_itself(machine: Machine, worker: Worker, tmp_path: Path, code: int) -> None:
    """Each call that a pass makes fails in turn: the others' readings stay, and none becomes zero."""
    whole = own(get(worker))
    calls = set(re.findall(r"nvmlDeviceGet\w+", SOURCE.read_text()))
    calls -= {"nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetPciInfo_v3"}
    assert len(calls) > 30
    for call in sorted(calls):
        machine.set(f"fail {call} -1 {code}")
        for _ in range(SLOW):  # then everything was asked again
            report = get(worker)
            assert driver(report) == "ok", call
        seen = own(report)
        assert not {name for name in seen if seen[name] != whole.get(name)} - {"gpu.fan_failed"}, call
        machine.set()


@pytest.mark.parametrize("code", [NOT_SUPPORTED, 13, 6, UNKNOWN])
def test_what_is_not_supported_is_no_reading_and_no_zero(machine: Machine, worker: Worker, code: int) -> None:
    fields = (4, 6, 29, 30, 31, 38, 45, 52, 59, 82, 91, 94, 144, 145, 161, 162, 163, 165, 193, 194, 230)
    machine.set(*(f"fail field{field} -1 {code}" for field in fields))
    report = get(worker)
    assert driver(report) == "ok"
    assert not {name.removeprefix("gpu.") for name in own(report)} & {
        *("ecc_uncorrected", "ecc_aggregate", "remap_pending", "remap_failed", "recovery_action"),
        *("pages_pending", "pages_retired", "pcie_replay", "memory_temperature", "memory_margin"),
        *("nvlink_crc", "nvlink_replay", "nvlink_recovery"),
    }


@pytest.mark.parametrize("number", [2**32 - 1, 2**64 - 1])
def test_all_ones_are_no_reading(number: int) -> None:
    answer = SimpleNamespace(valueType=3, value=SimpleNamespace(ullVal=number))  # UNSIGNED_LONG_LONG
    assert Board._number(SimpleNamespace(nvml=Library("").nvml), answer) is None  # type: ignore[arg-type]
    answer.value.ullVal = 7
    assert Board._number(SimpleNamespace(nvml=Library("").nvml), answer) == 7  # type: ignore[arg-type]


def test_a_gpu_lost_before_it_was_ever_seen(machine: Machine, worker: Worker) -> None:
    machine.set("set 2 lost 1")
    report = get(worker)
    assert driver(report) == "ok"
    assert facts(report)["gpu.lost", ""] is True
    missing = facts(Report("gpu", expect(None, Expectations(), report)))
    assert missing["gpu.missing", ""] is True
    known, _ = learn(begin(Baseline(), "b"), Report("gpu", get_healthy(machine)))
    missing = facts(Report("gpu", expect(known, Expectations(), report)))
    assert missing["gpu.missing", GPUS[2]] is True
    assert missing["gpu.missing", ""] is False


def get_healthy(machine: Machine) -> tuple[Reading, ...]:
    machine.set()
    fresh = Worker(machine.host, machine.library)
    try:
        return get(fresh).readings
    finally:
        fresh.stop()


def test_the_failing_of_one_gpu_is_the_drivers_failing(machine: Machine, worker: Worker) -> None:
    machine.set(f"fail nvmlDeviceGetHandleByIndex_v2 -1 {UNKNOWN}")
    report = get(worker)
    assert driver(report) == "failed"
    assert "GPU 0" in report.readings[0].evidence
    machine.set()
    assert driver(get(worker)) == "ok"


def test_gpus_that_are_not_ours_to_see_are_no_fault(machine: Machine, worker: Worker) -> None:
    machine.set(f"fail nvmlDeviceGetHandleByIndex_v2 -1 {NO_PERMISSION}")
    assert driver(get(worker)) == "ok"


# -- a driver that cannot be talked to ------------------------------------------------


def test_a_failed_driver_is_a_fact_and_so_is_its_coming_back(machine: Machine, worker: Worker) -> None:
    assert driver(get(worker)) == "ok"
    pid = worker.pid
    machine.set(f"init {MISMATCH}")
    report = get(worker)
    assert driver(report) == "failed"
    assert "mismatch" in report.readings[0].evidence.lower()
    assert facts(report)["gpu.on_pci", GPUS[0]] is True
    machine.set()
    assert driver(get(worker)) == "ok"
    assert worker.pid == pid


def test_a_missing_library_with_bound_gpus_is_a_failed_driver(machine: Machine) -> None:
    worker = Worker(machine.host, "/nowhere/libnvidia-ml.so.1")
    assert driver(get(worker)) == "failed"
    worker.stop()


@pytest.mark.parametrize(("name", "error"), [("vfio-pci", True), ("nouveau", True), ("", True)])
def test_gpus_given_to_somebody_else_are_no_fault(tmp_path: Path, name: str, error: bool) -> None:
    nodes.gpu(tmp_path, GPUS[0], driver=name)
    worker = Worker(Host(tmp_path), "/nowhere/libnvidia-ml.so.1")
    report = get(worker)
    assert driver(report) is None
    assert bool(report.error) is error
    worker.stop()


def test_an_unbound_gpu_beside_a_loaded_module_is_a_failed_driver(tmp_path: Path) -> None:
    nodes.gpu(tmp_path, GPUS[0], driver="")
    nodes.write(tmp_path, {"sys/module/nvidia/version": "570.1"})
    worker = Worker(Host(tmp_path), "/nowhere/libnvidia-ml.so.1")
    assert driver(get(worker)) == "failed"
    worker.stop()


def test_a_machine_without_gpus_says_nothing(tmp_path: Path) -> None:
    nodes.gpu(tmp_path, "0000:00:1f.3", kind="0x040300")  # NVIDIA, but sound
    worker = Worker(Host(tmp_path), "/nowhere/libnvidia-ml.so.1")
    report = get(worker)
    assert (report.readings, report.error) == ((), "")
    expecting = Worker(Host(tmp_path), "/nowhere/libnvidia-ml.so.1", expected=True)
    assert driver(get(expecting)) == "failed"
    worker.stop()
    expecting.stop()


def test_a_library_that_failed_is_initialised_anew() -> None:
    """A real NVML that was initialised before its driver went away never sees the one that came back."""
    library = Library("")
    calls: list[str] = []

    class Nvml:
        NVMLError = library.nvml.NVMLError
        NVML_ERROR_GPU_IS_LOST = LOST

        def __getattr__(self, name: str) -> object:
            def call() -> int:
                calls.append(name)
                if name == "nvmlDeviceGetCount" and calls.count(name) == 2:
                    raise self.NVMLError(UNKNOWN)
                return 0

            return call

    library.nvml = Nvml()
    assert [bool(library.ask()["error"]) for _ in range(3)] == [False, True, False]
    assert [name for name in calls if name != "nvmlSystemGetDriverVersion"] == [
        "nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetCount",
        "nvmlShutdown", "nvmlInit", "nvmlDeviceGetCount",
    ]  # fmt: skip


# -- a driver that hangs -------------------------------------------------------------


def hang(machine: Machine, worker: Worker) -> float:
    """Let the library hang in a call that was asked for, and say when it was asked."""
    get(worker)
    machine.set("hang *")
    now = time.monotonic()
    worker.ask(now)
    return now


def test_a_hang_is_told_after_the_deadline_and_once_a_deadline(machine: Machine, worker: Worker) -> None:
    asked = hang(machine, worker)
    assert worker.overdue(asked + 9.9) is None
    report = worker.overdue(asked + 10.1)
    assert report is not None
    assert driver(report) == "hung"
    assert facts(report)["gpu.on_pci", GPUS[0]] is True
    assert worker.overdue(asked + 12) is None
    assert worker.overdue(asked + 21) is not None


def test_a_hang_starts_no_second_process_and_no_second_question(machine: Machine, worker: Worker) -> None:
    asked = hang(machine, worker)
    pid = worker.pid
    for seconds in (1, 11, 31):
        worker.ask(asked + seconds)
        worker.overdue(asked + seconds)
    assert worker.pid == pid
    machine.set()
    assert driver(wait(worker)) == "ok"  # the late answer is recovery
    assert worker.answer(time.monotonic()) is None
    assert worker.overdue(time.monotonic() + 100) is None
    assert driver(get(worker)) == "ok"
    assert worker.pid == pid


def test_a_hang_is_left_in_peace_for_a_minute_then_told_to_end(machine: Machine, worker: Worker) -> None:
    asked = hang(machine, worker)
    pid = worker.pid
    worker.overdue(asked + 10 + PATIENCE - 1)
    assert _started(pid)
    worker.overdue(asked + 10 + PATIENCE + 1)
    assert _Process(pid).gone(5)
    machine.set()
    worker.overdue(asked + 10 + PATIENCE + 2)
    assert driver(get(worker)) == "ok"
    assert worker.pid not in (0, pid)


def test_sigkill_comes_last(machine: Machine, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(_Process, "signal", lambda self, number: sent.append(number))
    asked = hang(machine, worker)
    late = asked + 10 + PATIENCE
    for seconds in (1, 2, GRACE, GRACE + 2):
        worker.overdue(late + seconds)
    assert sent == [signal.SIGTERM, signal.SIGKILL]
    monkeypatch.undo()


def test_stop_ends_a_hanging_process_soon(machine: Machine, worker: Worker) -> None:
    hang(machine, worker)
    pid = worker.pid
    began = time.monotonic()
    assert worker.stop() is True
    assert time.monotonic() - began < 1
    assert not _started(pid)
    assert not (machine.root / "gpu-worker.pid").exists()


def test_stop_kills_what_does_not_end(machine: Machine, worker: Worker) -> None:
    get(worker)
    os.kill(worker.pid, signal.SIGSTOP)  # SIGTERM waits until it is continued
    pid = worker.pid
    began = time.monotonic()
    assert worker.stop() is True
    assert time.monotonic() - began < 2
    assert not _started(pid)


# -- the process -------------------------------------------------------------------------


def test_a_process_that_dies_is_told_and_replaced(worker: Worker) -> None:
    get(worker)
    pid = worker.pid
    os.kill(pid, signal.SIGSTOP)
    worker.ask(time.monotonic())
    os.kill(pid, signal.SIGSEGV)
    os.kill(pid, signal.SIGCONT)
    report = wait(worker)
    assert "signal 11" in report.error
    assert driver(report) is None
    assert driver(get(worker)) == "ok"
    assert worker.pid not in (0, pid)


def test_a_process_that_died_between_two_questions(worker: Worker) -> None:
    get(worker)
    os.kill(worker.pid, signal.SIGKILL)
    select.select([worker.fileno()], [], [], 5)
    assert worker.answer(time.monotonic()) is None
    assert driver(get(worker)) == "ok"


def test_no_second_process_beside_one_of_an_earlier_daemon(machine: Machine, worker: Worker) -> None:
    asked = hang(machine, worker)
    old = worker.pid
    next_daemon = Worker(machine.host, machine.library, folder=machine.root)
    next_daemon._orphan.signal = lambda number: None  # type: ignore[union-attr,method-assign]  # it cannot be ended
    next_daemon.ask(asked)
    next_daemon.ask(asked + 1)
    assert next_daemon.pid == 0
    report = next_daemon.overdue(asked + 11)
    assert report is not None
    assert driver(report) == "hung"
    os.kill(old, signal.SIGKILL)
    assert _Process(old).gone(5)
    next_daemon.overdue(asked + 12)
    machine.set()
    assert driver(get(next_daemon)) == "ok"
    next_daemon.stop()


def test_an_earlier_process_is_told_to_end(machine: Machine, worker: Worker) -> None:
    hang(machine, worker)
    old = worker.pid
    next_daemon = Worker(machine.host, machine.library, folder=machine.root)
    next_daemon.ask(time.monotonic())
    assert _Process(old).gone(5)
    machine.set()
    assert driver(get(next_daemon)) == "ok"
    next_daemon.stop()


def test_a_number_used_again_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "gpu-worker.pid").write_text(f"{os.getpid()} 1\n")
    assert _Process.noted(tmp_path / "gpu-worker.pid") is None
    _Process(os.getpid(), "1").signal(signal.SIGKILL)  # we still live


@pytest.mark.parametrize("text", ["", "x", "1 2 3", "\0", "99999999999 1", "-1 1", "0 1"])
def test_a_garbled_note_is_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "gpu-worker.pid").write_text(text)
    assert _Process.noted(tmp_path / "gpu-worker.pid") is None


def test_the_process_ends_with_its_daemon(machine: Machine) -> None:
    code = (
        "import time, sys, select\nfrom pathlib import Path\n"
        "from slurm_health.host import Host\nfrom slurm_health.probes.gpu import Worker\n"
        f"w = Worker(Host({str(machine.root)!r}), {machine.library!r})\n"
        "w.ask(time.monotonic())\nselect.select([w.fileno()], [], [], 10)\n"
        "print(w.pid, flush=True)\nsys.stdin.read()\n"
    )
    machine.set("hang nvmlDeviceGetCount_v2")
    daemon = subprocess.Popen(
        [sys.executable, "-c", code.replace("10)", "0.5)")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    child = int(daemon.stdout.readline())
    daemon.kill()
    daemon.communicate()
    assert _Process(child).gone(5)


def test_the_poll_sleeps_while_nothing_happens(worker: Worker) -> None:
    get(worker)
    assert not select.select([worker.fileno()], [], [], 0.05)[0]


# -- names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("00000008:01:00.0", "0008:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("0000:0F:00", "0000:0f:00.0"),
    ],
)
def test_addresses(name: str, device: str) -> None:
    assert address(name) == device


def test_recovery_actions() -> None:
    assert [recovery_action(n) for n in (0, 1, 2, 8)] == ["none", "gpu_reset", "node_reboot", "unknown_8"]


def test_the_table_of_recovery_actions_is_nvmls() -> None:
    import pynvml

    names = {
        getattr(pynvml, name): name.removeprefix("NVML_GPU_RECOVERY_ACTION_").lower()
        for name in dir(pynvml)
        if name.startswith("NVML_GPU_RECOVERY_ACTION_")
    }
    assert all(recovery_action(number) == name for number, name in names.items())


def test_only_gpus_are_gpus(tmp_path: Path) -> None:
    nodes.gpu(tmp_path, "0000:18:00.0")
    nodes.gpu(tmp_path, "0000:19:00.0", kind="0x030000", driver="nouveau")
    nodes.gpu(tmp_path, "0000:05:00.0", kind="0x068000")  # an NVSwitch
    nodes.gpu(tmp_path, "0000:18:00.1", kind="0x040300")
    assert [one.device for one in pci(Bus(Host(tmp_path))) if one.name == "gpu.on_pci"] == [
        "0000:18:00.0",
        "0000:19:00.0",
    ]
