"""Alembic commands, imported only if the database must be migrated."""

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from merganser.errors import Trouble
from merganser.server.store.migration_scripts import SCRIPTS


def upgrade(connection: Connection) -> None:
    """Run what this store has not seen."""
    command.upgrade(config(connection), "head")


def lacking(connection: Connection) -> list[str]:
    """The migrations that this store has not seen, oldest first; Trouble for what is newer."""
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
