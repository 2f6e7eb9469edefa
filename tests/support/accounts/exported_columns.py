"""The columns of an account's tables that its export leaves out, and why."""

from collections.abc import Iterator

from sqlalchemy import Column, Table
from sqlmodel import SQLModel

OWNER_COLUMNS = {"user_id", "owner_id", "stream_id", "mailbox_id", "message_id"}
TABLES_BY_REASON = {
    "An administrator of each server assigns it.": (
        *("addresses", "domain_admins", "forward_target_keys", "user_tags", "rate_limits"),
        *("resources", "user_affinities"),
        *("scim_addresses", "scim_group_members", "scim_users"),
    ),
    "It gives access to this server.": (
        *("access_tokens", "api_keys", "application_passwords", "credential_changes"),
        *("oauth_authorization_codes", "oauth_grants", "oauth_refresh_tokens"),
        *("identity_links", "identity_sessions", "recovery_codes", "totp_secrets"),
        *("webauthn_challenges", "webauthn_keys"),
    ),
    "It sends to a program that knows the objects of this server only.": (
        *("push_channels", "webhooks", "webhook_deliveries", "webhook_lanes"),
        "webhook_read_positions",
    ),
    "It gives rights to users of this server.": ("mailbox_shares",),
    "It is a log or a counter of this server.": (
        *("changes", "connector_runs", "delivery_trace_steps", "rate_limit_holds"),
        *("security_events", "usages"),
    ),
    "It is deleted after a short time, or when a task ends.": (
        *("compose_listeners", "compose_requests", "deleted_users", "export_parts", "exports"),
        *("import_archives", "tasks", "undo_records", "upload_parts", "uploads"),
    ),
    "It is kept for an investigation, not for the user.": (
        *("held_copies", "legal_hold_accesses", "legal_hold_blobs", "legal_holds"),
    ),
    "The message never reached a mailbox.": ("quarantine_blobs", "quarantine_items"),
    "It is computed again from the imported messages.": (
        *("contacts", "message_blobs", "message_keywords", "message_sort_keys", "thread_keys"),
        "training_messages",
    ),
    "An import makes new conversations, which are not muted.": ("threads",),
    "It prevents that this server handles a message twice.": (
        *("autoreply_senders", "delivery_receipts", "fetched_messages", "remote_mailboxes"),
        "sieve_memories",
    ),
    "The mail of the account does not contain it: download it by `User.files`.": (
        *("draft_files", "file_shares", "files"),
    ),
    "It belongs to the resource, not to the user who booked.": ("bookings",),
    "The scheduled message is exported as a draft.": ("submission_blobs",),
}
COLUMNS_BY_REASON = {
    "It gives access to this server.": (
        *("users.password", "users.temporary_password", "users.temporary_from"),
        *("users.temporary_until", "users.password_changed_at", "users.password_change_required"),
        *("users.auth_version", "users.second_factors", "users.sessions_ended_at"),
    ),
    "An administrator of each server assigns it.": (
        *("users.role", "users.tenant_id", "users.active", "users.suspended", "users.tags"),
        *("users.deleted_at", "users.smtp_allowed_networks", "users.disabled_scopes"),
        *("users.webmail_access", "users.allow_local", "users.permissions"),
        *("users.admin_permissions", "users.allowed_senders", "users.private_metadata"),
        *("users.recipients_per_day", "users.forwards_per_day", "users.received_per_hour"),
        "users.quota",
    ),
    "It is a log or a counter of this server.": (
        *("users.received", "users.received_until", "users.received_notified_until", "users.used"),
        *("users.storage_notified_until", "users.message_count", "users.uid_validity"),
        *("users.last_login_at", "mailboxes.message_count", "mailboxes.unseen_count"),
        *("mailboxes.size", "mailboxes.modseq", "messages.modseq", "messages.uid"),
        *("filters.match_count", "sieve_scripts.last_error", "sieve_scripts.last_error_at"),
        *("connectors.last_run_at", "connectors.last_success_at", "connectors.last_error"),
        *("connectors.failures", "connectors.next_run_at", "connectors.run_id"),
        *("connectors.lease", "connectors.holder", "key_value_entries.version"),
    ),
    "It is computed from other columns.": (
        *("users.username_key", "users.words", "users.openpgp_key", "labels.folded"),
        *("saved_searches.folded", "mailbox_subscriptions.digest", "sieve_scripts.size"),
        *("sieve_scripts.requires", "key_value_entries.level", "key_value_entries.size"),
        *("identities.local", "identities.domain", "sender_rules.scope"),
    ),
    "It is computed again from the imported messages.": (
        *("messages.blob_id", "messages.listed_at", "messages.date", "messages.size"),
        *("messages.subject", "messages.from_name", "messages.from_address", "messages.sender"),
        *("messages.reply_to", "messages.to", "messages.cc", "messages.bcc"),
        *("messages.message_id", "messages.in_reply_to", "messages.references"),
        *("messages.mailing_list", "messages.preview", "messages.content_type"),
        *("messages.content_params", "messages.encrypted", "messages.attachment_count"),
        *("messages.attachments", "messages.mime_structure", "messages.indexed"),
    ),
    "Only this server vouches for it.": ("messages.authentication", "messages.spam_report"),
    "It is about the delivery or the sending by this server.": (
        *("messages.saved_at", "messages.filters", "messages.forwarded_to"),
        *("messages.source_id", "messages.source_relation"),
    ),
    "An import ends snoozing, and stores the message in INBOX.": (
        *("messages.snoozed_until", "messages.snoozed_from"),
    ),
    "Deleted messages are not exported.": (
        *("messages.deleted_at", "messages.deleted_from", "messages.deleted_mailbox_id"),
        "messages.purge_at",
    ),
    "Another mailbox of the server can have the ID already.": ("mailboxes.object_id",),
    "It is a password: without a passphrase none is exported.": (
        *("connectors.secret", "filters.relays", "users.relays"),
    ),
    "Imports that run once are not exported.": (
        *("connectors.is_one_time", "connectors.import_options"),
    ),
    "The maker's rights end the rule on this server.": (
        *("sender_rules.made_by", "sender_rules.made_as", "identities.diverted_by"),
    ),
    "Rules of domains and tags are not the user's.": ("sender_rules.tag",),
    "The scheduled message is exported as a draft.": tuple(
        f"submissions.{name}"
        for name in (
            *("tenant_id", "domain_id", "state", "blob_id", "size", "undoable_until"),
            *(
                "copy_of",
                "envid",
                "header_id",
                "ret",
                "originates_here",
                "release_at",
                "sent_mailbox_id",
            ),
        )
    )
    + tuple(
        f"queue_entries.{name}"
        for name in (
            *("domain", "via", "secret", "state", "attempts", "next_at", "ready_at", "rank"),
            *("held_at", "flushed_at", "holder", "lease", "final_dot_at", "last_code"),
            *("last_response", "mx", "tls", "delivered_at", "notify", "orcpt"),
            *("delay_reported_at", "pending_dsn_action", "reported_at", "dsn_reporter"),
            *("dsn_verified", "expires_at"),
        )
    ),
}
IDENTIFYING_COLUMNS = ("id", "created_at", "updated_at")
LEFT_OUT_TABLES = {table: reason for reason, tables in TABLES_BY_REASON.items() for table in tables}
LEFT_OUT_COLUMNS = {
    column: reason for reason, columns in COLUMNS_BY_REASON.items() for column in columns
}


def account_tables() -> Iterator[Table]:
    """Yield the tables whose rows belong to an account, or refer to rows that do."""
    names = {"users"}
    for table in SQLModel.metadata.sorted_tables:  # referenced tables come first
        referenced = {key.column.table.name for key in table.foreign_keys}
        if referenced & names or OWNER_COLUMNS & set(table.c.keys()):
            names.add(table.name)
        if table.name in names:
            yield table


def columns_to_export() -> Iterator[Column[object]]:
    """Yield the columns of the account's tables that are not listed as left out.

    IDs, references to other rows and the times of a row's changes are never exported.
    """
    for table in account_tables():
        for column in table.c if table.name not in LEFT_OUT_TABLES else ():
            is_key = column.name in IDENTIFYING_COLUMNS or column.foreign_keys
            if not is_key and f"{table.name}.{column.name}" not in LEFT_OUT_COLUMNS:
                yield column
