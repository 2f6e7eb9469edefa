"""Hosts that forward mail to this server. Such mail fails SPF, and often DMARC, without fault.

Mail from such a host is never refused or deferred because of SPF, DMARC or greylisting. If its spam
is not filtered, the spam scanner is skipped; virus scanner and rules of the recipient still apply.
"""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, String, select
from sqlmodel import col

from mail.authentication.sender_networks import MIN_PREFIX_LENGTH, network_text
from models.routing.tables import ForwardingHost
from models.runtime.environment import Environment
from models.store.prepared_statements import is_in_parameter, prepare_cached


@dataclass(frozen=True, slots=True)
class TrustedForwarder:
    """The configured forwarding host that a client belongs to."""

    host: str  # the configured address or network
    filter_spam: bool


@prepare_cached
def _select_forwarding_hosts(dialect: str) -> Select[*tuple[Any, ...]]:
    table = ForwardingHost
    return select(col(table.host), col(table.filter_spam)).where(
        is_in_parameter(dialect, col(table.host), "hosts", String)
    )


async def find_forwarder(
    environment: Environment, client_ip: str | None
) -> TrustedForwarder | None:
    """Find the forwarding host of an address, the narrowest of several; None if there is none.

    Nothing is cached, so that a removal takes effect at once in all processes. This is one
    index look-up.
    """
    networks = _enclosing_networks_narrowest_first(client_ip)
    if not networks:
        return None
    rows = await environment.database.read_prepared(
        _select_forwarding_hosts(environment.database.dialect), {"hosts": list(networks)}
    )
    forwarder = min(rows, key=lambda row: networks.index(row.host), default=None)
    return None if forwarder is None else TrustedForwarder(forwarder.host, forwarder.filter_spam)


@lru_cache(maxsize=1024)
def _enclosing_networks_narrowest_first(client_ip: str | None) -> tuple[str, ...]:
    """All networks that contain an address, in their stored form, the narrowest first."""
    try:
        address = ipaddress.ip_address((client_ip or "").partition("%")[0])
    except ValueError:
        return ()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    lengths = range(address.max_prefixlen, MIN_PREFIX_LENGTH[address.version] - 1, -1)
    return tuple(
        network_text(ipaddress.ip_network((address, length), strict=False)) for length in lengths
    )
