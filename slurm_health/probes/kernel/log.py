"""Follows the kernel log of a host: the kernel's device, a file that stands for it, or a FIFO."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time

from slurm_health.host import Host
from slurm_health.probes.kernel.record import Record, parse_record

DEVICE = "dev/kmsg"
RECORD = 16384  # bytes; no record is longer (PRINTKRB_RECORD_MAX 1024, CONSOLE_EXT_LOG_MAX 8192)
BATCH = 1000  # records that one read() brings at most, so that a full ring costs no memory


class KernelLog:
    """Follows dev/kmsg below a host's root: the kernel's device, a file that stands for it, or a FIFO.

    `after` is the last sequence number that was dealt with in this boot: what is not newer is left out.
    `lost` counts records overwritten before they were read, `malformed` lines that are no records,
    `sequence` is the last number seen (-1: none), `error` says why nothing can be read ("": it can).
    """

    def __init__(self, host: Host, after: int | None = None) -> None:
        self.path = str(host.path(DEVICE))
        self.lost = 0
        self.malformed = 0
        self.sequence = -1
        self.error = ""
        self.more = False
        self._after = after
        self._fd: int | None = None
        self._kind = ""  # "device", "fifo" or "file"
        self._identity = (0, 0)
        self._offset = 0
        self._partial = b""
        self._overrun = False
        self._lag = 0.0
        self._caught_up = False
        self._watch: _Watch | None = None
        self._open()
        if self._kind in ("", "file"):
            self._watch = _Watch.on(self.path)

    def fileno(self) -> int | None:
        """What to poll: readable when read() may bring something. Constant. None: read() by the clock."""
        return self._watch.fd if self._watch else self._fd

    def clock(self) -> float:
        """The log's clock now, in seconds since boot.

        It is not the monotonic clock: it is not steered by NTP and runs away from it by seconds a week
        (Documentation/timers/timekeeping.rst, sched_clock), which is learned from records seen as they come.
        """
        return time.monotonic() - self._lag

    def read(self) -> list[Record]:
        """The new records, in order. At most a batch of them: `more` is True when there are others now."""
        self.more = False
        if self._fd is None:
            self._open()
        elif self._kind == "file" and self._replaced():
            self._close()
            self._after = None
            self._open()
        records = self._read_file() if self._kind == "file" else self._read_stream()
        if records:
            self.sequence = records[-1].sequence
            if self._caught_up:
                self._lag = time.monotonic() - records[-1].microseconds / 1e6
        if not self.more:
            self._caught_up = True
        if self._after is not None:
            floor = self._after
            records = [record for record in records if record.sequence > floor]
        return records

    def close(self) -> None:
        """Let go of the log."""
        self._close()
        if self._watch:
            self._watch.close()
            self._watch = None

    def _open(self) -> None:
        try:
            kind = os.stat(self.path).st_mode  # noqa: PTH116 (a descriptor follows)
            # both ends of a FIFO, or it would be at its end, and so for ever readable, without a writer
            mode = os.O_RDWR if stat.S_ISFIFO(kind) else os.O_RDONLY
            self._fd = os.open(self.path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.error = os.strerror(error.errno or 0)
            return
        status = os.fstat(self._fd)
        self._kind = (
            "device" if stat.S_ISCHR(status.st_mode) else "fifo" if stat.S_ISFIFO(status.st_mode) else "file"
        )
        self._identity = (status.st_dev, status.st_ino)
        self._offset = 0
        self._partial = b""
        self._overrun = False
        self.error = ""

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None

    def _replaced(self) -> bool:
        """Whether another file stands there now, or this one was cut. A missing one may come back."""
        try:
            status = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return False
        return (status.st_dev, status.st_ino) != self._identity or status.st_size < self._offset

    def _read_stream(self) -> list[Record]:
        """The device gives one record a read, with its dictionary; a FIFO gives bytes."""
        records: list[Record] = []
        gap = False
        while self._fd is not None:
            if len(records) >= BATCH:
                self.more = True
                break
            try:
                data = os.read(self._fd, RECORD)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten; the next read goes on with the oldest there is
                    gap = True
                    continue
                if error.errno == errno.EINTR:
                    continue
                self.error = os.strerror(error.errno or 0)
                break
            if not data:
                break
            if self._kind == "fifo":
                records += self._lines(data)
                continue
            record = parse_record(data.partition(b"\n")[0])
            if record is None:
                self.malformed += 1
                continue
            if gap:
                last = records[-1].sequence if records else self.sequence
                self.lost += max(1, record.sequence - last - 1) if last >= 0 else 1
                gap = False
            records.append(record)
        return records

    def _read_file(self) -> list[Record]:
        """To the file's end. Notices are taken back only there, so that what is left over wakes the poll."""
        records: list[Record] = []
        while self._fd is not None:
            try:
                data = os.pread(self._fd, 65536, self._offset)
            except OSError as error:
                self.error = os.strerror(error.errno or 0)
                break
            if data:
                self._offset += len(data)
                records += self._lines(data)
                if len(records) >= BATCH:
                    self.more = True
                    break
            elif not (self._watch and self._watch.drain()):
                break
        return records

    def _lines(self, data: bytes) -> list[Record]:
        """The records that end in data; one without its newline waits."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        records = []
        for line in whole:
            if self._overrun:
                self._overrun = False
            elif not line or line[:1] == b" ":  # the dictionary of the record before
                continue
            elif record := parse_record(line):
                records.append(record)
            else:
                self.malformed += 1
        if len(self._partial) > RECORD:
            self._partial, self._overrun = b"", True
            self.malformed += 1
        return records


class _Watch:
    """inotify(7) on a file and its folder, so that a file that grows can be polled."""

    MODIFY, ATTRIB, MOVED_TO, CREATE = 0x2, 0x4, 0x80, 0x100  # <sys/inotify.h>

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def on(cls, path: str) -> _Watch | None:
        """A watch on a path's folder (for the file's own changes, too), or None where there can be none."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            return None
        mask = cls.MODIFY | cls.ATTRIB | cls.MOVED_TO | cls.CREATE
        if libc.inotify_add_watch(fd, os.fsencode(os.path.dirname(path)), ctypes.c_uint32(mask)) < 0:  # noqa: PTH120
            os.close(fd)
            return None
        return cls(fd)

    def drain(self) -> bool:
        """Take back all notices; whether there were any."""
        try:
            return bool(os.read(self.fd, 65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.fd)
