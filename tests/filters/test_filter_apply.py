"""Test filterApply: filters that a task runs on stored messages."""

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.accounts.user_operations import execute_mutation, set_quota
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.operations.filter_operations import add_filter, list_filters, try_apply_filters
from tests.support.operations.task_operations import run_task
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency", "verify_counters")


async def receive_messages(client: GraphQLClient, *subjects: str) -> None:
    for subject in subjects:
        await deliver_to(client, subject)


async def load_keywords_and_flags(environment: Environment) -> dict[str, list[str]]:
    """Load keywords and flags of each message by subject."""
    flags_by_subject: dict[str, list[str]] = {}
    sql = "SELECT subject, keywords, seen, flagged FROM messages ORDER BY id"
    for subject, keywords, seen, flagged in await select_rows(environment, sql):
        flags_by_subject[subject] = [f"{keywords}", *["seen"] * seen, *["flagged"] * flagged]
    return flags_by_subject


async def test_filter_task_moves_flags_copies_and_archives(
    ada: GraphQLClient, environment: Environment
) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["A", "B"]))
    await receive_messages(ada, "one a", "one b", "two", "three", "four")
    filter_ids = [
        (await add_filter(ada, query, action))["id"]
        for query, action in (
            ({"subject": "one"}, {"mailbox": {"path": "A"}, "seen": True, "keywords": ["x"]}),
            ({"subject": "two"}, {"copyTo": [{"path": "B"}], "flag": True, "stop": True}),
            ({"subject": "three"}, {"delete": True, "forwardTo": ["eve@example.net"]}),
            ({"any": [{"subject": "one a"}, {"subject": "two"}]}, {"spam": True}),
        )
    ]
    await add_filter(ada, {}, {"delete": True})  # not selected for the task
    task, errors = await try_apply_filters(ada, *filter_ids, mailbox={"path": "INBOX"})
    assert (errors, task["kind"], task["state"], task["totalCount"]) == (
        [],
        "FILTER_APPLY",
        "QUEUED",
        5,
    )
    finished = await run_task(ada, task)
    assert (finished["state"], finished["doneCount"], finished["error"]) == ("SUCCEEDED", 4, None)
    assert finished["result"] == {"changedCount": 4, "remainingCount": 0}
    assert await subjects_by_mailbox(environment, ada) == {
        "A": ["one b"], "B": ["two"], "INBOX": ["two", "four"], "Junk": ["one a"]
    }  # fmt: skip
    flags_by_subject = await load_keywords_and_flags(environment)
    assert {name: flags_by_subject[name][1:] for name in flags_by_subject} == {
        "one a": ["seen"], "one b": ["seen"], "two": ["flagged"], "three": [], "four": []
    }  # fmt: skip
    assert "x" in flags_by_subject["one b"][0]
    archived = await select_rows(
        environment, "SELECT subject FROM messages WHERE deleted_at IS NOT NULL"
    )
    assert archived == [("three",)]
    assert await select_rows(environment, "SELECT id FROM queue_entries") == []
    counts = [filter_["matchCount"] for filter_ in (await list_filters(ada))["nodes"]]
    assert counts == [2, 1, 1, 1, 0]


async def test_filter_task_moves_junk_only_if_filter_says_no_spam(
    ada: GraphQLClient, environment: Environment
) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["A"]))
    await receive_messages(ada, "one", "two", "three")
    move_to_junk = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"specialUse": "JUNK"}}
    assert (await execute_mutation(ada, "messageMove", "movedCount", **move_to_junk))[
        "errors"
    ] == []
    first = await add_filter(ada, {"subject": "one"}, {"mailbox": {"path": "A"}})
    second = await add_filter(ada, {"subject": "two"}, {"mailbox": {"path": "A"}, "spam": False})
    third = await add_filter(ada, {"subject": "three"}, {"spam": False})
    filter_ids = [filter_["id"] for filter_ in (first, second, third)]
    task, _ = await try_apply_filters(ada, *filter_ids, mailbox={"specialUse": "JUNK"})
    await run_task(ada, task)
    assert await subjects_by_mailbox(environment, ada) == {
        "Junk": ["one"],
        "A": ["two"],
        "INBOX": ["three"],
    }


async def test_filter_task_over_quota_skips_only_the_copy(
    ada: GraphQLClient, environment: Environment
) -> None:
    await receive_messages(ada, "one")
    used_bytes = (await select_rows(environment, "SELECT used FROM users WHERE username = 'ada'"))[
        0
    ][0]
    copy_filter = await add_filter(ada, {}, {"copyTo": [{"path": "Sent"}], "flag": True})
    await set_quota(environment, ada.user, used_bytes + 1)
    task, _ = await try_apply_filters(ada, copy_filter["id"], mailbox={"path": "INBOX"})
    assert (await run_task(ada, task))["result"] == {"changedCount": 1, "remainingCount": 1}
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["one"]}
    assert (await load_keywords_and_flags(environment))["one"][1:] == ["flagged"]
    await set_quota(environment, ada.user, None)


async def test_cancelled_filter_task_changes_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    await receive_messages(ada, *(f"m{nth}" for nth in range(3)))
    flag_filter = await add_filter(ada, {}, {"flag": True})
    task, _ = await try_apply_filters(ada, flag_filter["id"], mailbox={"path": "INBOX"})
    assert (
        await execute_mutation(ada, "taskCancel", "tasks { state }", tasks=[{"id": task["id"]}])
    )["errors"] == []
    assert (await run_task(ada, task))["state"] == "CANCELLED"
    assert await select_rows(environment, "SELECT id FROM messages WHERE flagged") == []


async def test_filters_and_messages_of_other_users_are_refused(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await receive_messages(ada, "hers")
    await receive_messages(bob, "his")
    ada_filter = await add_filter(ada, {}, {"flag": True})
    bob_filter = await add_filter(bob, {}, {"flag": True})
    (message_row,) = await select_rows(
        environment, "SELECT id FROM messages WHERE subject = 'hers'"
    )
    message_id = global_ids.encode("Message", message_row[0])
    for filter_ids, select, path in (
        ([ada_filter["id"]], {"mailbox": {"path": "INBOX"}}, ["filters", "0"]),
        ([bob_filter["id"]], {"ids": [message_id]}, ["select", "ids", "0"]),
        ([bob_filter["id"]], {"mailbox": {"path": "INBOX"}, "users": {"usernames": ["ada"]}}, None),
        ([], {"mailbox": {"path": "INBOX"}}, ["filters"]),
    ):
        task, errors = await try_apply_filters(bob, *filter_ids, **select)
        assert task is None
        assert errors[0]["path"] == (path or ["select", "users"])
    assert await select_rows(environment, "SELECT id FROM messages WHERE flagged") == []
    assert await select_rows(environment, "SELECT id FROM tasks") == []
