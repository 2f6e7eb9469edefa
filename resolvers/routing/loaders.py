"""Load relay hosts, transports, TLS policies and forwarding hosts. For an ADMIN."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, select, true
from sqlmodel import SQLModel, col

from mail.routing import password_contexts
from models.domains.tables import Domain
from models.errors import Invalid, all_found
from models.events.journal import ChangeKind
from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from models.store.columns import Picked, picked, table_of
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from resolvers import pagination
from resolvers.context import Batch, Context
from resolvers.domains import loaders as domain_loaders
from resolvers.pagination import Scan, all_by_keys, by_keys

HAS_PASSWORD = "has_password"  # noqa: S105 - the name of a boolean column


@dataclass(frozen=True, slots=True)
class Sort:
    """One of the four tables with its names, limit and logged columns."""

    table: type[SQLModel]
    name: str  # of the GraphQL type
    kind: ChangeKind
    shown: tuple[str, ...]  # columns in the admin log
    most: int  # rows of the platform
    secret: str | None = None  # the column with the encrypted password

    @property
    def ordering(self) -> str:
        """The name of the ordering in cursors of its list."""
        return table_of(self.table).name.replace("_", "-")


RELAYS = Sort(
    RelayHost,
    "RelayHost",
    ChangeKind.RELAY_HOST_CHANGED,
    ("host", "port", "username", "tls", "active"),
    1000,
    "secret",
)
TRANSPORTS = Sort(
    Transport,
    "Transport",
    ChangeKind.TRANSPORT_CHANGED,
    ("destination", "next_hop", "lookup_mx", "username", "active"),
    5000,
    "secret",
)
POLICIES = Sort(
    TlsPolicy,
    "TlsPolicy",
    ChangeKind.TLS_POLICY_CHANGED,
    ("destination", "policy", "parameters", "active"),
    5000,
)
FORWARDERS = Sort(
    ForwardingHost,
    "ForwardingHost",
    ChangeKind.FORWARDING_HOST_CHANGED,
    ("host", "source", "filter_spam"),
    10_000,
)
PLACES: Mapping[type[SQLModel], Callable[[int], str]] = {
    RelayHost: password_contexts.place_of_relay,
    Transport: password_contexts.place_of_transport,
}


def _visible(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def rows_of(
    ctx: Context, sort: Sort, names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    """Select the visible rows. Instead of a password only whether there is one."""
    table = table_of(sort.table)
    wanted = {*table.c.keys()} if names is None else {"id", "created_at", *names}
    columns: list[Any] = picked(sort.table, wanted - {HAS_PASSWORD, sort.secret})
    if sort.secret and (names is None or HAS_PASSWORD in wanted):
        columns.append(table.c[sort.secret].is_not(None).label(HAS_PASSWORD))
    return select(*columns).where(_visible(ctx))


async def _by_ids(sort: Sort, ctx: Context, ids: list[int]) -> list[Picked | None]:
    return await by_keys(ctx, rows_of(ctx, sort), table_of(sort.table).c.id, ids)


relay_hosts: Batch[int, Picked | None] = partial(_by_ids, RELAYS)
transports: Batch[int, Picked | None] = partial(_by_ids, TRANSPORTS)
tls_policies: Batch[int, Picked | None] = partial(_by_ids, POLICIES)
forwarding_hosts: Batch[int, Picked | None] = partial(_by_ids, FORWARDERS)


async def page(ctx: Context, sort: Sort, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of all rows of a routing table, the oldest first."""
    table = table_of(sort.table)
    place = (table.c.created_at, table.c.id)
    return await pagination.one(ctx, Scan(rows_of(ctx, sort, columns), ask, place, falling=False))


async def count(ctx: Context, sort: Sort) -> int:
    """Count the rows of a routing table."""
    many = select(func.count().label("many")).select_from(table_of(sort.table))
    (row,) = await ctx.read(many.where(_visible(ctx)))
    return int(row.many)


async def seen(ctx: Context, sort: Sort, ids: Sequence[int]) -> list[Picked]:
    """Load rows of a routing table in the order of the ids, each once.

    Raises NotFound if one is not visible and InvalidInput if none is given.
    """
    found = await by_keys(ctx, rows_of(ctx, sort), table_of(sort.table).c.id, list(ids))
    rows = {row.id: row for row in found if row}
    all_found(ids, rows)
    if not rows:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    return list(rows.values())


async def used_by(ctx: Context, ids: list[int]) -> list[list[Picked]]:
    """Load the domains that send through these relay hosts, ordered by name, with one statement."""
    asked = (
        select(*picked(Domain))
        .where(domain_loaders.visible_domains(ctx))
        .order_by(col(Domain.name))
    )
    return await all_by_keys(ctx, asked, col(Domain.relay_host_id), ids)
