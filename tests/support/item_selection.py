"""Which tests run where, and in which order.

`make test` runs a sample: the first case of every fourth function, but nothing of the files in
LATER. CI (`CI=1`) runs every case on SQLite except LONG_FORMS. On PostgreSQL, CI runs:

- every case in WHOLE: locks, plans, the order of the journal, migrations, and SQL that has a text
  for each store;
- one case of each function in EACH: other SQL that writes or selects much;
- one case of one function in SOME elsewhere, chosen by a checksum of its name, so that a new test
  changes no choice, but nothing in NONE;
- every case of a function that has no case on SQLite.

`make test-all` runs everything on both stores.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.run_scope import ALL, CI
from tests.support.stores import store_fixtures

HERE = Path(__file__).parents[1]
# Files that take long, the longest first: begun last, they would keep one worker when all others
# have nothing left to do.
LONG = (
    "schema/test_every_mutation_and_query",
    "e2e/recovery/test_database_restore",
    "schema/test_documentation",
    "execution/test_atomic_references",
    "messages/test_header_value_limits",
    "execution/test_executor_differential",
    "e2e/operation/test_worker_processes",
    "e2e/recovery/test_change_stream_completeness",
    "browser/test_graphiql_in_browser",
    "messages/bulk/test_bulk_actions",
    "certificates/test_acme_renewal",
    "e2e/recovery/test_clock_changes",
    "e2e/delivery/test_sending_by_cluster",
    "clients/test_replica_example",
    "e2e/delivery/test_postfix_exchange",
    "certificates/test_acme_revocation",
    "e2e/delivery/test_crash_during_fetch",
    "messages/test_damaged_message_fields",
    "e2e/operation/test_make_run",
    "browser/test_hostile_html_in_browser",
    "cli/test_cli_connectors",
    "transfer/test_account_export",
    "e2e/operation/test_other_processes_on_store",
    "admin/test_admin_log",
    "search/test_text_search",
    "store/test_store_registration",
    "store/test_process_leases",
    "users/test_user_query_plans",
    "mail/queue/test_queue_leases",
    "connectors/test_connector_fetch",
    "e2e/operation/test_several_servers_guide",
    "schema/test_access_matrix",
    "mail/smtp/test_hostile_messages_by_smtp",
    "mail/outbound/test_misbehaving_servers",
    "e2e/delivery/test_crash_during_delivery",
    "connectors/test_mail_import",
    "users/test_user_create",
    "mail/consistency/test_consistency_checks",
    "execution/test_executor",
    "users/test_user_listing",
    "targets/test_target_access",
    "e2e/operation/test_certificate_reload",
    "execution/test_combined_lists",
    "mail/connectors/test_imap_sessions",
    "store/test_store_outage",
    "e2e/hostile_clients/test_half_open_connections",
    "mail/delivery/test_hostile_messages_by_lmtp",
    "connectors/test_mail_import_filters",
    "e2e/delivery/test_duplicate_delivery",
    "transfer/test_account_import",
    "e2e/recovery/test_full_disk",
    "cli/test_cli_basics",
    "mail/storage/blobs/test_damaged_blobs",
    "store/test_migrations",
    "users/test_user_counters",
    "e2e/hostile_clients/test_response_size_limit",
    "e2e/recovery/test_interrupted_tasks",
    "cli/test_cli_keys",
    "e2e/operation/test_wheel_install",
)
LATER = (  # what is tried in CI alone: it takes longest, and what it is of is tried elsewhere, too
    "auth/test_credential_cache.py",
    "browser/",
    "cli/test_cli_connectors.py",
    "cli/test_cli_import.py",
    "cli/test_cli_journal_entries.py",
    "cli/test_cli_keys.py",
    "cli/test_cli_users.py",
    "cli/test_demo_messages.py",
    "clients/test_replica_example.py",
    "e2e/delivery/test_crash_during_delivery.py",
    "e2e/delivery/test_crash_during_fetch.py",
    "e2e/delivery/test_crash_during_push.py",
    "e2e/delivery/test_crash_during_webhook.py",
    "e2e/delivery/test_duplicate_delivery.py",
    "e2e/delivery/test_sending_by_cluster.py",
    "e2e/hostile_clients/test_attack_costs.py",
    "e2e/hostile_clients/test_half_open_connections.py",
    "e2e/hostile_clients/test_request_fuzzing.py",
    "e2e/hostile_clients/test_response_size_limit.py",
    "e2e/hostile_clients/test_unstorable_text.py",
    "e2e/operation/test_certificate_reload.py",
    "e2e/operation/test_make_run.py",
    "e2e/operation/test_observability.py",
    "e2e/operation/test_other_processes_on_store.py",
    "e2e/operation/test_several_servers_guide.py",
    "e2e/operation/test_sign_in_under_load.py",
    "e2e/operation/test_trusted_document_deployment.py",
    "e2e/operation/test_wheel_install.py",
    "e2e/operation/test_worker_processes.py",
    "e2e/recovery/test_change_stream_completeness.py",
    "e2e/recovery/test_clock_changes.py",
    "e2e/recovery/test_database_restore.py",
    "e2e/recovery/test_full_disk.py",
    "e2e/recovery/test_idempotent_retry.py",
    "e2e/recovery/test_interrupted_tasks.py",
    "e2e/recovery/test_upload_resume_after_kill.py",
    "execution/test_atomic_references.py",
    "execution/test_combined_lists.py",
    "execution/test_executor_differential.py",
    "mail/consistency/test_consistency_checks.py",
    "mail/queue/test_queue_leases.py",
    "mail/smtp/test_hostile_messages_by_smtp.py",
    "messages/test_large_account_listing.py",
    "schema/test_documentation.py",
    "schema/test_one_of_inputs.py",
    "store/test_postgres_generic_plans.py",
    "store/test_query_plans.py",
    "users/test_user_query_plans.py",
)
WHOLE = (  # files of which PostgreSQL runs every case in CI
    "changes/test_change_stream.py",
    "changes/test_delta_sync.py",
    "changes/test_random_operations.py",
    "changes/test_wakeups.py",
    "e2e/delivery/test_crash_during_delivery.py",
    "e2e/delivery/test_delivery_round_trip.py",
    "e2e/recovery/test_change_stream_completeness.py",
    "e2e/recovery/test_idempotent_retry.py",
    "mail/outbound/test_delivery_in_several_transactions.py",
    "mail/outbound/test_destination_pacing.py",
    "mail/queue/test_queue_claims.py",
    "mail/queue/test_queue_delivery.py",
    "mail/queue/test_queue_leases.py",
    "messages/bulk/test_message_tasks.py",
    "messages/test_large_account_listing.py",
    "search/test_text_search.py",
    "search/test_word_search.py",
    "store/test_migrations.py",
    "store/test_postgres_generic_plans.py",
    "store/test_query_plans.py",
    "store/test_store_registration.py",
    "store/test_tables_and_codecs.py",
    "users/test_user_counters.py",
    "users/test_user_query_plans.py",
    "targets/test_target_access.py",
)
EACH = (  # files of which PostgreSQL runs one case of each function in CI
    "admin/test_stored_setting_effect.py",
    "admin/test_stored_settings.py",
    "auth/test_credential_cache.py",
    "auth/test_security_log_listing.py",
    "changes/test_journal_entries_of_workers.py",
    "e2e/delivery/test_duplicate_delivery.py",
    "e2e/operation/test_worker_processes.py",
    "execution/test_atomic_references.py",
    "execution/test_combined_lists.py",
    "mail/delivery/test_lmtp_delivery.py",
    "mail/delivery/test_mx_delivery.py",
    "mail/limits/test_received_message_limit.py",
    "mail/storage/blobs/test_blob_garbage_collection.py",
    "mailboxes/test_mailbox_listing.py",
    "mailboxes/test_mailbox_repair.py",
    "mailboxes/test_mailbox_sharing.py",
    "messages/bulk/test_bulk_actions.py",
    "messages/test_batch_append.py",
    "messages/test_header_value_limits.py",
    "messages/test_message_listing.py",
    "search/test_word_search_pages.py",
    "subscriptions/test_shared_subscription_results.py",
    "subscriptions/test_shared_subscriptions.py",
    "transfer/test_account_import.py",
    "users/test_user_create_permissions.py",
    "users/test_user_listing.py",
)
NONE = (  # files that PostgreSQL runs in `make test-all` alone: passes over everything, of a minute
    "execution/test_executor_differential.py",
    "mail/delivery/test_hostile_messages_by_lmtp.py",
    "mail/smtp/test_hostile_messages_by_smtp.py",
    "schema/test_access_matrix.py",
)
EACH_TESTS = ("test_the_journal_tells_exactly_what_a_mutation_changed",)
SOME = 20  # of so many other functions PostgreSQL runs one


@dataclass(frozen=True, slots=True)
class LongForm:
    """Cases that only `make test-all` runs, and the test that covers their behaviour in CI."""

    test: str  # "folder/test_file::test_function"
    cases: tuple[str, ...] = ()  # ids of its cases; by default all
    covered_by: str = ""  # another test; by default the other cases


FLEETS = ("sqlite+redis", "sqlite+nats", "postgres")  # of e2e/test_workers, besides sqlite
LONG_FORMS = (
    *(
        LongForm(f"e2e/operation/test_worker_processes::{name}", FLEETS)
        for name in (
            "test_whoever_is_asked_tells_what_all_have_counted",
            "test_what_is_counted_does_not_go_down_with_a_worker",
            "test_told_to_stop_all_end_and_nobody_is_left",
            "test_without_the_first_process_the_others_end",
            "test_server_is_ready_while_one_process_is_missing",
        )
    ),
    LongForm(
        "e2e/operation/test_worker_processes::test_a_second_server_is_refused_on_the_same_place",
        FLEETS[:2],
    ),
    LongForm("e2e/recovery/test_database_restore::test_pg_basebackup_is_detected", ("False",)),
    LongForm(
        "e2e/recovery/test_database_restore::test_a_failover_to_a_standby_that_lost_nothing_changes_nothing",
        ("stop",),
    ),
    LongForm(
        "e2e/operation/test_sign_in_under_load::test_a_single_sign_in_does_not_wait_for_other_work",
        covered_by="e2e/operation/test_sign_in_under_load::test_a_single_sign_in_starts_no_process",
    ),
    LongForm(
        "e2e/operation/test_sign_in_under_load::test_a_long_queue_is_sent_away_and_other_requests_go_on",
        covered_by="auth/passwords/test_password_sign_in::test_too_many_who_wait_are_sent_away",
    ),
    LongForm(
        "e2e/operation/test_certificate_reload::test_it_is_made_shown_replaced_and_gone",
        ("house0",),
    ),
    LongForm(
        "e2e/recovery/test_clock_changes::test_servers_killed_while_their_clocks_are_ahead_go_on_at_once",
        covered_by=(
            "e2e/delivery/test_sending_by_cluster::"
            "test_every_recipient_is_accounted_for_after_servers_were_killed"
        ),
    ),
)
SAMPLE = 4  # of so many functions of a file one is tried outside CI


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).as_posix()


def longest_first(item: pytest.Item) -> int:
    """For sorting."""
    name = _file(item).removesuffix(".py")
    return LONG.index(name) if name in LONG else len(LONG)


def left_out(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the tests that do not run: none with `ALL_TESTS` or with one store."""
    if ALL or len(store_fixtures.STORES) == 1:
        return set()
    left = _spared(items) | {item for item in items if _is_long_form(item)}
    return left if CI else left | _waiting(items)


def _is_long_form(item: pytest.Item) -> bool:
    name, _, case = item.nodeid.removeprefix("tests/").partition("[")
    test = name.replace(".py::", "::")
    return any(
        form.test == test and (not form.cases or case.removesuffix("]") in form.cases)
        for form in LONG_FORMS
    )


def _spared(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the tests that PostgreSQL leaves out; the docstring of this module says which."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    spared: set[pytest.Item] = set()
    for function, cases in functions.items():
        there = [item for item in cases if "postgres" in item.name]
        if len(there) == len(cases) or _runs_whole(cases[0]):
            continue
        spared.update(there[1:] if _runs_one(function, _file(cases[0])) else there)
    return spared


def _runs_whole(item: pytest.Item) -> bool:
    """True if PostgreSQL runs every case of this function."""
    return _file(item).startswith(WHOLE) or item.name.startswith(EACH_TESTS)


def _runs_one(function: str, file: str) -> bool:
    """True if PostgreSQL runs one case of this function."""
    if file.startswith(NONE):
        return False
    return file.startswith(EACH) or zlib.crc32(function.encode()) % SOME == 0


def _waiting(items: list[pytest.Item]) -> set[pytest.Item]:
    """What waits for CI: all but the first cases of a sample of each file."""
    files: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        functions = files.setdefault(_file(item), {})
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    sample: set[pytest.Item] = set()
    for name, functions in files.items():
        if name.startswith(LATER):
            continue
        for cases in list(functions.values())[::SAMPLE]:
            sample.add(cases[0])
            if name.startswith((*WHOLE, *EACH)):
                sample.update([one for one in cases if "postgres" in one.name][:1])
    return set(items) - sample
