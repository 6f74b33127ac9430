"""A node's line to its controller: reports go out, decisions come in, both on threads of their own.

Nothing here can hold up the daemon: it hands over what to say when asked (`compose`) and is handed what came
back (`heard`). Each thread keeps one HTTP/1.1 connection open. Of several controllers they stay with the one
that answers: whoever stands by refuses.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from slurm_health import signing, wire

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds for an answer that is due at once
USUAL = (
    OSError,
    http.client.HTTPException,
    signing.Refused,
    wire.Malformed,
)  # what a controller may do to us
REPORT, DECISION = "/v1/report", "/v1/decision"
QUICK = 1.0  # seconds: an answer that took no longer says well enough what the controller's clock is
FIRST_WAIT, LAST_WAIT = 0.2, 5.0  # seconds when all controllers were tried, doubled and spread by chance
SOONEST = 0.2  # seconds of it that no news shortens

Address = tuple[str, int]


class Clock:
    """By how much our clock is `ahead` of the controller's (seconds), None until that was measured.

    An answer was written some time between question and receipt: the quickest one says it best.
    """

    def __init__(self) -> None:
        self.ahead: float | None = None
        self.took = math.inf

    def compare(self, sent: float, theirs: float, took: float) -> None:
        """`sent`: when we asked, by our clock; `theirs`: the answer's, by their clock; seconds in between."""
        if theirs and took <= max(self.took, QUICK):
            self.ahead, self.took = sent + took / 2 - theirs, took


class Link(threading.Thread):
    """Reports as soon as `poke` says there is news, and every 30 s; listens for decisions in between."""

    def __init__(
        self,
        addresses: Sequence[Address],
        signature: Callable[[], signing.Signature],
        node: str,
        compose: Callable[[], wire.NodeReport],
        heard: Callable[[wire.NodeReport, frozenset[str], frozenset[str]], None],
        decided: Callable[[wire.Decision], None],
    ) -> None:
        super().__init__(name="report", daemon=True)
        self.addresses, self.signature, self.node = addresses, signature, node
        self.turn = 0  # counts the controllers that were tried, round and round
        self.compose, self.heard, self.decided = compose, heard, decided
        self.news = threading.Event()
        self.known = ""
        self.last_heard = time.monotonic()
        # Target and controller -> why it does not answer; reports may fail alone.
        self.troubles: dict[tuple[str, Address], str] = {}
        self.clock = Clock()
        self.listener = threading.Thread(target=self._listen, name="decisions", daemon=True)

    def poke(self) -> None:
        """There is something to report now."""
        self.news.set()

    def start(self) -> None:
        super().start()
        self.listener.start()

    def alone(self) -> float:
        """Seconds since the controller was last heard."""
        return time.monotonic() - self.last_heard

    def run(self) -> None:
        post = _Post(self.signature, TIMEOUT)
        wait = FIRST_WAIT
        while True:
            self.news.clear()
            turn, clock = self.turn, self.clock
            try:
                report = replace(self.compose(), ahead=clock.ahead)
                began, sent = time.monotonic(), time.time()
                answer = post(self._address(turn), REPORT, wire.encode(report))
                wire.decision(answer)
                unknown, closed = wire.unknown(answer), wire.closed(answer)
                clock.compare(sent, wire.moment_now(answer), time.monotonic() - began)
            except Exception as error:  # whatever it is: a node that falls silent is watched by nobody
                self._mourn(REPORT, turn, error)
                wait = self._move_on(turn, wait, self._await_news)
                continue
            wait = FIRST_WAIT
            self._rejoice(REPORT)
            # A receipt only: of two answers that cross, the older must not undo the newer decision.
            self.heard(report, unknown, closed)
            self.news.wait(wire.HEARTBEAT)

    def _listen(self) -> None:
        post = _Post(self.signature, wire.LONG_POLL + TIMEOUT)
        wait, missed = FIRST_WAIT, 0
        while True:
            turn = self.turn
            body = json.dumps({"node": self.node, "known": self.known}).encode()
            try:
                answer = wire.decision(post(self._address(turn), DECISION, body))
            except Exception as error:  # as above
                self._mourn(DECISION, turn, error)
                self.known = ""  # so that the next one is answered at once
                wait = self._move_on(turn, wait)
                missed += 1
                if missed == 1:
                    self.poke()
                continue
            if missed:
                # A controller that was restarted should know at once what stands here. The report of the
                # first try may have gone to one that has died since.
                self.poke()
            wait, missed = FIRST_WAIT, 0
            self._rejoice(DECISION)
            self.known = answer.version
            self.decided(answer)

    def _address(self, turn: int) -> Address:
        return self.addresses[turn % len(self.addresses)]

    def _await_news(self, seconds: float) -> None:
        """A fault, or the word of the other thread that a controller answers, is worth another try."""
        time.sleep(min(seconds, SOONEST))
        self.news.wait(max(0.0, seconds - SOONEST))

    def _move_on(self, turn: int, wait: float, pause: Callable[[float], None] = time.sleep) -> float:
        """Try the next controller, at once but for a `wait` after the last one; how long the next is."""
        if self.turn == turn:  # else the other thread has moved on already
            self.turn = turn + 1
            if len(self.addresses) > 1:
                self.clock = Clock()
        if (turn + 1) % len(self.addresses):
            return wait
        pause(wait * random.uniform(0.5, 1.0))
        return min(LAST_WAIT, wait * 2)

    @property
    def trouble(self) -> str:
        return "; ".join(self.troubles.copy().values())

    def _mourn(self, target: str, turn: int, error: Exception) -> None:
        address, words = self._address(turn), str(error) or type(error).__name__
        known = [said for (_, one), said in self.troubles.copy().items() if one == address]
        if words not in known:
            ours = not isinstance(error, USUAL)
            log.warning("controller %s:%d: %s", *address, wire.clean(words), exc_info=error if ours else None)
        self.troubles[target, address] = words

    def _rejoice(self, target: str) -> None:
        """One controller has answered: it does not matter that others did not."""
        self.last_heard = time.monotonic()
        over = [key for key in self.troubles.copy() if key[0] == target]
        for key in over:
            self.troubles.pop(key, None)
        if over and not self.troubles:
            log.info("controller %s:%d answers", *self._address(self.turn))


class _Post:
    """A signed POST over a connection that is kept; made again when it broke. The answer is there within the
    timeout, however its bytes drip, and bounded."""

    def __init__(self, signature: Callable[[], signing.Signature], timeout: float) -> None:
        self.signature, self.timeout = signature, timeout
        self.end = 0.0  # when the answer must be there (monotonic)
        self.address: Address | None = None
        self.connection: http.client.HTTPConnection

    def _response(self, line: socket.socket, *arguments: Any, **named: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(_Until(line, self.end), *arguments, **named)  # type: ignore[arg-type]

    def __call__(self, address: Address, target: str, body: bytes) -> bytes:
        if address != self.address:
            if self.address:
                self.connection.close()
            self.address = address
            self.connection = http.client.HTTPConnection(*address, timeout=self.timeout)
            self.connection.response_class = self._response  # type: ignore[assignment]
        try:
            seal = self.signature().sign(signing.payload("POST", target, body))
            headers = {"Authorization": seal, "Content-Type": "application/json"}
            if self.connection.sock:
                self.connection.sock.settimeout(self.timeout)
            self.end = time.monotonic() + self.timeout
            self.connection.request("POST", target, body, headers)
            response = self.connection.getresponse()
            answer = response.read(wire.LIMIT)
        except BaseException:
            self.connection.close()
            raise
        if response.status != 200:
            raise signing.Refused(f"{response.status} {answer[:200].decode(errors='replace').strip()}")
        return answer


class _Until(io.RawIOBase):
    """Reads from a socket until a moment. HTTPResponse takes it for the socket itself."""

    def __init__(self, line: socket.socket, end: float) -> None:
        self.line, self.end = line, end
        self.raw = line.makefile("rb", buffering=0)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the answer takes too long")
        self.line.settimeout(seconds)
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()
