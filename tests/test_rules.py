"""Opinions: the shipped tables, a site's changes, holds and windows, and what survives a restart."""

import itertools
import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_health import rules
from slurm_health.duration import seconds
from slurm_health.model import Finding, Reading, Severity, Urgency, Value
from slurm_health.rules import Above, Below, Is, IsNot, Memory, RuleBook, RuleError, begin, judge, load

BOOK = load()
CRITICAL, WARNING = Severity.CRITICAL, Severity.WARNING


def own(**rule: object) -> RuleBook:
    """A book with one rule."""
    shipped = [{"code": code, "enabled": False} for code in {one.code for one in BOOK.rules}]
    row = {"code": "OWN", "reading": "own", "when": {"is": True}, "severity": "critical", "text": "it is bad"}
    return load([*shipped, {**row, **rule}])


def state(value: Value, name: str = "own", device: str = "d", evidence: str = "") -> Reading:
    return Reading(name, device, value, evidence)


class Node:
    """Judges one reading after another and remembers."""

    def __init__(self, book: RuleBook = BOOK) -> None:
        self.book = book
        self.memory: Memory = begin(None, "boot")
        self.now = 0.0

    def __call__(self, now: float, *readings: Reading) -> tuple[Finding, ...]:
        self.now = now
        found, self.memory = judge(self.book, readings, self.memory, now)
        return found

    def at(self, later: float, *readings: Reading) -> tuple[Finding, ...]:
        return self(self.now + later, *readings)

    def restart(self, boot: str = "boot") -> None:
        self.memory = begin(json.loads(json.dumps(self.memory)), boot)


# -- the tables --------------------------------------------------------------------------

NOW = {46, 48, 62, 79, 95, 119, 120, 140, 158, 167, 169, 173, 175}
FINISH = {54, 74, 110, 136, 143, 155, 168}
CHECKPOINT = {156}  # the GPU works still
APPLICATION = {13, 31, 43, 45, 68, 69, 137}


def test_only_what_is_on_the_list_acts() -> None:
    table = BOOK.events["kernel.xid"]
    assert {code for code, one in table.items() if one.job is Urgency.NOW} == NOW
    assert {code for code, one in table.items() if one.job is Urgency.FINISH} == FINISH
    assert {code for code, one in table.items() if one.job is Urgency.CHECKPOINT} == CHECKPOINT
    acts = NOW | FINISH | CHECKPOINT
    assert {code for code, one in table.items() if one.severity is CRITICAL} == acts
    assert all(one.fault in rules.FAULTS for one in table.values())
    assert all(one.fault in ("hardware", "driver") for code, one in table.items() if code in acts)
    for one in table.values():
        for special in one.when.values():
            assert special.job is not Urgency.NOW


@pytest.mark.parametrize("code", sorted(APPLICATION))
def test_what_an_application_does_is_recorded_and_no_more(code: int) -> None:
    one = BOOK.events["kernel.xid"][code]
    assert (one.severity, one.job, one.when) == (WARNING, Urgency.NONE, {})
    assert one.fault == "application"


@pytest.mark.parametrize(
    ("name", "code", "detail", "severity", "job"),
    [
        ("kernel.xid", 149, "fatal", CRITICAL, Urgency.FINISH),
        ("kernel.xid", 149, "reset", CRITICAL, Urgency.FINISH),
        ("kernel.xid", 149, "ignore", WARNING, Urgency.NONE),
        ("kernel.xid", 145, "follow", WARNING, Urgency.NONE),
        ("kernel.xid", 149, "nonfatal", WARNING, Urgency.NONE),
        ("kernel.xid", 149, "", WARNING, Urgency.NONE),
        ("kernel.xid", 154, "gpu_reset", CRITICAL, Urgency.FINISH),
        ("kernel.xid", 154, "drain_and_reset", CRITICAL, Urgency.CHECKPOINT),
        ("kernel.xid", 154, "node_reboot", CRITICAL, Urgency.FINISH),
        ("kernel.xid", 154, "unknown_9", WARNING, Urgency.NONE),
        ("kernel.xid", 154, "none", Severity.OK, Urgency.NONE),
        ("kernel.xid", 99999, "", WARNING, Urgency.NONE),
        ("kernel.xid", 99999, "fatal", WARNING, Urgency.NONE),
        ("kernel.sxid", 12028, "nonfatal", WARNING, Urgency.NONE),
        ("kernel.sxid", 20034, "fatal", CRITICAL, Urgency.FINISH),
        ("kernel.sxid", 20034, "nonfatal", WARNING, Urgency.NONE),
        ("kernel.sxid", 22003, "", CRITICAL, Urgency.FINISH),
        ("kernel.sxid", 55555, "fatal", CRITICAL, Urgency.FINISH),
        ("kernel.sxid", 55555, "", WARNING, Urgency.NONE),
    ],
)
def test_events(name: str, code: int, detail: str, severity: Severity, job: Urgency) -> None:
    judged = BOOK.opinion(Reading(name, "d", code, detail=detail))
    assert judged is not None
    assert (judged[1].severity, judged[1].job) == (severity, job)


def test_every_reason_fits() -> None:
    for rule in BOOK.rules:
        assert len(f"slurm-health: {rule.code}(0000:3b:00.0) {rule.text}") <= 120
    for name, table in BOOK.events.items():
        for code, one in table.items():
            assert len(f"slurm-health: {rules.EVENTS[name]}_{code}(0000:3b:00.0) {one.text}") <= 120
            assert one.text.isascii()


def test_every_shipped_rule_explains_itself() -> None:
    for rule in BOOK.rules:
        assert rule.why
        assert rule.advice
        assert rule.source


# -- a site's changes --------------------------------------------------------------------


def rule_of(book: RuleBook, code: str, reading: str) -> rules.Rule:
    return next(one for one in book.rules if (one.code, one.reading) == (code, reading))


def test_an_override_changes_what_it_names() -> None:
    book = load(
        [{"code": "IB_PORT_DOWN", "reading": "infiniband.down", "hold": "20s", "ignore": ["mlx5_9/*"]}]
    )
    old, new = (rule_of(one, "IB_PORT_DOWN", "infiniband.down") for one in (BOOK, book))
    assert (new.hold, new.ignore, new.text, new.severity) == (20, ("mlx5_9/*",), old.text, old.severity)
    assert rule_of(book, "IB_PORT_DOWN", "infiniband.never_up").hold == 30


def test_an_override_of_a_code_changes_all_its_rules() -> None:
    book = load([{"code": "NIC_DOWN", "enabled": False}])
    assert not [one for one in book.rules if one.code == "NIC_DOWN"]
    assert len(book.rules) == len(BOOK.rules) - 2


def test_an_override_of_an_event() -> None:
    book = load(
        [
            {"code": "GPU_XID_31", "severity": "critical", "job": "finish"},
            {"code": "GPU_XID_777", "enabled": False},
        ]
    )
    assert book.events["kernel.xid"][31].severity is CRITICAL
    assert book.events["kernel.xid"][777].severity is Severity.OK
    assert BOOK.events["kernel.xid"][31].severity is WARNING


def test_a_rule_of_the_sites_own() -> None:
    found = Node(own(device="a*", ignore=["ab"]))(1.0, *(state(True, device=d) for d in ("aa", "ab", "b")))
    assert [one.device for one in found] == ["aa"]


def test_every_mistake_is_told_at_once_with_its_place() -> None:
    with pytest.raises(RuleError) as caught:
        load(
            [
                {"code": "IB_PORT_DOWN", "hold": "soon", "sevrity": "warning", "job": "later"},
                {"hold": "1s"},
                {"code": "NEW_RULE", "reading": "x"},
                {"code": "GPU_XID_31", "hold": "1s", "severity": "bad"},
                {"code": "GPU_MISSING", "when": {"over": 3}, "times": 0, "text": "x" * 65, "ignore": "all"},
                {"code": "lower"},
            ]
        )
    errors = "\n".join(caught.value.errors)
    for place in (
        "rules[0].hold", "rules[0].sevrity", "rules[0].job", "rules[1].code", "rules[2].when",
        "rules[2].severity", "rules[2].text", "rules[3].hold", "rules[3].severity", "rules[4].when",
        "rules[4].times", "rules[4].text", "rules[4].ignore", "rules[5].code",
    ):  # fmt: skip
        assert place in errors


@pytest.mark.parametrize(
    ("text", "value"),
    [("5s", 5), ("2m", 120), ("1.5h", 5400), ("1d", 86400), ("250ms", 0.25), (7, 7), (0, 0)],
)
def test_durations(text: object, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", "s", "-5s", "5", "5 parsecs", -1, True, None, float("nan"), float("inf"), [5]]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("condition", "bad", "good"),
    [
        (Is((True,)), [True], [False, 1, "True"]),
        (Is(("a", "b")), ["a", "b"], ["c", True]),
        (IsNot(("ACTIVE",)), ["DOWN", 4], ["ACTIVE"]),
        (Above(3), [4, 3.1], [3, 2, "4", True]),
        (Below(3), [2, -1], [3, 4, "2", False]),
    ],
)
def test_conditions(condition: rules.Condition, bad: list[Value], good: list[Value]) -> None:
    assert all(condition.holds(value) for value in bad)
    assert not any(condition.holds(value) for value in good)


# -- states ------------------------------------------------------------------------------


def test_a_hold_is_waited_for_and_the_first_evidence_is_since() -> None:
    node = Node(own(hold="5s"))
    assert node(100.0, state(True, evidence="first")) == ()
    assert node(104.4, state(True)) == ()
    [found] = node(105.0, state(True, evidence="later"))
    assert (found.since, found.evidence, found.lasting) == (100.0, "first", True)
    assert found.moment == "boot/OWN/d/100000"


@pytest.mark.parametrize("span", [{"hold": "60s"}, {"lasts": "60s", "within": "10m"}])
def test_no_span_is_over_before_its_time(span: dict[str, str]) -> None:
    node = Node(own(**span))
    assert [len(node(now, state(True))) for now in (100.0, 130.0, 159.9, 160.0)] == [0, 0, 0, 1]


def watched(book: RuleBook, bad: tuple[float, float], pauses: Sequence[float], until: float) -> list[float]:
    """When a state that is bad in this span opens and closes a finding, where it is looked at after each of
    these pauses, again and again, and whenever something is over; and when the first looks saw it bad and
    good again."""
    node, told, due, looks = Node(book), [], 0.0, itertools.cycle(pauses)
    seen: dict[bool, float] = {}
    again: dict[str, float] = {}
    while node.now < until:
        due = due if due > node.now else node.now + next(looks)
        now = min(due, *again.values()) if again else due
        value = bad[0] <= now < bad[1]
        if value or True in seen:
            seen.setdefault(value, now)
        before = len(told) % 2
        if bool(node(now, state(value))) != bool(before):
            told.append(now)
        again = rules.ends(book, node.memory, now)
        node.restart()
    return [*seen.values(), *told]


@pytest.mark.parametrize("span", [{"hold": "60s"}, {"lasts": "60s", "within": "10m"}, {"hold": "1s"}])
@given(pauses=st.lists(st.floats(0.5, 100), min_size=1, max_size=20), began=st.floats(1, 200))
def test_what_is_over_is_found_at_once_however_seldom_looks_come(
    span: dict[str, str], pauses: list[float], began: float
) -> None:
    book = own(**span, clear="30s")
    bad, good, opened, closed = watched(book, (began, began + 1000), pauses, began + 3000)
    if "hold" in span:
        assert (opened, closed) == pytest.approx((bad + seconds(span["hold"]), good + 30))
    else:
        assert opened == pytest.approx(bad + 60, abs=0.01)


@pytest.mark.parametrize(
    ("rule", "looks", "ends"),
    [
        ({"times": 2}, [100.0], []),
        ({"times": 3, "hold": "60s"}, [100.0], []),
        ({"times": 3, "hold": "60s"}, [100.0, 130.0], [160.0]),
        ({"times": 3, "hold": "60s"}, [100.0, 161.0], []),
    ],
)
def test_looks_are_counted_and_not_hurried(
    rule: dict[str, object], looks: list[float], ends: list[float]
) -> None:
    node = Node(own(**rule))
    for now in looks:
        assert node(now, state(True)) == ()
    assert list(rules.ends(node.book, node.memory, 0.0).values()) == ends


def test_what_does_not_last_is_no_finding() -> None:
    node = Node(own(hold="5s"))
    node(100.0, state(True))
    node(103.0, state(False))
    assert node(106.0, state(True)) == ()
    assert node(110.4, state(True)) == ()
    assert len(node(111.0, state(True))) == 1


def test_so_many_times_in_a_row() -> None:
    node = Node(own(times=3))
    assert node(1.0, state(True)) == ()
    assert node(2.0, state(True)) == ()
    assert node(3.0, state(False)) == ()
    assert [len(node(now, state(True))) for now in (4.0, 5.0, 6.0)] == [0, 0, 1]


def test_it_ends_only_after_being_good_for_a_while() -> None:
    node = Node(own(clear="30s"))
    [found] = node(1.0, state(True))
    assert node(2.0, state(False)) == (found,)
    assert node(31.4, state(False)) == (found,)
    assert node(32.0, state(False)) == ()


def test_a_flapping_state_is_one_finding() -> None:
    node = Node(own(clear="30s"))
    moments = {one.moment for now in range(0, 300, 10) for one in node(float(now), state(now % 20 == 0))}
    assert len(moments) == 1


def test_absent_is_neither_good_nor_bad() -> None:
    node = Node(own(hold="5s", clear="5s"))
    node(1.0, state(True))
    assert node(100.0) == ()  # nothing opens without a reading
    [found] = node(101.0, state(True))
    assert node(500.0) == (found,)
    assert node(501.0, state(False)) == (found,)
    assert node(700.0) == (found,)
    assert node(701.0, state(False)) == ()


def test_a_restart_forgets_nothing() -> None:
    node = Node(own(hold="5s"))
    node(1.0, state(True))
    node.restart()
    [found] = node(6.0, state(True))
    node.restart()
    assert node(7.0, state(True)) == (found,)
    node.restart("another boot")
    assert node(8.0, state(True)) == (found,)  # the same fault, also after a reboot


def test_another_boot_forgets_what_had_not_lasted() -> None:
    node = Node(own(hold="5s"))
    node(1.0, state(True))
    node.restart("another boot")
    assert node(6.0, state(True)) == ()


def test_a_second_occurrence_has_a_moment_of_its_own() -> None:
    node = Node(own(clear="1s"))
    [first] = node(1.0, state(True))
    node(2.0, state(False))
    assert node(3.0, state(False)) == ()
    [second] = node(4.0, state(True))
    assert first.moment != second.moment


def test_a_clock_that_goes_back_shortens_no_hold_and_stops_none() -> None:
    node = Node(own(hold="5s", clear="5s"))
    node(1000.0, state(True))
    assert node(100.0, state(True)) == ()
    assert node(104.0, state(True)) == ()
    [found] = node(105.0, state(True))
    node(106.0, state(False))
    node(50.0, state(False))
    assert node(54.0, state(False)) == (found,)
    assert node(55.0, state(False)) == ()


def test_a_rule_that_is_gone_takes_its_finding_along() -> None:
    node = Node(own())
    assert node(1.0, state(True))
    node.book = BOOK
    assert node(2.0) == ()


def test_of_two_rules_of_one_code_the_worse_counts() -> None:
    extra = {
        "code": "OWN",
        "reading": "other",
        "when": {"is": True},
        "severity": "warning",
        "text": "a little",
    }
    shipped = [{"code": one.code, "enabled": False} for one in BOOK.rules]
    row = {"code": "OWN", "reading": "own", "when": {"is": True}, "severity": "critical", "text": "it is bad"}
    # the second of a code with a reading of its own is a rule of its own
    node = Node(load([*shipped, row, extra]))
    [found] = node(1.0, state(True), state(True, "other"))
    assert (found.severity, found.text) == (CRITICAL, "it is bad")


@pytest.mark.parametrize(
    "saved",
    [
        None, [], "x", 3, {}, {"boot": 1}, {"watch": []}, {"watch": {"a": 1}}, {"events": {"a": "b"}},
        {"watch": {"a|b|c": {"since": "x"}}}, {"boot": "boot", "watch": {"a|b": {}}, "events": []},
    ],
)  # fmt: skip
def test_a_torn_memory_is_an_empty_one(saved: object) -> None:
    memory = begin(saved, "boot")
    assert (memory["watch"], memory["events"]) == ({}, {})
    judge(BOOK, [state(True, "gpu.missing")], memory, 1.0)


def test_judging_changes_no_argument() -> None:
    memory = begin(None, "boot")
    before = json.dumps(memory)
    judge(BOOK, [state(True, "gpu.missing"), xid(79)], memory, 1.0)
    assert json.dumps(memory) == before


# -- events ------------------------------------------------------------------------------


def xid(
    code: int, sequence: int = 1, device: str = "0000:3b:00.0", at: float = 1.0, detail: str = ""
) -> Reading:
    text = f"NVRM: Xid (PCI:0000:3b:00): {code}, {sequence}"
    return Reading("kernel.xid", device, code, text, f"boot/{sequence}", at, detail=detail)


def test_an_event_is_a_finding_that_does_not_last() -> None:
    node = Node()
    [found] = node(2.0, xid(79))
    assert (found.code, found.lasting, found.moment, found.since) == ("GPU_XID_79", False, "boot/1", 1.0)
    assert (found.severity, found.job) == (CRITICAL, Urgency.NOW)
    assert node(3.0) == ()


def test_a_burst_is_one_finding_and_what_comes_later_is_new_evidence() -> None:
    node = Node()
    [found] = node(2.0, *(xid(94, n, at=2 - n / 100) for n in range(1, 9)))
    assert found.moment == "boot/8"  # the first by its own time
    assert node(3.9, xid(94, 9)) == ()
    assert len(node(4.1, xid(94, 10))) == 1


def test_a_burst_hides_nothing_worse_and_no_other_device() -> None:
    node = Node()
    assert [one.severity for one in node(2.0, xid(149, 1, detail="nonfatal"))] == [WARNING]
    assert [one.severity for one in node(3.0, xid(149, 2, detail="fatal"))] == [CRITICAL]
    assert len(node(4.0, xid(149, 3, "0000:5d:00.0", detail="fatal"))) == 1


def test_an_action_that_is_over_is_no_finding() -> None:
    assert Node()(1.0, xid(154, detail="none")) == ()


def test_the_windows_of_events_survive_a_restart_but_no_reboot() -> None:
    node = Node()
    node(2.0, xid(79))
    node.restart()
    assert node(3.0, xid(79, 2)) == ()
    node.restart("another boot")
    assert len(node(4.0, xid(79, 3))) == 1


# -- properties --------------------------------------------------------------------------

NAMES = sorted({one.reading for one in BOOK.rules})
VALUES = st.one_of(
    st.booleans(), st.integers(0, 9), st.sampled_from(["ok", "failed", "hung", "none", "gpu_reset"])
)
STATES = st.builds(Reading, st.sampled_from(NAMES), st.sampled_from(["", "a", "b"]), VALUES)
EVENTS = st.builds(
    lambda code, sequence, device: xid(code, sequence, device),
    st.sampled_from([13, 48, 79, 154]), st.integers(1, 9), st.sampled_from(["a", "b"]),
)  # fmt: skip


def unique(readings: Iterable[Reading]) -> list[Reading]:
    """A pass brings each state and each moment once."""
    return list({one.moment or (one.name, one.device): one for one in readings}.values())


@settings(max_examples=150)
@given(st.lists(st.one_of(STATES, EVENTS), max_size=12).map(unique), st.randoms())
def test_the_order_of_readings_does_not_matter(readings: list[Reading], random: object) -> None:
    shuffled = list(readings)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Node(), Node()
    for now in (10.0, 20.0, 90.0):
        assert set(one(now, *readings)) == set(other(now, *shuffled))
    assert one.memory == other.memory


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0.1, 100), st.sampled_from([True, False, None])), max_size=30))
def test_a_finding_needs_its_hold_and_its_end_needs_its_clear(steps: list[tuple[float, bool | None]]) -> None:
    node = Node(own(hold="20s", clear="40s", flaps=0))
    now, bad_since, good_since, standing = 0.0, None, None, False
    for pause, value in steps:
        now += pause
        found = node(now, *([] if value is None else [state(value)]))
        if value is True:
            bad_since, good_since = now if bad_since is None else bad_since, None
            standing = standing or now - bad_since >= 20
        elif value is False and not standing:
            bad_since = None
        elif value is False:
            good_since = now if good_since is None else good_since
            if now - good_since >= 40:
                standing, bad_since, good_since = False, None, None
        assert bool(found) == standing
        node.restart()
