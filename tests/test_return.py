"""A node that is out by us is put back only on the word of a daemon that speaks and sees."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from test_web import FakeSlurm, asynchronous, site

from slurm_health.drain import SILENT
from slurm_health.model import Finding, Severity, Urgency

LINK = Finding("IB_PORT_DOWN", Severity.CRITICAL, "mlx5_4/1", "down", "DOWN", Urgency.NOW, 1.0, "b/1", True)
AUTO: dict[str, Any] = {"mode": "drain", "resume": {"mode": "auto", "after": 0}}


@dataclass
class Resuming(FakeSlurm):
    async def resume(self, names: Iterable[str]) -> None:
        for name in names:
            self.done.append(("resume", name))
            self.known[name] = replace(self.known[name], flags=frozenset({"IDLE"}))


@pytest.mark.parametrize(
    ("ago", "blind", "expected"),
    [
        (0.0, {}, ["drain", "resume"]),
        (0.0, {"gpu": "no answer in 10 s"}, ["drain"]),
        (SILENT + 1, {}, ["drain"]),
    ],
    ids=["speaks and sees", "blind", "silent"],
)
@asynchronous
async def test_whose_word_counts(
    tmp_path: Path, ago: float, blind: dict[str, str], expected: list[str]
) -> None:
    slurm = Resuming()
    async with site(tmp_path, slurm, **AUTO) as here:
        await here.report(LINK)
        await here.settle()
        await here.report(blind=blind)  # the link is back
        here.controller.reported["n1"] = (time.time() - ago, "ok")
        await here.settle()
        assert [what for what, *_ in slurm.done] == expected
        await here.report()
        here.controller.drains.look_at("n1")
        await here.settle()
        assert [what for what, *_ in slurm.done] == ["drain", "resume"]
