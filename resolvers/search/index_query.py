"""Find messages by words, in the text index and in messages that are not indexed yet."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, column, false, select, text
from sqlmodel import col

from mail.search import index_worker
from mail.search.tokenizer import Every, Places, Sought, Term, terms, written
from models.errors import Invalid, Unavailable
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import picked
from models.store.prepared_statements import number, prepared
from resolvers.context import Context

LONGEST = 1024  # characters of a search
TERMS = 32  # words and phrases of a search
WAITING = 5000  # unindexed messages that one search reads
# The NOT must be spelled as in the partial database index: SQLite compares the text.
WAITS = (text("NOT messages.indexed"), col(Message.indexed) == false())
KEYS = {"id", "blob_id"}  # a replaced draft keeps its ID, so the blob is part of the cache key
WORD = 100  # approximate memory of a word with its positions


@dataclass(frozen=True, slots=True)
class Waiting:
    """The messages of these users that are not indexed yet, with their words."""

    owners: Sequence[int]
    messages: Sequence[tuple[int, Places]] = field(default=(), repr=False)

    def holding(self, sought: Sought) -> list[int]:
        """Return the IDs of the messages that match an expression."""
        return [key for key, places in self.messages if places.holds(sought)]


def sought_by(query: str) -> Sought:
    """Return the expression of a search text.

    Raises Invalid if the text has no words, more than 1,024 characters or more than 32 terms.
    """
    path = ["filter", "query"]
    asked = terms(query[:LONGEST])
    if len(query) > LONGEST or not asked:
        words = f"a search has words, in at most {LONGEST} characters"
        raise Invalid(words, constraint="query", path=path)
    if len(asked) > TERMS:
        words = f"a search has at most {TERMS} words and phrases"
        raise Invalid(words, constraint="max", path=path)
    return asked[0] if len(asked) == 1 else Every(tuple(asked))


def narrows(sought: Sought) -> bool:
    """True if the expression requires a word, and does not only exclude words."""
    match sought:
        case Term():
            return not sought.negated
        case Every():
            return any(map(narrows, sought.parts))
        case _:
            return all(map(narrows, sought.parts))


def matching(ctx: Context, waiting: Waiting, sought: Sought) -> ColumnElement[bool]:
    """Return the WHERE clause for messages that match an expression, indexed or not."""
    dialect = ctx.world.database.dialect
    query = written(dialect, waiting.owners, sought)
    found = text_index.found(dialect, query, waiting.holding(sought))
    known = found.columns(column("rowid")).subquery()
    return col(Message.id).in_(select(known.c.rowid))


async def waiting_of(ctx: Context, owners: Collection[int]) -> Waiting:
    """Load the unindexed messages of these users, which a search must read itself.

    Raises Unavailable if there are more than 5,000, as after an import: the index catches up.
    """
    owners = sorted(owners)
    if len(owners) == 1:
        rows = await ctx.find(_waiting(), user=owners[0], most=WAITING + 1)
    else:
        theirs = col(Message.user_id).in_(owners)
        asked = select(*picked(Message, KEYS)).where(theirs, *WAITS)
        rows = await ctx.read(asked.limit(WAITING + 1))
    if len(rows) > WAITING:
        raise Unavailable(
            f"more than {WAITING} messages are about to be indexed: search again in a while",
            component="search index",
        )
    return Waiting(owners, await _places(ctx, [(row.id, row.blob_id) for row in rows]))


@prepared
def _waiting() -> Select[*tuple[Any, ...]]:
    """Build the SELECT of one user's unindexed messages."""
    mine = col(Message.user_id) == number("user")
    asked = select(*picked(Message, KEYS)).where(mine, *WAITS)
    return asked.limit(number("most"))


async def _places(ctx: Context, keys: Sequence[tuple[int, int]]) -> list[tuple[int, Places]]:
    """Return the words of messages by message ID, from the cache or from their stored bytes."""
    shelf, longest = ctx.world.shelf, ctx.world.options.search_text
    found = [(key, shelf.get(("places", *key, longest))) for key in keys]
    known = {key[0]: places for key, places in found if places is not None}
    missing = [key for key, _ in keys if key not in known]
    if not missing:
        return list(known.items())
    asked = select(*picked(Message, index_worker.SHOWN)).where(col(Message.id).in_(missing))
    rows = await ctx.read(asked)
    for start in range(0, len(rows), index_worker.BATCH):
        batch = rows[start : start + index_worker.BATCH]
        read = await index_worker.words_in(ctx.world, batch, ctx.read)
        for row, words in zip(batch, read, strict=True):
            places = known[row.id] = Places(words)
            size = WORD * (len(words.first) + len(words.others))
            shelf.put(("places", row.id, row.blob_id, longest), places, size)
    return list(known.items())
