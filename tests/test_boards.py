"""Boards of real machines, loaded into the fake NVML library, where they lie beside the repository.

What a scan then finds is what EXPECTED.csv says. A fault is found whatever its severity; nothing healthy is
found at all.
"""

import shutil
from pathlib import Path

import corpus
import pytest

from slurm_health import rules
from slurm_health.baseline import Expectations
from slurm_health.host import Host
from slurm_health.model import Severity
from slurm_health.sandbox.library import build
from slurm_health.scan import scan

BOOK = rules.load()
BOARDS = corpus.boards()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler for the fake NVML")
    return str(build(tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"))


if BOARDS:

    @pytest.mark.parametrize("name", BOARDS)
    def test_what_a_board_shows(
        name: str, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(tmp_path / "nvml"))
        corpus.told(tmp_path, BOARDS[name])
        result = scan(Host(tmp_path), Expectations(), BOOK, library)
        [report] = [one for one in result.reports if one.probe == "gpu"]
        assert report.error == ""
        answering = [one for one in report.readings if one.name == "gpu.lost"]
        assert len(answering) == sum(line.startswith("gpu ") for line in BOARDS[name]) > 0
        codes = [one.code for one in result.findings]
        assert {code: codes.count(code) for code in codes} == corpus.FAULTS.get(name, {})
        critical = {one.code for one in result.findings if one.severity is Severity.CRITICAL}
        assert critical <= {"GPU_REMAP_PENDING"}  # the one fault here that takes a node out

    def test_no_verdict_is_left_out() -> None:
        """All that EXPECTED.csv has a verdict on; one text is of boards without NVLinks, and empty."""
        files = {file.name for file in (*corpus.SETS, *corpus.TEXTS)}
        assert files - BOARDS.keys() == {
            "nvidia-smi-query.535.183.01.out.0.invalid", "nvidia-smi.nvlink.status.a10"
        }  # fmt: skip
        assert BOARDS.keys() > corpus.FAULTS.keys()
