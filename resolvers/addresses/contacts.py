"""Contacts: addresses that an account has exchanged mail with, and colleagues."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, null, select, union, union_all
from sqlmodel import col

from mail.recipients.contacts import key_of
from models.addresses.tables import Address, Correspondent
from models.domains.tables import Domain
from models.errors import Invalid
from models.store.columns import Picked
from models.store.keyset_pages import MOST
from models.users.search_index import LETTERS, beginning, holding
from models.users.tables import User
from resolvers.access import visible
from resolvers.context import Context
from resolvers.pagination import together

ENTRY: tuple[Any, ...] = (
    col(Correspondent.id),
    col(Correspondent.name),
    col(Correspondent.address),
    col(Correspondent.last_used_at),
)
LONGEST = 320  # characters


@dataclass(frozen=True, slots=True)
class OfUser:
    """A search for a user's contacts by the beginning of their address or name.

    Colleagues are also found by any part of their name if the query has at least three
    characters.
    """

    user_id: int
    query: str
    most: int


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load contacts by id, in the given order. None for an id that the viewer can't see.

    An id is that of a contact of the viewer, or that of the main address of a colleague.
    """
    mine = select(*ENTRY).where(visible(ctx, Correspondent), col(Correspondent.id).in_(ids))
    theirs = _colleagues(ctx).where(col(Address.id).in_(ids))
    both: Select[*tuple[Any, ...]] = select(union_all(mine, theirs).subquery())
    found = {row.id: row for row in await ctx.read(both)}
    return [found.get(key) for key in ids]


def _colleagues(ctx: Context) -> Select[*tuple[Any, ...]]:
    """Select the other users of the viewer's domain as contacts.

    Selects nothing unless the domain has the global address list enabled.
    """
    own = (
        select(col(User.domain_id))
        .join(Domain, col(Domain.id) == col(User.domain_id))
        .where(col(User.id) == ctx.viewer.user_id, col(Domain.global_address_list))
    )
    return (
        select(
            col(Address.id).label("id"),
            func.coalesce(col(Address.name), col(User.name)).label("name"),
            col(Address.shown).label("address"),
            null().label("last_used_at"),
        )
        .join(User, col(User.id) == col(Address.user_id))
        .where(
            col(Address.main),
            col(Address.active),
            ~col(User.disabled),
            col(User.domain_id).in_(own),
            col(User.id) != ctx.viewer.user_id,
        )
    )


def checked(query: str, most: int) -> tuple[str, int]:
    """Return the trimmed query and the limit. Raises InvalidInput if one is not allowed."""
    if len(query) > LONGEST:
        words = f"at most {LONGEST} characters"
        raise Invalid(words, constraint="max", path=["query"])
    if not 0 < most <= MOST:
        raise Invalid(f"from 1 to {MOST}", constraint="range", path=["first"])
    return query.strip(), most


async def begun(ctx: Context, keys: list[OfUser]) -> list[list[Picked]]:
    """Load the contacts of each search, the last used first, and then colleagues.

    Colleagues are added for searches of the viewer's own account only. Runs one statement for
    all contacts and one for all colleagues.
    """
    found = await together(ctx, [_scan(ctx, key) for key in keys], ["last_used_at", "id"])
    mine = [key for key in keys if key.user_id == ctx.viewer.user_id]
    more = await together(ctx, [_near(ctx, key) for key in mine], ["address"]) if mine else []
    near = dict(zip(mine, more, strict=True))
    listed = []
    for key, rows in zip(keys, found, strict=True):
        known = {key_of(row.address) for row in rows}
        behind = [row for row in near.get(key, ()) if key_of(row.address) not in known]
        listed.append([*rows[::-1], *behind][: key.most])
    return listed


def _near(ctx: Context, key: OfUser) -> Select[*tuple[Any, ...]]:
    """Select the colleagues that a search finds, ordered by address."""
    dialect, part = ctx.world.database.dialect, key.query.casefold()
    rows = _colleagues(ctx)
    if len(part) >= LETTERS:
        rows = rows.where(holding(dialect, part))
    elif part:
        rows = rows.where(beginning(dialect, col(Address.local), part))
    return rows.order_by(col(Address.shown)).limit(key.most)


def _scan(ctx: Context, key: OfUser) -> Select[*tuple[Any, ...]]:
    """Select the contacts that a search finds, the last used first."""
    dialect, mine = ctx.world.database.dialect, col(Correspondent.user_id) == key.user_id
    rows = select(*ENTRY).where(mine, visible(ctx, Correspondent))
    if key.query:
        # two ranges of indexes: an OR would read all of the account
        ids = select(col(Correspondent.id))
        called = beginning(dialect, col(Correspondent.called), key.query.casefold())
        written = beginning(dialect, col(Correspondent.key), key.query.casefold())
        rows = rows.where(
            col(Correspondent.id).in_(union(ids.where(mine, called), ids.where(mine, written)))
        )
    newest = (col(Correspondent.last_used_at).desc(), col(Correspondent.id).desc())
    return rows.order_by(*newest).limit(key.most)
