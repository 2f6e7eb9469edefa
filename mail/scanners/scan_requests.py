"""Asking all scanners there are about a message, at the same time."""

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
    """A scanner: which, where, and what its settings say."""

    name: str
    place: str
    timeout: float  # seconds
    largest: int  # bytes
    defer: bool  # while it is down


def rspamd_of(options: Options) -> Asked:
    """What is set about rspamd."""
    return Asked(
        rspamd.NAME,
        options.rspamd,
        options.rspamd_timeout.total_seconds(),
        options.rspamd_max,
        options.rspamd_down == "defer",
    )


def clamd_of(options: Options) -> Asked:
    """What is set about clamd."""
    return Asked(
        clamd.NAME,
        options.clamd,
        options.clamd_timeout.total_seconds(),
        options.clamd_max,
        options.clamd_down == "defer",
    )


async def look(world: World, mail: "Mail", taken: Sequence[Taken]) -> None:
    """Have the scanners look at a message that came from outside, and keep what they found.

    Unavailable where one is down, and its setting says that mail waits for it.
    """
    options, letter = world.options, mail.letter
    sent = not (mail.handed or mail.client or mail.fetched)  # by one of our users
    if sent or not (options.rspamd or options.clamd):
        return
    body = body_of(mail.source, letter.size)
    envelope = Envelope(mail.sender, [each.address for each in taken], mail.client)
    scanners = _of(mail, rspamd_of(options)), _of(mail, clamd_of(options))
    mail.letter = replace(letter, scan=await _both(world, scanners, envelope, body))


async def of_sent(world: World, raw: bytes, envelope: Envelope) -> Scan | None:
    """What the scanners find in what a user sends, as far as the setting has them look.

    None where nobody has looked. Unavailable as `look`.
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
    """The scanner; nowhere, where it is not to look at what was fetched, or forwarded."""
    wanted = mail.fetched is None or scanner.name in mail.fetched.scanners
    if mail.unfiltered and scanner.name == rspamd.NAME:
        wanted = False
    return scanner if wanted else replace(scanner, place="")


async def _viruses(place: str, body: Body) -> Scan:
    return Scan((clamd.NAME,), virus=await clamd.check(place, body))


async def _asked(
    world: World, of: Asked, body: Body, question: Callable[[], Awaitable[Scan]]
) -> Scan | Unavailable | None:
    """What a scanner has found; None where it has not looked."""
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
    scans = [each for each in found if isinstance(each, Scan)]
    if not scans:
        return None
    first = scans[0]
    sources = [name for each in scans for name in each.sources]
    virus = next((each.virus for each in scans if each.virus), None)
    return replace(first, sources=sources, virus=virus)
