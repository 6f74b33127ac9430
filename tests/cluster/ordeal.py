"""The command line, unchanged, put to an ordeal at each kind of step, once for each.

    python ordeal.py die FILE controller|node ...
    python ordeal.py stall:PID FILE controller ...
    python ordeal.py halt:STEP FILE controller ...

die: right after the step its process kills itself. A step is a commit to the ledger, a change in Slurm, a
file that the node's daemon wrote, a message that passed. What died is started again at once by its parent,
from which it is forked so that this takes no second.
stall: while it changes something in Slurm the process PID (slurmctld) stands still until we have given up.
halt: right after the step named the process stands still, until somebody wakes or kills it.

FILE gets the kinds of step where it happened, one a line; while there is no such file nothing happens.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
from pathlib import Path

from slurm_health import cli

CHANGES = (
    "drain",
    "resume",
    "requeue",
    "release",
    "signal",
    "start_now",
    "tell",
    "set_comment",
    "set_nice",
    "reserve",
    "unreserve",
)


class Ordeal:
    """At which kinds of step it has happened."""

    def __init__(self, path):
        self.path = Path(path)
        self.turn = threading.RLock()  # no thread dies between another's step and its note of it

    def first(self, kind):
        """Whether it is to happen at this step: for the first time at one of its kind."""
        with contextlib.suppress(FileNotFoundError):
            if kind not in self.path.read_text().splitlines():
                with self.path.open("a") as file:
                    file.write(f"{kind}\n")
                return True
        return False

    def die(self, *kinds):
        """A step was done, or several at once."""
        with self.turn:
            if sum(self.first(kind) for kind in kinds):
                os.kill(os.getpid(), signal.SIGKILL)


class Halt(Ordeal):
    def __init__(self, path, step):
        super().__init__(path)
        self.step = step

    def die(self, *kinds):
        if self.step in kinds and self.first(self.step):
            os.kill(os.getpid(), signal.SIGSTOP)


def after(owner, name, then, turn=contextlib.nullcontext()):  # noqa: B008 (it holds nothing)
    """Have `then(result, *arguments)` called when a method has returned."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*arguments, **named):
        with turn:
            result = method(*arguments, **named)
            then(result, *arguments, **named)
        return result

    setattr(owner, name, wrapped)


def after_awaited(owner, name, then):
    method = getattr(owner, name)

    @functools.wraps(method)
    async def wrapped(*arguments, **named):
        result = await method(*arguments, **named)
        then(result, *arguments, **named)
        return result

    setattr(owner, name, wrapped)


def changes():
    """What changes something in Slurm, whichever way it goes: (class, name of its method)."""
    from slurm_health.slurm.api import Api
    from slurm_health.slurm.scontrol import Commands

    return [(owner, name) for owner in (Commands, Api) for name in CHANGES if name in vars(owner)]


def die_as_controller(ordeal):
    import sqlalchemy as sa

    import slurm_health.controller
    import slurm_health.web  # noqa: F401  (what is imported before the fork is not imported at each start)
    from slurm_health.ledger import Ledger
    from slurm_health.ledger.schema import actions
    from slurm_health.ledger.store import Store

    here = threading.local()
    together = None  # steps that are about to be committed at once

    @sa.event.listens_for(sa.Engine, "after_cursor_execute")
    def _(connection, cursor, statement, parameters, context, many):
        here.wrote = getattr(here, "wrote", False) or (cursor.rowcount > 0 and not context.is_text)

    def committed(name, result, ledger, *arguments, **named):
        wrote, here.wrote = getattr(here, "wrote", False), False
        said = [word.partition(":")[0] for word in arguments if isinstance(word, str)]
        words = [word for word in said if word.replace(" ", "").isalpha()]
        if name == "settle":
            with ledger.transaction() as connection:
                words.insert(0, connection.scalar(sa.select(actions.c.kind).filter_by(id=arguments[0])))
        if wrote and (result is None or result):  # an empty list, or no: nothing that counts has changed
            step = " ".join(["ledger", name, *words, *sorted(named)])
            if together is None:
                ordeal.die(step)
            else:
                together.append(step)

    @contextlib.contextmanager
    def commit_together(ledger, begin=Ledger.together):
        nonlocal together
        together = []
        with begin(ledger):
            yield
        steps, together = together, None
        ordeal.die(*steps)

    parts = Ledger.__mro__[: Ledger.__mro__.index(Store)]
    for name in {name for part in parts for name in vars(part) if not name.startswith("_")}:
        if callable(getattr(Ledger, name)):
            after(Ledger, name, functools.partial(committed, name))
    Ledger.together = commit_together

    def changed(name, result, slurm, *arguments):
        ordeal.die(" ".join(["slurm", name, *(["incomplete"] if True in arguments else [])]))

    for owner, name in changes():
        after_awaited(owner, name, functools.partial(changed, name))


def stall(ordeal, pid):
    def stalling(name, method):
        @functools.wraps(method)
        async def wrapped(*arguments):
            if not ordeal.first(f"slurm {name}"):
                return await method(*arguments)
            os.kill(pid, signal.SIGSTOP)
            try:
                return await method(*arguments)
            finally:
                os.kill(pid, signal.SIGCONT)

        return wrapped

    for owner, name in changes():
        setattr(owner, name, stalling(name, getattr(owner, name)))


def die_as_node(ordeal):
    from slurm_health import node, wire
    from slurm_health.probes.kernel import KernelLog
    from slurm_health.sinks.verdict import VerdictFile
    from slurm_health.spool import Spool
    from slurm_health.state import State

    news = threading.local()
    said = ""

    def read(records, *_):
        if records:
            ordeal.die("kernel log read")

    def added(new, *_):
        if new:
            ordeal.die("spool added")

    def receipted(_, spool, *__):
        ordeal.die(f"spool receipted, {'some' if spool.waiting else 'nothing'} left")

    def written(_, verdict, state, __):
        nonlocal said
        if said != state:
            said = state
            ordeal.die(f"verdict {state}")

    def composed(report, *_):
        news.any = bool(report.opened)
        if news.any:
            ordeal.die("report composed")

    def answered(decision, *_):
        if threading.current_thread().name == "decisions":
            ordeal.die(f"decision {'refuse' if decision.refuse else 'accept'}")
        elif news.any:
            ordeal.die("report answered")

    after(KernelLog, "read", read)
    after(Spool, "add", added, ordeal.turn)
    after(Spool, "receipted", receipted)
    after(VerdictFile, "write", written)
    after(State, "save", lambda _, __, name, *___, **____: ordeal.die(f"saved {name}"))
    after(node.NodeDaemon, "compose", composed)
    after(wire, "decision", answered)


def main():
    how, file, *words = sys.argv[1:]
    if how.startswith("halt:"):
        die_as_controller(Halt(file, how.removeprefix("halt:")))
        sys.exit(cli.main(words, prog_name="slurm-health"))
    if how == "die":
        {"controller": die_as_controller, "node": die_as_node}[words[0]](Ordeal(file))
    else:
        stall(Ordeal(file), int(how.removeprefix("stall:")))
    child, ended = 0, False

    def end(*_):
        nonlocal ended
        ended = True
        if child:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while not ended:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            sys.exit(cli.main(words, prog_name="slurm-health"))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = 0
        if status != -signal.SIGKILL:
            sys.exit(abs(status))


if __name__ == "__main__":
    main()
