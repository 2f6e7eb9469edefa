"""Which servers take mail for a domain (RFC 5321, section 5; RFC 7505)."""

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
HOSTS = 10  # tried for one domain at most
ADDRESSES = 4  # tried for one host at most


class Tls(StrEnum):
    """How much encryption a connection needs."""

    OPPORTUNISTIC = "OPPORTUNISTIC"  # if it is offered; any certificate is better than none
    ENCRYPTED = "ENCRYPTED"  # never without; any certificate will do
    REQUIRED = "REQUIRED"  # with a certificate that is checked; never without
    WRAPPED = "WRAPPED"  # from the first byte, checked too
    NEVER = "NEVER"


class Unroutable(Exception):
    """No server can be named. `code` is 4xx where that may change, else 5xx."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Host:
    """A server to connect to."""

    name: str  # as its certificate has it
    port: int
    address: str  # to connect to: an IP address, or the name
    tls: Tls = Tls.OPPORTUNISTIC
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    relay: bool = False  # it hands the mail on: its 250 is no delivery yet
    proof: Proof = ANY_NAME  # how its certificate is checked, where it is


@dataclass(frozen=True, slots=True)
class Route:
    """How mail leaves us: by one next hop, or, without one, straight to each domain's servers."""

    next_hop: Host | None = None
    resolver: Callable[[], Resolver] = Resolver  # reads /etc/resolv.conf when first asked
    port: int = SMTP_PORT  # of the servers that MX names
    trust: ssl.SSLContext | None = field(default=None, repr=False)  # instead of the system's
    validates: bool = False  # what the resolver says of signatures (AD) is believed
    policy_port: int = 443  # where domains publish policies (RFC 8461)
    inward: bool = False  # policies are fetched from our own networks, too


@dataclass(frozen=True, slots=True)
class Found:
    """What DNS has of a name."""

    records: list[Any]
    secure: bool  # signed, says a resolver that is believed
    name: str  # behind all aliases
    trouble: Unroutable | None = None  # what keeps us from knowing whether there are more


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a domain, as DNS names it."""

    name: str
    addresses: list[str]
    secure: bool  # signed, from the domain to the addresses
    canonical: str  # behind all aliases
    preference: int | None = None  # None: the domain has no MX


def next_hop(text: str) -> Host:
    """Read "host:port", smtp://user:password@host:port or smtps://…; ?tls=never|required."""
    parts = urlsplit(text if "://" in text else f"smtp://{text}")
    try:
        port, name = parts.port, parts.hostname
    except ValueError:
        port, name = None, None
    asked = {"": None, "tls=never": Tls.NEVER, "tls=required": Tls.REQUIRED}
    if parts.scheme not in ("smtp", "smtps") or not name or parts.query not in asked:
        raise Invalid("not host:port, smtp:// or smtps://", constraint="url", path=["nextHop"])
    wrapped = parts.scheme == "smtps"
    # A password never goes out in the clear unless the operator says so.
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
    """How mail leaves us by the options in force."""
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
    """The servers for a domain, the best first; those of one preference in random order.

    Addresses of our own networks are left out, which is told in `trail`, unless `private`: whoever
    writes a domain into DNS could else have us talk to what nobody outside may reach.

    Unroutable with 5xx: no such domain, or it takes no mail, or none of its servers can be
    reached. With 4xx: DNS does not answer.
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
    """What is answered: what may change goes first, so that no silent server looks broken."""
    return now if before is None or before.code >= 500 else before  # noqa: PLR2004


def _usable(name: str, found: Found, trail: list[str], *, private: bool) -> list[str]:
    """The addresses of a server that may be connected to."""
    left_out = [] if private else [each for each in found.records if inward(each)]
    trail += [
        f"{name} ({each}): left out, it is inside, and MERGANSER_MX_PRIVATE is off"
        for each in left_out
    ]
    return [each for each in found.records if each not in left_out]


async def _exchangers(
    world: World, route: Route, name: str
) -> tuple[list[tuple[int | None, str]], bool]:
    """The servers for a domain by name, the best first, and whether that is signed."""
    answer = await ask(route, name, "MX")
    if not answer.records:
        return [(None, name)], answer.secure  # RFC 5321, section 5.1: it is its own server
    names: list[tuple[int, str]] = []
    for preference, alike in groupby(sorted(answer.records, key=_preference), key=_preference):
        exchangers = {each.exchange.to_text(omit_final_dot=True).lower() for each in alike}
        shuffled = sorted(exchangers, key=lambda _: world.random(4))
        names += [(preference, each) for each in shuffled]
    if {each for _, each in names} <= {"", ".", "@"}:
        raise Unroutable(556, f"5.1.10 {name} takes no mail (null MX)")
    ours = world.options.hostname.lower()
    known = [each for _, each in names]
    if ours in known:
        least = names[known.index(ours)][0]
        names = [each for each in names if each[0] < least]  # the others would hand it to us
        if not names:
            raise Unroutable(550, f"5.4.6 Mail for {name} would come back to us")
    rest = [(preference, each) for preference, each in names if each not in ("", ".", "@")]
    return [*rest], answer.secure


def _preference(record: Any) -> int:
    return int(record.preference)


async def _addresses(route: Route, name: str) -> Found:
    """IPv6 and IPv4 addresses of a host, IPv4 first: more hosts can reach those."""
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
    """The addresses of a host that is not named by MX, and whether they are signed. Unroutable."""
    return await _addresses(route, name)


async def ask(route: Route, name: str, kind: str) -> Found:
    """What DNS has, no records where the name has none of this kind; else Unroutable."""
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
