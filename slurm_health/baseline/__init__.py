"""What a node remembers of its healthy devices, and what its readings mean beside that.

A missing GPU or a dead port leaves nothing to read; only who knows what was there can say that it is gone. So
a node learns, from healthy readings only, its GPUs (PCI address, UUID), its InfiniBand ports that were ACTIVE
and its NICs that had a carrier, and how fast they ran; its PCIe links, its memory, its disks, its clock. The
site's configuration may say more (Expectations). A module for each kind of device.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from slurm_health.baseline import gpus, host, memory, nics, pcie, ports
from slurm_health.baseline.facts import Baseline, Expectations, begin, by_device, forget, plain, recall
from slurm_health.model import Reading, Report

__all__ = ["Baseline", "Expectations", "begin", "expect", "forget", "learn", "plain", "recall"]


def learn(baseline: Baseline, report: Report, sick: Iterable[str] = ()) -> tuple[Baseline, tuple[str, ...]]:
    """The baseline with what a report shows of healthy devices, and a line for each change worth a record.

    `sick` are the devices with a critical finding: nothing is learned of them, and of no GPU when it holds ""
    (the driver). The same object comes back when there is nothing new.
    """
    if report.error:
        return baseline, ()
    facts, ill = by_device(report.readings), set(sick)
    after = baseline
    notes: tuple[str, ...] = ()
    match report.probe:
        case "gpu" if not {"", "*"} & ill:
            known, notes = gpus.learn(baseline.gpus, facts, ill, baseline.boot)
            after = replace(baseline, gpus=known)
        case "infiniband":
            known, notes = ports.learn(baseline.ports, facts, ill)
            after = replace(baseline, ports=known)
        case "nic":
            known, notes = nics.learn(baseline.nics, facts, ill)
            after = replace(baseline, nics=known)
        case "pcie":
            after = replace(baseline, pcie=pcie.learn(baseline.pcie, facts, ill))
        case "memory":
            after = replace(baseline, memory=memory.learn(baseline.memory, facts))
        case "disk":
            after = replace(baseline, disks=host.learn_disks(baseline.disks, facts))
        case "system":
            after = replace(baseline, clock=host.learn_clock(baseline.clock, facts))
    return baseline if after == baseline else after, notes


def expect(baseline: Baseline | None, expectations: Expectations, report: Report) -> tuple[Reading, ...]:
    """A report's readings, without ignored devices, and what they mean beside the baseline (see expect() of
    each kind of device).

    States are True or False (a good reading ends a finding); what cannot be told is absent. None for a
    baseline: none is remembered.
    """
    readings = tuple(one for one in report.readings if not expectations.ignored(one.device))
    if report.error:
        return readings
    facts, known = by_device(readings), baseline or Baseline()
    derived: Iterable[Reading] = ()
    match report.probe:
        case "gpu":
            derived = gpus.expect(known.gpus, expectations, facts, readings)
        case "infiniband":
            derived = ports.expect(known.ports, expectations, facts)
        case "nic":
            derived = nics.expect(known.nics, expectations, facts)
        case "pcie":
            derived = pcie.expect(known.pcie, expectations, facts)
        case "memory":
            derived = memory.expect(known.memory, expectations, facts, readings)
        case "disk":
            derived = host.expect_disks(known.disks, facts, readings)
        case "system":
            derived = host.expect_clock(known.clock, readings)
    return (*readings, *(one for one in derived if not expectations.ignored(one.device)))
