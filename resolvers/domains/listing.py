"""Load users, addresses, administrators and totals of domains."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import DomainTotal
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.tables import DomainAdmin, User
from resolvers import pagination
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.domains.loaders import administered
from resolvers.pagination import Scan, together

Asked = Select[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class OfDomain:
    """A page of the users or addresses of a domain."""

    domain_id: int
    ask: Ask
    columns: frozenset[str]


class Stored(NamedTuple):
    """Bytes and messages that the users of a domain store together."""

    bytes: int
    messages: int


async def totals(ctx: Context, keys: list[int]) -> list[Stored]:
    """Load the storage totals of domains, each the sum of at most sixteen rows."""
    asked: Asked = (
        select(
            col(DomainTotal.domain_id).label("key"),
            func.sum(col(DomainTotal.used)).label("bytes"),
            func.sum(col(DomainTotal.messages)).label("messages"),
        )
        .where(col(DomainTotal.domain_id).in_(keys), administered(ctx, col(DomainTotal.domain_id)))
        .group_by(col(DomainTotal.domain_id))
    )
    found = {row.key: Stored(int(row.bytes), int(row.messages)) for row in await ctx.read(asked)}
    return [found.get(key, Stored(0, 0)) for key in keys]


async def admins(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """Load the visible administrators of domains, ordered by username."""
    asked = (
        select(*picked(User), col(DomainAdmin.domain_id).label("charge"))
        .join(DomainAdmin, col(DomainAdmin.user_id) == col(User.id))
        .where(
            col(DomainAdmin.domain_id).in_(keys),
            administered(ctx, col(DomainAdmin.domain_id)),
            visible_users(ctx),
        )
        .order_by(col(User.username_key))
    )
    found: dict[int, list[Picked]] = {key: [] for key in keys}
    for row in await ctx.read(asked):
        found[row.charge].append(row)
    return [found[key] for key in keys]


def _users(ctx: Context, key: OfDomain) -> list[ColumnElement[bool]]:
    here = col(User.domain_id)
    return [here == key.domain_id, administered(ctx, here), visible_users(ctx)]


async def users(ctx: Context, keys: list[OfDomain]) -> list[Page[Picked]]:
    """Load pages of the users of domains, ordered by username."""
    columns = frozenset({"id", "username_key"}).union(*(key.columns for key in keys))
    place = (col(User.username_key), col(User.id))
    scans = []
    for key in keys:
        rows = select(*picked(User, columns)).where(*_users(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=False))
    return await pagination.pages(ctx, scans)


async def count_users(ctx: Context, keys: list[OfDomain]) -> list[int]:
    """Count the users of domains, in the given order."""
    many = func.count().label("many")
    scans = [select(many).select_from(User).where(*_users(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


def _addresses(ctx: Context, key: OfDomain) -> list[ColumnElement[bool]]:
    here = col(Address.domain_id)
    return [here == key.domain_id, administered(ctx, here)]


async def addresses(ctx: Context, keys: list[OfDomain]) -> list[Page[Picked]]:
    """Load pages of the addresses of domains, ordered by their normal form."""
    columns = frozenset({"id", "local"}).union(*(key.columns for key in keys))
    place = (col(Address.local), col(Address.id))
    scans = []
    for key in keys:
        rows = select(*picked(Address, columns)).where(*_addresses(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=False))
    return await pagination.pages(ctx, scans)


async def count_addresses(ctx: Context, keys: list[OfDomain]) -> list[int]:
    """Count the addresses of domains, in the given order."""
    many = func.count().label("many")
    scans = [select(many).select_from(Address).where(*_addresses(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]
