"""All rows of a store, and how two readings of them differ."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, Table, literal_column, select, union_all
from sqlmodel import SQLModel

from models.runtime.environment import Environment

Rows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]
USES = {("api_keys", "last_used_at"), ("api_keys", "last_used_ip")}  # noted behind the answer


class TableRead(NamedTuple):
    """The select of all rows of a table, with the names of its columns and of its key."""

    statement: Select[*tuple[Any, ...]]
    columns: list[str]
    key: list[str]


async def everything(world: Environment) -> Rows:
    """All rows of the store, by table and key."""
    database = world.database
    if database.dialect == "sqlite":
        reader = database.engines[1]
        with reader.connect() as connection:
            return _read_tables(connection)
    async with database.engine.connect() as asynchronous:
        return await asynchronous.run_sync(_read_tables)


def changed(before: Rows, after: Rows, name: str, ignored: set[str]) -> set[int]:
    """The keys of the rows that came, went, or differ in what the journal tells of."""

    def told(row: Mapping[str, Any] | None) -> Any:
        return row and {column: value for column, value in row.items() if column not in ignored}

    old, new = before[name], after[name]
    keys = {key for key in {*old, *new} if told(old.get(key)) != told(new.get(key))}
    return {key[0] for key in keys}


def _read_tables(connection: Connection) -> Rows:
    """Read the tables that have rows: most have none, and asking costs more than reading."""
    names = {str(name) for (name,) in connection.execute(_names_of_filled_tables())}
    return {
        table.name: _rows(connection, table) if table.name in names else {}
        for table in SQLModel.metadata.sorted_tables
    }


def _rows(connection: Connection, table: Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    read = _table_read(table)
    rows = [dict(zip(read.columns, row, strict=True)) for row in connection.execute(read.statement)]
    return {tuple(row[name] for name in read.key): row for row in rows}


@cache
def _table_read(table: Table) -> TableRead:
    columns = [column for column in table.columns if (table.name, column.name) not in USES]
    key = [column.name for column in table.primary_key]
    return TableRead(select(*columns), [column.name for column in columns], key)


@cache
def _names_of_filled_tables() -> Any:
    return union_all(
        *(
            select(literal_column(f"'{table.name}'").label("name")).where(
                select(literal_column("1")).select_from(table).exists()
            )
            for table in SQLModel.metadata.sorted_tables
        )
    )
