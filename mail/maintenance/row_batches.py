"""Work on many rows in short transactions."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Select, delete, inspect, select, tuple_
from sqlmodel import SQLModel

from models.runtime.environment import Environment

BATCH_SIZE = 1000  # rows in one transaction


async def run_in_batches_by_user(
    environment: Environment,
    statement: Select[int, int],
    run_batch: Callable[[Environment, int, Sequence[int]], Awaitable[int]],
) -> int:
    """Call `run_batch` with user id and row ids, in batches, until no rows are left.

    `run_batch` returns the number of rows that it has changed. Returns their sum.
    """
    changed_count = 0
    while rows := await environment.database.read(statement.limit(BATCH_SIZE)):
        ids_by_user: defaultdict[int, list[int]] = defaultdict(list)
        for row in rows:
            ids_by_user[row.user_id].append(row.id)
        count_before = changed_count
        for user_id, ids in ids_by_user.items():
            changed_count += await run_batch(environment, user_id, ids)
        if len(rows) < BATCH_SIZE or changed_count == count_before:
            break
    return changed_count


async def delete_rows(environment: Environment, table: type[SQLModel], condition: Any) -> int:
    """Delete the rows that meet a condition, in short transactions. Returns their number."""
    key_columns = inspect(table).local_table.primary_key.columns
    # SKIP LOCKED, since two processes that delete the same rows could deadlock.
    batch = (
        select(*key_columns).where(condition).limit(BATCH_SIZE).with_for_update(skip_locked=True)
    )
    deletion, deleted_count = delete(table).where(tuple_(*key_columns).in_(batch)), 0
    while True:
        batch_count = await environment.run_transaction(
            lambda transaction: transaction.connection.execute(deletion).rowcount
        )
        deleted_count += batch_count
        if batch_count < BATCH_SIZE:
            return deleted_count
