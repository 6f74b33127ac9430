"""Slurm by its commands: what its lines mean, what its silence means, and that nobody can forge either.

The commands are scripts in a folder of the test's own; real ones are run in the sandbox's tests.
"""

import asyncio
import time
from calendar import timegm
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health.ledger import LedgerError
from slurm_health.model import Job, Node
from slurm_health.sandbox.daemon import await_until, identity
from slurm_health.slurm import Rejected, Site, SlurmError, Unreachable, scontrol
from slurm_health.slurm.scontrol import JOB_FIELDS, NODE_FIELDS, Commands, hostlist

START, END = "2026-01-02T03:04:05", "2026-01-02T04:04:05"
STARTED, ENDED = (timegm(time.strptime(one, "%Y-%m-%dT%H:%M:%S")) for one in (START, END))

PLAIN = {
    "JobID": "4711",
    "ArrayJobID": "4711",
    "ArrayTaskID": "N/A",
    "HetJobID": "0",
    "State": "RUNNING",
    "Reason": "None",
    "RestartCnt": "2",
    "UserID": "1000",
    "BatchFlag": "1",
    "Requeue": "1",
    "NumNodes": "3",
    "StartTime": START,
    "EndTime": END,
    "NodeList": "n[1-2,7]",
}


def line(**changes: str) -> str:
    said = PLAIN | changes
    return "".join(f"{said[field]}|" for field in JOB_FIELDS)


# -- lines of squeue


def test_a_running_batch_job() -> None:
    assert scontrol.job(line()) == Job(
        4711,
        "4711",
        "RUNNING",
        reason="None",
        restarts=2,
        uid=1000,
        size=3,
        nodes=("n1", "n2", "n7"),
        started=STARTED,
        ended=ENDED,
    )


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "4711"),
        ({"JobID": "4714", "ArrayTaskID": "3"}, "4711_3"),
        ({"ArrayTaskID": "0"}, "4711_0"),
        ({"JobID": "4712", "ArrayJobID": "4712", "HetJobID": "4711"}, "4711"),
        ({"HetJobID": "N/A"}, "4711"),
        ({"HetJobID": ""}, "4711"),
    ],
    ids=["plain", "task", "last task", "component", "N/A", "empty"],
)
def test_a_job_is_named_as_commands_must_name_it(changes: dict[str, str], label: str) -> None:
    job = scontrol.job(line(**changes))
    assert (job.label, job.id) == (label, int(changes.get("JobID", "4711")))
    assert job.het == (changes.get("HetJobID") == "4711")


def test_a_pending_job_has_a_planned_start_and_no_nodes() -> None:
    job = scontrol.job(line(State="PENDING", Reason="BeginTime", EndTime="N/A", NodeList="n[1-2]"))
    assert (job.begins, job.started, job.ended, job.nodes) == (STARTED, 0, 0, ())
    assert scontrol.job(line(State="PENDING", StartTime="N/A", EndTime="N/A")).begins == 0


def test_a_hold_of_slurms_own_is_one_until_it_is_released() -> None:
    held = line(State="REQUEUE_HOLD", Reason=scontrol.REQUEUED_HELD, StartTime="N/A", NodeList="")
    assert scontrol.job(held).state == "REQUEUE_HOLD"
    released = scontrol.job(line(State="REQUEUE_HOLD", Reason="BeginTime", NodeList=""))
    assert (released.state, released.begins) == ("PENDING", STARTED)


@pytest.mark.parametrize("state", ["RUNNING", "SUSPENDED", "CONFIGURING"])
def test_a_live_job(state: str) -> None:
    job = scontrol.job(line(State=state))
    assert (job.completing, job.state, job.begins) == (False, state, 0)


@pytest.mark.parametrize(("flag", "batch"), [("0", False), ("1", True), ("2", True)])
def test_a_batch_job_stays_one_when_its_launch_failed(flag: str, batch: bool) -> None:
    assert scontrol.job(line(BatchFlag=flag)).batch is batch


def test_a_completing_job() -> None:
    assert scontrol.job(line(State="COMPLETING")).completing


def test_flags() -> None:
    job = scontrol.job(line(BatchFlag="0", Requeue="0"))
    assert (job.batch, job.requeueable) == (False, False)


@pytest.mark.parametrize("text", ["N/A", "NONE", "Unknown", "", "now", "1970-01-01", "2026-13-01T00:00:00"])
def test_a_time_that_is_none(text: str) -> None:
    assert scontrol.moment(text) == 0.0


# -- lines of sinfo


@pytest.mark.parametrize(
    ("state", "flags"),
    [
        ("idle", {"IDLE"}),
        ("IDLE+DRAIN", {"IDLE", "DRAIN"}),
        ("mixed+drain+not_responding*", {"MIXED", "DRAIN", "NOT_RESPONDING"}),
        ("down~", {"DOWN"}),
        ("idle+maint$", {"IDLE", "MAINT"}),
        ("idle+power_up%", {"IDLE", "POWER_UP"}),
    ],
)
def test_a_nodes_state(state: str, flags: set[str]) -> None:
    node = scontrol.node(f"n1|{state}|{START}|10.0.0.1|slurm-health: X(y) z|")
    assert node == Node("n1", frozenset(flags), "slurm-health: X(y) z", int(STARTED), "10.0.0.1")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("none", ""),
        ("", ""),
        ("Prolog error", "Prolog error"),
        ("a|b|c", "a|b|c"),
        ("ends with a bar|", "ends with a bar|"),
        ("n2|IDLE|Unknown|x|none", "n2|IDLE|Unknown|x|none"),
        ("  padded  ", "  padded  "),
    ],
)
def test_a_reason_may_hold_anything(reason: str, expected: str) -> None:
    assert scontrol.node(f"n1|idle|Unknown|n1|{reason}|").reason == expected


@given(st.text(st.characters(exclude_categories=["C"], exclude_characters="\n")))
def test_any_reason_comes_back(reason: str) -> None:
    expected = "" if reason == "none" else reason
    assert scontrol.node(f"n1|idle|Unknown|n1|{reason}|").reason == expected


# -- commands


Act = Callable[[Commands], Coroutine[Any, Any, Any]]


class Bin:
    """A folder of commands that are scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def put(self, name: str, script: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def all(self, script: str) -> None:
        for name in ("scontrol", "squeue", "sinfo", "scancel"):
            self.put(name, script)

    def call(self, act: Act, deadline: float = 30.0, conf: str = "") -> Any:
        async def once() -> Any:
            return await act(Commands(conf, str(self.folder), deadline))

        return asyncio.run(once())


@pytest.fixture
def bin_(tmp_path: Path) -> Bin:
    return Bin(tmp_path / "bin")


CALLS: dict[str, Act] = {
    "nodes": lambda slurm: slurm.nodes(),
    "jobs": lambda slurm: slurm.jobs([7]),
    "jobs_on": lambda slurm: slurm.jobs_on(["n1"]),
    "drain": lambda slurm: slurm.drain(["n1"], "x"),
    "down": lambda slurm: slurm.down(["n1"], "x"),
    "resume": lambda slurm: slurm.resume(["n1"]),
    "requeue": lambda slurm: slurm.requeue("7", incomplete=True),
    "release": lambda slurm: slurm.release("7"),
    "start_now": lambda slurm: slurm.start_now("7"),
    "tell": lambda slurm: slurm.tell("7", "x"),
    "signal": lambda slurm: slurm.signal("7", "USR1", "batch"),
    "stranded": lambda slurm: slurm.stranded(),
    "comments": lambda slurm: slurm.comments([7]),
    "comment": lambda slurm: slurm.comment("7"),
    "set_comment": lambda slurm: slurm.set_comment("7", "x"),
    "site": lambda slurm: slurm.site(),
}


@pytest.mark.parametrize("act", CALLS.values(), ids=CALLS)
def test_no_answer_by_the_deadline_is_silence_and_leaves_nothing_behind(bin_: Bin, act: Act) -> None:
    pid = bin_.folder / "pid"
    bin_.all(f"echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 600")
    with pytest.raises(Unreachable, match=r"no answer in 0\.05 s"):
        bin_.call(act, deadline=0.05)
    if pid.exists():  # else it was ended before it said who it is
        assert identity(int(pid.read_text())) is None


@pytest.mark.parametrize("then", ["exit 0", "wait"])
def test_a_sites_wrapper_is_ended_with_what_it_started(bin_: Bin, then: str) -> None:
    pid = bin_.folder / "pid"
    bin_.all(f"sleep 600 & echo $! >{pid}; {then}")
    with pytest.raises(Unreachable):
        bin_.call(CALLS["drain"], deadline=0.5)
    assert await_until(lambda: identity(int(pid.read_text())) is None, 30)  # its parent may be gone before


@pytest.mark.parametrize("act", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "words",
    [
        "slurm_update error: Unable to contact slurm controller (connect failure)",
        "squeue: error: slurm_receive_msg: Socket timed out on send/recv operation",
        "slurm_load_node: Zero Bytes were transmitted or received",
        "error: Connection refused",
        "scontrol: error: slurm_msg_sendto: address:port=127.0.0.1:6817 msg_type=3002: Broken pipe",
        "slurm_update error: Unexpected missing socket error",
        "slurm_update error: Message receive failure",
        "slurm_update error: Slurm backup controller in standby mode",
        "slurm_update error: Controller is in standby mode, try a different controller",
        "slurm_update error: Protocol authentication error",
        "slurm_load_jobs error: Rate limit exceeded, please retry momentarily",
        "slurm_update error: Connection timed out establishing",
        "scontrol: fatal: Could not establish a configuration source",
    ],
)
def test_a_slurmctld_that_is_away_is_silence(bin_: Bin, act: Act, words: str) -> None:
    bin_.all(f"echo '{words}' >&2; exit 1")
    with pytest.raises(Unreachable, match="|".join(scontrol.SILENT)):
        bin_.call(act)


@pytest.mark.parametrize("act", CALLS.values(), ids=CALLS)
def test_a_no_is_passed_on_in_slurms_words(bin_: Bin, act: Act) -> None:
    bin_.all("echo 'Access/permission denied' >&2; exit 1")
    with pytest.raises(Rejected, match="Access/permission denied"):
        bin_.call(act)


def test_a_no_without_words(bin_: Bin) -> None:
    bin_.all("exit 7")
    with pytest.raises(Rejected, match="exit 7"):
        bin_.call(CALLS["drain"])
    bin_.all("kill -KILL $$")
    with pytest.raises(Rejected, match="exit -9"):
        bin_.call(CALLS["drain"])


@pytest.mark.parametrize("act", CALLS.values(), ids=CALLS)
def test_commands_that_are_not_there_bring_nothing(bin_: Bin, act: Act) -> None:
    with pytest.raises(SlurmError, match=r"not found in .*/bin; install Slurm's client commands"):
        bin_.call(act)


@pytest.mark.parametrize("act", CALLS.values(), ids=CALLS)
def test_commands_that_cannot_run_bring_nothing(bin_: Bin, act: Act) -> None:
    bin_.all("")
    for file in bin_.folder.iterdir():
        file.write_bytes(b"\x7fELF rubbish")
    with pytest.raises(SlurmError):
        bin_.call(act)


def test_what_cannot_be_read_hides_nothing_else(bin_: Bin) -> None:
    bin_.put("squeue", f"printf '%s\\n' '{line()}' rubbish '' '|||' '{line(JobID='8', ArrayJobID='8')}'")
    assert set(bin_.call(lambda slurm: slurm.jobs([4711, 8]))) == {4711, 8}


def test_no_such_job_is_an_answer(bin_: Bin) -> None:
    bin_.put("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert bin_.call(lambda slurm: slurm.jobs([7])) == {}
    assert bin_.call(lambda slurm: slurm.jobs([])) == {}


def test_where_a_job_stands_in_the_queue(bin_: Bin) -> None:
    bin_.put("squeue", "printf '%s\\n' '4294901759|-50|' '1|0|'")  # two components
    assert bin_.call(lambda slurm: slurm.standing("7")) == (4294901759, -50)
    bin_.put("squeue", "")
    with pytest.raises(Rejected):
        bin_.call(lambda slurm: slurm.standing("7"))


def test_a_reservation_that_has_lapsed_is_no_error(bin_: Bin) -> None:
    bin_.put("scontrol", "echo 'delete_reservation x: Requested reservation is invalid' >&2; exit 1")
    bin_.call(lambda slurm: slurm.unreserve("x"))


def test_only_jobs_that_were_asked_for(bin_: Bin) -> None:
    # squeue -j of an array's own number shows all its tasks, and pending ones under that number.
    tasks = [line(JobID="4712", ArrayTaskID="1"), line(JobID="4711", ArrayTaskID="2"),
             line(JobID="4711", ArrayTaskID="[3-9%4]", State="PENDING", NodeList="")]  # fmt: skip
    bin_.put("squeue", "printf '%s\\n' " + " ".join(f"'{task}'" for task in tasks))
    found = bin_.call(lambda slurm: slurm.jobs([4712]))
    assert [job.label for job in found.values()] == ["4711_1"]


@pytest.mark.parametrize("at", [1792888200, 1792891800])
def test_an_hour_that_the_sites_clock_shows_twice(
    bin_: Bin, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night in which summer time ends: 02:30, and an hour later 02:30."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    bin_.put("sinfo", f'echo "n1|drained|$(date -d @{at} +%Y-%m-%dT%H:%M:%S)|n1|x|"')
    assert bin_.call(lambda slurm: slurm.nodes())["n1"].since == at


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["n2", "n1", "n2"], "n[1-2]"),
        (["n01", "n1", "n001"], "n[1,01,001]"),
        (["rack1-node01", "rack2-node01", "rack2-node02"], "rack1-node01,rack2-node[01-02]"),
        (["gpu01-ib", "gpu02-ib", "gpu01"], "gpu01,gpu01-ib,gpu02-ib"),
        (["login", "r1n2s4", "r1n2s3"], "login,r1n2s[3-4]"),
        ([], ""),
    ],
)
def test_numbers_are_folded_at_the_end_of_names_only(names: list[str], folded: str) -> None:
    assert hostlist(names) == folded


def test_nodes_by_name(bin_: Bin) -> None:
    bin_.put(
        "sinfo",
        'printf \'%s\\n\' "$*" >"$0.said"\n'
        "echo 'n1|idle|Unknown|n1|none|'; echo; echo 'n2|down|Unknown|n2|x|'; echo 'n2|down|Unknown|n2|x|'",
    )
    found = bin_.call(lambda slurm: slurm.nodes(["n2", "n1"]))
    assert set(found) == {"n1", "n2"}
    assert (bin_.folder / "sinfo.said").read_text().startswith("-h -N -n n[1-2] -O ")
    bin_.call(lambda slurm: slurm.nodes())
    assert " -n " not in (bin_.folder / "sinfo.said").read_text()


PING = """\
Slurmctld(primary) at ctl1 is {}
Slurmctld(backup) at ctl2 is {}
*****************************************
** RESTORE SLURMCTLD DAEMON TO SERVICE **
*****************************************
"""


@pytest.mark.parametrize("status", [0, 1])  # it fails when none is up
def test_which_slurmctld_answers(bin_: Bin, status: int) -> None:
    bin_.put("scontrol", f"cat <<'.'; exit {status}\n{PING.format('DOWN', 'DOWN' if status else 'UP')}.")
    found = bin_.call(lambda slurm: slurm.ping())
    assert list(found.items()) == [("ctl1", False), ("ctl2", not status)]


def test_a_line_feed_in_a_reason_hides_no_node(bin_: Bin) -> None:
    bin_.put("sinfo", "printf 'n1|drain|Unknown|n1|first\\nsecond|\\nn2|idle|Unknown|n2|none|\\n'")
    found = bin_.call(lambda slurm: slurm.nodes())
    assert [(node.name, node.reason) for node in found.values()] == [("n1", "first"), ("n2", "")]


def test_who_waits_for_what_can_no_longer_come(bin_: Bin) -> None:
    bin_.put(
        "squeue",
        """cat <<'.'
9|DependencyNeverSatisfied|afterok:7(failed)|
10_3|DependencyNeverSatisfied|afterok:7_*(failed),afterany:8(unfulfilled)|
11|Dependency|afterok:8(unfulfilled)|
12|Priority||
.""",
    )
    assert bin_.call(lambda slurm: slurm.stranded()) == {
        "9": "afterok:7(failed)",
        "10_3": "afterok:7_*(failed),afterany:8(unfulfilled)",
    }


SAID = {
    "drain": ("scontrol", ["update", "NodeName=n[1-2]", "State=DRAIN", "Reason=a b; $(touch x)"]),
    "down": ("scontrol", ["update", "NodeName=n[1-2]", "State=DOWN", "Reason=x y"]),
    "resume": ("scontrol", ["update", "NodeName=n1", "State=RESUME"]),
    "live": ("scontrol", ["requeue", "Incomplete", "7_2"]),
    "dead": ("scontrol", ["requeue", "7_2"]),
    "release": ("scontrol", ["release", "7"]),
    "signal": ("scancel", ["--signal=USR1", "7"]),
    "signal to the script": ("scancel", ["--signal=USR1", "--batch", "7"]),
    "start": ("scontrol", ["update", "JobId=7", "StartTime=now"]),
    "tell": ("scontrol", ["notify", "7", "a `b` 'c' \"d\""]),
    "comment": ("scontrol", ["update", "JobId=7", "AdminComment=x=y z"]),
    "nice": ("scontrol", ["update", "JobId=7_2", "Nice=-5"]),
    "dependency": ("scontrol", ["update", "JobId=9", "Dependency=afterok:7_2"]),
    "reserve": (
        "scontrol",
        [
            "create",
            "ReservationName=x",
            "Users=root",
            "Nodes=n[1-2]",
            "StartTime=now",
            "Duration=1",
            "Flags=IGNORE_JOBS",
        ],
    ),
    "unreserve": ("scontrol", ["delete", "ReservationName=x"]),
}
DOES: dict[str, Act] = {
    "drain": lambda slurm: slurm.drain(["n2", "n1"], "a b; $(touch x)"),
    "down": lambda slurm: slurm.down(["n2", "n1"], "x y"),
    "resume": lambda slurm: slurm.resume(["n1"]),
    "live": lambda slurm: slurm.requeue("7_2", incomplete=True),
    "dead": lambda slurm: slurm.requeue("7_2", incomplete=False),
    "release": lambda slurm: slurm.release("7"),
    "signal": lambda slurm: slurm.signal("7", "USR1", "all"),
    "signal to the script": lambda slurm: slurm.signal("7", "USR1", "batch"),
    "start": lambda slurm: slurm.start_now("7"),
    "tell": lambda slurm: slurm.tell("7", "a `b` 'c' \"d\""),
    "comment": lambda slurm: slurm.set_comment("7", "x=y z"),
    "nice": lambda slurm: slurm.set_nice("7_2", -5),
    "dependency": lambda slurm: slurm.set_dependency("9", "afterok:7_2"),
    "reserve": lambda slurm: slurm.reserve("x", ["n2", "n1"]),
    "unreserve": lambda slurm: slurm.unreserve("x"),
}


@pytest.mark.parametrize("what", SAID)
def test_what_is_said_to_slurm(bin_: Bin, what: str) -> None:
    name, words = SAID[what]
    bin_.put(name, 'printf \'%s\\n\' "$@" >"$0.said"')
    bin_.call(DOES[what])
    assert (bin_.folder / f"{name}.said").read_text().splitlines() == words


def test_no_comment_can_be_taken_for_another_jobs(bin_: Bin) -> None:
    """As squeue prints them, line feeds and all."""
    print_them = r"""
format=
while [ $# -gt 0 ]; do [ "$1" = -o ] && format=$2; shift; done
show() { printf '%s\n' "$format" | sed "s/%A/$1/; s/%k/$2/"; }
show 7 'off\n8 off\n%A 8 %k'
show 9 '(null)'
show 10 'a b  '
"""
    bin_.put("squeue", print_them)
    assert bin_.call(lambda slurm: slurm.comments([9, 7, 10])) == {
        7: "off\n8 off\n%A 8 %k",
        9: "",
        10: "a b  ",
    }
    bin_.put("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert bin_.call(lambda slurm: slurm.comments([7])) == {}


@pytest.mark.parametrize("what", DOES)
def test_a_change_is_not_begun_when_it_is_no_longer_our_turn(bin_: Bin, what: str) -> None:
    bin_.all('echo "$@" >>"${0%/*}/said"')
    bin_.put("scancel", 'echo "$@" >>"${0%/*}/said"')

    async def act(slurm: Commands) -> Any:
        asked: list[bool] = []

        def must_act() -> None:
            asked.append(slurm.gate.locked())
            raise LedgerError("the lease is gone")

        slurm.must_act = must_act
        slurm.gate = asyncio.Semaphore(1)
        with pytest.raises(LedgerError):
            await DOES[what](slurm)
        assert asked == [True]  # at the last moment: it may have waited for others

    bin_.call(act)
    assert not (bin_.folder / "said").exists()


@pytest.mark.parametrize(
    ("said", "expected"), [("x; y   ", "x; y"), ("(null)", ""), ("", ""), ("first\nsecond", "first")]
)
def test_an_admin_comment(bin_: Bin, said: str, expected: str) -> None:
    (bin_.folder / "text").write_text(said)
    bin_.put("squeue", f"cat {bin_.folder}/text")
    assert bin_.call(CALLS["comment"]) == expected


def test_what_a_site_is(bin_: Bin) -> None:
    def says(*lines: str) -> None:
        bin_.put("scontrol", "".join(f"echo '{line}';" for line in lines))

    says("SlurmdUser   = root(0)", "SlurmUser    = nobody(4711)", "SLURM_VERSION = 22.05.8")
    assert bin_.call(CALLS["site"]) == Site(65534, (22, 5))
    assert Site(65534, (22, 5)).forgets_slowly
    assert Site(65534, (22, 5)).loses_gpus
    says("SLURM_VERSION           = 26.05.0-0rc1", "SlurmUser = 4711", f"BOOT_TIME  = {START}",
         "SlurmctldParameters     = idle_on_node_suspend,enable_expedited_requeue")  # fmt: skip
    assert bin_.call(CALLS["site"]) == Site(4711, (26, 5), STARTED, expedites=True)
    assert not Site(4711, (23, 2)).forgets_slowly
    assert not Site(4711, (24, 11)).loses_gpus
    for lines in (
        ["nothing"],
        ["SlurmUser = no-such-user(7)", "SLURM_VERSION = 22.05.8"],
        ["SlurmUser = 7", "SLURM_VERSION = master"],
        ["SLURM_VERSION = 22.05.8"],
    ):
        says(*lines)
        with pytest.raises(SlurmError):
            bin_.call(CALLS["site"])


def test_a_sites_habits_do_not_leak(bin_: Bin, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_FORMAT", "SQUEUE_USERS", "SQUEUE_STATES", "SINFO_FORMAT", "SINFO_PARTITION",
                 "SLURM_TIME_FORMAT", "SLURM_CLUSTERS", "SCONTROL_ALL", "SCONTROL_FUTURE",
                 "SLURM_BITSTR_LEN", "SLURM_JSON"):  # fmt: skip
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SLURM_CONF", "/site/slurm.conf")
    bin_.all('env >"$0.env"')
    for act in CALLS.values():
        try:
            bin_.call(act)
        except SlurmError:
            continue
    for file in bin_.folder.glob("*.env"):
        env = dict(pair.split("=", 1) for pair in file.read_text().splitlines() if "=" in pair)
        assert [name for name, value in env.items() if value == "leaked"] == []
        assert (env["LC_ALL"], env["SLURM_CONF"]) == ("C", "/site/slurm.conf")
        assert {"SINFO_LOCAL", "SQUEUE_LOCAL"} <= env.keys()  # of a federation our cluster only
        assert env["TZ"] == "UTC0"
    bin_.call(CALLS["drain"], conf="/ours/slurm.conf")
    assert "SLURM_CONF=/ours/slurm.conf\n" in (bin_.folder / "scontrol.env").read_text()


def test_what_a_user_can_fill_is_never_asked_for_beside_other_fields() -> None:
    free = {"name", "comment", "admincomment", "admin_comment", "command", "workdir", "account", "wckey"}
    assert not {field.lower() for field in JOB_FIELDS} & free
    assert NODE_FIELDS[-1] == "Reason"


def test_many_commands_at_once(bin_: Bin) -> None:
    bin_.put("squeue", f"echo '{line()}'")

    async def act(slurm: Commands) -> Any:
        return await asyncio.gather(*(slurm.jobs([4711]) for _ in range(20)))

    assert all(set(found) == {4711} for found in bin_.call(act))


def test_bytes_that_are_no_text(bin_: Bin) -> None:
    bin_.put("sinfo", "printf 'n1|idle|Unknown|n1|\\377\\376|\\n'")
    assert set(bin_.call(lambda slurm: slurm.nodes())) == {"n1"}
