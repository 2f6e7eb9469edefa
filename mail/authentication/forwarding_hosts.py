"""Who forwards mail to us: it fails SPF, and often DMARC, through no fault of its sender.

Mail from such an address is refused and put off for neither, nor by greylisting; and where its
spam is not to be filtered no filter is asked about it: viruses, and the recipient's own rules,
count all the same.
"""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, String, select
from sqlmodel import col

from mail.authentication.sender_networks import WIDEST, shown
from models.routing.tables import ForwardingHost
from models.runtime.environment import World
from models.store.prepared_statements import among, prepared


@dataclass(frozen=True, slots=True)
class Forwarder:
    """What holds for mail from a forwarding host."""

    host: str  # the address or network that was named
    filter_spam: bool


@prepared
def _named(dialect: str) -> Select[*tuple[Any, ...]]:
    table = ForwardingHost
    return select(col(table.host), col(table.filter_spam)).where(
        among(dialect, col(table.host), "hosts", String)
    )


async def forwarder_of(world: World, ip: str | None) -> Forwarder | None:
    """The forwarding host of this address, of several the narrowest; None where it is none.

    Nothing is kept from one message to the next: what an administrator takes back holds at once
    in all processes. It is one look-up in an index.
    """
    places = _places(ip)
    if not places:
        return None
    rows = await world.database.find(_named(world.database.dialect), {"hosts": list(places)})
    found = min(rows, key=lambda row: places.index(row.host), default=None)
    return None if found is None else Forwarder(found.host, found.filter_spam)


@lru_cache(maxsize=1024)
def _places(ip: str | None) -> tuple[str, ...]:
    """All that may be stored and holds an address, the narrowest first."""
    try:
        address = ipaddress.ip_address((ip or "").partition("%")[0])
    except ValueError:
        return ()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    lengths = range(address.max_prefixlen, WIDEST[address.version] - 1, -1)
    return tuple(shown(ipaddress.ip_network((address, each), strict=False)) for each in lengths)
