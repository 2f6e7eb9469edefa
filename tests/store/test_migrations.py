"""Migrations on both databases."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from merganser.bundled_folders import bundled_folder
from merganser.errors import CommandError
from merganser.server.store.alembic_commands import alembic_config
from merganser.server.store.migration import last_revision, run_missing_migrations
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


async def test_migrations_create_all_tables_and_are_idempotent(
    empty_database: Database,
) -> None:
    await run_missing_migrations(empty_database)
    await run_missing_migrations(empty_database)
    async with empty_database.engine.begin() as connection:
        await connection.run_sync(check_models)


@pytest.mark.parametrize(
    ("revision", "advice"),
    [("0064", "export the accounts with that version"), ("9999", "use that version")],
)
async def test_database_of_other_version_is_refused(
    empty_database: Database, revision: str, advice: str
) -> None:
    await run_missing_migrations(empty_database)
    async with empty_database.engine.begin() as connection:
        await connection.execute(
            text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision}
        )
    with pytest.raises(CommandError, match=f"revision {revision}.*{advice}"):
        await run_missing_migrations(empty_database)


def test_migration_files_are_named_by_revision() -> None:
    scripts = ScriptDirectory(str(bundled_folder("migrations")))
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"v{script.revision}_")
    assert scripts.get_heads() == [last_revision()]
