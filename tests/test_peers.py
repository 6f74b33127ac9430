"""Faults that were found in the code of other tools: each was looked for here, and a test keeps it out.

A sum over a column that is not there, a threshold that no value reaches, a count since boot taken for news,
a pattern that fits half the world: such a check is always green, or always red, and nobody sees it.
"""

import itertools
import json
import time
from pathlib import Path

import nodes
import pytest
from test_sensing import BOOK, Node, library, node
from test_sequences import HOUR, MINUTE, counted

from slurm_health import rules
from slurm_health.baseline import Expectations, expect
from slurm_health.cards import leftovers
from slurm_health.host import Host
from slurm_health.model import Card, Finding, Reading, Report, Severity, Value
from slurm_health.probes.gpu.board import SLOW
from slurm_health.probes.infiniband import InfiniBand
from slurm_health.rules.book import Above, Below, Is, Rises, Rule
from slurm_health.scan import scan

__all__ = ["counted", "library", "node"]
DEVICE = "0000:3b:00.0"


# -- a check that can never fail ---------------------------------------------------------


def bad(rule: Rule) -> Value:
    match rule.when:
        case Is(values):
            return values[0]
        case Above(limit):
            return limit + 1
        case Below(limit):
            return limit - 1
        case _:
            return "none of those"


def fired(rule: Rule) -> set[str]:
    """The codes that come of what the rule calls bad, for as long and as often as it asks."""
    memory, now, found = rules.begin(None, "boot"), 1000.0, set()
    span = max(rule.hold, rule.lasts)
    looks = max(rule.times, round(span / 15)) + 2
    for number in range(looks):
        now += 15.0
        event = rule.reading.startswith("kernel.")
        reading = Reading(
            rule.reading,
            DEVICE,
            number * max(1, int(rule.when.by)) if isinstance(rule.when, Rises) else bad(rule),
            moment=f"boot/{number}" if event else "",
            at=now if event else 0.0,
            job=f"{number}.0/{1000 + number}",
        )
        judged, memory = rules.judge(BOOK, [reading], memory, now)
        found |= {one.code for one in judged}
    return found


@pytest.mark.parametrize("rule", BOOK.rules, ids=lambda rule: rule.name)
def test_every_rule_can_fire(rule: Rule) -> None:
    if rule.severity > Severity.OK:
        assert rule.code in fired(rule)


def test_every_reading_that_a_rule_names_is_read(counted: object) -> None:
    """Of a machine that has everything: NVLinks counted in both ways, throttling sampled and counted."""
    node: Node = counted.node  # type: ignore[attr-defined]
    node.machine.inject("nvml", gpu=3, text="nvlink5 1")
    for key in ("sw-thermal-time", "hw-thermal-time", "power-brake-time"):
        node.machine.inject("nvml", gpu=3, text=f"{key} 0")
    seen: set[str] = {"probe.stuck"}  # the daemon's own
    reports = [
        *(node.gpus() for _ in range(SLOW + 1)),  # some of it is not asked each time
        Report("infiniband", tuple(node.links.look())),
        Report("nic", tuple(node.nics.look())),
        *scan(node.host, Expectations(services=("munge",), gpu_models=("x",)), BOOK, "/none").reports,
    ]
    roce = InfiniBand(Host(node.host.path("roce")))
    nodes.port(node.host.path("roce"), "mlx5_0", layer="Ethernet")
    counters = ("local_ack_timeout_err", "rnr_nak_retry_err", "roce_slow_restart", "rx_icrc_encapsulated")
    files = {f"sys/class/infiniband/mlx5_0/ports/1/hw_counters/{name}": "0" for name in counters}
    nodes.write(node.host.path("roce"), files)
    reports.append(Report("infiniband", tuple(roce.look())))
    for report in reports:
        expected = expect(node.known, Expectations(gpu_models=("x",)), report)
        seen |= {one.name for one in expected}
    seen |= {one.name for one in leftovers([Card(7, 0, ended=1.0)], reports[0].readings, ())}
    named = {rule.reading for rule in BOOK.rules if not rule.reading.startswith("kernel.")}
    assert named - seen == set()


@pytest.mark.parametrize("gpu", range(8))
def test_each_gpu_is_looked_at_and_no_other_blamed(node: Node, gpu: int) -> None:
    device = list(node.known.gpus)[gpu]
    for fault in ("ecc", "nvlink-down", "remap-failed"):
        node.machine.inject(fault, gpu=gpu)
    found = [one for _ in range(10) for one in node.look(15)]
    assert {(one.code, one.device) for one in found} == {
        (code, device) for code in ("GPU_ECC_UNCORRECTED", "GPU_NVLINK_DOWN", "GPU_REMAP_FAILED")
    }


@pytest.mark.parametrize("port", range(8))
def test_seven_good_ports_do_not_hide_the_eighth(tmp_path: Path, port: int) -> None:
    for number in range(8):
        down = {"state": "1: DOWN", "phys": "2: Polling"} if number == port else {}
        nodes.port(tmp_path, f"mlx5_{number}", **down)  # type: ignore[arg-type]
    result = scan(Host(tmp_path), Expectations(ib_ports=8, ib_gbps=400), BOOK, "/none")
    assert [(one.code, one.device) for one in result.findings] == [("IB_PORT_DOWN", f"mlx5_{port}/1")]


# -- a check that never passes again -----------------------------------------------------


def test_what_happened_before_we_looked_is_history(node: Node) -> None:
    """All counters as an old machine has them, at their first sight and for a day after it."""
    for file in node.host.path("sys").rglob("*"):
        if file.parent.name in ("counters", "statistics") or file.name == "carrier_down_count":
            file.write_text("200\n")
    node.machine.inject("nvlink-errors", gpu=3, code=50_000)
    node.machine.inject("gpu-pcie-replay", gpu=3, code=50_000)
    node.memory = rules.begin(None, "boot")
    gpus = node.gpus()
    assert [one for _ in range(24) for one in node.look(3600, gpus)] == []


def test_an_xid_of_last_year_is_not_of_now(tmp_path: Path) -> None:
    """The kernel's clock counts from boot: no year is guessed, and nothing lies in the future."""
    nodes.write(tmp_path, {"dev/kmsg": "4,1,1000,-;NVRM: Xid (PCI:0000:3b:00): 13, pid=1, name=a, x"})
    report = scan(Host(tmp_path), Expectations(), BOOK, "/none").reports[0]
    [event] = [one for one in report.readings if one.moment]
    assert 0 < event.at <= time.time()


# -- the rates at which others speak ------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "by", "every", "found"),
    [
        # a loss of the link by itself is IB_PORT_DOWN where it lasts; some call the first one a fault
        ("infiniband.link_downed", 1, HOUR, ("IB_FLAP", Severity.CRITICAL)),
        ("infiniband.link_downed", 1, 2 * HOUR, None),
        ("nic.carrier_downs", 1, HOUR / 2, ("NIC_FLAP", Severity.WARNING)),
        ("nic.carrier_downs", 1, 2 * HOUR, None),
        ("infiniband.symbol_error", 2, MINUTE, ("IB_ERRORS", Severity.CRITICAL)),  # 120 an hour
        ("infiniband.symbol_error", 1, MINUTE, None),
        ("infiniband.link_error_recovery", 6, MINUTE, ("IB_ERRORS", Severity.WARNING)),
        ("infiniband.link_error_recovery", 1, HOUR / 6, None),
        ("infiniband.local_link_integrity_errors", 1, 10 * HOUR, ("IB_ERRORS", Severity.WARNING)),
        ("infiniband.excessive_buffer_overrun_errors", 1, 10 * HOUR, ("IB_ERRORS", Severity.WARNING)),
        ("infiniband.port_rcv_errors", 600, MINUTE, ("IB_ERRORS", Severity.WARNING)),  # 10 a second
        ("infiniband.port_rcv_errors", 10, MINUTE, None),
        ("infiniband.port_xmit_discards", 6000, MINUTE, ("IB_ERRORS", Severity.WARNING)),  # 100 a second
        ("infiniband.port_xmit_discards", 60, MINUTE, None),
        # of RoCE; who gives up on one dead peer is not ill, so the first one is no fault here
        ("infiniband.rnr_nak_retry_err", 2, MINUTE, ("IB_ERRORS", Severity.WARNING)),
        ("infiniband.rnr_nak_retry_err", 1, MINUTE, None),
        ("infiniband.local_ack_timeout_err", 61, MINUTE, ("IB_ERRORS", Severity.WARNING)),
        ("infiniband.local_ack_timeout_err", 30, MINUTE, None),
        ("infiniband.roce_slow_restart", 601, MINUTE, ("IB_ERRORS", Severity.WARNING)),
        ("infiniband.roce_slow_restart", 300, MINUTE, None),
    ],
)
def test_a_counter_is_told_from_where_others_tell_it(
    counter: str, by: int, every: float, found: tuple[str, Severity] | None
) -> None:
    memory, told = rules.begin(None, "boot"), set()
    for second in range(0, int(12 * HOUR), 30):
        reading = Reading(counter, "a port", int(second / every) * by)
        judged, memory = rules.judge(BOOK, [reading], memory, 1000.0 + second)
        told |= {(one.code, one.severity) for one in judged}
    assert told == ({found} if found else set())


# -- a pattern that fits too much --------------------------------------------------------


@pytest.mark.parametrize("code", [4, 9, 14])
def test_an_exception_for_one_xid_is_for_that_one_alone(code: int) -> None:
    others = [number for number in BOOK.events["kernel.xid"] if str(code) in str(number) and number != code]
    assert others
    changed = rules.load([{"code": f"GPU_XID_{code}", "enabled": False}])
    for number in others:
        event = Reading("kernel.xid", DEVICE, number, moment="b/1", at=1.0)
        assert changed.opinion(event) == BOOK.opinion(event)


def test_an_exception_for_one_port_is_for_that_one_alone(tmp_path: Path) -> None:
    for name in ("mlx5_1", "mlx5_10", "mlx5_11"):
        nodes.port(tmp_path, name, state="1: DOWN", phys="2: Polling")
    expected = Expectations(ib_ports=3, ignore=("mlx5_1/*",))
    result = scan(Host(tmp_path), expected, BOOK, "/none")
    devices = {one.device for one in result.findings if one.code == "IB_PORT_DOWN"}
    assert devices == {"mlx5_10/1", "mlx5_11/1"}


# -- names taken from somewhere else -----------------------------------------------------


@pytest.mark.parametrize(
    ("xid", "wrong"),
    [(38, "pcie"), (54, "power state"), (57, "clock"), (58, "clock"), (62, "thermal"), (163, "nvlink")],
)
def test_no_xid_is_called_what_it_is_not(xid: int, wrong: str) -> None:
    assert wrong not in BOOK.events["kernel.xid"][xid].text.lower()


@pytest.mark.parametrize("xid", [46, 62])
def test_a_gpu_that_needs_a_reset_is_not_merely_watched(xid: int) -> None:
    assert BOOK.events["kernel.xid"][xid].severity is Severity.CRITICAL


# -- well, although it is not ------------------------------------------------------------


def test_a_gpu_that_waits_for_a_reset_is_not_well(node: Node) -> None:
    node.machine.inject("recovery-action", gpu=3)
    found = [one for _ in range(4) for one in node.look(15)]
    assert {one.code for one in found} == {"GPU_RECOVERY_ACTION"}


def test_what_could_not_be_looked_at_is_not_called_well(tmp_path: Path) -> None:
    nodes.gpu(tmp_path, DEVICE, driver="")
    nodes.write(tmp_path, {"sys/class/infiniband": "rubbish"})
    result = json.loads(json.dumps(scan(Host(tmp_path), Expectations(gpus=8), BOOK, "/none").json()))
    assert result["verdict"] != "ok"


def test_a_contained_memory_error_takes_no_gpu_for_ever() -> None:
    """Xid 94 alone is recorded: what it leaves to do, and when that is done, NVML's remap state says."""
    memory, findings = rules.begin(None, "boot"), list[Finding]()
    for number in itertools.count():
        event = Reading("kernel.xid", DEVICE, 94, moment=f"boot/{number}", at=1000.0 + number)
        judged, memory = rules.judge(BOOK, [event], memory, 1000.0 + number)
        findings += judged
        if number == 3:
            break
    assert {one.severity for one in findings} == {Severity.WARNING}
    assert not any(one.lasting for one in findings)
