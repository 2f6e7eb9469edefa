"""The selection and order of the tests of a run.

`make test` runs a sample: the first case of every fourth function, and no test of the files in
CI_ONLY_FILES. CI (`CI=1`) runs every case on SQLite except SLOW_CASES. On PostgreSQL, CI runs:

- every case of POSTGRES_FULL_FILES: locks, query plans, the order of the journal, migrations, and
  SQL that differs between the stores;
- one case of each function of POSTGRES_REDUCED_FILES: other SQL that reads or writes many rows;
- no case of other files;
- every case of a function that has no case on SQLite.

`make test-all` runs everything on both stores.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.run_scope import CI, REPEATS_FAILED_TESTS, RUNS_ALL_TESTS
from tests.support.stores import store_fixtures

TESTS_FOLDER = Path(__file__).parents[1]
# The slowest files, the slowest first. If a slow file started last, one worker would still run it
# after all other workers have finished.
LONGEST_FILES = (
    "schema/test_every_mutation_and_query",
    "messages/test_filter_costs",
    "mail/mime/test_growing_messages",
    "browser/test_graphiql_in_browser",
    "e2e/operation/test_worker_processes",
    "e2e/recovery/test_postgres_restore",
    "e2e/delivery/test_sending_by_cluster",
    "browser/test_oauth_pages_in_browser",
    "e2e/operation/test_rolling_upgrade",
    "e2e/recovery/test_database_restore",
    "e2e/recovery/test_full_disk",
    "execution/test_executor_differential",
    "e2e/recovery/test_change_stream_completeness",
    "messages/test_messages_with_many_parts",
    "cli/test_cli_connectors",
    "store/test_store_registration",
    "store/test_process_leases",
    "execution/test_cpu_per_point",
    "schema/test_reference",
    "execution/test_combined_lists",
    "e2e/delivery/test_crash_during_fetch",
    "targets/test_target_access",
    "execution/test_every_list_order",
    "mail/smtp/test_hostile_messages_by_smtp",
    "execution/test_argument_sizes",
    "schema/test_documentation",
    "store/test_store_outage",
    "e2e/operation/test_company_tutorial",
    "browser/test_organization_sign_in_in_browser",
    "clients/test_replica_example",
    "execution/test_atomic_references",
    "messages/test_damaged_message_fields",
    "e2e/delivery/test_postfix_exchange",
    "browser/test_graphiql_second_factor",
    "mail/outbound/test_destination_pacing",
    "store/test_postgres_generic_plans",
    "scim/test_scim_users",
    "schema/inputs/test_listed_ids",
    "mail/storage/blobs/test_damaged_blobs",
    "e2e/operation/test_load_balancers",
    "e2e/recovery/test_backup_under_load",
    "e2e/operation/test_make_run",
    "messages/bulk/test_bulk_actions",
    "admin/test_audit_log",
    "messages/listing/test_large_account_listing",
    "messages/test_header_value_limits",
    "messages/bulk/test_bulk_undo",
    "certificates/test_acme_renewal",
    "e2e/recovery/test_clock_changes",
    "certificates/test_acme_revocation",
    "browser/test_hostile_html_in_browser",
    "transfer/test_user_export",
    "e2e/operation/test_other_processes_on_store",
    "search/test_text_search",
    "users/test_user_query_plans",
    "mail/queue/test_queue_leases",
    "connectors/test_connector_fetch",
    "e2e/operation/test_several_servers_guide",
    "schema/test_access_matrix",
    "mail/outbound/test_misbehaving_servers",
    "e2e/delivery/test_crash_during_delivery",
    "connectors/test_mail_import",
    "users/test_user_create",
    "users/test_welcome_messages",
    "users/test_user_create_by_domain_admin",
    "mail/consistency/test_consistency_checks",
    "execution/test_executor",
    "users/test_user_listing",
    "e2e/operation/test_certificate_reload",
    "mail/connectors/test_imap_sessions",
    "e2e/hostile_clients/test_half_open_connections",
    "mail/delivery/test_hostile_messages_by_lmtp",
    "connectors/test_mail_import_filters",
    "e2e/delivery/test_duplicate_delivery",
    "transfer/test_user_import",
    "cli/test_cli_basics",
    "store/test_migrations",
    "users/test_user_counters",
    "e2e/hostile_clients/test_response_size_limit",
    "e2e/recovery/test_interrupted_tasks",
    "cli/test_cli_keys",
    "e2e/operation/test_wheel_install",
)
CI_ONLY_FILES = (  # slow files that run only in CI; other tests cover the same features
    "auth/test_credential_cache.py",
    "auth/test_credential_changes.py",
    "browser/",
    "cache/test_caches_of_all_processes.py",
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
    "e2e/operation/test_rolling_upgrade.py",
    "e2e/operation/test_server_metrics.py",
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
    "e2e/recovery/test_postgres_restore.py",
    "e2e/recovery/test_upload_resume_after_kill.py",
    "execution/test_atomic_references.py",
    "execution/test_combined_lists.py",
    "execution/test_executor_differential.py",
    "mail/consistency/test_consistency_checks.py",
    "mail/queue/test_queue_leases.py",
    "mail/smtp/test_hostile_messages_by_smtp.py",
    "messages/test_filter_costs.py",
    "messages/listing/test_large_account_listing.py",
    "schema/test_documentation.py",
    "schema/test_one_of_inputs.py",
    "store/test_postgres_generic_plans.py",
    "store/test_query_plans.py",
    "users/test_user_query_plans.py",
)
POSTGRES_FULL_FILES = (  # on PostgreSQL, CI runs every case of these files
    "admin/test_list_order_plans.py",
    "changes/test_change_stream.py",
    "changes/test_delta_sync.py",
    "changes/test_random_operations.py",
    "logs/test_log_query.py",
    "logs/test_log_store.py",
    "changes/test_wakeups.py",
    "e2e/delivery/test_crash_during_delivery.py",
    "e2e/delivery/test_delivery_round_trip.py",
    "e2e/operation/test_rolling_upgrade.py",
    "e2e/recovery/test_change_stream_completeness.py",
    "e2e/recovery/test_idempotent_retry.py",
    "mail/outbound/test_delivery_in_several_transactions.py",
    "mail/outbound/test_destination_pacing.py",
    "mail/queue/test_next_hop_sessions.py",
    "mail/queue/test_queue_claims.py",
    "mail/queue/test_queue_delivery.py",
    "mail/queue/test_queue_leases.py",
    "messages/bulk/test_message_tasks.py",
    "messages/test_filter_costs.py",
    "messages/listing/test_large_account_listing.py",
    "messages/listing/test_pages_of_several_lists.py",
    "resources/test_booking_rules.py",
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
POSTGRES_REDUCED_FILES = (  # on PostgreSQL, CI runs one case of each function of these files
    "addresses/test_address_resolution.py",
    "addresses/test_address_syntax.py",
    "admin/test_stored_setting_effect.py",
    "admin/test_stored_settings.py",
    "auth/test_credential_cache.py",
    "auth/test_credential_changes.py",
    "auth/test_security_log_listing.py",
    "changes/test_journal_entries_of_workers.py",
    "e2e/delivery/test_duplicate_delivery.py",
    "e2e/operation/test_worker_processes.py",
    "execution/test_combined_lists.py",
    "files/resumable_uploads/test_resumable_uploads.py",
    "filters/test_sieve_delivery.py",
    "filters/test_sieve_replies_and_redirects.py",
    "mail/delivery/test_lmtp_delivery.py",
    "mail/delivery/test_mx_delivery.py",
    "mail/limits/test_received_message_limit.py",
    "mail/maintenance/test_housekeeping.py",
    "mail/queue/test_dsn_requests.py",
    "mail/storage/blobs/test_blob_garbage_collection.py",
    "mailboxes/test_mailbox_listing.py",
    "mailboxes/test_mailbox_repair.py",
    "mailboxes/test_mailbox_sharing.py",
    "messages/bulk/test_bulk_actions.py",
    "messages/bulk/test_bulk_undo.py",
    "messages/test_batch_append.py",
    "messages/test_header_value_limits.py",
    "messages/listing/test_message_listing.py",
    "notifications/test_push_channels.py",
    "notifications/test_push_contents.py",
    "notifications/test_webhook_receivers.py",
    "notifications/test_webhook_worker.py",
    "scim/test_scim_access.py",
    "scim/test_scim_bad_input.py",
    "scim/test_scim_filters.py",
    "scim/test_scim_query_plans.py",
    "scim/test_scim_users.py",
    "search/test_case_folding.py",
    "search/test_message_trace_search.py",
    "search/test_word_search_pages.py",
    "spam/test_quarantine_listing.py",
    "store/test_process_leases.py",
    "store/test_stale_row_locks.py",
    "subscriptions/test_shared_subscription_results.py",
    "subscriptions/test_shared_subscriptions.py",
    "transfer/test_user_import.py",
    "users/test_user_create.py",
    "users/test_user_create_by_domain_admin.py",
    "users/test_user_create_permissions.py",
    "users/test_user_listing.py",
    "users/test_welcome_messages.py",
)


@dataclass(frozen=True, slots=True)
class SlowCases:
    """Cases that only `make test-all` runs, and the test that covers their behaviour in CI."""

    test: str  # "folder/test_file::test_function"
    cases: tuple[str, ...] = ()  # ids of its cases; by default all
    covered_by: str = ""  # the test that covers them; by default the other cases


# cases of test_worker_processes besides "sqlite"
NON_SQLITE_CASES = ("sqlite+redis", "sqlite+nats", "postgres")
SLOW_CASES = (
    *(
        SlowCases(f"e2e/operation/test_worker_processes::{name}", NON_SQLITE_CASES)
        for name in (
            "test_processes_share_most_of_their_memory",
            "test_every_worker_reports_metrics_of_all_workers",
            "test_metrics_of_killed_worker_are_kept",
            "test_stop_ends_all_processes",
            "test_workers_end_without_first_process",
            "test_server_is_ready_while_one_process_is_missing",
        )
    ),
    SlowCases(
        "e2e/operation/test_worker_processes::test_second_server_with_same_store_is_refused",
        NON_SQLITE_CASES[:2],
    ),
    SlowCases(
        "e2e/operation/test_worker_processes::test_killed_worker_is_replaced_and_clients_continue",
        NON_SQLITE_CASES[:2],
    ),
    SlowCases(
        "e2e/operation/test_worker_processes::test_concurrent_deliveries_all_reach_subscribers",
        NON_SQLITE_CASES[:2],
    ),
    SlowCases(
        "e2e/operation/test_worker_processes::test_one_process_runs_background_work",
        NON_SQLITE_CASES,
    ),
    SlowCases(
        "suite/test_release::test_distributions_of_released_commit_have_the_same_bytes_again",
        covered_by="suite/test_release::"
        "test_release_has_distributions_with_metadata_bill_and_checksums",
    ),
    SlowCases(
        "e2e/operation/test_wheel_install::"
        "test_wheel_with_extras_runs_demo_server_in_clean_environment",
        covered_by="e2e/operation/test_wheel_install::test_commands_of_wheel_run_in_empty_folder",
    ),
    SlowCases(
        "e2e/operation/test_rolling_upgrade::"
        "test_servers_are_replaced_one_after_the_other_and_back",
        ("sqlite",),
    ),
    SlowCases(
        "e2e/operation/test_rolling_upgrade::"
        "test_released_version_is_upgraded_with_all_servers_stopped",
        ("postgres",),
    ),
    SlowCases(
        "e2e/operation/test_unit_restrictions::test_server_makes_only_calls_that_the_unit_allows",
        ("one process",),
    ),
    SlowCases("cli/test_cli_keys::test_killed_rotation_loses_nothing_and_continues", ("reseal:2",)),
    SlowCases(
        "e2e/recovery/test_postgres_restore::test_pg_basebackup_is_detected",
        covered_by="e2e/recovery/test_postgres_restore::test_documented_restore_to_a_moment",
    ),
    *(
        SlowCases(
            f"e2e/operation/test_worker_processes::{name}",
            NON_SQLITE_CASES[:2],
            covered_by=(
                "e2e/recovery/test_change_stream_completeness::"
                "test_every_watcher_receives_all_stored_changes"
            ),
        )
        for name in (
            "test_delivery_at_one_worker_reaches_subscribers_of_all",
            "test_outage_of_event_bus_loses_no_event",
        )
    ),
    SlowCases(
        "e2e/operation/test_worker_processes::test_session_terminate_closes_sockets_of_all_workers",
        ("sqlite+nats",),
    ),
    SlowCases(
        "e2e/operation/test_make_run::test_signal_during_start_stops_server_without_error", ("2",)
    ),
    SlowCases(
        "e2e/recovery/test_postgres_restore::test_failover_to_complete_standby_keeps_incarnation",
        ("stop",),
    ),
    SlowCases(
        "schema/test_access_matrix::test_token_has_the_access_of_a_key_with_the_same_scope",
        ("sqlite-mail-read", "sqlite-read", "sqlite-sieve", "sqlite-submit"),
    ),
    SlowCases(
        "messages/test_damaged_message_fields::test_field_that_reads_damaged_bytes_returns_error",
        ("plain-sqlite-truncated", "plain-sqlite-deleted"),
    ),
    SlowCases(
        "mail/queue/test_queue_leases::test_leases_are_kept_during_slow_reply", ("postgres",)
    ),
    SlowCases(
        "e2e/operation/test_sign_in_under_load::test_single_sign_in_is_fast_on_busy_machine",
        covered_by="e2e/operation/test_sign_in_under_load::test_single_sign_in_starts_no_process",
    ),
    SlowCases(
        "e2e/operation/test_sign_in_under_load::test_sign_in_flood_is_refused_and_other_requests_are_served",
        covered_by="auth/passwords/test_password_sign_in::test_password_checks_over_queue_limit_are_refused",
    ),
    SlowCases(
        "e2e/operation/test_certificate_reload::test_certificate_is_issued_used_replaced_and_deleted",
        ("acme_server0",),
    ),
    SlowCases(
        "e2e/recovery/test_clock_changes::test_clock_steps_of_an_hour_neither_duplicate_nor_delay_mail",
        covered_by="store/test_process_leases::test_clock_step_does_not_end_a_lease",
    ),
    SlowCases(
        "e2e/recovery/test_clock_changes::test_servers_killed_with_clocks_ahead_continue_at_once",
        covered_by=(
            "e2e/delivery/test_sending_by_cluster::"
            "test_every_recipient_is_accounted_for_after_server_kills"
        ),
    ),
)
LOCAL_SAMPLE_INTERVAL = 4  # outside CI, one of 4 functions of a file runs


def _file_name(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS_FOLDER).as_posix()


def run_order(item: pytest.Item) -> int:
    """The sort key that runs the slowest files first."""
    name = _file_name(item).removesuffix(".py")
    return LONGEST_FILES.index(name) if name in LONGEST_FILES else len(LONGEST_FILES)


def deselected_items(items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests that do not run: none with `ALL_TESTS`, in a repetition, or with only one store."""
    if RUNS_ALL_TESTS or REPEATS_FAILED_TESTS or len(store_fixtures.STORES) == 1:
        return set()
    deselected = _skipped_on_postgres(items) | {item for item in items if _is_slow_case(item)}
    return deselected if CI else deselected | _ci_only(items)


def _is_slow_case(item: pytest.Item) -> bool:
    name, _, case = item.nodeid.removeprefix("tests/").partition("[")
    test = name.replace(".py::", "::")
    return any(
        form.test == test and (not form.cases or case.removesuffix("]") in form.cases)
        for form in SLOW_CASES
    )


def _skipped_on_postgres(items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests that CI skips on PostgreSQL. See the docstring of this module."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    skipped: set[pytest.Item] = set()
    for cases in functions.values():
        postgres_cases = [item for item in cases if "postgres" in item.name]
        if len(postgres_cases) == len(cases) or _runs_fully_on_postgres(cases[0]):
            continue
        skipped.update(
            postgres_cases[1:]
            if _file_name(cases[0]).startswith(POSTGRES_REDUCED_FILES)
            else postgres_cases
        )
    return skipped


def _runs_fully_on_postgres(item: pytest.Item) -> bool:
    """True if PostgreSQL runs every case of this function."""
    return _file_name(item).startswith(POSTGRES_FULL_FILES)


def _ci_only(items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests that run only in CI: all except the first cases of a sample of each file."""
    files: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        functions = files.setdefault(_file_name(item), {})
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    sample: set[pytest.Item] = set()
    for name, functions in files.items():
        if name.startswith(CI_ONLY_FILES):
            continue
        for cases in list(functions.values())[::LOCAL_SAMPLE_INTERVAL]:
            sample.add(cases[0])
            if name.startswith((*POSTGRES_FULL_FILES, *POSTGRES_REDUCED_FILES)):
                sample.update([case for case in cases if "postgres" in case.name][:1])
    return set(items) - sample
