"""List quarantined messages, and read their content, as far as the viewer may see them."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, select
from sqlmodel import col

from mail.storage import message_content
from mail.storage.message_content import Stored
from models.errors import Invalid
from models.spam.quarantine import QuarantineItem
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Role, Scope, UserPermission, opened
from models.users.tables import DeletedUser, User
from resolvers import pagination
from resolvers.access import managed_users
from resolvers.context import Context
from resolvers.messages import content
from resolvers.messages.content_access import witnessed
from resolvers.pagination import Scan, by_keys, together
from resolvers.sql_text import within
from resolvers.users.selection import MINE, Users, described

NEWEST = "quarantine-"
PLACE = (col(QuarantineItem.created_at), col(QuarantineItem.id))
SHOWING = {Scope.READ, Scope.SETTINGS}  # one of these is enough
TEXT = 1 << 16  # characters
HIGHEST = 1e9


@dataclass(frozen=True, slots=True)
class ItemWhere:
    """The conditions of a list of quarantined messages. All of them must hold."""

    users: Users = MINE  # empty: all messages that the viewer sees
    query: str | None = None  # part of subject, sender, recipient or name of a spam test
    above: float | None = None
    virus: bool | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class OfUser:
    """A request for a page of the quarantined messages of one user."""

    user_id: int
    ask: Ask
    columns: frozenset[str]


def visible(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for messages the viewer may see.

    A user sees the own messages with the permission QUARANTINE, an administrator also those of
    managed users.
    """
    viewer = ctx.viewer
    if not SHOWING & opened(viewer.scopes):
        return false()
    owner = col(QuarantineItem.user_id)
    if viewer.role is Role.USER and UserPermission.QUARANTINE not in viewer.permissions:
        return false()
    few = viewer.role is Role.DOMAIN_ADMIN and AdminPermission.QUARANTINE not in viewer.permissions
    if viewer.role is Role.USER or few:
        return owner == viewer.user_id
    if viewer.role.includes(Role.ADMIN):  # a store that begins with accounts sorts what it finds
        return owner.not_in(select(col(DeletedUser.id)))
    seen = select(col(User.id)).where(col(User.id) == owner, managed_users(ctx))
    return seen.correlate(QuarantineItem).exists()


def _seen(ctx: Context, names: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    """Return a SELECT of the visible quarantined messages."""
    return select(*picked(QuarantineItem, names)).where(visible(ctx))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load quarantined messages in the order of the IDs; None for one the viewer may not see."""
    return await by_keys(ctx, _seen(ctx), col(QuarantineItem.id), ids)


async def _terms(ctx: Context, where: ItemWhere) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of a list. Raises Invalid if the score is out of range."""
    terms = [visible(ctx)]
    if where.users.given:
        theirs = select(col(User.id)).where(await described(ctx, where.users, path="filter"))
        terms.append(col(QuarantineItem.user_id).in_(theirs))
    if where.query:
        columns = ("subject", "sender", "recipient", "from_name", "from_address", "tests")
        found: ColumnElement[bool] = false()
        for name in columns:
            found |= within(func.coalesce(getattr(QuarantineItem, name), ""), where.query)
        terms.append(found)
    if where.above is not None:
        if not -HIGHEST <= where.above <= HIGHEST:
            raise Invalid("no such score", constraint="range", path=["filter", "scoreAbove"])
        terms.append(col(QuarantineItem.score) > where.above)
    if where.virus is not None:
        empty = col(QuarantineItem.virus).is_(None)
        terms.append(~empty if where.virus else empty)
    if where.since is not None:
        terms.append(col(QuarantineItem.created_at) >= where.since)
    return terms


async def page(ctx: Context, where: ItemWhere, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Return a page of quarantined messages, newest first."""
    names = {"id", "created_at", *columns}
    rows = select(*picked(QuarantineItem, names)).where(*await _terms(ctx, where))
    return await pagination.one(ctx, Scan(rows, ask, PLACE, falling=True))


async def count(ctx: Context, where: ItemWhere) -> int:
    """Return the number of quarantined messages that match."""
    many = select(func.count().label("many")).select_from(QuarantineItem)
    (row,) = await ctx.read(many.where(*await _terms(ctx, where)))
    return int(row.many)


async def of_users(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """Load these pages of quarantined messages, newest first."""
    columns = frozenset({"id", "created_at"}).union(*(key.columns for key in keys))
    rows = _seen(ctx, columns)
    scans = [
        Scan(rows.where(col(QuarantineItem.user_id) == key.user_id), key.ask, PLACE, falling=True)
        for key in keys
    ]
    return await pagination.pages(ctx, scans)


async def counts_of_users(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Return the number of quarantined messages of each listing."""
    many = select(func.count().label("many")).select_from(QuarantineItem).where(visible(ctx))
    scans = [many.where(col(QuarantineItem.user_id) == key.user_id) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


async def stored(ctx: Context, ids: list[int]) -> list[Stored | None]:
    """Load the content of quarantined messages by ID; None for one the viewer may not see.

    Reading another user's message is written to that user's security log.
    """
    rows = await ctx.read(_seen(ctx, content.HELD).where(col(QuarantineItem.id).in_(ids)))
    await witnessed(ctx, {row.user_id for row in rows} - {ctx.viewer.user_id})
    opened_ones = await message_content.read_sources(
        ctx.world, rows, ctx.read, message_content.QUARANTINE
    )
    found = {each.row.id: each for each in opened_ones}
    return [found.get(key) for key in ids]


async def text(message: Stored) -> str | None:
    """Return up to 65,536 characters of the plain text, made from HTML if necessary."""
    found = await content.texts(message)
    return found and found[:TEXT]
