"""A node's fake machine: a folder of sys/, proc/, dev/ and the fake NVML's state, and what breaks in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slurm_health.sandbox import SandboxError, sysfs
from slurm_health.sandbox.faults import check, kernel_lines, spoken, sxid_lines, xid_lines

_REASONS = {"slowdown": 0x8, "thermal": 0x48, "power-brake": 0x88, "sw-thermal": 0x20, "power-cap": 0x4}
_UNHEALTHY_ROUTE = 0x19A  # NVML_GPU_FABRIC_HEALTH_MASK: an unhealthy route, all else well
PROCESS_MEMORY = 1 << 30  # bytes that an injected process holds on its GPU
USER = 1000  # the uid of a process that no real one stands for

_MOST = {"gpus": 32, "ports": 36, "nics": 16}  # gpus: nvml.c's SLOTS

# A record's prefix is facility * 8 + level (dev-kmsg). Level 4, warning, as the driver's messages have it;
# what a program writes to /dev/kmsg gets facility 1.
_KERNEL, _USER = 0 * 8 + 4, 1 * 8 + 4


class Machine:
    """The fake machine in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "machine.json"

    @classmethod
    def build(cls, folder: Path, name: str, gpus: int = 8, ports: int = 8, nics: int = 2) -> Machine:
        """Make a healthy machine of 8 GPUs, InfiniBand ports and Ethernet ports, or as many as given."""
        for what, number in (("gpus", gpus), ("ports", ports), ("nics", nics)):
            if not 0 <= number <= _MOST[what]:
                raise SandboxError(f"{number} {what}: a fake machine has 0 to {_MOST[what]}")
        machine = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"name": name, "faults": [], "sequence": 0, **sysfs.parts(name, gpus, ports, nics)}
        sysfs.build(folder, name, facts)
        machine._log(facts, sysfs.BOOT, _KERNEL, boot=True)
        machine._put(machine._file, json.dumps(facts))
        machine._write_nvml(facts)
        return machine

    def faults(self) -> list[dict[str, Any]]:
        """What was injected and not cleared, oldest first."""
        faults: list[dict[str, Any]] = self._facts()["faults"]
        return faults

    def inject(
        self,
        fault: str,
        *,
        gpu: int | None = None,
        port: int | None = None,
        code: int | None = None,
        text: str | None = None,
    ) -> dict[str, Any]:
        """Break something; what was done, and `at`: the epoch time right after the write. The first GPU or
        port where none is named."""
        needs = check(fault, {"code": code, "text": text}).needs
        if "gpu" in needs and gpu is None:
            gpu = 0
        if "port" in needs and port is None:
            port = 0
        told = {"gpu": gpu, "port": port, "code": code, "text": text}
        with self._changing() as facts:
            _check_numbers(facts, fault, gpu, port)
            done: dict[str, Any] = {"fault": fault, **{k: v for k, v in told.items() if v is not None}}
            facts["faults"].append(done)
            self._break(facts, done)
            done["at"] = time.time()
        return done

    def clear(self) -> dict[str, Any]:
        """Heal everything. The kernel log keeps what it said, counters keep what they counted."""
        with self._changing() as facts:
            cleared, facts["faults"] = facts["faults"], []
            self._write_nvml(facts)
            for fault in reversed(cleared):
                self._heal(facts, fault)
            return {"cleared": [fault["fault"] for fault in cleared], "at": time.time()}

    def _break(self, facts: dict[str, Any], fault: dict[str, Any]) -> None:
        name = fault["fault"]
        match name:
            case "kmsg" | "user-kmsg":
                self._log(facts, [(fault["text"],)], _KERNEL if name == "kmsg" else _USER)
            case "xid":
                self._say_xid(facts, fault["gpu"], fault["code"])
            case "sxid":
                lines = sxid_lines(fault["code"], 0, sysfs.SWITCHES[0])
                self._log(facts, [(line,) for line in lines], _KERNEL)
            case _ if spoken(name):
                pci = facts["gpus"][fault["gpu"]]["pci"] if name == "aer" else ""
                pci = facts["ports"][fault["port"]] if name == "mlx5" else pci
                self._log(facts, [(line,) for line in kernel_lines(name, fault.get("text"), pci)], _KERNEL)
            case "gpu-off-bus":
                self._write_nvml(facts)
                self._say_xid(facts, fault["gpu"], 79)
            case "gpu-gone" | "ib-gone" | "nic-gone":
                for path in self._listed(facts, fault):
                    path.unlink()
                self._write_nvml(facts)
            case "ib-down":
                port = self._ib(fault["port"])
                self._put(port / "state", "1: DOWN")
                self._put(port / "phys_state", "2: Polling")
                self._put(port / "rate", sysfs.DOWN_RATE)
                self._put(port / "lid", "0xffff")
                self._count(port / "counters/link_downed")
            case "ib-slow":
                self._put(self._ib(fault["port"]) / "rate", sysfs.HALF_RATE)
            case "nic-down":
                net = self._net(fault["port"])
                self._put(net / "carrier", "0")
                self._put(net / "operstate", "down")
                self._put(net / "speed", "-1")
                self._count(net / "carrier_changes")
                self._count(net / "carrier_down_count")
            case "nic-slow":
                self._put(self._net(fault["port"]) / "speed", str(sysfs.SPEED // 10))
            case "process":
                self._run(fault["code"], fault.get("text", ""))
                self._write_nvml(facts)
            case "ib-flap":
                self._count(self._ib(fault["port"]) / "counters/link_downed", fault.get("code", 3))
            case "ib-errors":
                counter = self._ib(fault["port"]) / "counters" / fault.get("text", "symbol_error")
                self._count(counter, fault.get("code", 200))
            case "nic-flap":
                net = self._net(fault["port"])
                self._count(net / "carrier_down_count", fault.get("code", 4))
                self._count(net / "carrier_up_count", fault.get("code", 4))
                self._count(net / "carrier_changes", 2 * fault.get("code", 4))
            case "nic-errors":
                counter = self._net(fault["port"]) / "statistics" / fault.get("text", "rx_crc_errors")
                self._count(counter, fault.get("code", 500))
            case "ib-pcie-degraded":
                self._put(self._adapter(fault["port"]) / "current_link_width", str(int(sysfs.WIDTH) // 2))
            case "ib-pcie-errors":
                name = fault.get("text", "fatal")
                many = sum(
                    other.get("code", 1)
                    for other in facts["faults"]
                    if (other["fault"], other.get("port")) == (fault["fault"], fault["port"])
                )
                self._put(self._adapter(fault["port"]) / f"aer_dev_{name}", sysfs.errors(name, many))
            case _ if not self._break_host(facts, fault):
                self._write_nvml(facts)

    def _break_host(self, facts: dict[str, Any], fault: dict[str, Any]) -> bool:
        """Whether it was a fault of the host's."""
        standing = {other["fault"] for other in facts["faults"]}
        match fault["fault"]:
            case "mem-ecc":
                controller = self.folder / "sys/devices/system/edac/mc/mc0"
                kind = fault.get("text", "ue")
                self._count(controller / f"{kind}_count", fault.get("code", 1))
                self._count(controller / f"dimm1/dimm_{kind}_count", fault.get("code", 1))
            case "mem-missing":
                self._put(self.folder / "proc/meminfo", sysfs.memory(sysfs.MEMORY * 31 // 32))
            case "disk-full":
                mount, blocks, free, inodes, inodes_free = sysfs.SPACE.split()
                full = (free, "0") if fault.get("text") == "inodes" else ("0", inodes_free)
                line = " ".join((mount, blocks, full[0], inodes, full[1]))
                self._put(self.folder / "statvfs", sysfs.STATVFS.replace(sysfs.SPACE, line))
            case "disk-readonly":
                line = sysfs.SCRATCH.replace(" rw,", " ro,")
                self._put(self.folder / "proc/1/mounts", sysfs.MOUNTS.replace(sysfs.SCRATCH, line))
            case "pids-full":
                self._put(self.folder / "proc/loadavg", sysfs.load("task-stuck" in standing, full=True))
            case "clock-unsynced":
                self._put(self.folder / "adjtimex", "5")  # TIME_ERROR
            case "service-stopped":
                self._put(self._service(fault), sysfs.STOPPED)
            case "task-stuck":
                self._put(self.folder / "proc/loadavg", sysfs.load(True, "pids-full" in standing))
                sysfs.task(self.folder, fault["gpu"])
            case _:
                return False
        return True

    def _heal(self, facts: dict[str, Any], fault: dict[str, Any]) -> None:
        match fault["fault"]:
            case "ib-down" | "ib-slow":
                port = self._ib(fault["port"])
                self._put(port / "rate", sysfs.RATE)
                self._put(port / "lid", sysfs.lid(fault["port"]))
                self._put(port / "phys_state", "5: LinkUp")
                self._put(port / "state", "4: ACTIVE")
            case "nic-down" | "nic-slow":
                net = self._net(fault["port"])
                if (net / "carrier").read_text().strip() == "0":
                    self._count(net / "carrier_changes")
                    self._count(net / "carrier_up_count")
                self._put(net / "speed", str(sysfs.SPEED))
                self._put(net / "operstate", "up")
                self._put(net / "carrier", "1")
            case "gpu-gone" | "ib-gone" | "nic-gone":
                self._listed(facts, fault)
            case "process":
                self._end(fault["code"])
            case "ib-pcie-degraded":
                self._put(self._adapter(fault["port"]) / "current_link_width", sysfs.WIDTH)
            case "mem-missing":
                self._put(self.folder / "proc/meminfo", sysfs.memory())
            case "disk-full":
                self._put(self.folder / "statvfs", sysfs.STATVFS)
            case "disk-readonly":
                self._put(self.folder / "proc/1/mounts", sysfs.MOUNTS)
            case "pids-full" | "task-stuck":
                self._put(self.folder / "proc/loadavg", sysfs.load())
                shutil.rmtree(self.folder / "proc" / sysfs.TASK, ignore_errors=True)
            case "clock-unsynced":
                self._put(self.folder / "adjtimex", "0")
            case "service-stopped":
                self._put(self._service(fault), sysfs.RUNNING)

    def _end(self, pid: int) -> None:
        process = self.folder / f"proc/{pid}"
        if process.is_symlink():
            process.unlink()
        else:
            shutil.rmtree(process, ignore_errors=True)

    def _run(self, pid: int, environment: str) -> None:
        """Show a process in proc/: the one of this machine with that number, or one of a fake user's that has
        the given words (NAME=VALUE ...) in its environment."""
        process = self.folder / f"proc/{pid}"
        self._end(pid)
        if not environment:
            process.symlink_to(f"/proc/{pid}")
            return
        process.mkdir(parents=True, exist_ok=True)
        self._put(process / "status", f"Name:\tpython3\nUid:\t{USER}\t{USER}\t{USER}\t{USER}")
        self._put(process / "environ", "\0".join(environment.split()))

    def _say_xid(self, facts: dict[str, Any], gpu: int, code: int) -> None:
        board = facts["gpus"][gpu]
        self._log(facts, [(line,) for line in xid_lines(code, gpu, board["pci"], board["serial"])], _KERNEL)

    def _write_nvml(self, facts: dict[str, Any]) -> None:
        """The fake NVML library's state; its grammar stands in nvml.c."""
        lines = [f"driver {sysfs.DRIVER}"]
        for number, gpu in enumerate(facts["gpus"]):
            lines.append(f"gpu {number} {gpu['pci']} {gpu['uuid']} {gpu['serial']} {number} {sysfs.GPU_NAME}")
        for fault in facts["faults"]:
            gpu, code = fault.get("gpu", -1), fault.get("code")
            match fault["fault"]:
                case "gpu-lost" | "gpu-off-bus":
                    lines.append(f"set {gpu} lost 1")
                case "gpu-gone":
                    lines.append(f"set {gpu} gone 1")
                case "ecc":
                    count = sum(other["fault"] == "ecc" and other["gpu"] == gpu for other in facts["faults"])
                    lines += [f"set {gpu} ecc-volatile {count}", f"set {gpu} ecc-aggregate {count}"]
                case "remap-pending":
                    lines += [f"set {gpu} remap-pending 1", f"set {gpu} remap-uncorrected 1"]
                case "remap-failed":
                    lines.append(f"set {gpu} remap-failed 1")
                case "recovery-action":
                    lines.append(f"set {gpu} recovery {1 if code is None else code}")
                case "driver-failed":
                    lines.append(f"init {9 if code is None else code}")
                case "driver-hang":
                    lines.append(f"hang {fault.get('text') or '*'}")
                case "throttle":
                    lines.append(f"set {gpu} throttle {_REASONS[fault.get('text') or 'thermal']}")
                case "hot":
                    lines.append(f"set {gpu} temperature {90 if code is None else code}")
                case "fan":
                    lines.append(f"set {gpu} fan -1")
                case "nvlink-down":
                    lines.append(f"set {gpu} nvlinks-down {1 << (3 if code is None else code)}")
                case "nvlink-errors":
                    count = 1000 if code is None else code
                    lines += [f"link {gpu} 3 {what} {count}" for what in ("crc", "replay", "symbol")]
                case "retired":
                    lines += [f"set {gpu} retired-dbe 1", f"set {gpu} retired-pending 1"]
                case "sram":
                    lines.append(f"set {gpu} sram-threshold 1")
                case "gpu-pcie-slow":
                    lines += [f"set {gpu} {key} {n}" for key, n in (("link-width", 8), ("utilization", 90))]
                case "gpu-pcie-replay":
                    lines.append(f"set {gpu} replay {1000 if code is None else code}")
                case "fabric":
                    lines.append(f"set {gpu} fabric {2 if code is None else code}")
                case "fabric-health":
                    lines.append(f"set {gpu} fabric-mask {_UNHEALTHY_ROUTE}")
                case "vbios":
                    lines.append(f"vbios {gpu} {fault['text']}")
                case "mig":
                    lines.append(f"set {gpu} mig 1")
                case "memory-used":
                    lines.append(f"set {gpu} memory-used {code << 20}")
                case "process":
                    lines.append(f"process {gpu} {code} {PROCESS_MEMORY}")
                case "nvml":
                    lines.append(f"set {gpu} {fault['text']}")
                case "nvml-error":
                    lines.append(f"fail {fault['text']} {gpu} {code}")
        self._put(self.folder / "nvml", "\n".join([*lines, "end"]))

    def _log(
        self, facts: dict[str, Any], records: Iterable[tuple[str, ...]], prefix: int, boot: bool = False
    ) -> None:
        """Append records (text, dictionary lines) to dev/kmsg, in one write: nobody reads half a record."""
        lines = []
        for number, (text, *dictionary) in enumerate(records):
            # While booting the clock is young; later it is that of the machine we run on.
            usec = number * 125_000 if boot else time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            lines.append(f"{prefix},{facts['sequence']},{usec},-;{_escaped(text)}\n")
            lines += [f" {line}\n" for line in dictionary]
            facts["sequence"] += 1
        handle = os.open(self.folder / "dev/kmsg", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, "".join(lines).encode())
        finally:
            os.close(handle)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._file.read_text())
        return facts

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The facts, changed by one process at a time, and written back unless something fails."""
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            facts = self._facts()
            yield facts
            self._put(self._file, json.dumps(facts))
        finally:
            os.close(handle)

    def _put(self, path: Path, text: str) -> None:
        """Replace a file whole: a reader gets the old text or the new one."""
        fresh = self.folder / f".new.{os.getpid()}"
        fresh.write_text(f"{text}\n")
        fresh.replace(path)

    def _count(self, path: Path, by: int = 1) -> None:
        self._put(path, str(int(path.read_text()) + by))

    def _listed(self, facts: dict[str, Any], fault: dict[str, Any]) -> list[Path]:
        """Where the device that is gone, or is here again, stands in sys/."""
        port = fault.get("port", 0)
        match fault["fault"]:
            case "gpu-gone":
                return sysfs.link_pci(self.folder, facts["gpus"][fault["gpu"]]["pci"])
            case "ib-gone":
                return sysfs.link_pci(
                    self.folder, facts["ports"][port], f"infiniband/mlx5_{port}", f"net/ib{port}"
                )
            case _:
                return sysfs.link_pci(self.folder, facts["nics"][port], f"net/eth{port}")

    def _ib(self, number: int) -> Path:
        return self.folder / f"sys/class/infiniband/mlx5_{number}/ports/1"

    def _adapter(self, number: int) -> Path:
        """The PCI device of an InfiniBand port."""
        return self._ib(number).parents[1].resolve().parents[1]

    def _service(self, fault: dict[str, Any]) -> Path:
        unit = f"{fault.get('text', 'munge')}.service"
        return self.folder / "sys/fs/cgroup/system.slice" / unit / "cgroup.events"

    def _net(self, number: int) -> Path:
        return self.folder / f"sys/class/net/eth{number}"


def _check_numbers(facts: dict[str, Any], fault: str, gpu: int | None, port: int | None) -> None:
    name = facts["name"]
    kind = "nics" if fault.startswith("nic-") else "ports"
    if gpu is not None and not 0 <= gpu < len(facts["gpus"]):
        raise SandboxError(f"there is no GPU {gpu} on {name}, it has {_span(len(facts['gpus']))}")
    if port is not None and not 0 <= port < len(facts[kind]):
        raise SandboxError(f"there is no port {port} on {name}, for {fault} it has {_span(len(facts[kind]))}")
    gone = "nic-gone" if kind == "nics" else "ib-gone"
    if fault != gone and (gone, port) in [(one["fault"], one.get("port")) for one in facts["faults"]]:
        raise SandboxError(f"port {port} of {name} is gone: clear {name} first")
    if fault == "sxid" and not facts["gpus"]:
        raise SandboxError(f"there is no NVSwitch on {name}: it has no GPUs")


def _span(count: int) -> str:
    return "none" if not count else f"0 to {count - 1}" if count > 1 else "only 0"


def _escaped(text: str) -> str:
    """As the kernel prints what is not printable (dev-kmsg): a backslash, x and two digits for each byte."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in text.encode()
    )
