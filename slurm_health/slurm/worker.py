"""What speaks to Slurm through pyslurm, in a process of its own: `python -m slurm_health.slurm.worker`.

One JSON line asks: [number, call, argument, ...]. One answers, with that number as "to": "answer", or
"refused" with Slurm's words, "failed" with ours, or "commands" for what must go by them. The first line says,
to 0, which pyslurm it is. `import pyslurm` reads Slurm's configuration, and may hang on it or end the
process; every call holds the interpreter's lock. Both happen to this process alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

FEW = 4  # of so many each is asked for by name: one of 12,500 nodes costs a hundredth of all of them
UNKNOWN_NODE = ("Invalid node name", "does not exist")
UNKNOWN_JOB = ("Invalid job id",)


class NotAlone(Exception):
    """Slurm's commands know more than one job by this number (an array, a heterogeneous job), pyslurm one."""


def _text(read: Callable[[], str | None]) -> str:
    """A string of Slurm's. Nobody's words that are no UTF-8 may cost us the rest of the list."""
    try:
        return read() or ""
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}"


def node(one: Any) -> list[Any]:
    """Name, state words, reason, its time, address."""
    return [one.name, one.state, _text(lambda: one.reason), one.reason_time or 0, one.address or ""]


def job(one: Any) -> list[Any]:
    """In the order of scontrol.made."""
    task = one.array_tasks_waiting or ""
    if one.array_id and not task:
        task = str(one.array_task_id or 0)  # pyslurm says None for 0
    end = one.end_time or 0
    if one.time_limit is None and end > time.time():
        end = 0  # Slurm's year for a job without a limit
    return [
        one.id,
        one.array_id or 0,
        task,
        one.heterogeneous_id or 0,
        one.state,
        _text(lambda: one.state_reason) or "None",  # pyslurm says None for "None"
        one.requeue_count or 0,
        one.user_id,
        bool(one.is_batch_job),
        bool(one.is_requeueable),
        one.num_nodes or 0,
        one.start_time or 0,
        end,
        one.allocated_nodes or "",
    ]


class Calls:
    """What can be asked for, by name."""

    def __init__(self, pyslurm: Any) -> None:
        self.pyslurm = pyslurm

    def _each(self, load: Callable[[Any], Any], wanted: Sequence[Any], unknown: tuple[str, ...]) -> list[Any]:
        found = []
        for name in wanted:
            try:
                found.append(load(name))
            except self.pyslurm.PyslurmError as error:
                if not any(words in str(error) for words in unknown):
                    raise
        return found

    def nodes(self, names: list[str]) -> list[Any]:
        if 0 < len(names) <= FEW:
            return [node(one) for one in self._each(self.pyslurm.Node.load, names, UNKNOWN_NODE)]
        wanted = set(names)
        everyone = self.pyslurm.Nodes.load().values()
        return [node(one) for one in everyone if not wanted or one.name in wanted]

    def jobs(self, ids: list[int]) -> list[Any]:
        if len(ids) <= FEW:
            found = self._each(self._job, ids, UNKNOWN_JOB)
        else:
            found = self.pyslurm.Jobs.load().values()
        wanted = set(ids)
        return [job(one) for one in found if one.id in wanted]

    def _job(self, number: int) -> Any:
        try:
            return self.pyslurm.Job.load(number)
        except KeyError:  # of an array's task that has ended it misses the steps, which other tasks have
            return self.pyslurm.Jobs.load()[number]

    def jobs_on(self, names: list[str]) -> list[Any]:
        wanted = set(names)
        expanded = self.pyslurm.utils.helpers.nodelist_from_range_str
        return [
            job(one)
            for one in self.pyslurm.Jobs.load().values()
            if (held := one.allocated_nodes) and not wanted.isdisjoint(expanded(held))
        ]

    def drain(self, where: str, reason: str) -> None:
        self.pyslurm.Node(where).modify(self.pyslurm.Node(state="DRAIN", reason=reason))

    def down(self, where: str, reason: str) -> None:
        self.pyslurm.Node(where).modify(self.pyslurm.Node(state="DOWN", reason=reason))

    def resume(self, where: str) -> None:
        self.pyslurm.Node(where).modify(self.pyslurm.Node(state="RESUME"))

    def _single(self, number: int) -> Any:
        """The job, where its number alone names it."""
        one = self._job(number)
        if one.id != number or one.array_id or one.heterogeneous_id:
            raise NotAlone
        return one

    def release(self, number: int) -> None:
        self._single(number).release()

    def start_now(self, number: int) -> None:
        changes = self.pyslurm.JobSubmitDescription(begin_time="now")
        self._single(number).modify(changes)

    def tell(self, number: int, text: str) -> None:
        self._single(number).notify(text)

    def comment(self, number: int) -> str:
        return self._single(number).admin_comment or ""

    def set_comment(self, number: int, text: str) -> None:
        self._single(number).modify(self.pyslurm.JobSubmitDescription(admin_comment=text))


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(to: int, **words: Any) -> None:
        out.write(json.dumps({"to": to, **words}) + "\n")
        out.flush()

    try:
        import pyslurm  # type: ignore[import-not-found]
    except Exception as error:
        say(0, failed=f"{type(error).__name__}: {error}")
        return
    say(0, answer=pyslurm.__version__)
    calls = Calls(pyslurm)
    for line in sys.stdin:
        number, call, *arguments = json.loads(line)
        try:
            answer = getattr(calls, call)(*arguments)
        except pyslurm.PyslurmError as error:
            say(number, refused=str(error))
        except NotAlone:
            say(number, commands=True)
        except Exception as error:
            say(number, failed=f"{type(error).__name__}: {error}")
        else:
            say(number, answer=answer)


if __name__ == "__main__":
    main()
