"""Scan a message with all configured scanners at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mail.inbound.incoming_message import Mail
from mail.recipients.recipient_routes import Taken
from mail.scanners import clamd, rspamd
from mail.scanners.body_stream import Body, body_of
from mail.scanners.circuit_breaker import SCANS, Down, TooLarge, breaker_of
from mail.scanners.rspamd import Envelope, Rspamd
from mail.spam.scan_result import Scan
from models.errors import Unavailable
from models.runtime.environment import World
from models.runtime.options import Options

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Asked:
    """The settings of a scanner. An empty endpoint means that it is not used."""

    name: str
    place: str
    timeout: float  # seconds
    largest: int  # bytes
    defer: bool  # defer mail while the scanner is down


def rspamd_of(options: Options) -> Asked:
    """Return the settings of Rspamd."""
    return Asked(
        rspamd.NAME,
        options.rspamd,
        options.rspamd_timeout.total_seconds(),
        options.rspamd_max,
        options.rspamd_down == "defer",
    )


def clamd_of(options: Options) -> Asked:
    """Return the settings of clamd."""
    return Asked(
        clamd.NAME,
        options.clamd,
        options.clamd_timeout.total_seconds(),
        options.clamd_max,
        options.clamd_down == "defer",
    )


async def look(world: World, mail: "Mail", taken: Sequence[Taken]) -> None:
    """Scan an incoming message and store the result in it.

    Raises Unavailable if a scanner does not respond and its setting defers mail.
    """
    options, letter = world.options, mail.letter
    sent = not (mail.handed or mail.client or mail.fetched)  # by a local user
    if sent or not (options.rspamd or options.clamd):
        return
    body = body_of(mail.source, letter.size)
    envelope = Envelope(mail.sender, [each.address for each in taken], mail.client)
    scanners = _of(mail, rspamd_of(options)), _of(mail, clamd_of(options))
    mail.letter = replace(letter, scan=await _both(world, scanners, envelope, body))


async def of_sent(world: World, raw: bytes, envelope: Envelope) -> Scan | None:
    """Scan a message that a user sends. Returns None if the setting turns scans off.

    Raises Unavailable if a scanner does not respond and its setting defers mail.
    """
    options = world.options
    viruses, spam = clamd_of(options), rspamd_of(options)
    if options.sent_scan == "viruses":
        spam = replace(spam, place="")
    if options.sent_scan == "off" or not (viruses.place or spam.place):
        return None
    return await _both(world, (spam, viruses), envelope, body_of(raw, len(raw)))


async def _both(
    world: World, scanners: tuple[Asked, Asked], envelope: Envelope, body: Body
) -> Scan | None:
    """Run both scanners and merge the results. Raises Unavailable if one is down and defers."""
    options, (spam, viruses) = world.options, scanners
    at = Rspamd(options.rspamd, options.rspamd_password)
    found = await asyncio.gather(
        _asked(world, spam, body, lambda: rspamd.check(at, envelope, body)),
        _asked(world, viruses, body, lambda: _viruses(options.clamd, body)),
    )
    for each in found:
        if isinstance(each, Unavailable):
            raise each
    return _together(*found)


def _of(mail: "Mail", scanner: Asked) -> Asked:
    """Return the settings, without endpoint if the scanner must not scan this message.

    Fetched messages name their scanners; Rspamd does not scan mail of forwarding hosts.
    """
    wanted = mail.fetched is None or scanner.name in mail.fetched.scanners
    if mail.unfiltered and scanner.name == rspamd.NAME:
        wanted = False
    return scanner if wanted else replace(scanner, place="")


async def _viruses(place: str, body: Body) -> Scan:
    """Scan with clamd."""
    return Scan((clamd.NAME,), virus=await clamd.check(place, body))


async def _asked(
    world: World, of: Asked, body: Body, question: Callable[[], Awaitable[Scan]]
) -> Scan | Unavailable | None:
    """Scan with one scanner. Returns None if it did not scan, Unavailable if mail must wait."""
    if not of.place:
        return None
    if body.size > of.largest:
        SCANS.add(of.name, "too_large")
        return None
    try:
        found = await breaker_of(world.database, of.name, of.place).ask(world, of.timeout, question)
    except TooLarge:
        return None
    except Down:
        text = "a scanner does not answer"
        return Unavailable(text, component=of.name) if of.defer else None
    judged = "judged" if found.score is not None else "clean"
    SCANS.add(of.name, "virus" if found.virus else judged)
    return found


def _together(*found: Scan | Unavailable | None) -> Scan | None:
    """Merge the results of the scanners. Returns None if none has scanned."""
    scans = [each for each in found if isinstance(each, Scan)]
    if not scans:
        return None
    first = scans[0]
    sources = [name for each in scans for name in each.sources]
    virus = next((each.virus for each in scans if each.virus), None)
    return replace(first, sources=sources, virus=virus)
