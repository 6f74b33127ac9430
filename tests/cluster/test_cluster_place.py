"""A job on its way back does not wait behind the queue that formed while it ran."""

import pytest
from test_cluster_requeue import done

pytestmark = pytest.mark.cluster

# Waits with a higher priority than any job that runs, and for longer: backfill starts it before none of them.
AHEAD = ("--nice=-5000", "--gpus=8", "--time=120")


def standing(cluster, job):
    """(priority, nice value), of the first component where there are several."""
    said = cluster.ask("squeue", "-h", "-t", "all", "-j", job, "-O", "PriorityLong,Nice").splitlines()[0]
    return tuple(map(int, said.split()))


def full(cluster, *options):
    """A job with these options, the jobs that fill the other nodes, and two that wait before it."""
    label = cluster.submit("sleep 300", "--time=60", *options) + ("_3" if "--array=3" in options else "")
    cluster.until(lambda: cluster.runs(label), len)
    free = cluster.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()
    fillers = {name: cluster.submit("sleep 300", "--time=60", "-w", name, "--gpus=8") for name in free}
    cluster.until(lambda: [cluster.state(one) for one in fillers.values()], ["RUNNING"] * len(fillers))
    waiting = [cluster.submit("sleep 300", *AHEAD) for _ in range(2)]
    cluster.until(lambda: [cluster.state(one) for one in waiting], ["PENDING"] * 2)
    assert all(standing(cluster, one)[0] > standing(cluster, label)[0] for one in waiting)
    return label, fillers, waiting


KINDS = {
    "batch": ("--gpus=8",),
    "two_nodes": ("-N2", "--gpus-per-node=8"),
    "array_task": ("--array=3", "--gpus=8"),
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_in_a_full_cluster_the_victim_runs_before_all_that_wait(cluster, options):
    job, fillers, waiting = full(cluster, *options)
    own = standing(cluster, job)
    broken, *healthy = cluster.nodes_of(job)
    cluster.xid(broken)
    cluster.until(lambda: standing(cluster, job)[1], lambda nice: nice < -5000)
    incident = cluster.incident(lambda one: [act for act in one["actions"] if act["kind"] == "start"])
    freed, filler = next(iter(fillers.items()))
    assert len(cluster.runs(job)) == 1
    cluster.ask("scancel", filler)
    incident = cluster.ran_again()
    [_, (restarts, nodes, _)] = cluster.runs(job)
    assert restarts == 1
    assert sorted(nodes) == sorted([*healthy, freed])  # what of its own is well, and the first that came free
    assert [act["detail"] for act in done(incident, "keep")] == healthy
    assert [cluster.state(one) for one in waiting] == ["PENDING"] * 2
    assert [one["outcome"] for one in incident["jobs"]] == ["runs again"]
    assert len(done(incident, "lift")) == len(done(incident, "lower")) == 1
    assert standing(cluster, job) == own
    assert cluster.ask("scontrol", "show", "reservation") == "No reservations in the system"


def test_all_components_of_a_heterogeneous_job_get_their_place_back(cluster):
    job, fillers, waiting = full(cluster, "--gpus=8", ":", "--gpus=8")
    [broken, _] = cluster.ask("squeue", "-h", "-j", job, "--sort=i", "-O", "NodeList").split()
    cluster.xid(broken)

    def nices():
        return [int(nice) for nice in cluster.ask("squeue", "-h", "-j", job, "-O", "Nice").split()]

    cluster.until(nices, lambda seen: len(seen) == 2 and max(seen) < -5000)
    cluster.ask("scancel", *fillers.values(), *waiting)
    assert [one["outcome"] for one in cluster.ran_again()["jobs"]] == ["runs again"]
    assert nices() == [0, 0]


def test_a_place_that_an_admin_chose_meanwhile_is_left(cluster):
    job, fillers, waiting = full(cluster, "--gpus=8")
    [broken] = cluster.nodes_of(job)
    cluster.xid(broken)
    cluster.until(lambda: standing(cluster, job)[1], lambda nice: nice < -5000)
    cluster.ask("scontrol", "update", f"JobId={job}", "Nice=77")
    for filler in fillers.values():
        cluster.ask("scancel", filler)
    incident = cluster.ran_again()
    assert standing(cluster, job)[1] == 77
    [lower] = [act for act in incident["actions"] if act["kind"] == "lower"]
    assert lower["outcome"] == "not done: somebody has set it to 77"
    assert [cluster.state(one) for one in waiting] == ["RUNNING"] * 2


def test_a_job_that_is_held_on_the_way_stays_held_and_keeps_its_claim(cluster):
    """Slurm takes any change of a held job's nice value for its release."""
    job, fillers, waiting = full(cluster, "--gpus=8")
    [broken] = cluster.nodes_of(job)
    own = standing(cluster, job)
    cluster.xid(broken)
    cluster.until(lambda: standing(cluster, job)[1], lambda nice: nice < -5000)
    cluster.ask("scontrol", "hold", job)
    cluster.ask("scancel", fillers.popitem()[1])
    cluster.until(lambda: cluster.state(waiting[0]), "RUNNING")
    assert (cluster.state(job), standing(cluster, job)[0]) == ("PENDING", 0)
    cluster.ask("scontrol", "release", job)
    cluster.incident(lambda one: done(one, "start"))
    cluster.ask("scancel", fillers.popitem()[1])
    assert cluster.ran_again()["jobs"][0]["outcome"] == "runs again"
    assert (cluster.state(waiting[1]), standing(cluster, job)[1]) == ("PENDING", own[1])


def test_a_site_may_leave_the_order_to_slurm(cluster):
    with cluster.configured('[requeue]\nplace = "keep"'):
        job, _, waiting = full(cluster, "-N2", "--gpus-per-node=8")
        own = standing(cluster, job)
        cluster.xid(cluster.nodes_of(job)[0])
        cluster.until(lambda: cluster.state(waiting[0]), "RUNNING")
        incident = cluster.incident(lambda one: [act for act in one["actions"] if act["kind"] == "start"])
        assert not {"lift", "lower", "keep"} & {act["kind"] for act in incident["actions"]}
        assert standing(cluster, job) == own


def test_two_tasks_of_an_array_on_their_way_back_are_told_apart(cluster):
    """One has the whole array's number, and squeue puts tasks that wait in one line."""
    array = cluster.submit("sleep 300", "--array=0-1", "--gpus=8")
    tasks = [f"{array}_{number}" for number in range(2)]
    cluster.until(lambda: all(cluster.runs(task) for task in tasks), True)
    for name in cluster.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split():
        cluster.submit("sleep 300", "--time=60", "-w", name, "--gpus=8")
    cluster.until(lambda: cluster.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N"), "")
    for task in tasks:
        cluster.xid(cluster.nodes_of(task)[0])
    cluster.until(lambda: [standing(cluster, task)[1] < -5000 for task in tasks], [True, True])
    assert [job["settled"] for one in cluster.incidents() for job in one["jobs"]] == [None, None]
    others = cluster.ask("squeue", "-h", "-t", "R", "-o", "%A").split()
    cluster.ask("scancel", *others)
    cluster.until(lambda: [len(cluster.runs(task)) for task in tasks], [2, 2])
    cluster.until(
        lambda: [job["outcome"] for one in cluster.incidents() for job in one["jobs"]], ["runs again"] * 2
    )
    assert [standing(cluster, task)[1] for task in tasks] == [0, 0]
