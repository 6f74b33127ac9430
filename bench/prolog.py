"""Time our prolog as a whole process, beside bare shells and its rivals, in one run.

    python bench/prolog.py [-n 300] [--command 'python -m slurm_health --version'] [--nhc CHECKOUT]

Each round runs every contender once, in a new order. The clock (CLOCK_MONOTONIC) runs from posix_spawn to
the end of wait; the environment is the one slurmd builds: SLURM_* and nothing else. --nhc names a checkout of
mej/nhc, which then runs six small checks that pass on any machine. A command that fails is left out, and said
to be.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from machine import machine

ROOT = Path(__file__).parents[1]
JOB = {
    "SLURMD_NODENAME": "gpu001",
    "SLURM_CLUSTER_NAME": "cluster",
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_JOB_GID": "1000",
    "SLURM_JOB_GPUS": "0,1,2,3,4,5,6,7",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[001-002]",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_RESTART_COUNT": "0",
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_USER": "user",
    "SLURM_JOB_WORK_DIR": "/home/user",
    "SLURM_SCRIPT_CONTEXT": "prolog_slurmd",
}
NHC_CHECKS = """\
* || check_fs_mount_rw -f /
* || check_fs_free / 1kB
* || check_fs_ifree / 1
* || check_hw_physmem_free 1kB
* || check_file_test -r -d /etc
* || check_cmd_status -t 5 -r 0 true
"""


@dataclass
class Contender:
    name: str
    words: list[str]
    environment: dict[str, str]
    bare: str = ""  # the bare shell to be compared with
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        start = time.monotonic_ns()
        process = os.posix_spawn(self.words[0], self.words, self.environment, file_actions=silence)
        _, status = os.waitpid(process, 0)
        self.seconds.append((time.monotonic_ns() - start) / 1e9)
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise ChildProcessError(f"{shlex.join(self.words)} ended with {code}")


def healthy_sysfs(root: Path) -> None:
    """A node with 8 GPUs, 9 InfiniBand ports and 2 NICs, among the usual number of other PCI devices."""
    files = {f"dev/nvidia{i}": "" for i in range(8)}
    for i in range(64):
        gpu = i < 8
        files[f"sys/bus/pci/devices/0000:{i:02x}:00.0/vendor"] = "0x10de" if gpu else "0x8086"
        files[f"sys/bus/pci/devices/0000:{i:02x}:00.0/class"] = "0x030200" if gpu else "0x060400"
    for i in range(9):
        port = f"sys/class/infiniband/mlx5_{i}/ports/1"
        files |= {f"{port}/state": "4: ACTIVE", f"{port}/phys_state": "5: LinkUp"}
        files[f"{port}/rate"] = "400 Gb/sec (4X NDR)"
    for i in range(2):
        files |= {f"sys/class/net/eth{i}/carrier": "1", f"sys/class/net/eth{i}/speed": "100000"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def line_up(folder: Path, command: str, nhc: Path | None) -> list[Contender]:
    run = folder / "run"
    (run / "jobs").mkdir(parents=True)
    healthy_sysfs(folder / "root")
    slurm = {**JOB, "SLURM_HEALTH_RUN": str(run)}
    found = {name: path for name in ("dash", "bash") if (path := shutil.which(name))}
    us = str(ROOT / "prolog/slurm-health.sh")
    contenders = [Contender(f"bare {name}", [path, "-c", ":"], slurm) for name, path in found.items()]
    contenders += [
        Contender(f"our prolog, {name}", [path, us], slurm, f"bare {name}") for name, path in found.items()
    ]
    if bash := found.get("bash"):
        checks = [bash, str(ROOT / "bench/checks.sh"), str(folder / "root")]
        contenders.append(Contender("checks in the prolog, NHC's manner", checks, slurm, "bare bash"))
        if nhc:
            conf = folder / "nhc.conf"
            conf.write_text(NHC_CHECKS)
            words = [bash, str(nhc / "nhc"), "-c", str(conf), "-l", str(folder / "nhc.log")]
            settings = [f"INCDIR={nhc}/scripts", f"HELPERDIR={nhc}/helpers", "MARK_OFFLINE=0", "NHC_RM=slurm"]
            with_path = {**slurm, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
            contenders.append(
                Contender("mej/nhc, six small checks", words + settings, with_path, "bare bash")
            )
    if command:
        words = shlex.split(command)
        program = sys.executable if words[0] == "python" else shutil.which(words[0])
        if program is None:
            raise SystemExit(f"{words[0]}: not found")
        ours = {**slurm, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        contenders.append(Contender(f"`{command}`", [program, *words[1:]], ours))
    return contenders


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def table(contenders: list[Contender]) -> str:
    medians = {each.name: statistics.median(each.seconds) for each in contenders}
    rows = [
        "| ms | median | over the bare shell | p5 | p95 | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in contenders:
        parts = statistics.quantiles(each.seconds, n=20)
        over = milliseconds(medians[each.name] - medians[each.bare]) if each.bare else ""
        cells = [medians[each.name], parts[0], parts[-1], max(each.seconds)]
        first, *rest = map(milliseconds, cells)
        rows.append(f"| {each.name} | {first} | {over} | {' | '.join(rest)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--rounds", type=int, default=300)
    parser.add_argument("--command", default="python -m slurm_health --version", help="empty: leave it out")
    parser.add_argument("--nhc", type=Path, metavar="CHECKOUT")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("a median needs two rounds or more")

    # The run folder is a tmpfs in real life; so it is here where there is one.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    about = machine()
    with tempfile.TemporaryDirectory(dir=memory) as name:
        contenders = line_up(Path(name), given.command, given.nhc and given.nhc.resolve())
        verdict, card = Path(name, "run/verdict"), Path(name, "run/jobs/4711.0")
        for number in range(given.rounds + 3):
            up = int(float(Path("/proc/uptime").read_text().split()[0]))
            verdict.write_text(f"ok {up} all well\n")
            for each in random.sample(contenders, len(contenders)):
                try:
                    each.run()
                except ChildProcessError as error:
                    if number or each.bare or each.name.startswith("bare"):
                        raise SystemExit(str(error)) from None
                    print(f"Left out: {error}\n")
                    contenders.remove(each)
            if number == 2:  # the first rounds only warm the caches
                for each in contenders:
                    each.seconds.clear()
        if "\nuptime=" not in card.read_text():
            raise SystemExit("our prolog wrote no card")
    print(f"{given.rounds} interleaved runs each. {about}.\n")
    print(table(contenders))


if __name__ == "__main__":
    main()
