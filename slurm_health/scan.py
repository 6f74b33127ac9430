"""One look at this machine, without root, without Slurm, changing nothing."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slurm_health import identity, rules
from slurm_health.baseline import Expectations, expect
from slurm_health.host import Host
from slurm_health.model import Finding, Reading, Report, Severity
from slurm_health.probes import site
from slurm_health.probes.disk import disk
from slurm_health.probes.gpu import Worker
from slurm_health.probes.infiniband import InfiniBand
from slurm_health.probes.kernel import KernelLog, readings
from slurm_health.probes.memory import memory
from slurm_health.probes.nic import Nic
from slurm_health.probes.pcie import Pcie
from slurm_health.probes.runner import Runner
from slurm_health.probes.system import System
from slurm_health.rules import RuleBook

TRIES = 3  # a failed driver is asked so often, as the daemon does
PAUSE = 0.2  # seconds between the tries
DEADLINE = 10.0  # seconds that a probe has


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look brought. `seen` says in a line each what there was, and what there was not."""

    node: str
    verdict: str
    findings: tuple[Finding, ...]
    reports: tuple[Report, ...]
    seen: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """What `scan --json` prints."""
        return {
            "node": self.node,
            "verdict": self.verdict,
            "findings": [
                {
                    "code": finding.code,
                    "severity": str(finding.severity),
                    "device": finding.device,
                    "text": finding.text,
                    "evidence": finding.evidence,
                    "hardware": finding.hardware,
                }
                for finding in self.findings
            ],
            "reports": [
                {
                    "probe": report.probe,
                    "seconds": round(report.seconds, 4),
                    "readings": [_plain(one) for one in report.readings],
                    "error": report.error,
                }
                for report in self.reports
            ],
        }

    def text(self) -> str:
        """The same for people."""
        lines = [f"{self.node}: {self.verdict}"]
        for finding in self.findings:
            where = f"({finding.device})" if finding.device else ""
            lines.append(f"  {finding.severity!s:8}  {finding.code}{where}  {finding.text}")
            if finding.evidence:
                lines.append(f"            {finding.evidence}")
            if finding.hardware:
                lines.append(f"            {identity.words(finding.hardware)}")
        lines += [f"  {line}" for line in self.seen]
        lines += [f"  {report.probe}: {report.error}" for report in self.reports if report.error]
        return "\n".join(lines)


def _plain(reading: Reading) -> dict[str, Any]:
    """A reading with what it has beside its value."""
    always = ("name", "device", "value")
    return {key: said for key, said in asdict(reading).items() if said or key in always}


def scan(
    host: Host,
    expectations: Expectations,
    book: RuleBook,
    library: str = "",
    deadline: float = DEADLINE,
    folder: Path | None = None,
) -> Scan:
    """Look once. Never raises on what it finds; takes at most the deadline and two seconds.

    Holds do not apply: a port that is down in this second is reported. The verdict is "unknown" when a probe
    failed and nothing worse is known. `library` names another libnvidia-ml file, `folder` that of the site's
    own probes (None: none is run).
    """
    reports = _look(host, expectations, library, deadline, folder)
    found = _judge(book, expectations, reports)
    worst = max((finding.severity for finding in found), default=Severity.OK)
    blind = any(report.error for report in reports)
    return Scan(
        os.uname().nodename.partition(".")[0],
        "unknown" if blind and worst is Severity.OK else str(worst),
        found,
        tuple(reports),
        tuple(_seen(host, reports)),
    )


def _look(
    host: Host, expectations: Expectations, library: str, deadline: float, folder: Path | None
) -> list[Report]:
    """All probes side by side, each within its deadline."""
    runner = Runner()
    worker = Worker(host, library, deadline, expected=bool(expectations.gpus))
    began = time.monotonic()
    calls: dict[str, Callable[[], Iterable[Reading]]] = {
        "kernel": lambda: _kernel(host),
        "infiniband": InfiniBand(host, expectations.ignored).look,
        "nic": Nic(host).look,
        "pcie": Pcie(host).look,
        "memory": lambda: memory(host),
        "disk": lambda: disk(host),
        "system": System(host, expectations.services).look,
    }
    reports: dict[str, Report] = {}
    try:
        for program in site.programs(folder) if folder else ():
            calls[f"site/{program.name}"] = partial(site.site, program, deadline)
    except OSError as error:
        reports["site"] = Report("site", error=str(error))
    wanted = {*calls, "gpu", *reports}
    tries = 0
    again: float | None = began
    try:
        for name, call in calls.items():
            runner.start(name, call, deadline, began)
        while reports.keys() < wanted:
            now = time.monotonic()
            if again is not None and now >= again and "gpu" not in reports:
                tries, again = tries + 1, None
                worker.ask(now)
            wait = deadline if again is None else max(0.0, again - now)
            select.select([runner.fileno(), worker.fileno()], [], [], min(wait, 0.5))
            now = time.monotonic()
            for report in runner.collect(now):
                reports.setdefault(report.probe, report)
            answer = worker.answer(now) or worker.overdue(now)
            if answer is not None:
                failed = Reading("gpu.driver", "", "failed")
                same = any((one.name, one.value) == (failed.name, failed.value) for one in answer.readings)
                if same and tries < TRIES:
                    again = now + PAUSE
                else:
                    reports["gpu"] = answer
    finally:
        worker.stop()
        runner.close()
    first = ("kernel", "gpu", "infiniband", "nic")
    return [reports.pop(name) for name in first] + [reports[name] for name in sorted(reports)]


def _kernel(host: Host) -> Sequence[Reading]:
    """This boot's events that the kernel still holds. A log that may not be read is a note, not an error."""
    log = KernelLog(host)
    found: list[Reading] = []
    try:
        if log.error:
            return (Reading("kernel.log", "", log.error),)
        while records := log.read():
            found += readings(records, host.boot_id(), time.time(), log.clock())
            if not log.more:
                break
    finally:
        log.close()
    return (Reading("kernel.log", "", "read"), *found)


def _judge(book: RuleBook, expectations: Expectations, reports: Sequence[Report]) -> tuple[Finding, ...]:
    readings = [one for report in reports for one in expect(None, expectations, report)]
    judged, _ = rules.judge(rules.at_once(book), readings, rules.begin(None, ""), time.time())
    names = identity.learn({}, readings)
    found = [identity.named(one, names) for one in judged]
    return tuple(sorted(found, key=lambda one: (-one.severity, one.code, one.device)))


def _seen(host: Host, reports: Sequence[Report]) -> list[str]:
    """A line for each kind of thing: how many were seen, or that there were none."""
    by_probe = {report.probe: report.readings for report in reports}
    lines = []
    gpu = by_probe.get("gpu", ())
    bus = [one for one in gpu if one.name == "gpu.on_pci"]
    answering = [one for one in gpu if one.name == "gpu.lost" and one.value is False]
    driver = next((str(one.value) for one in gpu if one.name == "gpu.driver"), "")
    if answering or driver:
        lines.append(f"GPUs: {len(answering)} answer, {len(bus)} on PCI, driver {driver or 'unknown'}")
    elif bus:
        lines.append(f"GPUs: {len(bus)} on PCI, not bound to NVIDIA's driver: not looked into")
    else:
        lines.append("GPUs: none on PCI")
    states = [one for one in by_probe.get("infiniband", ()) if one.name == "infiniband.state"]
    active = sum(one.value == "ACTIVE" for one in states)
    lines.append(
        f"InfiniBand: {active} of {len(states)} ports active" if states else "InfiniBand: no devices"
    )
    ports = {one.device for one in by_probe.get("nic", ()) if one.name == "nic.up"}
    linked = sum(one.name == "nic.carrier" and one.value is True for one in by_probe.get("nic", ()))
    lines.append(
        f"Network: {linked} of {len(ports)} physical ports have a link"
        if ports
        else "Network: no physical ports"
    )
    log = next((one for one in by_probe.get("kernel", ()) if one.name == "kernel.log"), None)
    if log is not None and log.value == "read":
        events = sum(bool(one.moment) for one in by_probe["kernel"])
        lines.append(f"kernel log: {events} hardware events since boot")
    elif log is not None and log.value in (os.strerror(errno.EPERM), os.strerror(errno.EACCES)):
        lines.append("kernel log: not readable as this user (run as root to include it)")
    elif log is not None:
        lines.append(f"kernel log: not read ({log.value})")
    return lines
