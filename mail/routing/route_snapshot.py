"""What is written down of ways out, as far as one look at the queue needs it.

Each thing is read once, and only what is asked for: no table is read whole but that of transports
of single addresses and patterns.
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

HOLDS = 10.0  # seconds that something read is used again

Thing = TypeVar("Thing")


@dataclass
class Chart:
    """What was read. Made anew at each look."""

    world: World
    route: Route
    known: dict[tuple[str, object], tuple[float, Any]] = field(default_factory=dict)
    reading: defaultdict[tuple[str, object], asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    async def once(self, what: str, of: object, read: Callable[[], Awaitable[Thing]]) -> Thing:
        """What `read` gives, unless that is known. Who asks meanwhile has the same answer."""
        key = what, of
        async with self.reading[key]:
            now, found = asyncio.get_running_loop().time(), self.known.get(key)
            if found is None or found[0] < now:
                found = now + HOLDS, await read()
                self.known[key] = found
        kept: Thing = found[1]
        return kept

    async def transport(self, address: str, domain: str) -> Transport | None:
        """The way to an address: its own, its domain's, that of the nearest above, a pattern's."""
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
        """The way out of mail from a domain."""

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
        """What is asked of the first of these destinations that has a policy."""

        async def read() -> TlsPolicy | None:
            asked = select(*table_of(TlsPolicy).c).where(
                col(TlsPolicy.destination).in_(places), col(TlsPolicy.active)
            )
            rows = [TlsPolicy(**row._mapping) for row in await self.world.database.read(asked)]  # noqa: SLF001
            return min(rows, key=lambda row: places.index(row.destination), default=None)

        return await self.once("policy", places, read)

    async def held(self, domain: str) -> bool:
        """Whether we are a backup MX of a domain: an administrator has said so."""

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
        """Transports of addresses, and those of patterns, the oldest first."""
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
        places = above(domain)
        asked = select(*table_of(Transport).c).where(
            col(Transport.destination).in_(places), col(Transport.active)
        )
        rows = [Transport(**row._mapping) for row in await self.world.database.read(asked)]  # noqa: SLF001
        return min(rows, key=lambda row: places.index(row.destination), default=None)


@lru_cache(1000)
def above(domain: str) -> tuple[str, ...]:
    """A domain, and what it is below of, `.` before: the nearest first, each in both forms."""
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
    try:
        return Expression(pattern)
    except Invalid:
        return None
