"""People are told by mail and webhook of what happens on a real Slurm, whatever becomes of the messengers."""

import signal
import socket

import pytest
from receivers import mail_host, webhook

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
