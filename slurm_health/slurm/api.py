"""Slurm through pyslurm, which lives in a process of its own (worker.py) that can be ended at any moment.

What pyslurm cannot say goes by the commands: `requeue Incomplete`, and whatever acts on a task of an array or
on a heterogeneous job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from slurm_health.model import Job, Node
from slurm_health.slurm import Site, SlurmError, Unreachable
from slurm_health.slurm.scontrol import NO_REASON, RELEASE, Commands, flags, hostlist, made, refusal

log = logging.getLogger(__name__)

LARGEST = 1 << 28  # bytes of one answer; 12,500 nodes are two million
CHANGES = ("drain", "down", "resume", "release", "start_now", "tell", "set_comment")
DEATHS = 5  # in a row, with no answer between them: what is chosen automatically is given up for good


class Died(SlurmError):
    """The process ended, or said what is no answer."""


class Absent(Died):
    """pyslurm cannot be imported."""


class ByCommands(Exception):
    """pyslurm cannot say this."""


class Worker:
    """The process, started when it is first asked and again after it was ended. One call at a time."""

    def __init__(self, environment: Mapping[str, str], deadline: float) -> None:
        self.environment, self.deadline = dict(environment), deadline
        self.process: asyncio.subprocess.Process | None = None
        self.listening: asyncio.Task[None] | None = None
        self.version = ""
        self.last_words = ""  # on its standard error
        self.turn = asyncio.Lock()
        self.deaths = 0
        self.calls = 0
        self.must_act: Callable[[], None] = lambda: None  # asked right before a change; raises to forbid it

    async def ask(self, *call: Any) -> Any:
        """The answer to a call; to none: pyslurm's version. Waiting for one's turn counts to the deadline."""
        turn = False
        try:
            async with asyncio.timeout(self.deadline):
                await self.turn.acquire()
                turn = True
                return await self._ask(call)
        except TimeoutError:
            raise Unreachable(f"pyslurm: no answer in {self.deadline:g} s") from None
        finally:
            if turn:
                self.turn.release()

    async def _ask(self, call: tuple[Any, ...]) -> Any:
        whole = False
        try:
            if self.process is None or self.process.returncode is not None:
                await self.end()
                await self._start()
            said = await self._exchange(call) if call else {"answer": self.version}
            self.deaths = 0
            if "refused" in said:
                error = refusal(f"pyslurm {call[0]}: {said['refused']}")
                # Its configuration may be older than Slurm's, which only an import reads.
                whole = not isinstance(error, Unreachable)
                raise error
            whole = True
            if "failed" in said:
                raise SlurmError(f"pyslurm {call[0]}: {said['failed']}")
            if "commands" in said:
                raise ByCommands
            return said["answer"]
        except Died:
            self.deaths += 1
            raise
        finally:
            if not whole:
                await self.end()

    async def _start(self) -> None:
        self.last_words = ""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "slurm_health.slurm.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            process_group=0,
            limit=LARGEST,
        )
        assert self.process.stderr
        self.listening = asyncio.create_task(self._listen(self.process.stderr))
        said = await self._hear(0)
        if "failed" in said:
            raise Absent(f"pyslurm does not import: {said['failed']}")
        self.version = said["answer"]

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            if words := line.decode(errors="replace").strip():
                self.last_words = words

    async def _exchange(self, call: tuple[Any, ...]) -> dict[str, Any]:
        assert self.process
        assert self.process.stdin
        self.calls += 1
        if call[0] in CHANGES:
            self.must_act()
        self.process.stdin.write(json.dumps([self.calls, *call]).encode() + b"\n")
        with contextlib.suppress(ConnectionError):  # it is heard below that it is gone
            await self.process.stdin.drain()
        return await self._hear(self.calls)

    async def _hear(self, number: int) -> dict[str, Any]:
        assert self.process
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if not line:
            status = await self.process.wait()
            if self.listening:
                await self.listening
            how = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise Died(f"pyslurm's process {how}{self.last_words and ': '}{self.last_words}")
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("to") == number:
                return said
        raise Died(f"pyslurm's process said what is no answer: {line[:80]!r}")

    async def end(self) -> None:
        """End the process, whatever it does. What hangs in the kernel is not waited for."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin
        process.stdin.close()
        assert process.stdout
        with contextlib.suppress(TimeoutError, ValueError):
            async with asyncio.timeout(1.0):
                while await process.stdout.read(1 << 16):
                    pass
                if self.listening:
                    await self.listening
                await process.wait()


class Api(Commands):
    """Slurm by pyslurm. With `auto` by its commands until Slurm has said its release, for good where pyslurm
    is absent or made for another release, and from the moment on that it does nothing but die.

    Leave it as a context manager does, or its process lives until this one ends.
    """

    def __init__(self, conf: str = "", bin: str = "", deadline: float = 10.0, auto: bool = False) -> None:  # noqa: A002
        super().__init__(conf, bin, deadline)
        self.worker = Worker(self.environment, deadline)
        self.worker.must_act = lambda: self.must_act()
        self.auto = auto
        self.chosen = not auto  # whether pyslurm is what is used
        self.why = "Slurm has not said its release yet" if auto else "as configured"
        self.decided = not auto

    @property
    def name(self) -> str:  # type: ignore[override]
        return "pyslurm" if self.chosen else "commands"

    async def __aenter__(self) -> Self:
        """Absent where pyslurm was asked for by name and is not there."""
        if not self.auto:
            try:
                await self.worker.ask()
            except Absent:
                await self.worker.end()
                raise
            except SlurmError as error:  # may pass
                log.error("Slurm: %s", error)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.end()

    # Which of the two

    def _decide(self, chosen: bool, why: str) -> None:
        self.decided, self.chosen, self.why = True, chosen, why
        log.info("Slurm by %s: %s", self.name, why)

    async def site(self) -> Site:
        site = await super().site()
        if not self.decided:
            await self._choose(site.release)
        return site

    async def _choose(self, running: tuple[int, int]) -> None:
        try:
            version = await self.worker.ask()
            installed = _release(await self._run("scontrol", "--version"))
        except SlurmError as error:
            self._decide(False, str(error))
            await self.worker.end()
            return
        if _release(version) == installed == running:
            self._decide(True, f"pyslurm {version} is for the running Slurm {_words(running)}")
        else:
            said = f"pyslurm {version} with Slurm {_words(installed)} here"
            self._decide(False, f"{said} is not for the running Slurm {_words(running)}")
            await self.worker.end()

    async def _ask(self, *call: Any) -> Any:
        if not self.chosen:
            raise ByCommands
        try:
            return await self.worker.ask(*call)
        except Died as error:
            if self.auto and self.worker.deaths >= DEATHS:
                self._decide(False, f"{error}, {DEATHS} times in a row; until this daemon starts anew")
            raise

    async def _act(self, call: str, label: str, *arguments: Any) -> Any:
        if not label.isdigit():
            raise ByCommands
        return await self._ask(call, int(label), *arguments)

    # The protocol

    async def nodes(self, names: Iterable[str] = ()) -> dict[str, Node]:
        wanted = list(names)
        try:
            rows = await self._ask("nodes", wanted)
        except ByCommands:
            return await super().nodes(wanted)
        return {
            name: Node(name, flags(state), "" if reason == NO_REASON else reason, since, address)
            for name, state, reason, since, address in rows
        }

    async def jobs(self, ids: Iterable[int]) -> dict[int, Job]:
        wanted = sorted(set(ids))
        if not wanted:
            return {}
        try:
            rows = await self._ask("jobs", wanted)
        except ByCommands:
            return await super().jobs(wanted)
        return {found.id: found for found in (made(*row) for row in rows)}

    async def jobs_on(self, names: Iterable[str]) -> list[Job]:
        wanted = list(names)
        try:
            rows = await self._ask("jobs_on", wanted)
        except ByCommands:
            return await super().jobs_on(wanted)
        return [made(*row) for row in rows]

    async def drain(self, names: Iterable[str], reason: str) -> None:
        wanted = list(names)
        try:
            await self._ask("drain", hostlist(wanted), reason)
        except ByCommands:
            await super().drain(wanted, reason)

    async def down(self, names: Iterable[str], reason: str) -> None:
        wanted = list(names)
        try:
            await self._ask("down", hostlist(wanted), reason)
        except ByCommands:
            await super().down(wanted, reason)

    async def resume(self, names: Iterable[str]) -> None:
        wanted = list(names)
        try:
            await self._ask("resume", hostlist(wanted))
        except ByCommands:
            await super().resume(wanted)

    async def release(self, label: str) -> None:
        try:
            await self._act("release", label)
        except ByCommands:
            await super().release(label)

    async def start_now(self, label: str) -> None:
        try:
            await self._act("start_now", label)
        except ByCommands:
            await super().start_now(label)

    async def tell(self, label: str, text: str) -> None:
        try:
            await self._act("tell", label, text)
        except ByCommands:
            await super().tell(label, text)

    async def comment(self, label: str) -> str:
        try:
            said: str = await self._act("comment", label)
        except ByCommands:
            said = await super().comment(label)
        return said

    async def set_comment(self, label: str, text: str) -> None:
        try:
            await self._act("set_comment", label, text)
        except ByCommands:
            await super().set_comment(label, text)


def _release(version: str) -> tuple[int, int]:
    found = re.search(RELEASE, version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _words(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]:02}"


def reach(backend: str, conf: str = "", bin: str = "", deadline: float = 10.0) -> Commands:  # noqa: A002
    """The way to Slurm that is configured: "auto", "pyslurm" or "commands"."""
    if backend == "commands":
        return Commands(conf, bin, deadline)
    return Api(conf, bin, deadline, auto=backend == "auto")
