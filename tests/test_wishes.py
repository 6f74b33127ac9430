"""What owners write for us, and what anybody may have written around it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health import wishes
from slurm_health.model import Wish

SITE = Wish()
KEYS = st.sampled_from(
    ["requeue=", "signal=", "steps=", "off", "slurm-health:", ";", " ", "@", "USR1", "all"]
)
HOSTILE = st.lists(KEYS | st.text(max_size=8) | st.integers().map(str)).map("".join)


def read(comment: str) -> Wish:
    wish, told = wishes.read(comment, SITE, 10, 600.0)
    assert not told
    return wish


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("", SITE),
        ("billing=4711", SITE),
        ("slurm-health:", SITE),
        ("slurm-health: off", replace(SITE, requeue=0)),
        ("slurm-health: requeue=0", replace(SITE, requeue=0)),
        ("slurm-health: requeue=5 signal=USR1@120 steps=all", Wish(5, "USR1", 120.0, "all")),
        ("slurm-health:signal=SIGUSR2", replace(SITE, signal="USR2")),
        ("slurm-health: signal=none", SITE),
        ("a=b; slurm-health: requeue=5 ; c=d off", replace(SITE, requeue=5)),
        ("requeue=5 signal=KILL slurm-health: steps=all", replace(SITE, steps="all")),
        ('{"a": "slurm-health: requeue=5", "b": 1}', replace(SITE, requeue=5)),
        ("slurm-health: requeue=5; slurm-health: requeue=2", replace(SITE, requeue=2)),
        ("slurm-health: requeue=5 slurm-health: requeue=2", replace(SITE, requeue=2)),
        ("not-slurm-health: off", SITE),
        ("slurm-health: requeue=x off", replace(SITE, requeue=0)),
        ("slurm-health: requeue=5 saved=1700000000.25", replace(SITE, requeue=5)),
    ],
)
def test_what_is_understood(comment: str, expected: Wish) -> None:
    assert read(comment) == expected
    assert read(wishes.ours(comment)) == expected


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("requeu=5", "known are"),
        ("requeue=", "write requeue=5"),
        ("requeue=-1", "write requeue=5"),
        ("requeue=\N{ARABIC-INDIC DIGIT FIVE}", "write requeue=5"),
        ("requeue=5 signal=KILL", "write signal=USR1@120"),
        ("signal=USR1@", "write signal=USR1@120"),
        ("signal=USR1@2m", "write signal=USR1@120"),
        ("signal=10", "write signal=USR1@120"),
        ("steps=batch,all", "write steps=batch"),
        ("requeue=5 please", "known are"),
        ("saved=now", "write saved=$(date +%s)"),
    ],
)
def test_what_is_not_understood_is_told_and_the_sites_defaults_hold(words: str, hint: str) -> None:
    wish, told = wishes.read(f"slurm-health: {words}", SITE, 10, 600.0)
    assert wish == SITE
    assert hint in told
    assert told.endswith("this site's defaults hold")


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("", 0.0),
        ("saved=1700000000", 0.0),
        ("slurm-health: saved=1700000000", 1.7e9),
        ("slurm-health: saved=1600000000 requeue=5; x; slurm-health: saved=1700000000.5", 1.7e9 + 0.5),
        ("slurm-health: saved=1600000000 saved=nan", 0.0),
        ("slurm-health: saved=1e400", 0.0),
        ("slurm-health: saved=-5", 0.0),
        ("slurm-health: saved=" + "9" * 400, 0.0),
    ],
)
def test_when_a_job_saved_its_work(comment: str, expected: float) -> None:
    assert wishes.saved(comment) == expected


def test_the_sites_bounds_hold_and_are_told() -> None:
    wish, told = wishes.read("slurm-health: requeue=99 signal=USR1@9999", SITE, 10, 600.0)
    assert (wish.requeue, wish.grace) == (10, 600.0)
    assert told == "requeue=99 is more than this site's 10; 9999 s of grace are more than this site's 600"


@given(HOSTILE, HOSTILE)
def test_nothing_that_is_written_goes_beyond_the_bounds(before: str, words: str) -> None:
    comment = f"{before} slurm-health: {words}"
    wish, told = wishes.read(comment, SITE, 10, 600.0)
    assert 0 <= wish.requeue <= 10
    assert 0 <= wish.grace <= 600
    assert wish.signal in ("", *wishes.SIGNALS)
    assert wish.steps in ("batch", "all")
    assert wish.unasked is SITE.unasked
    assert told.isprintable()
    assert told.isascii()
    assert len(told) < 300
    assert len(wishes.ours(comment)) <= wishes.PARTS * (wishes.LONGEST + 20)
    assert wishes.read(wishes.ours(comment), SITE, 10, 600.0) == (wish, told)


@given(st.text())
def test_who_does_not_name_us_says_nothing(comment: str) -> None:
    said = comment.replace("slurm-health:", "")
    assert wishes.ours(said) == "" or "slurm-health:" in said


@pytest.mark.parametrize("before", ["", "project=x", "slurm-health: requeue=5", "a; b"])
def test_the_next_run_is_told_beside_what_its_owner_wrote(before: str) -> None:
    once = wishes.told(before, 1, "n1", "XID; gone")
    assert once == "; ".join(
        filter(None, [before, "slurm-health-was: attempt=1 bad_nodes=n1 reason=XID, gone"])
    )
    twice = wishes.told(once, 2, "n[1-2]", "again")
    assert twice == once.replace("=1 bad_nodes=n1 reason=XID, gone", "=2 bad_nodes=n[1-2] reason=again")
    assert read(twice) == read(before)
