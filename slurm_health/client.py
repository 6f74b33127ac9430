"""Asking the controller, from any host of the cluster: one signed request, one answer.

Where there are several, each is asked in turn until one answers that does not stand by.
"""

from __future__ import annotations

import http.client
import json
from typing import Any

from slurm_health import signing, wire
from slurm_health.config import Config

TIMEOUT = 10.0


class ClientError(Exception):
    """Why there is no answer, and what to look at. `unreachable`: nobody was there to say no. `stands_by`: it
    is not the one that acts. `mistaken`: nobody could answer that."""

    def __init__(
        self, words: str, unreachable: bool = False, stands_by: bool = False, mistaken: bool = False
    ) -> None:
        super().__init__(words)
        self.unreachable, self.stands_by, self.mistaken = unreachable, stands_by, mistaken


def ask(config: Config, method: str, target: str, body: dict[str, Any] | None = None) -> Any:
    """The controller's answer to one question."""
    missed: list[ClientError] = []
    for address in config.addresses:
        try:
            return _ask(config, address, method, target, body)
        except ClientError as error:
            if not (error.unreachable or error.stands_by):
                raise
            missed.append(error)
    raise ClientError("\n".join(map(str, missed)), all(error.unreachable for error in missed))


def status(config: Config) -> dict[str, Any]:
    """The answer to GET /v1/status, and each of the `controllers` with its `state`: "acts", "stands by", or
    why it says nothing."""
    states, said, missed = [], None, []
    for address, words in zip(config.addresses, config.controller, strict=True):
        try:
            answer = _ask(config, address, "GET", "/v1/status")
            said, state = said or answer, "acts"
        except ClientError as error:
            missed.append(error)
            state = "stands by" if error.stands_by else str(error)
        states.append({"address": words, "state": state})
    if said is None:
        raise ClientError("\n".join(map(str, missed)), all(error.unreachable for error in missed))
    return {**said, "controllers": states}


def _ask(
    config: Config, address: tuple[str, int], method: str, target: str, body: dict[str, Any] | None = None
) -> Any:
    data = json.dumps(body).encode() if body is not None else b""
    host, port = address
    where = f"the controller at {host}:{port}"
    try:
        signature = signing.signature(config.auth.method, config.auth.munge_socket, config.auth.key_file)
        seal = signature.sign(signing.payload(method, target, data))
    except (signing.Refused, OSError) as error:
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
        said = answer.decode(errors="replace").strip()
        stands_by, mistaken = response.status == wire.STANDS_BY, response.status in (400, 404)
        raise ClientError(f"{where} says: {said}", stands_by=stands_by, mistaken=mistaken)
    try:
        return json.loads(answer)
    except ValueError:
        raise ClientError(f"{where} is none of ours: its answer is not JSON") from None
