"""Test bulk actions of administrators on one account, on many, and between accounts."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from tests.conftest import GraphQLClient, client_context, deliver_to, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.bulk_operations import (
    inbox_selection,
    list_message_ids,
    list_messages,
    load_mailbox_path_by_subject,
    run_message_mutation,
    undo_mutation,
    user_selection,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)
from tests.support.time_limits import HANG_SECONDS

ALL_MESSAGES: dict[str, Any] = {"all": True}
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def two_users(ada: GraphQLClient, bob: GraphQLClient) -> list[GraphQLClient]:
    """Two users with two messages each and a mailbox Keep."""
    for client in (ada, bob):
        for subject in "ab":
            await deliver_to(client, subject)
        await create_mailboxes(client_context(client), NewMailboxes(["Keep"]))
    return [ada, bob]


@pytest.fixture
async def mail_admin(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    return await make_client(environment, http, "boss", role=Role.ADMIN)


def client_with_task_threshold(
    client: GraphQLClient, spool: Path, *, bulk: int = 2
) -> GraphQLClient:
    """Return a client of an environment that runs bulk requests over `bulk` messages as tasks."""
    environment = replace(
        client.environment, options=replace(client.environment.options, bulk_max_items=bulk)
    )
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=spool))
    return replace(client, http=httpx.AsyncClient(transport=transport, base_url="http://few"))


async def message_audit_log(environment: Environment) -> list[tuple[Any, ...]]:
    mail_mutations = "mutation LIKE 'message%' OR mutation = 'undo'"
    sql = f"SELECT mutation, target_id FROM audit_log WHERE {mail_mutations} ORDER BY 1, 2"  # noqa: S608
    return await select_rows(environment, sql)


async def load_flags(client: GraphQLClient) -> list[list[str]]:
    return [node["imap"]["flags"] for node in await list_messages(client)]


@pytest.mark.parametrize(
    "users",
    [
        {"all": True},
        {"usernames": ["ada", "bob@example.org"]},
        {"patterns": ["a*", "bo?"]},
        {"domains": [{"name": "example.org"}]},
    ],
)
async def test_bulk_update_changes_mail_of_selected_users(
    two_users: list[GraphQLClient],
    mail_admin: GraphQLClient,
    environment: Environment,
    users: dict[str, Any],
) -> None:
    before = [await load_stream_position(environment, client.user.id) for client in two_users]
    arguments = {"select": {**inbox_selection("2:*"), "users": users}, "set": {"addFlags": ["x"]}}
    answer = await run_message_mutation(mail_admin, "messageUpdate", **arguments)
    assert (answer["errors"], answer["updatedCount"]) == ([], 2)
    for client, last in zip(two_users, before, strict=True):
        assert await load_flags(client) == [[], ["x"]]
        ((kind, changed_ids),) = await load_journal_entries(environment, client.user.id, last)
        assert (kind, len(changed_ids)) == (EventType.MESSAGE_UPDATED, 1)
    targets = sorted(client.user.id for client in two_users)
    assert await message_audit_log(environment) == [("messageUpdate", target) for target in targets]


async def test_mailbox_path_is_resolved_in_each_account(
    two_users: list[GraphQLClient], mail_admin: GraphQLClient
) -> None:
    users = {"users": user_selection(*two_users)}
    arguments = {"select": {**inbox_selection("1"), **users}, "to": {"path": "Keep"}}
    moved = await run_message_mutation(mail_admin, "messageMove", **arguments)
    assert (moved["errors"], moved["movedCount"]) == ([], 2)
    assert [await load_mailbox_path_by_subject(client) for client in two_users] == [
        {"a": "Keep", "b": "INBOX"}
    ] * 2
    copied = await run_message_mutation(
        mail_admin, "messageCopy", **{**arguments, "to": {"specialUse": "SENT"}}
    )
    assert (copied["errors"], copied["copiedCount"]) == ([], 0)
    copied = await run_message_mutation(
        mail_admin, "messageCopy", select={**ALL_MESSAGES, **users}, to={"specialUse": "SENT"}
    )
    assert (copied["errors"], copied["copiedCount"]) == ([], 4)
    deleted = await run_message_mutation(
        mail_admin, "messageDelete", select={"mailbox": {"path": "Sent"}, **users}
    )
    assert (deleted["errors"], deleted["deletedCount"]) == ([], 4)
    assert await undo_mutation(mail_admin, deleted) == {"restoredCount": 4, "errors": []}
    assert await undo_mutation(mail_admin, moved) == {"restoredCount": 2, "errors": []}
    for client in two_users:
        assert sorted(node["mailbox"]["path"] for node in await list_messages(client)) == [
            "INBOX", "INBOX", "Sent", "Sent",
        ]  # fmt: skip


async def test_move_requires_target_only_in_accounts_with_selected_mail(
    two_users: list[GraphQLClient], root: GraphQLClient
) -> None:
    ada, bob = two_users
    await create_mailboxes(client_context(bob), NewMailboxes(["Only"]))
    arguments = {"to": {"path": "Only"}}
    answer = await run_message_mutation(
        root,
        "messageMove",
        select={**inbox_selection("1"), "users": user_selection(*two_users)},
        **arguments,
    )
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("NOT_FOUND", ["to"])]
    assert (await ada.load_mailbox()).message_count == (await bob.load_mailbox()).message_count == 2
    await run_message_mutation(ada, "messageDelete", select=ALL_MESSAGES)
    answer = await run_message_mutation(
        root,
        "messageMove",
        select={**inbox_selection("1"), "users": user_selection(*two_users)},
        **arguments,
    )
    assert (answer["errors"], answer["movedCount"]) == ([], 1)


async def test_large_move_across_accounts_runs_as_platform_task(
    two_users: list[GraphQLClient], mail_admin: GraphQLClient, tmp_path: Path
) -> None:
    environment = mail_admin.environment
    client = client_with_task_threshold(mail_admin, tmp_path, bulk=3)
    arguments = {
        "select": {**ALL_MESSAGES, "users": user_selection(*two_users)},
        "to": {"path": "Keep"},
    }
    task = (await run_message_mutation(client, "messageMove", **arguments))["task"]
    assert (task["state"], task["totalCount"]) == ("QUEUED", 4)
    document = "query ($id: ID!) { task(by: {id: $id}) { state doneCount user { id } } }"
    assert (await two_users[0](document, id=task["id"]))["task"] is None
    last = await load_stream_position(environment, PLATFORM)
    assert await tasks.run_next_task(environment)
    assert (await mail_admin(document, id=task["id"]))["task"] == {
        "state": "SUCCEEDED", "doneCount": 4, "user": None,
    }  # fmt: skip
    assert [await load_mailbox_path_by_subject(user) for user in two_users] == [
        {"a": "Keep", "b": "Keep"}
    ] * 2
    kinds = {kind for kind, _ in await load_journal_entries(environment, PLATFORM, last)}
    assert kinds == {EventType.TASK_UPDATED}
    targets = sorted(user.user.id for user in two_users)
    assert await message_audit_log(environment) == [("messageMove", target) for target in targets]


async def test_bulk_actions_need_login_as_permission_for_the_account(
    two_users: list[GraphQLClient], environment: Environment, http: httpx.AsyncClient
) -> None:
    ada, bob = two_users
    without_permission = await make_domain_admin(environment, http, "plain")
    with_permission = await make_domain_admin(
        environment, http, "acting", [AdminPermission.IMPERSONATE]
    )
    arguments: dict[str, Any] = {
        "select": {**inbox_selection("1"), "users": user_selection(ada)},
        "set": {"flagged": True},
    }
    for client, code in ((bob, "NOT_FOUND"), (without_permission, "FORBIDDEN")):
        (error,) = (await run_message_mutation(client, "messageUpdate", **arguments))["errors"]
        assert (error["code"], error["path"][:2]) == (code, ["select", "users"])
    all_mail = {"select": {**ALL_MESSAGES, "users": {"all": True}}}
    for client in (bob, without_permission, with_permission):
        (error,) = (await run_message_mutation(client, "messageDelete", **all_mail))["errors"]
        assert error["code"] == "FORBIDDEN"
    unknown_user = {**ALL_MESSAGES, "users": {"usernames": ["nobody", ada.user.username]}}
    (error,) = (await run_message_mutation(with_permission, "messageDelete", select=unknown_user))[
        "errors"
    ]
    assert error["code"] == "NOT_FOUND"
    assert await load_flags(ada) == [[], []]
    assert (await run_message_mutation(with_permission, "messageUpdate", **arguments))[
        "errors"
    ] == []
    assert await load_flags(ada) == [["\\Flagged"], []]
    ids_of_bob = [node["id"] for node in await list_messages(bob)]
    foreign_ids = {
        "select": {"ids": ids_of_bob, "users": user_selection(ada)},
        "set": {"flagged": True},
    }
    (error,) = (await run_message_mutation(with_permission, "messageUpdate", **foreign_ids))[
        "errors"
    ]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["select", "ids", "0"])


async def test_undo_is_refused_after_admin_lost_rights(
    two_users: list[GraphQLClient], environment: Environment, http: httpx.AsyncClient
) -> None:
    domain_admin = await make_domain_admin(
        environment, http, "acting", [AdminPermission.IMPERSONATE]
    )
    answer = await run_message_mutation(
        domain_admin, "messageDelete", select={**ALL_MESSAGES, "users": user_selection(*two_users)}
    )
    assert (answer["deletedCount"], answer["errors"]) == (4, [])
    assert [e["code"] for e in (await undo_mutation(two_users[0], answer))["errors"]] == [
        "NOT_FOUND"
    ]
    async with environment.write_session(two_users[1].user.id) as session:
        (await session.get_one(User, two_users[1].user.id)).role = Role.DOMAIN_ADMIN
    (error,) = (await undo_mutation(domain_admin, answer))["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN", ["token"])
    assert await load_mailbox_path_by_subject(two_users[0]) == {}


async def test_bulk_update_hides_message_content_from_admin(
    two_users: list[GraphQLClient], mail_admin: GraphQLClient
) -> None:
    document = """mutation ($input: MessageUpdateInput!) { messageUpdate(input: $input) {
        messages { subject } errors { code } } }"""
    arguments = {
        "select": {**inbox_selection("1"), "users": user_selection(two_users[0])},
        "set": {"seen": True},
    }
    (error,) = (await mail_admin.execute(document, input=arguments))["errors"]
    assert error["extensions"]["code"] == "FORBIDDEN"


async def test_if_unchanged_since_is_refused_for_several_accounts(
    two_users: list[GraphQLClient], root: GraphQLClient
) -> None:
    arguments = {
        "select": {**ALL_MESSAGES, "users": user_selection(*two_users)},
        "set": {"seen": True},
        "ifUnchangedSince": 99,
    }
    (error,) = (await run_message_mutation(root, "messageUpdate", **arguments))["errors"]
    assert (error["constraint"], error["path"]) == ("EXCLUSIVE", ["ifUnchangedSince"])


async def test_user_mask_without_match_selects_no_messages(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await deliver_to(ada)
    no_ids: dict[str, Any] = {"ids": []}
    for select in (ALL_MESSAGES, inbox_selection("1:*"), no_ids):
        arguments = {"select": {**select, "users": {"patterns": ["x*"]}}}  # matches no user
        answer = await run_message_mutation(root, "messageDelete", **arguments)
        assert (answer["errors"], answer["deletedCount"]) == ([], 0)


async def test_upload_to_many_accounts_stores_all_or_none(
    two_users: list[GraphQLClient],
    mail_admin: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    user_without_keep = await make_client(environment, http, "far")
    arguments: dict[str, Any] = {"raw": "Subject: news\n\nAll.\n", "mailbox": {"path": "Keep"}}
    answer = await run_message_mutation(
        mail_admin,
        "messageImport",
        users=user_selection(*two_users, user_without_keep),
        **arguments,
    )
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("NOT_FOUND", ["mailbox"])]
    answer = await execute_mutation(
        mail_admin,
        "messageImport",
        "messages { id }",
        users=user_selection(*two_users),
        **arguments,
    )
    assert (answer["errors"], len(answer["messages"])) == ([], 2)
    for client in two_users:
        assert (await load_mailbox_path_by_subject(client))["news"] == "Keep"
    targets = sorted(client.user.id for client in two_users)
    assert await message_audit_log(environment) == [("messageImport", target) for target in targets]
    (error,) = (
        await run_message_mutation(
            two_users[0], "messageImport", users=user_selection(two_users[1]), **arguments
        )
    )["errors"]
    assert (error["code"], error["path"][0]) == ("NOT_FOUND", "users")


async def test_move_to_another_account_moves_messages_and_threads(
    two_users: list[GraphQLClient], root: GraphQLClient, environment: Environment
) -> None:
    ada, bob = two_users
    message_id = f"<{'0' * 16}@example.com>"
    await deliver_to(
        ada, raw_message("Re: b", In_Reply_To=message_id, Message_ID="<x@example.com>")
    )
    await deliver_to(bob, raw_message("b", Message_ID=message_id))
    arguments = {"sourceUser": {"username": "ada"}, "to": {"path": "Keep"}}
    select: dict[str, Any] = {"users": user_selection(bob), "mailbox": {"path": "INBOX"}}
    answer = await run_message_mutation(
        root, "messageMove", select=select, set={"addFlags": ["x"]}, **arguments
    )
    assert (answer["errors"], answer["movedCount"], answer["undo"]) == ([], 3, None)
    assert [(item["oldUid"], item["newUid"]) for item in answer["moved"]] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]
    assert await list_messages(ada) == []
    moved_by_subject = {
        node["subject"]: node for node in await list_messages(bob) if node["imap"]["flags"] == ["x"]
    }
    assert sorted(moved_by_subject) == ["Re: b", "a", "b"]
    document = "query ($id: ID!) { message(by: {id: $id}) { thread { messageCount } text } }"
    message = (await bob(document, id=moved_by_subject["Re: b"]["id"]))["message"]
    assert (message["thread"]["messageCount"], message["text"].strip()) == (2, "Hi there.")
    targets = sorted(client.user.id for client in two_users)
    assert await message_audit_log(environment) == [("messageMove", target) for target in targets]
    actions = "SELECT action, user_id FROM security_events WHERE action = 'MESSAGES_TRANSFERRED'"
    assert await select_rows(environment, actions) == [("MESSAGES_TRANSFERRED", ada.user.id)]


async def test_concurrent_moves_between_accounts_move_each_message_once(
    two_users: list[GraphQLClient],
    root: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    ada, bob = two_users
    carl = await make_client(environment, http, "carl")
    arguments = {"sourceUser": {"username": "ada"}, "to": {"path": "INBOX"}}
    answers = await asyncio.gather(
        *(
            run_message_mutation(
                root,
                "messageMove",
                select={"users": user_selection(user), **ALL_MESSAGES},
                **arguments,
            )
            for user in (bob, carl, bob, carl)
        )
    )
    assert [answer["errors"] for answer in answers] == [[]] * 4
    assert sorted(answer["movedCount"] for answer in answers) == [0, 0, 0, 2]
    assert await list_messages(ada) == []
    assert sorted([len(await list_messages(bob)), len(await list_messages(carl))]) in (
        [0, 4],
        [2, 2],
    )


async def test_copy_to_another_account_keeps_source(
    two_users: list[GraphQLClient], root: GraphQLClient
) -> None:
    ada, bob = two_users
    arguments = {"sourceUser": {"username": "ada"}, "to": {"specialUse": "INBOX"}}
    answer = await run_message_mutation(
        root, "messageCopy", select={"users": user_selection(bob), **ALL_MESSAGES}, **arguments
    )
    assert (answer["errors"], answer["copiedCount"]) == ([], 2)
    assert (len(await list_messages(ada)), len(await list_messages(bob))) == (2, 4)
    threads = await select_rows(
        root.environment, "SELECT count(*), count(DISTINCT user_id) FROM threads"
    )
    assert threads == [(4, 2)]


async def test_large_move_to_another_account_runs_as_task(
    two_users: list[GraphQLClient], mail_admin: GraphQLClient, tmp_path: Path
) -> None:
    ada, bob = two_users
    arguments = {"sourceUser": {"username": "ada"}, "to": {"path": "Keep"}}
    select = {"users": user_selection(bob), **ALL_MESSAGES}
    task = (
        await run_message_mutation(
            client_with_task_threshold(mail_admin, tmp_path, bulk=1),
            "messageMove",
            select=select,
            **arguments,
        )
    )["task"]
    assert task["totalCount"] == 2
    assert await tasks.run_next_task(mail_admin.environment)
    assert (
        await load_mailbox_path_by_subject(ada),
        sorted((await load_mailbox_path_by_subject(bob)).values()),
    ) == ({}, ["Keep", "Keep"])


async def test_move_from_another_account_needs_full_rights(
    two_users: list[GraphQLClient],
    mail_admin: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    _, bob = two_users
    other_user = await make_client(environment, http, "far")
    source: dict[str, Any] = {"sourceUser": {"username": "ada"}, "to": {"path": "INBOX"}}
    domain_admin = await make_domain_admin(
        environment, http, "acting", [AdminPermission.IMPERSONATE]
    )
    for client, code in (
        (bob, "NOT_FOUND"),
        (mail_admin, "FORBIDDEN"),
        (domain_admin, "FORBIDDEN"),
    ):
        for name in ("messageMove", "messageCopy"):
            (error,) = (await run_message_mutation(client, name, select=ALL_MESSAGES, **source))[
                "errors"
            ]
            assert error["code"] == code
    (error,) = (
        await run_message_mutation(
            mail_admin,
            "messageMove",
            select={**ALL_MESSAGES, "users": user_selection(bob, other_user)},
            **source,
        )
    )["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["select", "users"])
    unknown_source = {**source, "sourceUser": {"id": global_ids.encode("User", 7)}}
    (error,) = (
        await run_message_mutation(
            mail_admin,
            "messageCopy",
            select={**ALL_MESSAGES, "users": user_selection(bob)},
            **unknown_source,
        )
    )["errors"]
    assert (error["code"], error["path"][0]) == ("NOT_FOUND", "sourceUser")
    assert [len(await list_messages(client)) for client in two_users] == [2, 2]


@pytest.mark.parametrize("users", [{"all": False}, {"tags": ["none"]}, {"usernames": []}])
async def test_selection_of_no_account_changes_nothing(
    two_users: list[GraphQLClient], root: GraphQLClient, users: dict[str, Any]
) -> None:
    ada, _ = two_users
    message_id, _ = await list_message_ids(ada)
    for client in (root,) if "tags" in users else (root, ada):  # a user can't select by tags
        change = {"set": {"seen": True}}
        selection = {**ALL_MESSAGES, "users": users}
        updated = await run_message_mutation(client, "messageUpdate", select=selection, **change)
        assert (updated["errors"], updated["updatedCount"]) == ([], 0)
        queued = await run_message_mutation(
            client, "messageUpdate", select=selection, **change, **{"async": True}
        )
        assert (queued["errors"], queued["task"]["totalCount"]) == ([], 0)
        by_id = await run_message_mutation(
            client, "messageUpdate", select={"ids": [message_id], "users": users}, **change
        )
        assert [error["path"] for error in by_id["errors"]] == [["select", "ids", "0"]]
    async with asyncio.timeout(HANG_SECONDS):
        while await tasks.run_next_task(root.environment):
            pass
    assert await load_flags(ada) == [[], []]
