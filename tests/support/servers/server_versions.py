"""Source folders of other versions: a released commit, and this code with one more migration."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.servers.merganser_server import ROOT, START_TIMEOUT, MerganserProcess

PACKAGES = ("merganser", "graph", "resolvers", "mail", "models")
OTHER_FILES = ("docs", "schema.graphql")
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
# Runs in the folder of the other version, with its code.
CREATE_USERS = """
import json, sys
from pathlib import Path
from tests.support.servers.merganser_server import MerganserProcess
folder, store_url, settings, *names = sys.argv[1:]
process = MerganserProcess(Path(folder), store_url, json.loads(settings))
process.create_users(*names)
print(json.dumps(process.secrets))
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


def create_users_with_code_of_server(server: MerganserProcess, *names: str) -> None:
    """Create the tables and the users with the version of the server, as `create_users` does."""
    settings = json.dumps(server.extra_settings)
    arguments = [str(server.folder), server.store_url, settings, *names]
    completed = subprocess.run(
        [sys.executable, "-c", CREATE_USERS, *arguments],
        cwd=server.source_folder,
        env={**server.process_env, "PYTHONPATH": str(server.source_folder)},
        check=True,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
    )
    server.secrets = json.loads(completed.stdout)
