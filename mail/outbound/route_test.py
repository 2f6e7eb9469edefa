"""The test of a route: all steps of a delivery up to RCPT, without a message."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normal_domain
from mail.envelope.delivery_jobs import Pace
from mail.mime.header_encoding import needs_utf8
from mail.outbound import smtp_client
from mail.outbound.smtp_client import Channel, NotReached
from mail.outbound.tls_client import Contexts
from mail.recipients import recipient_routes
from mail.routing import route_selection
from mail.routing.mx_hosts import Host, Route, Unroutable
from mail.routing.route_selection import Asked
from mail.routing.route_snapshot import Chart
from models.errors import NotFound
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import World
from models.store.columns import table_of

PACE = Pace(connect=10.0, greeting=20.0, answer=20.0)
WHOLE = 60.0  # seconds
TRIED = 6  # attempted
TAKEN = (250, 251, 252)


@dataclass(frozen=True, slots=True)
class Probed:
    """Whether a server accepts the envelope now, with a log of the test."""

    ok: bool
    log: list[str] = field(default_factory=list)


async def probe(  # noqa: PLR0913, PLR0917 - the arguments of the field
    world: World,
    route: Route,
    sender: str | None = None,
    recipient: str | None = None,
    relay_host_id: int | None = None,
    transport_id: int | None = None,
) -> Probed:
    """Test the route of a message, up to RCPT, or up to MAIL without a recipient.

    With a relay host or transport, that one is tested even if it is inactive. The log contains no
    password. Raises NotFound if the relay host or transport does not exist, or if there is neither
    one of them nor a recipient.
    """
    log: list[str] = []
    forced = await _forced(world, relay_host_id, transport_id)
    if recipient is None and forced is None:
        raise NotFound("neither a recipient nor a way is named", path=["recipient"])
    domain = normal_domain((recipient or "").rpartition("@")[2])
    if forced is None and await recipient_routes.is_ours(world, domain):
        log.append(f"{domain} is ours: it is delivered here, and does not leave")
        return Probed(ok=True, log=log)
    asked = Asked(sender or "", recipient or "", domain)
    try:
        async with asyncio.timeout(WHOLE):
            way = await route_selection.by(Chart(world, route), asked, log, forced)
            return Probed(await _tried(world, route, asked, (way.servers, log)), log)
    except Unroutable as problem:
        log.append(f"no way: {problem.code} {problem.text}")
    except TimeoutError:
        log.append(f"not done within {WHOLE:g} seconds")
    return Probed(ok=False, log=log)


async def _forced(
    world: World, relay_host_id: int | None, transport_id: int | None
) -> RelayHost | Transport | None:
    """Load the relay host or transport with this id. Raises NotFound."""
    if relay_host_id is not None:
        asked = select(*table_of(RelayHost).c).where(col(RelayHost.id) == relay_host_id)
        if rows := await world.database.read(asked):
            return RelayHost(**rows[0]._mapping)  # noqa: SLF001 - the API of rows
        raise NotFound("there is no such relay host", path=["relayHost"])
    if transport_id is not None:
        asked = select(*table_of(Transport).c).where(col(Transport.id) == transport_id)
        if rows := await world.database.read(asked):
            return Transport(**rows[0]._mapping)  # noqa: SLF001 - the API of rows
        raise NotFound("there is no such transport", path=["transport"])
    return None


async def _tried(
    world: World, route: Route, asked: Asked, found: tuple[list[Host], list[str]]
) -> bool:
    """True if the first server that answers accepts the envelope."""
    servers, log = found
    contexts = Contexts(route.trust)
    for host in servers[:TRIED]:
        log.append(f"connecting to {host.name} ({host.address}), port {host.port}")
        try:
            channel = await smtp_client.connect(
                host, PACE, hostname=world.options.hostname, contexts=contexts
            )
        except NotReached as problem:
            log.append(f"failed: {problem.code} {problem.text}")
            continue
        try:
            _greeted(channel, host, log)
            return await _conversed(channel, asked, log)
        except NotReached as problem:
            log.append(f"failed: {problem.code} {problem.text}")
        finally:
            await channel.close()
    return False


def _greeted(channel: Channel, host: Host, log: list[str]) -> None:
    """Log TLS, login and extensions of a connection."""
    log.append(f"encrypted: {channel.tls}" if channel.tls else "not encrypted")
    if host.username is not None:
        log.append(f"signed in as {host.username}")
    offers = ", ".join(sorted(extension.upper() for extension in channel.smtp.esmtp_extensions))
    log.append(f"it offers: {offers or 'nothing'}")


async def _conversed(channel: Channel, asked: Asked, log: list[str]) -> bool:
    """Send MAIL and RCPT, then RSET. Returns True if the server accepted them."""
    utf8 = any(needs_utf8(address) for address in (asked.sender, asked.recipient))
    if utf8 and not channel.offers("smtputf8"):
        log.append("it does not take such addresses (SMTPUTF8)")
        return False
    sender, recipient = (
        smtp_client.written(asked.sender or "x"),
        smtp_client.written(asked.recipient),
    )
    if sender is None or (asked.recipient and recipient is None):
        log.append("that is no address")
        return False
    words = [f"FROM:<{sender if asked.sender else ''}>", *(["SMTPUTF8"] if utf8 else [])]
    said = [("MAIL", *words)]
    if asked.recipient:
        said.append(("RCPT", f"TO:<{recipient}>"))
    ok = True
    for words_ in said:
        ok = ok and await _said(channel, words_, log)
    await _said(channel, ("RSET",), log)
    return ok


async def _said(channel: Channel, words: tuple[str, ...], log: list[str]) -> bool:
    """Send a command, log it with its reply, and return True if the reply is positive."""
    log.append(f"> {' '.join(words)}")
    answer = await smtp_client.answered(channel, *words)
    log.append(f"< {answer.code} {answer.message}")
    return answer.code in TAKEN
