"""The epilog: the card is marked ended, and a fresh `bad` alone makes it fail."""

import re
from pathlib import Path

import pytest
from test_prolog import (
    ACCEPTED,
    EPILOG,
    PROLOG,
    REFUSED,
    SHELLS,
    Node,
    anyones,
    as_of_now,
    node,
    ordinary,
    uptime,
)

__all__ = ["anyones", "node"]

CARD = "job=4711\nuid=1000\ngpus=0,3\nrestarts=2\nuptime=5\n"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("verdict", REFUSED.values(), ids=REFUSED)
def test_a_fresh_bad_verdict_fails(node: Node, shell: str, verdict: str) -> None:
    node.say(as_of_now(verdict))
    code, out, err = node.hook(shell, EPILOG)
    assert (code, out) == (1, b"")
    assert re.fullmatch(rb"slurm-health: [ -~]{1,200}\n", err)


@pytest.mark.parametrize("verdict", ACCEPTED.values(), ids=ACCEPTED)
def test_everything_else_is_well(node: Node, shell: str, verdict: str) -> None:
    node.say(as_of_now(verdict))
    assert node.hook(shell, EPILOG) == (0, b"", b"")


@pytest.mark.parametrize("state", ["ok", "bad", ""])
def test_the_card_is_marked(node: Node, shell: str, state: str) -> None:
    (node.run / "jobs/4711.2").write_text(CARD)
    (node.run / "jobs/4711.1").write_text(CARD)
    node.say(f"{state} {uptime()} x\n")
    before = uptime()
    node.hook(shell, EPILOG)
    head, _, last = node.cards["4711.2"].partition("ended=")
    assert head == CARD
    assert last.endswith("\n")
    assert before <= int(last) <= uptime()
    assert node.cards["4711.1"] == CARD


def test_the_card_of_a_run_that_was_requeued_is_marked(node: Node, shell: str) -> None:
    """Slurm has counted the restart by then: the run that ends is the one before."""
    (node.run / "jobs/4711.1").write_text(CARD)
    (node.run / "jobs/4711.0").write_text(CARD)
    assert node.hook(shell, EPILOG) == (0, b"", b"")
    assert re.fullmatch(rf"{CARD}ended=\d+\n", node.cards["4711.1"])
    assert node.cards["4711.0"] == CARD


def test_a_job_without_a_card_gets_none(node: Node, shell: str) -> None:
    assert node.hook(shell, EPILOG) == (0, b"", b"")
    assert node.cards == {}


def test_a_card_that_did_not_fit_stays_empty(node: Node, shell: str) -> None:
    (node.run / "jobs/4711.2").touch()
    assert node.hook(shell, EPILOG) == (0, b"", b"")
    assert node.cards == {"4711.2": ""}


@pytest.mark.parametrize("number", ["/", "../jobs/4711", "*", "08", "$(touch A)"])
def test_only_numbers_reach_the_path(node: Node, shell: str, number: str) -> None:
    (node.run / "jobs/4711.2").write_text(CARD)
    assert node.hook(shell, EPILOG, SLURM_JOB_ID=number) == (0, b"", b"")
    assert node.hook(shell, EPILOG, SLURM_JOB_RESTART_COUNT=number) == (0, b"", b"")
    assert node.cards == {"4711.2": CARD}


def test_a_job_that_never_restarted(node: Node, shell: str) -> None:
    (node.run / "jobs/4711.0").write_text(CARD)
    node.hook(shell, EPILOG, SLURM_JOB_RESTART_COUNT="")
    assert "ended=" in node.cards["4711.0"]


def test_a_card_that_cannot_be_marked(anyones: Node, shell: str) -> None:
    (anyones.run / "jobs/4711.2").write_text(CARD)
    (anyones.run / "jobs/4711.2").chmod(0o444)
    assert anyones.hook(shell, anyones.cwd.parent / "epilog.sh", before=ordinary) == (0, b"", b"")
    assert anyones.cards == {"4711.2": CARD}


def test_no_folder(node: Node, shell: str) -> None:
    (node.run / "jobs").rmdir()
    node.run.rmdir()
    assert node.hook(shell, EPILOG) == (0, b"", b"")


def test_a_refused_job_from_prolog_to_epilog(node: Node, shell: str) -> None:
    node.say(f"bad {uptime()} x\n")
    assert [node.hook(shell, script)[0] for script in (PROLOG, EPILOG)] == [1, 1]
    keys = [line.partition("=")[0] for line in node.cards["4711.2"].splitlines()]
    assert keys == ["job", "uid", "gpus", "restarts", "uptime", "refused", "ended"]


def test_the_scripts_can_be_executed() -> None:
    for script in (PROLOG, EPILOG):
        assert Path(script).stat().st_mode & 0o555 == 0o555
        assert script.read_text().startswith("#!/bin/sh\n")
