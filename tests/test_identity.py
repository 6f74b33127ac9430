"""A finding names its device in every way that helps to find it."""

from hypothesis import given
from hypothesis import strategies as st

from slurm_health.identity import NAMES, learn, named, recall
from slurm_health.model import Finding, Reading, Severity

GPU, HCA = "0000:5d:00.0", "0000:9a:00.0"
READINGS = [
    Reading("gpu.serial", GPU, "1650123"),
    Reading("gpu.minor", GPU, 3),
    Reading("gpu.uuid", GPU, "GPU-9a"),
    Reading("infiniband.pci", "mlx5_4/1", HCA),
    Reading("infiniband.state", "mlx5_4/1", "ACTIVE"),
    Reading("nic.pci", "eth1", "0000:a1:00.0"),
]


def finding(device: str, evidence: str = "a line") -> Finding:
    return Finding("CODE", Severity.CRITICAL, device, "text", evidence)


def test_a_device_is_named_in_full() -> None:
    known = learn({}, READINGS)
    assert named(finding(GPU), known).evidence == "a line [/dev/nvidia3, GPU-9a, serial 1650123]"
    assert named(finding("mlx5_4/1"), known).evidence == "a line [PCI 0000:9a:00.0]"
    assert named(finding(HCA, ""), known).evidence == "[mlx5_4/1]"  # the kernel names the adapter only
    assert named(finding("eth1"), known).evidence == "a line [PCI 0000:a1:00.0]"
    for stranger in ("", "0000:00:00.0"):
        assert named(finding(stranger), known) == finding(stranger)


def test_what_stands_in_the_evidence_is_not_repeated() -> None:
    known = learn({}, READINGS)
    assert named(finding(GPU, "GPU-9a does not answer"), known).evidence == (
        "GPU-9a does not answer [/dev/nvidia3, serial 1650123]"
    )
    place = learn(known, [Reading("infiniband.place", "mlx5_4/1", f"PCI {HCA}, GUID 00aa, GPU 3")])
    assert named(finding("mlx5_4/1"), place).evidence == f"a line [PCI {HCA}, GUID 00aa, GPU 3]"


def test_a_lost_gpu_keeps_its_names_and_another_in_its_place_has_its_own() -> None:
    known = learn({}, READINGS)
    assert learn(known, [Reading("gpu.lost", GPU, True)]) is known
    assert learn(known, READINGS) is known
    other = learn(known, [Reading("gpu.uuid", GPU, "GPU-b7")])
    assert named(finding(GPU), other).evidence == "a line [GPU-b7]"
    assert other["eth1"] == known["eth1"]


def test_rubbish_is_no_name() -> None:
    for rubbish in (None, [], "x", {"a": 3}, {"a": ["b"]}):
        assert recall(rubbish) == {}


NAMED = st.builds(Reading, st.sampled_from([*NAMES, "x.y"]), st.sampled_from(["a", "b"]), st.integers(0, 2))


@given(st.lists(NAMED))
def test_learning_is_settled_at_once(readings: list[Reading]) -> None:
    unique = list({(one.name, one.device): one for one in readings}.values())
    known = learn({}, unique)
    assert learn(known, unique) is known
