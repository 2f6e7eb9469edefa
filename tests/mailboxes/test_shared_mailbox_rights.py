"""What grantees may do in shared folders, by each of the rights."""

from dataclasses import replace
from typing import Any

import pytest

from models.admin.tasks import Task
from models.runtime.environment import CommittedOptions
from resolvers.admin import tasks
from tests.conftest import Client, make_client, raw_message
from tests.support.accounts.shared_mailboxes import READ, box_id, keys, mutate, share, team
from tests.support.operations.mailbox_operations import append_unread_messages, create_mailboxes
from tests.support.stores.counter_check import examine, rows

OTHERS = {"flagged": True}


async def refused(client: Client, name: str, **given: Any) -> list[tuple[str, Any]]:
    """The codes of what was refused, with the right that is missing."""
    return [
        (error["code"], error.get("requires"))
        for error in (await mutate(client, name, "journalCursor", **given))["errors"]
    ]


async def acts(ada: Client) -> dict[str, tuple[dict[str, Any], str]]:
    """What can be done with the messages of a folder of Ada's, and the right that it takes."""
    box = box_id((await ada.box("Team")).id)
    other = box_id((await ada.box("Other")).id)
    one = {"ids": (await keys(ada, "Team"))[:1]}
    return {
        "seen": ({"name": "messageUpdate", "select": one, "set": {"seen": True}}, "SEEN"),
        "flagged": ({"name": "messageUpdate", "select": one, "set": OTHERS}, "WRITE"),
        "keyword": (
            {"name": "messageUpdate", "select": one, "set": {"addFlags": ["work"]}},
            "WRITE",
        ),
        "data": ({"name": "messageUpdate", "select": one, "set": {"metaData": {"a": 1}}}, "WRITE"),
        "deleted": ({"name": "messageUpdate", "select": one, "set": {"deleted": True}}, "DELETE"),
        "delete": ({"name": "messageDelete", "select": one}, "DELETE"),
        "purge": ({"name": "messageDelete", "select": one, "permanent": True}, "EXPUNGE"),
        "move": ({"name": "messageMove", "select": one, "to": {"id": other}}, "DELETE"),
        "by folder": (
            {"name": "messageUpdate", "select": {"mailbox": {"id": box}}, "set": {"seen": True}},
            "SEEN",
        ),
        "by filter": (
            {
                "name": "messageUpdate",
                "select": {"filter": {"mailbox": {"id": box}, "seen": False}},
                "set": {"seen": True},
            },
            "SEEN",
        ),
    }


SENT = "message { from { address } subject }"
ACTS = (
    *("seen", "flagged", "keyword", "data", "deleted", "delete", "purge", "move"),
    *("by folder", "by filter"),
)


@pytest.mark.parametrize("act", ACTS)
async def test_each_act_takes_its_right(ada: Client, bob: Client, act: str) -> None:
    await create_mailboxes(ada, "Other")
    await team(ada, "One", "Two")
    given, right = (await acts(ada))[act]
    name = given.pop("name")
    before = await state(ada)
    by_ids = "ids" in given["select"]
    unseen = ("NOT_FOUND", None)
    if by_ids or "mailbox" in given["select"]:
        assert await refused(bob, name, **given) == [unseen]
    await share(ada, bob, *(r for r in RIGHTS if r != "READ"))
    if by_ids:
        assert await refused(bob, name, **given) == [unseen]
    await share(ada, bob, "INSERT", path="Other")
    await share(ada, bob, *(r for r in RIGHTS if r != right))
    assert await refused(bob, name, **given) == [("FORBIDDEN", right)]
    assert await state(ada) == before
    await share(ada, bob, *READ, right)
    assert await refused(bob, name, **given) == []
    assert await state(ada) != before
    await examine(ada.world)
    await share(ada, bob)
    if by_ids:
        assert await refused(bob, name, **given) == [unseen]


RIGHTS = ["READ", "SEEN", "WRITE", "INSERT", "DELETE", "EXPUNGE", "CREATE", "ADMIN", "POST"]


async def state(client: Client) -> Any:
    asked = "SELECT id, mailbox_id, seen, flagged, deleted, keywords, meta_data FROM messages"
    return await rows(client.world, f"{asked} WHERE user_id = :u ORDER BY id", u=client.user.id)


async def test_an_undo_is_for_what_is_the_own(ada: Client, bob: Client) -> None:
    box = await team(ada, "One")
    await share(ada, bob, "READ", "SEEN")
    given = {"select": {"mailbox": {"id": box}}, "set": {"seen": True}}
    done = await mutate(bob, "messageUpdate", "updatedCount undo { token }", **given)
    assert done == {"updatedCount": 1, "undo": None, "errors": []}
    asked = "query ($b: ID!) { mailbox(by: {id: $b}) { unseen } }"
    assert (await ada(asked, b=box))["mailbox"]["unseen"] == 0


async def test_reading_marks_with_the_right_alone(ada: Client, bob: Client) -> None:
    await team(ada, "One")
    (message,) = await keys(ada, "Team")
    asked = "query ($m: ID!) { message(by: {id: $m}, markAsSeen: true) { seen } }"
    await share(ada, bob, *READ)
    code = (await bob.raw(asked, m=message))["errors"][0]["extensions"]["code"]
    assert code == "FORBIDDEN"
    await share(ada, bob, "READ", "SEEN")
    assert (await bob(asked, m=message))["message"] == {"seen": True}


async def test_into_a_shared_folder_it_takes_insert_and_the_owners_room(
    ada: Client, bob: Client
) -> None:
    box = await team(ada)
    given = {"mailbox": {"id": box}, "raw": raw_message("New").decode(), "flagged": True}
    upload = "message { id subject seen flagged }"
    assert await refused(bob, "messageUpload", **given) == [("NOT_FOUND", None)]
    await share(ada, bob, *(r for r in RIGHTS if r != "INSERT"))
    assert await refused(bob, "messageUpload", **given) == [("FORBIDDEN", "INSERT")]
    await share(ada, bob, "READ", "INSERT")
    done = await mutate(bob, "messageUpload", upload, **given)
    assert (done["message"]["seen"], done["message"]["flagged"]) == (False, False)
    await share(ada, bob, "READ", "INSERT", "SEEN", "WRITE")
    done = await mutate(bob, "messageUpload", upload, **given)
    assert (done["message"]["seen"], done["message"]["flagged"]) == (True, True)
    await share(ada, bob, "INSERT")
    done = await mutate(bob, "messageUpload", upload, **given)
    assert done == {"message": None, "errors": []}
    used = "SELECT message_count FROM users WHERE id = :u"
    assert await rows(ada.world, used, u=ada.user.id) == [(3,)]
    assert await rows(ada.world, used, u=bob.user.id) == [(0,)]
    await examine(ada.world)


async def test_how_full_an_account_is_stays_with_its_owner(
    ada: Client, bob: Client, root: Client
) -> None:
    box = await team(ada, "One")
    await append_unread_messages(bob, "INBOX", "Mine")
    users = {"usernames": ["ada"]}
    await mutate(root, "userUpdate", "users { id }", users=users, set={"quota": 500})
    await share(ada, bob, "READ", "INSERT")
    big = raw_message("Big", body="x" * 999).decode()
    asked = "errors { code ... on QuotaExceededError { used allowed } }"
    for name, given in (
        ("messageUpload", {"mailbox": {"id": box}, "raw": big}),
        ("messageCopy", {"select": {"mailbox": {"path": "INBOX"}}, "to": {"id": box}}),
    ):
        kind = name[0].upper() + name[1:]
        document = f"mutation ($i: {kind}Input!) {{ {name}(input: $i) {{ {asked} }} }}"
        if name == "messageCopy":
            await append_unread_messages(bob, "INBOX", *(f"Mine {n}" for n in range(3)))
        (error,) = (await bob(document, i=given))[name]["errors"]
        assert error == {"code": "QUOTA_EXCEEDED", "used": 0, "allowed": 0}


async def test_between_accounts_messages_are_given(ada: Client, bob: Client) -> None:
    box = await team(ada, "One", "Two")
    select = {"ids": (await keys(ada, "Team"))[:1]}
    inbox = {"path": "INBOX"}
    await share(ada, bob, *READ)
    done = await mutate(bob, "messageCopy", "copiedCount", select=select, to=inbox)
    assert done == {"copiedCount": 1, "errors": []}
    given = {"select": select, "to": inbox}
    assert await refused(bob, "messageMove", **given) == [("FORBIDDEN", "DELETE")]
    await share(ada, bob, "READ", "DELETE")
    assert await refused(bob, "messageMove", **given) == [("FORBIDDEN", "EXPUNGE")]
    await share(ada, bob, "READ", "DELETE", "EXPUNGE")
    done = await mutate(bob, "messageMove", "movedCount undo { token }", **given)
    assert done == {"movedCount": 1, "undo": None, "errors": []}
    back = {"select": {"mailbox": inbox}, "to": {"id": box}}
    assert await refused(bob, "messageCopy", **back) == [("FORBIDDEN", "INSERT")]
    await share(ada, bob, "INSERT")
    assert await refused(bob, "messageMove", **back) == []
    assert len(await keys(ada, "Team")) == 3
    await examine(ada.world)


async def test_messages_of_several_accounts_go_one_at_a_time(ada: Client, bob: Client) -> None:
    await team(ada, "One")
    await append_unread_messages(bob, "INBOX", "Mine")
    await share(ada, bob, "READ", "SEEN")
    both = [*(await keys(ada, "Team")), *(await keys(bob, "INBOX"))]
    given = {"select": {"ids": both}, "set": {"seen": True}}
    assert await refused(bob, "messageUpdate", **given) == [("VALIDATION", None)]


async def test_a_task_does_what_the_grantee_may_then(ada: Client, bob: Client) -> None:
    box = await team(ada, "One", "Two", "Three")
    world = ada.world
    world.apply_options(CommittedOptions(replace(world.options, bulk=2), world.options_position))
    await share(ada, bob, "READ", "SEEN", "WRITE")
    select = {"mailbox": {"id": box}}
    asked = "task { id state user { username } }"
    for changes in ({"seen": True}, {"flagged": True}):
        done = await mutate(bob, "messageUpdate", asked, select=select, set=changes)
        assert done["task"]["user"] == {"username": "bob"}
        if "flagged" in changes:
            await share(ada, bob, "READ", "SEEN")
        while await tasks.run_next_task(world):
            pass
    asked = "SELECT count(*) FROM messages WHERE seen"
    assert await rows(world, asked) == [(3,)]
    assert await rows(world, "SELECT count(*) FROM messages WHERE flagged") == [(0,)]
    kind = f"SELECT kind, state FROM {Task.__tablename__} ORDER BY id"  # noqa: S608 - our own
    assert {state for _, state in await rows(world, kind)} == {"SUCCEEDED"}
    await examine(world)


async def test_folders_below_take_create_and_are_shared_alike(ada: Client, bob: Client) -> None:
    box, eve = await team(ada), await make_client(ada.world, ada.http, "eve")
    await share(ada, eve, *READ)
    given = {"parent": {"id": box}, "paths": ["New/Deep"]}
    assert await refused(bob, "mailboxCreate", **given) == [("NOT_FOUND", None)]
    await share(ada, bob, *(r for r in RIGHTS if r != "CREATE"))
    assert await refused(bob, "mailboxCreate", **given) == [("FORBIDDEN", "CREATE")]
    await share(ada, bob, "READ", "CREATE")
    asked = "mailboxes { path myRights owner { username } }"
    done = await mutate(bob, "mailboxCreate", asked, **given)
    made = {
        "path": "Team/New/Deep",
        "myRights": ["LOOKUP", "READ", "CREATE"],
        "owner": {"username": "ada"},
    }
    assert done == {"mailboxes": [made], "errors": []}
    listed = "{ viewer { user { sharedMailboxes { nodes { path } } } } }"
    for client in (bob, eve):
        nodes = (await client(listed))["viewer"]["user"]["sharedMailboxes"]["nodes"]
        assert {one["path"] for one in nodes} == {"Team", "Team/New", "Team/New/Deep"}
    for more, code in (
        ({"specialUse": "ARCHIVE"}, "FORBIDDEN_OPERATION"),
        ({"users": {"usernames": ["ada"]}}, "VALIDATION"),
        ({"paths": ["New"]}, "CONFLICT"),
        ({"paths": ["x//y"]}, "VALIDATION"),
    ):
        assert [one for one, _ in await refused(bob, "mailboxCreate", **given | more)] == [code]
    mine = {"parent": {"path": "INBOX"}, "paths": ["Sub"]}
    assert (await mutate(bob, "mailboxCreate", "mailboxes { path }", **mine))["mailboxes"] == [
        {"path": "INBOX/Sub"}
    ]
    await examine(ada.world)


async def test_the_folder_itself_is_its_owners_to_change(ada: Client, bob: Client) -> None:
    box = {"id": await team(ada, "One")}
    await share(ada, bob, *RIGHTS)
    for name, what in (
        ("mailboxRename", {"mailbox": box, "newPath": "Mine"}),
        ("mailboxDelete", {"mailboxes": [box]}),
        ("mailboxUpdate", {"mailboxes": [box], "set": {"hidden": True}}),
        ("mailboxMetadataSet", {"mailbox": box, "key": "/shared/comment", "value": "x"}),
    ):
        (code, _), *_ = await refused(bob, name, **what)
        assert code == "NOT_FOUND", name
    given: dict[str, Any] = {"mailbox": box, "raw": raw_message("D").decode(), "draft": True}
    message = await mutate(bob, "messageUpload", "message { id }", **given)
    replaced = {**given, "replacePrevious": {"id": message["message"]["id"]}}
    assert await refused(bob, "messageUpload", **replaced) == [("FORBIDDEN_OPERATION", None)]
    inbox = {**replaced, "mailbox": {"path": "INBOX"}}
    assert await refused(bob, "messageUpload", **inbox) == [("NOT_FOUND", None)]


async def test_what_is_forwarded_of_anothers_stays_as_it_is(ada: Client, bob: Client) -> None:
    await team(ada, "Plan")
    (message,) = await keys(ada, "Team")
    before = await state(ada)
    given = {"message": {"id": message}, "addresses": ["eve@example.com"]}
    assert await refused(bob, "messageForward", **given) == [("NOT_FOUND", None)]
    await share(ada, bob, *READ)
    assert await refused(bob, "messageForward", **given) == []
    assert await state(ada) == before


async def test_conversations_and_snoozing_are_for_their_owner(ada: Client, bob: Client) -> None:
    await team(ada, "Plan")
    (message,) = await keys(ada, "Team")
    asked = "query ($m: ID!) { message(by: {id: $m}) { thread { id } } }"
    thread = (await ada(asked, m=message))["message"]["thread"]["id"]
    before = await state(ada)
    await share(ada, bob, *RIGHTS)
    for more in ({"muted": True}, {"set": {"seen": True}}):
        assert await refused(bob, "threadUpdate", ids=[thread], **more) == [("NOT_FOUND", None)]
    later = {"select": {"ids": [message]}, "set": {"snoozedUntil": "2031-01-01T00:00:00Z"}}
    ((code, _),) = await refused(bob, "messageUpdate", **later)
    assert code == "FORBIDDEN_OPERATION"
    assert await state(ada) == before


async def test_one_who_posts_sends_as_the_owner(ada: Client, bob: Client) -> None:
    await team(ada, "Plan")
    (message,) = await keys(ada, "Team")
    to = [{"address": "eve@example.com"}]
    given: dict[str, Any] = {"from": {"address": ada.address}, "to": to, "text": "x"}
    assert await refused(bob, "messageSend", **given) == [("FORBIDDEN_OPERATION", None)]
    await share(ada, bob, *(r for r in RIGHTS if r != "POST"))
    assert await refused(bob, "messageSend", **given) == [("FORBIDDEN_OPERATION", None)]
    await share(ada, bob, "READ", "POST")
    reply = {
        "from": given["from"],
        "text": "x",
        "reference": {"message": {"id": message}, "action": "REPLY"},
    }
    done = await mutate(bob, "messageSend", SENT, **reply)
    assert done["errors"] == []
    assert done["message"] == {"from": {"address": ada.address}, "subject": "Re: Plan"}
    assert (await ada("query ($m: ID!) { message(by: {id: $m}) { answered } }", m=message))[
        "message"
    ] == {"answered": False}
    await share(ada, bob, *READ)
    assert await refused(bob, "messageSend", **given) == [("FORBIDDEN_OPERATION", None)]
