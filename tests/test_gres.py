"""Slurm's GPU ordinals as device minors. The orders were read off Slurm 22.05's own log, line by line."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_health import gres
from slurm_health.gres import conf_path, minors
from slurm_health.sandbox.cluster import Sandbox

SWAPPED = [4, 5, 6, 7, 0, 1, 2, 3]
SLURM = "NodeName=n1 CPUs=64 Gres={}\n"


def order(gres_conf: str, slurm: str = "", present: list[int] | None = None) -> list[int] | None:
    """The minors by ordinal. `slurm`: the Gres= of slurm.conf; @ is /dev/nvidia."""
    found = minors(
        gres_conf.replace("@", "/dev/nvidia"), "n1", SLURM.format(slurm) if slurm else "", present or []
    )
    if found is None:
        return None
    assert list(found) == list(range(len(found)))
    return list(found.values())


# (gres.conf, Gres= in slurm.conf, minors by ordinal), each as slurmd 22.05 logged its devices.
WRITTEN = [
    pytest.param("NodeName=n1 Name=gpu File=@[0-7]\n", "gpu:8", [*range(8)], id="ascending"),
    pytest.param("Name=gpu File=@[2-5]\n", "gpu:4", [2, 3, 4, 5], id="not from 0"),
    pytest.param("Name=gpu File=@3\n", "gpu:1", [3], id="one"),
    pytest.param(
        "NodeName=n1 Name=gpu File=@[4-7]\nNodeName=n1 Name=gpu File=@[0-3]\n",
        "gpu:8",
        SWAPPED,
        id="two lines",
    ),
    pytest.param("Name=gpu File=@[4-7,0-3]\n", "gpu:8", SWAPPED, id="one list"),
    pytest.param("Name=gpu File=@[7,3,5,0-2,4,6]\n", "gpu:8", [7, 3, 5, 0, 1, 2, 4, 6], id="mixed list"),
    pytest.param("Name=gpu File=@2,@0\n", "gpu:2", [2, 0], id="two names"),
    pytest.param("Name=gpu File=@1[1-0]\n", "gpu:2", None, id="descending"),
    pytest.param(
        "NodeName=n1 Name=gpu File=@[0-3]\nName=gpu File=@[4-7]\n",
        "gpu:8",
        SWAPPED,
        id="Name= before NodeName=",
    ),
    pytest.param(
        "Name=gpu Type=a File=@[0-3]\nName=gpu Type=b File=@[4-7]\n",
        "gpu:b:4,gpu:a:4",
        SWAPPED,
        id="slurm.conf's order of types",
    ),
    pytest.param(
        "Name=gpu Type=b File=@[4-7]\nName=gpu Type=a File=@[0-3]\n",
        "gpu:8",
        SWAPPED,
        id="types only in gres.conf",
    ),
    pytest.param(
        "Name=gpu Type=a File=@[0-3]\nName=gpu Type=b File=@[4-7]\n",
        "gpu:a:2,gpu:b:4,gpu:a:2",
        [*range(8)],
        id="a type counted twice",
    ),
    pytest.param(
        "Name=gpu Type=A File=@[0-3]\nName=gpu Type=b File=@[4-7]\n",
        "gpu:b:3,gpu:a:2",
        [4, 5, 6, 0, 1],
        id="fewer of each type",
    ),
    pytest.param("Name=gpu File=@[7,3,5,0-2,4,6]\n", "gpu:5", [7, 3, 5, 0, 1], id="fewer in slurm.conf"),
    pytest.param("Name=gpu File=@0 Links=0,-1\nName=gpu File=@1 Links=-1,0\n", "gpu:2", [0, 1], id="Links"),
    pytest.param(
        "nodename=n[1-3] NAME=gpu \\ #\n file = @[4-7] # comment\nNodename=n1 name=gpu FILE=@[0-3] cores=0\n",
        "gpu:8",
        SWAPPED,
        id="letters' case, comments, continued lines",
    ),
    pytest.param('Name=gpu Files="@[4-7,0-3]"#x\n', "gpu:8", SWAPPED, id="quoted Files="),
    pytest.param(
        "Name=gpu File=@[4-7,0-3] Flags=nvidia_gpu_env Count=8\n", "gpu:8", SWAPPED, id="Flags, Count"
    ),
    pytest.param(
        "NodeName=n2 Name=gpu File=@[0-3]\nNodeName=n[1,3] Name=gpu File=@[4-7]\nName=nic File=/dev/x0\n",
        "gpu:4,nic:1",
        [4, 5, 6, 7],
        id="other nodes, other gres",
    ),
    pytest.param(
        "AutoDetect=nvml\nNodeName=n1 AutoDetect=off Name=gpu File=@[4-7,0-3]\n",
        "gpu:8",
        SWAPPED,
        id="off here",
    ),
]


@pytest.mark.parametrize(("gres_conf", "slurm", "expected"), WRITTEN)
def test_without_autodetect_ordinals_count_the_files_as_written(
    gres_conf: str, slurm: str, expected: list[int] | None
) -> None:
    assert order(gres_conf, slurm) == expected


@pytest.mark.parametrize(
    ("gres_conf", "slurm"),
    [
        ("", "gpu:8"),
        ("# nothing\n", ""),
        ("NodeName=n2 Name=gpu File=@[0-7]\n", ""),
        ("NodeName=@all Name=gpu File=@[0-7]\n", ""),
        ("NodeName=n* Name=gpu File=@[0-7]\n", ""),
        ("Name=gpu Count=8\n", "gpu:8"),
        ("Name=gpu File=@[0-7] Flags=CountOnly\n", "gpu:8"),
        ("Name=gpu MultipleFiles=@[0-1]\nName=gpu MultipleFiles=@[2-3]\n", "gpu:2"),
        ("Name=gpu File=@0,/dev/nvidia-caps/nvidia-cap[21-22]\n", ""),
        ("Name=gpu File=/dev/dri/renderD128\n", ""),
        ("Name=gpu File=/dev/gpu0\n", ""),
        ("Name=gpu File=/dev/nvidia\n", ""),
        ("Name=gpu File=@[00-07]\n", "gpu:8"),
        ("Name=gpu File=@[0-3\n", ""),
        ("Name=gpu File=@[0-1][0-1]\n", ""),
        ("Name=gpu File=@[x-3]\n", ""),
        ("Name=gpu File=@0,,@1\n", ""),
        ("Name=gpu File=@0 File=@1\n", ""),
        ("Name=gpu File=@[0-3] Count=8\n", ""),
        ("Name=gpu File=@[0-3]\nName=gpu File=@[3-6]\n", ""),
        ("Name=gpu File=@[0-3]\nName=gpu Count=4\n", ""),
        ("Name=gpu File=@[0-3]\nName=gpu Type=a File=@[4-7]\n", ""),
        ("Name=gpu Type=a File=@[0-3]\nName=gpu Type=b File=@[4-7]\n", ""),
        ("Name=GPU File=@[0-7]\n", "gpu:8"),
        ("Name=gpu NodeName=n1 File=@[0-7]\n", ""),
        ("Name=gpu File=@[0-7] Colour=green\n", ""),
        ("Name=gpu File+=@[0-7]\n", ""),
        ("Name=gpu File=@[0-7] and more\n", ""),
        ("Name=gpu File=@[0-7]\nInclude more.conf\n", ""),
        ("Name=gpu File=@[0-7]\nName=shard Count=80\n", ""),
        ("Name=gpu File=@[0-7]\nName=mps Count=800 File=@0\n", ""),
        ("Name=gpu File=@[0-7]\n", "gpu:8,shard:80"),
        ("Name=gpu File=@[4-7]\n", "gpu:8"),
        ("Name=gpu File=@[0-7]\n", "gpu:a:4,gpu:4"),
        ("Name=gpu AutoDetect=nvml File=@[0-7]\n", "gpu:8"),
        ("NodeName=n1 AutoDetect=nvml\nNodeName=n1 AutoDetect=off\nName=gpu File=@[0-7]\n", "gpu:8"),
    ],
)
def test_what_is_not_certain_is_unknown(gres_conf: str, slurm: str) -> None:
    assert order(gres_conf, slurm, [*range(8)]) is None


# (gres.conf, Gres= in slurm.conf, what NVML lists, minors by ordinal). What nvml and nvidia give is what
# slurmd 22.05 logged with the like in fake_gpus.conf.
DETECTED = [
    pytest.param("AutoDetect=nvml\n", "gpu:8", SWAPPED, SWAPPED, id="nvml"),
    pytest.param(
        "AutoDetect=NVML\nName=gpu Type=h100\n", "gpu:h100:8", SWAPPED, SWAPPED, id="nvml, no files"
    ),
    pytest.param("AutoDetect=nvidia\n", "gpu:4", [3, 2, 10, 1], [1, 2, 3, 10], id="nvidia"),
    pytest.param("AutoDetect=full\n", "gpu:4", [0, 1, 2, 3], [0, 1, 2, 3], id="full"),
    pytest.param("AutoDetect=full\n", "gpu:4", [1, 0, 2, 3], None, id="full, two orders"),
    pytest.param("NodeName=n[1-9] AutoDetect=nvml\n", "gpu:8", SWAPPED, SWAPPED, id="for this node"),
    pytest.param(
        "AutoDetect=off\nNodeName=n1 AutoDetect=nvml\n", "gpu:8", SWAPPED, SWAPPED, id="the node's own"
    ),
    pytest.param(
        "AutoDetect=nvml\nName=gpu File=@[0-7]\n", "gpu:8", [*range(8)], [*range(8)], id="with files"
    ),
    pytest.param(
        "AutoDetect=nvml\nName=gpu File=@[0-7]\n", "gpu:8", SWAPPED, None, id="files or NVML's order"
    ),
    pytest.param("AutoDetect=nvml\nName=gpu File=@[0-7]\n", "gpu:8", [*range(7)], None, id="a GPU lost"),
    pytest.param("AutoDetect=nvml\n", "gpu:8", SWAPPED[:7], None, id="a GPU lost, no files"),
    pytest.param("AutoDetect=nvml\n", "gpu:6", SWAPPED, None, id="fewer in slurm.conf"),
    pytest.param("AutoDetect=nvml\n", "", SWAPPED, None, id="slurm.conf unknown"),
    pytest.param("AutoDetect=nvml\n", "gpu:8", [], None, id="NVML unknown"),
    pytest.param("AutoDetect=nvml\n", "gpu:2", [1, 1], None, id="MIG listed as GPUs"),
    pytest.param("AutoDetect=nvml\n", "gpu:8,shard:80", SWAPPED, None, id="shards"),
    pytest.param("AutoDetect=nvml\nName=gpu Links=0,-1\n", "gpu:8", SWAPPED, None, id="Links"),
    pytest.param(
        "AutoDetect=rsmi\nName=gpu File=@[0-7]\n", "gpu:8", [*range(8)], None, id="another's, files"
    ),
    pytest.param("AutoDetect=rsmi\n", "gpu:8", SWAPPED, None, id="another maker's"),
]


@pytest.mark.parametrize(("gres_conf", "slurm", "present", "expected"), DETECTED)
def test_with_autodetect_only_the_one_possible_order(
    gres_conf: str, slurm: str, present: list[int], expected: list[int] | None
) -> None:
    assert order(gres_conf, slurm, present) == expected


TYPES = "Name=gpu Type=a File=/dev/nvidia[0-1]\nName=gpu Type=b File=/dev/nvidia[2-3]\n"


@pytest.mark.parametrize(
    ("slurm_conf", "expected"),
    [
        ("NodeName=DEFAULT Gres=gpu:b:2,gpu:a:2\nNodeName=n[1-4] CPUs=8\n", [2, 3, 0, 1]),
        ("NodeName=DEFAULT Gres=gpu:b:2,gpu:a:2\nnodename=n1 gres=gpu:a:2,gpu:b:2\n", [0, 1, 2, 3]),
        (
            "NodeName=n2 Gres=gpu:8\nNodeName=n1 CPUs=8 \\\n  Gres=gpu:b:2,gpu:a:2 State=UNKNOWN\n",
            [2, 3, 0, 1],
        ),
        ("Include nodes.conf\nNodeName=n1 Gres=gpu:b:2,gpu:a:2\n", [2, 3, 0, 1]),
        ("NodeName=DEFAULT Gres=gpu:b:2,gpu:a:2\nInclude nodes.conf\nNodeName=n1\n", None),
        ("Include nodes.conf\n", None),
        ("NodeName=n1 Gres=gpu:b:no_consume:2,gpu:a:2\n", None),
        ("NodeName=n1 Gres=gpu:b,gpu:a:2\n", None),
    ],
)
def test_reads_the_nodes_gres_in_slurm_conf(slurm_conf: str, expected: list[int] | None) -> None:
    found = minors(TYPES, "n1", slurm_conf)
    assert (found and list(found.values())) == expected


def test_gres_conf_lies_beside_slurm_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc, cache = tmp_path / "etc", tmp_path / "run"
    for folder in (etc, cache):
        folder.mkdir()
    monkeypatch.setattr(gres, "_DEFAULT_FOLDER", etc)
    monkeypatch.setattr(gres, "_CONFIGLESS_FOLDER", cache)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    assert conf_path() == etc / "gres.conf"
    (cache / "slurm.conf").touch()
    assert conf_path() == cache / "gres.conf"
    (etc / "slurm.conf").touch()
    assert conf_path("") == etc / "gres.conf"
    monkeypatch.setenv("SLURM_CONF", "/opt/a/slurm.conf")
    assert conf_path() == Path("/opt/a/gres.conf")
    assert conf_path("/opt/b/slurm.conf") == Path("/opt/b/gres.conf")


@pytest.fixture
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    place = Sandbox(Path(f"/tmp/slurm-health-gres-{os.getpid()}"))
    place.up(
        nodes=1,
        health=False,
        slurm_conf=["SlurmdDebug=verbose", "DebugFlags=Gres", f"Prolog={_prolog(place)}"],
    )
    yield place
    place.down()


def _prolog(place: Sandbox) -> Path:
    return place.layout.etc / "ordinals"


@pytest.mark.cluster
def test_a_real_slurm_orders_the_same(sandbox: Sandbox) -> None:
    layout = sandbox.layout
    script, seen = _prolog(sandbox), layout.etc / "seen"
    script.write_text(f'#!/bin/sh\necho "$SLURM_JOB_GPUS" >> {seen}\n')
    script.chmod(0o755)
    device = layout.hardware("n1") / "dev/nvidia"
    text = f"Name=gpu Type=a File={device}[3,0-2]\nNodeName=n1 Name=gpu Type=b File={device}[6-7,4-5]\n"
    slurm_conf = layout.slurm_conf.read_text().replace("Gres=gpu:8", "Gres=gpu:b:4,gpu:a:4")
    (layout.etc / "gres.conf").write_text(text)
    layout.slurm_conf.write_text(slurm_conf)
    sandbox.stop("slurmd:n1")
    sandbox.stop("slurmctld")
    log = layout.node("n1") / "log/slurmd.log"
    log.write_text("")
    for name in ("slurmctld", "slurmd:n1"):
        sandbox.start(name)
        deadline = time.monotonic() + 60
        while not sandbox.ready(name):
            assert time.monotonic() < deadline, name
            time.sleep(0.1)

    found = minors(text, "n1", slurm_conf)
    assert found is not None
    logged = re.findall(rf"gpu device number \d+\({re.escape(str(device))}(\d+)\)", log.read_text())
    assert [int(minor) for minor in logged] == list(found.values()) == [6, 7, 4, 5, 3, 0, 1, 2]

    job = ["srun", "--gres=gpu:a:1", "true"]
    subprocess.run(job, env={**os.environ, **sandbox.env()}, check=True, timeout=60, capture_output=True)
    assert seen.read_text().split() == ["4"]  # the first of type a, whose minor is 3
    assert found[4] == 3


def test_what_is_included_stands_in_its_place(tmp_path: Path) -> None:
    files = {
        "slurm.conf": "ClusterName=x\nInclude nodes.conf # ours\ninclude other/%c.conf\nPartitionName=p",
        "nodes.conf": f"include {tmp_path}/other/more.conf",
        "other/more.conf": "NodeName=n1 Gres=gpu:4",
        "loop.conf": "Include loop.conf",
        "torn.conf": "Include away.conf",
    }
    (tmp_path / "other").mkdir()
    for name, said in files.items():
        (tmp_path / name).write_text(said)
    whole = gres.text(tmp_path / "slurm.conf")
    assert whole == "ClusterName=x\nNodeName=n1 Gres=gpu:4\ninclude other/%c.conf\nPartitionName=p"
    assert minors("AutoDetect=nvml\n", "n1", whole, [2, 0, 1, 3]) == {0: 2, 1: 0, 2: 1, 3: 3}
    assert gres.text(tmp_path / "loop.conf") == "Include loop.conf"
    with pytest.raises(FileNotFoundError):
        gres.text(tmp_path / "torn.conf")
