"""The table of promises is current, and each of its breaks can still be made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import conduct
import pytest

BREAKS = [(promise["number"], broken) for promise in conduct.PROMISES for broken in promise["broken"]]


def test_the_table_is_current() -> None:
    assert (conduct.ROOT / "tests/CONDUCT.md").read_text() == conduct.table()


def test_no_promise_is_left_out() -> None:
    assert [promise["number"] for promise in conduct.PROMISES] == list(range(1, 16))


@pytest.mark.parametrize(
    "broken", [broken for _, broken in BREAKS], ids=[broken["how"] for _, broken in BREAKS]
)
def test_each_break_fits_the_code_and_its_test_exists(broken: dict[str, Any]) -> None:
    assert (conduct.ROOT / broken["file"]).read_text().count(broken["old"]) == 1
    file, _, name = broken["test"].partition("::")
    text = Path(conduct.ROOT / file).read_text()
    assert not name or re.search(rf"^(async )?def {name.partition('[')[0]}\(", text, re.MULTILINE)
