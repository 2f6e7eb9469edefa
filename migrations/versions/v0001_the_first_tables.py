"""the first tables"""

import sqlalchemy as sa
from alembic import op

from models.search import text_index
from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("tenant_id", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("stored_size", BIG_INTEGER, nullable=False),
        sa.Column("codec", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blobs")),
        sa.UniqueConstraint("name", name=op.f("uq_blobs_name")),
        sa.UniqueConstraint("tenant_id", "digest", name=op.f("uq_blobs_tenant_id_digest")),
    )
    op.create_table(
        "domains",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("tags", JSON_TYPE, nullable=False),
        sa.Column("max_addresses", BIG_INTEGER, nullable=False),
        sa.Column("max_users", BIG_INTEGER, nullable=False),
        sa.Column("default_user_quota", BIG_INTEGER, nullable=True),
        sa.Column("max_user_quota", BIG_INTEGER, nullable=False),
        sa.Column("quota", BIG_INTEGER, nullable=False),
        sa.Column("user_count", BIG_INTEGER, nullable=False),
        sa.Column("address_count", BIG_INTEGER, nullable=False),
        sa.Column("quota_allocated", BIG_INTEGER, nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_domains")),
        sa.UniqueConstraint("name", name=op.f("uq_domains_name")),
    )
    op.create_table(
        "receipts",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("message_id", BIG_INTEGER, nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_receipts")),
    )
    with op.batch_alter_table("receipts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_receipts_at"), ["at"], unique=False)

    op.create_table(
        "replays",
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("asked", sa.String(), nullable=False),
        sa.Column("answer", JSON_TYPE, nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_replays")),
    )
    with op.batch_alter_table("replays", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_replays_at"), ["at"], unique=False)

    op.create_table(
        "streams",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("last", BIG_INTEGER, nullable=False),
        sa.Column("gone", BIG_INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_streams")),
    )
    op.create_table(
        "throttles",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("failures", BIG_INTEGER, nullable=False),
        sa.Column("until", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_throttles")),
    )
    with op.batch_alter_table("throttles", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_throttles_until"), ["until"], unique=False)

    op.create_table(
        "changes",
        sa.Column("stream_id", BIG_INTEGER, nullable=False),
        sa.Column("last", BIG_INTEGER, nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "MAILBOX_CREATED",
                "MAILBOX_UPDATED",
                "MAILBOX_RENAMED",
                "MAILBOX_DELETED",
                "MESSAGE_ADDED",
                "MESSAGE_UPDATED",
                "MESSAGE_MOVED",
                "MESSAGE_DELETED",
                "MESSAGE_ARCHIVED",
                "MESSAGE_RESTORED",
                "SUBMISSION_CHANGED",
                "ADDRESS_CHANGED",
                "USER_CHANGED",
                "DOMAIN_CHANGED",
                "TASK_CHANGED",
                "RESYNC",
                name="changekind",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("ids", JSON_TYPE, nullable=False),
        sa.Column("facts", JSON_TYPE, nullable=False),
        sa.Column("origin", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["stream_id"], ["streams.id"], name=op.f("fk_changes_stream_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("stream_id", "last", name=op.f("pk_changes")),
    )
    op.create_table(
        "domain_aliases",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("domain_id", BIG_INTEGER, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"],
            ["domains.id"],
            name=op.f("fk_domain_aliases_domain_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_domain_aliases")),
        sa.UniqueConstraint("alias", name=op.f("uq_domain_aliases_alias")),
    )
    with op.batch_alter_table("domain_aliases", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_domain_aliases_domain_id"), ["domain_id"], unique=False
        )

    op.create_table(
        "users",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("username_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column(
            "role",
            sa.Enum(
                "PUBLIC",
                "USER",
                "DOMAIN_ADMIN",
                "ADMIN",
                "ROOT",
                name="role",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("tenant_id", BIG_INTEGER, nullable=False),
        sa.Column("password", sa.String(), nullable=True),
        sa.Column("require_password_change", sa.Boolean(), nullable=False),
        sa.Column("auth_version", BIG_INTEGER, nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("suspended", sa.Boolean(), nullable=False),
        sa.Column("quota", BIG_INTEGER, nullable=True),
        sa.Column("used", BIG_INTEGER, nullable=False),
        sa.Column("message_count", BIG_INTEGER, nullable=False),
        sa.Column("uid_validity", BIG_INTEGER, nullable=False),
        sa.Column("language", sa.String(), nullable=True),
        sa.Column("tags", JSON_TYPE, nullable=False),
        sa.Column("meta_data", JSON_TYPE, nullable=True),
        sa.Column("internal_data", JSON_TYPE, nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_login_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["domains.id"], name=op.f("fk_users_domain_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username_key", name=op.f("uq_users_username_key")),
    )
    with op.batch_alter_table("users", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_users_domain_id"), ["domain_id"], unique=False)

    op.create_table(
        "access_tokens",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("auth_version", BIG_INTEGER, nullable=False),
        sa.Column(
            "scope",
            sa.Enum(
                "MASTER",
                "READ",
                "MAIL_READ",
                "MAIL",
                "SUBMIT",
                "SETTINGS",
                "IMAP",
                "POP3",
                "SMTP",
                "SIEVE",
                name="scope",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("ip", sa.String(), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_access_tokens_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_access_tokens_digest")),
    )
    with op.batch_alter_table("access_tokens", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_access_tokens_expires_at"), ["expires_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_access_tokens_user_id"), ["user_id"], unique=False)

    op.create_table(
        "addresses",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("local", sa.String(), nullable=False),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("shown", sa.String(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "MAILBOX",
                "FORWARD",
                "DISCARD",
                "LEARN_SPAM",
                "LEARN_HAM",
                name="addresskind",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("targets", JSON_TYPE, nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("main", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("send_as", sa.Boolean(), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("tags", JSON_TYPE, nullable=False),
        sa.Column("public_comment", sa.String(), nullable=True),
        sa.Column("private_comment", sa.String(), nullable=True),
        sa.Column("meta_data", JSON_TYPE, nullable=True),
        sa.Column("internal_data", JSON_TYPE, nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["domains.id"], name=op.f("fk_addresses_domain_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_addresses_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_addresses")),
    )
    with op.batch_alter_table("addresses", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_addresses_domain_id"), ["domain_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_addresses_user_id"), ["user_id"], unique=False)
        batch_op.create_index(
            "uq_addresses_everywhere",
            ["local"],
            unique=True,
            sqlite_where=sa.text("domain_id IS NULL"),
            postgresql_where=sa.text("domain_id IS NULL"),
        )
        batch_op.create_index("uq_addresses_local_domain_id", ["local", "domain_id"], unique=True)
        batch_op.create_index(
            "uq_addresses_main",
            ["user_id"],
            unique=True,
            sqlite_where=sa.text("main"),
            postgresql_where=sa.text("main"),
        )

    op.create_table(
        "api_keys",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column(
            "role",
            sa.Enum(
                "PUBLIC",
                "USER",
                "DOMAIN_ADMIN",
                "ADMIN",
                "ROOT",
                name="role",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("scopes", JSON_TYPE, nullable=False),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_api_keys_user_id"), ["user_id"], unique=False)

    op.create_table(
        "mailboxes",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("guid", sa.String(), nullable=False),
        sa.Column(
            "special_use",
            sa.Enum(
                "INBOX",
                "DRAFTS",
                "JUNK",
                "SENT",
                "TRASH",
                "ARCHIVE",
                "FLAGGED",
                "ALL",
                "SNOOZED",
                "SCHEDULED",
                name="specialuse",
                native_enum=False,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("uid_validity", BIG_INTEGER, nullable=False),
        sa.Column("uid_next", BIG_INTEGER, nullable=False),
        sa.Column("modseq", BIG_INTEGER, nullable=False),
        sa.Column("modify_index", BIG_INTEGER, nullable=False),
        sa.Column("total", BIG_INTEGER, nullable=False),
        sa.Column("unseen", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("subscribed", sa.Boolean(), nullable=False),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("retention", BIG_INTEGER, nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_mailboxes_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mailboxes")),
        sa.UniqueConstraint("user_id", "path", name=op.f("uq_mailboxes_user_id_path")),
    )
    with op.batch_alter_table("mailboxes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_mailboxes_user_id"), ["user_id"], unique=False)
        batch_op.create_index(
            "uq_mailboxes_special_use",
            ["user_id", "special_use"],
            unique=True,
            sqlite_where=sa.text("special_use IS NOT NULL"),
            postgresql_where=sa.text("special_use IS NOT NULL"),
        )

    op.create_table(
        "tasks",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "QUEUED",
                "RUNNING",
                "SUCCEEDED",
                "FAILED",
                "CANCELLED",
                name="taskstate",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("done", BIG_INTEGER, nullable=False),
        sa.Column("total", BIG_INTEGER, nullable=True),
        sa.Column("order", JSON_TYPE, nullable=False),
        sa.Column("checkpoint", JSON_TYPE, nullable=True),
        sa.Column("result", JSON_TYPE, nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("lease", BIG_INTEGER, nullable=True),
        sa.Column("leased_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("attempts", BIG_INTEGER, nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("started_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_tasks_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tasks_user_id"), ["user_id"], unique=False)
        batch_op.create_index(
            "tasks_due",
            ["created_at", "id"],
            unique=False,
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )

    op.create_table(
        "threads",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_threads_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_threads")),
    )
    with op.batch_alter_table("threads", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_threads_user_id"), ["user_id"], unique=False)

    op.create_table(
        "undos",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("before", JSON_TYPE, nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_undos_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_undos")),
        sa.UniqueConstraint("digest", name=op.f("uq_undos_digest")),
    )
    with op.batch_alter_table("undos", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_undos_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_undos_user_id"), ["user_id"], unique=False)

    op.create_table(
        "uploads",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("content_type", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=True),
        sa.Column("blob_name", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_uploads_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
        sa.UniqueConstraint("blob_name", name=op.f("uq_uploads_blob_name")),
    )
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_uploads_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_uploads_user_id"), ["user_id"], unique=False)

    op.create_table(
        "messages",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("mailbox_id", BIG_INTEGER, nullable=True),
        sa.Column("uid", BIG_INTEGER, nullable=False),
        sa.Column("modseq", BIG_INTEGER, nullable=False),
        sa.Column("thread_id", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("received_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("saved_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("date", UtcDateTime(timezone=True), nullable=True),
        sa.Column("expires", UtcDateTime(timezone=True), nullable=True),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("seen", sa.Boolean(), nullable=False),
        sa.Column("flagged", sa.Boolean(), nullable=False),
        sa.Column("answered", sa.Boolean(), nullable=False),
        sa.Column("draft", sa.Boolean(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("keywords", JSON_TYPE, nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("from_name", sa.String(), nullable=True),
        sa.Column("from_address", sa.String(), nullable=True),
        sa.Column("sender", JSON_TYPE, nullable=True),
        sa.Column("reply_to", JSON_TYPE, nullable=False),
        sa.Column("to", JSON_TYPE, nullable=False),
        sa.Column("cc", JSON_TYPE, nullable=False),
        sa.Column("bcc", JSON_TYPE, nullable=False),
        sa.Column("message_id", sa.String(), nullable=True),
        sa.Column("in_reply_to", sa.String(), nullable=True),
        sa.Column("references", JSON_TYPE, nullable=False),
        sa.Column("mailing_list", JSON_TYPE, nullable=True),
        sa.Column("preview", sa.String(), nullable=False),
        sa.Column("content_type", sa.String(), nullable=False),
        sa.Column("content_params", JSON_TYPE, nullable=False),
        sa.Column("encrypted", sa.Boolean(), nullable=False),
        sa.Column("attachment_count", BIG_INTEGER, nullable=False),
        sa.Column("attachments", JSON_TYPE, nullable=False),
        sa.Column("structure", sa.LargeBinary(), nullable=False),
        sa.Column("envelope_from", sa.String(), nullable=True),
        sa.Column("envelope_to", JSON_TYPE, nullable=False),
        sa.Column("meta_data", JSON_TYPE, nullable=True),
        sa.Column("archived_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("archived_from", sa.String(), nullable=True),
        sa.Column("purge_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("indexed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mailbox_id"],
            ["mailboxes.id"],
            name=op.f("fk_messages_mailbox_id"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["thread_id"], ["threads.id"], name=op.f("fk_messages_thread_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_messages_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
    )
    with op.batch_alter_table("messages", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_messages_thread_id"), ["thread_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_messages_user_id"), ["user_id"], unique=False)
        batch_op.create_index("messages_by_age", ["mailbox_id", "received_at", "id"], unique=False)
        batch_op.create_index("messages_by_uid", ["mailbox_id", "uid"], unique=True)
        batch_op.create_index(
            "messages_of_user",
            ["user_id", "received_at", "id"],
            unique=False,
            sqlite_where=sa.text("archived_at IS NULL"),
            postgresql_where=sa.text("archived_at IS NULL"),
        )
        batch_op.create_index(
            "messages_to_expire",
            ["expires"],
            unique=False,
            sqlite_where=sa.text("expires IS NOT NULL"),
            postgresql_where=sa.text("expires IS NOT NULL"),
        )
        batch_op.create_index(
            "messages_to_index",
            ["id"],
            unique=False,
            sqlite_where=sa.text("NOT indexed"),
            postgresql_where=sa.text("NOT indexed"),
        )
        batch_op.create_index(
            "messages_to_purge",
            ["purge_at"],
            unique=False,
            sqlite_where=sa.text("purge_at IS NOT NULL"),
            postgresql_where=sa.text("purge_at IS NOT NULL"),
        )
        batch_op.create_index(
            "messages_unseen",
            ["mailbox_id", "received_at", "id"],
            unique=False,
            sqlite_where=sa.text("NOT seen"),
            postgresql_where=sa.text("NOT seen"),
        )

    op.create_table(
        "thread_refs",
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("thread_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["thread_id"], ["threads.id"], name=op.f("fk_thread_refs_thread_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_thread_refs_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_thread_refs")),
    )
    with op.batch_alter_table("thread_refs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_thread_refs_thread_id"), ["thread_id"], unique=False)

    op.create_table(
        "message_blobs",
        sa.Column("message_id", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_message_blobs_blob_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_message_blobs_message_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("message_id", "blob_id", name=op.f("pk_message_blobs")),
    )
    with op.batch_alter_table("message_blobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_message_blobs_blob_id"), ["blob_id"], unique=False)

    op.create_table(
        "submissions",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("queue_id", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "SCHEDULED",
                "HELD_FOR_UNDO",
                "QUEUED",
                "SENDING",
                "SENT",
                "PARTIAL",
                "FAILED",
                "CANCELLED",
                name="submissionstate",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("message_id", BIG_INTEGER, nullable=True),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("envelope_from", sa.String(), nullable=False),
        sa.Column("send_time", UtcDateTime(timezone=True), nullable=True),
        sa.Column("undo_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_submissions_message_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_submissions_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submissions")),
        sa.UniqueConstraint("queue_id", name=op.f("uq_submissions_queue_id")),
    )
    with op.batch_alter_table("submissions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_submissions_message_id"), ["message_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_submissions_user_id"), ["user_id"], unique=False)
        batch_op.create_index("submissions_of_user", ["user_id", "created_at", "id"], unique=False)

    op.create_table(
        "deliveries",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("submission_id", BIG_INTEGER, nullable=False),
        sa.Column("recipient", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "PENDING",
                "DEFERRED",
                "DELIVERED",
                "RELAYED",
                "BOUNCED",
                "EXPIRED",
                "CANCELLED",
                name="deliverystate",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("attempts", BIG_INTEGER, nullable=False),
        sa.Column("next_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("leased_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("lease", BIG_INTEGER, nullable=True),
        sa.Column("final_dot_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("last_code", BIG_INTEGER, nullable=True),
        sa.Column("last_response", sa.String(), nullable=True),
        sa.Column("mx", sa.String(), nullable=True),
        sa.Column("tls", sa.String(), nullable=True),
        sa.Column("delivered_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["submission_id"],
            ["submissions.id"],
            name=op.f("fk_deliveries_submission_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_deliveries_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.create_index(
            "deliveries_due",
            ["next_at", "id"],
            unique=False,
            sqlite_where=sa.text("next_at IS NOT NULL"),
            postgresql_where=sa.text("next_at IS NOT NULL"),
        )
        batch_op.create_index(
            batch_op.f("ix_deliveries_submission_id"), ["submission_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_deliveries_user_id"), ["user_id"], unique=False)

    op.create_table(
        "submission_blobs",
        sa.Column("submission_id", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_submission_blobs_blob_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["submission_id"],
            ["submissions.id"],
            name=op.f("fk_submission_blobs_submission_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("submission_id", "blob_id", name=op.f("pk_submission_blobs")),
    )
    with op.batch_alter_table("submission_blobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_submission_blobs_blob_id"), ["blob_id"], unique=False)
    op.execute("INSERT INTO streams (id, last, gone) VALUES (0, 0, 0)")  # the platform's
    for statement in text_index.CREATE_TABLE[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in text_index.DROP_TABLE:
        op.execute(statement)
    with op.batch_alter_table("submission_blobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_submission_blobs_blob_id"))

    op.drop_table("submission_blobs")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_deliveries_user_id"))
        batch_op.drop_index(batch_op.f("ix_deliveries_submission_id"))
        batch_op.drop_index(
            "deliveries_due",
            sqlite_where=sa.text("next_at IS NOT NULL"),
            postgresql_where=sa.text("next_at IS NOT NULL"),
        )

    op.drop_table("deliveries")
    with op.batch_alter_table("submissions", schema=None) as batch_op:
        batch_op.drop_index("submissions_of_user")
        batch_op.drop_index(batch_op.f("ix_submissions_user_id"))
        batch_op.drop_index(batch_op.f("ix_submissions_message_id"))

    op.drop_table("submissions")
    with op.batch_alter_table("message_blobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_message_blobs_blob_id"))

    op.drop_table("message_blobs")
    with op.batch_alter_table("thread_refs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_thread_refs_thread_id"))

    op.drop_table("thread_refs")
    with op.batch_alter_table("messages", schema=None) as batch_op:
        batch_op.drop_index(
            "messages_unseen",
            sqlite_where=sa.text("NOT seen"),
            postgresql_where=sa.text("NOT seen"),
        )
        batch_op.drop_index(
            "messages_to_purge",
            sqlite_where=sa.text("purge_at IS NOT NULL"),
            postgresql_where=sa.text("purge_at IS NOT NULL"),
        )
        batch_op.drop_index(
            "messages_to_index",
            sqlite_where=sa.text("NOT indexed"),
            postgresql_where=sa.text("NOT indexed"),
        )
        batch_op.drop_index(
            "messages_to_expire",
            sqlite_where=sa.text("expires IS NOT NULL"),
            postgresql_where=sa.text("expires IS NOT NULL"),
        )
        batch_op.drop_index(
            "messages_of_user",
            sqlite_where=sa.text("archived_at IS NULL"),
            postgresql_where=sa.text("archived_at IS NULL"),
        )
        batch_op.drop_index("messages_by_uid")
        batch_op.drop_index("messages_by_age")
        batch_op.drop_index(batch_op.f("ix_messages_user_id"))
        batch_op.drop_index(batch_op.f("ix_messages_thread_id"))

    op.drop_table("messages")
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_uploads_user_id"))
        batch_op.drop_index(batch_op.f("ix_uploads_expires_at"))

    op.drop_table("uploads")
    with op.batch_alter_table("undos", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_undos_user_id"))
        batch_op.drop_index(batch_op.f("ix_undos_expires_at"))

    op.drop_table("undos")
    with op.batch_alter_table("threads", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_threads_user_id"))

    op.drop_table("threads")
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_index(
            "tasks_due",
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_tasks_user_id"))

    op.drop_table("tasks")
    with op.batch_alter_table("mailboxes", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_mailboxes_special_use",
            sqlite_where=sa.text("special_use IS NOT NULL"),
            postgresql_where=sa.text("special_use IS NOT NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_mailboxes_user_id"))

    op.drop_table("mailboxes")
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_api_keys_user_id"))

    op.drop_table("api_keys")
    with op.batch_alter_table("addresses", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_addresses_main", sqlite_where=sa.text("main"), postgresql_where=sa.text("main")
        )
        batch_op.drop_index("uq_addresses_local_domain_id")
        batch_op.drop_index(
            "uq_addresses_everywhere",
            sqlite_where=sa.text("domain_id IS NULL"),
            postgresql_where=sa.text("domain_id IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_addresses_user_id"))
        batch_op.drop_index(batch_op.f("ix_addresses_domain_id"))

    op.drop_table("addresses")
    with op.batch_alter_table("access_tokens", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_access_tokens_user_id"))
        batch_op.drop_index(batch_op.f("ix_access_tokens_expires_at"))

    op.drop_table("access_tokens")
    with op.batch_alter_table("users", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_users_domain_id"))

    op.drop_table("users")
    with op.batch_alter_table("domain_aliases", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_domain_aliases_domain_id"))

    op.drop_table("domain_aliases")
    op.drop_table("changes")
    with op.batch_alter_table("throttles", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_throttles_until"))

    op.drop_table("throttles")
    op.drop_table("streams")
    with op.batch_alter_table("replays", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_replays_at"))

    op.drop_table("replays")
    with op.batch_alter_table("receipts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_receipts_at"))

    op.drop_table("receipts")
    op.drop_table("domains")
    op.drop_table("blobs")
