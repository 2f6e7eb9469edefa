"""Migrate the tables of a database."""

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from merganser.bundled_folders import bundled_folder
from models.store.database import Database
from models.store.outages import StreamBusy, is_deadlock, storage_failure
from models.store.postgres.limits import UNLIMITED_STATEMENTS

log = logging.getLogger("merganser.migrations")

MIGRATION_LOCK = 0x6D657267  # a PostgreSQL advisory lock, for servers that start at the same time
# Requests of running servers wait behind a migration that waits for a table. So it gives up soon,
# lets them run, and tries again.
LIMIT_TABLE_LOCKS = "SET LOCAL lock_timeout = '1s'"
RETRY_PAUSE = 1.0  # seconds


async def run_missing_migrations(database: Database) -> None:
    """Run the missing migrations in one transaction, when no other one locks the tables.

    A database of a newer version stays as it is. Raises CommandError if this version can't use it.
    """
    while True:
        try:
            await _run_missing_migrations_once(database)
        except DBAPIError as problem:
            if not (is_deadlock(problem) or isinstance(storage_failure(problem), StreamBusy)):
                raise
            log.warning("Migration waits for other transactions")
            await asyncio.sleep(RETRY_PAUSE)
        else:
            return


async def _run_missing_migrations_once(database: Database) -> None:
    # a write transaction from the start: on SQLite a second server waits until the first is done
    engine = database.engine.execution_options(merganser_write=True)
    async with engine.begin() as connection:
        if database.dialect == "postgresql":
            for statement in UNLIMITED_STATEMENTS:  # a migration, or the wait for it, can take long
                await connection.execute(text(statement))
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            await connection.execute(text(LIMIT_TABLE_LOCKS))
        await connection.run_sync(_migrate_if_revisions_missing)


async def load_unapplied_revisions(database: Database) -> list[str]:
    """Load the missing revisions, oldest first. Raises CommandError as `run_missing_migrations`."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(_missing_revisions)


async def can_older_servers_go_on(database: Database, revisions: Sequence[str]) -> bool:
    """True if servers of an older version can go on after these migrations."""
    from merganser.server.store import alembic_commands  # noqa: PLC0415

    async with database.engine.connect() as connection:
        return await connection.run_sync(alembic_commands.are_expand_only, revisions)


def _migrate_if_revisions_missing(connection: Connection) -> None:
    if _missing_revisions(connection):
        # Alembic is slow to import, and most starts need no migration
        from merganser.server.store import alembic_commands  # noqa: PLC0415

        alembic_commands.upgrade_to_head(connection)


def last_revision() -> str:
    """The last revision, from the names of the files: `v0001_….py` is 0001."""
    return max(path.name[1:5] for path in (bundled_folder("migrations") / "versions").glob("v*.py"))


def _missing_revisions(connection: Connection) -> list[str]:
    if inspect(connection).has_table("alembic_version"):
        versions = connection.execute(text("SELECT version_num FROM alembic_version")).scalars()
        if list(versions) == [last_revision()]:
            return []
    # Alembic is slow to import, and most starts need no migration
    from merganser.server.store import alembic_commands  # noqa: PLC0415

    return alembic_commands.unapplied_revisions(connection)
