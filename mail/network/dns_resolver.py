"""DNS resolvers, and lookups with a given name server."""

import asyncio
from functools import lru_cache
from typing import Any

import dns.exception
import dns.flags
import dns.resolver
from dns.asyncresolver import Resolver

KEPT = 5000  # answers; each is kept for its TTL
PAYLOAD = 1232  # bytes (DNS flag day 2020)


def resolver(place: str | None) -> Resolver:
    """A resolver for the name server "127.0.0.1:53" or "[::1]:53", or that of the system.

    Raises dns.resolver.NoResolverConfiguration if the system has no name server.
    """
    if place is None:
        return Resolver()
    made = Resolver(configure=False)
    host, _, port = place.rpartition(":")
    made.nameservers = [host.removeprefix("[").removesuffix("]")]
    made.port = int(port)
    return made


async def records(place: str | None, name: str, kind: str, lifetime: float) -> list[Any] | None:
    """Query the records of a name. Empty if there are none, None if DNS does not answer."""
    try:
        answer = await resolver(place).resolve(f"{name}.", kind, lifetime=lifetime)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError, ValueError):
        return None
    return list(answer)


async def host_addresses(place: str, host: str, lifetime: float) -> list[str]:
    """Query a name server for the IPv4 and IPv6 addresses of a host.

    Raises OSError if it has none or the name server does not answer.
    """
    found = await asyncio.gather(*(records(place, host, kind, lifetime) for kind in ("A", "AAAA")))
    if found == [None, None]:
        raise OSError("the name server does not answer")
    addresses = [str(record.address) for answer in found for record in answer or []]
    if not addresses:
        raise OSError("the host has no address")
    return list(dict.fromkeys(addresses))


def validating(made: Resolver) -> Resolver:
    """Make a resolver request DNSSEC validation, and return it."""
    made.use_edns(0, dns.flags.DO, PAYLOAD)
    made.flags = dns.flags.RD | dns.flags.AD
    return made


@lru_cache(maxsize=4)
def kept(place: str | None, *, validates: bool) -> Resolver:
    """The shared resolver of this process for a name server, with a cache of answers."""
    made = resolver(place)
    made.cache = dns.resolver.LRUCache(KEPT)
    return validating(made) if validates else made
