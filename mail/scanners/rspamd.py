"""Asking rspamd what it thinks of a message, and telling it what a message was.

Its protocol: a POST of the message, with what is known of its way in fields of the request; the
answer is JSON (`/checkv2`, `/learnspam`, `/learnham`).
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
RCPTS = 100  # recipients that it is told of
FARTHEST = 1e6  # points; what is beyond is cut off
OK, KNOWN = 200, 208  # the latter: it has learned that before
WAITS = {401, 403, 408, 429}  # refusals that a change of settings or time mends


@dataclass(frozen=True, slots=True)
class Rspamd:
    """Where it is, and how it is asked."""

    url: str
    password: SecretStr | None = field(default=None, repr=False)

    def target(self, path: str) -> Target:
        """The place of a command; Down where there is none."""
        try:
            return target(f"{self.url.rstrip('/')}/{path}", private=True)
        except Invalid as problem:
            raise Down(problem.message) from None

    @property
    def fields(self) -> list[tuple[str, str]]:
        """What each request has."""
        return [("Password", self.password.get_secret_value())] if self.password else []


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is known of the way of a message."""

    sender: str
    recipients: Sequence[str]
    client: Client | None = None
    queue_id: str | None = None

    @property
    def fields(self) -> list[tuple[str, str]]:
        """It, as rspamd is told."""
        told = [("From", self.sender)] if self.sender else []
        told += [("Rcpt", each) for each in self.recipients[:RCPTS]]
        if self.client is not None:
            by = self.client
            known = (("IP", by.ip), ("Helo", by.helo), ("User", by.authenticated))
            told += [(name, value) for name, value in known if value]
        return [*told, ("Queue-Id", self.queue_id)] if self.queue_id else told


async def check(at: Rspamd, envelope: Envelope, body: Body) -> Scan:
    """What it thinks of a message; Down."""
    answer = await post(at.target("checkv2"), [*at.fields, *envelope.fields], body)
    if answer.status != OK:
        raise Down(f"status {answer.status}")
    return read(answer.body)


async def learn(at: Rspamd, body: Body, *, spam: bool) -> bool:
    """Tell it what a message was: True where it has learned that, False where it will not. Down."""
    answer = await post(at.target("learnspam" if spam else "learnham"), at.fields, body)
    if answer.status in WAITS or answer.status >= 500 or answer.status < OK:  # noqa: PLR2004
        raise Down(f"status {answer.status}")
    return answer.status in {OK, KNOWN}


def read(raw: bytes) -> Scan:
    """Read an answer, whatever it is; Down where it says nothing of use."""
    try:
        said = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Down("the answer is no JSON") from None
    if not isinstance(said, dict):
        raise Down("the answer is no report")
    score = _number(said.get("score"))
    if score is None:
        raise Down("the answer has no score")
    if said.get("is_skipped") is True and not score:  # with points it knew before it looked
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
    found = []
    for name, each in said.items() if isinstance(said, dict) else ():
        if isinstance(each, dict):
            text = each.get("description")
            words = cut(text) if isinstance(text, str) else None
            found.append(Symbol(cut(name), _number(each.get("score")) or 0.0, words or None))
    return weightiest(found)


def _number(said: object) -> float | None:
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said):
        return None
    return max(-FARTHEST, min(float(said), FARTHEST))
