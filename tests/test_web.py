"""The controller's door: who may say and see what, and what it answers when something is wrong."""

import asyncio
import functools
import io
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import ClientSession

from slurm_health import slurm, wire
from slurm_health.config import Config
from slurm_health.controller import Controller
from slurm_health.ledger import Ledger, schema
from slurm_health.model import Finding, Job, Node, Severity, Urgency
from slurm_health.signing import Refused
from slurm_health.slurm import Slurm, Unreachable
from slurm_health.standby import Standby
from slurm_health.story import iso
from slurm_health.web import Door
from slurm_health.wire import Decision, NodeReport

ALICE, BOB, SLURM = 1000, 1001, 64030
T = 1_700_000_000.0


@dataclass
class FakeSlurm:
    """A Slurm of a few nodes that can fall silent. It notes what was done to it."""

    known: dict[str, Node] = field(default_factory=lambda: {"n1": node("n1"), "n2": node("n2")})
    silent: bool = False
    done: list[tuple[str, ...]] = field(default_factory=list)

    def _answer(self) -> None:
        if self.silent:
            raise Unreachable("no answer in 10 s")

    async def nodes(self, names: Iterable[str] = ()) -> dict[str, Node]:
        self._answer()
        wanted = set(names) or set(self.known)
        return {name: node for name, node in self.known.items() if name in wanted}

    async def jobs(self, ids: Iterable[int]) -> dict[int, Job]:
        self._answer()
        return {}

    async def jobs_on(self, names: Iterable[str]) -> list[Job]:
        self._answer()
        return []

    async def drain(self, names: Iterable[str], reason: str) -> None:
        self._answer()
        for name in names:
            self.done.append(("drain", name, reason))
            self.known[name] = replace(
                self.known[name], flags=frozenset({"IDLE", "DRAIN"}), reason=reason, since=int(time.time())
            )

    async def resume(self, names: Iterable[str]) -> None: ...

    async def requeue(self, label: str, incomplete: bool, hold: bool = False) -> None: ...

    async def release(self, label: str) -> None: ...

    async def start_now(self, label: str) -> None: ...

    async def tell(self, label: str, text: str) -> None: ...

    async def comment(self, label: str) -> str:
        return ""

    async def set_comment(self, label: str, text: str) -> None: ...

    async def ping(self) -> dict[str, bool]:
        self._answer()
        return {"head": True}

    async def site(self) -> slurm.Site:
        self._answer()
        return slurm.Site(SLURM, (22, 5))


def node(name: str, address: str = "127.0.0.1") -> Node:
    return Node(name, frozenset({"IDLE"}), address=address)


class Claimed:
    """Believes the uid that a header claims; none of it is about cryptography, which test_wire is."""

    def sign(self, payload: bytes) -> str:
        raise NotImplementedError

    def signer(self, header: str, payload: bytes) -> int:
        if not header.startswith("uid "):
            raise Refused("no credential")
        return int(header.removeprefix("uid "))


@dataclass
class Site:
    client: ClientSession
    door: Door
    controller: Controller
    ledger: Ledger
    slurm: FakeSlurm
    port: int

    async def ask(
        self, method: str, target: str, body: object = None, uid: int | None = 0
    ) -> tuple[int, str]:
        if not isinstance(body, bytes | io.BytesIO):
            body = b"" if body is None else json.dumps(body).encode()
        headers = {} if uid is None else {"Authorization": f"uid {uid}"}
        async with self.client.request(method, target, data=body, headers=headers) as response:
            return response.status, await response.text()

    async def get(self, target: str, uid: int = 0) -> Any:
        status, text = await self.ask("GET", target, uid=uid)
        assert status == 200, text
        return json.loads(text)

    async def report(self, *opened: Finding, uid: int = 0, **fields: Any) -> tuple[int, str]:
        standing = tuple(found.moment for found in opened if found.lasting)
        report = NodeReport("n1", opened=opened, standing=standing)
        return await self.ask("POST", "/v1/report", wire.encode(replace(report, **fields)), uid)

    async def settle(self) -> None:
        """Until all that was set going has come to its end."""
        with self.controller.outage.survived("test"):
            await self.controller.drains.attend()


@asynccontextmanager
async def site(
    tmp_path: Path, played: FakeSlurm | None = None, why: str = "", **config: Any
) -> AsyncIterator[Site]:
    fake = played or FakeSlurm()
    protocol: Slurm = fake
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    controller = Controller(Config.model_validate(config), ledger, protocol)
    standby = Standby(controller.config.controller, ledger, fake)
    standby.why = why
    door = Door(controller, Claimed(), standby)
    controller.rescue.site = slurm.Site(SLURM, (22, 5))
    async with door.open("127.0.0.1", 0) as port, ClientSession(f"http://127.0.0.1:{port}") as client:
        here = Site(client, door, controller, ledger, fake, port)
        yield here
        await here.settle()
    ledger.engine.dispose()


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*arguments, **named)

        asyncio.run(bounded())

    return run


XID = Finding("GPU_XID_79", Severity.CRITICAL, "0000:5d:00.0", "gone", "Xid 79", Urgency.NOW, T, "b/1", False)

ASKS = [
    ("POST", "/v1/report", {"node": "n1"}),
    ("POST", "/v1/decision", {"node": "n1", "known": "x"}),
    ("GET", "/v1/status", None),
    ("GET", "/v1/incidents", None),
    ("GET", "/v1/incidents/1", None),
    ("GET", "/v1/jobs/7", None),
    ("POST", "/v1/incidents/1/close", {}),
    ("POST", "/v1/pause", {}),
    ("POST", "/v1/unpause", {}),
]
IDS = [target for _, target, _ in ASKS]
PRIVILEGED = {"/v1/report", "/v1/decision", "/v1/incidents/1/close", "/v1/pause", "/v1/unpause"}


# -- who


@pytest.mark.parametrize(("method", "target", "body"), [*ASKS, ("GET", "/no/such/page", None)])
@asynchronous
async def test_nobody_is_heard_unsigned(tmp_path: Path, method: str, target: str, body: object) -> None:
    async with site(tmp_path) as here:
        assert await here.ask(method, target, body, uid=None) == (403, "no credential\n")
        assert here.ledger.pauses(0) == []
        assert here.ledger.node("n1") is None


@pytest.mark.parametrize(("method", "target", "body"), ASKS, ids=IDS)
@asynchronous
async def test_what_an_ordinary_user_may(tmp_path: Path, method: str, target: str, body: object) -> None:
    async with site(tmp_path) as here:
        await here.report(replace(XID, severity=Severity.WARNING))
        status, text = await here.ask(method, target, body, uid=ALICE)
        if target in PRIVILEGED:
            assert (status, text) == (403, "uid 1000 may not do this; root or SlurmUser may\n")
            assert here.ledger.pauses(0) == []
            assert len(here.ledger.open_incidents()) == 1
        else:
            assert status == 200


@pytest.mark.parametrize("uid", [0, SLURM])
@pytest.mark.parametrize(("method", "target", "body"), ASKS, ids=IDS)
@asynchronous
async def test_root_and_slurmuser_may_everything(
    tmp_path: Path, method: str, target: str, body: object, uid: int
) -> None:
    async with site(tmp_path) as here:
        await here.report(replace(XID, severity=Severity.WARNING))
        assert (await here.ask(method, target, body, uid=uid))[0] == 200


@asynchronous
async def test_before_slurm_has_said_who_slurmuser_is_only_root_reports(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.controller.rescue.site = None
        here.slurm.silent = True
        await here.controller.rescue.learn_site()
        assert (await here.report(uid=SLURM))[0] == 403
        here.slurm.silent = False
        await here.controller.rescue.learn_site()
        assert (await here.report(uid=SLURM))[0] == 200


@pytest.mark.parametrize("target", ["/v1/report", "/v1/decision"])
@asynchronous
async def test_a_node_that_slurm_does_not_know_is_refused(tmp_path: Path, target: str) -> None:
    async with site(tmp_path) as here:
        assert await here.ask("POST", target, {"node": "n3"}) == (403, "n3: Slurm knows no such node\n")
        assert here.ledger.node("n3") is None


@pytest.mark.parametrize(
    ("address", "check", "status"),
    [
        ("127.0.0.1", True, 200),
        ("localhost", True, 200),
        ("", True, 200),
        ("192.0.2.1", True, 403),
        ("192.0.2.1", False, 200),
        ("no-such-host.invalid", True, 200),
    ],
)
@asynchronous
async def test_a_report_comes_from_its_nodes_address(
    tmp_path: Path, address: str, check: bool, status: int
) -> None:
    played = FakeSlurm({"n1": node("n1", address)})
    async with site(tmp_path, played, auth={"check_address": check}) as here:
        said = await here.report()
        assert said[0] == status
        if status == 403:
            assert said[1] == "n1: a report from 127.0.0.1, but Slurm has it at 192.0.2.1\n"
        asked = {"node": "n1", "known": "another"}
        assert (await here.ask("POST", "/v1/decision", asked))[0] == status


# -- what is malformed


@asynchronous
async def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for uid in (0, None):
            large = io.BytesIO(b"x" * (wire.LIMIT + 1))
            assert (await here.ask("POST", "/v1/report", large, uid=uid))[0] == 413

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100_000

        headers = {"Authorization": "uid 0"}
        async with here.client.post("/v1/report", data=parts(), headers=headers) as response:
            assert response.status == 411


DEEP = b"[" * 60_000
BAD = [
    ("POST", "/v1/report", b""),
    ("POST", "/v1/report", b"{"),
    ("POST", "/v1/report", b"[]"),
    ("POST", "/v1/report", b"{}"),
    ("POST", "/v1/report", b'{"node": "n\\ud800"}'),
    ("POST", "/v1/report", DEEP),
    ("POST", "/v1/decision", b"rubbish"),
    ("POST", "/v1/decision", b"\xff"),
    ("POST", "/v1/decision", b"{}"),
    ("POST", "/v1/decision", b'{"node": 7}'),
    ("POST", "/v1/decision", b'{"node": "n\\ud800"}'),
    ("POST", "/v1/decision", DEEP),
    ("POST", "/v1/pause", b"rubbish"),
    ("POST", "/v1/pause", b"[]"),
    ("POST", "/v1/pause", DEEP),
    ("POST", "/v1/pause", b'{"nodes": 7}'),
    ("POST", "/v1/pause", b'{"nodes": "n[1-"}'),
    ("POST", "/v1/pause", b'{"nodes": "n\\ud800"}'),
    ("POST", "/v1/pause", b'{"nodes": "n[1-99999999]"}'),
    ("POST", "/v1/pause", b'{"nodes": "n[1-5,7-99999999]"}'),
    ("POST", "/v1/pause", b'{"nodes": "n[0000000000000000001-0000000000000099999999]"}'),
    ("POST", "/v1/pause", b'{"nodes": "n[1-' + b"9" * 9000 + b']"}'),
    ("POST", "/v1/pause", b'{"nodes": "r[1-1000]n[1-1000]"}'),
    ("POST", "/v1/unpause", b'{"nodes": "n1,n[1-99999999"}'),
    ("POST", "/v1/pause", b'{"seconds": "1h"}'),
    ("POST", "/v1/pause", b'{"seconds": -1}'),
    ("POST", "/v1/pause", b'{"seconds": NaN}'),
    ("POST", "/v1/pause", b'{"seconds": 1e300}'),
    ("POST", "/v1/pause", b'{"reason": []}'),
    ("POST", "/v1/pause", b'{"reason": "\\ud800"}'),
    ("POST", "/v1/unpause", b'{"nodes": []}'),
    ("POST", "/v1/unpause", b'{"nodes": "n\\ud800"}'),
    ("GET", "/v1/incidents?limit=0", b""),
    ("GET", "/v1/incidents?limit=1001", b""),
    ("GET", "/v1/incidents?limit=x", b""),
    ("GET", "/v1/incidents?limit=-1", b""),
    ("GET", "/v1/incidents?limit=%C2%B2", b""),
    ("GET", "/v1/incidents?limit=" + "9" * 5000, b""),
]


@pytest.mark.parametrize(("method", "target", "body"), BAD, ids=lambda part: ascii(part)[:40])
@asynchronous
async def test_what_is_malformed_is_said(tmp_path: Path, method: str, target: str, body: bytes) -> None:
    async with site(tmp_path) as here:
        status, text = await here.ask(method, target, body)
        assert status == 400
        assert text.count("\n") == 1
        assert here.ledger.pauses(0) == []


@pytest.mark.parametrize(
    "target",
    ["/v1/incidents/x", "/v1/incidents/-1", "/v1/incidents/" + "9" * 13, "/v1/jobs/1_2_3", "/v2/status", "/"],
)
@asynchronous
async def test_what_is_not_there(tmp_path: Path, target: str) -> None:
    async with site(tmp_path) as here:
        assert (await here.ask("GET", target))[0] == 404
        assert (await here.ask("POST", "/v1/incidents/9/close", {})) == (404, "there is no incident 9\n")


@pytest.mark.parametrize(
    "query", ["node=%ff", "node=%00", "node='%20OR%201", "node=n1&node=n2", "all=yes", "x"]
)
@asynchronous
async def test_an_odd_query_finds_nothing_and_breaks_nothing(tmp_path: Path, query: str) -> None:
    async with site(tmp_path) as here:
        assert await here.get(f"/v1/incidents?{query}") == []
        assert await here.get("/v1/incidents/999999999999") == []
        assert await here.get("/v1/jobs/999999999999") == []


# -- when something else is broken


@asynchronous
async def test_a_ledger_without_room_is_said_and_nothing_is_receipted(tmp_path: Path) -> None:
    async with site(tmp_path) as here:

        def bounded(connection: sqlite3.Connection, _: Any) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={pages}").close()

        here.ledger.engine.dispose()
        sa.event.listen(here.ledger.engine, "connect", bounded)
        storm = [replace(XID, moment=f"b/{n}", evidence="x" * 900) for n in range(200)]
        status, text = await here.report(*storm)
        assert (status, "the ledger cannot be used" in text, "disk is full" in text) == (503, True, True)
        assert await here.get("/v1/incidents") == []  # questions are answered still
        sa.event.remove(here.ledger.engine, "connect", bounded)
        here.ledger.engine.dispose()
        assert (await here.report(*storm))[0] == 200


@asynchronous
async def test_a_silent_slurm_is_said(tmp_path: Path) -> None:
    async with site(tmp_path, FakeSlurm(silent=True)) as here:
        assert await here.report(XID) == (503, "Slurm does not answer: no answer in 10 s\n")
        said = await here.get("/v1/status")
        assert said["slurm"]["trouble"] == "no answer in 10 s"
        here.slurm.silent = False
        assert (await here.report(XID))[0] == 200
        await here.settle()
        here.slurm.silent = True
        here.controller.inventory.at -= 120  # a stale list of nodes is better than none
        assert (await here.report(replace(XID, moment="b/2")))[0] == 200
        assert (await here.get("/v1/status"))["slurm"]["trouble"] == "no answer in 10 s"


@pytest.mark.parametrize(
    ("sent", "ahead", "shift"),
    [
        (-30.0, 0.02, 0.0),  # long under way
        (-30.0, None, 0.0),  # it may have been
        (30.0, None, 30.0),
        (-30.0, -30.0, -30.0),
        (-45.0, -30.0, -30.0),  # both
        (-1.5, -1.5, 0.0),
    ],
)
@asynchronous
async def test_times_go_by_the_controllers_clock(
    tmp_path: Path, sent: float, ahead: float | None, shift: float
) -> None:
    now = time.time()
    async with site(tmp_path) as here:
        await here.report(replace(XID, since=now - 50 + shift), sent=now + sent, ahead=ahead)
        [incident] = here.ledger.open_incidents()
        assert incident.since == pytest.approx(now - 50, abs=0.5)


@asynchronous
async def test_a_report_that_comes_after_a_later_one_is_not_heard(tmp_path: Path) -> None:
    """A cable that was out for a minute delivers what was sent before; what it says stands no more."""
    lasting = replace(XID, code="IB_PORT_DOWN", device="mlx5_0/1", lasting=True)
    async with site(tmp_path) as here:
        assert (await here.report(lasting, life="a", number=2))[0] == 200
        assert (await here.report(life="a", number=1))[0] == 400
        [incident] = here.ledger.open_incidents()
        assert not incident.cleared
        assert (await here.report(life="b", number=1))[0] == 200  # the daemon was restarted
        assert here.ledger.open_incidents() == []


@asynchronous
async def test_all_who_wait_for_the_list_of_nodes_wait_for_one_question(tmp_path: Path) -> None:
    """One after the other they would wait a deadline each, and `status` would not come."""
    asked, answers = 0, asyncio.Event()

    class Slow(FakeSlurm):
        async def nodes(self, names: Iterable[str] = ()) -> dict[str, Node]:
            nonlocal asked
            asked += 1
            await answers.wait()
            return await super().nodes(names)

    async with site(tmp_path, Slow(silent=True)) as here:
        waiting = [asyncio.create_task(here.controller.inventory.nodes()) for _ in range(20)]
        await asyncio.sleep(0)
        answers.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(result) for result in results} == {Unreachable}
        assert asked == 1
        here.slurm.silent = False
        assert set(await here.controller.inventory.nodes()) == {"n1", "n2"}


# -- what people see


@asynchronous
async def test_an_ordinary_user_sees_the_own_jobs_only(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.ledger.take(NodeReport("n1", opened=(XID,)), T)
        [incident] = here.ledger.open_incidents()
        for job, uid in ((7, ALICE), (8, BOB)):
            here.ledger.touch(incident, Job(job, str(job), "RUNNING", uid=uid), 0, 0.0, T)
            number = here.ledger.intend(incident.id, "requeue", str(job), T + 1, "restarts=0")
            here.ledger.settle(number, "done", T + 1)
        here.ledger.victim(1, running=T + 9, ran_nodes="n2")
        here.ledger.victim(2, running=T + 3, ran_nodes="n3")
        here.ledger.settle(here.ledger.intend(incident.id, "drain", "n1", T, "words"), "done", T + 0.5)

        def seen(story: dict[str, Any]) -> tuple[list[int], list[tuple[str, str]]]:
            return (
                [job["id"] for job in story["jobs"]],
                [(act["kind"], act["target"]) for act in story["actions"]],
            )

        everything = ([7, 8], [("requeue", "7"), ("requeue", "8"), ("drain", "n1")])
        for uid, expected, ran in (
            (0, everything, 9.0),
            (SLURM, everything, 9.0),
            (ALICE, ([7], [("requeue", "7"), ("drain", "n1")]), 9.0),
            (BOB, ([8], [("requeue", "8"), ("drain", "n1")]), 3.0),
            (4711, ([], [("drain", "n1")]), None),
        ):
            for target in ("/v1/incidents", "/v1/incidents/1", "/v1/jobs/7", "/v1/jobs/8"):
                if target.startswith("/v1/jobs/") and int(target[-1]) not in expected[0]:
                    assert await here.get(target, uid) == []  # not even which fault it met
                    continue
                [story] = await here.get(target, uid)
                assert seen(story) == expected
                assert story["seconds_to_running"] == ran
                assert story["seconds_to_drained"] == 0.5
                assert story["evidence"] == [{"at": iso(T), "line": "Xid 79"}]
        assert await here.get("/v1/jobs/9") == []


@asynchronous
async def test_the_shape_of_an_incident(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.ledger.take(NodeReport("n1", opened=(replace(XID, hardware={"gpu": 3}),)), T + 1)
        here.ledger.touch(here.ledger.open_incidents()[0], Job(7, "7_2", "RUNNING", uid=ALICE), 1, T, T)
        [story] = await here.get("/v1/incidents")
        assert (story["id"], story["node"], story["code"], story["device"]) == (
            1, "n1", "GPU_XID_79", "0000:5d:00.0")  # fmt: skip
        assert (story["severity"], story["job"], story["state"]) == ("critical", "now", "open")
        assert story["hardware"] == {"gpu": 3}
        assert (story["since"], story["cleared"], story["closed"]) == (iso(T), None, None)
        [job] = story["jobs"]
        assert (job["job"], job["id"], job["restarts"], job["refused"]) == ("7_2", 7, 1, iso(T))
        moment = story["since"]
        assert moment[10] == "T"
        assert moment[-6] in "+-"  # with its offset


@asynchronous
async def test_a_task_of_an_array_is_asked_for_by_its_own_name_too(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.ledger.take(NodeReport("n1", opened=(XID,)), T)
        [incident] = here.ledger.open_incidents()
        here.ledger.touch(incident, Job(9, "7_2", "RUNNING", uid=ALICE), 0, 0.0, T)
        for name, uid, many in (
            ("7_2", ALICE, 1),
            ("9", ALICE, 1),
            ("7_1", ALICE, 0),
            ("7_2", BOB, 0),
            ("7_2", 0, 1),
        ):
            assert len(await here.get(f"/v1/jobs/{name}", uid)) == many


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, (None, None, None)),  # it was not requeued
        ({"requeued": T + 60}, (160.0, "began", None)),
        ({"requeued": T + 60, "saved": T - 10}, (70.0, "saved", None)),
        ({"requeued": T + 60, "saved": T - 999}, (160.0, "began", None)),  # in another run
        ({"requeued": T + 60, "saved": T + 999}, (160.0, "began", None)),  # nobody knows the future
        ({"requeued": T + 60, "signalled": T + 20}, (160.0, "began", 40.0)),
        ({"requeued": T + 60, "refused": T}, (None, None, None)),  # it had not begun
    ],
)
@asynchronous
async def test_what_a_requeue_cost_a_job_at_most(
    tmp_path: Path, known: dict[str, float], expected: tuple[Any, ...]
) -> None:
    async with site(tmp_path) as here:
        here.ledger.take(NodeReport("n1", opened=(XID,)), T)
        [incident] = here.ledger.open_incidents()
        here.ledger.touch(incident, Job(7, "7", "RUNNING", uid=ALICE, started=T - 100), 0, 0.0, T)
        here.ledger.victim(1, **known) if known else None
        [story] = await here.get("/v1/jobs/7", ALICE)
        [job] = story["jobs"]
        assert (job["lost_at_most"], job["lost_since"], job["lost_if_saved_at_signal"]) == expected


@asynchronous
async def test_the_status_of_the_cluster(tmp_path: Path) -> None:
    async with site(tmp_path, mode="drain") as here:
        await here.report()
        said = await here.get("/v1/status", ALICE)
        assert (said["worst"], said["nodes"], said["troubled"], said["pauses"]) == ("ok", 2, [], [])
        assert said["controller"]["mode"] == "drain"
        await here.ask("POST", "/v1/pause", {"nodes": "n[1-2]", "seconds": 3600, "reason": "work"})
        strange, answer = await here.ask("POST", "/v1/pause", {"nodes": "n[1-4]"})
        assert (strange, answer) == (400, "nodes: Slurm knows no n[3-4]\n")
        await here.report(XID)
        await here.settle()
        said = await here.get("/v1/status", ALICE)
        assert said["worst"] == "critical"
        assert said["pauses"][0]["nodes"] == "n[1-2]"
        [troubled] = said["troubled"]
        assert (troubled["node"], troubled["drained"], troubled["refusing"]) == ("n1", "", False)
        assert troubled["incidents"][0]["held"] == "paused"
        assert here.slurm.done == []


@asynchronous
async def test_a_silent_node_is_a_warning(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.controller.began -= 1000
        await here.report()
        said = await here.get("/v1/status")
        assert (said["worst"], said["silent"], said["reporting"]) == ("warning", "n2", 1)


@asynchronous
async def test_ten_thousand_open_incidents(tmp_path: Path) -> None:
    known = {f"n{n}": node(f"n{n}") for n in range(1, 1001)}
    async with site(tmp_path, FakeSlurm(known)) as here:
        rows = [
            {"node": f"n{n % 1000 + 1}", "code": "GPU_XID_79", "device": f"d{n}", "severity": 2, "job": "now",
             "text": "t" * 64, "since": T, "opened": T, "lasting": False, "moment": str(n), "seen": T}
            for n in range(10_000)
        ]  # fmt: skip
        with here.ledger.engine.begin() as connection:
            connection.execute(schema.incidents.insert(), rows)
        assert [row["id"] for row in await here.get("/v1/incidents")] == [*range(10_000, 9_800, -1)]
        assert len(await here.get("/v1/incidents?limit=1000&all=1")) == 1000
        assert len(await here.get("/v1/incidents?node=n7")) == 10
        assert (await here.get("/v1/status"))["worst"] == "critical"


# -- what admins do


@asynchronous
async def test_closing(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.report(XID)
        status, text = await here.ask("POST", "/v1/incidents/1/close", {})
        [story] = json.loads(text)
        assert (status, story["state"], story["closed_by"]) == (200, "closed", "root")
        _, text = await here.ask("POST", "/v1/incidents/1/close", {}, SLURM)
        assert json.loads(text) == [story]  # once
        assert await here.get("/v1/incidents") == []
        assert len(await here.get("/v1/incidents?all=1")) == 1


@asynchronous
async def test_pausing_and_unpausing(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        asked = {"nodes": "n2,n1", "seconds": 60, "reason": "r" * 500}
        assert await here.ask("POST", "/v1/pause", asked) == (200, '{"done": "paused: n[1-2]"}')
        [row] = here.ledger.pauses(time.time())
        assert (row.nodes, row.reason, row.by, 50 < row.ends - row.begins < 70) == (
            "n[1-2]", "r" * 200, "root", True)  # fmt: skip
        _, text = await here.ask("POST", "/v1/unpause", {"nodes": "n1"})
        assert json.loads(text) == {"done": "0 pauses of n1 lifted"}
        _, text = await here.ask("POST", "/v1/unpause", {"nodes": "n1,n2"})
        assert json.loads(text) == {"done": "1 pause of n[1-2] lifted"}
        await here.ask("POST", "/v1/pause", {})
        assert [row.ends for row in here.ledger.pauses(time.time())] == [0.0]


# -- decisions


@asynchronous
async def test_a_decision_that_is_news_is_told_at_once(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        status, text = await here.ask("POST", "/v1/decision", {"node": "n1", "known": "what it was"})
        assert (status, wire.decision(text.encode())) == (200, Decision())


@asynchronous
async def test_a_long_poll_is_answered_by_the_drain(tmp_path: Path) -> None:
    async with site(tmp_path, mode="requeue") as here:
        asked = {"node": "n1", "known": Decision(mode="requeue").version}
        polls = [asyncio.create_task(here.ask("POST", "/v1/decision", asked)) for _ in range(3)]
        other = asyncio.create_task(here.ask("POST", "/v1/decision", asked | {"node": "n2"}))
        while len(here.controller.decisions.changed) < 2:  # noqa: ASYNC110  (nothing announces that they wait)
            await asyncio.sleep(0)
        await here.report(XID)
        await here.settle()
        for status, text in await asyncio.gather(*polls):
            assert status == 200
            said = wire.decision(text.encode())
            assert said == Decision("GPU_XID_79(0000:5d:00.0) gone", mode="requeue")
        assert here.slurm.done == [("drain", "n1", "slurm-health: GPU_XID_79(0000:5d:00.0) gone")]
        assert not other.done()
        other.cancel()


@asynchronous
async def test_a_long_poll_ends_without_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LONG_POLL", 0.05)
    async with site(tmp_path) as here:
        asked = {"node": "n1", "known": Decision().version}
        status, text = await here.ask("POST", "/v1/decision", asked)
        assert (status, wire.decision(text.encode())) == (200, Decision())


# -- a controller that stands by


@asynchronous
async def test_who_stands_by_says_who_acts(tmp_path: Path) -> None:
    async with site(tmp_path, why="stands by: ctl2:6821 acts") as here:
        asked = {"node": "n1", "known": ""}
        report = wire.encode(NodeReport("n1", opened=(XID,)))
        for method, target, body in [
            ("POST", "/v1/report", report),
            ("POST", "/v1/decision", asked),
            ("GET", "/v1/status", None),
            ("POST", "/v1/pause", {}),
            ("POST", "/v1/unpause", {}),
            ("POST", "/v1/incidents/1/close", {}),
        ]:
            assert await here.ask(method, target, body) == (wire.STANDS_BY, "stands by: ctl2:6821 acts\n")
        assert (await here.ask("GET", "/v1/status", uid=None))[0] == 403
        assert here.ledger.open_incidents() == []


@asynchronous
async def test_who_stands_by_answers_from_the_ledger(tmp_path: Path) -> None:
    async with site(tmp_path, why="stands by: ctl2:6821 acts") as here:
        here.ledger.take(NodeReport("n1", opened=(XID,)), time.time())
        incident = here.ledger.open_incidents()[0]
        here.ledger.touch(incident, Job(7, "7", "RUNNING", uid=ALICE), 0, 0.0, time.time())
        for uid, seen in ((0, 1), (ALICE, 1), (BOB, 0), (SLURM, 1)):
            [story] = await here.get("/v1/incidents/1", uid)
            assert len(story["jobs"]) == seen
        assert len(await here.get("/v1/incidents")) == len(await here.get("/v1/jobs/7")) == 1
