"""The migrations, on each store."""

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
async def bare(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A store without tables, which no other test uses."""
    url = f"sqlite+aiosqlite:///{tmp_path}/mail.db"
    if request.param == "postgres":
        request.getfixturevalue("postgres")
        uri = store_fixtures.postgres_server().get_uri()
        url = await store_fixtures.new_database(uri, f"merganser_bare_{os.getpid()}")
    database = Database(url)
    yield database
    await database.close()


def _check(connection: Connection) -> None:
    command.check(alembic_config(connection))


def _down(connection: Connection) -> None:
    command.downgrade(alembic_config(connection), "base")


async def test_migrations_make_the_tables_of_the_models_and_do_nothing_twice(
    bare: Database,
) -> None:
    await upgrade(bare)
    await upgrade(bare)
    async with bare.engine.begin() as connection:
        await connection.run_sync(_check)


async def test_migrations_go_down_and_up_again(bare: Database) -> None:
    await upgrade(bare)
    async with bare.engine.begin() as connection:
        await connection.run_sync(_down)
    await upgrade(bare)
    await bare.ping()


async def test_a_store_of_the_first_tables_keeps_its_rows(bare: Database) -> None:
    def first(connection: Connection) -> None:
        command.upgrade(alembic_config(connection), "0001")

    async with bare.engine.begin() as connection:
        await connection.run_sync(first)
        await connection.execute(text("INSERT INTO streams (id, last, gone) VALUES (42, 7, 0)"))
    await upgrade(bare)
    async with bare.engine.begin() as connection:
        found = (await connection.execute(text("SELECT last FROM streams WHERE id = 42"))).all()
        assert [row.last for row in found] == [7]
        assert (await connection.execute(text("SELECT * FROM documents"))).all() == []


UPLOADS = """INSERT INTO uploads
(id, user_id, size, received, content_type, blob_name, created_at, expires_at) VALUES
(1, 42, 9, 5, 'a/b', NULL, '2030-01-01', '2030-01-02'),
(2, 42, 9, 9, 'a/b', 'ab/whole.1', '2030-01-01', '2030-01-02')"""


async def test_unfinished_uploads_begin_again_on_postgresql(bare: Database) -> None:
    """Their bytes are in a file of one server, and not in parts."""

    def before(connection: Connection) -> None:
        command.upgrade(alembic_config(connection), "0056")

    async with bare.engine.begin() as connection:
        await connection.run_sync(before)
    if bare.dialect == "postgresql":
        async with bare.engine.begin() as connection:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
            await connection.execute(text(UPLOADS))  # without their user
    else:
        with contextlib.closing(sqlite3.connect(bare.engine.url.database or "")) as file, file:
            file.execute(UPLOADS)
    await upgrade(bare)
    async with bare.engine.begin() as connection:
        found = await connection.execute(text("SELECT received FROM uploads ORDER BY id"))
        assert list(found.scalars()) == [0 if bare.dialect == "postgresql" else 5, 9]


def test_files_are_named_by_their_revisions() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS_FOLDER))
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"v{script.revision}_")
    assert scripts.get_heads() == [last_revision()]
