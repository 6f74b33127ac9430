"""Board sets of real machines, loaded into the fake NVML library, where they lie beside the repository.

Value sets (YAML) and nvidia-smi texts are transcribed here into what the library answers; what a scan then
finds is what EXPECTED.csv says. A fault is found whatever its severity; nothing healthy is found at all.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nodes
import pytest

from slurm_health import rules
from slurm_health.baseline import Expectations
from slurm_health.host import Host
from slurm_health.model import Severity
from slurm_health.sandbox.library import build
from slurm_health.scan import scan

CORPUS = Path(__file__).resolve().parents[1].with_name("shared") / "corpus/nvml"
SETS = sorted(CORPUS.glob("mocknvml-configs/*.yaml"))
TEXTS = sorted(CORPUS.glob("gpud-nvidia-smi/nvidia-smi-query*valid*"))
BOOK = rules.load()
ABSENT = -1000  # nvml.c: the board has no such thing
NOT_SUPPORTED = 3
REASONS = {"SW Power Cap": 0x4, "HW Slowdown": 0x8, "SW Thermal Slowdown": 0x20, "HW Thermal Slowdown": 0x40,
           "HW Power Brake Slowdown": 0x80}  # fmt: skip
FAULTS = {  # what EXPECTED.csv calls the faults of a text: codes and on how many GPUs
    "nvidia-smi-query.535.161.08.out.0.valid": {"GPU_THROTTLED": 8},
    "nvidia-smi-query.535.183.01.out.0.valid": {"GPU_THROTTLED": 1},
    "nvidia-smi-query.535.129.03.out.0.valid.a10": {"GPU_REMAP_PENDING": 1},
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler for the fake NVML")
    return str(build(tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"))


# -- value sets --------------------------------------------------------------------------


def plain(text: str) -> Iterator[tuple[str, str]]:
    """The scalars of a YAML file of nested tables: ("device_defaults.pcie.max_link_gen", "5")."""
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)(- )?(\w+):\s*(\"[^\"]*\"|[^#]*)", line.partition(" #")[0])
        if not match:
            continue
        depth = len(match[1]) + 2 * bool(match[2])
        path = [*((at, name) for at, name in path if at < depth), (depth, match[3])]
        if value := match[4].strip().strip('"'):
            yield ".".join(name for _, name in path), value


def of_set(text: str) -> list[str]:
    said: dict[str, list[str]] = {}
    for key, value in plain(text):
        said.setdefault(key, []).append(value)

    def first(key: str, absent: str = "0") -> str:
        return said.get(f"device_defaults.{key}", [absent])[0]

    switch = lambda key: int(first(key) in ("enabled", "true"))  # noqa: E731
    reasons = "clocks_throttle_reasons"
    throttle = sum(
        bit * switch(f"{reasons}.{name.lower().replace(' ', '_')}") for name, bit in REASONS.items()
    )
    lines = [f"driver {said['system.driver_version'][0]}"]
    for number, (uuid, pci) in enumerate(zip(said["devices.uuid"], said["devices.pci.bus_id"], strict=True)):
        lines += [
            f"gpu {number} {pci.lower()} {uuid} {first('serial')} {number} {first('name')}",
            f"vbios {number} {first('vbios_version')}",
        ]
        for key, value in {
            "link-gen": first("pcie.current_link_gen"), "link-gen-max": first("pcie.max_link_gen"),
            "link-width": first("pcie.current_link_width"), "link-width-max": first("pcie.max_link_width"),
            "replay": first("pcie.replay_counter"), "pstate": first("performance_state").lstrip("P"),
            "temperature": first("thermal.temperature_gpu_c"),
            "slowdown": first("thermal.slowdown_threshold_c"),
            "shutdown": first("thermal.shutdown_threshold_c"),
            "memory-temperature": first("thermal.temperature_memory_c"), "memory-limit": ABSENT,
            "fan": ABSENT if first("fan.speed_percent") == "N/A" else first("fan.speed_percent"),
            "utilization": first("utilization.gpu"), "throttle": throttle,
            "persistence": switch("persistence_mode"), "ecc": switch("ecc.mode_current"),
            "mig": switch("mig.mode_current"), "memory": first("memory.total_bytes"),
            "retired-pending": ABSENT,
            "memory-used": first("memory.used_bytes"), "nvlinks": said.get("nvlink.links_per_gpu", ["0"])[0],
            "fabric": 3 if "device_defaults.fabric.state" in said else 0,
            "remap-pending": switch("remapped_rows.pending"),
            "remap-failed": switch("remapped_rows.failure_occurred"),
            "ecc-volatile": first("ecc.errors.volatile.double_bit.total"),
            "ecc-aggregate": first("ecc.errors.aggregate.double_bit.total"),
        }.items():  # fmt: skip
            lines.append(f"set {number} {key} {value}")
    return lines


# -- nvidia-smi --------------------------------------------------------------------------


def of_text(text: str) -> list[str]:
    head, *boards = re.split(r"^GPU (?=[0-9A-F]{8}:)", text, flags=re.MULTILINE)
    driver = re.search(r"Driver Version\s*: (\S+)", head)
    lines = [f"driver {driver[1] if driver else ''}"]
    for number, board in enumerate(boards):
        rows: dict[str, list[str]] = {}
        for row in board.splitlines():
            name, colon, value = row.partition(" : ")
            if colon:
                rows.setdefault(name.strip(), []).append(value.strip())

        def said(name: str, which: int = 0, rows: dict[str, list[str]] = rows) -> str:
            return (rows.get(name, []) + ["N/A"] * 3)[which]

        def count(name: str, which: int = 0, said=said) -> int:  # type: ignore[no-untyped-def]
            """The number a value begins with; what is N/A the board does not have."""
            match = re.match(r"-?\d+", said(name, which))
            return int(match[0]) if match else ABSENT

        # under "GPU Link Info" generation and width each say Max and Current
        link = board[board.index("GPU Link Info") :]
        maxima, currents = (
            re.findall(rf"^ +{word} +: (\d+)", link, re.MULTILINE) for word in ("Max", "Current")
        )
        pci = board[:16].lower().replace("00000000", "0000")
        mig = re.search(r"MIG Mode\n\s+Current\s+: (\S+)", board)
        ecc = re.search(r"ECC Mode\n\s+Current\s+: (\S+)", board)
        remap = board[board.index("Remapped Rows") :]
        pending = re.search(r"Pending\s+: (\S+)", remap)
        fabric = re.search(r"Fabric\n\s+State\s+: (\S+)", board)
        lines += [
            f"gpu {number} {pci} {said('GPU UUID')} {said('Serial Number')} {number} {said('Product Name')}",
            f"vbios {number} {said('VBIOS Version')}",
        ]
        relative = "T.Limit" in board and count("GPU T.Limit Temp") != ABSENT
        for key, value in {
            "link-gen": currents[0], "link-gen-max": maxima[0],
            "link-width": currents[1], "link-width-max": maxima[1],
            "replay": count("Replays Since Reset"), "pstate": said("Performance State").lstrip("P"),
            "temperature": count("GPU Current Temp"), "memory-temperature": count("Memory Current Temp"),
            "memory-limit": count("Memory Max Operating Temp"),
            "margin": count("GPU T.Limit Temp"), "slowdown-margin": count("GPU Slowdown T.Limit Temp"),
            "shutdown-margin": count("GPU Shutdown T.Limit Temp"),
            "slowdown": ABSENT if relative else count("GPU Slowdown Temp"),
            "shutdown": ABSENT if relative else count("GPU Shutdown Temp"),
            "fan": count("Fan Speed"), "utilization": count("Gpu"),
            "throttle": sum(bit for name, bit in REASONS.items() if said(name) == "Active"),
            "persistence": int(said("Persistence Mode") == "Enabled"),
            "mig": ABSENT if not mig or mig[1] == "N/A" else int(mig[1] == "Enabled"),
            "ecc": int(bool(ecc and ecc[1] == "Enabled")), "nvlinks": 0, "retired-pending": ABSENT,
            "fabric": 3 if fabric and fabric[1] == "Completed" else 0,
            "sram-threshold": {"No": 0, "Yes": 1}.get(said("SRAM Threshold Exceeded"), ABSENT),
            "remap-pending": int(bool(pending and pending[1] == "Yes")),
            "remap-failed": int(said("Remapping Failure Occurred") == "Yes"),
        }.items():  # fmt: skip
            lines.append(f"set {number} {key} {value}")
        if said("Remapping Failure Occurred") == "N/A":
            lines += [f"fail field{field} {number} {NOT_SUPPORTED}" for field in (144, 145)]
    return lines


def found(root: Path, library: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many GPUs a scan finds each code on."""
    for line in lines:
        if line.startswith("gpu "):
            nodes.gpu(root, line.split()[2])
    (root / "nvml").write_text("\n".join([*lines, "end", ""]))
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(root / "nvml"))
    result = scan(Host(root), Expectations(), BOOK, library)
    [report] = [one for one in result.reports if one.probe == "gpu"]
    assert report.error == ""
    answering = [one for one in report.readings if one.name == "gpu.lost"]
    assert len(answering) == sum(line.startswith("gpu ") for line in lines) > 0
    codes = [one.code for one in result.findings]
    healthy = {"GPU_REMAP_PENDING"}  # the one fault here that takes a node out
    assert {one.code for one in result.findings if one.severity is Severity.CRITICAL} <= healthy
    return {code: codes.count(code) for code in codes}


if SETS:

    @pytest.mark.parametrize("file", SETS, ids=lambda path: path.stem.removeprefix("mock-nvml-config-"))
    def test_a_healthy_board(
        file: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert found(tmp_path, library, of_set(file.read_text()), monkeypatch) == {}


if TEXTS:

    @pytest.mark.parametrize("file", TEXTS, ids=lambda path: path.name)
    def test_what_nvidia_smi_showed(
        file: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if file.name.endswith(".invalid"):
            assert file.name not in FAULTS  # its broken text is for parsers of nvidia-smi; NVML has none
            return
        lines = of_text(file.read_text())
        assert found(tmp_path, library, lines, monkeypatch) == FAULTS.get(file.name, {})
