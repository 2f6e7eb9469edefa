"""Which name server is asked."""

import asyncio
from functools import lru_cache
from typing import Any

import dns.exception
import dns.flags
import dns.resolver
from dns.asyncresolver import Resolver

KEPT = 5000  # answers that a process keeps, as long as they hold
PAYLOAD = 1232  # bytes of an answer by UDP: what passes everywhere (DNS flag day 2020)


def resolver(place: str | None) -> Resolver:
    """One that asks at "127.0.0.1:53" or "[::1]:53"; without a place, those of the system.

    Raises dns.resolver.NoResolverConfiguration where the system names none.
    """
    if place is None:
        return Resolver()
    made = Resolver(configure=False)
    host, _, port = place.rpartition(":")
    made.nameservers = [host.removeprefix("[").removesuffix("]")]
    made.port = int(port)
    return made


async def records(place: str | None, name: str, kind: str, lifetime: float) -> list[Any] | None:
    """What DNS has at a name, asked at a place; none where it says so, None where it says nothing.

    `lifetime` is in seconds.
    """
    try:
        answer = await resolver(place).resolve(f"{name}.", kind, lifetime=lifetime)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError, ValueError):
        return None
    return list(answer)


async def host_addresses(place: str, host: str, lifetime: float) -> list[str]:
    """Ask a name server for the IPv4 and IPv6 addresses of a host, for at most `lifetime` seconds.

    Raises OSError if it has none or does not answer.
    """
    found = await asyncio.gather(*(records(place, host, kind, lifetime) for kind in ("A", "AAAA")))
    if found == [None, None]:
        raise OSError("the name server does not answer")
    addresses = [str(one.address) for some in found for one in some or []]
    if not addresses:
        raise OSError("the host has no address")
    return list(dict.fromkeys(addresses))


def validating(made: Resolver) -> Resolver:
    """The same, which also asks whether answers are signed."""
    made.use_edns(0, dns.flags.DO, PAYLOAD)
    made.flags = dns.flags.RD | dns.flags.AD
    return made


@lru_cache(maxsize=4)
def kept(place: str | None, *, validates: bool) -> Resolver:
    """The resolver of this process that asks at a place for what leaves, and keeps answers."""
    made = resolver(place)
    made.cache = dns.resolver.LRUCache(KEPT)
    return validating(made) if validates else made
