"""Old kernel logs in every form they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_grammars import SAID

from slurm_health import rules
from slurm_health.logformats import message
from slurm_health.replay import replay

BOOK = rules.load()
XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=12, name=python3, GPU has fallen off the bus."
KERNEL = (
    "{}",
    "4,17,123,-;{}",
    "[   12.345678] {}",
    "[12345.678901] {}",
    "[Sun Feb 23 16:24:18 2025] {}",
    "[Sat Mar  1 06:04:08 2025] {}",
    "2025-01-17T15:36:26,478501+00:00 {}",
    "kern  :warn  : 2025-01-21T04:41:44,283302+00:00 {}",
    "kern  :err   : [   12.345678] {}",
    "<4>[  201.654822] {}",
    "2025-01-02T15:20:12+0800 gpu001 kernel: {}",
    "2025-01-02T15:20:12.123456+08:00 gpu001 kernel: [ 12.345678] {}",
    "Jan  2 15:20:12 gpu001 kernel: {}",
    "Jan 12 15:20:12 gpu001.example.org kernel: [12345.678901] {}",
    "[Sun Dec 1 14:54:40 2024] gpu001 kernel: {}",
    "gpu001 kernel: {}",
    "kernel: {}",
    "[12345.678901] [T4242] {}",
    "[   12.345678][  C12] {}",
    "Jan 02 15:20:12 kernel: {}",
    "Jan  2 15:20:12  kernel: {}",
    "jan. 29 20:50:17 gpu001 kernel: {}",
    "M\u00e4r 29 20:50:17 gpu001 kernel: {}",
    "11\u6708 15 14:15:47 gpu001 kernel: {}",
    "Do 2025-01-02 15:20:12 CET gpu001 kernel: {}",
    "2025-01-02T15:20:12+00:00 kernel: {}",
    "[<    0.000123>] {}",
    "[   12.345678 <    0.000123>] {}",
    "[Sat Mar  1 06:04:08 2025 <    0.000123>] {}",
    "[Nov21 23:28] {}",
    "[Nov 1 23:28] {}",
    "[  +0.000123] {}",
    "kern  :err   : [   12.345678] [  T4242] {}",
    "<4>[  201.654822][ T4242] {}",
    "Jan 02 15:20:12.123456 gpu001 kernel: {}",
    "Thu 2025-01-02 15:20:12 UTC gpu001 kernel: {}",
    "Thu 2025-01-02 15:20:12.123456 CET gpu001 kernel: {}",
    "1735831212.123456 gpu001 kernel: {}",
    "[   12.345678] gpu001 kernel: {}",
    "[   12.345678 <    0.000123 >] gpu001 kernel: {}",
    "Jan  2 15:20:12 gpu001 kernel: [   12.345678][ T4242] {}",
    "Jan  2 15:20:12 gpu001 kernel: [   12.345678][  C12] {}",
    "Jan  2 15:20:12 gpu001 kernel: message repeated 9 times: [ {}]",
    "kernel: message repeated 9 times: [{}]",
    "Jan  2 15:20:12 gpu001 kernel: message repeated 2 times: [ [12345.678901] {}]",
)
OTHERS = (
    "12,17,123,-;{}",
    "30,17,123,-;{}",
    "user  :warn  : 2025-01-21T04:41:44,283302+00:00 {}",
    "daemon:info  : [   12.345678] {}",
    "2025-01-02T15:20:12+0800 gpu001 python3[123]: {}",
    "2025-01-02T15:20:12+0800 gpu001 kernel[123]: {}",
    "Jan  2 15:20:12 gpu001 root: {}",
    "Jan  2 15:20:12 gpu001 kernel-exporter[9]: {}",
    "[Dec 19 2024 19:17:49] [ERROR] [tid 1579] {}",
    "W0326 15:43:36.380682   12398 reflector.go:458] {}",
    "{} ".join(["quoted: ", ""]),
    "4,17,123;{}",
    "<30>[  201.654822] systemd[1]: {}",
    "<12>[  201.654822] {}",
    "gpu001 python3: {}",
    "gpu001 kernel[12]: {}",
    "Thu 2025-01-02 15:20:12 UTC gpu001 python3[123]: {}",
    "jan. 29 20:50:17 gpu001 python3: {}",
    "Jan 02 15:20:12 kernel[123]: {}",
    "1735831212.123456 gpu001 python3[123]: {}",
    "[   12.345678] gpu001 python3[123]: {}",
    "[] {}",
    "Jan  2 15:20:12 gpu001 python3[9]: message repeated 9 times: [ {}]",
)


@pytest.mark.parametrize("form", KERNEL)
def test_what_the_kernel_wrote(form: str) -> None:
    assert list(replay(["nothing\n", form.format(XID) + "\n"], BOOK)) == [
        {
            "line": 2,
            "code": "GPU_XID_79",
            "device": "0000:3b:00.0",
            "severity": "critical",
            "xid": 79,
            "pid": 12,
            "text": XID,
        }
    ]


@pytest.mark.parametrize("form", KERNEL)
def test_whatever_the_kernel_wrote(form: str) -> None:
    for text in SAID:
        if "\n" not in text:
            assert message(form.format(text)) == text


@pytest.mark.parametrize("form", OTHERS)
def test_what_somebody_else_wrote(form: str) -> None:
    assert list(replay([form.format(XID)], BOOK)) == []


def test_an_nvswitch_event() -> None:
    [one] = replay(["nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"], BOOK)
    assert (one["code"], one["severity"], one["xid"], one["pid"]) == (
        "NVSWITCH_SXID_20034",
        "critical",
        None,
        None,
    )


LOST = (
    "NVRM: The NVIDIA GPU 0000:3b:00.0",
    "NVRM: (PCI ID: 10de:2330) installed in this system has",
    "NVRM: fallen off the bus and is not responding to commands.",
)


@pytest.mark.parametrize("form", KERNEL[2:-3])
def test_a_message_over_several_lines_is_one_event_at_its_first(form: str) -> None:
    lines = [form.format(line) for line in LOST]
    found = list(replay(["x", *lines, form.format(XID)], BOOK))
    assert [(one["line"], one["code"], one["xid"]) for one in found] == [
        (2, "GPU_XID_79", None),
        (5, "GPU_XID_79", 79),
    ]
    assert len(list(replay([lines[0], *(f"    {line}" for line in LOST[1:])], BOOK))) == 1
    assert list(replay([lines[0], form.format("NVRM: loading"), *lines[1:]], BOOK)) == []
    assert list(replay(lines[:1], BOOK)) == []


@pytest.mark.parametrize(
    ("text", "code", "severity"),
    [
        ("nvidia 0000:3b:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
         "PCIE_ERRORS", "ok"),
        ("Buffer I/O error on dev sda1, logical block 7, async page read", "DISK_ERRORS", "warning"),
        ("Buffer I/O error on dev loop0, logical block 7, async page read", "DISK_ERRORS", "ok"),
        ("EXT4-fs (sda1): Remounting filesystem read-only", "DISK_READ_ONLY", "critical"),
        ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 3", "KERNEL_LOCKUP", "critical"),
        ("INFO: task python3:4242 blocked for more than 120 seconds.", "KERNEL_HUNG_TASK", "warning"),
    ],
)  # fmt: skip
def test_how_bad_a_line_is_by_itself(text: str, code: str, severity: str) -> None:
    [one] = replay([text], BOOK)
    assert (one["code"], one["severity"], one["xid"]) == (code, severity, None)


def test_a_message_whose_line_breaks_were_written_out() -> None:
    [one] = replay([f"Jan  2 15:20:12 gpu001 kernel: {'#012'.join(LOST)}"], BOOK)
    assert (one["code"], one["device"]) == ("GPU_XID_79", "0000:3b:00.0")


def test_every_line_of_a_burst_is_printed() -> None:
    assert len(list(replay([XID] * 5, BOOK))) == 5


@given(st.lists(st.text(max_size=120), max_size=20))
def test_no_text_raises(lines: list[str]) -> None:
    list(replay(lines, BOOK))
    list(replay([f"4,1,1,-;{line}" for line in lines], BOOK))
