"""Which tests run where, and in which order: CI has more time, the second store needs fewer."""

from pathlib import Path

import pytest

from tests import stores
from tests.whole import ALL, CI

HERE = Path(__file__).parent
# Files that take long, the longest first: begun last, they would keep one worker when all others
# have nothing left to do.
LONG = (
    "e2e/test_restore", "e2e/test_workers", "test_walks", "test_differential", "test_imports",
    "e2e/test_run", "test_matrix", "test_docs", "browser/test_graphiql", "test_bulk",
    "e2e/test_proof", "e2e/test_clock_steps", "clients/test_replica", "mail/test_verify",
    "test_header_values", "test_users_plans", "test_atomic_references", "mail/test_torture_smtp",
    "browser/test_letters", "e2e/test_fetching_crash", "test_roads", "mail/test_torture",
    "test_exports", "e2e/test_certificates", "e2e/test_postfix", "cli/test_connectors",
    "test_acme_renewal", "mail/test_contents", "e2e/test_dead_tasks", "e2e/test_repeats",
    "e2e/test_neighbours", "test_fetching", "e2e/test_bad_text", "e2e/test_second_copies",
    "test_executor", "e2e/test_cluster_sending", "e2e/test_crash", "test_acme_revocation",
    "test_rest", "e2e/test_smtp", "test_mailbox_changes", "test_audit", "e2e/test_half_open",
    "e2e/test_push", "e2e/test_resuming", "e2e/test_road", "e2e/test_attacks",
    "test_demo_letters", "test_sockets", "lists/test_together",
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
EACH = (  # what is about the store: all of it is tried on both. Of all else the second has some
    "auth/test_remembered",
    "e2e/test_clock_steps", "e2e/test_crash", "e2e/test_proof", "e2e/test_repeats",
    "e2e/test_road", "e2e/test_workers",
    "mail/test_blobs_collect", "mail/test_lmtp_store", "mail/test_mx_store", "mail/test_pacing",
    "mail/test_queue", "mail/test_received_limit", "lists/test_together", "test_authlog_read",
    "test_bulk.py", "test_changes", "test_delta", "test_fetching.py", "test_fetching_ends",
    "test_generic_plans", "test_groups", "test_header_values", "test_imports", "test_large_account",
    "test_mail_import.py",
    "test_atomic_references", "test_deadlines",
    "test_mailbox_lists", "test_mailbox_repair", "test_messages", "test_placing", "test_plans",
    "test_random", "test_roads", "test_search_words", "test_searches", "test_sharing.py",
    "test_store", "test_targets", "test_tasks", "test_upgrade", "test_users.py",
    "test_users_counted",
    "test_users_listed", "test_users_plans", "test_wakeups", "test_wordpages",
)  # fmt: skip
EACH_TESTS = ("test_the_journal_tells_exactly_what_a_mutation_changed",)
SOME = 10  # of so many tests of a file the second store has one
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
    left = _spared(items)
    return left if CI else left | _waiting(items)


def _spared(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the tests that the second store leaves out; `make test-all` runs them."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        whole = _file(item).startswith(EACH) or item.name.startswith(EACH_TESTS)
        if "postgres" in item.name and not whole:
            files.setdefault(_file(item), []).append(item)
    return {item for some in files.values() for nth, item in enumerate(some) if nth % SOME}


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
            if name.startswith(EACH):
                sample.update([one for one in cases if "postgres" in one.name][:1])
    return set(items) - sample
