"""The controller's door against clients that are slow, many, malformed or without end: it answers the others,
and what it holds of them stays bounded."""

import asyncio
import contextlib
import gzip
import json
import logging
import pwd
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_web import ALICE, BOB, XID, FakeSlurm, Site, T, asynchronous, node, site

from slurm_health import connections, signing, web, wire
from slurm_health import story as stories
from slurm_health.ledger import schema
from slurm_health.model import Job, Node
from slurm_health.wire import Decision, NodeReport

REPORT = wire.encode(NodeReport("n1"))


def request(
    method: str = "POST",
    target: str = "/v1/report",
    body: bytes = REPORT,
    uid: int | None = 0,
    **headers: str,
) -> bytes:
    lines = {"Content-Length": str(len(body))} | {
        key.replace("_", "-"): text for key, text in headers.items()
    }
    if uid is not None:
        lines["Authorization"] = f"uid {uid}"
    head = "".join(f"{key}: {text}\r\n" for key, text in lines.items())
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + body


class Line:
    """A client's connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def status(self) -> int:
        """Of one answer, which is taken in."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await self.reader.readexactly(int(length.partition(b":")[2]))
        return int(head.split()[1])

    async def rest(self) -> bytes:
        """All until the controller closes."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def line(here: Site, address: str = "127.0.0.1", **options: Any) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port, local_addr=(address, 0), **options)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  (a state of the controller that nothing announces)
        await asyncio.sleep(0.005)


def none_left(here: Site) -> bool:
    register = here.door.register
    return not register.connections and not register.strangers and not register.many


class Waiting:
    """A signature that takes as long as the test wants."""

    def __init__(self, uid: int = 0) -> None:
        self.uid = uid
        self.go = threading.Event()
        self.asked = 0

    def sign(self, payload: bytes) -> str:
        raise NotImplementedError

    def signer(self, header: str, payload: bytes) -> int:
        self.asked += 1
        self.go.wait(30)
        return self.uid


# -- slow


@pytest.mark.parametrize(
    "begin",
    [b"", b"POST /v1/re", b"POST /v1/report HTTP/1.1\r\nX-A", request()[:-1], request(uid=ALICE)[:-1]],
)
@asynchronous
async def test_who_brings_no_whole_request_in_time_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.1)
    async with site(tmp_path) as here, line(here) as slow:
        await slow.say(begin)
        assert await slow.rest() == b""
        await until(lambda: none_left(here))


@pytest.mark.parametrize("begin", [b"POST /v1/report HTTP/1.1\r\nX-A: ", request(Content_Length="60000")])
@asynchronous
async def test_dripping_buys_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.1)
    async with site(tmp_path) as here, line(here) as slow:
        await slow.say(begin)
        with contextlib.suppress(ConnectionError):
            while not slow.reader.at_eof():
                await slow.say(b"x")
                await asyncio.sleep(0.01)
        await until(lambda: none_left(here))


@asynchronous
async def test_a_node_that_drips_is_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path) as here, line(here) as slow:
        await slow.say(request())
        assert await slow.status() == 200
        monkeypatch.setattr(connections, "PATIENCE", 0.1)
        await slow.say(request()[:-1])
        assert await slow.rest() == b""


@asynchronous
async def test_who_does_not_take_the_answer_in_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.3)
    async with site(tmp_path) as here:
        rows = [
            {"node": "n1", "code": "C", "device": f"d{n}", "severity": 2, "job": "now", "text": "t" * 9000,
             "since": T, "opened": T, "lasting": False, "moment": str(n), "seen": T}
            for n in range(1000)
        ]  # fmt: skip
        with here.ledger.engine.begin() as connection:
            connection.execute(schema.incidents.insert(), rows)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(web.QUESTIONS + 1):
                narrow = socket.socket()
                narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                narrow.setblocking(False)
                stack.callback(narrow.close)
                await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", here.port))
                asked = request("GET", "/v1/incidents?limit=1000", b"", ALICE)
                await asyncio.get_running_loop().sock_sendall(narrow, asked)
            await until(lambda: ALICE in here.door.asking and here.door.asking[ALICE].locked())
            assert len(await here.get("/v1/incidents?limit=1000", BOB)) == 1000  # others are not held up
            await until(lambda: not here.door.asking)
        await here.client.close()
        await until(lambda: none_left(here))


# -- kept or not


@asynchronous
async def test_a_connection_is_kept_for_root_alone(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        async with line(here) as node:
            for _ in range(3):
                await node.say(request())
                assert await node.status() == 200
            await node.say(request(body=b"{"))
            assert await node.status() == 400  # a mistake of a node's costs no connection
            await node.say(request())
            assert await node.status() == 200
            await node.say(request(uid=None))
            assert await node.status() == 403
            assert await node.rest() == b""
        for bad in (
            request("GET", "/v1/status", b"", ALICE),
            request("GET", "/v1/status", b"", None),
            request(uid=ALICE),
            request(uid=None),
            request("GET", "/no/such/page", b"", None),
            request("GET", "/no/such/page", b"", ALICE),
        ):
            async with line(here) as stranger:
                await stranger.say(bad + bad)
                await stranger.status()
                assert await stranger.rest() == b""
        await until(lambda: none_left(here))


@asynchronous
async def test_a_kept_connection_that_nothing_comes_on_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connections.IDLE > 2 * wire.HEARTBEAT
    assert connections.ANSWER > wire.LONG_POLL + 30
    monkeypatch.setattr(connections, "IDLE", 0.1)
    async with site(tmp_path) as here, line(here) as node:
        await node.say(request())
        assert await node.status() == 200
        assert await node.rest() == b""


@asynchronous
async def test_a_long_poll_outlasts_the_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.1)
    monkeypatch.setattr(connections, "IDLE", 0.1)
    monkeypatch.setattr(wire, "LONG_POLL", 0.5)
    async with site(tmp_path) as here, line(here) as node:
        body = json.dumps({"node": "n1", "known": Decision().version}).encode()
        await node.say(request("POST", "/v1/decision", body))
        assert await node.status() == 200


@asynchronous
async def test_a_replay_is_refused_and_its_connection_closed(tmp_path: Path) -> None:
    async with site(tmp_path) as here, line(here) as first, line(here) as second:
        key = tmp_path / "key"
        key.touch(0o600)
        key.write_text("k" * 64)
        here.door.signature = signing.Hmac(str(key))
        seal = here.door.signature.sign(signing.payload("POST", "/v1/report", REPORT))
        signed = request(uid=None, Authorization=seal)
        await first.say(signed)
        assert await first.status() == 200
        await second.say(signed)
        assert await second.status() == 403
        assert await second.rest() == b""


# -- many


@asynchronous
async def test_a_node_gets_in_while_hundreds_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STRANGERS", 500)
    async with site(tmp_path) as here, line(here) as node:
        await node.say(request())
        assert await node.status() == 200
        async with contextlib.AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(line(here)) for _ in range(600)]
            await until(lambda: here.door.register.many == 500)
            for old in silent[:100]:
                assert await old.rest() == b""
            assert (await here.report())[0] == 200
            await node.say(request())  # one that was proven before is not in their number
            assert await node.status() == 200
            assert here.door.register.many <= 500
            assert len(here.door.register.connections) <= 500 + 2
        await here.client.close()
        node.writer.close()
        await until(lambda: none_left(here))


@asynchronous
async def test_a_flood_costs_the_host_that_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STRANGERS", 10)
    async with site(tmp_path) as here, line(here, "127.0.0.2") as node:
        await node.say(request()[:-1])
        async with contextlib.AsyncExitStack() as stack:
            flood = [await stack.enter_async_context(line(here)) for _ in range(30)]
            for old in flood[:20]:
                assert await old.rest() == b""
            await node.say(request()[-1:])
            assert await node.status() == 403  # of n1, but it was heard


@asynchronous
async def test_a_request_that_is_whole_is_not_dropped_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STRANGERS", 3)
    async with site(tmp_path) as here, line(here) as node, contextlib.AsyncExitStack() as stack:
        here.door.signature = slow = Waiting()
        stack.callback(slow.go.set)
        await node.say(request())
        await until(lambda: slow.asked)
        flood = [await stack.enter_async_context(line(here)) for _ in range(10)]
        for old in flood[:7]:
            assert await old.rest() == b""
        slow.go.set()
        assert await node.status() == 200


@asynchronous
async def test_checks_that_wait_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CHECKS", 2)
    async with site(tmp_path) as here, contextlib.AsyncExitStack() as stack:
        here.door.signature = slow = Waiting()
        stack.callback(slow.go.set)
        nodes = [await stack.enter_async_context(line(here)) for _ in range(3)]
        for node in nodes[:2]:
            await node.say(request())
        await until(lambda: here.door.checking == 2)
        await nodes[2].say(request())
        assert await nodes[2].status() == 503
        slow.go.set()
        assert [await node.status() for node in nodes[:2]] in ([200, 200], [200, 429], [429, 200])
        assert here.door.checking == 0


# -- large

CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(Content_Length=str(2 << 20)), 413),
        (request("POST", "/v1/pause", Content_Length=str(web.SMALL + 1)), 413),
        (request("GET", "/v1/status", Content_Length=str(2 << 20)), 413),
        (request(body=b"").replace(b"Content-Length: 0", CHUNKED) + b"1\r\nx\r\n", 411),
        (request("GET", body=b"").replace(b"Content-Length: 0", CHUNKED) + b"1\r\nx\r\n", 411),
        (request(body=b"").replace(b"Content-Length: 0\r\n", b""), 411),
    ],
)  # fmt: skip
@pytest.mark.parametrize("uid", [0, None])
@asynchronous
async def test_a_body_is_refused_before_it_is_read(
    tmp_path: Path, head: bytes, status: int, uid: int | None
) -> None:
    async with site(tmp_path) as here, line(here) as stranger:
        if uid is None:
            head = head.replace(b"Authorization: uid 0\r\n", b"")
        await stranger.say(head)
        assert await stranger.status() == status
        assert await stranger.rest() == b""


@asynchronous
async def test_large_bodies_take_turns(tmp_path: Path) -> None:
    large = request(body=json.dumps({"node": "n1", "padding": "x" * web.SMALL}).encode())
    async with site(tmp_path) as here, contextlib.AsyncExitStack() as stack:
        here.door.room = asyncio.Semaphore(2)
        node, first, second, third, fourth = [
            await stack.enter_async_context(line(here, address))
            for address in ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3")
        ]
        await node.say(request())
        assert await node.status() == 200
        await first.say(large[:-1])
        await until(lambda: here.door.large)
        await second.say(large)
        assert await second.status() == 429  # one of each stranger
        await node.say(large)
        assert await node.status() == 200  # a node's line has room still
        await third.say(large[:-1])
        await until(lambda: here.door.room.locked())
        await fourth.say(large[:-1])
        await until(lambda: len(here.door.large) == 3)
        first.writer.transport.abort()
        third.writer.transport.abort()
        fourth.writer.transport.abort()
        await until(lambda: not here.door.large and not here.door.room.locked())
        await node.say(large)
        assert await node.status() == 200


@asynchronous
async def test_a_body_is_never_unfolded(tmp_path: Path) -> None:
    async with site(tmp_path) as here, line(here) as node:
        bomb = gzip.compress(json.dumps({"node": "n1", "padding": "x" * 900_000}).encode())
        await node.say(request(body=bomb, Content_Encoding="gzip"))
        assert await node.status() == 400


# -- malformed

GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    b"\r\n\r\n\r\nGET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"x" * 100_000,
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000,
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"\x00" * 1000,
]


@asynchronous
async def test_garbage_is_closed_and_fills_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path) as here:
        for _ in range(3):
            for garbage in GARBAGE:
                async with line(here) as stranger:
                    with contextlib.suppress(ConnectionError):
                        await stranger.say(garbage)
                    await stranger.rest()
        assert (await here.report())[0] == 200
        await here.client.close()
        await until(lambda: none_left(here))
    said = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert len(said) <= 2  # the one is not HTTP, the other is and has no credential
    assert not any(record.exc_info for record in said)
    assert not any("\n" in record.getMessage() or len(record.getMessage()) > 400 for record in said)


@asynchronous
async def test_what_a_request_says_cannot_forge_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for target in ("/v1/%0aforged%1b%5b2J", "/v1/\udcff\udcfe", "/" + "x" * 5000):
        async with site(tmp_path) as here, line(here) as stranger:
            head = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: \udc9b\udcff\r\n\r\n"
            await stranger.say(head.encode(errors="surrogateescape"))
            assert await stranger.status() in (400, 403)
            assert await stranger.rest() == b""
    assert caplog.records
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) <= 400
        assert not record.exc_info


@asynchronous
async def test_the_same_peer_is_said_once_a_minute_whatever_it_sends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path) as here:
        for many in range(30):
            assert (await here.ask("POST", "/v1/report", b"[" * many + b"x"))[0] == 400
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        monkeypatch.setattr(web, "LINES", 10)
        for many in range(100):
            here.door.grumble(f"192.0.2.{many}", "403", "refused")
        assert len(caplog.records) == len(here.door.grumbled) == 10
        here.door.grumbled = {key: at - 61 for key, at in here.door.grumbled.items()}
        here.door.grumble("192.0.2.1", "403", "refused")
        assert len(here.door.grumbled) == 1


@asynchronous
async def test_a_bug_is_answered_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path) as here:
        monkeypatch.setattr(here.controller, "heed", lambda _: 1 / 0)
        for _ in range(5):
            assert (await here.report())[0] == 500
        [said] = caplog.records
        assert said.exc_info


@asynchronous
async def test_a_client_that_hangs_up_is_no_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path) as here:
        for begin in (request()[:-1], request()[:20], request("GET", "/v1/status", b"", ALICE)):
            for _ in range(10):
                async with line(here) as stranger:
                    await stranger.say(begin)
        await until(lambda: none_left(here))
    assert caplog.records == []


# -- without end


@asynchronous
async def test_a_storm_of_one_node_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "RATE", 5.0)
    monkeypatch.setattr(web, "BURST", 10.0)
    async with site(tmp_path) as here:
        heeded: list[str] = []
        heed = here.controller.heed

        def noted(report: NodeReport) -> Decision:
            heeded.append(report.node)
            return heed(report)

        monkeypatch.setattr(here.controller, "heed", noted)
        answers: list[int] = []

        async def storm() -> None:
            async with line(here) as node:
                for _ in range(100):
                    await node.say(request())
                    answers.append(await node.status())

        began = time.monotonic()
        storms = [asyncio.create_task(storm()) for _ in range(20)]
        await until(lambda: len(answers) > 50)
        for _ in range(5):
            assert (await here.report(node="n2"))[0] == 200
            assert (await here.get("/v1/status", ALICE))["worst"] == "ok"
        await until(lambda: len(answers) > 1900)
        for task in storms:  # the last one waits for its share; nothing is lost, the rest was told to wait
            task.cancel()
        await asyncio.gather(*storms, return_exceptions=True)
        taken = heeded.count("n1")
        assert 10 <= taken <= 10 + 5 * (time.monotonic() - began) + 1
        assert set(answers) == {200, 429}
        assert heeded.count("n2") == 5
        assert len(here.door.used) == 2
        await until(lambda: not here.door.reporting)


@asynchronous
async def test_while_slurm_hangs_few_reports_wait(tmp_path: Path) -> None:
    go = asyncio.Event()

    class Hanging(FakeSlurm):
        async def nodes(self, names: Iterable[str] = ()) -> dict[str, Node]:
            await go.wait()
            return await super().nodes(names)

    async with site(tmp_path, Hanging()) as here:
        first = asyncio.create_task(here.report())
        await until(lambda: here.door.reporting)
        assert (await here.report())[0] == 429  # its node gave up and tries again
        go.set()
        assert (await first)[0] == 200


@asynchronous
async def test_a_resolver_that_hangs_holds_up_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, resolve = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **named: Any) -> Any:
        if host.startswith("host"):
            go.wait(30)
        if host == "lost":
            raise socket.gaierror
        return resolve("127.0.0.1", *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(web, "RESOLVE", 0.01)
    many = {f"n{number}": node(f"n{number}", f"host{number}") for number in range(1, 60)}
    many["lost"] = node("lost", "lost")
    async with site(tmp_path, FakeSlurm(many)) as here, contextlib.AsyncExitStack() as stack:
        stack.callback(go.set)
        # What an address was is believed until there is an answer.
        here.door.addresses["lost"] = (0.0, {"192.0.2.1"})
        assert (await here.report(node="lost"))[0] == 403
        for name in list(many)[:-1]:
            assert (await here.report(node=name))[0] == 200
        here.door.addresses["host1"] = (0.0, {"192.0.2.1"})
        assert (await here.report())[0] == 403


@asynchronous
async def test_a_slurm_that_fell_silent_is_not_asked_for_each_report(tmp_path: Path) -> None:
    asked: list[float] = []
    go = asyncio.Event()
    go.set()

    class Slow(FakeSlurm):
        async def nodes(self, names: Iterable[str] = ()) -> dict[str, Node]:
            asked.append(time.monotonic())
            await go.wait()
            return await super().nodes(names)

    many = {f"n{number}": node(f"n{number}") for number in range(1, 21)}
    async with site(tmp_path, Slow(many)) as here:
        assert (await here.report())[0] == 200
        here.slurm.silent = True
        here.controller.inventory.at -= 120
        asked.clear()
        go.clear()
        first = asyncio.create_task(here.report())
        await until(lambda: asked)
        for name in list(many)[1:]:
            assert (await here.report(node=name))[0] == 200  # while Slurm is waited for
        go.set()
        assert (await first)[0] == 200
        for name in many:
            assert (await here.report(node=name))[0] == 200
        assert len(asked) == 1


@asynchronous
async def test_a_burst_that_is_meant_is_not_slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "RATE", 0.001)  # to wait is to fail
    async with site(tmp_path) as here:
        for number in range(10):
            assert (await here.report(replace(XID, moment=f"b/{number}")))[0] == 200
        many = [replace(XID, device=f"d{n}", moment=f"c/{n}") for n in range(wire.MANY)]
        assert (await here.report(*many, node="n2"))[0] == 200
        assert len(here.ledger.open_incidents(["n2"])) == wire.MANY


@asynchronous
async def test_a_report_of_many_findings_lets_others_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path) as here:
        sizes: list[int] = []
        heed = here.controller.heed

        def noted(report: NodeReport) -> Decision:
            sizes.append(len(report.opened))
            return heed(report)

        monkeypatch.setattr(here.controller, "heed", noted)
        many = [replace(XID, device=f"d{n}", moment=f"c/{n}", lasting=True) for n in range(wire.MANY)]
        assert (await here.report(*many))[0] == 200
        assert sum(sizes) == wire.MANY
        assert max(sizes) <= 100
        assert not any(one.cleared for one in here.ledger.open_incidents(["n1"]))


@asynchronous
async def test_a_nodes_long_polls_are_few(tmp_path: Path) -> None:
    async with site(tmp_path) as here, contextlib.AsyncExitStack() as stack:
        body = json.dumps({"node": "n1", "known": Decision().version}).encode()
        polls = [await stack.enter_async_context(line(here)) for _ in range(web.POLLS + 1)]
        for poll in polls[:-1]:
            await poll.say(request("POST", "/v1/decision", body))
        await until(lambda: here.door.polling["127.0.0.1", "n1"] == web.POLLS)
        await polls[-1].say(request("POST", "/v1/decision", body))
        assert await polls[-1].status() == 429
        asked = {"node": "n2", "known": "another"}
        assert (await here.ask("POST", "/v1/decision", asked))[0] == 200
        await until(lambda: len(here.door.polling) == 1)


@asynchronous
async def test_a_name_service_that_hangs_holds_up_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, asked = threading.Event(), []

    def getpwuid(uid: int) -> Any:
        asked.append(uid)
        go.wait(30)
        return SimpleNamespace(pw_name=f"user{uid}")

    stories._name.cache_clear()
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(connections, "STRANGERS", 20)
    async with site(tmp_path) as here:
        here.ledger.take(NodeReport("n1", opened=(XID,)), T)
        for job in (7, 8):
            ran = Job(job, str(job), "RUNNING", uid=ALICE)
            here.ledger.touch(here.ledger.open_incidents()[0], ran, 0, 0.0, T)
        questions = [asyncio.create_task(here.get("/v1/incidents")) for _ in range(10)]
        await until(lambda: asked)
        assert (await here.report())[0] == 200
        here.door.signature = checked = Waiting(ALICE)
        checked.go.set()
        async with contextlib.AsyncExitStack() as stack:
            impatient: list[Line] = []
            for many in range(100):
                impatient.append(await stack.enter_async_context(line(here)))
                await impatient[-1].say(request("GET", "/v1/jobs/7", b"", ALICE))
                await until(lambda many=many: checked.asked > many)
            for one in impatient[:80]:
                assert await one.rest() == b""
            # Of a question whose connection was dropped nothing is left.
            await until(lambda: len(asyncio.all_tasks()) < 100)
        go.set()
        for [story] in await asyncio.gather(*questions):
            assert [job["user"] for job in story["jobs"]] == [f"user{ALICE}"] * 2
        assert len(asked) <= 2  # one on each thread
    stories._name.cache_clear()
