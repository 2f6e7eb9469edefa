"""Operations on addresses."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_, select
from sqlmodel import col

from models.addresses import Address
from models.columns import Picked, picked
from models.pages import Ask, Page
from models.roles import Role
from models.users import User
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.listing import page, turned


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of one user's addresses, by their normal form."""

    user_id: int
    ask: Ask
    columns: frozenset[str]
    query: str | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    """Addresses of accounts that the viewer may see, and of the domains one administers."""
    theirs = col(Address.user_id).in_(select(col(User.id)).where(visible_users(ctx)))
    if ctx.viewer.role.includes(Role.ADMIN):
        return or_(theirs, col(Address.user_id).is_(None))
    if ctx.viewer.administers:
        return or_(theirs, col(Address.domain_id).in_(ctx.viewer.administers))
    return theirs


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The addresses with these ids, in this order; None where the viewer sees none."""
    asked = select(*picked(Address)).where(col(Address.id).in_(ids), _visible(ctx))
    found = {row.id: row for row in await ctx.read(asked)}
    return [found.get(key) for key in ids]


async def mains(ctx: Context, user_ids: list[int]) -> list[Picked | None]:
    """The main addresses of these users, in this order; None where there is none."""
    asked = select(*picked(Address)).where(
        col(Address.user_id).in_(user_ids), col(Address.main), _visible(ctx)
    )
    found = {row.user_id: row for row in await ctx.read(asked)}
    return [found.get(key) for key in user_ids]


def _of(ctx: Context, listing: OfUser) -> list[ColumnElement[bool]]:
    terms = [col(Address.user_id) == listing.user_id, _visible(ctx)]
    if listing.query:
        part = listing.query.lower()
        terms.append(func.lower(col(Address.shown)).contains(part, autoescape=True))
    return terms


async def of_user(ctx: Context, listing: OfUser) -> Page[Picked]:
    """A page of one user's addresses."""
    names = {"id", "local", *listing.columns}
    asked = select(*picked(Address, names)).where(*_of(ctx, listing))
    place = (col(Address.local), col(Address.id))
    rows = await ctx.read(page(asked, listing.ask, place, falling=False))
    return listing.ask.page(turned(rows, listing.ask))


async def count(ctx: Context, listing: OfUser) -> int:
    """How many addresses such a list has."""
    asked = select(func.count()).select_from(Address).where(*_of(ctx, listing))
    (row,) = await ctx.read(asked)
    return int(row[0])
