"""From lines of the kernel log to findings: what acts, what is recorded, what only its repeats make bad."""

from dataclasses import replace

import pytest

from slurm_health import rules
from slurm_health.model import Finding, Reading, Severity, Urgency
from slurm_health.probes.kernel import Record, readings
from slurm_health.rules import begin, judge
from slurm_health.sandbox.faults import kernel_lines, sxid_lines, xid_lines

BOOK = rules.load()
GPU = "0000:3b:00.0"
CRITICAL, WARNING = Severity.CRITICAL, Severity.WARNING
NOW, FINISH, NONE = Urgency.NOW, Urgency.FINISH, Urgency.NONE


class Node:
    """Reads one text after another from its kernel log, and judges."""

    def __init__(self) -> None:
        self.memory = begin(None, "boot")
        self.sequence = 0

    def __call__(self, at: float, *texts: str, user: int = 0) -> list[Finding]:
        records = []
        for text in texts:
            self.sequence += 1
            records.append(Record(0, 4, self.sequence, int(at * 1e6), text))
        found = [
            replace(one, job=f"{user}.0/{user}" if user else "") for one in readings(records, "boot", at, at)
        ]
        said, self.memory = judge(BOOK, found, self.memory, at)
        return list(said)


def brief(found: list[Finding]) -> list[tuple[str, str, Severity, Urgency]]:
    return [(one.code, one.device, one.severity, one.job) for one in found]


@pytest.mark.parametrize(
    ("fault", "kind", "expected"),
    [
        ("aer", "fatal", [("PCIE_ERRORS", GPU, CRITICAL, FINISH)]),
        ("aer", "nonfatal", [("PCIE_ERRORS", GPU, WARNING, NONE)]),
        ("aer", "corrected", []),
        ("mlx5", "compromised", [("NIC_HEALTH", GPU, CRITICAL, FINISH)]),
        ("mlx5", "command", [("NIC_HEALTH", GPU, WARNING, NONE)]),
        ("mlx5", "cable", [("NIC_HEALTH", GPU, WARNING, NONE)]),
        ("mlx5", "hot", [("NIC_HEALTH", GPU, WARNING, NONE)]),
        ("memory", "uncorrected", [("MEM_ECC_UNCORRECTED", "", CRITICAL, FINISH)]),
        ("memory", "corrected", []),
        (
            "disk",
            "dead",
            [("DISK_ERRORS", "nvme0", CRITICAL, FINISH), ("DISK_ERRORS", "nvme0", WARNING, NONE)],
        ),
        ("disk", "timeout", [("DISK_ERRORS", "nvme0", WARNING, NONE)]),
        ("disk", "medium", [("DISK_ERRORS", "nvme0n1", WARNING, NONE)]),
        (
            "disk",
            "io",
            [("DISK_ERRORS", "nvme0n1", WARNING, NONE), ("DISK_ERRORS", "nvme0n1p2", WARNING, NONE)],
        ),
        ("filesystem", "error", [("DISK_ERRORS", "nvme0n1p2", WARNING, NONE)]),
        (
            "readonly",
            "readonly",
            [("DISK_READ_ONLY", "nvme0n1p2", CRITICAL, FINISH), ("DISK_ERRORS", "nvme0n1p2", WARNING, NONE)],
        ),
        ("hung-task", "hung", [("KERNEL_HUNG_TASK", "", WARNING, NONE)]),
        ("lockup", "soft", [("KERNEL_LOCKUP", "", WARNING, NONE)]),
        ("lockup", "hard", [("KERNEL_LOCKUP", "", CRITICAL, FINISH)]),
        ("lockup", "stall", [("KERNEL_LOCKUP", "", WARNING, NONE)]),
        ("oom", "group", [("KERNEL_OOM", "", WARNING, NONE)]),
        ("oom", "host", [("KERNEL_OOM", "", WARNING, NONE)]),
    ],
)
def test_one_event_of_each_kind(
    fault: str, kind: str, expected: list[tuple[str, str, Severity, Urgency]]
) -> None:
    found = Node()(100.0, *kernel_lines(fault, kind, GPU))
    assert brief(found) == expected
    assert all(not one.lasting and one.evidence and one.since == 100.0 for one in found)


def test_a_gpu_off_the_bus_is_one_finding_however_often_it_is_said() -> None:
    [found] = Node()(100.0, *xid_lines(79, 3, GPU, "1650"))
    assert brief([found]) == [("GPU_XID_79", GPU, CRITICAL, NOW)]
    [found] = Node()(100.0, f"NVRM: GPU {GPU}: GPU has fallen off the bus.")
    assert brief([found]) == [("GPU_XID_79", GPU, CRITICAL, NOW)]


def test_a_burst_and_its_rate_limited_rest_is_one_finding() -> None:
    lines = [kernel_lines("aer", "nonfatal", GPU)[1]] * 500 + ["aer: 1200 callbacks suppressed"]
    assert len(Node()(100.0, *lines)) == 1


@pytest.mark.parametrize("code", [48, 79, 95, 119, 120, 175])
def test_these_alone_are_critical_and_their_jobs_go_now(code: int) -> None:
    assert brief(Node()(100.0, xid_lines(code, 3, GPU, "1650")[0])) == [
        (f"GPU_XID_{code}", GPU, CRITICAL, NOW)
    ]


@pytest.mark.parametrize("code", [45, 63, 64, 94])
def test_these_alone_are_recorded(code: int) -> None:
    assert brief(Node()(100.0, xid_lines(code, 3, GPU, "1650")[0])) == [
        (f"GPU_XID_{code}", GPU, WARNING, NONE)
    ]


@pytest.mark.parametrize("code", [13, 31])
def test_application_errors_act_when_they_repeat_under_several_users(code: int) -> None:
    line = xid_lines(code, 3, GPU, "1650")[0]
    node = Node()
    for hour in range(10):  # one user, whatever he does, and nobody known
        assert brief(node(3600.0 * hour, line, user=1000)) == [(f"GPU_XID_{code}", GPU, WARNING, NONE)]
        assert brief(node(3600.0 * hour + 60, line)) == [(f"GPU_XID_{code}", GPU, WARNING, NONE)]
    assert node(36000.0, line, user=1001)[0].severity is WARNING
    [found] = node(36100.0, line, user=1002)
    assert brief([found]) == [(f"GPU_XID_{code}", GPU, CRITICAL, NONE)]
    other = line.replace("3b:00", "5d:00")
    assert node(36200.0, other, user=1003)[0].severity is WARNING


@pytest.mark.parametrize(
    ("fault", "kind", "times", "apart", "severity"),
    [
        ("aer", "corrected", 30, 60.0, WARNING),
        ("memory", "corrected", 10, 60.0, WARNING),
        ("mlx5", "command", 3, 600.0, CRITICAL),
        ("disk", "timeout", 5, 3600.0, CRITICAL),
        ("disk", "medium", 5, 3600.0, CRITICAL),
        ("filesystem", "error", 5, 3600.0, CRITICAL),
    ],
)
def test_what_repeats_is_worse(fault: str, kind: str, times: int, apart: float, severity: Severity) -> None:
    node = Node()
    lines = kernel_lines(fault, kind, GPU)
    for number in range(1, times):
        assert all(one.severity < severity for one in node(number * apart, *lines))
    assert severity in {one.severity for one in node(times * apart, *lines)}
    assert all(one.severity < severity for one in node(times * apart + 10 * 86400, *lines))


def test_an_array_that_goes_on_without_a_member_is_in_service() -> None:
    lost = "md/raid1:md1: Disk failure on sda1, disabling device.\nmd/raid1:md1: Operation continuing on 1"
    assert brief(Node()(1.0, lost)) == [("DISK_ERRORS", "md1", WARNING, NONE)]
    dead = "md/raid:md5: Cannot continue operation (2/6 failed)."
    assert [one.severity for one in Node()(1.0, dead)] == [CRITICAL]


def test_a_link_that_its_port_took_down_is_one_finding_of_the_device() -> None:
    found = Node()(
        100.0,
        f"pcieport 0000:3a:01.0: DPC: containment event, status:0x1f05, ERR_FATAL received from {GPU}",
        f"pcieport 0000:3a:01.0: AER: Uncorrectable (Fatal) error message received from {GPU}",
    )
    assert brief(found) == [("PCIE_ERRORS", GPU, CRITICAL, FINISH)]


def test_a_switch_that_is_too_hot_and_one_that_is_off() -> None:
    line = "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): {:05}, TSENSE OVERT Threshold reached. Shutting Down"
    assert [one.severity for one in Node()(1.0, line.format(10004))] == [WARNING]
    assert [one.severity for one in Node()(1.0, line.format(10006))] == [CRITICAL]


def test_what_a_user_mounts_is_the_users() -> None:
    node = Node()
    for hour in range(30):
        assert node(hour * 600.0,
            "Buffer I/O error on dev loop3, logical block 0, async page read",
            "EXT4-fs error (device loop3): ext4_lookup:1855: inode #2: comm a: deleted inode referenced: 13",
            "EXT4-fs (loop3): Remounting filesystem read-only") == []  # fmt: skip


def test_nvlink_5_by_the_catalogue() -> None:
    assert [one.severity for one in Node()(1.0, xid_lines(149, 3, GPU, "")[0])] == [CRITICAL]
    tolerable = "NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x026001c6 0x00000000 0x00000000)"
    assert [one.severity for one in Node()(1.0, f"NVRM: Xid (PCI:0000:3b:00): 149, {tolerable}")] == [WARNING]
    unknown = "NETIR_NEW Fatal XC0 i0 Link 08 (0x026001ff 0x00000000 0x00000000)"
    assert [one.severity for one in Node()(1.0, f"NVRM: Xid (PCI:0000:3b:00): 149, {unknown}")] == [CRITICAL]


def test_nothing_that_a_user_can_bring_about_requeues() -> None:
    theirs = ("kernel.hung_task", "kernel.oom")
    for rule in BOOK.rules:
        if rule.reading in theirs or (rule.reading == "kernel.xid" and rule.distinct):
            assert rule.job is NONE
        if rule.reading.startswith("kernel.") and rule.severity is not CRITICAL:
            assert rule.job is NONE


def test_the_readings_of_all_rules_are_what_a_grammar_can_say() -> None:
    said: dict[str, set[object]] = {}
    for line in (
        *sxid_lines(20034, 0, "0000:05:00.0"),
        *(text for text in _known()),
    ):
        for one in readings([Record(0, 4, 1, 0, line)], "b", 1.0, 1.0):
            said.setdefault(one.name, set()).add(one.value)
    for rule in BOOK.rules:
        if rule.reading.startswith("kernel.") and rule.reading != "kernel.xid":
            assert any(rule.when.holds(value) for value in said[rule.reading]), rule.name  # type: ignore[arg-type]
    for name, values in said.items():
        if name in ("kernel.xid", "kernel.sxid"):
            continue
        for value in values:
            one = Reading(name, "sda", value, moment="m")  # type: ignore[arg-type]
            assert any(rule.when.holds(one.value) for rule in BOOK.by_reading[name]), (name, value)


def _known() -> list[str]:
    from test_grammars import SAID

    return list(SAID)
