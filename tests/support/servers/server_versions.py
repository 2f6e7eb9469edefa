"""Source folders of other versions: a released one, and this code with one more migration."""

import re
import shutil
import tarfile
from importlib.util import cache_from_source
from pathlib import Path

from tests.support.released.source_archive import STATIC_FILES
from tests.support.servers.merganser_server import ROOT, MerganserProcess

PACKAGES = ("merganser", "graph", "resolvers", "mail", "models")
NOT_RELEASED = ("docs", "tests", "bench")  # the code of any version runs with these of this one
OTHER_FILES = (*NOT_RELEASED, "schema.graphql")
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


def extract_released_source(archive: Path, folder: Path) -> Path:
    """Extract the source of a released version, link what it needs, and return the folder."""
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    for name in PACKAGES:
        _copy_bytecode_of_same_modules(folder, name)
    for name in (*NOT_RELEASED, STATIC_FILES):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _copy_bytecode_of_same_modules(folder: Path, package: str) -> None:
    """Copy the bytecode of modules that are the same in this version: compiling takes seconds."""
    for module in (folder / package).rglob("*.py"):
        own_module = ROOT / module.relative_to(folder)
        own_bytecode = Path(cache_from_source(own_module))
        if not own_module.is_file() or not own_bytecode.is_file():
            continue
        if module.read_bytes() == own_module.read_bytes():
            bytecode = Path(cache_from_source(module))
            bytecode.parent.mkdir(exist_ok=True)
            shutil.copy(own_bytecode, bytecode)
            shutil.copystat(own_module, module)  # Python compares the time of the module


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
    commands: list[tuple[str, ...]] = [("init",)]
    for name in names:
        address = ("--address", f"{name}@example.org")
        commands += [("user", "add", name, *address, "--no-password")]
    for command in commands:
        output = server.run_command(*command)
        assert output.exit_code == 0, (command, output.stderr)
    for name in names:
        output = server.run_command("api-key", "create", "--name", name, "--user", name)
        (server.secrets[name],) = re.findall(r"\bmgk_[\w-]+", output.stdout)
