"""Address ranges that are not hosts of the public internet (RFC 6890 and the IANA registries).

Source: the IANA IPv4 and IPv6 Special-Purpose Address Registries, and multicast. The list of
`ipaddress` depends on the version of Python, and is incomplete.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared address space (carrier-grade NAT)
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link local
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relay anycast, deprecated
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and limited broadcast
    )
)
_IPV6 = tuple(
    IPv6Network(text)
    for text in (
        "::/96",  # unspecified, loopback, IPv4-compatible
        "64:ff9b:1::/48",  # NAT64 of a local prefix
        "100::/64",  # discard only
        "100:0:0:1::/64",  # dummy prefix
        "2001::/23",  # IETF protocol assignments, among them Teredo, ORCHID and benchmarking
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link local
        "fec0::/10",  # site local, deprecated
        "ff00::/8",  # multicast
    )
)
_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


def embedded_ipv4_or_none(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv4-mapped, 6to4 or NAT64 address holds."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def is_special(address: IPv4Address | IPv6Address) -> bool:
    """True if the address is in a special range, or holds an IPv4 address that is.

    Every Teredo address is special.
    """
    address = embedded_ipv4_or_none(address) or address
    if isinstance(address, IPv4Address):
        return any(address in special_network for special_network in _IPV4)
    return address not in _UNICAST or any(address in special_network for special_network in _IPV6)
