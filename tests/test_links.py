"""InfiniBand and Ethernet ports: what is read, what is left out, what it means beside the baseline."""

import shutil
from pathlib import Path

import nodes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_health import rules
from slurm_health.baseline import Baseline, Expectations, begin, expect, learn
from slurm_health.host import Host
from slurm_health.model import Reading, Report, Value
from slurm_health.probes.infiniband import InfiniBand, _rate, _word
from slurm_health.probes.nic import Nic
from slurm_health.scan import scan

Facts = dict[tuple[str, str], Value]
NOTHING = Expectations()


def read(root: Path) -> Facts:
    return facts((*InfiniBand(Host(root)).look(), *Nic(Host(root)).look()))


def facts(readings: tuple[Reading, ...]) -> Facts:
    return {(one.name, one.device): one.value for one in readings}


def report(root: Path, probe: str, fast: bool = False) -> Report:
    ports = {"infiniband": InfiniBand, "nic": Nic}[probe](Host(root))
    return Report(probe, tuple(ports.glance() or () if fast else ports.look()))


def judged(root: Path, probe: str, known: Baseline | None, expected: Expectations = NOTHING) -> Facts:
    return facts(expect(known, expected, report(root, probe)))


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    for number in range(2):
        nodes.port(tmp_path, f"mlx5_{number}", pci=f"0000:1{number}:00.0")
        nodes.nic(tmp_path, f"eth{number}", pci=f"0000:4{number}:00.0")
    return tmp_path


@pytest.fixture
def known(healthy: Path) -> Baseline:
    baseline = begin(Baseline(), "boot")
    for probe in ("infiniband", "nic"):
        baseline, _ = learn(baseline, report(healthy, probe))
    return baseline


def test_a_port_as_it_is(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_4", pci="0000:18:00.0")
    assert read(tmp_path) == {
        ("infiniband.listed", ""): 1,
        ("infiniband.state", "mlx5_4/1"): "ACTIVE",
        ("infiniband.phys_state", "mlx5_4/1"): "LinkUp",
        ("infiniband.rate", "mlx5_4/1"): 400.0,
        ("infiniband.link_layer", "mlx5_4/1"): "InfiniBand",
        ("infiniband.pci", "mlx5_4/1"): "0000:18:00.0",
        ("nic.listed", ""): 0,
    }


def test_a_nic_as_it_is(tmp_path: Path) -> None:
    nodes.nic(tmp_path, "eth2")
    assert read(tmp_path) == {
        ("infiniband.listed", ""): 0,
        ("nic.up", "eth2"): True,
        ("nic.carrier", "eth2"): True,
        ("nic.speed", "eth2"): 100000,
        ("nic.pci", "eth2"): "0000:40:00.0",
        ("nic.listed", ""): 1,
        ("nic.on_pci", "0000:40:00.0"): True,
    }


def test_what_cannot_be_read_is_no_reading(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_0", state="", phys="garbled", rate="", layer="")
    nodes.nic(tmp_path, "eth0", pci="0000:40:00.0", carrier="", speed="", flags="flags")
    assert {name for name, _ in read(tmp_path)} == {
        *("infiniband.listed", "nic.listed", "nic.pci", "nic.on_pci")
    }


@given(st.text(max_size=40))
def test_no_text_raises(text: str) -> None:
    _word(text)
    rate = _rate(text)
    assert rate is None or rate > 0


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("400 Gb/sec (4X NDR)", 400.0),
        ("2.5 Gb/sec (1X SDR)", 2.5),
        ("0 Gb/sec", None),
        ("-1 Gb/sec", None),
        ("", None),
    ],
)
def test_rates(text: str, rate: float | None) -> None:
    assert _rate(text) == rate


@pytest.mark.parametrize("speed", ["-1", "0", "4294967295", "2147483647", "fast"])
def test_a_speed_that_is_none(tmp_path: Path, speed: str) -> None:
    nodes.nic(tmp_path, "eth0", speed=speed)
    assert ("nic.speed", "eth0") not in read(tmp_path)


def test_only_physical_ports_are_looked_at(tmp_path: Path) -> None:
    nodes.nic(tmp_path, "lo", pci="", kind="772")
    nodes.nic(tmp_path, "docker0", pci="", carrier="0")
    nodes.nic(tmp_path, "veth1f", pci="")
    nodes.nic(tmp_path, "bond0", pci="")
    nodes.nic(tmp_path, "ib0", pci="0000:18:00.0", kind="32")
    nodes.nic(tmp_path, "eth9", pci="0000:50:00.0")
    nodes.write(tmp_path, {"sys/0000:50:00.0/physfn/class": "0x020000"})  # where eth9's device link points
    nodes.nic(tmp_path, "usb0", pci="1-1:1.0")
    nodes.link(tmp_path, "sys/1-1:1.0/subsystem", "../../bus/usb")
    assert {device for name, device in read(tmp_path) if name != "nic.on_pci"} == {""}


def test_virtual_functions_are_left_out(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_9", pci="0000:18:00.1")
    nodes.write(tmp_path, {"sys/0000:18:00.1/physfn/class": "x"})
    assert {device for _, device in read(tmp_path)} == {""}


def test_the_functions_that_manage_nvswitches_are_left_alone(tmp_path: Path) -> None:
    """Their firmware refuses each question, with a line in the kernel log."""
    nodes.port(tmp_path, "mlx5_0", pci="0000:18:00.0")
    nodes.port(tmp_path, "mlx5_1", pci="0000:19:00.0", state="1: DOWN")
    nodes.write(tmp_path, {"sys/0000:19:00.0/vpd": "\x82\x00SN\x0cMT2427\x00V3\x06SW_MNG\x00"})
    assert {device for name, device in read(tmp_path) if name == "infiniband.state"} == {"mlx5_0/1"}


def test_a_port_that_the_site_ignores_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlx5_0", "mlx5_1"):
        nodes.port(tmp_path, name, pci=f"0000:1{name[-1]}:00.0")
    asked: list[str] = []
    text = Host.text
    monkeypatch.setattr(Host, "text", lambda host, name: asked.append(str(name)) or text(host, name))
    probe = InfiniBand(Host(tmp_path), Expectations(ignore=("mlx5_1/*",)).ignored)
    assert facts(tuple(probe.look()))["infiniband.listed", ""] == 1
    tuple(probe.glance())
    assert any("mlx5_0/ports" in name for name in asked)
    assert not any("mlx5_1/ports" in name for name in asked)


@pytest.mark.parametrize("name", ["pf0vf3", "c1pf0sf88", "pf1"])
def test_stand_ins_of_virtual_functions_are_left_out(tmp_path: Path, name: str) -> None:
    nodes.nic(tmp_path, "eth3", carrier="0")
    nodes.write(tmp_path, {"sys/class/net/eth3/phys_port_name": name})
    assert not [one for one in read(tmp_path) if one[1] == "eth3"]
    nodes.write(tmp_path, {"sys/class/net/eth3/phys_port_name": "p0"})
    assert read(tmp_path)["nic.carrier", "eth3"] is False


def test_several_planes_beside_one_gpu_are_told_apart(tmp_path: Path) -> None:
    """As on boards with several adapters, or several ports of one, for each GPU."""
    for root, gpu, ports in (("15", "0000:18:00.0", 2), ("37", "0000:3b:00.0", 1)):
        above = f"sys/devices/pci0000:{root}/0000:{root}:01.0"
        nodes.write(tmp_path, {f"{above}/{gpu}/vendor": "0x10de", f"{above}/{gpu}/class": "0x030200"})
        nodes.link(tmp_path, f"sys/bus/pci/devices/{gpu}", f"../../../../{above}/{gpu}")
        for number in range(ports):
            pci, name = f"0000:{root}:0{number + 2}.0", f"mlx5_{root}{number}"
            home = f"{above}/{pci}/infiniband/{name}"
            files = {"state": "1: DOWN", "phys_state": "2: Polling", "link_layer": "InfiniBand"}
            nodes.write(tmp_path, {f"{home}/ports/1/{file}": text for file, text in files.items()})
            nodes.write(tmp_path, {f"{above}/{pci}/class": "0x020700"})
            nodes.link(tmp_path, f"{home}/device", f"../../../{pci}")
            nodes.link(tmp_path, f"sys/class/infiniband/{name}", f"../../../{home}")
            nodes.link(tmp_path, f"sys/bus/pci/devices/{pci}", f"../../../../{above}/{pci}")
    [one, two, single] = scan(Host(tmp_path), Expectations(ib_ports=3), rules.load(), "/none").findings
    assert [found.code for found in (one, two, single)] == ["IB_PORT_DOWN"] * 3
    shared = {"hca": "mlx5_151", "port": 1, "beside": "0000:18:00.0", "pci": "0000:15:03.0"}
    assert two.hardware == {**shared, "plane": "2 of 2"}
    assert (one.hardware["plane"], one.hardware["beside"]) == ("1 of 2", "0000:18:00.0")
    assert single.hardware["beside"] == "0000:3b:00.0"
    assert "plane" not in single.hardware


def test_the_fast_pass_has_what_a_lost_link_shows(healthy: Path, known: Baseline) -> None:
    nodes.port(healthy, "mlx5_0", state="1: DOWN", phys="2: Polling", pci="0000:10:00.0")
    nodes.nic(healthy, "eth0", pci="0000:40:00.0", carrier="0", speed="-1")
    ports = facts(expect(known, NOTHING, report(healthy, "infiniband", fast=True)))
    nics = facts(expect(known, NOTHING, report(healthy, "nic", fast=True)))
    assert ports["infiniband.down", "mlx5_0/1"] is True
    assert nics["nic.down", "eth0"] is True
    assert not any(
        "missing" in name and value for name, _ in (ports | nics) for value in [(ports | nics)[name, _]]
    )


def test_healthy_is_healthy(healthy: Path, known: Baseline) -> None:
    for probe in ("infiniband", "nic"):
        verdicts = judged(healthy, probe, known)
        bad = {
            key
            for key, value in verdicts.items()
            if key[0].split(".")[1] in ("down", "slow", "missing") and value
        }
        assert not bad


@pytest.mark.parametrize("state", ["1: DOWN", "2: INIT", "3: ARMED"])
def test_a_known_port_that_is_not_active_is_down(healthy: Path, known: Baseline, state: str) -> None:
    nodes.port(healthy, "mlx5_1", state=state, pci="0000:11:00.0")
    verdicts = judged(healthy, "infiniband", known)
    assert verdicts["infiniband.down", "mlx5_1/1"] is True
    assert verdicts["infiniband.down", "mlx5_0/1"] is False


def test_a_port_never_seen_up_is_only_told(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_0", state="1: DOWN", phys="2: Polling")
    nodes.port(tmp_path, "mlx5_1", state="1: DOWN", phys="3: Disabled")
    verdicts = judged(tmp_path, "infiniband", None)
    assert verdicts["infiniband.never_up", "mlx5_0/1"] is True
    assert verdicts["infiniband.never_up", "mlx5_1/1"] is False
    assert ("infiniband.down", "mlx5_0/1") not in verdicts


def test_a_port_that_the_site_expects_is_down_though_never_seen(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_0")
    nodes.port(tmp_path, "mlx5_1", state="1: DOWN")
    assert (
        judged(tmp_path, "infiniband", None, Expectations(ib_ports=2))["infiniband.down", "mlx5_1/1"] is True
    )
    assert (
        judged(tmp_path, "infiniband", None, Expectations(ib_ports=1))["infiniband.down", "mlx5_1/1"] is False
    )


def test_a_rate_below_the_remembered_one(healthy: Path, known: Baseline) -> None:
    nodes.port(healthy, "mlx5_0", rate="200 Gb/sec (2X NDR)", pci="0000:10:00.0")
    verdicts = judged(healthy, "infiniband", known)
    assert verdicts["infiniband.slow", "mlx5_0/1"] is True
    assert verdicts["infiniband.slow", "mlx5_1/1"] is False


def test_the_configured_rate_is_for_infiniband_ports_only(tmp_path: Path) -> None:
    nodes.port(tmp_path, "mlx5_bond_0", rate="200 Gb/sec (2X NDR)", layer="Ethernet")
    nodes.port(tmp_path, "mlx5_0", rate="200 Gb/sec (2X NDR)")
    verdicts = judged(tmp_path, "infiniband", None, Expectations(ib_gbps=400))
    assert verdicts["infiniband.slow", "mlx5_0/1"] is True
    assert ("infiniband.slow", "mlx5_bond_0/1") not in verdicts


def test_a_port_that_vanished(healthy: Path, known: Baseline) -> None:
    gone = healthy / "sys/class/infiniband/mlx5_1"
    gone.rename(healthy / "away")
    verdicts = judged(healthy, "infiniband", known)
    assert verdicts["infiniband.missing", "mlx5_1/1"] is True
    assert verdicts["infiniband.missing", "mlx5_0/1"] is False
    (healthy / "away").rename(healthy / "sys/class/infiniband/ibp17s0")
    verdicts = judged(healthy, "infiniband", known)
    assert ("infiniband.missing", "mlx5_1/1") not in verdicts  # it only has another name now
    known, notes = learn(known, report(healthy, "infiniband"))
    assert set(known.ports) == {"mlx5_0/1", "ibp17s0/1"}
    assert any("ibp17s0/1" in note for note in notes)


def test_all_ports_vanish(healthy: Path, known: Baseline) -> None:
    (healthy / "sys/class/infiniband").rename(healthy / "away")
    verdicts = judged(healthy, "infiniband", known)
    gone = {("infiniband.missing", f"mlx5_{n}/1"): True for n in range(2)}
    assert verdicts == {("infiniband.listed", ""): 0, **gone}


@pytest.mark.parametrize("said", [(), (Reading("infiniband.listed", "", 2),)], ids=["nothing", "some"])
def test_a_failed_probe_says_nothing(known: Baseline, said: tuple[Reading, ...]) -> None:
    """Not even of the ports that it had not come to when it failed."""
    assert expect(known, NOTHING, Report("infiniband", said, "no answer within 5 s")) == said


def test_ignored_ports_are_not_judged(healthy: Path, known: Baseline) -> None:
    nodes.port(healthy, "mlx5_1", state="1: DOWN", pci="0000:11:00.0")
    verdicts = judged(healthy, "infiniband", known, Expectations(ignore=("mlx5_1/*",)))
    assert not any(device == "mlx5_1/1" for _, device in verdicts)


def test_a_nic_that_its_admin_took_down_is_no_fault(healthy: Path, known: Baseline) -> None:
    nodes.nic(healthy, "eth0", pci="0000:40:00.0", carrier="", speed="", flags="0x1002")
    assert judged(healthy, "nic", known)["nic.down", "eth0"] is False


def test_a_nic_without_a_link(healthy: Path, known: Baseline) -> None:
    nodes.nic(healthy, "eth0", pci="0000:40:00.0", carrier="0", speed="-1")
    nodes.nic(healthy, "eth7", pci="0000:47:00.0", carrier="0", speed="-1")  # never had one
    verdicts = judged(healthy, "nic", known)
    assert verdicts["nic.down", "eth0"] is True
    assert ("nic.down", "eth7") not in verdicts


def test_a_bond_that_lives_on_is_degraded_not_down(healthy: Path, known: Baseline) -> None:
    nodes.nic(healthy, "eth0", pci="0000:40:00.0", carrier="0", speed="-1")
    nodes.write(healthy, {"sys/class/net/eth0/bonding_slave/state": "backup", "sys/bond0/carrier": "1"})
    nodes.link(healthy, "sys/class/net/eth0/master", "../../../bond0")
    verdicts = judged(healthy, "nic", known)
    assert (verdicts["nic.down", "eth0"], verdicts["nic.degraded", "eth0"]) == (False, True)
    nodes.write(healthy, {"sys/bond0/carrier": "0"})
    verdicts = judged(healthy, "nic", known)
    assert (verdicts["nic.down", "eth0"], verdicts["nic.degraded", "eth0"]) == (True, False)


def test_a_bond_without_one_of_its_ports_is_degraded(healthy: Path, known: Baseline) -> None:
    for name in ("eth0", "eth1"):
        nodes.write(
            healthy, {f"sys/class/net/{name}/bonding_slave/perm_hwaddr": f"02:00:00:00:00:0{name[3]}"}
        )
        nodes.link(healthy, f"sys/class/net/{name}/master", "../../../bond0")
    nodes.write(healthy, {"sys/bond0/carrier": "1", "sys/class/net/eth1/address": "02:00:00:00:00:00"})
    assert read(healthy)["nic.mac", "eth1"] == "02:00:00:00:00:01"  # its own, not the bond's
    known, _ = learn(known, report(healthy, "nic"))
    assert judged(healthy, "nic", known)["nic.degraded", "eth1"] is False
    shutil.rmtree(healthy / "sys/class/net/eth1/bonding_slave")  # it has a link, and was taken out
    (healthy / "sys/class/net/eth1/master").unlink()
    verdicts = judged(healthy, "nic", known)
    assert (verdicts["nic.down", "eth1"], verdicts["nic.degraded", "eth1"]) == (False, True)
    assert verdicts["nic.degraded", "eth0"] is False


def test_a_nic_below_its_speed(healthy: Path, known: Baseline) -> None:
    nodes.nic(healthy, "eth0", pci="0000:40:00.0", speed="10000")
    assert judged(healthy, "nic", known)["nic.slow", "eth0"] is True
    assert judged(healthy, "nic", known, Expectations(nic_gbps=10))["nic.slow", "eth0"] is False
    assert judged(healthy, "nic", None, Expectations(nic_gbps=25))["nic.slow", "eth0"] is True


def test_a_nic_is_missing_only_when_its_adapter_is(healthy: Path, known: Baseline) -> None:
    (healthy / "sys/class/net/eth1").rename(healthy / "away")  # given to a container: still on PCI
    assert ("nic.missing", "eth1") not in judged(healthy, "nic", known)
    (healthy / "sys/bus/pci/devices/0000:41:00.0").rename(healthy / "gone")
    assert judged(healthy, "nic", known)["nic.missing", "eth1"] is True
    assert judged(healthy, "nic", known)["nic.missing", "eth0"] is False
