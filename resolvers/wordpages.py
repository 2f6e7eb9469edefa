"""Pages of what words alone find, by selects that are made once.

PostgreSQL knows how common words are. SQLite does not, and its index has no order but that of
the keys: of few hits all are looked up, and sorted. Of many, a page is usually among the newest
messages: the index is asked for those alone. Only where that is not enough, all hits are sorted.
"""

from typing import Any, NamedTuple

import orjson
from sqlalchemy import ColumnElement, Integer, Select, TextClause, and_, case, column, select
from sqlmodel import col

from mail.searchindex import Sought, written
from models import searchindex
from models.columns import Big, Picked, picked
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
PLACE = (col(Message.listed_at), col(Message.id))


class Where(NamedTuple):
    """Of whom a page is, and of which folder or conversation."""

    user_id: int
    mailbox_id: int | None
    thread_id: int | None


class Parts(NamedTuple):
    """What decides how a page's select reads."""

    form: Form
    of_mailbox: bool
    of_thread: bool

    def mine(self) -> list[ColumnElement[bool]]:
        """SQL: the messages that the page may have."""
        found = [owned(Message), col(Message.user_id) == number("user")]
        found.append(
            col(Message.mailbox_id) == number("mailbox")
            if self.of_mailbox
            else col(Message.archived_at).is_(None)
        )
        if self.of_thread:
            found.append(col(Message.thread_id) == number("thread"))
        return found


async def page(ctx: Context, where: Where, sought: Sought, ask: Ask, form: Form) -> Page[Picked]:
    """The page of the viewer's own messages that have these words."""
    waiting = await waiting_of(ctx, [where.user_id])
    dialect, ids = ctx.world.database.dialect, waiting.holding(sought)
    given = {
        "user": where.user_id,
        "mailbox": where.mailbox_id,
        "thread": where.thread_id,
        "query": written(dialect, waiting.owners, sought),
        "ids": orjson.dumps(ids).decode(),
        "most": HITS + 1,
        "near": NEAR,
        **listing.parameters(ask, PLACE),
    }
    parts = Parts(form, where.mailbox_id is not None, where.thread_id is not None)
    if dialect == "postgresql":
        rows = await ctx.search(_planned(parts, waiting=bool(ids)), **given)
        return listing.page_of(rows, ask)
    (found,) = await ctx.search(_many(), **given)
    if found.many > HITS:
        rows = await ctx.search(_near(parts), **given)
        if len(rows) > ask.count:
            return listing.page_of(rows, ask)
    return listing.page_of(await ctx.search(_sorted(parts), **given), ask)


@prepared
def _many() -> Select[*tuple[Any, ...]]:
    return select(searchindex.MANY.columns(column("many", Integer)).subquery().c.many)


@prepared
def _planned(parts: Parts, *, waiting: bool) -> Select[*tuple[Any, ...]]:
    """What is found, in a way that PostgreSQL chooses by how many have these words."""
    found = searchindex.ALL["postgresql"] if waiting else searchindex.ALONE
    rows = select(*picked(Message, parts.form.columns)).where(*parts.mine())
    return listing.form_of_page(rows.where(col(Message.id).in_(_keys(found))), parts.form, PLACE)


@prepared
def _sorted(parts: Parts) -> Select[*tuple[Any, ...]]:
    """All that is found: inside a CASE nothing names an index, so what was found comes first."""
    rows = select(*picked(Message, parts.form.columns)).where(
        col(Message.id).in_(_keys(searchindex.ALL["sqlite"])),
        case((and_(*parts.mine()), 1), else_=0) == 1,
    )
    return listing.form_of_page(rows, parts.form, PLACE)


@prepared
def _near(parts: Parts) -> Select[*tuple[Any, ...]]:
    """What is found among the messages that come first."""
    first = _first(parts.form, parts.mine(), _keys(searchindex.NEAR))
    rows = select(*picked(Message, parts.form.columns)).where(col(Message.id).in_(first))
    return listing.form_of_page(rows, parts.form, PLACE)


def _keys(found: TextClause) -> Select[*tuple[Any, ...]]:
    return select(found.columns(column("rowid", Big)).subquery().c.rowid)


def _first(form: Form, mine: list[Any], known: Any) -> Any:
    """What is found of the messages that come first, as an index has them: no row is looked at."""
    first = listing.form_of_page(select(*PLACE).where(*mine), form, PLACE)
    near = first.limit(number("near")).cte("near")
    up = form.back is form.falling
    order = [c if up else c.desc() for c in (near.c.listed_at, near.c.id)]
    found = select(near.c.id).where(near.c.id.in_(known)).order_by(*order)
    return found.limit(listing.COUNT)
