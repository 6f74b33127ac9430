"""Cards: who holds which GPU is read from them or unknown, never guessed, whatever lies in the folder."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health import cards
from slurm_health.cards import KEEP, LARGEST, CardBox, RawCard, dated, devices, holder, parse
from slurm_health.model import Card

WHOLE = "job=4711\nuid=1000\ngpus=0,3\nrestarts=2\nuptime=500\n"
CARD = RawCard(4711, 2, 1000, (0, 3), 500.0)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


# -- one card


def test_a_whole_card() -> None:
    assert parse(WHOLE) == CARD
    assert parse(WHOLE + "refused=510\nended=520\n") == RawCard(4711, 2, 1000, (0, 3), 500, 520, 510)


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_card_that_is_still_being_written_is_no_card(length: int) -> None:
    assert parse(WHOLE[:length]) is None


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("", ()),
        ("0", (0,)),
        ("0,1,2,3,4,5,6,7", tuple(range(8))),
        ("?", None),
        ("0,", None),
        ("0-3", None),
        ("a100:2", None),
        ("-1", None),
        ("\u0661", None),
        ("9" * 12, None),
    ],
)
def test_gpus_that_make_no_sense_are_unknown_and_none_are_none(
    gpus: str, expected: tuple[int, ...] | None
) -> None:
    card = parse(WHOLE.replace("gpus=0,3", f"gpus={gpus}"))
    assert card
    assert card.gpus == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "ended=5\n",
        WHOLE.replace("job=4711", "job="),
        WHOLE.replace("job=4711", "job=-1"),
        WHOLE.replace("job=4711", "job=47e2"),
        WHOLE.replace("job=4711", f"job={'9' * 12}"),
        WHOLE.replace("restarts=2\n", ""),
        WHOLE.replace("restarts=2", "restarts= 2"),
        WHOLE.replace("uptime=500", "uptime=1.5"),
        WHOLE.replace("uid=1000", "uid=root"),
        WHOLE + "ended=soon\n",
        WHOLE.replace("\n", "\r\n"),
        "\x00" * 4000,
    ],
)
def test_what_is_no_card_is_none(text: str) -> None:
    assert parse(text) is None


def test_an_unset_uid_is_no_reason_to_lose_the_job() -> None:
    card = parse(WHOLE.replace("uid=1000", "uid="))
    assert card
    assert card.uid == 0


def test_the_first_line_of_a_key_holds() -> None:
    # Were it not refused by the prolog, a line feed in a value could forge only later lines.
    assert parse(WHOLE + "job=1\ngpus=7\n") == CARD
    assert parse(WHOLE + "refused=510\nrefused=511\n") == RawCard(4711, 2, 1000, (0, 3), 500, 0, 510)


@given(
    st.text() | st.lists(st.sampled_from(["job=1\n", "gpus=0\n", "uptime=9\n", "restarts=0\n", "x", "\n"]))
)
def test_any_text_is_a_card_or_none(text: str | list[str]) -> None:
    card = parse(text if isinstance(text, str) else "".join(text))
    assert card is None or (card.job >= 0 and card.uptime >= 0)


# -- the folder


def test_cards_are_read_and_read_again_when_they_change(jobs: Path) -> None:
    file = jobs / "4711.2"
    file.write_text(WHOLE[:20])
    box = CardBox(jobs)
    assert box.read(600) == []
    file.write_text(WHOLE)
    assert box.read(600) == [CARD]
    with file.open("a") as appended:
        appended.write("refused=600\n")
    [card] = box.read(601)
    assert card.refused == 600
    file.unlink()
    assert box.read(602) == []


def test_an_unchanged_card_is_not_read_again(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (jobs / "4711.2").write_text(WHOLE)
    box = CardBox(jobs)
    read: list[str] = []

    def counted(text: str) -> RawCard | None:
        read.append(text)
        return parse(text)

    monkeypatch.setattr(cards, "parse", counted)
    for _ in range(5):
        assert box.read(600) == [CARD]
    assert len(read) == 1


def test_an_ended_card_is_kept_a_while_and_then_removed(jobs: Path) -> None:
    file = jobs / "4711.2"
    file.write_text(WHOLE + "ended=600\n")
    (jobs / "4712.0").write_text(WHOLE.replace("4711", "4712"))
    box = CardBox(jobs)
    assert len(box.read(600 + KEEP)) == 2
    assert file.exists()
    assert [card.job for card in box.read(601 + KEEP)] == [4712]
    assert not file.exists()
    assert [card.job for card in CardBox(jobs).read(1e9)] == [4712]  # a live job's card is never removed


def test_no_folder_means_no_cards(tmp_path: Path) -> None:
    assert CardBox(tmp_path / "absent").read(1) == []
    (tmp_path / "file").write_text(WHOLE)
    assert CardBox(tmp_path / "file").read(1) == []


@pytest.fixture
def littered(jobs: Path, tmp_path: Path) -> Path:
    """A folder in which somebody left all that a folder can hold, around one card."""
    (jobs / "4711.2").write_text(WHOLE)
    outside = tmp_path / "outside"
    outside.write_text(WHOLE.replace("4711", "6666") + "ended=1\n")
    (jobs / "link").symlink_to(outside)
    (jobs / "dangling").symlink_to(tmp_path / "nowhere")
    (jobs / "loop").symlink_to(jobs)
    (jobs / "folder").mkdir()
    (jobs / "folder/5.0").write_text(WHOLE.replace("4711", "5"))
    os.mkfifo(jobs / "fifo")
    (jobs / "huge").write_text(WHOLE.replace("4711", "7777") + "x" * LARGEST)
    with (jobs / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    (jobs / "binary").write_bytes(bytes(range(256)))
    (jobs / "empty").touch()
    (jobs / "new\nline").write_text(WHOLE[:-1])
    (jobs / os.fsdecode(b"\xff\xfe")).write_text("rubbish")
    (jobs / "5555.0").write_text(WHOLE.replace("4711", "5555"))
    if os.geteuid() == 0:
        os.chown(jobs / "5555.0", 65534, 65534)  # somebody's who can write here
    else:
        (jobs / "5555.0").unlink()
    return jobs


def test_litter_is_passed_by(littered: Path, tmp_path: Path) -> None:
    before = sorted(littered.iterdir())
    box = CardBox(littered)
    for now in (600, 1e6):
        assert box.read(now) == [CARD]
    assert sorted(littered.iterdir()) == before
    assert (tmp_path / "outside").exists()  # nothing behind a link is read, or removed


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root can read everything, so the test is not root for a while."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)


def test_a_card_that_cannot_be_read_hides_no_other(nobody: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        jobs = Path(folder)
        (jobs / "1.0").write_text(WHOLE)
        (jobs / "1.0").chmod(0)
        (jobs / "4711.2").write_text(WHOLE)
        assert CardBox(jobs).read(600) == [CARD]


# -- times and devices


GPUS = {0: "0000:18:00.0", 3: "0000:5d:00.0"}
SAME = {0: 0, 3: 3}


def test_a_card_in_the_worlds_terms() -> None:
    raw = RawCard(4711, 2, 1000, (0, 3), 500.0, 520.0, 510.0)
    held = devices(raw, SAME, GPUS)
    assert held == ("0000:18:00.0", "0000:5d:00.0")
    assert dated(raw, held, boot=1_699_999_500.0) == Card(
        4711, 2, 1000, held, 1_700_000_000.0, 1_700_000_020.0, 1_700_000_010.0
    )


@pytest.mark.parametrize(
    ("gpus", "minors", "known", "expected"),
    [
        ((), None, {}, ()),
        (None, SAME, GPUS, None),
        ((0,), None, GPUS, None),
        ((0,), {}, GPUS, None),
        ((0, 7), SAME, GPUS, None),
        ((0, 3), SAME, {0: "0000:18:00.0"}, None),
        ((0,), {0: 3}, GPUS, ("0000:5d:00.0",)),
        ((0,), {0: 3, 3: 0}, GPUS, ("0000:5d:00.0",)),
    ],
    ids=[
        "none",
        "no sense",
        "no mapping",
        "empty mapping",
        "one unmapped",
        "one unseen",
        "mapped",
        "swapped",
    ],
)
def test_what_cannot_be_told_of_one_gpu_makes_all_unknown(
    gpus: tuple[int, ...] | None,
    minors: dict[int, int] | None,
    known: dict[int, str],
    expected: tuple[str, ...] | None,
) -> None:
    raw = RawCard(1, 0, 0, gpus, 5.0)
    assert devices(raw, minors, known) == expected


def test_what_has_not_happened_has_no_time() -> None:
    card = dated(CARD, None, boot=400.0)
    assert (card.ended, card.refused) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("held", "expected"),
    [((), ("0000:5d:00.0",)), (("0000:18:00.0",), ("0000:18:00.0",)), (None, None)],
    ids=["told of none", "told", "unknown"],
)
def test_whose_prolog_was_told_of_no_gpu_holds_what_it_is_seen_on(
    held: tuple[str, ...] | None, expected: tuple[str, ...] | None
) -> None:
    assert dated(CARD, held, 0.0, {"0000:5d:00.0": (0,)}).devices == expected
    assert dated(CARD, held, 0.0).devices == held


GPU = "0000:3b:00.0"


@pytest.mark.parametrize(
    ("runs", "who"),
    [
        ([], ""),
        ([Card(7, 1, 1000, (GPU,), 50.0)], "7.1/1000"),
        ([Card(7, 1, 1000, (GPU,), 150.0)], ""),  # not yet
        ([Card(7, 1, 1000, (GPU,), 50.0, ended=90.0)], ""),  # no longer
        ([Card(7, 1, 1000, (GPU,), 50.0, ended=99.0), Card(8, 0, 7, (GPU,), 200.0)], "7.1/1000"),
        ([Card(7, 1, 1000, (GPU,), 50.0), Card(8, 0, 7, (), 50.0)], "7.1/1000"),
        ([Card(7, 1, 1000, (GPU,), 50.0), Card(8, 0, 7, (GPU,), 50.0)], ""),  # one of two
        ([Card(7, 1, 1000, (GPU,), 50.0), Card(8, 0, 7, None, 50.0)], ""),
        ([Card(7, 1, 1000, None, 50.0)], ""),
    ],
)
def test_who_held_a_device(runs: list[Card], who: str) -> None:
    assert holder(runs, GPU, 99.5) == who
