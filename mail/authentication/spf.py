"""SPF (RFC 7208): the check whether a domain allows a client to send for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from mail.authentication.dkim import AuthResult
from mail.authentication.dns_queries import DnsLimitExceeded, DnsUnavailable, MessageDns
from mail.authentication.spf_record import (
    IpAddress,
    SpfPermError,
    SpfRecord,
    SpfTerm,
    dotted_address,
    expand_macros,
    is_spf_record,
    needs_client_name,
    parse_spf_record,
)

MAX_LOOKUP_TERMS = 10  # terms that query DNS
MAX_VOID_LOOKUPS = 2  # queries without a record
MAX_NAMES_PER_TERM = 10  # MX hosts and PTR names of one term

RESULT_BY_QUALIFIER = {
    "+": AuthResult.PASS,
    "-": AuthResult.FAIL,
    "~": AuthResult.SOFTFAIL,
    "?": AuthResult.NEUTRAL,
}


@dataclass(frozen=True, slots=True)
class SpfResult:
    """The SPF result for the domain of MAIL FROM, or of HELO if MAIL FROM is empty."""

    result: AuthResult
    domain: str = ""
    is_helo: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _ClientAndSender:
    ip: IpAddress
    address: str  # always with a local part
    helo: str


async def check_sender(
    dns: MessageDns, client_ip: str, helo: str, envelope_sender: str
) -> SpfResult:
    """Check the envelope sender, or the HELO name if it is empty. It never raises."""
    local, _, domain = envelope_sender.rpartition("@")
    domain = (domain if envelope_sender else helo).lower().rstrip(".")
    try:
        address = ip_address(client_ip)
    except ValueError:
        return SpfResult(AuthResult.NONE, domain, not envelope_sender, "unknown client IP address")
    mapped = address.ipv4_mapped if address.version == 6 else None  # noqa: PLR2004 - of IP
    sender_address = f"{local or 'postmaster'}@{domain}"
    check = _SpfCheck(dns, _ClientAndSender(mapped or address, sender_address, helo))
    try:
        result = await check.check_domain(domain) if _is_domain_name(domain) else AuthResult.NONE
    except DnsUnavailable as problem:
        return SpfResult(
            AuthResult.TEMPERROR, domain, not envelope_sender, f"DNS lookup failed: {problem}"
        )
    except (SpfPermError, DnsLimitExceeded) as problem:
        return SpfResult(AuthResult.PERMERROR, domain, not envelope_sender, str(problem))
    return SpfResult(result, domain, not envelope_sender)


def _is_domain_name(domain: str) -> bool:
    labels = domain.split(".")
    return len(labels) > 1 and all(0 < len(label) <= 63 for label in labels)  # noqa: PLR2004


class _SpfCheck:
    """One SPF check with its counters of DNS queries."""

    def __init__(self, dns: MessageDns, sender: _ClientAndSender) -> None:
        self.dns = dns
        self.sender = sender
        self.address_type = "A" if sender.ip.version == 4 else "AAAA"  # noqa: PLR2004 - of IP
        self._lookup_count = self._void_count = 0

    async def check_domain(self, domain: str) -> AuthResult:
        """The result of the SPF record of a domain.

        Raises SpfPermError, DnsLimitExceeded or DnsUnavailable.
        """
        spf_records = [text for text in await self.dns.query_txt(domain) if is_spf_record(text)]
        if not spf_records:
            return AuthResult.NONE
        if len(spf_records) > 1:
            raise SpfPermError("multiple SPF records")
        record = parse_spf_record(spf_records[0])
        for term in record.terms:
            if await self._matches_term(term, domain):
                return RESULT_BY_QUALIFIER[term.qualifier]
        return await self._result_of_redirect_or_neutral(record, domain)

    async def _result_of_redirect_or_neutral(self, record: SpfRecord, domain: str) -> AuthResult:
        if record.redirect is None or any(term.name == "all" for term in record.terms):
            return AuthResult.NEUTRAL
        self._count_lookup()
        result = await self.check_domain(await self._expand_macros(record.redirect, domain))
        if result is AuthResult.NONE:
            raise SpfPermError("redirect domain has no SPF record")
        return result

    async def _matches_term(self, term: SpfTerm, domain: str) -> bool:
        if term.name == "all":
            return True
        if term.network is not None:
            return self.sender.ip in term.network
        self._count_lookup()
        name = domain if term.target is None else await self._expand_macros(term.target, domain)
        if term.name == "include":
            result = await self.check_domain(name)
            if result is AuthResult.NONE:
                raise SpfPermError("included domain has no SPF record")
            return result is AuthResult.PASS
        return await self._matches_dns(term, name)

    async def _matches_dns(self, term: SpfTerm, name: str) -> bool:
        """True if a term other than include matches the DNS records of the name."""
        if term.name == "exists":
            return bool(await self._query_counting_void(name, "A"))
        if term.name == "ptr":
            return any(
                _is_same_or_subdomain(client_name, name)
                for client_name in await self._validated_client_names()
            )
        if term.name == "mx":
            return await self._matches_mx(term, name)
        return self._contains_client(await self._query_counting_void(name, self.address_type), term)

    async def _matches_mx(self, term: SpfTerm, name: str) -> bool:
        servers = await self._query_counting_void(name, "MX")
        if len(servers) > MAX_NAMES_PER_TERM:
            raise SpfPermError("too many MX records")
        for server in servers:
            if self._contains_client(
                await self._query_counting_void(_name_text(server.exchange), self.address_type),
                term,
            ):
                return True
        return False

    def _contains_client(self, records: Iterable[Any], term: SpfTerm) -> bool:
        bits = term.ipv4_prefix if self.address_type == "A" else term.ipv6_prefix
        record_networks = (
            ip_network(f"{record.address}/{bits}", strict=False) for record in records
        )
        return any(self.sender.ip in network for network in record_networks)

    def _count_lookup(self) -> None:
        self._lookup_count += 1
        if self._lookup_count > MAX_LOOKUP_TERMS:
            raise SpfPermError(f"more than {MAX_LOOKUP_TERMS} DNS lookups")

    async def _query_counting_void(self, name: str, record_type: str) -> list[Any]:
        records = await self.dns.query(name, record_type)
        self._void_count += not records
        if self._void_count > MAX_VOID_LOOKUPS:
            raise SpfPermError(f"more than {MAX_VOID_LOOKUPS} void DNS lookups")
        return records

    async def _validated_client_names(self) -> list[str]:
        """The PTR names of the client that resolve to its address; none if DNS does not answer."""
        names = []
        try:
            records = await self.dns.query(self.sender.ip.reverse_pointer, "PTR")
        except DnsUnavailable:
            return []
        for name in [_name_text(record.target) for record in records[:MAX_NAMES_PER_TERM]]:
            try:
                addresses = await self.dns.query(name, self.address_type)
            except DnsUnavailable:
                continue
            if any(ip_address(address.address) == self.sender.ip for address in addresses):
                names.append(name)
        return names

    async def _expand_macros(self, text: str, domain: str) -> str:
        """The domain name that a text with macros expands to."""
        ip, address = self.sender.ip, self.sender.address
        local, _, sender_domain = address.rpartition("@")
        macro_values = {
            "s": address,
            "l": local,
            "o": sender_domain,
            "d": domain,
            "i": dotted_address(ip),
            "v": "in-addr" if self.address_type == "A" else "ip6",
            "h": self.sender.helo,
        }
        if needs_client_name(text):
            client_names = await self._validated_client_names()
            matching_names = [name for name in client_names if name == domain]
            matching_names += [name for name in client_names if _is_same_or_subdomain(name, domain)]
            macro_values["p"] = next(iter([*matching_names, *client_names]), "unknown")
        return expand_macros(text, macro_values)


def _name_text(name: Any) -> str:
    return str(name.to_text(omit_final_dot=True)).lower()


def _is_same_or_subdomain(name: str, domain: str) -> bool:
    return f".{name}".endswith(f".{domain.lower().rstrip('.')}")
