"""Filters that are run on mail that is there, by a task."""

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, context, receive
from tests.support.accounts.user_operations import run, set_quota
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.operations.filter_operations import apply, listed, made
from tests.support.operations.task_operations import run_task
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined", "counted")


async def put(client: Client, *subjects: str) -> None:
    for subject in subjects:
        await receive(client, subject)


async def words(world: Environment) -> dict[str, list[str]]:
    """The subjects of messages by their keywords and flags."""
    found: dict[str, list[str]] = {}
    sql = "SELECT subject, keywords, seen, flagged FROM messages ORDER BY id"
    for subject, keywords, seen, flagged in await rows(world, sql):
        found[subject] = [f"{keywords}", *["seen"] * seen, *["flagged"] * flagged]
    return found


async def test_mail_is_moved_marked_copied_and_archived(ada: Client, world: Environment) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["A", "B"]))
    await put(ada, "one a", "one b", "two", "three", "four")
    keys = [
        (await made(ada, query, action))["id"]
        for query, action in (
            ({"subject": "one"}, {"mailbox": {"path": "A"}, "seen": True, "labels": ["x"]}),
            ({"subject": "two"}, {"copyTo": [{"path": "B"}], "flag": True, "stop": True}),
            ({"subject": "three"}, {"delete": True, "targets": ["eve@example.net"]}),
            ({"any": [{"subject": "one a"}, {"subject": "two"}]}, {"spam": True}),
        )
    ]
    await made(ada, {}, {"delete": True})  # not asked for
    task, errors = await apply(ada, *keys, mailbox={"path": "INBOX"})
    assert (errors, task["kind"], task["state"], task["total"]) == ([], "FILTER_APPLY", "QUEUED", 5)
    done = await run_task(ada, task)
    assert (done["state"], done["done"], done["error"]) == ("SUCCEEDED", 4, None)
    assert done["result"] == {"changed": 4, "left": 0}
    assert await subjects_by_mailbox(world, ada) == {
        "A": ["one b"], "B": ["two"], "INBOX": ["two", "four"], "Junk": ["one a"]
    }  # fmt: skip
    marks = await words(world)
    assert {name: marks[name][1:] for name in marks} == {
        "one a": ["seen"], "one b": ["seen"], "two": ["flagged"], "three": [], "four": []
    }  # fmt: skip
    assert "x" in marks["one b"][0]
    archived = await rows(world, "SELECT subject FROM messages WHERE archived_at IS NOT NULL")
    assert archived == [("three",)]
    assert await rows(world, "SELECT id FROM deliveries") == []
    counts = [one["matchCount"] for one in (await listed(ada))["nodes"]]
    assert counts == [2, 1, 1, 1, 0]


async def test_junk_stays_unless_a_filter_says_that_it_is_none(
    ada: Client, world: Environment
) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["A"]))
    await put(ada, "one", "two", "three")
    into = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"specialUse": "JUNK"}}
    assert (await run(ada, "messageMove", "movedCount", **into))["errors"] == []
    first = await made(ada, {"subject": "one"}, {"mailbox": {"path": "A"}})
    second = await made(ada, {"subject": "two"}, {"mailbox": {"path": "A"}, "spam": False})
    third = await made(ada, {"subject": "three"}, {"spam": False})
    keys = [one["id"] for one in (first, second, third)]
    task, _ = await apply(ada, *keys, mailbox={"specialUse": "JUNK"})
    await run_task(ada, task)
    assert await subjects_by_mailbox(world, ada) == {
        "Junk": ["one"],
        "A": ["two"],
        "INBOX": ["three"],
    }


async def test_copies_need_room_and_the_rest_is_done(ada: Client, world: Environment) -> None:
    await put(ada, "one")
    used = (await rows(world, "SELECT used FROM users WHERE username = 'ada'"))[0][0]
    one = await made(ada, {}, {"copyTo": [{"path": "Sent"}], "flag": True})
    await set_quota(world, ada.user, used + 1)
    task, _ = await apply(ada, one["id"], mailbox={"path": "INBOX"})
    assert (await run_task(ada, task))["result"] == {"changed": 1, "left": 1}
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["one"]}
    assert (await words(world))["one"][1:] == ["flagged"]
    await set_quota(world, ada.user, None)


async def test_a_task_that_is_cancelled_has_done_what_it_had(
    ada: Client, world: Environment
) -> None:
    await put(ada, *(f"m{nth}" for nth in range(3)))
    one = await made(ada, {}, {"flag": True})
    task, _ = await apply(ada, one["id"], mailbox={"path": "INBOX"})
    assert (await run(ada, "taskCancel", "tasks { state }", ids=[task["id"]]))["errors"] == []
    assert (await run_task(ada, task))["state"] == "CANCELLED"
    assert await rows(world, "SELECT id FROM messages WHERE flagged") == []


async def test_what_is_not_ours_is_not_touched(
    ada: Client, bob: Client, world: Environment
) -> None:
    await put(ada, "hers")
    await put(bob, "his")
    hers, his = await made(ada, {}, {"flag": True}), await made(bob, {}, {"flag": True})
    (message,) = await rows(world, "SELECT id FROM messages WHERE subject = 'hers'")
    ref = global_ids.encode("Message", message[0])
    for keys, select, path in (
        ([hers["id"]], {"mailbox": {"path": "INBOX"}}, ["ids"]),
        ([his["id"]], {"ids": [ref]}, ["select", "ids"]),
        ([his["id"]], {"mailbox": {"path": "INBOX"}, "users": {"usernames": ["ada"]}}, None),
        ([], {"mailbox": {"path": "INBOX"}}, ["ids"]),
    ):
        task, errors = await apply(bob, *keys, **select)
        assert task is None
        assert errors[0]["path"] == (path or ["select", "users"])
    assert await rows(world, "SELECT id FROM messages WHERE flagged") == []
    assert await rows(world, "SELECT id FROM tasks") == []
