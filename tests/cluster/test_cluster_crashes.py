"""`kill -9` after each single step, of the controller and of the node's daemon: all is done, and once.

One fault's life holds a death after each kind of step (see ordeal.py); each test says at which it must have
died, so that none can pass by killing nothing.
"""

import contextlib
import re
import sys
from pathlib import Path

import pytest

from slurm_health import client
from slurm_health.sandbox.daemon import Daemon

pytestmark = pytest.mark.cluster

DRAIN = {
    "ledger take",
    "ledger intend drain",
    "slurm drain",
    "ledger drained",
    "ledger settle drain done",
    "ledger touch",
}
REQUEUE = {"ledger intend requeue", "ledger settle requeue done", "ledger intend start", "slurm start_now"}
RELEASE = {"ledger intend release", "slurm release", "ledger settle release done"}
SENSED = {
    "spool added",
    "report composed",
    "report answered",
    "spool receipted, nothing left",
    "decision refuse",
    "verdict bad",
}
PLACE = {
    "ledger intend lift",
    "slurm set_nice",
    "ledger settle lift done",
    "ledger intend lower",
    "ledger settle lower done",
}
NODES = {"ledger intend keep", "slurm reserve", "slurm unreserve", "ledger settle keep done"}
STORY = {"ledger intend tell", "slurm tell", "ledger settle tell done", "slurm set_comment"}


class Ordeal:
    """What a daemon goes through once `begin` was called."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.file = Path(f"{cluster.folder}/ordeal")

    def begin(self, spared=()):
        """From now on, but not at these steps."""
        self.file.write_text("".join(f"{step}\n" for step in spared))

    def over(self, steps):
        """Wait until all has come to its end and these steps were gone through; the incident."""
        self.cluster.until(lambda: self._left(steps), [], 120)
        [found] = self.cluster.incidents()
        return found

    def _left(self, steps):
        try:
            found = self.cluster.incidents()
        except client.ClientError:
            return "it is dead just now"
        if len(found) != 1 or not found[0]["jobs"]:
            return f"incidents and their jobs: {[(one['code'], one['node'], one['jobs']) for one in found]}"
        return [
            *(f"job {job['job']}" for job in found[0]["jobs"] if not job["settled"]),
            *(f"{act['kind']} intended {act['intended']}" for act in found[0]["actions"] if not act["done"]),
            *(f"nothing happened at: {step}" for step in steps - set(self.file.read_text().splitlines())),
        ]


@contextlib.contextmanager
def ordeal(cluster, daemon, how="die", toml=""):
    """The daemon under ordeal.py with another site configuration, and as it was afterwards."""
    one = Ordeal(cluster)
    known = Daemon(cluster.box.layout.daemons, daemon)
    before = known.record
    program = Path(__file__).with_name("ordeal.py")

    def become(argv, toml):
        cluster.box.stop(daemon)
        cluster.configure(toml)
        known.describe(argv, before["env"], Path(before["log"]), Path(before["output"]))
        cluster.start(daemon)

    become([sys.executable, str(program), how, str(one.file), *before["argv"][3:]], toml)
    try:
        yield one
    finally:
        one.file.unlink(missing_ok=True)
        become(before["argv"], "")


def acts(incident, kind):
    return [act["outcome"] for act in incident["actions"] if act["kind"] == kind and act["outcome"] == "done"]


def all_was_done_once(cluster, incident, job, node, code, back="requeue"):
    """In the ledger, in Slurm, and as slurmctld tells it."""
    assert (incident["code"], incident["node"], incident["count"]) == (code, node, 1)
    assert len(incident["evidence"]) == 1
    assert acts(incident, "drain") == acts(incident, back) == ["done"]
    assert [(one["job"], one["outcome"]) for one in incident["jobs"]] == [(job, "runs again")]
    runs = cluster.runs(job)
    assert [run[0] for run in runs if run[0]] == [1]
    assert node not in runs[-1][1]
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 1)
    assert cluster.reason(node).startswith(f"slurm-health: {code}(")
    assert [name for name in cluster.names if not cluster.serves(name)] == [node]
    status = client.ask(cluster.config, "GET", "/v1/status")
    assert status["drained"] == node
    assert [(one["node"], one["refusing"]) for one in status["troubled"]] == [(node, True)]
    cluster.until(lambda: cluster.verdict(node), "bad")
    assert int(cluster.ask("squeue", "-h", "-j", job, "-O", "Nice")) == 0
    assert cluster.ask("scontrol", "show", "reservation") == "No reservations in the system"
    said = cluster.log("ctld/slurmctld.log")
    assert re.findall("update_node: node (.*) state set to (.{5})", said) == [(node, "DRAIN")]
    assert said.count(f"Requeuing JobId={job}") == 1


@pytest.mark.parametrize("kill", [False, True], ids=["lives_on", "dies_with_it"])
def test_the_controller_dies_after_each_step(cluster, kill):
    job = cluster.running("sleep 300", *(["--gpus=8"] if kill else ["-N2", "--gpus-per-node=8"]))
    node = cluster.nodes_of(job)[0]
    with ordeal(cluster, "controller") as controller:
        # An attempt that a crash has cut short must not be what makes the next one ours.
        controller.begin({"ledger intend drain", "ledger intend requeue"} if kill else ())
        code = cluster.xid(node, kill=kill)
        requeue = "slurm requeue" if kill else "slurm requeue incomplete"
        incident = controller.over(DRAIN | REQUEUE | STORY | PLACE | {requeue} | (set() if kill else NODES))
        all_was_done_once(cluster, incident, job, node, code)
    [note] = [text for text in comment(cluster, job).split("; slurm-health: ") if text]
    assert f"{code}(" in note


def comment(cluster, job):
    return cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000")


def test_slurmctld_does_late_what_we_gave_up(cluster):
    """No answer in time does not mean that nothing was done. All is done once nevertheless."""
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    changes = {
        f"slurm {what}" for what in ("drain", "requeue", "start_now", "set_nice", "tell", "set_comment")
    }
    how = f"stall:{cluster.box.pid('slurmctld')}"
    with ordeal(cluster, "controller", how, '[slurm]\ndeadline = "500ms"') as controller:
        controller.begin()
        code = cluster.xid(node)
        incident = controller.over(changes)
        all_was_done_once(cluster, incident, job, node, code)


def test_the_controller_dies_after_each_step_of_a_release(cluster):
    """A job on two nodes, of which one breaks before its prolog and refuses it."""
    hold = [cluster.box.layout.node(name) / "hold" for name in cluster.names]
    for file in hold:
        file.touch()
    job = cluster.submit("sleep 300", "-N2", "--gpus-per-node=8")
    held = [file.with_name("held") for file in hold]
    [node, _] = cluster.until(
        lambda: [file.parent.name for file in held if file.exists()], lambda nodes: len(nodes) == 2
    )
    with ordeal(cluster, "controller") as controller:
        controller.begin()
        code = cluster.xid(node)
        cluster.until(lambda: cluster.verdict(node), "bad")
        for file in hold:
            file.unlink()
        incident = controller.over(DRAIN | RELEASE | STORY)
        all_was_done_once(cluster, incident, job, node, code, back="release")
    assert cluster.log("ctld/slurmctld.log").count(f"release hold on JobId={job} ") == 1


@pytest.mark.parametrize("fault", ["xid", "gpu-lost"], ids=["event", "state"])
def test_the_nodes_daemon_dies_after_each_step(cluster, fault):
    job = cluster.running("sleep 300", "--gpus=8")
    [node] = cluster.nodes_of(job)
    with ordeal(cluster, f"node:{node}") as daemon:
        daemon.begin()
        if fault == "xid":
            code, steps = cluster.xid(node), SENSED | {"kernel log read", "saved cursor"}
        else:
            cluster.inject(node, fault, gpu=3)
            code, steps = "GPU_MISSING", SENSED | {"saved memory.json"}
        incident = daemon.over(steps)
        all_was_done_once(cluster, incident, job, node, code)
        cluster.xid(node, code=13)  # read after what the log still holds
        cluster.incident(code="GPU_XID_13")
        assert [one["code"] for one in cluster.incidents()] == [code, "GPU_XID_13"]
        assert cluster.incident(code=code)["count"] == 1
