"""What outlives a restart of the node's daemon: whole or not at all, and never in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_health.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


@pytest.mark.parametrize("synced", [True, False])
def test_what_is_saved_is_there_after_a_restart(state: State, synced: bool) -> None:
    state.save("a.json", '{"b": 1}', synced)
    state.save("a.json", '{"b": "\u00e9"}', synced)
    again = State(state.folder)
    assert (again.text("a.json"), again.value("a.json")) == ('{"b": "\u00e9"}', {"b": "\u00e9"})
    assert [entry.name for entry in state.folder.iterdir()] == ["a.json"]


@pytest.mark.parametrize("rubbish", [b"", b"{", b"\0" * 100, b"\xff\xfe", b"[" * 100_000])
def test_what_cannot_be_read_was_never_written(state: State, rubbish: bytes) -> None:
    assert (state.text("a"), state.value("a")) == ("", None)
    (state.folder / "a").write_bytes(rubbish)
    assert state.value("a") is None


def test_what_cannot_be_written_leaves_the_old(state: State, caplog: pytest.LogCaptureFixture) -> None:
    state.save("a", "old")
    (state.folder / ".a").mkdir()
    state.save("a", "new")
    assert state.text("a") == "old"
    assert f"{state.folder}/a: Is a directory" in caplog.text
