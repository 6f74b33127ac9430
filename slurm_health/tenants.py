"""The jobs seen on a node: which GPUs each holds, and which of its ranks sit on them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from slurm_health import cards, gres
from slurm_health.host import uptime
from slurm_health.model import Card, Reading

SEATED = 64  # runs whose ranks are remembered

Run = tuple[int, int]  # job, restarts


class Tenants:
    """The jobs on node `name`, by the cards in `folder`. `conf` is slurm.conf as configured, `gpus` what is
    known of this boot: device minor to PCI address. Use it from any thread."""

    def __init__(self, folder: Path, name: str, conf: str, gpus: Mapping[int, str]) -> None:
        self._cards = cards.CardBox(folder)
        self._name, self._conf = name, conf
        self._gpus = gpus  # in NVML's order, also those lost since
        self._held: dict[Run, tuple[str, ...] | None] = {}
        self._ranks: dict[Run, dict[str, tuple[int, ...]]] = {}
        self._lock = threading.Lock()

    def learn(self, gpus: Mapping[int, str]) -> None:
        """These answer now. With fewer than before one is lost: its number must not be."""
        with self._lock:
            if len(gpus) >= len(self._gpus):
                self._gpus = gpus

    def look(self, now: float) -> list[Card]:
        """Their cards; `now` is the epoch. Which GPUs each holds is settled when its card is first seen:
        Slurm's numbers shift when slurmd restarts without one."""
        up = uptime()
        with self._lock:
            raw = self._cards.read(up)
            if any((card.job, card.restarts) not in self._held for card in raw):
                minors = self._minors()
                for card in raw:
                    if (card.job, card.restarts) not in self._held and (self._gpus or not card.gpus):
                        self._held[card.job, card.restarts] = cards.devices(card, minors, self._gpus)
            runs = {(card.job, card.restarts) for card in raw}
            self._held = {run: devices for run, devices in self._held.items() if run in runs}
            self._ranks = {run: seen for run, seen in self._ranks.items() if run in runs}
            return [
                cards.dated(card, self._held.get(run), now - up, self._ranks.get(run))
                for card in raw
                for run in [(card.job, card.restarts)]
            ]

    def seat(self, processes: Iterable[Reading]) -> None:
        """Remember which ranks sit on which GPU: when it fails, they are gone and cannot be asked."""
        with self._lock:
            for run, seen in cards.ranks(self._cards.read(uptime()), processes).items():
                if run in self._held:
                    self._ranks[run] = self._ranks.pop(run, {}) | seen
            self._ranks = dict(list(self._ranks.items())[-SEATED:])  # those last seen: a report has an end

    def _minors(self) -> dict[int, int] | None:
        """Slurm's GPU ordinals to device minors, by the files that slurmd reads too."""
        conf = gres.conf_path(self._conf)
        try:
            return gres.minors(
                gres.text(conf),
                self._name,
                gres.text(conf.with_name("slurm.conf")),
                list(self._gpus),
            )
        except (OSError, UnicodeDecodeError):
            return None
