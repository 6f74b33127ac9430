"""pyslurm's process: it may be absent, hang, die or talk nonsense, and never takes us with it.

The stand-in is a module named pyslurm on the process's own path; a real one is met in the tests on a cluster.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import slurm_health
from slurm_health.ledger import LedgerError
from slurm_health.model import Job, Node
from slurm_health.sandbox.daemon import await_until, identity
from slurm_health.slurm import Rejected, SlurmError, Unreachable
from slurm_health.slurm.api import DEATHS, Absent, Api, Died, reach
from slurm_health.slurm.scontrol import Commands

HERE = Path(slurm_health.__file__).parents[1]

# Answers as pyslurm does; a node's reason says what becomes of the one who asks for it.
STAND_IN = """
import os, signal, sys, time
__version__ = "26.5.1"
open({pid!r}, "a").write(f"{{os.getpid()}}\\n")

class PyslurmError(Exception): pass

class Node:
    def __init__(self, name=None, **said): self.name, self.said = name, said
    state, reason, reason_time, address = "IDLE+DRAIN", "why", 7, "10.0.0.1"
    def modify(self, change):
        does = change.said.get("reason", "")
        if does == "hang":
            while True: time.sleep(60)
        if does == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if does == "exit":
            print("fatal: out of luck", file=sys.stderr, flush=True)
            os._exit(3)
        if does == "print":
            print("no answer")
            os.system("echo nor this")
        if does == "garbage":
            for number in range(3, 20):
                try: os.write(number, b"garbage\\n")
                except OSError: pass
        if does == "two":
            for number in range(3, 20):
                try: os.write(number, b'{{"to": 1, "answer": null}}\\n' * 2)
                except OSError: pass
        if does == "silent": raise PyslurmError("Unable to contact slurm controller (connect failure)")
        if does == "refused": raise PyslurmError("Invalid node name specified")
        if does == "bug": raise AttributeError("nodes")
    @staticmethod
    def load(name):
        if name == "unknown": raise PyslurmError("Node 'unknown' does not exist")
        return Node(name)

class Nodes(dict):
    @staticmethod
    def load(): return Nodes(n1=Node("n1"), n2=Node("n2"))

class Job:
    array_id = heterogeneous_id = array_tasks_waiting = array_task_id = None
    state, state_reason, requeue_count, user_id = "RUNNING", None, None, 1000
    is_batch_job = is_requeueable = True
    num_nodes, start_time, end_time, time_limit, allocated_nodes = 2, 100, 200, 60, "n[1-2]"
    admin_comment = None
    def __init__(self, id): self.id = id
    @staticmethod
    def load(number):
        job = Job(number)
        if number == 404: raise PyslurmError("Invalid job id specified")
        if number == 70: job.heterogeneous_id = 70
        if number == 80: job.array_id = 80
        return job
    def release(self): pass
{more}
"""
COMMAND = """#!/bin/sh
echo "$*" >>{log}
case "$*" in
--version) echo 'slurm {installed}' ;;
'show config') printf 'SlurmUser = root(0)\\nSLURM_VERSION = {release}\\n' ;;
esac
"""


class Bench:
    """A folder with a pyslurm of the test's own and Slurm's commands, which note how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pids, self.log = folder, folder / "pids", folder / "calls"
        self.pids.touch()
        self.log.touch()
        self.commands()
        self.pyslurm()

    def commands(self, release: str = "26.05.5", installed: str = "26.05.5") -> None:
        for name in ("scontrol", "squeue", "sinfo"):
            (self.folder / name).write_text(
                COMMAND.format(log=self.log, release=release, installed=installed)
            )
            (self.folder / name).chmod(0o755)

    def pyslurm(self, more: str = "") -> None:
        (self.folder / "pyslurm.py").write_text(STAND_IN.format(pid=str(self.pids), more=more))

    def run(self, act: Callable[[Api], Awaitable[Any]], auto: bool = False, deadline: float = 30.0) -> Any:
        async def once() -> Any:
            async with Api("", str(self.folder), deadline, auto) as api:
                return await act(api)

        try:
            return asyncio.run(once())
        finally:
            self.all_gone()

    @property
    def started(self) -> int:
        return len(self.pids.read_text().split())

    def all_gone(self) -> None:
        for pid in map(int, self.pids.read_text().split()):
            assert await_until(lambda pid=pid: identity(pid) is None, 30), pid


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{HERE}")
    return Bench(tmp_path)


def drain(reason: str) -> Callable[[Api], Awaitable[Any]]:
    return lambda api: api.drain(["n1"], reason)


# -- whose turn it is


def test_a_change_is_not_begun_when_it_is_no_longer_our_turn(bench: Bench) -> None:
    def must_act() -> None:
        raise LedgerError("the lease is gone")

    async def act(api: Api) -> None:
        api.must_act = must_act
        for change in (
            api.drain(["n1"], "crash"),
            api.down(["n1"], "crash"),
            api.resume(["n1"]),
            api.requeue("7", incomplete=True),
            api.release("7"),
            api.start_now("7"),
            api.tell("7", "x"),
            api.set_comment("7", "x"),
        ):
            with pytest.raises(LedgerError):
                await change
        assert set(await api.nodes()) == {"n1", "n2"}

    bench.run(act)
    assert bench.log.read_text() == ""


# -- what it says


def test_nodes(bench: Bench) -> None:
    async def act(api: Api) -> None:
        assert await api.nodes(["n1", "unknown"]) == {
            "n1": Node("n1", frozenset({"IDLE", "DRAIN"}), "why", 7, "10.0.0.1")
        }
        assert set(await api.nodes()) == {"n1", "n2"}
        assert set(await api.nodes([f"n{number}" for number in range(2, 99)])) == {"n2"}

    bench.run(act)
    assert bench.log.read_text() == ""


def test_jobs(bench: Bench) -> None:
    async def act(api: Api) -> None:
        assert await api.jobs([7, 404]) == {
            7: Job(
                7, "7", "RUNNING", reason="None", uid=1000, size=2, nodes=("n1", "n2"), started=100, ended=200
            )
        }
        assert await api.jobs([]) == {}
        assert (await api.jobs([70]))[70].label == "70"
        assert (await api.jobs([80]))[80].label == "80_0"  # pyslurm says None for task 0

    bench.run(act)


def test_a_reason_that_is_no_text_costs_nobody_the_list(bench: Bench) -> None:
    bench.pyslurm("Node.reason = property(lambda self: b'\\xff'.decode())")
    nodes = bench.run(lambda api: api.nodes())
    assert {node.reason for node in nodes.values()} == {"\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize("label", ["80_0", "80", "70"], ids=["task", "array", "heterogeneous"])
def test_what_is_more_than_one_record_goes_by_the_commands(bench: Bench, label: str) -> None:
    bench.run(lambda api: api.release(label))
    assert bench.log.read_text() == f"release {label}\n"


def test_a_requeue_goes_by_the_commands(bench: Bench) -> None:
    bench.run(lambda api: api.requeue("7", incomplete=True))
    assert bench.log.read_text() == "requeue Incomplete 7\n"
    bench.run(lambda api: api.release("7"))
    assert bench.log.read_text() == "requeue Incomplete 7\n"


def test_slurms_no_and_its_silence(bench: Bench) -> None:
    async def act(api: Api) -> None:
        with pytest.raises(Rejected, match="pyslurm drain: Invalid node name specified"):
            await api.drain(["n1"], "refused")
        assert bench.started == 1
        with pytest.raises(SlurmError, match="AttributeError: nodes"):
            await api.drain(["n1"], "bug")
        assert bench.started == 1
        with pytest.raises(Unreachable, match="Unable to contact slurm controller"):
            await api.drain(["n1"], "silent")
        await api.drain(["n1"], "well")
        assert bench.started == 2  # its configuration may have been old

    bench.run(act)


# -- what may become of it


def test_a_hang_in_a_call_ends_with_the_deadline(bench: Bench) -> None:
    async def act(api: Api) -> None:
        api.worker.deadline = 0.2
        with pytest.raises(Unreachable, match=r"no answer in 0\.2 s"):
            await api.drain(["n1"], "hang")
        api.worker.deadline = 30.0
        await api.drain(["n1"], "well")
        assert bench.started == 2

    bench.run(act)


def test_those_who_wait_behind_a_hang_are_not_answered_for_others(bench: Bench) -> None:
    async def act(api: Api) -> None:
        await api.nodes()
        api.worker.deadline = 0.2
        said = await asyncio.gather(
            api.drain(["n1"], "hang"), *(api.nodes() for _ in range(3)), return_exceptions=True
        )
        assert isinstance(said[0], Unreachable)
        assert all(isinstance(one, Unreachable) or set(one) == {"n1", "n2"} for one in said[1:])

    bench.run(act)


@pytest.mark.parametrize("auto", [True, False])
def test_a_hang_at_import_ends_with_the_deadline(bench: Bench, auto: bool) -> None:
    bench.pyslurm("while True: time.sleep(60)")

    async def act(api: Api) -> None:
        if auto:
            await api.site()
            assert (api.name, api.why) == ("commands", "pyslurm: no answer in 0.5 s")
            await api.nodes()
        else:
            with pytest.raises(Unreachable):
                await api.nodes()

    bench.run(act, auto, deadline=0.5)


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("crash", "ended by signal 11"),
        ("exit", "ended with status 3: fatal: out of luck"),
        ("garbage", "said what is no answer: b'garbage"),
    ],
)
def test_a_death_in_a_call(bench: Bench, does: str, words: str) -> None:
    async def act(api: Api) -> None:
        with pytest.raises(Died, match=words):
            await api.drain(["n1"], does)
        assert set(await api.nodes()) == {"n1", "n2"}
        assert bench.started == 2

    bench.run(act)


def test_a_death_between_two_calls_is_not_noticed(bench: Bench) -> None:
    async def act(api: Api) -> None:
        await api.nodes()
        assert api.worker.process
        os.kill(api.worker.process.pid, signal.SIGKILL)
        await api.worker.process.wait()
        assert set(await api.nodes()) == {"n1", "n2"}

    bench.run(act)


def test_what_a_library_prints_is_no_answer(bench: Bench) -> None:
    bench.run(drain("print"))


def test_a_line_too_many_is_not_the_next_calls_answer(bench: Bench) -> None:
    async def act(api: Api) -> None:
        await api.drain(["n1"], "two")
        with pytest.raises(Died, match="what is no answer"):
            await api.nodes()
        assert set(await api.nodes()) == {"n1", "n2"}

    bench.run(act)


def test_a_caller_that_gives_up_leaves_no_answer_behind(bench: Bench) -> None:
    async def act(api: Api) -> None:
        call = asyncio.create_task(api.drain(["n1"], "hang"))
        assert await asyncio.to_thread(await_until, lambda: api.worker.calls == 1, 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert set(await api.nodes()) == {"n1", "n2"}

    bench.run(act)


def test_it_ends_with_a_parent_that_was_killed(bench: Bench) -> None:
    async def act(api: Api) -> None:
        await api.nodes()
        process, api.worker.process = api.worker.process, None
        assert process
        assert process.stdin
        process.stdin.close()
        assert await process.wait() == 0

    bench.run(act)


# -- which of the two


def chosen(bench: Bench) -> tuple[str, str]:
    async def act(api: Api) -> tuple[str, str]:
        assert (api.name, api.why) == ("commands", "Slurm has not said its release yet")
        await api.site()
        return api.name, api.why

    said: tuple[str, str] = bench.run(act, auto=True)
    return said


def test_pyslurm_for_the_running_release(bench: Bench) -> None:
    assert chosen(bench) == ("pyslurm", "pyslurm 26.5.1 is for the running Slurm 26.05")


def test_another_release_runs(bench: Bench) -> None:
    bench.commands("24.11.5")
    words = "pyslurm 26.5.1 with Slurm 26.05 here is not for the running Slurm 24.11"
    assert chosen(bench) == ("commands", words)


def test_another_release_is_installed(bench: Bench) -> None:
    bench.commands(installed="26.11.1")
    words = "pyslurm 26.5.1 with Slurm 26.11 here is not for the running Slurm 26.05"
    assert chosen(bench) == ("commands", words)


def test_pyslurm_of_another_release(bench: Bench) -> None:
    bench.pyslurm('__version__ = "25.11.2"')
    words = "pyslurm 25.11.2 with Slurm 26.05 here is not for the running Slurm 26.05"
    assert chosen(bench) == ("commands", words)


def test_no_pyslurm(bench: Bench) -> None:
    (bench.folder / "pyslurm.py").write_text("raise ImportError('no such library')")
    words = "pyslurm does not import: ImportError: no such library"
    assert chosen(bench) == ("commands", words)
    with pytest.raises(Absent, match=words):
        bench.run(drain("well"))


def test_a_pyslurm_that_ends_its_process_at_import(bench: Bench) -> None:
    bench.pyslurm("os._exit(1)")
    assert chosen(bench) == ("commands", "pyslurm's process ended with status 1")


def test_a_slurm_that_does_not_answer_decides_nothing(bench: Bench) -> None:
    async def act(api: Api) -> None:
        (bench.folder / "scontrol").write_text("#!/bin/sh\necho Connection refused >&2\nexit 1\n")
        with pytest.raises(Unreachable):
            await api.site()
        assert not api.decided
        bench.commands()
        await api.site()
        assert api.name == "pyslurm"

    bench.run(act, auto=True)


@pytest.mark.parametrize("auto", [True, False])
def test_what_only_dies_is_given_up_for_good_if_it_was_not_asked_for(bench: Bench, auto: bool) -> None:
    async def act(api: Api) -> None:
        await api.site()
        for _ in range(2):
            for _ in range(DEATHS - 1):
                with pytest.raises(Died):
                    await api.drain(["n1"], "crash")
            await api.nodes()  # it answers: nothing is counted
        for _ in range(DEATHS):
            with pytest.raises(Died):
                await api.drain(["n1"], "crash")
        if auto:
            await api.drain(["n1"], "crash")
            assert bench.log.read_text().endswith("update NodeName=n1 State=DRAIN Reason=crash\n")
            await api.site()
            words = f"ended by signal 11, {DEATHS} times in a row; until this daemon starts anew"
            assert (api.name, api.why) == ("commands", f"pyslurm's process {words}")
        else:
            with pytest.raises(Died):
                await api.drain(["n1"], "crash")

    bench.run(act, auto)


def test_what_is_configured() -> None:
    assert type(reach("commands")) is Commands
    auto, always = reach("auto"), reach("pyslurm")
    assert isinstance(auto, Api)
    assert isinstance(always, Api)
    assert (auto.name, always.name, always.why) == ("commands", "pyslurm", "as configured")
