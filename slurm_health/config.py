"""The site's configuration: one file for the whole cluster, checked as a whole.

`/etc/slurm-health/config.toml`, then `conf.d/*.toml` beside it in alphabetical order, over the defaults
written here. Unknown keys are refused, and every mistake is reported at once with its file and path.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from ClusterShell.NodeSet import NodeSet, NodeSetException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from slurm_health import duration, rules, sources

PCIE = re.compile(r"(?:(\d+(?:\.\d+)?) GT/s )?x(\d+)")
RECIPIENT = re.compile(r"[\w.+][\w.+-]*(@[\w.-]+)?", re.ASCII)
WEBHOOK = re.compile(r"https?://[^\s/@]+(/\S*)?", re.ASCII)
DEFAULT_PORT = 6821  # Slurm's own daemons have 6817 to 6820


class ConfigError(Exception):
    """All that is wrong with a configuration, one line each: `file: key.path: what and how to mend it`."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def _address(text: str, default: int = DEFAULT_PORT) -> str:
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(default)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"write host:port, such as slurmctl:{default}, not {text!r}")
    return f"{host}:{port}"


def _addresses(texts: tuple[str, ...]) -> tuple[str, ...]:
    addresses = tuple(map(_address, texts))
    if len(set(addresses)) < len(addresses):
        raise ValueError("one address stands there twice")
    return addresses


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _recipient(text: str) -> str:
    if not RECIPIENT.fullmatch(text):
        raise ValueError("write an address, such as ops@site.example, or a local user's name")
    return text


def _webhook(text: str) -> str:
    if text and not WEBHOOK.fullmatch(text):
        raise ValueError("write its address, such as https://chat.site.example/hooks/{token}")
    return text


def _hostlist(text: str) -> str:
    try:
        NodeSet(text)
    except NodeSetException as error:
        raise ValueError(f"no hostlist: {error}") from None
    return text


def _pcie_link(text: str) -> tuple[int, float]:
    """Lanes and GT/s; 0 where only the width is given."""
    found = PCIE.fullmatch(text)
    if found is None:
        raise ValueError('write speed and width, such as "16 GT/s x16", or the width alone: "x16"')
    return int(found[2]), float(found[1] or 0)


def _pcie(text: str) -> str:
    _pcie_link(text)
    return text


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("write the whole path, from / on")
    return path


def _database(url: str) -> str:
    if "://" not in url:
        raise ValueError("write sqlite:////path/of/ledger.db, or postgresql+psycopg://user@host/database")
    return url


Seconds = Annotated[float, BeforeValidator(duration.seconds)]
Period = Annotated[Seconds, Field(gt=0)]
Absolute = Annotated[Path, AfterValidator(_absolute)]


class Section(BaseModel):
    """A table of the file: no key that is not declared, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Auth(Section):
    """Who may speak: MUNGE, or an HMAC key file on sites without it."""

    method: Literal["munge", "hmac"] = "munge"
    munge_socket: str = Field("", description="munged's socket; empty: munged's own default")
    key_file: str = Field("", description="the shared key for method hmac, readable by root only")
    check_address: bool = Field(True, description="a report must come from its node's address in Slurm")

    @model_validator(mode="after")
    def _key(self) -> Auth:
        if self.method == "hmac" and not self.key_file:
            raise ValueError('method "hmac" needs a key_file')
        return self


class Budget(Section):
    """How many nodes may be out by us: the larger of the two numbers counts, in all and per window."""

    percent: float = Field(10, ge=0, le=100)
    at_least: int = Field(2, ge=0)
    window: Seconds = 600.0
    window_percent: float = Field(2, ge=0, le=100)
    window_at_least: int = Field(2, ge=0)


class Requeue(Section):
    progress: Seconds = Field(
        600.0,
        description="a job that meets the same GPU fault on a second node, having run shorter, is held",
    )
    place: Literal["top", "keep"] = Field(
        "top", description="top: before all that wait, until it runs; keep: as Slurm orders its queue"
    )
    budget: int = Field(3, ge=0, description="so often is one job requeued for faults; beyond it, held")
    budget_max: int = Field(10, ge=0, description="the most that its owner may ask for")
    signal: Literal["none", "USR1", "USR2", "TERM", "INT", "HUP"] = Field(
        "none", description="before a requeue that can wait; it kills a job that does not trap it"
    )
    grace: Seconds = Field(60.0, description="from the signal to the requeue")
    grace_max: Seconds = Field(600.0, description="the most that its owner may ask for")
    steps: Literal["batch", "all"] = Field(
        "batch", description="who gets the signal: the script, or all steps"
    )
    unasked: Literal["now", "finish"] = Field(
        "finish", description='what job = "checkpoint" means to a job without a signal'
    )


class Resume(Section):
    """When a node that is out by us serves again by itself."""

    mode: Literal["off", "auto"] = Field("off", description="auto: when what put it out is over; off: never")
    after: Seconds = Field(
        300.0, description="so long must the fault be gone; twice as long after each return of the last day"
    )
    codes: tuple[str, ...] = Field(
        ("IB_PORT_*", "NIC_DOWN", "NIC_SLOW", "GPU_DRIVER_*"),
        description="what may be over by itself; a node with anything else against it waits for you",
    )


def _about_a_node(command: tuple[str, ...]) -> tuple[str, ...]:
    if command and not (command[0].startswith("/") and any("{node}" in part for part in command[1:])):
        raise ValueError('write a path and its arguments, one of them with {node}: ["/sbin/off", "{node}"]')
    return command


class Fence(Section):
    """How a dead node that keeps a job from ending is made sure to be off, before it is set DOWN."""

    command: Annotated[tuple[str, ...], AfterValidator(_about_a_node)] = Field(
        (), description="what switches {node} off and exits 0 when it is; empty: you are told, no more"
    )
    after: Seconds = Field(300.0, description="so long is a job COMPLETING before it is stuck")
    deadline: Period = Field(60.0, description="the command is ended after this long, and has failed")


class Notify(Section):
    """Who is told of what happens, besides the jobs' owners."""

    mail: tuple[Annotated[str, AfterValidator(_recipient)], ...] = Field((), description="addresses")
    mail_from: Annotated[str, AfterValidator(lambda text: text and _recipient(text))] = Field(
        "", description="empty: slurm-health at the controller's host"
    )
    smtp: Annotated[str, AfterValidator(lambda text: _address(text, 25))] = Field(
        "localhost:25", description="the host that takes the mail"
    )
    webhook: Annotated[str, AfterValidator(_webhook)] = Field(
        "", description="gets a POST of JSON; {token} stands for what is in token_file"
    )
    token_file: str = Field("", description="a secret, sent as a bearer token unless it is in the address")
    events: tuple[Literal["incident", "drain", "resume", "requeue", "ran", "hold", "help"], ...] = Field(
        ("drain", "requeue", "ran", "hold", "help"),
        description="help: what needs a person; ran: a job runs again; resume: a node serves again",
    )
    severity: Literal["warning", "critical"] = Field(
        "critical", description='how bad a fault must be that "incident" tells'
    )
    gather: Seconds = Field(60.0, description="so long is gathered what goes into one message")

    @model_validator(mode="after")
    def _token(self) -> Notify:
        if "{token}" in self.webhook and not self.token_file:
            raise ValueError("webhook names a {token}, and no token_file says where it is")
        return self


class Slurm(Section):
    backend: Literal["auto", "pyslurm", "commands"] = Field(
        "auto", description="auto: pyslurm where it is for the running release, else Slurm's commands"
    )
    conf: str = Field("", description="slurm.conf; empty: SLURM_CONF or Slurm's own default")
    bin: str = Field("", description="the folder of scontrol, squeue and sinfo; empty: PATH")
    deadline: Period = Field(10.0, description="no Slurm command is waited for longer")


class Ledger(Section):
    url: Annotated[str, AfterValidator(_database)] = "sqlite:////var/lib/slurm-health/ledger.db"
    keep: Seconds = Field(90 * 86400.0, description="closed incidents are kept this long")
    quiet: Seconds = Field(3600.0, description="an incident that only warns closes after this long unseen")


class Probes(Section):
    kernel: bool = True
    gpu: bool = True
    infiniband: bool = True
    nic: bool = True
    pcie: bool = True
    memory: bool = True
    disk: bool = True
    system: bool = True
    gpu_every: Period = 15.0
    gpu_deadline: Period = 10.0
    links_every: Period = 1.0
    folder: Absolute = Field(sources.PROBES, description="the site's own probes")
    site_every: Period = 60.0
    site_deadline: Period = Field(10.0, description="a site's probe that takes longer is ended")
    counters_every: Period = Field(30.0, description="how often rates and error counters of links are read")
    host_every: Period = Field(60.0, description="how often PCIe, memory, disks and the rest are looked at")


class Links(Section):
    ports: int | None = Field(None, ge=0)
    gbps: float | None = Field(None, gt=0)
    rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description='Gb/s of ports that differ, by name or pattern: { "mlx5_[89]/1" = 200 }'
    )


class Gpu(Section):
    """What each GPU is."""

    model: Annotated[
        tuple[str, ...],
        BeforeValidator(_listed),
        Field(description='what NVML calls it, or a pattern: "NVIDIA H100*"; several: any of them'),
    ] = ()
    memory: float | None = Field(None, gt=0, description="GiB")


class Nodes(Section):
    """What is expected of the nodes that match; later sections win, key by key."""

    match: Annotated[str, AfterValidator(_hostlist)]
    gpus: int | None = Field(None, ge=0)
    gpu: Gpu = Gpu()
    infiniband: Links = Links()
    nics: Links = Links()
    pcie: dict[str, Annotated[str, AfterValidator(_pcie)]] = Field(
        {}, description='the link of each PCI address: "16 GT/s x16", or "x16" where the speed may change'
    )
    memory: float | None = Field(None, gt=0, description="GiB of RAM: MemTotal, and a crash kernel's")
    services: tuple[str, ...] = Field((), description='systemd units that should run: "nvidia-fabricmanager"')
    ignore: tuple[str, ...] = Field(
        (), description='device globs that are never judged, ports not even read: "mlx5_bond_0/*"'
    )


class Generated(Section):
    """What `config generate` prints."""

    nodes: tuple[Nodes, ...]


class Config(Section):
    mode: Literal["observe", "drain", "requeue"] = "observe"
    controller: Annotated[
        tuple[str, ...],
        BeforeValidator(_listed),
        AfterValidator(_addresses),
        Field(min_length=1, description="several: one acts, the others stand by"),
    ] = (f"localhost:{DEFAULT_PORT}",)
    when_alone: Literal["observe", "refuse"] = "observe"
    run_dir: Absolute = Path("/run/slurm-health")
    state_dir: Absolute = Path("/var/lib/slurm-health")
    auth: Auth = Auth()
    budget: Budget = Budget()
    requeue: Requeue = Requeue()
    resume: Resume = Resume()
    fence: Fence = Fence()
    notify: Notify = Notify()
    slurm: Slurm = Slurm()
    ledger: Ledger = Ledger()
    probes: Probes = Probes()
    nodes: tuple[Nodes, ...] = ()
    rule: tuple[dict[str, Any], ...] = ()

    def expected(self, node: str) -> dict[str, Any]:
        """What the [[nodes]] sections together say of one node, as baseline.Expectations names it."""
        merged: dict[str, Any] = {}
        ib_rates: dict[str, float] = {}
        nic_rates: dict[str, float] = {}
        pcie: dict[str, tuple[int, float]] = {}
        services: tuple[str, ...] = ()
        ignore: tuple[str, ...] = ()
        for section in self.nodes:
            if node not in NodeSet(section.match):
                continue
            said = {
                "gpus": section.gpus,
                "gpu_models": section.gpu.model or None,
                "gpu_memory": section.gpu.memory,
                "ib_ports": section.infiniband.ports,
                "ib_gbps": section.infiniband.gbps,
                "nic_ports": section.nics.ports,
                "nic_gbps": section.nics.gbps,
                "memory": section.memory,
            }
            merged |= {key: value for key, value in said.items() if value is not None}
            ib_rates |= section.infiniband.rates
            nic_rates |= section.nics.rates
            pcie |= {address: _pcie_link(words) for address, words in section.pcie.items()}
            services += section.services
            ignore += section.ignore
        rates = {"ib_rates": ib_rates, "nic_rates": nic_rates}
        return {**merged, **rates, "pcie": pcie, "services": services, "ignore": ignore}

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each controller."""
        parts = [address.rpartition(":") for address in self.controller]
        return [(host, int(port)) for host, _, port in parts]


def load(explicit: str | None = None) -> Config:
    """The configuration in force. A missing default file means the defaults; ConfigError on any mistake."""
    return read(explicit)[0]


def read(explicit: str | None = None) -> tuple[Config, dict[str, str]]:
    """The configuration and, for each key path that a file sets, which file."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    mistakes: list[str] = []
    main = sources.path(explicit)
    try:
        files = sources.files(explicit)
    except FileNotFoundError as error:
        raise ConfigError([str(error)]) from None
    for file in files:
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            mistakes.append(f"{file}: {error.strerror}")
            continue
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            mistakes.append(f"{file}: {error}")
            continue
        _merge(merged, table, file, origins, "")
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        mistakes += [_mistake(detail, origins, main) for detail in error.errors()]
    rule_tables = merged.get("rule", [])
    if rule_tables and isinstance(rule_tables, list) and all(isinstance(one, dict) for one in rule_tables):
        try:
            rules.load(rule_tables)
        except rules.RuleError as error:
            # Said once for each shipped rule of that code, as rules[0].hold.
            for line in dict.fromkeys(error.errors):
                number, _, rest = line.removeprefix("rules[").partition("]")
                mistakes.append(f"{origins.get(f'rule.{number}', main)}: rule.{number}{rest}")
    if mistakes:
        raise ConfigError(mistakes)
    return config, origins


def sections(file: Path) -> list[dict[str, Any]]:
    """The [[nodes]] tables of one file, in which nothing else stands. ConfigError on any mistake."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        Generated.model_validate(table)
    except ValidationError as error:
        raise ConfigError([_mistake(detail, {}, file) for detail in error.errors()]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{file}: {error}"]) from None
    nodes: list[dict[str, Any]] = table["nodes"]
    return nodes


def _merge(
    into: dict[str, Any], table: Mapping[str, Any], file: Path, origins: dict[str, str], at: str
) -> None:
    for key, value in table.items():
        where = f"{at}{key}"
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value, file, origins, f"{where}.")
            origins.setdefault(where, str(file))
        elif isinstance(value, list) and isinstance(into.get(key), list):
            origins.update({f"{where}.{len(into[key]) + n}": str(file) for n in range(len(value))})
            into[key] = into[key] + value
        else:
            into[key] = value
            origins[where] = str(file)
            if isinstance(value, list):
                origins.update({f"{where}.{n}": str(file) for n in range(len(value))})


def _mistake(detail: Any, origins: Mapping[str, str], main: Path) -> str:
    parts = [str(part) for part in detail["loc"]]
    source = next(
        (origins[where] for n in range(len(parts), 0, -1) if (where := ".".join(parts[:n])) in origins), main
    )
    message = {
        "extra_forbidden": "unknown key; `slurm-health config show` lists the known ones",
        "missing": "is required",
    }.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    given = detail.get("input")
    shown = (
        f" (it says {given!r})"
        if isinstance(given, str | int | float) and "extra" not in detail["type"]
        else ""
    )
    return f"{source}: {'.'.join(parts)}: {message}{shown}"
