"""Probes on threads: deadlines, one call at a time, and nothing that keeps a process from ending."""

import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from slurm_health.model import Reading, Report
from slurm_health.probes.runner import RELIEF, Runner

READING = Reading("r", "d", 1)


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    made.close()


def wait(runner: Runner) -> list[Report]:
    assert select.select([runner.fileno()], [], [], 10)[0]
    return runner.collect(0.0)


def test_what_a_probe_brings(runner: Runner) -> None:
    assert runner.start("one", lambda: iter([READING]), 5, 0.0)
    [report] = wait(runner)
    assert (report.probe, report.readings, report.error) == ("one", (READING,), "")
    assert not select.select([runner.fileno()], [], [], 0)[0]
    assert runner.outstanding() == {}


def test_a_probe_that_fails_is_a_report(runner: Runner) -> None:
    def fail() -> Iterator[Reading]:
        yield READING
        raise OSError("gone while it was read")

    runner.start("one", fail, 5, 0.0)
    [report] = wait(runner)
    assert (report.readings, report.error) == ((), "OSError: gone while it was read")


def test_a_probe_that_hangs_is_told_once_and_not_started_again(runner: Runner) -> None:
    release = threading.Event()

    def hang() -> list[Reading]:
        release.wait(20)
        return [READING]

    assert runner.start("one", hang, 5, now=100.0)
    assert not runner.start("one", hang, 5, now=101.0)
    assert runner.collect(104.0) == []
    [report] = runner.collect(106.0)
    assert (report.probe, report.error) == ("one", "no answer within 5 s")
    assert runner.collect(107.0) == []
    assert runner.outstanding() == {"one": 100.0}
    assert runner.start("other", lambda: [READING], 5, 107.0)
    assert [one.probe for one in wait(runner)] == ["other"]
    release.set()
    [late] = wait(runner)
    assert (late.error, late.readings) == ("", (READING,))
    assert runner.start("one", list, 5, 200.0)
    wait(runner)


def test_a_desk_is_one_thread(runner: Runner) -> None:
    threads: list[int] = []

    def look() -> list[Reading]:
        threads.append(threading.get_ident())
        return [READING]

    for name in ("one", "two", "three"):
        runner.start(name, look, 5, 0.0, "desk")
    came: list[str] = []
    while len(came) < 3:
        came += [report.probe for report in wait(runner)]
    assert came == ["one", "two", "three"]
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_those_behind_a_probe_that_hangs_get_another_thread(runner: Runner) -> None:
    begun, release = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def look() -> list[Reading]:
        threads.append(threading.current_thread())
        return [READING]

    def hang() -> list[Reading]:
        begun.set()
        release.wait(20)
        return look()

    now = time.monotonic()
    runner.start("hung", hang, 5, now, "desk")
    runner.start("behind", look, 5, now, "desk")
    assert begun.wait(10)
    assert runner.collect(now) == []
    assert not threads  # a moment is nothing to be relieved for
    runner.collect(time.monotonic() + RELIEF + 0.1)
    assert [one.probe for one in wait(runner)] == ["behind"]
    assert list(runner.outstanding()) == ["hung"]
    release.set()
    assert [one.probe for one in wait(runner)] == ["hung"]
    threads[1].join(10)
    assert not threads[1].is_alive()  # that had hung: one thread is enough again
    runner.start("hung", look, 5, now, "desk")
    wait(runner)
    assert threads[2] is threads[0]


def test_a_probe_without_news_wakes_nobody(runner: Runner) -> None:
    def woken() -> list[Reading]:
        return [Reading("woken", "", bool(select.select([runner.fileno()], [], [], 0)[0]))]

    runner.start("none", lambda: None, 5, 0.0, "desk")
    runner.start("look", woken, 5, 0.0, "desk")
    none, look = wait(runner)
    assert (none.probe, none.readings, none.error) == ("none", (), "")
    assert [one.value for one in look.readings] == [False]


def test_a_probe_that_hangs_does_not_hold_up_the_end() -> None:
    code = (
        "import time\nfrom slurm_health.probes.runner import Runner\n"
        "r = Runner(); r.start('x', lambda: time.sleep(600), 1, 0.0); r.close()\n"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0
    assert time.monotonic() - began < 10
