"""A fault takes its node out of service; the jobs that it hurt run again elsewhere, and no others."""

import datetime
import re

import pytest
from conftest import OF_NOBODY

pytestmark = pytest.mark.cluster


def done(incident, kind):
    """The acts of a kind that were carried out."""
    return [act for act in incident["actions"] if act["kind"] == kind and act["outcome"] == "done"]


def bus(cluster, node, gpu):
    return cluster.box.machine(node)._facts()["gpus"][gpu]["pci"]


def at(text):
    moment = datetime.datetime.fromisoformat(text)
    assert moment.tzinfo
    return moment.timestamp()


def slow_to_leave(cluster, seconds, *options):
    """A running job that takes its time to end when it is told to, also when it is told twice."""
    ready = cluster.jobs / "ready"
    ready.unlink(missing_ok=True)
    trap = f"trap 'trap \"\" TERM; sleep {seconds}; exit' TERM; touch {ready}"
    job = cluster.running(f"{trap}; sleep 300 & wait", *options)
    cluster.until(ready.exists, True)
    return job


def requeued(cluster, job, broken, many=2):
    """Wait until the job has been started a second time; check that it was as it should be."""
    runs = cluster.until(lambda: cluster.runs(job), lambda runs: len(runs) > 1)
    (first, _, _), (second, nodes, _) = runs
    assert (first, second) == (0, 1)  # SLURM_RESTART_COUNT, unset at first
    assert broken not in nodes
    assert len(nodes) == many


@pytest.mark.parametrize("kill", [False, True], ids=["lives_on", "dies_with_it"])
def test_xid_79_drains_the_node_and_its_job_runs_elsewhere(cluster, kill):
    step = "sh -c 'touch {0}/step.$SLURM_JOB_ID.$SLURM_PROCID; sleep 300'"
    script = f"srun --kill-on-bad-exit=1 {step}"
    options = [] if kill else ["--open-mode=append"]
    job = cluster.running(script.format(cluster.jobs), "-N2", "--gpus-per-node=8", *options)
    cluster.until(lambda: len(list(cluster.jobs.glob(f"step.{job}.*"))), 2)
    broken = cluster.nodes_of(job)[kill]
    device = bus(cluster, broken, 3)
    before = cluster.health_json("status")
    cluster.ask("scontrol", "update", f"JobId={job}", "AdminComment=billed to 4711")
    cluster.xid(broken, gpu=3, code=79, kill=kill)

    requeued(cluster, job, broken)
    # The node that it got again ran its prolog again: started sooner, old slurmds would skip it.
    for node in cluster.nodes_of(job):
        assert (cluster.box.layout.node(node) / f"run/jobs/{job}.1").exists()
    words = f"GPU_XID_79({device}) GPU has fallen off the bus"
    assert f"{broken} slurm-health: {words}" in cluster.ask("sinfo", "-o", "%n %E").splitlines()
    cluster.ran_again(code="GPU_XID_79")
    [incident] = cluster.of_this_test(cluster.health_json("incidents", "list", "--node", broken))
    assert before["worst"] == "ok"
    assert (incident["node"], incident["device"], incident["severity"]) == (broken, device, "critical")
    assert (incident["hardware"]["gpu"], incident["hardware"]["pci"]) == (3, device)
    assert incident["hardware"]["serial"]
    [line] = incident["evidence"]
    assert line["line"].startswith(f"NVRM: Xid (PCI:{device[:-2]}): 79, ")
    [victim] = incident["jobs"]
    assert (victim["job"], victim["restarts"], victim["outcome"]) == (job, 0, "runs again")
    assert victim["nodes"] == cluster.ask("squeue", "-h", "-j", job, "-o", "%N")
    [drain], [requeue], [*tells] = (done(incident, kind) for kind in ("drain", "requeue", "tell"))
    assert (drain["target"], requeue["target"]) == (broken, job)
    assert at(line["at"]) <= at(drain["intended"]) <= at(drain["done"]) <= at(requeue["intended"])
    assert at(requeue["intended"]) <= at(requeue["done"]) <= at(victim["running"])
    assert incident["seconds_to_running"] == victim["seconds_to_running"]
    assert abs(incident["seconds_to_running"] - (at(victim["running"]) - at(incident["since"]))) < 0.01
    assert len(tells) in ((1, 2) if kill else (2,))  # who is about to die may still be told

    said = cluster.until(lambda: cluster.output(job), lambda text: "runs again on" in text)
    [after] = re.findall(r" after ([\d.]+) s", said)
    assert abs(float(after) - victim["seconds_to_running"]) < 0.06  # each was rounded on its own
    ran = f"requeued, runs again on {victim['nodes']} after {after} s"
    assert f"slurm-health: {broken}, GPU 3: {words}; {ran}" in said
    assert kill or f"slurm-health: {broken}, GPU 3: {words}; job {job} is requeued" in said
    comment = cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:500")
    assert comment == f"billed to 4711; slurm-health: {broken}, GPU 3: {words}; {ran}"
    told = cluster.health("job", job).stdout
    assert all(
        part in told for part in (f"GPU_XID_79({device})", line["line"], f"ran again on {victim['nodes']}")
    )
    assert cluster.verdict(broken) == "bad"


@pytest.mark.parametrize(
    "fault, where, code, device",
    [
        ("gpu-lost", {"gpu": 3}, "GPU_MISSING", ""),
        ("gpu-lost", {"gpu": 3, "kill": True}, "GPU_MISSING", ""),
        ("ib-down", {"port": 1}, "IB_PORT_DOWN", "mlx5_1/1"),
        ("ib-down", {"port": 1, "kill": True}, "IB_PORT_DOWN", "mlx5_1/1"),
        ("nic-down", {"port": 0}, "NIC_DOWN", "eth0"),
    ],
)
def test_what_the_kernel_does_not_say_is_seen_too(cluster, fault, where, code, device):
    job = cluster.running("sleep 300", "-N2", "--gpus-per-node=8")
    broken = cluster.nodes_of(job)[0]
    device = device or bus(cluster, broken, 3)
    cluster.inject(broken, fault, **where)
    requeued(cluster, job, broken)
    assert cluster.reason(broken).startswith(f"slurm-health: {code}({device}) ")
    incident = cluster.ran_again()
    assert (incident["code"], incident["device"], incident["node"]) == (code, device, broken)
    assert incident["evidence"][0]["line"]
    assert [victim["job"] for victim in incident["jobs"]] == [job]
    assert incident["jobs"][0]["outcome"] == "runs again"
    assert len(done(incident, "drain")) == len(done(incident, "requeue")) == 1
    assert incident["seconds_to_running"] > 0


def test_of_two_jobs_on_a_node_only_the_one_that_held_the_gpu_is_requeued(cluster):
    go = cluster.jobs / "go"
    go.unlink(missing_ok=True)
    jobs = [cluster.running(f"while [ ! -e {go} ]; do sleep 0.02; done", "--gpus=4") for _ in range(2)]
    [[_, (node,), gpus], [_, (other,), others]] = [cluster.runs(job)[0] for job in jobs]
    assert node == other
    assert not set(gpus.split(",")) & set(others.split(","))
    neighbour, victim = jobs
    code = cluster.xid(node, gpu=int(others.split(",")[1]))
    requeued(cluster, victim, node, many=1)
    incident = cluster.ran_again(code=code)
    assert [one["job"] for one in incident["jobs"]] == [victim]
    assert (cluster.state(neighbour), cluster.restarts(neighbour)) == ("RUNNING", 0)
    assert len(cluster.runs(neighbour)) == 1
    assert cluster.node_state(node) == "draining"
    go.touch()
    cluster.until(lambda: cluster.state(neighbour), "COMPLETED")
    cluster.until(lambda: cluster.node_state(node), "drained")
    assert cluster.reason(node).startswith(f"slurm-health: {code}(")
    assert cluster.health_json("status")["drained"] == node
    assert (cluster.restarts(neighbour), len(cluster.runs(neighbour))) == (0, 1)
    assert [one["job"] for one in cluster.incident(code=code)["jobs"]] == [victim]


@pytest.mark.parametrize("when", ["same_second", "still_leaving", "just_pending"])
def test_two_nodes_of_one_job_fail(cluster, when):
    """One run, one requeue, whichever fault it is for."""
    size = ("-N2", "--gpus-per-node=8")
    slow = when == "still_leaving"
    job = slow_to_leave(cluster, 4, *size) if slow else cluster.running("sleep 300", *size)
    broken = cluster.nodes_of(job)
    codes = [cluster.xid(broken[0])]
    if slow:
        cluster.until(lambda: cluster.state(job), "COMPLETING")
    if when == "just_pending":
        cluster.until(lambda: cluster.restarts(job), 1)
        assert len(cluster.runs(job)) == 1
    codes.append(cluster.xid(broken[1]))
    cluster.until(lambda: len(cluster.runs(job)), 2)
    others = tuple(name for name in cluster.names if name not in broken)
    assert [nodes for _, nodes, _ in cluster.runs(job)] == [broken, others]
    found = [cluster.ran_again(node=node, code=code) for node, code in zip(broken, codes, strict=True)]
    assert [[one["job"] for one in incident["jobs"]] for incident in found] == [[job], [job]]
    assert [len(done(incident, "drain")) for incident in found] == [1, 1]
    assert sum(len(done(incident, "requeue")) for incident in found) == 1
    assert cluster.log("ctld/slurmctld.log").count(f"Requeuing JobId={job}") == cluster.restarts(job) == 1
    assert [name for name in cluster.names if not cluster.serves(name)] == list(broken)


def test_of_an_array_only_the_task_that_held_the_gpu_is_requeued(cluster):
    """Also when it is the task whose own job id is the whole array's."""
    array = cluster.submit("sleep 300", "--array=0-3", "--gpus=1")
    tasks = [f"{array}_{number}" for number in range(4)]
    cluster.until(lambda: all(cluster.runs(task) for task in tasks), True)
    own = {task: cluster.ask("squeue", "-h", "-j", task, "-o", "%A") for task in tasks}
    [owner] = [task for task in tasks if own[task] == array]
    another = next(task for task in tasks if task != owner)
    [node] = {cluster.nodes_of(task)[0] for task in tasks}
    hurt = []
    for task in (another, owner):
        code = cluster.xid(node, gpu=int(cluster.runs(task)[0][2]))
        requeued(cluster, task, node, many=1)
        incident = cluster.ran_again(code=code, device=bus(cluster, node, int(cluster.runs(task)[0][2])))
        assert [one["job"] for one in incident["jobs"]] == [task]
        hurt.append(task)
        for bystander in set(tasks) - set(hurt):
            assert (cluster.state(bystander), len(cluster.runs(bystander))) == ("RUNNING", 1)
    assert [len(cluster.runs(task)) for task in hurt] == [2, 2]


def test_of_the_dead_only_those_that_died_of_the_fault_are_brought_back(cluster):
    """The controller looks when all is over, as after a slow report."""
    wait = "while [ ! -e {0}/go ]; do sleep 0.02; done; {1}"
    (cluster.jobs / "go").unlink(missing_ok=True)
    died, killed, completed, cancelled, out_of_time, own_fault = jobs = [
        cluster.submit(wait.format(cluster.jobs, end), "--gpus=1")
        for end in ("exit 1", "kill -9 $$", "exit 0", "exit 0", "sleep 300", "exit 2")
    ]
    cluster.until(lambda: all(cluster.runs(job) for job in jobs), True)
    [node] = {cluster.nodes_of(job)[0] for job in jobs}
    elsewhere = cluster.running(wait.format(cluster.jobs, "exit 1"), "--gpus=8")
    assert cluster.nodes_of(elsewhere) != (node,)
    cluster.freeze("controller")
    for job in (died, killed, completed, cancelled, out_of_time):
        cluster.xid(node, gpu=int(cluster.runs(job)[0][2]))
    cluster.ask("scancel", cancelled)
    (cluster.jobs / "go").touch()
    cluster.ask("scontrol", "update", f"JobId={out_of_time}", "EndTime=now+5")  # still to come
    ends = {
        died: "FAILED",
        killed: "FAILED",
        completed: "COMPLETED",
        cancelled: "CANCELLED",
        out_of_time: "TIMEOUT",
        own_fault: "FAILED",
        elsewhere: "FAILED",
    }
    for job, state in ends.items():  # slurmctld looks each 30 s whose time is up
        cluster.until(lambda job=job: cluster.state(job), state, 60)
    (cluster.jobs / "go").unlink()
    cluster.thaw("controller")
    for job in (died, killed):
        requeued(cluster, job, node, many=1)
    told = lambda: [job for one in cluster.incidents() for job in one["jobs"]]  # noqa: E731
    cluster.until(told, lambda jobs: len(jobs) == 5 and all(job["settled"] for job in jobs))
    assert {job["job"]: job["outcome"] for job in told()} == {
        died: "runs again",
        killed: "runs again",
        completed: "COMPLETED: not ours to bring back",
        cancelled: "CANCELLED: not ours to bring back",
        out_of_time: "TIMEOUT: not ours to bring back",
    }
    for job in (completed, cancelled, out_of_time, own_fault, elsewhere):
        assert (cluster.state(job), cluster.restarts(job), len(cluster.runs(job))) == (ends[job], 0, 1)


@pytest.mark.parametrize("hurt", [[1], [0, 1]], ids=["second_component", "both_components"])
def test_of_a_heterogeneous_job_all_of_it_comes_back(cluster, hurt):
    """Once. Slurm knows no other way: it requeues the whole, by its first component's number."""
    job = cluster.running("sleep 300", "--gpus=8", ":", "--gpus=8")

    def components(field):
        return cluster.ask("squeue", "-h", "-j", job, "--sort=i", "-O", field).split()

    nodes = components("NodeList")
    codes = {number: cluster.xid(nodes[number]) for number in hurt}
    cluster.until(lambda: len(cluster.runs(job)), 2)
    found = {number: cluster.ran_again(node=nodes[number], code=codes[number]) for number in hurt}
    for incident in found.values():
        assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
        assert len(done(incident, "drain")) == 1
    assert sum(len(done(incident, "requeue")) for incident in found.values()) == 1
    assert components("State") == ["RUNNING", "RUNNING"]
    assert components("RestartCnt") == ["1", "1"]
    assert not {nodes[number] for number in hurt} & set(components("NodeList"))
    assert len(cluster.runs(job)) == 2


def test_a_job_that_fails_on_the_faulty_device_in_the_same_second_comes_back(cluster):
    (cluster.jobs / "go").unlink(missing_ok=True)
    go = cluster.jobs / "go"
    job = cluster.running(f"while [ ! -e {go} ]; do sleep 0.02; done; rm {go}; exit 1", "--gpus=8")
    [node] = cluster.nodes_of(job)
    code = cluster.xid(node, gpu=5)
    (cluster.jobs / "go").touch()
    requeued(cluster, job, node, many=1)
    assert [one["job"] for one in cluster.ran_again(code=code)["jobs"]] == [job]


def test_an_ordinary_users_job_comes_back_too(cluster):
    job = cluster.running("id -un; sleep 300", *OF_NOBODY, "--gpus=8")
    [node] = cluster.nodes_of(job)
    code = cluster.xid(node)
    requeued(cluster, job, node, many=1)
    [victim] = cluster.ran_again(code=code)["jobs"]
    assert victim["user"] == "nobody"
    said = cluster.until(lambda: cluster.output(job), lambda text: "runs again on" in text)
    assert said.startswith("nobody\n")


def test_a_job_whose_owner_wants_no_requeue_is_left_alone(cluster):
    job = cluster.running("sleep 300", "--no-requeue", "--gpus=8")
    [node] = cluster.nodes_of(job)
    [victim] = cluster.ran_again(code=cluster.xid(node))["jobs"]
    assert victim["outcome"] == "its owner wants no requeue (--no-requeue)"
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
    assert cluster.node_state(node) == "draining"


def test_mode_drain_drains_and_requeues_nothing(cluster):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    with cluster.configured('mode = "drain"'):
        code = cluster.xid(node)
        incident = cluster.incident(lambda one: len(one["actions"]) > 1, code=code)
        assert len(done(incident, "drain")) == 1
        [would] = [act for act in incident["actions"] if act["kind"] == "requeue"]
        assert (would["target"], would["outcome"]) == (job, "not done: mode is drain")
        assert cluster.node_state(node) == "draining"
        assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
        assert incident["jobs"] == []


def test_a_job_that_takes_its_time_to_end_is_requeued_once(cluster):
    """Slurm shows it on the broken node with the restart count of its next run, for several looks."""
    job = slow_to_leave(cluster, 3)
    [node] = cluster.nodes_of(job)
    cluster.inject(node, "ib-down", port=0)
    requeued(cluster, job, node, many=1)
    incident = cluster.ran_again(code="IB_PORT_DOWN")
    assert [(one["job"], one["restarts"], one["outcome"]) for one in incident["jobs"]] == [
        (job, 0, "runs again")
    ]
    assert len(done(incident, "requeue")) == 1
    assert (cluster.state(job), cluster.restarts(job), len(cluster.runs(job))) == ("RUNNING", 1, 2)
