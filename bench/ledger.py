"""How long the ledger's calls take with 100,000 closed and 10,000 open incidents: `python bench/ledger.py`.

Medians over many calls on this machine's disk, in microseconds: compare two versions in one sitting.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from slurm_health.ledger import Ledger
from slurm_health.ledger import schema as tables
from slurm_health.model import Finding, Job, Severity, Urgency
from slurm_health.wire import NodeReport

CLOSED, OPEN, NODES = 100_000, 10_000, 2000
T = 1_700_000_000.0


def fill(ledger: Ledger) -> None:
    def row(number: int) -> dict[str, object]:
        closed = number < CLOSED
        return {
            "id": number + 1, "node": f"n{number % NODES}", "code": "IB_PORT_DOWN", "device": f"d{number}",
            "severity": 1 + number % 2, "job": "now", "text": "t" * 60, "since": T, "opened": T, "seen": T,
            "lasting": True, "moment": f"b/{number}", "cleared": T if closed else 0.0,
            "closed": T + number if closed else 0.0, "closed_by": "cleared" if closed else "",
        }  # fmt: skip

    many = range(CLOSED + OPEN)
    act = {"kind": "requeue", "detail": "restarts=0", "intended": T, "done": T, "outcome": "done"}
    run = {"restarts": 0, "uid": 1, "urgency": "now", "since": T, "touched": T, "settled": T}
    with ledger.engine.begin() as connection:
        connection.execute(tables.incidents.insert(), [row(n) for n in many])
        connection.execute(tables.evidence.insert(), [
            {"node": f"n{n % NODES}", "moment": f"b/{n}", "incident": n + 1, "at": T, "line": "x" * 80}
            for n in many
        ])  # fmt: skip
        connection.execute(tables.actions.insert(), [
            act | {"incident": n + 1, "target": str(n)} for n in many
        ])  # fmt: skip
        connection.execute(tables.actions.insert(), [
            act | {"kind": "drain", "incident": n + 1, "target": f"n{n % NODES}"} for n in many
        ])  # fmt: skip
        connection.execute(tables.victims.insert(), [
            run | {"id": n + 1, "incident": n + 1, "job": n, "label": str(n), "node": "n1"} for n in many
        ])  # fmt: skip
        connection.execute(tables.touches.insert(), [{"incident": n + 1, "victim": n + 1} for n in many])
        connection.execute(tables.nodes.insert(), [
            {"name": f"n{n}", "reason": "slurm-health: x" if n < 20 else ""} for n in range(NODES)
        ])  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db"
        ledger = Ledger(url)
        fill(ledger)
        ledger.engine.dispose()
        size = Path(folder, "ledger.db").stat().st_size
        began = time.perf_counter()
        ledger = Ledger(url)
        print(f"{size / 1e6:.0f} MB; opened in {time.perf_counter() - began:.2f} s")
        incident = ledger.incident(CLOSED + 1)
        assert incident
        standing = tuple(f"b/{n}" for n in range(CLOSED, CLOSED + OPEN) if n % NODES == 7)
        quiet = NodeReport("n7", "boot", standing=standing)
        ledger.take(quiet, T)
        number = iter(range(10**7, 10**8))

        def news() -> NodeReport:
            n = next(number)
            xid = Finding("GPU_XID_79", Severity.CRITICAL, f"g{n}", "gone", "x", Urgency.NOW, T, f"g/{n}")
            return NodeReport("n7", "boot", opened=(xid,), standing=(*standing, f"g/{n}"))

        calls: dict[str, tuple[int, Callable[[], object]]] = {
            "take, quiet": (300, lambda: ledger.take(quiet, T)),
            "take, one new": (300, lambda: ledger.take(news(), T)),
            "open_incidents(node)": (100, lambda: ledger.open_incidents(["n8"])),
            "open_incidents()": (5, lambda: ledger.open_incidents()),
            "nodes_in_question": (20, lambda: ledger.nodes_in_question(T)),
            "attempts": (50, lambda: ledger.attempts("drain", T + 600)),
            "hurts": (50, lambda: ledger.hurts(777, T)),
            "latest": (50, lambda: ledger.latest("n8")),
            "unsettled": (50, lambda: ledger.unsettled("drain", "n8")),
            "drained_since, window": (50, lambda: ledger.drained_since(T + 600)),
            "drained_since, under way": (50, lambda: ledger.drained_since(0, under_way=True)),
            "would": (100, lambda: ledger.would(8, "drain", "n8", "paused", T)),
            "touch": (100, lambda: ledger.touch(incident, Job(next(number), "x", "RUNNING"), 0, 0.0, T)),
            "out_by_us": (100, lambda: ledger.out_by_us()),
            "stories(job)": (50, lambda: ledger.stories(job=777, every=True)),
            "stories()": (20, lambda: ledger.stories()),
            "close_quiet": (20, lambda: ledger.close_quiet(T, 10)),
            "forget, nothing": (20, lambda: ledger.forget(T - 1)),
        }  # fmt: skip
        for name, (times, call) in calls.items():
            took = []
            for _ in range(times):
                began = time.perf_counter()
                call()
                took.append(time.perf_counter() - began)
            print(f"{name:26} {statistics.median(took) * 1e6:10.0f} us")
        ledger.engine.dispose()


main()
