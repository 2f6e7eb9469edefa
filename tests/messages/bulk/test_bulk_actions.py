"""What is done to many messages, and taken back."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.events.journal import ChangeKind
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import Client, Clock, receive
from tests.support.operations.bulk_operations import call, inbox, keys, nodes, places, take_back
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("examined")


# flags and values


@pytest.mark.parametrize(
    ("before", "set_", "after"),
    [
        ([], {"seen": True}, ["\\Seen"]),
        (["\\Seen"], {"seen": False, "flagged": True}, ["\\Flagged"]),
        ([], {"draft": True, "answered": True, "deleted": True},
         ["\\Answered", "\\Deleted", "\\Draft"]),
        (["a"], {"addFlags": ["b", "\\SEEN", "b"]}, ["\\Seen", "a", "b"]),
        (["a", "b", "\\Seen"], {"removeFlags": ["b", "\\seen", "x"]}, ["a"]),
        (["a", "\\Seen"], {"addFlags": ["b"], "removeFlags": ["a"]}, ["\\Seen", "b"]),
        (["a", "\\Seen"], {"flags": ["$Forwarded", "\\Flagged", "$Forwarded"]},
         ["\\Flagged", "$Forwarded"]),
        (["a", "\\Seen"], {"flags": []}, []),
        (["a"], {"addFlags": [], "seen": False}, ["a"]),
    ],
)  # fmt: skip
async def test_flags_and_keywords_are_added_taken_and_replaced(
    post: Client, before: list[str], set_: dict[str, Any], after: list[str]
) -> None:
    select = {"ids": [(await keys(post))[0]]}
    await call(post, "messageUpdate", select=select, set={"flags": before})
    last = await reached(post.world, post.user.id)
    answer = await call(post, "messageUpdate", select=select, set=set_)
    assert (answer["errors"], answer["messages"][0]["flags"]) == ([], after)
    kinds = [kind for kind, _ in await journal(post.world, post.user.id, last)]
    assert kinds == ([] if sorted(before) == sorted(after) else [ChangeKind.MESSAGE_UPDATED])


async def test_absent_is_unchanged_and_null_is_cleared(post: Client) -> None:
    select = {"ids": [(await keys(post))[0]]}
    later = "2031-01-01T00:00:00Z"
    for set_, now in (
        ({"expires": later, "metaData": {"a": [1]}}, (later, {"a": [1]})),
        ({"seen": True}, (later, {"a": [1]})),
        ({"expires": None}, (None, {"a": [1]})),
        ({"metaData": None}, (None, None)),
    ):
        (message,) = (await call(post, "messageUpdate", select=select, set=set_))["messages"]
        assert (message["expires"], message["metaData"]) == now


@pytest.mark.parametrize(
    ("set_", "path", "constraint", "index"),
    [
        ({}, ["set"], "required", None),
        ({"addFlags": []}, ["set"], "required", None),
        ({"addFlags": ["ok", "\\Recent"]}, ["set", "addFlags"], "pattern", 1),
        ({"addFlags": ["two words"]}, ["set", "addFlags"], "pattern", 0),
        ({"removeFlags": ["a(b"]}, ["set", "removeFlags"], "pattern", 0),
        ({"flags": [""]}, ["set", "flags"], "pattern", 0),
        ({"flags": ["x" * 129]}, ["set", "flags"], "pattern", 0),
        ({"flags": ["a"], "addFlags": ["b"]}, ["set", "flags"], "exclusive", None),
        ({"addFlags": [f"k{n}" for n in range(65)]}, ["set", "addFlags"], "max", None),
        ({"metaData": [1]}, ["metaData"], "object", None),
    ],
)
async def test_a_wrong_change_is_refused_whole(
    post: Client, set_: dict[str, Any], path: list[str], constraint: str, index: int | None
) -> None:
    last = await reached(post.world, post.user.id)
    answer = await call(post, "messageUpdate", select={"ids": await keys(post)}, set=set_)
    assert [(e["path"], e["constraint"], e["index"]) for e in answer["errors"]] == [
        (path, constraint, index)
    ]
    assert await reached(post.world, post.user.id) == last


async def test_a_bulk_change_is_one_row_of_the_journal(post: Client) -> None:
    last = await reached(post.world, post.user.id)
    listed = [global_ids.decode("Message", text) for text in await keys(post)]
    for _ in range(2):  # the second time nothing changes
        await call(post, "messageUpdate", select={"ids": await keys(post)}, set={"seen": True})
    ((kind, about),) = await journal(post.world, post.user.id, last)
    assert (kind, about) == (ChangeKind.MESSAGE_UPDATED, listed)
    assert await reached(post.world, post.user.id) == last + 3
    modseqs = await rows(post.world, "SELECT DISTINCT modseq FROM messages")
    assert modseqs == [(last + 3,)]


async def test_what_changed_since_is_refused(post: Client) -> None:
    select = {"ids": await keys(post)}
    since = await reached(post.world, post.user.id)
    first = await call(post, "messageUpdate", select={"ids": select["ids"][:1]}, set={"seen": True})
    newest = first["messages"][0]["modseq"]
    for more in ({}, {"async": True}):
        answer = await call(
            post, "messageUpdate", select=select, set={"flagged": True},
            ifUnchangedSince=since, **more,
        )  # fmt: skip
        assert [(e["code"], e["currentModseq"], e["path"]) for e in answer["errors"]] == [
            ("STALE", newest, ["ifUnchangedSince"])
        ]
    answer = await call(
        post, "messageUpdate", select=select, set={"flagged": True}, ifUnchangedSince=newest
    )
    assert (answer["errors"], answer["updatedCount"]) == ([], 3)


# which


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        (inbox("1"), "a"), (inbox("2:*"), "bc"), (inbox("3,1"), "ac"), (inbox("9:*"), "c"),
        (inbox("7"), ""), ({"mailbox": {"path": "inbox"}}, "abc"),
        ({"mailbox": {"path": "Keep"}}, ""),
        ({"filter": {"subject": "B"}}, "b"), ({"all": True}, "abc"), ({"ids": []}, ""),
        ({"filter": {"query": "c"}}, "c"),
    ],
)  # fmt: skip
async def test_a_selection_names_messages_in_one_way(
    post: Client, select: dict[str, Any], chosen: str
) -> None:
    answer = await call(post, "messageUpdate", select=select, set={"flagged": True})
    assert (answer["errors"], answer["updatedCount"]) == ([], len(chosen))
    assert (answer["undo"] is None) is (not chosen)
    assert [node["subject"] for node in await nodes(post) if node["flags"]] == list(chosen)


@pytest.mark.parametrize(
    ("select", "code", "path"),
    [
        ({}, "VALIDATION", ["select"]),
        ({"ids": [], "all": True}, "VALIDATION", ["select"]),
        ({"filter": {}}, "VALIDATION", ["select", "filter"]),
        ({"filter": {"subject": "B"}, "all": True}, "VALIDATION", ["select", "all"]),
        (inbox(""), "VALIDATION", ["select", "uids"]),
        ({"ids": [], "mailbox": {"path": "INBOX"}}, "VALIDATION", ["select"]),
        ({"mailbox": {"path": "INBOX"}, "all": True}, "VALIDATION", ["select"]),
        ({"uids": "1"}, "VALIDATION", ["select"]),
        ({"all": True, "uids": "1"}, "VALIDATION", ["select"]),
        (inbox("x"), "VALIDATION", ["uids"]),
        ({"mailbox": {"path": "Nowhere"}}, "NOT_FOUND", ["select", "mailbox"]),
        ({"ids": ["msg_nonsense"]}, "VALIDATION", ["select"]),
        ({"ids": [global_ids.encode("Message", 7)] * 1001}, "VALIDATION", ["select", "ids"]),
    ],
)
async def test_a_selection_that_is_none_is_refused(
    post: Client, select: dict[str, Any], code: str, path: list[str]
) -> None:
    for name, more in (("messageUpdate", {"set": {"seen": True}}), ("messageDelete", {})):
        (error,) = (await call(post, name, select=select, **more))["errors"]
        assert (error["code"], error["path"]) == (code, path)
    assert len(await keys(post)) == 3


async def test_an_unknown_or_foreign_message_refuses_the_whole(post: Client, bob: Client) -> None:
    foreign = global_ids.encode("Message", (await receive(bob)).message_id)
    mine = (await keys(post))[0]
    for wrong in (foreign, global_ids.encode("Message", 7)):
        for name, more in (
            ("messageUpdate", {"set": {"seen": True}}),
            ("messageMove", {"to": {"path": "Keep"}}),
            ("messageDelete", {"permanent": True}),
        ):
            answer = await call(post, name, select={"ids": [mine, wrong]}, **more)
            assert [(e["code"], e["path"], e["index"]) for e in answer["errors"]] == [
                ("NOT_FOUND", ["select", "ids"], 1)
            ]
    assert {tuple(node["flags"]) for node in await nodes(post)} == {()}
    box = {"id": global_ids.encode("Mailbox", (await bob.box()).id)}
    for name, given in (
        ("messageMove", {"select": {"ids": [mine]}, "to": box}),
        ("messageDelete", {"select": {"mailbox": box}}),
    ):
        assert (await call(post, name, **given))["errors"][0]["code"] == "NOT_FOUND"
    assert (await bob.box()).total == 1


# moving and deleting


async def test_moved_messages_get_new_uids_in_their_order(post: Client) -> None:
    a, _, c = await keys(post)
    last = await reached(post.world, post.user.id)
    answer = await call(post, "messageMove", select={"ids": [c, a]}, to={"path": "Brief"})
    assert answer["movedCount"] == 2
    assert [(one["oldUid"], one["newUid"]) for one in answer["moved"]] == [(1, 1), (3, 2)]
    message = answer["moved"][0]["message"]
    assert (message["id"], message["mailbox"]) == (a, {"path": "Brief", "total": 2, "unseen": 2})
    assert message["expires"] == "2030-01-02T00:00:03Z"
    ((kind, about),) = await journal(post.world, post.user.id, last)
    assert (kind, about) == (
        ChangeKind.MESSAGE_MOVED,
        [global_ids.decode("Message", k) for k in (a, c)],
    )
    back = await call(post, "messageMove", select={"ids": [a]}, to={"specialUse": "INBOX"})
    assert (back["moved"][0]["newUid"], back["moved"][0]["message"]["expires"]) == (4, None)


async def test_flags_and_an_end_may_be_set_on_the_way(post: Client) -> None:
    (a, *_) = await keys(post)
    given = {"seen": True, "addFlags": ["x"], "expires": "2031-01-01T00:00:00Z"}
    answer = await call(post, "messageMove", select={"ids": [a]}, to={"path": "Brief"}, set=given)
    message = answer["moved"][0]["message"]
    assert (message["flags"], message["expires"]) == (["\\Seen", "x"], "2031-01-01T00:00:00Z")
    assert message["mailbox"] == {"path": "Brief", "total": 1, "unseen": 0}


async def test_what_two_clients_move_at_once_ends_in_one_place(post: Client) -> None:
    ways = [("messageMove", "Keep"), ("messageMove", "Brief"), ("messageMove", "Sent")] * 3
    answers = await asyncio.gather(
        *(call(post, name, select={"all": True}, to={"path": path}) for name, path in ways)
    )
    assert [answer["errors"] for answer in answers] == [[]] * 9
    assert [answer["movedCount"] for answer in answers] == [3] * 9
    found = await nodes(post)
    assert sorted(node["subject"] for node in found) == ["a", "b", "c"]
    assert len({node["mailbox"]["path"] for node in found}) == 1


async def test_what_ends_goes_to_the_archive_when_its_time_has_come(
    post: Client, world: Environment, clock: Clock
) -> None:
    for uids, end in (("1:2", "2030-01-01T01:00:00Z"), ("2", None), ("3", "2020-01-01T00:00:00Z")):
        await call(post, "messageUpdate", select=inbox(uids), set={"expires": end})
    await call(post, "messageCopy", select=inbox("1"), to={"path": "Brief"})
    await housekeeping.run_round(world)
    assert await places(post) == {"a": "Brief", "b": "INBOX"}
    clock.tick(hours=1)
    await housekeeping.run_round(world)
    assert sorted(node["mailbox"]["path"] for node in await nodes(post)) == ["Brief", "INBOX"]
    clock.tick(days=1)
    await housekeeping.run_round(world)
    assert await places(post) == {"b": "INBOX"}
    archived = await rows(world, "SELECT subject FROM messages WHERE mailbox_id IS NULL ORDER BY 1")
    assert archived == [("a",), ("a",), ("c",)]


async def test_what_lies_there_already_stays_as_it_is(post: Client) -> None:
    last = await reached(post.world, post.user.id)
    answer = await call(post, "messageMove", select=inbox("1:2"), to={"path": "INBOX"})
    assert [(one["oldUid"], one["newUid"]) for one in answer["moved"]] == [(1, 1), (2, 2)]
    assert await reached(post.world, post.user.id) == last


async def test_a_target_that_is_not_there_is_refused(post: Client) -> None:
    answer = await call(post, "messageMove", select=inbox("1"), to={"path": "Nowhere"})
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("NOT_FOUND", ["to"])]


async def test_deleted_messages_wait_in_the_archive(post: Client, world: Environment) -> None:
    (a, b, _) = await keys(post)
    await call(post, "messageUpdate", select={"ids": [b]}, set={"draft": True})
    last = await reached(world, post.user.id)
    answer = await call(post, "messageDelete", select={"ids": [a, b]})
    assert (answer["deletedCount"], answer["errors"]) == (2, [])
    assert await places(post) == {"c": "INBOX"}
    sql = (
        "SELECT subject, archived_from, purge_at FROM messages WHERE mailbox_id IS NULL ORDER BY 1"
    )
    (plain, draft) = await rows(world, sql)
    assert (plain[:2], draft[:2]) == (("a", "INBOX"), ("b", "INBOX"))
    assert str(draft[2])[:16] < str(plain[2])[:16]
    ((kind, about),) = await journal(world, post.user.id, last)
    assert (kind, len(about)) == (ChangeKind.MESSAGE_ARCHIVED, 2)
    again = await call(post, "messageDelete", select={"ids": [a]})
    assert again["errors"][0]["code"] == "NOT_FOUND"


async def test_what_is_deleted_for_good_leaves_nothing(post: Client, world: Environment) -> None:
    last = await reached(world, post.user.id)
    answer = await call(post, "messageDelete", select={"all": True}, permanent=True)
    assert (answer["deletedCount"], answer["undo"]) == (3, None)
    for table in ("messages", "message_blobs", "threads"):
        sql = f"SELECT count(*) FROM {table}"  # noqa: S608 - our own names
        assert await rows(world, sql) == [(0,)]
    assert [kind for kind, _ in await journal(world, post.user.id, last)] == [
        ChangeKind.MESSAGE_DELETED
    ]


# taking back


async def test_an_undo_brings_back_what_was_deleted(post: Client) -> None:
    select = {"ids": (await keys(post))[:2]}
    await call(post, "messageUpdate", select=select, set={"flags": ["\\Seen", "x"]})
    before = await nodes(post)
    answer = await call(post, "messageDelete", select=select)
    assert answer["undo"]["expiresAt"] == "2030-01-01T00:10:03Z"
    assert await take_back(post, answer) == {"restoredCount": 2, "errors": []}
    after = await nodes(post)
    assert [{**node, "uid": 0} for node in after] == [{**node, "uid": 0} for node in before]
    assert [node["uid"] for node in after] == [4, 5, 3]


async def test_an_undo_moves_back_what_was_moved(post: Client) -> None:
    await call(post, "messageUpdate", select=inbox("1"), set={"expires": "2032-01-01T00:00:00Z"})
    before = await nodes(post)
    answer = await call(
        post, "messageMove", select=inbox("1:3"), to={"path": "Brief"}, set={"addFlags": ["x"]}
    )
    assert await take_back(post, answer) == {"restoredCount": 3, "errors": []}
    after = await nodes(post)
    assert [{**node, "uid": 0} for node in after] == [{**node, "uid": 0} for node in before]


async def test_an_undo_takes_back_a_change_and_nothing_that_came_after(post: Client) -> None:
    await call(post, "messageUpdate", select=inbox("1:2"), set={"flags": ["x", "\\Flagged"]})
    given = {"removeFlags": ["x"], "addFlags": ["y"], "flagged": True, "metaData": {"a": 1},
             "expires": "2031-01-01T00:00:00Z"}  # fmt: skip
    answer = await call(post, "messageUpdate", select=inbox("1:3"), set=given)
    await call(post, "messageUpdate", select=inbox("1:3"), set={"seen": True, "addFlags": ["z"]})
    await call(post, "messageMove", select=inbox("1"), to={"path": "Keep"})
    assert await take_back(post, answer) == {"restoredCount": 3, "errors": []}
    a, b, c = await nodes(post)
    assert sorted(a["flags"]) == sorted(b["flags"]) == ["\\Flagged", "\\Seen", "x", "z"]
    assert sorted(c["flags"]) == ["\\Seen", "z"]
    assert a["mailbox"]["path"] == "Keep"
    assert [(n["expires"], n["metaData"]) for n in (a, b, c)] == [(None, None)] * 3


async def test_an_undo_of_replaced_flags_brings_them_all_back(post: Client) -> None:
    await call(post, "messageUpdate", select=inbox("1"), set={"flags": ["x", "\\Flagged"]})
    answer = await call(post, "messageUpdate", select=inbox("1:2"), set={"flags": ["y"]})
    await take_back(post, answer)
    assert [node["flags"] for node in await nodes(post)] == [["\\Flagged", "x"], [], []]


async def test_what_lost_its_folder_comes_back_to_inbox(post: Client) -> None:
    await call(post, "messageMove", select=inbox("1"), to={"path": "Keep"})
    answer = await call(post, "messageDelete", select={"mailbox": {"path": "Keep"}})
    gone = """mutation { mailboxDelete(input: {mailboxes: [{path: "Keep"}]}) { deletedIds } }"""
    await post(gone)
    assert await take_back(post, answer) == {"restoredCount": 1, "errors": []}
    assert (await places(post))["a"] == "INBOX"


async def test_an_undo_that_does_not_fit_can_be_tried_again(
    post: Client, world: Environment
) -> None:
    answer = await call(post, "messageDelete", select=inbox("1:2"))
    ((used,),) = await rows(world, "SELECT used FROM users")
    for quota, expected in ((used, [("QUOTA_EXCEEDED", used, used)]), (None, [])):
        async with world.write_session() as session:
            await session.exec(update(User).values(quota=quota))
        undone = await take_back(post, answer)
        errors = [(e["code"], e["used"], e["allowed"]) for e in undone["errors"]]
        assert errors == expected
    assert len(await keys(post)) == 3


async def test_a_token_is_good_once_for_its_owner_and_for_ten_minutes(
    post: Client, bob: Client, clock: Clock
) -> None:
    first = await call(post, "messageDelete", select=inbox("1"))
    second = await call(post, "messageDelete", select=inbox("2"))
    assert [e["code"] for e in (await take_back(bob, first))["errors"]] == ["NOT_FOUND"]
    assert (await take_back(post, first))["errors"] == []
    assert [e["code"] for e in (await take_back(post, first))["errors"]] == ["NOT_FOUND"]
    clock.tick(minutes=10)
    assert [e["code"] for e in (await take_back(post, second))["errors"]] == ["NOT_FOUND"]
    assert sorted(await places(post)) == ["a", "c"]


async def test_what_is_gone_for_good_stays_so(post: Client, world: Environment) -> None:
    answer = await call(post, "messageDelete", select=inbox("1:2"))
    async with world.write_session() as session:
        gone = update(Message).where(Message.uid == 1)  # type: ignore[arg-type]
        await session.exec(gone.values(purge_at=world.now()))
    await housekeeping.run_round(world)
    assert await take_back(post, answer) == {"restoredCount": 1, "errors": []}
    assert sorted(await places(post)) == ["b", "c"]


async def test_a_call_repeated_with_its_key_is_done_once(post: Client) -> None:
    given = {"select": {"mailbox": {"path": "INBOX"}}, "options": {"idempotencyKey": "k"}}
    await call(post, "messageDelete", **given)
    await receive(post, "d")
    again = await call(post, "messageDelete", **given)
    assert again["deletedCount"] == 3
    assert await places(post) == {"d": "INBOX"}


async def test_a_dry_run_changes_nothing(post: Client) -> None:
    last = await reached(post.world, post.user.id)
    for name, more in (("messageUpdate", {"set": {"seen": True}}), ("messageDelete", {})):
        given = {"select": {"all": True}, "options": {"validateOnly": True}, **more}
        answer = await call(post, name, **given)
        assert answer["errors"] == []
        assert [n for key, n in answer.items() if key.endswith("Count")] == [3]
    assert await reached(post.world, post.user.id) == last


# however many


async def test_many_cost_no_more_statements_than_few(
    post: Client, statements: list[str], clock: Clock
) -> None:
    async def cost() -> list[int]:
        costs = []
        for set_ in ({"seen": True}, {"addFlags": ["x"], "expires": "2031-01-01T00:00:00Z"}):
            for name, more in (
                ("messageUpdate", {"set": set_}),
                ("messageMove", {"to": {"path": "Brief"}}),
                ("messageDelete", {}),
            ):
                del statements[:]
                answer = await call(post, name, select={"all": True}, **more)
                await take_back(post, answer)
                costs.append(len([sent for sent in statements if "api_keys" not in sent]))
        return costs

    one = await cost()
    for n in range(40):
        await receive(post, f"more {n}")
        clock.tick(seconds=1)
    await call(post, "messageUpdate", select={"all": True}, set={"flags": []})
    assert await cost() == one
