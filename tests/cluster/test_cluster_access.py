"""Who may say what to the controller, and who may see what."""

import http.client
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import NOBODY, ROOT

from slurm_health import wire
from slurm_health.model import Finding, Severity, Urgency

pytestmark = pytest.mark.cluster

# The command line as an ordinary user, who need not be able to read the tests' interpreter.
AS_NOBODY = """
import os, sys
from slurm_health import cli, client, config, text, wire, duration
import encodings.idna
wire.Munge()
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
        evidence="forged", job=Urgency.NOW, since=time.time(), moment="forged/1", lasting=False,
    )  # fmt: skip
    return wire.encode(wire.NodeReport(node, boot="forged", sent=time.time(), opened=(fault,)))


def send(cluster, target, body, header):
    connection = http.client.HTTPConnection(*cluster.config.address, timeout=10)
    connection.request("POST", target, body, {"Authorization": header} if header else {})
    response = connection.getresponse()
    said = response.read().decode()
    connection.close()
    return response.status, said


def sealed_by(cluster, user, target, body):
    """A credential as `munge` makes it for a user."""
    digest = wire.payload("POST", target, body).decode()
    done = subprocess.run(
        ["munge", f"--socket={cluster.box.layout.munge_socket}", f"--string={digest}"],
        user=user, group=NOBODY.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return f"MUNGE {done.stdout.strip()}"


def test_only_root_reports(cluster):
    body = forged("n1")
    target = "/v1/report"
    assert send(cluster, target, body, "") == (403, "no MUNGE credential\n")
    assert send(cluster, target, body, "MUNGE MUNGE:AwQFAAB:")[0] == 403
    status, why = send(cluster, target, body, sealed_by(cluster, NOBODY.pw_uid, target, body))
    assert (status, why) == (403, f"uid {NOBODY.pw_uid} may not do this; root or SlurmUser may\n")
    for path, said in (("/v1/pause", {}), ("/v1/unpause", {}), ("/v1/decision", {"node": "n1", "known": ""})):
        asked = json.dumps(said).encode()
        assert send(cluster, path, asked, sealed_by(cluster, NOBODY.pw_uid, path, asked))[0] == 403
    # root's credential for another message, and one used twice
    other = sealed_by(cluster, 0, target, b"other")
    assert send(cluster, target, body, other) == (403, "a credential for another message\n")
    harmless = wire.encode(wire.NodeReport("n1"))
    once = sealed_by(cluster, 0, target, harmless)
    assert [send(cluster, target, harmless, once)[0] for _ in range(2)] == [200, 403]
    assert cluster.incidents() == []
    assert cluster.reason("n1") == "none"
    assert cluster.verdict("n1") == "ok"
    # The same words of root are heeded: it was the signature that was missing.
    assert send(cluster, target, body, sealed_by(cluster, 0, target, body))[0] == 200
    cluster.incident(code="GPU_XID_79", node="n1")


def as_nobody(cluster, *words):
    script = AS_NOBODY.format(uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, words=list(words))
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **cluster.box.env(), "PYTHONPATH": ROOT}, cwd="/",
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_an_ordinary_user_sees_nodes_and_own_jobs(cluster):
    own = cluster.running("sleep 300", "--uid=nobody", "--gid=nogroup", "--gpus=4")
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
