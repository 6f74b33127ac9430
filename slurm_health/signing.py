"""Who says what passes: requests are signed, by MUNGE or, on sites without it, with a key of the site."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import hmac
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Protocol


class Refused(Exception):
    """A credential that does not hold, in words for the log."""


class Signature(Protocol):
    """One way to sign a request and to tell who signed it."""

    def sign(self, payload: bytes) -> str:
        """The value of the Authorization header."""

    def signer(self, header: str, payload: bytes) -> int:
        """The uid that signed `payload`; Refused when nobody did, or not just now, or not just once."""


def payload(method: str, target: str, body: bytes) -> bytes:
    """What is signed: a digest over the whole request."""
    return hashlib.sha256(f"{method} {target}\n".encode() + body).hexdigest().encode()


class Munge:
    """MUNGE credentials through libmunge (munge(3)); munged itself refuses old and replayed ones."""

    SOCKET = 8  # MUNGE_OPT_SOCKET in munge.h
    UNHEARD = 6  # EMUNGE_SOCKET

    def __init__(self, socket: str = "") -> None:
        name = ctypes.util.find_library("munge") or "libmunge.so.2"
        try:
            self.library = ctypes.CDLL(name)
        except OSError as error:
            raise Refused(f"libmunge cannot be loaded ({error}); install it (Debian: libmunge2)") from None
        self.library.munge_ctx_create.restype = ctypes.c_void_p
        self.library.munge_strerror.restype = ctypes.c_char_p
        self.free = ctypes.CDLL(None).free
        self.free.argtypes = [ctypes.c_void_p]
        self.socket = socket.encode()

    def _context(self) -> ctypes.c_void_p:
        context = ctypes.c_void_p(self.library.munge_ctx_create())
        if self.socket:
            self.library.munge_ctx_set(context, self.SOCKET, ctypes.c_char_p(self.socket))
        return context

    def _words(self, error: int) -> str:
        hint = "; is munged running on this host?" if error == self.UNHEARD else ""
        return f"MUNGE: {self.library.munge_strerror(error).decode()}{hint}"

    def sign(self, payload: bytes) -> str:
        context, credential = self._context(), ctypes.c_void_p()
        try:
            error = self.library.munge_encode(ctypes.byref(credential), context, payload, len(payload))
            if error:
                raise Refused(self._words(error))
            text = ctypes.string_at(credential)
            return f"MUNGE {text.decode()}"
        finally:
            self.free(credential)
            self.library.munge_ctx_destroy(context)

    def signer(self, header: str, payload: bytes) -> int:
        scheme, _, credential = header.partition(" ")
        if scheme != "MUNGE" or not credential.isascii():
            raise Refused(
                "no MUNGE credential" if not header else f"a credential of another kind: {scheme[:20]!r}"
            )
        context, signed = self._context(), ctypes.c_void_p()
        length, uid, gid = ctypes.c_int(), ctypes.c_uint32(), ctypes.c_uint32()
        try:
            error = self.library.munge_decode(
                credential.encode(), context, *map(ctypes.byref, (signed, length, uid, gid))
            )
            if error:
                raise Refused(self._words(error))
            if ctypes.string_at(signed, length.value) != payload:
                raise Refused("a credential for another message")
            return uid.value
        finally:
            self.free(signed)
            self.library.munge_ctx_destroy(context)


class Hmac:
    """HMAC-SHA256 with a key file that only root can read, so the signer counts as uid 0."""

    LIFETIME = 300.0  # seconds, MUNGE's default

    def __init__(self, key_file: str) -> None:
        file = Path(key_file)
        try:
            mode, self.key = file.stat().st_mode, file.read_bytes().strip()
        except OSError as error:
            raise Refused(f"{file}: {error.strerror}") from None
        if mode & 0o077:
            raise Refused(f"{file}: readable by others than its owner; chmod 600 it")
        if len(self.key) < 32:
            raise Refused(f"{file}: the key is shorter than 32 bytes; make one with: openssl rand -hex 32")
        self.seen: dict[str, float] = {}  # oldest first
        self.lock = threading.Lock()  # over `seen`: the controller asks from many threads

    def _seal(self, stamp: str, payload: bytes) -> str:
        return hmac.new(self.key, stamp.encode() + b"\n" + payload, hashlib.sha256).hexdigest()

    def sign(self, payload: bytes) -> str:
        stamp = f"{time.time():.3f}:{secrets.token_hex(12)}"
        return f"HMAC {stamp}:{self._seal(stamp, payload)}"

    def signer(self, header: str, payload: bytes) -> int:
        scheme, _, credential = header.partition(" ")
        stamp, _, seal = credential.rpartition(":")
        if (
            scheme != "HMAC"
            or not header.isascii()
            or not hmac.compare_digest(seal, self._seal(stamp, payload))
        ):
            raise Refused("no HMAC of ours over this message")
        now, signed = time.time(), float(stamp.partition(":")[0])
        if abs(now - signed) > self.LIFETIME:
            raise Refused(f"signed {now - signed:.0f} s ago")
        with self.lock:
            # Twice: what a fast clock signed in our future holds that much longer.
            while self.seen and now - self.seen[oldest := next(iter(self.seen))] > 2 * self.LIFETIME:
                del self.seen[oldest]
            if stamp in self.seen:
                raise Refused("a replay")
            self.seen[stamp] = now
        return 0


def signature(method: str, munge_socket: str = "", key_file: str = "") -> Signature:
    """The way of signing that the site's [auth] names."""
    return Hmac(key_file) if method == "hmac" else Munge(munge_socket or os.environ.get("MUNGE_SOCKET", ""))
