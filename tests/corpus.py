"""The data of real machines beside the repository: where it lies, and what is to be found in it.

Read by test_corpus.py and test_boards.py, and by bench/recall.py for its figures.
"""

from __future__ import annotations

import csv
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import nodes

CORPUS = Path(__file__).resolve().parents[1].with_name("shared") / "corpus"
LOGS = sorted(CORPUS.glob("kmsg/*.log"))
TREES = sorted(CORPUS.glob("sysfs/*.tar.gz"))
SETS = sorted(CORPUS.glob("nvml/mocknvml-configs/*.yaml"))
TEXTS = sorted(CORPUS.glob("nvml/gpud-nvidia-smi/nvidia-smi*"))

# -- kernel logs -------------------------------------------------------------------------

# what is an event, and its code; the corpus labels more that is none
CLASSES = {
    "xid": "GPU_XID",
    "sxid": "NVSWITCH_SXID",
    "nvrm_lost": "GPU_XID_79",
    "mlx5_access_reg": "NIC_HEALTH",
    "mlx5_module_error": "NIC_HEALTH",
    "mlx5_module_temp": "NIC_HEALTH",
    "buffer_io_error": "DISK_ERRORS",
    "fs_io_error": "DISK_ERRORS",
    "fs_readonly": "DISK_READ_ONLY",
    "md_failure": "DISK_ERRORS",
    "nvme_dead": "DISK_ERRORS",
    "nvme_path": "DISK_ERRORS",
    "nvme_timeout": "DISK_ERRORS",
    "hung_task": "KERNEL_HUNG_TASK",
    "soft_lockup": "KERNEL_LOCKUP",
    "oom_cgroup": "KERNEL_OOM",
    "oom_constraint": "KERNEL_OOM",
    "oom_global": "KERNEL_OOM",
    "oom_invoked": "KERNEL_OOM",
}
# nothing but applications' errors, or nothing at all
INNOCENT = ("healthy", "xid13-43", "userspace", "peermem", "filemax", "segfault", "nvswitch-open", "veth")


def spelled(row: dict[str, str]) -> str:
    """A label's device as findings spell it: "EXT4-fs (sda1)" is sda1, "18:00" is 0000:18:00.0."""
    device = row["device"].lower()
    if row["class"] == "soft_lockup":
        return ""  # the label names the processor
    if row["class"].startswith("fs_"):
        return device.partition("(")[2].rstrip(")")
    if row["class"] in ("xid", "sxid", "nvrm_lost"):
        device = device if device.count(":") > 1 else f"0000:{device}"
        return device if "." in device else f"{device}.0"
    return device


def labels(log: Path) -> dict[int, dict[str, str]]:
    with log.with_suffix(".csv").open() as file:
        return {int(row["line"]): row for row in csv.DictReader(file)}


def code(row: dict[str, str]) -> str:
    """The code of a label, "" where it is of no event."""
    known = CLASSES.get(row["class"], "")
    return f"{known}_{row['code']}" if row["class"] in ("xid", "sxid") else known


# -- trees of /sys -----------------------------------------------------------------------

# what a machine is expected to have, where its verdict needs that; and what is then found: (code, device)
IB = "infiniband = { ports = 8, gbps = %d }"
NO_FAULT: set[tuple[str, str]] = set()
EXPECTED = {
    "gpud-h100": (IB % 400, NO_FAULT),
    "gcm-learn_good": (IB % 200, NO_FAULT),
    "gcm-learn_ib_intf_bad_rate": (
        IB % 200,
        {("IB_PORT_SLOW", f"mlx5_{number}/1") for number in (*range(4), *range(6, 10))},
    ),
    "gcm-cache_milan_good": ("", NO_FAULT),
    "gcm-compute_samsung980pro-downgraded": (
        'infiniband = { gbps = 200 }\npcie = { "0000:8d:00.0" = "16 GT/s x16" }',
        {("PCIE_DEGRADED", "0000:8d:00.0")},
    ),
}  # fmt: skip


def configured(tree: str, folder: Path) -> Path:
    """The configuration with which a tree is judged."""
    file = folder / f"{tree}.toml"
    file.write_text(f'[[nodes]]\nmatch = "n1"\n{EXPECTED[tree][0]}\n')
    return file


def unpacked(tree: Path, folder: Path) -> tuple[str, Path]:
    """A tree's name and its root, unpacked below a folder."""
    name = tree.name.partition(".")[0]
    with tarfile.open(tree) as archive:
        archive.extractall(folder, filter="tar")
    return name, folder / name if (folder / name).is_dir() else folder


# -- boards ------------------------------------------------------------------------------

ABSENT = -1000  # nvml.c: the board has no such thing
NOT_SUPPORTED = 3
REASONS = {"SW Power Cap": 0x4, "HW Slowdown": 0x8, "SW Thermal Slowdown": 0x20, "HW Thermal Slowdown": 0x40,
           "HW Power Brake Slowdown": 0x80}  # fmt: skip
FAULTS = {  # what EXPECTED.csv calls the faults of a text: codes and on how many GPUs
    "nvidia-smi-query.535.161.08.out.0.valid": {"GPU_THROTTLED": 8},
    "nvidia-smi-query.535.183.01.out.0.valid": {"GPU_THROTTLED": 1},
    "nvidia-smi-query.535.129.03.out.0.valid.a10": {"GPU_REMAP_PENDING": 1},
    "nvidia-smi.525.125.06.out.0.valid": {"GPU_FAN": 1},
}


def boards() -> dict[str, list[str]]:
    """What the fake library is told of each machine whose boards are known, by the name of its file."""
    found = {}
    for file in (*SETS, *TEXTS):
        if file.name.endswith(".invalid"):
            continue  # its broken text is for parsers of nvidia-smi; NVML has none
        text = file.read_text()
        if file.suffix == ".yaml":
            found[file.name] = of_set(text)
        elif "-query" in file.name:
            found[file.name] = of_text(text)
        elif "nvlink" in file.name:
            found[file.name] = of_links(text)
        else:
            found[file.name] = of_table(text)
    return {name: lines for name, lines in found.items() if lines}


def told(root: Path, lines: list[str]) -> None:
    """Have the fake library (SLURM_HEALTH_FAKE_NVML: root/nvml) say so, and the bus have these GPUs."""
    for line in lines:
        if line.startswith("gpu "):
            nodes.gpu(root, line.split()[2])
    (root / "nvml").write_text("\n".join([*lines, "end", ""]))


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


HEAD = re.compile(
    r"\| +\d+ +(?P<name>\S.*?) +(?P<persistence>On|Off) +\| +(?P<pci>[0-9A-F:.]{16}) \S+ \| +(?P<ecc>\S+) \|"
)
BODY = re.compile(
    r"\| *(?P<fan>\S+) +(?P<degrees>\d+)C +P(?P<pstate>\d+) .*\| +(?P<used>\d+)MiB / +(?P<memory>\d+)MiB"
    r" \| +(?P<busy>\d+)% "
)


def of_table(text: str) -> list[str]:
    """nvidia-smi without arguments: two rows and one for MIG of each GPU."""
    driver = re.search(r"Driver Version: (\S+)", text)
    lines = [f"driver {driver[1] if driver else ''}"]
    heads, bodies = list(HEAD.finditer(text)), list(BODY.finditer(text))
    for number, (head, body) in enumerate(zip(heads, bodies, strict=True)):
        pci = head["pci"].lower().replace("00000000", "0000")
        lines.append(f"gpu {number} {pci} GPU-{number} {number} {number} {head['name']}")
        fan = {"ERR!": -1, "N/A": ABSENT}.get(body["fan"], body["fan"].rstrip("%"))
        for key, value in {
            "fan": fan, "temperature": body["degrees"], "pstate": body["pstate"],
            "persistence": int(head["persistence"] == "On"), "ecc": int(head["ecc"] != "N/A"),
            "ecc-volatile": head["ecc"] if head["ecc"].isdecimal() else 0, "utilization": body["busy"],
            "memory": int(body["memory"]) << 20, "memory-used": int(body["used"]) << 20,
            "memory-temperature": ABSENT, "nvlinks": 0, "fabric": 0, "retired-pending": ABSENT,
        }.items():  # fmt: skip
            lines.append(f"set {number} {key} {value}")
    return lines


def of_links(text: str) -> list[str]:
    """nvidia-smi nvlink --status: a row for each link of each GPU; nothing of boards that have none."""
    lines = []
    for number, board in enumerate(re.split(r"^GPU \d+: ", text, flags=re.MULTILINE)[1:]):
        name, uuid = re.match(r"(.*) \(UUID: (\S+)\)", board).groups()  # type: ignore[union-attr]
        links = re.findall(r"Link (\d+): (<inactive>|\S+)", board)
        down = sum(1 << int(link) for link, state in links if state == "<inactive>")
        lines += [
            f"gpu {number} 0000:{number + 1:02x}:00.0 {uuid} {number} {number} {name}",
            f"set {number} nvlinks {len(links)}", f"set {number} nvlinks-down {down}",
        ]  # fmt: skip
    return lines
