"""Check of the sort keys: each message has its row with the right values, each row a message."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import delete, exists, select
from sqlmodel import col

from mail.consistency.checks import CheckRun, Condition, iterate_key_ranges_with_progress
from mail.consistency.messages import MessageProblem
from mail.consistency.report import Finding
from mail.storage.message_sort_keys import (
    SOURCE_COLUMNS,
    UPDATED_COLUMNS,
    sort_key_columns,
    upsert_sort_keys,
)
from models.errors import NotFound
from models.events.journal import PLATFORM
from models.messages.sort_keys import MessageSortKey
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, core_table, select_columns

SUBJECT = "orders"
_MESSAGES, _SORT_KEYS = core_table(Message), core_table(MessageSortKey)
_MESSAGES_WITH_SORT_KEYS = select(
    *select_columns(Message, SOURCE_COLUMNS | {"user_id"}),
    _SORT_KEYS.c.id.label("found_id"),
    *(_SORT_KEYS.c[name].label(f"found_{name}") for name in UPDATED_COLUMNS),
).select_from(_MESSAGES.outerjoin(_SORT_KEYS, _SORT_KEYS.c.id == _MESSAGES.c.id))


@dataclass(frozen=True, slots=True)
class SortKeyProblem:
    """A message whose row of sort keys is missing or wrong, and the finding."""

    message_id: int
    user_id: int
    finding: Finding


async def check_sort_keys(check_run: CheckRun, *, repair: bool) -> list[Finding]:
    """Compute the sort keys of all messages again, and compare them with the stored rows.

    With `repair` the rows are written again, and rows without a message are deleted.
    """
    findings: list[Finding] = []
    async for low, high in iterate_key_ranges_with_progress(check_run, SUBJECT, Message):
        problems = await _find_problems(check_run.environment, low, high)
        findings += (
            await _repair_problems(check_run.environment, problems)
            if repair
            else [problem.finding for problem in problems]
        )
    async for low, high in iterate_key_ranges_with_progress(check_run, SUBJECT, MessageSortKey):
        keys = await _find_keys_without_message(check_run.environment, low, high)
        if keys and repair:
            await _delete_rows_without_message(check_run.environment, keys)
        findings += [_finding_of_lone_row(key, is_repaired=repair) for key in keys]
    return findings


async def _find_problems(
    environment: Environment, low_id: int, high_id: int
) -> list[SortKeyProblem]:
    key = _MESSAGES.c.id
    statement = _MESSAGES_WITH_SORT_KEYS.where(key > low_id, key <= high_id).order_by(key)
    return [
        SortKeyProblem(row.id, row.user_id, finding)
        for row in await environment.database.read(statement)
        if (finding := _finding_of_row(row)) is not None
    ]


def _finding_of_row(row: ColumnRow) -> Finding | None:
    """Return the finding of a message; None if its sort keys are right.

    It names the columns without their values, since these are content of mail.
    """
    columns: dict[str, Any] = row._asdict()
    expected = sort_key_columns(columns)
    wrong = [name for name in UPDATED_COLUMNS if expected[name] != columns[f"found_{name}"]]
    if row.found_id is not None and not wrong:
        return None
    found = "missing" if row.found_id is None else f"different: {', '.join(wrong)}"
    return Finding(SUBJECT, "sort_keys", f"messages/{row.id}", "computed", found, repairable=True)


async def _repair_problems(
    environment: Environment, problems: Sequence[SortKeyProblem]
) -> list[Finding]:
    """Write the sort keys of these messages again, one user at a time, under its lock."""
    problems_by_user: defaultdict[int, list[SortKeyProblem]] = defaultdict(list)
    for problem in problems:
        problems_by_user[problem.user_id].append(problem)
    findings: list[Finding] = []
    for user_id, user_problems in problems_by_user.items():
        ids = [problem.message_id for problem in user_problems]
        try:
            await environment.run_transaction(partial(_write_sort_keys, message_ids=ids), user_id)
        except NotFound:  # the stream is missing, which is a finding of its own
            findings += [problem.finding for problem in user_problems]
        else:
            findings += [replace(problem.finding, repaired=True) for problem in user_problems]
    return findings


async def find_sort_key_problems(
    environment: Environment, conditions: Sequence[Condition]
) -> list[MessageProblem]:
    """Find the problems of the sort keys of some messages, without repair."""
    statement = _MESSAGES_WITH_SORT_KEYS.where(*conditions).order_by(_MESSAGES.c.id)
    return [
        MessageProblem(finding, row.user_id, partial(_write_sort_keys, message_ids=[row.id]))
        for row in await environment.database.read(statement)
        if (finding := _finding_of_row(row)) is not None
    ]


def _write_sort_keys(transaction: DatabaseTransaction, message_ids: Sequence[int]) -> bool:
    """Write the sort keys of these messages again. Messages that were deleted have none."""
    statement = select(*select_columns(Message, SOURCE_COLUMNS)).where(
        col(Message.id).in_(message_ids)
    )
    upsert = upsert_sort_keys(transaction.connection.dialect.name)
    rows = transaction.connection.execute(statement).all()
    transaction.execute_statements([(upsert, sort_key_columns(row._asdict())) for row in rows])
    return True


async def _find_keys_without_message(
    environment: Environment, low_id: int, high_id: int
) -> list[int]:
    key = _SORT_KEYS.c.id
    has_message = exists().where(col(Message.id) == key)
    statement = select(key).where(key > low_id, key <= high_id, ~has_message).order_by(key)
    return [row.id for row in await environment.database.read(statement)]


def _finding_of_lone_row(key: int, *, is_repaired: bool) -> Finding:
    name = f"{MessageSortKey.__tablename__}/{key}"
    return Finding(
        SUBJECT, "message", name, "a message", None, repairable=True, repaired=is_repaired
    )


async def _delete_rows_without_message(environment: Environment, keys: Sequence[int]) -> None:
    has_message = exists().where(col(Message.id) == col(MessageSortKey.id))
    deletion = delete(MessageSortKey).where(col(MessageSortKey.id).in_(keys), ~has_message)

    def delete_rows(transaction: DatabaseTransaction) -> None:
        transaction.connection.execute(deletion)

    await environment.run_transaction(delete_rows, PLATFORM)
