"""A node's line to its controller: what is news goes out at once, decisions come in, silence is survived."""

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slurm_health import link as link_module
from slurm_health import signing, wire
from slurm_health.link import Clock, Link
from slurm_health.sandbox.daemon import await_until
from slurm_health.wire import Decision, NodeReport


class Controller:
    """Plays the controller on a port that it keeps: takes reports, hands out its decision, can be away."""

    def __init__(self, key: Path) -> None:
        self.key = key
        key.touch(0o600)
        key.write_text("k" * 64)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.reports: list[NodeReport] = []
        self.connections = 0
        self.unknown: list[str] | None = None  # which moments it asks for; None as an older release
        self.closed: list[str] = []
        self.status, self.answer = 200, b""  # what to answer instead of a decision
        self.deaf = False  # whether it answers nobody who asks for its decision
        self._decision = Decision()
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._lines: set[socket.socket] = set()

    @property
    def config(self) -> str:
        return f'controller = "127.0.0.1:{self.port}"\n[auth]\nmethod = "hmac"\nkey_file = "{self.key}"\n'

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def signature(self) -> signing.Signature:
        return signing.Hmac(str(self.key))

    @property
    def codes(self) -> list[str]:
        """The code of each finding that was reported, in order, with repeats."""
        return [found.code for report in list(self.reports) for found in report.opened]

    def decide(self, decision: Decision) -> None:
        with self._changed:
            self._decision = decision
            self._changed.notify_all()

    def start(self) -> None:
        here, door = self, signing.Hmac(str(self.key))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                here.connections += 1
                here._lines.add(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    door.signer(self.headers["Authorization"], signing.payload("POST", self.path, body))
                    if here.deaf and self.path != "/v1/report":
                        raise signing.Refused("deaf")
                    status, answer = here.status, here.answer or here._respond(self.path, body)
                except (signing.Refused, wire.Malformed) as error:
                    status, answer = 403, str(error).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...  # a node that went away

        self._server = Server(self.address, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def _respond(self, path: str, body: bytes) -> bytes:
        server = self._server
        with self._changed:
            if path == "/v1/report":
                self.reports.append(wire.node_report(body))
                if self.unknown is not None:
                    return json.dumps(
                        wire.plain(self._decision) | {"unknown": self.unknown, "closed": self.closed}
                    ).encode()
            else:
                known = json.loads(body)["known"]
                self._changed.wait_for(
                    lambda: self._decision.version != known or self._server is not server, wire.LONG_POLL
                )
            return wire.encode(self._decision)

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        server.server_close()
        self._thread.join()
        for line in self._lines:
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._lines.clear()
        with self._changed:
            self._changed.notify_all()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    played = Controller(tmp_path / "key")
    played.start()
    yield played
    played.stop()


class Node:
    """What stands behind a link here: counts what it composes, keeps what it hears."""

    def __init__(self, controller: Controller, *others: Controller) -> None:
        self.controller = controller
        self.composed = 0
        self.heard: list[NodeReport] = []
        self.unknown: list[frozenset[str]] = []
        self.closed: list[frozenset[str]] = []
        self.decided: list[Decision] = []
        self.broken = self.over = False
        self.link = Link(
            [one.address for one in (controller, *others)],
            self.signature,
            "n1",
            self.compose,
            self.hear,
            self.decided.append,
        )

    def compose(self) -> NodeReport:
        self.composed += 1
        if self.broken:
            raise RuntimeError("nothing can be said now")
        return NodeReport("n1", verdict=str(self.composed))

    def hear(self, report: NodeReport, unknown: frozenset[str], closed: frozenset[str]) -> None:
        self.unknown.append(unknown)
        self.closed.append(closed)
        self.heard.append(report)

    def follows(self, decision: Decision) -> bool:
        return self.decided[-1:] == [decision]

    def signature(self) -> signing.Signature:
        if self.over:
            raise SystemExit  # links live as long as their process; those of a test end with it
        return self.controller.signature()

    def end(self) -> None:
        self.over = True
        self.controller.stop()
        self.link.poke()
        for thread in (self.link, self.link.listener):
            if thread.is_alive():
                thread.join(20)
                assert not thread.is_alive()


@pytest.fixture
def node(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(link_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(link_module, "LAST_WAIT", 0.05)
    monkeypatch.setattr(wire, "HEARTBEAT", 600.0)
    hook = threading.excepthook
    monkeypatch.setattr(threading, "excepthook", lambda said: said.exc_type is SystemExit or hook(said))
    it = Node(controller)
    yield it
    it.end()


def wait(condition: Callable[[], object]) -> None:
    assert await_until(condition, 20)


def test_news_goes_out_at_once(controller: Controller, node: Node) -> None:
    node.link.start()
    wait(lambda: node.heard)
    node.link.poke()
    wait(lambda: len(node.heard) == 2)
    node.link.poke()
    wait(lambda: len(node.heard) == 3)
    assert node.heard == controller.reports
    assert controller.connections == 2  # kept: one for what goes out, one for what comes in


def test_a_heartbeat_without_news(
    controller: Controller, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT", 0.02)
    node.link.start()
    wait(lambda: len(controller.reports) > 3)


def test_a_decision_comes_in_while_the_node_is_quiet(controller: Controller, node: Node) -> None:
    node.link.start()
    wait(lambda: node.heard)
    said = [Decision("GPU_XID_79() gone"), Decision("another"), Decision(note="a note", mode="drain")]
    for decision in said:
        controller.decide(decision)
        wait(partial(node.follows, decision))
    assert len(controller.reports) == 1


def test_a_controller_that_is_away_is_tried_until_it_is_back(controller: Controller, node: Node) -> None:
    controller.stop()
    node.link.start()
    wait(lambda: node.composed > 3)
    assert node.link.trouble
    assert node.heard == []
    controller.start()
    wait(lambda: node.heard)
    assert int(controller.reports[-1].verdict) > 3  # what is true now, not what was true when it was away
    wait(lambda: not node.link.trouble)


def test_news_waits_for_no_controller_that_was_away(
    controller: Controller, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "FIRST_WAIT", 3600.0)
    monkeypatch.setattr(link_module, "LAST_WAIT", 3600.0)
    monkeypatch.setattr(link_module, "SOONEST", 0.01)
    controller.stop()
    threading.Thread.start(node.link)  # it alone: the listener would tell it, too
    wait(lambda: node.link.trouble)
    controller.start()
    node.link.poke()
    wait(lambda: node.heard)


def test_a_controller_that_was_restarted_is_told_at_once(controller: Controller, node: Node) -> None:
    node.link.start()
    wait(lambda: node.heard)
    controller.stop()
    controller.start()
    wait(lambda: len(controller.reports) > 1)
    controller.decide(Decision("x"))
    wait(lambda: Decision("x") in node.decided)


def test_a_controller_that_dies_again_before_it_was_asked_is_told_too(
    controller: Controller, node: Node
) -> None:
    node.link.start()
    wait(lambda: node.heard and node.decided)
    controller.stop()
    controller.deaf = True
    controller.start()
    wait(lambda: len(controller.reports) > 1)  # told once, as its first question failed
    controller.reports.clear()  # it died, and nothing of that is left
    controller.deaf = False
    wait(lambda: controller.reports)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (403, b"n1: Slurm knows no such node"),
        (421, b"stands by: the other acts"),
        (503, b"the ledger cannot be used"),
        (500, b""),
        (200, b"<html>It works!</html>"),
        (200, b"[]"),
        (200, b'{"refuse": 7}'),
        (200, b"\xff"),
        (302, b""),
    ],
)
def test_an_answer_that_is_no_receipt_receipts_nothing(
    controller: Controller, node: Node, status: int, answer: bytes
) -> None:
    controller.status, controller.answer = status, answer
    node.link.start()
    wait(lambda: node.composed > 2)
    assert node.heard == []
    assert node.decided == []
    assert node.link.trouble
    controller.status, controller.answer = 200, b""
    wait(lambda: node.heard)


def test_it_knows_for_how_long_it_is_alone(controller: Controller, node: Node) -> None:
    controller.stop()
    node.link.last_heard -= 100
    node.link.start()
    wait(lambda: node.composed > 2)
    assert node.link.alone() >= 100
    controller.start()
    wait(lambda: node.link.alone() < 100)


def test_one_report_that_cannot_be_made_is_not_the_end(controller: Controller, node: Node) -> None:
    node.broken = True
    node.link.start()
    wait(lambda: node.composed > 2)
    node.broken = False
    wait(lambda: node.heard)


def test_a_key_that_is_not_there_yet_is_waited_for(controller: Controller, node: Node) -> None:
    away = controller.key.with_name("away")
    controller.key.rename(away)
    node.link.start()
    wait(lambda: node.composed > 2)
    assert "No such file" in node.link.trouble
    away.rename(controller.key)
    wait(lambda: node.heard)


def test_what_the_controller_never_heard_of_comes_with_the_receipt(
    node: Node, controller: Controller
) -> None:
    node.link.start()
    wait(lambda: node.heard)
    controller.closed = ["b/2"]
    controller.unknown = ["b/1"]
    node.link.poke()
    wait(lambda: len(node.heard) == 2)
    assert (node.unknown, node.closed) == ([frozenset(), {"b/1"}], [frozenset(), {"b/2"}])


def test_a_controller_that_takes_no_reports_is_said_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """Its decisions come all the while: its ledger's disk is full."""
    for _ in range(3):
        node.link._mourn(link_module.REPORT, 0, signing.Refused("503 the ledger"))
        node.link._rejoice(link_module.DECISION)
    assert node.link.trouble == "503 the ledger"
    assert [record.getMessage().endswith("503 the ledger") for record in caplog.records] == [True]


# -- several controllers


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Controller]:
    played = Controller(tmp_path / "key")
    played.start()
    yield played
    played.stop()


def stand_by(controller: Controller) -> None:
    controller.status, controller.answer = wire.STANDS_BY, b"stands by: the other acts"


def act(controller: Controller) -> None:
    controller.status, controller.answer = 200, b""


@pytest.fixture
def torn(controller: Controller, other: Controller, node: Node) -> Iterator[Node]:
    """A node that knows both."""
    it = Node(controller, other)
    yield it
    other.stop()
    it.end()


def test_a_node_stays_with_the_controller_that_acts(
    controller: Controller, other: Controller, torn: Node
) -> None:
    stand_by(controller)
    torn.link.start()
    wait(lambda: torn.heard and torn.decided)
    wait(lambda: not torn.link.trouble)
    known, reports = controller.connections, len(other.reports)
    for _ in range(3):
        torn.link.poke()
        reports += 1
        wait(lambda: len(torn.heard) == reports)  # noqa: B023
    assert torn.heard == other.reports
    assert (controller.reports, controller.connections) == ([], known)
    other.decide(Decision("x"))
    wait(partial(torn.follows, Decision("x")))


@pytest.mark.parametrize("how", ["dies", "stands by"])
def test_a_node_follows_whoever_acts(controller: Controller, other: Controller, torn: Node, how: str) -> None:
    stand_by(other)
    torn.link.start()
    wait(lambda: torn.heard and torn.decided)
    controller.decide(Decision("x"))
    wait(partial(torn.follows, Decision("x")))
    if how == "dies":
        controller.stop()
    else:
        stand_by(controller)
        torn.link.poke()
    known = torn.composed
    wait(lambda: torn.composed > known + 3)
    assert other.reports == []
    assert torn.follows(Decision("x"))  # nobody has said otherwise
    act(other)
    if how != "dies":
        controller.decide(Decision("stale"))  # ends the poll that is still open there
    other.decide(Decision("y"))
    wait(lambda: other.reports)
    wait(partial(torn.follows, Decision("y")))
    wait(lambda: not torn.link.trouble)


def test_each_controller_has_a_clock_of_its_own(
    controller: Controller, other: Controller, torn: Node
) -> None:
    torn.link.clock.compare(sent=1000.0, theirs=960.0, took=0.0)
    stand_by(controller)
    torn.link.start()
    wait(lambda: other.reports)
    assert other.reports[0].ahead is None


HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = [
    (b"HTTP/1.1 200 O", b"K"),
    (HEAD, b"X: y\r\n"),
    (HEAD + b"X: ", b"y"),
    (HEAD + b"Content-Length: 9\r\n\r\n", b""),
    (HEAD + b"\r\n", b"x"),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    (b"", b"\xff\x00"),
]


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["flood", "drip"])
@pytest.mark.parametrize(("begin", "rest"), ENDLESS)
def test_an_answer_that_never_ends_is_not_waited_for(
    controller: Controller,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    begin: bytes,
    rest: bytes,
    pause: float,
) -> None:
    monkeypatch.setattr(link_module, "TIMEOUT", 0.3)
    monkeypatch.setattr(wire, "LONG_POLL", 0.0)
    monkeypatch.setattr(wire, "LIMIT", 100_000)
    controller.stop()
    over = threading.Event()
    asked = itertools.count()
    with socket.create_server(controller.address) as server:

        def never_end(line: socket.socket) -> None:
            with line:
                try:
                    line.recv(1)
                    next(asked)
                    line.sendall(begin)
                    while not over.wait(pause if rest else 0.02):
                        line.sendall(rest if pause else rest * 1000)
                except OSError:
                    return  # it did not wait

        def accept() -> None:
            while not over.is_set():
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=never_end, args=(line,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        node.link.start()
        wait(lambda: node.composed > 2)
        assert node.link.troubles.get((link_module.REPORT, controller.address))
        assert node.heard == []
        over.set()
        server.shutdown(socket.SHUT_RDWR)
    controller.start()
    wait(lambda: node.heard)


def test_the_controllers_clock_is_what_quick_answers_say() -> None:
    clock = Clock()
    assert clock.ahead is None
    clock.compare(sent=1000.0, theirs=0.0, took=0.01)  # an older controller says nothing
    assert clock.ahead is None
    clock.compare(sent=1000.0, theirs=970.0, took=20.0)  # it stood still for a while, somewhere in between
    assert clock.ahead == 40.0
    clock.compare(sent=1010.0, theirs=1010.05, took=0.1)
    assert clock.ahead == pytest.approx(0.0)
    clock.compare(sent=1020.0, theirs=1045.0, took=30.0)
    assert clock.ahead == pytest.approx(0.0)
    clock.compare(sent=1090.0, theirs=1030.0, took=0.0)  # it was set
    assert clock.ahead == 60.0
