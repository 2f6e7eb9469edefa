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

from mail.addresses.address_syntax import ascii_domain, normalized_domain
from mail.routing.mx_hosts import OutboundSettings
from mail.text.bounded_regex import BoundedRegex
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.routing.tables import RelayHost, TlsPolicy, Transport
from models.runtime.environment import Environment
from models.store.columns import core_table

MAX_AGE = 10.0  # seconds that a loaded value is used

Loaded = TypeVar("Loaded")


@dataclass
class RouteCache:
    """Cached rows for route selection. The queue worker makes a new one at each poll."""

    environment: Environment
    outbound_settings: OutboundSettings
    loaded: dict[tuple[str, object], tuple[float, Any]] = field(default_factory=dict)
    locks: defaultdict[tuple[str, object], asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    async def load_unless_recently_loaded(
        self, kind: str, subject: object, load: Callable[[], Awaitable[Loaded]]
    ) -> Loaded:
        """Return the cached value of a kind and subject, or load it.

        Concurrent callers wait for the same load. A value is used for `MAX_AGE` seconds.
        """
        key = kind, subject
        async with self.locks[key]:
            now, entry = asyncio.get_running_loop().time(), self.loaded.get(key)
            if entry is None or entry[0] < now:
                entry = now + MAX_AGE, await load()
                self.loaded[key] = entry
        value: Loaded = entry[1]
        return value

    async def find_transport(self, address: str, domain: str) -> Transport | None:
        """Load the transport of an address, by address, domain, parent domain or pattern."""
        by_address, patterns = await self.load_unless_recently_loaded(
            "special", None, self._load_address_and_pattern_transports
        )
        address = address.lower()
        if address_transport := by_address.get(address):
            return address_transport
        if address_transport := await self.load_unless_recently_loaded(
            "transport", domain, lambda: self._find_domain_transport(domain)
        ):
            return address_transport
        for expression, transport in patterns:
            if expression.is_found_in(address):
                return transport
        return None

    async def find_relay_host(self, sender_domain: str) -> RelayHost | None:
        """Load the active relay host of a sender's domain."""

        async def load() -> RelayHost | None:
            statement = (
                select(*core_table(RelayHost).c)
                .join(Domain, col(Domain.relay_host_id) == col(RelayHost.id))
                .where(col(Domain.name) == sender_domain, col(RelayHost.active))
            )
            rows = await self.environment.database.read(statement)
            return RelayHost(**rows[0]._asdict()) if rows else None

        return await self.load_unless_recently_loaded("relay", sender_domain, load)

    async def find_tls_policy(self, destinations: tuple[str, ...]) -> TlsPolicy | None:
        """Load the active TLS policy of the first destination that has one."""

        async def load() -> TlsPolicy | None:
            statement = select(*core_table(TlsPolicy).c).where(
                col(TlsPolicy.destination).in_(destinations), col(TlsPolicy.active)
            )
            rows = [
                TlsPolicy(**row._asdict())
                for row in await self.environment.database.read(statement)
            ]
            return min(rows, key=lambda row: destinations.index(row.destination), default=None)

        return await self.load_unless_recently_loaded("policy", destinations, load)

    async def is_backup_mx(self, domain: str) -> bool:
        """True if an administrator made this server a backup MX of the domain."""

        async def load() -> bool:
            statement = select(col(Domain.id)).where(
                col(Domain.name) == normalized_domain(domain),
                col(Domain.active),
                col(Domain.backup_mx),
            )
            return bool(await self.environment.database.read(statement))

        return await self.load_unless_recently_loaded("held", domain, load)

    async def _load_address_and_pattern_transports(
        self,
    ) -> tuple[dict[str, Transport], list[tuple[BoundedRegex, Transport]]]:
        """Load the transports of addresses, and those of patterns by id."""
        destination = col(Transport.destination)
        statement = (
            select(*core_table(Transport).c)
            .where(col(Transport.active), or_(destination.like("%@%"), destination.like("/%")))
            .order_by(col(Transport.id))
        )
        rows = [
            Transport(**row._asdict()) for row in await self.environment.database.read(statement)
        ]
        patterns = [
            (expression, row)
            for row in rows
            if row.destination.startswith("/") and (expression := _compile_pattern(row.destination))
        ]
        return {row.destination.lower(): row for row in rows if "@" in row.destination}, patterns

    async def _find_domain_transport(self, domain: str) -> Transport | None:
        """Load the transport of a domain or its nearest parent domain."""
        destinations = destinations_of_domain(domain)
        statement = select(*core_table(Transport).c).where(
            col(Transport.destination).in_(destinations), col(Transport.active)
        )
        rows = [
            Transport(**row._asdict()) for row in await self.environment.database.read(statement)
        ]
        return min(rows, key=lambda row: destinations.index(row.destination), default=None)


@lru_cache(1000)
def destinations_of_domain(domain: str) -> tuple[str, ...]:
    """The destinations that match a domain: itself, then parents with a leading dot.

    Nearest first, each in Unicode and ASCII.
    """
    destinations: list[str] = []
    forms = dict.fromkeys([domain, normalized_domain(domain), *_ascii_forms(domain)])
    label_lists = [form.split(".") for form in forms]
    destinations += forms
    for start in range(1, max(len(labels) for labels in label_lists)):
        destinations += [f".{'.'.join(labels[start:])}" for labels in label_lists if labels[start:]]
    return tuple(dict.fromkeys(destinations))


def _ascii_forms(domain: str) -> list[str]:
    """Return the domain in ASCII; an empty list if it is invalid."""
    try:
        return [ascii_domain(domain)]
    except idna.IDNAError:
        return []


@lru_cache(256)
def _compile_pattern(pattern: str) -> BoundedRegex | None:
    """The compiled pattern. None if it is invalid."""
    try:
        return BoundedRegex(pattern)
    except InvalidInput:
        return None
