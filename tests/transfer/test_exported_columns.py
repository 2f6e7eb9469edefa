"""Each column of an account's tables changes the export, or is listed with the reason why not."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Column, ColumnElement, Table, select, update

from mail.archives.archive_writer import ArchiveState, ExportFormat
from models.mailboxes.tables import MailboxAnnotation, SpecialUse
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.submission.tables import Submission, SubmissionState
from resolvers.transfer import export_writer
from tests.conftest import GraphQLClient, client_context
from tests.support.accounts.exported_columns import (
    COLUMNS_BY_REASON,
    LEFT_OUT_COLUMNS,
    LEFT_OUT_TABLES,
    TABLES_BY_REASON,
    account_tables,
    columns_to_export,
)
from tests.support.accounts.user_operations import load_user_row
from tests.support.stores.sample_rows import is_instant
from tests.support.targets.target_objects import FUTURE, TargetObjects, create_target_objects

SAMPLE_VALUES = {"AutoString": "changed", "String": "changed", "BigInteger": 4711, "Integer": 4711,
    "Float": 4.5, "LargeBinary": b"[]"}  # fmt: skip
VALID_VALUES = {  # of columns that hold only some values of their type
    "mailboxes.special_use": SpecialUse.FLAGGED,
    "saved_searches.filter": {"seen": True},
}


@pytest.fixture
async def target(ada: GraphQLClient, bob: GraphQLClient, environment: Environment) -> TargetObjects:
    """Ada's account with an object of each kind that an export contains."""
    user, sharer = [await load_user_row(environment, client) for client in (ada, bob)]
    target = await create_target_objects(environment, user, "ada@example.org", sharer)
    mailbox_id = target.ids_by_kind["Mailbox"]
    await target.insert_row("", MailboxAnnotation, mailbox_id=mailbox_id, key="/private/comment")
    async with environment.write_session(user.id) as session:
        connection = await session.connection()
        await connection.execute(update(Submission).values(state=SubmissionState.SCHEDULED))
    return target


async def export_text(client: GraphQLClient) -> bytes:
    """Export the account as JSON and return the archive."""
    ctx, state = client_context(client), ArchiveState()
    record = await export_writer.encode_account_record(
        ctx, ExportFormat.JSON, state, {"ids": None, "settings": True}
    )
    text, position = record.archive_chunk.data, None
    while chunk := await export_writer.encode_next_chunk(
        ctx, ExportFormat.JSON, state, None, position
    ):
        text, position = text + chunk.archive_chunk.data, chunk.next_position
    return text


def changed_value(target: TargetObjects, column: Column[Any], value: Any) -> Any:
    """Return another value that the column can have."""
    name = f"{column.table.name}.{column.name}"
    valid_values = VALID_VALUES | {
        "autoreplies.addresses": [target.ids_by_kind["Address"]],
        "identities.mailbox_id": target.ids_by_kind["Mailbox"],
    }
    if name in valid_values:
        return valid_values[name]
    if is_instant(column):
        return FUTURE + timedelta(days=1)
    kind = column.type
    if isinstance(kind, sqlalchemy.Boolean):
        return not value
    if isinstance(kind, sqlalchemy.Enum) and kind.enum_class:
        return next(member for member in kind.enum_class if member != value)
    if isinstance(kind, sqlalchemy.JSON):
        return ["changed"] if isinstance(value, list) else {"changed": "value"}
    return SAMPLE_VALUES[type(kind).__name__]


async def row_and_condition(
    target: TargetObjects, table: Table
) -> tuple[ColumnRow, ColumnElement[bool]]:
    """Return a row of the account in a table, and the condition that selects it."""
    is_of_account: ColumnElement[bool] = sqlalchemy.true()
    if table.name in ("users", "messages"):
        kind = {"users": "User", "messages": "Message"}[table.name]
        is_of_account = table.c.id == target.ids_by_kind[kind]
    elif "user_id" in table.c:
        is_of_account = table.c.user_id == target.user.id
    row = (await target.environment.database.read(select(table).where(is_of_account)))[-1]
    return row, sqlalchemy.and_(
        *(column == getattr(row, column.name) for column in table.primary_key)
    )


def test_left_out_columns_exist_and_are_listed_once() -> None:
    tables = {table.name: table for table in account_tables()}
    columns = {f"{table.name}.{name}" for table in tables.values() for name in table.c.keys()}  # noqa: SIM118 - a collection of columns
    assert set(LEFT_OUT_TABLES) - set(tables) == set()
    assert set(LEFT_OUT_COLUMNS) - columns == set()
    assert {name for name in LEFT_OUT_COLUMNS if name.partition(".")[0] in LEFT_OUT_TABLES} == set()
    assert sum(map(len, TABLES_BY_REASON.values())) == len(LEFT_OUT_TABLES)
    assert sum(map(len, COLUMNS_BY_REASON.values())) == len(LEFT_OUT_COLUMNS)


async def test_each_column_is_exported_or_listed_as_left_out(
    ada: GraphQLClient, target: TargetObjects, environment: Environment
) -> None:
    missing_columns = []
    before = await export_text(ada)
    for column in columns_to_export():
        row, is_row = await row_and_condition(target, column.table)
        value = changed_value(target, column, getattr(row, column.name))
        statement = update(column.table).where(is_row).values({column.name: value})
        async with environment.write_session(target.user.id) as session:
            await (await session.connection()).execute(statement)
        after = await export_text(ada)
        if after == before:
            missing_columns.append(f"{column.table.name}.{column.name}")
        before = after
    assert missing_columns == []
