"""Look-up of the networks that a domain sends mail from, as far as DNS tells.

They are taken from SPF; without SPF from the MX hosts, and without these from the addresses of the
domain. Macros, `exists` and `ptr` name no networks and are skipped.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from mail.authentication.dns_queries import Names, Spent, Unanswered
from mail.authentication.spf_record import Record, Term, Wrong, is_record, parsed
from models.errors import Invalid, Unavailable

QUESTIONS = 60  # DNS queries for one name
SECONDS = 8.0
LOOKUPS = 20  # SPF terms that query DNS: many domains have more than RFC 7208 allows
EACH = 10  # MX hosts and addresses of one term
MOST = 200  # networks of one domain
WIDEST = {4: 8, 6: 16}  # bits, by IP version: a wider network is refused

Network = IPv4Network | IPv6Network


@dataclass
class _Walk:
    """The networks that were found, and the names that were looked up."""

    names: Names
    found: dict[Network, None] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    lookups: int = 0

    def add(self, networks: Iterable[Network]) -> None:
        """Add networks. Raises Invalid if one is too wide or there are too many."""
        for one in networks:
            if one.prefixlen < WIDEST[one.version]:
                text = f"{one} is too wide: name the hosts themselves"
                raise Invalid(text, constraint="range", path=["hostname"])
            self.found[one] = None
        if len(self.found) > MOST:
            text = f"it sends from more than {MOST} networks"
            raise Invalid(text, constraint="max", path=["hostname"])

    def count(self) -> None:
        """Count a term that queries DNS. Raises SpfPermError if there are too many."""
        self.lookups += 1
        if self.lookups > LOOKUPS:
            raise Wrong("too many terms that ask")


async def networks(place: str | None, name: str) -> list[str]:
    """Find the networks of a domain, each in normal form, a single address without a length.

    Raises Invalid if there are none or too many, and Unavailable if DNS does not answer.
    """
    names = Names(place, most=QUESTIONS, seconds=SECONDS)
    walk = _Walk(names)
    try:
        await _record(walk, name)
        if not walk.found:
            await _exchangers(walk, name, 32, 128)
        if not walk.found:
            await _addresses(walk, name, 32, 128)
    except Unanswered as problem:
        text = f"DNS does not answer for {name}: {problem}"
        raise Unavailable(text, component="dns") from None
    except (Wrong, Spent) as problem:
        text = f"its SPF record cannot be followed: {problem}"
        raise Invalid(text, constraint="spf", path=["hostname"]) from None
    if not walk.found:
        text = "DNS knows no address of it"
        raise Invalid(text, constraint="unknown", path=["hostname"])
    return [shown(one) for one in walk.found]


def shown(network: Network) -> str:
    """The stored form of a network: a single address has no length."""
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if single else str(network)


async def _record(walk: _Walk, name: str) -> None:
    """Add the networks that the SPF record of a domain lets pass; none without a record."""
    if name in walk.seen:
        return
    walk.seen.add(name)
    found = [text for text in await walk.names.texts(name) if is_record(text)]
    if not found:
        return
    if len(found) > 1:
        raise Wrong("more than one record")
    record: Record = parsed(found[0])
    for term in record.terms:
        if term.qualifier == "+":
            await _term(walk, term, name)
    ended = any(term.name == "all" for term in record.terms)
    if record.redirect and not ended and "%" not in record.redirect:
        walk.count()
        await _record(walk, record.redirect.lower().rstrip("."))


async def _term(walk: _Walk, term: Term, domain: str) -> None:
    if term.name == "all":
        text = "its SPF record lets everybody send"
        raise Invalid(text, constraint="range", path=["hostname"])
    if term.network is not None:
        walk.add([term.network])
        return
    name = (term.target or domain).lower().rstrip(".")
    if term.name in ("exists", "ptr") or "%" in name:
        return
    walk.count()
    if term.name == "include":
        await _record(walk, name)
    elif term.name == "mx":
        await _exchangers(walk, name, term.v4, term.v6)
    else:
        await _addresses(walk, name, term.v4, term.v6)


async def _exchangers(walk: _Walk, name: str, v4: int, v6: int) -> None:
    for each in (await walk.names.ask(name, "MX"))[:EACH]:
        if exchanger := each.exchange.to_text(omit_final_dot=True).lower().strip("."):
            await _addresses(walk, exchanger, v4, v6)


async def _addresses(walk: _Walk, name: str, v4: int, v6: int) -> None:
    for kind, bits in (("A", v4), ("AAAA", v6)):
        records: list[Any] = (await walk.names.ask(name, kind))[:EACH]
        walk.add(ip_network(f"{each.address}/{bits}", strict=False) for each in records)
