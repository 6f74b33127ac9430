"""Xid 144 to 150: NVLink 5 errors, decoded by unit, cause and status.

The line says "UNIT Fatal|Nonfatal XCn in Link n (info status debug...)". Its word is not the last one:
NVIDIA's catalogue (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, NVLink 5) says for
each unit and status what is to be done, and lets some "Fatal" ones be. The first word names the unit once
more in its low bits, in one layout up to driver R570 and in another from R575; bits 20 to 25 say why a link
went down, and are zero for all other units. No word of one layout fits the other.
"""

from __future__ import annotations

from dataclasses import dataclass

LINK_XIDS = range(144, 151)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit by its names: the low bits of the info word (10 of them before R575, 7 since), and the statuses
    for which the GPUs are to be reset, nothing is to be done, or Xid 154 says what is to be done.
    """

    names: tuple[str, ...]
    before: int
    since: int
    reset: frozenset[int] = frozenset()
    ignore: frozenset[int] = frozenset()
    follow: frozenset[int] = frozenset()
    by_cause: bool = False  # the numbers are those of bits 20 to 25, whatever the status
    always: str = ""  # the same, whatever the status

    def says(self, cause: int, status: int | None) -> str:
        if self.always or (cause and not self.by_cause):
            return "" if cause else self.always
        number = cause if self.by_cause else status
        for word, numbers in (("reset", self.reset), ("ignore", self.ignore), ("follow", self.follow)):
            if number in numbers:
                return word
        return ""


_SOFTWARE = 0x80000000
_PIPE = frozenset({4}), frozenset({1, 2, _SOFTWARE})
_ALL_DOWN = (0, 1, 2, 4, 10, 15, 16, 17, 18, 21, 22, 32, 33, 34, 35, 36, 37, 42, 43)

UNITS: dict[int, tuple[Unit, ...]] = {
    144: (Unit(("SAW_MVB",), 0x021, 0x01, frozenset({2, 0x10}), frozenset({1, 4, 8, 0x20})),),
    145: (
        Unit(("RLW_CTRL",), 0x062, 0x03, ignore=frozenset({_SOFTWARE})),
        Unit(
            ("RLW_REMAP",), 0x082, 0x04, frozenset({0x40, 0x80}), frozenset({0x100, 0x200, _SOFTWARE}),
            frozenset({1, 2, 4, 8, 0x10, 0x20}),
        ),
        Unit(("RLW_RSPCOL",), 0x0A2, 0x05, frozenset({2}), frozenset({1, _SOFTWARE})),
        Unit(("RLW_RXPIPE",), 0x0C2, 0x06, ignore=frozenset({1, 2, 4, 8, _SOFTWARE})),
        Unit(
            ("RLW_SRC_TRACK",), 0x0E2, 0x07,
            frozenset({1, 0x10, 0x20}), frozenset({2, _SOFTWARE}), frozenset({4, 8}),
        ),
        Unit(
            ("RLW_TAGSTATE",), 0x102, 0x08,
            frozenset({2, 0x20000, 0x100000}), frozenset({1, 0x10000, _SOFTWARE}),
        ),
    ),
    146: (
        Unit(("TLW_CTRL",), 0x123, 0x09, *_PIPE),
        Unit(("TLW_RX", "TLW_RX_PIPE0"), 0x143, 0x0A, *_PIPE),
        Unit(("TLW_RX", "TLW_RX_PIPE1"), 0x143, 0x0B, *_PIPE),
        Unit(("TLW_TX", "TLW_TX_PIPE0"), 0x163, 0x0C, *_PIPE),
        Unit(("TLW_TX", "TLW_TX_PIPE1"), 0x163, 0x0D, *_PIPE),
    ),
    147: (Unit(("TREX",), 0x184, 0x0E, ignore=frozenset({1, _SOFTWARE})),),
    148: (Unit(("NVLPW_CTRL", "NVLPW"), 0x005, 0x0F, ignore=frozenset({_SOFTWARE})),),
    149: (
        Unit(("NETIR", "NETIR_INT"), 0x006, 0x18, always="reset"),
        Unit(
            ("NETIR_LINK_EVT", "NETIR_LINK_DOWN"), 0x1C6, 0x11,
            frozenset(_ALL_DOWN), frozenset({38, 40}), by_cause=True,
        ),
        Unit(("NETIR_BER_EVENT",), 0x226, 0x13, ignore=frozenset({0, 1, 2, 3})),
        Unit(("NETIR_MFDE_EVENT",), 0x246, 0x14, frozenset({1, 4, 5, 7}), frozenset({3})),
    ),
    150: (
        Unit(("MSE Degraded",), 0, 0, frozenset({0, 0xFFFFFFFF})),
        Unit(("MSE_WATCHDOG",), 0, 0, frozenset({0})),
    ),
}  # fmt: skip


def decode(xid: int, unit: str, info: int, status: int | None) -> str:
    """What the catalogue says is to be done: "reset", "ignore", "follow" (Xid 154), "" where it has none."""
    names = unit.split("/")
    cause = info >> 20 & 0x3F
    for one in UNITS[xid]:
        if set(names) & set(one.names) and (info & 0x3FF == one.before or info & 0x7F == one.since):
            return one.says(cause, status)
    return ""
