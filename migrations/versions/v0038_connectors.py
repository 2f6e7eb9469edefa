"""accounts elsewhere, their runs, and what has been fetched of them"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, JSON_TYPE, UtcDateTime

revision = "0038"
down_revision = "0037"
STATES = ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED")


def _one_of(*names: str) -> sa.Enum:
    return sa.Enum(*names, native_enum=False, length=32)


def upgrade() -> None:
    _connectors()
    _runs()
    op.create_table(
        "connector_folders",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("connector_id", BIG_INTEGER, nullable=False),
        sa.Column("name", BYTEWISE_TEXT, nullable=False),
        sa.Column("validity", BIG_INTEGER, nullable=False),
        sa.Column("modseq", BIG_INTEGER, nullable=False),
        _belongs("connector_folders", "connector_id", "connectors"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_connector_folders")),
    )
    named = ["connector_id", "name"]
    op.create_index("connector_folders_by_name", "connector_folders", named, unique=True)
    op.create_table(
        "connector_messages",
        sa.Column("folder_id", BIG_INTEGER, nullable=False),
        sa.Column("mark", BYTEWISE_TEXT, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("message_id", BIG_INTEGER, nullable=True),
        sa.Column("flags", sa.String(), nullable=False),
        sa.Column("fetched_at", UtcDateTime(), nullable=False),
        sa.Column("removed", sa.Boolean(), nullable=False),
        sa.Column("safe", sa.Boolean(), nullable=False),
        _belongs("connector_messages", "folder_id", "connector_folders"),
        sa.PrimaryKeyConstraint("folder_id", "mark", name=op.f("pk_connector_messages")),
    )
    op.create_index("connector_messages_by_digest", "connector_messages", ["folder_id", "digest"])
    op.create_index("connector_messages_of_message", "connector_messages", ["message_id"])


def _belongs(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}")
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=name, ondelete="CASCADE")


def _connectors() -> None:
    op.create_table(
        "connectors",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("protocol", _one_of("IMAP", "POP3", "ARCHIVE", "USER"), nullable=False),
        sa.Column("security", _one_of("PLAIN", "STARTTLS", "TLS"), nullable=False),
        *(sa.Column(n, sa.String(), nullable=False) for n in
          ("name", "host", "mechanism", "username", "secret")),
        *(sa.Column(n, sa.String(), nullable=True) for n in
          ("target_domain", "target_folder", "exclude", "last_error")),
        *(sa.Column(n, BIG_INTEGER, nullable=False) for n in
          ("port", "max_bytes_per_second", "remote_timeout", "local_timeout", "failures")),
        *(sa.Column(n, BIG_INTEGER, nullable=True) for n in
          ("interval", "max_age", "source_retention", "run_id", "lease")),
        *(sa.Column(n, sa.Boolean(), nullable=False) for n in
          ("auto_map_folders", "subscribe_all", "skip_cross_duplicates", "remove_duplicates",
           "mirror_deletes", "spam_check", "virus_check", "apply_filters", "active", "once")),
        *(sa.Column(n, JSON_TYPE, nullable=False) for n in ("folder_rewrites", "custom_options")),
        *(sa.Column(n, JSON_TYPE, nullable=True) for n in ("oauth", "bringing")),
        *(sa.Column(n, UtcDateTime(), nullable=True) for n in
          ("last_run_at", "last_success_at", "next_run_at", "leased_until", "updated_at")),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        _belongs("connectors", "user_id", "users"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_connectors")),
    )  # fmt: skip
    op.create_index(op.f("ix_connectors_user_id"), "connectors", ["user_id"])
    due = sa.text("next_run_at IS NOT NULL")
    op.create_index(
        "connectors_due", "connectors", ["next_run_at"], sqlite_where=due, postgresql_where=due
    )


def _runs() -> None:
    counts = ("seen", "imported", "skipped", "deleted_remote", "bytes")
    op.create_table(
        "connector_runs",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("connector_id", BIG_INTEGER, nullable=False),
        sa.Column("state", _one_of(*STATES), nullable=False),
        sa.Column("trial", sa.Boolean(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        *(sa.Column(n, sa.String(), nullable=True) for n in ("stage", "folder", "error")),
        *(sa.Column(n, BIG_INTEGER, nullable=False) for n in counts),
        sa.Column("log", JSON_TYPE, nullable=False),
        sa.Column("checkpoint", JSON_TYPE, nullable=True),
        _belongs("connector_runs", "user_id", "users"),
        _belongs("connector_runs", "connector_id", "connectors"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_connector_runs")),
    )
    op.create_index(op.f("ix_connector_runs_user_id"), "connector_runs", ["user_id"])
    op.create_index("connector_runs_of_connector", "connector_runs", ["connector_id", "id"])


def downgrade() -> None:
    for name in ("connector_messages", "connector_folders", "connector_runs", "connectors"):
        op.drop_table(name)
