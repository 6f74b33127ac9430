"""No two sandboxes of a host get the same TCP port."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from slurm_health.sandbox import SandboxError, tcp


@pytest.fixture(autouse=True)
def _own_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(tcp, "CLAIMS", tmp_path / "claims")


@pytest.fixture
def few(monkeypatch):
    """Six ports on which nobody listens are all that there are."""
    first = next(
        port for port in tcp.PORTS[::6] if all(not tcp.listens(one) for one in range(port, port + 6))
    )
    monkeypatch.setattr(tcp, "PORTS", range(first, first + 6))
    return tcp.PORTS


def folder(tmp_path, name):
    made = tmp_path / name
    made.mkdir()
    return made


def test_a_port_that_nobody_listens_on_yet_is_not_given_to_another(tmp_path, few):
    mine = tcp.claim(folder(tmp_path, "mine"), 4)
    others = tcp.claim(folder(tmp_path, "others"), 2)
    assert sorted(mine + others) == list(few)


def test_sandboxes_that_start_in_the_same_moment_share_none(tmp_path, few):
    folders = [folder(tmp_path, f"box{number}") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = [port for ports in pool.map(lambda one: tcp.claim(one, 1), folders) for port in ports]
    assert sorted(found) == list(few)


def test_what_a_sandbox_gives_back_is_free_and_what_others_have_is_not(tmp_path, few):
    mine, others = folder(tmp_path, "mine"), folder(tmp_path, "others")
    ports = tcp.claim(mine, 3)
    tcp.claim(others, 3)
    tcp.release(mine)
    assert sorted(tcp.claim(others, 3)) == sorted(ports)
    tcp.release(folder(tmp_path, "stranger"))


def test_the_ports_of_a_sandbox_whose_folder_is_gone_are_free(tmp_path, few):
    gone = folder(tmp_path, "gone")
    tcp.claim(gone, 6)
    gone.rmdir()
    assert sorted(tcp.claim(folder(tmp_path, "next"), 6)) == list(few)


def test_a_port_on_which_somebody_listens_is_not_given(tmp_path, few):
    with socket.create_server(("", few[2])):
        assert sorted(tcp.claim(folder(tmp_path, "mine"), 5)) == [port for port in few if port != few[2]]


def test_too_few_ports_are_said_and_none_is_kept(tmp_path, few):
    mine = folder(tmp_path, "mine")
    with pytest.raises(SandboxError, match=f"no 7 free TCP ports from {few[0]} to {few[-1]}"):
        tcp.claim(mine, 7)
    assert len(tcp.claim(folder(tmp_path, "others"), 6)) == 6
