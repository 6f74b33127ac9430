"""Who is told, and of what: mail and webhook, with receivers that are well, slow, down or hostile."""

import asyncio
import contextlib
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from postgresql import Server
from receivers import mail_host, webhook
from test_ledger import XID, report
from test_web import asynchronous, site

from slurm_health import config
from slurm_health.cli import main
from slurm_health.config import ConfigError
from slurm_health.ledger import Lease, Ledger, schema
from slurm_health.model import Notice, Severity
from slurm_health.outage import Outage
from slurm_health.sinks import notify
from slurm_health.sinks.notify import Mail, Notify, NotSent, Webhook

T = 1_700_000_000.0
ONE = Notice(7, T, "drain", Severity.CRITICAL, 3, "n1", "", "n1 is drained: GPU_XID_79(0000:5d:00.0) gone")
TOKEN = "s3cr3t-t0ken"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "TICK", 0.01)
    monkeypatch.setattr(notify, "SOON", 0.05)
    monkeypatch.setattr(notify, "DEADLINE", 0.3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.engine.dispose()


def told(**keys: Any) -> config.Notify:
    return config.Notify.model_validate({"gather": 0} | keys)


def by_webhook(port: int, **keys: Any) -> config.Notify:
    return told(webhook=f"http://127.0.0.1:{port}/hook", **keys)


def by_mail(port: int, **keys: Any) -> config.Notify:
    return told(**{"mail": ["ops@site.example"], "smtp": f"127.0.0.1:{port}"} | keys)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  (of a server in another thread)
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def following(where: config.Notify, ledger: Ledger) -> Any:
    notifying = Notify(where, ledger, Outage())
    task = asyncio.create_task(notifying.follow())
    try:
        yield notifying
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def drain(ledger: Ledger, *nodes: str) -> None:
    """These nodes were drained: as the controller writes it down."""
    for name in nodes:
        ledger.take(replace(report(replace(XID, moment=f"b/{name}")), node=name), T)
        number = ledger.open_incidents([name])[0].id
        action = ledger.intend(number, "drain", name, T, "slurm-health: x")
        ledger.settle(action, "done", time.time())


def left(ledger: Ledger) -> list[Any]:
    with ledger.engine.connect() as connection:
        return list(connection.execute(sa.select(schema.notices)))


# -- what is told


@asynchronous
async def test_a_storm_of_three_hundred_nodes_is_one_message(ledger: Ledger) -> None:
    with webhook() as hook, mail_host() as host:
        where = by_webhook(hook.port, mail=["ops@site.example"], smtp=f"127.0.0.1:{host.port}")
        where = where.model_copy(update={"gather": 0.5})
        names = [f"n{number}" for number in range(1, 301)]
        notifying = Notify(where, ledger, Outage())
        with ledger.together():
            drain(ledger, *names)
        assert hook.got == host.got == []
        async with following(notifying.site, ledger):
            await until(lambda: not left(ledger))
    [((_, _, said), _)] = hook.got
    assert said["text"].splitlines()[0] == "slurm-health: 300 nodes drained"
    assert [one["node"] for one in said["events"]] == names
    assert len({one["id"] for one in said["events"]}) == 300
    [(got, _)] = host.got
    assert got[1]["Subject"] == "slurm-health: 300 nodes drained"
    lines = got[1].get_content().rstrip().splitlines()
    assert len(lines) == notify.LINES + 1
    assert lines[-1] == "and 100 more: slurm-health incidents --all"


@asynchronous
async def test_one_event_is_told_in_the_subject(ledger: Ledger) -> None:
    with mail_host() as host:
        async with following(by_mail(host.port, mail_from="hpc@site.example"), ledger):
            drain(ledger, "n1")
            await until(lambda: not left(ledger))
    [(to, _)] = host.taken
    said = host.taken[0][1]
    assert to == ["ops@site.example"]
    assert (said["From"], said["To"]) == ("hpc@site.example", "ops@site.example")
    assert said["Subject"] == "slurm-health: n1 is drained: GPU_XID_79(0000:5d:00.0) gone"
    assert said["Auto-Submitted"] == "auto-generated"
    assert said.get_content().rstrip().endswith("n1 is drained: GPU_XID_79(0000:5d:00.0) gone  (incident 1)")


@asynchronous
async def test_the_webhook_gets_json(ledger: Ledger) -> None:
    with webhook() as hook:
        async with following(by_webhook(hook.port), ledger):
            drain(ledger, "n1")
            await until(lambda: not left(ledger))
    [(path, authorization, said)] = hook.taken
    assert (path, authorization, said["source"]) == ("/hook", None, "slurm-health")
    assert said["text"] == "slurm-health: n1 is drained: GPU_XID_79(0000:5d:00.0) gone"
    [one] = said["events"]
    assert (one["event"], one["node"], one["job"], one["incident"]) == ("drain", "n1", "", 1)
    assert (one["severity"], one["at"][:2]) == ("critical", "20")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["drain"]),
        ({"events": ["incident"]}, ["incident"]),
        ({"events": ["incident", "drain"], "severity": "warning"}, ["incident", "incident", "drain"]),
        ({"events": []}, []),
    ],
)
def test_a_site_chooses_what_it_hears(ledger: Ledger, keys: dict[str, Any], expected: list[str]) -> None:
    Notify(by_webhook(1, **keys), ledger, Outage())
    mild = replace(XID, severity=Severity.WARNING, code="GPU_HOT", moment="b/w")
    ledger.take(replace(report(mild), node="n2"), T)
    drain(ledger, "n1")
    assert [row.event for row in left(ledger)] == expected


def test_without_a_way_nothing_is_written(ledger: Ledger) -> None:
    Notify(told(), ledger, Outage())
    drain(ledger, "n1")
    ledger.notice("help", 1, "n1 stays in service", T)
    assert left(ledger) == []


@asynchronous
async def test_what_went_by_a_way_that_is_no_more_is_forgotten(ledger: Ledger) -> None:
    Notify(told(webhook="http://127.0.0.1:1/", mail=["root"], smtp="127.0.0.1:1"), ledger, Outage())
    drain(ledger, "n1")
    assert [row.way for row in left(ledger)] == ["mail", "webhook"]
    async with following(told(mail=["root"], smtp="127.0.0.1:1"), ledger):
        await until(lambda: [row.way for row in left(ledger)] == ["mail"])
    ledger.forget(time.time() + 1)
    assert left(ledger) == []


@asynchronous
async def test_a_broken_node_that_stays_in_service_needs_a_person_once(tmp_path: Path) -> None:
    budget = {"percent": 0, "at_least": 0}
    keys = {"webhook": "http://127.0.0.1:1/"}
    async with site(tmp_path, notify=keys, mode="drain", budget=budget) as here:
        for moment in ("b/1", "b/2"):
            await here.report(replace(XID, moment=moment))
            await here.settle()
        [row] = left(here.ledger)
        assert (row.event, row.node) == ("help", "n1")
        assert row.text.startswith("n1 stays in service with GPU_XID_79(0000:5d:00.0) gone: budget spent")


# -- trouble


@pytest.mark.parametrize("mode", ["500", "404", "307", "hang", "drip"])
@asynchronous
async def test_a_webhook_in_trouble_is_told_later_and_once(ledger: Ledger, mode: str) -> None:
    with webhook(mode) as hook:
        async with following(by_webhook(hook.port), ledger) as notifying:
            drain(ledger, "n1")
            await until(lambda: hook.asked > 1 and notifying.trouble)
            assert notifying.trouble["webhook"].startswith(f"127.0.0.1:{hook.port}")
            assert len(left(ledger)) == 1
            hook.mode = "well"
            await until(lambda: not left(ledger))
            assert notifying.trouble == {}
    assert [said["events"][0]["node"] for _, _, said in hook.taken] == ["n1"]
    assert {path for (path, _, _), _ in hook.got} == {"/hook"}  # no answer sends us elsewhere


@pytest.mark.parametrize("mode", ["refuse", "hang"])
@asynchronous
async def test_a_mail_host_in_trouble_is_told_later_and_once(ledger: Ledger, mode: str) -> None:
    with mail_host(mode) as host:
        async with following(by_mail(host.port), ledger) as notifying:
            drain(ledger, "n1")
            await until(lambda: host.asked > 1 and notifying.trouble)
            assert "\x1b" not in notifying.trouble["mail"]
            host.mode = "well"
            host.go.set()
            await until(lambda: not left(ledger))
    assert len(host.taken) == 1


@asynchronous
async def test_nobody_is_there_yet(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    async with following(by_webhook(port), ledger) as notifying:
        drain(ledger, "n1")
        await until(lambda: left(ledger)[0].tries > 2)
        assert f"127.0.0.1:{port}: Connect" in notifying.trouble["webhook"]
        with webhook(port=port) as hook:
            await until(lambda: not left(ledger))
    assert len(hook.taken) == 1
    said = [one.message for one in caplog.records if "not sent" in one.message]
    assert len(said) == 1  # however often it was tried


@asynchronous
async def test_a_receiver_that_hangs_holds_up_no_drain_and_no_other_way(tmp_path: Path) -> None:
    with mail_host("hang") as host, webhook("hang") as hook:
        keys = {"webhook": f"http://127.0.0.1:{hook.port}/", "mail": ["root"], "gather": 0}
        keys |= {"smtp": f"127.0.0.1:{host.port}", "events": ["incident", "drain"]}
        async with site(tmp_path, notify=keys, mode="drain") as here:
            task = asyncio.create_task(here.controller.notify.follow())
            await here.report(XID)
            await until(lambda: host.asked and hook.asked)
            await here.settle()
            assert here.slurm.done == [("drain", "n1", "slurm-health: GPU_XID_79(0000:5d:00.0) gone")]
            assert not host.go.is_set()
            assert not hook.go.is_set()
            status = await here.get("/v1/status")
            await until(lambda: len(here.controller.notify.trouble) == 2)
            status = await here.get("/v1/status")
            assert set(status["notify"]) == {"mail", "webhook"}
            task.cancel()


def test_a_mail_host_that_drips_costs_one_thread_and_holds_up_no_end() -> None:
    before = threading.active_count()

    async def tried() -> None:
        mail = Mail(by_mail(host.port))
        for why in ("has not answered in 0.3 s", "still holds the last one"):
            with pytest.raises(NotSent, match=why):
                await mail.send([ONE])

    with mail_host("drip") as host:
        asyncio.run(tried())  # ends, though its thread does not
        assert threading.active_count() <= before + 3  # that one, the host's, and its handler


@asynchronous
async def test_who_of_the_addressed_is_refused_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with mail_host() as host:
        await Mail(by_mail(host.port, mail=["ops@site.example", "nobody@site.example"])).send([ONE])
    assert host.taken[0][0] == ["ops@site.example"]
    assert "refuses nobody@site.example with 550" in caplog.text


# -- at least once


@asynchronous
async def test_who_died_before_it_was_noted_sends_again_and_a_restart_does_not(ledger: Ledger) -> None:
    with webhook() as hook:
        where = by_webhook(hook.port)
        Notify(where, ledger, Outage())
        drain(ledger, "n1")
        [notice] = ledger.outbox.waiting("webhook")
        ledger.outbox.about_to_send([notice], time.time())
        await Webhook(where).send([notice])  # and dies here
        async with following(where, ledger):
            await until(lambda: not left(ledger))
        assert len(hook.taken) == 2
        ids = [said["events"][0]["id"] for _, _, said in hook.taken]
        assert ids == [notice.id] * 2
        async with following(where, ledger):
            drain(ledger, "n2")
            await until(lambda: not left(ledger))
        assert [one["node"] for one in hook.taken[2][2]["events"]] == ["n2"]


@asynchronous
async def test_a_ledger_that_takes_no_word_sends_none(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with webhook() as hook:
        where = by_webhook(hook.port)
        Notify(where, ledger, Outage())
        drain(ledger, "n1")
        looked = asyncio.Event()
        waiting = type(ledger.outbox).waiting

        def look(*arguments: Any) -> Any:
            looked.set()
            return waiting(*arguments)

        monkeypatch.setattr(type(ledger.outbox), "waiting", look)
        with contextlib.closing(sqlite3.connect(str(ledger.file), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # an admin's sqlite3 holds it
            async with following(where, ledger):
                for _ in range(3):
                    looked.clear()
                    await looked.wait()
            assert hook.got == []
        async with following(where, ledger):
            await until(lambda: not left(ledger))
        assert len(hook.taken) == 1


def test_an_outcome_and_its_notice_are_written_together(ledger: Ledger) -> None:
    Notify(by_webhook(1), ledger, Outage())
    with pytest.raises(RuntimeError), ledger.together():
        drain(ledger, "n1")
        raise RuntimeError
    assert left(ledger) == []
    assert ledger.open_incidents() == []


@asynchronous
async def test_who_has_lost_the_lease_sends_nothing(server: Server) -> None:
    url = server.database()
    first, second = Ledger(url), Ledger(url)
    lease, other = Lease(first, "ctl1:6821", "ctl1"), Lease(second, "ctl2:6821", "ctl2")
    assert lease.take()
    with webhook() as hook:
        where = by_webhook(hook.port)
        Notify(where, first, Outage())
        drain(first, "n1")
        lease.give_up()
        assert other.take()
        async with following(where, first):
            await until(lambda: first.lost)
        assert hook.got == []
        async with following(where, second):
            await until(lambda: not left(second))
        assert len(hook.taken) == 1
    for ledger in (first, second):
        ledger.engine.dispose()


@pytest.mark.parametrize(
    ("kind", "target", "event", "text"),
    [
        ("drain", "n1", "drain", "n1 is drained: "),
        ("down", "n1", "drain", "n1 is off and set DOWN, to let its job go: "),
        ("requeue", "7_2", "requeue", "job 7_2 is requeued off n1: "),
        ("resume", "n1", "resume", "n1 serves again: "),
        ("lift", "7_2", "", ""),
    ],
)
def test_an_act_that_is_done_is_told_and_no_other(
    ledger: Ledger, kind: str, target: str, event: str, text: str
) -> None:
    Notify(by_webhook(1, events=["drain", "requeue", "resume"]), ledger, Outage())
    ledger.take(report(XID), T)
    for outcome in ("not done: no", "no answer", "done"):
        ledger.settle(ledger.intend(1, kind, target, T), outcome, T)
    expected = [(event, f"{text}GPU_XID_79(0000:5d:00.0) gone")] if event else []
    assert [(row.event, row.text) for row in left(ledger)] == expected


# -- secrets, and what others wrote


def secret(tmp_path: Path, text: str = f"{TOKEN}\n") -> str:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    return str(file)


@pytest.mark.parametrize("mode", ["well", "500", "down"])
@pytest.mark.parametrize("path", ["/hook", "/hook/{token}/x"])
@asynchronous
async def test_the_token_is_sent_and_said_nowhere(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, mode: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with webhook(mode if mode != "down" else "well") as hook:
        port = hook.port if mode != "down" else free_port()
        where = told(webhook=f"http://127.0.0.1:{port}{path}", token_file=secret(tmp_path))
        async with following(where, ledger) as notifying:
            drain(ledger, "n1")
            await until(lambda: hook.taken or notifying.trouble)
            trouble = str(notifying.trouble)
    assert TOKEN not in caplog.text + trouble + where.model_dump_json()
    for (went, authorization, said), _ in hook.got:
        assert (went, authorization) in {("/hook", f"Bearer {TOKEN}"), (f"/hook/{TOKEN}/x", None)}
        assert TOKEN not in str(said)


@pytest.mark.parametrize("text", ["", "two words\n", "one\ntwo\n", "caf\xe9\n", "a\x1bb\n"])
@asynchronous
async def test_a_token_file_that_holds_no_token_is_named(tmp_path: Path, text: str) -> None:
    file = secret(tmp_path, text)
    with webhook() as hook:
        with pytest.raises(NotSent, match="must hold one line, the token") as raised:
            await Webhook(by_webhook(hook.port, token_file=file)).send([ONE])
        assert file in str(raised.value)
        with pytest.raises(NotSent, match="No such file"):
            await Webhook(by_webhook(hook.port, token_file=f"{file}.none")).send([ONE])
    assert hook.got == []


HOSTILE = "job 1\r\nBcc: all@site.example\r\n\r\n<b>\x1b[31m\u202e\0 {node} {words} %s `id` $(id)"


@asynchronous
async def test_no_text_forges_a_header_or_a_line() -> None:
    with mail_host() as host, webhook() as hook:
        for notices in ([replace(ONE, text=HOSTILE)], [replace(ONE, text=HOSTILE)] * 2):
            await Mail(by_mail(host.port)).send(notices)
            await Webhook(by_webhook(hook.port)).send(notices)
    for to, said in host.taken:
        assert to == ["ops@site.example"]
        assert said["Bcc"] is None
        assert (
            said.get_content().count("Bcc: all@site.example") == said.get_content().rstrip().count("\n") + 1
        )
        assert not set("\x1b\u202e\0") & set(said.get_content() + said["Subject"])
    for _, _, said in hook.taken:
        assert not set("\x1b\u202e\0\r") & set(said["text"] + said["events"][0]["text"])


# -- the configuration


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('mail = ["ops@site.example\\nBcc: x"]', "notify.mail.0: write an address"),
        ('mail = ["-oQ/tmp"]', "notify.mail.0: write an address"),
        ('mail_from = "a b"', "notify.mail_from: write an address"),
        ('smtp = "mail:0"', "notify.smtp: write host:port, such as"),
        ('webhook = "ftp://x/"', "notify.webhook: write its address"),
        ('webhook = "https://user:secret@x/"', "notify.webhook: write its address"),
        ('webhook = "https://x/{token}"', "no token_file says where it is"),
        ('events = ["reboot"]', "notify.events.0"),
        ('severity = "ok"', "notify.severity"),
        ('token = "s3cr3t"', "notify.token: unknown key"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, mistake: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[notify]\n{text}\n")
    with pytest.raises(ConfigError, match=mistake.replace("[", r"\[")) as raised:
        config.load(str(file))
    assert "s3cr3t" not in str(raised.value)


def checked(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "config.toml"
    file.write_text(f"[notify]\n{text}\n")
    return CliRunner().invoke(main, ["config", "check", "--notify", "--config", str(file)])


def test_an_admin_tries_it(tmp_path: Path) -> None:
    with webhook() as hook, mail_host() as host:
        both = f'webhook = "http://127.0.0.1:{hook.port}/"\nmail = ["root"]\nsmtp = "127.0.0.1:{host.port}"'
        done = checked(tmp_path, both)
        assert done.exit_code == 0
        assert done.output.splitlines()[1:] == ["mail: sent", "webhook: sent"]
        assert "a test of [notify] on " in host.taken[0][1]["Subject"]
        assert hook.taken[0][2]["events"][0]["event"] == "test"
        hook.mode = "403"
        done = checked(tmp_path, both)
        assert done.exit_code == 69
        assert f"webhook: not sent: 127.0.0.1:{hook.port} answered 403" in done.output
    done = checked(tmp_path, "")
    assert done.exit_code == 64
    assert "[notify] names neither mail nor webhook" in done.output
