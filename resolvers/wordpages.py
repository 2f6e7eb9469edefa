"""Pages of what words alone find, on SQLite, whose index knows no order but that of the keys.

Of few hits all are looked up, and sorted. Of many, a page is usually among the newest messages:
the index is asked for those alone. Only where that is not enough, all hits are sorted.
"""

from typing import Any, NamedTuple

import orjson
from sqlalchemy import Integer, Select, and_, case, column, select
from sqlmodel import col

from mail.searchindex import Sought, written
from models import searchindex
from models.columns import Picked, picked
from models.messages import Message
from models.pages import Ask, Page
from models.prepared import number, prepared
from resolvers import listing
from resolvers.access import owned
from resolvers.context import Context
from resolvers.listing import Form
from resolvers.searchindex import waiting_of

HITS = 300  # that are sorted without more ado
NEAR = 1000  # messages among which a page is looked for
PLACE = (col(Message.received_at), col(Message.id))


class Where(NamedTuple):
    """Of whom a page is, and of which folder or conversation."""

    user_id: int
    mailbox_id: int | None
    thread_id: int | None


async def page(ctx: Context, where: Where, sought: Sought, ask: Ask, form: Form) -> Page[Picked]:
    """The page of the viewer's own messages that have these words."""
    waiting = await waiting_of(ctx, [where.user_id])
    given = {
        "user": where.user_id,
        "mailbox": where.mailbox_id,
        "thread": where.thread_id,
        "query": written("sqlite", waiting.owners, sought),
        "ids": orjson.dumps(waiting.holding(sought)).decode(),
        "most": HITS + 1,
        "near": NEAR,
        **listing.parameters(ask, PLACE),
    }
    parts = {"of_mailbox": where.mailbox_id is not None, "of_thread": where.thread_id is not None}
    (found,) = await ctx.search(_many(), **given)
    if found.many > HITS:
        rows = await ctx.search(_select(form, near=True, **parts), **given)
        if len(rows) > ask.count:
            return listing.page_of(rows, ask)
    return listing.page_of(await ctx.search(_select(form, near=False, **parts), **given), ask)


@prepared
def _many() -> Select[*tuple[Any, ...]]:
    return select(searchindex.MANY.columns(column("many", Integer)).subquery().c.many)


@prepared
def _select(
    form: Form, *, near: bool, of_mailbox: bool, of_thread: bool
) -> Select[*tuple[Any, ...]]:
    mine = [owned(Message), col(Message.user_id) == number("user")]
    mine.append(
        col(Message.mailbox_id) == number("mailbox")
        if of_mailbox
        else col(Message.archived_at).is_(None)
    )
    if of_thread:
        mine.append(col(Message.thread_id) == number("thread"))
    found = (searchindex.NEAR if near else searchindex.ALL).columns(column("rowid", Integer))
    known = select(found.subquery().c.rowid)
    rows = select(*picked(Message, form.columns))
    if near:
        rows = rows.where(col(Message.id).in_(_first(form, mine, known)))
    else:  # inside a CASE nothing names an index: what was found comes first
        rows = rows.where(col(Message.id).in_(known), case((and_(*mine), 1), else_=0) == 1)
    return listing.form_of_page(rows, form, PLACE)


def _first(form: Form, mine: list[Any], known: Any) -> Any:
    """What is found of the messages that come first, as an index has them: no row is looked at."""
    first = listing.form_of_page(select(*PLACE).where(*mine), form, PLACE)
    near = first.limit(number("near")).cte("near")
    up = form.back is form.falling
    order = [c if up else c.desc() for c in (near.c.received_at, near.c.id)]
    found = select(near.c.id).where(near.c.id.in_(known)).order_by(*order)
    return found.limit(listing.COUNT)
