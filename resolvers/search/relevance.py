"""Order messages by relevance: by where the search terms occur.

The newest 500 matches are ranked by the columns of their rows: a term counts 8 in the subject,
4 in names and addresses, 2 in file names and 1 in the preview of the text. Equal messages are
sorted newest first. Both databases give the same order, and the cost of a list is limited.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mail.search.tokenizer import SearchExpression, SearchTerm, terms_in_text
from models.errors import InvalidInput
from models.store.columns import ColumnRow
from models.store.keyset_pages import Page, PageRequest
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_conditions import split_search_words
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import MessageListing, cursor_values
from resolvers.messages.message_orders import NEWEST_FIRST

MAX_RANKED_MESSAGES = 500  # messages that are ranked
RANKING_COLUMNS = frozenset(
    {"subject", "from_name", "from_address", "to", "cc", "attachments", "preview"}
)
WEIGHTS = (8, 4, 2, 1)


async def read_page_by_relevance(
    ctx: Context, listings: Sequence[MessageListing], page_request: PageRequest
) -> Page[ColumnRow]:
    """Return one page of the matches of these listings, most relevant first.

    Raises InvalidInput if the search has no words, or the message of the cursor is no longer
    ranked.
    """
    search_terms = required_terms(split_search_words(listings[0].conditions)[0])
    if not search_terms:
        text = "The order RELEVANCE requires a search with words."
        raise InvalidInput(text, constraint=ValidationConstraint.ORDER, path=["orderBy"])
    newest = PageRequest(NEWEST_FIRST, MAX_RANKED_MESSAGES)
    ranked_listings = [
        replace(listing, page_request=newest, columns=listing.columns | RANKING_COLUMNS)
        for listing in listings
    ]
    pages = await ctx.load_many(message_loaders.load_visible_message_pages, ranked_listings)
    every = (row for page in pages for row in page.rows)
    rows = sorted(every, key=cursor_values, reverse=True)[:MAX_RANKED_MESSAGES]
    ranked = sorted(rows, key=lambda row: _relevance_score(row, search_terms), reverse=True)
    return _page_after_cursor(ranked, page_request)


def has_ranking_words(conditions: MessageConditions) -> bool:
    """True if a filter requires words that messages can be ranked by."""
    return bool(required_terms(split_search_words(conditions)[0]))


def required_terms(expression: SearchExpression | None) -> list[SearchTerm]:
    """Return the terms that an expression requires, without the excluded ones."""
    if expression is None:
        return []
    if isinstance(expression, SearchTerm):
        return [] if expression.is_negated else [expression]
    return [term for part in expression.parts for term in required_terms(part)]


def _relevance_score(message: Any, terms: Sequence[SearchTerm]) -> int:
    """Return the weighted number of places in which the terms occur."""
    people = [[message.from_name, message.from_address], *message.to, *message.cc]
    texts = (
        message.subject,
        "\n".join(part for pair in people for part in pair if part),
        "\n".join(file["filename"] or "" for file in message.attachments),
        message.preview,
    )
    return sum(
        weight * len(terms_in_text(text, terms))
        for weight, text in zip(WEIGHTS, texts, strict=True)
        if text
    )


def _page_after_cursor(
    ranked_messages: list[ColumnRow], page_request: PageRequest
) -> Page[ColumnRow]:
    """Return the page after or before the cursor.

    Raises InvalidInput if its message is not in the rows.
    """
    if page_request.cursor is None:
        start, end = 0, len(ranked_messages)
    else:
        at = [nth for nth, row in enumerate(ranked_messages) if row.id == page_request.cursor.id]
        if not at:
            text = "The cursor is no longer valid: start with the first page."
            raise InvalidInput(
                text,
                constraint=ValidationConstraint.CURSOR,
                path=["before" if page_request.is_backward else "after"],
            )
        start, end = (0, at[0]) if page_request.is_backward else (at[0] + 1, len(ranked_messages))
    return page_request.page_from_rows(ranked_messages[start:end])
