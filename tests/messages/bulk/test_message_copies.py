"""Copies of messages: what they share, what they count, and where they come to."""

from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from mail.search import index_worker
from mail.storage.blobs import garbage_collector
from models.admin.tasks import Task
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.messages.bulk import bulk_changes
from tests.conftest import Client, Clock, raw_message, receive
from tests.support.accounts.user_operations import set_quota
from tests.support.operations.bulk_operations import call, inbox, keys, nodes, places
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("examined")


async def lots(client: Client) -> list[tuple[Any, ...]]:
    columns = "user_id, mailbox_id, subject"
    return await rows(client.world, f"SELECT {columns} FROM messages ORDER BY 1, 2, 3")  # noqa: S608


async def used(world: Environment, user: User) -> int:
    ((found,),) = await rows(world, f"SELECT used FROM users WHERE id = {user.id}")  # noqa: S608
    return int(found)


async def test_a_copy_is_the_same_message_with_an_id_and_a_uid_of_its_own(post: Client) -> None:
    a, _, c = await keys(post)
    flags = {"flags": ["\\Seen", "x"], "metaData": {"a": 1}, "expires": "2031-01-01T00:00:00Z"}
    await call(post, "messageUpdate", select={"ids": [c]}, set=flags)
    last = await reached(post.world, post.user.id)
    answer = await call(post, "messageCopy", select={"ids": [c, a]}, to={"path": "Brief"})
    assert (answer["copiedCount"], answer["errors"], answer["task"]) == (2, [], None)
    assert [(one["oldUid"], one["newUid"]) for one in answer["copied"]] == [(1, 1), (3, 2)]
    copy = answer["copied"][1]["message"]
    assert copy["id"] not in (a, c)
    assert copy["mailbox"] == {"path": "Brief", "total": 2, "unseen": 1}
    assert (copy["flags"], copy["expires"]) == (["\\Seen", "x"], "2030-01-02T00:00:03Z")
    ((kind, about),) = await journal(post.world, post.user.id, last)
    assert (kind, [global_ids.encode("Message", key) for key in about]) == (
        ChangeKind.MESSAGE_ADDED,
        [one["message"]["id"] for one in answer["copied"]],
    )
    document = """query ($id: ID!) { message(by: {id: $id}) {
        subject source receivedAt metaData modseq thread { id messageCount } } }"""
    old, new = [(await post(document, id=key))["message"] for key in (c, copy["id"])]
    assert new.pop("modseq") == last + 2
    assert old.pop("modseq") < last + 1
    assert old == new
    assert (new["thread"]["messageCount"], new["metaData"]) == (2, {"a": 1})


async def test_bodies_are_shared_and_stay_as_long_as_one_needs_them(
    post: Client, world: Environment, clock: Clock
) -> None:
    await receive(post, raw_message("long", body="0123456789" * 60_000))
    blobs = await rows(world, "SELECT count(*) FROM blobs")
    answer = await call(post, "messageCopy", select={"filter": {"subject": "long"}},
                        to={"path": "Keep"})  # fmt: skip
    key = answer["copied"][0]["message"]["id"]
    assert await rows(world, "SELECT count(*) FROM blobs") == blobs
    await call(post, "messageDelete", select={"mailbox": {"path": "INBOX"}}, permanent=True)
    clock.tick(days=2)
    await garbage_collector.collect_garbage(world, world.object_store)
    document = "query ($id: ID!) { message(by: {id: $id}) { text } }"
    text = (await post(document, id=key))["message"]["text"]
    assert len(text.strip()) == 600_000


async def test_a_copy_is_found_by_its_words(post: Client, world: Environment) -> None:
    await call(post, "messageCopy", select=inbox("1"), to={"path": "Keep"})
    document = """{ messages(filter: {query: "a", mailbox: {path: "Keep"}}) { totalCount } }"""
    assert (await post(document))["messages"]["totalCount"] == 1
    while await index_worker.index_next_batch(world):
        pass
    assert (await post(document))["messages"]["totalCount"] == 1


async def test_a_folder_is_copied_into_itself_once(post: Client) -> None:
    whole = {"mailbox": {"path": "INBOX"}}
    answer = await call(post, "messageCopy", select=whole, to={"path": "INBOX"})
    assert [(one["oldUid"], one["newUid"]) for one in answer["copied"]] == [(1, 4), (2, 5), (3, 6)]
    assert sorted(node["subject"] for node in await nodes(post)) == list("aabbcc")


async def test_what_does_not_fit_is_not_copied_at_all(
    post: Client, few: Client, world: Environment
) -> None:
    use = await used(world, post.user)
    for client, room in ((post, 1), (few, use - 1)):
        await set_quota(world, post.user, use + room)
        given = {"select": {"all": True}, "to": {"path": "Keep"}}
        answer = await call(client, "messageCopy", **given)
        assert [(e["code"], e["used"], e["allowed"]) for e in answer["errors"]] == [
            ("QUOTA_EXCEEDED", use, use + room)
        ]
        assert (answer["copiedCount"], answer["task"]) == (0, None)
    assert len(await lots(post)) == 3
    await set_quota(world, post.user, 2 * use)
    assert (await call(post, "messageCopy", **given))["copiedCount"] == 3
    assert await used(world, post.user) == 2 * use
    await set_quota(world, post.user, None)


async def test_a_task_copies_each_once_and_stops_where_there_is_no_more_room(
    post: Client, few: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"path": "INBOX"}}
    assert (await call(few, "messageCopy", **given))["task"]["total"] == 3
    assert await tasks.run_next_task(world)
    assert len(await lots(post)) == 6
    assert (await call(few, "messageCopy", **given))["task"]["total"] == 6
    use = await used(world, post.user)
    await set_quota(world, post.user, use + use // 3)
    monkeypatch.setattr(bulk_changes, "MESSAGES_PER_STEP", 1)
    assert await tasks.run_next_task(world)
    assert len(await lots(post)) == 8
    columns = "state, done, total, error"
    found = await rows(world, f"SELECT {columns} FROM tasks ORDER BY created_at, id")  # noqa: S608
    assert found[0] == ("SUCCEEDED", 3, 3, None)
    assert found[1][:3] == ("FAILED", 2, 6)
    assert "bytes are in use" in found[1][3]
    await set_quota(world, post.user, None)


async def test_a_cancelled_task_keeps_what_it_has_copied(
    post: Client, few: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"select": inbox("1:*"), "to": {"path": "Keep"}}
    task = (await call(few, "messageCopy", **given))["task"]["id"]
    monkeypatch.setattr(bulk_changes, "MESSAGES_PER_STEP", 1)
    work_on = bulk_changes.apply_task_chunk

    async def stopped(*given: Any) -> int:
        done = await work_on(*given)
        these = update(Task).where(Task.id == global_ids.decode("Task", task))  # type: ignore[arg-type]
        await given[1].exec(these.values(cancelled=True))
        return int(done)

    monkeypatch.setattr(bulk_changes, "apply_task_chunk", stopped)
    assert await tasks.run_next_task(world)
    assert await rows(world, "SELECT state, done, total FROM tasks") == [("CANCELLED", 1, 3)]
    assert len(await lots(post)) == 4


async def test_a_copy_asked_for_twice_with_a_key_is_made_once(post: Client) -> None:
    given = {"select": inbox("1"), "to": {"path": "Keep"}, "options": {"idempotencyKey": "k"}}
    first = await call(post, "messageCopy", **given)
    again = await call(post, "messageCopy", **given)
    assert (first["copied"], len(await keys(post))) == (again["copied"], 4)


@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ({"select": inbox("1"), "to": {"path": "Nowhere"}}, "NOT_FOUND", ["to"]),
        ({"select": {}, "to": {"path": "Keep"}}, "VALIDATION", ["select"]),
        ({"select": {"ids": [global_ids.encode("Message", 7)]}, "to": {"path": "Keep"}},
         "NOT_FOUND", ["select", "ids"]),
        ({"select": inbox("1"), "to": {"path": "Keep"}, "sourceType": "group"},
         "VALIDATION", ["sourceType"]),
    ],
)  # fmt: skip
async def test_a_copy_that_makes_no_sense_is_refused(
    post: Client, given: dict[str, Any], code: str, path: list[str]
) -> None:
    answer = await call(post, "messageCopy", **given)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, path)]
    assert len(await keys(post)) == 3


async def test_nobody_copies_what_is_anothers(post: Client, bob: Client) -> None:
    theirs = {"select": {"ids": [(await keys(post))[0]]}, "to": {"path": "INBOX"}}
    assert (await call(bob, "messageCopy", **theirs))["errors"][0]["code"] == "NOT_FOUND"
    foreign = {"id": global_ids.encode("Mailbox", (await post.box()).id)}
    await receive(bob)
    answer = await call(bob, "messageCopy", select=inbox("1"), to=foreign)
    assert (answer["errors"][0]["code"], answer["errors"][0]["path"]) == ("NOT_FOUND", ["to"])
    assert len(await lots(post)) == 4


@pytest.mark.parametrize("uids", ["1:4294967295", "1:4294967295,*", "*:1", "3:1,2,2,1:3"])
async def test_wide_sets_of_uids_are_what_is_there(post: Client, uids: str) -> None:
    answer = await call(post, "messageCopy", select=inbox(uids), to={"path": "Keep"})
    assert (answer["errors"], answer["copiedCount"]) == ([], 3)
    assert sorted((await places(post)).items()) == [("a", "Keep"), ("b", "Keep"), ("c", "Keep")]


async def test_many_copies_cost_no_more_statements_than_few(
    post: Client, statements: list[str], clock: Clock
) -> None:
    async def cost() -> int:
        del statements[:]
        given = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"path": "Keep"}}
        assert (await call(post, "messageCopy", **given))["errors"] == []
        return len([sent for sent in statements if "api_keys" not in sent])

    one = await cost()
    for n in range(40):
        await receive(post, f"more {n}")
        clock.tick(seconds=1)
    assert await cost() == one
