"""Column types that behave alike on SQLite and PostgreSQL."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Enum,
    Index,
    Integer,
    String,
    Table,
    inspect,
    text,
)
from sqlalchemy import Row as CoreRow
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

# Names for all constraints: SQLite can't drop a constraint without a name.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

BIG_INTEGER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only by INTEGER
# as SQLite compares anyway
BYTEWISE_TEXT = String().with_variant(String(collation="C"), "postgresql")
JSON_TYPE = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)
LAST_INSTANT = datetime.max.replace(tzinfo=UTC)


def datetime_for_storage(value: datetime) -> datetime:
    """Convert an aware datetime to UTC.

    A time zone can put the instant outside the years 1 to 9999, which are all that datetime holds.
    The first or last instant takes its place. Raises ValueError for a naive datetime.
    """
    if value.tzinfo is None:
        raise ValueError("The datetime has no time zone.")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return FIRST_INSTANT if value.year == FIRST_INSTANT.year else LAST_INSTANT


def datetime_from_storage(value: datetime) -> datetime:
    """Return the datetime that a driver read from a column, aware and in UTC.

    SQLite stores no time zone. asyncpg returns a naive datetime for `-infinity` and `infinity`,
    as which it stores the first and the last instant.
    """
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A datetime column. Values are aware and in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a value for the driver."""
        return None if value is None else datetime_for_storage(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a value that the driver returned."""
        return None if value is None else datetime_from_storage(value)


# A bare `int` has only 32 bits on PostgreSQL. The nullable types are separate, since a union
# with None around an annotation loses its `Field`.
Int64 = Annotated[int, Field(sa_type=BIG_INTEGER)]
OptionalInt64 = Annotated[int | None, Field(sa_type=BIG_INTEGER)]
Timestamp = Annotated[datetime, Field(sa_type=UtcDateTime)]
OptionalTimestamp = Annotated[datetime | None, Field(sa_type=UtcDateTime)]


class RowWithId(SQLModel):
    """Base of tables with a generated id as key, made by `Environment.new_id()`."""

    id: int = Field(
        primary_key=True, sa_type=BIG_INTEGER, sa_column_kwargs={"autoincrement": False}
    )


OnDelete = Literal["CASCADE", "SET NULL", "RESTRICT"]


def partial_index(name: str, condition: str, *columns: str) -> Index:
    """Return an index of the rows for which a condition is true."""
    where = text(condition)
    return Index(name, *columns, sqlite_where=where, postgresql_where=where)


def lease_index(table_name: str) -> Index:
    """Return the index of the rows that a process leases; see models/runtime/leases.py."""
    return partial_index(f"{table_name}_leased", "holder IS NOT NULL", "holder")


def foreign_key(
    target: str, *, index: bool = True, ondelete: OnDelete = "CASCADE", **options: Any
) -> Any:
    """Return a foreign key column. By default the row is deleted with the row that it names."""
    return Field(foreign_key=target, ondelete=ondelete, sa_type=BIG_INTEGER, index=index, **options)


def _new_list() -> list[Any]:
    return []


def _new_dict() -> dict[str, Any]:
    return {}


# Pydantic inspects the signature of the factory for each new row. For a built-in class, as for any
# without a signature in Python, that takes 0.07 ms.
_NEW_VALUES: dict[type, Callable[[], Any]] = {list: _new_list, dict: _new_dict}


def json_column(default: type[list[Any]] | type[dict[str, Any]] | None = None) -> Any:
    """Return a JSON column of lists or dictionaries; it can be null if there is no `default`."""
    if default is None:
        return Field(sa_type=JSON_TYPE, default=None, nullable=True)
    return Field(sa_type=JSON_TYPE, default_factory=_NEW_VALUES[default])


class UserOwnedRow(RowWithId):
    """Base of tables with rows of users."""

    user_id: int = foreign_key("users.id")


class OptionallyOwnedRow(RowWithId):
    """Base of tables with rows of users, or of the platform (None)."""

    user_id: int | None = foreign_key("users.id", default=None)


def enum_column(enum: type[StrEnum], **field_options: Any) -> Any:
    """Return a column of a StrEnum, stored as text.

    PostgreSQL's own enums can't lose a value.
    """
    values = Enum(
        enum, native_enum=False, length=32, values_callable=lambda e: [o.value for o in e]
    )
    return Field(sa_type=values, **field_options)


# columns of one row, by name, without an instance of the table class
ColumnRow = CoreRow[*tuple[Any, ...]]


def select_columns(
    table: type[SQLModel], column_names: Iterable[str] | None = None
) -> list[Column[Any]]:
    """Return columns of a table, all by default, so that a select returns no instances."""
    columns: dict[str, Column[Any]] = dict(core_table(table).c)
    return [columns[name] for name in (columns if column_names is None else sorted(column_names))]


def core_table(table_class: type[SQLModel]) -> Table:
    """Return the Core table of a table class."""
    core: Table = inspect(table_class).local_table
    return core


def insert_with_conflict(dialect: str, table: type[SQLModel]) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
