"""Mail and a webhook for people: what the ledger's outbox holds, gathered into few messages.

Sent by the controller that acts, beside its acting: a mail host that is dead or a server that hangs costs it
nothing. At least once: who dies between sending and noting that it was sent sends it again. A job's owner is
not among the addressed; Slurm mails whom `sbatch --mail-user` names of each requeue by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import smtplib
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout

from slurm_health import config
from slurm_health.ledger import Ledger
from slurm_health.model import Notice, Severity
from slurm_health.outage import Outage

log = logging.getLogger(__name__)

TICK = 1.0  # seconds between looks at the outbox
DEADLINE = 10.0  # seconds that one message may take
SOON, LATE = 5.0, 600.0  # seconds until what was not sent is tried again: the first time, and at most
LINES = 200  # of notices that people read in one message
SUBJECT = 150  # characters
WORDS = 200  # characters of what a mail host says

COUNTED = {  # what several notices of an event are together, of one and of more
    "incident": ("fault found", "faults found"),
    "drain": ("node drained", "nodes drained"),
    "resume": ("node serves again", "nodes serve again"),
    "requeue": ("job requeued", "jobs requeued"),
    "ran": ("job runs again", "jobs run again"),
    "hold": ("job held", "jobs held"),
    "help": ("matter for a person", "matters for a person"),
}


class NotSent(Exception):
    """A message that did not go out, in words that name what is to be mended and no secret."""


class Way(Protocol):
    """How notices reach people. `send` either returns, or raises NotSent."""

    name: str

    async def send(self, notices: Sequence[Notice]) -> None: ...


class Mail:
    """By SMTP to a host of the site's, which queues what it cannot deliver yet."""

    name = "mail"

    def __init__(self, site: config.Notify) -> None:
        self.site = site
        self.host, _, port = site.smtp.rpartition(":")
        self.port = int(port)
        self.thread: threading.Thread | None = None

    async def send(self, notices: Sequence[Notice]) -> None:
        """In a thread that may hang without harm: never two, and the process ends without it."""
        if self.thread and self.thread.is_alive():
            raise NotSent(f"{self.site.smtp} still holds the last one")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[str] = loop.create_future()

        def settle(why: str) -> None:
            if not outcome.done():
                outcome.set_result(why)

        def work() -> None:
            why = self._hand_over(self.letter(notices))
            with contextlib.suppress(RuntimeError):  # nobody waits for it any more
                loop.call_soon_threadsafe(settle, why)

        self.thread = threading.Thread(target=work, name="mail", daemon=True)
        self.thread.start()
        try:
            async with asyncio.timeout(DEADLINE):
                why = await outcome
        except TimeoutError:
            raise NotSent(f"{self.site.smtp} has not answered in {DEADLINE:g} s") from None
        if why:
            raise NotSent(f"{self.site.smtp}: {why}")

    def _hand_over(self, letter: EmailMessage) -> str:
        """Why it was not taken, "" where it was, by one of the addressed at least."""
        try:
            with smtplib.SMTP(self.host, self.port, socket.gethostname(), DEADLINE) as server:
                refused = server.send_message(letter)
        except (OSError, smtplib.SMTPException) as error:
            return plain(str(error))[:WORDS] or type(error).__name__
        for address, (code, _) in refused.items():
            log.error("notify: mail: %s refuses %s with %d", self.site.smtp, address, code)
        return ""

    def letter(self, notices: Sequence[Notice]) -> EmailMessage:
        letter = EmailMessage()
        letter["From"] = self.site.mail_from or f"slurm-health@{socket.gethostname()}"
        letter["To"] = ", ".join(self.site.mail)
        letter["Subject"] = subject(notices)
        letter["Date"] = formatdate(localtime=True)
        letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation answers
        letter.set_content(body(notices) + "\n")
        return letter


class Webhook:
    """By a POST of JSON. `text` is what chat servers show; `events` has all, each with a number of its own by
    which what came twice is known."""

    name = "webhook"

    def __init__(self, site: config.Notify) -> None:
        self.site = site
        self.host = urlsplit(site.webhook).netloc

    async def send(self, notices: Sequence[Notice]) -> None:
        url, headers = self.site.webhook, {}
        if self.site.token_file:
            token = self._token()
            if "{token}" in url:
                url = url.replace("{token}", token)
            else:
                headers["Authorization"] = f"Bearer {token}"
        try:
            async with (
                ClientSession(timeout=ClientTimeout(DEADLINE), trust_env=True) as session,
                session.post(
                    url, json=self.letter(notices), headers=headers, allow_redirects=False
                ) as answer,
            ):
                status = answer.status
        except TimeoutError:
            raise NotSent(f"{self.host} has not answered in {DEADLINE:g} s") from None
        except (ClientError, OSError) as error:
            # No other words of theirs: they may hold the address, and that a token.
            why = isinstance(error, OSError) and error.strerror
            raise NotSent(f"{self.host}: {why or type(error).__name__}") from None
        if not 200 <= status < 300:
            raise NotSent(f"{self.host} answered {status}")

    def _token(self) -> str:
        try:
            token = Path(self.site.token_file).read_text(encoding="ascii").strip()
        except OSError as error:
            raise NotSent(f"token_file {self.site.token_file}: {error.strerror}") from None
        except ValueError:
            token = ""
        if not token or not token.isprintable() or " " in token:
            raise NotSent(f"token_file {self.site.token_file} must hold one line, the token")
        return token

    def letter(self, notices: Sequence[Notice]) -> dict[str, Any]:
        return {
            "source": "slurm-health",
            "text": f"{subject(notices)}\n{body(notices)}" if len(notices) > 1 else subject(notices),
            "events": [
                {
                    "id": one.id,
                    "at": datetime.fromtimestamp(one.at).astimezone().isoformat(timespec="milliseconds"),
                    "event": one.event,
                    "severity": str(one.severity),
                    "incident": one.incident,
                    "node": one.node,
                    "job": one.job,
                    "text": plain(one.text),
                }
                for one in notices
            ],
        }


def plain(text: str) -> str:
    """What a header, a terminal or a chat takes for nothing but text."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def subject(notices: Sequence[Notice]) -> str:
    """All of it in a line."""
    if len(notices) == 1:
        return plain(f"slurm-health: {notices[0].text}")[:SUBJECT]
    many = Counter(one.event for one in notices)
    parts = [f"{many[event]} {words[many[event] > 1]}" for event, words in COUNTED.items() if many[event]]
    return f"slurm-health: {', '.join(parts)}"


def body(notices: Sequence[Notice]) -> str:
    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(one.at))}  {plain(one.text)}"
        f"{f'  (incident {one.incident})' if one.incident else ''}"
        for one in notices[:LINES]
    ]
    if len(notices) > LINES:
        lines.append(f"and {len(notices) - LINES} more: slurm-health incidents --all")
    return "\n".join(lines)


def ways(site: config.Notify) -> list[Way]:
    """How this site wants to be told."""
    found: list[Way] = [Mail(site)] if site.mail else []
    return [*found, Webhook(site)] if site.webhook else found


async def test(site: config.Notify, host: str) -> dict[str, str]:
    """Send one message by each way; why it was not sent, "" where it was."""
    notice = Notice(0, time.time(), "test", Severity.OK, 0, host, "", f"a test of [notify] on {host}")
    outcomes = dict.fromkeys((way.name for way in ways(site)), "")
    for way in ways(site):
        try:
            await way.send([notice])
        except NotSent as error:
            outcomes[way.name] = str(error)
    return outcomes


class Notify:
    """`follow` sends what is in the outbox until cancelled; `trouble` says of each way why it does not go."""

    def __init__(self, site: config.Notify, ledger: Ledger, outage: Outage) -> None:
        self.site, self.outbox, self.outage = site, ledger.outbox, outage
        self.ways = ways(site)
        self.trouble: dict[str, str] = {}
        self.outbox.ways = [way.name for way in self.ways]
        self.outbox.events, self.outbox.severity = site.events, Severity[site.severity.upper()]

    async def follow(self) -> None:
        with self.outage.survived("notices"):
            self.outbox.forget_other_ways()
        async with asyncio.TaskGroup() as group:
            for way in self.ways:
                group.create_task(self._serve(way))

    async def _serve(self, way: Way) -> None:
        while True:
            with self.outage.survived("notices"):
                if (notices := self.outbox.waiting(way.name)) and time.time() >= self._due(notices[0]):
                    await self._send(way, notices)
            await asyncio.sleep(TICK)

    def _due(self, first: Notice) -> float:
        """When the message that begins with this notice is to be sent."""
        again = first.tried + min(LATE, SOON * 2.0 ** (first.tries - 1)) if first.tries else 0.0
        return max(first.at + self.site.gather, again)

    async def _send(self, way: Way, notices: Sequence[Notice]) -> None:
        self.outbox.about_to_send(notices, time.time())
        try:
            await way.send(notices)
        except NotSent as error:
            if self.trouble.get(way.name) != str(error):
                log.error("notify: %s: not sent, is tried again: %s", way.name, error)
            self.trouble[way.name] = str(error)
            return
        self.outbox.sent(notices)
        if self.trouble.pop(way.name, ""):
            log.warning("notify: %s: goes out again", way.name)
        log.info("notify: %s: %s", way.name, subject(notices))
