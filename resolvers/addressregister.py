"""The address register: with whom an account writes."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select, union
from sqlmodel import col

from models.addresses import Correspondent
from models.columns import Picked, picked
from models.errors import Invalid
from models.pages import MOST
from models.usersearch import beginning
from resolvers import listing
from resolvers.access import visible
from resolvers.context import Context
from resolvers.listing import together

LONGEST = 320  # characters of what is looked for


@dataclass(frozen=True, slots=True)
class OfUser:
    """Those of a user's correspondents whose address or name begins so, the newest first."""

    user_id: int
    query: str
    most: int


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The correspondents with these ids, in this order; None where they are not the viewer's."""
    seen = select(*picked(Correspondent)).where(visible(ctx, Correspondent))
    return await listing.by_keys(ctx, seen, col(Correspondent.id), ids)


def checked(query: str, most: int) -> tuple[str, int]:
    """What is looked for, and how many are wanted; Invalid where that cannot be."""
    if len(query) > LONGEST:
        words = f"at most {LONGEST} characters"
        raise Invalid(words, constraint="max", path=["query"])
    if not 0 < most <= MOST:
        raise Invalid(f"from 1 to {MOST}", constraint="range", path=["first"])
    return query.strip(), most


async def begun(ctx: Context, keys: list[OfUser]) -> list[list[Picked]]:
    """These correspondents, of accounts that are the viewer's own, in one statement."""
    scans = [_scan(ctx, key) for key in keys]
    found = await together(ctx, scans, ["last_used_at", "id"])
    return [rows[::-1] for rows in found]


def _scan(ctx: Context, key: OfUser) -> Select[*tuple[Any, ...]]:
    dialect, mine = ctx.world.database.dialect, col(Correspondent.user_id) == key.user_id
    rows = select(*picked(Correspondent)).where(mine, visible(ctx, Correspondent))
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
