"""InfiniBand ports, from /sys/class/infiniband.

https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-class-infiniband
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import eq

from slurm_health.host import Host
from slurm_health.model import Reading
from slurm_health.probes import pcie

CLASS = "sys/class/infiniband"
RESTLESS = 60  # glances that still see everything after something changed
# PortCounters of the InfiniBand Architecture (volume 1, 16.1.3.5) and their bits: there they stop, and say
# nothing more. Drivers that count wider show more in the same files.
COUNTERS = {
    "symbol_error": 16,
    "link_error_recovery": 8,
    "link_downed": 8,
    "local_link_integrity_errors": 4,
    "excessive_buffer_overrun_errors": 4,
    "port_rcv_errors": 16,
    "port_xmit_discards": 16,
}
# Of an Ethernet port only these say something of its link (mlx5, bnxt_re; 64 bits).
ROCE = ("local_ack_timeout_err", "rnr_nak_retry_err", "roce_slow_restart", "rx_icrc_encapsulated")
GUID = re.compile(r"[0-9a-f]{4}(:[0-9a-f]{4}){3}")


@dataclass(frozen=True, slots=True)
class Adapter:
    """What does not change while a device is there: its PCI address, GUID and the GPUs nearest to it."""

    pci: str
    guid: str
    gpus: tuple[str, ...]


class InfiniBand:
    """The RDMA ports of one machine; device as in "mlx5_4/1". Those that `ignored` names are not even read:
    on some machines the kernel logs a line for each question to a port that is not ours to ask.

    Left alone, too: virtual and sub-functions, whose link follows the physical function's; and the ConnectX
    functions by which Fabric Manager runs the NVSwitches of HGX B200 and later ("SW_MNG" in their vital
    product data), for whose ports the firmware refuses to answer.
    """

    def __init__(self, host: Host, ignored: Callable[[str], bool] = lambda device: False) -> None:
        self._host = host
        self._ignored = ignored
        self._adapters: dict[tuple[str, str], Adapter | None] = {}
        self._states: dict[str, str | None] = {}
        self._rest = 0

    def glance(self) -> Iterator[Reading] | None:
        """What look says without rates and counters; None when no state has changed for a minute."""
        states = {path: self._host.text(f"{CLASS}/{path}/state") for path in self._states}
        self._rest = self._rest + 1 if states == self._states and states else 0
        return self.look(slow=False) if self._rest < RESTLESS else None

    def look(self, slow: bool = True) -> Iterator[Reading]:
        """How many ports are `infiniband.listed`, and each one's `infiniband.state` ("ACTIVE"), `phys_state`
        ("LinkUp"), `link_layer` ("InfiniBand") and `pci`. With `slow` also `rate` (Gb/s), the counters of its
        link layer (`detail` says the width of those that stop at their end: "16bit"), and where it is:
        `guid`, the nearest `gpu` (several by blanks), and `plane` ("2 of 4") where several are beside one.
        """
        host = self._host
        adapters = {name: adapter for name in host.names(CLASS) if (adapter := self._adapter(name))}
        ports = [
            (name, number)
            for name in sorted(adapters, key=lambda name: (adapters[name].pci, name))
            for number in host.names(f"{CLASS}/{name}/ports")
            if not self._ignored(f"{name}/{number}")
        ]
        before, self._states = self._states, {}
        yield Reading("infiniband.listed", "", len(ports))
        for name, number in ports:
            path = f"{name}/ports/{number}"
            state = self._states[path] = host.text(f"{CLASS}/{path}/state")
            yield from self._port(f"{name}/{number}", f"{CLASS}/{path}", state, adapters[name])
            if slow:
                peers = [port for port in ports if adapters[port[0]].gpus == adapters[name].gpus]
                yield from _place(f"{name}/{number}", adapters[name], peers.index((name, number)), len(peers))
                yield from self._slow(f"{name}/{number}", f"{CLASS}/{path}")
        if self._states != before:
            self._rest = 0

    def _port(self, device: str, folder: str, state: str | None, adapter: Adapter) -> Iterator[Reading]:
        for fact, text in (("state", state), ("phys_state", self._host.text(f"{folder}/phys_state"))):
            if word := _word(text):
                yield Reading(f"infiniband.{fact}", device, word)
        if layer := self._host.text(f"{folder}/link_layer"):
            yield Reading("infiniband.link_layer", device, layer)
        if adapter.pci:
            yield Reading("infiniband.pci", device, adapter.pci)

    def _slow(self, device: str, folder: str) -> Iterator[Reading]:
        if (rate := _rate(self._host.text(f"{folder}/rate"))) is not None:
            yield Reading("infiniband.rate", device, rate)
        ethernet = self._host.text(f"{folder}/link_layer") == "Ethernet"
        group = "hw_counters" if ethernet else "counters"
        for name in ROCE if ethernet else COUNTERS:
            count = self._host.number(f"{folder}/{group}/{name}")
            if count is None or count < 0:
                continue
            bits = 0 if ethernet else COUNTERS[name]
            detail = f"{bits}bit" if count < 1 << bits else ""
            yield Reading(f"infiniband.{name}", device, count, f"{name} {count}", detail=detail)

    def _adapter(self, name: str) -> Adapter | None:
        """None for a device that is left alone. Looked into once: product data take a while to read."""
        folder = f"{CLASS}/{name}"
        pci = self._host.link(f"{folder}/device") or "".join(pcie.ancestry(self._host, folder)[-1:])
        key = (name, pci)
        if key not in self._adapters:
            restricted = "SW_MNG" in (self._host.text(f"{folder}/device/vpd") or "")
            part = self._host.link(f"{folder}/device/subsystem") == "auxiliary"
            if restricted or part or self._host.exists(f"{folder}/device/physfn"):
                self._adapters[key] = None
            else:
                guid = self._host.text(f"{folder}/node_guid") or ""
                chain = pcie.ancestry(self._host, f"{pcie.DEVICES}/{pci}")
                gpus = _nearest(chain, self._gpus)
                self._adapters[key] = Adapter(pci, guid if GUID.fullmatch(guid) else "", gpus)
        return self._adapters[key]

    @cached_property
    def _gpus(self) -> dict[str, tuple[str, ...]]:
        return pcie.gpus(self._host)


def _nearest(chain: tuple[str, ...], gpus: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The GPUs that share the longest way from the processor with an adapter; none where they share none."""
    shared = {gpu: sum(map(eq, chain, path)) for gpu, path in gpus.items()}
    most = max(shared.values(), default=0)
    return tuple(sorted(gpu for gpu, length in shared.items() if length == most and most))


def _place(device: str, adapter: Adapter, plane: int, planes: int) -> Iterator[Reading]:
    """Where a technician finds it. Several planes (or rails) share a GPU: which one this is."""
    if adapter.guid:
        yield Reading("infiniband.guid", device, adapter.guid)
    if adapter.gpus:
        yield Reading("infiniband.gpu", device, " ".join(adapter.gpus))
    if len(adapter.gpus) == 1 and planes > 1:
        yield Reading("infiniband.plane", device, f"{plane + 1} of {planes}")


def _word(text: str | None) -> str | None:
    """ "4: ACTIVE" -> "ACTIVE"; anything else is no reading."""
    number, colon, word = (text or "").partition(": ")
    return word if colon and number.isdigit() and word else None


def _rate(text: str | None) -> float | None:
    """ "400 Gb/sec (4X NDR)" -> 400.0; a port that is down may say 0 or less, which is no rate."""
    number, _, unit = (text or "").partition(" ")
    try:
        rate = float(number)
    except ValueError:
        return None
    return rate if unit.startswith("Gb/sec") and 0 < rate < 1e6 else None
