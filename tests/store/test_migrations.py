"""Migrations on both databases."""

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from merganser.server.store.alembic_commands import alembic_config
from merganser.server.store.migration import last_revision, upgrade
from merganser.server.store.migration_scripts import MIGRATIONS_FOLDER
from models.store.database import Database
from tests.support.stores import store_fixtures


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


def check_models(connection: Connection) -> None:
    command.check(alembic_config(connection))


def downgrade_to_base(connection: Connection) -> None:
    command.downgrade(alembic_config(connection), "base")


async def test_migrations_create_all_tables_and_are_idempotent(
    empty_database: Database,
) -> None:
    await upgrade(empty_database)
    await upgrade(empty_database)
    async with empty_database.engine.begin() as connection:
        await connection.run_sync(check_models)


async def test_migrations_can_be_downgraded_and_upgraded(empty_database: Database) -> None:
    await upgrade(empty_database)
    async with empty_database.engine.begin() as connection:
        await connection.run_sync(downgrade_to_base)
    await upgrade(empty_database)
    await empty_database.ping()


async def test_upgrade_from_first_revision_keeps_rows(empty_database: Database) -> None:
    def upgrade_to_first(connection: Connection) -> None:
        command.upgrade(alembic_config(connection), "0001")

    async with empty_database.engine.begin() as connection:
        await connection.run_sync(upgrade_to_first)
        await connection.execute(text("INSERT INTO streams (id, last, gone) VALUES (42, 7, 0)"))
    await upgrade(empty_database)
    async with empty_database.engine.begin() as connection:
        rows = (await connection.execute(text("SELECT last FROM streams WHERE id = 42"))).all()
        assert [row.last for row in rows] == [7]
        assert (await connection.execute(text("SELECT * FROM documents"))).all() == []


INSERT_UPLOADS = """INSERT INTO uploads
(id, user_id, size, received, content_type, blob_name, created_at, expires_at) VALUES
(1, 42, 9, 5, 'a/b', NULL, '2030-01-01', '2030-01-02'),
(2, 42, 9, 9, 'a/b', 'ab/whole.1', '2030-01-01', '2030-01-02')"""


async def test_migration_restarts_unfinished_uploads_on_postgresql(
    empty_database: Database,
) -> None:
    """Their bytes are in a file of one server and not in the database."""

    def upgrade_to_previous(connection: Connection) -> None:
        command.upgrade(alembic_config(connection), "0056")

    async with empty_database.engine.begin() as connection:
        await connection.run_sync(upgrade_to_previous)
    if empty_database.dialect == "postgresql":
        async with empty_database.engine.begin() as connection:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
            await connection.execute(text(INSERT_UPLOADS))  # without the row of their user
    else:
        with (
            contextlib.closing(sqlite3.connect(empty_database.engine.url.database or "")) as file,
            file,
        ):
            file.execute(INSERT_UPLOADS)
    await upgrade(empty_database)
    async with empty_database.engine.begin() as connection:
        received = await connection.execute(text("SELECT received FROM uploads ORDER BY id"))
        assert list(received.scalars()) == [0 if empty_database.dialect == "postgresql" else 5, 9]


def test_migration_files_are_named_by_revision() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS_FOLDER))
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"v{script.revision}_")
    assert scripts.get_heads() == [last_revision()]
