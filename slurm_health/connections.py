"""The connections to the controller's port: each against a clock, those of strangers few.

A stranger is who has not proven to be root or SlurmUser: what has said nothing yet, what drips, what is
refused, and an ordinary user with a question. Nodes are none once their first request has been checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 10.0  # seconds to bring a whole request, or to take an answer in
ANSWER = 120.0  # seconds for an answer to be made: a long poll and Slurm's deadline fit in
IDLE = 90.0  # seconds between two requests on a kept connection: a heartbeat is due every 30 s
STRANGERS = 1000  # connections


class Connection(asyncio.Protocol):
    """Passes everything on to the HTTP protocol behind it, and cuts the connection when its time is over."""

    def __init__(self, register: Register, http: asyncio.Protocol) -> None:
        self.register, self.http = register, http
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.clock: asyncio.TimerHandle | None = None
        self.proven = False
        self.task: asyncio.Task[object] | None = None  # what is of no use to anybody once it is cut

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.peer = str((transport.get_extra_info("peername") or [""])[0])
        self.within(PATIENCE)
        self.register.connections[self.http] = self
        self.http.connection_made(transport)
        self.register.enter(self)

    def data_received(self, data: bytes) -> None:
        self.http.data_received(data)

    def eof_received(self) -> bool | None:
        return self.http.eof_received()

    def pause_writing(self) -> None:
        self.http.pause_writing()

    def resume_writing(self) -> None:
        self.http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.within(None)
        self.register.leave(self)
        self.register.connections.pop(self.http, None)
        self.http.connection_lost(exc)
        if self.task:
            self.task.cancel()

    def within(self, seconds: float | None) -> None:
        """What is due now is due within so many seconds, else the connection is cut; None: nothing is."""
        if self.clock:
            self.clock.cancel()
            self.clock = None
        if seconds is not None and self.transport:
            self.clock = asyncio.get_running_loop().call_later(seconds, self.cut)

    def cut(self) -> None:
        """At once, whatever is still unsent: a peer that does not read would hold it for ever."""
        self.register.leave(self)
        if self.transport:
            self.transport.abort()


class Register:
    """Who is connected. When there are too many strangers, the peer that has the most of them loses its
    oldest: a flood from one host costs that host."""

    def __init__(self) -> None:
        self.connections: dict[asyncio.BaseProtocol, Connection] = {}
        self.strangers: dict[str, dict[Connection, None]] = {}  # by peer, oldest first
        self.many = 0

    def protocols(self, http: Callable[[], asyncio.Protocol]) -> Callable[[], Connection]:
        """A protocol factory for `loop.create_server` around that of an HTTP server."""
        return lambda: Connection(self, http())

    def enter(self, connection: Connection) -> None:
        """It is a stranger (again: the youngest one)."""
        self.leave(connection)
        if connection.transport is None:
            return
        self.strangers.setdefault(connection.peer, {})[connection] = None
        self.many += 1
        if self.many > STRANGERS:
            most = max(self.strangers.values(), key=len)
            next(iter(most)).cut()

    def leave(self, connection: Connection) -> None:
        """It is none, or none any more."""
        of_peer = self.strangers.get(connection.peer, {})
        if connection in of_peer:
            del of_peer[connection]
            self.many -= 1
            if not of_peer:
                del self.strangers[connection.peer]
