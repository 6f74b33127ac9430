"""Who may say what to the controller, and who may see what."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import NOBODY, OF_NOBODY, ROOT

from slurm_health import signing, wire
from slurm_health.model import Finding, Severity, Urgency

pytestmark = pytest.mark.cluster

# The command line as an ordinary user, who need not be able to read the tests' interpreter.
AS_NOBODY = """
import os, sys
from slurm_health import cli, client, config, text, signing, wire, duration
import encodings.idna
signing.Munge()
loaded = config.load()
config.load = lambda *_: loaded  # the package may lie where this user may not go
os.setgroups([]); os.setgid({gid}); os.setuid({uid})
sys.argv = ["slurm-health", *{words!r}]
cli.main()
"""


def forged(node):
    """A report of a fault that never was."""
    fault = Finding(
        "GPU_XID_79", Severity.CRITICAL, "0000:5d:00.0", "GPU has fallen off the bus",
        evidence="forged", job=Urgency.NOW, since=time.time(), moment=f"forged/{time.time()}", lasting=False,
    )  # fmt: skip
    return wire.encode(wire.NodeReport(node, boot="forged", sent=time.time(), opened=(fault,)))


def send(cluster, target, body, header, source="127.0.0.1"):
    connection = http.client.HTTPConnection(
        *cluster.config.addresses[0], timeout=10, source_address=(source, 0)
    )
    connection.request("POST", target, body, {"Authorization": header} if header else {})
    response = connection.getresponse()
    said = response.read().decode()
    connection.close()
    return response.status, said


def sealed_by(cluster, user, target, body):
    """A credential as `munge` makes it for a user."""
    digest = signing.payload("POST", target, body).decode()
    done = subprocess.run(
        ["munge", f"--socket={cluster.box.layout.munge_socket}", f"--string={digest}"],
        user=user, group=NOBODY.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return f"MUNGE {done.stdout.strip()}"


def test_only_root_reports(cluster):
    body = forged("n1")
    target = "/v1/report"
    harmless = wire.encode(wire.NodeReport("n1"))
    once = sealed_by(cluster, 0, target, harmless)
    assert send(cluster, target, harmless, once)[0] == 200
    tried = (  # each from an address of its own: of one, no two refusals are logged in a minute
        (body, "", "no MUNGE credential"),
        (body, "MUNGE MUNGE:AwQFAAB:", "MUNGE: Invalid credential format"),
        (body, sealed_by(cluster, 0, target, b"other"), "a credential for another message"),
        (harmless, once, "MUNGE: Replayed credential"),
        (
            body,
            sealed_by(cluster, NOBODY.pw_uid, target, body),
            f"uid {NOBODY.pw_uid} may not do this; root or SlurmUser may",
        ),
    )
    for last, (said, header, why) in enumerate(tried, 2):
        assert send(cluster, target, said, header, f"127.0.0.{last}") == (403, f"{why}\n")
        assert f"refused POST {target} from 127.0.0.{last}: {why}\n" in cluster.log("ctld/controller.out")
    for path, said in (("/v1/pause", {}), ("/v1/unpause", {}), ("/v1/decision", {"node": "n1", "known": ""})):
        asked = json.dumps(said).encode()
        assert send(cluster, path, asked, sealed_by(cluster, NOBODY.pw_uid, path, asked))[0] == 403
    assert cluster.incidents() == []
    assert cluster.reason("n1") == "none"
    assert cluster.verdict("n1") == "ok"
    # The same words of root are heeded: it was the signature that was missing.
    assert send(cluster, target, body, sealed_by(cluster, 0, target, body))[0] == 200
    cluster.incident(code="GPU_XID_79", node="n1")


@contextlib.contextmanager
def at_address(cluster, node, address):
    """Slurm has the node at an address of its own, from which its daemon does not speak."""

    def move(where):
        cluster.ask("scontrol", "update", f"NodeName={node}", f"NodeAddr={where}")
        cluster.restart("controller")  # it believes for a minute what it knows of a node's address

    move(address)
    try:
        yield
    finally:
        move("127.0.0.1")


def test_a_report_comes_from_its_nodes_own_address(cluster):
    body, target = forged("n1"), "/v1/report"
    why = "n1: a report from 127.0.0.{}, but Slurm has it at 127.0.0.2"
    with at_address(cluster, "n1", "127.0.0.2"):
        code = cluster.xid("n1", gpu=0)
        cluster.until(lambda: f"403 {why.format(1)}" in cluster.log("nodes/n1/log/node.out"), True)
        asked = send(cluster, target, body, sealed_by(cluster, 0, target, body), "127.0.0.3")
        assert asked == (403, why.format(3) + "\n")
        for last in (1, 3):
            assert f" from 127.0.0.{last}: {why.format(last)}\n" in cluster.log("ctld/controller.out")
        cluster.incident(node="n2", code=cluster.xid("n2"))  # the others are heard
        assert cluster.incidents(node="n1") == []
        assert cluster.reason("n1") == "none"
        body = forged("n1")  # sent now
        assert send(cluster, target, body, sealed_by(cluster, 0, target, body), "127.0.0.2")[0] == 200
        cluster.incident(node="n1", code="GPU_XID_79", device="0000:5d:00.0")
    cluster.incident(node="n1", code=code, device="0000:18:00.0")  # the node has kept it


def as_nobody(cluster, *words):
    script = AS_NOBODY.format(uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, words=list(words))
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **cluster.box.env(), "PYTHONPATH": ROOT}, cwd="/",
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_an_ordinary_user_sees_nodes_and_own_jobs(cluster):
    own = cluster.running("sleep 300", *OF_NOBODY, "--gpus=4")
    roots = cluster.running("sleep 300", "--gpus=4")
    [node] = set(cluster.nodes_of(own) + cluster.nodes_of(roots))
    codes = {job: cluster.xid(node, gpu=int(cluster.runs(job)[0][2][0])) for job in (own, roots)}
    devices = {}
    for job in (own, roots):
        gpu = int(cluster.runs(job)[0][2][0])
        devices[job] = cluster.box.machine(node)._facts()["gpus"][gpu]["pci"]
        cluster.ran_again(code=codes[job], device=devices[job])
    status = as_nobody(cluster, "status")
    assert status.returncode == 2
    assert f"drained by us {node}" in status.stdout
    seen = {one["device"]: one for one in json.loads(as_nobody(cluster, "incidents", "--json").stdout)}
    assert set(seen) == set(devices.values())
    assert [job["job"] for job in seen[devices[own]]["jobs"]] == [own]
    assert seen[devices[roots]]["jobs"] == []
    assert "requeue" not in [act["kind"] for act in seen[devices[roots]]["actions"]]
    assert "ran again on" in as_nobody(cluster, "job", own).stdout
    assert "ran again on" not in as_nobody(cluster, "job", roots).stdout
    for words in (("pause",), ("incidents", "close", str(seen[devices[own]]["id"]))):
        refused = as_nobody(cluster, *words)
        assert refused.returncode != 0
        assert "may not do this" in refused.stderr
    assert not cluster.incident(device=devices[own])["closed"]


def test_the_sandbox_hands_a_command_all_its_options(cluster):
    done = cluster.health("sandbox", "--dir", str(cluster.box.folder), "run", "sinfo", "-h", "-o", "%n %g")
    assert "n1 all" in done.stdout.splitlines()
    assert cluster.health("sandbox", "--dir", str(cluster.box.folder), "run", "false").returncode == 1
