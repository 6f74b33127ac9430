"""A node whose fault is over serves again where the site wants that, and nobody else has a say in it."""

import pytest
from test_cluster_requeue import at, done

pytestmark = pytest.mark.cluster

AUTO = '[resume]\nmode = "auto"\nafter = "2s"'


def down(cluster, *names):
    """A link of each of these nodes breaks; all are drained."""
    for name in names:
        cluster.inject(name, "ib-down", port=0)
    for name in names:
        cluster.until(lambda name=name: cluster.reason(name), lambda said: "IB_PORT_DOWN" in said)


def returned(cluster, name, many=1):
    """Wait until the node serves again; the seconds that its fault had been gone by then."""
    found = cluster.until(
        lambda: [one for one in cluster.incidents(node=name) if done(one, "resume")],
        lambda seen: len(seen) == many,
    )
    cluster.until(lambda: cluster.node_state(name), "idle")  # "idle*" until slurmd says so
    assert (found[-1]["state"], found[-1]["closed_by"]) == ("closed", "the fault is gone")
    [act] = done(found[-1], "resume")
    return at(act["intended"]) - at(found[-1]["cleared"])


def test_a_node_whose_link_is_back_serves_again_later_each_time(cluster):
    with cluster.configured(AUTO):
        for many, least in ((1, 2), (2, 4)):
            down(cluster, "n1")
            assert cluster.health_json("status")["drained"] == "n1"
            cluster.box.clear("n1")
            assert returned(cluster, "n1", many) >= least
            assert cluster.health_json("status")["drained"] == ""
        cluster.until(lambda: cluster.verdict("n1"), "ok")
        job = cluster.running("sleep 300", "-w", "n1", "--gpus=8")
        assert cluster.state(job) == "RUNNING"


def test_what_needs_hands_or_is_somebody_elses_stays_out(cluster):
    with cluster.configured(AUTO):
        down(cluster, "n1", "n2", "n3")
        code = cluster.xid("n2")  # it does not say when it is over
        cluster.incident(node="n2", code=code)
        cluster.drain("n3", cluster.reason("n3") + ", and a fan (Ada)")
        for name in ("n1", "n2", "n3"):
            cluster.box.clear(name)
            cluster.until(
                lambda name=name: cluster.incidents(node=name, code="IB_PORT_DOWN")[0]["cleared"], bool
            )
        down(cluster, "n4")  # cleared last: when it is back, the others have had their time
        cluster.box.clear("n4")
        returned(cluster, "n1")
        returned(cluster, "n4")
        assert [cluster.node_state(name) for name in ("n2", "n3")] == ["drained"] * 2
        assert cluster.reason("n3").endswith(", and a fan (Ada)")
        assert not any(done(one, "resume") for name in ("n2", "n3") for one in cluster.incidents(node=name))


def test_a_pause_keeps_it_out_and_so_does_a_fresh_install(cluster):
    with cluster.configured(AUTO):
        down(cluster, "n1", "n2")
        cluster.health("pause", "--nodes", "n1")
        cluster.box.clear("n1")
        cluster.until(lambda: cluster.incidents(node="n1")[0]["cleared"], bool)
        cluster.box.clear("n2")
        returned(cluster, "n2")
        assert cluster.node_state("n1") == "drained"
        cluster.health("unpause", "--nodes", "n1")
        returned(cluster, "n1")
    assert cluster.health_json("config", "show")["resume"]["mode"] == "off"


# n4 has come back more often than n3, and takes longer: when it is back, n3 has had its time.


def test_a_blind_node_stays_out_until_it_sees_again(cluster, tmp_path):
    (tmp_path / "eyes").write_text(f"#!/bin/sh\n[ ! -e {tmp_path}/shut ]\n")
    (tmp_path / "eyes").chmod(0o755)
    with cluster.configured(f'{AUTO}\n[probes]\nfolder = "{tmp_path}"\nsite_every = "200ms"\n'):
        cluster.restart("node:n3")
        down(cluster, "n3", "n4")
        (tmp_path / "shut").touch()
        cluster.until(lambda: "eyes" in cluster.log("nodes/n3/log/node.out"), True)
        cluster.box.clear("n3")
        cluster.until(lambda: cluster.incidents(node="n3")[0]["cleared"], bool)
        cluster.box.clear("n4")
        returned(cluster, "n4")
        assert cluster.node_state("n3") == "drained"
        (tmp_path / "shut").unlink()
        cluster.until(lambda: cluster.node_state("n3"), "idle", 90)  # told with the next heartbeat
        returned(cluster, "n3")
    cluster.restart("node:n3")


def test_a_silent_node_stays_out_until_it_speaks_again(cluster):
    with cluster.configured(AUTO):
        down(cluster, "n3", "n4")
        cluster.freeze("node:n3")
        for name in ("n3", "n4"):
            cluster.box.clear(name)
        returned(cluster, "n4")
        assert cluster.node_state("n3") == "drained"
        cluster.thaw("node:n3")
        returned(cluster, "n3")
