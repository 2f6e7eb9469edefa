"""What administrators do to the mail of others, of many at once, and from one to another."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from graph.types import global_ids
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.mailboxes.loaders import NewMailboxes, create_mailboxes
from tests.conftest import Client, context, make_client, raw_message, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.bulk_operations import call, inbox, nodes, of, places, take_back
from tests.support.stores.counter_check import journal, reached, rows

ALL: dict[str, Any] = {"all": True}
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def both(ada: Client, bob: Client) -> list[Client]:
    """Two users with two messages each, and a folder Keep."""
    for client in (ada, bob):
        for letter in "ab":
            await receive(client, letter)
        await create_mailboxes(context(client), NewMailboxes(["Keep"]))
    return [ada, bob]


@pytest.fixture
async def boss(world: Environment, http: httpx.AsyncClient) -> Client:
    return await make_client(world, http, "boss", role=Role.ADMIN)


def few(client: Client, spool: Path, *, bulk: int = 2) -> Client:
    """The same client, of a world where so many messages are many."""
    small = replace(client.world, options=replace(client.world.options, bulk=bulk))
    transport = httpx.ASGITransport(app=create_app(small, spool_folder=spool))
    return replace(client, http=httpx.AsyncClient(transport=transport, base_url="http://few"))


async def logged(world: Environment) -> list[tuple[Any, ...]]:
    of_mail = "mutation LIKE 'message%' OR mutation = 'undo'"
    sql = f"SELECT mutation, target_id FROM admin_log WHERE {of_mail} ORDER BY 1, 2"  # noqa: S608
    return await rows(world, sql)


async def flags(client: Client) -> list[list[str]]:
    return [node["flags"] for node in await nodes(client)]


# many accounts


@pytest.mark.parametrize(
    "users",
    [
        {"all": True},
        {"usernames": ["ada", "bob@example.org"]},
        {"masks": ["a*", "bo?"]},
        {"domains": ["example.org"]},
    ],
)
async def test_one_change_is_made_in_the_mail_of_many(
    both: list[Client], boss: Client, world: Environment, users: dict[str, Any]
) -> None:
    before = [await reached(world, client.user.id) for client in both]
    given = {"select": {**inbox("2:*"), "users": users}, "set": {"addFlags": ["x"]}}
    answer = await call(boss, "messageUpdate", **given)
    assert (answer["errors"], answer["updatedCount"]) == ([], 2)
    for client, last in zip(both, before, strict=True):
        assert await flags(client) == [[], ["x"]]
        ((kind, about),) = await journal(world, client.user.id, last)
        assert (kind, len(about)) == (ChangeKind.MESSAGE_UPDATED, 1)
    targets = sorted(client.user.id for client in both)
    assert await logged(world) == [("messageUpdate", target) for target in targets]


async def test_a_folder_is_that_of_each(both: list[Client], boss: Client) -> None:
    whose = {"users": of(*both)}
    given = {"select": {**inbox("1"), **whose}, "to": {"path": "Keep"}}
    answer = await call(boss, "messageMove", **given)
    assert (answer["errors"], answer["movedCount"]) == ([], 2)
    assert [await places(client) for client in both] == [{"a": "Keep", "b": "INBOX"}] * 2
    copied = await call(boss, "messageCopy", **{**given, "to": {"specialUse": "SENT"}})
    assert (copied["errors"], copied["copiedCount"]) == ([], 0)
    copied = await call(boss, "messageCopy", select={**ALL, **whose}, to={"specialUse": "SENT"})
    assert (copied["errors"], copied["copiedCount"]) == ([], 4)
    gone = await call(boss, "messageDelete", select={"mailbox": {"path": "Sent"}, **whose})
    assert (gone["errors"], gone["deletedCount"]) == ([], 4)
    assert await take_back(boss, gone) == {"restoredCount": 4, "errors": []}
    assert await take_back(boss, answer) == {"restoredCount": 2, "errors": []}
    for client in both:
        assert sorted(node["mailbox"]["path"] for node in await nodes(client)) == [
            "INBOX", "INBOX", "Sent", "Sent",
        ]  # fmt: skip


async def test_who_has_mail_to_move_needs_the_folder(both: list[Client], root: Client) -> None:
    ada, bob = both
    await create_mailboxes(context(bob), NewMailboxes(["Only"]))
    given = {"to": {"path": "Only"}}
    answer = await call(root, "messageMove", select={**inbox("1"), "users": of(*both)}, **given)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("NOT_FOUND", ["to"])]
    assert (await ada.box()).total == (await bob.box()).total == 2
    await call(ada, "messageDelete", select=ALL)
    answer = await call(root, "messageMove", select={**inbox("1"), "users": of(*both)}, **given)
    assert (answer["errors"], answer["movedCount"]) == ([], 1)


async def test_much_of_many_is_a_task_of_the_platform(
    both: list[Client], boss: Client, tmp_path: Path
) -> None:
    world, client = boss.world, few(boss, tmp_path, bulk=3)
    given = {"select": {**ALL, "users": of(*both)}, "to": {"path": "Keep"}}
    task = (await call(client, "messageMove", **given))["task"]
    assert (task["state"], task["total"]) == ("QUEUED", 4)
    document = "query ($id: ID!) { task(id: $id) { state done user { id } } }"
    assert (await both[0](document, id=task["id"]))["task"] is None
    last = await reached(world, PLATFORM)
    assert await tasks.run_next_task(world)
    assert (await boss(document, id=task["id"]))["task"] == {
        "state": "SUCCEEDED", "done": 4, "user": None,
    }  # fmt: skip
    assert [await places(one) for one in both] == [{"a": "Keep", "b": "Keep"}] * 2
    kinds = {kind for kind, _ in await journal(world, PLATFORM, last)}
    assert kinds == {ChangeKind.TASK_CHANGED}
    targets = sorted(one.user.id for one in both)
    assert await logged(world) == [("messageMove", target) for target in targets]


async def test_only_who_is_in_charge_reaches_the_mail_of_others(
    both: list[Client], world: Environment, http: httpx.AsyncClient
) -> None:
    ada, bob = both
    plain = await make_domain_admin(world, http, "plain")
    acting = await make_domain_admin(world, http, "acting", [AdminPermission.LOGIN_AS])
    given: dict[str, Any] = {"select": {**inbox("1"), "users": of(ada)}, "set": {"flagged": True}}
    for client, code in ((bob, "NOT_FOUND"), (plain, "FORBIDDEN")):
        (error,) = (await call(client, "messageUpdate", **given))["errors"]
        assert (error["code"], error["path"][0]) == (code, "users")
    everybody = {"select": {**ALL, "users": {"all": True}}}
    for client in (bob, plain, acting):
        (error,) = (await call(client, "messageDelete", **everybody))["errors"]
        assert error["code"] == "FORBIDDEN"
    unknown = {**ALL, "users": {"usernames": ["nobody", ada.user.username]}}
    (error,) = (await call(acting, "messageDelete", select=unknown))["errors"]
    assert error["code"] == "NOT_FOUND"
    assert await flags(ada) == [[], []]
    assert (await call(acting, "messageUpdate", **given))["errors"] == []
    assert await flags(ada) == [["\\Flagged"], []]
    ids_of_bob = [node["id"] for node in await nodes(bob)]
    wrong = {"select": {"ids": ids_of_bob, "users": of(ada)}, "set": {"flagged": True}}
    (error,) = (await call(acting, "messageUpdate", **wrong))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["select", "ids"])


async def test_who_may_no_more_does_not_take_back(
    both: list[Client], world: Environment, http: httpx.AsyncClient
) -> None:
    acting = await make_domain_admin(world, http, "acting", [AdminPermission.LOGIN_AS])
    answer = await call(acting, "messageDelete", select={**ALL, "users": of(*both)})
    assert (answer["deletedCount"], answer["errors"]) == (4, [])
    assert [e["code"] for e in (await take_back(both[0], answer))["errors"]] == ["NOT_FOUND"]
    async with world.write_session(both[1].user.id) as session:
        (await session.get_one(User, both[1].user.id)).role = Role.DOMAIN_ADMIN
    (error,) = (await take_back(acting, answer))["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN", ["token"])
    assert await places(both[0]) == {}


async def test_what_is_in_the_mail_is_not_told_to_the_administrator(
    both: list[Client], boss: Client
) -> None:
    document = """mutation ($input: MessageUpdateInput!) { messageUpdate(input: $input) {
        messages { subject } errors { code } } }"""
    given = {"select": {**inbox("1"), "users": of(both[0])}, "set": {"seen": True}}
    (error,) = (await boss.raw(document, input=given))["errors"]
    assert error["extensions"]["code"] == "FORBIDDEN"


async def test_changes_of_many_are_not_counted_as_of_one(both: list[Client], root: Client) -> None:
    given = {"select": {**ALL, "users": of(*both)}, "set": {"seen": True}, "ifUnchangedSince": 99}
    (error,) = (await call(root, "messageUpdate", **given))["errors"]
    assert (error["constraint"], error["path"]) == ("exclusive", ["ifUnchangedSince"])


async def test_nobody_is_selected_by_a_mask_that_fits_nobody(root: Client, ada: Client) -> None:
    await receive(ada)
    nothing: dict[str, Any] = {"ids": []}
    for select in (ALL, inbox("1:*"), nothing):
        given = {"select": {**select, "users": {"masks": ["x*"]}}}  # fits nobody
        answer = await call(root, "messageDelete", **given)
        assert (answer["errors"], answer["deletedCount"]) == ([], 0)


async def test_a_message_is_put_into_many_accounts_or_none(
    both: list[Client], boss: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    far = await make_client(world, http, "far")
    given: dict[str, Any] = {"raw": "Subject: news\n\nAll.\n", "mailbox": {"path": "Keep"}}
    answer = await call(boss, "messageUpload", users=of(*both, far), **given)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("NOT_FOUND", ["mailbox"])]
    answer = await call(boss, "messageUpload", users=of(*both), **given)
    assert (answer["errors"], answer["message"], len(answer["messages"])) == ([], None, 2)
    for client in both:
        assert (await places(client))["news"] == "Keep"
    targets = sorted(client.user.id for client in both)
    assert await logged(world) == [("messageUpload", target) for target in targets]
    (error,) = (await call(both[0], "messageUpload", users=of(both[1]), **given))["errors"]
    assert (error["code"], error["path"][0]) == ("NOT_FOUND", "users")


# from one account to another


async def test_mail_moves_to_another_account_in_one_unit(
    both: list[Client], root: Client, world: Environment
) -> None:
    ada, bob = both
    answer_ = f"<{'0' * 16}@example.com>"
    await receive(ada, raw_message("Re: b", In_Reply_To=answer_, Message_ID="<x@example.com>"))
    await receive(bob, raw_message("b", Message_ID=answer_))
    given = {"sourceUser": {"username": "ada"}, "to": {"path": "Keep"}}
    select: dict[str, Any] = {"users": of(bob), "mailbox": {"path": "INBOX"}}
    answer = await call(root, "messageMove", select=select, set={"addFlags": ["x"]}, **given)
    assert (answer["errors"], answer["movedCount"], answer["undo"]) == ([], 3, None)
    assert [(one["oldUid"], one["newUid"]) for one in answer["moved"]] == [(1, 1), (2, 2), (3, 3)]
    assert await nodes(ada) == []
    there = {node["subject"]: node for node in await nodes(bob) if node["flags"] == ["x"]}
    assert sorted(there) == ["Re: b", "a", "b"]
    document = "query ($id: ID!) { message(by: {id: $id}) { thread { messageCount } text } }"
    found = (await bob(document, id=there["Re: b"]["id"]))["message"]
    assert (found["thread"]["messageCount"], found["text"].strip()) == (2, "Hi there.")
    targets = sorted(client.user.id for client in both)
    assert await logged(world) == [("messageMove", target) for target in targets]
    actions = "SELECT action, user_id FROM auth_events WHERE action LIKE 'mail given%'"
    assert await rows(world, actions) == [("mail given to another account", ada.user.id)]


async def test_what_two_take_at_once_comes_to_one_account(
    both: list[Client], root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    ada, bob = both
    carl = await make_client(world, http, "carl")
    given = {"sourceUser": {"username": "ada"}, "to": {"path": "INBOX"}}
    answers = await asyncio.gather(
        *(call(root, "messageMove", select={"users": of(one), **ALL}, **given)
          for one in (bob, carl, bob, carl))
    )  # fmt: skip
    assert [answer["errors"] for answer in answers] == [[]] * 4
    assert sorted(answer["movedCount"] for answer in answers) == [0, 0, 0, 2]
    assert await nodes(ada) == []
    assert sorted([len(await nodes(bob)), len(await nodes(carl))]) in ([0, 4], [2, 2])


async def test_mail_is_copied_to_another_account(both: list[Client], root: Client) -> None:
    ada, bob = both
    given = {"sourceUser": {"username": "ada"}, "to": {"specialUse": "INBOX"}}
    answer = await call(root, "messageCopy", select={"users": of(bob), **ALL}, **given)
    assert (answer["errors"], answer["copiedCount"]) == ([], 2)
    assert (len(await nodes(ada)), len(await nodes(bob))) == (2, 4)
    threads = await rows(root.world, "SELECT count(*), count(DISTINCT user_id) FROM threads")
    assert threads == [(4, 2)]


async def test_a_task_carries_mail_to_another_account(
    both: list[Client], boss: Client, tmp_path: Path
) -> None:
    ada, bob = both
    given = {"sourceUser": {"username": "ada"}, "to": {"path": "Keep"}}
    select = {"users": of(bob), **ALL}
    task = (await call(few(boss, tmp_path, bulk=1), "messageMove", select=select, **given))["task"]
    assert task["total"] == 2
    assert await tasks.run_next_task(boss.world)
    assert (await places(ada), sorted((await places(bob)).values())) == ({}, ["Keep", "Keep"])


async def test_nobody_takes_mail_from_others(
    both: list[Client], boss: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    _, bob = both
    far = await make_client(world, http, "far")
    source: dict[str, Any] = {"sourceUser": {"username": "ada"}, "to": {"path": "INBOX"}}
    acting = await make_domain_admin(world, http, "acting", [AdminPermission.LOGIN_AS])
    for client, code in ((bob, "NOT_FOUND"), (boss, "FORBIDDEN"), (acting, "FORBIDDEN")):
        for name in ("messageMove", "messageCopy"):
            (error,) = (await call(client, name, select=ALL, **source))["errors"]
            assert error["code"] == code
    (error,) = (await call(boss, "messageMove", select={**ALL, "users": of(bob, far)}, **source))[
        "errors"
    ]
    assert (error["code"], error["path"]) == ("VALIDATION", ["select", "users"])
    nobody = {**source, "sourceUser": {"id": global_ids.encode("User", 7)}}
    (error,) = (await call(boss, "messageCopy", select={**ALL, "users": of(bob)}, **nobody))[
        "errors"
    ]
    assert (error["code"], error["path"][0]) == ("NOT_FOUND", "sourceUser")
    assert [len(await nodes(client)) for client in both] == [2, 2]
