"""Search the mail of one user or of many."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.errors import Forbidden, Invalid, LimitReached
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked
from models.store.keyset_pages import Page
from models.store.text_folding import fold_text
from resolvers.access import administered, own, records
from resolvers.context import Context
from resolvers.mailboxes.loaders import BY, Named
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_lookups import parts
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.messages.loaders import Listing
from resolvers.users import selection
from resolvers.users.selection import Users

MOST = 100  # accounts of one search

KnownPlaces = frozenset[tuple[str, Any]]  # a selector field of a mailbox, and its value


async def owners(ctx: Context, users: Users) -> list[int]:
    """Return the IDs of the users to search: the viewer, or selected users.

    Raises LimitReached for more than 100 users, Forbidden if the viewer may not act as them.
    """
    if not users.given:
        return [own(ctx)]
    found = [row.id for row in await selection.chosen(ctx, users)]
    if len(found) > MOST:
        words = f"at most {MOST} accounts at once: narrow the selection"
        raise LimitReached(words, limit=MOST, used=len(found), path=["users"])
    if set(found) - {ctx.viewer.user_id} and not administered(ctx):
        words = "records of other people's mail are for those who may act as them"
        raise Forbidden(words, requires="LOGIN_AS", path=["users"])
    return found


async def check_places(ctx: Context, where: MessageWhere, owners: Sequence[int]) -> None:
    """Check the mailboxes that a search names. Raises Invalid if no user has one of them."""
    if _named(where):
        check_known(where, await known_places(ctx, owners))


async def known_places(ctx: Context, owners: Sequence[int]) -> KnownPlaces:
    """Load the values by which a search can select the mailboxes of these users."""
    asked = select(*picked(Mailbox, set(BY)))
    rows = await ctx.read(asked.where(records(ctx, Mailbox), col(Mailbox.user_id).in_(owners)))
    return frozenset((by, _folded(getattr(row, by))) for row in rows for by in BY)


def check_known(where: MessageWhere, known: KnownPlaces) -> None:
    """Raise Invalid if a search names a mailbox that is not known."""
    for name in _named(where):
        given = [(by, _folded(getattr(name, by))) for by in BY if getattr(name, by) is not None]
        if known.isdisjoint(given):
            words = f"there is no folder {str(name)[:80]!r}"
            if name.id is not None:
                words = "there is no folder with this id"
            raise Invalid(words, constraint="mailbox", path=["query"])


def _named(where: MessageWhere) -> set[Named]:
    """Return the mailbox selectors of a filter."""
    return {
        name
        for one in parts(where)
        for name in (*(one.mailboxes or ()), *((one.mailbox,) if one.mailbox else ()))
    }


async def across(ctx: Context, listings: Sequence[Listing]) -> Page[Picked]:
    """Return one page of the merged listings, which must request the same page."""
    ask, falling = listings[0].ask, listings[0].falling
    found = await ctx.load_all(message_loaders.pages, listings)
    every = (row for page in found for row in page.rows)
    rows = sorted(every, key=message_loaders.place, reverse=falling)
    return ask.page(rows, more=any(p.previous if ask.back else p.next for p in found))


def _folded(value: Any) -> Any:
    return fold_text(value) if type(value) is str else value  # an enum is a str, too
