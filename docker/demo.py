"""The story of `slurm-health sandbox demo` on the cluster of containers: `make docker-demo`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from slurm_health.sandbox import SandboxError
from slurm_health.sandbox.demo import (
    GPUS,
    PATIENCE,
    Story,
    command,
    heading,
    signals_as_exceptions,
    tell_missing,
    uninterrupted,
)

COMPOSE = ("docker", "compose", "-f", str(Path(__file__).with_name("compose.yaml")))
USER = "ada"
START = 900.0  # seconds; the first time the image is built
TICK = 0.5  # seconds between two looks: each starts a process in a container


class Containers:
    """The cluster of containers as the story's place: a user on the login host, in her home."""

    def compose(self, *argv: str, text: str | None = None, limit: float = PATIENCE) -> str:
        """What a compose command prints; SandboxError where it fails."""
        done = subprocess.run(
            [*COMPOSE, *argv], input=text, capture_output=True, text=True, timeout=limit, check=False
        )
        if done.returncode:
            words = (done.stderr or done.stdout).strip()[-2000:]
            raise SandboxError(f"{' '.join(argv)}: exit {done.returncode}: {words}")
        return done.stdout

    def on(self, host: str, *argv: str, user: str = "root", text: str | None = None) -> str:
        return self.compose("exec", "-T", "-u", user, host, *argv, text=text)

    # What the story asks of a place.

    def write(self, name: str, text: str) -> None:
        self.on("login", "tee", name, user=USER, text=text)

    def read(self, name: str) -> str:
        time.sleep(TICK)
        return self.on("login", "sh", "-c", f"test ! -e {name} || cat {name}", user=USER)

    def run(self, *argv: str) -> str:
        return self.on("login", *argv, user=USER)

    def inject(self, node: str, fault: str, gpu: int) -> dict[str, Any]:
        said = self.on(node, *self._words(node, fault, "--gpu", str(gpu), "--json"))
        done: dict[str, Any] = json.loads(said)
        return done

    def injecting(self, node: str, words: str) -> str:
        return f"docker compose exec {node} {' '.join(self._words(node, words))}"

    def node_log(self, node: str) -> str:
        said = self.compose("logs", "--no-log-prefix", node)
        return said.replace("\x1b[2K", "")  # Compose 2.26 clears each line, also where no terminal is

    def _words(self, node: str, *words: str) -> tuple[str, ...]:
        return ("slurm-health", "sandbox", "inject", node, *words)


def demo(say: Callable[[str], object], keep: bool) -> int:
    """Start the cluster, tell the story on it, end the cluster unless `keep`; 0 if the job came back."""
    place = Containers()
    if place.compose("ps", "-q").strip():
        raise SandboxError("the cluster is up: make docker-down ends it")
    with signals_as_exceptions():
        heading(
            say, "1. A cluster to break",
            f"Each host is a container: a database, slurmctld, a login host, and nodes of {GPUS} GPUs."
            " Only the hardware is fake. The first time their image is made, which takes some minutes.",
        )  # fmt: skip
        try:
            command(say, "docker compose up -d --wait")
            began = time.monotonic()
            try:
                place.compose("up", "-d", "--wait", "--build", limit=START)
                say(f"  {place.run('sinfo', '--version').strip()}, up in {time.monotonic() - began:.0f} s")
                command(say, "docker compose exec -u ada login sinfo")
                say(f"  {place.run('sinfo').rstrip()}".replace("\n", "\n  "))
                missing = Story(place, say).tell()
            except (SandboxError, subprocess.TimeoutExpired) as error:
                missing = [str(error)]
            if missing:
                tell_missing(say, missing)
                say(f"what all daemons said: {_logs(place)}")
            return 1 if missing else 0
        finally:
            if keep:
                say("\nThe cluster stays up. To look around, and to end it:")
                command(say, "docker compose -f docker/compose.yaml exec -u ada login bash")
                command(say, "make docker-down")
            else:
                with uninterrupted():
                    place.compose("down", "-v", "-t", "3")


def _logs(place: Containers) -> Path:
    """What tells why, which outlives the cluster."""
    handle, name = tempfile.mkstemp(prefix="slurm-health-demo-", suffix=".log")
    with os.fdopen(handle, "w") as file:
        file.write(place.compose("logs", "-t"))
    return Path(name)


@click.command()
@click.option("--keep", is_flag=True, help="Leave the cluster up afterwards.")
def main(keep: bool) -> None:
    """Break a GPU under a checkpointing job and watch the job come back."""
    os.environ["TZ"] = "UTC0"  # what the containers have: one clock face for the whole story
    time.tzset()
    try:
        sys.exit(demo(click.echo, keep))
    except SandboxError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
