"""A private PostgreSQL in a folder of its own, reached by its socket; run by an ordinary user, as it must."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from slurm_health.ledger import Ledger

USER = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def programs() -> Path | None:
    """The folder of Debian's newest one, or of that on PATH."""
    found = [shutil.which("postgres"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")))]
    paths = [Path(one).resolve().parent for one in found if one]
    return paths[-1] if paths else None


class Server:
    """A running server. It keeps nothing safe: no test pulls its plug."""

    def __init__(self, folder: Path, bin: Path) -> None:  # noqa: A002
        self.folder, self.bin = folder, bin
        self.process: subprocess.Popen[bytes] | None = None
        self.numbers = itertools.count(1)
        self.template = ""

    def _run(self, *argv: str) -> None:
        subprocess.run([*argv], check=True, capture_output=True, timeout=60, cwd="/", **_ordinary())

    def create(self) -> None:
        shutil.chown(self.folder, USER.pw_uid, USER.pw_gid)
        data = f"{self.folder}/data"
        self._run(
            str(self.bin / "initdb"),
            "-D",
            data,
            "-U",
            "health",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        )
        self.start()

    def start(self) -> None:
        settings = [
            "fsync=off",
            "listen_addresses=",
            f"unix_socket_directories={self.folder}",
            "max_connections=60",
        ]
        argv = [
            str(self.bin / "pg_ctl"),
            "-D",
            f"{self.folder}/data",
            "-w",
            "-l",
            f"{self.folder}/log",
            "start",
        ]
        self._run(*argv, "-o", " ".join(f"-c {one}" for one in settings))

    def stop(self) -> None:
        """At once, as when it is killed."""
        self._run(str(self.bin / "pg_ctl"), "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")

    def signal(self, number: signal.Signals) -> None:
        """To all its processes: SIGSTOP makes a server that is there and says nothing."""
        postmaster = int((self.folder / "data/postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in [postmaster, *map(int, children)]:
            os.kill(pid, number)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://health@/{database}?host={self.folder}"

    def database(self) -> str:
        """The url of a new database with an empty ledger."""
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        name = f"ledger{next(self.numbers)}"
        with engine.connect() as connection:
            if not self.template:
                connection.exec_driver_sql("CREATE DATABASE empty")
                Ledger(self.url("empty")).engine.dispose()
                self.template = "empty"
            connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        engine.dispose()
        return self.url(name)


def _ordinary() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    return {"user": USER.pw_uid, "group": USER.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def server(bin: Path) -> Iterator[Server]:  # noqa: A002
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path is short
    one = Server(folder, bin)
    try:
        one.create()
        yield one
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            one.stop()
        shutil.rmtree(folder)
