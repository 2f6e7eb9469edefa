"""The MX hosts of a domain (RFC 5321, section 5; RFC 7505), and the next hops of mail."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import groupby
from typing import Any
from urllib.parse import unquote, urlsplit

import dns.exception
import dns.flags
import dns.resolver
import idna
from dns.asyncresolver import Resolver

from mail.addresses.address_syntax import ascii_domain
from mail.network.dns_resolver import kept
from mail.network.outbound_http import inward
from mail.routing.certificate_checks import ANY_NAME, Proof
from models.errors import Invalid
from models.runtime.environment import World

SMTP_PORT = 25
SMTPS_PORT = 465
HOSTS = 10  # attempted for one domain
ADDRESSES = 4  # attempted for one host


class Tls(StrEnum):
    """The TLS level of a connection."""

    OPPORTUNISTIC = "OPPORTUNISTIC"  # if the server offers it, with any certificate
    ENCRYPTED = "ENCRYPTED"  # always, with any certificate
    REQUIRED = "REQUIRED"  # always, with a checked certificate
    WRAPPED = "WRAPPED"  # implicit TLS, with a checked certificate
    NEVER = "NEVER"


class Unroutable(Exception):
    """There is no host for a recipient. The code is 4xx if a retry can succeed, else 5xx."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Host:
    """A host to connect to, with its TLS requirement and login."""

    name: str  # the name in its certificate
    port: int
    address: str  # IP address, or the name
    tls: Tls = Tls.OPPORTUNISTIC
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    relay: bool = False  # it forwards the mail, so its 250 means RELAYED, not DELIVERED
    proof: Proof = ANY_NAME  # used if the TLS level checks certificates


@dataclass(frozen=True, slots=True)
class Route:
    """The settings of outgoing mail: a common next hop or none, DNS, ports and trust."""

    next_hop: Host | None = None
    resolver: Callable[[], Resolver] = Resolver  # the default reads /etc/resolv.conf
    port: int = SMTP_PORT  # of MX hosts
    trust: ssl.SSLContext | None = field(
        default=None, repr=False
    )  # instead of the system's authorities
    validates: bool = False  # believe the AD flag of the resolver
    policy_port: int = 443  # of the HTTPS servers with MTA-STS policies
    inward: bool = False  # fetch MTA-STS policies from private networks too


@dataclass(frozen=True, slots=True)
class Found:
    """The DNS records of a name."""

    records: list[Any]
    secure: bool  # a trusted resolver set the AD flag
    name: str  # after all CNAMEs
    trouble: Unroutable | None = None  # the lookup of more records failed


@dataclass(frozen=True, slots=True)
class Server:
    """An MX host of a domain with its addresses."""

    name: str
    addresses: list[str]
    secure: bool  # by DNSSEC, from the domain to the addresses
    canonical: str  # after all CNAMEs
    preference: int | None = None  # None: the domain has no MX record


def next_hop(text: str) -> Host:
    """Parse "host:port", smtp://user:password@host:port or smtps://…; ?tls=never|required.

    Raises Invalid.
    """
    parts = urlsplit(text if "://" in text else f"smtp://{text}")
    try:
        port, name = parts.port, parts.hostname
    except ValueError:
        port, name = None, None
    asked = {"": None, "tls=never": Tls.NEVER, "tls=required": Tls.REQUIRED}
    if parts.scheme not in ("smtp", "smtps") or not name or parts.query not in asked:
        raise Invalid("not host:port, smtp:// or smtps://", constraint="url", path=["nextHop"])
    wrapped = parts.scheme == "smtps"
    # A password is sent only over TLS, unless the operator allows plain text.
    usual = Tls.REQUIRED if parts.username else Tls.OPPORTUNISTIC
    return Host(
        name,
        port or (SMTPS_PORT if wrapped else SMTP_PORT),
        name,
        Tls.WRAPPED if wrapped else asked[parts.query] or usual,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password or "") if parts.username else None,
        relay=True,
    )


def route_of(world: World) -> Route:
    """The settings of outgoing mail from the current options."""
    options = world.options
    hop = options.next_hop
    return Route(
        next_hop(hop.get_secret_value()) if hop else None,
        partial(kept, options.dns_resolver, validates=options.dns_validates),
        validates=options.dns_validates,
    )


async def servers(
    world: World, route: Route, domain: str, trail: list[str], *, private: bool
) -> list[Server]:
    """The MX hosts of a domain, best first; hosts of one preference in random order.

    Private addresses are left out and logged unless `allow_private`: a domain owner could otherwise
    direct connections into the internal network.

    Raises Unroutable with 5xx if the domain does not exist, accepts no mail or has no reachable
    host, and with 4xx if DNS does not answer.
    """
    if domain.startswith("["):
        raise Unroutable(550, "5.1.2 Address literals are not delivered to")
    try:
        name = ascii_domain(domain)
    except idna.IDNAError:
        raise Unroutable(550, "5.1.2 Not a domain name") from None
    exchangers, secure = await _exchangers(world, route, name)
    answers = await asyncio.gather(
        *(_addresses(route, exchanger) for _, exchanger in exchangers[:HOSTS]),
        return_exceptions=True,
    )
    found: list[Server] = []
    trouble: Unroutable | None = None
    for (preference, exchanger), answer in zip(exchangers, answers, strict=False):
        if isinstance(answer, Unroutable):
            trouble = _worse(trouble, answer)
        elif isinstance(answer, BaseException):
            raise answer
        elif usable := _usable(exchanger, answer, trail, private=private):
            signed = secure and answer.secure
            found.append(Server(exchanger, usable[:ADDRESSES], signed, answer.name, preference))
        else:
            inside = Unroutable(550, f"5.4.4 {exchanger} has private addresses only")
            trouble = _worse(trouble, answer.trouble or inside)
    if not found:
        raise trouble or Unroutable(550, f"5.4.4 No server of {name} has an address")
    return found


def _worse(before: Unroutable | None, now: Unroutable) -> Unroutable:
    """The temporary problem of the two, so that an unanswered query does not cause a bounce."""
    return now if before is None or before.code >= 500 else before  # noqa: PLR2004


def _usable(name: str, found: Found, trail: list[str], *, private: bool) -> list[str]:
    """The addresses of a host that connections are allowed to."""
    left_out = [] if private else [address for address in found.records if inward(address)]
    trail += [
        f"{name} ({address}): left out, it is inside, and MERGANSER_MX_PRIVATE is off"
        for address in left_out
    ]
    return [address for address in found.records if address not in left_out]


async def _exchangers(
    world: World, route: Route, name: str
) -> tuple[list[tuple[int | None, str]], bool]:
    """(preference, name) of the MX hosts, best first, and True if that is signed by DNSSEC."""
    answer = await ask(route, name, "MX")
    if not answer.records:
        return [
            (None, name)
        ], answer.secure  # RFC 5321, section 5.1: the domain itself is the MX host
    names: list[tuple[int, str]] = []
    for preference, alike in groupby(sorted(answer.records, key=_preference), key=_preference):
        exchangers = {mx_name.exchange.to_text(omit_final_dot=True).lower() for mx_name in alike}
        shuffled = sorted(exchangers, key=lambda _: world.random(4))
        names += [(preference, mx_name) for mx_name in shuffled]
    if {mx_name for _, mx_name in names} <= {"", ".", "@"}:
        raise Unroutable(556, f"5.1.10 {name} takes no mail (null MX)")
    ours = world.options.hostname.lower()
    known = [mx_name for _, mx_name in names]
    if ours in known:
        least = names[known.index(ours)][0]
        names = [
            mx_name for mx_name in names if mx_name[0] < least
        ]  # hosts of lower priority would send it back to this server
        if not names:
            raise Unroutable(550, f"5.4.6 Mail for {name} would come back to us")
    rest = [(preference, mx_name) for preference, mx_name in names if mx_name not in ("", ".", "@")]
    return [*rest], answer.secure


def _preference(record: Any) -> int:
    return int(record.preference)


async def _addresses(route: Route, name: str) -> Found:
    """IPv4 and IPv6 addresses of a host, IPv4 first since more hosts can reach it.

    Raises Unroutable.
    """
    found: list[str] = []
    secure, canonical = True, name
    trouble: Unroutable | None = None
    for kind in ("A", "AAAA"):
        try:
            answer = await ask(route, name, kind)
        except Unroutable as problem:
            trouble = problem
            continue
        found += [str(record.address) for record in answer.records]
        secure = secure and answer.secure
        canonical = answer.name if answer.records else canonical
    if not found:
        raise trouble or Unroutable(550, f"5.4.4 {name} has no address")
    return Found(found, secure, canonical, trouble)


async def signed_addresses(route: Route, name: str) -> Found:
    """The addresses of a host that is no MX host, with its DNSSEC status. Raises Unroutable."""
    return await _addresses(route, name)


async def ask(route: Route, name: str, kind: str) -> Found:
    """Query DNS. The answer is empty if the name has no records of this type.

    Raises Unroutable with 550 if the name does not exist, and with 451 if DNS does not answer.
    """
    try:
        answer = await route.resolver().resolve(f"{name}.", kind, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        raise Unroutable(550, f"5.1.2 There is no domain {name}") from None
    except dns.exception.SyntaxError:
        raise Unroutable(550, "5.1.2 Not a domain name") from None
    except (dns.exception.DNSException, OSError) as problem:
        what = type(problem).__name__
        raise Unroutable(451, f"4.4.3 DNS does not answer for {name}: {what}") from problem
    secure = route.validates and bool(answer.response.flags & dns.flags.AD)
    canonical = answer.canonical_name.to_text(omit_final_dot=True).lower()
    return Found(list(answer.rrset or ()), secure, canonical)
