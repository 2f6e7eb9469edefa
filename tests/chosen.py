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

from tests import stores
from tests.whole import ALL, CI

HERE = Path(__file__).parent
# Files that take long, the longest first: begun last, they would keep one worker when all others
# have nothing left to do.
LONG = (
    "test_walks", "e2e/test_restore", "test_docs", "test_atomic_references", "test_header_values",
    "test_differential", "e2e/test_workers", "e2e/test_proof", "browser/test_graphiql", "test_bulk",
    "test_acme_renewal", "e2e/test_clock_steps", "e2e/test_cluster_sending", "clients/test_replica",
    "e2e/test_postfix", "test_acme_revocation", "e2e/test_fetching_crash", "test_fields_damaged",
    "e2e/test_run", "browser/test_letters", "cli/test_connectors", "test_exports",
    "e2e/test_neighbours", "test_adminlog", "test_searches", "test_store_use",
    "mail/test_dead_processes", "test_users_plans", "mail/test_queue_leases", "test_fetching",
    "e2e/test_several_servers", "test_matrix", "mail/test_torture_smtp", "mail/test_bad_neighbours",
    "e2e/test_crash", "test_mail_import", "test_user_create", "mail/test_verify", "test_executor",
    "test_users_listed", "test_targets", "e2e/test_certificates", "lists/test_together",
    "mail/test_connectors_imap", "store/test_outage", "e2e/test_half_open", "mail/test_torture",
    "test_mail_import_filters", "e2e/test_second_copies", "test_imports", "e2e/test_full_disk",
    "cli/test_basics", "mail/test_blobs_damaged", "test_upgrade", "test_users_counted",
    "e2e/test_large_answers", "e2e/test_dead_tasks", "cli/test_keys", "e2e/test_wheel",
)  # fmt: skip
LATER = (  # what is tried in CI alone: it takes longest, and what it is of is tried elsewhere, too
    "auth/test_remembered",
    "browser",
    "cli/test_accounts",
    "cli/test_connectors",
    "cli/test_import",
    "cli/test_keys",
    "cli/test_roads",
    "clients/test_replica",
    "e2e/test_attacks",
    "e2e/test_bad_text",
    "e2e/test_busy_machine",
    "e2e/test_certificates",
    "e2e/test_clock_steps",
    "e2e/test_cluster_sending",
    "e2e/test_crash",
    "e2e/test_dead_tasks",
    "e2e/test_documents",
    "e2e/test_fetching_crash",
    "e2e/test_full_disk",
    "e2e/test_fuzz",
    "e2e/test_half_open",
    "e2e/test_large_answers",
    "e2e/test_neighbours",
    "e2e/test_proof",
    "e2e/test_push",
    "e2e/test_repeats",
    "e2e/test_restore",
    "e2e/test_resuming",
    "e2e/test_run",
    "e2e/test_second_copies",
    "e2e/test_several_servers",
    "e2e/test_watching",
    "e2e/test_webhooks",
    "e2e/test_wheel",
    "e2e/test_workers",
    "lists/test_one_of",
    "lists/test_together",
    "mail/test_queue_leases",
    "mail/test_torture_smtp",
    "mail/test_verify",
    "test_atomic_references",
    "test_demo_letters",
    "test_differential",
    "test_docs",
    "test_generic_plans",
    "test_large_account",
    "test_plans",
    "test_users_plans",
)
WHOLE = (  # files of which PostgreSQL runs every case in CI
    "e2e/test_crash", "e2e/test_proof", "e2e/test_repeats", "e2e/test_road",
    "mail/test_pacing", "mail/test_queue",
    "test_changes", "test_delta", "test_generic_plans", "test_large_account", "test_plans",
    "test_random", "test_search_words", "test_searches", "test_store.py", "test_store_use",
    "test_tasks", "test_upgrade", "test_users_counted", "test_users_plans", "test_wakeups",
)  # fmt: skip
EACH = (  # files of which PostgreSQL runs one case of each function in CI
    "auth/test_remembered", "e2e/test_second_copies", "e2e/test_workers", "lists/test_together",
    "mail/test_blobs_collect", "mail/test_lmtp_store", "mail/test_mx_store",
    "mail/test_received_limit", "test_atomic_references", "test_authlog_read", "test_bulk.py",
    "test_groups", "test_header_values", "test_imports", "test_mailbox_lists",
    "test_mailbox_repair", "test_messages", "test_placing", "test_roads", "test_sharing.py",
    "test_stored_settings", "test_users.py", "test_users_listed", "test_wordpages",
)  # fmt: skip
NONE = (  # files that PostgreSQL runs in `make test-all` alone: passes over everything, of a minute
    "mail/test_torture", "test_differential", "test_matrix", "test_targets",
)  # fmt: skip
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
        LongForm(f"e2e/test_workers::{name}", FLEETS)
        for name in (
            "test_whoever_is_asked_tells_what_all_have_counted",
            "test_what_is_counted_does_not_go_down_with_a_worker",
            "test_told_to_stop_all_end_and_nobody_is_left",
            "test_without_the_first_process_the_others_end",
            "test_server_is_ready_while_one_process_is_missing",
        )
    ),
    LongForm("e2e/test_workers::test_a_second_server_is_refused_on_the_same_place", FLEETS[:2]),
    LongForm("e2e/test_restore::test_pg_basebackup_is_detected", ("False",)),
    LongForm(
        "e2e/test_restore::test_a_failover_to_a_standby_that_lost_nothing_changes_nothing",
        ("stop",),
    ),
    LongForm(
        "e2e/test_busy_machine::test_a_single_sign_in_does_not_wait_for_other_work",
        covered_by="e2e/test_busy_machine::test_a_single_sign_in_starts_no_process",
    ),
    LongForm(
        "e2e/test_busy_machine::test_a_long_queue_is_sent_away_and_other_requests_go_on",
        covered_by="auth/test_passwords::test_too_many_who_wait_are_sent_away",
    ),
    LongForm("e2e/test_certificates::test_it_is_made_shown_replaced_and_gone", ("house0",)),
    LongForm(
        "e2e/test_clock_steps::test_servers_killed_while_their_clocks_are_ahead_go_on_at_once",
        covered_by=(
            "e2e/test_cluster_sending::"
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
    if ALL or len(stores.STORES) == 1:
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
