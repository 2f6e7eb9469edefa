"""Validation of the ban policy, of lists of networks and host names, and of networks to ban."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv6Network
from typing import Any

from mail.addresses.address_syntax import normalize_and_validate_domain
from models.errors import Forbidden, InvalidInput
from models.throttling.networks import Network, parse_ip_network_or_none
from models.throttling.policy import (
    MAX_BAN_TIME,
    MAX_LIST_ENTRIES,
    MAX_LIST_HOSTS,
    WIDEST_PREFIX_LENGTHS,
)
from models.throttling.refused_networks import RefusedNetworks
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

IPV4_MAPPED = IPv6Network("::ffff:0:0/96")  # narrower networks are parsed as IPv4
MIN_TIME = timedelta(minutes=1)
MAX_RETRY_WINDOW = timedelta(days=7)
MAX_ATTEMPTS = 10_000
MAX_HOST_LENGTH = 253  # characters
MAX_NETWORKS = 1000  # of one request
MAX_REASON_LENGTH = 255  # characters


@dataclass(frozen=True, slots=True)
class _Range:
    """The smallest and the largest allowed value of a number or duration, and their texts."""

    least: Any
    greatest: Any
    text: str


_RANGES: Mapping[str, _Range] = {
    "ban_time": _Range(MIN_TIME, MAX_BAN_TIME, "from PT1M to P30D"),
    "retry_window": _Range(MIN_TIME, MAX_RETRY_WINDOW, "from PT1M to P7D"),
    "max_attempts": _Range(1, MAX_ATTEMPTS, "from 1 to 10,000"),
    "netmask_ipv4": _Range(8, 32, "from 8 to 32"),
    "netmask_ipv6": _Range(16, 128, "from 16 to 128"),
}
_PATHS = {
    "ban_time": "banTime",
    "retry_window": "retryWindow",
    "max_attempts": "maxAttempts",
    "netmask_ipv4": "netmaskIpv4",
    "netmask_ipv6": "netmaskIpv6",
}


def normalized_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of the policy, by attribute, in normal form.

    Raises InvalidInput for a value out of range, or a bad list.
    """
    values = dict(changes)
    for name, allowed in _RANGES.items():
        if name in values and not allowed.least <= values[name] <= allowed.greatest:
            raise InvalidInput(
                f"Must be {allowed.text}.",
                constraint=ValidationConstraint.RANGE,
                path=["set", _PATHS[name]],
            )
    for name in ("allowlist", "denylist"):
        if name in values:
            values[name] = normalized_list(values[name], name)
    return values


def normalized_list(entries: Sequence[str], list_name: str) -> tuple[str, ...]:
    """Return the entries of a list in normal form, each once, in their order.

    Raises InvalidInput for too many entries, with the index of an entry that is no address,
    network or host name, and for a network in the deny list that is too wide.
    """
    path = ["set", list_name]
    if len(entries) > MAX_LIST_ENTRIES:
        raise InvalidInput(
            f"The list has at most {MAX_LIST_ENTRIES:,} entries.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    normalized: dict[str, bool] = {}  # by entry: whether it is a host name
    for index, text in enumerate(entries):
        network = parse_ip_network_or_none(text[:MAX_HOST_LENGTH])
        if network is None:
            normalized[_checked_host_name(text, path, index)] = True
            continue
        if list_name == "denylist":
            require_narrow_network(network, path, index)
        normalized[str(network)] = False
    if sum(normalized.values()) > MAX_LIST_HOSTS:
        raise InvalidInput(
            f"The list has at most {MAX_LIST_HOSTS} host names.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return tuple(normalized)


def _checked_host_name(text: str, path: Sequence[str], index: int) -> str:
    """Return a host name in normal form. Raises InvalidInput unless it is one with a dot."""
    try:
        if "." in text and len(text) <= MAX_HOST_LENGTH and not text[-1:].isdigit():
            return normalize_and_validate_domain(text.strip().removesuffix("."))
    except InvalidInput:
        pass
    message = "Not an IP address, a network such as 192.0.2.0/24, or a host name."
    raise InvalidInput(message, constraint=ValidationConstraint.HOST, path=path, index=index)


def require_narrow_network(network: Network, path: Sequence[str], index: int) -> None:
    """Raise InvalidInput for a network that is too wide to be refused, or contains all of IPv4."""
    length = WIDEST_PREFIX_LENGTHS[network.version]
    if network.prefixlen < length:
        message = f"The prefix length must be at least /{length}."
        raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=path, index=index)
    if isinstance(network, IPv6Network) and network.overlaps(IPV4_MAPPED):
        message = "The network contains all IPv4 addresses (::ffff:0:0/96)."
        raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=path, index=index)


def require_refusable_network(
    ctx: Context, network: Network, path: Sequence[str], index: int
) -> None:
    """Raise InvalidInput for a network whose addresses are never refused."""
    if ctx.environment.refused_networks.is_never_refused(network):
        message = "Loopback, trusted proxies and the servers of the platform are never banned."
        raise InvalidInput(message, constraint=ValidationConstraint.CIDR, path=path, index=index)


def normalized_networks(
    networks: Sequence[str],
    path: Sequence[str] = ("networks",),
    *,
    max_count: int = MAX_NETWORKS,
) -> dict[str, Any]:
    """Return networks by their normal form, each once. Raises InvalidInput for a bad number."""
    if not networks:
        text = "At least one network is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=path)
    if len(networks) > max_count:
        text = f"At most {max_count:,} networks are allowed."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=path)
    parsed: dict[str, Any] = {}
    for index, text in enumerate(networks):
        network = parse_ip_network_or_none(text)
        if network is None:
            message = "Not a network such as 192.0.2.0/24, and not an IP address."
            raise InvalidInput(
                message, constraint=ValidationConstraint.CIDR, path=path, index=index
            )
        parsed[str(network)] = network
    return parsed


def validate_reason(reason: str | None) -> str | None:
    """Return the reason; None if it is empty. Raises InvalidInput if it is too long."""
    if reason and (len(reason) > MAX_REASON_LENGTH or not reason.isprintable()):
        raise InvalidInput(
            f"Must have at most {MAX_REASON_LENGTH} printable characters.",
            constraint=ValidationConstraint.LENGTH,
            path=["reason"],
        )
    return reason or None


def require_caller_not_refused(
    ctx: Context, before: RefusedNetworks, after: RefusedNetworks, path: Sequence[str]
) -> None:
    """Raise Forbidden if a change refuses the caller's address, which was accepted before."""
    now = ctx.environment.now
    reason = after.refusal_reason(ctx.client_ip, now)
    if reason is not None and before.refusal_reason(ctx.client_ip, now) is None:
        message = (
            f"The change would lock you out: {reason} would refuse your IP address "
            f"{ctx.client_ip}. Add the address to the allow list first."
        )
        raise Forbidden(message, requires="allowlist", path=path)
