"""Bring a store's tables up to date: the only way in which a store that is kept gets them."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from merganser.trouble import Trouble
from models.database import Database

_PACKED = Path(__file__).with_name("migrations")  # in the wheel; a checkout has them at the top
SCRIPTS = _PACKED if _PACKED.is_dir() else Path(__file__).parents[1] / "migrations"
TURN = 0x6D657267  # of PostgreSQL's advisory locks: servers that start together take turns


async def upgrade(database: Database) -> None:
    """Run the migrations that this store has not seen, all or none.

    Trouble where a newer version of ours has already been here.
    """
    # a writer from the start: on SQLite a second one then waits for the first, and does nothing
    engine = database.engine.execution_options(merganser_write=True)
    async with engine.begin() as connection:
        if database.dialect == "postgresql":
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({TURN})"))
        await connection.run_sync(_upgrade)


async def lacking(database: Database) -> list[str]:
    """The migrations that this store has not seen, oldest first. Trouble as for `upgrade`."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(_lacking)


def _upgrade(connection: Connection) -> None:
    if _lacking(connection):
        command.upgrade(config(connection), "head")


def _lacking(connection: Connection) -> list[str]:
    scripts = ScriptDirectory.from_config(config(connection))
    seen = set(MigrationContext.configure(connection).get_current_heads())
    known = [script.revision for script in scripts.walk_revisions()]
    if unknown := seen.difference(known):
        newer = ", ".join(sorted(unknown))
        raise Trouble(f"the store was made by a newer merganser ({newer}): use that one")
    newest = next((at for at, revision in enumerate(known) if revision in seen), len(known))
    return known[:newest][::-1]


def config(connection: Connection) -> Config:
    """Alembic's settings, with a connection lent to migrations/env.py."""
    made = Config(attributes={"connection": connection})
    made.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return made
