"""Each code has a page, made from the tables that judge."""

from pathlib import Path

import pytest

from slurm_health import explain, rules

BOOK = rules.load()


def test_every_code_has_a_page() -> None:
    codes = explain.codes(BOOK)
    assert len(codes) == len(set(codes))
    for code in codes:
        page = explain.page(code, BOOK)
        assert page.startswith(f"{code}: ")
        for word in ("seen by", "node", "jobs", "do "):
            assert word in page, (code, word)
        assert max(map(len, page.splitlines())) <= 130


def test_every_code_of_the_probes_has_a_page() -> None:
    from slurm_health.probes import PROBES

    public = set(explain.codes(BOOK))
    listed = {code for probe in PROBES for code in probe.codes}
    assert {code for code in listed if "<" not in code} <= public
    tables = tuple(f"{prefix}_" for prefix in rules.EVENTS.values())
    assert {one.code for one in BOOK.rules if not one.code.startswith(tables)} <= listed


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("GPU_XID_79", ["requeued at once", "the hardware's", "xid-errors"]),
        ("gpu_xid_31", ["an application's", "left alone", "stays in service"]),
        ("GPU_XID_149", ["but if", "fatal: critical", "reset: critical"]),
        ("GPU_XID_64", ["a warning; the node stays", "remap state"]),
        ("GPU_XID_13", ["left alone", "in 3 users within"]),
        ("PCIE_ERRORS", ["kernel.aer is fatal", "kernel.aer is corrected, 30 times within 1h"]),
        ("KERNEL_OOM", ["stays in service", "left alone"]),
        ("GPU_XID_99999", ["unknown meaning", "left alone"]),
        ("IB_PORT_DOWN", ["for 5 s", "never seen"]),
        ("GPU_DRIVER_FAILED", ["3 times in a row"]),
        ("NODE_SILENT", ["never acts by itself"]),
    ],
)
def test_what_a_page_says(code: str, words: list[str]) -> None:
    page = " ".join(explain.page(code, BOOK).split())
    for word in words:
        assert word in page


def test_a_page_follows_the_sites_rules() -> None:
    book = rules.load([{"code": "NIC_DOWN", "reading": "nic.down", "hold": "17s"}])
    assert "for 17 s" in explain.page("NIC_DOWN", book)


@pytest.mark.parametrize("code", ["GPU_MISING", "", "XID_79", "GPU_XID_", "GPU_XID_x"])
def test_no_such_code(code: str) -> None:
    with pytest.raises(KeyError):
        explain.page(code, BOOK)


def test_a_code_that_is_nearly_right_is_answered_with_those_that_are() -> None:
    with pytest.raises(KeyError, match="GPU_MISSING"):
        explain.page("GPU_MISING", BOOK)


def test_the_tables_of_the_documentation_are_current() -> None:
    made = explain.markdown(BOOK)
    kept = (Path(__file__).parents[1] / "docs/FAULTS.md").read_text()
    assert kept == made, "slurm-health explain --markdown > docs/FAULTS.md"
    for rule in BOOK.rules:
        assert f"| {rule.code} | {rule.text} | {rule.reading} " in made
    for code in explain.codes(BOOK):
        assert code in explain.ELSEWHERE or f"| {code} |" in made


def test_a_page_of_a_windowed_rule_says_its_window() -> None:
    row = {"reading": "a.b", "severity": "warning", "text": "x"}
    counter = {**row, "code": "A", "when": {"rises": 120}, "within": "1h", "clear": "boot"}
    lasting = {**row, "code": "B", "when": {"is": True}, "lasts": "60s", "within": "10m", "clear": "never"}
    repeated = {**row, "code": "GPU_XID_13", "reading": "kernel.xid", "when": {"is": 13}, "times": 3,
                "within": "24h", "distinct": "user"}  # fmt: skip
    book = rules.load([counter, lasting, repeated])
    assert "a.b rises by 120 or more within 1h" in explain.page("A", book)
    assert "with the next boot" in explain.page("A", book)
    assert "a.b is true, for 1m in all within 10m" in explain.page("B", book)
    assert "incidents close" in explain.page("B", book)
    page = explain.page("GPU_XID_13", book)
    assert "an application's" in page
    assert "kernel.xid is 13, in 3 users within 1d" in page
