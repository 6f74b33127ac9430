"""The kernel log: records, grammars, what cannot be forged, and how a log is followed."""

import errno
import os
import select
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health.host import Host
from slurm_health.probes.kernel import Event, KernelLog, Record, parse_message, parse_record, readings

FALLEN = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


# -- records -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (b"4,17,1234567,-;hello", Record(0, 4, 17, 1234567, "hello")),
        (b"12,18,5,-;from a process", Record(1, 4, 18, 5, "from a process")),
        (b"6,0,0,-;", Record(0, 6, 0, 0, "")),
        (b"6,1,2,c;part", Record(0, 6, 1, 2, "part")),
        (b"6,1,2,-,caller=T123;more fields", Record(0, 6, 1, 2, "more fields")),
        (b"6,1,2,-;a;b,c", Record(0, 6, 1, 2, "a;b,c")),
        (rb"6,1,2,-;tab\x09 back\x5cslash \xc3\xa9", Record(0, 6, 1, 2, "tab\t back\\slash \u00e9")),
    ],
)
def test_a_record_in_the_form_of_dev_kmsg(line: bytes, record: Record) -> None:
    assert parse_record(line) == record


@pytest.mark.parametrize(
    "line",
    [b"", b";", b"hello", b"6,1,2;x", b"6,1;x", b"a,b,c,-;x", b"-6,1,2,-;x", b" SUBSYSTEM=pci", b"6,1,2,-"],
)
def test_what_is_no_record(line: bytes) -> None:
    assert parse_record(line) is None


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    parse_record(data)
    parse_record(b"6,1,2,-;" + data)
    parse_message(data.decode("utf-8", "replace"))
    parse_message("NVRM: Xid (PCI:0000:3b:00): 149, " + data.decode("utf-8", "replace"))


# -- grammars ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (FALLEN, Event("kernel.xid", "0000:3b:00.0", 79)),
        (
            "NVRM: Xid (PCI:0000:3B:00): 79, GPU has fallen off the bus.",
            Event("kernel.xid", "0000:3b:00.0", 79),
        ),
        ("NVRM: Xid (0000:03:00): 14, Channel 00000001", Event("kernel.xid", "0000:03:00.0", 14)),
        ("NVRM: Xid (PCI:00000000:3b:00.0): 48, x", Event("kernel.xid", "0000:3b:00.0", 48)),
        ("NVRM: Xid (PCI:00010000:3b:00): 48, x", Event("kernel.xid", "10000:3b:00.0", 48)),
        (
            "NVRM: Xid (PCI:0000:0f:00): 94, pid=2503421, name=python3, Ch 00000008",
            Event("kernel.xid", "0000:0f:00.0", 94, 2503421),
        ),
        (
            "NVRM: Xid (PCI:0008:01:00): 145, RLW Nonfatal XC0 i0 Link 1 (0x4), A Fatal XC0 i0 Link 1 (0x4)",
            Event("kernel.xid", "0008:01:00.0", 145),
        ),
        (
            "NVRM: Xid (PCI:0000:0f:00 GPU-I:05): 94, pid=2503421, name=python3, Contained: CE User Channel",
            Event("kernel.xid", "0000:0f:00.0", 94, 2503421),
        ),
        (
            "NVRM: Xid (PCI:0000:0f:00 GPU-I:05 GPU-CI:00): 45, pid=77, name=p, Ch 8 caused by previous Xid",
            Event("kernel.xid", "0000:0f:00.0", 45, 77),
        ),
        ("NVRM: Xid (PCI:0000:0f:00): 119, ", Event("kernel.xid", "0000:0f:00.0", 119)),
        ("NVRM: Xid (PCI:0000:0f:00): 119,", Event("kernel.xid", "0000:0f:00.0", 119)),
        (
            "NVRM: Xid (PCI:0000:0f:00): 79, pid=77, name=a\n\x1b[31mb, GPU has fallen off the bus.",
            Event("kernel.xid", "0000:0f:00.0", 79, 77),
        ),
        ("NVRM: Xid (PCI:0000:01:00): 31, pid=XXX", Event("kernel.xid", "0000:01:00.0", 31)),
        ("NVRM: Xid (PCI:0000:01:00): 31, pid=123456", Event("kernel.xid", "0000:01:00.0", 31, 123456)),
        (
            "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x0 0x0)",
            Event("kernel.xid", "0018:01:00.0", 149, 0, "reset"),
        ),
        (
            "NVRM: Xid (PCI:0008:01:00): 145, pid=11436, name=a, b, RLW Nonfatal XC1 i0 Link -1 (0x1 0x8)",
            Event("kernel.xid", "0008:01:00.0", 145, 11436, "nonfatal"),
        ),
        (
            "NVRM: Xid (PCI:0019:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x4 (Drain)",
            Event("kernel.xid", "0019:01:00.0", 154, 0, "drain_and_reset"),
        ),
        (
            "NVRM: Xid (PCI:0019:01:00): 154, GPU recovery action changed from 0x1 (x) to 0x0 (None)",
            Event("kernel.xid", "0019:01:00.0", 154, 0, "none"),
        ),
        (
            "NVRM: Xid (PCI:0019:01:00): 154, GPU recovery action changed from 0x1 (x) to 0x63 (New)",
            Event("kernel.xid", "0019:01:00.0", 154, 0, "unknown_99"),
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress PRIV error",
            Event("kernel.sxid", "0000:05:00.0", 12028, 0, "nonfatal"),
        ),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            Event("kernel.sxid", "0000:05:00.0", 20034, 0, "fatal"),
        ),
        ("nvidia-nvswitch12: SXid (PCI:0000:05:00.0): 1, Fatality", Event("kernel.sxid", "0000:05:00.0", 1)),
    ],
)
def test_what_the_drivers_say(text: str, event: Event) -> None:
    assert parse_message(text) == event


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NVRM: Xid",
        "NVRM: Xid (invalid): some error",
        "NVRM: Xid (PCI:0000:3b:00): x79, no",
        "NVRM: Xid (PCI:0000:3b:00): 79[1234]: segfault at 0 ip 401136 sp 7ffc error 4 in a[400000+1000]",
        "NVRM: Xid (PCI:0000:3b:00) 79, no colon",
        "NVRM: Xid (PCI:0000:3b:00): 79, first\nNVRM: Xid (PCI:0000:3b:00): 79, second",
        "NVRM: Xid (PCI:0000:3b:00): 79, \x1b[31mred",
        " NVRM: Xid (PCI:0000:3b:00): 79, indented",
        "kernel: NVRM: Xid (PCI:0000:3b:00): 79, quoted",
        "nvrm: Xid (PCI:0000:3b:00): 79, lower case",
        "NVRM: Xid (PCI:0000:3b:00): \u0667\u0669, digits of another script",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=7, name=a\nlonger than any name, GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:3b:00 GPU-I:05 x): 79, no such instance",
        "NVRM: _kgspLogXid119: ********** GSP Timeout **********",
        "NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x62:0x55:2568)",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.86.15",
        "nvidia-nvswitch: SXid (PCI:0000:05:00.0): 20034, Fatal, no number",
        "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): xyz, Fatal error",
        "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Data {0x50610002, 0x10100030}",
        "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Severity 1 Engine instance 30 Sub-engine 0",
        "nvidia-nvswitch2: open (major=510)",
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    assert parse_message(text) is None


@given(st.text(max_size=15).filter(str.isprintable))
def test_a_program_name_cannot_turn_a_harmless_nvlink_error_into_a_fatal_one(name: str) -> None:
    text = (
        f"NVRM: Xid (PCI:0008:01:00): 145, pid=7, name={name}, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x4 0x0)"
    )
    event = parse_message(text)
    assert event is not None
    assert event.detail in ("nonfatal", "")
    assert event.value == 145


@given(st.text(max_size=15))
def test_no_program_name_hides_an_xid(name: str) -> None:
    text = f"NVRM: Xid (PCI:0000:3b:00): 79, pid=7, name={name}, GPU has fallen off the bus."
    assert parse_message(text) == Event("kernel.xid", "0000:3b:00.0", 79, 7)
    text = f"NVRM: Xid (PCI:0000:3b:00): 154, pid=7, name={name}, " + (
        "GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)"
    )
    assert parse_message(text) == Event("kernel.xid", "0000:3b:00.0", 154, 7, "drain_and_reset")


@pytest.mark.parametrize("name", ["A Fatal XC0 i0", "x, A Fatal XC0", ", A Fatal XC0 ", "a, B Fatal XC0 "])
def test_names_that_try_to_be_fatal(name: str) -> None:
    text = (
        f"NVRM: Xid (PCI:0008:01:00): 145, pid=7, name={name}, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x4 0x0)"
    )
    event = parse_message(text)
    assert event is not None
    assert event.detail == "nonfatal"


def test_only_the_kernel_reports_a_kernel_fault() -> None:
    records = [Record(1, 4, 1, 0, FALLEN), Record(3, 4, 2, 0, FALLEN), Record(0, 4, 3, 0, FALLEN)]
    assert [one.moment for one in readings(records, "boot", 0.0, 0.0)] == ["boot/3"]


def test_a_reading_says_when_and_who() -> None:
    record = Record(0, 4, 9, 40_000_000, "NVRM: Xid (PCI:0000:0f:00): 94, pid=77, name=p, Ch 8")
    [one] = readings([record], "b", now=1000.0, clock=50.0)
    assert (one.name, one.value, one.device, one.pid) == ("kernel.xid", 94, "0000:0f:00.0", 77)
    assert (one.moment, one.at, one.evidence) == ("b/9", 990.0, record.text)


def test_an_event_is_never_in_the_future() -> None:
    [one] = readings([Record(0, 4, 9, 99_000_000, FALLEN)], "b", now=1000.0, clock=50.0)
    assert one.at == 1000.0


# -- the log -----------------------------------------------------------------------------


@pytest.fixture
def kmsg(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    path = tmp_path / "dev/kmsg"
    path.write_bytes(b"")
    return path


def append(path: Path, data: str) -> None:
    with path.open("ab") as file:
        file.write(data.encode())


def sequences(log: KernelLog) -> list[int]:
    return [record.sequence for record in log.read()]


def readable(log: KernelLog, seconds: float) -> bool:
    fd = log.fileno()
    assert fd is not None
    return bool(select.select([fd], [], [], seconds)[0])


def test_a_file_is_followed(kmsg: Path, tmp_path: Path) -> None:
    append(kmsg, "6,1,1,-;one\n SUBSYSTEM=pci\n6,2,1,-;two\n")
    log = KernelLog(Host(tmp_path))
    assert sequences(log) == [1, 2]
    assert not readable(log, 0)
    append(kmsg, "6,3,1,-;three\n")
    assert readable(log, 5)
    assert sequences(log) == [3]
    assert not readable(log, 0)
    assert (log.sequence, log.malformed, log.lost) == (3, 0, 0)
    log.close()


def test_a_record_without_its_newline_waits(kmsg: Path, tmp_path: Path) -> None:
    log = KernelLog(Host(tmp_path))
    append(kmsg, "6,1,1,-;on")
    assert sequences(log) == []
    append(kmsg, "e\n6,2")
    assert [record.text for record in log.read()] == ["one"]
    append(kmsg, ",1,-;two\n")
    assert sequences(log) == [2]
    log.close()


def test_garbage_is_skipped_and_counted(kmsg: Path, tmp_path: Path) -> None:
    log = KernelLog(Host(tmp_path))
    with kmsg.open("ab") as file:
        file.write(b"\xff\xfe\nnot a record\n6,1,1,-;good\n\n" + b"x" * 100_000 + b"\n6,2,1,-;after\n")
    assert sequences(log) == [1, 2]
    assert log.malformed == 3
    log.close()


def test_what_was_dealt_with_is_left_out(kmsg: Path, tmp_path: Path) -> None:
    append(kmsg, "6,1,1,-;a\n6,2,1,-;b\n6,3,1,-;c\n")
    log = KernelLog(Host(tmp_path), after=2)
    assert sequences(log) == [3]
    log.close()


@pytest.mark.parametrize("way", ["truncate", "replace"])
def test_a_log_that_starts_anew_is_read_from_its_start(kmsg: Path, tmp_path: Path, way: str) -> None:
    append(kmsg, "6,7,1,-;old one\n6,8,1,-;old two\n")
    log = KernelLog(Host(tmp_path), after=7)
    assert sequences(log) == [8]
    if way == "truncate":
        kmsg.write_text("6,0,1,-;new\n")
    else:
        fresh = tmp_path / "dev/fresh"
        fresh.write_text("6,0,1,-;new\n")
        fresh.replace(kmsg)
    assert readable(log, 5)
    assert [record.text for record in log.read()] == ["new"]
    log.close()


def test_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    log = KernelLog(Host(tmp_path))
    assert log.error
    assert log.read() == []
    (tmp_path / "dev/kmsg").write_text("6,1,1,-;one\n")
    assert readable(log, 5)
    assert sequences(log) == [1]
    assert log.error == ""
    log.close()


def test_no_log_at_all_is_no_error_to_die_of(tmp_path: Path) -> None:
    log = KernelLog(Host(tmp_path / "nowhere"))
    assert log.fileno() is None
    assert log.read() == []
    assert log.error
    log.close()


def test_a_fifo_is_followed_and_silent_without_a_writer(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    os.mkfifo(tmp_path / "dev/kmsg")
    log = KernelLog(Host(tmp_path))
    assert not readable(log, 0)
    append(tmp_path / "dev/kmsg", "4,1,1,-;one\n4,2,1,-;tw")
    assert readable(log, 5)
    assert sequences(log) == [1]
    append(tmp_path / "dev/kmsg", "o\n")
    assert sequences(log) == [2]
    assert not readable(log, 0)
    log.close()


def test_a_flood_comes_in_batches_and_keeps_the_poll_awake(kmsg: Path, tmp_path: Path) -> None:
    total = 20_000
    append(kmsg, "".join(f"6,{n},1,-;" + "x" * 50 + "\n" for n in range(total)))
    log = KernelLog(Host(tmp_path))
    seen = sequences(log)
    assert log.more
    assert len(seen) < total
    while log.more:
        seen += sequences(log)
    assert seen == list(range(total))
    log.close()


class Script:
    """Stands for the kernel's device: each read gives the next record or error."""

    def __init__(self, *steps: bytes | int) -> None:
        self.steps = list(steps)

    def read(self, fd: int, size: int) -> bytes:
        step = self.steps.pop(0) if self.steps else errno.EAGAIN
        if isinstance(step, int):
            raise OSError(step, os.strerror(step))
        return step


@pytest.fixture
def device(tmp_path: Path, kmsg: Path, monkeypatch: pytest.MonkeyPatch) -> KernelLog:
    log = KernelLog(Host(tmp_path))
    log._kind = "device"
    return log


def test_the_device_gives_a_record_a_read(device: KernelLog, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(b"6,1,1,-;one\n SUBSYSTEM=pci\n DEVICE=+pci:0000:18:00.0\n", b"4,2,2,-;two\n")
    monkeypatch.setattr(os, "read", script.read)
    assert [record.text for record in device.read()] == ["one", "two"]


def test_overwritten_records_are_counted(device: KernelLog, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(b"6,10,1,-;a\n", errno.EPIPE, b"6,15,1,-;b\n", b"junk\n", b"6,16,1,-;c\n")
    monkeypatch.setattr(os, "read", script.read)
    assert sequences(device) == [10, 15, 16]
    assert (device.lost, device.malformed) == (4, 1)
    monkeypatch.setattr(os, "read", Script(errno.EPIPE, b"6,20,1,-;d\n").read)
    assert sequences(device) == [20]
    assert device.lost == 7


def test_a_device_that_fails_says_so(device: KernelLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "read", Script(b"6,1,1,-;a\n", errno.EIO).read)
    assert sequences(device) == [1]
    assert device.error == os.strerror(errno.EIO)


def test_the_clock_is_the_logs_own(kmsg: Path, tmp_path: Path) -> None:
    log = KernelLog(Host(tmp_path))
    log.read()
    behind = int((time.monotonic() - 50) * 1e6)
    append(kmsg, f"4,1,{behind},-;{FALLEN}\n")
    [one] = readings(log.read(), "b", now=1000.0, clock=log.clock())
    assert one.at == pytest.approx(1000.0, abs=0.5)
    log.close()


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="/dev/kmsg is not readable here")
def test_the_kernels_own_log() -> None:
    log = KernelLog(Host())
    if log.error:
        pytest.skip(f"/dev/kmsg: {log.error}")
    records = log.read()
    assert [record.sequence for record in records] == sorted(record.sequence for record in records)
    assert log.malformed == 0
    log.close()
