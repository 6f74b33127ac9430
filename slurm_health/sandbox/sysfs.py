"""Builds the /sys, /proc and /dev of a fake machine, healthy.

Shapes follow what Linux shows on an eight-GPU InfiniBand host. Sources, all in the kernel's
Documentation/ABI: stable/sysfs-class-infiniband, testing/sysfs-class-net, testing/sysfs-bus-pci,
testing/sysfs-bus-pci-devices-aer_stats, testing/sysfs-devices-edac; and proc(5).
A file whose reading fails in a real kernel (the carrier of a port that is set down: EINVAL) is empty here.
"""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path
from typing import Any

# Bus numbers as on a HGX H100 board; what goes beyond takes any free one.
_GPU_BUSES = (0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB)
_IB_BUSES = (0x19, 0x2B, 0x3B, 0x5E, 0x9B, 0xAC, 0xBB, 0xDC)
_NIC_BUSES = (0x40, 0x41, 0x42, 0x43)
NVME = "0000:01:00.0"
SWITCHES = ("0000:05:00.0", "0000:06:00.0", "0000:07:00.0", "0000:08:00.0")

DRIVER = "570.86.15"
GPU_NAME = "NVIDIA H100 80GB HBM3"
RATE, HALF_RATE = "400 Gb/sec (4X NDR)", "200 Gb/sec (4X HDR)"
DOWN_RATE = "10 Gb/sec (4X SDR)"  # what mlx5 shows on a port without a link
SPEED = 100_000  # Mb/s
GEN4, GEN5 = "16.0 GT/s PCIe", "32.0 GT/s PCIe"
WIDTH = "16"
MEMORY = 2_113_523_168  # KiB
RUNNING, STOPPED = "populated 1\nfrozen 0", "populated 0\nfrozen 0"
TASK = "20411"
SERVICES = ("munge", "nvidia-fabricmanager", "slurmd")
SCRATCH = "/dev/mapper/vg0-scratch /scratch xfs rw,noatime 0 0"
MOUNTS = f"""\
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
/dev/nvme0n1p2 / ext4 rw,relatime,errors=remount-ro 0 0
/dev/nvme0n1p1 /boot/efi vfat ro,relatime 0 0
{SCRATCH}
tmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0
fs1:/home /home nfs4 rw,relatime,vers=4.2,hard 0 0"""
# what statvfs(2) would say: blocks, free, inodes, free
SPACE = "/ 110000000 80000000 28000000 27000000"
STATVFS = f"{SPACE}\n/scratch 900000000 850000000 720000000 719000000"
_AER = {
    "fatal": ("DLP", "SDES", "TLP", "TOTAL_ERR_FATAL"),
    "nonfatal": ("TLP", "CmpltTO", "TOTAL_ERR_NONFATAL"),
    "correctable": ("RxErr", "BadTLP", "TOTAL_ERR_COR"),
}

_IB_COUNTERS = (
    "excessive_buffer_overrun_errors",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "port_rcv_constraint_errors",
    "port_rcv_data",
    "port_rcv_errors",
    "port_rcv_packets",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_constraint_errors",
    "port_xmit_data",
    "port_xmit_discards",
    "port_xmit_packets",
    "port_xmit_wait",
    "symbol_error",
    "VL15_dropped",
)
_IB_HW_COUNTERS = ("local_ack_timeout_err", "out_of_sequence", "packet_seq_err", "rx_icrc_encapsulated")
_NET_STATISTICS = (
    "rx_bytes",
    "rx_crc_errors",
    "rx_dropped",
    "rx_errors",
    "rx_fifo_errors",
    "rx_missed_errors",
    "rx_packets",
    "tx_bytes",
    "tx_carrier_errors",
    "tx_dropped",
    "tx_errors",
    "tx_fifo_errors",
    "tx_packets",
)

# What every boot says and nobody is ill of: a record's text and its dictionary (dev-kmsg).
BOOT: tuple[tuple[str, ...], ...] = (
    ("Linux version 5.15.0-113-generic (buildd@lcy02-amd64-072) #123-Ubuntu SMP Mon Jun 10 08:16:17 2024",),
    ("Command line: BOOT_IMAGE=/boot/vmlinuz-5.15.0-113-generic root=/dev/nvme0n1p2 ro pci=realloc=off",),
    ("pci 0000:18:00.0: [10de:2330] type 00 class 0x030200", "SUBSYSTEM=pci", "DEVICE=+pci:0000:18:00.0"),
    ("mlx5_core 0000:19:00.0: firmware version: 28.43.1014", "SUBSYSTEM=pci", "DEVICE=+pci:0000:19:00.0"),
    ("mlx5_core 0000:19:00.0: Port module event: module 0, Cable plugged",),
    ("nvidia-nvlink: Nvlink Core is being initialized, major device number 510",),
    (f"NVRM: loading NVIDIA UNIX x86_64 Kernel Module  {DRIVER}  Fri Jan  3 22:30:06 UTC 2025",),
    ("ice 0000:40:00.0 eth0: NIC Link is up 100 Gbps Full Duplex, Requested FEC: RS-FEC, Autoneg: On",),
)


def parts(name: str, gpus: int, ports: int, nics: int) -> dict[str, Any]:
    """What a machine consists of, ready for JSON. `name` makes its UUIDs and serial numbers its own."""
    taken = set(SWITCHES) if gpus else set()
    return {
        "gpus": [
            {
                "pci": _address(_GPU_BUSES, number, taken),
                "uuid": f"GPU-{own}",
                "serial": f"1650{own.int % 10**9:09d}",
            }
            for number in range(gpus)
            for own in [uuid.uuid5(uuid.NAMESPACE_DNS, f"gpu{number}.{name}")]
        ],
        "ports": [_address(_IB_BUSES, number, taken) for number in range(ports)],
        "nics": [_address(_NIC_BUSES, number, taken) for number in range(nics)],
    }


def build(root: Path, name: str, machine: dict[str, Any]) -> None:
    """Write the trees of a healthy machine that consists of `machine` (see parts) below `root`."""
    for folder in ("sys/bus/pci/devices", "sys/class/infiniband", "sys/class/net", "dev/mapper"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    _tree(
        root / "proc/sys/kernel",
        {
            "random/boot_id": str(uuid.uuid4()),
            "hostname": name,
            "pid_max": "4194304",
            "threads-max": "16511000",
        },
    )
    _host(root)
    for number, gpu in enumerate(machine["gpus"]):
        # H100 SXM5 (10de:2330), a 3D controller on PCIe 5.0 x16.
        _pci(root, gpu["pci"], "0x10de", "0x2330", "0x030200", "nvidia", GEN5)
        device = root / f"dev/nvidia{number}"
        if os.geteuid() == 0:
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # Slurm wants a device; this one is null
        else:
            device.touch()
        device.chmod(0o666)
    if machine["gpus"]:
        version = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {DRIVER}"
        _tree(root / "proc/driver/nvidia", {"version": version})
        for pci in SWITCHES:
            _pci(root, pci, "0x10de", "0x22a3", "0x068000", "nvidia-nvswitch", GEN4, "2")
    for number, pci in enumerate(machine["ports"]):
        _pci(root, pci, "0x15b3", "0x1021", "0x020700", "mlx5_core", GEN5)
        _infiniband(root, number, pci, name)
    for number, pci in enumerate(machine["nics"]):
        _pci(root, pci, "0x8086", "0x1592", "0x020000", "ice", GEN4)
        _net(root, f"eth{number}", pci, mac=number)
    _net(root, "lo", None, kind="772", flags="0x9", operstate="unknown", speed="")
    _net(root, "docker0", None, operstate="down", speed="-1", carrier="0")
    _net(root, "veth3f2a1c0", None, speed="10000")


def link_pci(root: Path, pci: str, *parts: str) -> list[Path]:
    """Where a PCI device and its parts ("net/eth0") are listed, listed there if they were not."""
    home = f"devices/{_home(pci)}"
    links = {root / "sys/bus/pci/devices" / pci: f"../../../{home}"}
    links |= {root / "sys/class" / part: f"../../{home}/{part}" for part in parts}
    for path, target in links.items():
        if not path.is_symlink():
            path.symlink_to(target)
    return list(links)


def errors(name: str, count: int) -> str:
    """What aer_dev_<name> shows after so many errors."""
    return "\n".join(f"{kind} {count if 'TOTAL' in kind else 0}" for kind in _AER[name])


def memory(kib: int = MEMORY) -> str:
    """What /proc/meminfo shows."""
    return f"MemTotal:       {kib} kB\nMemFree:        {kib // 2} kB"


def load(waiting: bool = False, full: bool = False) -> str:
    """What /proc/loadavg shows, with a task that waits in the kernel, with hardly a process number left."""
    return f"{1.12 if waiting else 0.12} 0.10 0.09 2/{4_100_000 if full else 1873} 20411"


def task(root: Path, gpu: int) -> None:
    """A process in state D that has a GPU's device open (proc_pid_stat(5))."""
    _tree(
        root / "proc" / TASK,
        {
            "stat": f"{TASK} (python (train)) D 1 1 1 0 -1 4194560 {'0 ' * 10}1 0 812345 0 0",
            "status": "Name:\tpython (train)\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3",
        },
    )
    fds = root / "proc" / TASK / "fd"
    fds.mkdir(exist_ok=True)
    if not (fds / "7").is_symlink():
        (fds / "7").symlink_to(f"/dev/nvidia{gpu}")


def _host(root: Path) -> None:
    """Memory, disks, load, services, the clock."""
    _tree(root / "proc", {"meminfo": memory(), "loadavg": load(), "1/mounts": MOUNTS})
    _tree(root, {"statvfs": STATVFS, "adjtimex": "0"})
    (root / "dev/mapper/vg0-scratch").symlink_to("../dm-0")
    for controller in range(2):
        files = {"mc_name": "Intel_10nm Socket#0 IMC#0", "ue_count": "0", "ce_count": "0"}
        for number, slot in enumerate("AB"):
            files[f"dimm{number}/dimm_label"] = f"CPU{controller}_DIMM_{slot}1"
            files |= {f"dimm{number}/dimm_{kind}_count": "0" for kind in ("ue", "ce")}
        _tree(root / f"sys/devices/system/edac/mc/mc{controller}", files)
    for service in SERVICES:
        _tree(root / f"sys/fs/cgroup/system.slice/{service}.service", {"cgroup.events": RUNNING})
    _pci(root, NVME, "0x144d", "0xa80a", "0x010802", "nvme", GEN4, "4")
    nvme = f"devices/{_home(NVME)}/nvme/nvme0"
    _tree(root / "sys" / nvme, {"model": "SAMSUNG MZ1L21T9HCLS-00A07", "serial": "S666NE0T123456"})
    _tree(root / "sys" / nvme / "nvme0n1", {"size": "3750748848"})
    (root / "sys" / nvme / "nvme0n1/device").symlink_to("../../nvme0")
    (root / "sys/block").mkdir()
    (root / "sys/block/nvme0n1").symlink_to(f"../{nvme}/nvme0n1")


def _pci(
    root: Path, pci: str, vendor: str, device: str, kind: str, driver: str, speed: str, width: str = WIDTH
) -> None:
    link = {
        f"{when}_link_{what}": value
        for when in ("current", "max")
        for what, value in (("speed", speed), ("width", width))
    }
    home = root / "sys/devices" / _home(pci)
    for bridge in list(home.parents)[: _home(pci).count("/") - 1]:
        if not bridge.exists():
            # a port of a PCIe switch (Broadcom's 1000:c030) or of the processor
            _tree(bridge, {"vendor": "0x1000", "device": "0xc030", "class": "0x060400", **link})
            target = bridge.relative_to(root / "sys")
            (root / "sys/bus/pci/devices" / bridge.name).symlink_to(f"../../../{target}")
    _tree(
        home,
        {
            "vendor": vendor,
            "device": device,
            "class": kind,
            "subsystem_vendor": vendor,
            "subsystem_device": "0x0001",
            "revision": "0xa1",
            "enable": "1",
            "numa_node": "0" if int(pci[5:7], 16) < 0x80 else "1",
            **link,
            **{f"aer_dev_{name}": errors(name, 0) for name in _AER},
        },
    )
    (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
    (home / "driver").symlink_to(f"{'../' * (_home(pci).count('/') + 2)}bus/pci/drivers/{driver}")
    link_pci(root, pci)


def _infiniband(root: Path, number: int, pci: str, host: str) -> None:
    name = f"mlx5_{number}"
    home = f"devices/{_home(pci)}/infiniband/{name}"
    guid = f"a088:c203:00{number:02x}:{int(pci[5:7], 16):04x}"
    _tree(
        root / "sys" / home,
        {
            "node_type": "1: CA",
            "node_guid": guid,
            "sys_image_guid": guid,
            "fw_ver": "28.43.1014",
            "hca_type": "MT4129",
            "board_id": "MT_0000000838",
            "node_desc": f"{host} {name}",
            "ports/1/state": "4: ACTIVE",
            "ports/1/phys_state": "5: LinkUp",
            "ports/1/rate": RATE,
            "ports/1/link_layer": "InfiniBand",
            "ports/1/lid": lid(number),
            "ports/1/sm_lid": "0x1",
            "ports/1/lid_mask_count": "0",
            **{f"ports/1/counters/{counter}": "0" for counter in _IB_COUNTERS},
            **{f"ports/1/hw_counters/{counter}": "0" for counter in _IB_HW_COUNTERS},
        },
    )
    (root / "sys" / home / "device").symlink_to(f"../../../{pci}")
    link_pci(root, pci, f"infiniband/{name}")
    # IP over InfiniBand, there but not set up, as on hosts that use the fabric for RDMA only.
    _net(
        root,
        f"ib{number}",
        pci,
        mac=number,
        kind="32",
        flags="0x1002",
        operstate="down",
        speed="",
        carrier="",
    )


def lid(number: int) -> str:
    """The local identifier that the subnet manager gave to a port."""
    return f"0x{number + 2:x}"


def _net(
    root: Path,
    name: str,
    pci: str | None,
    mac: int = 0,
    kind: str = "1",
    flags: str = "0x1003",
    operstate: str = "up",
    speed: str = str(SPEED),
    carrier: str = "1",
) -> None:
    home = f"devices/{_home(pci)}/net/{name}" if pci else f"devices/virtual/net/{name}"
    up = carrier == "1"
    _tree(
        root / "sys" / home,
        {
            "type": kind,
            "flags": flags,
            "operstate": operstate,
            "speed": speed,
            "duplex": "full" if up and speed else "",
            "carrier": carrier,
            "carrier_changes": "2" if up else "1",
            "carrier_up_count": "1" if up else "0",
            "carrier_down_count": "1",
            "mtu": "65536" if name == "lo" else "9000",
            "address": "00:00:00:00:00:00" if name == "lo" else f"b8:ce:f6:00:00:{mac:02x}",
            "dev_port": "0",
            **{f"statistics/{counter}": "0" for counter in _NET_STATISTICS},
        },
    )
    if pci:
        (root / "sys" / home / "device").symlink_to(f"../../../{pci}")
        link_pci(root, pci, f"net/{name}")
    else:
        (root / f"sys/class/net/{name}").symlink_to(f"../../{home}")


def _address(buses: tuple[int, ...], number: int, taken: set[str]) -> str:
    numbers = [buses[number]] if number < len(buses) else range(0x60, 0x100)
    address = next(pci for bus in numbers if (pci := f"0000:{bus:02x}:00.0") not in taken)
    taken.add(address)
    return address


def _home(pci: str) -> str:
    """Where a device hangs below sys/devices: a GPU and its InfiniBand adapter below one PCIe switch, as on a
    HGX board, the rest each on a root port of its own."""
    bus = int(pci[5:7], 16)
    for lane, buses in enumerate((_GPU_BUSES, _IB_BUSES)):
        if bus in buses:
            first = bus - lane - 3
            port = f"pci0000:{first:02x}/0000:{first:02x}:01.0"
            return f"{port}/0000:{first + 1:02x}:00.0/0000:{first + 2:02x}:{lane:02x}.0/{pci}"
    return f"pci0000:00/0000:00:{bus >> 3:02x}.{bus & 7}/{pci}"


def _tree(folder: Path, files: dict[str, str]) -> None:
    for part in {name.rpartition("/")[0] for name in files}:
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        # A machine has a thousand files and tests build many machines: no more calls than it takes.
        handle = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            if text:
                os.write(handle, f"{text}\n".encode())
        finally:
            os.close(handle)
