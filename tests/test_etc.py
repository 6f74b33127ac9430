"""The files in etc/: what an admin copies must load as it stands."""

import configparser
import os
import pwd
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ETC = ROOT / "etc"
UNITS = [ETC / "slurm-health-node.service", ETC / "slurm-health-controller.service"]


def unit(path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return {section: dict(parser[section]) for section in parser.sections()}


def test_the_sample_configuration_changes_nothing() -> None:
    assert tomllib.loads((ETC / "config.toml").read_text()) == {}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_units_load(path: Path, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/slurm-health/bin/slurm-health", "/bin/true"))
    done = subprocess.run([tool, "verify", copy], capture_output=True, text=True, timeout=60)
    assert copy.name not in done.stderr


def test_the_node_is_known_before_its_first_job() -> None:
    node = unit(UNITS[0])
    assert node["Unit"]["Before"] == "slurmd.service"
    assert "Requires" not in node["Unit"]
    assert node["Service"]["Type"] == "notify"


def test_the_verdict_outlives_the_daemon() -> None:
    service = unit(UNITS[0])["Service"]
    assert service["RuntimeDirectory"] == "slurm-health"
    assert service["RuntimeDirectoryMode"] == "0755"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert int(service["WatchdogSec"]) < 60


def test_a_client_of_nvml_is_not_killed_first() -> None:
    service = unit(UNITS[0])["Service"]
    assert service["WatchdogSignal"] == "SIGTERM"
    assert service["SystemCallErrorNumber"] == "EPERM"


def test_the_node_reaches_its_devices() -> None:
    service = unit(UNITS[0])["Service"]
    closed = {
        "PrivateDevices",
        "DeviceAllow",
        "DevicePolicy",
        "ProtectKernelLogs",
        "ProtectClock",
        "ProtectProc",
    }
    assert not closed & set(service)
    assert "MemoryDenyWriteExecute" not in service
    assert "CAP_SYSLOG" in service["CapabilityBoundingSet"].split()


def test_the_controller_is_slurms_user_and_no_more() -> None:
    service = unit(UNITS[1])["Service"]
    assert (service["User"], service["CapabilityBoundingSet"]) == ("slurm", "")
    assert "RuntimeDirectory" not in service  # on one machine it would take the node's folder away from root


def test_the_hooks_are_where_the_package_puts_them() -> None:
    snippet = (ETC / "slurm.conf.snippet").read_text()
    for kind in ("prolog", "epilog"):
        assert f'("share/slurm-health/{kind}", ["{kind}/slurm-health.sh"])' in (ROOT / "setup.py").read_text()
        assert f"\n{kind.title()}=/opt/slurm-health/share/slurm-health/{kind}/slurm-health.sh\n" in snippet


def test_slurm_takes_the_snippet(tmp_path: Path) -> None:
    tool = shutil.which("slurmctld", path="/usr/sbin:/usr/local/sbin:/opt/slurm/sbin")
    if tool is None:
        pytest.skip("Slurm is not installed")
    conf = tmp_path / "slurm.conf"
    top = f"""ClusterName=test
SlurmctldHost=somewhere-else
NodeName=somewhere-else
PartitionName=p Nodes=ALL
StateSaveLocation={tmp_path}
SlurmctldPidFile={tmp_path}/pid
SlurmUser={pwd.getpwuid(os.getuid()).pw_name}
"""

    def said(text: str) -> str:
        """What slurmctld says of a configuration: of a good one, that it names another host. Then it ends."""
        conf.write_text(top + text)
        command = [tool, "-D", "-f", str(conf)]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stderr

    assert "not a valid controller" not in said("PrologFlags=Alloc,DeferBach\n")
    assert "not a valid controller" in said((ETC / "slurm.conf.snippet").read_text())
