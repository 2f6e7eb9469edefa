"""IP addresses and networks as numbers of 128 bits. IPv4-mapped addresses are IPv4 addresses."""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Generic, NamedTuple, TypeVar

Value = TypeVar("Value")
Network = IPv4Network | IPv6Network

BITS = 128
IPV4_BITS = 32
IPV4_PREFIX = 0xFFFF_0000_0000  # ::ffff:0:0/96
IPV4_OFFSET = BITS - IPV4_BITS


class NetworkNumber(NamedTuple):
    """A network: the leading bits of its addresses, and how many these are."""

    leading_bits: int
    prefix_length: int  # of 128 bits

    @property
    def first_and_last_digits(self) -> tuple[str, str]:
        """The first and the last address as 32 hex digits, whose order is that of addresses."""
        host_bits = BITS - self.prefix_length
        first = self.leading_bits << host_bits
        return f"{first:032x}", f"{first | ((1 << host_bits) - 1):032x}"

    def containing_networks(self, least_prefix_length: int) -> "Iterator[NetworkNumber]":
        """Yield the wider networks that contain this one, from this prefix length."""
        for length in range(least_prefix_length, self.prefix_length):
            yield NetworkNumber(self.leading_bits >> (self.prefix_length - length), length)


@lru_cache(maxsize=65_536)
def address_number(ip: str | None) -> int | None:
    """Return an IP address as a number; None if the text is no address. A zone is ignored."""
    try:
        address = ip_address((ip or "").partition("%")[0])
    except ValueError:
        return None
    return IPV4_PREFIX | int(address) if isinstance(address, IPv4Address) else int(address)


def parse_ip_network_or_none(text: str) -> Network | None:
    """Return the network of an address or of CIDR notation; None if the text is neither.

    Host bits are cleared. A network of IPv4-mapped addresses is returned as IPv4.
    """
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        return None
    if isinstance(network, IPv4Network):
        return network
    mapped = network.network_address.ipv4_mapped
    if mapped is not None and network.prefixlen >= IPV4_OFFSET:
        return IPv4Network((mapped, network.prefixlen - IPV4_OFFSET))
    return network


def network_number(network: Network) -> NetworkNumber:
    """Return a network as a number."""
    address = int(network.network_address)
    length = network.prefixlen
    if isinstance(network, IPv4Network):
        address, length = IPV4_PREFIX | address, length + IPV4_OFFSET
    return NetworkNumber(address >> (BITS - length), length)


def enclosing_network(ip: str | None, netmask_ipv4: int, netmask_ipv6: int) -> str | None:
    """Return the network of an address with these prefix lengths; None if it is no address.

    An IPv6 address in a network that also contains the IPv4-mapped addresses is alone.
    """
    number = address_number(ip)
    if number is None:
        return None
    if number >> IPV4_BITS == IPV4_PREFIX >> IPV4_BITS:
        address = IPv4Address(number & 0xFFFF_FFFF)
        return str(IPv4Network((address, netmask_ipv4), strict=False))
    network = IPv6Network((IPv6Address(number), netmask_ipv6), strict=False)
    if IPv6Address(IPV4_PREFIX) in network:
        network = IPv6Network((IPv6Address(number), BITS))
    return str(network)


class NetworkMap(Generic[Value]):
    """Values by network. A lookup costs one dictionary access for each prefix length in use."""

    def __init__(self) -> None:
        self._values_by_length: dict[int, dict[int, Value]] = {}

    def __bool__(self) -> bool:
        return bool(self._values_by_length)

    def __len__(self) -> int:
        return sum(map(len, self._values_by_length.values()))

    def copy(self) -> "NetworkMap[Value]":
        """Return a map with the same networks and values."""
        other: NetworkMap[Value] = NetworkMap()
        other._values_by_length = {
            length: values.copy() for length, values in self._values_by_length.items()
        }
        return other

    def set(self, number: NetworkNumber, value: Value) -> None:
        """Store the value of a network."""
        values = self._values_by_length.setdefault(number.prefix_length, {})
        values[number.leading_bits] = value

    def remove(self, number: NetworkNumber) -> None:
        """Remove a network, if it has a value."""
        values = self._values_by_length.get(number.prefix_length, {})
        values.pop(number.leading_bits, None)
        if not values:
            self._values_by_length.pop(number.prefix_length, None)

    def values_of_address(self, address: int) -> list[Value]:
        """Return the values of all networks that contain this address."""
        return [
            values[leading_bits]
            for length, values in self._values_by_length.items()
            if (leading_bits := address >> (BITS - length)) in values
        ]

    def contains(self, number: NetworkNumber) -> bool:
        """True if a network of the map contains all addresses of this network."""
        return any(
            length <= number.prefix_length
            and number.leading_bits >> (number.prefix_length - length) in values
            for length, values in self._values_by_length.items()
        )

    def items(self) -> Iterator[tuple[NetworkNumber, Value]]:
        """Yield all networks with their values."""
        for length, values in self._values_by_length.items():
            for leading_bits, value in values.items():
                yield NetworkNumber(leading_bits, length), value
