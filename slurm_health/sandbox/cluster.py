"""A private real Slurm cluster on this machine: up, down, and its daemons one by one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm_health.sandbox import SandboxError, slurmconf, tcp
from slurm_health.sandbox.daemon import Daemon, await_until, end
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.library import build
from slurm_health.sandbox.processes import MARK, job_processes, strays
from slurm_health.sandbox.slurmconf import Layout

# Debian's names; other distributions' packages hold the same programs.
_PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "scontrol": "slurm-client",
    "sinfo": "slurm-client",
}
_SYSTEM_PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/opt/slurm/sbin", "/opt/slurm/bin")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PLACES])
_MARKER = "sandbox.json"
# A socket's path holds 107 characters (unix(7)); slurmstepd makes
# <folder>/nodes/<name>/spool/<name>_<job>.<step>.
_LONGEST_FOLDER = 60
_START_LIMIT = 60.0  # seconds that one daemon may take to be ready, on a loaded machine
_FILE_CLOCK = 0.01  # seconds that the clock of files lags behind (a tick of CONFIG_HZ=100)
_SWEEPS = 5  # what is being ended may still start something: look again until nothing is found
_COMMAND_LIMIT = 10.0  # Slurm's MessageTimeout: no answer later than this


def default_folder() -> Path:
    """$SLURM_HEALTH_SANDBOX, else a folder of this user's in /tmp."""
    return Path(os.environ.get("SLURM_HEALTH_SANDBOX") or f"/tmp/slurm-health-sandbox-{os.getuid()}")


def _silent(_: str) -> None:
    return None


class Sandbox:
    """A cluster in one folder. Several live side by side, each with its own folder, ports and munge key."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(os.path.abspath(folder or default_folder()))  # noqa: PTH100  (keeps links, unlike resolve)
        self.layout = Layout(self.folder)

    # -- the whole

    def up(
        self,
        nodes: int = 4,
        gpus: int = 8,
        ports: int = 8,
        nics: int = 2,
        slurm_conf: Sequence[str] = (),
        site_toml: str = "",
        mode: str = "requeue",
        progress: Callable[[str], object] = _silent,
        health: bool = True,
    ) -> None:
        """Start the cluster and return when every node is idle. What was started is ended if that fails.

        `slurm_conf` are further lines (one that we set too is replaced), `site_toml` further tables of our
        configuration. Without `health` it is plain Slurm: no daemons of ours, no prolog, no epilog.
        """
        began = time.monotonic()
        programs = _programs(need_compiler=health and gpus > 0)
        names = [f"n{number}" for number in range(1, nodes + 1)]
        with self._claimed():
            try:
                self._write(names, gpus, ports, nics, slurm_conf, site_toml, mode, health, programs, progress)
                self._start_all(names, health, progress)
            except BaseException:
                self._down(_silent)
                raise
        progress(f"up in {time.monotonic() - began:.1f} s: {nodes} nodes of {gpus} GPUs in {self.folder}")

    def become_machine(self, gpus: int = 8, ports: int = 8, nics: int = 2) -> None:
        """Make this host alone a fake machine, healthy as if just switched on. No daemon is started.

        For containers, each a node of a cluster where Slurm and our daemons are set up as anywhere.
        """
        name = socket.gethostname().split(".")[0]
        with self._claimed():
            Machine.build(self.layout.hardware(name), name, gpus=gpus, ports=ports, nics=nics)
            if gpus:
                build(self.layout.library)
            settings = {"slurm": "of this host", "nodes": [name], "health": True, "daemons": [], "host": name}
            (self.folder / _MARKER).write_text(json.dumps(settings, indent=1))

    def down(self, progress: Callable[[str], object] = _silent) -> None:
        """End what `up` started, with the jobs, and remove the folder. Nothing to do is fine."""
        if not self.folder.exists():
            return
        if not self._owned():
            raise SandboxError(f"{self.folder} is not a sandbox of ours: not touched")
        with self._locked():
            self._down(progress)

    @property
    def exists(self) -> bool:
        return self._owned()

    def env(self) -> dict[str, str]:
        """What a command needs in its environment: to talk to this cluster, or to see this host's GPUs."""
        if host := self._host():
            return {
                "SLURM_HEALTH_SANDBOX": str(self.folder),
                "SLURM_HEALTH_NVML_LIBRARY": str(self.layout.library),
                "SLURM_HEALTH_FAKE_NVML": str(self.layout.hardware(host) / "nvml"),
            }
        return {
            "SLURM_CONF": str(self.layout.slurm_conf),
            "SLURM_HEALTH_CONFIG": str(self.layout.config),
            "SLURM_HEALTH_SANDBOX": str(self.folder),
        }

    def run(self, argv: Sequence[str]) -> int:
        """Run a command in the sandbox's environment; its exit status (128 + signal as a shell says it)."""
        self._settings()
        try:
            status = subprocess.call(list(argv), env={**os.environ, **self.env()})
        except OSError as error:
            raise SandboxError(f"cannot run {argv[0]}: {error.strerror}") from error
        return status if status >= 0 else 128 - status

    def status(self) -> dict[str, Any]:
        """What runs and what is broken, ready for JSON."""
        settings = self._settings()
        states = self._node_states()
        return {
            "folder": str(self.folder),
            "slurm": settings["slurm"],
            "health": settings["health"],
            "daemons": [
                {"name": name, "pid": pid, "alive": pid is not None}
                for name in settings["daemons"]
                for pid in [self.pid(name)]
            ],
            "nodes": [
                {"name": name, **states.get(name, {"state": "unknown", "reason": ""}), "faults": faults}
                for name in settings["nodes"]
                for faults in [self.machine(name).faults()]
            ],
        }

    # -- one daemon

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Send a signal to a daemon ("slurmctld", "controller", "munged", "node:n1", "slurmd:n1").

        Where the signal ends processes, return when it has ended.
        """
        self._daemon(name).stop(number)

    def start(self, name: str) -> int:
        """Start a daemon that was stopped; its pid. It is ready when `ready(name)`."""
        return self._daemon(name).start()

    def pid(self, name: str) -> int | None:
        """The daemon's process id, None where it does not live."""
        return self._daemon(name).pid

    def ready(self, name: str) -> bool:
        """Whether the daemon serves."""
        kind, _, node = name.partition(":")
        if kind == "munged":
            return self.layout.munge_socket.exists()
        if kind == "slurmctld":
            return self._answers(["scontrol", "ping"], "UP")
        if kind == "controller":
            return tcp.listens(self._settings()["port"])
        if kind == "node":
            return self._first_pass_done(node)
        state = self._node_states().get(node, {}).get("state", "")
        return state.startswith(("idle", "mix", "alloc", "drain")) and not state.endswith("*")

    # -- faults

    def machine(self, node: str) -> Machine:
        """The fake machine of a node."""
        names = self._settings()["nodes"]
        if node not in names:
            raise SandboxError(f"there is no node {node} in this sandbox, there are {', '.join(names)}")
        return Machine(self.layout.hardware(node))

    def inject(
        self,
        node: str,
        fault: str,
        *,
        gpu: int | None = None,
        port: int | None = None,
        code: int | None = None,
        kill: bool = False,
        text: str | None = None,
    ) -> dict[str, Any]:
        """Break something of a node; what was done, and `at`: when (epoch seconds).

        With `kill` the processes of the jobs on that node die in the same instant, as of a real fault.
        """
        machine = self.machine(node)
        victims = job_processes(self.layout, node, whole_host=bool(self._host())) if kill else []
        done = machine.inject(fault, gpu=gpu, port=port, code=code, text=text)
        if kill:
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            done["killed"] = len(victims)
        return {"node": node, **done}

    def clear(self, node: str) -> dict[str, Any]:
        """Heal all faults of a node. The kernel log keeps what it said."""
        return {"node": node, **self.machine(node).clear()}

    # -- inside

    def _settings(self) -> dict[str, Any]:
        if not self._owned():
            raise SandboxError(f"there is no sandbox in {self.folder}: slurm-health sandbox up starts one")
        settings: dict[str, Any] = json.loads((self.folder / _MARKER).read_text() or "{}")
        if "nodes" not in settings:
            raise SandboxError(
                f"the sandbox in {self.folder} is not whole: slurm-health sandbox down ends it"
            )
        return settings

    def _host(self) -> str:
        """This host's name if it is the machine, see become_machine; "" if there is a cluster or nothing."""
        if not self._owned():
            return ""
        return str(json.loads((self.folder / _MARKER).read_text() or "{}").get("host", ""))

    def _daemon(self, name: str) -> Daemon:
        daemon = Daemon(self.layout.daemons, name)
        if not daemon.known:
            known = ", ".join(sorted(path.stem for path in self.layout.daemons.glob("*.json"))) or "none"
            raise SandboxError(f"there is no daemon {name} in this sandbox, there are {known}")
        return daemon

    def _owned(self) -> bool:
        try:
            mine = self.folder.lstat().st_uid == os.geteuid() and not self.folder.is_symlink()
        except OSError:
            return False
        return mine and (self.folder / _MARKER).is_file()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SandboxError(f"another command starts or ends the sandbox in {self.folder}") from error
        else:
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """The folder, made ours; remains of a sandbox whose daemons are all gone are cleared away."""
        _check_path(self.folder)
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.folder.chmod(0o755)  # other users' jobs reach munge's socket through it
        except OSError as error:
            raise SandboxError(f"cannot make {self.folder}: {error.strerror}") from error
        if not self._owned():
            foreign = self.folder.is_symlink() or self.folder.lstat().st_uid != os.geteuid()
            if foreign or any(self.folder.iterdir()):
                raise SandboxError(f"{self.folder} exists and is not a sandbox of ours: not touched")
            (self.folder / _MARKER).write_text("{}")
        with self._locked():
            alive = [path.stem for path in self.layout.daemons.glob("*.json") if self.pid(path.stem)]
            if alive:
                raise SandboxError(
                    f"a sandbox is already up in {self.folder} ({len(alive)} daemons);"
                    " end it with: slurm-health sandbox down"
                )
            self._sweep()
            self._empty()
            tcp.release(self.folder)
            yield

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name != _MARKER:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _down(self, progress: Callable[[str], object]) -> None:
        began = time.monotonic()
        daemons = [Daemon(self.layout.daemons, path.stem) for path in self.layout.daemons.glob("*.json")]
        # Munge goes last: the others may want to say goodbye.
        for group in ([d for d in daemons if d.name != "munged"], [d for d in daemons if d.name == "munged"]):
            end([(d.record["pid"], d.record["born"]) for d in group if d.pid], patience=5.0)
        self._sweep()
        (self.folder / _MARKER).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=False)
        tcp.release(self.folder)
        progress(f"down in {time.monotonic() - began:.1f} s: {self.folder} is gone")

    def _sweep(self) -> None:
        """End what our daemons left: step daemons and the processes of jobs."""
        for _ in range(_SWEEPS):
            if not (found := strays(self.layout)):
                return
            end(found, patience=1.0)

    def _write(
        self,
        names: Sequence[str],
        gpus: int,
        ports: int,
        nics: int,
        slurm_conf: Sequence[str],
        site_toml: str,
        mode: str,
        health: bool,
        programs: Mapping[str, str],
        progress: Callable[[str], object],
    ) -> None:
        """Everything that must stand in the folder before the first daemon starts."""
        began = time.monotonic()
        layout = self.layout
        version = subprocess.run([programs["slurmd"], "-V"], capture_output=True, text=True, check=False)
        release = version.stdout.strip()
        for folder in (layout.etc, layout.munge, layout.ctld / "state", layout.daemons):
            folder.mkdir(parents=True)
        layout.munge.chmod(0o755)
        for name in names:
            for part in ("run", "state", "spool", "log"):
                (layout.node(name) / part).mkdir(parents=True)
            Machine.build(layout.hardware(name), name, gpus=gpus, ports=ports, nics=nics)
        numbers = tcp.claim(self.folder, len(names) + 2)
        port = numbers.pop()
        dialect = slurmconf.dialect(_release(release))
        files = {
            "slurm.conf": slurmconf.slurm_conf(
                layout,
                socket.gethostname().split(".")[0],
                numbers,
                names,
                gpus,
                slurm_conf,
                hooks=health,
                spoken=dialect.pop("slurm.conf", ()),
            ),
            "gres.conf": slurmconf.gres_conf(layout, names, gpus),
            "config.toml": slurmconf.config_toml(layout, port, mode, site_toml),
            **{name: "".join(f"{line}\n" for line in lines) for name, lines in dialect.items()},
        }
        if health:
            for kind in ("prolog", "epilog"):
                files[kind] = slurmconf.hook(layout, _shipped(f"{kind}/slurm-health.sh"))
        for name, text in files.items():
            (layout.etc / name).write_text(text)
            (layout.etc / name).chmod(0o755 if name in ("prolog", "epilog") else 0o644)
        key = layout.munge / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        daemons = self._describe(names, health, programs, port, gpus)
        settings = {
            "slurm": release,
            "nodes": list(names),
            "health": health,
            "port": port,
            "daemons": daemons,
        }
        (self.folder / _MARKER).write_text(json.dumps(settings, indent=1))
        progress(f"wrote {len(names)} fake machines and the configuration of {release} in {_since(began)}")

    def _describe(
        self, names: Sequence[str], health: bool, programs: Mapping[str, str], port: int, gpus: int
    ) -> list[str]:
        layout = self.layout
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        env |= {"PATH": _PATH, MARK: str(self.folder), **self.env()}
        daemons: list[str] = []

        def describe(name: str, argv: list[str], log: Path, more: Mapping[str, str] | None = None) -> None:
            output = log.with_suffix(".out")
            Daemon(layout.daemons, name).describe(argv, env | dict(more or {}), log, output)
            daemons.append(name)

        munge = layout.munge
        describe(
            "munged",
            [
                programs["munged"],
                "--foreground",
                f"--socket={munge}/socket",
                f"--key-file={munge}/key",
                f"--pid-file={munge}/munged.pid",
                f"--seed-file={munge}/seed",
                f"--log-file={munge}/munged.log",
                "--num-threads=2",
                "--force",  # it dislikes a folder under a world-writable one; ours is root's
            ],
            munge / "munged.log",
        )
        describe(
            "slurmctld",
            [programs["slurmctld"], "-D", "-f", str(layout.slurm_conf)],
            layout.ctld / "slurmctld.log",
        )
        ours = [sys.executable, "-m", "slurm_health"]
        config = ["--config", str(layout.config)]
        if health:
            home = Path(__file__).resolve().parents[2]
            if home.name not in ("site-packages", "dist-packages"):  # a checkout, which need not be installed
                env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
            library = build(layout.library) if gpus else None
            for name in names:
                node = layout.node(name)
                fake = {"SLURM_HEALTH_FAKE_NVML": f"{node}/hardware/nvml"}
                if library:
                    fake["SLURM_HEALTH_NVML_LIBRARY"] = str(library)
                places = ["--root", f"{node}/hardware", "--run", f"{node}/run", "--state", f"{node}/state"]
                argv = [*ours, "node", *config, "--name", name, *places]
                describe(f"node:{name}", argv, node / "log/node.log", fake)
            describe("controller", [*ours, "controller", *config], layout.ctld / "controller.log")
        for name in names:
            log = layout.node(name) / "log/slurmd.log"
            argv = [programs["slurmd"], "-D", "-N", name, "-f", str(layout.slurm_conf)]
            describe(f"slurmd:{name}", argv, log)
        return daemons

    def _start_all(self, names: Sequence[str], health: bool, progress: Callable[[str], object]) -> None:
        nodes = [f"node:{name}" for name in names] if health else []
        slurmds = [f"slurmd:{name}" for name in names]
        self._bring(["munged"], progress)
        # The first look at the hardware is done before slurmd offers the node to Slurm.
        self._bring([*nodes, "slurmctld"], progress)
        if health:
            self._bring(["controller"], progress)
        began = time.monotonic()
        for name in slurmds:
            self.start(name)
        self._await(slurmds, lambda: self._idle(names), "Slurm to call every node idle")
        progress(f"{len(slurmds)} slurmd: all nodes idle after {_since(began)}")

    def _bring(self, daemons: Sequence[str], progress: Callable[[str], object]) -> None:
        began = time.monotonic()
        for name in daemons:
            self.start(name)
        waiting = list(daemons)

        def settled() -> bool:
            waiting[:] = [name for name in waiting if not self.ready(name)]
            return not waiting

        self._await(daemons, settled, "it to be ready")
        for name in daemons[:1] if len(daemons) == 1 else []:
            progress(f"{name} is ready after {_since(began)}")
        if len(daemons) > 1:
            progress(f"{', '.join(daemons)} are ready after {_since(began)}")

    def _await(self, daemons: Sequence[str], condition: Callable[[], bool], what: str) -> None:
        dead: list[str] = []

        def over() -> bool:
            dead[:] = [name for name in daemons if self.pid(name) is None]
            return bool(dead) or condition()

        if not await_until(over, _START_LIMIT):
            words = "\n".join(self._daemon(name).last_words() for name in daemons)
            raise SandboxError(f"waited {_START_LIMIT:.0f} s for {what} ({', '.join(daemons)})\n{words}")
        if dead:
            words = "\n".join(self._daemon(name).last_words() for name in dead)
            raise SandboxError(f"{', '.join(dead)} ended at its start\n{words}")

    def _first_pass_done(self, node: str) -> bool:
        """Whether this start of the node's daemon, not an earlier one, has written a verdict."""
        try:
            written = (self.layout.node(node) / "run/verdict").stat().st_mtime
        except OSError:
            return False
        return written >= float(self._daemon(f"node:{node}").record.get("started", 0.0)) - _FILE_CLOCK

    def _idle(self, names: Sequence[str]) -> bool:
        states = self._node_states()  # the site's own slurm.conf lines may add nodes that do not exist
        return all(name in states and states[name]["state"] == "idle" for name in names)

    def _answers(self, argv: Sequence[str], word: str) -> bool:
        return re.search(rf"\b{word}\b", self._ask(argv) or "") is not None

    def _ask(self, argv: Sequence[str]) -> str | None:
        """What a Slurm command printed, None where it failed or did not answer."""
        program = shutil.which(argv[0], path=_PATH)
        if program is None:
            return None
        if not self._host() and not self._slurmctld_lives():  # commands wait long for a dead one
            return None
        try:
            done = subprocess.run(
                [program, *argv[1:]],
                env={**os.environ, **self.env(), "PATH": _PATH},
                capture_output=True,
                text=True,
                timeout=_COMMAND_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def _slurmctld_lives(self) -> bool:
        return self.pid("slurmctld") is not None

    def _node_states(self) -> dict[str, dict[str, str]]:
        answer = self._ask(["sinfo", "-h", "-N", "-o", "%N|%T|%E"]) or ""
        found = {}
        for line in answer.splitlines():
            name, state, reason = line.split("|", 2)
            found[name] = {"state": state, "reason": "" if reason == "none" else reason}
        return found


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _release(text: str) -> tuple[int, int]:
    """(22, 5) of "slurm-wlm 22.05.8"."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _programs(need_compiler: bool) -> dict[str, str]:
    """Where the programs are; an error that names the packages where some are missing."""
    if os.geteuid() != 0:
        raise SandboxError("the sandbox needs root: slurmd starts jobs as their users")
    found = {name: shutil.which(name, path=_PATH) for name in _PROGRAMS}
    missing = {_PROGRAMS[name] for name, path in found.items() if path is None}
    if need_compiler and not any(shutil.which(name, path=_PATH) for name in ("cc", "gcc")):
        missing |= {"gcc", "libc6-dev"}
    if missing:
        raise SandboxError(f"not installed: {' '.join(sorted(missing))} (Debian: apt-get install them)")
    return {name: path for name, path in found.items() if path}


def _shipped(name: str) -> Path:
    """A script that comes with the package: beside it in a checkout, under share/ when installed."""
    places = [Path(__file__).resolve().parents[2] / name, Path(sys.prefix) / "share/slurm-health" / name]
    for place in places:
        if place.is_file():
            return place
    raise SandboxError(f"cannot find {name}, neither {places[0]} nor {places[1]}")


def _check_path(folder: Path) -> None:
    if len(str(folder)) > _LONGEST_FOLDER:
        raise SandboxError(
            f"{folder}: too long a path, sockets live there: at most {_LONGEST_FOLDER} characters"
        )
    if not re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII):
        raise SandboxError(f"{folder}: slurm.conf cannot hold such a path; use letters, digits, ., _, -, +")
