"""IP addresses as texts whose order is the order of the addresses."""

import ipaddress


def sortable_ip_hex(ip: str | None) -> str | None:
    """Return an IP address as 32 hex digits, so that a network is a range.

    None if it is invalid.
    """
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return None
    return address_hex_digits(address)


def address_hex_digits(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return an IP address as 32 hex digits, an IPv4 address as that of ::ffff:a.b.c.d."""
    if isinstance(address, ipaddress.IPv4Address):
        return f"{0xFFFF_0000_0000 | int(address):032x}"
    return f"{int(address):032x}"
