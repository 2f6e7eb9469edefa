"""DNS resolvers, and lookups with a given name server."""

import asyncio
from functools import lru_cache
from typing import Any, NoReturn

import dns.exception
import dns.flags
import dns.resolver
from dns.asyncresolver import Resolver

from mail.network.dns_cache import DnsAnswerCache
from models.runtime.options import NO_NAME_SERVER

CACHE_SIZE = 5000  # answers; each is kept for its TTL
UDP_PAYLOAD = 1232  # bytes (DNS flag day 2020)


class OfflineResolver(Resolver):
    """A resolver without name servers: it sends nothing, and every query fails at once."""

    def __init__(self) -> None:
        super().__init__(configure=False)

    async def resolve(self, *_arguments: Any, **_options: Any) -> NoReturn:
        """Raise dns.resolver.NoNameservers."""
        raise dns.resolver.NoNameservers


def create_resolver(name_server: str | None) -> Resolver:
    """A resolver for the name server "127.0.0.1:53" or "[::1]:53", or that of the system.

    For `NO_NAME_SERVER` every query fails. Raises dns.resolver.NoResolverConfiguration if the
    system has no name server.
    """
    if name_server is None:
        return Resolver()
    if name_server == NO_NAME_SERVER:
        return OfflineResolver()
    configured = Resolver(configure=False)
    host, _, port = name_server.rpartition(":")
    configured.nameservers = [host.removeprefix("[").removesuffix("]")]
    configured.port = int(port)
    return configured


async def query_dns_records_or_none(
    name_server: str | None, name: str, record_type: str, timeout_seconds: float
) -> list[Any] | None:
    """Query the records of a name. Empty if there are none, None if DNS does not answer."""
    try:
        answer = await create_resolver(name_server).resolve(
            f"{name}.", record_type, lifetime=timeout_seconds
        )
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError, ValueError):
        return None
    return list(answer)


async def require_host_addresses(
    name_server: str, host_name: str, timeout_seconds: float
) -> list[str]:
    """Query a name server for the IPv4 and IPv6 addresses of a host.

    Raises OSError if it has none or the name server does not answer.
    """
    answers = await asyncio.gather(
        *(
            query_dns_records_or_none(name_server, host_name, kind, timeout_seconds)
            for kind in ("A", "AAAA")
        )
    )
    if answers == [None, None]:
        raise OSError("the name server does not respond")
    addresses = [str(record.address) for answer in answers for record in answer or []]
    if not addresses:
        raise OSError("the host has no address")
    return list(dict.fromkeys(addresses))


def enable_dnssec(configured: Resolver) -> Resolver:
    """Make a resolver request DNSSEC validation, and return it."""
    configured.use_edns(0, dns.flags.DO, UDP_PAYLOAD)
    configured.flags = dns.flags.RD | dns.flags.AD
    return configured


@lru_cache(maxsize=4)
def cached_resolver(name_server: str | None, *, trusts_dnssec: bool) -> Resolver:
    """The shared resolver of this process for a name server, with a cache of answers."""
    configured = create_resolver(name_server)
    configured.cache = DnsAnswerCache(CACHE_SIZE)
    return enable_dnssec(configured) if trusts_dnssec else configured
