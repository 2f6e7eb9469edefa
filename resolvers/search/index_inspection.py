"""The text index as administrators look at it: how it is, and what it makes of a search."""

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

LONGEST = 16_384  # characters that are divided into words at once
HIGHEST = (1 << 63) - 1  # key


class Hit(NamedTuple):
    """A row of the index that was found, by the key of its message."""

    id: int
    score: float
    definite: bool  # whether there is nothing else to be looked at


async def documents(ctx: Context) -> int:
    """How many messages the index has, those that have gone since included."""
    listed = text_index.rows(ctx.world.database.dialect)
    ((many,),) = await ctx.read(select(func.count()).select_from(listed))
    return int(many)


async def size(ctx: Context) -> int:
    """How many bytes the index takes."""
    asked = text_index.size(ctx.world.database.dialect).columns(column("size", Big)).subquery()
    ((many,),) = await ctx.read(select(asked.c.size))
    return int(many)


async def pending(ctx: Context) -> int:
    """How many messages wait to be indexed."""
    ((many,),) = await ctx.read(select(func.count()).select_from(Message).where(WAIT))
    return int(many)


async def optimized_at(ctx: Context) -> datetime | None:
    """When it was last merged, as far back as tasks are kept."""
    ended = [col(Task.kind) == OPTIMIZE, col(Task.state) == TaskState.SUCCEEDED]
    (row,) = await ctx.read(select(func.max(col(Task.finished_at)).label("at")).where(*ended))
    moment: datetime | None = row.at
    return moment


def divided_text(given: str) -> list[str]:
    """The words of a text as they are indexed. Invalid where it is too long."""
    if len(given) > LONGEST:
        text_ = f"a text has at most {LONGEST} characters"
        raise Invalid(text_, constraint="max", path=["text"])
    return list(words(given))


def asked_of_index(where: MessageWhere) -> Sought | None:
    """What the index is asked of this filter; None where it is not asked."""
    found, _ = divided(where)
    return found if found is not None and narrows(found) else None


def query(ctx: Context, owners: Sequence[int], sought: Sought) -> str:
    """The search in the language of the store."""
    return written(ctx.world.database.dialect, owners, sought)


def described(sought: Sought) -> dict[str, Any]:
    """What is sought, in plain values."""
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
    """The words that are sought, each once; of those that may go on, with a *."""
    if isinstance(sought, Term):
        *first, last = sought.words
        return [*first, f"{last}*" if sought.prefix else last]
    return list(dict.fromkeys(word for part in sought.parts for word in terms(part)))


class Lookup(NamedTuple):
    """A page of what the index alone finds in the mail of these accounts."""

    owners: tuple[int, ...]
    where: MessageWhere
    ask: Ask

    def query(self, ctx: Context) -> str:
        """What the index is asked; Invalid where that is nothing."""
        sought = asked_of_index(self.where)
        if sought is None:
            words_ = "the index is asked for words: this filter has none that must be there"
            raise Invalid(words_, constraint="required", path=["filter"])
        return query(ctx, self.owners, sought)


async def lookup(ctx: Context, asked: Lookup) -> Page[Hit]:
    """The hits, the newest key first, with the scores that the store gives them."""
    dialect, ask = ctx.world.database.dialect, asked.ask
    before = ask.place.id if ask.place else HIGHEST
    found = text_index.hits(dialect, asked.query(ctx), before, ask.count + 1)
    hits = found.columns(column("rowid", Big), column("score")).subquery()
    rows = await ctx.read(select(hits.c.rowid, hits.c.score).order_by(hits.c.rowid.desc()))
    _, rest = divided(asked.where)
    return ask.page([Hit(row.rowid, row.score, rest.everything) for row in rows])


async def count(ctx: Context, asked: Lookup) -> int:
    """How many hits there are."""
    found = text_index.found(ctx.world.database.dialect, asked.query(ctx))
    hits = found.columns(column("rowid", Big)).subquery()
    ((many,),) = await ctx.read(select(func.count()).select_from(hits))
    return int(many)
