"""Migrations on both databases."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    DateTime,
    Integer,
    String,
    column,
    insert,
    inspect,
    select,
    table,
    text,
)

from merganser.bundled_folders import bundled_folder
from merganser.errors import CommandError
from merganser.server.store.alembic_commands import alembic_config
from merganser.server.store.migration import (
    can_older_servers_go_on,
    last_revision,
    load_unapplied_revisions,
    run_missing_migrations,
)
from models.store import compatible_revisions
from models.store.columns import JSON_TYPE
from models.store.database import Database
from tests.support.case_loop import each_case
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

TRIGGERS = {  # of all tables
    "sqlite": "SELECT name, tbl_name AS table_name, sql AS definition FROM sqlite_master"
    " WHERE type = 'trigger'",
    "postgresql": "SELECT tgname AS name, tgrelid::regclass::text AS table_name,"
    " pg_get_triggerdef(oid) AS definition FROM pg_trigger WHERE NOT tgisinternal",
}


@pytest.fixture(params=store_fixtures.STORES)
async def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """Yield a database without tables that no other test uses."""
    url = f"sqlite+aiosqlite:///{tmp_path}/mail.db"
    if request.param == "postgres":
        request.getfixturevalue("postgres")
        server_url = store_fixtures.start_postgres_server().get_uri()
        url = await store_fixtures.recreate_database(server_url, f"merganser_bare_{os.getpid()}")
    database = Database(url)
    yield database
    await database.close()


def insert_row(connection: Connection, table_name: str, **values: Any) -> None:
    """Insert a row; required columns without a value get an empty value of their type."""
    empty_values = [
        (Boolean, False),
        (Integer, 0),
        (DateTime, datetime(2026, 1, 1, tzinfo=UTC)),
        (JSON, []),
        (String, ""),
    ]
    columns = {row["name"]: row for row in inspect(connection).get_columns(table_name)}
    for name, row in columns.items():
        if not row["nullable"] and name not in values:
            values[name] = next(
                value for kind, value in empty_values if isinstance(row["type"], kind)
            )
    statement = insert(table(table_name, *(column(name, columns[name]["type"]) for name in values)))
    connection.execute(statement, values)


def upgrade(connection: Connection, revision: str) -> None:
    command.upgrade(alembic_config(connection), revision)


async def create_database_of_revision(
    database: Database, revision: str, rows: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    """Migrate a database to this revision, and insert rows by table."""

    def create(connection: Connection) -> None:
        upgrade(connection, revision)
        for table_name, values in rows:
            insert_row(connection, table_name, **values)

    async with database.engine.begin() as connection:
        await connection.run_sync(create)


def check_models(connection: Connection) -> None:
    command.check(alembic_config(connection))


async def test_migrations_are_idempotent_and_check_the_version_of_the_database(
    empty_database: Database,
) -> None:
    await run_missing_migrations(empty_database)
    await run_missing_migrations(empty_database)
    async with empty_database.engine.begin() as connection:
        await connection.run_sync(check_models)
    await check_newer_version_is_used_if_its_migrations_only_add(empty_database)
    await check_other_versions_are_refused(empty_database)


async def check_newer_version_is_used_if_its_migrations_only_add(database: Database) -> None:
    """Let a newer version add tables to the database, then remove some."""
    for has_other_tables in (False, True):
        async with database.engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            await connection.run_sync(
                compatible_revisions.record_migration,
                "9999",
                last_revision(),
                expand_only=not has_other_tables,
            )
            stored = await connection.run_sync(compatible_revisions.load_oldest_revision)
        assert (stored == "9999") is has_other_tables
        if has_other_tables:
            with pytest.raises(CommandError, match="revision 9999"):
                await load_unapplied_revisions(database)
        else:
            await run_missing_migrations(database)
            assert await load_unapplied_revisions(database) == []


async def check_other_versions_are_refused(database: Database) -> None:
    """Set the revision of the database to one that these migrations can't start from."""
    for revision, advice in (
        ("0064", "export the accounts with that version"),
        ("9999", "use that version"),
    ):
        async with database.engine.begin() as connection:
            await connection.execute(
                text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision}
            )
            await connection.execute(
                text("UPDATE store_facts SET digest = :revision WHERE name = 'oldest revision'"),
                {"revision": revision},
            )
        with pytest.raises(CommandError, match=f"revision {revision}.*{advice}"):
            await run_missing_migrations(database)


async def test_older_servers_go_on_if_all_migrations_only_add(empty_database: Database) -> None:
    await create_database_of_revision(empty_database, "0110", [])
    assert await can_older_servers_go_on(empty_database, ["0111"])
    assert not await can_older_servers_go_on(empty_database, ["0111", "0112"])
    async with empty_database.engine.begin() as connection:
        await connection.execute(text("DELETE FROM store_facts"))  # an older version migrated it
    assert not await can_older_servers_go_on(empty_database, ["0111"])


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based")
async def test_expand_only_migrations_let_older_code_write(empty_database: Database) -> None:
    """Tables, columns and triggers stay, and inserts without the new columns still work."""
    scripts = ScriptDirectory(str(bundled_folder("migrations"))).walk_revisions()
    expand_only = [script for script in scripts if getattr(script.module, "expand_only", False)]
    assert expand_only
    for case in each_case(reversed(expand_only)):  # the oldest first
        with case as script:
            await create_database_of_revision(empty_database, str(script.down_revision), [])
            before = await load_columns_and_rules(empty_database)
            async with empty_database.engine.begin() as connection:
                await connection.run_sync(upgrade, script.revision)
                oldest = await connection.run_sync(compatible_revisions.load_oldest_revision)
            after = await load_columns_and_rules(empty_database)
            assert before.items() <= after.items()
            for (table_name, name), column_text in after.items():
                is_new = (table_name, name) not in before
                if is_new and any(table_name == old_name for old_name, _ in before):
                    assert "required" not in column_text, f"{table_name}.{name}"
            assert oldest is not None
            assert oldest < script.revision


async def load_columns_and_rules(database: Database) -> dict[tuple[str, str], str]:
    if database.dialect == "sqlite":  # the many small reads are faster without a thread
        with database.engines[1].connect() as connection:
            return columns_and_rules(connection)
    async with database.engine.connect() as asynchronous:
        return await asynchronous.run_sync(columns_and_rules)


def columns_and_rules(connection: Connection) -> dict[tuple[str, str], str]:
    """Describe the columns, unique constraints, foreign keys, checks and triggers by table."""
    inspector, found = inspect(connection), dict[tuple[str, str], str]()
    for (_, name), columns in inspector.get_multi_columns().items():
        for row in columns:
            is_required = not row["nullable"] and row["default"] is None
            found[name, row["name"]] = f"{row['type']}{' required' if is_required else ''}"
    for (_, name), indexes in inspector.get_multi_indexes().items():
        unique = [index for index in indexes if index["unique"]]
        texts = sorted((str(index["name"]), str(index["column_names"])) for index in unique)
        found[name, "unique indexes"] = str(texts)
    for key, rules_of_tables in (
        ("unique", inspector.get_multi_unique_constraints()),
        ("foreign keys", inspector.get_multi_foreign_keys()),
        ("checks", inspector.get_multi_check_constraints()),
    ):
        for (_, name), rules in rules_of_tables.items():
            found[name, key] = str(rules)
    for trigger in connection.execute(text(TRIGGERS[connection.dialect.name])):
        found[trigger.table_name, f"trigger {trigger.name}"] = trigger.definition
    return found


async def test_migration_lets_transactions_finish_that_lock_its_table(
    postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = await store_fixtures.create_database_beside(postgres, "locked")
    database, other_database = Database(url), Database(url)
    await create_database_of_revision(database, "0110", [])
    try:
        async with other_database.engine.begin() as other:
            await other.execute(text("LOCK TABLE users IN ROW EXCLUSIVE MODE"))
            migration = asyncio.create_task(run_missing_migrations(database))
            async with asyncio.timeout(HANG_SECONDS):
                while "Migration waits" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                    await asyncio.sleep(0.05)
            assert not migration.done()
            # a request of a running server gets the table although the migration waits for it
            await other.execute(text("LOCK TABLE users IN ROW EXCLUSIVE MODE"))
        await migration
        assert await load_unapplied_revisions(database) == []
    finally:
        await database.close()
        await other_database.close()


def test_migration_files_are_named_by_revision() -> None:
    scripts = ScriptDirectory(str(bundled_folder("migrations")))
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"v{script.revision}_")
    assert scripts.get_heads() == [last_revision()]


async def test_upgrade_keeps_webhooks_and_counts_stored_custom_data(
    empty_database: Database,
) -> None:
    box = {"id": 4, "user_id": 3, "path": "INBOX", "object_id": "F1"}
    note = {"mailbox_id": 4, "key": "/private/comment", "value": "text"}
    entry = {"id": 5, "stream_id": 3, "store": "default", "key": "key", "value": "v", "size": 4}
    user = {"id": 3, "domain_id": 2, "tenant_id": 2, "username": "ada", "used": 1000}
    rows: list[tuple[str, dict[str, Any]]] = [
        ("streams", {"id": 2}),
        ("streams", {"id": 3}),
        ("domains", {"id": 2, "name": "example.org"}),
        ("users", {**user, "public_metadata": {"a": 1}}),
        ("webhooks", {"id": 6, "user_id": 3, "url": "https://hooks.example/"}),
        ("mailboxes", box),
        ("mailbox_shares", {"mailbox_id": 4, "user_id": 3, "owner_id": 3}),
        ("identities", {"id": 7, "user_id": 3, "local": "ada", "bcc": ["a@example.net"]}),
        ("mailbox_annotations", note),
        ("key_value_entries", entry),
    ]
    await create_database_of_revision(empty_database, "0101", rows)
    await run_missing_migrations(empty_database)
    async with empty_database.engine.begin() as connection:
        metadata_size = len('{"a": 1}' if empty_database.dialect == "postgresql" else '{"a":1}')
        expected = 1000 + metadata_size + len("/private/commenttext") + len("keyv")
        assert (await connection.execute(text("SELECT used FROM users"))).scalar() == expected
        totals = await connection.execute(text("SELECT used FROM domain_totals"))
        assert totals.scalar() == expected
        webhooks = await connection.execute(text("SELECT url, made_by FROM webhooks"))
        assert [tuple(row) for row in webhooks] == [("https://hooks.example/", None)]
        for statement in (
            "SELECT made_by FROM mailbox_shares", "SELECT diverted_by FROM identities"
        ):  # fmt: skip
            assert (await connection.execute(text(statement))).scalars().all() == [None]
        for statement in ("DELETE FROM mailboxes", "UPDATE users SET public_metadata = NULL"):
            await connection.execute(text(statement))
        await connection.execute(text("DELETE FROM key_value_entries"))
        assert (await connection.execute(text("SELECT used FROM users"))).scalar() == 1000
        await connection.execute(text("DELETE FROM users"))
        totals = await connection.execute(text("SELECT used FROM domain_totals"))
        assert totals.scalar() == 0


# By the revision of the database in which they are stored.
ROWS_BY_REVISION: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "0105": [
        ("streams", {"id": 2}),
        ("streams", {"id": 3}),
        ("domains", {"id": 2, "name": "example.org"}),
        (
            "users",
            {
                "id": 3,
                "domain_id": 2,
                "tenant_id": 2,
                "username": "ada",
                "second_factors": ["TOTP", "CUSTOM"],
                "permissions": ["APP_PASSWORDS", "SPAM_POLICY", "SPAM_SCORE"],
                "admin_permissions": ["DOMAIN_ALIASES", "SPAM_POLICY"],
            },
        ),
        (
            "api_keys",
            {
                "id": 4,
                "user_id": 3,
                "name": "key",
                "digest": "d",
                "operations": ["messageTrace", "messageTraceEvents", "tokenRevoke"],
            },
        ),
        (
            "saved_searches",
            {
                "id": 6,
                "user_id": 3,
                "filter": {"to": "a", "or": [{"toOnly": "b"}, {"not": {"messageId": "<c>"}}]},
            },
        ),
        ("audit_log", {"id": 5, "mutation": "domainAliasCreate", "target_kind": "DomainAlias"}),
        ("submissions", {"id": 4, "tenant_id": 2, "queue_id": "q1", "state": "SENT"}),
    ],
    "0108": [
        ("security_events", {"id": 3, "fold": "a", "action": "AUTHENTICATE"}),
        ("security_events", {"id": 4, "fold": "b", "action": "PASSWORD_RESET"}),
        ("changes", {"stream_id": 2, "last": 1, "type": "LABEL_CHANGED"}),
        ("changes", {"stream_id": 2, "last": 2, "type": "CLUSTER_AFFINITY_CHANGED"}),
        ("changes", {"stream_id": 2, "last": 3, "type": "PASSWORD_CHANGED"}),
        ("webhooks", {"id": 5, "types": ["MESSAGE_MOVED", "LABEL_CHANGED", "TASK_CHANGED"]}),
        (
            "webhook_deliveries",
            {
                "id": 6,
                "webhook_id": 5,
                "body": {
                    "user": None,
                    "objects": [
                        {"id": 8, "result": "SUCCESS", "action": "TOTP_ENABLE"},
                        {"id": 9},
                    ],
                },
            },
        ),
    ],
    "0109": [
        ("access_tokens", {"id": 4, "user_id": 3, "scope": "FULL"}),
        ("api_keys", {"id": 7, "digest": "a", "operations": ["viewer", "authenticate"]}),
        ("api_keys", {"id": 8, "digest": "b", "operations": ["viewer"]}),
        ("api_keys", {"id": 9, "digest": "c", "operations": []}),
    ],
}
UPGRADED_COLUMNS: dict[tuple[str, str], dict[int, Any]] = {  # by table and column
    ("users", "second_factors"): {3: ["TOTP", "EXTERNAL"]},
    ("users", "permissions"): {3: ["APP_PASSWORDS", "SENDER_RULES", "SPAM_POLICY"]},
    ("users", "admin_permissions"): {3: ["ALIAS_DOMAINS", "SENDER_RULES", "SPAM_POLICY"]},
    ("saved_searches", "filter"): {
        6: {"toOrCc": "a", "or": [{"to": "b"}, {"not": {"messageIdHeader": "<c>"}}]}
    },
    ("api_keys", "operations"): {
        4: ["accessTokenRevoke", "deliveryTrace"],
        7: ["authenticate", "passwordVerify", "viewer"],  # for sign-ins
        8: ["viewer"],
        9: [],
    },
    ("webhooks", "types"): {
        5: [
            "MESSAGE_MOVED",
            "LABEL_CREATED",
            "LABEL_UPDATED",
            "LABEL_DELETED",
            "TASK_CREATED",
            "TASK_UPDATED",
        ]
    },
    ("webhook_deliveries", "body"): {
        6: {
            "user": None,
            "objects": [{"id": 8, "result": "SUCCESS", "action": "TOTP_ENABLED"}, {"id": 9}],
        }
    },
    ("access_tokens", "scopes"): {4: None},
}
UPGRADED_ROWS = {  # by query
    "SELECT tenant_id, domain_id FROM submissions": [(2, 2)],
    "SELECT mutation, target_kind FROM audit_log": [("aliasDomainCreate", "AliasDomain")],
    "SELECT action FROM security_events ORDER BY id": [("SIGN_IN_ATTEMPTED",), ("PASSWORD_RESET",)],
    "SELECT type FROM changes ORDER BY last": [
        ("LABEL_UPDATED",),
        ("CLUSTER_AFFINITY_CREATED",),
        ("PASSWORD_CHANGED",),
    ],
}


async def test_upgrade_converts_stored_values_and_watches_scopes(empty_database: Database) -> None:
    for revision, rows in ROWS_BY_REVISION.items():
        await create_database_of_revision(empty_database, revision, rows)
    await run_missing_migrations(empty_database)
    for (table_name, column_name), values in UPGRADED_COLUMNS.items():
        assert await load_stored_values(empty_database, table_name, column_name) == values
    async with empty_database.engine.begin() as connection:
        for query, expected_rows in UPGRADED_ROWS.items():
            rows_of_query = await connection.execute(text(query))
            assert [tuple(row) for row in rows_of_query] == expected_rows
        await connection.execute(text("DELETE FROM credential_changes"))
        await connection.execute(text("""UPDATE access_tokens SET scopes = '["MAIL_READ"]'"""))
        changes = await connection.execute(text("SELECT user_id FROM credential_changes"))
        assert list(changes.scalars()) == [3]


async def load_stored_values(
    database: Database, table_name: str, column_name: str
) -> dict[int, Any]:
    """Return a JSON column of all rows by id."""
    row_id, names = column("id", Integer), column(column_name, JSON_TYPE)
    async with database.engine.begin() as connection:
        rows = await connection.execute(select(row_id, names).select_from(table(table_name)))
        return {row.id: row[1] for row in rows}
