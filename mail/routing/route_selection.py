"""Route selection: the next hops of a recipient, with their TLS requirements.

The first of these decides the route: the transport of the recipient (by address, domain, parent
domain or pattern), the relay host of the sender's domain, the common next hop, the MX hosts of the
recipient's domain. The TLS requirement comes from a TLS policy of the destination; for MX hosts
without one, from DANE, then MTA-STS; otherwise TLS is opportunistic. A user can require TLS for all
sent mail.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import idna

from mail.addresses.address_syntax import ascii_domain, normalized_domain
from mail.envelope.delivery_jobs import DeliveryJob, JobRecipient
from mail.routing import tls_requirements
from mail.routing.mx_hosts import (
    SMTP_PORT,
    SMTPS_PORT,
    NextHop,
    OutboundSettings,
    TlsLevel,
    Unroutable,
    resolve_mx_hosts,
)
from mail.routing.password_contexts import relay_host_context, transport_context
from mail.routing.route_snapshot import RouteCache, destinations_of_domain
from mail.routing.tls_requirements import MxNextHop
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError

PORT_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """Sender and recipient that a route is selected for."""

    sender: str  # envelope sender; empty for DSNs
    recipient: str
    domain: str  # of the recipient
    requires_tls: bool = False  # the sender requires TLS


@dataclass(frozen=True, slots=True)
class RecipientRoute:
    """The next hops of a recipient, best first, and the log of the selection."""

    next_hops: list[NextHop]
    route_log: list[str] = field(default_factory=list)
    destination: str = ""  # the destination for pacing: a domain, or [host]:port


@dataclass(frozen=True, slots=True)
class RoutePart:
    """Recipients of a job that share a route, or the reason why they have none."""

    recipients: Sequence[JobRecipient]
    route: RecipientRoute | Unroutable


async def select_route(
    environment: Environment,
    outbound_settings: OutboundSettings,
    request: RouteRequest,
    route_log: list[str] | None = None,
) -> RecipientRoute:
    """Select the route of one recipient. Raises Unroutable. Appends its steps to `route_log`."""
    return await select_route_or_raise_unroutable(
        RouteCache(environment, outbound_settings), request, route_log
    )


async def select_route_or_raise_unroutable(
    cache: RouteCache,
    request: RouteRequest,
    route_log: list[str] | None = None,
    forced_route: RelayHost | Transport | None = None,
) -> RecipientRoute:
    """Select a route as `select_route`, with cached tables.

    `forced_route` is used instead of the configured transport or relay host.
    """
    route_log = [] if route_log is None else route_log
    if isinstance(forced_route, RelayHost):
        return await _select_relay_host_route(cache, request, forced_route, route_log)
    return await _route_by_transport_or_default(
        cache,
        request,
        forced_route or await cache.find_transport(request.recipient, request.domain),
        route_log,
    )


async def _route_by_transport_or_default(
    cache: RouteCache, request: RouteRequest, transport: Transport | None, route_log: list[str]
) -> RecipientRoute:
    """Select the route for this transport of the recipient, which can be None."""
    if transport is not None:
        return await _select_transport_route(cache, request, transport, route_log)
    sender_domain = normalized_domain(request.sender.rpartition("@")[2])
    if sender_domain and (relay := await cache.find_relay_host(sender_domain)):
        route_log.append(f"sender domain {sender_domain}: relay host of the domain")
        return await _select_relay_host_route(cache, request, relay, route_log)
    if hop := cache.outbound_settings.next_hop:
        route_log.append(f"default next hop {hop.name}:{hop.port}")
        return await _select_configured_hosts_route(cache, request, [hop], route_log)
    allow_private = cache.environment.options.mx_allow_private_networks or await cache.is_backup_mx(
        request.domain
    )
    return await _select_mx_route(
        cache,
        request,
        (request.domain, cache.outbound_settings.mx_port),
        route_log,
        allow_private=allow_private,
    )


async def group_recipients_by_route(cache: RouteCache, job: DeliveryJob) -> list[RoutePart]:
    """Group the recipients of a job by route. In one domain, only transports make a difference."""
    recipients_by_transport: dict[int | None, list[JobRecipient]] = {}
    transport_by_id: dict[int | None, Transport | None] = {}
    for recipient in job.recipients:
        transport = await cache.find_transport(recipient.address, job.domain)
        transport_id = transport.id if transport else None
        transport_by_id[transport_id] = transport
        recipients_by_transport.setdefault(transport_id, []).append(recipient)
    groups = []
    for transport_id, recipients in recipients_by_transport.items():
        request = RouteRequest(job.sender, recipients[0].address, job.domain, job.requires_tls)
        try:
            groups.append(
                RoutePart(
                    recipients,
                    await _route_by_transport_or_default(
                        cache, request, transport_by_id[transport_id], []
                    ),
                )
            )
        except Unroutable as problem:
            groups.append(RoutePart(recipients, problem))
    return groups


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host with its port."""

    name: str  # lower case, without brackets
    port: int
    is_bracketed: bool  # so MX records are not looked up


def parse_host_port(host_and_port: str) -> HostPort:
    """Parse "host:port" or "[host]:port"; the port can be omitted. Raises ValueError."""
    remainder = host_and_port
    if is_bracketed := host_and_port.startswith("["):
        name, bracket, remainder = host_and_port[1:].partition("]")
        if not bracket or remainder[:1] not in ("", ":"):
            raise ValueError(host_and_port)
        port = remainder[1:]
    else:
        name, _, port = host_and_port.partition(":")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < PORT_LIMIT):
        raise ValueError(host_and_port)
    if not name:
        raise ValueError(host_and_port)
    return HostPort(name.lower(), int(port or SMTP_PORT), is_bracketed)


async def _select_transport_route(
    cache: RouteCache, request: RouteRequest, transport: Transport, route_log: list[str]
) -> RecipientRoute:
    """The route over a transport: its host, or the MX hosts of its name. Raises Unroutable."""
    route_log.append(f"recipient: transport {transport.destination} to {transport.next_hop}")
    try:
        host_and_port = parse_host_port(transport.next_hop)
    except ValueError:
        raise Unroutable(451, "4.3.5 The next hop of the transport is invalid") from None
    name, port = host_and_port.name, host_and_port.port
    if transport.lookup_mx and not host_and_port.is_bracketed:
        mx_route = await _select_mx_route(
            cache, request, (name, port), route_log, allow_private=True
        )
        with_login = [
            _with_login_over_tls(cache, replace(next_hop, is_relay=True), transport, route_log)
            for next_hop in mx_route.next_hops
        ]
        return replace(mx_route, next_hops=with_login)
    host = _with_login_over_tls(
        cache, NextHop(name, port, name, is_relay=True), transport, route_log
    )
    return await _select_configured_hosts_route(
        cache, request, [_with_implicit_tls(host)], route_log
    )


async def _select_relay_host_route(
    cache: RouteCache, request: RouteRequest, relay_host: RelayHost, route_log: list[str]
) -> RecipientRoute:
    """The route over a relay host. Raises Unroutable."""
    route_log.append(f"relay host {relay_host.host}:{relay_host.port}")
    name = relay_host.host.removeprefix("[").removesuffix("]")
    tls_level = TlsLevel.REQUIRED if relay_host.tls else TlsLevel.OPPORTUNISTIC
    host = _with_login_over_tls(
        cache, NextHop(name, relay_host.port, name, tls_level, is_relay=True), relay_host, route_log
    )
    return await _select_configured_hosts_route(
        cache, request, [_with_implicit_tls(host)], route_log
    )


def _with_implicit_tls(host: NextHop) -> NextHop:
    """The host with implicit TLS if its port is 465."""
    return replace(host, tls_level=TlsLevel.WRAPPED) if host.port == SMTPS_PORT else host


def _with_login_over_tls(
    cache: RouteCache, host: NextHop, row: RelayHost | Transport, route_log: list[str]
) -> NextHop:
    """The host with username and password, which require TLS with a verified certificate.

    Raises Unroutable if the password can't be decrypted.
    """
    if row.username is None:
        return host
    context = (relay_host_context if isinstance(row, RelayHost) else transport_context)(row.id)
    try:
        password = cache.environment.secret_box.decrypt(row.secret, context) if row.secret else ""
    except DecryptionError:
        raise Unroutable(451, "4.3.5 The password for the next hop can't be decrypted") from None
    route_log.append(f"signing in as {row.username}")
    with_login = replace(host, username=row.username, password=password)
    return tls_requirements.with_verified_tls(with_login, route_log)


async def _select_configured_hosts_route(
    cache: RouteCache, request: RouteRequest, hosts: list[NextHop], route_log: list[str]
) -> RecipientRoute:
    """The route over configured hosts, by their TLS policy or that of the recipient's domain."""
    first = hosts[0]
    destination = f"[{first.name}]:{first.port}"
    own_destinations = (
        destination,
        f"{first.name}:{first.port}",
        f"[{first.name}]",
        *destinations_of_domain(first.name),
    )
    policy = await cache.find_tls_policy(own_destinations)
    if policy is not None:
        requirements = [
            await tls_requirements.requirement_from_policy(
                cache.outbound_settings, next_hop, policy, first.name
            )
            for next_hop in hosts
        ]
        next_hops = tls_requirements.require_usable_next_hops(requirements, route_log)
    else:
        recipient_policy = await cache.find_tls_policy(destinations_of_domain(request.domain))
        next_hops = [
            tls_requirements.with_recipient_policy(next_hop, recipient_policy, route_log)
            for next_hop in hosts
        ]
    next_hops = tls_requirements.enforce_sender_tls(
        next_hops, route_log, requires_tls=request.requires_tls
    )
    # NEVER: the operator allows a password without TLS
    if first.username is not None and first.tls_level is not TlsLevel.NEVER:
        next_hops = [tls_requirements.with_verified_tls(hop, route_log) for hop in next_hops]
    return RecipientRoute(next_hops, route_log, destination)


async def _select_mx_route(
    cache: RouteCache,
    request: RouteRequest,
    domain_and_port: tuple[str, int],
    route_log: list[str],
    *,
    allow_private: bool,
) -> RecipientRoute:
    """The route over the MX hosts of a domain. Raises Unroutable."""
    domain, port = domain_and_port
    mx_hosts = await resolve_mx_hosts(
        cache.environment, cache.outbound_settings, domain, route_log, allow_private=allow_private
    )
    for current_host in mx_hosts:
        origin = (
            "no MX, itself" if current_host.preference is None else f"MX {current_host.preference}"
        )
        signed_note = ", signed" if current_host.is_signed else ""
        route_log.append(
            f"{domain}: {origin} {current_host.name} "
            f"({', '.join(current_host.addresses)}){signed_note}"
        )
    ascii_name = _ascii_or_unchanged(domain)
    mx_next_hops = [
        MxNextHop(mx_host, NextHop(mx_host.name, port, mx_host.addresses[0]))
        for mx_host in mx_hosts
    ]
    policy = await cache.find_tls_policy((f"[{domain}]:{port}", *destinations_of_domain(domain)))
    if policy is not None:
        requirements = [
            await tls_requirements.requirement_from_policy(
                cache.outbound_settings, next_hop.next_hop, policy, ascii_name, next_hop.mx_host
            )
            for next_hop in mx_next_hops
        ]
    else:
        requirements = await tls_requirements.look_up_published_tls_requirements(
            cache, ascii_name, mx_next_hops, route_log
        )
    hosts = tls_requirements.enforce_sender_tls(
        tls_requirements.require_usable_next_hops(requirements, route_log),
        route_log,
        requires_tls=request.requires_tls,
    )
    by_name = {mx_host.name: mx_host.addresses for mx_host in mx_hosts}
    next_hops = [replace(host, address=address) for host in hosts for address in by_name[host.name]]
    return RecipientRoute(next_hops, route_log, domain)


def _ascii_or_unchanged(domain: str) -> str:
    """The domain in ASCII and lower case, or unchanged if that is impossible."""
    try:
        return ascii_domain(domain).lower()
    except idna.IDNAError:
        return domain
