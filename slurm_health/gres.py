"""Which GPU Slurm means: its ordinals (SLURM_JOB_GPUS in a prolog) as NVIDIA device minor numbers.

An ordinal is a place in slurmd's list of devices, never the number at the end of a file's name: Slurm prints
gres_device_t.index (gres_common.c:gres_common_prep_set_env; 22.05: gres_common_epilog_set_env), which counts
the files in the order of the list (gres.c:gres_node_config_load; 22.05: common_node_config_load). UniqueId,
Flags, Cores and Links print or order nothing else. The same in 22.05 to 26.05. The order of the list:

- Without AutoDetect, as written: first all lines that start with Name=, then those that start with NodeName=
  (gres.c:gres_g_node_config_load; since 26.05 _parse_gres_conf_locked); a File= in the order of its text,
  [4-7,0-3] too. Where slurm.conf's Gres= names types, its order of types comes first, and what it does not
  count is dropped from the end of each type (gres.c:_merge_config, _merge_gres2). Nothing is sorted.
- With AutoDetect=nvml, in the order of NVML's indices (gres_gpu.c:_merge_system_gres_conf sorts by Links, in
  which gpu_nvml.c notes the index); files of gres.conf that NVML does not list come last.
- With AutoDetect=nvidia, by file name, numbers as numbers. `full` (26.05) is the first that finds GPUs.
- AutoDetect does nothing where slurmd lacks the plugin or its library (gpu.c:_get_gpu_type): as written.

The syntax is gres.conf(5)'s, in the reading of parse_config.c.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

_PAIR = re.compile(r'\s*([A-Za-z0-9_.]+)\s*([-*+/]?)=\s*(?:"([^"]*)"|(\S+))(?:\s|$)', re.ASCII)
_INCLUDE = re.compile(r"\s*include\s", re.IGNORECASE)
_INCLUDED = re.compile(r"\s*include\s+([^\s%*#]+)\s*(?:#.*)?", re.IGNORECASE)  # %c, %h: slurmd's to know
_DEEPEST = 8  # files that include each other
_KEYS = {"autodetect", "name", "nodename", "type", "count", "cpus", "cores", "link", "links", "flags"}
_KEYS |= {"file", "files", "multiplefiles"}
_HOSTLIST = re.compile(r"[\w.,\[\]-]+", re.ASCII)  # no operators, groups or wildcards of ClusterShell's own
_DEVICE = re.compile(r"(?:.*/)?dev/nvidia(0|[1-9]\d{0,4})", re.ASCII)
_WORD = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_RANGED = re.compile(r"([^\[\]]*)\[([^\[\]]*)\]([^\[\]]*)")
_SPAN = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_SHARING = {"mps", "shard"}
_DEFAULT_FOLDER = Path("/etc/slurm")
_CONFIGLESS_FOLDER = Path("/run/slurm/conf")


class _UnclearError(Exception):
    """The text can be read in more than one way, or Slurm would not start with it."""


@dataclass(frozen=True, slots=True)
class _Record:
    """The GPUs of one line of gres.conf: their type in lower case ("" where none) and minors."""

    type: str
    minors: list[int]


@dataclass(slots=True)
class _Lines:
    """What gres.conf says to one node."""

    records: list[_Record] = field(default_factory=list)
    autodetect: str = "off"
    fileless: bool = False
    links: bool = False


def minors(
    gres_conf: str, node: str, slurm_conf: str = "", present: Sequence[int] = ()
) -> dict[int, int] | None:
    """Ordinal -> device minor of this node's GPUs, or None where that is not certain.

    `gres_conf` and `slurm_conf` are the files (see text). Without slurm.conf, GPUs of several types are not
    certain, and shards that only slurm.conf mentions are not noticed. `present` are the minors of all
    GPUs in the order in which NVML lists them now, and must be what slurmd found at its start. It matters
    with AutoDetect only, which is not certain without it and slurm.conf. Map in the prolog and keep the
    answer: with AutoDetect slurmd has another list after its restart with a GPU lost.

    Not certain, too: MIG, MultipleFiles, files other than .../dev/nvidia<N>, no File, CountOnly, mps or
    shard on the node (one GPU has several jobs then), an Include that is left, and whatever keeps slurmd from
    starting or the node from being registered.
    """
    try:
        lines = _read(gres_conf, node)
        configured = _configured(slurm_conf, node)
        if lines.autodetect == "off":
            order = None if lines.fileless else _as_written(lines.records, configured)
        else:
            order = _detected(lines, configured, present)
    except (_UnclearError, NodeSetException):
        return None
    return dict(enumerate(order)) if order else None


def conf_path(slurm_conf: str = "") -> Path:
    """Where gres.conf lies, whether it exists or not: beside slurm.conf.

    `slurm_conf` is that file's path where known ("" else); then SLURM_CONF, /etc/slurm, and the cache of a
    configless slurmd, in the order of read_config.c:_establish_config_source. A slurmd that was started with
    another -f, or built with another sysconfdir, reads elsewhere.
    """
    named = slurm_conf or os.environ.get("SLURM_CONF", "")
    if named:
        return Path(named).parent / "gres.conf"
    for folder in (_DEFAULT_FOLDER, _CONFIGLESS_FOLDER):
        if (folder / "slurm.conf").exists():
            return folder / "gres.conf"
    return _DEFAULT_FOLDER / "gres.conf"


def text(path: Path) -> str:
    """slurm.conf or gres.conf, with what it includes in its place: files of the folder of slurm.conf, where
    they name no other (parse_config.c). OSError and UnicodeDecodeError as of any file."""
    return _with_included(path, path.parent, _DEEPEST)


def _with_included(path: Path, folder: Path, deep: int) -> str:
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if deep and (named := _INCLUDED.fullmatch(line)):
            lines[number] = _with_included(folder / named[1], folder, deep - 1)
    return "\n".join(lines)


def _as_written(records: Sequence[_Record], configured: list[tuple[str, int]] | None) -> list[int] | None:
    """The order without AutoDetect, None where only slurm.conf, which is not known, could tell."""
    typed = {record.type for record in records}
    if configured is None:
        return [minor for record in records for minor in record.minors] if len(typed) <= 1 else None
    order = []
    left = list(records)
    for kind, count in configured:
        missing = count
        for record in [record for record in left if kind in ("", record.type)]:
            if missing == 0:
                break
            left.remove(record)
            order += record.minors[:missing]
            missing -= len(record.minors[:missing])
        if missing:
            raise _UnclearError("slurm.conf has more GPUs: the node is not registered")
    return order


def _detected(
    lines: _Lines, configured: list[tuple[str, int]] | None, present: Sequence[int]
) -> list[int] | None:
    """The order with AutoDetect, None where the orders that are possible differ."""
    if lines.links or (lines.records and lines.fileless) or len(set(present)) != len(present):
        return None
    possible = {
        "nvml": [list(present)],
        "nvidia": [sorted(present)],
        "full": [list(present), sorted(present)],
    }.get(lines.autodetect, [])
    if not possible:
        return None
    if lines.records:
        written = _as_written(lines.records, configured)
        if written is None:
            return None
        possible.append(written)
    # Which GPUs Slurm leaves out depends on their types, which NVML names in its own words.
    if configured is None or sum(count for _, count in configured) != len(present):
        return None
    return possible[0] if all(order == possible[0] for order in possible) else None


def _read(text: str, node: str) -> _Lines:
    """gres.conf, what of it holds for the node, in Slurm's order."""
    found = _Lines()
    everywhere: set[str] = set()
    here: set[str] = set()
    named: list[dict[str, str]] = []
    for first, pairs in _parsed(text):
        if not pairs.keys() <= _KEYS or (first != "nodename" and "nodename" in pairs):
            raise _UnclearError("slurmd does not start")
        if first == "autodetect" and len(pairs) == 1:
            everywhere.add(pairs["autodetect"].lower())
        elif first == "name" and "autodetect" not in pairs:
            _take(found, pairs)
        elif first == "nodename":
            if _holds(pairs["nodename"], node):
                here |= {pairs["autodetect"].lower()} if "autodetect" in pairs else set()
                named += [pairs] if "name" in pairs else []
        else:
            raise _UnclearError("unusual")
    for pairs in named:
        _take(found, pairs)
    modes = here or everywhere or {"off"}
    if len(modes) > 1:
        raise _UnclearError("slurmd does not start")
    found.autodetect = modes.pop()
    files = [minor for record in found.records for minor in record.minors]
    if len(set(files)) != len(files) or len({record.type == "" for record in found.records}) > 1:
        raise _UnclearError("slurmd does not start")
    return found


def _take(found: _Lines, pairs: dict[str, str]) -> None:
    """Add a line of the node."""
    name = pairs["name"]
    if name.lower() in _SHARING:
        raise _UnclearError("one GPU, several jobs")
    if name.lower() != "gpu":
        return
    # Slurm compares this name with its letters' case in some places and without it in others.
    if name != "gpu" or "multiplefiles" in pairs or ("file" in pairs and "files" in pairs):
        raise _UnclearError("not one file, one GPU")
    if "countonly" in pairs.get("flags", "").lower():
        raise _UnclearError("no ordinals")
    found.links |= "link" in pairs or "links" in pairs
    files = pairs.get("file", pairs.get("files"))
    if files is None:
        found.fileless = True
        return
    numbers = [_minor(path) for path in _expanded(files)]
    if pairs.get("count", str(len(numbers))) != str(len(numbers)):
        raise _UnclearError("slurmd does not start")
    found.records.append(_Record(pairs.get("type", "").lower(), numbers))


def _configured(text: str, node: str) -> list[tuple[str, int]] | None:
    """(type, count) of the GPUs that slurm.conf gives the node, None where that is not known."""
    default: str | None = None
    gres: str | None = None
    certain = True
    for line in _lines(text):
        if _INCLUDE.match(line):
            certain = False
        elif re.match(r"\s*nodename\s*=", line, re.IGNORECASE):
            pairs = _pairs(line)
            if pairs["nodename"].upper() == "DEFAULT":
                default = pairs.get("gres", default)
            elif _holds(pairs["nodename"], node):
                gres = pairs.get("gres", default if certain else None)
    if gres is None:
        return None
    counts: dict[str, int] = {}
    for word in filter(None, gres.split(",")):
        name, *rest = word.strip().lower().split(":")
        if name in _SHARING:
            raise _UnclearError("one GPU, several jobs")
        if name != "gpu":
            continue
        *kind, count = rest or ["1"]
        if len(kind) > 1 or not re.fullmatch(r"\d{1,5}", count, re.ASCII):
            return None
        counts["".join(kind)] = counts.get("".join(kind), 0) + int(count)
    if len(counts) > 1 and "" in counts:
        raise _UnclearError("slurmd does not start")
    return list(counts.items())


def _parsed(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line that says something: its first key, and the value of every key (in lower case)."""
    for line in _lines(text):
        if _INCLUDE.match(line):
            raise _UnclearError("the rest is elsewhere")
        pairs = _pairs(line)
        yield next(iter(pairs)), pairs


def _lines(text: str) -> Iterator[str]:
    """Logical lines without comments; empty ones are left out."""
    whole = ""
    for line in text.split("\n"):
        said = line.split("#", 1)[0].rstrip()
        continued = said.endswith("\\")
        whole += said.removesuffix("\\")
        if not continued:
            if whole.strip():
                yield whole
            whole = ""
    if whole.strip():
        yield whole


def _pairs(line: str) -> dict[str, str]:
    """Key -> value of one line. A key given twice is refused."""
    found: dict[str, str] = {}
    place = 0
    if "\\" in line:
        raise _UnclearError("escapes")
    while line[place:].strip():
        match = _PAIR.match(line, place)
        if match is None or match[2] or match[1].lower() in found:
            raise _UnclearError(f"cannot read {line[place:]!r}")
        found[match[1].lower()] = match[4] if match[3] is None else match[3]
        place = match.end()
    return found


def _holds(hostlist: str, node: str) -> bool:
    if not _HOSTLIST.fullmatch(hostlist):
        raise _UnclearError("not a plain hostlist")
    return node in NodeSet(hostlist, resolver=RESOLVER_NOGROUP)


def _expanded(files: str) -> Iterator[str]:
    """The paths of a File=, in the order of the text (a NodeSet would sort them)."""
    if _WORD.sub("", files).strip(",") or files.startswith(",") or files.endswith(",") or ",," in files:
        raise _UnclearError("not a list of files")
    for word in _WORD.findall(files):
        ranged = _RANGED.fullmatch(word)
        if ranged is None:
            if "[" in word or "]" in word:
                raise _UnclearError("several ranges in one name")
            yield word
            continue
        for span in ranged[2].split(","):
            match = _SPAN.fullmatch(span)
            if match is None or int(match[2] or match[1]) < int(match[1]):
                raise _UnclearError("not a range")
            if match[1] != str(int(match[1])):
                raise _UnclearError("numbers with leading zeros name other files")
            for number in range(int(match[1]), int(match[2] or match[1]) + 1):
                yield f"{ranged[1]}{number}{ranged[3]}"


def _minor(path: str) -> int:
    # The driver's own names: nvidia-modprobe makes /dev/nvidia<minor>. MIG is /dev/nvidia-caps/nvidia-cap<N>.
    match = _DEVICE.fullmatch(path)
    if match is None:
        raise _UnclearError(f"{path} does not name a minor")
    return int(match[1])
