"""What each driver says in the kernel log, over the kernels' versions, and what only looks like it."""

import random
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health.probes.kernel import Event, Record, parse_message, readings
from slurm_health.probes.kernel.nvlink import UNITS, decode


def lines(name: str) -> list[str]:
    text = (Path(__file__).parent / "kernel" / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def said(line: str) -> tuple[str, Event]:
    head, _, text = line.partition(" | ")
    name, device, value, pid = head.split()
    return text.replace("\\n", "\n"), Event(
        f"kernel.{name}", device.strip("-"), value, int(pid) if pid != "-" else 0
    )


SAID = dict(map(said, lines("said.txt")))
SILENT = lines("silent.txt")


@pytest.mark.parametrize(("text", "event"), SAID.items())
def test_what_the_drivers_say(text: str, event: Event) -> None:
    assert parse_message(text) == event


@pytest.mark.parametrize("text", SAID)
def test_only_as_a_whole_line(text: str) -> None:
    before = "overlayfs: mount option "  # longer than a program's name, which may be "x: a"
    for quoted in (f"{before}{text}", f"kernel: {before}{text}", f'{before}"{text}" or missing value'):
        assert parse_message(quoted) is None, quoted
    assert parse_message(f"{text}\nNVRM: more") is None
    assert parse_message(f"{text}\x1b[31m") is None


@pytest.mark.parametrize("text", SILENT)
def test_what_is_no_fault_or_only_goes_with_one(text: str) -> None:
    assert parse_message(text) is None


# -- what a user can write into the kernel's lines ---------------------------------------

NAMES = (
    *SAID,
    "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    "NVRM: Xid (0000:03:00): 79, x",
    "NVRM: Xid (00000000:03:00.0): 79, x",
    "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30",
)
# what the kernel prints around a name that a user chose: a process's or an interface's
AROUND = (
    "{}[4242]: segfault at 0 ip 0000000000401136 sp 00007ffd error 4 in prog[401000+1000]",
    "{}[4242]: segfault at 0 ip 401136 sp 7ffd error 4 in p[401000+1000] likely on CPU 3 (core 3, socket 0)",
    "{}[4242]: bad frame in rt_sigreturn frame:00007ffc",
    "traps: {}[4242] general protection fault ip:401136 sp:7ffc error:0 in prog[401000+1000]",
    "{} (4242): drop_caches: 3",
    "{}: page allocation failure: order:4, mode:0x40dc0(GFP_KERNEL), nodemask=(null),cpuset=/,mems_allowed=0",
    "{}/4242: potentially unexpected fatal signal 11.",
    "{} (4242) used greatest stack depth: 12345 bytes left",
    "{}[4242] vsyscall attempted with vsyscall=none ip:ffffffffff600000 cs:33 sp:7ffc",
    "{}: renamed from eth0",
    "{}: entered promiscuous mode",
    "{}: Caught tx_queue_len zero misconfig",
    "{}4242, x",
    "warning: `{}' uses 32-bit capabilities (legacy support in use)",
    'audit: type=1701 audit(1732195261.1:7): auid=1000 uid=1000 pid=4242 comm="{}" exe="/tmp/x" sig=11 res=1',
)


def test_fifteen_characters_forge_nothing() -> None:
    for line in NAMES:
        for length in range(16):
            for name in (
                line[:length],
                line[length : length + 15],
                line[: length - 1] + "7" if length else "",
            ):
                for pattern in AROUND:
                    text = pattern.format(name.replace("\n", " "))
                    assert parse_message(text) is None, text


LONGER = (  # texts of any length: mount options, paths, labels, groups, names of loaded programs
    'overlayfs: unrecognized mount option "{}" or missing value',
    "tmpfs: Unknown parameter '{}'",
    "process '{}' started with executable stack",
    "cgroup: fork rejected by pids controller in /{}",
    "Memory cgroup stats for /{}:",
    "Tasks in /{} killed as a result of limit of /{}",
    "usb 1-1: Product: {}",
    "squashfs: version 4.0 {}",
    "ISO 9660 Extensions: {}",
    "netlink: 4 bytes leftover after parsing attributes in process `{}'.",
)


@pytest.mark.parametrize("pattern", LONGER)
def test_longer_texts_forge_nothing(pattern: str) -> None:
    for line in NAMES:
        text = pattern.format(line.replace("\n", " "), line)
        assert parse_message(text) is None, text


@given(st.text(max_size=15), st.sampled_from(AROUND))
def test_no_name_forges_an_event(name: str, pattern: str) -> None:
    assert parse_message(pattern.format(name)) is None


@given(st.text(min_size=1, max_size=15).filter(str.isprintable))
def test_a_name_that_a_true_line_quotes_changes_nothing(name: str) -> None:
    for text in (
        f"INFO: task {name}:4242 blocked for more than 120 seconds.",
        f"watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [{name}:4242]",
        f"{name} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        f"Out of memory: Killed process 4242 ({name}) total-vm:1kB, anon-rss:1kB",
        f"EXT4-fs error (device sda1): ext4_lookup:1855: inode #2: comm {name}: deleted inode referenced: 13",
    ):
        found = parse_message(text)
        assert found is not None
        assert found.value in ("hung", "soft", "invoked", "killed", "error")
        assert found.pid in (0, 4242)


def test_a_thousand_hostile_lines_find_nothing() -> None:
    """Cut, spliced and scrambled lines; long ones on which a careless pattern would never come to its end."""
    chance = random.Random(7)
    bases = [one for one in (*NAMES, *SILENT) if " invoked oom-killer" not in one]  # whoever it names
    hostile = []
    for _ in range(3000):
        one, other = chance.choice(bases), chance.choice(bases)
        cut = chance.randrange(1, max(2, min(len(one), 15)))
        hostile.append(
            one[:cut] + other[chance.randrange(len(other)) :][:15] + "[4242]: segfault at 0 ip 0 sp 0"
        )
    for one in bases:
        hostile += [f"{one[:-1]}\x00", f"\ufffd{one}", " " + one, one.swapcase() + "~", one * 40 + "\x7f"]
        hostile += [
            f"mlx5{one[:9] * 400}",
            f"EDAC MC0: 1 CE {' on (' * 900}",
            f"XFS (a): {'Shutting ' * 400}",
        ]
    assert [text for text in hostile if parse_message(text)] == []


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    parse_message(text)
    for line in (
        "EXT4-fs error (device ",
        "mlx5_core 0000:3b:00.0: ",
        "EDAC MC0: 1 CE ",
        "nvme nvme0: ",
        "XFS (",
    ):
        parse_message(line + text)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_text(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for found in readings([Record(0, 4, 1, 0, text)], "b", 1.0, 1.0):
        assert isinstance(found.value, int | str)


# -- NVLink 5 ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["before", "since"])
def test_every_unit_in_both_layouts(layout: str) -> None:
    for xid, units in UNITS.items():
        for unit in units:
            low = getattr(unit, layout)
            for word in ("reset", "ignore", "follow"):
                for number in getattr(unit, word):
                    info = low | number << 20 if unit.by_cause else low
                    assert decode(xid, unit.names[-1], info, number) == word
            if not unit.by_cause:
                assert decode(xid, unit.names[0], low | 1 << 20, 0) == ""


@pytest.mark.parametrize(
    ("xid", "said", "detail"),
    [
        # from a GB200 before R575, and as the catalogue has them since
        (145, "RLW_SRC_TRACK Nonfatal XC1 i0 Link 12 (0x040988e2 0x00000008 0x0)", "follow"),
        (149, "NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000 0x0)", "reset"),
        (149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 00 (0x026001c6 0x00000000 0x0)", "ignore"),
        (149, "NETIR_LINK_EVT/NETIR_LINK_DOWN Fatal XC0 i0 Link 00 (0x02500011 0x0 0x0)", "reset"),
        (149, "NETIR_BER_EVENT Nonfatal XC0 i0 Link 03 (0x00086226 0x00000001 0x0)", "ignore"),
        (150, "MSE Degraded Fatal XC0 i0 Link -1 (0x00000000 0xffffffff)", "reset"),
        (144, "SAW_MVB Nonfatal XC0 i0 Link 00 (0x00000001 0x00000002 0x0)", "reset"),
        (144, "SAW_EGR Nonfatal XC0 i0 Link 00 (0x00000004 0x00000001 0x0)", "nonfatal"),
        (145, "RLW_REMAP Fatal XC0 i0 Link 00 (0x00000004 0x00400000 0x0)", "fatal"),
        (149, "NETIR_MFDE_EVENT Fatal XC0 i0 Link 00 (0x00000014", "fatal"),
        (149, "NETIR_MFDE_EVENT Fatal, with words of another kind", ""),
    ],
)
def test_the_catalogue_before_the_lines_own_word(xid: int, said: str, detail: str) -> None:
    found = parse_message(f"NVRM: Xid (PCI:0018:01:00): {xid}, {said}")
    assert found == Event("kernel.xid", "0018:01:00.0", xid, 0, detail)


def test_no_unit_reads_as_another() -> None:
    for units in UNITS.values():
        for unit in units:
            assert unit.before & 0x7F != unit.since or unit.before == unit.since == 0


@given(
    st.sampled_from(sorted(UNITS)),
    st.text(string.ascii_uppercase + "_/", max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_any_words_decode_to_something(xid: int, unit: str, number: int) -> None:
    assert re.fullmatch("|reset|ignore|follow", decode(xid, unit, number, number))
