"""The fake machine is shaped as a real one, and its faults are seen through the unmodified NVML bindings."""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pynvml
import pytest

from slurm_health.sandbox import SandboxError
from slurm_health.sandbox.cluster import Sandbox
from slurm_health.sandbox.faults import FAULTS
from slurm_health.sandbox.hardware import Machine
from slurm_health.sandbox.library import build
from slurm_health.sandbox.processes import job_processes

RECORD = re.compile(r"(\d+),(\d+),(\d+),-;(.*)")


@pytest.fixture
def machine(tmp_path):
    return Machine.build(tmp_path / "hardware", "n1")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler")
    return build(tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1")


@pytest.fixture
def nvml(machine, library, monkeypatch):
    """pynvml as it is, with its library handle pointing to ours."""
    monkeypatch.setenv("SLURM_HEALTH_FAKE_NVML", str(machine.folder / "nvml"))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    pynvml.nvmlInit()
    yield pynvml
    (machine.folder / "nvml").write_text("init 0\nend\n")
    pynvml.nvmlShutdown()


def read(machine, name):
    return (machine.folder / name).read_text().strip()


def records(machine):
    """(prefix, sequence, microseconds, text) of each record in dev/kmsg."""
    lines = (machine.folder / "dev/kmsg").read_text().splitlines()
    found = [RECORD.fullmatch(line) for line in lines if not line.startswith(" ")]
    assert all(found), lines
    return [(int(m[1]), int(m[2]), int(m[3]), m[4]) for m in found]


# -- the tree


def test_gpus_are_on_the_pci_bus_with_their_driver(machine):
    bus = machine.folder / "sys/bus/pci/devices"
    gpus = [
        d.name
        for d in sorted(bus.iterdir())
        if (d / "vendor").read_text() == "0x10de\n" and (d / "class").read_text().startswith("0x03")
    ]
    assert gpus == [f"0000:{bus}:00.0" for bus in ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db")]
    assert (bus / gpus[0] / "driver").resolve().name == "nvidia"
    assert read(machine, f"sys/bus/pci/devices/{gpus[0]}/current_link_width") == "16"


def test_infiniband_ports_look_healthy_and_belong_to_a_pci_device(machine):
    devices = sorted((machine.folder / "sys/class/infiniband").iterdir())
    assert [device.name for device in devices] == [f"mlx5_{n}" for n in range(8)]
    for device in devices:
        port = device / "ports/1"
        assert (port / "state").read_text() == "4: ACTIVE\n"
        assert (port / "phys_state").read_text() == "5: LinkUp\n"
        assert (port / "rate").read_text() == "400 Gb/sec (4X NDR)\n"
        assert (port / "link_layer").read_text() == "InfiniBand\n"
        assert (device / "device/vendor").read_text() == "0x15b3\n"
        assert (port / "counters/link_downed").read_text() == "0\n"


def test_only_physical_ports_have_a_device(machine):
    nets = machine.folder / "sys/class/net"
    assert all(net.is_symlink() for net in nets.iterdir())
    physical = {net.name for net in nets.iterdir() if (net / "device").exists()}
    assert physical == {"eth0", "eth1", *(f"ib{n}" for n in range(8))}
    assert {"lo", "docker0", "veth3f2a1c0"} <= {net.name for net in nets.iterdir()}
    assert read(machine, "sys/class/net/eth0/speed") == "100000"
    assert read(machine, "sys/class/net/eth0/flags") == "0x1003"
    assert read(machine, "sys/class/net/ib0/carrier") == ""


def test_machines_differ_where_real_ones_do(tmp_path):
    one, two = (Machine.build(tmp_path / name, name) for name in ("n1", "n2"))
    for name in ("proc/sys/kernel/random/boot_id", "nvml"):
        assert read(one, name) != read(two, name)
    again = Machine.build(tmp_path / "again", "n1")
    assert read(one, "nvml") == read(again, "nvml")


def test_sizes(tmp_path):
    small = Machine.build(tmp_path / "small", "s", gpus=0, ports=0, nics=0)
    listed = (small.folder / "sys/bus/pci/devices").iterdir()
    assert sorted(path.name for path in listed) == ["0000:00:00.1", "0000:01:00.0"]  # a disk and its port
    big = Machine.build(tmp_path / "big", "b", gpus=16, ports=16, nics=8)
    assert len(list((big.folder / "sys/class/infiniband").iterdir())) == 16
    assert len(list((big.folder / "dev").glob("nvidia*"))) == 16
    with pytest.raises(SandboxError, match="33 gpus: a fake machine has 0 to 32"):
        Machine.build(tmp_path / "huge", "h", gpus=33)


def test_boot_log_is_innocent_and_has_dictionaries(machine):
    assert "\n SUBSYSTEM=pci\n" in (machine.folder / "dev/kmsg").read_text()
    assert [sequence for _, sequence, _, _ in records(machine)] == list(range(8))
    assert not any("Xid" in text for *_, text in records(machine))


# -- kernel-log faults


def test_xid_is_a_kernel_record_of_this_moment(machine):
    before, first = time.clock_gettime(time.CLOCK_MONOTONIC), len(records(machine))
    done = machine.inject("xid", gpu=3, code=79)
    after = time.clock_gettime(time.CLOCK_MONOTONIC)
    prefix, sequence, usec, text = records(machine)[first]
    assert (
        text == "NVRM: Xid (PCI:0000:5d:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    )
    assert prefix >> 3 == 0
    assert sequence == first
    assert before <= usec / 1e6 <= after
    assert records(machine)[first + 1][3] == "NVRM: GPU 0000:5d:00.0: GPU has fallen off the bus."
    assert abs(done["at"] - time.time()) < 60
    assert machine.faults() == [done]


def test_application_xid_names_a_process(machine):
    machine.inject("xid", gpu=0, code=43)
    assert (
        records(machine)[-1][3]
        == "NVRM: Xid (PCI:0000:18:00): 43, pid=2815167, name=pt_main_thread, Ch 00000008"
    )


def test_sxid(machine):
    first = len(records(machine))
    machine.inject("sxid", code=20034)
    assert records(machine)[first][3] == (
        "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
    )


def test_own_text_from_kernel_and_from_a_program(machine):
    machine.inject("kmsg", text="EXT4-fs error (device sda1)")
    machine.inject("user-kmsg", text="NVRM: Xid\n(PCI \\")
    assert [(prefix >> 3, text) for prefix, _, _, text in records(machine)[-2:]] == [
        (0, "EXT4-fs error (device sda1)"),
        (1, r"NVRM: Xid\x0a(PCI \x5c"),
    ]


def test_clear_appends_nothing_and_rewrites_nothing(machine):
    machine.inject("xid", gpu=1, code=48)
    before = read(machine, "dev/kmsg")
    assert machine.clear()["cleared"] == ["xid"]
    assert read(machine, "dev/kmsg") == before
    assert machine.faults() == []
    machine.inject("kmsg", text="next")
    sequences = [sequence for _, sequence, _, _ in records(machine)]
    assert sequences == list(range(len(sequences)))


# -- link faults


def port_of(machine):
    folder = machine.folder / "sys/class/infiniband/mlx5_2/ports/1"
    return [(folder / name).read_text().strip() for name in ("state", "phys_state", "rate", "lid")]


def net_of(machine):
    folder = machine.folder / "sys/class/net/eth1"
    return [
        (folder / name).read_text().strip() for name in ("operstate", "carrier", "speed", "carrier_changes")
    ]


def test_ib_faults(machine):
    healthy = port_of(machine)
    machine.inject("ib-slow", port=2)
    assert port_of(machine)[:3] == ["4: ACTIVE", "5: LinkUp", "200 Gb/sec (4X HDR)"]
    machine.inject("ib-down", port=2)
    assert port_of(machine) == ["1: DOWN", "2: Polling", "10 Gb/sec (4X SDR)", "0xffff"]
    assert read(machine, "sys/class/infiniband/mlx5_2/ports/1/counters/link_downed") == "1"
    machine.clear()
    assert port_of(machine) == healthy


def test_nic_faults(machine):
    machine.inject("nic-slow", port=1)
    assert net_of(machine) == ["up", "1", "10000", "2"]
    machine.inject("nic-down", port=1)
    assert net_of(machine) == ["down", "0", "-1", "3"]
    machine.clear()
    assert net_of(machine) == ["up", "1", "100000", "4"]


def test_files_are_replaced_whole(machine):
    """A reader that opened a file before the fault still reads the whole old text."""
    with (machine.folder / "sys/class/net/eth0/carrier").open() as carrier:
        machine.inject("nic-down", port=0)
        assert carrier.read() == "1\n"
    assert not list(machine.folder.rglob(".new*"))


# -- what cannot be


@pytest.mark.parametrize(
    ("fault", "told", "words"),
    [
        ("gpu-melt", {}, "there is no fault gpu-melt, there are: xid, sxid"),
        ("xid", {"gpu": 1}, "xid needs code"),
        ("gpu-lost", {"gpu": 8}, "no GPU 8 on n1, it has 0 to 7"),
        ("ib-down", {"port": -1}, "no port -1 on n1, for ib-down it has 0 to 7"),
        ("nic-down", {"port": 2}, "no port 2 on n1, for nic-down it has 0 to 1"),
    ],
)
def test_what_cannot_be_injected_is_said(machine, fault, told, words):
    before = [read(machine, name) for name in ("nvml", "dev/kmsg", "machine.json")]
    with pytest.raises(SandboxError, match=re.escape(words)):
        machine.inject(fault, **told)
    assert [read(machine, name) for name in ("nvml", "dev/kmsg", "machine.json")] == before


def test_what_is_gone_cannot_break_until_it_is_cleared(machine):
    for kind in ("ib", "nic"):
        machine.inject(f"{kind}-gone", port=1)
        with pytest.raises(SandboxError, match="port 1 of n1 is gone: clear n1 first"):
            machine.inject(f"{kind}-down", port=1)
        machine.inject(f"{kind}-down", port=0)
    machine.clear()
    assert read(machine, "sys/class/infiniband/mlx5_1/ports/1/state").strip() == "4: ACTIVE"
    assert read(machine, "sys/class/net/eth1/carrier").strip() == "1"


def test_a_stuck_task_and_used_up_process_numbers_show_together(machine):
    machine.inject("task-stuck", gpu=0)
    machine.inject("pids-full")
    assert read(machine, "proc/loadavg").split() == ["1.12", "0.10", "0.09", "2/4100000", "20411"]


def test_every_fault_can_be_injected_twice_and_cleared(machine):
    told = {"gpu": 1, "port": 1, "code": 79, "text": "nvmlDeviceGetName"}
    for name, fault in FAULTS.items():
        for _ in range(2):
            machine.inject(name, **{key: told[key] for key in fault.needs})
    assert machine.clear()["cleared"] == [name for name in FAULTS for _ in range(2)]
    assert json.loads(read(machine, "machine.json"))["faults"] == []


# -- NVML


def test_healthy_board_through_pynvml(nvml, machine):
    assert nvml.nvmlSystemGetDriverVersion() == "570.86.15"
    assert nvml.nvmlDeviceGetCount() == 8
    gpu = nvml.nvmlDeviceGetHandleByIndex(3)
    pci = nvml.nvmlDeviceGetPciInfo(gpu)
    assert (pci.busId, pci.busIdLegacy, pci.domain, pci.bus) == ("00000000:5D:00.0", "0000:5D:00.0", 0, 0x5D)
    uuid = nvml.nvmlDeviceGetUUID(gpu)
    assert f" 0000:5d:00.0 {uuid} {nvml.nvmlDeviceGetSerial(gpu)} 3 " in read(machine, "nvml")
    assert nvml.nvmlDeviceGetName(gpu) == "NVIDIA H100 80GB HBM3"
    assert nvml.nvmlDeviceGetMinorNumber(gpu) == nvml.nvmlDeviceGetIndex(gpu) == 3
    for again in (nvml.nvmlDeviceGetHandleByUUID(uuid), nvml.nvmlDeviceGetHandleByPciBusId("0000:5d:00.0")):
        assert nvml.nvmlDeviceGetUUID(again) == uuid
    assert nvml.nvmlDeviceGetEccMode(gpu) == [1, 1]
    for counter in (nvml.NVML_VOLATILE_ECC, nvml.NVML_AGGREGATE_ECC):
        assert nvml.nvmlDeviceGetTotalEccErrors(gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, counter) == 0
    assert nvml.nvmlDeviceGetRemappedRows(gpu) == (0, 0, 0, 0)
    assert nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU) == 34
    assert (
        nvml.nvmlDeviceGetMemoryInfo(gpu).total == nvml.nvmlDeviceGetMemoryInfo(gpu, nvml.nvmlMemory_v2).total
    )
    assert nvml.nvmlDeviceGetMigMode(gpu) == [0, 0]
    assert nvml.nvmlDeviceGetPersistenceMode(gpu) == 1
    assert nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu) == nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu) == 16
    assert nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu) == nvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu) == 5
    assert nvml.nvmlDeviceGetPcieReplayCounter(gpu) == 0
    assert nvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    assert nvml.nvmlDeviceGetNvLinkState(gpu, 17) == 1
    assert nvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 0
    assert nvml.nvmlDeviceGetPowerUsage(gpu) == 71500
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == 1
    assert nvml.nvmlDeviceGetVbiosVersion(gpu) == "96.00.89.00.01"
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetRetiredPages(gpu, 0)


def field(nvml, gpu, number):
    (value,) = nvml.nvmlDeviceGetFieldValues(gpu, [number])
    assert value.nvmlReturn == nvml.NVML_SUCCESS
    return (
        value.value.ullVal
        if value.valueType == nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
        else value.value.uiVal
    )


def test_ecc(nvml, machine):
    gpu = nvml.nvmlDeviceGetHandleByIndex(2)
    machine.inject("ecc", gpu=2)
    machine.inject("ecc", gpu=2)
    kind = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    assert nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, nvml.NVML_VOLATILE_ECC) == 2
    assert nvml.nvmlDeviceGetMemoryErrorCounter(gpu, kind, nvml.NVML_AGGREGATE_ECC, 2) == 2
    assert field(nvml, gpu, nvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL) == 2
    other = nvml.nvmlDeviceGetHandleByIndex(1)
    assert nvml.nvmlDeviceGetTotalEccErrors(other, kind, nvml.NVML_VOLATILE_ECC) == 0


def test_remapping_and_recovery_action(nvml, machine):
    gpu = nvml.nvmlDeviceGetHandleByIndex(5)
    machine.inject("remap-pending", gpu=5)
    assert nvml.nvmlDeviceGetRemappedRows(gpu) == (0, 1, 1, 0)
    machine.inject("remap-failed", gpu=5)
    assert nvml.nvmlDeviceGetRemappedRows(gpu)[3] == 1
    assert field(nvml, gpu, nvml.NVML_FI_DEV_REMAPPED_FAILURE) == 1
    machine.inject("recovery-action", gpu=5)
    action = nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    assert field(nvml, gpu, action) == nvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET
    machine.clear()
    assert nvml.nvmlDeviceGetRemappedRows(gpu) == (0, 0, 0, 0)
    assert field(nvml, gpu, action) == 0
    (unknown,) = nvml.nvmlDeviceGetFieldValues(gpu, [9999])
    assert unknown.nvmlReturn == nvml.NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize("fault", ["gpu-lost", "gpu-off-bus"])
def test_lost_gpu_is_counted_but_does_not_answer(nvml, machine, fault):
    gpu, neighbour = (nvml.nvmlDeviceGetHandleByIndex(n) for n in (3, 4))
    machine.inject(fault, gpu=3)
    assert nvml.nvmlDeviceGetCount() == 8
    for call in (
        lambda: nvml.nvmlDeviceGetHandleByIndex(3),
        lambda: nvml.nvmlDeviceGetUUID(gpu),
        lambda: nvml.nvmlDeviceGetRemappedRows(gpu),
    ):
        with pytest.raises(nvml.NVMLError_GpuIsLost):
            call()
    assert nvml.nvmlDeviceGetMinorNumber(neighbour) == 4
    assert any("79" in text for *_, text in records(machine)) == (fault == "gpu-off-bus")
    machine.clear()
    assert nvml.nvmlDeviceGetMinorNumber(gpu) == 3


def test_gone_gpu_shifts_the_indices(nvml, machine):
    uuids = [nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(n)) for n in range(8)]
    machine.inject("gpu-gone", gpu=3)
    assert nvml.nvmlDeviceGetCount() == 7
    left = [nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(n)) for n in range(7)]
    assert left == uuids[:3] + uuids[4:]
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(7)
    assert not (machine.folder / "sys/bus/pci/devices/0000:5d:00.0").exists()
    machine.clear()
    assert nvml.nvmlDeviceGetCount() == 8
    assert (machine.folder / "sys/bus/pci/devices/0000:5d:00.0/vendor").exists()


def test_failed_driver(nvml, machine):
    machine.inject("driver-failed")
    with pytest.raises(nvml.NVMLError_DriverNotLoaded):
        nvml.nvmlDeviceGetCount()
    nvml.nvmlShutdown()
    with pytest.raises(nvml.NVMLError_DriverNotLoaded):
        nvml.nvmlInit()
    machine.clear()
    nvml.nvmlInit()
    assert nvml.nvmlDeviceGetCount() == 8
    machine.inject("driver-failed", code=18)
    with pytest.raises(nvml.NVMLError_LibRmVersionMismatch):
        nvml.nvmlDeviceGetCount()


def test_one_call_fails(nvml, machine):
    machine.inject("nvml-error", text="nvmlDeviceGetRemappedRows", code=999, gpu=1)
    with pytest.raises(nvml.NVMLError_Unknown):
        nvml.nvmlDeviceGetRemappedRows(nvml.nvmlDeviceGetHandleByIndex(1))
    nvml.nvmlDeviceGetRemappedRows(nvml.nvmlDeviceGetHandleByIndex(2))
    nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(1))


def test_calls_before_init_and_after_shutdown_are_refused(nvml):
    nvml.nvmlShutdown()
    with pytest.raises(nvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetCount()
    nvml.nvmlInit()


@pytest.mark.parametrize("cut", [0, 20, -1, -4, -5])
def test_torn_state_file_changes_nothing(nvml, machine, cut):
    assert nvml.nvmlDeviceGetCount() == 8
    state = machine.folder / "nvml"
    whole = state.read_text()
    state.write_text(whole.replace("init 0", "init 9").replace("0000:18", "0000:99")[:cut])
    if cut == -1:  # only the last newline is missing: that is whole
        whole = whole.replace("0000:18", "0000:99")
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    assert f" {nvml.nvmlDeviceGetPciInfo(gpu).busId[4:12].lower()}" in whole
    state.unlink()
    assert nvml.nvmlDeviceGetCount() == 8


def test_garbage_in_the_state_file_is_survived(nvml, machine):
    state = machine.folder / "nvml"
    state.write_text("gpu 99 a b c 1 d\nset 77 lost 1\nset -3 lost 1\ngpu\n" + "x" * 5000 + "\nend\n")
    assert nvml.nvmlDeviceGetCount() == 0


SCRIPT = """
import pynvml, sys
pynvml.nvmlInit()
print(pynvml.nvmlDeviceGetCount(), flush=True)
sys.stdin.readline()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
print("handle", flush=True)
pynvml.nvmlDeviceGetRemappedRows(handle)
print("rows", flush=True)
"""


@pytest.fixture
def client(machine, library):
    """A process that finds our library as it would find NVIDIA's: by its name alone."""
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library.parent),
        "SLURM_HEALTH_FAKE_NVML": str(machine.folder / "nvml"),
    }
    argv = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "8\n"
        yield process
        process.kill()


def test_hang_holds_until_it_is_cleared(client, machine):
    machine.inject("driver-hang")
    client.stdin.write("go\n")
    client.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(0.3)
    machine.clear()
    assert client.stdout.read() == "handle\nrows\n"
    assert client.wait(10) == 0


def test_hang_of_one_call_lets_the_others_through(client, machine):
    machine.inject("driver-hang", text="nvmlDeviceGetRemappedRows")
    client.stdin.write("go\n")
    client.stdin.flush()
    assert client.stdout.readline() == "handle\n"
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(0.3)
    client.send_signal(signal.SIGTERM)
    assert client.wait(10) == -signal.SIGTERM


def test_without_a_state_file_there_is_no_driver(library, tmp_path):
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library.parent),
        "SLURM_HEALTH_FAKE_NVML": str(tmp_path / "absent"),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "NVMLError_DriverNotLoaded" in done.stderr


def test_compiler_errors_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="gcc libc6-dev"):
        build(tmp_path / "lib.so")


# -- this host as the machine (docker/)


@pytest.fixture
def fake_host():
    """A short path: sockets live in a sandbox's folder."""
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as folder:
        box = Sandbox(Path(folder) / "fake")
        box.become_machine(gpus=0, ports=1, nics=1)
        yield box, socket.gethostname().split(".")[0]


def test_a_host_can_be_the_machine(fake_host):
    box, name = fake_host
    assert box.env()["SLURM_HEALTH_SANDBOX"] == str(box.folder)
    assert "SLURM_CONF" not in box.env()  # Slurm was set up as anywhere
    assert box.inject(name, "ib-down", port=0)["node"] == name
    assert [fault["fault"] for fault in box.machine(name).faults()] == ["ib-down"]
    with pytest.raises(SandboxError, match="there is no node elsewhere"):
        box.inject("elsewhere", "ib-down", port=0)


def test_a_host_that_is_switched_on_again_is_healthy(fake_host):
    box, name = fake_host
    box.inject(name, "ib-down", port=0)
    boot = box.layout.hardware(name) / "proc/sys/kernel/random/boot_id"
    before = boot.read_text()
    box.become_machine(gpus=0, ports=1, nics=1)
    assert box.machine(name).faults() == []
    assert boot.read_text() != before


def test_on_a_whole_host_every_jobs_process_is_found(fake_host):
    """Only listed here: other sandboxes' jobs may run on this machine."""
    box, name = fake_host
    with subprocess.Popen(["sleep", "100"], env={"SLURM_JOB_ID": "1"}) as job:
        try:
            assert job.pid in job_processes(box.layout, name, whole_host=True)
            assert job.pid not in job_processes(box.layout, name)
        finally:
            job.kill()
