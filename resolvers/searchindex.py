"""Finding messages by their words."""

from typing import Any

from sqlalchemy import ColumnElement, String, and_, cast, column, func, select, text, union_all
from sqlmodel import col

from mail.searchindex import Term, pattern, terms, written
from models import searchindex
from models.columns import picked
from models.errors import Invalid
from models.messages import Message
from resolvers.context import Context

LONGEST = 1024  # characters of a search
WAITING = 5000  # messages at most that are looked through before they are in the index
SHOWN = ("subject", "from_name", "from_address", "preview")


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
    known = index.columns(column("rowid")).subquery()
    return col(Message.id).in_(union_all(select(known.c.rowid), _fresh(user_id, asked)))


def _fresh(user_id: int, asked: list[Term]) -> Any:
    # NOT as the index of those that wait has it: SQLite compares the words.
    waiting = (
        select(*picked(Message, {"id", "user_id", "to", "cc", *SHOWN}))
        .where(text("NOT messages.indexed"))
        .order_by(col(Message.id).desc())
        .limit(WAITING)
        .subquery()
    )
    shown = cast(waiting.c["to"], String) + cast(waiting.c.cc, String)
    for name in SHOWN:
        shown = shown + "\n" + func.coalesce(waiting.c[name], "")
    found = [shown.regexp_match(pattern(term)) for term in asked]
    terms_ = [~one if term.negated else one for one, term in zip(found, asked, strict=True)]
    return select(waiting.c.id).where(waiting.c.user_id == user_id, and_(*terms_))
