"""What follows from what is known: the truth table of a node, the whole life of a job that a fault hurt."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health import policy
from slurm_health.model import Card, Hurt, Incident, Job, Node, Severity, Urgency, Victim, Wish
from slurm_health.policy.job import Adopt, Ran, Release, Requeue, Settle, Signal, StartNow, Terms, Wait
from slurm_health.policy.node import Do, Drained, Judgement, Outlook

T = 1_700_000_000.0  # the first evidence
GPU = "0000:5d:00.0"
REASON = f"slurm-health: GPU_XID_79({GPU}) GPU has fallen off the bus"


def incident(number: int = 1, **changes: Any) -> Incident:
    return replace(
        Incident(
            id=number,
            node="n1",
            code="GPU_XID_79",
            device=GPU,
            severity=Severity.CRITICAL,
            job=Urgency.NOW,
            text="GPU has fallen off the bus",
            since=T,
            opened=T,
            lasting=False,
        ),
        **changes,
    )


def node(*flags: str, reason: str = "", since: int = 0) -> Node:
    return Node("n1", frozenset(flags), reason, since)


def judge(
    state: Node | None,
    incidents: list[Incident] | None = None,
    ours: Drained = Drained(),  # noqa: B008 (frozen)
    attempted: tuple[str, ...] = (),
    refused: bool = False,
    mode: str = "requeue",
    paused: bool = False,
    spent: str = "",
) -> Judgement:
    faults = [incident()] if incidents is None else incidents
    return policy.node.judge(state, faults, ours, attempted, Outlook(mode, paused, spent), refused)


# -- a node in service


@pytest.mark.parametrize(
    ("mode", "paused", "spent", "flags"),
    [
        *product(
            ("observe", "drain", "requeue"),
            (False, True),
            ("", "budget spent"),
            ({"IDLE"}, {"ALLOCATED"}, {"MIXED"}, {"IDLE", "MAINT"}, {"IDLE", "POWERING_DOWN"}),
        )
    ],
)
def test_a_node_in_service_is_drained_only_when_nothing_forbids_it(
    mode: str, paused: bool, spent: str, flags: set[str]
) -> None:
    judged = judge(node(*flags), mode=mode, paused=paused, spent=spent)
    if mode == "observe":
        assert judged == Judgement(Do.NOTHING, "mode is observe")
    elif paused:
        assert judged == Judgement(Do.NOTHING, "paused")
    elif busy := flags & policy.node.ELSEWHERE:
        assert judged == Judgement(Do.NOTHING, f"node is {busy.pop().lower()}")
    elif spent:
        assert judged == Judgement(Do.NOTHING, spent)
    else:
        assert judged == Judgement(Do.DRAIN, reason=REASON)


@pytest.mark.parametrize("flag", sorted(policy.node.ELSEWHERE))
def test_a_node_somebody_else_works_on_is_left_alone(flag: str) -> None:
    assert judge(node("IDLE", flag)) == Judgement(Do.NOTHING, f"node is {flag.lower()}")
    assert judge(node("IDLE", "PLANNED")).do is Do.DRAIN


def test_a_node_that_slurm_does_not_know() -> None:
    assert judge(None) == Judgement(Do.NOTHING, "Slurm does not know this node")
    assert judge(None, []) == Judgement(Do.NOTHING)


def test_a_well_node_is_nobodys_business() -> None:
    assert judge(node("IDLE"), []) == Judgement(Do.NOTHING)
    assert judge(node("IDLE", "DRAIN", reason="disk swap", since=9), []) == Judgement(Do.NOTHING)


@pytest.mark.parametrize(
    "changes",
    [{"severity": Severity.WARNING}, {"closed": T + 1}, {"acknowledged": T + 1}],
    ids=["warning", "closed", "acknowledged"],
)
def test_only_a_critical_incident_that_nobody_overruled_presses(changes: dict[str, Any]) -> None:
    assert judge(node("IDLE"), [incident(**changes)]) == Judgement(Do.NOTHING)
    assert judge(node("IDLE"), [incident(**changes), incident(2, code="GPU_XID_95")]).do is Do.DRAIN


def test_the_reason_names_the_first_fault_whatever_the_order() -> None:
    first = incident(7, code="GPU_XID_48", since=T - 5)
    for faults in ([first, incident(2)], [incident(2), first]):
        assert judge(node("IDLE"), faults).reason == first.reason
    tie = incident(3, code="GPU_XID_95")
    assert judge(node("IDLE"), [tie, incident(2)]).reason == incident(2).reason


def test_a_reason_has_at_most_120_characters_and_is_constant() -> None:
    long = incident(text="word " * 40)
    assert len(long.reason) <= 120
    assert long.reason == long.reason.rstrip()
    assert incident(id=9, count=40, seen=T + 9).reason == incident().reason


# -- a node that is out


OURS = Drained(REASON, 1000)
OUT = [("IDLE", "DRAIN"), ("ALLOCATED", "DRAIN"), ("DOWN",), ("DOWN", "DRAIN"), ("IDLE", "FAIL")]


@pytest.mark.parametrize("flags", OUT, ids="+".join)
@pytest.mark.parametrize("mode", ["observe", "drain", "requeue"])
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("spent", ["", "budget spent"])
def test_our_drain_stands_whatever_the_outlook(
    flags: tuple[str, ...], mode: str, paused: bool, spent: str
) -> None:
    state = node(*flags, reason=REASON, since=1000)
    assert judge(state, ours=OURS, mode=mode, paused=paused, spent=spent).do is Do.STAND
    assert judge(state, [], ours=OURS, mode=mode, paused=paused, spent=spent).do is Do.STAND


@pytest.mark.parametrize(
    ("reason", "since"),
    [(f"{REASON} - bob looks at it", 1000), (REASON, 1001), ("swap DIMM", 1000), ("", 0)],
    ids=["added to", "set again", "another", "none"],
)
@pytest.mark.parametrize("ours", [OURS, Drained()], ids=["after ours", "never ours"])
def test_somebody_elses_drain_is_left(reason: str, since: int, ours: Drained) -> None:
    judged = judge(node("IDLE", "DRAIN", reason=reason, since=since), ours=ours)
    assert judged == Judgement(Do.LEAVE, f"drained by somebody else: {reason or 'no reason given'}")
    assert judge(node("IDLE", "DRAIN", reason=reason, since=since), [], ours=ours).do is Do.NOTHING


def test_a_node_that_is_down_is_not_called_drained() -> None:
    assert judge(node("DOWN", reason="Not responding", since=5)) == Judgement(
        Do.LEAVE, "down: Not responding"
    )


def test_a_drain_of_ours_without_outcome_stands_once_slurm_shows_it() -> None:
    state = node("IDLE", "DRAIN", reason=REASON, since=1000)
    assert judge(state, attempted=(REASON,)) == Judgement(Do.STAND, reason=REASON)
    assert judge(state, attempted=("slurm-health: another",)).do is Do.LEAVE


# -- an admin's RESUME


@pytest.mark.parametrize("mode", ["observe", "drain", "requeue"])
@pytest.mark.parametrize("faults", [[], [incident()]], ids=["healed", "broken"])
def test_a_resume_over_our_heads_is_yielded_to(mode: str, faults: list[Incident]) -> None:
    judged = judge(node("IDLE"), faults, ours=OURS, mode=mode, paused=True, spent="budget spent")
    assert judged == Judgement(Do.YIELD, "resumed by an admin")


def test_the_end_of_somebody_elses_drain_overrules_what_they_saw() -> None:
    seen = incident(held=f"{policy.node.DRAINED_BY_OTHERS}: swap DIMM")
    assert judge(node("IDLE"), [seen]).do is Do.YIELD
    assert judge(node("IDLE"), [incident(held="budget spent: 2 of 20")]).do is Do.DRAIN
    assert judge(node("IDLE"), [incident(held="down: Not responding")]).do is Do.DRAIN


@pytest.mark.parametrize("words", sorted(policy.node.HOOK_REASONS))
def test_slurms_own_words_are_ours_to_rename_only_when_our_prolog_refused(words: str) -> None:
    state = node("IDLE", "DRAIN", reason=words, since=1000)
    assert judge(state, refused=True) == Judgement(Do.DRAIN, reason=REASON)
    assert judge(state, refused=False) == Judgement(Do.LEAVE, f"drained by somebody else: {words}")
    assert judge(state, refused=True, mode="observe").do is Do.LEAVE
    assert judge(node("DOWN", reason=words), refused=True).do is Do.LEAVE
    after_resume = judge(state, ours=OURS, refused=True)
    assert after_resume == Judgement(Do.UNDO, "resumed by an admin, then drained for our hook")
    assert judge(state, ours=OURS, refused=True, mode="observe").do is Do.UNDO


# -- when another look is needless, and when a drain is no longer ours


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (node("IDLE", "DRAIN", reason=REASON, since=1000), False),
        (node("IDLE", "DRAIN", reason=REASON, since=1001), True),
        (node("IDLE", "DRAIN", reason="swap DIMM", since=1001), True),
        (node("IDLE", "DRAIN", reason="Prolog error", since=1001), False),
        (node("IDLE"), False),
        (None, False),
    ],
    ids=["ours", "set again", "another", "hook", "in service", "unknown"],
)
def test_a_drain_is_lost_when_somebody_writes_over_it(state: Node | None, expected: bool) -> None:
    assert policy.node.lost(OURS, state, Do.LEAVE) is expected
    assert not policy.node.lost(OURS, state, Do.STAND)
    assert not policy.node.lost(Drained(), state, Do.LEAVE)


STOOD = node("IDLE", "DRAIN", reason=REASON, since=1000)
THEIRS = node("IDLE", "DRAIN", reason="swap DIMM", since=1001)
FLAGS = st.frozensets(
    st.sampled_from(["IDLE", "ALLOCATED", "DRAIN", "DOWN", "FAIL", "MAINT", "REBOOT"]), max_size=4
)
REASONS = st.sampled_from(["", REASON, f"{REASON}!", "Prolog error", "swap DIMM"])
STATES = st.none() | st.builds(
    Node, st.just("n1"), FLAGS, REASONS, st.sampled_from([0, 1000, 1001]), st.just("")
)
FAULTS = st.lists(
    st.builds(
        incident,
        st.integers(1, 9),
        severity=st.sampled_from(Severity),
        since=st.sampled_from([T, T + 1]),
        closed=st.sampled_from([0.0, T]),
        acknowledged=st.sampled_from([0.0, T]),
        held=st.sampled_from(["", "mode is observe", f"{policy.node.DRAINED_BY_OTHERS}: x"]),
    ),
    max_size=4,
)
OUTLOOKS = st.builds(
    Outlook, st.sampled_from(["observe", "drain", "requeue"]), st.booleans(), st.sampled_from(["", "spent"])
)


@given(
    STATES,
    FAULTS,
    st.builds(Drained, REASONS, st.sampled_from([0, 1000])),
    st.lists(REASONS),
    OUTLOOKS,
    st.booleans(),
)
def test_what_holds_for_every_node(
    state: Node | None,
    faults: list[Incident],
    ours: Drained,
    attempted: list[str],
    outlook: Outlook,
    refused: bool,
) -> None:
    judged = policy.node.judge(state, faults, ours, attempted, outlook, refused)
    pressing = [one for one in faults if one.pressing]
    if judged.do is Do.DRAIN:
        assert pressing
        assert outlook.mode != "observe"
        assert judged.reason in {one.reason for one in pressing}
        assert state
        assert not state.out or (refused and state.reason in policy.node.HOOK_REASONS)
        if not state.out:
            assert not (outlook.paused or outlook.spent or state.flags & policy.node.ELSEWHERE)
    if judged.do in (Do.STAND, Do.LEAVE, Do.UNDO):
        assert state
        assert state.out
    if judged.do is Do.YIELD:
        assert state
        assert not state.out
    if judged.do is Do.NOTHING and pressing:
        assert judged.why


# -- the budget


def budget(
    total: int, out: int, recent: int, limit: tuple[float, int] = (10, 2), window: tuple[float, int] = (2, 2)
) -> str:
    """Why none may be drained on top of so many."""
    these, those = ({f"n{number}" for number in range(many)} for many in (out, recent))
    return policy.budget.Room(total, these, those, limit, window).obstacle("another")


@pytest.mark.parametrize(
    ("total", "out", "recent", "refused"),
    [
        (4, 0, 0, False),
        (4, 1, 1, False),
        (4, 2, 1, True),
        (4, 1, 2, True),
        (100, 9, 1, False),
        (100, 10, 0, True),
        (100, 5, 2, True),
        (1000, 99, 19, False),
        (1000, 99, 20, True),
        (1000, 100, 0, True),
        (0, 0, 0, False),
    ],
)
def test_the_larger_of_number_and_percentage_counts(total: int, out: int, recent: int, refused: bool) -> None:
    assert bool(budget(total, out, recent)) is refused


def test_those_drained_in_the_same_look_count_already() -> None:
    room = policy.budget.Room(100, {"n1"}, set(), (0, 3), (0, 9))
    for name in ("n2", "n3"):
        assert not room.obstacle(name)
        room.take(name)
    assert room.obstacle("n4").startswith("budget spent: 3 of 100 nodes are out by us")
    assert not room.obstacle("n3")  # whoever is out already takes no place twice


def test_a_budget_of_nothing_drains_nothing() -> None:
    said = budget(100, 0, 0, (0, 0), (0, 0))
    assert said == "budget spent: 0 of 100 nodes are out by us, at most 0 may be"
    assert "at most 0 may be in the window" in budget(100, 0, 0, (10, 2), (0, 0))


# -- which jobs a fault touches


@pytest.mark.parametrize(
    ("devices", "ended", "expected"),
    [
        ((GPU,), 0.0, True),
        (("0000:18:00.0", GPU), 0.0, True),
        (("0000:18:00.0",), 0.0, False),
        ((), 0.0, False),
        (None, 0.0, False),
        ((GPU,), T + 1, True),
        ((GPU,), T - 1, True),
        ((GPU,), T - 3, False),
    ],
    ids=["holds", "holds two", "another", "none", "unknown", "died of it", "second before", "long before"],
)
def test_the_holder_of_the_gpu_is_touched(
    devices: tuple[str, ...] | None, ended: float, expected: bool
) -> None:
    card = Card(7, 0, devices=devices, ended=ended)
    assert policy.touch.touched(incident(), [card]) == ([card] if expected else [])


@pytest.mark.parametrize(
    ("ended", "started", "gone", "jobs"),
    [
        (T - 1, T - 1, 0.0, [8]),
        (T - 1, T - 1, T, [8]),
        (T - 1, T, 0.0, [7, 8]),  # in that second the one may have died of it, and the other come
        (T, T - 1, 0.0, [7, 8]),  # both had it
        (T - 1, T - 1, T - 1, [7, 8]),  # neither had it
        (0.0, T - 1, 0.0, [7, 8]),
    ],
)
def test_who_had_left_before_another_came_is_not_touched(
    ended: float, started: float, gone: float, jobs: list[int]
) -> None:
    before = Card(7, 0, devices=(GPU,), started=T - 60, ended=ended)
    after = Card(8, 0, devices=(GPU,), started=started, ended=gone)
    found = policy.touch.touched(incident(since=T + 0.5), [before, after])
    assert [card.job for card in found] == jobs


@pytest.mark.parametrize(("ended", "expected"), [(0, True), (T, True), (T - 2, True), (T - 3, False)])
def test_a_fault_of_the_node_touches_all_that_were_there(ended: float, expected: bool) -> None:
    assert policy.touch.hurt(incident(since=T + 0.9), Job(7, "7", "FAILED", ended=ended)) is expected


OTHER = "0000:18:00.0"
HELD: dict[int, tuple[str, ...] | None] = {1: (GPU,), 2: (OTHER,), 3: (), 4: None}


@pytest.mark.parametrize(
    ("code", "device", "jobs"),
    [
        ("GPU_XID_79", GPU, [1]),
        ("GPU_MISSING", "", []),
        ("GPU_DRIVER_HUNG", "", [1, 2]),
        ("GPU_DRIVER_FAILED", "", [1, 2]),
        ("NVSWITCH_SXID_12028", "0000:c1:00.0", [1, 2]),
    ],
)
def test_a_fault_of_gpus_touches_who_surely_holds_them(code: str, device: str, jobs: list[int]) -> None:
    broken = incident(code=code, device=device)
    assert not policy.touch.everyones(broken)
    found = policy.touch.touched(broken, [Card(job, 0, devices=devices) for job, devices in HELD.items()])
    assert [card.job for card in found] == jobs


def hurt(node: str, began: float, since: float, code: str = "GPU_XID_79") -> Hurt:
    """Of a run that is told from others by when it began."""
    return Hurt(node, code, int(began), T + began, T + since)


@pytest.mark.parametrize(
    ("hurts", "expected"),
    [
        ([], ()),
        ([hurt("n1", 0, 9000)], ("n1",)),
        ([hurt("n1", 0, 9000), hurt("n2", 9010, 9030)], ("n1", "n2")),
        ([hurt("n1", 0, 9000), hurt("n2", 9010, 9610)], ("n2",)),  # it ran ten minutes in between
        ([hurt("n1", 0, 9000), hurt("n2", 9010, 9030, "GPU_XID_48")], ("n2",)),
        ([hurt("n1", 0, 10), hurt("n2", 20, 30), hurt("n3", 40, 50)], ("n1", "n2", "n3")),
        ([hurt("n1", 0, 10), hurt("n2", 20, 3000), hurt("n3", 3010, 3020)], ("n2", "n3")),
        ([hurt("n1", 0, 10), hurt("n1", 20, 30)], ("n1",)),
        ([hurt("n1", 0, 10), hurt("n2", 20, 30), hurt("n3", 20, 31)], ("n1", "n3")),  # two of one run
        # A switch that dies takes one link after the other: that is no job's doing.
        ([hurt("n1", 0, 10, "IB_PORT_DOWN"), hurt("n2", 20, 30, "IB_PORT_DOWN")], ()),
    ],
)
def test_the_nodes_that_a_job_broke_one_after_the_other(hurts: list[Hurt], expected: tuple[str, ...]) -> None:
    assert policy.touch.broke(hurts, 600.0) == expected


@pytest.mark.parametrize("code", ["IB_PORT_DOWN", "NIC_DOWN", "MEM_ECC_UNCORRECTED", "KERNEL_LOCKUP"])
def test_a_link_or_the_host_is_everyones(code: str) -> None:
    assert policy.touch.everyones(incident(code=code, device="mlx5_4/1"))


@pytest.mark.parametrize(
    ("cards", "restarts", "expected"),
    [
        ([Card(7, 0, devices=(GPU,), ranks={GPU: (3, 4)})], 0, [(0, (3, 4))]),
        ([Card(7, 1, devices=(GPU,)), Card(7, 0, devices=(GPU,))], 1, [(1, ())]),
        ([Card(7, 0, devices=(GPU,))], 1, [(0, ())]),
        ([Card(7, 1, devices=(GPU,))], 0, []),
        ([Card(7, 0, devices=(OTHER,))], 0, []),
        ([Card(8, 0, devices=(GPU,))], 0, []),
    ],
    ids=["with its ranks", "the last run", "requeued since", "another job", "elsewhere", "forgotten"],
)
def test_of_a_device_the_runs_that_held_it(
    cards: list[Card], restarts: int, expected: list[tuple[int, tuple[int, ...]]]
) -> None:
    known = {7: Job(7, "7", "RUNNING", restarts=restarts)}
    there = [Job(9, "9", "RUNNING", nodes=("n1",))]
    found = policy.touch.runs(incident(), cards, known, there)
    assert found == [(known[7], number, ranks) for number, ranks in expected]


def test_of_a_node_the_runs_that_slurm_lists_there_and_those_that_are_held() -> None:
    link = incident(code="IB_PORT_DOWN", device="mlx5_4/1")
    here = Job(1, "1", "RUNNING", restarts=2, nodes=("n1", "n2"))
    elsewhere, before = replace(here, id=2, nodes=("n2",)), replace(here, id=3, ended=T - 60)
    state, reason = policy.touch.NOT_EXPEDITED
    held = Job(4, "4", state, reason=reason, restarts=1)
    cards = [Card(4, 0, ended=T), Card(5, 0)]
    found = policy.touch.runs(link, cards, {4: held}, [here, elsewhere, before])
    assert found == [(here, 2, ()), (held, 0, ())]


# -- the life of a victim


def victim(**changes: Any) -> Victim:
    return replace(Victim(1, 1, 7, 0, "7", 1000, "n1", Urgency.NOW, T), **changes)


def job(state: str = "RUNNING", **changes: Any) -> Job:
    return replace(Job(7, "7", state, uid=1000, nodes=("n1", "n2"), started=T - 100), **changes)


UNSAID = Wish()
ASKED = Wish(signal="USR1", grace=120.0)


def treat(
    of: Victim, now_is: Job | None, may: bool = True, after: float = 1.0, wish: Wish = UNSAID
) -> policy.job.Step:
    return policy.job.treat(of, now_is, Terms(wish, may), T + after)


def test_a_live_job_whose_device_is_lost_is_requeued_at_once() -> None:
    for state in policy.job.LIVE:
        assert treat(victim(), job(state)) == Requeue(incomplete=True)
        assert treat(victim(), job(state), may=False) == Wait()


@pytest.mark.parametrize("state", ["RUNNING", "CONFIGURING", "FAILED"])
def test_a_run_that_was_never_on_the_node_is_not_touched(state: str) -> None:
    leaving = job("PENDING", completing=True, restarts=1)
    assert treat(victim(restarts=1), leaving) == Wait(hot=True)
    again = job(state, restarts=1, nodes=("n2", "n3"), started=T + 1, ended=T + 2)
    assert treat(victim(restarts=1), again) == Settle("this run was never on n1")
    # The leader of a heterogeneous job shows its own nodes, not those of the component that was hurt.
    assert treat(victim(restarts=1), replace(again, het=True)) != Settle("this run was never on n1")


@pytest.mark.parametrize("urgency", [Urgency.FINISH, Urgency.CHECKPOINT])
def test_a_live_job_that_may_finish_is_watched_for_its_death_and_left(urgency: Urgency) -> None:
    assert treat(victim(urgency=urgency), job()) == Wait()
    assert treat(victim(urgency=urgency), job(), after=120) == Wait()
    assert treat(victim(urgency=urgency), job(), after=120.5) == Settle("left to finish")


@pytest.mark.parametrize("state", ["RUNNING", "FAILED", "PENDING"])
def test_an_urgency_of_none_leaves_the_job_alone(state: str) -> None:
    assert treat(victim(urgency=Urgency.NONE), job(state)) == Settle("left alone")


@pytest.mark.parametrize("state", sorted(policy.job.DIED))
@pytest.mark.parametrize("urgency", [Urgency.NOW, Urgency.FINISH, Urgency.CHECKPOINT])
@pytest.mark.parametrize(
    ("died", "counts"),
    [(0, True), (-1, True), (-3, True), (-4, False), (119, True), (120, True), (121, False)],
)
def test_a_death_around_the_fault_is_the_faults(
    state: str, urgency: Urgency, died: float, counts: bool
) -> None:
    step = treat(victim(urgency=urgency), job(state, ended=T + died), after=130)
    assert step == (Requeue(incomplete=False) if counts else Settle("failed for its own reasons"))


def test_a_dead_job_waits_until_its_node_is_out() -> None:
    assert treat(victim(), job("FAILED", ended=T), may=False) == Wait()


@pytest.mark.parametrize(
    "state", ["CANCELLED", "COMPLETED", "TIMEOUT", "PREEMPTED", "DEADLINE", "OUT_OF_MEMORY", "REVOKED"]
)
def test_what_ended_otherwise_is_never_resurrected(state: str) -> None:
    assert treat(victim(), job(state, ended=T + 1)) == Settle(f"{state}: not ours to bring back")


def test_a_job_that_is_still_ending_is_watched_closely() -> None:
    assert treat(victim(), job("COMPLETING", completing=True, ended=T)) == Wait(hot=True)
    assert treat(victim(), job("RUNNING", completing=True)) == Wait(hot=True)
    for reason in ("None", "TimeLimit", "Prolog"):
        assert treat(victim(), job("COMPLETING", completing=True, reason=reason, ended=T)) == Wait(hot=True)


@pytest.mark.parametrize("reason", ["NonZeroExitCode", "JobLaunchFailure", "NodeDown", "RaisedSignal:53(x)"])
def test_a_death_is_known_before_its_last_step_has_ended(reason: str) -> None:
    dying = job("COMPLETING", completing=True, reason=reason, ended=T + 1)
    assert treat(victim(), dying, after=2) == Requeue(incomplete=False)
    assert treat(victim(), dying, may=False, after=2) == Wait()
    assert treat(victim(), replace(dying, ended=T - 60)) == Settle("failed for its own reasons")
    assert treat(victim(), replace(dying, requeueable=False)) == Settle(
        "its owner wants no requeue (--no-requeue)", tell=True
    )


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_what_cannot_or_shall_not_be_requeued_is_left(state: str) -> None:
    ended = T if state == "FAILED" else 0.0
    interactive = job(state, batch=False, ended=ended)
    unwilling = job(state, requeueable=False, ended=ended)
    for may in (True, False):
        assert treat(victim(), interactive, may) == Settle("interactive: Slurm cannot requeue it", tell=True)
        assert treat(victim(), unwilling, may) == Settle(
            "its owner wants no requeue (--no-requeue)", tell=True
        )


def test_what_slurm_forgot_is_settled() -> None:
    assert treat(victim(), None) == Settle("Slurm no longer knows it")


def test_a_lower_restart_count_is_another_job() -> None:
    assert treat(victim(restarts=2), job(restarts=1)) == Settle("another job has its number")


def test_a_job_that_never_started_waits() -> None:
    assert treat(victim(), job("PENDING")) == Wait()


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "CONFIGURING", "FAILED", "COMPLETED"])
def test_a_requeue_by_somebody_else_is_theirs(state: str) -> None:
    step = treat(victim(), job(state, restarts=1, ended=T + 5 if state == "FAILED" else 0.0))
    assert step == Settle("requeued by somebody else")


def test_what_slurmctld_forgot_is_asked_where_the_node_was_back_in_service() -> None:
    ours = Drained("slurm-health: x", 7)
    out = Node("n1", frozenset({"IDLE", "DRAIN"}), "slurm-health: x", 7)
    assert policy.node.was_back(ours, Node("n1", frozenset({"IDLE"})))
    assert policy.node.was_back(ours, replace(out, reason="Epilog error"))
    assert not policy.node.was_back(ours, out)
    assert not policy.node.was_back(ours, replace(out, reason="an admin's"))
    assert not policy.node.was_back(Drained(), Node("n1", frozenset({"IDLE"})))


@pytest.mark.parametrize(
    ("booted", "shown", "lost"),
    [
        (T - 3600, T + 4, False),  # nobody but an admin ended it
        (T + 5, T + 4, True),
        (T + 4, T + 4.9, True),  # of the same second nobody knows
        (T + 5, T + 6, False),  # it outlived the start
        (T + 300, T, True),
        (T + 3600, T, False),
    ],
)
def test_a_drain_that_slurmctld_forgot_is_no_admins_resume(booted: float, shown: float, lost: bool) -> None:
    assert policy.node.forgot(booted, T, shown) is lost


@pytest.mark.parametrize("state", ["RUNNING", "CONFIGURING"])
def test_a_job_that_slurm_runs_again_at_once_is_followed(state: str) -> None:
    def step(of: Victim, seen: Job) -> policy.job.Step:
        return policy.job.treat(of, seen, Terms(Wish(), True, expedites=True), T + 5)

    again = job(state, restarts=1, started=T + 2)
    assert step(victim(), again) == Adopt()
    assert step(victim(requeued=T + 3), again) == Wait(hot=True)
    assert step(victim(), pending()) == Settle("requeued by somebody else")
    dying = job("COMPLETING", completing=True, reason="NonZeroExitCode", ended=T + 1)
    assert step(victim(), dying) == Wait(hot=True)


def test_a_job_that_was_to_be_expedited_and_is_held_is_released_once() -> None:
    state, reason = policy.touch.NOT_EXPEDITED
    held = job(state, restarts=1, reason=reason, nodes=())
    assert treat(victim(), held) == Release()
    assert treat(victim(), held, may=False) == Wait()
    assert treat(back(), held) == Settle("REQUEUE_HOLD after its requeue")
    for other in (replace(held, reason="launch failure limit exceeded requeued held"), pending(reason, 0.0)):
        assert treat(victim(), other) == Settle("requeued by somebody else")
    of_this_run = Card(7, 0, ended=T + 1)
    assert policy.touch.held_back(held, of_this_run)
    assert not policy.touch.held_back(held, replace(of_this_run, restarts=1))
    assert not policy.touch.held_back(pending(reason, 0.0), of_this_run)


# a fault that lets it live, but not for long


def asked(**changes: Any) -> Victim:
    return victim(urgency=Urgency.CHECKPOINT, **changes)


def test_who_asked_is_signalled_once_and_requeued_after_its_grace() -> None:
    assert treat(asked(), job(), wish=ASKED) == Signal("USR1", "batch")
    assert treat(asked(), job(), may=False, wish=ASKED) == Wait()
    sent = asked(signalled=T + 1)
    assert treat(sent, job(), after=30.9, wish=ASKED) == Wait(hot=True)
    assert treat(sent, job(), after=120.9, wish=ASKED) == Wait()
    assert treat(sent, job(), after=121, wish=ASKED) == Requeue(incomplete=True)
    assert treat(sent, job(), after=121, wish=ASKED, may=False) == Wait()
    assert treat(sent, job(), after=70, wish=Wish()) == Requeue(incomplete=True)  # it took its words back


def test_who_did_not_ask_is_never_signalled() -> None:
    assert treat(asked(), job()) == Wait()
    assert treat(asked(), job(), after=121) == Settle("left to finish")
    assert treat(asked(), job(), wish=Wish(unasked=Urgency.NOW)) == Requeue(incomplete=True)


def test_a_fault_that_cannot_wait_ends_the_grace() -> None:
    assert treat(victim(signalled=T), job(), wish=ASKED) == Requeue(incomplete=True)


def test_a_signal_is_for_who_can_heed_it() -> None:
    assert treat(asked(), job("CONFIGURING"), wish=ASKED) == Requeue(incomplete=True)
    assert treat(asked(), job("SUSPENDED"), wish=ASKED) == Wait()
    assert treat(asked(), job(batch=False), wish=ASKED) == Settle(
        "interactive: Slurm cannot requeue it", tell=True
    )
    assert treat(asked(), job(requeueable=False), wish=ASKED) == Settle(
        "its owner wants no requeue (--no-requeue)", tell=True
    )


def test_what_ends_in_its_grace_is_brought_back_unless_it_says_that_it_is_done() -> None:
    sent = asked(signalled=T + 100)
    for ended, counts in ((101, True), (222, True), (223, False)):
        step = treat(sent, job("FAILED", ended=T + ended), after=230, wish=ASKED)
        assert step == (Requeue(incomplete=False) if counts else Settle("failed for its own reasons"))
    assert treat(sent, job("COMPLETED", ended=T + 110), wish=ASKED) == Settle(
        "COMPLETED: not ours to bring back"
    )


@pytest.mark.parametrize("urgency", [Urgency.NOW, Urgency.CHECKPOINT])
def test_who_says_off_is_neither_signalled_nor_requeued(urgency: Urgency) -> None:
    off = replace(ASKED, requeue=0)
    for state in ("RUNNING", "FAILED"):
        step = treat(victim(urgency=urgency), job(state, ended=T), wish=off)
        assert step == Settle("its owner wants no requeue (slurm-health: off)", tell=True)


# after its requeue


def back(**changes: Any) -> Victim:
    return victim(**{"requeued": T + 0.5, **changes})


def pending(reason: str = "BeginTime", begins: float = T + 121, **changes: Any) -> Job:
    return job("PENDING", **{"restarts": 1, "reason": reason, "begins": begins, "nodes": (), **changes})


def test_its_wait_is_ended_once_at_the_earliest_moment() -> None:
    def step(of: Victim, after: float) -> policy.job.Step:
        return policy.job.treat(of, pending(), Terms(Wish(), True, T + 1), T + after)

    assert step(back(), 0.6) == Wait(hot=True)
    assert step(back(), 0.99) == Wait(hot=True)
    assert step(back(), 1.0) == StartNow()
    for after in (1.2, 2.0, 3.9):
        assert step(back(started=T + 1), after) == Wait(hot=True)
    assert step(back(started=T + 1), 4.0) == StartNow()  # it was lost: the job was COMPLETING


@pytest.mark.parametrize("requeued", [0.0, 0.01, 0.5, 0.99])
def test_the_earliest_moment_is_in_a_later_whole_second(requeued: float) -> None:
    again = pending(size=2)
    assert policy.queue.earliest(back(requeued=T + requeued), again, T + 9, forgets_slowly=False) == T + 1
    assert policy.queue.earliest(victim(refused=T + requeued), again, 0.0, forgets_slowly=False) == T + 1


def test_where_slurmd_forgets_slowly_a_job_of_many_nodes_waits_two_seconds_more() -> None:
    assert policy.queue.earliest(back(), pending(size=1), T + 3.5, forgets_slowly=True) == T + 1
    assert policy.queue.earliest(back(), pending(size=2), T + 3.5, forgets_slowly=True) == T + 5
    assert policy.queue.earliest(back(), pending(size=2), 0.0, forgets_slowly=True) == T + 2


def test_its_wait_is_not_ended_while_it_completes() -> None:
    assert treat(back(), pending(completing=True), after=2) == Wait(hot=True)


def test_a_start_that_backfill_plans_is_no_wait_of_ours() -> None:
    planned = pending("Resources", T + 5000)
    assert treat(back(started=T + 1), planned, after=60) == Wait()
    assert treat(back(started=T + 1), pending("Priority", T + 5000), after=5) == Wait(hot=True)
    # Not asked yet, whatever word squeue has for it in the first moment.
    assert treat(back(), pending("None", T + 121), after=2) == StartNow()


def test_a_start_that_is_due_needs_no_help() -> None:
    assert treat(back(), pending(begins=T + 2.5), after=2) == Wait(hot=True)
    assert treat(back(), pending("Resources", 0.0), after=29) == Wait(hot=True)
    assert treat(back(), pending("Resources", 0.0), after=31) == Wait()


def test_a_job_held_by_our_prolog_is_released() -> None:
    held = pending(policy.job.HELD_BY_PROLOG, 0.0)
    assert treat(victim(refused=T + 0.2), held) == Release()
    assert treat(back(), held) == Release()
    assert treat(victim(), held) == Settle("held after a failed prolog")
    assert treat(victim(refused=T + 0.2), held, may=False) == Release()


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin", "job requeued in held state"])
def test_a_job_that_somebody_holds_stays_held(reason: str) -> None:
    assert treat(back(), pending(reason, 0.0)) == Settle(f"held by somebody else: {reason}")


def test_it_ran_again_once_its_batch_step_has_stayed() -> None:
    again = job("RUNNING", restarts=1, started=T + 2)
    assert treat(back(), again, after=2) == Wait(hot=True)
    assert treat(back(running=T + 2), again, after=2.9) == Wait(hot=True)
    assert treat(back(running=T + 2), again, after=3) == Ran()
    assert treat(back(), replace(again, state="CONFIGURING"), after=3) == Wait(hot=True)
    assert treat(back(running=T + 2), replace(again, reason="Prolog"), after=9) == Wait(hot=True)
    assert treat(back(running=T + 2), replace(again, completing=True), after=9) == Wait(hot=True)
    assert treat(back(), replace(again, state="COMPLETED", ended=T + 3), after=4) == Ran()


def test_a_launch_that_failed_at_once_is_ours_to_repeat_twice() -> None:
    failed = job("FAILED", restarts=1, started=T + 2, ended=T + 2)
    assert treat(back(), failed, after=3) == Requeue(incomplete=False)
    assert treat(back(tries=1), failed, after=3) == Requeue(incomplete=False)
    assert treat(back(tries=2), failed, after=3) == Settle("FAILED after its requeue")
    assert treat(back(), failed, may=False, after=3) == Wait()
    assert treat(back(), replace(failed, ended=T + 60), after=61) == Settle("FAILED after its requeue")
    assert treat(back(ran=T + 2), failed, after=3) == Settle("FAILED after its requeue")


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"])
def test_another_end_after_its_requeue_is_its_own(state: str) -> None:
    ended = job(state, restarts=1, started=T + 2, ended=T + 2)
    assert treat(back(), ended, after=3) == Settle(f"{state} after its requeue")


STATES_OF_JOBS = sorted(
    policy.job.LIVE
    | policy.job.DIED
    | {"PENDING", "CANCELLED", "COMPLETED", "TIMEOUT", "COMPLETING", "PREEMPTED"}
)
MOMENTS = st.sampled_from([0.0]) | st.floats(T - 300, T + 300)
VICTIMS = st.builds(
    victim,
    urgency=st.sampled_from(Urgency),
    restarts=st.integers(0, 2),
    refused=MOMENTS,
    requeued=MOMENTS,
    started=MOMENTS,
    running=MOMENTS,
    ran=MOMENTS,
    tries=st.integers(0, 3),
    signalled=MOMENTS,
)
WISHES = st.builds(
    Wish,
    st.integers(0, 2),
    st.sampled_from(["", "USR1"]),
    st.floats(0, 200),
    unasked=st.sampled_from([Urgency.NOW, Urgency.FINISH]),
)
JOBS = st.builds(
    job,
    st.sampled_from(STATES_OF_JOBS),
    completing=st.booleans(),
    reason=st.sampled_from(["", "BeginTime", "Resources", "NodeDown", policy.job.HELD_BY_PROLOG, "Prolog"]),
    restarts=st.integers(0, 3),
    batch=st.booleans(),
    requeueable=st.booleans(),
    started=MOMENTS,
    ended=MOMENTS,
    begins=MOMENTS,
)


@given(VICTIMS, st.none() | JOBS, WISHES, st.booleans(), st.floats(T - 10, T + 400), MOMENTS)
def test_what_holds_for_every_job(
    of: Victim, now_is: Job | None, wish: Wish, may: bool, now: float, start: float
) -> None:
    step = policy.job.treat(of, now_is, Terms(wish, may, start), now)
    if isinstance(step, Signal):
        assert may
        assert now_is
        assert (now_is.state, now_is.batch, now_is.requeueable) == ("RUNNING", True, True)
        assert wish.signal
        assert wish.requeue
        assert not of.signalled
        assert of.urgency is Urgency.CHECKPOINT
    if isinstance(step, Requeue):
        assert may
        assert now_is
        assert now_is.batch or now_is.restarts > of.restarts
        assert now_is.restarts >= of.restarts
        assert of.urgency is not Urgency.NONE
        if now_is.completing:
            assert now_is.reason.startswith(policy.job.DEATHS)
        else:
            assert now_is.state in (policy.job.LIVE if step.incomplete else policy.job.DIED)
    if isinstance(step, Release):
        assert now_is
        assert (now_is.state, now_is.reason) == ("PENDING", policy.job.HELD_BY_PROLOG)
        assert of.refused or of.requeued
    if isinstance(step, StartNow):
        assert now_is
        assert now_is.state == "PENDING"
        assert not now_is.completing
        assert now >= start
    if isinstance(step, Settle):
        assert step.outcome


STOOD = Drained("slurm-health: GPU_XID_79(0000:5d:00.0) off the bus", 900)


@pytest.mark.parametrize(
    ("reason", "ours", "card", "expected"),
    [
        ("Prolog error", STOOD, Card(7, 0, refused=1000.0), True),
        ("Prolog error", Drained(), Card(7, 0, refused=1000.0), True),
        ("Prolog error", STOOD, Card(7, 0, refused=900.0), False),  # before the first evidence
        ("Prolog error", STOOD, Card(7, 0, ended=1000.0), False),
        ("Epilog error", STOOD, Card(7, 0, ended=1000.0), True),
        ("Epilog error", STOOD, Card(7, 0, ended=990.0), False),  # another job's end
        (
            "Epilog error",
            Drained(),
            Card(7, 0, ended=1000.0),
            False,
        ),  # we had not refused anybody
        ("bad fan", STOOD, Card(7, 0, ended=1000.0), False),
    ],
)
def test_whose_hook_failed(reason: str, ours: policy.node.Drained, card: Card, expected: bool) -> None:
    node = Node("n1", frozenset({"IDLE", "DRAIN"}), reason, since=1001)
    assert policy.node.our_hook(node, ours, [card], first=950.0) is expected


@pytest.mark.parametrize(("refused", "expected"), [(1000.0, True), (990.0, False), (0.0, False)])
def test_a_refusal_that_crossed_a_resume_is_undone(refused: float, expected: bool) -> None:
    """The admin's RESUME was acknowledged when the prolog turned a job away for the old verdict."""
    node = Node("n1", frozenset({"IDLE", "DRAIN"}), "Prolog error", since=1001)
    ours = policy.node.our_hook(node, Drained(), [Card(7, 0, refused=refused)], first=None)
    assert ours is expected
    faults = [incident(acknowledged=T)]
    judged = policy.node.judge(node, faults, Drained(), (), Outlook("requeue"), ours)
    assert judged.do is (Do.UNDO if expected else Do.NOTHING)
    somebody = replace(node, reason="bad fan")
    assert policy.node.judge(somebody, faults, Drained(), (), Outlook("requeue"), True).do is Do.NOTHING


# -- nodes that it misses


def waiting(**changes: Any) -> Job:
    return replace(job("PENDING", restarts=1, reason="ReqNodeNotAvail, UnavailableNodes:n2"), **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"reason": "Nodes required for job are DOWN, DRAINED or reserved for jobs"}, True),
        ({"reason": "Resources"}, False),
        ({"reason": "ReqNodeNotAvail, Reserved for maintenance"}, False),
        ({"reason": "ReqNodeNotAvail, May be reserved for other job"}, True),  # of a drained node, on 26.05
        ({"begins": T + 120}, False),  # Slurm has it wait first
        ({"restarts": 0}, False),  # it has not been requeued yet
        ({"state": "RUNNING"}, False),
    ],
)
def test_who_misses_nodes(changes: dict[str, Any], expected: bool) -> None:
    assert policy.queue.misses_nodes(victim(requeued=T + 0.5), waiting(**changes), T + 3) is expected


ELSEWHERE = "where it names them (-w), `scontrol update jobid=7 ReqNodeList=` lets it go elsewhere"
FEWER = "`scontrol update jobid=7 NumNodes=3` has it run on fewer than its 4"


@pytest.mark.parametrize(
    ("gone", "changes", "expected"),
    [
        (1, {}, [ELSEWHERE]),
        (1, {"size": 4}, [ELSEWHERE, FEWER]),
        (1, {"size": 4, "reason": "Nodes required for job are DOWN"}, [FEWER]),
        (4, {"size": 4}, [ELSEWHERE]),
        (0, {"size": 4}, [ELSEWHERE]),  # which they are is not known
        (1, {"size": 4, "het": True}, [ELSEWHERE]),  # of one component only
    ],
)
def test_what_can_be_done_for_a_job_that_misses_nodes(
    gone: int, changes: dict[str, Any], expected: list[str]
) -> None:
    said = policy.queue.ways_on(waiting(**changes), gone)
    assert said == "; ".join(["it runs when they serve again", *expected])


# -- its place in the queue


@pytest.mark.parametrize("priority", [1, 2, 5000, 2147423112, 4294901759, 4294967294])
@pytest.mark.parametrize("nice", [0, 50, -5000, 2147483645, -2147483645])
def test_the_nice_value_that_puts_a_job_first(priority: int, nice: int) -> None:
    lifted = policy.queue.foremost(priority, nice)
    assert -2147483645 <= lifted <= nice
    assert priority <= priority + nice - lifted <= 4294967294  # what 32 bits can hold, without INFINITE


def test_a_job_on_its_way_back_is_lifted_once_while_it_waits() -> None:
    waits = job("PENDING", restarts=1, begins=T + 120, reason="BeginTime")
    of = victim(requeued=T + 0.5)
    first = Terms(Wish(), True, first=True)
    assert policy.job.treat(of, waits, first, T + 1) == policy.job.Lift()
    assert policy.job.treat(of, waits, Terms(Wish(), True), T + 1) == StartNow()
    assert policy.job.treat(replace(of, placed=T + 1), waits, first, T + 1) == StartNow()
    assert policy.job.treat(of, replace(waits, completing=True), first, T + 1) == Wait(hot=True)
    held = replace(waits, reason="JobHeldUser")
    assert policy.job.treat(of, held, first, T + 1) == Settle("held by somebody else: JobHeldUser")
    for somebody_elses in (victim(), victim(urgency=Urgency.NONE)):
        assert isinstance(policy.job.treat(somebody_elses, waits, first, T + 1), Settle)
    assert policy.job.treat(of, job(restarts=1), first, T + 1) == Wait(hot=True)


# -- back in service

CODES = ("IB_PORT_*", "NIC_DOWN")


def gone(**changes: Any) -> Incident:
    return incident(**({"code": "IB_PORT_DOWN", "device": "mlx5_4/1", "cleared": T + 10} | changes))


def returns(*against: Incident, flags: str = "IDLE DRAIN", after: float = 310.0, times: int = 0) -> bool:
    node = Node("n1", frozenset(flags.split()), "slurm-health: x", 7)
    return policy.node.returns(node, against, CODES, 300.0, times, T + after)


def test_a_node_returns_when_its_fault_has_been_gone_for_long_enough() -> None:
    assert returns(gone())
    assert not returns(gone(), after=309)
    assert not returns(gone(), gone(cleared=T + 11))
    assert not returns(gone(), times=2, after=1209)
    assert returns(gone(), times=2, after=1210)


def test_a_node_does_not_return_by_itself_from_what_needs_hands() -> None:
    assert not returns()  # closed by hand: whoever did that resumes it, too
    assert not returns(gone(cleared=0.0))
    assert not returns(gone(), gone(code="GPU_XID_79", cleared=0.0))
    assert not returns(gone(code="GPU_MISSING"))
    assert not returns(gone(), gone(code="NIC_DOWN_TWICE"))


@pytest.mark.parametrize("flags", ["IDLE", "DOWN DRAIN", "IDLE DRAIN MAINT", "IDLE DRAIN REBOOT_ISSUED",
                                   "IDLE DRAIN NOT_RESPONDING", "IDLE FAIL"])  # fmt: skip
def test_a_node_does_not_return_out_of_others_hands(flags: str) -> None:
    assert not returns(gone(), flags=flags)


# -- a job that cannot end


@pytest.mark.parametrize(
    "flags, reason, since, others, why",
    [
        ("COMPLETING DRAIN", "slurm-health: x", 7, [], ""),
        ("COMPLETING DRAIN", "slurm-health: x", 7, ["9", "8_1"], "job 8_1, 9 is on it, too"),
        ("COMPLETING DRAIN", "slurm-health: x, says Ada", 7, [], "its drain is not ours"),
        ("COMPLETING DRAIN", "slurm-health: x", 8, [], "its drain is not ours"),
        ("COMPLETING DRAIN MAINT", "slurm-health: x", 7, [], "node is maint"),
    ],
)
def test_a_node_is_set_down_only_where_it_is_ours_and_empty(
    flags: str, reason: str, since: int, others: list[str], why: str
) -> None:
    node = Node("n1", frozenset(flags.split()), reason, since)
    assert policy.node.spared(node, Drained("slurm-health: x", 7), others) == why
    assert policy.node.spared(node, Drained(), others) == "its drain is not ours"


def test_who_is_still_on_a_node() -> None:
    assert [policy.job.holds_on(job(state)) for state in ("RUNNING", "SUSPENDED", "CONFIGURING")] == [
        True
    ] * 3
    assert [policy.job.holds_on(job(state)) for state in ("PENDING", "FAILED", "COMPLETED")] == [False] * 3
    assert policy.job.holds_on(job("COMPLETING", completing=True))


# -- who depends on a job that came back


@pytest.mark.parametrize(
    "dependency, anew",
    [
        ("afterok:7(failed)", "afterok:7"),
        ("afterok:7(failed),afterany:9(unfulfilled)", "afterok:7,afterany:9"),
        ("aftercorr:7_*(failed)", "aftercorr:7_*"),
        ("afterok:7_3(failed)", "afterok:7_3"),
        ("afterok:9_1(unfulfilled)?afterok:7(failed)", "afterok:9_1?afterok:7"),
        ("afterok:7(failed),afterok:9(failed)", ""),
        ("afterok:17(failed)", ""),
        ("afterok:9(failed),afterok:7(unfulfilled)", ""),
        ("singleton(unfulfilled)", ""),
    ],
)
def test_who_saw_it_fail_waits_again_unless_another_failed_too(dependency: str, anew: str) -> None:
    assert policy.queue.renewed(dependency, victim(job=7, label="7")) == anew
