"""A node's line to its controller: reports go out, decisions come in, both on threads of their own.

Nothing here can hold up the daemon: it hands over what to say when asked (`compose`) and is handed what came
back (`heard`). Each thread keeps one HTTP/1.1 connection open.
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
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from slurm_health import wire

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds for an answer that is due at once
USUAL = (OSError, http.client.HTTPException, wire.Refused, wire.Malformed)  # what a controller may do to us
REPORT, DECISION = "/v1/report", "/v1/decision"
QUICK = 1.0  # seconds: an answer that took no longer says well enough what the controller's clock is
FIRST_WAIT, LAST_WAIT = 0.2, 5.0  # seconds between tries, doubled and spread by chance


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
        address: tuple[str, int],
        signature: Callable[[], wire.Signature],
        node: str,
        compose: Callable[[], wire.NodeReport],
        heard: Callable[[wire.NodeReport, frozenset[str]], None],
        decided: Callable[[wire.Decision], None],
    ) -> None:
        super().__init__(name="report", daemon=True)
        self.address, self.signature, self.node = address, signature, node
        self.compose, self.heard, self.decided = compose, heard, decided
        self.news = threading.Event()
        self.known = ""
        self.last_heard = time.monotonic()
        self.troubles: dict[str, str] = {}  # target -> why it does not answer; reports may fail alone
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
        post = _Post(self.address, self.signature, TIMEOUT)
        wait = FIRST_WAIT
        while True:
            self.news.clear()
            try:
                report = replace(self.compose(), ahead=self.clock.ahead)
                began, sent = time.monotonic(), time.time()
                answer = post(REPORT, wire.encode(report))
                wire.decision(answer)
                unknown = wire.unknown(answer)
                self.clock.compare(sent, wire.moment_now(answer), time.monotonic() - began)
            except Exception as error:  # whatever it is: a node that falls silent is watched by nobody
                self._mourn(REPORT, error)
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(LAST_WAIT, wait * 2)
                continue
            wait = FIRST_WAIT
            self._rejoice(REPORT)
            # A receipt only: of two answers that cross, the older must not undo the newer decision.
            self.heard(report, unknown)
            self.news.wait(wire.HEARTBEAT)

    def _listen(self) -> None:
        post = _Post(self.address, self.signature, wire.LONG_POLL + TIMEOUT)
        wait = FIRST_WAIT
        while True:
            body = json.dumps({"node": self.node, "known": self.known}).encode()
            try:
                answer = wire.decision(post(DECISION, body))
            except Exception as error:  # as above
                self._mourn(DECISION, error)
                self.known = ""  # so that the next one is answered at once
                time.sleep(wait * random.uniform(0.5, 1.0))
                if wait == FIRST_WAIT:
                    self.poke()
                wait = min(LAST_WAIT, wait * 2)
                continue
            if wait != FIRST_WAIT:
                # A controller that was restarted should know at once what stands here. The report of the
                # first try may have gone to one that has died since.
                self.poke()
            wait = FIRST_WAIT
            self._rejoice(DECISION)
            self.known = answer.version
            self.decided(answer)

    @property
    def trouble(self) -> str:
        return "; ".join(self.troubles.copy().values())

    def _mourn(self, target: str, error: Exception) -> None:
        words = str(error) or type(error).__name__
        if words not in self.troubles.copy().values():
            ours = not isinstance(error, USUAL)
            said = wire.clean(words)
            log.warning("controller %s:%d: %s", *self.address, said, exc_info=error if ours else None)
        self.troubles[target] = words

    def _rejoice(self, target: str) -> None:
        self.last_heard = time.monotonic()
        if self.troubles.pop(target, None) and not self.troubles:
            log.info("controller %s:%d answers again", *self.address)


class _Post:
    """A signed POST over a connection that is kept; made again when it broke. The answer is there within the
    timeout, however its bytes drip, and bounded."""

    def __init__(
        self, address: tuple[str, int], signature: Callable[[], wire.Signature], timeout: float
    ) -> None:
        self.signature, self.timeout = signature, timeout
        self.end = 0.0  # when the answer must be there (monotonic)
        self.connection = http.client.HTTPConnection(*address, timeout=timeout)
        self.connection.response_class = self._response  # type: ignore[assignment]

    def _response(self, line: socket.socket, *arguments: Any, **named: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(_Until(line, self.end), *arguments, **named)  # type: ignore[arg-type]

    def __call__(self, target: str, body: bytes) -> bytes:
        try:
            seal = self.signature().sign(wire.payload("POST", target, body))
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
            raise wire.Refused(f"{response.status} {answer[:200].decode(errors='replace').strip()}")
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
