"""Addresses of machines, and the networks they are in."""

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=4096)
def network(ip: str | None) -> str | None:
    """What counts as one neighbour: /24 of IPv4, /64 of IPv6; None where it is no address."""
    address = _address(ip)
    if address is None:
        return None
    bits = 24 if address.version == 4 else 64  # noqa: PLR2004 - the two there are
    return str(ipaddress.ip_network((address, bits), strict=False))


@lru_cache(maxsize=4096)
def within(ip: str | None, networks: tuple[str, ...]) -> bool:
    """Whether the address is in one of these networks."""
    address = _address(ip)
    return address is not None and any(address in ipaddress.ip_network(one) for one in networks)


def _address(ip: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # no zone
    return address
