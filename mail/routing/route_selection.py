"""Which way a message takes out of here, how much encryption that asks for, and why.

The way is, first found: the transport of the recipient (its address, its domain, a domain above,
a pattern), the relay host of the sender's domain, the next hop of all mail, the servers of the
recipient's domain. What TLS it needs: a policy of ours for that place; else, for servers of the
domain, what DNS says of their certificates (DANE), what the domain has published (MTA-STS), and
whatever can be had. A user may ask that nothing leaves in the clear: then that is the least.
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
    """Mail that wants out."""

    sender: str  # envelope; empty for reports
    recipient: str
    domain: str  # of the recipient
    required: bool = False  # its sender wants TLS, or nothing


@dataclass(frozen=True, slots=True)
class Way:
    """Servers, the best first, with what each has to show, and how they were found."""

    servers: list[Host]
    trail: list[str] = field(default_factory=list)
    place: str = ""  # who is in the way if it is slow: a domain, or [host]:port


@dataclass(frozen=True, slots=True)
class Part:
    """Recipients of a job that take one way, or why there is none."""

    recipients: Sequence[To]
    way: Way | Unroutable


async def ways(world: World, route: Route, asked: Asked, trail: list[str] | None = None) -> Way:
    """The way of a message to one recipient; Unroutable. What is found is told in `trail`."""
    return await by(Chart(world, route), asked, trail)


async def by(
    chart: Chart,
    asked: Asked,
    trail: list[str] | None = None,
    forced: RelayHost | Transport | None = None,
) -> Way:
    """The same by a chart; `forced` is taken instead of what would be found."""
    trail = [] if trail is None else trail
    if isinstance(forced, RelayHost):
        return await _by_relay(chart, asked, forced, trail)
    return await _by(
        chart, asked, forced or await chart.transport(asked.recipient, asked.domain), trail
    )


async def _by(chart: Chart, asked: Asked, transport: Transport | None, trail: list[str]) -> Way:
    """The way where this is the transport of the recipient."""
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
    """The recipients of a job by their ways. Of one domain they differ by transport alone."""
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
    """Host, port, and whether it stands in brackets, of "host:port" or "[host]:port".

    ValueError where it is none of them.
    """
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
    trail.append(f"recipient: transport {transport.destination} to {transport.next_hop}")
    try:
        name, port, bracketed = hop(transport.next_hop)
    except ValueError:
        raise Unroutable(451, "4.3.5 The next hop of its transport cannot be read") from None
    if transport.lookup_mx and not bracketed:
        mx = await _by_mx(chart, asked, (name, port), trail, private=True)
        signed_in = [
            _signed_in(chart, replace(each, relay=True), transport, trail) for each in mx.servers
        ]
        return replace(mx, servers=signed_in)
    host = _signed_in(chart, Host(name, port, name, relay=True), transport, trail)
    return await _by_hops(chart, asked, [_wrapped(host)], trail)


async def _by_relay(chart: Chart, asked: Asked, relay: RelayHost, trail: list[str]) -> Way:
    trail.append(f"relay host {relay.host}:{relay.port}")
    name = relay.host.removeprefix("[").removesuffix("]")
    tls = Tls.REQUIRED if relay.tls else Tls.OPPORTUNISTIC
    host = _signed_in(chart, Host(name, relay.port, name, tls, relay=True), relay, trail)
    return await _by_hops(chart, asked, [_wrapped(host)], trail)


def _wrapped(host: Host) -> Host:
    """At the port for it there is TLS from the first byte on."""
    return replace(host, tls=Tls.WRAPPED) if host.port == SMTPS_PORT else host


def _signed_in(chart: Chart, host: Host, row: RelayHost | Transport, trail: list[str]) -> Host:
    """The host with the name and password we have there, which never goes in the clear."""
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
    """Servers that we name ourselves: the policy is theirs, or at least that of the recipient."""
    first = hosts[0]
    place = f"[{first.name}]:{first.port}"
    own = (place, f"{first.name}:{first.port}", f"[{first.name}]", *above(first.name))
    policy = await chart.policy(own)
    if policy is not None:
        made = [
            await tls_requirements.by_policy(chart.route, each, policy, first.name)
            for each in hosts
        ]
        found = tls_requirements.standing(made, trail)
    else:
        theirs = await chart.policy(above(asked.domain))
        found = [tls_requirements.of_another(each, theirs, trail) for each in hosts]
    return Way(tls_requirements.required(found, trail, wanted=asked.required), trail, place)


async def _by_mx(
    chart: Chart, asked: Asked, what: tuple[str, int], trail: list[str], *, private: bool
) -> Way:
    """The servers of a domain; with `private` also those in our own networks."""
    domain, port = what
    known = await servers(chart.world, chart.route, domain, trail, private=private)
    for each in known:
        rank = "no MX, itself" if each.preference is None else f"MX {each.preference}"
        signed = ", signed" if each.secure else ""
        trail.append(f"{domain}: {rank} {each.name} ({', '.join(each.addresses)}){signed}")
    name = _wire(domain)
    places = [Place(each, Host(each.name, port, each.addresses[0])) for each in known]
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
    by_name = {each.name: each.addresses for each in known}
    spread = [replace(host, address=address) for host in hosts for address in by_name[host.name]]
    return Way(spread, trail, domain)


def _wire(domain: str) -> str:
    try:
        return ascii_domain(domain).lower()
    except idna.IDNAError:
        return domain
