"""Who may start when on a node whose slurmd forgets slowly."""

from slurm_health.model import Job, Urgency, Victim
from slurm_health.turns import LAUNCH, Turns

T = 1_700_000_000.75


def victim(number: int) -> Victim:
    return Victim(number, 1, number, 0, str(number), 0, "n2", Urgency.NOW, T)


FIRST, SECOND, APART = victim(1), victim(2), victim(3)


def turns() -> Turns:
    """Two jobs that had n1 in common and one elsewhere, all on their way back."""
    these = Turns()
    for one, nodes in ((FIRST, ("n1", "n2")), (SECOND, ("n1", "n3")), (APART, ("n4", "n5"))):
        these.see(one, Job(one.job, one.label, "RUNNING", nodes=nodes), T)
        these.see(one, Job(one.job, one.label, "PENDING", restarts=1, nodes=("n6",)), T)  # planned, not had
    return these


def may(these: Turns, now: float, *known: Victim) -> list[bool]:
    these.forget({one.id for one in known}, now)
    return [these.free(one) for one in (FIRST, SECOND, APART)]


def test_one_after_the_other_on_a_node_that_they_shared() -> None:
    these = turns()
    everyone = (FIRST, SECOND, APART)
    assert may(these, T, *everyone) == [True, True, True]
    these.take(FIRST, T)
    assert may(these, T + LAUNCH - 0.1, *everyone) == [True, False, True]
    assert may(these, T + LAUNCH, *everyone) == [True, True, True]


def test_whose_job_runs_or_has_ended_keeps_the_others_for_two_whole_seconds() -> None:
    these = turns()
    these.take(FIRST, T)
    these.done(FIRST, T + 1)
    these.done(SECOND, T + 1)  # whose turn it never was
    # Its story may have ended with it: slurmd has yet to forget it.
    assert may(these, T + 2.2, SECOND, APART) == [True, False, True]
    assert may(these, T + 2.25, SECOND, APART) == [True, True, True]


def test_the_nodes_of_a_job_that_leaves_count_as_had() -> None:
    these = Turns()
    these.see(FIRST, Job(1, "1", "COMPLETING", True, restarts=1, nodes=("n1",)), T)
    these.see(SECOND, Job(2, "2", "RUNNING", nodes=("n1",)), T)
    these.take(SECOND, T)
    assert may(these, T, FIRST, SECOND) == [False, True, True]
    assert these.left == {FIRST.id: T}
