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

from mail.search.tokenizer import SearchExpression, index_query
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import BIG_INTEGER, ColumnRow, select_columns
from models.store.dependent_selects import SelectStep, single_step
from models.store.keyset_pages import Page, PageRequest
from models.store.prepared_statements import integer_parameter, prepare_cached
from resolvers import pagination
from resolvers.context import Context
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import own_list_conditions
from resolvers.pagination import PageForm
from resolvers.search.index_query import UnindexedMessages

MAX_HITS_TO_SORT = 300  # up to this number all hits are looked up and sorted
SCAN_LENGTH_FACTORS = (5, 25, 125, 625)  # messages in a scan range, per row of the page
MAX_IDS_IN_ONE_READ = 251  # rows by ID in one prepared read
# The sign keeps SQLite from using the primary key: it scans the range in the order of the page.
MESSAGE_ID: Any = col(Message.id)
UNINDEXED_MESSAGE_ID: ColumnElement[int] = UnaryExpression(MESSAGE_ID, operator=custom_op[Any]("+"))


@dataclass(frozen=True, slots=True)
class RemainingConditions:
    """The conditions of a filter except words, as SQL that is built on demand.

    If the conditions contain no values (`is_cacheable`), their SELECT statements are prepared
    once.
    """

    conditions: MessageConditions
    is_cacheable: bool
    build_clauses: Callable[[], Sequence[ColumnElement[bool]]] = field(compare=False, repr=False)


class WordSearch(NamedTuple):
    """A search for words in the messages of a user, optionally of one mailbox or thread."""

    user_id: int
    mailbox_id: int | None
    thread_id: int | None
    expression: SearchExpression
    unindexed: UnindexedMessages
    remaining: RemainingConditions


class PageQueryShape(NamedTuple):
    """The properties of a page that its SELECT statement depends on."""

    form: PageForm
    sort_columns: tuple[Any, Any]
    has_mailbox: bool
    has_thread: bool

    @property
    def is_ascending(self) -> bool:
        """True if the smallest sort values come first."""
        return self.form.is_ascending_scan

    def base_clauses(self) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses of the user, mailbox and thread, without the search."""
        return own_list_conditions(
            integer_parameter("mailbox") if self.has_mailbox else None,
            integer_parameter("thread") if self.has_thread else None,
        )

    def ordered_page_select(self, query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        """Return a SELECT restricted to the rows after the cursor, in the order of the page."""
        return pagination.page_select(query, self.form, self.sort_columns)

    def scan_range_clauses(self, scan_range: "ScanRange") -> list[ColumnElement[bool]]:
        """Return the WHERE clauses of the messages in a scan range."""
        at, _ = self.sort_columns
        start, edge = (bindparam(name, type_=at.type) for name in ("start", "edge"))
        clauses = (
            [at >= start if self.is_ascending else at <= start] if scan_range.has_start else []
        )
        # Rows with the sort value of the end may follow it: the next range returns all of them.
        return (
            clauses
            if scan_range.is_last
            else [*clauses, at < edge if self.is_ascending else at > edge]
        )


class ScanRange(NamedTuple):
    """A range of messages in page order. `has_start` is False for the first range."""

    has_start: bool
    is_last: bool


async def read_page_of_matches(
    ctx: Context,
    search: WordSearch,
    page_request: PageRequest,
    form: PageForm,
    sort_columns: tuple[Any, Any],
) -> Page[ColumnRow]:
    """Return the page of messages that contain the words and meet the remaining conditions."""
    dialect = ctx.environment.database.dialect
    ids = search.unindexed.ids_of_matches(search.expression)
    given = {
        "viewer": ctx.viewer.user_id,
        "mailbox": search.mailbox_id,
        "thread": search.thread_id,
        "query": index_query(dialect, search.unindexed.user_ids, search.expression),
        "ids": _ids_as_json(ids),
        **pagination.page_parameters(page_request, sort_columns),
    }
    parts = PageQueryShape(
        form, sort_columns, search.mailbox_id is not None, search.thread_id is not None
    )
    if dialect == "postgresql":
        planned = _postgres_page_query(parts, search.remaining, has_unindexed=bool(ids))
        return pagination.page_from_rows(
            await ctx.run_select_steps(single_step((planned, given))), page_request
        )
    keys = await ctx.run_select_steps(_find_page_ids(parts, search.remaining, ids, given))
    parameters: dict[str, Any] = {**given, "ids": _ids_as_json(keys)}
    if len(keys) <= MAX_IDS_IN_ONE_READ:
        rows = await ctx.read_prepared(_rows_by_id_query(parts), **parameters)
    else:
        rows = await ctx.run_select_steps(single_step((_rows_by_id_query(parts), parameters)))
    return page_request.page_from_rows(
        rows[::-1] if page_request.is_backward else rows, has_more=len(keys) > page_request.count
    )


def _ids_as_json(message_ids: Sequence[int]) -> str:
    """Return message IDs as a JSON array, the form of the statement's `ids` parameter."""
    return orjson.dumps(message_ids).decode()


def _find_page_ids(
    shape: PageQueryShape,
    remaining: RemainingConditions,
    unindexed_ids: Sequence[int],
    parameters: dict[str, Any],
) -> Generator[SelectStep, Sequence[Any], list[int]]:
    """Return the IDs of a page and of one more message. If fewer match, return all of these."""
    (matches_row,) = yield _counted_matches_query(), {**parameters, "most": MAX_HITS_TO_SORT + 1}
    if matches_row.many <= MAX_HITS_TO_SORT:
        hit_ids = [*orjson.loads(matches_row.ids), *unindexed_ids]
        if len(hit_ids) < parameters["count"] and remaining.conditions.is_empty:
            return hit_ids
        parameters = {**parameters, "ids": _ids_as_json(hit_ids)}
    else:
        page_ids = yield from _find_page_ids_by_scan(shape, remaining, parameters)
        if page_ids is not None:
            return page_ids
    sorted_ = _cached_sorted_ids_query if remaining.is_cacheable else _sorted_ids_query
    (page,) = yield (
        sorted_(shape, remaining, has_listed_hits=matches_row.many <= MAX_HITS_TO_SORT),
        parameters,
    )
    keys: list[int] = orjson.loads(page.ids)
    return keys


def _find_page_ids_by_scan(
    shape: PageQueryShape, remaining: RemainingConditions, parameters: dict[str, Any]
) -> Generator[SelectStep, Sequence[Any], list[int] | None]:
    """Return the IDs of a page by scanning ranges; None if the ranges do not fill it."""
    walk = _cached_ids_in_scan_range_query if remaining.is_cacheable else _ids_in_scan_range_query
    keys: list[int] = []
    for factor in SCAN_LENGTH_FACTORS:
        has_start = "start" in parameters
        range_end = yield (
            _scan_range_end_query(shape, has_start=has_start),
            {**parameters, "many": factor * parameters["count"]},
        )
        edge = range_end[0].at if range_end else None
        page_parameters = {**parameters, "count": parameters["count"] - len(keys), "edge": edge}
        (page_ids,) = yield (
            walk(shape, remaining, ScanRange(has_start, not range_end)),
            page_parameters,
        )
        keys += orjson.loads(page_ids.ids)
        if not range_end or len(keys) == parameters["count"]:
            return keys
        parameters = {**parameters, "start": edge}
    return None


@prepare_cached
def _postgres_page_query(
    shape: PageQueryShape, remaining: RemainingConditions, *, has_unindexed: bool
) -> Select[*tuple[Any, ...]]:
    """Build the SELECT for PostgreSQL. Its planner knows the frequency of the words."""
    matches = (
        text_index.MATCHES_AND_LISTED["postgresql"]
        if has_unindexed
        else text_index.POSTGRES_MATCHES
    )
    rows = select(*select_columns(Message, shape.form.columns)).where(
        *shape.base_clauses(), *remaining.build_clauses()
    )
    return shape.ordered_page_select(rows.where(MESSAGE_ID.in_(_ids_from_index_query(matches))))


@prepare_cached
def _counted_matches_query() -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the number of matches and, if they are few, of their IDs."""
    matches = text_index.COUNTED_MATCHES.columns(
        column("many", Integer), column("ids", String)
    ).subquery()
    return select(matches.c.many, matches.c.ids)


@prepare_cached
def _scan_range_end_query(shape: PageQueryShape, *, has_start: bool) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the sort value of the message after `many` messages, if there is one."""
    rows = select(shape.sort_columns[0].label("at")).where(
        *shape.base_clauses(), *shape.scan_range_clauses(ScanRange(has_start, is_last=True))
    )
    return shape.ordered_page_select(rows).limit(1).offset(integer_parameter("many"))


def _ids_in_scan_range_query(
    shape: PageQueryShape, remaining: RemainingConditions, scan_range: ScanRange
) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the IDs of the matches in a scan range."""
    clauses = [*shape.base_clauses(), *shape.scan_range_clauses(scan_range)]
    id_range = select(func.min(MESSAGE_ID).label("low"), func.max(MESSAGE_ID).label("high"))
    ends_ = id_range.where(
        *clauses, *pagination.after_cursor_sql(shape.form, shape.sort_columns)
    ).cte("stretch")
    rows = select(MESSAGE_ID).where(
        *clauses,
        UNINDEXED_MESSAGE_ID.in_(_ids_from_index_query(text_index.MATCHES_IN_RANGE)),
        *remaining.build_clauses(),
    )
    return _ids_in_one_row(shape.ordered_page_select(rows.add_cte(ends_)))


def _sorted_ids_query(
    shape: PageQueryShape, remaining: RemainingConditions, *, has_listed_hits: bool
) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the IDs of a page, sorted from all hits, or from listed hits.

    Inside a CASE expression SQLite uses no index, so it reads the hits first.
    """
    matches = (
        text_index.SQLITE_LISTED_IDS if has_listed_hits else text_index.MATCHES_AND_LISTED["sqlite"]
    )
    rows = select(MESSAGE_ID).where(
        MESSAGE_ID.in_(_ids_from_index_query(matches)),
        case((and_(*shape.base_clauses(), *remaining.build_clauses()), 1), else_=0) == 1,
    )
    return _ids_in_one_row(shape.ordered_page_select(rows))


_cached_ids_in_scan_range_query = prepare_cached(_ids_in_scan_range_query)
_cached_sorted_ids_query = prepare_cached(_sorted_ids_query)


@prepare_cached
def _rows_by_id_query(shape: PageQueryShape) -> Select[*tuple[Any, ...]]:
    """Build the SELECT of the page's columns by message ID, in the order of the page."""
    rows = select(*select_columns(Message, shape.form.columns)).where(
        MESSAGE_ID.in_(_ids_from_index_query(text_index.SQLITE_LISTED_IDS)),
        case((and_(*shape.base_clauses()), 1), else_=0) == 1,
    )
    return shape.ordered_page_select(rows)


def _ids_from_index_query(index_query: TextClause) -> Select[*tuple[Any, ...]]:
    """Return a SELECT of the message IDs that an index query returns."""
    return select(index_query.columns(column("rowid", BIG_INTEGER)).subquery().c.rowid)


def _ids_in_one_row(id_query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Return a SELECT with one row: the IDs of a query as a JSON array."""
    page_ids = id_query.subquery()
    return select(func.json_group_array(page_ids.c.id, type_=String).label("ids"))
