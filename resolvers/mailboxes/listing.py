"""Lists of mailboxes: filtered for one account, and paged for several accounts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select
from sqlmodel import col

from mail.mailboxes import paths
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.store.prepared_statements import chosen, values_of
from models.users.tables import User
from resolvers import pagination
from resolvers.access import records
from resolvers.context import Context
from resolvers.mailboxes.loaders import Tree, fitting, trees
from resolvers.pagination import Scan
from resolvers.users.selection import Users, described

ORDER = "mailboxes"


@dataclass(frozen=True, slots=True)
class Only:
    """Which mailboxes of an account are listed. All conditions must hold."""

    masks: tuple[str, ...] | None = None  # any of them
    special_use: bool = False  # with a role
    hidden: bool = False  # hidden ones too
    subscribed: bool | None = None

    @property
    def pattern(self) -> str | None:
        """The regular expression that the paths must match, or None."""
        return None if self.masks is None else paths.pattern(self.masks)


class Totals(NamedTuple):
    """Sums of the counters of several mailboxes. The size is in bytes."""

    total: int
    unseen: int
    size: int


async def of_user(
    ctx: Context, user_id: int, columns: Collection[str], only: Only
) -> Sequence[Picked]:
    """List a user's mailboxes: INBOX and its children first, then in tree order."""
    needed = {"special_use"} if only.special_use else set()
    needed |= {"subscribed"} if only.subscribed is not None else set()
    rows = await ctx.load(trees, Tree(user_id, frozenset({*columns, *needed}), only.pattern))
    places = list(range(len(rows)))
    if not only.hidden:
        hidden = values_of(rows, "hidden")
        places = [at for at in places if not hidden[at]]
    if only.special_use:
        roles = values_of(rows, "special_use")
        places = [at for at in places if roles[at]]
    if only.subscribed is not None:
        subscribed = values_of(rows, "subscribed")
        places = [at for at in places if bool(subscribed[at]) is only.subscribed]
    return rows if len(places) == len(rows) else chosen(rows, places)


async def totals(ctx: Context, user_id: int, only: Only) -> Totals:
    """Sum the counters of a user's listed mailboxes."""
    rows = await of_user(ctx, user_id, Totals._fields, only)
    return Totals(*(sum(values_of(rows, name)) for name in Totals._fields))


async def _terms(
    ctx: Context, users: Users, masks: Sequence[str] | None
) -> list[ColumnElement[bool]]:
    theirs = select(col(User.id)).where(await described(ctx, users))
    terms = [col(Mailbox.user_id).in_(theirs), records(ctx, Mailbox), ~col(Mailbox.hidden)]
    return terms if masks is None else [*terms, fitting(ctx, paths.pattern(masks))]


async def page(
    ctx: Context, users: Users, masks: Sequence[str] | None, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """Load a page of the mailboxes of these users, by user and creation.

    Hidden mailboxes are left out.
    """
    rows = select(*picked(Mailbox, {"id", "user_id", *columns}))
    rows = rows.where(*await _terms(ctx, users, masks))
    place: tuple[Any, Any] = (col(Mailbox.user_id), col(Mailbox.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, users: Users, masks: Sequence[str] | None) -> int:
    """Count the mailboxes of the list that `load_page_of_users` reads."""
    many = select(func.count().label("many")).select_from(Mailbox)
    (row,) = await ctx.read(many.where(*await _terms(ctx, users, masks)))
    return int(row.many)
