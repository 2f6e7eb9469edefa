"""Custom data that applications store, counted in the storage of a user by database triggers.

Custom data is JSON metadata, annotations of mailboxes, and keys and values. Since triggers count
it, no code can forget it. `users.used` is the sum of these bytes and of the sizes of the messages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlmodel import col

from models.addresses.tables import Address
from models.admin.key_values import KeyValueEntry
from models.filters.tables import Filter
from models.mailboxes.tables import Mailbox, MailboxAnnotation
from models.messages.tables import Message
from models.users.tables import User

_LENGTH = {
    "sqlite": "coalesce(length(CAST({} AS BLOB)), 0)",
    "postgresql": "coalesce(octet_length(CAST({} AS TEXT)), 0)",
}


class ByteLength(FunctionElement[int]):
    """SQL: the size of a text or of JSON as text, in bytes; 0 for NULL."""

    type = BigInteger()
    inherit_cache = True
    name = "byte_length"


@compiles(ByteLength)
def _compile_byte_length(element: ByteLength, compiler: Any, **options: Any) -> str:
    argument = compiler.process(element.clauses, **options)
    return _LENGTH[compiler.dialect.name].format(argument)


@dataclass(frozen=True, slots=True)
class CountedTable:
    """A table with custom data: its columns, and SQL for its user.

    `owner` and `condition` are SQL with `{row}` for the row. A row for which `condition` is false
    counts nothing.
    """

    name: str
    columns: tuple[str, ...]
    owner: str = "{row}.user_id"
    owner_columns: tuple[str, ...] = ("user_id",)
    condition: str | None = None
    condition_columns: tuple[str, ...] = ()

    @property
    def update_columns(self) -> str:
        """The columns whose updates change the count."""
        return ", ".join((*self.columns, *self.owner_columns, *self.condition_columns))

    def size_sql(self, dialect: str, row: str) -> str:
        """SQL: the bytes of a row that count."""
        size = " + ".join(_LENGTH[dialect].format(f"{row}.{name}") for name in self.columns)
        if self.condition is None:
            return f"({size})"
        return f"(CASE WHEN {self.condition.format(row=row)} THEN {size} ELSE 0 END)"

    def has_data_sql(self, row: str) -> str:
        """SQL: true if the row has custom data. It is cheap for the rows that have none."""
        return " OR ".join(f"{row}.{name} IS NOT NULL" for name in self.columns)


COUNTED_TABLES = (
    CountedTable(
        "messages",
        ("public_metadata",),
        condition="{row}.deleted_at IS NULL",
        condition_columns=("deleted_at",),
    ),
    CountedTable("filters", ("public_metadata",)),
    CountedTable("addresses", ("public_metadata", "private_metadata")),
    CountedTable("users", ("public_metadata", "private_metadata"), "{row}.id", ()),
    CountedTable(
        "mailbox_annotations",
        ("key", "value"),
        "(SELECT mailboxes.user_id FROM mailboxes WHERE mailboxes.id = {row}.mailbox_id)",
        ("mailbox_id",),
    ),
    CountedTable("key_value_entries", ("key", "value"), "{row}.stream_id", ("stream_id",)),
)


def create_triggers_sql(dialect: str) -> Iterator[str]:
    """Yield the statements that create the triggers."""
    create = _sqlite_triggers if dialect == "sqlite" else _postgres_triggers
    for table in COUNTED_TABLES:
        yield from create(table)
    # a mailbox is gone when the trigger of its annotations asks for its user
    length = _LENGTH[dialect]
    annotations = "mailbox_annotations WHERE mailbox_id = old.id"
    sizes = f"sum({length.format('key')} + {length.format('value')})"
    subtract = (
        f"UPDATE users SET used = used - (SELECT {sizes} FROM {annotations})"  # noqa: S608
        f" WHERE id = old.user_id AND EXISTS (SELECT 1 FROM {annotations});"
    )
    if dialect == "sqlite":
        yield (f"CREATE TRIGGER mailboxes_data_out BEFORE DELETE ON mailboxes BEGIN {subtract} END")
    else:
        yield (
            "CREATE FUNCTION mailboxes_data_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" {subtract} RETURN old; END $$"
        )
        yield (
            "CREATE TRIGGER mailboxes_data_out BEFORE DELETE ON mailboxes"
            " FOR EACH ROW EXECUTE FUNCTION mailboxes_data_out()"
        )


def _sqlite_triggers(table: CountedTable) -> Iterator[str]:
    head, events = f"CREATE TRIGGER {table.name}_data", _change_statements(table, "sqlite")
    yield (
        f"{head}_in AFTER INSERT ON {table.name} WHEN {table.has_data_sql('new')}"
        f" BEGIN {events.add_new} END"
    )
    yield (
        f"{head}_out AFTER DELETE ON {table.name} WHEN {table.has_data_sql('old')}"
        f" BEGIN {events.subtract_old} END"
    )
    yield (
        f"{head}_more AFTER UPDATE OF {table.update_columns} ON {table.name}"
        f" WHEN {table.has_data_sql('new')} OR {table.has_data_sql('old')}"
        f" BEGIN {events.subtract_old} {events.add_new} END"
    )


def _postgres_triggers(table: CountedTable) -> Iterator[str]:
    name, events = f"{table.name}_data", _change_statements(table, "postgresql")
    yield (
        f"CREATE FUNCTION {name}_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP <> 'INSERT' THEN {events.subtract_old} END IF;"
        f" IF TG_OP <> 'DELETE' THEN {events.add_new} END IF; RETURN NULL; END $$"
    )
    for suffix, event, condition in (
        ("in", "INSERT", table.has_data_sql("new")),
        ("out", "DELETE", table.has_data_sql("old")),
        (
            "more",
            f"UPDATE OF {table.update_columns}",
            f"{table.has_data_sql('new')} OR {table.has_data_sql('old')}",
        ),
    ):
        yield (
            f"CREATE TRIGGER {name}_{suffix} AFTER {event} ON {table.name} FOR EACH ROW"
            f" WHEN ({condition}) EXECUTE FUNCTION {name}_follow()"
        )


@dataclass(frozen=True, slots=True)
class _ChangeStatements:
    """The statements that subtract the old row and add the new one."""

    subtract_old: str
    add_new: str


def _change_statements(table: CountedTable, dialect: str) -> _ChangeStatements:
    return _ChangeStatements(
        *(
            f"UPDATE users SET used = used {sign} {table.size_sql(dialect, row)}"  # noqa: S608
            f" WHERE id = {table.owner.format(row=row)};"
            for sign, row in (("-", "old"), ("+", "new"))
        )
    )


def add_stored_data_to_usage_sql(dialect: str) -> str:
    """Return the statement that adds the custom data of all rows to the storage of the users."""
    parts = " UNION ALL ".join(
        f"SELECT {table.owner.format(row=table.name)} AS user_id,"  # noqa: S608
        f" {table.size_sql(dialect, table.name)} AS size FROM {table.name}"
        f" WHERE {table.has_data_sql(table.name)}"
        for table in COUNTED_TABLES
    )
    return (
        "UPDATE users SET used = used + counted.size FROM (SELECT user_id, sum(size) AS size"  # noqa: S608
        f" FROM ({parts}) AS parts GROUP BY user_id) AS counted WHERE counted.user_id = users.id"
    )


def custom_data_bytes_sql() -> ColumnElement[int]:
    """SQL: the bytes of a row of `users` and of its rows in other tables, except its messages."""
    user_id = col(User.id)
    sums: tuple[Select[Any], ...] = (
        _select_sum_of_byte_lengths(Filter.public_metadata).where(col(Filter.user_id) == user_id),
        _select_sum_of_byte_lengths(Address.public_metadata, Address.private_metadata).where(
            col(Address.user_id) == user_id
        ),
        _select_sum_of_byte_lengths(MailboxAnnotation.key, MailboxAnnotation.value)
        .join(Mailbox, col(Mailbox.id) == col(MailboxAnnotation.mailbox_id))
        .where(col(Mailbox.user_id) == user_id),
        _select_sum_of_byte_lengths(KeyValueEntry.key, KeyValueEntry.value).where(
            col(KeyValueEntry.stream_id) == user_id
        ),
    )
    total: Any = ByteLength(col(User.public_metadata)) + ByteLength(col(User.private_metadata))
    for statement in sums:
        total = total + func.coalesce(statement.correlate(User).scalar_subquery(), 0)
    return total  # type: ignore[no-any-return]


def _select_sum_of_byte_lengths(*columns: Any) -> Select[Any]:
    """Return the query for the sum of the bytes of these columns; NULL without rows."""
    lengths: Any = ByteLength(col(columns[0]))
    for column in columns[1:]:
        lengths = lengths + ByteLength(col(column))
    return select(func.sum(lengths))


def stored_bytes_of_message_sql() -> ColumnElement[int]:
    """SQL: the bytes of a message that count in the storage of its user."""
    size: Any = col(Message.size) + ByteLength(col(Message.public_metadata))
    return size  # type: ignore[no-any-return]
