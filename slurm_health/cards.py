"""The cards that our prolog writes for each job on a node, and what they say of who holds which GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from slurm_health.model import Card, Reading, Value

KEEP = 900.0  # seconds that an ended card stays: three times MinJobAge's default
LARGEST = 4096  # bytes; a card is some hundred
RANKS = 16  # of one job on one device that are told


@dataclass(frozen=True, slots=True)
class RawCard:
    """A card as it is on disk: uptimes in seconds, GPUs by Slurm's ordinals (None: unknown)."""

    job: int
    restarts: int
    uid: int
    gpus: tuple[int, ...] | None
    uptime: float
    ended: float = 0.0
    refused: float = 0.0
    asked: str = ""


def parse(text: str) -> RawCard | None:
    """The card in `text`; None for one that is not whole: bash writes it line by line."""
    said: dict[str, str] = {}
    for line in text.split("\n")[:-1]:
        key, equals, value = line.partition("=")
        if equals and key not in said:
            said[key] = value
    try:
        gpus = said.get("gpus", "")
        return RawCard(
            job=_whole(said["job"]),
            restarts=_whole(said["restarts"]),
            uid=_whole(said.get("uid") or "0"),
            gpus=_ordinals(gpus),
            uptime=float(_whole(said["uptime"])),
            ended=float(_whole(said.get("ended") or "0")),
            refused=float(_whole(said.get("refused") or "0")),
            asked=said.get("asked", "")[:80],
        )
    except (KeyError, ValueError):
        return None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise ValueError(text)
    return int(text)


def _ordinals(text: str) -> tuple[int, ...] | None:
    try:
        return tuple(_whole(part) for part in text.split(",")) if text else ()
    except ValueError:
        return None


class CardBox:
    """The folder of cards. `read` keeps what it parsed until a file changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, tuple[tuple[int, int], RawCard | None]] = {}

    def read(self, now: float) -> list[RawCard]:
        """All whole cards; those ended long ago are removed. `now`: uptime in seconds."""
        seen: dict[str, tuple[tuple[int, int], RawCard | None]] = {}
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid not in (0, os.geteuid()):
                        continue  # the prolog writes them: this one somebody has planted
                    mark = (status.st_mtime_ns, status.st_size)
                    old = self.known.get(entry.name)
                    card = old[1] if old and old[0] == mark else self._parse(entry.path, status.st_size)
                    if card and card.ended and now - card.ended > KEEP:
                        os.unlink(entry.path)  # noqa: PTH108 (a path from scandir)
                        continue
                    seen[entry.name] = (mark, card)
        self.known = seen
        return [card for _, card in seen.values() if card]

    def _parse(self, path: str, size: int) -> RawCard | None:
        if size > LARGEST:
            return None
        return parse(Path(path).read_text(encoding="ascii", errors="replace"))


def devices(
    card: RawCard, minors: Mapping[int, int] | None, gpus: Mapping[int, str]
) -> tuple[str, ...] | None:
    """The PCI addresses of a card's GPUs. `minors`: Slurm's ordinal to device minor; `gpus`: device minor to
    address. What cannot be told of one GPU makes the whole answer unknown, never a guess."""
    if card.gpus == ():
        return ()
    if card.gpus is None or minors is None:
        return None
    found = [gpus.get(minors.get(ordinal, -1), "") for ordinal in card.gpus]
    return tuple(found) if all(found) else None


def ranks(
    cards: Iterable[RawCard], processes: Iterable[Reading]
) -> dict[tuple[int, int], dict[str, tuple[int, ...]]]:
    """The ranks on each device of each run (job, restarts), from what the `process` probe read.

    A process is a job's by its own environment, so its user must be the job's; and of the job's last run here
    that has not ended.
    """
    runs = {card.job: card for card in sorted(cards, key=lambda card: card.restarts) if not card.ended}
    said: dict[tuple[str, int], dict[str, int]] = {}
    for one in processes:
        if isinstance(one.value, int):
            said.setdefault((one.device, one.pid), {})[one.name] = one.value
    found: dict[tuple[int, int], dict[str, set[int]]] = {}
    for (device, _), its in said.items():
        card = runs.get(its.get("process.job", -1))
        if card and "process.rank" in its and its.get("process.uid") == card.uid:
            found.setdefault((card.job, card.restarts), {}).setdefault(device, set()).add(its["process.rank"])
    return {
        run: {device: tuple(sorted(those)[:RANKS]) for device, those in by_device.items()}
        for run, by_device in found.items()
    }


def leftovers(runs: Iterable[Card], gpus: Iterable[Reading], whose: Iterable[Reading]) -> Iterator[Reading]:
    """What is still on GPUs that no living job holds: `gpu.leftover`, and `gpu.leftover_memory` (MiB in use
    without any process, a desktop's included). `gpus` are NVML's readings, `whose` those of the `process`
    probe.

    Where a living job's GPUs are not known, or with MIG on, nothing can be told. Processes of root are the
    machine's own. Without any run nobody knows whether there are cards at all.
    """
    seen: dict[str, dict[str, Value]] = {}
    for one in gpus:
        seen.setdefault(one.device, {})[one.name] = one.value
    said: dict[tuple[str, int], dict[str, Value]] = {}
    for one in whose:
        said.setdefault((one.device, one.pid), {})[one.name] = one.value
    runs = list(runs)
    living = [run for run in runs if not run.ended]
    for device, its in seen.items():
        count = its.get("gpu.processes")
        if not isinstance(count, int) or its.get("gpu.mig") is True:
            continue
        held = any(device in (run.devices or ()) for run in living)
        if count == 0 or held:
            yield Reading("gpu.leftover", device, False)
        if held:
            yield Reading("gpu.leftover_memory", device, 0)
        elif runs and not any(run.devices is None for run in living):
            left = {
                pid: of for (where, pid), of in said.items() if where == device and of["process.uid"] != 0
            }
            if count:
                yield Reading("gpu.leftover", device, bool(left), "; ".join(map(_whose, left, left.values())))
            if isinstance(used := its.get("gpu.memory_used"), int):
                words = f"{used} MiB in use by no process"
                alone = count == 0 and not its.get("gpu.drawing")
                yield Reading("gpu.leftover_memory", device, used if alone else 0, words)


def _whose(pid: int, its: Mapping[str, Value]) -> str:
    job = f", job {its['process.job']}" if "process.job" in its else ""
    return f"pid {pid} ({its.get('process.name', '?')}) of uid {its['process.uid']}{job}"


def dated(
    card: RawCard,
    devices: tuple[str, ...] | None,
    boot: float,
    ranks: Mapping[str, tuple[int, ...]] | None = None,
) -> Card:
    """The card for the wire: times in seconds since the epoch, `boot` being the epoch at uptime 0.

    That its prolog was told of no GPU does not mean that a job has none: slurmctld 22.05 can forget them
    right after it was killed and started anew. Such a job holds those that its processes were seen on.
    """
    ranks = ranks or {}

    def epoch(at: float) -> float:
        return boot + at if at else 0.0

    return Card(
        job=card.job,
        restarts=card.restarts,
        uid=card.uid,
        devices=tuple(ranks) if devices == () else devices,
        started=epoch(card.uptime),
        ended=epoch(card.ended),
        refused=epoch(card.refused),
        ranks=ranks,
        asked=card.asked,
    )


def holder(runs: Iterable[Card], device: str, at: float) -> str:
    """Which run held a device at that time: "4711.0/1000" (job, restarts, uid), "" where it was none, or more
    than one, or cannot be told. Times are seconds since the epoch; cards have whole seconds."""
    who = [run for run in runs if not run.ended or at < run.ended + 1]
    who = [run for run in who if run.started <= at and (run.devices is None or device in run.devices)]
    if len(who) != 1 or who[0].devices is None:
        return ""
    return f"{who[0].job}.{who[0].restarts}/{who[0].uid}"
