"""Which tests run where, and in which order: CI has more time, the second store needs fewer."""

import os
from pathlib import Path

import pytest

from tests import stores

HERE = Path(__file__).parent
# Files that take long, the longest first: begun last, they would keep one worker when all others
# have nothing left to do.
LONG = (
    "e2e/test_proof", "mail/test_verify", "test_bulk", "browser/test_graphiql", "test_plans",
    "e2e/test_half_open",
    "e2e/test_run", "test_rest", "test_walks", "mail/test_contents", "test_docs", "e2e/test_road",
    "e2e/test_bad_text", "test_differential", "e2e/test_neighbours", "test_sockets",
    "e2e/test_attacks", "test_demo_letters",
)  # fmt: skip
BOTH = (  # what is tried on the second store outside CI, too: there is no time for all else
    "e2e/test_road", "mail/test_blobs_collect", "mail/test_lmtp_store", "mail/test_queue",
    "test_changes", "test_groups", "test_messages", "test_random", "test_search_words",
    "test_searches", "test_sharing", "test_store", "test_tasks", "test_upgrade", "test_users.py",
)  # fmt: skip
LATER = (  # what is tried in CI alone: it takes longest, and what it is of is tried elsewhere, too
    "browser",
    "cli/test_accounts",
    "cli/test_import",
    "cli/test_keys",
    "cli/test_roads",
    "clients/test_replica",
    "e2e/test_attacks",
    "e2e/test_bad_text",
    "e2e/test_crash",
    "e2e/test_fuzz",
    "e2e/test_half_open",
    "e2e/test_neighbours",
    "e2e/test_proof",
    "e2e/test_push",
    "e2e/test_repeats",
    "e2e/test_resuming",
    "e2e/test_run",
    "e2e/test_webhooks",
    "e2e/test_wheel",
    "e2e/test_workers",
    "mail/test_verify",
    "test_demo_letters",
    "test_differential",
    "test_docs",
    "test_plans",
    "test_users_plans",
)
LATER_TESTS = (  # of files that are tried here, too
    "test_a_trial_leaves_nothing", "test_a_key_used_for_something_else_conflicts",
    "test_an_administrator_of_another_domain_changes_nothing",
    "test_a_read_only_key_changes_nothing",
)  # fmt: skip
EACH = (  # where all cases of a table are the store's own: elsewhere it has some of them, too
    "mail/test_verify", "test_archive", "test_authlog_read", "test_imports", "test_mailbox_lists",
    "test_mailbox_repair", "test_plans", "test_roads", "test_users_counted", "test_users_listed",
    "test_users_plans", "test_wordpages",
)  # fmt: skip
EACH_TESTS = (
    "test_another_user_changes_nothing", "test_atomic_keeps_all_fields_or_none",
    "test_the_journal_tells_exactly_what_a_mutation_changed",
)  # fmt: skip
SOME = 4  # of so many cases of a table the second store has one


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).as_posix()


def longest_first(item: pytest.Item) -> int:
    """For sorting."""
    name = _file(item).removesuffix(".py")
    return LONG.index(name) if name in LONG else len(LONG)


def left_out(items: list[pytest.Item]) -> list[pytest.Item]:
    """What does not run here: nothing, where there is one store alone."""
    if len(stores.STORES) == 1:
        return []
    spared = set(_spared(items))
    return [item for item in items if item in spared or _waits_for_ci(item)]


def _spared(items: list[pytest.Item]) -> list[pytest.Item]:
    """What the second store is spared of long tables: what both refuse alike."""
    tables: dict[str, list[pytest.Item]] = {}
    for item in items:
        whole = _file(item).startswith(EACH) or item.name.startswith(EACH_TESTS)
        if "postgres" in item.name and not whole:
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    long = [cases for cases in tables.values() if len(cases) > SOME]
    return [case for cases in long for nth, case in enumerate(cases) if nth % SOME]


def _waits_for_ci(item: pytest.Item) -> bool:
    second = "postgres" in item.name and not _file(item).startswith(BOTH)
    later = _file(item).startswith(LATER) or item.name.startswith(LATER_TESTS)
    return "CI" not in os.environ and (second or later)
