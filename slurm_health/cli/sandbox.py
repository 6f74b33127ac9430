"""The sandbox: a cluster to try things on."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from slurm_health.cli.shell import Cannot, Group, json_option, show


@click.group(cls=Group)
@click.option(
    "--dir", "folder", metavar="DIR", help="Which sandbox; else $SLURM_HEALTH_SANDBOX, else one in /tmp."
)
@click.pass_context
def sandbox(context: click.Context, folder: str | None) -> None:
    """Try it without hardware: a real Slurm over fake GPUs."""
    from slurm_health.sandbox.cluster import Sandbox

    context.obj = Sandbox(folder)


class _Plainly:
    """Sandbox errors as one plain line."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from slurm_health.sandbox import SandboxError

        if isinstance(error, SandboxError):
            raise Cannot(str(error)) from None


@sandbox.command("up")
@click.option("--nodes", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("--gpus", default=8, show_default=True, type=click.IntRange(0, 16), help="GPUs of a node.")
@click.option(
    "--ports", default=8, show_default=True, type=click.IntRange(0, 16), help="InfiniBand ports of a node."
)
@click.option(
    "--nics", default=2, show_default=True, type=click.IntRange(0, 8), help="Ethernet ports of a node."
)
@click.option(
    "--mode", default="requeue", show_default=True, type=click.Choice(["observe", "drain", "requeue"])
)
@click.option(
    "--slurm-conf", multiple=True, metavar="LINE", help="A further line for slurm.conf; may be repeated."
)
@click.option("--site", type=click.File("r"), help="Further TOML for our configuration.")
@click.option("--stock", is_flag=True, help="Plain Slurm, without our daemons and hooks.")
@click.pass_obj
def sandbox_up(
    box: Any,
    nodes: int,
    gpus: int,
    ports: int,
    nics: int,
    mode: str,
    slurm_conf: tuple[str, ...],
    site: Any,
    stock: bool,
) -> None:
    """Start a private cluster; it stays up until `sandbox down`."""
    with _Plainly():
        box.up(
            nodes,
            gpus,
            ports,
            nics,
            slurm_conf,
            site.read() if site else "",
            mode,
            click.echo,
            health=not stock,
        )
    click.echo('use it with:  eval "$(slurm-health sandbox env)"   then: sinfo, sbatch, slurm-health status')


@sandbox.command("down")
@click.pass_obj
def sandbox_down(box: Any) -> None:
    """End it and remove its folder."""
    with _Plainly():
        box.down(click.echo)


@sandbox.command("machine")
@click.option("--gpus", default=8, show_default=True, type=click.IntRange(0, 16))
@click.option("--ports", default=8, show_default=True, type=click.IntRange(0, 16), help="InfiniBand ports.")
@click.option("--nics", default=2, show_default=True, type=click.IntRange(0, 8), help="Ethernet ports.")
@click.pass_obj
def sandbox_machine(box: Any, gpus: int, ports: int, nics: int) -> None:
    """Make this host a fake machine, as a node in a container."""
    with _Plainly():
        box.become_machine(gpus, ports, nics)


@sandbox.command("inject", context_settings={"show_default": False})
@click.argument("node")
@click.argument("fault")
@click.argument("code", type=int, required=False)
@click.option("--gpu", type=int, metavar="N")
@click.option("--port", type=int, metavar="N")
@click.option("--text", help="The line, or the call's name.")
@click.option("--kill", is_flag=True, help="The job's processes on that node die in the same instant.")
@json_option
@click.pass_obj
def sandbox_inject(
    box: Any,
    node: str,
    fault: str,
    code: int | None,
    gpu: int | None,
    port: int | None,
    text: str | None,
    kill: bool,
    as_json: bool,
) -> None:
    """Break something of NODE.

    Such as xid CODE --gpu N, gpu-lost --gpu N, ib-down --port N; GPU or port 0 where none is named.
    `slurm-health sandbox faults` lists them all.
    """
    with _Plainly():
        done = box.inject(node, fault, gpu=gpu, port=port, code=code, kill=kill, text=text)
    show(done, as_json, lambda done: ", ".join(f"{key} {value}" for key, value in done.items()))


@sandbox.command("faults")
@json_option
def sandbox_faults(as_json: bool) -> None:
    """List the faults that can be injected."""
    from slurm_health import text
    from slurm_health.sandbox.faults import FAULTS

    rows = [{"fault": one.name, "needs": sorted(one.needs), "what": one.text} for one in FAULTS.values()]

    def words(rows: list[dict[str, Any]]) -> str:
        cells = [(row["fault"], " ".join(row["needs"]) or "-", row["what"]) for row in rows]
        return text.table(("FAULT", "NEEDS", "WHAT"), cells)

    show(rows, as_json, words)


@sandbox.command("clear")
@click.argument("node")
@click.pass_obj
def sandbox_clear(box: Any, node: str) -> None:
    """Heal every fault of NODE."""
    with _Plainly():
        box.clear(node)
    click.echo(f"{node}: healed")


@sandbox.command("status")
@json_option
@click.pass_obj
def sandbox_status(box: Any, as_json: bool) -> None:
    """Show daemons, nodes and injected faults."""
    from slurm_health import text

    with _Plainly():
        said = box.status()

    def words(said: dict[str, Any]) -> str:
        dead = [one["name"] for one in said["daemons"] if not one["alive"]]
        rows = [
            (
                one["name"],
                one["state"],
                one["reason"] or "-",
                "; ".join(" ".join(str(word) for word in fault.values()) for fault in one["faults"]) or "-",
            )
            for one in said["nodes"]
        ]
        return "\n".join(
            [
                f"Slurm {said['slurm']} in {said['folder']}, {len(said['daemons'])} daemons"
                + (f", not running: {', '.join(dead)}" if dead else ""),
                text.table(("NODE", "STATE", "REASON", "FAULTS"), rows),
            ]
        )

    show(said, as_json, words)


@sandbox.command("env")
@click.pass_obj
def sandbox_env(box: Any) -> None:
    """Print the shell's lines to use it.

    eval "$(slurm-health sandbox env)"
    """
    if not box.exists:
        raise Cannot(f"there is no sandbox in {box.folder}: slurm-health sandbox up starts one")
    for key, value in box.env().items():
        click.echo(f"export {key}={shlex.quote(value)}")


# From CMD on everything is CMD's: `run sinfo -h` is no question to us.
@sandbox.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def sandbox_run(box: Any, command: tuple[str, ...]) -> None:
    """Run CMD in the sandbox's environment; its exit status is ours."""
    with _Plainly():
        sys.exit(box.run(command))


@sandbox.command("demo")
@click.option("--keep", is_flag=True, help="Leave the sandbox up afterwards.")
@click.pass_obj
def sandbox_demo(box: Any, keep: bool) -> None:
    """Break a GPU under a job and watch the job come back."""
    from slurm_health.sandbox.demo import demo

    with _Plainly():
        sys.exit(demo(box, click.echo, keep))
