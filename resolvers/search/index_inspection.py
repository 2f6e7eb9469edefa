"""Read figures of the text index for administrators, and show how the index answers a search."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import column, func, select
from sqlmodel import col

from mail.search.tokenizer import Every, Some, Sought, Term, words, written
from models.admin.tasks import Task, TaskState
from models.errors import Invalid
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import Big
from models.store.keyset_pages import Ask, Page
from resolvers.context import Context
from resolvers.messages.filters.filter_conditions import divided
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.search.index_query import narrows
from resolvers.search.index_tasks import OPTIMIZE, WAIT

LONGEST = 16_384  # characters of one text
HIGHEST = (1 << 63) - 1


class Hit(NamedTuple):
    """A row of the text index that matches a search; `id` is the ID of the message."""

    id: int
    score: float
    definite: bool  # the filter has no conditions besides the words


async def documents(ctx: Context) -> int:
    """Return the number of messages in the index.

    Deleted messages count until they are removed.
    """
    listed = text_index.rows(ctx.world.database.dialect)
    ((many,),) = await ctx.read(select(func.count()).select_from(listed))
    return int(many)


async def size(ctx: Context) -> int:
    """Return the size of the index in bytes."""
    asked = text_index.size(ctx.world.database.dialect).columns(column("size", Big)).subquery()
    ((many,),) = await ctx.read(select(asked.c.size))
    return int(many)


async def pending(ctx: Context) -> int:
    """Return the number of messages that are not indexed yet."""
    ((many,),) = await ctx.read(select(func.count()).select_from(Message).where(WAIT))
    return int(many)


async def optimized_at(ctx: Context) -> datetime | None:
    """Return the end of the last successful optimization; None if no such task is stored."""
    ended = [col(Task.kind) == OPTIMIZE, col(Task.state) == TaskState.SUCCEEDED]
    (row,) = await ctx.read(select(func.max(col(Task.finished_at)).label("at")).where(*ended))
    moment: datetime | None = row.at
    return moment


def divided_text(given: str) -> list[str]:
    """Return the words of a text as the index stores them.

    Raises Invalid if the text has more than 16,384 characters.
    """
    if len(given) > LONGEST:
        text_ = f"a text has at most {LONGEST} characters"
        raise Invalid(text_, constraint="max", path=["text"])
    return list(words(given))


def asked_of_index(where: MessageWhere) -> Sought | None:
    """Return the part of a filter that the index answers; None if it requires no words."""
    found, _ = divided(where)
    return found if found is not None and narrows(found) else None


def query(ctx: Context, owners: Sequence[int], sought: Sought) -> str:
    """Return the search as a query in the syntax of the database's text index."""
    return written(ctx.world.database.dialect, owners, sought)


def described(sought: Sought) -> dict[str, Any]:
    """Return a search expression as values that can be encoded as JSON."""
    match sought:
        case Term():
            plain: dict[str, Any] = {"words": list(sought.words)}
            plain |= {"prefix": True} if sought.prefix else {}
            return {"not": plain} if sought.negated else plain
        case Every():
            return {"and": [described(part) for part in sought.parts]}
        case Some():
            return {"or": [described(part) for part in sought.parts]}


def terms(sought: Sought) -> list[str]:
    """Return the words of a search expression, each once. Prefixes end with `*`."""
    if isinstance(sought, Term):
        *first, last = sought.words
        return [*first, f"{last}*" if sought.prefix else last]
    return list(dict.fromkeys(word for part in sought.parts for word in terms(part)))


class Lookup(NamedTuple):
    """A request for one page of the messages of these users that the index alone finds."""

    owners: tuple[int, ...]
    where: MessageWhere
    ask: Ask

    def query(self, ctx: Context) -> str:
        """Return the query for the index. Raises Invalid if the filter requires no words."""
        sought = asked_of_index(self.where)
        if sought is None:
            words_ = "the index is asked for words: this filter has none that must be there"
            raise Invalid(words_, constraint="required", path=["filter"])
        return query(ctx, self.owners, sought)


async def lookup(ctx: Context, asked: Lookup) -> Page[Hit]:
    """Return a page of index hits with the database's scores, highest message ID first.

    Raises Invalid if the filter requires no words.
    """
    dialect, ask = ctx.world.database.dialect, asked.ask
    before = ask.place.id if ask.place else HIGHEST
    found = text_index.hits(dialect, asked.query(ctx), before, ask.count + 1)
    hits = found.columns(column("rowid", Big), column("score")).subquery()
    rows = await ctx.read(select(hits.c.rowid, hits.c.score).order_by(hits.c.rowid.desc()))
    _, rest = divided(asked.where)
    return ask.page([Hit(row.rowid, row.score, rest.everything) for row in rows])


async def count(ctx: Context, asked: Lookup) -> int:
    """Return the number of index hits. Raises Invalid if the filter requires no words."""
    found = text_index.found(ctx.world.database.dialect, asked.query(ctx))
    hits = found.columns(column("rowid", Big)).subquery()
    ((many,),) = await ctx.read(select(func.count()).select_from(hits))
    return int(many)
