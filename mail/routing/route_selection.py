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

from mail.addresses.address_syntax import ascii_domain, normal_domain
from mail.envelope.delivery_jobs import Job, To
from mail.routing import tls_requirements
from mail.routing.mx_hosts import SMTP_PORT, SMTPS_PORT, Host, Route, Tls, Unroutable, servers
from mail.routing.password_contexts import place_of_relay, place_of_transport
from mail.routing.route_snapshot import Chart, above
from mail.routing.tls_requirements import Place
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import World
from models.runtime.secret_box import Sealed

PORTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Asked:
    """Sender and recipient that a route is selected for."""

    sender: str  # envelope sender; empty for DSNs
    recipient: str
    domain: str  # of the recipient
    required: bool = False  # the sender requires TLS


@dataclass(frozen=True, slots=True)
class Way:
    """The next hops of a recipient, best first, and the log of the selection."""

    servers: list[Host]
    trail: list[str] = field(default_factory=list)
    place: str = ""  # the destination for pacing: a domain, or [host]:port


@dataclass(frozen=True, slots=True)
class Part:
    """Recipients of a job that share a route, or the reason why they have none."""

    recipients: Sequence[To]
    way: Way | Unroutable


async def ways(world: World, route: Route, asked: Asked, trail: list[str] | None = None) -> Way:
    """Select the route of one recipient. Raises Unroutable. Appends its steps to `route_log`."""
    return await by(Chart(world, route), asked, trail)


async def by(
    chart: Chart,
    asked: Asked,
    trail: list[str] | None = None,
    forced: RelayHost | Transport | None = None,
) -> Way:
    """Select a route as `select_route`, with cached tables.

    `forced_route` is used instead of the configured transport or relay host.
    """
    trail = [] if trail is None else trail
    if isinstance(forced, RelayHost):
        return await _by_relay(chart, asked, forced, trail)
    return await _by(
        chart, asked, forced or await chart.transport(asked.recipient, asked.domain), trail
    )


async def _by(chart: Chart, asked: Asked, transport: Transport | None, trail: list[str]) -> Way:
    """Select the route for this transport of the recipient, which can be None."""
    if transport is not None:
        return await _by_transport(chart, asked, transport, trail)
    sender = normal_domain(asked.sender.rpartition("@")[2])
    if sender and (relay := await chart.relay(sender)):
        trail.append(f"sender's domain {sender}: by its relay host")
        return await _by_relay(chart, asked, relay, trail)
    if hop := chart.route.next_hop:
        trail.append(f"all mail: next hop {hop.name}:{hop.port}")
        return await _by_hops(chart, asked, [hop], trail)
    private = chart.world.options.mx_private or await chart.held(asked.domain)
    return await _by_mx(chart, asked, (asked.domain, chart.route.port), trail, private=private)


async def parts(chart: Chart, job: Job) -> list[Part]:
    """Group the recipients of a job by route. In one domain, only transports make a difference."""
    alike: dict[int | None, list[To]] = {}
    named: dict[int | None, Transport | None] = {}
    for to in job.recipients:
        transport = await chart.transport(to.address, job.domain)
        key = transport.id if transport else None
        named[key] = transport
        alike.setdefault(key, []).append(to)
    found = []
    for key, each in alike.items():
        asked = Asked(job.sender, each[0].address, job.domain, job.tls)
        try:
            found.append(Part(each, await _by(chart, asked, named[key], [])))
        except Unroutable as problem:
            found.append(Part(each, problem))
    return found


def hop(text: str) -> tuple[str, int, bool]:
    """Host, port, and True for brackets, of "host:port" or "[host]:port". Raises ValueError."""
    rest = text
    if bracketed := text.startswith("["):
        name, mark, rest = text[1:].partition("]")
        if not mark or rest[:1] not in ("", ":"):
            raise ValueError(text)
        port = rest[1:]
    else:
        name, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < PORTS):
        raise ValueError(text)
    if not name:
        raise ValueError(text)
    return name.lower(), int(port or SMTP_PORT), bracketed


async def _by_transport(chart: Chart, asked: Asked, transport: Transport, trail: list[str]) -> Way:
    """The route over a transport: its host, or the MX hosts of its name. Raises Unroutable."""
    trail.append(f"recipient: transport {transport.destination} to {transport.next_hop}")
    try:
        name, port, bracketed = hop(transport.next_hop)
    except ValueError:
        raise Unroutable(451, "4.3.5 The next hop of its transport cannot be read") from None
    if transport.lookup_mx and not bracketed:
        mx = await _by_mx(chart, asked, (name, port), trail, private=True)
        signed_in = [
            _signed_in(chart, replace(next_hop, relay=True), transport, trail)
            for next_hop in mx.servers
        ]
        return replace(mx, servers=signed_in)
    host = _signed_in(chart, Host(name, port, name, relay=True), transport, trail)
    return await _by_hops(chart, asked, [_wrapped(host)], trail)


async def _by_relay(chart: Chart, asked: Asked, relay: RelayHost, trail: list[str]) -> Way:
    """The route over a relay host. Raises Unroutable."""
    trail.append(f"relay host {relay.host}:{relay.port}")
    name = relay.host.removeprefix("[").removesuffix("]")
    tls = Tls.REQUIRED if relay.tls else Tls.OPPORTUNISTIC
    host = _signed_in(chart, Host(name, relay.port, name, tls, relay=True), relay, trail)
    return await _by_hops(chart, asked, [_wrapped(host)], trail)


def _wrapped(host: Host) -> Host:
    """The host with implicit TLS if its port is 465."""
    return replace(host, tls=Tls.WRAPPED) if host.port == SMTPS_PORT else host


def _signed_in(chart: Chart, host: Host, row: RelayHost | Transport, trail: list[str]) -> Host:
    """The host with username and password, which requires TLS.

    Raises Unroutable if the password can't be decrypted.
    """
    if row.username is None:
        return host
    place = (place_of_relay if isinstance(row, RelayHost) else place_of_transport)(row.id)
    try:
        password = chart.world.vault.open(row.secret, place) if row.secret else ""
    except Sealed:
        raise Unroutable(451, "4.3.5 The password for the next hop cannot be opened") from None
    trail.append(f"signing in as {row.username}")
    weak = host.tls in (Tls.OPPORTUNISTIC, Tls.NEVER)
    tls = Tls.REQUIRED if weak else host.tls
    return replace(host, tls=tls, username=row.username, password=password)


async def _by_hops(chart: Chart, asked: Asked, hosts: list[Host], trail: list[str]) -> Way:
    """The route over configured hosts, by their TLS policy or that of the recipient's domain."""
    first = hosts[0]
    place = f"[{first.name}]:{first.port}"
    own = (place, f"{first.name}:{first.port}", f"[{first.name}]", *above(first.name))
    policy = await chart.policy(own)
    if policy is not None:
        made = [
            await tls_requirements.by_policy(chart.route, next_hop, policy, first.name)
            for next_hop in hosts
        ]
        found = tls_requirements.standing(made, trail)
    else:
        theirs = await chart.policy(above(asked.domain))
        found = [tls_requirements.of_another(next_hop, theirs, trail) for next_hop in hosts]
    return Way(tls_requirements.required(found, trail, wanted=asked.required), trail, place)


async def _by_mx(
    chart: Chart, asked: Asked, what: tuple[str, int], trail: list[str], *, private: bool
) -> Way:
    """The route over the MX hosts of a domain. Raises Unroutable."""
    domain, port = what
    known = await servers(chart.world, chart.route, domain, trail, private=private)
    for each in known:
        rank = "no MX, itself" if each.preference is None else f"MX {each.preference}"
        signed = ", signed" if each.secure else ""
        trail.append(f"{domain}: {rank} {each.name} ({', '.join(each.addresses)}){signed}")
    name = _wire(domain)
    places = [Place(mx_host, Host(mx_host.name, port, mx_host.addresses[0])) for mx_host in known]
    policy = await chart.policy((f"[{domain}]:{port}", *above(domain)))
    if policy is not None:
        made = [
            await tls_requirements.by_policy(chart.route, place.host, policy, name, place.server)
            for place in places
        ]
    else:
        made = await tls_requirements.by_domain(chart, name, places, trail)
    hosts = tls_requirements.required(
        tls_requirements.standing(made, trail), trail, wanted=asked.required
    )
    by_name = {mx_host.name: mx_host.addresses for mx_host in known}
    spread = [replace(host, address=address) for host in hosts for address in by_name[host.name]]
    return Way(spread, trail, domain)


def _wire(domain: str) -> str:
    """The domain in ASCII and lower case, or unchanged if that is impossible."""
    try:
        return ascii_domain(domain).lower()
    except idna.IDNAError:
        return domain
