"""Machines of many makes: a healthy one shows nothing, whatever else it has; a broken one shows its fault.

Each is written from what its drivers put into /sys and /proc; whence is said beside it.
"""

import select
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import nodes
import pytest

from slurm_health import rules
from slurm_health.baseline import Baseline, Expectations, begin, expect, learn
from slurm_health.host import Host
from slurm_health.model import Finding, Report, Severity
from slurm_health.probes.disk import disk
from slurm_health.probes.gpu import Worker
from slurm_health.probes.infiniband import InfiniBand
from slurm_health.probes.memory import memory
from slurm_health.probes.nic import Nic
from slurm_health.probes.pcie import Pcie
from slurm_health.probes.system import System
from slurm_health.sandbox.library import build

BOOK = rules.load()
GIB = 1 << 20  # KiB
Shape = set[tuple[str, str, str]]


class Watch:
    """The daemon's eyes on a machine, all but NVML's and the kernel's log, a minute between two looks."""

    def __init__(self, root: Path) -> None:
        self.root, host = root, Host(root)
        self.links, self.nics, self.pcie, self.system = InfiniBand(host), Nic(host), Pcie(host), System(host)
        self.known, self.memory, self.now = begin(Baseline(), "boot"), rules.begin(None, "boot"), 1000.0

    def look(self, times: int = 1) -> Shape:
        found: tuple[Finding, ...] = ()
        for _ in range(times):
            self.now += 60
            host = Host(self.root)
            reports = (
                Report("infiniband", tuple(self.links.look())),
                Report("nic", tuple(self.nics.look())),
                Report("pcie", tuple(self.pcie.look())),
                Report("memory", tuple(memory(host))),
                Report("disk", tuple(disk(host))),
                Report("system", tuple(self.system.look())),
            )
            readings = [one for report in reports for one in expect(self.known, Expectations(), report)]
            found, self.memory = rules.judge(BOOK, readings, self.memory, self.now)
            sick = {one.device for one in found if one.severity is Severity.CRITICAL}
            for report in reports:
                self.known, _ = learn(self.known, report, sick)
        return {(one.code, one.device, str(one.severity)) for one in found}

    def reboot(self) -> None:
        self.__dict__ |= {"links": InfiniBand(Host(self.root)), "nics": Nic(Host(self.root))}
        self.known, self.memory = begin(self.known, "next"), rules.begin(self.memory, "next")


# -- what machines have --------------------------------------------------------------------


def function(root: Path, address: str, kind: str, vendor: str = "0x15b3", **files: str) -> str:
    """A PCI function below a port of its own; the folder it lies in."""
    home = f"sys/devices/pci{address[:-5]}/{address}"
    nodes.write(
        root, {f"{home}/{name}": text for name, text in {"class": kind, "vendor": vendor, **files}.items()}
    )
    nodes.link(root, f"sys/bus/pci/devices/{address}", f"../../../{home.removeprefix('sys/')}")
    return home


def rdma(root: Path, name: str, address: str, kind: str = "0x020700", **changed: str) -> None:
    """An RDMA device with a port on a PCI function."""
    home = function(root, address, kind)
    nodes.port(root, name, **changed)  # type: ignore[arg-type]
    nodes.link(root, f"sys/class/infiniband/{name}/device", f"../../../{home.removeprefix('sys/')}")


def netdev(root: Path, name: str, home: str, carrier: str = "1", **files: str) -> None:
    """A network interface whose device is in that folder, "" for a virtual one."""
    nodes.nic(root, name, pci="", carrier=carrier, speed="100000" if carrier == "1" else "-1")
    nodes.write(root, {f"sys/class/net/{name}/{file}": text for file, text in files.items()})
    if home:
        nodes.write(root, {f"{home}/vendor": "0x15b3"})
        nodes.link(root, f"sys/class/net/{name}/device", f"../../../{home.removeprefix('sys/')}")


def virtual(root: Path) -> None:
    """What every cluster's node has besides: nothing of it is hardware."""
    for name, kind in (("lo", "772"), ("docker0", "1"), ("veth7a1", "1"), ("br-ex", "1"), ("bond0", "1"),
                       ("eth0.100", "1"), ("wg0", "65534"), ("ib0", "32"), ("ib0.8001", "32")):  # fmt: skip
        netdev(root, name, "", carrier="0", type=kind)


def hgx(root: Path) -> None:
    """HGX with ConnectX-7: eight compute ports, a storage adapter of which one plug is used, SR-IOV, unused
    on-board Ethernet, a port that is switched off, the board controller's own over USB."""
    virtual(root)
    for number in range(8):
        rdma(root, f"mlx5_{number}", f"0000:{number}a:00.0")
    rdma(root, "mlx5_8", "0000:90:00.0", rate="200 Gb/sec (4X HDR)")
    rdma(root, "mlx5_9", "0000:90:00.1", state="1: DOWN", phys="2: Polling", rate="10 Gb/sec (4X SDR)")
    rdma(root, "mlx5_10", "0000:91:00.0", state="1: DOWN", phys="3: Disabled")
    for number in range(16):  # Documentation/ABI/testing/sysfs-bus-pci: physfn
        home = function(
            root, f"0000:92:01.{number % 8}" if number < 8 else f"0000:92:02.{number % 8}", "0x020000"
        )
        nodes.link(root, f"{home}/physfn", "../0000:92:00.0")
        netdev(root, f"ens9v{number}", home, carrier="0")
    netdev(root, "eno1", function(root, "0000:01:00.0", "0x020000", "0x8086"))
    netdev(root, "eno2", function(root, "0000:01:00.1", "0x020000", "0x8086"), carrier="0")
    nodes.write(root, {"sys/devices/usb1/1-1/x": "1"})
    netdev(root, "enxb03af2b6059f", "sys/devices/usb1/1-1")
    nodes.link(root, "sys/devices/usb1/1-1/subsystem", "../../../bus/usb")


def switchdev(root: Path) -> None:
    """mlx5 in switchdev mode (Documentation/networking/switchdev.rst): representors share the function."""
    home = function(root, "0000:08:00.0", "0x020000")
    netdev(root, "enp8s0f0np0", home, phys_port_name="p0")
    for name in ("pf0vf0", "pf0vf1", "c1pf0vf2", "pf0sf88", "pf0hpf", "p0pf0vf3"):
        netdev(root, f"r{name}", home, carrier="0", phys_port_name=name)
    part = "sys/devices/pci0000:08/0000:08:00.0/mlx5_core.sf.4"
    nodes.write(root, {f"{part}/uevent": "x"})
    nodes.link(root, f"{part}/subsystem", "../../../../bus/auxiliary")
    nodes.port(root, "mlx5_2", state="1: DOWN", phys="3: Disabled")
    nodes.port(root, "mlx5_3", state="1: DOWN", phys="2: Polling")
    nodes.link(root, "sys/class/infiniband/mlx5_3/device", f"../../../{part.removeprefix('sys/')}")


def efa(root: Path) -> None:
    """AWS p5: efa_verbs.c tells neither link layer ("Unknown") nor counters."""
    for number in range(4):
        nodes.port(root, f"rdmap{number}s0", rate="100 Gb/sec (4X EDR)", layer="Unknown")
        home = function(root, f"0000:{number}f:00.0", "0x020000", "0x1d0f")
        nodes.link(
            root, f"sys/class/infiniband/rdmap{number}s0/device", f"../../../{home.removeprefix('sys/')}"
        )
    netdev(root, "enp71s0", function(root, "0000:47:00.0", "0x020000", "0x1d0f"))


def azure(root: Path) -> None:
    """Azure ND: Hyper-V's own port, the accelerated one below it (netvsc_drv.c), InfiniBand in domains of
    their own, without physfn."""
    for number in range(2):
        rdma(root, f"mlx5_ib{number}", f"010{number + 1}:00:00.0")
    rdma(root, "mlx5_an0", "b2f6:00:02.0", "0x020000", layer="Ethernet")
    nodes.write(root, {"sys/devices/LNXSYSTM:00/VMBUS:01/6045bd0d-aaaa/vendor": "0x1414"})
    netdev(root, "eth0", "sys/devices/LNXSYSTM:00/VMBUS:01/6045bd0d-aaaa")
    netdev(root, "enP45814s1", "sys/devices/pcib2f6:00/b2f6:00:02.0")
    nodes.link(root, "sys/class/net/enP45814s1/master", "../eth0")


def gcp(root: Path) -> None:
    """GCP: gVNICs, and a virtio port, whose device is not the PCI function but what is on it."""
    for number in range(2):
        netdev(root, f"enp{number}s0", function(root, f"0000:0{number}:00.0", "0x020000", "0x1ae0"))
    home = function(root, "0000:04:00.0", "0x020000", "0x1af4")
    netdev(root, "ens4", f"{home}/virtio1")


def oracle(root: Path) -> None:
    """RoCE on bare metal: ports with VLANs on them, two others in a bond, an old card of class 0x0280."""
    for number in range(4):
        rdma(root, f"mlx5_{number}", f"0000:1{number}:00.0", "0x020000", layer="Ethernet")
        netdev(root, f"rdma{number}", f"sys/devices/pci0000:1{number}/0000:1{number}:00.0")
        netdev(root, f"rdma{number}.100", "")
    netdev(root, "bond0", "")
    for name in ("rdma2", "rdma3"):
        nodes.write(root, {f"sys/class/net/{name}/bonding_slave/state": "active"})
        nodes.link(root, f"sys/class/net/{name}/master", "../bond0")
    netdev(root, "ens5", function(root, "0000:50:00.0", "0x028000"))


def omnipath(root: Path) -> None:
    """hfi1: InfiniBand to sysfs; its interface is IPoIB's."""
    rdma(root, "hfi1_0", "0000:5e:00.0", "0x020800", rate="100 Gb/sec (4X EDR)")
    netdev(root, "ib0", "sys/devices/pci0000:5e/0000:5e:00.0", type="32")


def workstation(root: Path) -> None:
    """A GeForce (VGA) among what a desk has: Wi-Fi, a board without EDAC."""
    files = {"current_link_width": "16", "current_link_speed": "16.0 GT/s PCIe", "max_link_width": "16"}
    function(root, "0000:01:00.0", "0x030000", "0x10de", **files, max_link_speed="16.0 GT/s PCIe")
    netdev(root, "eno1", function(root, "0000:02:00.0", "0x020000", "0x8086"))
    netdev(root, "wlp3s0", function(root, "0000:03:00.0", "0x028000", "0x8086"))
    nodes.write(root, {"sys/class/net/wlp3s0/phy80211/index": "0"})


def ram(root: Path, gib: int, kept: int = 0) -> None:
    kib = (gib - kept) * GIB
    nodes.write(root, {"proc/meminfo": f"MemTotal:       {kib} kB\nMemFree:        1024 kB"})
    nodes.write(root, {"sys/kernel/kexec_crash_size": str(kept << 30)})


def small(root: Path) -> None:
    ram(root, 32)


def grace(root: Path, online: bool = True) -> None:
    """GH200 (Documentation/ABI/stable/sysfs-devices-node; nv-procfs.c): the GPU's memory is a NUMA node of
    its own while the driver is loaded."""
    ram(root, 480 + 96 * online)
    for number, gib, processors in ((0, 480, "0-71"), (1, 96 * online, "")):
        folder = f"sys/devices/system/node/node{number}"
        text = f"Node {number} MemTotal:       {gib * GIB} kB\nNode {number} MemFree:  1 kB"
        nodes.write(root, {f"{folder}/meminfo": text, f"{folder}/cpulist": processors})
    if online:
        nodes.write(root, {"proc/driver/nvidia/gpus/0009:01:00.0/numa_status": "Node: 1\nStatus: online"})


def disks(root: Path) -> None:
    """What is full or read-only by nature, and what is not."""
    mounts = (
        "/dev/mapper/vg-root / ext4 rw 0 0", "/dev/mapper/vg-data /data xfs rw 0 0",
        "/dev/mapper/usr /usr ext4 ro 0 0", "/dev/loop0 /snap/core squashfs ro 0 0",
        "/dev/sr0 /mnt iso9660 ro 0 0", "overlay / overlay rw 0 0", "fs1:/home /home nfs4 rw 0 0",
        "tmpfs /dev/shm tmpfs rw 0 0", "/dev/md0 /scratch ext4 rw 0 0",
        "/dev/nvme0n1p1 /boot/efi vfat ro 0 0",
    )  # fmt: skip
    nodes.write(root, {"proc/1/mounts": "\n".join(mounts)})
    full = "\n".join(f"{mount} 100 0 100 0" for mount in ("/snap/core", "/mnt", "/dev/shm", "/home"))
    nodes.write(root, {"statvfs": f"{full}\n/ 100 50 100 50\n/data 100 50 0 0\n/scratch 100 4 100 90"})
    for name, kernel in (("vg-root", "dm-0"), ("vg-data", "dm-1"), ("usr", "dm-2")):
        nodes.link(root, f"dev/mapper/{name}", f"../{kernel}")


MACHINES = {
    made.__name__: made
    for made in (hgx, switchdev, efa, azure, gcp, oracle, omnipath, workstation, small, grace, disks)
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_healthy_machine_shows_nothing(name: str, tmp_path: Path) -> None:
    MACHINES[name](tmp_path)
    watch = Watch(tmp_path)
    assert watch.look(10) == set()
    watch.reboot()
    assert watch.look(10) == set()


# -- boards, and what they and their drivers do not tell (nvml.h; docs.nvidia.com/deploy/nvml-api) ----------

NOT_SUPPORTED, NO_FUNCTION = 3, 13  # NVML_ERROR_NOT_SUPPORTED, _FUNCTION_NOT_FOUND
# not there before R510, R525, R535, R545, R565, R575: to a driver of series 470 all of them are unknown
LATER = (
    *("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGpuFabricInfo"),
    *(
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetMarginTemperature",
    ),
    *("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetSramEccErrorStatus"),
)
# of a GeForce, a K80 or a slice of a vGPU
LACKING = (
    *(
        "EccMode",
        "MigMode",
        "NvLinkState",
        "FanSpeed",
        "MinorNumber",
        "Serial",
        "ViolationStatus",
        "VbiosVersion",
    ),
    *("TemperatureThreshold", "MarginTemperature", "Temperature", "PersistenceMode", "PerformanceState"),
    *("CurrentClocksEventReasons", "CurrentClocksThrottleReasons", "UtilizationRates", "GpuFabricInfoV"),
    *(
        "CurrPcieLinkGeneration",
        "CurrPcieLinkWidth",
        "MaxPcieLinkGeneration",
        "MaxPcieLinkWidth",
        "FieldValues",
    ),
    *("SramEccErrorStatus", "GpuFabricInfo", "MemoryInfo_v2", "ComputeRunningProcesses_v3"),
)
BOARDS = {
    "H100": [],
    "series 470": [f"fail {call} -1 {NO_FUNCTION}" for call in LATER],
    "nothing told": [f"fail nvmlDeviceGet{call} -1 {NOT_SUPPORTED}" for call in LACKING],
    "MIG": ["set 0 mig 1", "set 0 nvlinks-down 262143", "set 1 mig 1"],
    "power cap": ["set 0 throttle 4", "set 0 utilization 100", "set 1 throttle 4"],  # SW_POWER_CAP
    "idle": [
        "set 0 link-gen 1",
        "set 0 link-width 8",
        "set 0 pstate 8",
        "set 1 link-gen 1",
        "set 1 pstate 8",
    ],
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler for the fake NVML")
    return str(build(tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"))


def gpus(root: Path, library: str, *chapters: list[str]) -> list[Shape]:
    """What is found of two boards at the end of each chapter, which is five looks, a minute between two."""
    rows = [f"gpu {n} 0000:{n + 1}8:00.0 GPU-{n} 165{n} {n} NVIDIA Board" for n in range(2)]
    for number in range(2):
        nodes.gpu(root, f"0000:{number + 1}8:00.0")
    worker, known, memory = Worker(Host(root), library), begin(Baseline(), "boot"), rules.begin(None, "boot")
    shapes, now = [], 0.0
    try:
        for lines in chapters:
            (root / "nvml.new").write_text("\n".join(["driver 470.1", *rows, *lines, "end", ""]))
            (root / "nvml.new").replace(root / "nvml")
            for _ in range(5):
                worker.ask(time.monotonic())
                select.select([worker.fileno()], [], [], 20)
                report = worker.answer(time.monotonic())
                assert report is not None
                assert report.error == ""
                now += 60
                found, memory = rules.judge(BOOK, expect(known, Expectations(), report), memory, now)
                known, _ = learn(known, report)
            shapes.append({(one.code, one.device, str(one.severity)) for one in found})
    finally:
        worker.stop()
    assert len(known.gpus) == 2
    return shapes


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_that_tells_little_tells_that_it_is_lost(
    name: str, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(tmp_path / "nvml"))
    said = gpus(tmp_path, library, BOARDS[name], [*BOARDS[name], "set 1 lost 1"])
    assert said == [set(), {("GPU_MISSING", "0000:28:00.0", "critical")}]


# -- what changes on healthy ones, and is no fault -----------------------------------------


def unloaded(root: Path) -> None:
    (root / "proc/driver/nvidia/gpus/0009:01:00.0/numa_status").unlink()
    grace(root, online=False)


def renumbered(root: Path) -> None:
    """The same file systems, found in another order: the one that is read-only has another's name."""
    for name, kernel in (("vg-root", "dm-1"), ("vg-data", "dm-2"), ("usr", "dm-0")):
        nodes.link(root, f"dev/mapper/{name}", f"../{kernel}")


def rests(root: Path) -> None:
    function(
        root, "0000:01:00.0", "0x030000", "0x10de", current_link_width="8", current_link_speed="2.5 GT/s PCIe"
    )


def carried_away(root: Path) -> None:
    """Wi-Fi out of reach."""
    netdev(root, "wlp3s0", "", carrier="0")


def moved(root: Path) -> None:
    """Its host gave the machine another accelerated port, in another domain."""
    gone(root, "sys/class/net/enP45814s1", "sys/bus/pci/devices/b2f6:00:02.0")
    netdev(root, "enP9001s1", function(root, "2329:00:02.0", "0x020000"))
    nodes.link(root, "sys/class/net/enP9001s1/master", "../eth0")


def contained(interface: str) -> Callable[[Path], None]:
    def given(root: Path) -> None:
        """To a container: its network name space has the interface, the PCI bus still has the function."""
        (root / f"sys/class/net/{interface}").rename(root / f"away-{interface}")

    return given


@pytest.mark.parametrize(
    ("machine", "change"),
    [
        (small, lambda root: ram(root, 32, kept=1)),
        (grace, unloaded),
        (disks, renumbered),
        (workstation, rests),
        (workstation, carried_away),
        (gcp, contained("ens4")),
        (oracle, contained("ens5")),
        (azure, contained("eth0")),
        (azure, moved),
    ],
    ids=[
        "crashkernel",
        "driver unloaded",
        "disks renumbered",
        "gpu rests",
        "wifi",
        "virtio",
        "mlx4",
        "hyper-v",
        "another accelerated port",
    ],
)
def test_what_is_no_fault(
    machine: Callable[[Path], None], change: Callable[[Path], None], tmp_path: Path
) -> None:
    machine(tmp_path)
    watch = Watch(tmp_path)
    assert watch.look(3) == set()
    change(tmp_path)
    watch.reboot()
    assert watch.look(10) == set()


# -- what breaks ---------------------------------------------------------------------------


def gone(root: Path, *folders: str) -> None:
    for number, folder in enumerate(folders):
        (root / folder).rename(root / f"gone{number}")


@pytest.mark.parametrize(
    ("machine", "fault", "found"),
    [
        (
            hgx,
            lambda root: nodes.port(root, "mlx5_8", state="1: DOWN", phys="2: Polling"),
            {("IB_PORT_DOWN", "mlx5_8/1", "critical"), ("IB_PORT_DOWN", "mlx5_9/1", "warning")},
        ),
        (
            efa,
            lambda root: gone(root, "sys/class/infiniband/rdmap2s0"),
            {("IB_DEVICE_MISSING", "rdmap2s0/1", "critical")},
        ),
        (
            efa,
            lambda root: nodes.port(root, "rdmap1s0", state="1: DOWN", phys="3: Disabled", layer="Unknown"),
            {("IB_PORT_DOWN", "rdmap1s0/1", "critical")},
        ),
        (
            azure,
            lambda root: nodes.port(root, "mlx5_ib1", state="1: DOWN", phys="2: Polling"),
            {("IB_PORT_DOWN", "mlx5_ib1/1", "critical")},
        ),
        (azure, lambda root: netdev(root, "eth0", "", carrier="0"), {("NIC_DOWN", "eth0", "critical")}),
        (
            azure,
            lambda root: gone(root, "sys/class/net/enP45814s1", "sys/bus/pci/devices/b2f6:00:02.0"),
            {("NIC_DOWN", "enP45814s1", "warning")},
        ),
        (gcp, lambda root: netdev(root, "ens4", "", carrier="0"), {("NIC_DOWN", "ens4", "critical")}),
        (
            gcp,
            lambda root: gone(root, "sys/class/net/ens4", "sys/bus/pci/devices/0000:04:00.0"),
            {("NIC_MISSING", "ens4", "critical")},
        ),
        (oracle, lambda root: netdev(root, "rdma0", "", carrier="0"), {("NIC_DOWN", "rdma0", "critical")}),
        (oracle, lambda root: netdev(root, "rdma3", "", carrier="0"), {("NIC_DOWN", "rdma3", "warning")}),
        (
            omnipath,
            lambda root: nodes.port(root, "hfi1_0", state="1: DOWN", phys="9: <unknown>"),
            {("IB_PORT_DOWN", "hfi1_0/1", "critical")},
        ),
        (
            switchdev,
            lambda root: netdev(root, "enp8s0f0np0", "", carrier="0"),
            {("NIC_DOWN", "enp8s0f0np0", "critical")},
        ),
        (small, lambda root: ram(root, 24), {("MEM_MISSING", "", "critical")}),
        (grace, lambda root: ram(root, 560), {("MEM_MISSING", "", "critical")}),
        (
            disks,
            lambda root: nodes.write(root, {"proc/1/mounts": "/dev/mapper/vg-data /data xfs ro 0 0"}),
            {("DISK_READ_ONLY", "dm-1", "critical")},
        ),
    ],
)  # fmt: skip
def test_a_fault_of_that_machine(
    machine: Callable[[Path], None], fault: Callable[[Path], None], found: Shape, tmp_path: Path
) -> None:
    machine(tmp_path)
    watch = Watch(tmp_path)
    assert watch.look(3) == set()
    fault(tmp_path)
    assert watch.look(5) == found
