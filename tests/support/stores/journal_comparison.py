"""The journal compared with the rows that changed."""

from collections.abc import Collection
from typing import Any

from models.auth.security_log import SECURITY_EVENT_TYPES
from models.events.event_types import ACCOUNT_EVENT_TYPES
from tests.support.stores.store_snapshot import StoreRows, changed_row_ids

DELIVERY_COUNTERS = {  # columns that change with each delivery, without a journal entry
    "users": {"received", "received_until", "storage_level"},
    "addresses": {"forwarded", "forwarded_until"},
}
# For the rows of each table: a prefix of the types of its events, or all types; and the columns
# whose changes are not journaled: they follow from other changes (counters), or clients can't see
# them.
JOURNALED_TABLES: dict[str, tuple[str | tuple[str, ...], set[str]]] = {
    "mailboxes": ("MAILBOX_", {"uid_next", "modseq", "message_count", "unseen_count", "size"}),
    "messages": ("MESSAGE_", {"indexed"}),
    "addresses": ("ADDRESS_", {"last_received_at"}),
    "files": ("FILE_", {"used_at"}),
    "submissions": ("SUBMISSION_", set[str]()),
    "tasks": ("TASK_", set[str]()),
    "security_events": (tuple(sorted(SECURITY_EVENT_TYPES)), set[str]()),
    "setting_history": ("SETTING_", set[str]()),
    "key_value_entries": ("KEY_VALUE_", set[str]()),
    "compose_requests": ("COMPOSE_REQUESTED", set[str]()),
    "connectors": ("CONNECTOR_", {"lease", "holder"}),
    "dkim_keys": ("DKIM_KEY_", {"looks", "due_at"}),
    "certificates": ("CERTIFICATE_", {"lease", "holder"}),
    "filters": (("FILTER_CREATED", "FILTER_UPDATED", "FILTER_DELETED"), {"match_count"}),
    "identities": ("IDENTITY_", set[str]()),
    "labels": ("LABEL_", set[str]()),
    "autoreplies": ("AUTOREPLY_", set[str]()),
    "quarantine_items": ("QUARANTINE_", set[str]()),
    "saved_searches": ("SAVED_SEARCH_", set[str]()),
    "sieve_scripts": ("SIEVE_", set[str]()),
    "oauth_clients": ("OAUTH_CLIENT_", {"last_used_at"}),
    "relay_hosts": ("RELAY_HOST_", set[str]()),
    "network_bans": (("BAN_CREATED", "BAN_LIFTED"), {"change_number", "ban_count"}),
    "ban_policies": ("BAN_POLICY_", {"updated_at"}),
    "cluster_nodes": (
        "CLUSTER_NODE_",
        {
            "heartbeat_count",
            "last_heartbeat_at",
            "process_count",
            "applied_change_number",
            "last_failure_at",
            "last_failure",
            "ip_addresses",
        },
    ),
    "user_affinities": ("CLUSTER_AFFINITY_", set[str]()),
    "transports": ("TRANSPORT_", set[str]()),
    "tls_policies": ("TLS_POLICY_", {"updated_at"}),
    "forwarding_hosts": ("FORWARDING_HOST_", set[str]()),
    "resources": ("RESOURCE_", set[str]()),
    "sender_rules": ("SENDER_RULE_", set[str]()),
    "users": (
        "USER_",
        {
            "used",
            "message_count",
            "uid_validity",
            "last_login_at",
            "updated_at",
            "password",
            "sessions_ended_at",
        },
    ),
}
# Tables whose rows are journaled as rows of another table.
PART_TABLES = {
    "mailboxes": ["mailbox_annotations", "mailbox_shares"],
    "users": ["rate_limits", "rate_windows"],
    "certificates": ["certificate_names"],
}

# Tables that clients don't see, or whose changes the journal entries of another table cover.
UNJOURNALED_TABLES = {
    "access_tokens", "acme_accounts", "acme_challenges", "audit_log", "api_keys",
    "application_passwords",
    "legal_hold_accesses", "legal_hold_blobs", "held_copies", "legal_holds", "autoreply_senders",
    "ban_change_counters", "ban_list_hosts", "network_failures",
    "bcc_rules", "bookings",
    "blobs", "changes", "component_holds", "compose_listeners", "remote_mailboxes",
    "fetched_messages",
    "connector_runs", "contacts", "credential_changes", "deleted_users", "queue_entries",
    "trusted_documents",
    "domain_admins", "domain_aliases", "domain_totals", "domains", "draft_files",
    "dropped_objects", "export_parts", "exports", "file_shares", "forward_target_keys",
    "greylist_entries",
    "identity_links", "identity_providers", "identity_sessions", "used_identity_tokens",
    "import_archives", "training_messages", "mailbox_subscriptions",
    "message_blobs", "message_keywords", "message_sort_keys", "delivery_trace_steps",
    "destination_slots",
    "push_channels",
    "quarantine_blobs", "vapid_key_pairs",
    "rate_limit_holds", "delivery_receipts", "recipient_rewrites", "recovery_codes",
    "idempotent_payloads", "setting_values", "process_answers", "process_requests",
    "scim_addresses", "scim_group_members", "scim_groups", "scim_users",
    "server_clocks", "server_processes", "sieve_memories", "store_facts", "store_incarnation",
    "streams", "mta_sts_policies", "submission_blobs", "thread_keys", "threads",
    "metric_resets", "oauth_authorization_codes", "oauth_grants", "oauth_refresh_tokens",
    "oauth_signing_keys", "statistic_steps", "throttles", "totp_secrets", "undo_records",
    "upload_parts", "uploads", "usages", "user_tags",
    "secret_box_keys", "webauthn_challenges", "webauthn_keys", "webhook_deliveries",
    "webhook_read_positions",
    "webhook_lanes", "webhooks", "write_probes",
}  # fmt: skip

# Tables whose rows have an event of their own for creation, change and deletion.
TABLES_WITH_CREATION_EVENTS = {
    "certificates", "connectors", "files", "filters", "forwarding_hosts", "identities",
    "key_value_entries", "labels", "oauth_clients", "relay_hosts", "resources", "saved_searches",
    "sender_rules", "sieve_scripts", "submissions", "tasks", "tls_policies", "transports",
}  # fmt: skip


def assert_events_say_what_happened(
    before: StoreRows, after: StoreRows, table: str, entries: list[dict[str, Any]]
) -> None:
    """Check that a row has a _CREATED event if it is new, and a _DELETED one if it is gone."""
    prefixes = JOURNALED_TABLES[table][0]
    ids_by_ending: dict[str, set[int]] = {"CREATED": set(), "DELETED": set()}
    for row in entries:
        ending = row["type"].rpartition("_")[2]
        if row["type"].startswith(prefixes) and ending in ids_by_ending:
            ids_by_ending[ending] |= set(row["ids"])
    created = {key[0] for key in after[table].keys() - before[table].keys()}
    deleted = {key[0] for key in before[table].keys() - after[table].keys()}
    assert created <= ids_by_ending["CREATED"], table
    assert ids_by_ending["CREATED"] - ids_by_ending["DELETED"] <= created, table
    assert ids_by_ending["DELETED"].isdisjoint(key[0] for key in after[table]), table
    assert deleted & {key for row in entries for key in row["ids"]} <= ids_by_ending["DELETED"], (
        table
    )


def new_journal_entries(before: StoreRows, after: StoreRows) -> list[dict[str, Any]]:
    """The journal entries of `after` that are not in `before`."""
    return [row for key, row in after["changes"].items() if key not in before["changes"]]


def assert_journal_matches_rows(
    before: StoreRows,
    after: StoreRows,
    silently_deleted_tables: Collection[str] = (),
    fully_journaled_tables: Collection[str] = (),
) -> None:
    """Check that the journal names exactly the rows that changed.

    Rows of `silently_deleted_tables` can be deleted without an entry. In `fully_journaled_tables`
    the change of any column needs an entry.
    """
    entries = new_journal_entries(before, after)
    for table, (entry_kind, unjournaled_columns) in JOURNALED_TABLES.items():
        ignored = (
            set()
            if table in fully_journaled_tables
            else unjournaled_columns | DELIVERY_COUNTERS.get(table, set())
        )
        journaled = {
            key for row in entries if row["type"].startswith(entry_kind) for key in row["ids"]
        }
        changed_parts = [
            changed_row_ids(before, after, part, set()) for part in PART_TABLES.get(table, ())
        ]
        changed_ids = changed_row_ids(before, after, table, ignored).union(*changed_parts)
        if table in silently_deleted_tables:
            deleted_ids = {key[0] for key in before[table].keys() - after[table].keys()}
            assert journaled <= changed_ids, table
            changed_ids -= deleted_ids - journaled
        assert journaled == changed_ids, table
        if table in TABLES_WITH_CREATION_EVENTS:
            assert_events_say_what_happened(before, after, table, entries)
    for entry in entries:
        if (entry["stream_id"],) in after["users"]:
            assert entry["type"] in ACCOUNT_EVENT_TYPES, entry["type"]
    for (stream,), row in after["streams"].items():
        position_before = before["streams"].get((stream,), {"last": 0})["last"]
        event_count = sum(len(entry["ids"]) for entry in entries if entry["stream_id"] == stream)
        assert row["last"] - position_before == event_count, stream
