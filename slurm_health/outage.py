"""What does not answer: Slurm, or the disk under the ledger. Said once, and again when it is over."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from slurm_health.ledger import LedgerError
from slurm_health.slurm import SlurmError

log = logging.getLogger(__name__)


class Outage:
    """`trouble` is Slurm's silence in its own words, "" while it answers."""

    def __init__(self) -> None:
        self.trouble = ""

    @contextlib.contextmanager
    def survived(self, what: str) -> Iterator[None]:
        """No answer from Slurm or the disk ends a loop: the next round is the next try."""
        try:
            yield
        except SlurmError as error:
            self.slurm(error)
        except LedgerError as error:  # it has said so itself, once
            log.debug("%s: %s", what, error)
        except Exception:
            log.exception("%s", what)

    def slurm(self, error: SlurmError) -> None:
        if str(error) != self.trouble:
            log.error("Slurm: %s", error)
            self.trouble = str(error)

    def over(self) -> None:
        """Slurm has answered."""
        if self.trouble:
            log.info("Slurm answers again")
            self.trouble = ""
