"""One look at a machine."""

import errno
import json
import os
import time
from pathlib import Path

import nodes
import pytest

from slurm_health import rules
from slurm_health.baseline import Expectations
from slurm_health.host import Host
from slurm_health.probes.gpu import Worker
from slurm_health.scan import scan

BOOK = rules.load()
NOTHING = Expectations()
NO_LIBRARY = "/nowhere/libnvidia-ml.so.1"
XID = "4,1,1,-;NVRM: Xid (PCI:0000:3b:00): {}, pid=1, name=p, x\n"


def kmsg(root: Path, text: str) -> None:
    nodes.write(root, {"dev/kmsg": "", "proc/sys/kernel/random/boot_id": "b"})
    (root / "dev/kmsg").write_text(text)


def test_a_machine_with_nothing(tmp_path: Path) -> None:
    result = scan(Host(tmp_path), NOTHING, BOOK, NO_LIBRARY)
    assert result.verdict == "ok"
    assert result.findings == ()
    text = result.text()
    for line in (
        "GPUs: none on PCI",
        "InfiniBand: no devices",
        "Network: no physical ports",
        "kernel log: not read (No such file or directory)",
    ):
        assert line in text


def test_the_contract_of_json(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_0", state="1: DOWN", pci="0000:18:00.0")
    nodes.nic(tmp_path, "eth0")
    kmsg(tmp_path, XID.format(79))
    result = json.loads(json.dumps(scan(Host(tmp_path), Expectations(ib_ports=1), BOOK, NO_LIBRARY).json()))
    assert set(result) == {"node", "verdict", "findings", "reports"}
    assert result["verdict"] == "critical"
    assert [(one["code"], one["severity"], one["device"]) for one in result["findings"]] == [
        ("GPU_XID_79", "critical", "0000:3b:00.0"),
        ("IB_PORT_DOWN", "critical", "mlx5_0/1"),
    ]
    keys = {"code", "severity", "device", "text", "evidence", "hardware"}
    assert all(set(one) == keys for one in result["findings"])
    assert result["findings"][1]["hardware"] == {"hca": "mlx5_0", "port": 1, "pci": "0000:18:00.0"}
    probes = ["kernel", "gpu", "infiniband", "nic", "disk", "memory", "pcie", "system"]
    assert [one["probe"] for one in result["reports"]] == probes
    assert all(set(one) == {"probe", "seconds", "readings", "error"} for one in result["reports"])


def test_an_application_error_is_a_warning(tmp_path: Path) -> None:
    kmsg(tmp_path, XID.format(31) * 3)
    result = scan(Host(tmp_path), NOTHING, BOOK, NO_LIBRARY)
    assert (result.verdict, [one.code for one in result.findings]) == ("warning", ["GPU_XID_31"])


def test_a_failed_driver_is_asked_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.gpu(tmp_path, "0000:18:00.0")
    asked: list[float] = []
    really = Worker.ask

    def ask(self: Worker, now: float) -> None:
        asked.append(now)
        really(self, now)

    monkeypatch.setattr(Worker, "ask", ask)
    result = scan(Host(tmp_path), NOTHING, BOOK, NO_LIBRARY)
    assert len(asked) == 3
    assert [one.code for one in result.findings] == ["GPU_DRIVER_FAILED"]
    assert result.verdict == "critical"


def test_gpus_that_are_somebody_elses_leave_the_verdict_unknown(tmp_path: Path) -> None:
    nodes.gpu(tmp_path, "0000:18:00.0", driver="vfio-pci")
    result = scan(Host(tmp_path), NOTHING, BOOK, NO_LIBRARY)
    assert (result.verdict, result.findings) == ("unknown", ())
    assert "1 on PCI, not bound to NVIDIA's driver" in result.text()


def test_gpus_that_are_expected_and_not_there(tmp_path: Path) -> None:
    result = scan(Host(tmp_path), Expectations(gpus=8), BOOK, NO_LIBRARY)
    assert [one.code for one in result.findings] == ["GPU_DRIVER_FAILED"]


def test_a_port_below_the_configured_rate(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_0", rate="100 Gb/sec (4X EDR)")
    assert scan(Host(tmp_path), NOTHING, BOOK, NO_LIBRARY).verdict == "ok"
    assert scan(Host(tmp_path), Expectations(ib_gbps=200), BOOK, NO_LIBRARY).verdict == "critical"


def test_a_port_that_was_never_up_and_a_nic_without_a_link(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_0", state="1: DOWN", phys="2: Polling")
    nodes.nic(tmp_path, "eth0", carrier="0", speed="-1")
    result = scan(Host(tmp_path), NOTHING, BOOK, NO_LIBRARY)
    assert (result.verdict, [one.code for one in result.findings]) == ("warning", ["IB_PORT_DOWN"])


def test_a_log_that_may_not_be_read_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kmsg(tmp_path, XID.format(79))
    really = os.open

    def refuse(path: str, *rest: int, **more: int) -> int:
        if str(path).endswith("dev/kmsg"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)  # dmesg_restrict
        return really(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    result = scan(Host(tmp_path), NOTHING, BOOK, NO_LIBRARY)
    assert result.verdict == "ok"
    assert "not readable as this user (run as root to include it)" in result.text()


def test_this_machine_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_HEALTH_NVML_LIBRARY", raising=False)
    began = time.monotonic()
    result = scan(Host(), NOTHING, BOOK)
    assert time.monotonic() - began < 12
    assert result.verdict in ("ok", "warning", "critical", "unknown")
    assert result.text()
