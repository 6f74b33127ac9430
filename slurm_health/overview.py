"""The cluster at a glance, as `slurm-health status` and GET /v1/status show it."""

from __future__ import annotations

import time
from typing import Any

from ClusterShell.NodeSet import NodeSet

from slurm_health import __version__
from slurm_health.controller import Controller
from slurm_health.model import Node, Severity
from slurm_health.silence import SILENT
from slurm_health.story import iso

LISTING = 1000  # incidents in it


def overview(
    controller: Controller, address: str, nodes: dict[str, Node], slurm: str, heard: dict[str, float]
) -> dict[str, Any]:
    """`address` is the controller's own; `nodes` are Slurm's, `slurm` is what is wrong with that; `heard` is
    when each node last reported. It may take a while: for a thread."""
    now = time.time()
    ledger = controller.ledger
    many, worst, incidents = ledger.outlook(LISTING)
    by_node: dict[str, list[Any]] = {}
    for one in incidents:
        by_node.setdefault(one.node, []).append(one)
    silent = sorted(name for name in nodes if now - heard.get(name, controller.began) > SILENT)
    if silent:
        worst = max(worst, Severity.WARNING)
    out = {row.name: row for row in ledger.out_by_us()}
    troubled = sorted({*by_node, *out})
    return {
        "controller": {"version": __version__, "address": address, "mode": controller.config.mode},
        "slurm": {
            "backend": getattr(controller.slurm, "name", ""),
            "why": getattr(controller.slurm, "why", ""),
            "trouble": slurm,
        },
        "ledger": {
            "url": ledger.url.render_as_string(),
            "trouble": ledger.trouble,
            "aside": str(ledger.aside or ""),
        },
        "notify": controller.notify.trouble,
        "worst": str(worst),
        "nodes": len(nodes),
        "reporting": len(nodes) - len(silent),
        "silent": str(NodeSet.fromlist(silent)),
        "drained": str(NodeSet.fromlist(list(out))),
        "pauses": [
            {"nodes": row.nodes, "until": iso(row.ends), "reason": row.reason, "by": row.by}
            for row in ledger.pauses(now)
        ],
        "open_incidents": many,
        "troubled": [
            {
                "node": name,
                "drained": out[name].reason if name in out else "",
                "refusing": bool(controller.decisions.of(name).refuse),
                "incidents": [
                    {
                        "id": one.id,
                        "code": one.code,
                        "device": one.device,
                        "severity": str(one.severity),
                        "text": one.text,
                        "since": iso(one.since),
                        "held": one.held,
                        "acknowledged": iso(one.acknowledged),
                    }
                    for one in by_node.get(name, [])
                ],
            }
            for name in troubled
        ],
    }
