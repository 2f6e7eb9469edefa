"""Which servers take mail for a domain (RFC 5321, section 5; RFC 7505)."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Any
from urllib.parse import unquote, urlsplit

import dns.exception
import dns.resolver
import idna
from dns.asyncresolver import Resolver

from mail.addresses import ascii_domain
from models.errors import Invalid
from models.world import World

SMTP_PORT = 25
SMTPS_PORT = 465
HOSTS = 10  # tried for one domain at most
ADDRESSES = 4  # tried for one host at most


class Tls(StrEnum):
    """How much encryption a connection needs."""

    OPPORTUNISTIC = "OPPORTUNISTIC"  # if it is offered; any certificate is better than none
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


@dataclass(frozen=True, slots=True)
class Route:
    """How mail leaves us: by one next hop, or, without one, straight to each domain's servers."""

    next_hop: Host | None = None
    resolver: Callable[[], Resolver] = Resolver  # reads /etc/resolv.conf when first asked
    port: int = SMTP_PORT  # of the servers that MX names
    trust: ssl.SSLContext | None = field(default=None, repr=False)  # instead of the system's


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


async def hosts(world: World, route: Route, domain: str) -> list[Host]:
    """The servers for a domain, the best first; those of one preference in random order.

    Unroutable with 5xx: no such domain, or it takes no mail. With 4xx: DNS does not answer.
    """
    if route.next_hop:
        return [route.next_hop]
    if domain.startswith("["):
        raise Unroutable(550, "5.1.2 Address literals are not delivered to")
    try:
        name = ascii_domain(domain)
    except idna.IDNAError:
        raise Unroutable(550, "5.1.2 Not a domain name") from None
    resolver = route.resolver()
    names = await _exchangers(world, resolver, name)
    found: list[Host] = []
    trouble: Unroutable | None = None
    for exchanger in names[:HOSTS]:
        try:
            addresses = await _addresses(resolver, exchanger)
        except Unroutable as problem:
            # A broken name must not hide a working one, nor must a silent one look broken.
            trouble = problem if trouble is None or trouble.code >= 500 else trouble  # noqa: PLR2004
            continue
        found += [Host(exchanger, route.port, address) for address in addresses[:ADDRESSES]]
    if not found:
        raise trouble or Unroutable(550, f"5.4.4 No server of {name} has an address")
    return found


async def _exchangers(world: World, resolver: Resolver, name: str) -> list[str]:
    """The names of the servers for a domain, the best first."""
    answer = await _ask(resolver, name, "MX")
    if not answer:
        return [name]  # RFC 5321, section 5.1: then the domain itself is its server
    names: list[str] = []
    for _, alike in groupby(sorted(answer, key=_preference), key=_preference):
        exchangers = {each.exchange.to_text(omit_final_dot=True).lower() for each in alike}
        names += sorted(exchangers, key=lambda _: world.random(4))
    if set(names) <= {"", ".", "@"}:
        raise Unroutable(556, f"5.1.10 {name} takes no mail (null MX)")
    ours = world.options.hostname.lower()
    if ours in names:
        names = names[: names.index(ours)]  # the others would hand it to us
        if not names:
            raise Unroutable(550, f"5.4.6 Mail for {name} would come back to us")
    return [each for each in names if each not in ("", ".", "@")]


def _preference(record: Any) -> int:
    return int(record.preference)


async def _addresses(resolver: Resolver, name: str) -> list[str]:
    """IPv6 and IPv4 addresses of a host, IPv4 first: more hosts can reach those."""
    found: list[str] = []
    trouble: Unroutable | None = None
    for kind in ("A", "AAAA"):
        try:
            found += [str(record.address) for record in await _ask(resolver, name, kind)]
        except Unroutable as problem:
            trouble = problem
    if not found:
        raise trouble or Unroutable(550, f"5.4.4 {name} has no address")
    return found


async def _ask(resolver: Resolver, name: str, kind: str) -> list[Any]:
    """The records, none where the name has none of this kind; else Unroutable."""
    try:
        answer = await resolver.resolve(f"{name}.", kind, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        raise Unroutable(550, f"5.1.2 There is no domain {name}") from None
    except dns.exception.SyntaxError:
        raise Unroutable(550, "5.1.2 Not a domain name") from None
    except (dns.exception.DNSException, OSError) as problem:
        what = type(problem).__name__
        raise Unroutable(451, f"4.4.3 DNS does not answer for {name}: {what}") from problem
    return list(answer.rrset or ())
