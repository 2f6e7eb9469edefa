"""The archive of a released version: the source of the server, as `.tar.xz`."""

import lzma
import subprocess
from pathlib import Path

from tests.support.servers.merganser_server import ROOT

STATIC_FILES = "graph/static"  # GraphiQL: large, compressed already, and the same in most versions
SOURCE_PATHS = (
    "alembic.ini",
    "graph",
    "mail",
    "merganser",
    "migrations",
    "models",
    "pyproject.toml",
    "resolvers",
    "schema.graphql",
)


def write_source_archive(commit: str, target: Path) -> None:
    """Write the source of a commit of this repository, without static files."""
    command = ["git", "archive", "--format=tar", commit, *SOURCE_PATHS, f":!{STATIC_FILES}"]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    target.write_bytes(lzma.compress(archive, preset=9 | lzma.PRESET_EXTREME))
