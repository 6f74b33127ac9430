"""The controller's door: HTTP/1.1, every request signed (see wire.py for what passes)."""

from __future__ import annotations

import asyncio
import json
import logging
import pwd
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from aiohttp import web
from ClusterShell.NodeSet import NodeSet, NodeSetException

from slurm_health import __version__, systemd, wire
from slurm_health.config import Config
from slurm_health.controller import Controller, running
from slurm_health.ledger import Ledger, LedgerError
from slurm_health.model import Severity, Urgency
from slurm_health.slurm import SlurmError

log = logging.getLogger(__name__)

SILENT = 3 * wire.HEARTBEAT  # seconds without a word after which a node is called silent
ADDRESSES = 300.0  # seconds that a resolved node address is believed
LISTING = 1000  # incidents in one answer

_signer: ContextVar[int] = ContextVar("signer")  # the uid that signed the request being handled


class Door:
    """Tells who asks, and answers. Reports come from root or SlurmUser, questions from anybody: an ordinary
    user sees nodes and incidents, and of the jobs only the own ones."""

    def __init__(self, controller: Controller, signature: wire.Signature) -> None:
        self.controller, self.signature = controller, signature
        self.ledger = controller.ledger
        self.addresses: dict[str, tuple[float, set[str]]] = {}
        self.grumbled: dict[str, float] = {}

    def application(self) -> web.Application:
        app = web.Application(client_max_size=wire.LIMIT, middlewares=[self._guard])
        app.add_routes(
            [
                web.post("/v1/report", self.report),
                web.post("/v1/decision", self.decision),
                web.get("/v1/status", self.status),
                web.get("/v1/incidents", self.incidents),
                web.get("/v1/incidents/{id:[0-9]{1,12}}", self.incident),
                web.post("/v1/incidents/{id:[0-9]{1,12}}/close", self.close),
                web.get("/v1/jobs/{id:[0-9]{1,12}}", self.job),
                web.post("/v1/pause", self.pause),
                web.post("/v1/unpause", self.unpause),
            ]
        )
        return app

    # Who

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every refusal is said in one line to the asker and, at most once a minute for each, to the log."""
        body = await request.read()
        payload = wire.payload(request.method, request.raw_path, body)
        header = request.headers.get("Authorization", "")
        try:
            _signer.set(await asyncio.to_thread(self.signature.signer, header, payload))
            return await handler(request)
        except wire.Refused as error:
            self._grumble(request, str(error))
            return _words(403, str(error))
        except wire.Malformed as error:
            self._grumble(request, str(error))
            return _words(400, str(error))
        except LedgerError as error:  # it has said so itself, once
            return _words(503, f"the ledger cannot be used: {error}")
        except SlurmError as error:
            return _words(503, f"Slurm does not answer: {error}")

    def _grumble(self, request: web.Request, why: str) -> None:
        key = f"{request.remote} {why}"
        now = time.monotonic()
        if len(self.grumbled) > 1000:
            self.grumbled.clear()
        if now - self.grumbled.get(key, -60.0) >= 60:
            self.grumbled[key] = now
            log.warning("refused %s %s from %s: %s", request.method, request.path, request.remote, why)

    def _privileged(self, request: web.Request) -> bool:
        site = self.controller.site
        return _signer.get() == 0 or (site is not None and _signer.get() == site.user)

    def _must_be_privileged(self, request: web.Request) -> None:
        if not self._privileged(request):
            raise wire.Refused(f"uid {_signer.get()} may not do this; root or SlurmUser may")

    async def _must_be_node(self, request: web.Request, name: str) -> None:
        """The signer is root or SlurmUser, the node is Slurm's, and the peer has its address."""
        self._must_be_privileged(request)
        node = (await self.controller.nodes()).get(name)
        if node is None:
            raise wire.Refused(f"{name}: Slurm knows no such node")
        if not self.controller.config.auth.check_address or not node.address:
            return
        then, known = self.addresses.get(node.address, (-ADDRESSES, set()))
        if time.monotonic() - then >= ADDRESSES:
            known = await _resolve(node.address)
            self.addresses[node.address] = (time.monotonic(), known)
        peer = (request.remote or "").removeprefix("::ffff:")
        if known and peer not in known:
            raise wire.Refused(f"{name}: a report from {peer}, but Slurm has it at {node.address}")

    # Nodes

    async def report(self, request: web.Request) -> web.Response:
        report = wire.node_report(await request.read())
        await self._must_be_node(request, report.node)
        decision = self.controller.heed(report)
        unknown = self.ledger.unknown(report.node, report.standing)
        return _json(wire.plain(decision) | {"unknown": unknown})

    async def decision(self, request: web.Request) -> web.Response:
        asked = wire.json_object(await request.read())
        node, known = wire.text_field(asked, "node", 256, required=True), wire.text_field(asked, "known", 64)
        await self._must_be_node(request, node)
        return _bytes(wire.encode(await self.controller.await_change(node, known, wire.LONG_POLL)))

    # People

    async def status(self, request: web.Request) -> web.Response:
        now = time.time()
        controller, config = self.controller, self.controller.config
        try:
            nodes = await controller.nodes()
            slurm = controller.outage.trouble
        except SlurmError as error:
            nodes, slurm = {}, str(error)
        open_incidents = self.ledger.open_incidents()
        by_node: dict[str, list[Any]] = {}
        for one in sorted(open_incidents, key=lambda one: -one.severity)[:LISTING]:
            by_node.setdefault(one.node, []).append(one)
        heard = {name: at for name, (at, _) in controller.reported.items()}
        silent = sorted(name for name in nodes if now - heard.get(name, controller.began) > SILENT)
        worst = max((one.severity for one in open_incidents if not one.acknowledged), default=Severity.OK)
        if silent:
            worst = max(worst, Severity.WARNING)
        out = {row.name: row for row in self.ledger.out_by_us()}
        troubled = sorted({*by_node, *out})
        return _json(
            {
                "controller": {"version": __version__, "address": config.controller, "mode": config.mode},
                "slurm": {"backend": getattr(controller.slurm, "name", ""), "trouble": slurm},
                "ledger": {
                    "url": self.ledger.url.render_as_string(),
                    "trouble": self.ledger.trouble,
                    "aside": str(self.ledger.aside or ""),
                },
                "worst": str(worst),
                "nodes": len(nodes),
                "reporting": len(nodes) - len(silent),
                "silent": str(NodeSet.fromlist(silent)),
                "drained": str(NodeSet.fromlist(list(out))),
                "pauses": [
                    {"nodes": row.nodes, "until": iso(row.ends), "reason": row.reason, "by": row.by}
                    for row in self.ledger.pauses(now)
                ],
                "open_incidents": len(open_incidents),
                "troubled": [
                    {
                        "node": name,
                        "drained": out[name].reason if name in out else "",
                        "refusing": bool(controller.decision(name).refuse),
                        "incidents": [
                            {
                                "id": one.id,
                                "code": one.code,
                                "device": one.device,
                                "severity": str(one.severity),
                                "text": one.text,
                                "since": iso(one.since),
                                "held": one.held,
                                "acknowledged": iso(one.acknowledged),
                            }
                            for one in by_node.get(name, [])
                        ],
                    }
                    for name in troubled
                ],
            }
        )

    async def incidents(self, request: web.Request) -> web.Response:
        query = request.query
        limit = query.get("limit", "200")
        if not re.fullmatch("[0-9]{1,4}", limit) or not 0 < int(limit) <= LISTING:
            raise wire.Malformed(f"limit: not a number from 1 to {LISTING}")
        return self._stories(
            request, node=query.get("node", ""), every=query.get("all") == "1", limit=int(limit)
        )

    async def incident(self, request: web.Request) -> web.Response:
        return self._stories(request, wanted=[int(request.match_info["id"])])

    async def job(self, request: web.Request) -> web.Response:
        return self._stories(request, job=int(request.match_info["id"]), every=True)

    def _stories(self, request: web.Request, **which: Any) -> web.Response:
        everything = self._privileged(request)
        return _json([story(row, everything, _signer.get()) for row in self.ledger.stories(**which)])

    async def close(self, request: web.Request) -> web.Response:
        self._must_be_privileged(request)
        number = int(request.match_info["id"])
        incident = self.ledger.incident(number)
        if incident is None:
            return _words(404, f"there is no incident {number}")
        if not incident.closed:
            self.ledger.close(number, name(_signer.get()), time.time())
            self.controller.look_at(incident.node)
        return self._stories(request, wanted=[number])

    async def pause(self, request: web.Request) -> web.Response:
        self._must_be_privileged(request)
        asked = wire.json_object(await request.read())
        seconds, reason = asked.get("seconds", 0), wire.text_field(asked, "reason", wire.WORDS)
        if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
            raise wire.Malformed("seconds: not a number of seconds")
        folded = _hostlist(asked)
        now = time.time()
        self.ledger.pause(folded, now + seconds if seconds else 0.0, reason[:200], name(_signer.get()), now)
        return self._look_again(f"paused: {folded or 'the whole cluster'}")

    async def unpause(self, request: web.Request) -> web.Response:
        self._must_be_privileged(request)
        folded = _hostlist(wire.json_object(await request.read()))
        many = self.ledger.unpause(folded)
        what = f"{many} pause{'' if many == 1 else 's'}"
        return self._look_again(f"{what} of {folded or 'the whole cluster'} lifted")

    def _look_again(self, done: str) -> web.Response:
        self.controller.look_at(*{one.node for one in self.ledger.open_incidents()})
        return _json({"done": done})


def story(row: dict[str, Any], everything: bool, uid: int) -> dict[str, Any]:
    """An incident as the command line and `--json` show it. Times are ISO 8601 with offset, None until they
    happen. Of the jobs an ordinary user sees the own ones."""
    jobs = [job for job in row["jobs"] if everything or job["uid"] == uid]
    labels = {job["label"] for job in jobs}
    acts = [act for act in row["actions"] if everything or act["kind"] == "drain" or act["target"] in labels]
    drained = next((act["done"] for act in acts if act["kind"] == "drain" and act["outcome"] == "done"), 0.0)
    ran = max((job["running"] for job in jobs), default=0.0)
    return {
        "id": row["id"],
        "node": row["node"],
        "code": row["code"],
        "device": row["device"],
        "severity": str(Severity(row["severity"])),
        "job": str(Urgency(row["job"])),
        "text": row["text"],
        "state": _state(row),
        "count": row["count"],
        "held": row["held"],
        **{key: iso(row[key]) for key in ("since", "opened", "seen", "cleared", "acknowledged", "closed")},
        "closed_by": row["closed_by"],
        "evidence": [{"at": iso(one["at"]), "line": one["line"]} for one in row["evidence"]],
        "jobs": [
            {
                "job": job["label"],
                "id": job["job"],
                "restarts": job["restarts"],
                "user": name(job["uid"]),
                "urgency": job["urgency"],
                "outcome": job["outcome"],
                **{key: iso(job[key]) for key in ("refused", "requeued", "running", "settled")},
                "nodes": job["ran_nodes"],
                "seconds_to_running": _span(job["since"], job["running"]),
            }
            for job in jobs
        ],
        "actions": [
            {
                "kind": act["kind"],
                "target": act["target"],
                "intended": iso(act["intended"]),
                "done": iso(act["done"]),
                "outcome": act["outcome"],
                "detail": act["detail"],
            }
            for act in acts
        ],
        "seconds_to_drained": _span(row["since"], drained),
        "seconds_to_running": _span(row["since"], ran),
    }


def _state(row: dict[str, Any]) -> str:
    for key in ("closed", "acknowledged", "cleared"):
        if row[key]:
            return key
    return "open"


def _span(begin: float, end: float) -> float | None:
    return round(end - begin, 3) if end else None


def iso(at: float) -> str | None:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds") if at else None


def name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def _resolve(address: str) -> set[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()  # a name that does not resolve proves nothing
    addresses = {str(entry[4][0]) for entry in found}
    if addresses & {"127.0.0.1", "::1"}:  # several nodes on one host
        addresses |= {"127.0.0.1", "::1"}
    return addresses


def _hostlist(asked: dict[str, Any]) -> str:
    """The nodes that are meant, folded; "" for all."""
    text = wire.text_field(asked, "nodes", wire.LIMIT)
    try:
        return str(NodeSet(text)) if text else ""
    except NodeSetException as error:
        raise wire.Malformed(f"nodes: {error}") from None


def _json(value: object) -> web.Response:
    return _bytes(json.dumps(value).encode())


def _bytes(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _words(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")


async def serve(config: Config, ledger: Ledger, controller: Controller) -> None:
    """The whole controller, until SIGTERM or SIGINT, or until its ledger is lost."""
    auth = config.auth
    door = Door(controller, wire.signature(auth.method, auth.munge_socket, auth.key_file))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ledger.when_lost = stop.set
    runner = web.AppRunner(door.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    host, port = config.address
    near = host in ("localhost", "127.0.0.1", "::1")
    site = web.TCPSite(runner, host if near else None, port, reuse_address=True)
    await site.start()
    log.info("listening on port %d, mode %s, ledger %s", port, config.mode, config.ledger.url)
    async with running(controller):
        systemd.notify("READY=1")
        while not stop.is_set():
            systemd.notify("WATCHDOG=1")
            try:
                await asyncio.wait_for(stop.wait(), 5)
            except TimeoutError:
                continue
    if not ledger.lost:
        systemd.notify("STOPPING=1")
    await runner.cleanup()
