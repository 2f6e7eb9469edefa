"""Operations on addresses."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_, select, true
from sqlmodel import col

from models.addresses import Address
from models.columns import Picked, picked
from models.pages import Ask, Page
from models.roles import Role
from models.users import User
from resolvers import listing
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.listing import Scan, together
from resolvers.texts import within


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of one user's addresses, by their normal form."""

    user_id: int
    ask: Ask
    columns: frozenset[str]
    query: str | None = None
    temporary: bool = False  # only those with an end that is to come


def _visible(ctx: Context) -> ColumnElement[bool]:
    """Addresses of accounts that the viewer may see, and of the domains one administers."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()  # a deleted account has none
    # looked up for each address: a list of all that one sees may be long
    owner = select(col(User.id)).where(col(User.id) == col(Address.user_id), visible_users(ctx))
    theirs = owner.exists()
    if ctx.viewer.administers:
        return or_(theirs, col(Address.domain_id).in_(ctx.viewer.administers))
    return theirs


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The addresses with these ids, in this order; None where the viewer sees none."""
    seen = select(*picked(Address)).where(_visible(ctx))
    return await listing.by_keys(ctx, seen, col(Address.id), ids)


async def mains(ctx: Context, user_ids: list[int]) -> list[Picked | None]:
    """The main addresses of these users, in this order; None where there is none."""
    seen = select(*picked(Address)).where(col(Address.main), _visible(ctx))
    return await listing.by_keys(ctx, seen, col(Address.user_id), user_ids)


def _of(ctx: Context, key: OfUser) -> list[ColumnElement[bool]]:
    terms = [col(Address.user_id) == key.user_id, _visible(ctx)]
    if key.temporary:
        terms.append(col(Address.expires_at) > ctx.world.now())
    return [*terms, within(col(Address.shown), key.query)] if key.query else terms


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """These pages of users' addresses, each in reading order."""
    columns = frozenset({"id", "local"}).union(*(key.columns for key in keys))
    place = (col(Address.local), col(Address.id))
    scans = []
    for key in keys:
        rows = select(*picked(Address, columns)).where(*_of(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=False))
    return await listing.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """How many addresses these lists have, in their order."""
    many = func.count().label("many")
    scans = [select(many).select_from(Address).where(*_of(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


async def temporary(ctx: Context, user_ids: list[int]) -> list[int]:
    """How many addresses with an end that is to come these users have, in their order."""
    asked = (
        select(col(Address.user_id), func.count())
        .where(
            col(Address.user_id).in_(user_ids),
            col(Address.expires_at) > ctx.world.now(),
            _visible(ctx),
        )
        .group_by(col(Address.user_id))
    )
    found = {key: int(many) for key, many in await ctx.read(asked)}
    return [found.get(key, 0) for key in user_ids]
