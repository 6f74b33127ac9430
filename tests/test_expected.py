"""What several nodes should have: merged where it is the same, told where it differs."""

import tomllib
from pathlib import Path

from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from slurm_health import config
from slurm_health.baseline import Baseline, Expectations, expect, learn
from slurm_health.cli import main
from slurm_health.expected import merge, render, section
from slurm_health.model import Reading, Report, Value
from slurm_health.sandbox.hardware import Machine

HAS = {
    "gpus": 8,
    "gpu": {"model": "NVIDIA H100", "memory": 79.6},
    "infiniband": {"ports": 8, "gbps": 400.0, "rates": {"mlx5_8/1": 200.0}},
    "memory": 2015.5,
    "pcie": {"0000:17:00.0": "32 GT/s x16"},
}


def test_nodes_that_have_the_same_are_one_section() -> None:
    text = merge([{"match": f"gpu{n:03d}", **HAS} for n in range(1, 129)])
    assert tomllib.loads(text)["nodes"] == [{"match": "gpu[001-128]", **HAS}]
    assert "#" not in text


def test_a_node_that_lacks_something_is_told() -> None:
    lame = {**HAS, "gpus": 7, "infiniband": {"ports": 8, "gbps": 200.0}, "gpu": {}, "pcie": {}}
    text = merge([{"match": "gpu3", **lame}, {"match": "gpu1", **HAS}, {"match": "gpu2", **HAS}])
    assert [one["match"] for one in tomllib.loads(text)["nodes"]] == ["gpu[1-2]", "gpu3"]
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# gpu3: gpu.memory is none, elsewhere 79.6",
        '# gpu3: gpu.model is none, elsewhere "NVIDIA H100"',
        "# gpu3: gpus is 7, elsewhere 8",
        "# gpu3: infiniband.gbps is 200, elsewhere 400",
        '# gpu3: infiniband.rates."mlx5_8/1" is none, elsewhere 200',
        '# gpu3: pcie."0000:17:00.0" is none, elsewhere "32 GT/s x16"',
    ]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)
LEAF = st.one_of(st.integers(-9, 9), st.booleans(), TEXT, st.floats(-1e6, 1e6), st.lists(TEXT, max_size=3))


TABLE = st.one_of(LEAF, st.dictionaries(TEXT, LEAF, max_size=4))


@given(st.dictionaries(st.sampled_from(["gpus", "pcie", "nics"]), TABLE))
def test_what_is_written_is_what_is_read(has: dict[str, object]) -> None:
    assert tomllib.loads(render("n1", has)) == {"nodes": [{"match": "n1", **has}]}


def generate(*words: str) -> Result:
    return CliRunner().invoke(main, ["config", "generate", *words])


def test_the_whole_way(tmp_path: Path) -> None:
    files = []
    for name, nics in (("n1", 2), ("n2", 2), ("n3", 1)):
        Machine.build(tmp_path / name, name, gpus=0, ports=2, nics=nics)
        made = generate("--root", str(tmp_path / name), "--match", name)
        assert made.exit_code == 0, made.output
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(made.output)
    done = generate(*map(str, files))
    assert done.exit_code == 0, done.output
    assert "# n3: nics.ports is 1, elsewhere 2" in done.output
    file = tmp_path / "config.toml"
    file.write_text(done.output)
    site = config.load(str(file))
    assert [section.match for section in site.nodes] == ["n[1-2]", "n3"]
    assert site.expected("n3")["nic_ports"] == 1
    files[0].write_text("gpus = 8\n")
    assert "no output of `config generate`" in generate(*map(str, files)).output
    files[0].write_text('[[nodes]]\nmatch = "n1"\ngpsu = 8\n')
    assert "gpsu" in generate(*map(str, files)).output


# -- one node


def told(*reports: Report) -> str:
    learned = Baseline()
    for one in reports:
        learned, _ = learn(learned, one)
    return section(learned, "n1")


def port(device: str, rate: float, layer: str = "InfiniBand") -> list[Reading]:
    facts: dict[str, Value] = {"state": "ACTIVE", "phys_state": "LinkUp", "rate": rate, "link_layer": layer}
    return [Reading(f"infiniband.{name}", device, value) for name, value in facts.items()]


def gpu(number: int, name: str, memory: float) -> list[Reading]:
    facts: dict[str, Value] = {"uuid": f"GPU-{number}", "lost": False, "name": name, "memory_total": memory}
    return [Reading(f"gpu.{fact}", f"0000:{number:02x}:00.0", value) for fact, value in facts.items()]


OK = Reading("gpu.driver", "", "ok")


def test_ports_of_several_rates_are_told_one_by_one() -> None:
    compute = [one for n in range(8) for one in port(f"mlx5_{n}/1", 400.0)]
    storage = [*port("mlx5_8/1", 200.0), *port("mlx5_9/1", 100.0), *port("mlx5_bond_0/1", 200.0, "Ethernet")]
    speeds: dict[str, Value] = {"eth0": 100_000, "eth1": 25_000, "eth2": 100_000}
    nics = [
        Reading(f"nic.{name}", device, value)
        for device, speed in speeds.items()
        for name, value in {"carrier": True, "pci": device, "speed": speed}.items()
    ]
    text = told(Report("infiniband", (*compute, *storage)), Report("nic", tuple(nics)))
    assert text.splitlines()[2:] == [
        'infiniband = { ports = 10, gbps = 400, rates = { "mlx5_8/1" = 200, "mlx5_9/1" = 100 } }',
        "nics = { ports = 3, gbps = 100, rates = { eth1 = 25 } }",
    ]


def test_gpus_are_told_by_model_and_memory() -> None:
    alike = Report("gpu", (OK, *gpu(1, "NVIDIA H100", 79.6), *gpu(2, "NVIDIA H100", 79.6)))
    assert told(alike).splitlines()[2:] == [
        "gpus = 2", 'gpu = { model = "NVIDIA H100", memory = 79.6 }'
    ]  # fmt: skip

    mixed = Report("gpu", (OK, *gpu(1, "NVIDIA H100", 79.6), *gpu(2, "NVIDIA L4", 22.5)))
    assert told(mixed).splitlines()[2:] == [
        "gpus = 2",
        'gpu = { model = ["NVIDIA H100", "NVIDIA L4"], memory = 22.5 }',
    ]
    silent = Report("gpu", (OK, Reading("gpu.uuid", "a", "GPU-1"), Reading("gpu.lost", "a", False)))
    assert told(silent).splitlines()[2:] == ["gpus = 1"]


def expectations(tmp_path: Path, text: str) -> Expectations:
    file = tmp_path / "config.toml"
    file.write_text(f'[[nodes]]\nmatch = "n1"\n{text}')
    return Expectations(**config.load(str(file)).expected("n1"))


def bad(expected: Expectations, report: Report, name: str) -> dict[str, str]:
    """The devices of which this reading is true, and why."""
    return {
        one.device: one.evidence for one in expect(None, expected, report) if one.name == name and one.value
    }


def test_each_port_is_measured_by_its_own_rate(tmp_path: Path) -> None:
    expected = expectations(
        tmp_path, 'infiniband = { gbps = 400, rates = { "mlx5_[89]/1" = 200, "mlx5_9/1" = 100 } }'
    )
    report = Report(
        "infiniband",
        tuple(one for n, rate in ((0, 200.0), (7, 400.0), (8, 100.0), (9, 100.0))
              for one in port(f"mlx5_{n}/1", rate)),
    )  # fmt: skip
    assert bad(expected, report, "infiniband.slow") == {
        "mlx5_0/1": "200 Gb/s instead of 400", "mlx5_8/1": "100 Gb/s instead of 200"
    }  # fmt: skip


def test_a_gpu_of_another_model_or_with_less_memory_is_told(tmp_path: Path) -> None:
    expected = expectations(tmp_path, 'gpu = { model = ["NVIDIA H100*", "NVIDIA H200"], memory = 79.6 }')
    report = Report("gpu", (OK, *gpu(1, "NVIDIA H100 80GB HBM3", 79.6), *gpu(2, "NVIDIA A100", 39.5)))
    assert bad(expected, report, "gpu.other_model") == {
        "0000:02:00.0": "NVIDIA A100 instead of NVIDIA H100* or NVIDIA H200"
    }
    shares = {one.device: one.value for one in expect(None, expected, report) if "share" in one.name}
    assert shares == {"0000:01:00.0": 100.0, "0000:02:00.0": 49.6}
    assert {one.name for one in expect(None, Expectations(), report)}.isdisjoint(
        {"gpu.other_model", "gpu.memory_share"}
    )
