"""What stands in docker/ fits what it configures. The cluster itself is tried by `make docker-demo`."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from slurm_health import config

TOP = Path(__file__).parent.parent
DOCKER = TOP / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text()


@pytest.mark.parametrize("name", ["base", "engine", "entry", "fault"])
def test_scripts_parse(name):
    script = DOCKER / name
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sites_configuration_has_no_mistake(tmp_path):
    (tmp_path / "conf.d").mkdir()
    shutil.copy(TOP / "etc/config.toml", tmp_path)
    shutil.copy(DOCKER / "site.toml", tmp_path / "conf.d")
    loaded = config.load(str(tmp_path / "config.toml"))
    assert (loaded.mode, loaded.addresses) == ("requeue", [("ctld", 6821)])
    assert all(loaded.expected(f"n{number}")["gpus"] == 8 for number in range(1, 9))


def test_every_host_has_the_address_that_the_others_know():
    """Names stand in all containers' hosts file; a typing error there would make a host's reports refused."""
    known = dict(re.findall(r"^    (\w+): \$\{NET:-[\d.]+\}\.(\d+)$", COMPOSE, re.MULTILINE))
    own = dict(re.findall(r'hostname: (\w+)\n +networks: .*NET:-[\d.]+\}\.(\d+)"', COMPOSE))
    assert {name: own[name] for name in known} == known
    assert set(known) == {"db", "ctld", *(f"n{number}" for number in range(1, 9))}
    assert len(set(own.values())) == len(own)


def test_a_misspelled_fault_is_a_usage_error():
    done = subprocess.run([str(DOCKER / "fault")], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "docker/fault HOST cut" in done.stderr


spec = importlib.util.spec_from_file_location("table", DOCKER / "table.py")
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)
PAGE = table.PAGE.read_text()


JUNIT = """<testsuites><testsuite>
<testcase name="a"><properties>
<property name="slurm" value="slurm {slurm}.3"/><property name="backend" value="commands"/>
</properties></testcase>
<testcase name="b"><failure message="x"/></testcase>
<testcase name="c"><error message="y"/></testcase>
<testcase name="d"><skipped message="no pyslurm"/></testcase>
<testcase name="e"><skipped message="no pyslurm"/></testcase>
{more}
</testsuite></testsuites>"""


def test_a_run_has_its_row(tmp_path):
    file = tmp_path / "run.xml"
    file.write_text(JUNIT.format(slurm="26.05", more=""))
    run = table.read(file, "1a2b3c4")
    assert run == ("26.05.3", "commands", "1", "2", "2: no pyslurm", "1a2b3c4")
    page = table.render(PAGE, table.parse(PAGE) | {run.key: run})
    assert "| 26.05.3 | commands | 1 | 2 | 2: no pyslurm | 1a2b3c4 |\n" in page
    assert table.parse(page)[run.key] == run
    assert table.render(page, table.parse(page)) == page


def test_a_run_that_took_both_ways_has_no_row(tmp_path):
    file = tmp_path / "run.xml"
    other = '<testcase><properties><property name="backend" value="pyslurm"/></properties></testcase>'
    file.write_text(JUNIT.format(slurm="26.05", more=other))
    with pytest.raises(SystemExit, match="of no one Slurm by one way"):
        table.read(file, "")


def test_the_page_tells_of_every_slurm_by_every_way_and_of_no_failure():
    runs = table.parse(PAGE)
    assert set(runs) == {
        ("22.05", "commands"),
        ("24.11", "commands"),
        ("26.05", "commands"),
        ("26.05", "pyslurm"),
    }
    assert {run.failed for run in runs.values()} == {"0"}
