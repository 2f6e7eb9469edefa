"""A short-lived cache of transports, relay hosts and TLS policies for route selection.

It loads only rows that are needed, each once. Only transports of addresses and patterns are loaded
completely.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import idna
from sqlalchemy import or_, select
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain, normal_domain
from mail.routing.mx_hosts import Route
from mail.text.bounded_regex import Expression
from models.domains.tables import Domain
from models.errors import Invalid
from models.routing.tables import RelayHost, TlsPolicy, Transport
from models.runtime.environment import World
from models.store.columns import table_of

HOLDS = 10.0  # seconds that a loaded value is used

Thing = TypeVar("Thing")


@dataclass
class Chart:
    """Cached rows for route selection. The queue worker makes a new one at each poll."""

    world: World
    route: Route
    known: dict[tuple[str, object], tuple[float, Any]] = field(default_factory=dict)
    reading: defaultdict[tuple[str, object], asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    async def once(self, what: str, of: object, read: Callable[[], Awaitable[Thing]]) -> Thing:
        """Return the cached value of a kind and subject, or load it.

        Concurrent callers wait for the same load. A value is used for `MAX_AGE` seconds.
        """
        key = what, of
        async with self.reading[key]:
            now, found = asyncio.get_running_loop().time(), self.known.get(key)
            if found is None or found[0] < now:
                found = now + HOLDS, await read()
                self.known[key] = found
        kept: Thing = found[1]
        return kept

    async def transport(self, address: str, domain: str) -> Transport | None:
        """Load the transport of an address, by address, domain, parent domain or pattern."""
        singles, patterns = await self.once("special", None, self._special)
        address = address.lower()
        if found := singles.get(address):
            return found
        if found := await self.once("transport", domain, lambda: self._by_domain(domain)):
            return found
        for expression, transport in patterns:
            if expression.found_in(address):
                return transport
        return None

    async def relay(self, domain: str) -> RelayHost | None:
        """Load the active relay host of a sender's domain."""

        async def read() -> RelayHost | None:
            asked = (
                select(*table_of(RelayHost).c)
                .join(Domain, col(Domain.relay_host_id) == col(RelayHost.id))
                .where(col(Domain.name) == domain, col(RelayHost.active))
            )
            rows = await self.world.database.read(asked)
            return RelayHost(**rows[0]._mapping) if rows else None  # noqa: SLF001 - the API of rows

        return await self.once("relay", domain, read)

    async def policy(self, places: tuple[str, ...]) -> TlsPolicy | None:
        """Load the active TLS policy of the first destination that has one."""

        async def read() -> TlsPolicy | None:
            asked = select(*table_of(TlsPolicy).c).where(
                col(TlsPolicy.destination).in_(places), col(TlsPolicy.active)
            )
            rows = [TlsPolicy(**row._mapping) for row in await self.world.database.read(asked)]  # noqa: SLF001
            return min(rows, key=lambda row: places.index(row.destination), default=None)

        return await self.once("policy", places, read)

    async def held(self, domain: str) -> bool:
        """True if an administrator made this server a backup MX of the domain."""

        async def read() -> bool:
            asked = select(col(Domain.id)).where(
                col(Domain.name) == normal_domain(domain),
                col(Domain.active),
                col(Domain.backup_mx),
            )
            return bool(await self.world.database.read(asked))

        return await self.once("held", domain, read)

    async def _special(
        self,
    ) -> tuple[dict[str, Transport], list[tuple[Expression, Transport]]]:
        """Load the transports of addresses, and those of patterns by id."""
        place = col(Transport.destination)
        asked = (
            select(*table_of(Transport).c)
            .where(col(Transport.active), or_(place.like("%@%"), place.like("/%")))
            .order_by(col(Transport.id))
        )
        rows = [Transport(**row._mapping) for row in await self.world.database.read(asked)]  # noqa: SLF001
        patterns = [
            (expression, row)
            for row in rows
            if row.destination.startswith("/") and (expression := _expression(row.destination))
        ]
        return {row.destination.lower(): row for row in rows if "@" in row.destination}, patterns

    async def _by_domain(self, domain: str) -> Transport | None:
        """Load the transport of a domain or its nearest parent domain."""
        places = above(domain)
        asked = select(*table_of(Transport).c).where(
            col(Transport.destination).in_(places), col(Transport.active)
        )
        rows = [Transport(**row._mapping) for row in await self.world.database.read(asked)]  # noqa: SLF001
        return min(rows, key=lambda row: places.index(row.destination), default=None)


@lru_cache(1000)
def above(domain: str) -> tuple[str, ...]:
    """The destinations that match a domain: itself, then parents with a leading dot.

    Nearest first, each in Unicode and ASCII.
    """
    found: list[str] = []
    forms = dict.fromkeys([domain, normal_domain(domain), *_on_wire(domain)])
    split = [form.split(".") for form in forms]
    found += forms
    for start in range(1, max(len(labels) for labels in split)):
        found += [f".{'.'.join(labels[start:])}" for labels in split if labels[start:]]
    return tuple(dict.fromkeys(found))


def _on_wire(domain: str) -> list[str]:
    try:
        return [ascii_domain(domain)]
    except idna.IDNAError:
        return []


@lru_cache(256)
def _expression(pattern: str) -> Expression | None:
    """The compiled pattern. None if it is invalid."""
    try:
        return Expression(pattern)
    except Invalid:
        return None
