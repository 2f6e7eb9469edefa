"""Finding messages by their words."""

from sqlalchemy import ColumnElement, and_, column, func, or_, select, union_all
from sqlmodel import col

from mail.searchindex import Term, terms, written
from models import searchindex
from models.errors import Invalid
from models.messages import Message
from resolvers.context import Context

LONGEST = 1024  # characters of a search


def matching(ctx: Context, user_id: int, query: str) -> ColumnElement[bool]:
    """Messages of this user with these words, as SQL.

    The index is filled behind the delivery: messages that it does not have yet are looked
    through by what their rows show.
    """
    asked = terms(query[:LONGEST])
    if len(query) > LONGEST or not asked:
        raise Invalid(
            f"a search has words, in at most {LONGEST} characters",
            constraint="query",
            path=["filter", "query"],
        )
    dialect = ctx.world.database.dialect
    index = searchindex.found(dialect).bindparams(query=written(dialect, user_id, asked))
    fresh = select(col(Message.id)).where(
        ~col(Message.indexed),
        col(Message.user_id) == user_id,
        *(_shows(term) for term in asked),
    )
    known = index.columns(column("rowid")).subquery()
    return col(Message.id).in_(union_all(select(known.c.rowid), fresh))


def _shows(term: Term) -> ColumnElement[bool]:
    shown = (col(Message.subject), col(Message.from_name), col(Message.from_address))
    texts = [func.lower(func.coalesce(part, "")) for part in (*shown, col(Message.preview))]
    words = [or_(*(text.contains(word, autoescape=True) for text in texts)) for word in term.words]
    return ~and_(*words) if term.negated else and_(*words)
