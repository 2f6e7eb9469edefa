"""Test references of administrators to messages of other users, by ID or by mailbox and UID."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import share_mailbox
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.bulk_operations import (
    list_message_ids,
    list_messages,
    load_mailbox_path_by_subject,
    run_message_mutation,
    user_selection,
)
from tests.support.stores.counter_check import select_rows

MAILBOX_QUERY = (
    "query ($by: MailboxRef!, $user: UserRef) { mailbox(by: $by, user: $user) { path } }"
)
MESSAGE_QUERY = """query ($by: MessageRef!, $user: UserRef, $seen: Boolean = false) {
  message(by: $by, user: $user, markAsSeen: $seen) { id seen } }"""
AUDIT_LOG_QUERY = (
    "SELECT mutation, target_id FROM audit_log WHERE mutation <> 'userCreate' ORDER BY id"
)
MUTATION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "messageUpdate": {"set": {"seen": True}},
    "messageMove": {"to": {"path": "Sent"}},
    "messageDelete": {},
}
FORWARD_FIELDS = "submission { queueId } forwardTargets { value }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def login_as_admin(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    return await make_domain_admin(environment, http, "acting", [AdminPermission.IMPERSONATE])


@pytest.fixture
async def managers(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    root: GraphQLClient,
    login_as_admin: GraphQLClient,
) -> list[GraphQLClient]:
    """The clients that can manage the mail of ada, who has two messages."""
    for subject in "ab":
        await deliver_to(ada, subject)
    return [admin_client, root, login_as_admin]


async def inbox_id(client: GraphQLClient) -> str:
    return global_ids.encode("Mailbox", (await client.load_mailbox()).id)


async def load_audit_log(environment: Environment) -> list[tuple[Any, ...]]:
    return await select_rows(environment, AUDIT_LOG_QUERY)


def error_codes_and_paths(answer: Any) -> list[tuple[Any, ...]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


async def test_manager_reads_mailbox_and_message_by_id_and_uid(
    ada: GraphQLClient,
    bob: GraphQLClient,
    managers: list[GraphQLClient],
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    mailbox_id, (first, _) = await inbox_id(ada), await list_message_ids(ada)
    by_id = {"uid": {"mailbox": {"id": mailbox_id}, "uid": 1}}
    by_path = {"uid": {"mailbox": {"path": "INBOX"}, "uid": 1}}
    user = {"username": "ada"}
    expected = {"message": {"id": first, "seen": False}}
    for client in managers:
        assert await client(MAILBOX_QUERY, by={"id": mailbox_id}) == {"mailbox": {"path": "INBOX"}}
        assert await client(MESSAGE_QUERY, by=by_id) == expected
        assert await client(MESSAGE_QUERY, by=by_path, user=user) == expected
        assert await client(MESSAGE_QUERY, by={"id": first}, user=user) == expected
        other_user = {"username": "bob"}
        assert await client(MESSAGE_QUERY, by={"id": first}, user=other_user) == {"message": None}
        assert await client(MAILBOX_QUERY, by={"id": mailbox_id}, user=other_user) == {
            "mailbox": None
        }
    for client in (bob, await make_domain_admin(environment, http, "bare")):
        assert await client(MAILBOX_QUERY, by={"id": mailbox_id}) == {"mailbox": None}
        assert await client(MESSAGE_QUERY, by=by_id) == {"message": None}
    root_user = await make_client(environment, http, "top", role=Role.ROOT)
    assert await managers[0](MAILBOX_QUERY, by={"id": await inbox_id(root_user)}) == {
        "mailbox": None
    }


@pytest.mark.parametrize("manager_index", range(3))
async def test_manager_marks_message_as_seen(
    ada: GraphQLClient, managers: list[GraphQLClient], environment: Environment, manager_index: int
) -> None:
    first, _ = await list_message_ids(ada)
    answer = await managers[manager_index](MESSAGE_QUERY, by={"id": first}, seen=True)
    assert answer == {"message": {"id": first, "seen": True}}
    assert [node["imap"]["flags"] for node in await list_messages(ada)] == [["\\Seen"], []]
    assert await load_audit_log(environment) == [("messageUpdate", ada.user.id)]


async def test_message_ids_of_several_users_are_updated(
    ada: GraphQLClient, bob: GraphQLClient, managers: list[GraphQLClient], environment: Environment
) -> None:
    admin, *_ = managers
    await deliver_to(bob, "c")
    await deliver_to(admin, "d")
    message_ids = [(await list_message_ids(client))[0] for client in (ada, bob, admin)]
    answer = await run_message_mutation(
        admin, "messageUpdate", select={"ids": message_ids}, set={"flagged": True}
    )
    assert (answer["errors"], answer["updatedCount"]) == ([], 3)
    for client in (ada, bob, admin):
        assert (await list_messages(client))[0]["imap"]["flags"] == ["\\Flagged"]
    entries = await load_audit_log(environment)
    assert sorted(entries) == sorted(("messageUpdate", client.user.id) for client in (ada, bob))


async def test_mailbox_id_selects_mail_of_its_owner(
    ada: GraphQLClient, managers: list[GraphQLClient]
) -> None:
    select = {"mailbox": {"id": await inbox_id(ada)}, "uids": "1"}
    for client, special_use in zip(managers, ("SENT", "JUNK", "TRASH"), strict=True):
        answer = await run_message_mutation(
            client, "messageCopy", select=select, to={"specialUse": special_use}
        )
        assert (answer["errors"], answer["copiedCount"]) == ([], 1)
    _, root, domain_admin = managers
    answer = await run_message_mutation(root, "messageMove", select=select, to={"path": "Drafts"})
    assert (answer["errors"], answer["movedCount"]) == ([], 1)
    select = {"filter": {"mailbox": {"id": await inbox_id(ada)}, "uids": "2"}}
    answer = await run_message_mutation(domain_admin, "messageDelete", select=select)
    assert (answer["errors"], answer["deletedCount"]) == ([], 1)
    paths = sorted(node["mailbox"]["path"] for node in await list_messages(ada))
    assert paths == ["Drafts", "Junk", "Sent", "Trash"]


async def test_unmanaged_message_is_not_found(
    ada: GraphQLClient,
    bob: GraphQLClient,
    managers: list[GraphQLClient],
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    root_user = await make_client(environment, http, "top", role=Role.ROOT)
    await deliver_to(root_user, "t")
    admin, root, domain_admin = managers
    (ada_message_id,), (root_message_id,) = [
        (await list_message_ids(owner))[:1] for owner in (ada, root_user)
    ]
    without_permission = await make_domain_admin(environment, http, "plain")
    unknown_id = global_ids.encode("Message", 7)
    attempts = [
        (bob, ada_message_id),
        (without_permission, ada_message_id),
        (admin, root_message_id),
        (domain_admin, root_message_id),
        (root, unknown_id),
    ]
    for client, message_id in attempts:
        for name, extra in MUTATION_ARGUMENTS.items():
            answer = await run_message_mutation(client, name, select={"ids": [message_id]}, **extra)
            assert error_codes_and_paths(answer) == [("NOT_FOUND", ["select", "ids", "0"])]
        archived = global_ids.encode("DeletedMessage", global_ids.decode("Message", message_id))
        fields = "restored { mailbox { path } }"
        answer = await execute_mutation(
            client, "deletedMessageRestore", fields, select={"ids": [archived]}
        )
        assert error_codes_and_paths(answer) == [("NOT_FOUND", ["select", "ids", "0"])]
    assert await load_audit_log(environment) == []


async def test_share_rights_apply_in_shared_mailbox(
    ada: GraphQLClient, managers: list[GraphQLClient]
) -> None:
    admin, *_ = managers
    assert await share_mailbox(ada, admin, "LOOKUP", "READ", path="INBOX") == []
    first, _ = await list_message_ids(ada)
    arguments: dict[str, Any] = {"set": {"flagged": True}}
    answer = await run_message_mutation(
        admin, "messageUpdate", select={"ids": [first]}, **arguments
    )
    assert error_codes_and_paths(answer) == [("FORBIDDEN", ["select"])]
    answer = await run_message_mutation(
        admin, "messageUpdate", select={"ids": [first], "users": user_selection(ada)}, **arguments
    )
    assert (answer["errors"], answer["updatedCount"]) == ([], 1)


async def test_restore_returns_messages_to_each_owner(
    ada: GraphQLClient, bob: GraphQLClient, managers: list[GraphQLClient], environment: Environment
) -> None:
    await deliver_to(bob, "c")
    document = "{ viewer { user { deletedMessages { nodes { id } } } } }"
    for client in (ada, bob):
        await run_message_mutation(client, "messageDelete", select={"mailbox": {"path": "INBOX"}})
    deleted_ids = [
        node["id"]
        for client in (ada, bob)
        for node in (await client(document))["viewer"]["user"]["deletedMessages"]["nodes"]
    ]
    fields = "restored { mailbox { path } message { id } }"
    id_lists: tuple[list[str], ...] = (deleted_ids[1:], deleted_ids[:1], [])
    for client, ids, path in zip(managers, id_lists, ("Sent", "INBOX", ""), strict=True):
        target = {"mailbox": {"path": path}} if path == "Sent" else {}
        answer = await execute_mutation(
            client,
            "deletedMessageRestore",
            fields,
            select={"ids": ids},
            **target,
        )
        assert answer["errors"] == []
        assert [item["mailbox"]["path"] for item in answer["restored"]] == [path] * len(ids)
    assert sorted((await load_mailbox_path_by_subject(ada)).values()) == ["INBOX", "Sent"]
    assert await load_mailbox_path_by_subject(bob) == {"c": "Sent"}
    entries = await select_rows(environment, AUDIT_LOG_QUERY)
    assert sorted(key for _, key in entries) == sorted([ada.user.id, ada.user.id, bob.user.id])


@pytest.mark.parametrize("manager_index", range(3))
async def test_forward_by_manager_notifies_owner(
    ada: GraphQLClient, managers: list[GraphQLClient], environment: Environment, manager_index: int
) -> None:
    ref = {"uid": {"mailbox": {"id": await inbox_id(ada)}, "uid": 1}}
    client = managers[manager_index]
    answer = await execute_mutation(
        client, "messageRedirect", FORWARD_FIELDS, message=ref, to=["d@example.net"]
    )
    assert (answer["errors"], answer["forwardTargets"]) == ([], [{"value": "d@example.net"}])
    sent = await select_rows(
        environment, "SELECT user_id, envelope_from, queue_id FROM submissions"
    )
    assert sent == [(ada.user.id, "ada@example.org", answer["submission"]["queueId"])]
    assert await load_audit_log(environment) == [("messageRedirect", ada.user.id)]
    document = "{ viewer { user { securityLog { nodes { action detail } } } } }"
    events = (await ada(document))["viewer"]["user"]["securityLog"]["nodes"]
    assert {"action": "MESSAGE_REDIRECTED", "detail": {"to": ["d@example.net"]}} in events
    assert await tasks.run_next_task(environment)
    subjects = [node["subject"] for node in await list_messages(ada)]
    assert "Your account was changed by an administrator" in subjects
    assert "$Forwarded" in (await list_messages(ada))[0]["imap"]["flags"]


async def test_forward_by_owner_sends_no_notification(
    ada: GraphQLClient, managers: list[GraphQLClient], environment: Environment
) -> None:
    first, _ = await list_message_ids(ada)
    arguments = {"message": {"id": first}, "to": ["d@example.net"]}
    assert (await execute_mutation(ada, "messageRedirect", FORWARD_FIELDS, **arguments))[
        "errors"
    ] == []
    without_targets = await execute_mutation(
        managers[0], "messageRedirect", FORWARD_FIELDS, message={"id": first}
    )
    assert (without_targets["errors"], without_targets["forwardTargets"]) == (
        [],
        [],
    )  # the message has no original targets
    log_rows = await select_rows(
        environment, "SELECT action FROM security_events WHERE action = 'MESSAGE_REDIRECTED'"
    )
    assert log_rows == []


@pytest.mark.parametrize("manager_index", range(3))
async def test_manager_saves_draft_of_user(
    ada: GraphQLClient,
    bob: GraphQLClient,
    managers: list[GraphQLClient],
    environment: Environment,
    manager_index: int,
) -> None:
    client, user = managers[manager_index], {"username": "ada"}
    patch = {"subject": "one", "to": [{"address": "d@example.net"}, {"address": "d@"}]}
    fields = "message { id } warnings { code path }"
    created = await execute_mutation(client, "draftSave", fields, user=user, set=patch)
    assert (created["errors"], created["warnings"][0]["path"]) == ([], ["set", "to", "1"])
    document = (
        "query ($id: ID!) { message(by: {id: $id}) { draft from { address } to { address } } }"
    )
    assert (await ada(document, id=created["message"]["id"]))["message"] == {
        "draft": True,
        "from": {"address": ada.address},
        "to": [{"address": "d@example.net"}],
    }
    (draft,) = [node for node in await list_messages(ada) if node["mailbox"]["path"] == "Drafts"]
    by_uid = {"uid": {"mailbox": {"path": "Drafts"}, "uid": draft["imap"]["uid"]}}
    changed = await execute_mutation(
        client, "draftSave", fields, user=user, draft=by_uid, set={"subject": "two"}
    )
    assert (changed["errors"], changed["message"]) == ([], created["message"])
    (draft,) = [node for node in await list_messages(ada) if node["mailbox"]["path"] == "Drafts"]
    assert draft["subject"] == "two"
    assert await load_audit_log(environment) == [("draftSave", ada.user.id)] * 2
    refused = await execute_mutation(
        bob, "draftSave", fields, user=user, draft=created["message"], set={"subject": "three"}
    )
    assert error_codes_and_paths(refused) == [("NOT_FOUND", ["user"])]


async def test_manager_replaces_draft_of_user(
    ada: GraphQLClient, bob: GraphQLClient, managers: list[GraphQLClient], environment: Environment
) -> None:
    message_input = {"mailbox": {"path": "Drafts"}, "draft": True}
    fields = "messages { id }"
    first = await execute_mutation(
        ada, "messageImport", fields, raw="Subject: one\n\nx", **message_input
    )
    replaced = {"id": first["messages"][0]["id"]}
    arguments = {"replaces": replaced, "raw": "Subject: two\n\nx", **message_input}
    for client in managers:
        answer = await execute_mutation(
            client, "messageImport", fields, users=user_selection(ada), **arguments
        )
        assert answer["errors"] == []
        assert [message["id"] for message in answer["messages"]] == [replaced["id"]]
    (draft,) = [node for node in await list_messages(ada) if node["mailbox"]["path"] == "Drafts"]
    assert draft["subject"] == "two"
    assert await load_audit_log(environment) == [("messageImport", ada.user.id)] * len(managers)
    refused = await execute_mutation(
        managers[0], "messageImport", fields, users=user_selection(ada, bob), **arguments
    )
    assert error_codes_and_paths(refused) == [("VALIDATION", ["users"])]


async def test_draft_for_user_cannot_include_users_mail(
    ada: GraphQLClient, managers: list[GraphQLClient]
) -> None:
    first, _ = await list_message_ids(ada)
    source = {"message": {"id": first}, "relation": "FORWARD", "includeMessage": True}
    arguments = {"original": source, "set": {}, "user": {"username": "ada"}}
    for client in managers:
        (error,) = (await execute_mutation(client, "draftSave", "message { id }", **arguments))[
            "errors"
        ]
        assert error["code"] == "FORBIDDEN"
    assert len(await list_messages(ada)) == 2
