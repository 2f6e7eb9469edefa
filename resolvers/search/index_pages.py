"""Read pages of the viewer's messages that contain certain words, newest or oldest first.

PostgreSQL knows how common words are. SQLite does not, and its index is ordered by message ID
only. If a search has few hits, all of them are looked up and sorted. If it has many, the page
is searched among the messages that come first: in scan ranges of growing length, each matched
against the index entries between its lowest and its highest ID. Only if the scan ranges do not
fill the page, all hits are looked up.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    TextClause,
    and_,
    bindparam,
    case,
    column,
    func,
    select,
)
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op
from sqlmodel import col

from mail.search.tokenizer import Sought, written
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import Big, Picked, picked
from models.store.dependent_selects import Step, only
from models.store.keyset_pages import Ask, Page
from models.store.prepared_statements import number, prepared
from resolvers import pagination
from resolvers.access import owned
from resolvers.context import Context
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.pagination import Form
from resolvers.search.index_query import Waiting

HITS = 300  # up to this number all hits are looked up and sorted
STRETCHES = (5, 25, 125, 625)  # messages in a scan range, per row of the page
NEAR = 251  # rows by ID in one prepared read
# The sign keeps SQLite from using the primary key: it scans the range in the order of the page.
KEY: Any = col(Message.id)
SIGNED: ColumnElement[int] = UnaryExpression(KEY, operator=custom_op[Any]("+"))


@dataclass(frozen=True, slots=True)
class Rest:
    """The conditions of a filter except words, as SQL that is built on demand.

    If the conditions contain no values (`is_cacheable`), their SELECT statements are prepared
    once.
    """

    where: MessageWhere
    kept: bool
    terms: Callable[[], Sequence[ColumnElement[bool]]] = field(compare=False, repr=False)


class Where(NamedTuple):
    """A search for words in the messages of a user, optionally of one mailbox or thread."""

    user_id: int
    mailbox_id: int | None
    thread_id: int | None
    words: Sought
    waiting: Waiting
    rest: Rest


class Parts(NamedTuple):
    """The properties of a page that its SELECT statement depends on."""

    form: Form
    place: tuple[Any, Any]
    of_mailbox: bool
    of_thread: bool

    @property
    def up(self) -> bool:
        """True if the smallest sort values come first."""
        return self.form.back is self.form.falling

    def mine(self) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses of the user, mailbox and thread, without the search."""
        found = [owned(Message)]
        found.append(
            col(Message.mailbox_id) == number("mailbox")
            if self.of_mailbox
            else col(Message.archived_at).is_(None)
        )
        if self.of_thread:
            found.append(col(Message.thread_id) == number("thread"))
        return found

    def ordered(self, rows: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        """Return a SELECT restricted to the rows after the cursor, in the order of the page."""
        return pagination.form_of_page(rows, self.form, self.place)

    def between(self, stretch: "Stretch") -> list[ColumnElement[bool]]:
        """Return the WHERE clauses of the messages in a scan range."""
        at, _ = self.place
        start, edge = (bindparam(name, type_=at.type) for name in ("start", "edge"))
        found = [at >= start if self.up else at <= start] if stretch.begun else []
        # Rows with the sort value of the end may follow it: the next range returns all of them.
        return found if stretch.last else [*found, at < edge if self.up else at > edge]


class Stretch(NamedTuple):
    """A range of messages in page order. `has_start` is False for the first range."""

    begun: bool
    last: bool


async def page(
    ctx: Context, where: Where, ask: Ask, form: Form, place: tuple[Any, Any]
) -> Page[Picked]:
    """Return the page of messages that contain the words and meet the remaining conditions."""
    dialect, ids = ctx.world.database.dialect, where.waiting.holding(where.words)
    given = {
        "viewer": ctx.viewer.user_id,
        "mailbox": where.mailbox_id,
        "thread": where.thread_id,
        "query": written(dialect, where.waiting.owners, where.words),
        "ids": _listed(ids),
        **pagination.parameters(ask, place),
    }
    parts = Parts(form, place, where.mailbox_id is not None, where.thread_id is not None)
    if dialect == "postgresql":
        planned = _planned(parts, where.rest, waiting=bool(ids))
        return pagination.page_of(await ctx.follow(only((planned, given))), ask)
    keys = await ctx.follow(_keys(parts, where.rest, ids, given))
    named = {**given, "ids": _listed(keys)}
    if len(keys) <= NEAR:
        rows = await ctx.find(_rows(parts), **named)
    else:
        rows = await ctx.follow(only((_rows(parts), named)))
    return ask.page(rows[::-1] if ask.back else rows, more=len(keys) > ask.count)


def _listed(keys: Sequence[int]) -> str:
    """Return message IDs as a JSON array, the form of the statement's `ids` parameter."""
    return orjson.dumps(keys).decode()


def _keys(
    parts: Parts, rest: Rest, ids: Sequence[int], given: dict[str, Any]
) -> Generator[Step, Sequence[Any], list[int]]:
    """Return the IDs of a page and of one more message. If fewer match, return all of these."""
    (some,) = yield _some(), {**given, "most": HITS + 1}
    if some.many <= HITS:
        hits = [*orjson.loads(some.ids), *ids]
        if len(hits) < given["count"] and rest.where.everything:
            return hits
        given = {**given, "ids": _listed(hits)}
    else:
        found = yield from _stretched(parts, rest, given)
        if found is not None:
            return found
    sorted_ = _kept_sorted if rest.kept else _sorted
    (page,) = yield sorted_(parts, rest, few=some.many <= HITS), given
    keys: list[int] = orjson.loads(page.ids)
    return keys


def _stretched(
    parts: Parts, rest: Rest, given: dict[str, Any]
) -> Generator[Step, Sequence[Any], list[int] | None]:
    """Return the IDs of a page by scanning ranges; None if the ranges do not fill it."""
    walk = _kept_walk if rest.kept else _walk
    keys: list[int] = []
    for each in STRETCHES:
        begun = "start" in given
        behind = yield _behind(parts, begun=begun), {**given, "many": each * given["count"]}
        edge = behind[0].at if behind else None
        asked = {**given, "count": given["count"] - len(keys), "edge": edge}
        (found,) = yield walk(parts, rest, Stretch(begun, not behind)), asked
        keys += orjson.loads(found.ids)
        if not behind or len(keys) == given["count"]:
            return keys
        given = {**given, "start": edge}
    return None


@prepared
def _planned(parts: Parts, rest: Rest, *, waiting: bool) -> Select[*tuple[Any, ...]]:
    """Build the SELECT for PostgreSQL. Its planner knows the frequency of the words."""
    found = text_index.ALL["postgresql"] if waiting else text_index.ALONE
    rows = select(*picked(Message, parts.form.columns)).where(*parts.mine(), *rest.terms())
    return parts.ordered(rows.where(KEY.in_(_found(found))))


@prepared
def _some() -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the number of matches and, if they are few, of their IDs."""
    found = text_index.SOME.columns(column("many", Integer), column("ids", String)).subquery()
    return select(found.c.many, found.c.ids)


@prepared
def _behind(parts: Parts, *, begun: bool) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the sort value of the message after `many` messages, if there is one."""
    rows = select(parts.place[0].label("at")).where(
        *parts.mine(), *parts.between(Stretch(begun, last=True))
    )
    return parts.ordered(rows).limit(1).offset(number("many"))


def _walk(parts: Parts, rest: Rest, stretch: Stretch) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the IDs of the matches in a scan range."""
    there = [*parts.mine(), *parts.between(stretch)]
    ends = select(func.min(KEY).label("low"), func.max(KEY).label("high"))
    ends_ = ends.where(*there, *pagination.beyond(parts.form, parts.place)).cte("stretch")
    rows = select(KEY).where(*there, SIGNED.in_(_found(text_index.WITHIN)), *rest.terms())
    return _in_one(parts.ordered(rows.add_cte(ends_)))


def _sorted(parts: Parts, rest: Rest, *, few: bool) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the IDs of a page, sorted from all hits, or from listed hits.

    Inside a CASE expression SQLite uses no index, so it reads the hits first.
    """
    found = text_index.LISTED if few else text_index.ALL["sqlite"]
    rows = select(KEY).where(
        KEY.in_(_found(found)),
        case((and_(*parts.mine(), *rest.terms()), 1), else_=0) == 1,
    )
    return _in_one(parts.ordered(rows))


_kept_walk, _kept_sorted = prepared(_walk), prepared(_sorted)


@prepared
def _rows(parts: Parts) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the page's columns by message ID, in the order of the page."""
    rows = select(*picked(Message, parts.form.columns)).where(
        KEY.in_(_found(text_index.LISTED)),
        case((and_(*parts.mine()), 1), else_=0) == 1,
    )
    return parts.ordered(rows)


def _found(known: TextClause) -> Select[*tuple[Any, ...]]:
    """Return a SELECT of the message IDs that an index query returns."""
    return select(known.columns(column("rowid", Big)).subquery().c.rowid)


def _in_one(keys: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Return a SELECT with one row: the IDs of a query as a JSON array."""
    found = keys.subquery()
    return select(func.json_group_array(found.c.id, type_=String).label("ids"))
