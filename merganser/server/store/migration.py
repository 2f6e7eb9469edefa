"""Bring a store's tables up to date: the only way in which a store that is kept gets them."""

from sqlalchemy import Connection, inspect, text

from merganser.server.store.migration_scripts import SCRIPTS
from models.store.database import Database
from models.store.postgres.limits import UNLIMITED

TURN = 0x6D657267  # of PostgreSQL's advisory locks: servers that start together take turns


async def upgrade(database: Database) -> None:
    """Run the migrations that this store has not seen, all or none.

    Trouble where a newer version of ours has already been here.
    """
    # a writer from the start: on SQLite a second one then waits for the first, and does nothing
    engine = database.engine.execution_options(merganser_write=True)
    async with engine.begin() as connection:
        if database.dialect == "postgresql":
            for statement in UNLIMITED:  # migrations may take long, and so may the wait for them
                await connection.execute(text(statement))
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({TURN})"))
        await connection.run_sync(_upgrade)


async def lacking(database: Database) -> list[str]:
    """The migrations that this store has not seen, oldest first. Trouble as for `upgrade`."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(_lacking)


def _upgrade(connection: Connection) -> None:
    if _lacking(connection):
        from merganser.server.store import alembic_commands  # noqa: PLC0415 - slow to load, and seldom needed

        alembic_commands.upgrade(connection)


def last() -> str:
    """The last revision there is, by the names of the files: v0001_….py is 0001."""
    return max(path.name[1:5] for path in (SCRIPTS / "versions").glob("v*.py"))


def _lacking(connection: Connection) -> list[str]:
    if inspect(connection).has_table("alembic_version"):
        seen = connection.execute(text("SELECT version_num FROM alembic_version")).scalars()
        if list(seen) == [last()]:
            return []
    from merganser.server.store import alembic_commands  # noqa: PLC0415 - slow to load, and seldom needed

    return alembic_commands.lacking(connection)
