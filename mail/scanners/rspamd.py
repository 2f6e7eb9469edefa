"""Scan messages with Rspamd and train it.

Protocol: a POST of the message with the envelope in header fields; the response is JSON
(`/checkv2`, `/learnspam`, `/learnham`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from pydantic import SecretStr

from mail.envelope.client import SmtpClientInfo
from mail.network.outbound_http import HttpTarget, parse_target
from mail.scanners.body_stream import ScanBody
from mail.scanners.circuit_breaker import ScannerUnavailable
from mail.scanners.http_client import post_to_scanner
from mail.spam.scan_result import ScanResult, SpamScanSymbol, single_line, weightiest_symbols
from models.errors import InvalidInput

SCANNER_NAME = "rspamd"
MAX_RECIPIENTS = 100  # recipients in the request
MAX_SCORE = 1e6  # larger scores are cut off
OK, ALREADY_LEARNED = 200, 208  # the latter: it had learned the message before
RETRYABLE_STATUSES = {401, 403, 408, 429}  # errors that can go away by a retry


@dataclass(frozen=True, slots=True)
class RspamdEndpoint:
    """The URL and password of an Rspamd server."""

    url: str
    password: SecretStr | None = field(default=None, repr=False)

    def command_target(self, command: str) -> HttpTarget:
        """Return the target of a command. Raises ScannerUnavailable if the URL is not valid."""
        try:
            return parse_target(f"{self.url.rstrip('/')}/{command}", allow_private=True)
        except InvalidInput as problem:
            raise ScannerUnavailable(problem.message) from None

    @property
    def auth_fields(self) -> list[tuple[str, str]]:
        """The header fields that authenticate a request."""
        return [("Password", self.password.get_secret_value())] if self.password else []


@dataclass(frozen=True, slots=True)
class ScanEnvelope:
    """The envelope and client of a message."""

    envelope_sender: str
    recipients: Sequence[str]
    client: SmtpClientInfo | None = None
    queue_id: str | None = None

    @property
    def header_fields(self) -> list[tuple[str, str]]:
        """The envelope as header fields for Rspamd."""
        told = [("From", self.envelope_sender)] if self.envelope_sender else []
        told += [("Rcpt", each) for each in self.recipients[:MAX_RECIPIENTS]]
        if self.client is not None:
            by = self.client
            known = (("IP", by.ip_address), ("Helo", by.helo_name), ("User", by.username))
            told += [(name, value) for name, value in known if value]
        return [*told, ("Queue-Id", self.queue_id)] if self.queue_id else told


async def scan_for_spam(
    endpoint: RspamdEndpoint, envelope: ScanEnvelope, body: ScanBody
) -> ScanResult:
    """Scan a message for spam. Raises ScannerUnavailable."""
    answer = await post_to_scanner(
        endpoint.command_target("checkv2"), [*endpoint.auth_fields, *envelope.header_fields], body
    )
    if answer.status != OK:
        raise ScannerUnavailable(f"status {answer.status}")
    return parse_response(answer.body)


async def train(endpoint: RspamdEndpoint, body: ScanBody, *, is_spam: bool) -> bool:
    """Train Rspamd with a message. Returns False if it refuses to learn it.

    Raises ScannerUnavailable.
    """
    answer = await post_to_scanner(
        endpoint.command_target("learnspam" if is_spam else "learnham"), endpoint.auth_fields, body
    )
    if answer.status in RETRYABLE_STATUSES or answer.status >= 500 or answer.status < OK:  # noqa: PLR2004
        raise ScannerUnavailable(f"status {answer.status}")
    return answer.status in {OK, ALREADY_LEARNED}


def parse_response(response_body: bytes) -> ScanResult:
    """Parse a scan response. Raises ScannerUnavailable if it has no score."""
    try:
        said = orjson.loads(response_body)
    except orjson.JSONDecodeError:
        raise ScannerUnavailable("the answer is no JSON") from None
    if not isinstance(said, dict):
        raise ScannerUnavailable("the answer is no report")
    score = _bounded_number(said.get("score"))
    if score is None:
        raise ScannerUnavailable("the answer has no score")
    if (
        said.get("is_skipped") is True and not score
    ):  # with a score the result is final without a scan
        return ScanResult((SCANNER_NAME,))
    action = said.get("action")
    return ScanResult(
        (SCANNER_NAME,),
        score,
        _bounded_number(said.get("required_score")) or 0.0,
        single_line(action).lower() if isinstance(action, str) else "",
        _parse_symbols(said.get("symbols")),
    )


def _parse_symbols(symbols_json: object) -> list[SpamScanSymbol]:
    """Return the symbols of a response that weigh most."""
    found = []
    for name, each in symbols_json.items() if isinstance(symbols_json, dict) else ():
        if isinstance(each, dict):
            text = each.get("description")
            words = single_line(text) if isinstance(text, str) else None
            found.append(
                SpamScanSymbol(
                    single_line(name), _bounded_number(each.get("score")) or 0.0, words or None
                )
            )
    return weightiest_symbols(found)


def _bounded_number(json_value: object) -> float | None:
    """Return a finite number within MAX_SCORE, None for other values."""
    if (
        isinstance(json_value, bool)
        or not isinstance(json_value, int | float)
        or not math.isfinite(json_value)
    ):
        return None
    return max(-MAX_SCORE, min(float(json_value), MAX_SCORE))
