"""Find messages by words, in the text index and in messages that are not indexed yet."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, column, false, select, text
from sqlmodel import col

from mail.search import index_worker
from mail.search.tokenizer import (
    AllOf,
    SearchExpression,
    SearchTerm,
    WordPositions,
    index_query,
    parse_query,
)
from mail.storage.message_content import content_cache_key
from models.errors import InvalidInput, ServiceUnavailable
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import select_columns
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

MAX_QUERY_LENGTH = 1024  # characters of a search
MAX_TERMS = 32  # words and phrases of a search
MAX_UNINDEXED_MESSAGES = 5000  # unindexed messages that one search reads
# The NOT must be spelled as in the partial database index: SQLite compares the text.
IS_UNINDEXED = (text("NOT messages.indexed"), col(Message.indexed) == false())
UNINDEXED_COLUMNS = {
    "id",
    "blob_id",
}  # a replaced draft keeps its ID, so the blob is part of the cache key
BYTES_PER_CACHED_WORD = 100  # approximate memory of a word with its positions


@dataclass(frozen=True, slots=True)
class UnindexedMessages:
    """The messages of these users that are not indexed yet, with their words."""

    user_ids: Sequence[int]
    positions_by_message: Sequence[tuple[int, WordPositions]] = field(default=(), repr=False)

    def ids_of_matches(self, expression: SearchExpression) -> list[int]:
        """Return the IDs of the messages that match an expression."""
        return [
            key for key, positions in self.positions_by_message if positions.matches(expression)
        ]


def expression_from_query_or_raise(query: str) -> SearchExpression:
    """Return the expression of a search text.

    Raises InvalidInput if the text has no words, more than 1,024 characters or more than 32 terms.
    """
    path = ["filter", "query"]
    parsed_query = parse_query(query[:MAX_QUERY_LENGTH])
    if len(query) > MAX_QUERY_LENGTH or not parsed_query:
        error_text = (
            "The search text must have at least one word, and at most "
            f"{MAX_QUERY_LENGTH} characters."
        )
        raise InvalidInput(error_text, constraint=ValidationConstraint.QUERY, path=path)
    if len(parsed_query) > MAX_TERMS:
        error_text = f"The search text has at most {MAX_TERMS} words and phrases."
        raise InvalidInput(error_text, constraint=ValidationConstraint.MAX, path=path)
    return parsed_query[0] if len(parsed_query) == 1 else AllOf(tuple(parsed_query))


def requires_any_word(expression: SearchExpression) -> bool:
    """True if the expression requires a word, and does not only exclude words."""
    match expression:
        case SearchTerm():
            return not expression.is_negated
        case AllOf():
            return any(map(requires_any_word, expression.parts))
        case _:
            return all(map(requires_any_word, expression.parts))


def matches_words_sql(
    ctx: Context, unindexed: UnindexedMessages, expression: SearchExpression
) -> ColumnElement[bool]:
    """Return the WHERE clause for messages that match an expression, indexed or not."""
    dialect = ctx.environment.database.dialect
    query = index_query(dialect, unindexed.user_ids, expression)
    matching_ids = text_index.match_statement(dialect, query, unindexed.ids_of_matches(expression))
    matching_rows = matching_ids.columns(column("rowid")).subquery()
    return col(Message.id).in_(select(matching_rows.c.rowid))


async def load_unindexed_messages_within_limit(
    ctx: Context, user_ids: Collection[int]
) -> UnindexedMessages:
    """Load the unindexed messages of these users, which a search must read itself.

    Raises ServiceUnavailable if there are more than 5,000, as after an import: the index catches
    up.
    """
    user_ids = sorted(user_ids)
    if len(user_ids) == 1:
        rows = await ctx.read_prepared(
            _unindexed_messages_query(), user=user_ids[0], most=MAX_UNINDEXED_MESSAGES + 1
        )
    else:
        is_of_users = col(Message.user_id).in_(user_ids)
        statement = select(*select_columns(Message, UNINDEXED_COLUMNS)).where(
            is_of_users, *IS_UNINDEXED
        )
        rows = await ctx.read(statement.limit(MAX_UNINDEXED_MESSAGES + 1))
    if len(rows) > MAX_UNINDEXED_MESSAGES:
        raise ServiceUnavailable(
            f"More than {MAX_UNINDEXED_MESSAGES} messages are not indexed yet: retry later.",
            component="search index",
        )
    return UnindexedMessages(
        user_ids, await _load_word_positions(ctx, [(row.id, row.blob_id) for row in rows])
    )


@prepare_cached
def _unindexed_messages_query() -> Select[*tuple[Any, ...]]:
    """Build the SELECT of one user's unindexed messages."""
    is_of_user = col(Message.user_id) == integer_parameter("user")
    statement = select(*select_columns(Message, UNINDEXED_COLUMNS)).where(is_of_user, *IS_UNINDEXED)
    return statement.limit(integer_parameter("most"))


async def _load_word_positions(
    ctx: Context, message_and_blob_ids: Sequence[tuple[int, int]]
) -> list[tuple[int, WordPositions]]:
    """Return the words of messages by message ID, from the cache or from their stored bytes."""
    shelf, longest = ctx.environment.byte_cache, ctx.environment.options.search_max_characters
    cached_positions = [
        (key, shelf.get(content_cache_key(key[1], "places", key[0], longest)))
        for key in message_and_blob_ids
    ]
    positions_by_id = {
        key[0]: positions for key, positions in cached_positions if positions is not None
    }
    missing = [key for key, _ in message_and_blob_ids if key not in positions_by_id]
    if not missing:
        return list(positions_by_id.items())
    statement = select(*select_columns(Message, index_worker.MESSAGE_COLUMNS)).where(
        col(Message.id).in_(missing)
    )
    rows = await ctx.read(statement)
    for start in range(0, len(rows), index_worker.BATCH_SIZE):
        batch = rows[start : start + index_worker.BATCH_SIZE]
        words_by_message = await index_worker.load_words(ctx.environment, batch, ctx.read)
        for row, message_words in zip(batch, words_by_message, strict=True):
            positions = positions_by_id[row.id] = WordPositions(message_words)
            size = BYTES_PER_CACHED_WORD * (
                len(message_words.ordered) + len(message_words.unordered)
            )
            cache_key = content_cache_key(row.blob_id, "places", row.id, longest)
            shelf.put(cache_key, positions, size)
    return list(positions_by_id.items())
