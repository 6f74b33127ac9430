"""Whose a drain is, and what an admin's RESUME overrules, where faults come in an unlucky order."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_return import LINK, Resuming
from test_web import asynchronous, site

from slurm_health.model import Card, Finding, Severity, Urgency
from slurm_health.wire import NodeReport

XID = Finding("GPU_XID_79", Severity.CRITICAL, "0000:5d:00.0", "gone", "Xid 79", Urgency.NOW, 9.0, "b/2")


@asynchronous
async def test_the_fault_that_came_first_names_the_drain_whichever_is_told_first(tmp_path: Path) -> None:
    """A link's is told when it has lasted; both are told late where nobody could listen."""
    slurm = Resuming()
    async with site(tmp_path, slurm, mode="drain") as here:
        await here.report(XID, LINK)
        await here.settle()
        assert slurm.known["n1"].reason == "slurm-health: IB_PORT_DOWN(mlx5_4/1) down"
        [ours] = here.ledger.out_by_us()
        assert (ours.name, ours.reason) == ("n1", slurm.known["n1"].reason)
        assert here.controller.decisions.of("n1").refuse == "IB_PORT_DOWN(mlx5_4/1) down"
        here.controller.drains.look_at("n1")
        await here.settle()
        assert [one.held for one in here.ledger.open_incidents()] == ["", ""]


@pytest.mark.parametrize("known", [True, False], ids=["whose hook is known at once", "a look later"])
@pytest.mark.parametrize("newer", [(), (XID,)], ids=["nothing newer", "newer evidence"])
@asynchronous
async def test_what_is_newer_than_a_resume_outlives_the_end_of_our_refusal(
    tmp_path: Path, newer: tuple[Finding, ...], known: bool
) -> None:
    slurm = Resuming()
    async with site(tmp_path, slurm, mode="drain") as here:
        await here.report(LINK)
        await here.settle()
        # An admin's RESUME, and a job at once that our prolog still turned away.
        now = time.time()
        slurm.known["n1"] = replace(slurm.known["n1"], reason="Prolog error", since=int(now))
        refused = (Card(7, 0, refused=now),)
        await here.report(LINK, *newer, cards=refused if known else ())
        here.controller.drains.look_at("n1")
        await here.settle()
        await here.report(LINK, *newer, cards=refused)
        await here.settle()
        last = ("drain", "n1", "slurm-health: GPU_XID_79(0000:5d:00.0) gone") if newer else ("resume", "n1")
        assert slurm.done[1:] == [last]
        told = {one.code: one.acknowledged > 0 for one in here.ledger.open_incidents()}
        assert told == {"IB_PORT_DOWN": True} | {one.code: False for one in newer}
        assert slurm.known["n1"].out is bool(newer)
        assert [row.name for row in here.ledger.out_by_us()] == ["n1"] * len(newer)


@asynchronous
async def test_a_node_left_alone_for_a_suspect_job_goes_out_by_evidence_that_cannot_be_its_own(
    tmp_path: Path,
) -> None:
    slurm = Resuming()
    async with site(tmp_path, slurm, mode="drain") as here:
        here.ledger.take(NodeReport("n1", boot="b", opened=(XID,), standing=("b/2",)), time.time())
        here.ledger.hold(1, "suspect job: 7 met GPU_XID_79 on n2, n3, n1")
        here.controller.drains.look_at("n1")
        await here.settle()
        assert slurm.done == []
        await here.report(replace(XID, moment="b/3"))
        await here.settle()
        assert slurm.done == [("drain", "n1", "slurm-health: GPU_XID_79(0000:5d:00.0) gone")]
