"""Alembic commands, imported only if the database must be migrated."""

from collections.abc import Sequence

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from merganser.bundled_folders import bundled_folder
from merganser.errors import CommandError
from models.store.compatible_revisions import is_code_compatible, load_oldest_revision


def upgrade_to_head(connection: Connection) -> None:
    """Run the missing migrations."""
    command.upgrade(alembic_config(connection), "head")


def unapplied_revisions(connection: Connection) -> list[str]:
    """The revisions that the database lacks, oldest first.

    A database of a newer version lacks none, if its migrations let this version run. Raises
    CommandError if they don't, or if the database is older than the first release.
    """
    scripts = ScriptDirectory.from_config(alembic_config(connection))
    current_heads = set(MigrationContext.configure(connection).get_current_heads())
    revisions = [script.revision for script in scripts.walk_revisions()]
    if unknown_heads := current_heads.difference(revisions):
        unknown = ", ".join(sorted(unknown_heads))
        if min(unknown_heads) < revisions[-1]:
            raise CommandError(
                f"The database is older than the first release (revision {unknown}) and "
                "can't be upgraded: export the accounts with that version, then import "
                "them into a new database."
            )
        oldest_revision = load_oldest_revision(connection)
        if is_code_compatible(revisions[0], current_heads, oldest_revision):
            return []
        raise CommandError(
            "The database was created by a newer version of merganser (revision "
            f"{unknown}): use that version."
        )
    newest = next(
        (at for at, revision in enumerate(revisions) if revision in current_heads), len(revisions)
    )
    return revisions[:newest][::-1]


def are_expand_only(connection: Connection, revisions: Sequence[str]) -> bool:
    """True if servers of an older version can go on after these migrations.

    False if no server has stored the oldest revision yet: servers without this rule stop working.
    """
    if load_oldest_revision(connection) is None:
        return False
    scripts = ScriptDirectory.from_config(alembic_config(connection))
    return all(
        getattr(scripts.get_revision(revision).module, "expand_only", False)
        for revision in revisions
    )


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration, with the connection that migrations/env.py uses."""
    alembic_options = Config(attributes={"connection": connection})
    alembic_options.set_main_option(
        "script_location", str(bundled_folder("migrations")).replace("%", "%%")
    )
    return alembic_options
