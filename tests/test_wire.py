"""What passes between node and controller, and who may say it: nothing malformed, forged, old or twice."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_health import signing, wire
from slurm_health.cards import RANKS
from slurm_health.model import Card, Finding, Severity, Urgency
from slurm_health.signing import Hmac, Munge, Refused
from slurm_health.tenants import SEATED
from slurm_health.wire import Decision, Malformed, NodeReport

FOUND = Finding(
    "GPU_XID_79",
    Severity.CRITICAL,
    "0000:5d:00.0",
    "GPU has fallen off the bus",
    "NVRM: Xid (PCI:0000:5d:00): 79, pid='<unknown>'",
    Urgency.NOW,
    1_700_000_000.25,
    "6f1c/4711",
    False,
    {"gpu": 3, "uuid": "GPU-9a", "pci": "0000:5d:00.0"},
)
REPORT = NodeReport(
    node="n1",
    boot="6f1c",
    sent=1_700_000_001.5,
    opened=(FOUND, replace(FOUND, code="IB_PORT_DOWN", device="mlx5_4/1", moment="6f1c/IB/1", lasting=True)),
    standing=("6f1c/IB/1",),
    cards=(
        Card(7, 1, 1000, ("0000:5d:00.0",), 1.7e9, 0.0, 1_700_000_002.0),
        Card(8, 0, 1000, None, 1.7e9, ranks={"0000:5d:00.0": (37, 38), "0000:18:00.0": ()}),
        Card(9, 0, 1000, (), 1.7e9, 1.7e9),
    ),
    blind={"gpu": "no answer within 10 s"},
    verdict="warn",
)


# -- round trips


def test_a_report_comes_back_as_it_went() -> None:
    assert wire.node_report(wire.encode(REPORT)) == REPORT


def test_a_decision_comes_back_as_it_went() -> None:
    said = Decision("GPU_XID_79(0000:5d:00.0) gone", "a note", "requeue")
    assert wire.decision(wire.encode(said)) == said
    assert wire.decision(b"{}") == Decision()


def test_the_version_of_a_decision_is_its_content() -> None:
    assert Decision("x").version == Decision("x").version
    versions = {
        one.version
        for one in (
            Decision(),
            Decision("x"),
            Decision(note="x"),
            Decision(mode="drain"),
        )
    }
    assert len(versions) == 4


PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=30)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)
MOMENTS = st.floats(0, 2e9)
FINDINGS = st.builds(
    Finding, NAMES, st.sampled_from(Severity), PRINTABLE, PRINTABLE, PRINTABLE, st.sampled_from(Urgency),
    MOMENTS, NAMES, st.booleans(), st.dictionaries(NAMES, PRINTABLE | st.integers(0, 10**9), max_size=3),
)  # fmt: skip
CARDS = st.builds(
    Card, st.integers(1, 2**32 - 1), st.integers(0, 9), st.integers(0, 2**32 - 1),
    st.none() | st.lists(PRINTABLE, max_size=3).map(tuple), MOMENTS, MOMENTS, MOMENTS,
)  # fmt: skip
REPORTS = st.builds(
    NodeReport, NAMES, PRINTABLE, MOMENTS, st.lists(FINDINGS, max_size=3).map(tuple),
    st.lists(PRINTABLE, max_size=3).map(tuple), st.lists(CARDS, max_size=3).map(tuple),
    st.dictionaries(NAMES, PRINTABLE, max_size=3), PRINTABLE, st.integers(0, 9), PRINTABLE, st.integers(0, 9),
    st.none() | st.floats(-1e9, 1e9),
)  # fmt: skip


@given(REPORTS)
def test_any_report_comes_back_as_it_went(report: NodeReport) -> None:
    assert wire.node_report(wire.encode(report)) == report


@given(st.text())
def test_cleaned_text_may_be_sent(text: str) -> None:
    report = replace(REPORT, opened=(replace(FOUND, text=wire.clean(text)),))
    assert wire.node_report(wire.encode(report)) == report


# -- older and newer speakers


def test_missing_fields_have_defaults() -> None:
    assert wire.node_report(b'{"node": "n1"}') == NodeReport("n1")
    said = wire.node_report(
        b'{"node": "n1", "opened": [{"code": "GPU_XID_79", "moment": "b/1"}], "cards": [{"job": 7}]}'
    )
    # What an older node does not say condemns nothing.
    assert said.opened == (Finding("GPU_XID_79", Severity.WARNING, "", "", job=Urgency.NONE, moment="b/1"),)
    assert said.cards == (Card(7, 0, 0, None),)


def test_unknown_fields_are_ignored() -> None:
    table = json.loads(wire.encode(REPORT))
    table["colour"] = {"deep": [1, 2]}
    table["opened"][0]["weight"] = "heavy"
    table["cards"][0]["partition"] = "gpu"
    table["version"] = 99
    assert wire.node_report(json.dumps(table).encode()) == replace(REPORT, version=99)
    assert wire.decision(b'{"refuse": "x", "more": 1}') == Decision("x")


# -- malformed


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(wire.encode(REPORT)) | changes).encode()


def found(**changes: Any) -> bytes:
    return changed(opened=[{"code": "X", "moment": "m"} | changes])


def card(**changes: Any) -> bytes:
    return changed(cards=[{"job": 7, "restarts": 0} | changes])


MALFORMED = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"node": "\xff"}',
    "a list": b"[]",
    "null": b"null",
    "deeply nested": b"[" * 200_000,
    "nested below a key": b'{"node": "n1", "x": ' + b"[" * 200_000,
    "no node": b"{}",
    "empty node": changed(node=""),
    "node is a number": changed(node=7),
    "long node": changed(node="n" * 257),
    "line feed in node": changed(node="n1\nn2"),
    "escape in node": changed(node="n1\x1b[2J"),
    "half a character in node": changed(node="n\ud800"),
    "sent is text": changed(sent="now"),
    "sent is true": changed(sent=True),
    "sent is NaN": b'{"node": "n1", "sent": NaN}',
    "sent is infinite": b'{"node": "n1", "sent": 1e999}',
    "sent before the epoch": changed(sent=-1),
    "opened is a table": changed(opened={}),
    "opened holds text": changed(opened=["x"]),
    "too much opened": changed(opened=[{"code": "X", "moment": str(n)} for n in range(501)]),
    "no code": found(code=""),
    "code is long": found(code="X" * 41),
    "no moment": found(moment=""),
    "unknown severity": found(severity="fatal"),
    "severity is a list": found(severity=["critical"]),
    "severity is a table": found(severity={}),
    "unknown urgency": found(job="yesterday"),
    "urgency is null": found(job=None),
    "long evidence": found(evidence="x" * 1001),
    "line feed in evidence": found(evidence="a\nb"),
    "hardware is text": found(hardware="GPU 3"),
    "hardware is a list": found(hardware=["GPU 3"]),
    "hardware holds a table": found(hardware={"gpu": {}}),
    "hardware is true": found(hardware={"gpu": True}),
    "hardware is below zero": found(hardware={"gpu": -1}),
    "line feed in hardware": found(hardware={"serial": "1\n2"}),
    "too much hardware": found(hardware={str(n): n for n in range(33)}),
    "since is far away": found(since=1e14),
    "since is before the epoch": found(since=-1e14),
    "sent is huge": b'{"node": "n1", "sent": 1' + b"0" * 400 + b"}",
    "sent has too many digits": b'{"node": "n1", "sent": ' + b"1" * 5000 + b"}",
    "standing holds numbers": changed(standing=[1]),
    "job is text": card(job="7"),
    "job is negative": card(job=-7),
    "refused is far away": card(refused=1e14),
    "devices is text": card(devices="all"),
    "too many devices": card(devices=["x"] * 257),
    "devices hold numbers": card(devices=[0]),
    "blind is a list": changed(blind=[]),
    "too much blind": changed(blind={str(n): "" for n in range(101)}),
    "verdict is long": changed(verdict="x" * 1001),
}  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused_in_words(body: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        wire.node_report(body)
    assert str(caught.value)


def test_why_a_probe_is_blind_may_be_any_text() -> None:
    said = wire.node_report(changed(blind={"gpu\n": "line\nfeed \ud800 \x1b[2J" + "x" * 2000, "nic": 7}))
    assert set(said.blind) == {"gpu ", "nic"}
    for key, value in said.blind.items():
        assert key.isprintable()
        assert value.isprintable()
        assert len(value) <= 1000


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
KEYS = [
    "node",
    "boot",
    "sent",
    "opened",
    "standing",
    "cards",
    "blind",
    "verdict",
    "version",
    "code",
    "severity",
    "device",
    "text",
    "evidence",
    "job",
    "since",
    "moment",
    "lasting",
    "hardware",
    "restarts",
    "uid",
    "devices",
    "started",
    "ended",
    "refused",
    "refuse",
    "paused",
    "note",
    "mode",
]
ALIKE = st.recursive(
    SCALARS | st.sampled_from(["critical", "now", "n1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=8),
    max_leaves=30,
)
SOUND = {"code": st.just("X"), "moment": st.just("m")}
NEARLY = st.fixed_dictionaries(
    {"node": st.just("n1")},
    optional={
        "opened": st.lists(
            st.fixed_dictionaries(SOUND, optional=dict.fromkeys(KEYS[10:16], SCALARS)),
            max_size=2,
        ),
        "cards": st.lists(
            st.fixed_dictionaries({}, optional=dict.fromkeys(["job", *KEYS[18:23]], ANYTHING)), max_size=2
        ),
        "blind": st.dictionaries(st.text(), ANYTHING, max_size=3),
        "sent": SCALARS,
    },
)


@settings(max_examples=300)
@given(ANYTHING | ALIKE | NEARLY)
def test_anything_is_a_report_or_malformed(value: object) -> None:
    body = json.dumps(value).encode()
    for parse in (wire.node_report, wire.decision):
        try:
            said = parse(body)
        except Malformed as error:
            assert str(error)
        else:
            assert parse(wire.encode(said)) == said


@given(st.binary(max_size=200))
def test_any_bytes_are_a_report_or_malformed(body: bytes) -> None:
    try:
        wire.node_report(body)
    except Malformed as error:
        assert str(error)


def test_the_largest_report_fits_the_limit() -> None:
    largest = replace(FOUND, text="t" * 64, evidence="x" * 500, device="d" * 100, moment="m" * 100)
    ranks = {f"0000:{bus:02x}:00.0": (2**32,) * RANKS for bus in range(16)}
    report = replace(
        REPORT,
        opened=tuple(replace(largest, moment=f"m{n:0299}") for n in range(wire.MANY)),
        standing=tuple(f"m{n:099}" for n in range(wire.MANY)),
        cards=tuple(
            Card(n, 9, 2**32 - 1, ("0000:5d:00.0",) * 8, 1.7e9, 1.7e9, 1.7e9, ranks if n < SEATED else {})
            for n in range(wire.MANY)
        ),
    )
    assert len(wire.encode(report)) < wire.LIMIT


# -- what is signed


def test_the_payload_covers_the_whole_request() -> None:
    seals = {
        signing.payload("POST", "/v1/report", b"x"),
        signing.payload("GET", "/v1/report", b"x"),
        signing.payload("POST", "/v1/decision", b"x"),
        signing.payload("POST", "/v1/report", b"y"),
        signing.payload("POST", "/v1/report", b""),
    }
    assert len(seals) == 5


PAYLOAD = signing.payload("POST", "/v1/report", b"{}")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text("k" * 64 + "\n")
    return file


def test_hmac_knows_its_own(key: Path) -> None:
    assert Hmac(str(key)).signer(Hmac(str(key)).sign(PAYLOAD), PAYLOAD) == 0


def test_hmac_refuses_a_replay(key: Path) -> None:
    door, seal = Hmac(str(key)), Hmac(str(key)).sign(PAYLOAD)
    door.signer(seal, PAYLOAD)
    with pytest.raises(Refused, match="replay"):
        door.signer(seal, PAYLOAD)
    assert door.signer(Hmac(str(key)).sign(PAYLOAD), PAYLOAD) == 0


@pytest.mark.parametrize(
    "forge",
    [
        lambda seal: "",
        lambda seal: "HMAC",
        lambda seal: "HMAC ",
        lambda seal: "HMAC ::",
        lambda seal: seal[:-1] + ("0" if seal[-1] != "0" else "1"),
        lambda seal: seal.replace("HMAC ", "HMAC 1"),
        lambda seal: seal.replace("HMAC", "MUNGE"),
        lambda seal: seal + "ü",
        lambda seal: "HMAC nan:x:" + "0" * 64,
    ],
)
def test_hmac_refuses_a_forgery(key: Path, forge: Any) -> None:
    door = Hmac(str(key))
    with pytest.raises(Refused, match="no HMAC of ours"):
        door.signer(forge(door.sign(PAYLOAD)), PAYLOAD)


def test_hmac_refuses_another_message_and_another_key(key: Path, tmp_path: Path) -> None:
    door = Hmac(str(key))
    with pytest.raises(Refused):
        door.signer(door.sign(PAYLOAD), signing.payload("POST", "/v1/report", b"{ }"))
    other = tmp_path / "other"
    other.touch(0o600)
    other.write_text("o" * 64)
    with pytest.raises(Refused):
        door.signer(Hmac(str(other)).sign(PAYLOAD), PAYLOAD)


@dataclass
class Clock:
    now: float

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    it = Clock(time.time())
    monkeypatch.setattr(signing, "time", it)
    return it


@pytest.mark.parametrize("lag", [-301.0, 301.0])
def test_hmac_refuses_what_was_not_signed_just_now(key: Path, clock: Clock, lag: float) -> None:
    door = Hmac(str(key))
    seal = door.sign(PAYLOAD)
    clock.now += lag
    with pytest.raises(Refused, match=r"signed -?301 s ago"):
        door.signer(seal, PAYLOAD)


@pytest.mark.parametrize("ahead", [0.0, 150.0, 299.0])
def test_hmac_remembers_a_message_as_long_as_it_would_hold(key: Path, clock: Clock, ahead: float) -> None:
    door = Hmac(str(key))
    clock.now += ahead  # the sender's clock is fast
    seal = door.sign(PAYLOAD)
    clock.now -= ahead
    door.signer(seal, PAYLOAD)
    for _ in range(70):
        clock.now += 10
        door.signer(door.sign(PAYLOAD), PAYLOAD)
        with pytest.raises(Refused):
            door.signer(seal, PAYLOAD)
    assert len(door.seen) <= 62  # and no longer


def test_hmac_accepts_once_also_when_heard_many_times_at_once(key: Path) -> None:
    door = Hmac(str(key))
    accepted: list[int] = []
    troubles: list[BaseException] = []

    def hear(seals: list[str]) -> None:
        for seal in seals:
            try:
                accepted.append(door.signer(seal, PAYLOAD))
            except Refused:
                continue
            except BaseException as error:
                troubles.append(error)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        seals = [door.sign(PAYLOAD) for _ in range(300)]
        threads = [threading.Thread(target=hear, args=(seals,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert troubles == []
    assert len(accepted) == 300


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(Refused, match="chmod 600"):
        Hmac(str(key))


def test_a_short_or_absent_key_is_refused(key: Path, tmp_path: Path) -> None:
    key.write_text("k" * 31 + "\n")
    with pytest.raises(Refused, match="shorter than 32 bytes"):
        Hmac(str(key))
    with pytest.raises(Refused, match=r"absent: No such file"):
        Hmac(str(tmp_path / "absent"))


# -- MUNGE


@dataclass
class Munged:
    socket: str

    def by_another(self, payload: bytes) -> str:
        """A credential of an ordinary user."""
        shown = subprocess.run(
            ["munge", "-s", payload.decode(), "-S", self.socket],
            capture_output=True,
            check=True,
            text=True,
            user=NOBODY.pw_uid,
            group=NOBODY.pw_gid,
            extra_groups=[],
        )
        return f"MUNGE {shown.stdout.strip()}"


NOBODY = pwd.getpwnam("nobody")


@pytest.fixture(scope="module")
def munged() -> Iterator[Munged]:
    """A private munged."""
    program = shutil.which("munged", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not program:
        pytest.skip("munge is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # for other users
        (folder / "key").touch(0o600)
        (folder / "key").write_bytes(os.urandom(128))
        options = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "seed-file": "seed",
            "log-file": "log",
        }
        process = subprocess.Popen(
            [program, "--foreground", "--force", "--num-threads=1",
             *(f"--{option}={folder}/{file}" for option, file in options.items())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with process:
            try:
                end = time.monotonic() + 20
                while True:
                    try:
                        Munge(str(folder / "socket")).sign(b"")
                        break
                    except Refused:
                        log = folder / "log"
                        assert process.poll() is None, log.read_text() if log.exists() else "munged ended"
                        assert time.monotonic() < end
                        time.sleep(0.01)
                yield Munged(str(folder / "socket"))
            finally:
                process.terminate()


def test_munge_tells_who_signed(munged: Munged) -> None:
    munge = Munge(munged.socket)
    assert munge.signer(munge.sign(PAYLOAD), PAYLOAD) == os.getuid()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_munge_tells_another_user(munged: Munged) -> None:
    assert Munge(munged.socket).signer(munged.by_another(PAYLOAD), PAYLOAD) == NOBODY.pw_uid


def test_munge_refuses_a_replay(munged: Munged) -> None:
    munge = Munge(munged.socket)
    seal = munge.sign(PAYLOAD)
    munge.signer(seal, PAYLOAD)
    with pytest.raises(Refused, match=r"[Rr]eplayed"):
        munge.signer(seal, PAYLOAD)


def test_munge_refuses_a_credential_for_another_message(munged: Munged) -> None:
    munge = Munge(munged.socket)
    for other in (PAYLOAD + b"0", PAYLOAD[:-1], b"", signing.payload("POST", "/v1/report", b"{ }")):
        with pytest.raises(Refused, match="another message"):
            munge.signer(munge.sign(PAYLOAD), other)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("", "no MUNGE credential"),
        ("MUNGE", "MUNGE: "),
        ("MUNGE ", "MUNGE: "),
        ("MUNGE x", "MUNGE: Invalid credential"),
        ("MUNGE MUNGE:AwQDAAD:", "MUNGE: "),
        ("MUNGE ü", "another kind"),
        ("Bearer abc", "another kind: 'Bearer'"),
        ("HMAC " + "x" * 100_000, "another kind: 'HMAC'"),
    ],
)
def test_munge_refuses_what_is_no_credential(munged: Munged, header: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        Munge(munged.socket).signer(header, PAYLOAD)


def test_munge_refuses_a_changed_credential(munged: Munged) -> None:
    munge = Munge(munged.socket)
    seal = munge.sign(PAYLOAD)
    middle = len(seal) // 2
    with pytest.raises(Refused):
        munge.signer(seal[:middle] + ("A" if seal[middle] != "A" else "B") + seal[middle + 1 :], PAYLOAD)


def test_munge_says_that_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"MUNGE: .*[Ss]ocket"):
        Munge(str(tmp_path / "socket")).sign(PAYLOAD)


def test_munge_from_many_threads(munged: Munged) -> None:
    munge = Munge(munged.socket)
    uids: list[int] = []

    def work() -> None:
        for number in range(20):
            said = b"%d" % number
            uids.append(munge.signer(munge.sign(said), said))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert uids == [os.getuid()] * 80


def test_the_site_names_the_way_of_signing(
    munged: Munged, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(signing.signature("hmac", key_file=str(key)), Hmac)
    monkeypatch.setenv("MUNGE_SOCKET", munged.socket)
    assert signing.signature("munge").sign(PAYLOAD).startswith("MUNGE MUNGE:")
    monkeypatch.setenv("MUNGE_SOCKET", "/nonexistent")
    assert signing.signature("munge", munged.socket).sign(PAYLOAD).startswith("MUNGE MUNGE:")
