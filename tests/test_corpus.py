"""Data of real machines, where it lies beside the repository. Absent, there is nothing to collect."""

import csv
import json
import tarfile
from pathlib import Path

import pytest

from slurm_health import config, rules
from slurm_health.baseline import Baseline, Expectations, learn
from slurm_health.expected import section
from slurm_health.host import Host
from slurm_health.replay import replay
from slurm_health.scan import scan

CORPUS = Path(__file__).resolve().parents[1].with_name("shared") / "corpus"
LOGS = sorted(CORPUS.glob("kmsg/*.log"))
TREES = sorted(CORPUS.glob("sysfs/*.tar.gz"))
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
BOOK = rules.load()
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


if LOGS:

    @pytest.mark.parametrize("log", LOGS, ids=lambda path: path.stem)
    def test_every_event_and_nothing_else(log: Path) -> None:
        with log.open(errors="surrogateescape") as file:
            found = {one["line"]: one for one in replay(file, BOOK)}
        rows = labels(log)
        assert found.keys() == {line for line, row in rows.items() if row["class"] in CLASSES}
        for line, one in found.items():
            row = rows[line]
            numbered = row["class"] in ("xid", "sxid")
            code = CLASSES[row["class"]]
            assert one["code"] == (f"{code}_{row['code']}" if numbered else code)
            assert one["device"] == spelled(row)
            assert one["xid"] == (int(row["code"]) if row["class"] == "xid" else None)
            if numbered:
                assert str(one["pid"] or "") == row["pid"]
            decoded = (
                row["catalog_action"].startswith("V1:") and "no row V2:no row" not in row["catalog_action"]
            )
            if decoded:
                assert one["severity"] == ("critical" if "RESET" in row["catalog_action"] else "warning"), (
                    line
                )
            elif row["fatal_word"] == "Fatal":
                assert one["severity"] == "critical"

    @pytest.mark.parametrize(
        "log", [one for one in LOGS if any(word in one.stem for word in INNOCENT)], ids=lambda p: p.stem
    )
    def test_the_innocent_are_left_alone(log: Path) -> None:
        with log.open(errors="surrogateescape") as file:
            assert not [one for one in replay(file, BOOK) if one["severity"] == "critical"]


if TREES:
    EXPECTED = {
        "gpud-h100": (Expectations(ib_ports=8, ib_gbps=400), set()),
        "gcm-learn_good": (Expectations(ib_ports=8, ib_gbps=200), set()),
        "gcm-learn_ib_intf_bad_rate": (Expectations(ib_ports=8, ib_gbps=200), {"IB_PORT_SLOW"}),
        "gcm-cache_milan_good": (Expectations(), set()),
        "gcm-compute_samsung980pro-downgraded": (
            Expectations(ib_gbps=200, pcie={"0000:8d:00.0": (16, 16.0)}),
            {"PCIE_DEGRADED"},
        ),
    }

    @pytest.mark.parametrize("tree", TREES, ids=lambda path: path.name.partition(".")[0])
    def test_trees(tree: Path, tmp_path: Path) -> None:
        with tarfile.open(tree) as archive:
            archive.extractall(tmp_path, filter="tar")
        name = tree.name.partition(".")[0]
        root = tmp_path / name if (tmp_path / name).is_dir() else tmp_path
        expectations, codes = EXPECTED.get(name, (Expectations(), set()))
        result = scan(Host(root), expectations, BOOK, "/nowhere/libnvidia-ml.so.1")
        assert {one.code for one in result.findings} == codes
        assert {report.error for report in result.reports} == {""}
        alone = scan(Host(root), Expectations(), BOOK, "/nowhere/libnvidia-ml.so.1")
        odd = [("PCIE_DEGRADED", "0000:8d:00.0")] if "downgraded" in name else []  # among seven of its make
        assert [(one.code, one.device) for one in alone.findings] == odd
        assert alone.verdict == ("warning" if odd else "ok")


# The same machines' files as their tests upstream have them, path by path.
TWINS = CORPUS / "ib-tools/gcm-hw"


def built(name: str, root: Path) -> Host:
    """A machine of such a list, with the links of /sys/class that it left out."""
    for path, text in json.loads((TWINS / f"{name}.json").read_text()).items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for kind in ("infiniband", "net"):
        for device in root.glob(f"sys/bus/pci/devices/*/{kind}/*"):
            link = root / f"sys/class/{kind}/{device.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../../{device.relative_to(root / 'sys')}")
    return Host(root)


if TWINS.is_dir():

    @pytest.mark.parametrize(
        ("healthy", "sick", "found"),
        [
            ("learn_good", "learn_good", set()),
            ("learn_good", "learn_ib_misbound_if", set()),  # names only
            ("cache_rome_good", "cache_rome_good", set()),
            ("compute_samsung980pro", "compute_samsung980pro", set()),
            (
                "compute_samsung980pro",
                "compute_samsung980pro-downgraded",
                {("PCIE_DEGRADED", "0000:8d:00.0", "critical")},
            ),
            ("cache_milan_good", "cache_downlink", {("PCIE_DEGRADED", "0000:c3:00.0", "critical")}),
            (
                "learn_good",
                "learn_stuck_ib_intf",
                {("IB_PORT_DOWN", "mlx5_6/1", "critical"), ("IB_PORT_DOWN", "mlx5_8/1", "critical")},
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_a_healthy_machine_has_is_expected_of_another(
        tmp_path: Path, healthy: str, sick: str, found: set[tuple[str, str, str]]
    ) -> None:
        learned = Baseline()
        for report in scan(built(healthy, tmp_path / "healthy"), Expectations(), BOOK).reports:
            learned, _ = learn(learned, report)
        file = tmp_path / "config.toml"
        file.write_text(section(learned, "n1"))
        expected = Expectations(**config.load(str(file)).expected("n1"))
        result = scan(built(sick, tmp_path / "sick"), expected, BOOK)
        assert {(one.code, one.device, str(one.severity)) for one in result.findings} == found
