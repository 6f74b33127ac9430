"""The table in docs/SLURM.md, from what the tests said: table.py JUNIT.xml ... (`make docker-table`)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs/SLURM.md"
BEGIN, END = "<!-- docker/table.py -->\n", "<!-- end -->\n"
COLUMNS = ("Slurm", "by", "passed", "failed", "skipped", "at commit")


class Run(NamedTuple):
    """One run of the whole suite; `skipped` says how many and why, "0" where none was."""

    slurm: str
    backend: str
    passed: str
    failed: str
    skipped: str
    commit: str

    @property
    def key(self) -> tuple[str, str]:
        """Release and backend, which have one row."""
        return self.slurm.rpartition(".")[0], self.backend


def read(report: Path, commit: str) -> Run:
    """A run from pytest's JUnit file. Which Slurm it was, and which way to it, its tests have noted."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    noted = {(one.get("name", ""), one.get("value", "")) for case in cases for one in case.iter("property")}
    said = dict(noted)
    if len(noted) != len(said) or not {"slurm", "backend"} <= said.keys():
        raise SystemExit(f"{report}: is of no one Slurm by one way: {sorted(noted)}")
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    why = Counter(one.get("message", "") for case in cases for one in case.iter("skipped"))
    skipped = "; ".join(f"{many}: {reason}" for reason, many in sorted(why.items())) or "0"
    passed = len(cases) - failed - why.total()
    return Run(said["slurm"].split()[-1], said["backend"], str(passed), str(failed), skipped, commit)


def parse(page: str) -> dict[tuple[str, str], Run]:
    """The runs that the page tells."""
    lines = page[page.index(BEGIN) + len(BEGIN) : page.index(END)].splitlines()[2:]
    runs = (Run(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines)
    return {run.key: run for run in runs}


def render(page: str, runs: Mapping[tuple[str, str], Run]) -> str:
    """The page with these runs in its table."""
    rows: list[Iterable[str]] = [COLUMNS, ("---", "---", "---:", "---:", "---", "---")]
    rows += [runs[key] for key in sorted(runs)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return page[: page.index(BEGIN) + len(BEGIN)] + table + page[page.index(END) :]


def main() -> None:
    asked = ["git", "-C", str(TOP), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    page = PAGE.read_text()
    found = (read(Path(name), commit) for name in sys.argv[1:])
    PAGE.write_text(render(page, parse(page) | {run.key: run for run in found}))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
