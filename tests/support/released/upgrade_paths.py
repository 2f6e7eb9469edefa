"""How servers of a released version are upgraded: one after the other, or all stopped."""

from pathlib import Path

from alembic.script import ScriptDirectory

from merganser.bundled_folders import bundled_folder
from tests.support.released import store_archive


def revisions_that_stop_servers(archive: Path) -> list[str]:
    """The revisions since a released version for which operators stop all servers, oldest first."""
    released_revision = store_archive.archive_revision(archive)
    scripts = ScriptDirectory(str(bundled_folder("migrations")))
    return sorted(
        script.revision
        for script in scripts.walk_revisions()
        if script.revision > released_revision and not getattr(script.module, "expand_only", False)
    )


def newest_version_to_stop() -> Path:
    """The archive of the newest released version whose servers must all be stopped."""
    return [path for path in store_archive.archive_paths() if revisions_that_stop_servers(path)][-1]
