"""A site's own probes: programs in a folder that print readings, one JSON object a line.

    {"name": "site.raid_degraded", "device": "md0", "value": true, "evidence": "[U_]"}

`name` begins with "site."; `device` and `evidence` may be left out; `value` is true, false, a number or a
text; `detail` may give a counter's width ("8bit", "16bit", "32bit"). A program that ends with another status
than 0, prints anything else, or takes too long, has told nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import selectors
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from slurm_health.model import Reading

LARGEST = 1 << 18  # bytes that a program may print
MANY = 1000  # readings of one program
EVIDENCE = 500  # characters of evidence that are kept
PROGRAM = re.compile(
    r"[A-Za-z0-9_-]{1,64}", re.ASCII
)  # as run-parts(8) has it: no backups, no package leftovers
NAME = re.compile(r"site\.[a-z0-9_.]{1,58}", re.ASCII)
KEYS = {"name", "device", "value", "evidence", "detail"}
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

running: set[int] = set()  # leaders of process groups that were not yet reaped


def programs(folder: Path) -> list[Path]:
    """The programs in a folder, sorted; none where there is no folder. PermissionError where others could put
    one there: what lies in it is run by root."""
    try:
        _trusted(folder, folder.stat())
        files = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    return [file for file in files if PROGRAM.fullmatch(file.name) and os.access(file, os.X_OK | os.F_OK)]


def site(program: Path, deadline: float) -> tuple[Reading, ...]:
    """What a program says within the deadline (seconds). Raises what is wrong with it, in words.

    It runs in a process group of its own, without input, in "/"; the whole group is ended with it.
    """
    status = program.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(f"{program} is not a plain file")
    _trusted(program, status)
    out, err, code = _run(program, deadline)
    if code:
        words = err.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        how = f"ended by signal {-code}" if code < 0 else f"exit status {code}"
        raise ChildProcessError(f"{program.name}: {how}{f': {words}' if words else ''}")
    return tuple(_readings(out.decode("utf-8", "replace")))


def stop() -> None:
    """End what still runs. For a daemon that stops."""
    for group in tuple(running):
        _end(group)


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _trusted(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to uid {status.st_uid}: chown root it")
    if status.st_mode & 0o022:
        raise PermissionError(f"{path} can be written by others: chmod go-w it")


def _run(program: Path, deadline: float) -> tuple[bytes, bytes, int]:
    """What it printed on both, and its exit status, negative for a signal."""
    import subprocess  # only a daemon with site probes pays for it

    end = time.monotonic() + deadline
    process = subprocess.Popen(
        [program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd="/", env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout
        assert process.stderr
        try:
            return (*_listen(process.pid, process.stdout, process.stderr, end), process.wait())
        except TimeoutError:
            raise TimeoutError(f"{program.name}: ended after {deadline:g} s") from None


def _listen(pid: int, stdout: IO[bytes], stderr: IO[bytes], end: float) -> tuple[bytes, bytes]:
    """What is printed until the program ends. Its children's silence is not waited for: the group is ended
    before its leader is reaped, while its number is nobody else's."""
    said = {stdout: b"", stderr: b""}
    running.add(pid)
    watched = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            for pipe in said:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ)
            selector.register(watched, selectors.EVENT_READ)
            over = False
            while not over:
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                ready = [key.fileobj for key, _ in selector.select(left)]
                over = watched in ready
                for pipe in said if over else [pipe for pipe in said if pipe in ready]:
                    if not _take(pipe, said):
                        with contextlib.suppress(KeyError):
                            selector.unregister(pipe)
    finally:
        os.close(watched)
        _end(pid)
        running.discard(pid)
    return said[stdout], said[stderr]


def _take(pipe: IO[bytes], said: dict[IO[bytes], bytes]) -> bool:
    """Read what is there; False at its end."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(pipe.fileno(), 65536):
            said[pipe] += data
            if len(said[pipe]) > LARGEST:
                raise ValueError(f"prints more than {LARGEST >> 10} KiB")
        return False
    return True


def _readings(text: str) -> Iterator[Reading]:
    for number, line in enumerate(text.splitlines(), 1):
        if number > MANY:
            raise ValueError(f"prints more than {MANY} lines")
        if line.strip():
            try:
                yield _reading(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None


def _reading(said: object) -> Reading:
    if not isinstance(said, dict) or said.keys() - KEYS:
        raise ValueError(f"not an object of {', '.join(sorted(KEYS))}")
    value = said.get("value")
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, bool | int | float | str) or not finite:
        raise ValueError("value: not true, false, a number or a text")
    words = {key: said.get(key, "") for key in ("name", "device", "evidence", "detail")}
    for key, word in words.items():
        longest = EVIDENCE if key == "evidence" else 100
        if not isinstance(word, str) or not word.isprintable() or len(word) > longest:
            raise ValueError(f"{key}: not a short printable text")
    if not NAME.fullmatch(words["name"]):
        raise ValueError('name: must begin with "site." (small letters, digits, _ and .)')
    return Reading(words["name"], words["device"], value, words["evidence"], detail=words["detail"])
