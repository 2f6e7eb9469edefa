"""Check of the text index: each message that is marked as indexed has a row in it."""

from sqlalchemy import case, exists, false, func, select, true
from sqlmodel import col

from mail.consistency.checks import CheckRun, ConsistencyCheck, EqualityRule
from mail.consistency.repair import expected_values_repair
from models.messages.tables import Message
from models.search.text_index import indexed_ids_table
from models.store.columns import core_table

SUBJECT = "search"


def index_checks(dialect: str) -> list[ConsistencyCheck]:
    """All checks of the index. A message without a row is marked, so that it is indexed again."""
    (key,) = indexed_ids_table(dialect).c
    has_message = exists().where(key == col(Message.id))
    rule = EqualityRule(
        case((has_message, true()), else_=false()), col(Message.indexed), is_repairable=True
    )
    rows = core_table(Message)
    where = [col(Message.indexed)]
    cure = expected_values_repair()
    return [
        ConsistencyCheck(
            SUBJECT, Message, {"indexed": rule}, rows, col(Message.user_id), where, repair=cure
        )
    ]


async def count_index_rows(check_run: CheckRun) -> dict[str, int]:
    """Count the rows of the index, and those of deleted messages."""
    index = indexed_ids_table(check_run.environment.database.dialect)
    (key,) = index.c
    has_no_message = ~exists().where(col(Message.id) == key)
    statement = select(func.count(), func.count(case((has_no_message, 1)))).select_from(index)
    (row,) = await check_run.environment.database.read(statement)
    return {"search_rows": int(row[0]), "dead_search_rows": int(row[1])}
