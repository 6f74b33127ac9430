"""What the benches share that run jobs on a sandbox: jobs and their output, Slurm's commands, tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from slurm_health import config
from slurm_health.client import ask
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

START_WITHIN = 60.0
BUDGET = "[budget]\npercent = 100\nwindow_percent = 100\n"
JOB = """#!/bin/sh
echo "$(date +%s.%N) ${SLURM_RESTART_COUNT:-0} $SLURM_JOB_NODELIST"
srun --kill-on-bad-exit sleep 600
"""
HEAD = "| seconds | n | median | p5 | p95 | worst |\n| --- | ---: | ---: | ---: | ---: | ---: |"


@dataclass
class Job:
    """A job of ours and what its output says."""

    box: Sandbox
    number: str
    output: Path

    @classmethod
    def submit(cls, box: Sandbox, *options: str) -> Job:
        script = box.folder / "job.sh"
        if not script.exists():
            script.write_text(JOB)
        output = f"{box.folder}/job-%j.out"
        words = ["--parsable", "--requeue", "--open-mode=append", "-o", output, *options, str(script)]
        number = slurm(box, "sbatch", *words).strip()
        return cls(box, number, Path(output.replace("%j", number)))

    def starts(self) -> list[tuple[float, str]]:
        """When each start was, and on which nodes."""
        try:
            lines = self.output.read_text().splitlines()
        except FileNotFoundError:
            return []
        words = [line.split() for line in lines if line[:1].isdigit()]
        return [(float(at), nodes) for at, _, nodes in words]

    def await_start(self, number: int, seconds: float) -> bool:
        return await_until(lambda: len(self.starts()) >= number, seconds)

    def await_step(self) -> bool:
        """Wait until its step runs too: before that there is nothing on the second node that could die."""
        words = ["squeue", "-h", "-s", "-j", self.number, "-o", "%i"]
        return calmly(lambda: f"{self.number}.0" in slurm(self.box, *words), START_WITHIN)

    def shown(self) -> str:
        return slurm(self.box, "squeue", "-h", "-t", "all", "-j", self.number, "-o", "%T %r %N %S").strip()


def slurm(box: Sandbox, *argv: str) -> str:
    done = subprocess.run(
        argv, env={**os.environ, **box.env()}, capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def by_hand(box: Sandbox, job: Job, node: str) -> bool:
    """An admin's script drains the node and requeues its job; whether Slurm took it."""
    slurm(box, "scontrol", "update", f"nodename={node}", "state=drain", "reason=GPU broken")

    def requeued() -> bool:  # a job that dies is COMPLETING for a moment
        try:
            slurm(box, "scontrol", "requeue", job.number)
        except RuntimeError:
            return False
        return True

    return calmly(requeued, 10.0)


def calmly(condition: Callable[[], object], seconds: float) -> bool:
    """`await_until` with pauses: what costs the machine something must not slow down what is measured."""
    return await_until(lambda: condition() or time.sleep(0.25), seconds)


def moment(iso: str | None) -> float:
    return datetime.fromisoformat(iso).timestamp() if iso else 0.0


def ask_status(box: Sandbox) -> dict[str, Any]:
    said: dict[str, Any] = ask(config.load(str(box.layout.config)), "GET", "/v1/status")
    return said


progress: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731


@contextlib.contextmanager
def up(box: Sandbox, **how: Any) -> Iterator[None]:
    """A sandbox for as long as the context lasts."""
    box.up(**how, progress=progress)
    try:
        yield
    finally:
        box.down(progress)


def keep(box: Sandbox, folder: Path | None) -> None:
    """Copy a sandbox's logs to a folder, if one is named."""
    if folder:
        leave = shutil.ignore_patterns("hardware", "spool", "socket*", "state")
        shutil.copytree(box.folder, folder, ignore=leave, dirs_exist_ok=True)


def figures(name: str, seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return f"| {name} | {len(seconds)} |" + " - |" * 4
    parts = statistics.quantiles(seconds, n=20)
    spread = [f"{parts[0]:.2f}", f"{parts[-1]:.2f}"] if len(seconds) >= 20 else ["-", "-"]
    cells = [f"{statistics.median(seconds):.2f}", *spread, f"{max(seconds):.2f}"]
    return f"| {name} | {len(seconds)} | {' | '.join(cells)} |"
