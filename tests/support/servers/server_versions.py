"""Source folders of other versions: a released commit, and this code with one more migration."""

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.support.servers.merganser_server import ROOT, MerganserProcess

PACKAGES = ("merganser", "graph", "resolvers", "mail", "models")
OTHER_FILES = ("docs", "schema.graphql", "tests", "bench")
NEXT_REVISION = "9001"
NEXT_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{previous}"
expand_only = True


def upgrade() -> None:
    op.create_table("upgrade_notes", sa.Column("id", sa.BigInteger, primary_key=True))
    note = sa.Column("upgrade_note", sa.String, nullable=False, server_default="")
    op.add_column("messages", note)
    op.add_column("users", sa.Column("upgrade_note", sa.String, nullable=True))
    op.create_index("ix_mailboxes_upgrade", "mailboxes", ["path", "user_id"])
"""


def extract_commit(commit: str, folder: Path) -> Path:
    """Extract the files of a commit of this repository. Returns the folder."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def make_next_version(folder: Path, previous_revision: str) -> Path:
    """Make a version with the code of this folder and one more migration, which only adds."""
    for name in (*PACKAGES, *OTHER_FILES):
        (folder / name).symlink_to(ROOT / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "migrations", folder / "migrations", ignore=ignored)
    text = NEXT_MIGRATION.format(revision=NEXT_REVISION, previous=previous_revision)
    (folder / f"migrations/versions/v{NEXT_REVISION}_next_version.py").write_text(text)
    return folder


def create_users_by_commands(server: MerganserProcess, *names: str) -> None:
    """Create the tables and users with the version of the server, each with an API key."""
    commands: list[tuple[str, ...]] = [("init",), ("domain", "add", "example.org")]
    for name in names:
        address = ("--address", f"{name}@example.org")
        commands += [("user", "add", name, *address, "--no-password")]
    for command in commands:
        output = server.run_command(*command)
        assert output.exit_code == 0, (command, output.stderr)
    for name in names:
        output = server.run_command("api-key", "create", "--name", name, "--user", name)
        (server.secrets[name],) = re.findall(r"\bmgk_[\w-]+", output.stdout)
