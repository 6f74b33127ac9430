"""Local disks: how full their file systems are, whether they can be written, and which parts they are.

proc_pid_mounts(5), statvfs(3), https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block. Only what
lies on a disk of this machine is asked: a dead file server would hold whoever asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from slurm_health.host import Host
from slurm_health.model import Reading
from slurm_health.probes import pcie

BLOCK = "sys/block"
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "vfat", "xfs", "zfs"}


def disk(host: Host) -> Iterator[Reading]:
    """By kernel name ("nvme0n1p2", "dm-0"; a pool's for ZFS): `disk.used` and `disk.inodes`, percent in use
    as df(1) counts them, and `disk.read_only`. A file system that is mounted several times counts once: it
    can be written when one of its mounts can; the first of them is `disk.mount`. Of each disk ("nvme0n1",
    "sda") `disk.model`, `disk.serial` and `disk.pci`, its address or that of what it is connected to.
    """
    for name in host.names(BLOCK):
        if host.exists(f"{BLOCK}/{name}/device"):  # not loop, dm, md, zram
            for fact in ("model", "serial"):
                if text := host.text(f"{BLOCK}/{name}/device/{fact}"):
                    yield Reading(f"disk.{fact}", name, text)
            if way := pcie.ancestry(host, f"{BLOCK}/{name}"):
                yield Reading("disk.pci", name, way[-1])
    # init's mounts: our own are read-only wherever our unit says so
    mounts = host.text("proc/1/mounts") or host.text("proc/self/mounts") or ""
    found: dict[str, tuple[str, bool]] = {}
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) < 4 or words[2] not in LOCAL:
            continue
        device, mount = _kernel_name(host, words[0]), _plain(words[1])
        first, read_only = found.get(device, (mount, True))
        found[device] = first, read_only and "ro" in words[3].split(",")
    for device, (mount, read_only) in found.items():
        yield Reading("disk.mount", device, mount)
        yield Reading("disk.read_only", device, read_only, f"{mount} is mounted read-only")
        if read_only or (space := host.space(mount)) is None:
            continue
        blocks, blocks_free, inodes, inodes_free = space
        for name, what, all_of_it, free in (
            ("used", "space", blocks, blocks_free),
            ("inodes", "inodes", inodes, inodes_free),
        ):
            if 0 <= free <= all_of_it and all_of_it:  # btrfs has no number of inodes
                percent = round(100 * (all_of_it - free) / all_of_it, 1)
                said = f"{percent:g} % of the {what} of {mount} in use"
                yield Reading(f"disk.{name}", device, percent, said)


def _kernel_name(host: Host, source: str) -> str:
    """ "/dev/nvme0n1p2" -> "nvme0n1p2", "/dev/mapper/vg-root" -> "dm-0" (a symbolic link)."""
    name = source.removeprefix("/")
    return host.link(name) or name.removeprefix("dev/")


def _plain(mount: str) -> str:
    r"""A mount point without the octal escapes of blanks (getmntent(3)): "\040" is a space."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), mount)
