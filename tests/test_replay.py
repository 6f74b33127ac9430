"""Old kernel logs in every form they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health import rules
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


def test_every_line_of_a_burst_is_printed() -> None:
    assert len(list(replay([XID] * 5, BOOK))) == 5


@given(st.lists(st.text(max_size=120), max_size=20))
def test_no_text_raises(lines: list[str]) -> None:
    list(replay(lines, BOOK))
    list(replay([f"4,1,1,-;{line}" for line in lines], BOOK))
