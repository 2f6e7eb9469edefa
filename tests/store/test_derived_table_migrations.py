"""Migrations that fill tables from stored rows: sort keys of messages, targets of forwards."""

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from merganser.bundled_folders import bundled_folder
from merganser.server.store.alembic_commands import alembic_config
from models.addresses.tables import AddressKind
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts.identity_operations import add_address
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.stores.counter_check import (
    assert_counters_match,
    assert_forward_target_keys_match,
    select_rows,
)

REMOVED_OBJECTS = {
    ("0112", "sqlite"): (
        "DROP TRIGGER message_sort_keys_out",
        "DROP TRIGGER message_sort_keys_changed",
        "DROP TABLE message_sort_keys",
    ),
    ("0112", "postgresql"): (
        "DROP FUNCTION message_sort_keys_follow() CASCADE",
        "DROP TABLE message_sort_keys",
    ),
    ("0113", "sqlite"): (
        "DROP TRIGGER forward_target_keys_in",
        "DROP TRIGGER forward_target_keys_changed",
        "DROP TABLE forward_target_keys",
    ),
    ("0113", "postgresql"): (
        "DROP FUNCTION forward_target_keys_follow() CASCADE",
        "DROP TABLE forward_target_keys",
    ),
}
SORT_KEYS = (
    "SELECT id, mailbox_id, sent_at, sender_key, subject_key, size FROM message_sort_keys"
    " ORDER BY id"
)
FORWARD_TARGETS = "SELECT domain, local FROM forward_target_keys"
TARGETS = [
    "A.da+Lists@Example.COM",
    "ada+b@example.com",
    "ö@é.example",
    '"a@b"@example.com',
    "http://hook.example/?to=a@b",
    f"x@{'y' * 400}",
]


async def migrate_again(environment: Environment, revision: str) -> None:
    """Remove what a migration creates, and run it again, as at the start of a newer version."""

    def remove_and_migrate(connection: Connection) -> None:
        for statement in REMOVED_OBJECTS[revision, connection.dialect.name]:
            connection.execute(text(statement))
        script = ScriptDirectory(str(bundled_folder("migrations"))).get_revision(revision)
        config = alembic_config(connection)
        command.stamp(config, str(script.down_revision))
        command.upgrade(config, revision)
        command.stamp(config, "head")

    engine = environment.database.engine.execution_options(merganser_write=True)
    async with engine.begin() as connection:
        await connection.run_sync(remove_and_migrate)


async def test_messages_get_the_sort_keys_of_new_messages(
    ada: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, raw_message("Re: Øre", From="Carol <carol@example.com>"))
    await deliver_to(ada, raw_message("two", Date=""))
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("2"))
    rows = await select_rows(environment, SORT_KEYS)
    assert len(rows) == 2
    await migrate_again(environment, "0112")
    assert await select_rows(environment, SORT_KEYS) == rows
    await run_message_mutation(ada, "messageMove", select=inbox_selection("1"), to={"path": "Sent"})
    await assert_counters_match(environment)


@pytest.mark.usefixtures("ada")
async def test_forwards_get_the_targets_of_new_forwards(environment: Environment) -> None:
    await add_address(environment, "all@example.org", kind=AddressKind.FORWARD, forward_to=TARGETS)
    rows = sorted(await select_rows(environment, FORWARD_TARGETS))
    assert rows == [('b"@example.com', '"a'), ("example.com", "ada"), ("é.example", "ö")]
    await migrate_again(environment, "0113")
    assert sorted(await select_rows(environment, FORWARD_TARGETS)) == rows
    await assert_forward_target_keys_match(environment)
    for change in (
        "UPDATE addresses SET forward_to = '[\"b.ob@x.example\"]' WHERE kind = 'FORWARD'",
        "DELETE FROM addresses WHERE kind = 'FORWARD'",
    ):
        async with environment.write_session() as session:
            await (await session.connection()).execute(text(change))
        await assert_forward_target_keys_match(environment)
    assert await select_rows(environment, FORWARD_TARGETS) == []
