"""Look-up of the networks that a domain sends mail from, as far as DNS tells.

They are taken from SPF; without SPF from the MX hosts, and without these from the addresses of the
domain. Macros, `exists` and `ptr` name no networks and are skipped.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from mail.authentication.dns_queries import DnsLimitExceeded, DnsUnavailable, MessageDns
from mail.authentication.spf_record import (
    SpfPermError,
    SpfRecord,
    SpfTerm,
    is_spf_record,
    parse_spf_record,
)
from models.errors import InvalidInput, ServiceUnavailable
from models.validation_constraints import ValidationConstraint

MAX_QUERIES = 60  # DNS queries for one name
TOTAL_TIMEOUT = 8.0
MAX_LOOKUP_TERMS = 20  # SPF terms that query DNS: many domains have more than RFC 7208 allows
MAX_RECORDS_PER_TERM = 10  # MX hosts and addresses of one term
MAX_NETWORKS = 200  # networks of one domain
MIN_PREFIX_LENGTH = {4: 8, 6: 16}  # bits, by IP version: a wider network is refused

Network = IPv4Network | IPv6Network


@dataclass
class _NetworkSearch:
    """The networks that were found, and the names that were looked up."""

    dns: MessageDns
    networks: dict[Network, None] = field(default_factory=dict)
    visited_names: set[str] = field(default_factory=set)
    lookup_count: int = 0

    def add_networks(self, networks: Iterable[Network]) -> None:
        """Add networks. Raises InvalidInput if one is too wide or there are too many."""
        for network in networks:
            if network.prefixlen < MIN_PREFIX_LENGTH[network.version]:
                text = f"{network} is too wide: name the hosts themselves."
                raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=["hostname"])
            self.networks[network] = None
        if len(self.networks) > MAX_NETWORKS:
            text = f"The host sends from more than {MAX_NETWORKS} networks."
            raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["hostname"])

    def count_lookup(self) -> None:
        """Count a term that queries DNS. Raises SpfPermError if there are too many."""
        self.lookup_count += 1
        if self.lookup_count > MAX_LOOKUP_TERMS:
            raise SpfPermError("too many DNS lookups")


async def find_sender_networks_or_raise(nameserver: str | None, domain: str) -> list[str]:
    """Find the networks of a domain, each in normal form, a single address without a length.

    Raises InvalidInput if there are none or too many, and ServiceUnavailable if DNS does not
    answer.
    """
    names = MessageDns(nameserver, max_queries=MAX_QUERIES, timeout=TOTAL_TIMEOUT)
    walk = _NetworkSearch(names)
    try:
        await _add_networks_of_spf_record(walk, domain)
        if not walk.networks:
            await _add_networks_of_mx_hosts(walk, domain, 32, 128)
        if not walk.networks:
            await _add_networks_of_addresses(walk, domain, 32, 128)
    except DnsUnavailable as problem:
        text = f"DNS lookup of {domain} failed: {problem}."
        raise ServiceUnavailable(text, component="dns") from None
    except (SpfPermError, DnsLimitExceeded) as problem:
        text = f"The SPF record can't be evaluated: {problem}."
        raise InvalidInput(text, constraint=ValidationConstraint.SPF, path=["hostname"]) from None
    if not walk.networks:
        text = "DNS has no address of the host."
        raise InvalidInput(text, constraint=ValidationConstraint.UNKNOWN, path=["hostname"])
    return [network_text(network) for network in walk.networks]


def network_text(network: Network) -> str:
    """The stored form of a network: a single address has no length."""
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if single else str(network)


async def _add_networks_of_spf_record(search: _NetworkSearch, domain: str) -> None:
    """Add the networks that the SPF record of a domain lets pass; none without a record."""
    if domain in search.visited_names:
        return
    search.visited_names.add(domain)
    spf_records = [text for text in await search.dns.query_txt(domain) if is_spf_record(text)]
    if not spf_records:
        return
    if len(spf_records) > 1:
        raise SpfPermError("multiple SPF records")
    record: SpfRecord = parse_spf_record(spf_records[0])
    for term in record.terms:
        if term.qualifier == "+":
            await _add_networks_of_term(search, term, domain)
    ended = any(term.name == "all" for term in record.terms)
    if record.redirect and not ended and "%" not in record.redirect:
        search.count_lookup()
        await _add_networks_of_spf_record(search, record.redirect.lower().rstrip("."))


async def _add_networks_of_term(search: _NetworkSearch, term: SpfTerm, domain: str) -> None:
    if term.name == "all":
        text = "The SPF record allows every server to send."
        raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=["hostname"])
    if term.network is not None:
        search.add_networks([term.network])
        return
    name = (term.target or domain).lower().rstrip(".")
    if term.name in ("exists", "ptr") or "%" in name:
        return
    search.count_lookup()
    if term.name == "include":
        await _add_networks_of_spf_record(search, name)
    elif term.name == "mx":
        await _add_networks_of_mx_hosts(search, name, term.ipv4_prefix, term.ipv6_prefix)
    else:
        await _add_networks_of_addresses(search, name, term.ipv4_prefix, term.ipv6_prefix)


async def _add_networks_of_mx_hosts(
    search: _NetworkSearch, name: str, ipv4_prefix: int, ipv6_prefix: int
) -> None:
    for mx_record in (await search.dns.query(name, "MX"))[:MAX_RECORDS_PER_TERM]:
        if exchanger := mx_record.exchange.to_text(omit_final_dot=True).lower().strip("."):
            await _add_networks_of_addresses(search, exchanger, ipv4_prefix, ipv6_prefix)


async def _add_networks_of_addresses(
    search: _NetworkSearch, name: str, ipv4_prefix: int, ipv6_prefix: int
) -> None:
    for kind, bits in (("A", ipv4_prefix), ("AAAA", ipv6_prefix)):
        records: list[Any] = (await search.dns.query(name, kind))[:MAX_RECORDS_PER_TERM]
        search.add_networks(
            ip_network(f"{record.address}/{bits}", strict=False) for record in records
        )
