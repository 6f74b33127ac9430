"""Memory, disks, processes, services, the clock: what is read of a host, and what it means."""

import json
import os
from pathlib import Path

import nodes
import pytest

from slurm_health.baseline import Baseline, Expectations, begin, expect, learn, plain, recall
from slurm_health.host import Host
from slurm_health.identity import PARTS
from slurm_health.model import Reading, Report, Value
from slurm_health.probes.disk import disk
from slurm_health.probes.memory import memory
from slurm_health.probes.system import System
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.sysfs import NVME

MC = "sys/devices/system/edac/mc"
MOUNTS = "/dev/vda1 / ext4 {} 0 0\ntmpfs /tmp tmpfs rw 0 0\nfs1:/home /home nfs4 rw 0 0\n"


def values(readings: tuple[Reading, ...]) -> dict[tuple[str, str], Value]:
    return {(one.name, one.device): one.value for one in readings}


# -- memory


def test_memory_and_its_errors(tmp_path: Path) -> None:
    nodes.write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:       2113523168 kB\nMemFree: 1 kB",
            f"{MC}/mc0/ue_count": "2",
            f"{MC}/mc0/ce_count": "0",
            f"{MC}/mc0/dimm3/dimm_ue_count": "2",
            f"{MC}/mc0/dimm3/dimm_label": "CPU0_DIMM_B1",
            f"{MC}/mc1/ue_count": "",
        },
    )
    readings = tuple(memory(Host(tmp_path)))
    assert values(readings) == {
        ("memory.total", ""): 2015.6,
        ("memory.uncorrected", "mc0"): 2,
        ("memory.corrected", "mc0"): 0,
    }
    assert readings[1].evidence == "2 uncorrected errors (CPU0_DIMM_B1: 2)"


def errors(count: int) -> Report:
    return Report("memory", (Reading("memory.uncorrected", "mc0", count, "words"),))


def test_errors_from_before_us_only_warn() -> None:
    known, _ = learn(begin(Baseline(), "boot"), errors(3))
    assert values(expect(known, Expectations(), errors(3)))["memory.ecc_risen", "mc0"] == 0
    assert values(expect(known, Expectations(), errors(3)))["memory.ecc_before", "mc0"] == 3
    assert values(expect(known, Expectations(), errors(5)))["memory.ecc_risen", "mc0"] == 2
    assert values(expect(None, Expectations(), errors(5)))["memory.ecc_risen", "mc0"] == 0


def test_a_boot_starts_the_count_anew(tmp_path: Path) -> None:
    known, _ = learn(begin(Baseline(), "boot"), errors(3))
    again = begin(recall(json.loads(json.dumps(plain(known)))), "next")
    assert values(expect(again, Expectations(), errors(1)))["memory.ecc_risen", "mc0"] == 1


def test_less_memory_than_there_was() -> None:
    whole, less = (Report("memory", (Reading("memory.total", "", total),)) for total in (2015.6, 1952.6))
    known, _ = learn(Baseline(), whole)
    assert values(expect(known, Expectations(), whole))["memory.share", ""] == 100
    assert values(expect(known, Expectations(), less))["memory.share", ""] == 96.9
    assert values(expect(None, Expectations(memory=2015.6), less))["memory.share", ""] == 96.9
    assert ("memory.share", "") not in values(expect(None, Expectations(), less))


# -- disks


def test_local_file_systems_only(tmp_path: Path) -> None:
    nodes.write(
        tmp_path,
        {
            "proc/1/mounts": MOUNTS.format("rw") + "/dev/mapper/vg-s /scratch\\040one xfs ro 0 0\n"
            "/dev/vda1 /container ext4 ro 0 0\nnonsense\n",
            "statvfs": "/ 1000 50 200 20\n/home 1 0 1 0\nnonsense",
        },
    )
    nodes.link(tmp_path, "dev/mapper/vg-s", "../dm-3")
    readings = tuple(disk(Host(tmp_path)))
    assert values(readings) == {
        ("disk.mount", "vda1"): "/",
        ("disk.mount", "dm-3"): "/scratch one",
        ("disk.read_only", "vda1"): False,  # one of its mounts can be written
        ("disk.used", "vda1"): 95.0,
        ("disk.inodes", "vda1"): 90.0,
        ("disk.read_only", "dm-3"): True,
    }
    assert readings[-1].evidence == "/scratch one is mounted read-only"


def test_which_parts_the_disks_are(tmp_path: Path) -> None:
    Machine.build(tmp_path, "n1", gpus=0, ports=0, nics=0)
    nodes.write(tmp_path, {"sys/block/loop0/size": "0", "sys/block/sda/device/model": "ST4000"})
    seen = {key: value for key, value in values(tuple(disk(Host(tmp_path)))).items() if key[0] in PARTS}
    assert seen == {
        ("disk.model", "nvme0n1"): "SAMSUNG MZ1L21T9HCLS-00A07",
        ("disk.serial", "nvme0n1"): "S666NE0T123456",
        ("disk.pci", "nvme0n1"): NVME,
        ("disk.model", "sda"): "ST4000",
    }


def test_what_turned_read_only(tmp_path: Path) -> None:
    nodes.write(tmp_path, {"proc/self/mounts": MOUNTS.format("rw")})
    written = Report("disk", tuple(disk(Host(tmp_path))))
    nodes.write(tmp_path, {"proc/self/mounts": MOUNTS.format("ro,relatime")})
    locked = Report("disk", tuple(disk(Host(tmp_path))))
    known, _ = learn(Baseline(), written)
    assert values(expect(known, Expectations(), locked))["disk.locked", "vda1"] is True
    assert values(expect(known, Expectations(), written))["disk.locked", "vda1"] is False
    assert ("disk.locked", "vda1") not in values(expect(None, Expectations(), locked))  # it may be meant


def test_how_full_this_machine_is() -> None:
    blocks, free, inodes, inodes_free = Host("/").space("/") or (0, 0, 0, 0)
    real = os.statvfs("/")
    assert (blocks, inodes) == (real.f_blocks - real.f_bfree + real.f_bavail, real.f_files)
    assert 0 <= free <= blocks
    assert 0 <= inodes_free <= inodes
    assert Host("/").space("/nowhere/at/all") is None


# -- processes, services, the clock


def system(root: Path, *looks: dict[str, str], services: tuple[str, ...] = ()) -> dict[str, Value]:
    """What the last of several looks shows, each after more was written."""
    one = System(Host(root), services)
    for files in looks:
        nodes.write(root, files)
        shown = values(tuple(one.look()))
    return {name: value for (name, _), value in shown.items()}


def task(pid: int, state: str = "D", switches: int = 1, of: str = "", threads: int = 1) -> dict[str, str]:
    folder = f"proc/{of or pid}"
    return {
        f"{folder}/stat": f"{pid} (a (odd) name) {state} 1 1 {'0 ' * 14}{threads} 0 4711 0",
        f"{folder}/status": f"voluntary_ctxt_switches:\t{switches}",
    }


BUSY = {"proc/loadavg": "1.20 1.10 1.00 1/300 999"}


def test_a_process_that_never_runs_and_holds_a_gpu(tmp_path: Path) -> None:
    nodes.link(tmp_path, "proc/77/fd/5", "/dev/nvidia3")
    assert system(tmp_path, BUSY | task(77))["system.stuck"] is False
    assert system(tmp_path, BUSY | task(77), {})["system.stuck"] is True
    assert system(tmp_path, BUSY | task(77), task(77, switches=2))["system.stuck"] is False
    assert system(tmp_path, BUSY | task(77), task(77, "S"))["system.stuck"] is False


def test_one_that_waits_for_something_else_is_not_ours(tmp_path: Path) -> None:
    nodes.link(tmp_path, "proc/77/fd/5", "/dev/null")
    assert system(tmp_path, BUSY | task(77), {})["system.stuck"] is False


def test_what_is_left_of_a_process_in_the_driver(tmp_path: Path) -> None:
    rest = task(78, of="77/task/78") | {"proc/77/task/78/stack": "[<0>] nv_close+0x1/0x2 [nvidia]"}
    assert system(tmp_path, BUSY | task(77, "Z", threads=2) | rest, {})["system.stuck"] is True


def test_at_rest_nobody_is_looked_through(tmp_path: Path) -> None:
    nodes.link(tmp_path, "proc/77/fd/5", "/dev/nvidia3")
    calm = {"proc/loadavg": "0.20 1.10 1.00 1/300 999"}
    assert system(tmp_path, calm | task(77), {})["system.stuck"] is False


def test_process_numbers(tmp_path: Path) -> None:
    limits = {"proc/sys/kernel/pid_max": "4000000", "proc/sys/kernel/threads-max": "1000"}
    assert system(tmp_path, BUSY | limits)["system.ids"] == 30.0


@pytest.mark.parametrize("slice_", ["sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice"])
def test_services(tmp_path: Path, slice_: str) -> None:
    nodes.write(tmp_path, {f"{slice_}/other.service/cgroup.procs": "1"})
    one = System(Host(tmp_path), ["munge", "a@b.service"])
    assert set(values(tuple(one.look())).items()) == {
        (("system.service", "munge.service"), False),
        (("system.service", "a@b.service"), False),
    }
    nodes.write(tmp_path, {f"{slice_}/munge.service/cgroup.procs": "4711"})
    if "systemd" not in slice_:
        nodes.write(tmp_path, {f"{slice_}/munge.service/cgroup.events": "populated 1\nfrozen 0"})
    assert values(tuple(one.look()))["system.service", "munge.service"] is True


def test_a_slice_that_cannot_be_seen_says_nothing(tmp_path: Path) -> None:
    assert tuple(System(Host(tmp_path), ["munge"]).look()) == ()


def test_a_clock_that_was_never_kept_is_not_missed(tmp_path: Path) -> None:
    nodes.write(tmp_path, {"adjtimex": "5"})
    lost = Report("system", tuple(System(Host(tmp_path)).look()))
    assert ("system.unsynced", "") not in values(expect(Baseline(), Expectations(), lost))
    nodes.write(tmp_path, {"adjtimex": "0"})
    kept = Report("system", tuple(System(Host(tmp_path)).look()))
    known, _ = learn(Baseline(), kept)
    assert values(expect(known, Expectations(), kept))["system.unsynced", ""] is False
    assert values(expect(known, Expectations(), lost))["system.unsynced", ""] is True


def test_this_machines_clock_is_asked() -> None:
    assert Host("/").clock_error() in (True, False, None)
