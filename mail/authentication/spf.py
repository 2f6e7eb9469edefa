"""SPF (RFC 7208): the check whether a domain allows a client to send for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from mail.authentication.dkim import Result
from mail.authentication.dns_queries import Names, Spent, Unanswered
from mail.authentication.spf_record import (
    Ip,
    Record,
    Term,
    Wrong,
    dotted,
    expanded,
    is_record,
    needs_name,
    parsed,
)

LOOKUPS = 10  # terms that query DNS
VOIDS = 2  # queries without a record
EACH = 10  # MX hosts and PTR names of one term

QUALIFIERS = {
    "+": Result.PASS,
    "-": Result.FAIL,
    "~": Result.SOFTFAIL,
    "?": Result.NEUTRAL,
}


@dataclass(frozen=True, slots=True)
class Spf:
    """The SPF result for the domain of MAIL FROM, or of HELO if MAIL FROM is empty."""

    result: Result
    domain: str = ""
    helo: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Sender:
    ip: Ip
    address: str  # always with a local part
    helo: str


async def checked(names: Names, ip: str, helo: str, sender: str) -> Spf:
    """Check the envelope sender, or the HELO name if it is empty. It never raises."""
    local, _, domain = sender.rpartition("@")
    domain = (domain if sender else helo).lower().rstrip(".")
    try:
        address = ip_address(ip)
    except ValueError:
        return Spf(Result.NONE, domain, not sender, "no address of the client")
    mapped = address.ipv4_mapped if address.version == 6 else None  # noqa: PLR2004 - of IP
    whole = f"{local or 'postmaster'}@{domain}"
    check = _Check(names, _Sender(mapped or address, whole, helo))
    try:
        result = await check.host(domain) if _is_name(domain) else Result.NONE
    except Unanswered as problem:
        return Spf(Result.TEMPERROR, domain, not sender, f"no answer of DNS: {problem}")
    except (Wrong, Spent) as problem:
        return Spf(Result.PERMERROR, domain, not sender, str(problem))
    return Spf(result, domain, not sender)


def _is_name(domain: str) -> bool:
    labels = domain.split(".")
    return len(labels) > 1 and all(0 < len(each) <= 63 for each in labels)  # noqa: PLR2004


class _Check:
    """One SPF check with its counters of DNS queries."""

    def __init__(self, names: Names, sender: _Sender) -> None:
        self.names = names
        self.sender = sender
        self.kind = "A" if sender.ip.version == 4 else "AAAA"  # noqa: PLR2004 - of IP
        self._lookups = self._voids = 0

    async def host(self, domain: str) -> Result:
        """The result of the SPF record of a domain.

        Raises SpfPermError, DnsLimitExceeded or DnsUnavailable.
        """
        found = [text for text in await self.names.texts(domain) if is_record(text)]
        if not found:
            return Result.NONE
        if len(found) > 1:
            raise Wrong("more than one record")
        record = parsed(found[0])
        for term in record.terms:
            if await self._matches(term, domain):
                return QUALIFIERS[term.qualifier]
        return await self._beyond(record, domain)

    async def _beyond(self, record: Record, domain: str) -> Result:
        if record.redirect is None or any(term.name == "all" for term in record.terms):
            return Result.NEUTRAL
        self._count()
        result = await self.host(await self._name(record.redirect, domain))
        if result is Result.NONE:
            raise Wrong("redirected to no record")
        return result

    async def _matches(self, term: Term, domain: str) -> bool:
        if term.name == "all":
            return True
        if term.network is not None:
            return self.sender.ip in term.network
        self._count()
        name = domain if term.target is None else await self._name(term.target, domain)
        if term.name == "include":
            result = await self.host(name)
            if result is Result.NONE:
                raise Wrong("includes no record")
            return result is Result.PASS
        return await self._asked(term, name)

    async def _asked(self, term: Term, name: str) -> bool:
        """True if a term other than include matches the DNS records of the name."""
        if term.name == "exists":
            return bool(await self._ask(name, "A"))
        if term.name == "ptr":
            return any(_under(each, name) for each in await self._own_names())
        if term.name == "mx":
            return await self._exchanges(term, name)
        return self._among(await self._ask(name, self.kind), term)

    async def _exchanges(self, term: Term, name: str) -> bool:
        servers = await self._ask(name, "MX")
        if len(servers) > EACH:
            raise Wrong("too many servers")
        for each in servers:
            if self._among(await self._ask(_text(each.exchange), self.kind), term):
                return True
        return False

    def _among(self, records: Iterable[Any], term: Term) -> bool:
        bits = term.v4 if self.kind == "A" else term.v6
        there = (ip_network(f"{each.address}/{bits}", strict=False) for each in records)
        return any(self.sender.ip in network for network in there)

    def _count(self) -> None:
        self._lookups += 1
        if self._lookups > LOOKUPS:
            raise Wrong(f"more than {LOOKUPS} terms that ask")

    async def _ask(self, name: str, kind: str) -> list[Any]:
        found = await self.names.ask(name, kind)
        self._voids += not found
        if self._voids > VOIDS:
            raise Wrong(f"more than {VOIDS} questions without an answer")
        return found

    async def _own_names(self) -> list[str]:
        """The PTR names of the client that resolve to its address; none if DNS does not answer."""
        found = []
        try:
            records = await self.names.ask(self.sender.ip.reverse_pointer, "PTR")
        except Unanswered:
            return []
        for name in [_text(each.target) for each in records[:EACH]]:
            try:
                addresses = await self.names.ask(name, self.kind)
            except Unanswered:
                continue
            if any(ip_address(each.address) == self.sender.ip for each in addresses):
                found.append(name)
        return found

    async def _name(self, text: str, domain: str) -> str:
        """The domain name that a text with macros expands to."""
        ip, address = self.sender.ip, self.sender.address
        local, _, home = address.rpartition("@")
        known = {
            "s": address,
            "l": local,
            "o": home,
            "d": domain,
            "i": dotted(ip),
            "v": "in-addr" if self.kind == "A" else "ip6",
            "h": self.sender.helo,
        }
        if needs_name(text):
            there = await self._own_names()
            best = [name for name in there if name == domain]
            best += [name for name in there if _under(name, domain)]
            known["p"] = next(iter([*best, *there]), "unknown")
        return expanded(text, known)


def _text(name: Any) -> str:
    return str(name.to_text(omit_final_dot=True)).lower()


def _under(name: str, domain: str) -> bool:
    return f".{name}".endswith(f".{domain.lower().rstrip('.')}")
