"""What several nodes should have: merged where it is the same, told where it differs."""

import tomllib
from pathlib import Path

from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from slurm_health import config
from slurm_health.cli import main
from slurm_health.expected import merge, render
from slurm_health.sandbox.hardware import Machine

HAS = {
    "gpus": 8,
    "infiniband": {"ports": 8, "gbps": 400.0},
    "memory": 2015.5,
    "pcie": {"0000:17:00.0": "32 GT/s x16"},
}


def test_nodes_that_have_the_same_are_one_section() -> None:
    text = merge([{"match": f"gpu{n:03d}", **HAS} for n in range(1, 129)])
    assert tomllib.loads(text)["nodes"] == [{"match": "gpu[001-128]", **HAS}]
    assert "#" not in text


def test_a_node_that_lacks_something_is_told() -> None:
    lame = {**HAS, "gpus": 7, "infiniband": {"ports": 8, "gbps": 200.0}, "pcie": {}}
    text = merge([{"match": "gpu3", **lame}, {"match": "gpu1", **HAS}, {"match": "gpu2", **HAS}])
    assert [one["match"] for one in tomllib.loads(text)["nodes"]] == ["gpu[1-2]", "gpu3"]
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# gpu3: gpus is 7, elsewhere 8",
        "# gpu3: infiniband.gbps is 200.0, elsewhere 400.0",
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
