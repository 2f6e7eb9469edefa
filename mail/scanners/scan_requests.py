"""Scan a message with all configured scanners at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mail.inbound.incoming_message import IncomingMessage
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.scanners import clamd, rspamd
from mail.scanners.body_stream import ScanBody, body_for_scanner
from mail.scanners.circuit_breaker import (
    SCANS,
    MessageTooLargeForScanner,
    ScannerUnavailable,
    breaker_of_scanner,
)
from mail.scanners.rspamd import RspamdEndpoint, ScanEnvelope
from mail.spam.scan_result import ScanResult
from models.errors import ServiceUnavailable
from models.runtime.environment import Environment
from models.runtime.options import Options

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class ScannerConfig:
    """The settings of a scanner. An empty endpoint means that it is not used."""

    name: str
    endpoint: str
    timeout_seconds: float  # seconds
    max_size: int  # bytes
    defer_if_down: bool  # defer mail while the scanner is down


def rspamd_config(options: Options) -> ScannerConfig:
    """Return the settings of Rspamd."""
    return ScannerConfig(
        rspamd.SCANNER_NAME,
        options.rspamd_url,
        options.rspamd_timeout.total_seconds(),
        options.rspamd_max_size,
        options.rspamd_on_failure == "defer",
    )


def clamd_config(options: Options) -> ScannerConfig:
    """Return the settings of clamd."""
    return ScannerConfig(
        clamd.SCANNER_NAME,
        options.clamd_address,
        options.clamd_timeout.total_seconds(),
        options.clamd_max_size,
        options.clamd_on_failure == "defer",
    )


async def scan_incoming_and_store_result(
    environment: Environment,
    incoming: "IncomingMessage",
    accepted_recipients: Sequence[AcceptedRecipient],
) -> None:
    """Scan an incoming message and store the result in it, unless it was scanned before.

    Raises ServiceUnavailable if a scanner does not respond and its setting defers mail.
    """
    options, message = environment.options, incoming.message
    # by a local user
    sent = not (incoming.from_trusted_server or incoming.client or incoming.fetched)
    if sent or incoming.is_scanned or not (options.rspamd_url or options.clamd_address):
        return
    body = body_for_scanner(incoming.raw_message, message.size)
    envelope = ScanEnvelope(
        incoming.envelope_sender,
        [recipient.address for recipient in accepted_recipients],
        incoming.client,
    )
    scanners = (
        _config_for_message(incoming, rspamd_config(options)),
        _config_for_message(incoming, clamd_config(options)),
    )
    incoming.message = replace(
        message, scan=await _scan_with_both(environment, scanners, envelope, body)
    )
    incoming.is_scanned = True


async def scan_outgoing_if_enabled(
    environment: Environment, raw_message: bytes, envelope: ScanEnvelope
) -> ScanResult | None:
    """Scan a message that a user sends. Returns None if the setting turns scans off.

    Raises ServiceUnavailable if a scanner does not respond and its setting defers mail.
    """
    options = environment.options
    viruses, spam = clamd_config(options), rspamd_config(options)
    if options.outbound_scan == "viruses":
        spam = replace(spam, endpoint="")
    if options.outbound_scan == "off" or not (viruses.endpoint or spam.endpoint):
        return None
    return await _scan_with_both(
        environment, (spam, viruses), envelope, body_for_scanner(raw_message, len(raw_message))
    )


async def _scan_with_both(
    environment: Environment,
    scanners: tuple[ScannerConfig, ScannerConfig],
    envelope: ScanEnvelope,
    body: ScanBody,
) -> ScanResult | None:
    """Run both scanners and merge the results.

    Raises ServiceUnavailable if one is down and defers.
    """
    options, (spam, viruses) = environment.options, scanners
    at = RspamdEndpoint(options.rspamd_url, options.rspamd_password)
    results = await asyncio.gather(
        _scan_with_breaker(
            environment, spam, body, lambda: rspamd.scan_for_spam(at, envelope, body)
        ),
        _scan_with_breaker(
            environment, viruses, body, lambda: _scan_with_clamd(options.clamd_address, body)
        ),
    )
    for result in results:
        if isinstance(result, ServiceUnavailable):
            raise result
    return _merge_scan_results(*results)


def _config_for_message(incoming: "IncomingMessage", config: ScannerConfig) -> ScannerConfig:
    """Return the settings, without endpoint if the scanner must not scan this message.

    Fetched messages name their scanners; Rspamd does not scan mail of forwarding hosts.
    """
    is_enabled = incoming.fetched is None or config.name in incoming.fetched.scanner_names
    if incoming.skip_spam_filter and config.name == rspamd.SCANNER_NAME:
        is_enabled = False
    return config if is_enabled else replace(config, endpoint="")


async def _scan_with_clamd(endpoint: str, body: ScanBody) -> ScanResult:
    """Scan with clamd."""
    return ScanResult((clamd.SCANNER_NAME,), virus_name=await clamd.scan_for_virus(endpoint, body))


async def _scan_with_breaker(
    environment: Environment,
    config: ScannerConfig,
    body: ScanBody,
    request: Callable[[], Awaitable[ScanResult]],
) -> ScanResult | ServiceUnavailable | None:
    """Scan with one scanner. Returns None if it did not scan, Unavailable if mail must wait."""
    if not config.endpoint:
        return None
    if body.size > config.max_size:
        SCANS.add(config.name, "too_large")
        return None
    try:
        verdict = await breaker_of_scanner(
            environment.database, config.name, config.endpoint
        ).call_unless_open(environment, config.timeout_seconds, request)
    except MessageTooLargeForScanner:
        return None
    except ScannerUnavailable:
        text = "A scanner does not respond."
        return ServiceUnavailable(text, component=config.name) if config.defer_if_down else None
    outcome = "scored" if verdict.score is not None else "clean"
    SCANS.add(config.name, "virus" if verdict.virus_name else outcome)
    return verdict


def _merge_scan_results(*scan_results: ScanResult | ServiceUnavailable | None) -> ScanResult | None:
    """Merge the results of the scanners. Returns None if none has scanned."""
    scans = [result for result in scan_results if isinstance(result, ScanResult)]
    if not scans:
        return None
    first = scans[0]
    sources = [name for scan in scans for name in scan.scanner_names]
    virus = next((scan.virus_name for scan in scans if scan.virus_name), None)
    return replace(first, scanner_names=sources, virus_name=virus)
