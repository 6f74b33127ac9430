"""Those who are told: a web server and a mail host on this machine, well or in trouble."""

from __future__ import annotations

import email
import email.policy
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """`got` is what came, whole, each with what was answered. `mode` is how the next are treated: "well",
    "hang" (until `go`), "drip", or for a web server a status, for a mail host "refuse"."""

    port: int = 0
    mode: str = "well"
    got: list[Any] = field(default_factory=list)
    asked: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    @property
    def taken(self) -> list[Any]:
        return [said for said, answer in self.got if answer == "well"]


@contextmanager
def _serving(server: socketserver.TCPServer, receiver: Receiver) -> Iterator[Receiver]:
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.go.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def webhook(mode: str = "well", port: int = 0) -> Iterator[Receiver]:
    """What it gets is (path, Authorization, JSON)."""
    receiver = Receiver(mode=mode)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            mode = receiver.mode
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.got.append(((self.path, self.headers["Authorization"], body), mode))
            receiver.asked += 1
            if mode == "hang":
                receiver.go.wait(60)
                return
            if mode == "drip":
                while not receiver.go.wait(0.02):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1])
                return
            self.send_response(200 if mode == "well" else int(mode))
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...  # who hung up is what some tests are about

    with _serving(Server(("127.0.0.1", port), Handler), receiver) as serving:
        yield serving


@contextmanager
def mail_host(mode: str = "well", port: int = 0) -> Iterator[Receiver]:
    """What it gets is (recipients, the letter). It refuses whoever's name begins with `nobody`."""
    receiver = Receiver(mode=mode)

    class Handler(socketserver.StreamRequestHandler):
        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def handle(self) -> None:
            receiver.asked += 1
            if receiver.mode == "hang":
                receiver.go.wait(60)
                return
            while receiver.mode == "drip" and not receiver.go.wait(0.02):
                self.say("220-wait")
            to: list[str] = []
            self.say("220 here")
            for line in iter(self.rfile.readline, b""):
                word = line[:4].upper()
                if word == b"DATA":
                    self.say("354 go on")
                    letter = b"".join(iter(self.rfile.readline, b".\r\n"))
                    said = email.message_from_bytes(letter, policy=email.policy.default)
                    receiver.got.append(((to, said), receiver.mode))
                    self.say("250 taken" if receiver.mode == "well" else "451 not\x1b[31m now")
                elif word == b"RCPT" and b"<nobody" in line:
                    self.say("550 unknown")
                else:
                    if word == b"RCPT":
                        to.append(line.decode().partition("<")[2].partition(">")[0])
                    self.say("221 bye" if word == b"QUIT" else "250 fine")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...

    with _serving(Server(("127.0.0.1", port), Handler), receiver) as serving:
        yield serving
