"""Searching in one account or in many."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.columns import Picked, picked
from models.errors import Forbidden, Invalid, LimitReached
from models.folding import fold_text
from models.mailboxes import Mailbox
from models.pages import Page
from resolvers import messages, userselection
from resolvers.access import administered, own, records
from resolvers.context import Context
from resolvers.looking import parts
from resolvers.mailboxes import BY
from resolvers.messages import Listing
from resolvers.userselection import Users
from resolvers.where import MessageWhere

MOST = 100  # accounts of one search


async def owners(ctx: Context, users: Users) -> list[int]:
    """Whose mail is searched: the viewer's, or that of accounts the viewer administers."""
    if not users.given:
        return [own(ctx)]
    found = [row.id for row in await userselection.chosen(ctx, users)]
    if len(found) > MOST:
        words = f"at most {MOST} accounts at once: narrow the selection"
        raise LimitReached(words, limit=MOST, used=len(found), path=["users"])
    if set(found) - {ctx.viewer.user_id} and not administered(ctx):
        words = "records of other people's mail are for those who may act as them"
        raise Forbidden(words, requires="LOGIN_AS", path=["users"])
    return found


async def check_places(ctx: Context, where: MessageWhere, owners: Sequence[int]) -> None:
    """Invalid where a search names a folder that none of these accounts has."""
    named = {
        name
        for one in parts(where)
        for name in (*(one.mailboxes or ()), *((one.mailbox,) if one.mailbox else ()))
    }
    if not named:
        return
    asked = select(*picked(Mailbox, set(BY)))
    rows = await ctx.read(asked.where(records(ctx, Mailbox), col(Mailbox.user_id).in_(owners)))
    there = {(by, _folded(getattr(row, by))) for row in rows for by in BY}
    for name in named:
        given = [(by, _folded(getattr(name, by))) for by in BY if getattr(name, by) is not None]
        if there.isdisjoint(given):
            words = f"there is no folder {str(name)[:80]!r}"
            raise Invalid(words, constraint="mailbox", path=["query"])


async def across(ctx: Context, listings: Sequence[Listing]) -> Page[Picked]:
    """One page of what all these lists have, which ask for the same page."""
    ask, falling = listings[0].ask, listings[0].falling
    found = await ctx.load_all(messages.pages, listings)
    every = (row for page in found for row in page.rows)
    rows = sorted(every, key=messages.place, reverse=falling)
    return ask.page(rows, more=any(p.previous if ask.back else p.next for p in found))


def _folded(value: Any) -> Any:
    return fold_text(value) if type(value) is str else value  # an enum is a str, too
