"""The migration that inserts the sort keys of stored messages."""

from typing import Any

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from merganser.bundled_folders import bundled_folder
from merganser.server.store.alembic_commands import alembic_config
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.stores.counter_check import assert_counters_match, select_rows

REVISION = "0112"
REMOVED_OBJECTS = {
    "sqlite": (
        "DROP TRIGGER message_sort_keys_out",
        "DROP TRIGGER message_sort_keys_changed",
        "DROP TABLE message_sort_keys",
    ),
    "postgresql": (
        "DROP FUNCTION message_sort_keys_follow() CASCADE",
        "DROP TABLE message_sort_keys",
    ),
}
SORT_KEYS = (
    "SELECT id, mailbox_id, sent_at, sender_key, subject_key, size FROM message_sort_keys"
    " ORDER BY id"
)


async def change_tables(environment: Environment, change: Any) -> None:
    """Run a function in a transaction that can change tables, as at the start of a server."""
    engine = environment.database.engine.execution_options(merganser_write=True)
    async with engine.begin() as connection:
        await connection.run_sync(change)


def remove_sort_keys_and_migrate(connection: Connection) -> None:
    """Remove the table, mark the database as one of the version before, and upgrade it."""
    for statement in REMOVED_OBJECTS[connection.dialect.name]:
        connection.execute(text(statement))
    script = ScriptDirectory(str(bundled_folder("migrations"))).get_revision(REVISION)
    config = alembic_config(connection)
    command.stamp(config, str(script.down_revision))
    command.upgrade(config, REVISION)
    command.stamp(config, "head")


async def test_migration_inserts_the_rows_that_new_messages_get(
    ada: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, raw_message("Re: Øre", From="Carol <carol@example.com>"))
    await deliver_to(ada, raw_message("two", Date=""))
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("2"))
    rows = await select_rows(environment, SORT_KEYS)
    assert len(rows) == 2
    await change_tables(environment, remove_sort_keys_and_migrate)
    assert await select_rows(environment, SORT_KEYS) == rows
    await run_message_mutation(ada, "messageMove", select=inbox_selection("1"), to={"path": "Sent"})
    await assert_counters_match(environment)
