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
from mail.network.outbound_http import HttpTarget, parse_http_target
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
            return parse_http_target(f"{self.url.rstrip('/')}/{command}", allow_private=True)
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
        header_fields = [("From", self.envelope_sender)] if self.envelope_sender else []
        header_fields += [("Rcpt", recipient) for recipient in self.recipients[:MAX_RECIPIENTS]]
        if self.client is not None:
            client = self.client
            connection_fields = (
                ("IP", client.ip_address),
                ("Helo", client.helo_name),
                ("User", client.username),
            )
            header_fields += [(name, value) for name, value in connection_fields if value]
        return [*header_fields, ("Queue-Id", self.queue_id)] if self.queue_id else header_fields


async def scan_for_spam(
    endpoint: RspamdEndpoint, envelope: ScanEnvelope, body: ScanBody
) -> ScanResult:
    """Scan a message for spam. Raises ScannerUnavailable."""
    answer = await post_to_scanner(
        endpoint.command_target("checkv2"), [*endpoint.auth_fields, *envelope.header_fields], body
    )
    if answer.status != OK:
        raise ScannerUnavailable(f"status {answer.status}")
    return parse_scan_response(answer.body)


async def try_train_with_message(
    endpoint: RspamdEndpoint, body: ScanBody, *, is_spam: bool
) -> bool:
    """Train Rspamd with a message. Returns False if it refuses to learn it.

    Raises ScannerUnavailable.
    """
    answer = await post_to_scanner(
        endpoint.command_target("learnspam" if is_spam else "learnham"), endpoint.auth_fields, body
    )
    if answer.status in RETRYABLE_STATUSES or answer.status >= 500 or answer.status < OK:  # noqa: PLR2004
        raise ScannerUnavailable(f"status {answer.status}")
    return answer.status in {OK, ALREADY_LEARNED}


def parse_scan_response(response_body: bytes) -> ScanResult:
    """Parse a scan response. Raises ScannerUnavailable if it has no score."""
    try:
        response_json = orjson.loads(response_body)
    except orjson.JSONDecodeError:
        raise ScannerUnavailable("response is not JSON") from None
    if not isinstance(response_json, dict):
        raise ScannerUnavailable("response has no report")
    score = _bounded_number(response_json.get("score"))
    if score is None:
        raise ScannerUnavailable("response has no score")
    if (
        response_json.get("is_skipped") is True and not score
    ):  # with a score the result is final without a scan
        return ScanResult((SCANNER_NAME,))
    action = response_json.get("action")
    return ScanResult(
        (SCANNER_NAME,),
        score,
        _bounded_number(response_json.get("required_score")) or 0.0,
        single_line(action).lower() if isinstance(action, str) else "",
        _parse_weightiest_symbols(response_json.get("symbols")),
    )


def _parse_weightiest_symbols(symbols_json: object) -> list[SpamScanSymbol]:
    """Return the symbols of a response that weigh most."""
    symbols = []
    for name, symbol_json in symbols_json.items() if isinstance(symbols_json, dict) else ():
        if isinstance(symbol_json, dict):
            text = symbol_json.get("description")
            words = single_line(text) if isinstance(text, str) else None
            symbols.append(
                SpamScanSymbol(
                    single_line(name),
                    _bounded_number(symbol_json.get("score")) or 0.0,
                    words or None,
                )
            )
    return weightiest_symbols(symbols)


def _bounded_number(json_value: object) -> float | None:
    """Return a finite number within MAX_SCORE, None for other values."""
    if (
        isinstance(json_value, bool)
        or not isinstance(json_value, int | float)
        or not math.isfinite(json_value)
    ):
        return None
    return max(-MAX_SCORE, min(float(json_value), MAX_SCORE))
