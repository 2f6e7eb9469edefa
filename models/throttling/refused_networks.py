"""The networks whose connections a process refuses, in memory: no lookup needs the database."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from models.throttling.networks import (
    Network,
    NetworkMap,
    address_number,
    enclosing_network,
    network_number,
    parse_ip_network_or_none,
)
from models.throttling.policy import BanPolicyValues

LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
HostAddresses = Mapping[str, Iterable[str]]
EXPIRY_INTERVAL = timedelta(minutes=1)  # between removals of expired bans: each looks at all bans


class RefusalReason(StrEnum):
    """Why connections from an address are refused."""

    DENYLIST = "the deny list"
    BAN = "a ban"


def network_map_of_texts(texts: Iterable[str]) -> NetworkMap[bool]:
    """Return a map of these addresses and networks. Other texts are left out."""
    networks: NetworkMap[bool] = NetworkMap()
    for text in texts:
        if (network := parse_ip_network_or_none(text)) is not None:
            networks.set(network_number(network), True)
    return networks


def networks_of_list_entries(entries: Iterable[str], host_addresses: HostAddresses) -> list[str]:
    """Return the networks of a list, with each host name replaced by its addresses."""
    networks: dict[str, None] = {}
    for entry in entries:
        for text in host_addresses.get(entry, (entry,)):
            if (network := parse_ip_network_or_none(text)) is not None:
                networks[str(network)] = None
    return list(networks)


class RefusedNetworks:
    """The bans and lists of the ban policy as this process knows them.

    Never refused are loopback, trusted proxies and the addresses of the platform's servers. The
    allow list precedes the deny list, which precedes bans.
    """

    def __init__(self, policy: BanPolicyValues | None = None) -> None:
        self.policy = BanPolicyValues()
        self.host_addresses: HostAddresses = {}
        self.last_change = -1  # `BanChangeCounter.last_change`; -1: nothing was read yet
        self._proxies: tuple[str, ...] = ()
        self._server_addresses: frozenset[str] = frozenset()
        self._never_refused = network_map_of_texts(map(str, LOOPBACK))
        self._allowed: NetworkMap[bool] = NetworkMap()
        self._denied: NetworkMap[bool] = NetworkMap()
        self._ban_ends: NetworkMap[datetime] = NetworkMap()
        self._next_expiry: datetime | None = None
        if policy is not None:
            self.use_policy(policy, {})

    def replace_never_refused_addresses(
        self, *, proxies: Iterable[str] | None = None, servers: Iterable[str] | None = None
    ) -> None:
        """Replace the trusted proxies, or the addresses of the platform's servers."""
        if proxies is not None:
            self._proxies = tuple(proxies)
        if servers is not None:
            self._server_addresses = frozenset(servers)
        self._never_refused = network_map_of_texts(self.never_refused_texts)

    @property
    def never_refused_texts(self) -> list[str]:
        """Addresses and networks that are never refused: loopback, proxies and servers."""
        return [*map(str, LOOPBACK), *self._proxies, *sorted(self._server_addresses)]

    def use_policy(self, policy: BanPolicyValues, host_addresses: HostAddresses) -> None:
        """Use these values of the policy, and these addresses of the host names in its lists.

        Does nothing if they are in use: maps of long lists take up to 300 ms.
        """
        if (policy, host_addresses) == (self.policy, self.host_addresses):
            return
        self.policy, self.host_addresses = policy, host_addresses
        self._allowed = network_map_of_texts(
            networks_of_list_entries(policy.allowlist, host_addresses)
        )
        self._denied = network_map_of_texts(
            networks_of_list_entries(policy.denylist, host_addresses)
        )

    def set_or_remove_ban(self, network: str, ends_at: datetime, now: datetime) -> None:
        """Store the end of a ban; remove the ban if that is past."""
        if (parsed := parse_ip_network_or_none(network)) is None:
            return
        if ends_at > now:
            self._ban_ends.set(network_number(parsed), ends_at)
        else:
            self._ban_ends.remove(network_number(parsed))

    def clear_bans(self) -> None:
        """Remove all bans from memory."""
        self._ban_ends = NetworkMap()

    def remove_expired_bans_if_due(self, now: datetime) -> None:
        """Remove bans that have ended, if a minute has passed since the last removal."""
        if self._next_expiry is not None and now < self._next_expiry:
            return
        self._next_expiry = now + EXPIRY_INTERVAL
        ended = [number for number, ends_at in self._ban_ends.items() if ends_at <= now]
        for number in ended:
            self._ban_ends.remove(number)

    def copy(self) -> "RefusedNetworks":
        """Return a copy, to see what a change would refuse."""
        other = RefusedNetworks()
        other.replace_never_refused_addresses(proxies=self._proxies, servers=self._server_addresses)
        other.policy, other.host_addresses = self.policy, self.host_addresses
        other._allowed, other._denied = self._allowed, self._denied  # are replaced, never changed
        other._ban_ends = self._ban_ends.copy()
        return other

    def is_never_refused(self, network: Network) -> bool:
        """True for a network inside loopback, a trusted proxy or a server of the platform."""
        return self._never_refused.contains(network_number(network))

    def is_exempt(self, ip: str | None) -> bool:
        """True if failures of this address don't count: never refused, or in the allow list."""
        address = address_number(ip)
        return address is None or self._is_exempt_address(address)

    def _is_exempt_address(self, address: int) -> bool:
        return bool(
            self._never_refused.values_of_address(address)
            or self._allowed.values_of_address(address)
        )

    def refusal_reason(self, ip: str | None, now: Callable[[], datetime]) -> RefusalReason | None:
        """Return why connections from this address are refused; None if they are not."""
        if not self._denied and not self._ban_ends:
            return None
        address = address_number(ip)
        if address is None:
            return None
        is_denied = bool(self._denied and self._denied.values_of_address(address))
        ends = self._ban_ends.values_of_address(address)
        if not (is_denied or ends) or self._is_exempt_address(address):
            return None
        if is_denied:
            return RefusalReason.DENYLIST
        return RefusalReason.BAN if max(ends) > now() else None

    def refuses(self, ip: str | None, now: Callable[[], datetime]) -> bool:
        """True if connections from this address are refused."""
        return self.refusal_reason(ip, now) is not None

    def counted_network_or_none(self, ip: str | None) -> str | None:
        """Return the network that failures of this address count for; None if they don't count."""
        if self.is_exempt(ip):
            return None
        return enclosing_network(ip, self.policy.netmask_ipv4, self.policy.netmask_ipv6)
