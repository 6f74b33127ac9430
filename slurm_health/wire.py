"""What passes between a node and the controller. Who may say it is for signing.py to tell.

JSON over HTTP/1.1. Each request carries `Authorization: <method> <credential>` over its method, target and
body, so that nothing of it can be changed or used twice. Unknown fields are ignored and missing ones have
defaults: an older node is understood.

    POST /v1/report     a NodeReport; the answer is a Decision, and the receipt for what was reported. Its
                        "unknown" names the standing moments never heard of here: they are to be told again.
                        "closed" are those whose incident an admin has closed. "now" is the controller's
                        time (seconds since the epoch)
    POST /v1/decision   {"node", "known"}: answered when the Decision is no longer `known`, or after 25 s
    GET  /v1/status  /v1/incidents  /v1/incidents/<id>  /v1/jobs/<id>
    POST /v1/incidents/<id>/close  /v1/pause  /v1/unpause

Of several controllers one acts. The others answer 421 (STANDS_BY) to all but GET /v1/incidents and /v1/jobs,
with the words "stands by: HOST:PORT acts" (or why nobody does): ask there. A node or command that knows one
address only takes it for any other refusal, and tries again.

A body has its Content-Length: at most LIMIT for a report, 64 KiB for anything else. A whole request is due
within 10 s. The connection is kept for root and SlurmUser, and closed after every other answer. 429 says that
a report of this node is being handled: what is not receipted is sent again, later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from slurm_health.model import Card, Finding, Severity, Urgency

VERSION = 1
STANDS_BY = 421  # Misdirected Request (RFC 9110): this one cannot answer, another may
LIMIT = 1 << 20  # bytes of one request: 1,000 findings of the largest kind fit
WORDS = 1000  # longest text in a message; longer ones are cut by the sender and refused by the receiver
MANY = 500  # findings, cards or moments in one report
RANKS = 64  # ranks of one job on one device
PARTS, PART = 32, 200  # what names one device, and characters of each
LARGEST = 1e11  # seconds: a time is before the year 5138, and no id of Slurm's is longer
LONG_POLL = 25.0  # seconds: below the 30 s at which a heartbeat is due
HEARTBEAT = 30.0


class Malformed(ValueError):
    """A message that cannot be what it says it is."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """All that a node has to say: what is new, what stands, which jobs it has seen.

    `opened` holds findings not yet receipted, `standing` the moments of all lasting findings that hold now
    (what the controller has open and is not in it has cleared), `blind` the probes that brought nothing.
    `life` names this run of the daemon and `number` counts its reports: one that comes after a later one was
    long under way and says nothing any more. `ahead`: seconds that the node's clock is ahead of the
    controller's, None before it has been measured.
    """

    node: str
    boot: str = ""
    sent: float = 0.0
    opened: tuple[Finding, ...] = ()
    standing: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    blind: dict[str, str] = field(default_factory=dict)
    verdict: str = ""
    version: int = VERSION
    life: str = ""
    number: int = 0
    ahead: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the controller wants of a node: the words with which to refuse jobs, or "" to accept them.

    `note` is for the verdict of a node that takes jobs although something is wrong with it.
    """

    refuse: str = ""
    note: str = ""
    mode: str = "observe"

    @property
    def version(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def encode(message: Any) -> bytes:
    """A message as JSON. Severity and Urgency go by their names."""
    return json.dumps(plain(message), separators=(",", ":")).encode()


def plain(message: Any) -> dict[str, Any]:
    return asdict(message, dict_factory=_by_name)


def _by_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Severity) else value for key, value in pairs}


def finding(table: Mapping[str, Any]) -> Finding:
    return Finding(
        code=text_field(table, "code", 40, required=True),
        severity=Severity[_choice(table, "severity", [s.name.lower() for s in Severity], "warning").upper()],
        device=text_field(table, "device", 100),
        text=text_field(table, "text", WORDS),
        evidence=text_field(table, "evidence", WORDS),
        job=Urgency(_choice(table, "job", list(Urgency), Urgency.NONE)),
        since=_number(table, "since"),
        moment=text_field(table, "moment", 300, required=True),
        lasting=bool(table.get("lasting", True)),
        hardware=_hardware(table.get("hardware", {})),
    )


def _hardware(value: object) -> dict[str, str | int]:
    """The parts of a device: {"gpu": 3, "uuid": "GPU-9a"}."""
    if not isinstance(value, dict) or len(value) > PARTS:
        raise Malformed(f"hardware: not a table of at most {PARTS}")
    found: dict[str, str | int] = {}
    for part, said in value.items():
        number = isinstance(said, int) and not isinstance(said, bool)
        found[text_field({"": part}, "", PART)] = (
            int(_number({"hardware": said}, "hardware")) if number else text_field({"": said}, "", PART)
        )
    return found


def card(table: Mapping[str, Any]) -> Card:
    devices = table.get("devices")
    if devices is not None:
        if not isinstance(devices, list) or len(devices) > 256:
            raise Malformed("devices: not a short list")
        devices = tuple(text_field({"": device}, "", 100) for device in devices)
    return Card(
        job=int(_number(table, "job")),
        restarts=int(_number(table, "restarts")),
        uid=int(_number(table, "uid")),
        devices=devices,
        started=_number(table, "started"),
        ended=_number(table, "ended"),
        refused=_number(table, "refused"),
        ranks=_ranks(table.get("ranks", {})),
        asked=text_field(table, "asked", 80),
    )


def _ranks(value: object) -> dict[str, tuple[int, ...]]:
    """The ranks of a job by device: {"0000:5d:00.0": [37]}."""
    if not isinstance(value, dict) or len(value) > 256:
        raise Malformed("ranks: not a small table")
    found = {}
    for device, ranks in value.items():
        if not isinstance(ranks, list) or len(ranks) > RANKS:
            raise Malformed(f"ranks: not a list of at most {RANKS}")
        found[text_field({"": device}, "", 100)] = tuple(
            int(_number({"ranks": rank}, "ranks")) for rank in ranks
        )
    return found


def node_report(body: bytes) -> NodeReport:
    """The report in `body`; Malformed says what is wrong with it."""
    table = json_object(body)
    blind = table.get("blind", {})
    if not isinstance(blind, dict) or len(blind) > 100:
        raise Malformed("blind: not a small table")
    return NodeReport(
        node=text_field(table, "node", 256, required=True),
        boot=text_field(table, "boot", 64),
        sent=_number(table, "sent"),
        opened=tuple(finding(item) for item in _list(table, "opened")),
        standing=tuple(text_field({"": item}, "", 300) for item in _list(table, "standing")),
        cards=tuple(card(item) for item in _list(table, "cards")),
        blind={clean(key)[:100]: clean(str(value)) for key, value in blind.items()},
        verdict=text_field(table, "verdict", WORDS),
        life=text_field(table, "life", 64),
        number=int(_number(table, "number")),
        ahead=_seconds(table, "ahead"),
        version=int(_number(table, "version", VERSION)),
    )


def decision(body: bytes) -> Decision:
    table = json_object(body)
    return Decision(
        refuse=text_field(table, "refuse", WORDS),
        note=text_field(table, "note", WORDS),
        mode=text_field(table, "mode", 20) or "observe",
    )


def unknown(body: bytes) -> frozenset[str]:
    """The moments that the answer to a report asks for."""
    return _moments(body, "unknown")


def closed(body: bytes) -> frozenset[str]:
    """The moments whose incident an admin has closed, by the answer to a report."""
    return _moments(body, "closed")


def _moments(body: bytes, key: str) -> frozenset[str]:
    return frozenset(text_field({"": item}, "", 300) for item in _list(json_object(body), key))


def moment_now(body: bytes) -> float:
    """The controller's time in the answer to a report, 0 from an older one."""
    return _number(json_object(body), "now")


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; Malformed when it is anything else."""
    try:
        table = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(table, dict):
        raise Malformed("not a JSON object")
    return table


def text_field(table: Mapping[str, Any], key: str, longest: int, required: bool = False) -> str:
    """A printable text of `table`, "" where there is none; Malformed when it is anything else."""
    value = table.get(key, "")
    if not isinstance(value, str) or len(value) > longest or (required and not value):
        raise Malformed(f"{key or 'item'}: not a text of {int(required)} to {longest} characters")
    if not value.isprintable():
        raise Malformed(f"{key or 'item'}: holds unprintable characters")
    return value


def _number(table: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
        raise Malformed(f"{key}: not a number from 0 to {LARGEST:.0f}")
    return value


def _seconds(table: Mapping[str, Any], key: str) -> float | None:
    """A span that may be negative; None where it is not told."""
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, int | float) and value < 0:
        return -_number({key: -value}, key)
    return _number(table, key)


def _choice(table: Mapping[str, Any], key: str, choices: list[Any], default: str) -> str:
    value = table.get(key, default)
    if value not in choices:
        raise Malformed(f"{key}: not one of {', '.join(choices)}")
    return str(value)


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list) or len(value) > MANY:
        raise Malformed(f"{key}: not a list of at most {MANY}")
    if key in ("opened", "cards") and not all(isinstance(item, dict) for item in value):
        raise Malformed(f"{key}: not a list of objects")
    return value


def clean(text: str) -> str:
    """`text` as a message may carry it: printable, at most WORDS characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:WORDS]
