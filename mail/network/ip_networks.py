"""IP addresses and the networks they are in."""

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=4096)
def network_for_limits(ip_address: str | None) -> str | None:
    """The network that limits apply to: /24 for IPv4, /64 for IPv6. None if it is no address."""
    address = _parse_address_or_none(ip_address)
    if address is None:
        return None
    bits = 24 if address.version == 4 else 64  # noqa: PLR2004 - IP versions
    return str(ipaddress.ip_network((address, bits), strict=False))


@lru_cache(maxsize=4096)
def is_in_networks(ip_address: str | None, networks: tuple[str, ...]) -> bool:
    """True if the address is in one of these networks."""
    address = _parse_address_or_none(ip_address)
    return address is not None and any(address in ipaddress.ip_network(cidr) for cidr in networks)


def _parse_address_or_none(
    text: str | None,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address without zone; IPv4-mapped addresses as IPv4. None if it is invalid."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # no zone
    return address
