"""Scan messages with Rspamd and train it.

Protocol: a POST of the message with the envelope in header fields; the response is JSON
(`/checkv2`, `/learnspam`, `/learnham`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from pydantic import SecretStr

from mail.envelope.client import Client
from mail.network.outbound_http import Target, target
from mail.scanners.body_stream import Body
from mail.scanners.circuit_breaker import Down
from mail.scanners.http_client import post
from mail.spam.scan_result import Scan, Symbol, cut, weightiest
from models.errors import Invalid

NAME = "rspamd"
RCPTS = 100  # recipients in the request
FARTHEST = 1e6  # larger scores are cut off
OK, KNOWN = 200, 208  # the latter: it had learned the message before
WAITS = {401, 403, 408, 429}  # errors that can go away by a retry


@dataclass(frozen=True, slots=True)
class Rspamd:
    """The URL and password of an Rspamd server."""

    url: str
    password: SecretStr | None = field(default=None, repr=False)

    def target(self, path: str) -> Target:
        """Return the target of a command. Raises ScannerUnavailable if the URL is not valid."""
        try:
            return target(f"{self.url.rstrip('/')}/{path}", private=True)
        except Invalid as problem:
            raise Down(problem.message) from None

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The header fields that authenticate a request."""
        return [("Password", self.password.get_secret_value())] if self.password else []


@dataclass(frozen=True, slots=True)
class Envelope:
    """The envelope and client of a message."""

    sender: str
    recipients: Sequence[str]
    client: Client | None = None
    queue_id: str | None = None

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The envelope as header fields for Rspamd."""
        told = [("From", self.sender)] if self.sender else []
        told += [("Rcpt", each) for each in self.recipients[:RCPTS]]
        if self.client is not None:
            by = self.client
            known = (("IP", by.ip), ("Helo", by.helo), ("User", by.authenticated))
            told += [(name, value) for name, value in known if value]
        return [*told, ("Queue-Id", self.queue_id)] if self.queue_id else told


async def check(at: Rspamd, envelope: Envelope, body: Body) -> Scan:
    """Scan a message for spam. Raises ScannerUnavailable."""
    answer = await post(at.target("checkv2"), [*at.fields, *envelope.fields], body)
    if answer.status != OK:
        raise Down(f"status {answer.status}")
    return read(answer.body)


async def learn(at: Rspamd, body: Body, *, spam: bool) -> bool:
    """Train Rspamd with a message. Returns False if it refuses to learn it.

    Raises ScannerUnavailable.
    """
    answer = await post(at.target("learnspam" if spam else "learnham"), at.fields, body)
    if answer.status in WAITS or answer.status >= 500 or answer.status < OK:  # noqa: PLR2004
        raise Down(f"status {answer.status}")
    return answer.status in {OK, KNOWN}


def read(raw: bytes) -> Scan:
    """Parse a scan response. Raises ScannerUnavailable if it has no score."""
    try:
        said = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Down("the answer is no JSON") from None
    if not isinstance(said, dict):
        raise Down("the answer is no report")
    score = _number(said.get("score"))
    if score is None:
        raise Down("the answer has no score")
    if (
        said.get("is_skipped") is True and not score
    ):  # with a score the result is final without a scan
        return Scan((NAME,))
    action = said.get("action")
    return Scan(
        (NAME,),
        score,
        _number(said.get("required_score")) or 0.0,
        cut(action).lower() if isinstance(action, str) else "",
        _symbols(said.get("symbols")),
    )


def _symbols(said: object) -> list[Symbol]:
    """Return the symbols of a response that weigh most."""
    found = []
    for name, each in said.items() if isinstance(said, dict) else ():
        if isinstance(each, dict):
            text = each.get("description")
            words = cut(text) if isinstance(text, str) else None
            found.append(Symbol(cut(name), _number(each.get("score")) or 0.0, words or None))
    return weightiest(found)


def _number(said: object) -> float | None:
    """Return a finite number within MAX_SCORE, None for other values."""
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said):
        return None
    return max(-FARTHEST, min(float(said), FARTHEST))
