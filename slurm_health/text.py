"""What people read: tables and stories made of the same values that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from slurm_health import identity
from slurm_health.duration import words


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns wide enough for what is in them; the last one runs free."""
    lines = [list(head), *([str(cell) if cell is not None else "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def clock(iso: str | None) -> str:
    """A moment of a story: the day where it is not today, and the time to a tenth of a second."""
    if not iso:
        return "-"
    at = datetime.fromisoformat(iso)
    day = "" if at.date() == datetime.now().astimezone().date() else f"{at:%Y-%m-%d} "
    return f"{day}{at:%H:%M:%S}.{at.microsecond // 100_000}"


def fault(row: dict[str, Any]) -> str:
    return f"{row['code']}({row['device']})"


def status(said: dict[str, Any]) -> str:
    """The cluster in a few lines; troubled nodes one by one."""
    controller = said["controller"]
    lines = [
        f"controller {controller['address']}  version {controller['version']}  mode {controller['mode']}",
        f"Slurm      by {said['slurm']['backend']}: {said['slurm']['why']}",
        f"nodes      {said['nodes']}, reporting {said['reporting']}"
        + (f", silent {said['silent']}" if said["silent"] else "")
        + (f", drained by us {said['drained']}" if said["drained"] else ""),
    ]
    if len(said["controllers"]) > 1:
        lines[1:1] = [f"           {one['address']} {one['state']}" for one in said["controllers"]]
    if said["slurm"]["trouble"]:
        lines.append(f"Slurm      does not answer: {said['slurm']['trouble']}")
    if trouble := said["ledger"]["trouble"]:
        lines.append(f"ledger     cannot be written, so nothing is done: {trouble}")
    if aside := said["ledger"]["aside"]:
        lines.append(f"ledger     a new one was begun: the last was corrupt, it lies in {aside}")
    lines += [f"{way.ljust(10)} is not sent: {why}" for way, why in said.get("notify", {}).items()]
    for pause in said["pauses"]:
        until = f"until {clock(pause['until'])}" if pause["until"] else "until `slurm-health unpause`"
        why = f": {pause['reason']}" if pause["reason"] else ""
        lines.append(f"paused     {pause['nodes'] or 'the whole cluster'} {until} by {pause['by']}{why}")
    rows = [
        (
            node["node"],
            one["severity"],
            one["id"],
            fault(one),
            clock(one["since"]),
            _standing(node, one),
            one["text"],
        )
        for node in said["troubled"]
        for one in node["incidents"]
    ]
    if rows:
        lines += ["", table(("NODE", "SEVERITY", "ID", "FAULT", "SINCE", "NODE IS", "WHAT"), rows)]
        if more := said["open_incidents"] - len(rows):
            lines.append(f"and {more} more: `slurm-health incidents --json`")
    else:
        lines.append("all well   no open incident")
    return "\n".join(lines)


def _standing(node: dict[str, Any], incident: dict[str, Any]) -> str:
    """What was done to the node about it, or why nothing was."""
    if node["drained"]:
        return "drained"
    if incident["acknowledged"]:
        return "in service: an admin's RESUME"
    if incident["held"].startswith(("drained", "down")):
        return str(incident["held"])
    return f"in service: {incident['held'] or incident['severity'] + ' only'}"


def incidents(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no incidents"
    return table(
        ("ID", "NODE", "FAULT", "SEVERITY", "STATE", "SINCE", "DRAINED", "JOBS", "RAN AGAIN", "WHAT"),
        [
            (
                row["id"],
                row["node"],
                fault(row),
                row["severity"],
                row["state"],
                clock(row["since"]),
                _after(row["seconds_to_drained"]),
                ",".join(job["job"] for job in row["jobs"]) or "-",
                _after(row["seconds_to_running"]),
                row["text"] + (f" (seen {row['count']} times)" if row["count"] > 1 else ""),
            )
            for row in rows
        ],
    )


def _after(seconds: float | None) -> str:
    return "-" if seconds is None else f"+{words(seconds)}"


def story(row: dict[str, Any]) -> str:
    """One incident from first evidence to the end, in the order in which it happened."""
    lines = [
        f"incident {row['id']}  {row['node']}  {fault(row)}  {row['severity']}, {row['state']}",
        f"  {row['text']}",
    ]
    if where := identity.words(row.get("hardware", {})):
        lines.append(f"  {where}")
    if row["held"]:
        lines.append(f"  nothing was done to the node: {row['held']}")
    lines += ["", "evidence"]
    lines += [f"  {clock(one['at'])}  {one['line']}" for one in row["evidence"]]
    if row["count"] > len(row["evidence"]):
        lines.append(f"  seen {row['count']} times in all")
    lines += ["", "what happened"]
    lines += [f"  {clock(at)}  {_offset(row['since'], at)}  {what}" for at, what in timeline(row)]
    for job in row["jobs"]:
        end = (
            f"ran again on {job['nodes']} after {words(job['seconds_to_running'])}"
            if job["running"]
            else job["outcome"]
        )
        gpu = row.get("hardware", {}).get("gpu")
        device = "the device" if gpu is None else f"GPU {gpu}"
        on = f" (on {device}: {_ranks(job)})" if job["ranks"] else ""
        lines.append(f"  job {job['job']} of {job['user']}{on}: {end or 'is being followed'}")
    return "\n".join(lines)


def _offset(since: str, at: str) -> str:
    span = (datetime.fromisoformat(at) - datetime.fromisoformat(since)).total_seconds()
    return f"{span:+7.2f} s" if abs(span) < 1000 else " " * 9


def timeline(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(when, what) of an incident, oldest first."""
    said = {
        "drain": "drain {target}",
        "requeue": "requeue job {target}",
        "hold": "requeue and hold job {target}",
        "signal": "signal job {target} to save its work",
        "release": "release job {target}",
        "lift": "put job {target} first in the queue",
        "lower": "give job {target} its own priority back",
        "keep": "keep {detail} for job {target}",
        "start": "end the wait of job {target}",
        "tell": "tell job {target}'s owner",
        "wait": "have job {target} wait for it again",
        "resume": "resume {target}",
        "fence": "make sure that {target} is off",
        "down": "set {target} DOWN",
    }
    events = [(row["since"], "fault"), (row["opened"], "incident opened")]
    for act in row["actions"]:
        what = said.get(act["kind"], act["kind"] + " {target}").format(**act)
        events.append((act["done"] or act["intended"], f"{what}: {act['outcome'] or 'under way'}"))
    for job in row["jobs"]:
        if job["refused"]:
            events.append((job["refused"], f"job {job['job']} refused by the prolog"))
        if job["running"]:
            events.append((job["running"], f"job {job['job']} runs again on {job['nodes']}"))
    for key, what in (("cleared", "fault is gone"), ("acknowledged", "overruled by an admin's RESUME")):
        if row[key]:
            events.append((row[key], what))
    if row["closed"]:
        events.append((row["closed"], f"closed: {row['closed_by']}"))
    return sorted(events)


def _ranks(job: dict[str, Any]) -> str:
    return f"rank{'' if job['ranks'].isdigit() else 's'} {job['ranks']}"


def job(number: str, rows: list[dict[str, Any]]) -> str:
    """What a job went through, in short and then at length."""
    if not rows:
        return f"no incident touched job {number}, or it is not yours"
    rows = sorted(rows, key=lambda row: row["id"])
    short = [
        line
        for row in rows
        for its in row["jobs"]
        if number in (its["job"], str(its["id"]))
        for line in _in_short(row, its)
    ]
    return "\n\n".join(["\n".join(short), *map(story, rows)])


def _in_short(row: dict[str, Any], job: dict[str, Any]) -> list[str]:
    gpu = row.get("hardware", {}).get("gpu")
    where = row["node"] if gpu is None else f"{row['node']}, GPU {gpu}"
    broke = f"{_ranks(job)} on {where}" if job["ranks"] else where
    lines = [
        f"job {job['job']} of {job['user']}, restart {job['restarts']}",
        f"  broke     {broke}: {row['text']}",
    ]
    if job["requeued"]:
        lines.append(f"  requeued  {clock(job['requeued'])}")
    if job["running"]:
        took = words(job["seconds_to_running"])
        lines.append(f"  runs      on {job['nodes']} since {clock(job['running'])}, {took} after the fault")
    elif not job["settled"]:
        lines.append(f"  now       {job['outcome'] or 'on its way'}")
    else:
        lines.append(f"  end       {job['outcome']}")
    if job["lost_at_most"] is not None:
        since = "it said that it had saved" if job["lost_since"] == "saved" else "this run began"
        lost = f"  lost      at most {words(job['lost_at_most'])} of its work, since {since}"
        if job["lost_if_saved_at_signal"] is not None:
            lost += f"; {words(job['lost_if_saved_at_signal'])} if it saved when it was signalled"
        lines.append(lost)
    return lines
