"""Data of real machines, where it lies beside the repository. Absent, there is nothing to collect."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from corpus import (
    CLASSES,
    CORPUS,
    EXPECTED,
    INNOCENT,
    LOGS,
    TREES,
    code,
    configured,
    labels,
    spelled,
    unpacked,
)

from slurm_health import config, rules
from slurm_health.baseline import Baseline, Expectations, learn
from slurm_health.cli import main
from slurm_health.expected import section
from slurm_health.host import Host
from slurm_health.probes.kernel.nvlink import decode
from slurm_health.replay import replay
from slurm_health.scan import scan

BOOK = rules.load()


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
            assert one["code"] == code(row)
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

    @pytest.mark.parametrize("tree", TREES, ids=lambda path: path.name.partition(".")[0])
    def test_trees(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_HEALTH_NVML_LIBRARY", "/nowhere/libnvidia-ml.so.1")
        name, root = unpacked(tree, tmp_path)
        words = ["scan", "--root", str(root), "--json", "--node", "n1"]
        done = CliRunner().invoke(main, [*words, "--config", str(configured(name, tmp_path))])
        said, faults = json.loads(done.stdout), EXPECTED[name][1]
        assert {(one["code"], one["device"]) for one in said["findings"]} == faults
        assert {report["error"] for report in said["reports"]} == {""}
        assert (said["verdict"], done.exit_code) == (("critical", 2) if faults else ("ok", 0))
        alone = scan(Host(root), Expectations(), BOOK, "/nowhere/libnvidia-ml.so.1")
        odd = [("PCIE_DEGRADED", "0000:8d:00.0")] if "downgraded" in name else []  # among seven of its make
        assert [(one.code, one.device) for one in alone.findings] == odd
        assert alone.verdict == ("warning" if odd else "ok")

    def test_no_tree_is_without_a_verdict() -> None:
        assert {tree.name.removesuffix(".tar.gz") for tree in TREES} == EXPECTED.keys()


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


# -- the catalogues ----------------------------------------------------------------------

TABLES = CORPUS.with_name("reference")
TO_DO = {"RESET_GPU": "reset", "IGNORE": "ignore", "XID_154_EVAL": "follow"}


def table(name: str) -> list[dict[str, str]]:
    with (TABLES / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


if TABLES.is_dir():

    @pytest.mark.parametrize("kind", ["xid", "sxid"])
    def test_every_number_of_the_tables_is_known(kind: str) -> None:
        numbers = {int(row[kind]) for row in table(f"{kind}s")}
        assert len(numbers) > 90
        assert numbers <= BOOK.events[f"kernel.{kind}"].keys()

    @pytest.mark.parametrize("layout", ["intrinfo_v1_driver_lt_R575", "intrinfo_v2_driver_ge_R575"])
    def test_every_row_of_nvlink_5_decodes_to_what_is_to_be_done(layout: str) -> None:
        for row in table("xid_nvlink5_rules"):
            info = int(row[layout].replace("-", "0"), 2)
            for status in row["error_status_hex"].split("/"):
                said = decode(int(row["xid"]), row["unit"], info, int(status or "0", 16))
                assert said == TO_DO[row["immediate_action"]], row
