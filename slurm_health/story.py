"""An incident's story, from the ledger's rows to what the command line and `--json` show."""

from __future__ import annotations

import functools
import pwd
import time
from datetime import datetime
from typing import Any

from slurm_health.model import Severity, Urgency

NAMES = 300.0  # seconds that a user's name is believed


def incident(row: dict[str, Any], everything: bool, uid: int) -> dict[str, Any]:
    """All that is known of it. Times are ISO 8601 with offset, None until they
    happen. Of the jobs an ordinary user sees the own ones."""
    jobs = [job for job in row["jobs"] if everything or job["uid"] == uid]
    labels = {job["label"] for job in jobs}
    acts = [act for act in row["actions"] if everything or act["kind"] == "drain" or act["target"] in labels]
    drained = next((act["done"] for act in acts if act["kind"] == "drain" and act["outcome"] == "done"), 0.0)
    ran = max((job["running"] for job in jobs), default=0.0)
    return {
        "id": row["id"],
        "node": row["node"],
        "code": row["code"],
        "device": row["device"],
        "hardware": row["hardware"],
        "severity": str(Severity(row["severity"])),
        "job": str(Urgency(row["job"])),
        "text": row["text"],
        "state": _state(row),
        "count": row["count"],
        "held": row["held"],
        **{key: iso(row[key]) for key in ("since", "opened", "seen", "cleared", "acknowledged", "closed")},
        "closed_by": row["closed_by"],
        "evidence": [{"at": iso(one["at"]), "line": one["line"]} for one in row["evidence"]],
        "jobs": [
            {
                "job": job["label"],
                "id": job["job"],
                "restarts": job["restarts"],
                "user": user(job["uid"]),
                "ranks": job["ranks"],
                "urgency": job["urgency"],
                "outcome": job["outcome"],
                **{
                    key: iso(job[key])
                    for key in ("began", "refused", "signalled", "requeued", "running", "settled")
                },
                "nodes": job["ran_nodes"],
                **_lost(job),
                "seconds_to_running": _span(job["since"], job["running"]),
            }
            for job in jobs
        ],
        "actions": [
            {
                "kind": act["kind"],
                "target": act["target"],
                "intended": iso(act["intended"]),
                "done": iso(act["done"]),
                "outcome": act["outcome"],
                "detail": act["detail"],
            }
            for act in acts
        ],
        "seconds_to_drained": _span(row["since"], drained),
        "seconds_to_running": _span(row["since"], ran),
    }


def _lost(job: dict[str, Any]) -> dict[str, Any]:
    """What a requeue cost a job at most, in seconds of its work: since its run began, or since it says that
    it saved (None where neither is known). And since the signal at which it may have saved."""
    end = 0.0 if job["refused"] else job["requeued"]
    saved = job["saved"] if job["saved"] <= end else 0.0  # else its owner's clock, or words, are wrong
    since = max(job["began"], saved)
    return {
        "lost_at_most": round(end - since, 3) if end and since else None,
        "lost_since": ("saved" if saved > job["began"] else "began") if end and since else None,
        "lost_if_saved_at_signal": round(end - job["signalled"], 3) if end and job["signalled"] else None,
    }


def _state(row: dict[str, Any]) -> str:
    for key in ("closed", "acknowledged", "cleared"):
        if row[key]:
            return key
    return "open"


def _span(begin: float, end: float) -> float | None:
    return round(end - begin, 3) if end else None


def iso(at: float) -> str | None:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds") if at else None


def user(uid: int) -> str:
    return _name(uid, time.monotonic() // NAMES)


@functools.lru_cache(4096)
def _name(uid: int, when: float) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
