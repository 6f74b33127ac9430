"""Hysteresis: counters, strikes, durations within a window, what sticks, and cool-downs that grow."""

import json
import random
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_rules import BOOK, CRITICAL, WARNING, Node, own, state, xid

from slurm_health.model import Finding, Reading, Urgency
from slurm_health.rules import RuleBook, RuleError, counting, load
from slurm_health.rules import window as windows
from slurm_health.rules.judging import BURST, MOST

HOUR = 3600.0


def counter(value: object, device: str = "d", width: str = "") -> Reading:
    return Reading("own", device, value, detail=width)  # type: ignore[arg-type]


def counts(*values: object, every: float = 15.0, width: str = "", **rule: object) -> list[bool]:
    """Whether there is a finding at each value of a counter, or None for a look that brought none."""
    node = Node(own(**{"when": {"rises": 10}, "within": "10m", "clear": "0s", **rule}))
    return [
        bool(node(1e9 + n * every, *([] if value is None else [counter(value, width=width)])))
        for n, value in enumerate(values)
    ]


# -- counters ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([4711, 4711], [0, 0]),  # what it shows at first sight is old
        ([0, 9], [0, 0]),
        ([0, 10], [0, 1]),
        ([0, 4, 8, 12], [0, 0, 0, 1]),
        ([100, 0, 0], [0, 0, 0]),  # reset
        ([100, 0, 9, 9], [0, 0, 0, 0]),
        ([100, 9, 10], [0, 0, 1]),  # it rose by 10 since
        ([100, 12, 12], [0, 0, 1]),
        ([100, 12, 101, 101], [0, 0, 0, 0]),  # it had been misread
        ([100, 12, 1, 101], [0, 0, 0, 0]),
        ([100, 50, 20, 5, 4, 4], [0] * 6),
        ([0, None, 10], [0, 0, 1]),
        ([0, True, 3.5, "10", -1, 9], [0] * 6),
    ],
)
def test_a_counter_is_judged_by_what_it_rose(values: list[object], found: list[int]) -> None:
    assert counts(*values) == [bool(one) for one in found]


def test_what_came_before_the_window_is_over() -> None:
    quiet = [10] * 41
    assert counts(0, *quiet) == [False, *[True] * 40, False]
    assert not any(counts(*range(0, 900, 9), every=600.0))  # nine in any ten minutes


def test_at_its_end_a_counter_says_nothing_more() -> None:
    found = counts(0, 250, *[255] * 200, width="8bit")
    assert found == [False] + [True] * 201  # not gone: what comes can no longer be seen
    assert counts(*[255] * 100, width="8bit") == [False] * 100
    assert counts(255, 3, 3, 3, width="8bit") == [False] * 4  # a reset from there
    assert counts(0, 250, *[255] * 50, *[0] * 45, width="8bit")[-1] is False
    assert counts(0, 250, *[255] * 50, width="16bit")[-1] is False


def test_a_rise_while_nobody_looked_is_spread_over_that_time() -> None:
    node = Node(own(when={"rises": 10}, within="1h"))
    node(0.0, counter(0))
    node.restart()
    assert node(10 * HOUR, counter(99)) == ()
    node = Node(own(when={"rises": 10}, within="1h"))
    node(0.0, counter(0))
    [found] = node(9 * HOUR, counter(90))
    assert "rose by 10 within 1h, to 90" in found.evidence


def test_rates_below_one_and_two_limits_of_one_counter() -> None:
    assert counts(0, 0, 1, when={"rises": 0.5}, within="2s") == [False, False, False]  # spread over 15 s
    assert counts(0, 0, 1, when={"rises": 0.5}, within="30s") == [False, False, True]
    off = [{"code": one.code, "enabled": False} for one in BOOK.rules]
    row = {"code": "OWN", "reading": "own", "within": "1h", "text": "x"}
    little = {**row, "when": {"rises": 1}, "severity": "warning"}
    much = {**row, "when": {"rises": 100}, "severity": "critical", "case": "much"}
    node = Node(load([*off, little, much]))
    node(0.0, counter(0))
    assert [one.severity for one in node(15.0, counter(1))] == [WARNING]
    assert [one.severity for one in node(30.0, counter(101))] == [CRITICAL]


def test_a_reboot_starts_afresh_and_a_restart_goes_on() -> None:
    node = Node(own(when={"rises": 10}, within="1h"))
    node(0.0, counter(0))
    node(15.0, counter(6))
    node.restart()
    assert node(30.0, counter(10))
    node = Node(own(when={"rises": 10}, within="1h"))
    node(0.0, counter(0))
    node(15.0, counter(6))
    node.restart("another boot")
    assert node(30.0, counter(50)) == ()


A_MINUTE = own(when={"rises": 82}, within="1m", clear="0s")
COUNTS = st.lists(st.one_of(st.none(), st.integers(0, 40)), max_size=60)


@settings(max_examples=200)
@given(
    COUNTS,
    st.lists(st.sampled_from(["reset", "restart", "misread", "back", "ahead"]), max_size=60),
    st.integers(0, 2**32),
)
def test_nothing_but_rises_is_ever_found(steps: list[int | None], troubles: list[str], first: int) -> None:
    """A counter that never rises by half the limit within the window, whatever else happens: no finding.
    (Half, for a reset that nobody saw while the clock was set back.)"""
    node = Node(A_MINUTE)
    now, value, misread = 1e9, first, False
    node(now, counter(value))
    for number, step in enumerate(steps):
        now += 60.0  # a window each
        trouble = troubles[number] if number < len(troubles) else ""
        if trouble == "restart":
            node.restart()
        elif trouble == "reset":
            value = 0
        elif trouble == "back":
            now -= 86400.0
        elif trouble == "ahead":
            now += 86400.0
        if step is None:
            assert node(now) == ()
            continue
        shown = value + step
        misread = trouble == "misread" and not misread  # the same twice is what a reset looks like
        if misread:
            assert node(now, counter(int(str(value)[:-1] or 0))) == ()
        else:
            value = shown
            assert node(now, counter(value)) == ()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.01, 400), st.integers(0, 1000)), min_size=1, max_size=400))
@example([(1.0, 1), (1.0, 0), (1.0, 1), (199.0, 0), (400.0, 0)])
def test_a_window_stays_small_and_true(steps: list[tuple[float, int]]) -> None:
    """A window is never more than what came, within a part of it; and bounded, however often one looks."""
    within, now, value = 600.0, 0.0, 0
    window = windows.rise(None, value, now, within)
    came: list[tuple[float, float, int]] = []
    for pause, rise in steps:
        came.append((now, now + pause, rise))
        now += pause
        value += rise
        window = windows.rise(window, value, now, within)
        assert len(window["steps"]) <= windows.STEPS + 3
        total = windows.total(window, now, within)
        assert total <= sum(one for _, end, one in came if end > now - within * 1.1) + 1e-6
        joined = 2 * within / windows.STEPS  # what is close together counts as spread over so long
        assert total >= sum(one for start, _, one in came if start >= now - within + joined) - 1e-6
    assert windows.sound(json.loads(json.dumps(window)))


# -- durations in a window ---------------------------------------------------------------


def throttled(pattern: Iterable[bool | None], every: float = 15.0, **rule: object) -> list[bool]:
    node = Node(own(**{"lasts": "60s", "within": "10m", "clear": "0s", **rule}))
    found = []
    for number, bad in enumerate(pattern):
        found.append(bool(node(1e9 + number * every, *([] if bad is None else [state(bad)]))))
        node.restart()
    return found


def test_what_lasts_in_all_within_a_window() -> None:
    assert throttled([True] * 5) == [False] * 4 + [True]
    assert not any(throttled([False, True, True, False] * 3))  # 15 s each
    in_turn = throttled([True, True, False] * 4)
    assert in_turn == [False] * 10 + [True] * 2  # four times 15 s
    assert throttled([True] * 5 + [False] * 40)[-4:] == [False] * 4
    assert not any(throttled([True, False] * 100))  # never two looks in a row
    assert not any(throttled([True] * 4 + [False] * 500))


def test_what_nobody_saw_did_not_last() -> None:
    assert not any(throttled([True, *[None] * 39, True]))
    assert throttled([True, *[None] * 4, True])[-1]


def test_a_state_that_was_never_bad_costs_no_memory() -> None:
    node = Node(own(lasts="60s", within="10m"))
    node(1.0, state(False))
    assert node.memory["windows"] == {}
    node(2.0, state(True))
    node(3.0, state(False))
    assert node.memory["windows"] == {} or counting(node.memory)
    node(3000.0, state(False))
    assert node.memory["windows"] == {}


# -- strikes -----------------------------------------------------------------------------


def strikes(**rule: object) -> RuleBook:
    row = {
        "code": "GPU_XID_13", "reading": "kernel.xid", "case": "own", "when": {"is": 13},
        "severity": "critical", "text": "again and again", "job": "none", "times": 3, "within": "24h",
    }  # fmt: skip
    return load([{**row, **rule}])


def event(code: int, sequence: int, at: float, job: str = "", device: str = "0000:3b:00.0") -> Reading:
    one = xid(code, sequence, device, at)
    return Reading(one.name, one.device, one.value, one.evidence, one.moment, at, job=job)


def test_the_third_strike_is_the_finding_and_one_only() -> None:
    node = Node(strikes())
    for number in range(2):
        [found] = node(number * 10.0, event(13, number, number * 10.0))
        assert (found.severity, found.text) == (WARNING, BOOK.events["kernel.xid"][13].text)
    [found] = node(20.0, event(13, 2, 20.0))
    assert (found.code, found.severity, found.job, found.lasting) == (
        "GPU_XID_13", CRITICAL, Urgency.NONE, False,
    )  # fmt: skip
    assert found.moment == "boot/2"
    assert found.evidence.endswith("(the 3. within 1d)")
    assert [one.severity for one in node(30.0, event(13, 4, 30.0, device="0000:5d:00.0"))] == [WARNING]
    assert [one.severity for one in node(86425.0, event(13, 5, 86425.0))] == [WARNING]  # two were long ago


def test_a_burst_is_one_strike() -> None:
    node = Node(strikes())
    many = [event(13, n, 10 + n / 1000) for n in range(500)]
    assert [one.severity for one in node(11.0, *many)] == [WARNING]
    assert [one.severity for one in node(20.0, *[event(13, 600 + n, 19.0) for n in range(5)])] == [WARNING]
    assert BURST == 2.0


@pytest.mark.parametrize(
    ("distinct", "jobs", "found"),
    [
        ("job", ["1.0/7", "2.0/7", "3.0/7"], True),
        ("user", ["1.0/7", "2.0/7", "3.0/7"], False),
        ("user", ["1.0/7", "2.0/8", "3.0/9"], True),
        ("job", ["1.0/7", "1.0/7", "1.0/7", "1.0/7"], False),
        ("job", ["", "", "", ""], False),
        ("job", ["1.0/7", "", "2.0/7", ""], False),
    ],
)
def test_strikes_of_different_jobs_and_users(distinct: str, jobs: list[str], found: bool) -> None:
    node = Node(strikes(distinct=distinct))
    last: tuple[Finding, ...] = ()
    for number, job in enumerate(jobs):
        last = node(number * 100.0, event(13, number, number * 100.0, job))
        node.restart()
    assert any(one.severity is CRITICAL for one in last) is found


def test_an_event_that_is_read_again_after_a_crash_is_no_other_strike() -> None:
    node = Node(strikes())
    node(0.0, event(13, 1, 0.0))
    node(50.0, event(13, 2, 50.0))
    again = {**node.memory, "events": {}}
    for _ in range(3):
        node.memory = again
        [found] = node(51.0, event(13, 2, 50.0))
        assert found.severity is WARNING


def test_events_without_a_table_are_judged_by_rules_alone() -> None:
    row = {"code": "OWN", "reading": "own", "text": "x"}
    book = load(
        [
            {**row, "when": {"is": "fatal"}, "severity": "critical", "case": "fatal"},
            {**row, "when": {"is": "nonfatal"}, "severity": "warning", "case": "nonfatal"},
        ]
    )
    node = Node(book)
    fatal = Reading("own", "0000:3b:00.0", "fatal", "a line", "boot/1", 1.0)
    [found] = node(1.0, fatal, Reading("own", "0000:3b:00.0", "corrected", "a line", "boot/2", 1.0))
    assert (found.code, found.severity, found.lasting, found.moment) == ("OWN", CRITICAL, False, "boot/1")
    [found] = node(9.0, Reading("own", "", "nonfatal", "a line", "boot/3", 9.0))
    assert found.severity is WARNING


def test_two_codes_of_one_event_have_a_moment_each() -> None:
    node = Node(strikes(code="OWN", times=1, within=0))
    found = node(1.0, event(13, 1, 1.0))
    assert {(one.code, one.moment) for one in found} == {("GPU_XID_13", "boot/1"), ("OWN", "boot/1/OWN")}


def test_a_site_may_end_an_event_with_its_repeats_or_change_the_event_alone() -> None:
    base = {"code": "GPU_XID_13", "reading": "kernel.xid", "case": "own", "when": {"is": 13},
            "severity": "critical", "text": "often", "times": 2, "within": "1h"}  # fmt: skip
    off = load([base, {"code": "GPU_XID_13", "enabled": False}])
    assert "GPU_XID_13" not in {rule.code for rule in off.rules}
    louder = load([base, {"code": "GPU_XID_13", "severity": "critical"}])
    assert louder.events["kernel.xid"][13].severity is CRITICAL
    assert [rule.case for rule in louder.rules if rule.code == "GPU_XID_13"] == ["repeats", "own"]


# -- what sticks, and what comes back ----------------------------------------------------


def test_sticky_until_the_next_boot() -> None:
    node = Node(own(clear="boot"))
    assert node(1.0, state(True))
    assert node(9e5, state(False))
    node.restart()
    assert node(10e5, state(False))
    node.restart("another boot")
    assert node(10e5 + 1, state(False))  # good for a while first
    assert node(10e5 + 32, state(False)) == ()


def test_sticky_for_ever() -> None:
    node = Node(own(clear="never"))
    assert node(1.0, state(True))
    node.restart("another boot")
    assert node(2.0, state(False))
    assert node(9e9, state(False))


def test_what_comes_back_stays_longer() -> None:
    node = Node(own(clear="30s", flaps="10m"))

    def lasted() -> float:
        """Seconds of good readings that end it."""
        begin = node.now
        while node.at(1.0, state(False)):
            assert node.now - begin < 2000
        return node.now - begin - 1

    node.now = 0.0
    spans = []
    for _ in range(7):
        node.at(10.0, state(True))
        node.restart()
        spans.append(lasted())
        node.restart()
    assert spans == [30, 60, 120, 240, 480, 600, 600]
    node.at(601.0, state(True))
    assert lasted() == 30
    node.at(10.0, state(True))
    lasted()
    node.restart("another boot")
    node.at(10.0, state(True))
    assert lasted() == 30


def test_names_without_end_cost_no_memory_without_end() -> None:
    node = Node(own(when={"rises": 1}, within="1h"))
    node(1.0, counter(0))
    for wave in range(3):
        node(2.0 + wave, *(counter(0, f"d{wave}-{n}") for n in range(MOST)))
        assert len(node.memory["windows"]) <= MOST
    shy = Node(own(hold="1h"))
    for wave in range(3):
        shy(1.0 + wave, *(state(True, device=f"d{wave}-{n}") for n in range(MOST)))
        assert len(shy.memory["watch"]) <= MOST


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ({"when": {"rises": 1}}, "within"),
        ({"when": {"rises": 0}, "within": "1h"}, "when"),
        ({"lasts": "1m"}, "within"),
        ({"lasts": "2h", "within": "1h"}, "lasts"),
        ({"lasts": "1m", "within": "1h", "when": {"rises": 1}}, "lasts"),
        ({"within": "1h"}, "within"),
        ({"distinct": "job"}, "distinct"),
        ({"distinct": "node", "times": 2, "within": "1h"}, "distinct"),
        ({"clear": "always"}, "clear"),
        ({"flaps": "often"}, "flaps"),
    ],
)
def test_what_contradicts_itself_is_refused(rule: dict[str, object], place: str) -> None:
    with pytest.raises(RuleError, match=rf"\.{place}: "):
        own(**rule)


@pytest.mark.parametrize(
    "torn",
    [None, [], {}, {"at": 1}, {"at": 1, "last": 1, "steps": [[1, 2]]},
     {"at": 1, "last": 1, "steps": [[2, 1, 1]]},
     {"at": 1, "last": 1, "before": "x", "steps": []}, {"at": 1, "last": 1, "steps": [], "who": {"a": "b"}}],
)  # fmt: skip
def test_a_torn_window_is_none(torn: object) -> None:
    node = Node(own(when={"rises": 1}, within="1h"))
    node.memory["windows"]["OWN|own|d"] = torn
    node.restart()
    assert node.memory["windows"] == {}
    assert node(1.0, counter(5)) == ()


def test_the_order_of_readings_does_not_matter_to_windows() -> None:
    chance = random.Random(4711)
    book = strikes()
    passes = [[event(13, 10 * n + k, n * 5 + k) for k in range(3)] for n in range(20)]
    one, other = Node(book), Node(book)
    for number, events in enumerate(passes):
        now = number * 5 + 3.0
        mixed = chance.sample(events, len(events))
        assert one(now, *events) == other(now, *mixed)
        assert one.memory == other.memory
