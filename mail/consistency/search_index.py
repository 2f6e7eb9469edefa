"""Check of the text index: each message that is marked as indexed has a row in it."""

from sqlalchemy import case, exists, false, func, select, true
from sqlmodel import col

from mail.consistency.checks import Check, Look, Rule
from mail.consistency.repair import rewriting
from models.messages.tables import Message
from models.search.text_index import rows as words
from models.store.columns import table_of

SUBJECT = "search"


def checks(dialect: str) -> list[Check]:
    """All checks of the index. A message without a row is marked, so that it is indexed again."""
    (key,) = words(dialect).c
    there = exists().where(key == col(Message.id))
    rule = Rule(case((there, true()), else_=false()), col(Message.indexed), cured=True)
    rows = table_of(Message)
    where = [col(Message.indexed)]
    cure = rewriting()
    return [
        Check(SUBJECT, Message, {"indexed": rule}, rows, col(Message.user_id), where, cure=cure)
    ]


async def figures(look: Look) -> dict[str, int]:
    """Count the rows of the index, and those of deleted messages."""
    index = words(look.world.database.dialect)
    (key,) = index.c
    gone = ~exists().where(col(Message.id) == key)
    asked = select(func.count(), func.count(case((gone, 1)))).select_from(index)
    (row,) = await look.world.database.read(asked)
    return {"search_rows": int(row[0]), "dead_search_rows": int(row[1])}
