"""Numbers of rows in tables."""

from typing import Any

from sqlalchemy import func, select

from models.runtime.environment import Environment
from tests.support.stores.counter_check import select_rows

USER_TABLES = (
    "users",
    "mailboxes",
    "addresses",
    "domains",
    "streams",
    "changes",
    "idempotent_payloads",
)


async def count_rows(environment: Environment, table: Any) -> int:
    """Count the rows of a table."""
    (row,) = await environment.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


async def count_user_table_rows(environment: Environment) -> list[int]:
    """Count the rows of each table that creating a user changes."""
    statements = (f"SELECT count(*) FROM {table}" for table in USER_TABLES)  # noqa: S608
    return [(await select_rows(environment, statement))[0][0] for statement in statements]
