"""Asking the controller, from any host of the cluster: one signed request, one answer."""

from __future__ import annotations

import http.client
import json
from typing import Any

from slurm_health import wire
from slurm_health.config import Config

TIMEOUT = 10.0


class ClientError(Exception):
    """Why there is no answer, and what to look at. `unreachable`: nobody was there to say no."""

    def __init__(self, words: str, unreachable: bool = False) -> None:
        super().__init__(words)
        self.unreachable = unreachable


def ask(config: Config, method: str, target: str, body: dict[str, Any] | None = None) -> Any:
    """The controller's answer to one question."""
    data = json.dumps(body).encode() if body is not None else b""
    host, port = config.address
    where = f"the controller at {host}:{port}"
    try:
        signature = wire.signature(config.auth.method, config.auth.munge_socket, config.auth.key_file)
        seal = signature.sign(wire.payload(method, target, data))
    except (wire.Refused, OSError) as error:
        raise ClientError(f"cannot sign the question: {error}") from None
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request(method, target, data, {"Authorization": seal})
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ClientError(
            f"{where} does not answer ({error or type(error).__name__}); is `slurm-health controller` running"
            " there, and does `controller =` in the configuration name it?",
            unreachable=True,
        ) from None
    finally:
        connection.close()
    if response.status != 200:
        raise ClientError(f"{where} says: {answer.decode(errors='replace').strip()}")
    try:
        return json.loads(answer)
    except ValueError:
        raise ClientError(f"{where} is none of ours: its answer is not JSON") from None
