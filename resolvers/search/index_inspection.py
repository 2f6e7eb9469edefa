"""Read figures of the text index for administrators, and show how the index answers a search."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import column, func, select
from sqlmodel import col

from mail.search.tokenizer import (
    AllOf,
    AnyOf,
    SearchExpression,
    SearchTerm,
    index_query,
    split_words,
)
from models.admin.tasks import Task, TaskState
from models.errors import InvalidInput
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import BIG_INTEGER
from models.store.keyset_pages import Page, PageRequest
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.messages.content_access import require_root_and_log_reads
from resolvers.messages.filters.filter_conditions import split_search_words
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search.index_query import requires_any_word
from resolvers.search.index_tasks import IS_UNINDEXED, OPTIMIZE

MAX_TEXT_LENGTH = 16_384  # characters of one text
MAX_MESSAGE_ID = (1 << 63) - 1


class IndexHit(NamedTuple):
    """A row of the text index that matches a search; `id` is the ID of the message."""

    id: int
    score: float
    is_exact: bool  # the filter consists of words only


async def count_indexed_messages(ctx: Context) -> int:
    """Return the number of messages in the index.

    Deleted messages count until they are removed.
    """
    listed = text_index.indexed_ids_table(ctx.environment.database.dialect)
    ((message_count,),) = await ctx.read(select(func.count()).select_from(listed))
    return int(message_count)


async def read_index_size(ctx: Context) -> int:
    """Return the size of the index in bytes."""
    statement = (
        text_index.size_statement(ctx.environment.database.dialect)
        .columns(column("size", BIG_INTEGER))
        .subquery()
    )
    ((index_size,),) = await ctx.read(select(statement.c.size))
    return int(index_size)


async def count_unindexed_messages(ctx: Context) -> int:
    """Return the number of messages of all users that are not indexed yet.

    Does not check the viewer.
    """
    ((message_count,),) = await ctx.read(
        select(func.count()).select_from(Message).where(IS_UNINDEXED)
    )
    return int(message_count)


async def load_last_optimized_at(ctx: Context) -> datetime | None:
    """Return the end of the last successful optimization; None if no such task is stored."""
    ended = [col(Task.kind) == OPTIMIZE, col(Task.state) == TaskState.SUCCEEDED]
    (row,) = await ctx.read(select(func.max(col(Task.finished_at)).label("at")).where(*ended))
    moment: datetime | None = row.at
    return moment


def split_text_into_words(text: str) -> list[str]:
    """Return the words of a text as the index stores them.

    Raises InvalidInput if the text has more than 16,384 characters.
    """
    if len(text) > MAX_TEXT_LENGTH:
        text_ = f"A text has at most {MAX_TEXT_LENGTH} characters."
        raise InvalidInput(text_, constraint=ValidationConstraint.MAX, path=["text"])
    return list(split_words(text))


def index_expression_of_conditions_or_none(
    conditions: MessageConditions,
) -> SearchExpression | None:
    """Return the part of a filter that the index answers; None if it requires no words."""
    words, _ = split_search_words(conditions)
    return words if words is not None and requires_any_word(words) else None


def index_query_for_users(
    ctx: Context, user_ids: Sequence[int], expression: SearchExpression
) -> str:
    """Return the search as a query in the syntax of the database's text index."""
    return index_query(ctx.environment.database.dialect, user_ids, expression)


def expression_as_json(expression: SearchExpression) -> dict[str, Any]:
    """Return a search expression as values that can be encoded as JSON."""
    match expression:
        case SearchTerm():
            plain: dict[str, Any] = {"words": list(expression.words)}
            plain |= {"prefix": True} if expression.is_prefix else {}
            return {"not": plain} if expression.is_negated else plain
        case AllOf():
            return {"and": [expression_as_json(part) for part in expression.parts]}
        case AnyOf():
            return {"or": [expression_as_json(part) for part in expression.parts]}


def distinct_words_in_expression(expression: SearchExpression) -> list[str]:
    """Return the words of a search expression, each once. Prefixes end with `*`."""
    if isinstance(expression, SearchTerm):
        *first, last = expression.words
        return [*first, f"{last}*" if expression.is_prefix else last]
    return list(
        dict.fromkeys(
            distinct_word
            for part in expression.parts
            for distinct_word in distinct_words_in_expression(part)
        )
    )


class IndexLookup(NamedTuple):
    """A request for one page of the messages of these users that the index alone finds."""

    user_ids: tuple[int, ...]
    conditions: MessageConditions
    page_request: PageRequest

    def require_index_query(self, ctx: Context) -> str:
        """Return the query for the index. Raises InvalidInput if the filter requires no words."""
        index_query = index_expression_of_conditions_or_none(self.conditions)
        if index_query is None:
            error_text = "The filter must require at least one word."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.REQUIRED, path=["filter"]
            )
        return index_query_for_users(ctx, self.user_ids, index_query)


async def read_index_hit_page(ctx: Context, index_lookup: IndexLookup) -> Page[IndexHit]:
    """Return a page of index hits with the database's scores, highest message ID first.

    Raises InvalidInput if the filter requires no words, and Forbidden if the viewer can't read the
    mail of the users. Reads by ROOT are logged.
    """
    await require_root_and_log_reads(ctx, set(index_lookup.user_ids) - {ctx.viewer.user_id})
    dialect, ask = ctx.environment.database.dialect, index_lookup.page_request
    first_border = 0 if ask.is_backward else MAX_MESSAGE_ID
    statement = text_index.scored_match_statement(
        dialect,
        index_lookup.require_index_query(ctx),
        ask.cursor.id if ask.cursor else first_border,
        ask.count + 1,
        is_ascending=ask.is_backward,
    )
    hit_rows = statement.columns(column("rowid", BIG_INTEGER), column("score")).subquery()
    rows = await ctx.read(
        select(hit_rows.c.rowid, hit_rows.c.score).order_by(hit_rows.c.rowid.desc())
    )
    _, rest = split_search_words(index_lookup.conditions)
    return ask.page_from_rows([IndexHit(row.rowid, row.score, rest.is_empty) for row in rows])


async def count_index_hits(ctx: Context, index_lookup: IndexLookup) -> int:
    """Return the number of index hits, after `read_index_hit_page` checked the access.

    Raises InvalidInput if the filter requires no words.
    """
    statement = text_index.match_statement(
        ctx.environment.database.dialect, index_lookup.require_index_query(ctx)
    )
    hit_rows = statement.columns(column("rowid", BIG_INTEGER)).subquery()
    ((hit_count,),) = await ctx.read(select(func.count()).select_from(hit_rows))
    return int(hit_count)
