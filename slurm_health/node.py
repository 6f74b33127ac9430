"""The node's daemon: senses, judges, publishes its verdict, reports.

One thread and one selector: kernel records and NVML's answers wake it at once, links are looked at every
second, their counters every 30 s, the host every minute; what is due together wakes it together. When a rule
has waited as long as it must, its probe looks again, out of turn. Whatever may hang (NVML, sysfs of a dead
adapter, the controller) lives in a process or on a thread of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import secrets
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from slurm_health import baseline, cards, identity, rules, signing, systemd, wire
from slurm_health.config import Config
from slurm_health.host import Host
from slurm_health.link import Link
from slurm_health.model import Finding, Reading, Report, Severity
from slurm_health.probes import gpu, kernel, process, site
from slurm_health.probes.disk import disk
from slurm_health.probes.infiniband import InfiniBand
from slurm_health.probes.memory import memory
from slurm_health.probes.nic import Nic
from slurm_health.probes.pcie import Pcie
from slurm_health.probes.runner import Runner
from slurm_health.probes.system import System
from slurm_health.sinks.verdict import VerdictFile, word
from slurm_health.spool import Spool
from slurm_health.state import State
from slurm_health.tenants import Tenants

log = logging.getLogger(__name__)

FIRST_PASS = 20.0  # seconds after which we call ourselves ready, whatever is still out
RETRY = 2.0  # seconds between tries of a driver that failed
ALONE = 60.0  # seconds without the controller after which its decision no longer holds
BACKLOG = 600.0  # seconds before our start; older kernel lines are not news when nothing was remembered
LINK_DEADLINE = 5.0
PROCESS_DEADLINE = 5.0
HOST_DEADLINE = 30.0
SETTLES = 120.0  # seconds after a boot in which links may still train, and subnet managers look for them
STUCK = 120.0  # seconds after which a probe that is still out is a finding
SAVE = 60.0  # seconds between savings of what counts up within windows
TICK = 1.0
BEAT = 3.0  # seconds: the verdict is rewritten by the second beat after the last time, within its 10 s


class NodeDaemon:
    """`run` returns when a signal asked for it. `root` stands for the machine, `run_dir` holds the verdict
    and the cards, `state_dir` what must outlive a restart."""

    def __init__(self, config: Config, name: str, root: str, run_dir: Path, state_dir: Path) -> None:
        self.config, self.name = config, name
        self.host = Host(root)
        self.boot = self.host.boot_id()
        self.state = State(state_dir)
        for folder in (run_dir, run_dir / "jobs"):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            folder.chmod(0o755)
        self.verdict = VerdictFile(run_dir)
        self.spool = Spool(state_dir / "spool")
        self.book = rules.load(config.rule)
        self.settled = time.monotonic() + SETTLES - self.host.booted()
        self.expectations = baseline.Expectations(**config.expected(name))
        self.baseline = baseline.begin(baseline.recall(self.state.value("baseline.json")), self.boot)
        self.memory = rules.begin(self.state.value("memory.json"), self.boot)
        self.saved = time.monotonic()
        self.names = identity.recall(self.state.value("names.json"))
        self.standing: tuple[Finding, ...] = tuple(
            _sendable(identity.named(found, self.names))
            for found in rules.judge(self.book, (), self.memory, time.time())[0]
            if found.lasting
        )
        self.life, self.numbers = secrets.token_hex(8), itertools.count(1)  # of its reports
        self.blind: dict[str, str] = {}
        self.decision = wire.Decision()
        minors = {
            minor: device
            for device, its in self.baseline.gpus.items()
            if isinstance(minor := its.get("minor"), int) and its.get("boot") == self.boot
        }
        self.tenants = Tenants(run_dir / "jobs", name, config.slurm.conf, minors)
        self.boards: tuple[Reading, ...] = ()  # NVML's last
        self.pressing: set[tuple[int, int, bool]] = set()  # runs that the controller must hear of at once
        self.inbox: deque[Callable[[], None]] = deque()
        self.lock = threading.Lock()  # over what `compose` reads from the link's thread
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stopping = False
        # A clock for holds that does not jump: the epoch once, then steady.
        self.epoch = time.time() - time.monotonic()
        self.worker: gpu.Worker | None = None
        if config.probes.gpu:
            self.worker = gpu.Worker(
                self.host,
                os.environ.get(gpu.LIBRARY, ""),
                config.probes.gpu_deadline,
                run_dir,
                expected=bool(self.expectations.gpus or self.baseline.gpus),
            )
        self.log: kernel.KernelLog | None = None
        if config.probes.kernel:
            self.log = kernel.KernelLog(self.host, self._cursor())
        self.runner = Runner()
        self.links: dict[str, InfiniBand | Nic] = {}
        if config.probes.infiniband:
            self.links["infiniband"] = InfiniBand(self.host, self.expectations.ignored)
        if config.probes.nic:
            self.links["nic"] = Nic(self.host)
        hosted: dict[str, Callable[[], Iterable[Reading]]] = {
            "pcie": Pcie(self.host).look,
            "memory": partial(memory, self.host),
            "disk": partial(disk, self.host),
            "system": System(self.host, self.expectations.services).look,
        }
        self.hosted = {name: call for name, call in hosted.items() if getattr(config.probes, name)}
        # what the first pass still owes
        self.stuck = {found.device for found in self.standing if found.code == "PROBE_STUCK"}
        self.unseen = {*self.links, *self.hosted, *(["gpu"] if self.worker else [])}
        self.gpu_due = math.inf  # when NVML is asked next (monotonic)
        self.owed: set[str] = set()  # links whose next look is at everything
        self.waits: dict[str, float] = {}  # by probe, when the first of its rules has waited long enough
        self.waited = 0.0  # until when none has
        self.link = Link(
            config.addresses,
            self._signature,
            name,
            self.compose,
            lambda *answer: self._post(partial(self._receipt, *answer)),
            lambda answer: self._post(partial(self._decide, answer)),
        )
        self.signed: signing.Signature | None = None

    # The loop

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        selector.register(self.wake_read, selectors.EVENT_READ, self._drain)
        selector.register(self.runner.fileno(), selectors.EVENT_READ, self._collect)
        if self.worker:
            selector.register(self.worker.fileno(), selectors.EVENT_READ, self._answered)
        if self.log and (watched := self.log.fileno()) is not None:
            selector.register(watched, selectors.EVENT_READ, self._kernel)
        started = time.monotonic()

        def following(every: float) -> float:
            """When what comes each so many seconds is due next: counted from the start, so that what can come
            together does, and wakes us once."""
            return started + every * ((time.monotonic() - started) // every + 1)

        full = fast = slow = tick = beat = sites = started
        self.gpu_due = started if self.worker else math.inf
        ready = False
        self._kernel()
        self.link.start()
        while not self.stopping:
            self._collect()  # a glance without news wakes nobody
            now = time.monotonic()
            if now >= tick:
                self._tick(now)
                tick = following(TICK)
            if now >= beat:
                self._beat(now)
                beat = following(BEAT)
            if now >= sites:
                self._visit()
                sites = following(self.config.probes.site_every)
            if now >= slow:
                for name, call in self.hosted.items():
                    self.runner.start(name, call, HOST_DEADLINE, now, "host")
                slow = following(self.config.probes.host_every)
            self._end_waits(now)
            if self.worker and now >= self.gpu_due:
                self.worker.ask(now)
                self.gpu_due = following(self.config.probes.gpu_every)
            if now >= fast:
                if now >= full:
                    self.owed |= self.links.keys()
                    full = following(self.config.probes.counters_every)
                self._look()  # last: its thread waits for us to sleep
                fast = following(self.config.probes.links_every)
            if not ready and (not self.unseen or now - started > FIRST_PASS):
                ready = True
                self.unseen.clear()
                self._publish()
                systemd.notify("READY=1\nSTATUS=first pass done")
                log.info("ready: first pass took %.1f s", now - started)
            waits = min(self.waits.values(), default=math.inf) - self.epoch
            due = min(fast, slow, self.gpu_due, tick, beat, sites, waits)
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                key.data()
        systemd.notify("STOPPING=1")
        self._remember()
        self.runner.close()
        site.stop()
        if self.worker and not self.worker.stop():
            log.error("the NVML process cannot be ended: it is stuck in the driver and is left behind")

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _post(self, call: Callable[[], None]) -> None:
        """Have `call` done by the loop. From any thread."""
        self.inbox.append(call)
        with contextlib.suppress(BlockingIOError):
            os.write(self.wake_write, b"\0")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake_read, 4096):
                pass
        while self.inbox:
            self.inbox.popleft()()

    def _tick(self, now: float) -> None:
        """Once a second: what has no wake-up of its own."""
        if self.worker and (report := self.worker.overdue(now)):
            self._report(report)
        refusing = self.verdict.said[0] == "bad"
        pressing = {
            (card.job, card.restarts, bool(card.ended))
            for card in self.tenants.look(time.time())
            if card.refused or refusing
        }
        if pressing - self.pressing:
            # The controller must release a job that was refused, bring back one that slipped in before the
            # verdict, put right what Slurm made of one that ended.
            self.link.poke()
        self.pressing = pressing

    def _beat(self, now: float) -> None:
        """Each few seconds: what may wait for so long."""
        systemd.notify("WATCHDOG=1")
        self._miss(now)
        self._kernel()
        if now - self.saved >= SAVE:
            self.saved = now
            if rules.counting(self.memory):
                self._save_memory(self.memory)
        self._publish()

    # Sensing

    def _look(self) -> None:
        now = time.monotonic()
        for name, probe in self.links.items():
            call = probe.look if name in self.owed else probe.glance
            if self.runner.start(name, call, LINK_DEADLINE, now, "links"):
                self.owed.discard(name)

    def _end_waits(self, now: float) -> None:
        """Look again where something has lasted as long as a rule asks for: whether it still does."""
        self.waited = self.epoch + now
        over = {probe for probe, at in self.waits.items() if at <= self.waited}
        for probe in over:
            del self.waits[probe]
        for probe in over & self.hosted.keys():
            self.runner.start(probe, self.hosted[probe], HOST_DEADLINE, now, "host")
        if over & self.links.keys():
            self.owed |= over & self.links.keys()
            self._look()
        if "gpu" in over and self.worker:
            self.gpu_due = now
        if "site" in over:
            self._visit()

    def _visit(self) -> None:
        """Start the site's own probes; a new one is found without a restart."""
        said, deadline = Report("site"), self.config.probes.site_deadline
        try:
            for program in site.programs(self.config.probes.folder):
                call = partial(site.site, program, deadline)
                self.runner.start(f"site/{program.name}", call, deadline + LINK_DEADLINE, time.monotonic())
        except OSError as error:
            said = Report("site", error=str(error))
        self._report(said)

    def _collect(self) -> None:
        for report in self.runner.collect(time.monotonic()):
            self._report(report)

    def _miss(self, now: float) -> None:
        """Say which probes do not come back, and which did."""
        out = {name for name, since in self.runner.outstanding().items() if now - since > STUCK}
        if out != self.stuck:
            told = f"out for more than {STUCK:g} s"
            self._judge(Reading("probe.stuck", name, name in out, told) for name in sorted(out | self.stuck))
            self.stuck = out

    def _answered(self) -> None:
        assert self.worker
        if report := self.worker.answer(time.monotonic()):
            self._report(report)

    def _report(self, report: Report) -> None:
        """A probe came back: learn, judge, and say what is new."""
        self.unseen.discard(report.probe)
        if report.probe == "process" and not report.error:
            self._seat(report.readings)
        elif report.probe == "gpu":
            self.boards = report.readings
            running = [one for one in report.readings if one.name == "gpu.process"]
            if running:
                look = partial(process.process, self.host, running)
                self.runner.start("process", look, PROCESS_DEADLINE, time.monotonic())
            else:
                self._seat(())
            if any(one.name == "gpu.driver" and one.value != "ok" for one in report.readings):
                # Whether it is a fault or a driver being reloaded shows sooner when asked more often.
                self.gpu_due = min(self.gpu_due, time.monotonic() + RETRY)
            minors = {
                one.value: one.device
                for one in report.readings
                if one.name == "gpu.minor" and isinstance(one.value, int)
            }
            self.tenants.learn(minors)
        error = wire.clean(report.error)
        if (error or None) != self.blind.get(report.probe):
            with self.lock:
                if error:
                    log.warning("probe %s: %s", report.probe, error)
                    self.blind[report.probe] = error
                else:
                    self.blind.pop(report.probe, None)
        if not report.readings:
            return  # a glance that saw nothing new
        sick = [found.device for found in self.standing if found.severity is Severity.CRITICAL]
        if (names := identity.learn(self.names, report.readings)) is not self.names:
            self.names = names
            self.state.save("names.json", json.dumps(names))
        learned, notes = baseline.learn(self.baseline, report, sick)
        for note in notes:
            log.info("%s", note)
        known, self.baseline = self.baseline, learned
        readings = baseline.expect(learned, self.expectations, report)
        if report.probe in self.links and time.monotonic() < self.settled:
            readings = tuple(one for one in readings if not _of_training(one))
        self._judge(readings)
        if learned is not known:  # saved last: what is said once, a GPU swapped, is said again after a crash
            self.state.save("baseline.json", json.dumps(baseline.plain(learned), indent=1), synced=True)

    def _seat(self, processes: Iterable[Reading]) -> None:
        """See which ranks sit on which GPU, and who sits where nobody should."""
        processes = tuple(processes)
        self._judge(cards.leftovers(self.tenants.look(time.time()), self.boards, processes))
        self.tenants.seat(processes)

    def _kernel(self) -> None:
        if not self.log:
            return
        records = self.log.read()
        if self.log.error != self.blind.get("kernel", ""):
            with self.lock:
                self.blind.pop("kernel", None)
                if self.log.error:
                    self.blind["kernel"] = self.log.error
                    log.warning("kernel log: %s", self.log.error)
        found = kernel.readings(records, self.boot, self._now(), self.log.clock())
        fresh = [one for one in found if one.at >= self.news_since]
        if fresh:
            runs = self.tenants.look(time.time())
            self._judge(replace(one, job=cards.holder(runs, one.device, one.at)) for one in fresh)
            if self.worker and any(map(kernel.nvml_knows, fresh)):
                self.gpu_due = min(self.gpu_due, time.monotonic())
        if found:
            self.state.save("cursor", f"{self.boot} {records[-1].sequence}\n")

    def _judge(self, readings: Iterable[Reading]) -> None:
        remembered = self.memory
        judged, self.memory = rules.judge(self.book, readings, self.memory, self._now())
        self.waits = {}
        for reading, at in rules.ends(self.book, self.memory, self.waited).items():
            probe = reading.partition(".")[0]
            self.waits[probe] = min(at, self.waits.get(probe, at))
        findings = [_sendable(identity.named(found, self.names)) for found in judged]
        before = {found.moment for found in self.standing}
        standing = tuple(found for found in findings if found.lasting)
        new = [found for found in findings if not found.lasting or found.moment not in before]
        gone = [found for found in self.standing if found.moment not in {one.moment for one in standing}]
        if any(found.lasting for found in new):
            # On disk before anybody hears of it, else a crash makes it another occurrence, and this one end.
            # Events wait until they are spooled: what the memory holds of them is not told again.
            self._save_memory(self.memory | {"events": remembered["events"]})
        ahead = time.time() - self._now()  # what the wall clock was set by since we started
        with self.lock:
            self.standing = standing
            added = self.spool.add(replace(found, since=found.since + ahead) for found in new)
        for found in new:
            level = logging.ERROR if found.severity is Severity.CRITICAL else logging.WARNING
            where = f" [{parts}]" if (parts := identity.words(found.hardware)) else ""
            log.log(level, "%s(%s) %s: %s%s", found.code, found.device, found.text, found.evidence, where)
        for found in gone:
            log.info("%s(%s) has cleared", found.code, found.device)
        if added or gone:
            self.link.poke()
            self._publish()
            self._save_memory(self.memory)

    # Saying

    def compose(self) -> wire.NodeReport:
        """The report as things are now. Called from the link's thread."""
        now = time.time()
        jobs = self.tenants.look(now)
        with self.lock:
            opened = tuple(self.spool.waiting.values())[: wire.MANY]
            standing = tuple(found.moment for found in self.standing)[: wire.MANY]
            blind = dict(self.blind)
        return wire.NodeReport(
            node=self.name,
            boot=self.boot,
            sent=now,
            opened=opened,
            standing=standing,
            cards=tuple(jobs[-wire.MANY :]),
            blind=blind,
            verdict=self.verdict.said[0],
            life=self.life,
            number=next(self.numbers),
        )

    def _signature(self) -> signing.Signature:
        if self.signed is None:
            auth = self.config.auth
            try:
                self.signed = signing.signature(auth.method, auth.munge_socket, auth.key_file)
            except OSError as error:
                raise signing.Refused(str(error)) from error
        return self.signed

    def _receipt(
        self,
        report: wire.NodeReport,
        unknown: frozenset[str] = frozenset(),
        closed: frozenset[str] = frozenset(),
    ) -> None:
        """What was reported is told. What stands and is `unknown` to the controller (its ledger was lost, our
        spool was full) is told once more; what an admin has `closed` and does not end by itself, ends."""
        with self.lock:
            self.spool.receipted(found.moment for found in report.opened)
            ahead = time.time() - self._now()
            again = [found for found in self.standing if found.moment in unknown]
            self.spool.add(replace(found, since=found.since + ahead) for found in again)
            more = bool(self.spool.waiting)
        for found in again:
            log.warning("unknown to the controller, told again: %s(%s)", found.code, found.device)
        if more:
            self.link.poke()
        released = rules.release(self.book, self.memory, closed)
        if released is not self.memory:
            self.memory = released
            self._judge(())

    def _decide(self, answer: wire.Decision) -> None:
        if answer != self.decision:
            log.info("controller: %s", f"refuse jobs: {answer.refuse}" if answer.refuse else "accept jobs")
            self.decision = answer
            self._publish()

    def _publish(self) -> None:
        """Write the verdict: at once when it changes, else as a heartbeat."""
        if self.unseen and not self.verdict.said[0] and not self.decision.refuse:
            return  # before the first pass nothing is known; what an earlier daemon said goes stale by itself
        worst = max(self.standing, key=lambda found: found.severity, default=None)
        refuse = self.decision.refuse
        if self.link.alone() > ALONE:
            refuse = ""
            if self.config.when_alone == "refuse" and worst and worst.severity is Severity.CRITICAL:
                refuse = _words(worst)
        state = word((found.severity for found in self.standing), refuse, self.decision.note)
        text = refuse or self.decision.note or (_words(worst) if worst else "")
        try:
            self.verdict.write(state, text)
        except OSError as error:
            log.error("verdict %s: %s", self.verdict.path, error.strerror)

    # Remembering

    def _now(self) -> float:
        return self.epoch + time.monotonic()

    def _cursor(self) -> int | None:
        """The last kernel record of this boot that was dealt with. Without one, only what is fresh is news:
        a line from long before us has been somebody's business already."""
        boot, _, sequence = self.state.text("cursor").partition(" ")
        known = boot == self.boot and sequence.isdigit()
        self.news_since = 0.0 if known else time.time() - BACKLOG
        return int(sequence) if known else None

    def _save_memory(self, memory: rules.Memory) -> None:
        self.saved = time.monotonic()
        self.state.save("memory.json", json.dumps(memory))

    def _remember(self) -> None:
        self._save_memory(self.memory)
        if self.log and self.log.sequence >= 0:
            self.state.save("cursor", f"{self.boot} {self.log.sequence}\n")


def _words(found: Finding) -> str:
    return f"{found.code}({found.device}) {found.text}"


def _of_training(one: Reading) -> bool:
    """Whether a link that trains shows it: it is not up yet, or counts what it met on its way."""
    return (one.value is True and one.name.endswith((".down", ".degraded", ".missing"))) or type(
        one.value
    ) is int


def _sendable(found: Finding) -> Finding:
    """As the wire takes it. The kernel quotes names that users chose, and one that cannot be sent would keep
    the whole report, and every one after it, from being heard."""
    return replace(
        found,
        device=wire.clean(found.device)[:100],
        text=wire.clean(found.text),
        evidence=wire.clean(found.evidence),
        hardware={
            part: wire.clean(said)[: wire.PART] if isinstance(said, str) else said
            for part, said in found.hardware.items()
        },
        moment=wire.clean(found.moment)[:300],
    )
