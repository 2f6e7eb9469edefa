"""Test what each right on a shared mailbox allows to its grantee."""

from dataclasses import replace
from typing import Any

import pytest

from models.admin.tasks import Task
from models.runtime.environment import CommittedOptions
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, make_client, raw_message
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    list_message_ids,
    mailbox_global_id,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.operations.mailbox_operations import append_unread_messages, create_mailboxes
from tests.support.stores.counter_check import assert_store_consistent, select_rows

FLAGGED = {"flagged": True}


async def collect_refusals(
    client: GraphQLClient, name: str, **arguments: Any
) -> list[tuple[str, Any]]:
    """Run a mutation. Return the codes of its errors with the missing right."""
    return [
        (error["code"], error.get("requires"))
        for error in (await run_mailbox_mutation(client, name, "journalCursor", **arguments))[
            "errors"
        ]
    ]


async def message_actions(ada: GraphQLClient) -> dict[str, tuple[dict[str, Any], str]]:
    """Return mutations on a message of Ada's shared mailbox, by name, with the right they need."""
    mailbox_id = mailbox_global_id((await ada.load_mailbox("Team")).id)
    other_mailbox_id = mailbox_global_id((await ada.load_mailbox("Other")).id)
    select = {"ids": (await list_message_ids(ada, "Team"))[:1]}
    return {
        "seen": ({"name": "messageUpdate", "select": select, "set": {"seen": True}}, "SEEN"),
        "flagged": ({"name": "messageUpdate", "select": select, "set": FLAGGED}, "WRITE"),
        "keyword": (
            {"name": "messageUpdate", "select": select, "set": {"addFlags": ["work"]}},
            "WRITE",
        ),
        "data": (
            {"name": "messageUpdate", "select": select, "set": {"metadata": {"a": 1}}},
            "WRITE",
        ),
        "deleted": (
            {"name": "messageUpdate", "select": select, "set": {"deleted": True}},
            "DELETE",
        ),
        "delete": ({"name": "messageDelete", "select": select}, "DELETE"),
        "purge": ({"name": "messageDelete", "select": select, "permanent": True}, "EXPUNGE"),
        "move": (
            {"name": "messageMove", "select": select, "to": {"id": other_mailbox_id}},
            "DELETE",
        ),
        "by folder": (
            {
                "name": "messageUpdate",
                "select": {"mailbox": {"id": mailbox_id}},
                "set": {"seen": True},
            },
            "SEEN",
        ),
        "by filter": (
            {
                "name": "messageUpdate",
                "select": {"filter": {"mailbox": {"id": mailbox_id}, "seen": False}},
                "set": {"seen": True},
            },
            "SEEN",
        ),
    }


SEND_FIELDS = "messages { from { address } subject }"
ACTION_NAMES = (
    *("seen", "flagged", "keyword", "data", "deleted", "delete", "purge", "move"),
    *("by folder", "by filter"),
)


@pytest.mark.parametrize("action", ACTION_NAMES)
async def test_each_action_needs_its_right(
    ada: GraphQLClient, bob: GraphQLClient, action: str
) -> None:
    await create_mailboxes(ada, "Other")
    await create_team_mailbox(ada, "One", "Two")
    arguments, right = (await message_actions(ada))[action]
    name = arguments.pop("name")
    before = await load_message_state(ada)
    by_ids = "ids" in arguments["select"]
    not_found = ("NOT_FOUND", None)
    if by_ids or "mailbox" in arguments["select"]:
        assert await collect_refusals(bob, name, **arguments) == [not_found]
    await share_mailbox(ada, bob, *(r for r in ALL_RIGHTS if r != "READ"))
    if by_ids:
        assert await collect_refusals(bob, name, **arguments) == [not_found]
    await share_mailbox(ada, bob, "INSERT", path="Other")
    await share_mailbox(ada, bob, *(r for r in ALL_RIGHTS if r != right))
    assert await collect_refusals(bob, name, **arguments) == [("FORBIDDEN", right)]
    assert await load_message_state(ada) == before
    await share_mailbox(ada, bob, *READ_RIGHTS, right)
    assert await collect_refusals(bob, name, **arguments) == []
    assert await load_message_state(ada) != before
    await assert_store_consistent(ada.environment)
    await share_mailbox(ada, bob)
    if by_ids:
        assert await collect_refusals(bob, name, **arguments) == [not_found]


ALL_RIGHTS = ["READ", "SEEN", "WRITE", "INSERT", "DELETE", "EXPUNGE", "CREATE", "ADMIN", "POST"]


async def load_message_state(client: GraphQLClient) -> Any:
    query = "SELECT id, mailbox_id, seen, flagged, deleted, keywords, public_metadata FROM messages"
    return await select_rows(
        client.environment, f"{query} WHERE user_id = :u ORDER BY id", u=client.user.id
    )


async def test_only_owner_deletes_empty_mailbox(ada: GraphQLClient, bob: GraphQLClient) -> None:
    team_id = await create_team_mailbox(ada, "One")
    await share_mailbox(ada, bob, *ALL_RIGHTS)
    before = await load_message_state(ada)
    payload = await run_mailbox_mutation(
        bob,
        "messageDelete",
        "deletedCount",
        select={"mailbox": {"id": team_id}},
        permanent=True,
        deleteEmptyMailbox=True,
    )
    (error,) = payload["errors"]
    assert error["code"] == "FORBIDDEN_OPERATION"
    assert error["message"] == "Only the owner of a mailbox can delete it."
    assert error["path"] == ["deleteEmptyMailbox"]
    assert await load_message_state(ada) == before


async def test_change_of_shared_messages_has_no_undo_token(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "One")
    await share_mailbox(ada, bob, "READ", "SEEN")
    arguments = {"select": {"mailbox": {"id": mailbox_id}}, "set": {"seen": True}}
    answer = await run_mailbox_mutation(
        bob, "messageUpdate", "updatedCount undo { token }", **arguments
    )
    assert answer == {"updatedCount": 1, "undo": None, "errors": []}
    document = "query ($b: ID!) { mailbox(by: {id: $b}) { unseenCount } }"
    assert (await ada(document, b=mailbox_id))["mailbox"]["unseenCount"] == 0


async def test_mark_as_seen_needs_seen_right(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_team_mailbox(ada, "One")
    (message,) = await list_message_ids(ada, "Team")
    document = "query ($m: ID!) { message(by: {id: $m}, markAsSeen: true) { seen } }"
    await share_mailbox(ada, bob, *READ_RIGHTS)
    code = (await bob.execute(document, m=message))["errors"][0]["extensions"]["code"]
    assert code == "FORBIDDEN"
    await share_mailbox(ada, bob, "READ", "SEEN")
    assert (await bob(document, m=message))["message"] == {"seen": True}


async def test_upload_to_share_needs_insert_and_uses_owners_quota(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada)
    arguments = {"mailbox": {"id": mailbox_id}, "raw": raw_message("New").decode(), "flagged": True}
    fields = "messages { id subject seen flagged }"
    assert await collect_refusals(bob, "messageImport", **arguments) == [("NOT_FOUND", None)]
    await share_mailbox(ada, bob, *(r for r in ALL_RIGHTS if r != "INSERT"))
    assert await collect_refusals(bob, "messageImport", **arguments) == [("FORBIDDEN", "INSERT")]
    await share_mailbox(ada, bob, "READ", "INSERT")
    answer = await run_mailbox_mutation(bob, "messageImport", fields, **arguments)
    (stored,) = answer["messages"]
    assert (stored["seen"], stored["flagged"]) == (False, False)
    await share_mailbox(ada, bob, "READ", "INSERT", "SEEN", "WRITE")
    answer = await run_mailbox_mutation(bob, "messageImport", fields, **arguments)
    (stored,) = answer["messages"]
    assert (stored["seen"], stored["flagged"]) == (True, True)
    await share_mailbox(ada, bob, "INSERT")
    answer = await run_mailbox_mutation(bob, "messageImport", fields, **arguments)
    assert answer == {"messages": [], "errors": []}
    query = "SELECT message_count FROM users WHERE id = :u"
    assert await select_rows(ada.environment, query, u=ada.user.id) == [(3,)]
    assert await select_rows(ada.environment, query, u=bob.user.id) == [(0,)]
    await assert_store_consistent(ada.environment)


async def test_quota_of_owner_is_hidden_from_grantee(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "One")
    await append_unread_messages(bob, "INBOX", "Mine")
    users = {"usernames": ["ada"]}
    await run_mailbox_mutation(root, "userUpdate", "users { id }", users=users, set={"quota": 500})
    await share_mailbox(ada, bob, "READ", "INSERT")
    large_raw = raw_message("Big", body="x" * 999).decode()
    error_fields = "errors { code ... on QuotaExceededError { used limit } }"
    for name, arguments in (
        ("messageImport", {"mailbox": {"id": mailbox_id}, "raw": large_raw}),
        ("messageCopy", {"select": {"mailbox": {"path": "INBOX"}}, "to": {"id": mailbox_id}}),
    ):
        kind = name[0].upper() + name[1:]
        document = f"mutation ($i: {kind}Input!) {{ {name}(input: $i) {{ {error_fields} }} }}"
        if name == "messageCopy":
            await append_unread_messages(bob, "INBOX", *(f"Mine {n}" for n in range(3)))
        (error,) = (await bob(document, i=arguments))[name]["errors"]
        assert error == {"code": "QUOTA_EXCEEDED", "used": 0, "limit": 0}


async def test_copy_and_move_between_accounts_need_rights(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "One", "Two")
    select = {"ids": (await list_message_ids(ada, "Team"))[:1]}
    inbox = {"path": "INBOX"}
    await share_mailbox(ada, bob, *READ_RIGHTS)
    answer = await run_mailbox_mutation(bob, "messageCopy", "copiedCount", select=select, to=inbox)
    assert answer == {"copiedCount": 1, "errors": []}
    arguments = {"select": select, "to": inbox}
    assert await collect_refusals(bob, "messageMove", **arguments) == [("FORBIDDEN", "DELETE")]
    await share_mailbox(ada, bob, "READ", "DELETE")
    assert await collect_refusals(bob, "messageMove", **arguments) == [("FORBIDDEN", "EXPUNGE")]
    await share_mailbox(ada, bob, "READ", "DELETE", "EXPUNGE")
    answer = await run_mailbox_mutation(
        bob, "messageMove", "movedCount undo { token }", **arguments
    )
    assert answer == {"movedCount": 1, "undo": None, "errors": []}
    copy_back = {"select": {"mailbox": inbox}, "to": {"id": mailbox_id}}
    assert await collect_refusals(bob, "messageCopy", **copy_back) == [("FORBIDDEN", "INSERT")]
    await share_mailbox(ada, bob, "INSERT")
    assert await collect_refusals(bob, "messageMove", **copy_back) == []
    assert len(await list_message_ids(ada, "Team")) == 3
    await assert_store_consistent(ada.environment)


async def test_update_of_messages_of_several_accounts_is_refused(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "One")
    await append_unread_messages(bob, "INBOX", "Mine")
    await share_mailbox(ada, bob, "READ", "SEEN")
    message_ids = [*(await list_message_ids(ada, "Team")), *(await list_message_ids(bob, "INBOX"))]
    arguments = {"select": {"ids": message_ids}, "set": {"seen": True}}
    assert await collect_refusals(bob, "messageUpdate", **arguments) == [("VALIDATION", None)]


async def test_task_checks_rights_when_it_runs(ada: GraphQLClient, bob: GraphQLClient) -> None:
    mailbox_id = await create_team_mailbox(ada, "One", "Two", "Three")
    environment = ada.environment
    environment.use_options_unless_outdated(
        CommittedOptions(
            replace(environment.options, bulk_max_items=2), environment.options_position
        )
    )
    await share_mailbox(ada, bob, "READ", "SEEN", "WRITE")
    select = {"mailbox": {"id": mailbox_id}}
    query = "task { id state user { username } }"
    for changes in ({"seen": True}, {"flagged": True}):
        answer = await run_mailbox_mutation(bob, "messageUpdate", query, select=select, set=changes)
        assert answer["task"]["user"] == {"username": "bob"}
        if "flagged" in changes:
            await share_mailbox(ada, bob, "READ", "SEEN")
        while await tasks.run_next_task(environment):
            pass
    query = "SELECT count(*) FROM messages WHERE seen"
    assert await select_rows(environment, query) == [(3,)]
    assert await select_rows(environment, "SELECT count(*) FROM messages WHERE flagged") == [(0,)]
    query = f"SELECT kind, state FROM {Task.__tablename__} ORDER BY id"  # noqa: S608 - own table
    assert {state for _, state in await select_rows(environment, query)} == {"SUCCEEDED"}
    await assert_store_consistent(environment)


async def test_submailbox_needs_create_and_inherits_shares(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada)
    eve = await make_client(ada.environment, ada.http, "eve")
    await share_mailbox(ada, eve, *READ_RIGHTS)
    arguments = {"parent": {"id": mailbox_id}, "paths": ["New/Deep"]}
    assert await collect_refusals(bob, "mailboxCreate", **arguments) == [("NOT_FOUND", None)]
    await share_mailbox(ada, bob, *(r for r in ALL_RIGHTS if r != "CREATE"))
    assert await collect_refusals(bob, "mailboxCreate", **arguments) == [("FORBIDDEN", "CREATE")]
    await share_mailbox(ada, bob, "READ", "CREATE")
    fields = "mailboxes { path myRights owner { username } }"
    answer = await run_mailbox_mutation(bob, "mailboxCreate", fields, **arguments)
    created = {
        "path": "Team/New/Deep",
        "myRights": ["LOOKUP", "READ", "CREATE"],
        "owner": {"username": "ada"},
    }
    assert answer == {"mailboxes": [created], "errors": []}
    document = "{ viewer { user { sharedMailboxes { nodes { path } } } } }"
    for client in (bob, eve):
        nodes = (await client(document))["viewer"]["user"]["sharedMailboxes"]["nodes"]
        assert {item["path"] for item in nodes} == {"Team", "Team/New", "Team/New/Deep"}
    for extra, code in (
        ({"specialUse": "ARCHIVE"}, "FORBIDDEN_OPERATION"),
        ({"users": {"usernames": ["ada"]}}, "VALIDATION"),
        ({"paths": ["New"]}, "CONFLICT"),
        ({"paths": ["x//y"]}, "VALIDATION"),
    ):
        assert [
            item for item, _ in await collect_refusals(bob, "mailboxCreate", **arguments | extra)
        ] == [code]
    own_submailbox = {"parent": {"path": "INBOX"}, "paths": ["Sub"]}
    assert (
        await run_mailbox_mutation(bob, "mailboxCreate", "mailboxes { path }", **own_submailbox)
    )["mailboxes"] == [{"path": "INBOX/Sub"}]
    await assert_store_consistent(ada.environment)


async def test_grantee_cannot_change_the_mailbox_itself(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox = {"id": await create_team_mailbox(ada, "One")}
    await share_mailbox(ada, bob, *ALL_RIGHTS)
    for name, fields in (
        ("mailboxRename", {"mailbox": mailbox, "newPath": "Mine"}),
        ("mailboxDelete", {"mailboxes": [mailbox]}),
        ("mailboxUpdate", {"mailboxes": [mailbox], "set": {"hidden": True}}),
        ("mailboxAnnotationSet", {"mailbox": mailbox, "key": "/shared/comment", "value": "x"}),
    ):
        (code, _), *_ = await collect_refusals(bob, name, **fields)
        assert code == "NOT_FOUND", name
    arguments: dict[str, Any] = {
        "mailbox": mailbox,
        "raw": raw_message("D").decode(),
        "draft": True,
    }
    stored = await run_mailbox_mutation(bob, "messageImport", "messages { id }", **arguments)
    draft = {"id": stored["messages"][0]["id"]}
    replaced = {**arguments, "replaces": draft}
    assert await collect_refusals(bob, "messageImport", **replaced) == [
        ("FORBIDDEN_OPERATION", None)
    ]
    to_inbox = {**replaced, "mailbox": {"path": "INBOX"}}
    assert await collect_refusals(bob, "messageImport", **to_inbox) == [("NOT_FOUND", None)]
    changed = {"draft": draft, "set": {"subject": "x"}}
    assert await collect_refusals(bob, "draftSave", **changed) == [("NOT_FOUND", None)]
    assert await collect_refusals(bob, "draftSave", **changed, mailbox=mailbox) == [
        ("NOT_FOUND", None)
    ]
    new_draft = {"set": {"subject": "shared"}, "mailbox": mailbox}
    saved = await run_mailbox_mutation(bob, "draftSave", "message { subject draft }", **new_draft)
    assert saved["message"] == {"subject": "shared", "draft": True}
    own = await run_mailbox_mutation(bob, "draftSave", "message { id }", set={"text": "x"})
    moved = {"draft": {"id": own["message"]["id"]}, "set": {}, "mailbox": mailbox}
    assert await collect_refusals(bob, "draftSave", **moved) == [("FORBIDDEN_OPERATION", None)]


async def test_forward_of_shared_message_does_not_change_it(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Plan")
    (message,) = await list_message_ids(ada, "Team")
    before = await load_message_state(ada)
    arguments = {"message": {"id": message}, "to": ["eve@example.com"]}
    assert await collect_refusals(bob, "messageRedirect", **arguments) == [("NOT_FOUND", None)]
    await share_mailbox(ada, bob, *READ_RIGHTS)
    assert await collect_refusals(bob, "messageRedirect", **arguments) == []
    assert await load_message_state(ada) == before


async def test_grantee_cannot_change_threads_or_snooze(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Plan")
    (message,) = await list_message_ids(ada, "Team")
    document = "query ($m: ID!) { message(by: {id: $m}) { thread { id } } }"
    thread_id = (await ada(document, m=message))["message"]["thread"]["id"]
    before = await load_message_state(ada)
    await share_mailbox(ada, bob, *ALL_RIGHTS)
    for patch in ({"muted": True}, {"seen": True}):
        refs = [{"id": thread_id}]
        assert await collect_refusals(bob, "threadUpdate", threads=refs, set=patch) == [
            ("NOT_FOUND", None)
        ]
    snooze = {"select": {"ids": [message]}, "set": {"snoozedUntil": "2031-01-01T00:00:00Z"}}
    ((code, _),) = await collect_refusals(bob, "messageUpdate", **snooze)
    assert code == "FORBIDDEN_OPERATION"
    assert await load_message_state(ada) == before


async def test_post_right_allows_sending_as_owner(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_team_mailbox(ada, "Plan")
    (message,) = await list_message_ids(ada, "Team")
    recipients = [{"address": "eve@example.com"}]
    arguments: dict[str, Any] = {"from": {"address": ada.address}, "to": recipients, "text": "x"}
    assert await collect_refusals(bob, "messageSend", **arguments) == [
        ("FORBIDDEN_OPERATION", None)
    ]
    await share_mailbox(ada, bob, *(r for r in ALL_RIGHTS if r != "POST"))
    assert await collect_refusals(bob, "messageSend", **arguments) == [
        ("FORBIDDEN_OPERATION", None)
    ]
    await share_mailbox(ada, bob, "READ", "POST")
    reply = {
        "from": arguments["from"],
        "text": "x",
        "original": {"message": {"id": message}, "relation": "REPLY"},
    }
    answer = await run_mailbox_mutation(bob, "messageSend", SEND_FIELDS, **reply)
    assert answer["errors"] == []
    assert answer["messages"][0] == {"from": {"address": ada.address}, "subject": "Re: Plan"}
    assert (await ada("query ($m: ID!) { message(by: {id: $m}) { answered } }", m=message))[
        "message"
    ] == {"answered": False}
    await share_mailbox(ada, bob, *READ_RIGHTS)
    assert await collect_refusals(bob, "messageSend", **arguments) == [
        ("FORBIDDEN_OPERATION", None)
    ]
