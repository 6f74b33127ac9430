"""The whole story, told as it happens: a GPU breaks under a job, and the job comes back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ClusterShell.NodeSet import NodeSet

from slurm_health.sandbox import SandboxError, cluster
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.daemon import await_until

NODES, GPUS = 4, 8
GPU = 3
STEPS = 3  # done before the fault, so that there is something to lose
PATIENCE = 60.0  # seconds that a turn of the story may take, on a loaded machine
BACK_WITHIN = 30.0  # seconds after which the job is given up

JOB = r"""#!/bin/sh
#SBATCH --job-name=train --nodes=2 --gpus-per-node=8 --ntasks-per-node=1
#SBATCH --requeue --open-mode=append --output=train.out
# "Trains" on two nodes, a step a second. Rank 0 saves each step; whoever starts goes on from the saved one.
srun sh -c '
    say() { echo "$(date +%T.%3N) $SLURMD_NODENAME: $*"; }
    [ "$SLURM_PROCID" = 0 ] || exec sleep infinity
    step=0
    if [ -s checkpoint ]; then
        read -r step <checkpoint
        say "start $((SLURM_RESTART_COUNT + 1)) on $SLURM_JOB_NODELIST, resumed from step $step"
    else
        say "start 1 on $SLURM_JOB_NODELIST, from the beginning"
    fi
    while sleep 1; do
        step=$((step + 1))
        echo "$step" >checkpoint.new && mv checkpoint.new checkpoint
        say "step $step"
    done'
"""
RESUMED = re.compile(r"^([\d:]+\.\d+) \S+: start \d+ on (\S+), resumed from step (\d+)$", re.MULTILINE)
STEP = re.compile(r"^[\d:.]+ \S+: step (\d+)$", re.MULTILINE)

# How an act of the controller's is told.
ACTS = {
    "drain": "{target} is drained: no new job will start there",
    "tell": "job {target} is told why, in its own output",
    "requeue": "job {target} is requeued",
    "lift": "job {target} goes before all that wait",
    "keep": "{detail}, which is healthy, is kept for it",
    "start": "its wait is ended: Slurm alone would keep a requeued job waiting for two minutes",
    "lower": "job {target} has its own priority again",
    "release": "job {target} is released",
}


def demo(box: Sandbox, say: Callable[[str], object], keep: bool = False) -> int:
    """Start a sandbox, break a GPU under a checkpointing job, tell what becomes of it, end the sandbox.

    0 only if the job really ran again elsewhere from its checkpoint, else 1, and the logs are kept. The
    sandbox is ended whatever happens, also when interrupted, unless `keep`.
    """
    with signals_as_exceptions():
        heading(
            say, "1. A cluster to break",
            f"A real Slurm on this machine: {NODES} nodes of {GPUS} GPUs. Only the hardware is fake.",
        )  # fmt: skip
        command(say, "slurm-health sandbox up")
        box.up(nodes=NODES, gpus=GPUS, progress=lambda line: say(f"  {line}"))
        try:
            try:
                missing = Story(InSandbox(box), say).tell()
            except (SandboxError, subprocess.TimeoutExpired) as error:
                missing = [str(error)]
            if missing:
                tell_missing(say, missing)
                say(f"logs of all daemons and the job's output: {_logs(box)}")
            return 1 if missing else 0
        finally:
            if keep:
                say(f"\nThe sandbox stays up in {box.folder}. To look around:")
                command(say, f'eval "$(slurm-health sandbox --dir {box.folder} env)"')
                command(say, "squeue; sinfo -R; slurm-health status")
                command(say, "slurm-health sandbox down")
            else:
                with uninterrupted():
                    say("")
                    box.down(say)


class Place(Protocol):
    """A cluster that is up, with a folder for the job."""

    def write(self, name: str, text: str) -> None:
        """A file in the job's folder."""

    def read(self, name: str) -> str:
        """The same read, "" where it is not there."""

    def run(self, *argv: str) -> str:
        """What a command prints in the job's folder; SandboxError where it fails."""

    def inject(self, node: str, fault: str, gpu: int) -> dict[str, Any]:
        """As Sandbox.inject."""

    def injecting(self, node: str, words: str) -> str:
        """The command that a person would type for it."""

    def node_log(self, node: str) -> str:
        """What the daemon of a node has logged."""


class InSandbox:
    """The sandbox as the place."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box

    def write(self, name: str, text: str) -> None:
        (self.box.folder / name).write_text(text)

    def read(self, name: str) -> str:
        try:
            return (self.box.folder / name).read_text()
        except FileNotFoundError:
            return ""

    def run(self, *argv: str) -> str:
        words = list(argv)
        env = {**os.environ, **self.box.env(), "PATH": cluster._PATH}
        if argv[0] == "slurm-health":
            words[:1] = [sys.executable, "-m", "slurm_health"]
            home = str(Path(__file__).resolve().parents[2])
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            words, env=env, cwd=self.box.folder, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise SandboxError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def inject(self, node: str, fault: str, gpu: int) -> dict[str, Any]:
        return self.box.inject(node, fault, gpu=gpu)

    def injecting(self, node: str, words: str) -> str:
        return f"slurm-health sandbox inject {node} {words}"

    def node_log(self, node: str) -> str:
        return (self.box.layout.node(node) / "log/node.out").read_text()


class Story:
    """One run of the story on a cluster that is up."""

    def __init__(self, place: Place, say: Callable[[str], object]) -> None:
        self.place, self.say = place, say
        self.job = ""

    def tell(self) -> list[str]:
        """What is missing for a happy end, nothing if nothing."""
        self._submit()
        broken = self._where()[-1]
        before, fault = self._break(broken)
        incident = self._recovery(broken)
        self._timeline(fault, incident)
        self._what_people_see(broken, incident)
        return self._judge(broken, before, incident)

    # The acts

    def _submit(self) -> None:
        heading(
            self.say, "2. A training job on two of the nodes",
            "A plain batch script, a step a second. It saves each step, and starts from the one saved last.",
        )  # fmt: skip
        self.place.write("train.sh", JOB)
        command(self.say, "sbatch train.sh")
        self.job = self.place.run("sbatch", "--parsable", "train.sh").strip()
        self._await(lambda: self._steps() >= STEPS, f"job {self.job} to do {STEPS} steps")
        for line in self._text().splitlines():
            self.say(f"  {line}")

    def _break(self, node: str) -> tuple[int, dict[str, Any]]:
        heading(
            self.say, f"3. GPU {GPU} of {node} falls off the bus",
            "The kernel log gets the driver's line (Xid 79), and every NVML call on that GPU says: lost.\n"
            "From here on nobody lifts a finger.",
        )  # fmt: skip
        command(self.say, self.place.injecting(node, f"gpu-off-bus --gpu {GPU}"))
        before = self._steps()
        return before, self.place.inject(node, "gpu-off-bus", gpu=GPU)

    def _recovery(self, node: str) -> dict[str, Any]:
        """The incident, when its job's story is at its end or patience is."""
        found: dict[str, Any] = {}

        def over() -> bool:
            rows = json.loads(
                self.place.run("slurm-health", "incidents", "list", "--all", "--json", "--node", node)
            )
            found.update(next((row for row in rows if row["jobs"]), rows[-1] if rows else {}))
            return bool(found.get("jobs")) and all(job["settled"] for job in found["jobs"])

        back = await_until(lambda: RESUMED.search(self._text()), BACK_WITHIN)
        await_until(over, PATIENCE if back else 0.0)
        if resumed := RESUMED.search(self._text()):
            await_until(lambda: self._steps() >= int(resumed[3]) + 2, PATIENCE)
        return found

    def _timeline(self, fault: dict[str, Any], incident: dict[str, Any]) -> None:
        began = datetime.fromtimestamp(fault["at"]).astimezone()
        events = [(began, f"GPU {GPU} of {fault['node']} breaks")]
        if incident:
            what = f"{incident['code']}({incident['device']})"
            if seen := self._seen(fault["node"], incident["code"]):
                events.append((seen, f"the daemon on {fault['node']} sees it: {what}"))
            number = incident["id"]
            events.append((_moment(incident["opened"]), f"the controller hears of it: incident {number}"))
        for act in incident.get("actions", []):
            words = ACTS.get(act["kind"], act["kind"] + " {target}").format(**act)
            if act["outcome"] != "done":
                words += f" ({act['outcome'] or 'under way'})"
            events.append((_moment(act["done"] or act["intended"]), words))
        for job in incident.get("jobs", []):
            if job["running"]:
                words = f"the controller sees job {job['job']} run again, on {job['nodes']}"
                events.append((_moment(job["running"]), words))
        if resumed := RESUMED.search(self._text()):
            events.append((_on_the_day(resumed[1], began), f"it has resumed from step {resumed[3]}"))
        self.say("")
        # The fault's time is noted after it is made, a log's is cut to the millisecond: none came before.
        events = [(max(at, began), words) for at, words in events]
        for at, words in sorted(events, key=lambda event: event[0]):
            clock = at.isoformat(sep=" ", timespec="milliseconds")[11:23]
            self.say(f"  {clock}  {(at - began).total_seconds():+6.2f} s  {words}")

    def _what_people_see(self, node: str, incident: dict[str, Any]) -> None:
        heading(self.say, "4. What the admin sees")
        self._show("sinfo", "-n", node, "-o", "%n %T: %E")
        if incident:
            self._show("slurm-health", "incidents", "show", str(incident["id"]))
        heading(self.say, "5. What the job's owner sees")
        self._show("cat", "train.out")

    def _judge(self, node: str, before: int, incident: dict[str, Any]) -> list[str]:
        missing = []
        reason = self.place.run("sinfo", "-h", "-n", node, "-o", "%T %E").strip()
        if not re.match(r"drain\S* slurm-health: GPU_XID_79\(", reason):
            missing.append(f"{node} is not drained with our reason, sinfo says: {reason}")
        if not incident:
            missing.append("the controller knows no incident")
        for kind in ("drain", "requeue"):
            acts = [act["outcome"] for act in incident.get("actions", []) if act["kind"] == kind]
            if "done" not in acts:
                missing.append(f"the incident tells of no {kind} that was done: {acts or 'nothing'}")
        state, restarts, nodes, *_ = self.place.run(
            "squeue", "-h", "-t", "all", "-j", self.job, "-O", "State:|,RestartCnt:|,NodeList:|"
        ).split("|")
        elsewhere = nodes and node not in NodeSet(nodes)
        if state != "RUNNING" or restarts != "1" or not elsewhere:
            missing.append(f"job {self.job} is {state} on {nodes or 'no node'} after {restarts} restarts")
        resumed = RESUMED.search(self._text())
        if not resumed:
            missing.append(f"job {self.job} has not resumed: its output does not say so")
        elif not 0 < before <= int(resumed[3]) < self._steps():
            missing.append(f"job {self.job} resumed from step {resumed[3]}, after {before} steps done")
        if not missing and resumed:
            self.say(
                f"\nDone: {incident['seconds_to_drained']:.2f} s from the fault to the drain,"
                f" {incident['seconds_to_running']:.1f} s until job {self.job} ran on healthy nodes,"
                f" resumed from step {resumed[3]}."
            )
        return missing

    # Looking

    def _where(self) -> list[str]:
        return list(NodeSet(self.place.run("squeue", "-h", "-j", self.job, "-o", "%N").strip()))

    def _text(self) -> str:
        return self.place.read("train.out")

    def _steps(self) -> int:
        """The last step in the job's output."""
        done = STEP.findall(self._text())
        return int(done[-1]) if done else 0

    def _seen(self, node: str, code: str) -> datetime | None:
        """When the node's daemon logged the finding."""
        pattern = rf"^(\d{{4}}-\d\d-\d\d [\d:]+,\d+) ERROR {code}\("
        line = re.search(pattern, self.place.node_log(node), re.MULTILINE)
        return datetime.strptime(line[1], "%Y-%m-%d %H:%M:%S,%f").astimezone() if line else None

    def _show(self, *argv: str) -> None:
        """A command as a user would type it, and what it prints."""
        command(self.say, " ".join(f'"{word}"' if " " in word else word for word in argv))
        self.say(textwrap.indent(self.place.run(*argv).rstrip(), "  "))

    def _await(self, condition: Callable[[], object], what: str) -> None:
        if not await_until(condition, PATIENCE):
            raise SandboxError(f"waited {PATIENCE:.0f} s for {what}")


def tell_missing(say: Callable[[str], object], missing: list[str]) -> None:
    say("\nTHE JOB IS NOT BACK as it should be:")
    for one in missing:
        say(textwrap.indent(one, "  ")[:2000])


def heading(say: Callable[[str], object], title: str, text: str = "") -> None:
    say(f"\n{title}\n{'-' * len(title)}" + (f"\n{text}" if text else ""))


def command(say: Callable[[str], object], line: str) -> None:
    say(f"\n$ {line}")


def _moment(iso: str) -> datetime:
    return datetime.fromisoformat(iso)


def _on_the_day(clock: str, began: datetime) -> datetime:
    """A time of day of the job's output as a moment not long before or after `began`."""
    at = datetime.combine(began.date(), datetime.strptime(clock, "%H:%M:%S.%f").time(), began.tzinfo)
    return at if at > began - timedelta(hours=12) else at + timedelta(days=1)


def _logs(box: Sandbox) -> Path:
    """A copy of what tells why, which outlives the sandbox."""
    kept = Path(tempfile.mkdtemp(prefix="slurm-health-demo-"))
    for pattern in ("*/*.log", "*/*.out", "nodes/*/log/*", "train.*", "etc/*"):
        for path in box.folder.glob(pattern):
            with contextlib.suppress(OSError):
                target = kept / path.relative_to(box.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return kept


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C does: what was started is ended."""

    def unwind(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave half a cluster behind; the end takes a few seconds."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
