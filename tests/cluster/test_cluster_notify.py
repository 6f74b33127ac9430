"""People are told by mail and webhook of what happens on a real Slurm, whatever becomes of the messengers."""

import signal
import socket

import pytest
from receivers import mail_host, webhook
from test_cluster_dead_node import PATIENCE, kill_host, reported, slurm_with, start_host
from test_cluster_fence import stuck

from slurm_health.fence import LOSES

pytestmark = pytest.mark.cluster


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def site(hook, host):
    return f"""
    [notify]
    webhook = "http://127.0.0.1:{hook}/"
    mail = ["ops@site.example"]
    smtp = "127.0.0.1:{host}"
    gather = "0s"
    """


def events(receiver):
    """(event, node, job) of all that came by the webhook, in its order."""
    return [
        (one["event"], one["node"], one["job"]) for _, _, said in receiver.taken for one in said["events"]
    ]


def lines(host):
    """How many events came by mail."""
    return sum(letter.get_content().count("(incident ") for _, letter in host.taken)


def test_a_job_that_comes_back_and_is_held_at_last(cluster):
    with webhook() as hook, mail_host() as host, cluster.configured(site(hook.port, host.port)):
        job = cluster.running("sleep 300", "--gpus=8", "--comment=slurm-health: requeue=1")
        [first] = cluster.nodes_of(job)
        cluster.ran_again(node=first, code=cluster.xid(first, code=48))
        [second] = cluster.until(lambda: cluster.nodes_of(job), lambda nodes: nodes != (first,))
        cluster.ran_again(node=second, code=cluster.xid(second, code=62))
        told = cluster.until(lambda: events(hook), lambda seen: "hold" in [one[0] for one in seen])
        assert told == [
            ("drain", first, ""),
            ("requeue", first, job),
            ("ran", first, job),
            ("drain", second, ""),
            ("hold", second, job),
        ]
        texts = [one["text"] for _, _, said in hook.taken for one in said["events"]]
        assert (
            texts[-1]
            == f"job {job} of uid 0 is held: it was requeued 1 times for faults already, and 1 are allowed"
        )
        assert texts[2].startswith(f"job {job} runs again on {second}, ")
        cluster.until(lambda: lines(host), 5)


@pytest.mark.parametrize("dead", ["down", "hanging"])
def test_messengers_that_are_dead_hold_up_nothing_and_nothing_is_lost(cluster, dead):
    """Nor when the controller is killed meanwhile; told is it once."""
    port = free_port()
    with mail_host("hang") as host, cluster.configured(site(port, host.port)):
        job = cluster.running("sleep 300", "--gpus=8")
        [node] = cluster.nodes_of(job)
        if dead == "hanging":
            with webhook("hang", port) as hook:
                cluster.ran_again(node=node, code=cluster.xid(node))
                assert hook.asked
                assert host.asked
                assert not hook.go.is_set()
                assert not host.go.is_set()
                cluster.box.stop("controller", signal.SIGKILL)
        else:
            cluster.ran_again(node=node, code=cluster.xid(node))
            cluster.until(lambda: "webhook: not sent" in cluster.log("ctld/controller.out"), True)
            assert "webhook" in cluster.health_json("status")["notify"]
            cluster.box.stop("controller", signal.SIGKILL)
        with webhook(port=port) as hook:
            host.mode = "well"
            host.go.set()
            cluster.start("controller")
            told = [("drain", node, ""), ("requeue", node, job), ("ran", node, job)]
            cluster.until(lambda: sorted(events(hook)), sorted(told), 120)
            cluster.until(lambda: lines(host), 3, 120)
        assert cluster.health_json("status")["notify"] == {}


def test_a_node_that_falls_silent_with_its_job(cluster):
    """As a warning, where the site wants those, and what became of the job."""
    warnings = 'events = ["incident", "ran"]\nseverity = "warning"\n'
    with (
        webhook() as hook,
        mail_host() as host,
        cluster.configured(site(hook.port, host.port) + warnings),
        slurm_with(cluster, "SlurmdTimeout=10"),
    ):
        job = cluster.running("sleep 300", "--gpus=8")
        [node] = cluster.nodes_of(job)
        reported(cluster, node)
        kill_host(cluster, node)
        told = cluster.until(lambda: events(hook), lambda seen: seen and seen[-1][0] == "ran", PATIENCE)
        assert told == [("incident", node, ""), ("incident", node, ""), ("ran", node, job)]
        texts = [one["text"] for _, _, said in hook.taken for one in said["events"]]
        assert texts[1] == f"{node}: NODE_SILENT() the node's daemon has not reported to the controller"
        cluster.until(lambda: lines(host), 3)
        cluster.ran_again(code="NODE_SILENT")
        start_host(cluster, node)
        cluster.until(lambda: cluster.node_state(node), "idle")


def test_a_job_that_is_stuck_on_a_dead_node_and_what_is_done_about_it(cluster):
    fence = '[fence]\ncommand = ["/bin/true", "{node}"]\nafter = "1s"'
    with (
        webhook() as hook,
        mail_host() as host,
        cluster.configured(site(hook.port, host.port) + fence),
    ):
        job, node = stuck(cluster, "--gpus=8")
        stays = f"job {job} is stuck on {node}, which is not set DOWN: {LOSES}"
        fault = cluster.incident(node=node)
        words = f"{fault['code']}({fault['device']}) {fault['text']}"
        off = f"{node} is off and set DOWN, to let its job go: {words}"
        last = ("help", job, stays) if cluster.site.loses_gpus else ("drain", "", off)

        def told():
            return [
                (one["event"], one["job"], one["text"]) for _, _, said in hook.taken for one in said["events"]
            ]

        cluster.until(lambda: last in told(), True)
        cluster.until(lambda: lines(host) >= len(told()), True)
        if cluster.site.loses_gpus:
            cluster.restart(f"slurmd:{node}", signal.SIGKILL)
        assert [one["outcome"] for one in cluster.ran_again()["jobs"]] == ["runs again"]
        assert len([one for one in told() if one == last]) == 1
        cluster.thaw(f"slurmd:{node}")
