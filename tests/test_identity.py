"""A finding says by what a technician finds its device."""

from hypothesis import given
from hypothesis import strategies as st

from slurm_health.identity import PARTS, WORDS, hardware, learn, named, recall, words
from slurm_health.model import Finding, Reading, Severity

GPU, HCA = "0000:5d:00.0", "0000:9a:00.0"
READINGS = [
    Reading("gpu.serial", GPU, "1650123"),
    Reading("gpu.minor", GPU, 3),
    Reading("gpu.index", GPU, 2),
    Reading("gpu.name", GPU, "NVIDIA H100"),
    Reading("gpu.uuid", GPU, "GPU-9a"),
    Reading("infiniband.pci", "mlx5_4/1", HCA),
    Reading("infiniband.guid", "mlx5_4/1", "a088:c203:0001:009a"),
    Reading("infiniband.gpu", "mlx5_4/1", GPU),
    Reading("infiniband.plane", "mlx5_4/1", "2 of 4"),
    Reading("infiniband.state", "mlx5_4/1", "ACTIVE"),
    Reading("nic.pci", "eth1", "0000:a1:00.0"),
    Reading("nic.mac", "eth1", "02:00:00:00:00:01"),
]
KNOWN = learn({}, READINGS)


def finding(device: str) -> Finding:
    return Finding("CODE", Severity.CRITICAL, device, "text", "a line")


def test_a_gpu_a_port_and_an_interface_are_named_in_full() -> None:
    gpu = {"gpu": 2, "model": "NVIDIA H100", "uuid": "GPU-9a", "serial": "1650123", "minor": 3, "pci": GPU}
    port = {"hca": "mlx5_4", "port": 1, "guid": "a088:c203:0001:009a", "beside": GPU, "plane": "2 of 4"}
    assert named(finding(GPU), KNOWN).hardware == gpu
    assert named(finding("mlx5_4/1"), KNOWN).hardware == {**port, "pci": HCA}
    assert named(finding("eth1"), KNOWN).hardware == {
        "interface": "eth1", "mac": "02:00:00:00:00:01", "pci": "0000:a1:00.0"
    }  # fmt: skip
    assert named(finding(GPU), KNOWN).evidence == "a line"


def test_people_read_the_same_in_a_line() -> None:
    assert words(hardware(GPU, KNOWN)) == (
        "GPU 2, NVIDIA H100, GPU-9a, serial 1650123, /dev/nvidia3, PCI 0000:5d:00.0"
    )
    assert words(hardware("mlx5_4/1", KNOWN)) == (
        f"HCA mlx5_4, port 1, GUID a088:c203:0001:009a, plane 2 of 4, beside GPU {GPU}, PCI {HCA}"
    )


def test_a_disk_is_found_by_its_partition_its_controller_and_its_address() -> None:
    facts = {"model": "SAMSUNG MZ1L2", "serial": "S666", "pci": "0000:01:00.0"}
    known = learn({}, [Reading(f"disk.{name}", "nvme0n1", value) for name, value in facts.items()])
    for name in ("nvme0n1", "nvme0n1p2", "nvme0", "0000:01:00.0"):
        assert hardware(name, known) == {"disk": "nvme0n1", **facts}
    for other in ("nvme", "nvme1", "nvme0n10", "nvme0n11p1", "dm-0", "n1"):
        assert "disk" not in hardware(other, known)
    assert words(hardware("nvme0n1p2", known)) == "disk nvme0n1, SAMSUNG MZ1L2, serial S666, PCI 0000:01:00.0"


def test_an_address_stands_for_all_that_sits_there() -> None:
    """The kernel names the adapter only."""
    both = learn(KNOWN, [Reading("nic.pci", "eth4", HCA), Reading("infiniband.pci", "mlx5_4/2", HCA)])
    there = hardware(HCA, both)
    assert (there["hca"], there["port"], there["interface"], there["pci"]) == ("mlx5_4", "1 2", "eth4", HCA)


def test_what_was_never_told_is_absent() -> None:
    for stranger in ("", "mc0", "nvme0n1"):
        assert hardware(stranger, KNOWN) == {}
    assert hardware("0000:00:00.0", KNOWN) == {"pci": "0000:00:00.0"}
    assert words({}) == ""


def test_a_lost_gpu_keeps_its_names_and_another_in_its_place_has_its_own() -> None:
    assert learn(KNOWN, [Reading("gpu.lost", GPU, True)]) is KNOWN
    assert learn(KNOWN, READINGS) is KNOWN
    other = learn(KNOWN, [Reading("gpu.uuid", GPU, "GPU-b7")])
    assert hardware(GPU, other) == {"uuid": "GPU-b7", "pci": GPU}
    assert other["eth1"] == KNOWN["eth1"]


def test_what_an_older_daemon_saved_does_no_harm() -> None:
    assert hardware("mlx5_4/1", recall({"mlx5_4/1": {"infiniband.place": "PCI 1"}})) == {
        "hca": "mlx5_4", "port": 1
    }  # fmt: skip
    for rubbish in (None, [], "x", {"a": 3}, {"a": ["b"]}):
        assert recall(rubbish) == {}


NAMED = st.builds(Reading, st.sampled_from([*PARTS, "x.y"]), st.sampled_from(["a", "b"]), st.integers(0, 2))


@given(st.lists(NAMED))
def test_learning_is_settled_at_once(readings: list[Reading]) -> None:
    unique = list({(one.name, one.device): one for one in readings}.values())
    known = learn({}, unique)
    assert learn(known, unique) is known
    assert hardware("a", known).keys() <= WORDS.keys()
