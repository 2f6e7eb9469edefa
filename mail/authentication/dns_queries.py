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
from mail.network.dns_cache import DnsAnswerCache
from mail.network.dns_resolver import create_resolver

MAX_QUERIES = 20  # queries for one message
TOTAL_TIMEOUT = 5.0  # seconds that all queries can wait together
TRY_TIMEOUT = 1.5  # seconds until a query is sent again
CACHE_SIZE = 1000  # responses that a process caches for their TTL
MAX_RECORDS = 100  # of one response that are read


class DnsUnavailable(Exception):
    """DNS does not answer now; a later query can succeed."""


class DnsLimitExceeded(Exception):
    """The message has used up its number of DNS queries."""


class MessageDns:
    """The DNS queries of one message. Each is sent once; responses are shared between messages."""

    def __init__(
        self,
        nameserver: str | None,
        *,
        max_queries: int = MAX_QUERIES,
        timeout: float = TOTAL_TIMEOUT,
    ) -> None:
        self.query_count = 0
        self._nameserver = nameserver
        self._max_queries = max_queries
        self._seconds_left = timeout
        self._results: dict[tuple[dns.name.Name, str], list[Any] | DnsUnavailable] = {}

    async def query(self, name: str, record_type: str) -> list[Any]:
        """The records of a name; empty if it has none.

        Raises DnsUnavailable, or DnsLimitExceeded after too many queries.
        """
        try:
            absolute = _absolute_name(name)
        except ValueError:
            return []
        key = absolute, record_type
        if key not in self._results:
            if self.query_count >= self._max_queries:
                raise DnsLimitExceeded(f"more than {self._max_queries} DNS queries")
            self.query_count += 1
            try:
                self._results[key] = await self._resolve(absolute, record_type)
            except DnsUnavailable as problem:
                self._results[key] = problem
        answer = self._results[key]
        if isinstance(answer, DnsUnavailable):
            raise answer
        return answer

    async def query_txt(self, name: str) -> list[str]:
        """The TXT records of a name, each joined from its strings. Raises as `query`."""
        records = await self.query(name, "TXT")
        return [b"".join(record.strings).decode(errors="surrogateescape") for record in records]

    async def _resolve(self, name: dns.name.Name, record_type: str) -> list[Any]:
        # Only the wait for DNS counts: hashing a large message on a busy machine takes longer.
        if self._seconds_left <= 0:
            raise DnsUnavailable("no time left")
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            answer = await shared_resolver(self._nameserver).resolve(
                name, record_type, raise_on_no_answer=False, lifetime=self._seconds_left
            )
        except dns.resolver.NXDOMAIN:
            return []
        except (dns.exception.DNSException, OSError, ValueError) as problem:
            raise DnsUnavailable(type(problem).__name__) from problem
        finally:
            self._seconds_left -= loop.time() - started_at
        return list(answer.rrset or ())[:MAX_RECORDS]


def _absolute_name(name: str) -> dns.name.Name:
    """The absolute DNS name. Raises ValueError if the text is no DNS name."""
    try:
        labels = ascii_domain(name.removesuffix(".")).encode("ascii").split(b".")
        return dns.name.Name([*labels, b""])
    except (idna.IDNAError, UnicodeError, dns.exception.DNSException) as problem:
        raise ValueError(name) from problem


@lru_cache(maxsize=4)
def shared_resolver(nameserver: str | None) -> Resolver:
    """The caching resolver of this process for a name server."""
    resolver = create_resolver(nameserver)
    resolver.cache = DnsAnswerCache(CACHE_SIZE)
    resolver.timeout = TRY_TIMEOUT
    return resolver
