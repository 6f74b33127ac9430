"""One GPU as NVML shows it (nvml.h). Any call may fail by itself: then there is no reading, never a zero."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import Any

from slurm_health.model import Value
from slurm_health.probes.nvidia import FABRIC_HEALTH, FABRIC_STATES, address, recovery_action

Row = tuple[str, str, Value, str, int]  # a Reading's name, device, value, evidence, pid
Field = int | tuple[int, int]  # NVML_FI_DEV_*, and the link where it is one of a link

SLOW = 4  # passes between looks at what hardly changes, and at what costs a question for each link
PROCESSES = 64  # of one GPU: 48 clients are the most that MPS lets share it
BLANK = {2**32 - 1, 2**64 - 1}  # all ones: NVML's "not available"
CELSIUS = range(60, 131)  # of a board's limits: what is outside is no temperature (or relative: T.Limit)
GPU_SENSOR = 0  # NVML_TEMPERATURE_GPU
SHUTDOWN, SLOWDOWN, MEMORY_MAX = 0, 1, 2  # NVML_TEMPERATURE_THRESHOLD_*
# nvmlClocksEventReasons. The others are the load's or an admin's: idle, clocks set, power cap, sync boost
HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE = 0x08, 0x20, 0x40, 0x80
# NVML_FI_DEV_*
ECC_VOLATILE, ECC_AGGREGATE, RETIRED_SINGLE, RETIRED_DOUBLE, RETIRED_PENDING = 4, 6, 29, 30, 31
MEMORY_TEMPERATURE, LINK_COUNT, PCIE_REPLAY, REMAP_PENDING, REMAP_FAILED = 82, 91, 94, 144, 145
LINK_STATE, SHUTDOWN_LIMIT, SLOWDOWN_LIMIT, RECOVERY_ACTION = 165, 193, 194, 230
EACH_PASS = (
    *(ECC_VOLATILE, ECC_AGGREGATE, RETIRED_SINGLE, RETIRED_DOUBLE, RETIRED_PENDING, MEMORY_TEMPERATURE),
    *(PCIE_REPLAY, REMAP_PENDING, REMAP_FAILED, RECOVERY_ACTION),
)
# How long clocks were held down since the driver was loaded, in ns: NVML_FI_DEV_CLOCKS_EVENT_REASON_*. They
# have moved: R575 and R580 (nvml.h of CUDA 12.9 and 13.0) have the first number, R590 (13.1) the second.
HELD_DOWN = {"gpu.sw_thermal": (251, 269), "gpu.hw_thermal": (252, 270), "gpu.hw_power_brake": (253, 271)}
HELD_DOWN_SINCE, HELD_DOWN_MOVED = 575, 590
GUEST = {1, 2}  # NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH, _VGPU
ATS = 2  # NVML_DEVICE_ADDRESSING_MODE_ATS: the memory is Linux's as well (Grace Hopper, Grace Blackwell)
THERMAL_POLICY = 1  # NVML_PERF_POLICY_THERMAL: the first of these, for older drivers
# what is counted on NVLinks: the field of one link (Hopper), those of all links together (before)
LINK_ERRORS = {"crc": (163, (38, 45)), "replay": (161, (52,)), "recovery": (162, (59,))}
# of one link from Blackwell on, in place of those: NVML_FI_DEV_NVLINK_COUNT_*
LINK_COUNTS = {
    "overrun": 207, "receive": 208, "integrity": 211, "discards": 212, "recovery_failed": 214,
    "recovery": 215, "symbol": 221,
}  # fmt: skip
LINK_RATES = {"effective_ber": 220, "symbol_ber": 222}
MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS
LINK_UP = {1, 2}  # NVML_NVLINK_STATE_ACTIVE, _SLEEP


class Board:
    """A GPU, found by its handle. `read` raises NVMLError where it is lost, and at nothing else."""

    def __init__(self, nvml: Any, handle: Any, driver: str = "") -> None:
        self.nvml, self.handle = nvml, handle
        release = int(major) if (major := driver.partition(".")[0]).isdecimal() else 0
        self.held_down = (
            {name: fields[release >= HELD_DOWN_MOVED] for name, fields in HELD_DOWN.items()}
            if release >= HELD_DOWN_SINCE
            else {}
        )
        info = nvml.nvmlDeviceGetPciInfo(handle)
        self.device = address(_text(info.busId))
        self.passes = 0
        self.without: set[object] = set()  # what this board, or its driver, does not have
        self.links: tuple[int, ...] = ()
        self.limits: dict[str, int] = {}
        self.slow: list[Row] = []
        self.shared = False  # the memory, with Linux

    def read(self) -> list[Row]:
        """All readings of one pass. What was asked in an earlier one is said again, but for counters."""
        errors: list[Row] = []
        if self.passes % SLOW == 0:
            self.without.clear()  # MIG mode and the like change what there is
            self.slow = list(self._slowly())
            errors = list(self._link_errors())
        rows = [*self.slow, *errors, *self._fields_of_a_pass(), *self._state(), *self._who()]
        self.passes += 1
        return [*rows, self._row("gpu.lost", False)]

    def _row(self, name: str, value: Value, evidence: str = "", pid: int = 0) -> Row:
        return (name, self.device, value, evidence, pid)

    # Asking

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What a call answers, None where it does not."""
        key = (name, *map(str, arguments))
        call = getattr(self.nvml, name, None)  # None: this pynvml is too old
        if key in self.without or call is None:
            return None
        try:
            answer = call(self.handle, *arguments)
        except self.nvml.NVMLError as error:
            self._failed(error, key)
            return None
        return None if isinstance(answer, int) and answer in BLANK else answer

    def _filled(self, name: str, kind: str) -> Any:
        """The struct of that kind as a call filled it in, None where it did not, or pynvml is too old."""
        call, struct = getattr(self.nvml, name, None), getattr(self.nvml, kind, None)
        if name in self.without or call is None or struct is None:
            return None
        filled = struct()
        try:
            call(self.handle, ctypes.byref(filled))
        except self.nvml.NVMLError as error:
            self._failed(error, name)
            return None
        return filled

    def _failed(self, error: Any, key: object) -> None:
        if error.value == self.nvml.NVML_ERROR_GPU_IS_LOST:
            raise error
        if error.value in (self.nvml.NVML_ERROR_NOT_SUPPORTED, self.nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            self.without.add(key)

    def _fields(self, wanted: Iterable[Field], kind: int | None = None) -> dict[Field, int]:
        """The fields that there are (and are of that type), asked in one call."""
        nvml = self.nvml
        asked = [field for field in wanted if field not in self.without]
        try:
            answers = nvml.nvmlDeviceGetFieldValues(self.handle, asked) if asked else ()
        except nvml.NVMLError as error:
            self._failed(error, None)
            return {}
        found: dict[Field, int] = {}
        for field, answer in zip(asked, answers, strict=True):
            if answer.nvmlReturn == nvml.NVML_SUCCESS:
                if kind in (None, answer.valueType) and (number := self._number(answer)) is not None:
                    found[field] = number
            else:
                self._failed(nvml.NVMLError(answer.nvmlReturn), field)
        return found

    def _number(self, answer: Any) -> int | None:
        nvml, value = self.nvml, answer.value
        match answer.valueType:
            case nvml.NVML_VALUE_TYPE_UNSIGNED_INT:
                number = value.uiVal
            case nvml.NVML_VALUE_TYPE_UNSIGNED_LONG:
                number = value.ulVal
            case nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG:
                number = value.ullVal
            case nvml.NVML_VALUE_TYPE_SIGNED_INT:
                number = value.siVal
            case nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG:
                number = value.sllVal
            case _:
                return None
        return None if number in BLANK else int(number)

    # What hardly changes

    def _slowly(self) -> Iterator[Row]:
        for name, call in (
            ("gpu.uuid", "nvmlDeviceGetUUID"),
            ("gpu.serial", "nvmlDeviceGetSerial"),
            ("gpu.name", "nvmlDeviceGetName"),
            ("gpu.vbios", "nvmlDeviceGetVbiosVersion"),
            ("gpu.minor", "nvmlDeviceGetMinorNumber"),
            ("gpu.pcie_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration"),
            ("gpu.pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth"),
        ):
            if (value := self._ask(call)) is not None:
                yield self._row(name, value if isinstance(value, int) else _text(value))
        if (persistence := self._ask("nvmlDeviceGetPersistenceMode")) is not None:
            yield self._row("gpu.persistence", bool(persistence))
        for name, call in (("gpu.mig", "nvmlDeviceGetMigMode"), ("gpu.ecc", "nvmlDeviceGetEccMode")):
            if (modes := self._ask(call)) is not None:
                yield self._row(name, bool(modes[0]))
        if sram := self._filled("nvmlDeviceGetSramEccErrorStatus", "c_nvmlEccSramErrorStatus_v1_t"):
            yield self._row("gpu.sram_threshold", bool(sram.bThresholdExceeded))
        if (mode := self._ask("nvmlDeviceGetVirtualizationMode")) is not None:
            yield self._row("gpu.virtual", mode in GUEST)
        self.shared = self._ask("nvmlDeviceGetAddressingMode") == ATS
        self._learn_limits()
        self._learn_links()

    def _learn_limits(self) -> None:
        """In degrees; those of `margin` are relative to the highest operating temperature (T.Limit)."""
        relative = self._fields((SHUTDOWN_LIMIT, SLOWDOWN_LIMIT))
        fixed = {
            name: self._ask("nvmlDeviceGetTemperatureThreshold", which)
            for name, which in (("shutdown", SHUTDOWN), ("slowdown", SLOWDOWN), ("memory", MEMORY_MAX))
        }
        self.limits = {name: limit for name, limit in fixed.items() if limit in CELSIUS}
        for name, which in (("margin shutdown", SHUTDOWN_LIMIT), ("margin slowdown", SLOWDOWN_LIMIT)):
            if which in relative:
                self.limits[name] = relative[which]

    def _learn_links(self) -> None:
        count = self._fields([LINK_COUNT]).get(LINK_COUNT)
        if count is None and self._ask("nvmlDeviceGetNvLinkState", 0) is None:
            self.links = ()  # a board without, or a driver that does not tell
        else:
            self.links = tuple(range(min(count or MOST_LINKS, MOST_LINKS)))

    # What may change at any moment

    def _fields_of_a_pass(self) -> Iterator[Row]:
        states = [(LINK_STATE, link) for link in self.links]
        found = self._fields([*EACH_PASS, *states])
        for name, field in (
            ("gpu.ecc_uncorrected", ECC_VOLATILE),
            ("gpu.ecc_aggregate", ECC_AGGREGATE),
            ("gpu.pcie_replay", PCIE_REPLAY),
            ("gpu.memory_temperature", MEMORY_TEMPERATURE),
        ):
            if field in found:
                yield self._row(name, found[field])
        for name, field in (
            ("gpu.remap_pending", REMAP_PENDING),
            ("gpu.remap_failed", REMAP_FAILED),
            ("gpu.pages_pending", RETIRED_PENDING),
        ):
            if field in found:
                yield self._row(name, bool(found[field]))
        if retired := [found[field] for field in (RETIRED_SINGLE, RETIRED_DOUBLE) if field in found]:
            yield self._row("gpu.pages_retired", sum(retired))
        if RECOVERY_ACTION in found:
            yield self._row("gpu.recovery_action", recovery_action(found[RECOVERY_ACTION]))
        yield from self._temperatures(found.get(MEMORY_TEMPERATURE))
        yield from self._link_states({state[1]: found[state] for state in states if state in found})

    def _temperatures(self, memory: int | None) -> Iterator[Row]:
        """Degrees Celsius, and by how many the board is below its own limits."""
        now = self._ask("nvmlDeviceGetTemperature", GPU_SENSOR)
        if now is not None:
            yield self._row("gpu.temperature", now)
        margin = self._ask("nvmlDeviceGetMarginTemperature") if "margin slowdown" in self.limits else None
        for name in ("slowdown", "shutdown"):
            left = None
            if margin is not None and f"margin {name}" in self.limits:
                left = margin - self.limits[f"margin {name}"]
            elif now is not None and name in self.limits:
                left = self.limits[name] - now
            if left is not None:
                at = "" if now is None else f"{now} C, "
                yield self._row(f"gpu.{name}_margin", left, f"{at}{left} below {name}")
        if memory and "memory" in self.limits:
            left = self.limits["memory"] - memory
            yield self._row(
                "gpu.memory_margin", left, f"memory at {memory} C, limit {self.limits['memory']} C"
            )

    def _link_states(self, states: dict[int, int]) -> Iterator[Row]:
        """The links that are up and those that are down, as "0,1,2"; one that does not tell is in neither."""
        for link in self.links:
            if link not in states and (state := self._ask("nvmlDeviceGetNvLinkState", link)) is not None:
                states[link] = state
        if states:
            up = [link for link in states if states[link] in LINK_UP]
            down = [link for link in states if states[link] == 0]
            yield self._row("gpu.nvlinks_up", ",".join(map(str, sorted(up))))
            yield self._row("gpu.nvlinks_down", ",".join(map(str, sorted(down))))

    def _link_errors(self) -> Iterator[Row]:
        """Counted since the driver was loaded: CRC errors, replays, recoveries; over all links of the GPU,
        and in the evidence those that have any."""
        if not self.links:
            return
        each = [(field, link) for field, _ in LINK_ERRORS.values() for link in self.links]
        found = self._fields([*each, *(field for _, sums in LINK_ERRORS.values() for field in sums)])
        for kind, (field, sums) in LINK_ERRORS.items():
            counts = {link: found[field, link] for link in self.links if (field, link) in found}
            if counts:
                some = ", ".join(f"{link}: {count}" for link, count in counts.items() if count)
                yield self._row(f"gpu.nvlink_{kind}", sum(counts.values()), f"by link {some}" if some else "")
            elif told := [found[one] for one in sums if one in found]:
                yield self._row(f"gpu.nvlink_{kind}", sum(told))
        if not found:
            yield from self._link_counts()

    def _link_counts(self) -> Iterator[Row]:
        """The same as Blackwell and later count it, and the bit error rates (of the worst link)."""
        fields = (*LINK_COUNTS.values(), *LINK_RATES.values())
        found = self._fields((field, link) for field in fields for link in self.links)
        for kind, field in LINK_COUNTS.items():
            if counts := {link: found[field, link] for link in self.links if (field, link) in found}:
                some = ", ".join(f"{link}: {count}" for link, count in counts.items() if count)
                yield self._row(f"gpu.nvlink_{kind}", sum(counts.values()), f"by link {some}" if some else "")
        for kind, field in LINK_RATES.items():
            rates = [
                (_bit_error_rate(found[field, link]), link) for link in self.links if (field, link) in found
            ]
            if rates:
                rate, link = max(rates)
                yield self._row(f"gpu.nvlink_{kind}", rate, f"{rate:.0e} on link {link}")

    def _clocks(self) -> Iterator[Row]:
        """For how many milliseconds something has held the clocks down since the driver was loaded. What is
        not counted, or was not before, is told as it is now."""
        held = self._held_down()
        for name, milliseconds in held.items():
            yield self._row(f"{name}_time", milliseconds, f"{milliseconds} ms since the driver was loaded")
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # its name before R535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if reasons is not None:
            words = f"clock event reasons 0x{reasons:x}"
            named = reasons & (HW_THERMAL | HW_POWER_BRAKE)
            for name, active in (
                ("gpu.hw_thermal", reasons & HW_THERMAL),
                ("gpu.hw_power_brake", reasons & HW_POWER_BRAKE),
                ("gpu.hw_slowdown", reasons & HW_SLOWDOWN and not named),  # set beside those two as well
                ("gpu.sw_thermal", reasons & SW_THERMAL),
            ):
                if name not in held or not self.passes:
                    yield self._row(name, bool(active), words if active else "")

    def _held_down(self) -> dict[str, int]:
        # Of another type it is another field, by a driver that numbers them otherwise.
        found = self._fields(self.held_down.values(), self.nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG)
        held = {name: found[field] // 10**6 for name, field in self.held_down.items() if field in found}
        if "gpu.sw_thermal" not in held:
            violation = self._ask("nvmlDeviceGetViolationStatus", THERMAL_POLICY)
            if violation is not None and violation.violationTime not in BLANK:
                held["gpu.sw_thermal"] = violation.violationTime // 10**6
        return held

    def _state(self) -> Iterator[Row]:
        yield from self._clocks()
        for name, call in (
            ("gpu.pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration"),
            ("gpu.pcie_width", "nvmlDeviceGetCurrPcieLinkWidth"),
            ("gpu.pstate", "nvmlDeviceGetPerformanceState"),
        ):
            if (value := self._ask(call)) is not None:
                yield self._row(name, value)
        if (rates := self._ask("nvmlDeviceGetUtilizationRates")) is not None:
            yield self._row("gpu.utilization", int(rates.gpu))
        yield from self._fan()
        yield from self._fabric()

    def _fan(self) -> Iterator[Row]:
        """A fan that cannot be read does not work (nvidia-smi says ERR!); passive boards have none."""
        key = "nvmlDeviceGetFanSpeed"
        if key in self.without:
            return
        try:
            self.nvml.nvmlDeviceGetFanSpeed(self.handle)
        except self.nvml.NVMLError as error:
            self._failed(error, key)
            if error.value == self.nvml.NVML_ERROR_UNKNOWN:
                yield self._row("gpu.fan_failed", True, f"fan speed: {error}")
            return
        yield self._row("gpu.fan_failed", False)

    def _fabric(self) -> Iterator[Row]:
        """The NVLink fabric behind NVSwitches, as far as this GPU has registered with it; else nothing."""
        nvml, call = self.nvml, "nvmlDeviceGetGpuFabricInfoV"
        info = (
            self._filled(call, "c_nvmlGpuFabricInfo_v3_t")
            or self._filled(call, "c_nvmlGpuFabricInfo_v2_t")
            or self._filled("nvmlDeviceGetGpuFabricInfo", "c_nvmlGpuFabricInfo_t")
        )
        if info is None:
            return
        state = FABRIC_STATES.get(info.state)
        if state is None:
            return
        if state == "completed" and info.status:
            yield self._row("gpu.fabric", "failed", f"fabric: {nvml.NVMLError(info.status)}")
        else:
            yield self._row("gpu.fabric", state, f"fabric: {state.replace('_', ' ')}")
        mask = getattr(info, "healthMask", None)
        if mask is not None and state == "completed":
            ill = [words for words, shift, width, bad in FABRIC_HEALTH if mask >> shift & width in bad]
            yield self._row("gpu.fabric_health", ", ".join(ill) or "healthy")

    def _who(self) -> Iterator[Row]:
        """Those that compute here (and, where none does, how many draw), how much memory there is (GiB), and
        how much is in use (MiB), without what the driver reserves; not where Linux may use it for itself."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", self.nvml.nvmlMemory_v2)
        if memory is not None and memory.total not in BLANK:
            yield self._row("gpu.memory_total", round(memory.total / 2**30, 1))
        if memory is not None and memory.used not in BLANK and not self.shared:
            yield self._row("gpu.memory_used", memory.used >> 20, f"{memory.used >> 20} MiB in use")
        running = self._ask("nvmlDeviceGetComputeRunningProcesses_v3")
        if running is None:  # its name before R510
            running = self._ask("nvmlDeviceGetComputeRunningProcesses_v2")
        if running is None:
            return
        yield self._row("gpu.processes", len(running))
        if not running and (drawing := self._ask("nvmlDeviceGetGraphicsRunningProcesses_v3")) is not None:
            yield self._row("gpu.drawing", len(drawing))
        for one in running[:PROCESSES]:
            if one.pid:  # 0: of a pid namespace that we cannot see
                used = "" if one.usedGpuMemory is None else f"{one.usedGpuMemory >> 20} MiB"
                yield self._row("gpu.process", one.pid, used, one.pid)


def _bit_error_rate(value: int) -> float:
    """NVML_NVLINK_ERROR_COUNTER_BER_GET: exponent in bits 0 to 7, mantissa in 8 to 11. No errors: 15e-255."""
    return float(f"{value >> 8 & 0xF}e-{value & 0xFF}")


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
