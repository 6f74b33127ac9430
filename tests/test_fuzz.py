"""A short run of the fuzz target; `python tests/fuzz.py --seconds 600` is a long one."""

from pathlib import Path

import pytest
from fuzz import LINES, hunt


@pytest.mark.parametrize("seed", range(2))
def test_nothing_crashes_is_found_or_grows(tmp_path: Path, seed: int) -> None:
    looks, lines, grown, found = hunt(tmp_path / "machine", seed, seconds=300, looks=40)
    assert looks == 40 + 1
    assert lines >= 19 * LINES
    assert [f"{one.code}({one.device}) {one.evidence}" for one in found] == []
    assert grown < 1 << 20
