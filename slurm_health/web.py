"""The controller's door: HTTP/1.1, every request signed (see wire.py for what passes)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import re
import resource
import signal
import socket
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from aiohttp import web
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from slurm_health import connections, signing, story, systemd, wire
from slurm_health.config import Config
from slurm_health.connections import Connection, Register
from slurm_health.controller import Controller, running
from slurm_health.ledger import Ledger, LedgerError
from slurm_health.overview import LISTING, overview
from slurm_health.slurm import SlurmError
from slurm_health.standby import Standby

log = logging.getLogger(__name__)

ADDRESSES = 300.0  # seconds that a resolved node address is believed
RESOLVE = 2.0  # seconds that one may take to be resolved
SMALL = 1 << 16  # bytes of a body that needs no room made for it
LARGE = 8  # larger bodies in memory at a time
CHECKS = 1000  # credentials waiting to be checked
QUESTIONS = 4  # of one ordinary user at a time
RATE, BURST = 20.0, 20.0  # reports of a node in a second, and at once; ten findings count as one more
AT_ONCE = 50  # findings of a report that are taken in one go, some 40 ms
POLLS = 8  # long polls of a node at a time: those of a line that broke last on for 25 s
LINES = 1000  # of the log in a minute about those who are refused
LARGEST_HOSTLIST = 1 << 16  # nodes, as many as Slurm has at most

_signer: ContextVar[int | None] = ContextVar("signer")  # the uid that signed the request being handled


class Door:
    """Tells who asks, and answers. Reports come from root or SlurmUser, questions from anybody: an ordinary
    user sees nodes and incidents, and of the jobs only the own ones."""

    def __init__(self, controller: Controller, signature: signing.Signature, standby: Standby) -> None:
        self.controller, self.signature, self.standby = controller, signature, standby
        self.ledger = controller.ledger
        self.register = Register()
        self.addresses: dict[str, tuple[float, set[str]]] = {}
        self.grumbled: dict[tuple[str, str], float] = {}  # oldest first
        self.room = asyncio.Semaphore(LARGE)
        self.large: set[str] = set()  # strangers' addresses that are sending a large body
        self.checking = 0
        self.asking: weakref.WeakValueDictionary[int, asyncio.Semaphore] = weakref.WeakValueDictionary()
        # By address and node, so that no other host can stand in a node's way.
        self.reporting: set[tuple[str, str]] = set()  # whose report is being handled
        self.polling: Counter[tuple[str, str]] = Counter()  # long polls
        self.used: dict[tuple[str, str], float] = {}  # until when a node has used up its share (monotonic)
        # Threads apart: name services may take their time, and no check of a node's credential waits for it.
        self.checks = ThreadPoolExecutor(8, thread_name_prefix="checks")
        self.people = ThreadPoolExecutor(2, thread_name_prefix="people")  # where their answers are made

    @contextlib.asynccontextmanager
    async def open(self, host: str | None, port: int) -> AsyncIterator[int]:
        """Listen, for as long as the context lasts; the port."""
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            shutdown_timeout=1.0,
            logger=_Http(self),
            keepalive_timeout=3600,  # longer than our own clocks, which count everything
            lingering_time=1.0,
            auto_decompress=False,  # what a body unfolds to is bounded by nothing
        )
        await runner.setup()
        assert runner.server
        protocols = self.register.protocols(runner.server)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(protocols, host, port, reuse_address=True, backlog=256)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await runner.cleanup()
            for threads in (self.checks, self.people):
                threads.shutdown(wait=False, cancel_futures=True)

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
                web.get("/v1/jobs/{id:[0-9]{1,12}(_[0-9]{1,10})?}", self.job),
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
        """Answer, and keep the connection only for who has just proven to be root or SlurmUser."""
        connection = self.register.connections.get(request.protocol)
        if connection is None:
            return _words(400, "")  # it went while its request was parsed
        connection.within(connections.PATIENCE)
        connection.task = asyncio.current_task()
        _signer.set(None)
        try:
            response = await self._answer(request, handler, connection)
        finally:
            connection.task = None
        if self._privileged():
            connection.within(connections.IDLE)
        else:
            connection.within(connections.PATIENCE)
            response.force_close()
        return response

    async def _answer(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
        connection: Connection,
    ) -> web.StreamResponse:
        """Every refusal is said in one line to the asker and, at most once a minute for each, to the log."""
        try:
            async with self._whole(request, connection) as body:
                await self._check(request, body, connection)
                connection.within(connections.ANSWER)
                if self.standby.why:
                    if not _of_ledger(request):
                        return _words(wire.STANDS_BY, self.standby.why)
                    await self.controller.rescue.learn_site()  # who SlurmUser is, else learnt when it acts
                if self._privileged():
                    connection.task = None  # what was begun for a node is brought to its end
                    return await handler(request)
                return await self._answer_user(request, handler, connection)
        except signing.Refused as error:
            status, words = 403, str(error)
        except wire.Malformed as error:
            status, words = 400, str(error)
        except LedgerError as error:  # it has said so itself, once
            return _words(503, f"the ledger cannot be used: {error}")
        except SlurmError as error:
            return _words(503, f"Slurm does not answer: {error}")
        except web.HTTPException as error:
            status, words = error.status, error.text or error.reason
        except ConnectionError:
            return _words(400, "")  # it has gone: nobody hears this
        except Exception as error:
            self.grumble(connection.peer, "bug", f"{request.method} {request.path}: {error!r}", error)
            return _words(500, "the controller failed to answer; its log says more")
        what = f"refused {request.method[:10]} {request.raw_path[:100]} from {connection.peer}: {words}"
        self.grumble(connection.peer, f"{_signer.get()} {status}", what)
        return _words(status, words)

    @contextlib.asynccontextmanager
    async def _whole(self, request: web.Request, connection: Connection) -> AsyncIterator[bytes]:
        """The body of a request. Few large ones are held at a time, of strangers one from each address."""
        length = request.content_length
        if "Transfer-Encoding" in request.headers or (length is None and request.method == "POST"):
            raise web.HTTPLengthRequired(text="a body needs its Content-Length")
        length = length or 0
        most = wire.LIMIT if request.path == "/v1/report" else SMALL
        if length > most:
            raise web.HTTPRequestEntityTooLarge(most, length)
        if length <= SMALL:
            yield await request.read()
            return
        stranger = "" if connection.proven else connection.peer
        if stranger in self.large:
            raise web.HTTPTooManyRequests(text="one large request at a time")
        if stranger:
            self.large.add(stranger)
        try:
            async with self.room:
                yield await request.read()
        finally:
            self.large.discard(stranger)

    async def _check(self, request: web.Request, body: bytes, connection: Connection) -> None:
        """Note who signed the request. It is whole, so its connection is not dropped for being a stranger's
        while the check waits its turn."""
        if self.checking >= CHECKS:
            raise web.HTTPServiceUnavailable(text="too many requests at a time")
        self.register.leave(connection)
        self.checking += 1
        try:
            payload = signing.payload(request.method, request.raw_path, body)
            header = request.headers.get("Authorization", "")
            loop = asyncio.get_running_loop()
            _signer.set(await loop.run_in_executor(self.checks, self.signature.signer, header, payload))
        finally:
            self.checking -= 1
            connection.proven |= self._privileged()
            if not connection.proven:
                self.register.enter(connection)

    async def _answer_user(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
        connection: Connection,
    ) -> web.StreamResponse:
        """A user has a few answers at a time under way, also such that wait to be taken in."""
        async with self.asking.setdefault(_uid(), asyncio.Semaphore(QUESTIONS)):
            response = await handler(request)
            connection.within(connections.PATIENCE)
            response.force_close()
            await response.prepare(request)
            await response.write_eof()
            return response

    def grumble(self, peer: str, kind: str, words: str, bug: Exception | None = None) -> None:
        """A line in the log, at most once a minute for a peer and kind, and LINES in all."""
        now = time.monotonic()
        while self.grumbled and now - self.grumbled[oldest := next(iter(self.grumbled))] >= 60:
            del self.grumbled[oldest]
        if (peer, kind) not in self.grumbled and len(self.grumbled) < LINES:
            self.grumbled[peer, kind] = now
            log.warning("%s", wire.clean(words)[:400], exc_info=bug)

    def _privileged(self) -> bool:
        site = self.controller.site
        return _signer.get() == 0 or (site is not None and _signer.get() == site.user)

    def _must_be_privileged(self) -> None:
        if not self._privileged():
            raise signing.Refused(f"uid {_signer.get()} may not do this; root or SlurmUser may")

    async def _must_be_node(self, request: web.Request, name: str) -> None:
        """The signer is root or SlurmUser, the node is Slurm's, and the peer has its address."""
        self._must_be_privileged()
        node = (await self.controller.inventory.nodes()).get(name)
        if node is None:
            raise signing.Refused(f"{name}: Slurm knows no such node")
        if not self.controller.config.auth.check_address or not node.address:
            return
        then, known = self.addresses.get(node.address, (-ADDRESSES, set()))
        if time.monotonic() - then >= ADDRESSES:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESOLVE):
                    known = await _resolve(node.address) or known
            self.addresses[node.address] = (time.monotonic(), known)
        peer = (request.remote or "").removeprefix("::ffff:")
        if known and peer not in known:
            raise signing.Refused(f"{name}: a report from {peer}, but Slurm has it at {node.address}")

    # Nodes

    async def report(self, request: web.Request) -> web.Response:
        self._must_be_privileged()
        report = wire.node_report(await request.read())
        who = request.remote or "", report.node
        if who in self.reporting:
            raise web.HTTPTooManyRequests(text=f"{report.node}: one report at a time")
        self.reporting.add(who)
        try:
            await self._must_be_node(request, report.node)
            await self._pace("report", report.node, 1 + len(report.opened) / 10)
            opened = report.opened
            decision = self.controller.heed(replace(report, opened=opened[:AT_ONCE]))
            for start in range(AT_ONCE, len(opened), AT_ONCE):
                await asyncio.sleep(0)  # others have their turn
                decision = self.controller.heed(replace(report, opened=opened[start : start + AT_ONCE]))
            unknown = self.ledger.unknown(report.node, report.standing)
            closed = self.ledger.closed(report.node, report.standing)
            more = {"unknown": unknown, "closed": closed, "now": time.time()}
            return _bytes(json.dumps(wire.plain(decision) | more).encode())
        finally:
            self.reporting.discard(who)

    async def decision(self, request: web.Request) -> web.Response:
        self._must_be_privileged()
        asked = wire.json_object(await request.read())
        node, known = wire.text_field(asked, "node", 256, required=True), wire.text_field(asked, "known", 64)
        who = request.remote or "", node
        if self.polling[who] >= POLLS:
            raise web.HTTPTooManyRequests(text=f"{node}: {POLLS} long polls are open")
        self.polling[who] += 1
        try:
            await self._must_be_node(request, node)
            await self._pace("decision", node, 1)
            return _bytes(
                wire.encode(await self.controller.decisions.await_change(node, known, wire.LONG_POLL))
            )
        finally:
            self.polling[who] -= 1
            if not self.polling[who]:
                del self.polling[who]

    async def _pace(self, what: str, node: str, cost: float) -> None:
        """Let a node that uses more than its share of the controller's time wait, not the others."""
        now = time.monotonic()
        used = max(self.used.get((what, node), -math.inf), now - BURST / RATE)
        self.used[what, node] = used + cost / RATE
        if used > now:
            await asyncio.sleep(used - now)

    # People

    async def _aside(self, make: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make something for people on a thread of theirs."""
        call = functools.partial(make, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self.people, call)

    async def _json(self, make: Callable[..., object], *arguments: Any, **named: Any) -> web.Response:
        return _bytes(await self._aside(lambda: json.dumps(make(*arguments, **named)).encode()))

    async def status(self, request: web.Request) -> web.Response:
        controller = self.controller
        try:
            nodes = await controller.inventory.nodes()
            slurm = controller.outage.trouble
        except SlurmError as error:
            nodes, slurm = {}, str(error)
        heard = {name: at for name, (at, _) in controller.reported.items()}
        return await self._json(overview, controller, self.standby.address, nodes, slurm, heard)

    async def incidents(self, request: web.Request) -> web.Response:
        query = request.query
        limit = query.get("limit", "200")
        if not re.fullmatch("[0-9]{1,4}", limit) or not 0 < int(limit) <= LISTING:
            raise wire.Malformed(f"limit: not a number from 1 to {LISTING}")
        return await self._stories(
            node=query.get("node", ""), every=query.get("all") == "1", limit=int(limit)
        )

    async def incident(self, request: web.Request) -> web.Response:
        return await self._stories(wanted=[int(request.match_info["id"])])

    async def job(self, request: web.Request) -> web.Response:
        uid = None if self._privileged() else _uid()
        return await self._stories(job=request.match_info["id"], uid=uid, every=True)

    async def _stories(self, **which: Any) -> web.Response:
        everything, uid = self._privileged(), _uid()
        return await self._json(
            lambda: [story.incident(row, everything, uid) for row in self.ledger.stories(**which)],
        )

    async def close(self, request: web.Request) -> web.Response:
        self._must_be_privileged()
        number = int(request.match_info["id"])
        incident = self.ledger.incident(number)
        if incident is None:
            return _words(404, f"there is no incident {number}")
        if not incident.closed:
            self.ledger.close(number, await self._aside(story.user, _uid()), time.time())
            self.controller.drains.look_at(incident.node)
        return await self._stories(wanted=[number])

    async def pause(self, request: web.Request) -> web.Response:
        self._must_be_privileged()
        asked = wire.json_object(await request.read())
        seconds, reason = asked.get("seconds", 0), wire.text_field(asked, "reason", wire.WORDS)
        if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
            raise wire.Malformed("seconds: not a number of seconds")
        folded = _hostlist(asked)
        known = self.controller.inventory.known  # as it is: a pause waits for no slurmctld
        strange = NodeSet(folded, resolver=RESOLVER_NOGROUP) - NodeSet.fromlist(list(known))
        if known and strange:
            raise wire.Malformed(f"nodes: Slurm knows no {strange}")
        by, now = await self._aside(story.user, _uid()), time.time()
        self.ledger.pause(folded, now + seconds if seconds else 0.0, reason[:200], by, now)
        return self._look_again(f"paused: {folded or 'the whole cluster'}")

    async def unpause(self, request: web.Request) -> web.Response:
        self._must_be_privileged()
        folded = _hostlist(wire.json_object(await request.read()))
        many = self.ledger.unpause(folded)
        what = f"{many} pause{'' if many == 1 else 's'}"
        return self._look_again(f"{what} of {folded or 'the whole cluster'} lifted")

    def _look_again(self, done: str) -> web.Response:
        self.controller.drains.look_at(*self.ledger.troubled())
        return _bytes(json.dumps({"done": done}).encode())


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
    many = _size(text)
    if many > LARGEST_HOSTLIST:
        raise wire.Malformed(f"nodes: {many} nodes; at most {LARGEST_HOSTLIST} may be named")
    try:
        return str(NodeSet(text, resolver=RESOLVER_NOGROUP)) if text else ""
    except NodeSetException as error:
        raise wire.Malformed(f"nodes: {error}") from None


def _size(hostlist: str) -> int:
    """How many nodes a hostlist names at most, told without expanding it."""

    def number(digits: str) -> int:
        return int(digits.lstrip("0")[:15] or 0)

    many = 0
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", hostlist):
        product = 1
        for ranges in re.findall(r"\[[^\]]*", name):
            ends = re.findall(r"([0-9]+)(?:-([0-9]+))?", ranges)
            product *= sum(max(1, number(last or first) - number(first) + 1) for first, last in ends) or 1
        many += product
    return many


def _of_ledger(request: web.Request) -> bool:
    """Whether a question is answered from the ledger alone, also by a controller that stands by."""
    return request.method == "GET" and request.path.startswith(("/v1/incidents", "/v1/jobs/"))


def _uid() -> int:
    uid = _signer.get()
    assert uid is not None
    return uid


def _bytes(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _words(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")


class _Http(logging.LoggerAdapter[logging.Logger]):
    """For the HTTP library, which writes a traceback for each line that is not HTTP."""

    def __init__(self, door: Door) -> None:
        super().__init__(log, {})
        self.door = door

    def log(self, level: int, msg: object, *args: object, exc_info: object = None, **_: object) -> None:
        if level >= logging.WARNING:
            peer = str(args[0]) if args else ""
            self.door.grumble(peer, "HTTP", f"refused {peer}: {exc_info or msg}")


async def serve(config: Config, ledger: Ledger, controller: Controller, standby: Standby) -> None:
    """The whole controller, until SIGTERM or SIGINT, or until its ledger is lost or another's."""
    auth = config.auth
    door = Door(controller, signing.signature(auth.method, auth.munge_socket, auth.key_file), standby)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ledger.when_lost = lambda: loop.call_soon_threadsafe(stop.set)  # any thread may find out
    # Two connections for each node.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port = config.addresses[config.controller.index(standby.address)]
    near = host in ("localhost", "127.0.0.1", "::1")
    async with door.open(host if near else None, port):
        log.info("listening on port %d, mode %s, ledger %s", port, config.mode, ledger.name)
        async with running(standby.run(controller.run)):
            systemd.notify("READY=1")
            while not stop.is_set():
                systemd.notify("WATCHDOG=1")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await stop.wait()
        if not ledger.lost:
            standby.give_up()
            systemd.notify("STOPPING=1")
