"""Messages of other accounts that an administrator names by an id, or by folder and uid."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from tests.conftest import Client, make_client, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import share
from tests.support.accounts.user_operations import run
from tests.support.operations.bulk_operations import call, keys, nodes, of, places
from tests.support.stores.counter_check import rows

MAILBOX = "query ($by: MailboxRef!, $user: UserRef) { mailbox(by: $by, user: $user) { path } }"
MESSAGE = """query ($by: MessageRef!, $user: UserRef, $seen: Boolean = false) {
  message(by: $by, user: $user, markAsSeen: $seen) { id seen } }"""
LOG = "SELECT mutation, target_id FROM admin_log WHERE mutation <> 'userCreate' ORDER BY id"
MORE: dict[str, dict[str, Any]] = {
    "messageUpdate": {"set": {"seen": True}},
    "messageMove": {"to": {"path": "Sent"}},
    "messageDelete": {},
}
FORWARD = "queueId forwarded { value }"
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def acting(world: Environment, http: httpx.AsyncClient) -> Client:
    return await make_domain_admin(world, http, "acting", [AdminPermission.LOGIN_AS])


@pytest.fixture
async def managers(ada: Client, over: Client, root: Client, acting: Client) -> list[Client]:
    """Those who manage the mail of ada, who has two messages."""
    for letter in "ab":
        await receive(ada, letter)
    return [over, root, acting]


async def inbox_of(client: Client) -> str:
    return global_ids.encode("Mailbox", (await client.box()).id)


async def admin_log(world: Environment) -> list[tuple[Any, ...]]:
    return await rows(world, LOG)


def codes(answer: Any) -> list[tuple[Any, ...]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


async def test_a_folder_and_a_message_are_found_by_id_and_uid(
    ada: Client, bob: Client, managers: list[Client], world: Environment, http: httpx.AsyncClient
) -> None:
    box, (first, _) = await inbox_of(ada), await keys(ada)
    by_id = {"uid": {"mailbox": {"id": box}, "uid": 1}}
    by_path = {"uid": {"mailbox": {"path": "INBOX"}, "uid": 1}}
    user = {"username": "ada"}
    found = {"message": {"id": first, "seen": False}}
    for client in managers:
        assert await client(MAILBOX, by={"id": box}) == {"mailbox": {"path": "INBOX"}}
        assert await client(MESSAGE, by=by_id) == found
        assert await client(MESSAGE, by=by_path, user=user) == found
        assert await client(MESSAGE, by={"id": first}, user=user) == found
        other = {"username": "bob"}
        assert await client(MESSAGE, by={"id": first}, user=other) == {"message": None}
        assert await client(MAILBOX, by={"id": box}, user=other) == {"mailbox": None}
    for client in (bob, await make_domain_admin(world, http, "bare")):
        assert await client(MAILBOX, by={"id": box}) == {"mailbox": None}
        assert await client(MESSAGE, by=by_id) == {"message": None}
    top = await make_client(world, http, "top", role=Role.ROOT)
    assert await managers[0](MAILBOX, by={"id": await inbox_of(top)}) == {"mailbox": None}


@pytest.mark.parametrize("which", range(3))
async def test_a_message_is_marked_as_seen_by_its_manager(
    ada: Client, managers: list[Client], world: Environment, which: int
) -> None:
    first, _ = await keys(ada)
    answer = await managers[which](MESSAGE, by={"id": first}, seen=True)
    assert answer == {"message": {"id": first, "seen": True}}
    assert [node["flags"] for node in await nodes(ada)] == [["\\Seen"], []]
    assert await admin_log(world) == [("messageUpdate", ada.user.id)]


async def test_messages_of_several_accounts_are_changed_by_id(
    ada: Client, bob: Client, managers: list[Client], world: Environment
) -> None:
    over, *_ = managers
    await receive(bob, "c")
    await receive(over, "d")
    named = [(await keys(client))[0] for client in (ada, bob, over)]
    answer = await call(over, "messageUpdate", select={"ids": named}, set={"flagged": True})
    assert (answer["errors"], answer["updatedCount"]) == ([], 3)
    for client in (ada, bob, over):
        assert (await nodes(client))[0]["flags"] == ["\\Flagged"]
    log = await admin_log(world)
    assert sorted(log) == sorted(("messageUpdate", one.user.id) for one in (ada, bob))


async def test_a_folder_named_by_its_id_leads_to_its_owner(
    ada: Client, managers: list[Client]
) -> None:
    select = {"mailbox": {"id": await inbox_of(ada)}, "uids": "1"}
    for client, use in zip(managers, ("SENT", "JUNK", "TRASH"), strict=True):
        answer = await call(client, "messageCopy", select=select, to={"specialUse": use})
        assert (answer["errors"], answer["copiedCount"]) == ([], 1)
    _, root, acting = managers
    answer = await call(root, "messageMove", select=select, to={"path": "Drafts"})
    assert (answer["errors"], answer["movedCount"]) == ([], 1)
    select = {"filter": {"mailbox": {"id": await inbox_of(ada)}, "uids": "2"}}
    answer = await call(acting, "messageDelete", select=select)
    assert (answer["errors"], answer["deletedCount"]) == ([], 1)
    found = sorted(node["mailbox"]["path"] for node in await nodes(ada))
    assert found == ["Drafts", "Junk", "Sent", "Trash"]


async def test_what_one_does_not_manage_is_not_found(
    ada: Client, bob: Client, managers: list[Client], world: Environment, http: httpx.AsyncClient
) -> None:
    top = await make_client(world, http, "top", role=Role.ROOT)
    await receive(top, "t")
    over, root, acting = managers
    (mine,), (secret,) = [(await keys(one))[:1] for one in (ada, top)]
    plain = await make_domain_admin(world, http, "plain")
    gone = global_ids.encode("Message", 7)
    tries = [(bob, mine), (plain, mine), (over, secret), (acting, secret), (root, gone)]
    for client, key in tries:
        for name, more in MORE.items():
            answer = await call(client, name, select={"ids": [key]}, **more)
            assert codes(answer) == [("NOT_FOUND", ["select", "ids"])]
        archived = global_ids.encode("ArchivedMessage", global_ids.decode("Message", key))
        shown = "restored { mailbox { path } }"
        answer = await run(client, "archivedMessageRestore", shown, ids=[archived])
        assert codes(answer) == [("NOT_FOUND", ["ids"])]
    assert await admin_log(world) == []


async def test_in_a_shared_folder_the_rights_of_the_share_apply(
    ada: Client, managers: list[Client]
) -> None:
    over, *_ = managers
    assert await share(ada, over, "LOOKUP", "READ", path="INBOX") == []
    first, _ = await keys(ada)
    given: dict[str, Any] = {"set": {"flagged": True}}
    answer = await call(over, "messageUpdate", select={"ids": [first]}, **given)
    assert codes(answer) == [("FORBIDDEN", ["select"])]
    answer = await call(over, "messageUpdate", select={"ids": [first], "users": of(ada)}, **given)
    assert (answer["errors"], answer["updatedCount"]) == ([], 1)


async def test_deleted_messages_come_back_to_each_account(
    ada: Client, bob: Client, managers: list[Client], world: Environment
) -> None:
    await receive(bob, "c")
    asked = "{ viewer { user { archivedMessages { nodes { id } } } } }"
    for client in (ada, bob):
        await call(client, "messageDelete", select={"mailbox": {"path": "INBOX"}})
    keys = [
        node["id"]
        for client in (ada, bob)
        for node in (await client(asked))["viewer"]["user"]["archivedMessages"]["nodes"]
    ]
    shown = "restored { mailbox { path } message { id } }"
    for client, part, path in zip(managers, (keys[1:], keys[:1], []), ("Sent", "INBOX", ""),
                                  strict=True):  # fmt: skip
        into = {"mailbox": {"path": path}} if path == "Sent" else {}
        answer = await run(client, "archivedMessageRestore", shown, ids=part, **into)
        assert answer["errors"] == []
        assert [one["mailbox"]["path"] for one in answer["restored"]] == [path] * len(part)
    assert sorted((await places(ada)).values()) == ["INBOX", "Sent"]
    assert await places(bob) == {"c": "Sent"}
    log = await rows(world, LOG)
    assert sorted(key for _, key in log) == sorted([ada.user.id, ada.user.id, bob.user.id])


@pytest.mark.parametrize("which", range(3))
async def test_a_message_is_forwarded_for_its_owner_who_is_told(
    ada: Client, managers: list[Client], world: Environment, which: int
) -> None:
    ref = {"uid": {"mailbox": {"id": await inbox_of(ada)}, "uid": 1}}
    client = managers[which]
    answer = await run(client, "messageForward", FORWARD, message=ref, addresses=["d@example.net"])
    assert (answer["errors"], answer["forwarded"]) == ([], [{"value": "d@example.net"}])
    sent = await rows(world, "SELECT user_id, envelope_from, queue_id FROM submissions")
    assert sent == [(ada.user.id, "ada@example.org", answer["queueId"])]
    assert await admin_log(world) == [("messageForward", ada.user.id)]
    log = "{ viewer { user { authLog { nodes { action detail } } } } }"
    events = (await ada(log))["viewer"]["user"]["authLog"]["nodes"]
    assert {"action": "message forward", "detail": {"to": ["d@example.net"]}} in events
    assert await tasks.run_next_task(world)
    subjects = [node["subject"] for node in await nodes(ada)]
    assert "Your account was changed by an administrator" in subjects
    assert "$Forwarded" in (await nodes(ada))[0]["flags"]


async def test_a_user_forwards_without_a_message_of_the_administrator(
    ada: Client, managers: list[Client], world: Environment
) -> None:
    first, _ = await keys(ada)
    to = {"message": {"id": first}, "addresses": ["d@example.net"]}
    assert (await run(ada, "messageForward", FORWARD, **to))["errors"] == []
    none = await run(managers[0], "messageForward", FORWARD, message={"id": first})
    assert (none["errors"], none["forwarded"]) == ([], [])  # it has no original targets
    found = await rows(world, "SELECT action FROM auth_events WHERE action = 'message forward'")
    assert found == []


async def test_a_written_message_is_put_into_other_accounts(
    ada: Client, bob: Client, managers: list[Client], world: Environment
) -> None:
    given = {"mailbox": {"path": "Drafts"}, "draft": True, "subject": "hi", "text": "x",
             "to": [{"address": "d@example.net"}, {"address": "d@"}]}  # fmt: skip
    shown = "messages { id } warnings { code path }"
    answer = await run(managers[0], "messageUpload", shown, users=of(ada, bob), **given)
    assert (answer["errors"], len(answer["messages"])) == ([], 2)
    assert [each["path"] for each in answer["warnings"]] == [["to", "1"]]
    asked = "query ($id: ID!) { message(by: {id: $id}) { draft from { address } to { address } } }"
    for client, key in zip((ada, bob), answer["messages"], strict=True):
        found = (await client(asked, id=key["id"]))["message"]
        assert found == {
            "draft": True,
            "from": {"address": client.address},
            "to": [{"address": "d@example.net"}],
        }
    targets = sorted(client.user.id for client in (ada, bob))
    assert sorted(await admin_log(world)) == [("messageUpload", target) for target in targets]


async def test_a_draft_of_another_account_is_replaced(
    ada: Client, bob: Client, managers: list[Client], world: Environment
) -> None:
    place = {"mailbox": {"path": "Drafts"}, "draft": True, "text": "x"}
    shown = "messages { id } previousDeleted"
    first = await run(ada, "messageUpload", shown, subject="one", **place)
    given = {"replacePrevious": first["messages"][0], "subject": "two", **place}
    for client in managers:
        answer = await run(client, "messageUpload", shown, users=of(ada), **given)
        assert (answer["errors"], answer["previousDeleted"]) == ([], True)
        assert answer["messages"] == first["messages"]
    (draft,) = [node for node in await nodes(ada) if node["mailbox"]["path"] == "Drafts"]
    assert draft["subject"] == "two"
    assert await admin_log(world) == [("messageUpload", ada.user.id)] * len(managers)
    both = await run(managers[0], "messageUpload", shown, users=of(ada, bob), **given)
    assert codes(both) == [("VALIDATION", ["users"])]


async def test_a_message_written_for_another_takes_nothing_from_their_mail(
    ada: Client, managers: list[Client]
) -> None:
    first, _ = await keys(ada)
    reference = {"message": {"id": first}, "action": "FORWARD", "includeMessage": True}
    given = {"mailbox": {"path": "Drafts"}, "reference": reference, "users": of(ada)}
    for client in managers:
        (error,) = (await run(client, "messageUpload", "messages { id }", **given))["errors"]
        assert error["code"] == "FORBIDDEN"
    assert len(await nodes(ada)) == 2
