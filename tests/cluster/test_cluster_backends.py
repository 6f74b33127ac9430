"""The two ways to Slurm say and do the same, on a Slurm of its own without us. One is tried where one is."""

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from slurm_health.sandbox.cluster import Sandbox
from slurm_health.slurm import Rejected, Unreachable
from slurm_health.slurm.api import reach
from slurm_health.slurm.scontrol import Commands, hostlist

pytestmark = pytest.mark.cluster

NODES = [f"n{number}" for number in range(1, 9)]
PATIENCE = 30.0  # seconds
LOOK = 0.05
ODD = "slurm-health: X(y) a|b=c  d\té \u2603 n2|IDLE|none"
NOBODY = pwd.getpwnam("nobody")
BOTH = importlib.util.find_spec("pyslurm") is not None
both = pytest.mark.skipif(not BOTH, reason="no pyslurm is made for this Slurm")


# What keeps jobs in COMPLETING while the node's file is there.
EPILOG = """#!/bin/sh
while [ -e {hold}.$SLURMD_NODENAME ]; do
    /bin/sleep 0.05
done
"""


class Plain:
    """A Slurm without us, both ways to it, and jobs."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
        self.box = Sandbox(self.folder)
        self.epilog = self.folder.with_name(f"{self.folder.name}.epilog")
        self.epilog.write_text(EPILOG.format(hold=self.folder / "hold"))
        self.epilog.chmod(0o755)
        conf = [
            f"Epilog={self.epilog}",
            "KillWait=1",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1",
            "MinJobAge=3600",
        ]
        conf += ["PartitionName=hidden Nodes=ALL Hidden=YES"]
        self.box.up(nodes=len(NODES), gpus=1, ports=0, nics=0, health=False, slurm_conf=conf)
        (self.folder / "jobs").mkdir(mode=0o1777)
        (self.folder / "jobs").chmod(0o1777)

    def ask(self, *argv, check=True, **how):
        env = {**os.environ, **self.box.env()}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, **how)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script, *words, **how):
        out = ["-o", str(self.folder / "jobs/%A_%a")]
        return self.ask("sbatch", "--parsable", *out, *words, f"--wrap={script}", **how)

    def until(self, look, wanted):
        end = time.monotonic() + PATIENCE
        fits = wanted if callable(wanted) else lambda seen: seen == wanted
        while not fits(seen := look()):
            assert time.monotonic() < end, f"still: {seen!r}"
            time.sleep(LOOK)
        return seen

    def state(self, job):
        return self.ask("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").split()

    def running(self, script="sleep 600", *words, ended=(), **how):
        """A job that runs; of an array some tasks may have `ended`, in these states."""
        job = self.submit(script, *words, **how)
        self.until(lambda: set(self.state(job)), {"RUNNING", *ended})
        return job

    def call(self, act):
        """What act(commands, pyslurm) brings."""

        async def once():
            conf = str(self.box.layout.slurm_conf)
            async with reach("pyslurm" if BOTH else "commands", conf) as api:
                return await act(Commands(conf), api)

        return asyncio.run(once())

    def clean(self):
        self.ask("scontrol", "delete", "reservationname=m", check=False)
        for file in self.folder.glob("hold.*"):
            file.unlink()
        if jobs := self.ask("squeue", "-h", "-r", "-o", "%A").split():
            self.ask("scancel", *jobs, check=False)
        self.until(lambda: self.ask("squeue", "-h"), "")
        for name in NODES:
            self.ask("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self.until(lambda: set(self.ask("sinfo", "-h", "-N", "-o", "%T").split()), {"idle"})

    def down(self):
        self.box.down()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.epilog.unlink()


@pytest.fixture(scope="module")
def _plain():
    one = Plain()
    yield one
    one.down()


@pytest.fixture
def plain(_plain):
    yield _plain
    _plain.clean()


async def same(first, second):
    """Both answers, taken again until the first one stood still around the second."""
    for _ in range(50):
        before, said, after = await first(), await second(), await first()
        if before == after:
            assert said == before
            return said
    raise AssertionError(f"never still: {before} {after}")


@pytest.mark.parametrize(
    "names",
    [
        ["rack1-node01", "rack2-node01"],
        ["gpu01-ib", "gpu02-ib", "gpu02", "login"],
        ["n1", "n01", "n001", "n2"],
        ["r1n2s3", "r1n2s4", "r2n2s3"],
    ],
    ids=lambda names: names[0],
)
def test_this_slurm_reads_the_names_as_we_fold_them(plain, names):
    assert set(plain.ask("scontrol", "show", "hostnames", hostlist(names)).split()) == set(names)


@both
def test_they_say_the_same_of_everything(plain):
    def drain(name, state, reason):
        plain.ask("scontrol", "update", f"nodename={name}", f"state={state}", f"reason={reason}")

    jobs = [
        plain.running("sleep 600", "-wn1", "--time=60"),
        plain.running("sleep 600", "-N2", "-wn[2,4]", "--no-requeue", "--job-name=x JobState=FAILED|n1|"),
        plain.running("sleep 600", "-wn4", "-n1", "--array=0-2%3"),
        plain.running("sleep 600", "-wn4", "-n1", "--array=5"),
        plain.running(
            "[ $SLURM_ARRAY_TASK_ID = 0 ] && sleep 600", "-wn4", "-n1", "--array=0-1", ended=["FAILED"]
        ),
        plain.running("sleep 600", "-wn1", "-n1", "-phidden", user=NOBODY.pw_uid, cwd="/tmp"),
        plain.submit("sleep 600", "-N1", "-wn5", "-n1", ":", "-wn6", "-n1"),
        plain.submit("true", "-n1", "-wn1"),
        plain.submit("exit 3", "-n1", "-wn1"),
        plain.submit("kill -9 $$", "-n1", "-wn1"),
        plain.submit("true", "--hold"),
        plain.submit("true", "--begin=now+1hour", "--array=0-9%2"),
        plain.submit("true", "--begin=now+1hour", "--array=7%2"),
        plain.submit("true", "--begin=now+1hour", "--array=0"),
    ]
    jobs.append(plain.submit("true", f"--dependency=afterok:{jobs[0]}"))
    [cancelled, requeued, kept, suspended] = [plain.running("sleep 600", "-wn1", "-n1") for _ in range(4)]
    jobs += [cancelled, requeued, kept, suspended]
    plain.ask("scancel", cancelled)
    plain.ask("scontrol", "requeue", requeued)
    plain.ask("scontrol", "requeuehold", kept)
    plain.ask("scontrol", "suspend", suspended)
    stuck = plain.running("sleep 600", "-wn7", "-n1")
    (plain.folder / "hold.n7").touch()
    plain.ask("scancel", stuck)
    plain.until(lambda: plain.state(stuck), ["COMPLETING"])
    plain.ask("salloc", "--no-shell", "-n1", "-wn8")
    plain.submit("true", "-N8", "--exclusive")
    plain.until(lambda: plain.state(jobs[7]) + plain.state(cancelled), ["COMPLETED", "CANCELLED"])
    plain.until(lambda: plain.state(jobs[8]) + plain.state(jobs[9]), ["FAILED", "FAILED"])
    drain("n1", "drain", ODD)
    drain("n2", "fail", "failing")
    drain("n7", "drain", "none")
    plain.ask("scontrol", "create", "reservation", "reservationname=m", "starttime=now", "duration=60",
              "user=root", "flags=maint,ignore_jobs", "nodes=n6")  # fmt: skip
    drain("n3", "down", "broken")
    plain.until(
        lambda: plain.ask("sinfo", "-h", "-n", "n6", "-O", "StateComplete"),
        lambda state: "maint" in state,
    )

    async def act(commands, api):
        nodes = await same(commands.nodes, api.nodes)
        assert set(nodes) == set(NODES)
        for names in (["n1"], ["n1", "n3", "unknown"], NODES[:6], ["unknown"]):
            part = await same(lambda n=names: commands.nodes(n), lambda n=names: api.nodes(n))
            assert part == {name: nodes[name] for name in names if name in nodes}
        seen = {}
        for names in (NODES, ["n1"], ["n4", "n5"], ["n8"]):

            async def held(by, names=names):
                return {job.id: job for job in await by.jobs_on(names)}

            seen |= await same(lambda h=held: h(commands), lambda h=held: h(api))
        everything = await same(lambda: commands.jobs(range(1, 200)), lambda: api.jobs(range(1, 200)))
        assert seen.keys() < everything.keys()
        for number in everything:
            await same(lambda n=number: commands.jobs([n]), lambda n=number: api.jobs([n]))
        assert await same(lambda: commands.jobs([99999]), lambda: api.jobs([99999])) == {}
        return nodes, everything

    nodes, everything = plain.call(act)
    states = {one.state for one in everything.values()}
    assert states >= {"RUNNING", "PENDING", "COMPLETED", "FAILED", "CANCELLED", "COMPLETING", "SUSPENDED"}
    flags = set().union(*(one.flags for one in nodes.values()))
    assert flags >= {"DRAIN", "FAIL", "DOWN", "MAINTENANCE"}
    assert {nodes["n1"].reason, nodes["n7"].reason} == {ODD, ""}
    labels = {one.label for one in everything.values()}
    assert labels >= {f"{jobs[2]}_0", f"{jobs[3]}_5", jobs[6], f"{jobs[12]}_7", f"{jobs[13]}_0", jobs[11]}
    assert {one.state for one in everything.values() if one.label == f"{jobs[4]}_1"} == {"FAILED"}
    assert [one.batch for one in everything.values() if one.nodes == ("n8",)] == [False]
    assert not everything[int(jobs[1])].requeueable
    assert everything[int(kept)].reason and everything[int(kept)].restarts == 1
    assert {one.uid for one in everything.values()} == {0, NOBODY.pw_uid}


@pytest.fixture(params=["commands", pytest.param("pyslurm", marks=both)])
def way(request, plain):
    """Do something one of the two ways."""

    def do(act):
        async def once(commands, api):
            return await act({"commands": commands, "pyslurm": api}[request.param])

        return plain.call(once)

    return do


def test_drain_and_resume(plain, way):
    def shown(name):
        return plain.ask("sinfo", "-h", "-n", name, "-O", "StateComplete:40,User:20,Reason:200").split(
            None, 2
        )

    way(lambda slurm: slurm.drain(["n1", "n2", "n5"], ODD))
    for name in ("n1", "n2", "n5"):
        state, user, reason = shown(name)
        assert (set(state.split("+")), user, reason) == ({"idle", "drain"}, "root", ODD.strip())
    way(lambda slurm: slurm.resume(["n2", "n5"]))
    assert "drain" not in shown("n2")[0] + shown("n5")[0]
    way(lambda slurm: slurm.drain(NODES[:1], "another"))
    assert shown("n1")[2] == "another"
    for act in (
        lambda slurm: slurm.drain(["unknown"], "x"),
        lambda slurm: slurm.resume(["n5"]),
    ):
        with pytest.raises(Rejected, match="Invalid node"):
            way(act)


def test_down_lets_go_of_what_is_stuck(plain, way):
    back, ended, neighbour = (
        plain.running("sleep 600", "-N2", "-n2", "-wn[1-2]"),
        plain.running("sleep 600", "-n1", "-wn1", "--no-requeue"),
        plain.running("sleep 600", "-n1", "-wn2"),
    )
    stuck = plain.running("sleep 600", "-n1", "-wn1")
    (plain.folder / "hold.n1").touch()
    plain.ask("scancel", stuck)
    plain.until(lambda: plain.state(stuck), ["COMPLETING"])
    way(lambda slurm: slurm.drain(["n1"], ODD))
    way(lambda slurm: slurm.down(["n1"], ODD))
    plain.until(lambda: plain.state(stuck) + plain.state(ended), ["CANCELLED", "NODE_FAIL"])
    plain.until(lambda: plain.state(back), ["PENDING"])
    assert plain.ask("squeue", "-h", "-j", back, "-O", "RestartCnt") == "1"
    assert plain.state(neighbour) == ["RUNNING"]
    assert plain.ask("sinfo", "-h", "-n", "n1", "-o", "%T|%E") == f"drained|{ODD}".strip()
    (plain.folder / "hold.n1").unlink()
    way(lambda slurm: slurm.resume(["n1"]))
    plain.until(lambda: plain.ask("sinfo", "-h", "-n", "n1", "-o", "%T"), "idle")


@pytest.mark.parametrize("kind", ["plain", "task", "heterogeneous"])
def test_a_jobs_way_back(plain, way, kind):
    words = {
        "plain": ["-n1"],
        "task": ["-n1", "--array=0,3"],
        "heterogeneous": ["-n1", ":", "-n1"],
    }[kind]
    job = plain.running("echo began; sleep 600", *words)
    label = f"{job}_3" if kind == "task" else job
    plain.until(lambda: [file.read_text() for file in (plain.folder / "jobs").glob(f"{job}_*")], bool)

    def both(what):
        return plain.ask("squeue", "-h", "-r", "-j", job, "-O", f"{what}:|").replace("\n", "").split("|")[:-1]

    way(lambda slurm: slurm.tell(label, "slurm-health: a word"))
    said = plain.folder / f"jobs/{job}_{3 if kind == 'task' else 4294967294}"
    plain.until(said.read_text, lambda text: "slurm-health: a word" in text)
    way(lambda slurm: slurm.set_comment(label, "a = b|c 'd'"))
    assert way(lambda slurm: slurm.comment(label)) == "a = b|c 'd'"
    if kind == "task":
        assert way(lambda slurm: slurm.comment(f"{job}_0")) == ""
    if kind == "heterogeneous":
        lines = plain.ask("squeue", "-h", "-j", job, "-O", "admin_comment:40").splitlines()
        assert [line.strip() for line in lines] == ["a = b|c 'd'"] * 2
    way(lambda slurm: slurm.requeue(label, incomplete=True))
    plain.until(lambda: plain.state(label), lambda states: set(states) == {"PENDING"})
    assert set(plain.ask("squeue", "-h", "-r", "-j", label, "-o", "%r").split()) == {"BeginTime"}
    time.sleep(1)  # a job that is started in the second of its requeue dies of it
    way(lambda slurm: slurm.start_now(label))
    plain.until(lambda: set(plain.state(job)), {"RUNNING"})
    way(lambda slurm: slurm.requeue(label, incomplete=True, hold=True))
    plain.until(lambda: plain.state(label), lambda states: set(states) == {"PENDING"})
    way(lambda slurm: slurm.release(label))
    assert "0" not in plain.ask("squeue", "-h", "-r", "-j", label, "-O", "PriorityLong").split()
    if kind == "task":
        assert sorted(both("RestartCnt")) == ["0", "2"]


@pytest.mark.parametrize("act", ["release", "start_now", "comment"])
def test_a_job_that_slurm_does_not_know(plain, way, act):
    with pytest.raises(Rejected, match="Invalid job id"):
        way(lambda slurm: getattr(slurm, act)("99999"))


@both
def test_a_slurmctld_that_is_away_and_comes_back(plain):
    async def act(commands, api):
        await api.nodes()
        api.worker.deadline = 2.0
        os.kill(plain.box.pid("slurmctld"), signal.SIGSTOP)
        try:
            with pytest.raises(Unreachable, match="no answer in 2 s"):
                await api.nodes()
        finally:
            os.kill(plain.box.pid("slurmctld"), signal.SIGCONT)
        api.worker.deadline = 30.0
        assert set(await api.nodes()) == set(NODES)
        plain.box.stop("slurmctld")
        with pytest.raises(Unreachable, match=r"Unable to contact|no answer"):
            await api.nodes()
        plain.box.start("slurmctld")
        assert await api.nodes() == await commands.nodes()

    plain.call(act)
