"""Telling systemd how a daemon does (sd_notify(3)), without libsystemd."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state` ("READY=1", "WATCHDOG=1", "STATUS=...", "STOPPING=1") to NOTIFY_SOCKET, if it is set.

    The datagram protocol is public and stable; systemd's manual shows it in a few lines.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        channel.sendall(state.encode())
