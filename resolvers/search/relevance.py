"""Order messages by relevance: by where the search terms occur.

The newest 500 matches are ranked by the columns of their rows: a term counts 8 in the subject,
4 in names and addresses, 2 in file names and 1 in the preview of the text. Equal messages are
sorted newest first. Both databases give the same order, and the cost of a list is limited.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mail.search.tokenizer import Sought, Term, standing
from models.errors import Invalid
from models.store.columns import Picked
from models.store.keyset_pages import Ask, Page
from resolvers.context import Context
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_conditions import divided
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.messages.loaders import NEWEST, Listing

MOST = 500  # messages that are ranked
SHOWN = frozenset({"subject", "from_name", "from_address", "to", "cc", "attachments", "preview"})
WEIGHTS = (8, 4, 2, 1)


async def page(ctx: Context, listings: Sequence[Listing], ask: Ask) -> Page[Picked]:
    """Return one page of the matches of these listings, most relevant first.

    Raises Invalid if the search has no words, or the message of the cursor is no longer ranked.
    """
    words = terms(divided(listings[0].where)[0])
    if not words:
        text = "the order RELEVANCE is for searches with words"
        raise Invalid(text, constraint="order", path=["orderBy"])
    newest = Ask(NEWEST, MOST)
    wanted = [replace(one, ask=newest, columns=one.columns | SHOWN) for one in listings]
    found = await ctx.load_all(message_loaders.pages, wanted)
    every = (row for one in found for row in one.rows)
    rows = sorted(every, key=message_loaders.place, reverse=True)[:MOST]
    ranked = sorted(rows, key=lambda row: _rank(row, words), reverse=True)
    return _cut(ranked, ask)


def has_words(where: MessageWhere) -> bool:
    """True if a filter requires words that messages can be ranked by."""
    return bool(terms(divided(where)[0]))


def terms(sought: Sought | None) -> list[Term]:
    """Return the terms that an expression requires, without the excluded ones."""
    if sought is None:
        return []
    if isinstance(sought, Term):
        return [] if sought.negated else [sought]
    return [term for part in sought.parts for term in terms(part)]


def _rank(row: Any, words: Sequence[Term]) -> int:
    """Return the weighted number of places in which the terms occur."""
    people = [[row.from_name, row.from_address], *row.to, *row.cc]
    texts = (
        row.subject,
        "\n".join(part for pair in people for part in pair if part),
        "\n".join(file["filename"] or "" for file in row.attachments),
        row.preview,
    )
    return sum(
        weight * len(standing(text, words))
        for weight, text in zip(WEIGHTS, texts, strict=True)
        if text
    )


def _cut(rows: list[Picked], ask: Ask) -> Page[Picked]:
    """Return the page after or before the cursor.

    Raises Invalid if its message is not in the rows.
    """
    if ask.place is None:
        start, end = 0, len(rows)
    else:
        at = [nth for nth, row in enumerate(rows) if row.id == ask.place.id]
        if not at:
            text = "what the cursor names is not among the most relevant any more: begin anew"
            raise Invalid(text, constraint="cursor", path=["before" if ask.back else "after"])
        start, end = (0, at[0]) if ask.back else (at[0] + 1, len(rows))
    return ask.page(rows[start:end])
