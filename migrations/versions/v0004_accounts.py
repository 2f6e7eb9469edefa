"""accounts: credentials, second factors, roles, logs and settings"""

import sqlalchemy as sa
from alembic import op

from mail.addresses.address_syntax import username_key
from models.domains import total_triggers
from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime
from models.users import search_index
from models.users.roles import UserPermission
from models.users.search_index import search_text

revision = "0004"
down_revision = "0003"

PARTIAL = (  # indexes of the few accounts that are out of the ordinary
    ("ix_users_disabled", ["username_key", "id"], "disabled"),
    ("ix_users_suspended", ["username_key", "id"], "suspended"),
    ("ix_users_staff", ["role", "id"], "role <> 'USER'"),
)


def upgrade() -> None:
    op.create_table(
        "setting_changes",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("before", JSON_TYPE, nullable=True),
        sa.Column("after", JSON_TYPE, nullable=True),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("actor_id", BIG_INTEGER, nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_setting_changes")),
    )
    op.create_index("ix_setting_changes_key", "setting_changes", ["key", "at", "id"], unique=False)

    op.create_table(
        "settings",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", JSON_TYPE, nullable=True),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_settings")),
    )
    op.create_table(
        "vault_keys",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("proof", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_vault_keys")),
    )
    op.create_table(
        "admin_log",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("actor_id", BIG_INTEGER, nullable=True),
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
        sa.Column("ip", sa.String(), nullable=True),
        sa.Column("mutation", sa.String(), nullable=False),
        sa.Column("target_kind", sa.String(), nullable=True),
        sa.Column("target_id", BIG_INTEGER, nullable=True),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("before", JSON_TYPE, nullable=True),
        sa.Column("after", JSON_TYPE, nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["domains.id"], name=op.f("fk_admin_log_domain_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admin_log")),
    )
    op.create_index("ix_admin_log_actor_id", "admin_log", ["actor_id", "at", "id"], unique=False)
    op.create_index("ix_admin_log_at", "admin_log", ["at", "id"], unique=False)
    op.create_index("ix_admin_log_domain_id", "admin_log", ["domain_id", "at", "id"], unique=False)
    op.create_index("ix_admin_log_target_id", "admin_log", ["target_id", "at", "id"], unique=False)

    op.create_table(
        "domain_totals",
        sa.Column("domain_id", BIG_INTEGER, nullable=False),
        sa.Column("part", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("used", BIG_INTEGER, nullable=False),
        sa.Column("messages", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"],
            ["domains.id"],
            name=op.f("fk_domain_totals_domain_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("domain_id", "part", name=op.f("pk_domain_totals")),
    )
    op.create_table(
        "app_passwords",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("selector", sa.String(), nullable=False),
        sa.Column("password", sa.String(), nullable=False),
        sa.Column("scopes", JSON_TYPE, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("ttl", BIG_INTEGER, nullable=True),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("last_used_ip", sa.String(), nullable=True),
        sa.Column("last_event_id", BIG_INTEGER, nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_app_passwords_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_app_passwords")),
    )
    op.create_index(
        op.f("ix_app_passwords_expires_at"), "app_passwords", ["expires_at"], unique=False
    )
    op.create_index(op.f("ix_app_passwords_user_id"), "app_passwords", ["user_id"], unique=False)
    op.create_index(
        "uq_app_passwords_selector", "app_passwords", ["user_id", "selector"], unique=True
    )

    op.create_table(
        "auth_events",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("fold", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("result", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=True),
        sa.Column("ip", sa.String(), nullable=True),
        sa.Column("ip_key", sa.String(), nullable=True),
        sa.Column("session_id", sa.String(), nullable=True),
        sa.Column("by", sa.String(), nullable=True),
        sa.Column("by_id", BIG_INTEGER, nullable=True),
        sa.Column("detail", JSON_TYPE, nullable=True),
        sa.Column("count", BIG_INTEGER, nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("told_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_auth_events_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_auth_events")),
        sa.UniqueConstraint("fold", name=op.f("uq_auth_events_fold")),
    )
    op.create_index(
        "ix_auth_events_action", "auth_events", ["action", "created_at", "id"], unique=False
    )
    op.create_index("ix_auth_events_created_at", "auth_events", ["created_at", "id"], unique=False)
    op.create_index(
        "ix_auth_events_ip_key", "auth_events", ["ip_key", "created_at", "id"], unique=False
    )
    op.create_index(
        "ix_auth_events_user_id", "auth_events", ["user_id", "created_at", "id"], unique=False
    )

    op.create_table(
        "deleted_users",
        sa.Column("id", BIG_INTEGER, nullable=False),
        sa.Column("username_key", sa.String(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("addresses", JSON_TYPE, nullable=False),
        sa.Column("deleted_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("delete_after", UtcDateTime(timezone=True), nullable=True),
        sa.Column("task_id", BIG_INTEGER, nullable=True),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.ForeignKeyConstraint(
            ["domain_id"],
            ["domains.id"],
            name=op.f("fk_deleted_users_domain_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["id"], ["users.id"], name=op.f("fk_deleted_users_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deleted_users")),
    )
    op.create_index(
        op.f("ix_deleted_users_domain_id"), "deleted_users", ["domain_id"], unique=False
    )
    op.create_index(
        op.f("ix_deleted_users_username_key"), "deleted_users", ["username_key"], unique=False
    )

    op.create_table(
        "domain_admins",
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("domain_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"],
            ["domains.id"],
            name=op.f("fk_domain_admins_domain_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_domain_admins_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "domain_id", name=op.f("pk_domain_admins")),
    )
    op.create_index(
        op.f("ix_domain_admins_domain_id"), "domain_admins", ["domain_id"], unique=False
    )

    op.create_table(
        "recovery_codes",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("used_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_recovery_codes_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recovery_codes")),
    )
    op.create_index(op.f("ix_recovery_codes_user_id"), "recovery_codes", ["user_id"], unique=False)

    op.create_table(
        "totp_seeds",
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("seed", sa.String(), nullable=True),
        sa.Column("pending", sa.String(), nullable=True),
        sa.Column("pending_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("last_step", BIG_INTEGER, nullable=True),
        sa.Column("enabled_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_totp_seeds_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_totp_seeds")),
    )
    op.create_table(
        "usages",
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column(
            "kind",
            sa.Enum("RECIPIENTS", name="usagekind", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("used", BIG_INTEGER, nullable=False),
        sa.Column("until", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_usages_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "kind", name=op.f("pk_usages")),
    )
    op.create_index(op.f("ix_usages_until"), "usages", ["until"], unique=False)

    op.create_table(
        "user_tags",
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_user_tags_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tag", "user_id", name=op.f("pk_user_tags")),
    )
    op.create_index(op.f("ix_user_tags_user_id"), "user_tags", ["user_id"], unique=False)

    op.create_table(
        "webauthn_challenges",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("challenge", sa.String(), nullable=False),
        sa.Column("registers", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_webauthn_challenges_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webauthn_challenges")),
        sa.UniqueConstraint("challenge", name=op.f("uq_webauthn_challenges_challenge")),
    )
    op.create_index(
        op.f("ix_webauthn_challenges_user_id"), "webauthn_challenges", ["user_id"], unique=False
    )

    op.create_table(
        "webauthn_keys",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("credential_id", sa.String(), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("sign_count", BIG_INTEGER, nullable=False),
        sa.Column("transports", JSON_TYPE, nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_webauthn_keys_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webauthn_keys")),
        sa.UniqueConstraint("credential_id", name=op.f("uq_webauthn_keys_credential_id")),
    )
    op.create_index(op.f("ix_webauthn_keys_user_id"), "webauthn_keys", ["user_id"], unique=False)

    op.add_column(
        "access_tokens",
        sa.Column("pending", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("access_tokens", sa.Column("actor_id", BIG_INTEGER, nullable=True))

    op.add_column(
        "api_keys", sa.Column("active", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column("api_keys", sa.Column("domains", JSON_TYPE, nullable=False, server_default="[]"))
    op.add_column(
        "api_keys", sa.Column("operations", JSON_TYPE, nullable=False, server_default="[]")
    )
    op.add_column(
        "api_keys", sa.Column("allowed_ips", JSON_TYPE, nullable=False, server_default="[]")
    )
    op.add_column("api_keys", sa.Column("last_used_ip", sa.String(), nullable=True))

    op.add_column(
        "domains", sa.Column("backup_mx", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column(
        "domains",
        sa.Column("relay_all_recipients", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column(
        "domains",
        sa.Column("relay_unknown_only", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column(
        "domains",
        sa.Column("global_address_list", sa.Boolean(), nullable=False, server_default=sa.true()),
    )

    op.add_column("tasks", sa.Column("actor_id", BIG_INTEGER, nullable=True))
    op.add_column("tasks", sa.Column("not_before", UtcDateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_tasks_actor_id"), "tasks", ["actor_id"], unique=False)

    op.add_column("throttles", sa.Column("times", BIG_INTEGER, nullable=False, server_default="0"))

    op.add_column("users", sa.Column("words", sa.String(), nullable=False, server_default=""))
    op.add_column("users", sa.Column("temporary_password", sa.String(), nullable=True))
    op.add_column("users", sa.Column("temporary_from", UtcDateTime(timezone=True), nullable=True))
    op.add_column("users", sa.Column("temporary_until", UtcDateTime(timezone=True), nullable=True))
    op.add_column(
        "users", sa.Column("password_changed_at", UtcDateTime(timezone=True), nullable=True)
    )
    op.add_column("users", sa.Column("deleted_at", UtcDateTime(timezone=True), nullable=True))
    op.add_column("users", sa.Column("kicked_at", UtcDateTime(timezone=True), nullable=True))
    op.add_column(
        "users", sa.Column("second_factors", JSON_TYPE, nullable=False, server_default="[]")
    )
    op.add_column(
        "users", sa.Column("disabled_scopes", JSON_TYPE, nullable=False, server_default="[]")
    )
    op.add_column(
        "users", sa.Column("webmail_access", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column("users", sa.Column("permissions", JSON_TYPE, nullable=False, server_default="[]"))
    op.add_column(
        "users", sa.Column("admin_permissions", JSON_TYPE, nullable=False, server_default="[]")
    )
    op.add_column(
        "users", sa.Column("from_whitelist", JSON_TYPE, nullable=False, server_default="[]")
    )
    op.add_column("users", sa.Column("pub_key", sa.String(), nullable=True))
    op.add_column("users", sa.Column("key_info", JSON_TYPE, nullable=True))
    op.add_column("users", sa.Column("retention", BIG_INTEGER, nullable=True))
    op.add_column(
        "users", sa.Column("spam_level", BIG_INTEGER, nullable=False, server_default="50")
    )
    op.add_column("users", sa.Column("junk_score", sa.Float(), nullable=True))
    op.add_column("users", sa.Column("reject_score", sa.Float(), nullable=True))
    op.add_column("users", sa.Column("recipients", BIG_INTEGER, nullable=True))
    op.add_column("users", sa.Column("received_max", BIG_INTEGER, nullable=True))
    op.add_column("users", sa.Column("received", BIG_INTEGER, nullable=False, server_default="0"))
    op.add_column("users", sa.Column("received_until", UtcDateTime(timezone=True), nullable=True))
    op.create_index("ix_users_created_at", "users", ["created_at", "id"], unique=False)
    op.create_index("ix_users_used", "users", ["used", "id"], unique=False)
    op.create_index("ix_users_of_domain", "users", ["domain_id", "username_key", "id"])
    for name, columns, condition in PARTIAL:
        where = sa.text(condition)
        op.create_index(name, "users", columns, sqlite_where=where, postgresql_where=where)
    op.create_index("ix_addresses_domain_id_local", "addresses", ["domain_id", "local", "id"])

    _fill()
    for statement in (
        *search_index.CREATE_INDEXES[dialect()],
        *total_triggers.CREATE_TRIGGERS[dialect()],
    ):
        op.execute(statement)


def dialect() -> str:
    """Of the store that is brought up to date."""
    return op.get_bind().dialect.name


def _fill() -> None:
    """What users have by now, in the new columns and beside them."""
    users = sa.table(
        "users",
        sa.column("id", BIG_INTEGER),
        sa.column("username"),
        sa.column("username_key"),
        sa.column("name"),
        sa.column("tags", JSON_TYPE),
        sa.column("words"),
        sa.column("permissions", JSON_TYPE),
    )
    addresses = sa.table(
        "addresses",
        sa.column("user_id", BIG_INTEGER),
        sa.column("shown"),
        sa.column("main", sa.Boolean),
    )
    tags = sa.table("user_tags", sa.column("tag"), sa.column("user_id", BIG_INTEGER))
    store = op.get_bind()
    all_of = [permission.value for permission in UserPermission]
    mains = addresses.select().where(addresses.c.main)
    shown = {row.user_id: row.shown for row in store.execute(mains)}
    for row in store.execute(users.select()).all():
        words = search_text(row.username, row.name, shown.get(row.id))
        changed = {
            "words": words,
            "permissions": all_of,
            "username_key": username_key(row.username),
        }
        store.execute(users.update().where(users.c.id == row.id).values(changed))
        folded = sorted({tag.casefold() for tag in row.tags})
        for tag in folded:
            store.execute(tags.insert().values(tag=tag, user_id=row.id))


def downgrade() -> None:
    for statement in (
        *search_index.DROP_INDEXES[dialect()],
        *total_triggers.DROP_TRIGGERS[dialect()],
    ):
        op.execute(statement)
    for name, _, _ in PARTIAL:
        op.drop_index(name, table_name="users")
    op.drop_index("ix_users_of_domain", table_name="users")
    op.drop_index("ix_addresses_domain_id_local", table_name="addresses")
    op.drop_index("ix_users_used", table_name="users")
    op.drop_index("ix_users_created_at", table_name="users")
    op.drop_column("users", "received_until")
    op.drop_column("users", "received")
    op.drop_column("users", "received_max")
    op.drop_column("users", "recipients")
    op.drop_column("users", "reject_score")
    op.drop_column("users", "junk_score")
    op.drop_column("users", "spam_level")
    op.drop_column("users", "retention")
    op.drop_column("users", "key_info")
    op.drop_column("users", "pub_key")
    op.drop_column("users", "from_whitelist")
    op.drop_column("users", "admin_permissions")
    op.drop_column("users", "permissions")
    op.drop_column("users", "webmail_access")
    op.drop_column("users", "disabled_scopes")
    op.drop_column("users", "second_factors")
    op.drop_column("users", "kicked_at")
    op.drop_column("users", "deleted_at")
    op.drop_column("users", "password_changed_at")
    op.drop_column("users", "temporary_until")
    op.drop_column("users", "temporary_from")
    op.drop_column("users", "temporary_password")
    op.drop_column("users", "words")

    op.drop_column("throttles", "times")

    op.drop_index(op.f("ix_tasks_actor_id"), table_name="tasks")
    op.drop_column("tasks", "not_before")
    op.drop_column("tasks", "actor_id")

    op.drop_column("domains", "global_address_list")
    op.drop_column("domains", "relay_unknown_only")
    op.drop_column("domains", "relay_all_recipients")
    op.drop_column("domains", "backup_mx")

    op.drop_column("api_keys", "last_used_ip")
    op.drop_column("api_keys", "allowed_ips")
    op.drop_column("api_keys", "operations")
    op.drop_column("api_keys", "domains")
    op.drop_column("api_keys", "active")

    op.drop_column("access_tokens", "actor_id")
    op.drop_column("access_tokens", "pending")

    op.drop_index(op.f("ix_webauthn_keys_user_id"), table_name="webauthn_keys")

    op.drop_table("webauthn_keys")
    op.drop_index(op.f("ix_webauthn_challenges_user_id"), table_name="webauthn_challenges")

    op.drop_table("webauthn_challenges")
    op.drop_index(op.f("ix_user_tags_user_id"), table_name="user_tags")

    op.drop_table("user_tags")
    op.drop_index(op.f("ix_usages_until"), table_name="usages")

    op.drop_table("usages")
    op.drop_table("totp_seeds")
    op.drop_index(op.f("ix_recovery_codes_user_id"), table_name="recovery_codes")

    op.drop_table("recovery_codes")
    op.drop_index(op.f("ix_domain_admins_domain_id"), table_name="domain_admins")

    op.drop_table("domain_admins")
    op.drop_index(op.f("ix_deleted_users_username_key"), table_name="deleted_users")
    op.drop_index(op.f("ix_deleted_users_domain_id"), table_name="deleted_users")

    op.drop_table("deleted_users")
    op.drop_index("ix_auth_events_user_id", table_name="auth_events")
    op.drop_index("ix_auth_events_created_at", table_name="auth_events")

    op.drop_table("auth_events")
    op.drop_index("uq_app_passwords_selector", table_name="app_passwords")
    op.drop_index(op.f("ix_app_passwords_user_id"), table_name="app_passwords")
    op.drop_index(op.f("ix_app_passwords_expires_at"), table_name="app_passwords")

    op.drop_table("app_passwords")
    op.drop_table("domain_totals")
    op.drop_index("ix_admin_log_target_id", table_name="admin_log")
    op.drop_index(op.f("ix_admin_log_domain_id"), table_name="admin_log")
    op.drop_index("ix_admin_log_at", table_name="admin_log")
    op.drop_index("ix_admin_log_actor_id", table_name="admin_log")

    op.drop_table("admin_log")
    op.drop_table("vault_keys")
    op.drop_table("settings")
    op.drop_index("ix_setting_changes_key", table_name="setting_changes")

    op.drop_table("setting_changes")
