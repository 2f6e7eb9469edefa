"""DNS queries for the authentication of one message, limited in number and time."""

import asyncio
from functools import lru_cache
from typing import Any

import dns.exception
import dns.name
import dns.resolver
import idna
from dns.asyncresolver import Resolver

from mail.addresses.address_syntax import ascii_domain
from mail.network.dns_resolver import resolver

MOST = 20  # queries for one message
SECONDS = 5.0  # for all queries
TRY = 1.5  # seconds until a query is sent again
KEPT = 1000  # responses that a process caches for their TTL
RECORDS = 100  # of one response that are read


class Unanswered(Exception):
    """DNS does not answer now; a later query can succeed."""


class Spent(Exception):
    """The message has used up its number of DNS queries."""


class Names:
    """The DNS queries of one message. Each is sent once; responses are shared between messages."""

    def __init__(self, place: str | None, *, most: int = MOST, seconds: float = SECONDS) -> None:
        self.asked = 0
        self._place = place
        self._most = most
        self._until = asyncio.get_running_loop().time() + seconds
        self._known: dict[tuple[dns.name.Name, str], list[Any] | Unanswered] = {}

    async def ask(self, name: str, kind: str) -> list[Any]:
        """The records of a name; empty if it has none.

        Raises DnsUnavailable, or DnsLimitExceeded after too many queries.
        """
        try:
            absolute = _absolute(name)
        except ValueError:
            return []
        key = absolute, kind
        if key not in self._known:
            if self.asked >= self._most:
                raise Spent(f"more than {self._most} questions")
            self.asked += 1
            try:
                self._known[key] = await self._resolved(absolute, kind)
            except Unanswered as problem:
                self._known[key] = problem
        found = self._known[key]
        if isinstance(found, Unanswered):
            raise found
        return found

    async def texts(self, name: str) -> list[str]:
        """The TXT records of a name, each joined from its strings. Raises as `query`."""
        records = await self.ask(name, "TXT")
        return [b"".join(each.strings).decode(errors="surrogateescape") for each in records]

    async def _resolved(self, name: dns.name.Name, kind: str) -> list[Any]:
        left = self._until - asyncio.get_running_loop().time()
        if left <= 0:
            raise Unanswered("no time left")
        try:
            asking = shared(self._place)
            answer = await asking.resolve(name, kind, raise_on_no_answer=False, lifetime=left)
        except dns.resolver.NXDOMAIN:
            return []
        except (dns.exception.DNSException, OSError, ValueError) as problem:
            raise Unanswered(type(problem).__name__) from problem
        return list(answer.rrset or ())[:RECORDS]


def _absolute(name: str) -> dns.name.Name:
    """The absolute DNS name. Raises ValueError if the text is no DNS name."""
    try:
        labels = ascii_domain(name.removesuffix(".")).encode("ascii").split(b".")
        return dns.name.Name([*labels, b""])
    except (idna.IDNAError, UnicodeError, dns.exception.DNSException) as problem:
        raise ValueError(name) from problem


@lru_cache(maxsize=4)
def shared(place: str | None) -> Resolver:
    """The caching resolver of this process for a name server."""
    made = resolver(place)
    made.cache = dns.resolver.LRUCache(KEPT)
    made.timeout = TRY
    return made
