"""The test of a route: all steps of a delivery up to RCPT, without a message."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normalized_domain
from mail.envelope.delivery_jobs import QueueLimits
from mail.mime.header_encoding import needs_smtputf8
from mail.outbound import smtp_client, smtp_connect
from mail.outbound.smtp_client import ServerFailed, SmtpConnection
from mail.outbound.tls_client import TlsContexts
from mail.recipients import recipient_routes
from mail.routing import route_selection
from mail.routing.mx_hosts import NextHop, OutboundSettings, Unroutable
from mail.routing.route_selection import RouteRequest
from mail.routing.route_snapshot import RouteCache
from models.errors import NotFound
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import Environment
from models.store.columns import core_table

LIMITS = QueueLimits(connect_timeout=10.0, greeting_timeout=20.0, reply_timeout=20.0)
TOTAL_TIMEOUT = 60.0  # seconds
MAX_ADDRESSES = 6  # attempted
ACCEPTED_CODES = (250, 251, 252)


@dataclass(frozen=True, slots=True)
class RouteTestResult:
    """Whether a server accepts the envelope now, with a log of the test."""

    is_accepted: bool
    log_lines: list[str] = field(default_factory=list)


async def run_route_test(  # noqa: PLR0913, PLR0917 - the arguments of the field
    environment: Environment,
    route: OutboundSettings,
    sender: str | None = None,
    recipient: str | None = None,
    relay_host_id: int | None = None,
    transport_id: int | None = None,
) -> RouteTestResult:
    """Test the route of a message, up to RCPT, or up to MAIL without a recipient.

    With a relay host or transport, that one is tested even if it is inactive. The log contains no
    password. Raises NotFound if the relay host or transport does not exist, or if there is neither
    one of them nor a recipient.
    """
    log: list[str] = []
    forced_route = await _load_forced_route(environment, relay_host_id, transport_id)
    if recipient is None and forced_route is None:
        raise NotFound("", path=["recipient"], noun="Recipient")
    domain = normalized_domain((recipient or "").rpartition("@")[2])
    if forced_route is None and await recipient_routes.is_local_domain(environment, domain):
        log.append(f"{domain} is a local domain: the message is delivered on this server")
        return RouteTestResult(is_accepted=True, log_lines=log)
    if environment.options.offline_sink is not None:
        log.append("this demo server sends nothing: the message is stored in its local sink")
        return RouteTestResult(is_accepted=True, log_lines=log)
    request = RouteRequest(sender or "", recipient or "", domain)
    try:
        async with asyncio.timeout(TOTAL_TIMEOUT):
            route_found = await route_selection.select_route_or_raise_unroutable(
                RouteCache(environment, route), request, log, forced_route
            )
            return RouteTestResult(
                await _test_if_first_answering_server_accepts(
                    environment, route, request, (route_found.next_hops, log)
                ),
                log,
            )
    except Unroutable as problem:
        log.append(f"no route: {problem.reply_code} {problem.reply_text}")
    except TimeoutError:
        log.append(f"not finished within {TOTAL_TIMEOUT:g} seconds")
    return RouteTestResult(is_accepted=False, log_lines=log)


async def _load_forced_route(
    environment: Environment, relay_host_id: int | None, transport_id: int | None
) -> RelayHost | Transport | None:
    """Load the relay host or transport with this id. Raises NotFound."""
    if relay_host_id is not None:
        statement = select(*core_table(RelayHost).c).where(col(RelayHost.id) == relay_host_id)
        if rows := await environment.database.read(statement):
            return RelayHost(**rows[0]._asdict())
        raise NotFound(str(relay_host_id), path=["relayHost"], noun="Relay host")
    if transport_id is not None:
        statement = select(*core_table(Transport).c).where(col(Transport.id) == transport_id)
        if rows := await environment.database.read(statement):
            return Transport(**rows[0]._asdict())
        raise NotFound(str(transport_id), path=["transport"], noun="Transport")
    return None


async def _test_if_first_answering_server_accepts(
    environment: Environment,
    route: OutboundSettings,
    request: RouteRequest,
    servers_and_log: tuple[list[NextHop], list[str]],
) -> bool:
    """True if the first server that answers accepts the envelope."""
    servers, log = servers_and_log
    contexts = TlsContexts(route.trusted_context)
    for host in servers[:MAX_ADDRESSES]:
        log.append(f"connecting to {host.name} ({host.address}), port {host.port}")
        try:
            channel = await smtp_connect.connect_to_next_hop(
                host, LIMITS, local_hostname=environment.options.hostname, tls_contexts=contexts
            )
        except ServerFailed as problem:
            log.append(f"failed: {problem.reply_code} {problem.reply_text}")
            continue
        try:
            _log_connection(channel, host, log)
            return await _test_if_envelope_accepted(channel, request, log)
        except ServerFailed as problem:
            log.append(f"failed: {problem.reply_code} {problem.reply_text}")
        finally:
            await channel.quit()
    return False


def _log_connection(channel: SmtpConnection, host: NextHop, log: list[str]) -> None:
    """Log TLS, login and extensions of a connection."""
    log.append(
        f"encrypted: {channel.tls_description}" if channel.tls_description else "not encrypted"
    )
    if host.username is not None:
        log.append(f"signed in as {host.username}")
    extensions = ", ".join(sorted(extension.upper() for extension in channel.smtp.esmtp_extensions))
    log.append(f"extensions of the server: {extensions or 'none'}")


async def _test_if_envelope_accepted(
    channel: SmtpConnection, request: RouteRequest, log: list[str]
) -> bool:
    """Send MAIL and RCPT, then RSET. Returns True if the server accepted them."""
    utf8 = any(needs_smtputf8(address) for address in (request.sender, request.recipient))
    if utf8 and not channel.has_extension("smtputf8"):
        log.append("the server does not support SMTPUTF8, which the address requires")
        return False
    sender = smtp_client.command_address_or_none(request.sender or "x")
    recipient = smtp_client.command_address_or_none(request.recipient)
    if sender is None or (request.recipient and recipient is None):
        log.append("not an email address")
        return False
    mail_arguments = [f"FROM:<{sender if request.sender else ''}>", *(["SMTPUTF8"] if utf8 else [])]
    commands = [("MAIL", *mail_arguments)]
    if request.recipient:
        commands.append(("RCPT", f"TO:<{recipient}>"))
    ok = True
    for command in commands:
        ok = ok and await _send_and_log_command(channel, command, log)
    await _send_and_log_command(channel, ("RSET",), log)
    return ok


async def _send_and_log_command(
    channel: SmtpConnection, words: tuple[str, ...], log: list[str]
) -> bool:
    """Send a command, log it with its reply, and return True if the reply is positive."""
    log.append(f"> {' '.join(words)}")
    reply = await smtp_client.send_command_and_read_reply(channel, *words)
    log.append(f"< {reply.code} {reply.message}")
    return reply.code in ACCEPTED_CODES
