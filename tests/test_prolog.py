"""The prolog under every shell that may be /bin/sh: it refuses for a fresh `bad` and for nothing else."""

import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
PROLOG = ROOT / "prolog/slurm-health.sh"
EPILOG = ROOT / "epilog/slurm-health.sh"
SHELLS = {
    name: (found, *words[1:])
    for name in ("dash", "bash", "bash --posix", "busybox sh")
    for words in [name.split()]
    if (found := shutil.which(words[0]))
}
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_GPUS": "0,3",
    "SLURM_JOB_RESTART_COUNT": "2",
}


def uptime() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]))


def refuses(verdict: bytes, now: int) -> bool:
    """The contract, said once more in another language. Shells drop NUL bytes when they read."""
    line, newline, _ = verdict.partition(b"\n")
    match = re.fullmatch(rb"bad (0|[1-9][0-9]{0,9})(?: .*)?", line.replace(b"\0", b""), re.DOTALL)
    return bool(newline and match and 0 <= now - int(match[1]) <= 60)


@dataclass
class Node:
    """A run folder and an empty folder to run in, where nothing may appear."""

    run: Path
    cwd: Path

    def say(self, verdict: str | bytes) -> None:
        (self.run / "verdict").write_bytes(verdict.encode() if isinstance(verdict, str) else verdict)

    def hook(
        self,
        shell: str,
        script: Path = PROLOG,
        *,
        before: Callable[[], None] | None = None,
        **environment: str,
    ) -> tuple[int, bytes, bytes]:
        """Run it as slurmd does, with an environment made from nothing."""
        done = subprocess.run(
            [*SHELLS[shell], script],
            env={"SLURM_HEALTH_RUN": str(self.run), **JOB, **environment},
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            preexec_fn=before,
        )
        assert list(self.cwd.iterdir()) == []
        return done.returncode, done.stdout, done.stderr

    @property
    def cards(self) -> dict[str, str]:
        return {card.name: card.read_text() for card in (self.run / "jobs").iterdir()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "run/jobs").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    return Node(tmp_path / "run", tmp_path / "cwd")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_shells_that_matter_are_here() -> None:
    assert {"dash", "bash"} <= set(SHELLS)


# The verdict as it may be found; {now} is the uptime, {old} 62 s ago, {late} 30 s in the future.
REFUSED = {
    "bad": "bad {now} GPU_XID_79(0000:3b:00.0) fell off the bus\n",
    "nearly stale": "bad {recent} x\n",
    "without text": "bad {now}\n",
    "with an empty text": "bad {now} \n",
    "more lines": "bad {now} x\nok {now} y\n",
    "commands in the text": "bad {now} $(touch A) `touch B` a[$(touch C)] ; touch D\n",
    "backslashes, globs and formats": "bad {now} \\033[2J \\c * /* %s%n %d\n",
    "control characters": "bad {now} \033[2J\007\rgone\n",
    "not ASCII": "bad {now} käput\n",
    "a long text": "bad {now} " + "long " * 2000 + "\n",
}
ACCEPTED = {
    "ok": "ok {now} all well\n",
    "warn": "warn {now} NIC_SLOW(eth2)\n",
    "stale": "bad {old} x\n",
    "future": "bad {late} x\n",
    "empty": "",
    "a line feed": "\n",
    "no line feed": "bad {now} x",
    "cut off": "bad",
    "no uptime": "bad \n",
    "text for an uptime": "bad x y\n",
    "octal": "bad 08 x\n",
    "a leading zero": "bad 0{now} x\n",
    "huge": "bad 99999999999999999999 x\n",
    "very huge": "bad " + "9" * 5000 + " x\n",
    "negative": "bad -1 x\n",
    "a sign": "bad +{now} x\n",
    "a fraction": "bad {now}.5 x\n",
    "hexadecimal": "bad 0x10 x\n",
    "an expression": "bad {now}-1 x\n",
    "a name": "bad now x\n",
    "a command for an uptime": "bad a[$(touch${{IFS}}A)] x\n",
    "another": "bad `touch${{IFS}}A` x\n",
    "a glob": "bad * x\n",
    "carriage return": "bad {now}\r\n",
    "two blanks": "bad  {now} x\n",
    "a leading blank": " bad {now} x\n",
    "tabs": "bad\t{now}\tx\n",
    "capitals": "BAD {now} x\n",
    "another word": "badly {now} x\n",
    "the second line": "ok {now} x\nbad {now} y\n",
    "an option": "-n bad {now}\n",
    "a long line": "bad " + "x" * 100_000 + "\n",
}


def as_of_now(verdict: str) -> str:
    now = uptime()
    return verdict.format(now=now, recent=max(0, now - 55), old=now - 62, late=now + 30)


@pytest.mark.parametrize("verdict", REFUSED.values(), ids=REFUSED)
def test_a_fresh_bad_verdict_refuses(node: Node, shell: str, verdict: str) -> None:
    node.say(as_of_now(verdict))
    code, out, err = node.hook(shell)
    assert (code, out) == (1, b"")
    assert re.fullmatch(rb"slurm-health: [ -~]{1,200}\n", err)
    assert re.search(r"\nuptime=\d+\nrefused=\d+\n\Z", node.cards["4711.2"])


@pytest.mark.parametrize("verdict", ACCEPTED.values(), ids=ACCEPTED)
def test_everything_else_lets_the_job_in(node: Node, shell: str, verdict: str) -> None:
    node.say(as_of_now(verdict))
    assert node.hook(shell) == (0, b"", b"")
    assert "refused" not in node.cards["4711.2"]


BOTH = pytest.mark.parametrize("script", [PROLOG, EPILOG], ids=["prolog", "epilog"])


@BOTH
def test_the_reason_is_handed_on_as_it_stands(node: Node, shell: str, script: Path) -> None:
    text = b"GPU_XID_79(0000:3b:00.0) \\t %s  it's `gone` "
    node.say(b"bad %d %b\n" % (uptime(), text))
    assert node.hook(shell, script)[2] == b"slurm-health: %b\n" % text


@BOTH
def test_a_terminal_is_never_written_to_in_any_locale(node: Node, shell: str, script: Path) -> None:
    node.say(f"bad {uptime()} käput\n")
    err = node.hook(shell, script, LC_ALL="C.UTF-8")[2]
    assert err == b"slurm-health: this node is refused, for a reason that cannot be printed\n"


def folder(node: Node) -> None:
    (node.run / "verdict").mkdir()


def dangling(node: Node) -> None:
    (node.run / "verdict").symlink_to("nowhere")


def circular(node: Node) -> None:
    (node.run / "verdict").symlink_to("verdict")


def fifo(node: Node) -> None:
    os.mkfifo(node.run / "verdict")


def endless(node: Node) -> None:
    (node.run / "verdict").symlink_to("/dev/zero")


def absent(node: Node) -> None:
    pass


def no_run_folder(node: Node) -> None:
    shutil.rmtree(node.run)


def a_file_for_a_folder(node: Node) -> None:
    shutil.rmtree(node.run)
    node.run.write_text("")


@pytest.mark.parametrize(
    "upset",
    [folder, dangling, circular, fifo, endless, absent, no_run_folder, a_file_for_a_folder],
    ids=lambda upset: upset.__name__,
)
@BOTH
def test_no_verdict_at_all(node: Node, shell: str, upset: Callable[[Node], None], script: Path) -> None:
    upset(node)
    assert node.hook(shell, script) == (0, b"", b"")


@pytest.fixture
def anyones() -> Iterator[Node]:
    """A node whose folders another user can reach, to run as one who is not root."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        (top / "run/jobs").mkdir(parents=True)
        (top / "cwd").mkdir()
        shutil.copy(PROLOG, top / "prolog.sh")
        shutil.copy(EPILOG, top / "epilog.sh")
        yield Node(top / "run", top / "cwd")


def ordinary() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def test_an_unreadable_verdict_and_a_folder_that_cannot_be_written(anyones: Node, shell: str) -> None:
    anyones.say(f"bad {uptime()} x\n")
    (anyones.run / "verdict").chmod(0)
    (anyones.run / "jobs").chmod(0o555)
    assert anyones.hook(shell, anyones.cwd.parent / "prolog.sh", before=ordinary) == (0, b"", b"")
    assert anyones.cards == {}


def test_the_default_folder() -> None:
    assert "run=${SLURM_HEALTH_RUN:-/run/slurm-health}" in PROLOG.read_text()
    assert "run=${SLURM_HEALTH_RUN:-/run/slurm-health}" in EPILOG.read_text()


def test_the_card(node: Node, shell: str) -> None:
    before = uptime()
    node.hook(shell)
    (name, text), *others = node.cards.items()
    assert (name, others) == ("4711.2", [])
    head, _, last = text.partition("uptime=")
    assert head == "job=4711\nuid=1000\ngpus=0,3\nrestarts=2\n"
    # The last line, ended by a line feed, is what tells a whole card from one still being written.
    assert last.endswith("\n")
    assert before <= int(last) <= uptime()


def test_a_job_without_gpus_that_never_restarted(node: Node, shell: str) -> None:
    node.hook(shell, SLURM_JOB_GPUS="", SLURM_JOB_RESTART_COUNT="", SLURM_JOB_UID="root")
    assert node.cards["4711.0"].startswith("job=4711\nuid=\ngpus=\nrestarts=0\nuptime=")


def test_what_was_asked_and_what_is_to_be_told_are_on_the_card(node: Node, shell: str) -> None:
    was = "slurm-health-was: attempt=2 bad_nodes=n[1-2],n5 reason=GPU_XID_79(0000:5d:00.0) off the bus"
    told = {"SPANK_SLURM_HEALTH": "requeue=5 signal=USR1@120", "SLURM_JOB_COMMENT": f"project=x; {was}"}
    node.hook(shell, **told)
    assert (
        "\nasked=requeue=5 signal=USR1@120\nattempt=2\nbad_nodes=n[1-2],n5\n"
        "reason=GPU_XID_79(0000:5d:00.0) off the bus\nuptime="
    ) in node.cards["4711.2"]


@pytest.mark.parametrize("asked", ["off\njob=1", "signal=`id`", "é", "x" * 81, "a;b", "$(id)"])
def test_options_that_are_none_of_ours_are_not_noted(node: Node, shell: str, asked: str) -> None:
    node.hook(shell, SPANK_SLURM_HEALTH=asked)
    assert "asked=" not in node.cards["4711.2"]


@pytest.mark.parametrize(
    "was",
    [
        "attempt=1 bad_nodes=n1\nended=1 reason=x",
        "attempt=1\njob=1 bad_nodes=n1 reason=x",
        "attempt=08 bad_nodes=n1 reason=x",
        "attempt=1 bad_nodes=n1 reason=\033[2J",
        "attempt=1 reason=x",
        f"attempt=1 bad_nodes=n1 reason={'x' * 5000}",
    ],
)
def test_a_comment_forges_no_line(node: Node, shell: str, was: str) -> None:
    node.hook(shell, SLURM_JOB_COMMENT=f"slurm-health-was: {was}")
    assert re.fullmatch(r"job=4711\nuid=1000\ngpus=0,3\nrestarts=2\nuptime=\d+\n", node.cards["4711.2"])


def test_a_card_is_written_anew(node: Node, shell: str) -> None:
    (node.run / "jobs/4711.2").write_text("job=4711\nended=1\n")
    node.hook(shell)
    assert node.cards["4711.2"].count("job=") == 1
    assert "ended" not in node.cards["4711.2"]


@pytest.mark.parametrize("gpus", ["0\njob=1", "0 1", "\033[2J", "é"])
def test_gpus_that_would_forge_a_line_are_unknown(node: Node, shell: str, gpus: str) -> None:
    node.hook(shell, SLURM_JOB_GPUS=gpus)
    assert "\ngpus=?\nrestarts=2\nuptime=" in node.cards["4711.2"]


@pytest.mark.parametrize(
    "number", ["", "../../x", "1/2", "1 2", "*", "$(touch A)", "-1", "1\n", "9" * 300, "08", "٣"]
)
def test_only_numbers_reach_the_path(node: Node, shell: str, number: str) -> None:
    node.say(f"bad {uptime()} x\n")
    assert node.hook(shell, SLURM_JOB_ID=number) == (1, b"", b"slurm-health: x\n")
    if number:
        assert node.hook(shell, SLURM_JOB_RESTART_COUNT=number) == (1, b"", b"slurm-health: x\n")
    assert node.cards == {}
    assert {path.name for path in node.run.iterdir()} == {"verdict", "jobs"}


def test_no_job_folder(node: Node, shell: str) -> None:
    (node.run / "jobs").rmdir()
    node.say(f"ok {uptime()} x\n")
    assert node.hook(shell) == (0, b"", b"")
    node.say(f"bad {uptime()} x\n")
    assert node.hook(shell) == (1, b"", b"slurm-health: x\n")
    assert not (node.run / "jobs").exists()


@pytest.mark.parametrize(("state", "expected"), [("ok", 0), ("bad", 1)])
def test_a_card_that_does_not_fit(node: Node, shell: str, state: str, expected: int) -> None:
    (node.run / "jobs/4711.2").symlink_to("/dev/full")
    node.say(f"{state} {uptime()} x\n")
    assert node.hook(shell) == (expected, b"", b"slurm-health: x\n" * expected)


@pytest.mark.parametrize(("state", "expected"), [("ok", 0), ("bad", 1)])
def test_a_full_tmpfs(node: Node, shell: str, state: str, expected: int) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(node.run)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts; /dev/full stands for it above")
    try:
        (node.run / "jobs").mkdir()
        node.say(f"{state} {uptime()} x\n")
        with pytest.raises(OSError, match="No space"), (node.run / "ballast").open("wb", 0) as ballast:
            while ballast.write(b"\0" * 4096):
                pass
        for script in (PROLOG, EPILOG):
            assert node.hook(shell, script) == (expected, b"", b"slurm-health: x\n" * expected)
            assert set(node.cards.values()) <= {""}
    finally:
        subprocess.run(["umount", node.run], check=True)


@pytest.mark.parametrize("options", ["set -eu", "set -euC", "set -e; IFS=0123456789", "set -f; set -a"])
@BOTH
def test_sourced_by_a_wrapper(node: Node, shell: str, script: Path, options: str) -> None:
    wrapper = node.run / "wrapper"
    wrapper.write_text(
        f"{options}\nSLURM_HEALTH_RUN={node.run.parent}/$SLURMD_NODENAME\n. {script}\necho never\n"
    )

    def sourced() -> tuple[int, bytes, bytes]:
        return node.hook(shell, wrapper, SLURM_HEALTH_RUN="", SLURMD_NODENAME=node.run.name)

    (node.run / "jobs").rmdir()
    assert sourced() == (0, b"", b"")
    (node.run / "jobs").mkdir()
    if script == PROLOG:
        (node.run / "jobs/4711.2").write_text("an old card")
    assert sourced() == (0, b"", b"")
    assert "old" not in "".join(node.cards.values())
    node.say(f"bad {uptime()} x\n")
    assert sourced() == (1, b"", b"slurm-health: x\n")
    assert list(node.cards) == (["4711.2"] if script == PROLOG else [])


def test_everything_closed(node: Node, shell: str) -> None:
    def close() -> None:
        os.closerange(0, 3)

    node.say(f"ok {uptime()} x\n")
    assert node.hook(shell, before=close) == (0, b"", b"")
    node.say(f"bad {uptime()} x\n")
    assert node.hook(shell, before=close) == (1, b"", b"")
    assert node.cards["4711.2"].startswith("job=4711\n")


def test_fail_closed_is_one_line(node: Node, shell: str) -> None:
    assert PROLOG.read_text().count("\nfail_closed=0 ") == 1
    closed = node.run / "prolog.sh"
    closed.write_text(PROLOG.read_text().replace("\nfail_closed=0 ", "\nfail_closed=1 "))
    for verdict in ("warn {now} x\n", "ok {now} x\n"):
        node.say(as_of_now(verdict))
        assert node.hook(shell, closed) == (0, b"", b"")
    for verdict in ("ok {old} x\n", "bad {late} x\n", "", "rubbish\n"):
        node.say(as_of_now(verdict))
        assert node.hook(shell, closed) == (1, b"", b"slurm-health: this node has no fresh verdict\n")
    (node.run / "verdict").unlink()
    assert node.hook(shell, closed)[0] == 1


PIECES = st.sampled_from(
    [b"bad", b"ok", b"warn", b" ", b" ", b"\n", b"\0", b"\\", b"$(touch A)", b"\x01", b"\x7f"]
)
AGES = st.integers(-5, 70).map(lambda age: str(max(0, uptime() - age)).encode())
VERDICTS = st.one_of(
    st.binary(max_size=300),
    st.lists(PIECES | AGES | st.binary(max_size=3), max_size=12).map(b"".join),
    st.tuples(AGES, st.binary(max_size=60)).map(lambda both: b"bad %b %b\n" % both),
    st.tuples(AGES, st.binary(max_size=4)).map(lambda both: b"bad %b%b\n" % both),
)


@given(VERDICTS)
@example(b"bad %d \x01\x7f\x80\n" % uptime())
@settings(max_examples=150, deadline=None)
def test_any_bytes_at_all(verdict: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        node = Node(Path(name, "run"), Path(name, "cwd"))
        (node.run / "jobs").mkdir(parents=True)
        node.cwd.mkdir()
        node.say(verdict)
        for shell in SHELLS:
            for script in (PROLOG, EPILOG):
                before = uptime()
                code, out, err = node.hook(shell, script)
                assume(refuses(verdict, before) == refuses(verdict, uptime()))
                assert (code, out) == (int(refuses(verdict, before)), b"")
                assert re.fullmatch(rb"slurm-health: [ -~]{1,200}\n" if code else b"", err)


# System calls that make a process or leave the machine: clone, fork, vfork, clone3, socket, connect.
FORBIDDEN = {"x86_64": (56, 57, 58, 435, 41, 42), "aarch64": (220, 435, 198, 203)}


class Step(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(Step)))


def jail() -> None:
    """Have the kernel kill this process if it forks or opens a socket, whatever it redirects or ignores.

    A seccomp filter needs no privilege, no ptrace and no tool, so that this works in any container.
    https://docs.kernel.org/userspace-api/seccomp_filter.html
    """
    numbers = FORBIDDEN[platform.machine()]
    steps = [Step(0x20, 0, 0, 0)]  # load the number of the system call
    steps += [Step(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]  # jump if equal
    steps += [Step(0x06, 0, 0, 0x7FFF0000), Step(0x06, 0, 0, 0x80000000)]  # allow; kill the process
    program = Program(len(steps), (Step * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filtering = 38, 22, 2
    for words in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, filtering, ctypes.byref(program))):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.parametrize(
    "command", ["( : )", "x=$(:)", ": | :", "/bin/true", ": &", "( : ) 2>/dev/null || exit 0"]
)
def test_the_jail_holds(node: Node, shell: str, command: str) -> None:
    script = node.run / "script"
    script.write_text(f"{command}\nexit 0\n")
    assert node.hook(shell, script, before=jail, SHELL="/bin/sh")[0] == -signal.SIGSYS


@BOTH
def test_nothing_is_forked_and_nobody_is_asked(node: Node, shell: str, script: Path) -> None:
    def jailed() -> tuple[int, bytes, bytes]:
        # Without SHELL bash asks the name service for root (a local socket) before it reads any script.
        return node.hook(shell, script, before=jail, SHELL="/bin/sh")

    assert jailed() == (0, b"", b"")
    for state, expected in (("ok", 0), ("bad", 1), ("bad x", 0)):
        node.say(f"{state} {uptime()} x\n")
        assert jailed() == (expected, b"", b"slurm-health: x\n" * expected)
    shutil.rmtree(node.run)
    assert jailed() == (0, b"", b"")


def test_the_shell_is_never_replaced() -> None:
    """The jail must let the shell itself be executed, so that this one word is looked for by eye."""
    for script in (PROLOG, EPILOG):
        code = "\n".join(line.partition("#")[0] for line in script.read_text().splitlines())
        assert not re.search(r"(^|[\s;{(&|])(exec|eval|command|trap)\b", code)


def test_both_scripts_read_the_verdict_alike() -> None:
    def shared(script: Path) -> list[str]:
        text = script.read_text()
        start = text.index("# `<ok|warn|bad> <uptime> <text>`")
        return text[start : text.index("text=${text# }", start)].splitlines()

    assert shared(PROLOG) == shared(EPILOG)
    assert re.findall(r"^number\(\) \{.*?^\}", PROLOG.read_text(), re.DOTALL | re.MULTILINE) == re.findall(
        r"^number\(\) \{.*?^\}", EPILOG.read_text(), re.DOTALL | re.MULTILINE
    )
