"""The configuration: every mistake at once with its file and path, and what is in force from where."""

from pathlib import Path
from typing import Any

import pytest

from slurm_health import config, sources
from slurm_health.config import Config, ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SLURM_HEALTH_CONFIG", raising=False)
    monkeypatch.setattr(sources, "DEFAULT_PATH", tmp_path / "default/config.toml")
    (tmp_path / "conf.d").mkdir()
    return tmp_path / "config.toml"


def mistakes(file: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(str(file))
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return caught.value.mistakes


def one(file: Path, text: str) -> str:
    file.write_text(text)
    [mistake] = mistakes(file)
    assert mistake.startswith(f"{file}: ")
    return mistake.removeprefix(f"{file}: ")


# -- mistakes


def test_every_mistake_at_once_with_its_file_and_path(file: Path) -> None:
    first, second = file.parent / "conf.d/10-site.toml", file.parent / "conf.d/20-more.toml"
    file.write_text(
        'mode = "drian"\ncontroler = "x"\n[budget]\npercent = 101\nwindow = "ten minutes"\n'
        '[[nodes]]\nmatch = "n[1-"\n[[rule]]\ncode = "IB_PORT_DOWN"\nhold = "5 parsecs"\n'
    )
    first.write_text('[auth]\nmethod = "ssh"\npassword = "x"\n[[nodes]]\ngpus = -1\n')
    second.write_text(
        '[slurm]\ndeadline = true\n[[nodes]]\nmatch = "n3"\ninfiniband = { ports = "8", speed = 1 }\n'
        '[[rule]]\ncode = "NO"\n'
    )
    said = mistakes(file)
    expected = {
        f"{file}: mode: Input should be 'observe', 'drain' or 'requeue' (it says 'drian')",
        f"{file}: controler: unknown key; `slurm-health config show` lists the known ones",
        f"{file}: budget.percent: Input should be less than or equal to 100 (it says 101)",
        f"""{file}: budget.window: 'ten minutes' is not a duration such as "5s", "2m" or "1h\""""
        " (it says 'ten minutes')",
        f"{first}: auth.method: Input should be 'munge' or 'hmac' (it says 'ssh')",
        f"{first}: auth.password: unknown key; `slurm-health config show` lists the known ones",
        f"{first}: nodes.1.gpus: Input should be greater than or equal to 0 (it says -1)",
        f"{first}: nodes.1.match: is required",
        f"{second}: nodes.2.infiniband.speed: unknown key; `slurm-health config show` lists the known ones",
        f"""{second}: slurm.deadline: True is not a duration such as "5s", "2m" or "1h" (it says True)""",
    }
    assert expected <= set(said)
    rest = sorted(set(said) - expected)
    assert any(line.startswith(f"{file}: nodes.0.match: no hostlist: ") for line in rest)
    assert any(line.startswith(f"{file}: rule.0.hold: '5 parsecs' is not a duration") for line in rest)
    assert any(line.startswith(f"{second}: rule.1.reading: missing") for line in rest)


@pytest.mark.parametrize(
    "path",
    [
        "colour",
        "auth.colour",
        "budget.colour",
        "slurm.colour",
        "ledger.colour",
        "probes.colour",
        "nodes.0.colour",
        "nodes.0.infiniband.colour",
        "nodes.0.nics.colour",
        "rule.0.colour",
    ],
)
def test_an_unknown_key_is_refused_at_every_level(file: Path, path: str) -> None:
    *tables, key = path.split(".")
    match tables:
        case ["nodes", _, *below]:
            text = f'[[nodes]]\nmatch = "n1"\n{".".join([*below, key])} = 1\n'
        case ["rule", *_]:
            text = f'[[rule]]\ncode = "IB_PORT_DOWN"\n{key} = 1\n'
        case _:
            text = f"{path} = 1\n"
    said = one(file, text)
    assert said.startswith(f"{path}: ")
    assert "unknown key" in said or "no such key" in said


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("mode = 7", "mode"),
        ("mode = []", "mode"),
        ('controller = "host:0"', "controller"),
        ('controller = "host:65536"', "controller"),
        ('controller = ":6821"', "controller"),
        ("controller = 6821", "controller"),
        ('when_alone = "panic"', "when_alone"),
        ("auth = 1", "auth"),
        ("auth.check_address = 'maybe'", "auth.check_address"),
        ("budget.percent = -1", "budget.percent"),
        ("budget.percent = nan", "budget.percent"),
        ("budget.at_least = 1.5", "budget.at_least"),
        ("budget.window = -5", "budget.window"),
        ("budget.window = inf", "budget.window"),
        ("budget.window = '5'", "budget.window"),
        ("slurm.deadline = '10 fortnights'", "slurm.deadline"),
        ("ledger.url = 7", "ledger.url"),
        ('ledger.url = "/var/lib/ledger.db"', "ledger.url"),
        ('run_dir = "run"', "run_dir"),
        ('probes.folder = "probes.d"', "probes.folder"),
        ('auth.method = "hmac"', "auth"),
        ('probes.gpu_every = "0s"', "probes.gpu_every"),
        ('probes.gpu_deadline = "0s"', "probes.gpu_deadline"),
        ("slurm.deadline = 0", "slurm.deadline"),
        ("probes.gpu = 'on and off'", "probes.gpu"),
        ("probes.links_every = []", "probes.links_every"),
        ("nodes = 1", "nodes"),
        ("nodes = [1]", "nodes.0"),
        ("[[nodes]]\nmatch = 'n[3'", "nodes.0.match"),
        ("[[nodes]]\nmatch = 'n1'\nignore = 'x'", "nodes.0.ignore"),
        ("[[nodes]]\nmatch = 'n1'\ninfiniband.gbps = 0", "nodes.0.infiniband.gbps"),
        ("rule = 1", "rule"),
        ("rule = [1]", "rule.0"),
        ("[[rule]]\nhold = '5s'", "rule.0.code"),
        ("[[rule]]\ncode = 'IB_PORT_DOWN'\nseverity = 'bad'", "rule.0.severity"),
        ("[[rule]]\ncode = 'IB_PORT_DOWN'\njob = 'kill'", "rule.0.job"),
        ("[[rule]]\ncode = 'IB_PORT_DOWN'\nwhen = { is = 1, not = 2 }", "rule.0.when"),
        ("[[rule]]\ncode = 'GPU_XID_31'\nhold = '5s'", "rule.0.hold"),
    ],
)
def test_a_wrong_value_is_named(file: Path, text: str, path: str) -> None:
    assert one(file, text + "\n").startswith(f"{path}: ")


def test_a_rule_of_the_second_file_is_blamed_on_the_second_file(file: Path) -> None:
    file.write_text('[[rule]]\ncode = "IB_PORT_DOWN"\nhold = "5s"\n')
    more = file.parent / "conf.d/more.toml"
    more.write_text('[[rule]]\ncode = "NIC_DOWN"\nhold = "x"\n')
    [mistake] = mistakes(file)
    assert mistake.startswith(f"{more}: rule.1.hold: ")


def test_files_that_are_no_toml_are_all_named(file: Path) -> None:
    file.write_text("mode = \n")
    (file.parent / "conf.d/a.toml").write_bytes(b'mode = "\xff"\n')
    (file.parent / "conf.d/b.toml").mkdir()
    (file.parent / "conf.d/c.toml").write_text('mode = "x"\n')
    said = mistakes(file)
    assert [Path(line.split(": ")[0]).name for line in said] == ["config.toml", "a.toml", "b.toml", "c.toml"]
    assert "line 1" in said[0]


def test_a_missing_file_is_a_mistake_only_when_somebody_named_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.load() == Config()
    assert mistakes(file) == [f"{file}: no such file"]
    monkeypatch.setenv("SLURM_HEALTH_CONFIG", str(file))
    with pytest.raises(ConfigError, match="no such file"):
        config.load()


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    [mistake] = mistakes(tmp_path / "folder")
    assert "Is a directory" in mistake


# -- what is in force


def test_the_defaults_observe(file: Path) -> None:
    assert config.load().mode == "observe"
    assert config.load().addresses == [("localhost", 6821)]


def test_the_environment_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('mode = "drain"\n')
    monkeypatch.setenv("SLURM_HEALTH_CONFIG", str(file))
    assert config.load().mode == "drain"
    other = file.with_name("other.toml")
    other.write_text('mode = "requeue"\n')
    assert config.load(str(other)).mode == "requeue"


def test_later_files_win_key_by_key_and_tables_of_a_list_add_up(file: Path) -> None:
    file.write_text(
        'mode = "observe"\n[budget]\npercent = 5\nat_least = 3\n[[nodes]]\nmatch = "n[1-9]"\ngpus = 8\n'
    )
    (file.parent / "conf.d/20.toml").write_text('mode = "requeue"\n[[nodes]]\nmatch = "n2"\ngpus = 4\n')
    (file.parent / "conf.d/10.toml").write_text('mode = "drain"\n[budget]\npercent = 7\n')
    (file.parent / "conf.d/99.conf").write_text("mode = rubbish")
    found, origins = config.read(str(file))
    assert (found.mode, found.budget.percent, found.budget.at_least) == ("requeue", 7, 3)
    assert [section.match for section in found.nodes] == ["n[1-9]", "n2"]
    assert origins["mode"] == str(file.parent / "conf.d/20.toml")
    assert origins["budget.percent"] == str(file.parent / "conf.d/10.toml")
    assert origins["budget.at_least"] == str(file)
    assert origins["nodes.1"] == str(file.parent / "conf.d/20.toml")
    assert "budget.window" not in origins


def test_conf_d_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_HEALTH_CONFIG", raising=False)
    monkeypatch.setattr(sources, "DEFAULT_PATH", tmp_path / "config.toml")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").write_text('mode = "drain"\n')
    assert config.load().mode == "drain"


SECTIONS = """
[[nodes]]
match = "n[1-4]"
gpus = 8
infiniband = { ports = 8, gbps = 400 }
ignore = ["mlx5_bond_0/*"]
memory = 2015.5
services = ["munge"]
[nodes.pcie]
"0000:17:00.0" = "32 GT/s x16"
"0000:18:00.0" = "x16"
[[nodes]]
match = "n[3-4],x1"
gpus = 4
infiniband.gbps = 200
nics = { ports = 2 }
ignore = ["eth7"]
pcie = { "0000:17:00.0" = "16 GT/s x8" }
services = ["nvidia-fabricmanager"]
"""
NOTHING: dict[str, Any] = {"ib_rates": {}, "nic_rates": {}, "pcie": {}, "services": (), "ignore": ()}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (
            "n1",
            {
                "gpus": 8,
                "ib_ports": 8,
                "ib_gbps": 400,
                "memory": 2015.5,
                "pcie": {"0000:17:00.0": (16, 32.0), "0000:18:00.0": (16, 0.0)},
                "services": ("munge",),
                "ignore": ("mlx5_bond_0/*",),
            },
        ),
        (
            "n3",
            {
                "gpus": 4,
                "ib_ports": 8,
                "ib_gbps": 200,
                "nic_ports": 2,
                "memory": 2015.5,
                "services": ("munge", "nvidia-fabricmanager"),
                "pcie": {"0000:17:00.0": (8, 16.0), "0000:18:00.0": (16, 0.0)},
                "ignore": ("mlx5_bond_0/*", "eth7"),
            },
        ),
        (
            "x1",
            {
                "gpus": 4,
                "ib_gbps": 200,
                "nic_ports": 2,
                "pcie": {"0000:17:00.0": (8, 16.0)},
                "services": ("nvidia-fabricmanager",),
                "ignore": ("eth7",),
            },
        ),
        ("n5", {}),
    ],
)
def test_sections_merge_key_by_key(file: Path, node: str, expected: dict[str, Any]) -> None:
    file.write_text(SECTIONS)
    assert config.load(str(file)).expected(node) == NOTHING | expected


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ('"head"', [("head", 6821)]),
        ('"head:7000"', [("head", 7000)]),
        ('"10.0.0.1:7000"', [("10.0.0.1", 7000)]),
        ('["ctl1", "ctl2:7000"]', [("ctl1", 6821), ("ctl2", 7000)]),
    ],
)
def test_the_controllers_addresses(file: Path, text: str, addresses: list[tuple[str, int]]) -> None:
    file.write_text(f"controller = {text}\n")
    assert config.load(str(file)).addresses == addresses


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "at least 1 item"),
        ('["ctl1", "ctl1:6821"]', "twice"),
        ('["ctl1", "ctl2:x"]', "host:port"),
        ("7", "valid tuple"),
    ],
)
def test_controllers_that_cannot_be(file: Path, text: str, why: str) -> None:
    file.write_text(f"controller = {text}\n")
    [mistake] = mistakes(file)
    assert str(file) in mistake
    assert why in mistake


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('"90s"', 90),
        ('"2m"', 120),
        ('"1h"', 3600),
        ('"1d"', 86400),
        ('"250ms"', 0.25),
        ("45", 45),
        ("0.5", 0.5),
    ],
)
def test_durations(file: Path, text: str, seconds: float) -> None:
    file.write_text(f"budget.window = {text}\n")
    assert config.load(str(file)).budget.window == seconds


# -- the shipped file


def test_the_shipped_file_is_right_and_shows_the_defaults(file: Path) -> None:
    text = (ROOT / "etc/config.toml").read_text()
    file.write_text(text)
    assert config.load(str(file)) == Config()
    shown = [
        line.removeprefix("#")
        for line in text.partition("# What a node should have")[0].splitlines()
        if line.startswith("#") and not line.startswith("# ")
    ]
    file.write_text("\n".join(shown).replace("slurmctl:6821", "localhost:6821"))
    assert config.load(str(file)) == Config()
    file.write_text("\n".join(line.removeprefix("#") for line in text.splitlines() if line[:2] != "# "))
    everything = config.load(str(file))
    assert everything.nodes
    assert everything.rule


@pytest.mark.parametrize("command", ['["power-off", "{node}"]', '["/sbin/power-off"]', '["/sbin/{node}"]'])
def test_a_fence_command_has_a_path_and_is_told_which_node(file: Path, command: str) -> None:
    file.write_text(f"[fence]\ncommand = {command}\n")
    [said] = mistakes(file)
    assert said.startswith(
        f"{file}: fence.command: write a path and its arguments, one of them with {{node}}"
    )
