"""Who imports what: the layers of the design, read from the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slurm_health"
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules that a module imports, anywhere in it."""
    file = MODULES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
            found.add(base)
            found |= {f"{base}.{name.name}" for name in node.names if f"{base}.{name.name}" in MODULES}
    return found


def ours(module: str) -> set[str]:
    return {name.removeprefix("slurm_health.") for name in imports(module) if name in MODULES} - {
        "slurm_health"
    }


def below(*packages: str) -> set[str]:
    """The modules of these, and all below them, without the package's name."""
    return {
        short
        for name in MODULES
        for short in [name.removeprefix("slurm_health.")]
        if any(short == one or short.startswith(f"{one}.") for one in packages)
    }


# -- what is pure


def test_the_nouns_import_nothing_of_ours_and_the_standard_library_only() -> None:
    assert ours("slurm_health.model") == set()
    assert imports("slurm_health.model") <= {"__future__", "collections.abc", "dataclasses", "enum"}


# What could read a file, a clock or a socket, or write a log.
WORLD = {
    *("os", "io", "sys", "time", "datetime", "logging", "pathlib", "socket", "subprocess", "threading"),
    *("asyncio", "random", "secrets", "shutil", "signal", "tempfile", "select", "selectors", "glob", "http"),
    *("sqlite3", "urllib", "warnings", "ctypes", "mmap", "fcntl", "locale", "getpass", "platform"),
}


PURE = [
    "model",
    *sorted(below("policy")),
    *sorted(below("rules")),
    *sorted(below("baseline")),
    "duration",
    "identity",
    "expected",
    "turns",
    "wishes",
]


@pytest.mark.parametrize("module", PURE)
def test_opinions_and_consequences_do_no_io(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(f"slurm_health.{module}")} & WORLD
    names = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[f"slurm_health.{module}"].read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not names & {"open", "print", "input", "exec", "eval", "__import__"}


def test_rules_and_policy_know_only_the_nouns() -> None:
    for module in below("policy"):
        assert ours(f"slurm_health.{module}") <= {"model", *below("policy")}
    for module in below("rules"):
        assert ours(f"slurm_health.{module}") <= {"model", "duration", *below("rules")}
    assert ours("slurm_health.wishes") == ours("slurm_health.turns") == {"model"}


# -- what knows what


@pytest.mark.parametrize("module", sorted(below("probes")))
def test_probes_know_no_opinion_no_slurm_and_no_ledger(module: str) -> None:
    assert ours(f"slurm_health.{module}") <= {"model", "host", *below("probes")}


# The controller and what it is made of.
SEAT = (
    *("controller", "inventory", "decisions", "drain", "rescue", "owner", "place", "turns", "fence"),
    *("silence", "standby", "overview", "web"),
)


def test_the_two_seats_meet_in_the_wire_alone() -> None:
    seat = below(*SEAT, "outage", "ledger", "migrations", "slurm", "sinks.notify")
    for module in ("node", "link", "spool", "cards", "tenants", "client", "signing", "sinks.verdict"):
        assert not ours(f"slurm_health.{module}") & seat
    for module in (*SEAT, *below("ledger")):
        assert not ours(f"slurm_health.{module}") & below("node", "link", "spool", "probes", "rules", "host")


def test_slurm_is_reached_through_its_protocol() -> None:
    for module in (*SEAT, "outage"):
        assert not ours(f"slurm_health.{module}") & {"slurm.scontrol", "slurm.api"}
    assert ours("slurm_health.slurm") <= {"model"}
    assert ours("slurm_health.slurm.scontrol") <= {"model", "slurm"}


DOORS = {"node", "controller", "web", *below("cli")}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nobody_imports_a_daemon_or_the_command_line(module: str) -> None:
    short = module.removeprefix("slurm_health.")
    if short in below("cli") or short == "__main__":
        return
    allowed = {"controller"} if short in ("web", "overview") else set()
    assert ours(module) & DOORS <= allowed


@pytest.mark.parametrize("module", sorted(set(MODULES) - {f"slurm_health.{one}" for one in below("sandbox")}))
def test_only_the_command_line_knows_the_sandbox(module: str) -> None:
    if module != "slurm_health.cli.sandbox":
        assert not ours(module) & below("sandbox")


# -- libraries


LIBRARIES = {
    "pynvml": {"probes.gpu.library"},
    "sqlalchemy": below("ledger", "migrations"),
    "alembic": {"ledger.store", *below("migrations")},
    "aiohttp": {"web", "sinks.notify"},
    "click": below("cli"),
    "pydantic": {"config"},
    "pyslurm": {"slurm.worker"},
    "psutil": below("sandbox"),
    "ClusterShell": {
        *("config", "expected", "overview", "rescue", "owner", "place", "web", "gres", "slurm.scontrol"),
        "sandbox.demo",
    },
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_library_stays_in_the_module_that_needs_it(module: str) -> None:
    short = module.removeprefix("slurm_health.")
    found = {name.partition(".")[0] for name in imports(module)} - set(sys.stdlib_module_names)
    foreign = found - {"slurm_health"}
    assert foreign <= LIBRARIES.keys()
    assert {name for name in foreign if short not in LIBRARIES[name]} == set()


def test_what_is_declared_is_what_is_imported() -> None:
    declared = {"nvidia-ml-py": "pynvml"}
    tree = ast.parse((ROOT / "setup.py").read_text())
    [wanted] = [
        node.value.elts
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "install_requires"
        and isinstance(node.value, ast.List)
    ]
    names = {str(one.value).partition(">=")[0] for one in wanted if isinstance(one, ast.Constant)}
    assert {declared.get(name, name).lower() for name in names} == {
        name.lower() for name in LIBRARIES if name != "pyslurm"
    }


# -- what a process pays for


def loaded(statement: str) -> set[str]:
    """The top-level modules that a fresh Python holds after a statement."""
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{statement}\nimport sys; print(*{{m.partition('.')[0] for m in sys.modules}})",
        ],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(shown.stdout.split())


def test_the_node_pays_for_no_database_and_no_server() -> None:
    found = loaded("import slurm_health.node")
    assert "slurm_health" in found
    assert not found & {"sqlalchemy", "alembic", "aiohttp", "sqlite3", "asyncio", "click", "pynvml", "psutil"}


def test_help_pays_for_nothing_heavy() -> None:
    heavy = {"sqlalchemy", "alembic", "aiohttp", "pydantic", "pynvml", "psutil", "asyncio", "ClusterShell"}
    assert not loaded("import slurm_health.cli") & heavy
    assert not loaded("import slurm_health.client, slurm_health.wire, slurm_health.signing") & (
        heavy - {"pydantic", "ClusterShell"}
    )


def test_a_scan_pays_for_no_configuration_that_is_not_there(tmp_path: Path) -> None:
    found = loaded(
        "from pathlib import Path\n"
        "from slurm_health import sources\n"
        f"sources.DEFAULT_PATH = Path('{tmp_path}/config.toml')\n"
        "from slurm_health.cli import main\n"
        f"try:\n    main(['scan', '--root', '{tmp_path}', '--json'])\n"
        "except SystemExit:\n    pass"
    )
    assert "slurm_health" in found
    heavy = {"sqlalchemy", "alembic", "aiohttp", "pydantic", "psutil", "asyncio", "ClusterShell", "tempfile"}
    assert not found & heavy
