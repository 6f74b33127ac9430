"""Which controller's turn it is to act, where several share a ledger: whoever holds the lease (see
ledger/lease.py) acts, the others stand by.

It is taken on the host of the slurmctld that acts, as `scontrol ping` has it: with that it fails over. Where
none answers, it is the first one's, which Slurm would start again. A holder keeps it whatever slurmctld does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from slurm_health.ledger import Lease, Ledger, LedgerError, WrongLedger
from slurm_health.slurm import Slurm, SlurmError

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between looks of who stands by at the lease
RENEWAL = 5.0  # seconds between renewals


class Standby:
    """`run` acts when it is our turn, until that is over. `why` says why not now, "" while we act."""

    def __init__(self, addresses: Sequence[str], ledger: Ledger, slurm: Slurm) -> None:
        self.addresses, self.slurm = addresses, slurm
        self.address = own(addresses)
        self.lease: Lease | None = None
        if len(addresses) > 1 or ledger.shared:
            self.lease = Lease(ledger, self.address, socket.gethostname())
        self.why = "stands by: it has just started"

    async def run(self, act: Callable[[], Awaitable[None]]) -> None:
        if self.lease is None:
            self.why = ""
            await act()
            return
        await self._taken(self.lease)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep(self.lease))
            await act()

    def must_act(self) -> None:
        """LedgerError where an act must not be begun."""
        if self.lease:
            self.lease.must_last()

    def give_up(self) -> None:
        """The next one need not wait. Whoever dies before this, or cannot, is waited for."""
        if self.lease:
            with contextlib.suppress(LedgerError):
                self.lease.give_up()

    async def _taken(self, lease: Lease) -> None:
        while True:
            try:
                why = await self._try(lease)
            except (LedgerError, SlurmError) as error:
                why = f"stands by: {error}"
            if why != self.why:
                log.info("%s", why or f"{self.address} acts")
                self.why = why
            if not why:
                return
            await asyncio.sleep(LOOK)

    async def _try(self, lease: Lease) -> str:
        """Take the lease, or why not."""
        if lease.resume():
            return ""
        if holder := lease.holder():
            return f"stands by: {holder} acts"
        if other := await self._elsewhere():
            return f"stands by: nobody acts, but {other} is beside the slurmctld that does"
        return "" if lease.take() else "stands by: another was faster"

    async def _elsewhere(self) -> str:
        """The controller beside the slurmctld that acts, "" where that is this one, or none."""
        hosts = await self.slurm.ping()
        acting = next((host for host, up in hosts.items() if up), next(iter(hosts), ""))
        beside = [one for one in self.addresses if await _same(one.rpartition(":")[0], acting)]
        return "" if self.address in beside or not beside else beside[0]

    async def _keep(self, lease: Lease) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            try:
                lease.renew()
            except LedgerError as error:  # what is lost is begun anew by who serves; it has said so itself
                log.debug("lease: %s", error)


def own(addresses: Sequence[str]) -> str:
    """Which of the controllers' addresses is this host's: by its name, else by where one can listen."""
    if len(addresses) == 1:
        return addresses[0]
    here = _short(socket.gethostname())
    mine = [one for one in addresses if _short(one.rpartition(":")[0]) == here]
    mine = mine or [one for one in addresses if _local(one.rpartition(":")[0])]
    if len(mine) != 1:
        which = " and ".join(mine) or "none"
        raise WrongLedger(
            f"controller: of {', '.join(addresses)} {which} is this host, {here}; name each once"
        )
    return mine[0]


def _short(host: str) -> str:
    """A host's name without its domain; an address as it is."""
    return host if host.replace(".", "").isdigit() or ":" in host else host.partition(".")[0]


def _local(host: str) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind((host, 0))
        return True
    return False


async def _same(host: str, other: str) -> bool:
    """Whether two names are of one host."""
    if _short(host) == _short(other):
        return True
    mine, theirs = [await _addresses(one) for one in (host, other)]
    return bool(mine & theirs)


async def _addresses(host: str) -> set[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {str(entry[4][0]) for entry in found}
