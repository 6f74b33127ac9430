"""Who computes on a GPU: what /proc says of a process, and whose rank it is by the cards."""

import os
from pathlib import Path

import pytest

from slurm_health.cards import RANKS, RawCard, ranks
from slurm_health.host import Host
from slurm_health.model import Reading
from slurm_health.probes.process import MOST, process

GPU0, GPU5 = "0000:18:00.0", "0000:ab:00.0"
CARD = RawCard(4711, 0, 1000, (0, 5), 500.0)


def show(root: Path, pid: int, environment: str, uid: int = 1000) -> None:
    folder = root / f"proc/{pid}"
    folder.mkdir(parents=True)
    (folder / "status").write_text(f"Name:\tpython3\nUmask:\t0022\nUid:\t{uid}\t0\t0\t0\n")
    (folder / "environ").write_text("\0".join(environment.split()) + "\0")


def on(pid: int, device: str = GPU5) -> Reading:
    return Reading("gpu.process", device, pid, pid=pid)


def seen(root: Path, *running: Reading) -> dict[str, object]:
    return {one.name: one.value for one in process(Host(root), running)}


def test_what_a_process_says_of_itself(tmp_path: Path) -> None:
    show(tmp_path, 99, "HOME=/ SLURM_JOB_ID=4711 SLURM_PROCID=37 A")
    assert seen(tmp_path, on(99)) == {
        "process.uid": 1000, "process.name": "python3", "process.job": 4711, "process.rank": 37,
    }  # fmt: skip


def test_a_process_of_this_machine() -> None:
    [uid, name, *_] = process(Host(), [on(os.getpid())])
    assert (uid.value, name.name) == (os.getuid(), "process.name")


def test_one_that_has_ended_says_nothing(tmp_path: Path) -> None:
    assert seen(tmp_path, on(99)) == {}


@pytest.mark.parametrize(
    ("daemon", "owner", "told"),
    [("nvidia-cuda-mps", 0, False), ("nvidia-cuda-mps", 1000, True), ("systemd", 0, True)],
)
def test_the_machines_own_mps_server_is_nobodys(tmp_path: Path, daemon: str, owner: int, told: bool) -> None:
    """docs.nvidia.com/deploy/mps: the control daemon starts it, as the user of the first client."""
    for pid, above, name, uid in ((7, 1, daemon, owner), (99, 7, "nvidia-cuda-mps", 1000)):
        show(tmp_path, pid, "", uid)
        status = tmp_path / f"proc/{pid}/status"
        status.write_text(status.read_text().replace("python3", name) + f"PPid:\t{above}\n")
    assert bool(seen(tmp_path, on(99))) is told


@pytest.mark.parametrize("job", ["", "x", "-1", "4711;", "٤٧", "9" * 30])
def test_a_garbled_job_is_none(tmp_path: Path, job: str) -> None:
    show(tmp_path, 99, f"SLURM_JOB_ID={job} SLURM_PROCID={job}")
    assert seen(tmp_path, on(99)).keys() == {"process.uid", "process.name"}


def test_only_so_many_are_read(tmp_path: Path) -> None:
    for pid in range(MOST + 5):
        show(tmp_path, pid, "")
    assert len({one.pid for one in process(Host(tmp_path), map(on, range(MOST + 5)))}) == MOST


def seats(root: Path, *running: Reading, cards: tuple[RawCard, ...] = (CARD,)) -> object:
    return ranks(cards, process(Host(root), running))


def test_ranks_sit_on_devices(tmp_path: Path) -> None:
    for pid, rank in ((1, 8), (2, 9), (3, 10)):
        show(tmp_path, pid, f"SLURM_JOB_ID=4711 SLURM_PROCID={rank}")
    assert seats(tmp_path, on(3), on(2), on(1, GPU0)) == {(4711, 0): {GPU5: (9, 10), GPU0: (8,)}}


def test_a_process_of_another_user_is_not_the_jobs_whatever_it_says(tmp_path: Path) -> None:
    show(tmp_path, 1, "SLURM_JOB_ID=4711 SLURM_PROCID=3", uid=1001)
    assert seats(tmp_path, on(1)) == {}


def test_only_the_last_run_that_lives_is_meant(tmp_path: Path) -> None:
    show(tmp_path, 1, "SLURM_JOB_ID=4711 SLURM_PROCID=3")
    ended, second = RawCard(4711, 0, 1000, (0,), 500, ended=600.0), RawCard(4711, 1, 1000, (0,), 700)
    assert seats(tmp_path, on(1), cards=(second, ended, CARD)) == {(4711, 1): {GPU5: (3,)}}
    assert seats(tmp_path, on(1), cards=(ended,)) == {}


def test_a_swarm_is_bounded(tmp_path: Path) -> None:
    for pid in range(1, 100):
        show(tmp_path, pid, f"SLURM_JOB_ID=4711 SLURM_PROCID={pid}")
    assert seats(tmp_path, *map(on, range(1, 100))) == {(4711, 0): {GPU5: tuple(range(1, RANKS + 1))}}
