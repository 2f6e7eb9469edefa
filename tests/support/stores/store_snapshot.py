"""All rows of a database, and the differences of two snapshots."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, Table, literal_column, select, union_all
from sqlmodel import SQLModel

from models.runtime.environment import Environment

StoreRows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]
BACKGROUND_COLUMNS = {
    ("api_keys", "last_used_at"),
    ("api_keys", "last_used_ip"),
}  # stored after the response


class TableRead(NamedTuple):
    """The select of all rows of a table, with the names of its columns and of its key."""

    statement: Select[*tuple[Any, ...]]
    columns: list[str]
    key: list[str]


async def snapshot_rows(environment: Environment) -> StoreRows:
    """Read all rows of the database, by table and key."""
    database = environment.database
    if database.dialect == "sqlite":
        reader = database.engines[1]
        with reader.connect() as connection:
            return _read_tables(connection)
    async with database.engine.connect() as asynchronous:
        return await asynchronous.run_sync(_read_tables)


def changed_row_ids(before: StoreRows, after: StoreRows, name: str, ignored: set[str]) -> set[int]:
    """The ids of rows that were added or deleted, or whose other columns differ."""

    def compared_columns(row: Mapping[str, Any] | None) -> Any:
        return row and {column: value for column, value in row.items() if column not in ignored}

    old, new = before[name], after[name]
    keys = {
        key
        for key in {*old, *new}
        if compared_columns(old.get(key)) != compared_columns(new.get(key))
    }
    return {key[0] for key in keys}


def _read_tables(connection: Connection) -> StoreRows:
    """Read the tables that have rows: most are empty, and a check costs less than a read."""
    names = {str(name) for (name,) in connection.execute(_filled_table_names())}
    return {
        table.name: _rows(connection, table) if table.name in names else {}
        for table in _all_tables()
    }


def _rows(connection: Connection, table: Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    table_read = _table_read(table)
    rows = [
        dict(zip(table_read.columns, row, strict=True))
        for row in connection.execute(table_read.statement)
    ]
    return {tuple(row[name] for name in table_read.key): row for row in rows}


@cache
def _all_tables() -> list[Table]:
    """The tables in an order that SQLAlchemy computes anew for each call of `sorted_tables`."""
    return SQLModel.metadata.sorted_tables


@cache
def _table_read(table: Table) -> TableRead:
    columns = [
        column for column in table.columns if (table.name, column.name) not in BACKGROUND_COLUMNS
    ]
    key = [column.name for column in table.primary_key]
    return TableRead(select(*columns), [column.name for column in columns], key)


@cache
def _filled_table_names() -> Any:
    return union_all(
        *(
            select(literal_column(f"'{table.name}'").label("name")).where(
                select(literal_column("1")).select_from(table).exists()
            )
            for table in _all_tables()
        )
    )
