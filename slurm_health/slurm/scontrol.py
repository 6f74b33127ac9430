"""Slurm through its own commands: scontrol, squeue and sinfo, with one-line formats and deadlines.

Fields that a user can fill (job names, comments, paths) are never asked for in the same line as others, so
that nobody can forge one (`scontrol show job` prints `JobName=x JobState=FAILED` as it comes). Owners'
comments come between words that nobody can guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from string import digits
from typing import Self

from ClusterShell.NodeSet import NodeSet

from slurm_health.model import Job, Node
from slurm_health.slurm import Rejected, Site, SlurmError, Unreachable

# `Field:|` prints the field in full and then the bar (squeue(1), --Format: type[:[.][size][suffix]]).
JOB_FIELDS = (
    "JobID",
    "ArrayJobID",
    "ArrayTaskID",
    "HetJobID",
    "State",
    "Reason",
    "RestartCnt",
    "UserID",
    "BatchFlag",
    "Requeue",
    "NumNodes",
    "StartTime",
    "EndTime",
    "NodeList",
)
STANDING_FIELDS = ("PriorityLong", "Nice")
DEPENDENT_FIELDS = ("JobArrayID", "Reason", "Dependency")
NEVER = "DependencyNeverSatisfied"  # squeue's Reason of who waits for a job that failed, 22.05 to 26.05
NODE_FIELDS = ("NodeList", "StateComplete", "Timestamp", "NodeAddr", "Reason")
NO_REASON = "none"  # what sinfo prints where there is none
AT_ONCE = 8  # commands under way; more would only keep slurmctld and the host's cores from the first ones
# What squeue says when no job has the id: not an error to us. Same words in 22.05 to 26.05.
NO_SUCH_JOB = "Invalid job id specified"
NO_SUCH_RESERVATION = "Requested reservation is invalid"
# squeue's Reason of a job that was held when it was requeued (job_reason_string, 22.05 to 26.05).
REQUEUED_HELD = "job requeued in held state"
RELEASE = re.compile(r"(\d+)\.(\d+)")
PING = re.compile(r"Slurmctld\(\w+\) at (\S+) is (UP|DOWN)")  # scontrol ping, 22.05 to 26.05
# What tells of the way to slurmctld, not of its will (slurm_errno.c, 22.05 to 26.11; errno(3)): it went away
# before, amid or after our words; MUNGE did; the name service or the folder of slurm.conf did not answer.
SILENT = (
    "Unable to contact slurm controller",
    "Unexpected missing socket error",
    "Communication connection failure",
    "Communication shutdown failure",
    "Message send failure",
    "Message receive failure",
    "Header lengths are longer than data received",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Broken pipe",
    "Connection refused",
    "Connection reset",
    "Transport endpoint",
    "Connection timed out",
    "Connection rejected by handler",
    "Connection forced closed",
    "delayed socket error",
    "closing all communications",
    "No route to host",
    "Network is unreachable",
    "in standby mode",  # until it has seen that the primary is gone
    "Rate limit exceeded",
    "Protocol authentication error",
    "Can't find an address",
    "Could not establish a configuration source",
)
# What changes, like a site's SQUEUE_*, what is printed, and in which words.
HABITS = {"SLURM_TIME_FORMAT", "SLURM_CLUSTERS", "SLURM_BITSTR_LEN", "SLURM_JSON", "SLURM_YAML"}
# Of a federation (FederationParameters=fed_display) only this cluster: another one's n1 is another node.
# Times in UTC: of local ones an hour a year comes twice.
OURS = {"LC_ALL": "C", "TZ": "UTC0", "SINFO_LOCAL": "1", "SQUEUE_LOCAL": "1"}


def _format(fields: Iterable[str]) -> str:
    return ",".join(f"{field}:|" for field in fields)


def hostlist(names: Iterable[str]) -> str:
    """These nodes, folded as every Slurm reads it: numbers at the very end of a name only. ClusterShell also
    writes rack[1-2]-node1, to which Slurm says "Invalid hostlist" until 23.02 (hostlist.c).
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        alike.setdefault(name.rstrip(digits), []).append(name)
    return ",".join(str(NodeSet.fromlist(group)) for group in alike.values())


def moment(text: str) -> float:
    """Slurm's ISO time, in UTC (see OURS), as seconds since the epoch; 0 for "N/A", "NONE", "Unknown"."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def made(
    own: int,
    array: int,
    task: str,
    het: int,
    state: str,
    reason: str,
    restarts: int,
    uid: int,
    batch: bool,
    requeueable: bool,
    size: int,
    start: float,
    end: float,
    nodes: str,
) -> Job:
    """A job from what Slurm says of it, in the order of JOB_FIELDS. `task` may name several, that wait."""
    if het:
        label = str(het)
    elif task.isdigit():
        label = f"{array}_{task}"
    else:
        label = str(own)
    if state == "REQUEUE_HOLD" and reason != REQUEUED_HELD:
        state = "PENDING"  # the word stays after its release, until it runs
    pending = state == "PENDING"
    return Job(
        id=own,
        label=label,
        state=state,
        completing=state == "COMPLETING",
        reason=reason,
        restarts=restarts,
        uid=uid,
        batch=batch,
        requeueable=requeueable,
        size=size,
        nodes=() if pending else tuple(NodeSet(nodes)),
        started=0.0 if pending else start,
        ended=end,
        begins=start if pending else 0.0,
        het=het > 0,
    )


def job(line: str) -> Job:
    """A job from squeue's line of JOB_FIELDS."""
    own, array, task, het, state, reason, *numbers, start, end, nodes, _ = line.split("|")
    restarts, uid, batch, requeue, size = numbers
    return made(
        int(own),
        int(array) if array.isdigit() else 0,
        task.partition("%")[0],  # "3%2": of those that wait at most two at once
        int(het) if het.isdigit() else 0,
        state,
        reason,
        int(restarts),
        int(uid),
        batch not in ("", "0"),  # 2 after a launch that failed: slurmctld counts it up
        requeue == "1",
        int(size) if size.isdigit() else 1,
        moment(start),
        moment(end),
        nodes,
    )


def flags(state: str) -> frozenset[str]:
    """The words of a node's state, without the signs that sinfo adds."""
    return frozenset(word.upper().rstrip("*~#!%$@^-") for word in state.split("+"))


def node(line: str) -> Node:
    """A node from sinfo's line of NODE_FIELDS; the reason comes last, since it may hold a bar."""
    name, state, since, address, reason = line.split("|", 4)
    reason = reason.removesuffix("|")
    return Node(
        name=name,
        flags=flags(state),
        reason="" if reason == NO_REASON else reason,
        since=int(moment(since)),
        address=address,
    )


def refusal(words: str) -> SlurmError:
    """What Slurm's words of error mean: that it did not answer, or that it answered no."""
    return Unreachable(words) if any(sign in words for sign in SILENT) else Rejected(words)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a command and what it started: a site's wrapper may be what we called, and hold its output open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # what hangs in the kernel is not waited for
        async with asyncio.timeout(1.0):
            await process.communicate()


class Commands:
    """Slurm by its commands. `bin` names their folder, else PATH; `conf` slurm.conf, else Slurm's own way."""

    name = "commands"
    why = "as configured"

    def __init__(self, conf: str = "", bin: str = "", deadline: float = 10.0) -> None:  # noqa: A002
        self.deadline = deadline
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if key not in HABITS and not key.startswith(("SQUEUE_", "SINFO_", "SCONTROL_", "SCANCEL_"))
        } | OURS
        if conf:
            self.environment["SLURM_CONF"] = conf
        self.bin = bin
        self.gate = asyncio.Semaphore(AT_ONCE)
        self.calls = 0
        self.must_act: Callable[[], None] = lambda: None  # asked right before a change; raises to forbid it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends what is kept running for it; here nothing is."""

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self.bin or None)
        if not found:
            raise SlurmError(f"{name} not found in {self.bin or 'PATH'}; install Slurm's client commands")
        return found

    async def _run(self, name: str, *arguments: str) -> str:
        async with self.gate:
            return await self._run_now(name, *arguments)

    async def _change(self, name: str, *arguments: str) -> None:
        async with self.gate:
            self.must_act()
            await self._run_now(name, *arguments)

    async def _run_now(self, name: str, *arguments: str) -> str:
        self.calls += 1
        program = self._program(name)
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self.environment,
                process_group=0,
            )
        except OSError as error:
            raise SlurmError(f"{program}: {error.strerror}") from error
        answered = False
        try:
            async with asyncio.timeout(self.deadline):
                out, err = await process.communicate()
            answered = True
        except TimeoutError:
            raise Unreachable(f"{name}: no answer in {self.deadline:g} s") from None
        finally:
            if not answered:
                await _end(process)
        if process.returncode:
            words = (err or out).decode(errors="replace").strip()
            what = f"{name} {' '.join(arguments[:3])}: {words or f'exit {process.returncode}'}"
            raise refusal(what)
        return out.decode(errors="replace")

    async def nodes(self, names: Iterable[str] = ()) -> dict[str, Node]:
        only = ("-n", wanted) if (wanted := hostlist(names)) else ()
        out = await self._run("sinfo", "-h", "-N", *only, "-O", _format(NODE_FIELDS))
        # A reason may hold a line feed; what follows it is no node.
        lines = [line for line in out.splitlines() if line.count("|") >= len(NODE_FIELDS) - 1]
        return {found.name: found for found in map(node, lines)}

    async def _jobs(self, *which: str) -> list[Job]:
        try:
            out = await self._run("squeue", "-h", "-r", "-t", "all", *which, "-O", _format(JOB_FIELDS))
        except Rejected as error:
            if NO_SUCH_JOB in str(error):
                return []
            raise
        # -r: without it pending tasks of an array share one line, those on their way back among them. Those
        # that were never started are one job yet, which no task's name means.
        found = [job(line) for line in out.splitlines() if line.count("|") == len(JOB_FIELDS)]
        tasks = Counter(one.id for one in found)
        return list(
            {one.id: replace(one, label=str(one.id)) if tasks[one.id] > 1 else one for one in found}.values()
        )

    async def jobs(self, ids: Iterable[int]) -> dict[int, Job]:
        wanted = set(ids)
        if not wanted:
            return {}
        found = await self._jobs("-j", ",".join(map(str, sorted(wanted))))
        return {one.id: one for one in found if one.id in wanted}

    async def jobs_on(self, names: Iterable[str]) -> list[Job]:
        return await self._jobs("-w", hostlist(names))

    async def _set(self, names: Iterable[str], state: str, *more: str) -> None:
        where = hostlist(names)
        await self._change("scontrol", "update", f"NodeName={where}", f"State={state}", *more)

    async def drain(self, names: Iterable[str], reason: str) -> None:
        await self._set(names, "DRAIN", f"Reason={reason}")

    async def down(self, names: Iterable[str], reason: str) -> None:
        await self._set(names, "DOWN", f"Reason={reason}")

    async def resume(self, names: Iterable[str]) -> None:
        await self._set(names, "RESUME")

    async def requeue(self, label: str, incomplete: bool, hold: bool = False) -> None:
        verb = "requeuehold" if hold else "requeue"
        await self._change("scontrol", verb, *(["Incomplete"] if incomplete else []), label)

    async def release(self, label: str) -> None:
        await self._change("scontrol", "release", label)

    async def signal(self, label: str, name: str, steps: str) -> None:
        await self._change("scancel", f"--signal={name}", *(["--batch"] if steps == "batch" else []), label)

    async def start_now(self, label: str) -> None:
        await self._change("scontrol", "update", f"JobId={label}", "StartTime=now")

    async def standing(self, label: str) -> tuple[int, int]:
        lines = await self._run("squeue", "-h", "-t", "all", "-j", label, "-O", _format(STANDING_FIELDS))
        if not lines:
            raise Rejected(f"{label}: {NO_SUCH_JOB}")
        priority, nice, *_ = lines.split("|", 2)
        return int(priority), int(nice)

    async def set_nice(self, label: str, nice: int) -> None:
        await self._change("scontrol", "update", f"JobId={label}", f"Nice={nice}")

    async def reserve(self, name: str, nodes: Iterable[str]) -> None:
        where = ("Users=root", f"Nodes={hostlist(nodes)}", "StartTime=now", "Duration=1")
        await self._change("scontrol", "create", f"ReservationName={name}", *where, "Flags=IGNORE_JOBS")

    async def unreserve(self, name: str) -> None:
        try:
            await self._change("scontrol", "delete", f"ReservationName={name}")
        except Rejected as error:
            if NO_SUCH_RESERVATION not in str(error):
                raise

    async def stranded(self) -> dict[str, str]:
        out = await self._run("squeue", "-h", "-r", "-t", "PENDING", "-O", _format(DEPENDENT_FIELDS))
        said = [line.split("|") for line in out.splitlines() if line.count("|") == len(DEPENDENT_FIELDS)]
        return {label: dependency for label, reason, dependency, _ in said if reason == NEVER}

    async def set_dependency(self, label: str, dependency: str) -> None:
        await self._change("scontrol", "update", f"JobId={label}", f"Dependency={dependency}")

    async def tell(self, label: str, text: str) -> None:
        await self._change("scontrol", "notify", label, text)

    async def comments(self, ids: Iterable[int]) -> dict[int, str]:
        mark = secrets.token_hex(8)
        which = ",".join(map(str, sorted(ids)))
        try:
            out = await self._run("squeue", "-h", "-t", "all", "-j", which, "-o", f"{mark}%A {mark}%k{mark}")
        except Rejected as error:
            if NO_SUCH_JOB in str(error):
                return {}
            raise
        fields = out.split(mark)[1:]  # of each job: its number, its comment, the end of the line
        found = zip(fields[0::3], fields[1::3], strict=False)
        return {int(number): "" if text == "(null)" else text for number, text in found}

    async def set_owners_comment(self, label: str, text: str) -> None:
        await self._change("scontrol", "update", f"JobId={label}", f"Comment={text}")

    async def comment(self, label: str) -> str:
        lines = await self._run("squeue", "-h", "-t", "all", "-j", label, "-O", "admin_comment:4096")
        text = lines.split("\n", 1)[0].strip()
        return "" if text == "(null)" else text

    async def set_comment(self, label: str, text: str) -> None:
        await self._change("scontrol", "update", f"JobId={label}", f"AdminComment={text}")

    async def ping(self) -> dict[str, bool]:
        try:
            said = await self._run("scontrol", "ping")
        except Rejected as error:  # none answers: it fails, and says so all the same
            said = str(error)
        return {host: state == "UP" for host, state in PING.findall(said)}

    async def site(self) -> Site:
        said: dict[str, str] = {}
        for line in (await self._run("scontrol", "show", "config")).splitlines():
            key, _, value = line.partition("=")
            said[key.strip()] = value.strip()
        user = said.get("SlurmUser", "").partition("(")[0]
        release = RELEASE.match(said.get("SLURM_VERSION", ""))
        if not user or not release:
            raise SlurmError("scontrol show config names no SlurmUser and no SLURM_VERSION")
        try:
            uid = int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        except KeyError:
            raise SlurmError(f"SlurmUser {user} is unknown on this host") from None
        return Site(
            uid,
            (int(release[1]), int(release[2])),
            moment(said.get("BOOT_TIME", "")),
            "enable_expedited_requeue" in said.get("SlurmctldParameters", ""),
        )
