"""Data of real machines, where it lies beside the repository. Absent, there is nothing to collect."""

import csv
import tarfile
from pathlib import Path

import pytest

from slurm_health import rules
from slurm_health.baseline import Expectations
from slurm_health.host import Host
from slurm_health.replay import replay
from slurm_health.scan import scan

CORPUS = Path(__file__).resolve().parents[1].with_name("shared") / "corpus"
LOGS = sorted(CORPUS.glob("kmsg/*.log"))
TREES = sorted(CORPUS.glob("sysfs/*.tar.gz"))
CLASSES = {"xid", "sxid"}  # what this version reads; the corpus labels more
BOOK = rules.load()
# nothing but applications' errors, or nothing at all
INNOCENT = ("healthy", "xid13-43", "userspace", "peermem", "filemax", "segfault", "nvswitch-open", "veth")


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
            prefix = "GPU_XID" if row["class"] == "xid" else "NVSWITCH_SXID"
            assert one["code"] == f"{prefix}_{row['code']}"
            device = row["device"].lower()
            assert one["device"] == (device if "." in device else f"{device}.0")
            assert str(one["pid"] or "") == row["pid"]
            if row["fatal_word"] == "Fatal":
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
        "gcm-compute_samsung980pro-downgraded": (Expectations(ib_gbps=200), set()),  # PCIe: a later version
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
        assert scan(Host(root), Expectations(), BOOK, "/nowhere/libnvidia-ml.so.1").findings == ()
