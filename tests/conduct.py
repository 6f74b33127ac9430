"""What is promised, each with ways to break it and the test that then fails.

    python tests/conduct.py [NUMBER ...]   break each (or these) in a copy of the code, show that a test fails
    python tests/conduct.py --table        print tests/CONDUCT.md

Tests on the real Slurm need root. What is broken, and which test finds it, stands in conduct.toml.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROMISES: list[dict[str, Any]] = tomllib.loads((ROOT / "tests/conduct.toml").read_text())["promise"]


def table() -> str:
    lines = [
        "# What is promised, and the test that fails when it is broken",
        "",
        "From conduct.toml, which holds each break as a change, by `python tests/conduct.py --table`.",
        "`make conduct` makes each of them in a copy of the code and shows that the test fails.",
        "",
        "| | promise | broken by | test that fails |",
        "| ---: | --- | --- | --- |",
    ]
    for promise in PROMISES:
        number, says = f"{promise['number']}", promise["says"]
        for broken in promise["broken"]:
            test = broken["test"].removeprefix("tests/")
            lines.append(f"| {number} | {says} | {broken['how']} | `{test}` |")
            number = says = ""
    return "\n".join(lines) + "\n"


def fails_when_broken(broken: dict[str, str]) -> bool:
    """Whether the test passes on a copy of the code and fails once that is broken."""
    with tempfile.TemporaryDirectory(prefix="conduct-") as folder:
        copy = Path(folder) / "code"
        leave = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=leave)
        if not _passes(copy, broken["test"]):
            sys.exit(f"{broken['test']} fails on sound code")
        file = copy / broken["file"]
        text = file.read_text()
        file.write_text(text.replace(broken["old"], broken["new"], 1))
        return not _passes(copy, broken["test"])


def _passes(copy: Path, test: str) -> bool:
    argv = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", test]
    env = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(argv, cwd=copy, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{test}: {done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("number", nargs="*", type=int, help="only these promises")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        print(table(), end="")
        return
    survived = 0
    for promise in PROMISES:
        if given.number and promise["number"] not in given.number:
            continue
        for broken in promise["broken"]:
            caught = fails_when_broken(broken)
            survived += not caught
            said = "caught " if caught else "MISSED "
            print(f"{promise['number']:3} {said} {broken['how']}: {broken['test']}", flush=True)
    if survived:
        sys.exit(f"{survived} broken and not caught")


if __name__ == "__main__":
    main()
