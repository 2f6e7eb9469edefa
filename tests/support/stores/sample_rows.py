"""Rows of any table, without the rows that they refer to."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from sqlalchemy import DateTime, create_engine, insert

from models.runtime.environment import Environment
from models.store.columns import core_table

_SAMPLES = {
    "AutoString": "x", "String": "x", "Boolean": False, "BigInteger": 7, "Integer": 7,
    "Float": 1.0, "JSON": [],
}  # fmt: skip


def is_instant(column: Any) -> bool:
    """True if the column holds a time."""
    return isinstance(getattr(column.type, "impl", None), DateTime)


def sample_row(table: Any) -> dict[str, Any]:
    """Values of the columns that can't be null."""
    return {column.name: _sample(column) for column in core_table(table).c if not column.nullable}


def _sample(column: Any) -> Any:
    if is_instant(column):
        return datetime(2020, 1, 1, tzinfo=UTC)
    if isinstance(column.type, sqlalchemy.Enum):
        return next(iter(column.type.enum_class or ()))
    return _SAMPLES[type(column.type).__name__]


async def insert_unchecked(environment: Environment, table: Any, row: dict[str, Any]) -> None:
    """Store a row without its referenced rows."""
    url, statement = environment.database.engine.url, insert(core_table(table))
    if environment.database.dialect == "sqlite":
        engine = create_engine(url.set(drivername="sqlite"))  # it does not check foreign keys
        with engine.begin() as connection:
            connection.execute(statement, row)
        engine.dispose()
    else:
        async with environment.database.engine.begin() as connection_without_checks:
            await connection_without_checks.exec_driver_sql(
                "SET LOCAL session_replication_role = replica"
            )
            await connection_without_checks.execute(statement, row)
