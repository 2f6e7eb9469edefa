"""Shared folders: who may share, what is seen, and what stays unseen."""

from dataclasses import replace
from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import ChangeKind
from models.mailboxes.shares import MailboxShare, ShareRight, decode_rights, encode_rights
from models.runtime.environment import CommittedOptions, Environment
from models.users.roles import Role
from tests.conftest import Client, make_client
from tests.support.accounts.shared_mailboxes import READ, box_id, keys, mutate, share, team
from tests.support.accounts.user_operations import PASSWORD
from tests.support.operations.mailbox_operations import append_unread_messages, create_mailboxes
from tests.support.stores.counter_check import examine, journal, rows

ROADS = """
query ($box: ID!, $message: ID!, $thread: ID!, $text: String!) {
  mailbox(by: {id: $box}) { id }
  node(id: $box) { id }
  message(by: {id: $message}) { id }
  uid: message(by: {uid: {mailbox: {id: $box}, uid: 1}}) { id }
  again: node(id: $message) { id }
  thread(id: $thread) { id }
  whole: node(id: $thread) { id }
  messages(filter: {subject: $text}) { totalCount nodes { id } }
  words: messages(filter: {query: $text}) { totalCount nodes { id } }
  within: messages(filter: {mailbox: {id: $box}}) { totalCount nodes { id } }
  viewer { user { sharedMailboxes { totalCount nodes { id } } mailboxes { path } } }
}
"""
INSIDE = """
query ($box: ID!, $text: String!) { mailbox(by: {id: $box}) {
  path myRights user { username } owner { username name address } total
  acl { user { username } grantee { username } rights } parent { path }
  messages { totalCount nodes { subject text mailbox { path } thread { subject messageCount
    mailboxes { path } participants { address } messages { nodes { subject } } } } }
  words: messages(filter: {query: $text}) { totalCount nodes { subject snippet } }
  read: messages(filter: {text: $text}) { nodes { subject } }
  masked: messages(filter: {mailboxMasks: ["*"]}) { nodes { subject } }
} }
"""
NOTHING = {
    "mailbox": None,
    "node": None,
    "message": None,
    "uid": None,
    "again": None,
    "thread": None,
    "whole": None,
    "messages": {"totalCount": 0, "nodes": []},
    "words": {"totalCount": 0, "nodes": []},
    "within": {"totalCount": 0, "nodes": []},
}
COST = 11  # statements of a list with all its links, however many folders there are
STANDARD = [{"path": path} for path in ("INBOX", "Drafts", "Junk", "Sent", "Trash")]


async def roads(owner: Client, viewer: Client) -> Any:
    """All that leads to the first message of the owner's folder, as another goes there."""
    (message,) = await keys(owner, "Team")
    asked = "query ($m: ID!) { message(by: {id: $m}) { thread { id } mailbox { id } } }"
    there = (await owner(asked, m=message))["message"]
    names = {"box": there["mailbox"]["id"], "thread": there["thread"]["id"]}
    found = await viewer(ROADS, message=message, text="Plan", **names)
    user = found.pop("viewer")["user"]
    assert user["mailboxes"] == STANDARD
    return found, user["sharedMailboxes"]


async def test_a_stranger_finds_nothing_by_any_road(ada: Client, bob: Client) -> None:
    await team(ada, "Plan")
    assert await roads(ada, bob) == (NOTHING, {"totalCount": 0, "nodes": []})
    eve = await make_client(ada.world, ada.http, "eve")
    await share(ada, eve, *READ)
    assert await roads(ada, bob) == (NOTHING, {"totalCount": 0, "nodes": []})


async def test_one_who_looks_up_sees_the_folder_and_no_message(ada: Client, bob: Client) -> None:
    box = await team(ada, "Plan")
    assert await share(ada, bob, "LOOKUP") == []
    found, shared = await roads(ada, bob)
    assert shared == {"totalCount": 1, "nodes": [{"id": box}]}
    assert found == {**NOTHING, "mailbox": {"id": box}, "node": {"id": box}}
    inside = (await bob(INSIDE, box=box, text="Plan"))["mailbox"]
    assert inside["myRights"] == ["LOOKUP"]
    assert inside["messages"] == {"totalCount": 0, "nodes": []}


async def test_one_who_reads_reads_all_of_the_folder_and_nothing_else(
    ada: Client, bob: Client
) -> None:
    await create_mailboxes(ada, "Team/Secret")
    await append_unread_messages(ada, "Team", "Plan")
    await append_unread_messages(ada, "Team/Secret", "Re: Plan")
    await append_unread_messages(ada, "INBOX", "Plan elsewhere")
    box = box_id((await ada.box("Team")).id)
    await share(ada, bob, *READ)
    found, shared = await roads(ada, bob)
    (message,) = await keys(ada, "Team")
    for road in ("message", "uid", "again"):
        assert found[road] == {"id": message}
    assert found["thread"] == found["whole"] != None  # noqa: E711 - both are there
    assert found["words"]["totalCount"] == found["messages"]["totalCount"] == 0  # the own mail's
    assert shared["totalCount"] == 1
    inside = (await bob(INSIDE, box=box, text="Plan"))["mailbox"]
    assert inside.pop("words")["nodes"][0]["subject"] == "Plan"
    assert inside.pop("read") == inside.pop("masked") == {"nodes": [{"subject": "Plan"}]}
    thread = {
        "subject": "Plan",
        "messageCount": 1,
        "mailboxes": [{"path": "Team"}],
        "participants": [{"address": "carol@example.com"}],
        "messages": {"nodes": [{"subject": "Plan"}]},
    }
    told = {
        "subject": "Plan",
        "text": "Hi there.\r\n",
        "mailbox": {"path": "Team"},
        "thread": thread,
    }
    inside["messages"]["nodes"][0]["text"] = "Hi there.\r\n"
    assert inside == {
        "path": "Team",
        "myRights": ["LOOKUP", "READ"],
        "user": None,
        "owner": {"username": "ada", "name": None, "address": "ada@example.org"},
        "total": 1,
        "acl": [
            {
                "user": {"username": "bob"},
                "grantee": {"username": "bob"},
                "rights": ["LOOKUP", "READ"],
            }
        ],
        "parent": None,
        "messages": {"totalCount": 1, "nodes": [told]},
    }


async def test_a_conversation_is_called_by_what_is_shared(ada: Client, bob: Client) -> None:
    await append_unread_messages(ada, "INBOX", "Plan")
    box = await team(ada)
    reply = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"path": "Team"}}
    await append_unread_messages(ada, "INBOX", "Re: Plan")
    move = await mutate(
        ada, "messageMove", "movedCount", select={"filter": {"subject": "Re: Plan"}}, to=reply["to"]
    )
    assert move["movedCount"] == 1
    await share(ada, bob, *READ)
    (told,) = (await bob(INSIDE, box=box, text="Plan"))["mailbox"]["messages"]["nodes"]
    assert (told["thread"]["subject"], told["thread"]["messageCount"]) == ("Re: Plan", 1)


async def test_what_is_revoked_is_gone_with_the_next_request(ada: Client, bob: Client) -> None:
    await team(ada, "Plan")
    await share(ada, bob, *ShareRight)
    assert (await roads(ada, bob))[0]["message"]
    assert await share(ada, bob) == []
    assert await roads(ada, bob) == (NOTHING, {"totalCount": 0, "nodes": []})
    assert (await ada('{ mailbox(by: {path: "Team"}) { acl { rights } } }'))["mailbox"] == {
        "acl": []
    }


async def test_bytes_are_fetched_as_long_as_they_may_be_read(ada: Client, bob: Client) -> None:
    await team(ada, "Plan")
    (message,) = await keys(ada, "Team")
    path = f"/rest/messages/{message}/message.eml"
    assert (await bob.http.get(path, headers=bob.headers)).status_code == 404
    await share(ada, bob, *READ)
    assert b"Subject: Plan" in (await bob.http.get(path, headers=bob.headers)).content
    asked = "query ($m: ID!) { message(by: {id: $m}) { sourceUrl } }"
    url = (await bob(asked, m=message))["message"]["sourceUrl"]
    assert f"user={bob.user.id}&" in url
    assert b"Subject: Plan" in (await bob.http.get(url)).content
    await share(ada, bob, "LOOKUP")
    assert (await bob.http.get(url)).status_code == 404
    assert (await bob.http.get(path, headers=bob.headers)).status_code == 404


async def test_only_the_rights_of_the_grantee_count(ada: Client, bob: Client) -> None:
    box, eve = await team(ada, "Plan"), await make_client(ada.world, ada.http, "eve")
    await share(ada, bob, "READ", "INSERT")
    await share(ada, eve, "LOOKUP", "ADMIN")
    asked = "query ($b: ID!) { mailbox(by: {id: $b}) { myRights acl { grantee { username } } } }"
    both = [{"grantee": {"username": name}} for name in ("bob", "eve")]
    assert (await ada(asked, b=box))["mailbox"]["acl"] == both
    assert (await eve(asked, b=box))["mailbox"]["acl"] == both
    found = (await bob(asked, b=box))["mailbox"]
    assert found == {"myRights": ["LOOKUP", "READ", "INSERT"], "acl": both[:1]}
    own = (await ada(asked, b=box))["mailbox"]["myRights"]
    assert own == [right.value for right in ShareRight]


async def test_who_may_share_and_what(ada: Client, bob: Client) -> None:
    box, eve = await team(ada), await make_client(ada.world, ada.http, "eve")
    assert await share(bob, eve, *READ, id=box) == ["NOT_FOUND"]
    assert await share(ada, "nobody", *READ) == ["NOT_FOUND"]
    assert await share(ada, ada, *READ) == ["VALIDATION"]
    await share(ada, bob, "READ", "WRITE")
    assert await share(bob, eve, *READ, id=box) == ["FORBIDDEN"]
    await share(ada, bob, "READ", "ADMIN")
    assert await share(bob, eve, "READ", "ADMIN", id=box) == []
    assert await share(bob, eve, "READ", "WRITE", id=box) == ["FORBIDDEN"]
    assert await share(bob, bob, *ShareRight, id=box) == ["FORBIDDEN"]
    assert await share(bob, ada, *READ, id=box) == ["VALIDATION"]
    assert await share(eve, bob, "LOOKUP", id=box) == []
    assert await share(bob, eve, id=box) == ["FORBIDDEN"]
    assert await share(bob, bob, id=box) == []  # given up
    assert (await bob("{ viewer { user { sharedMailboxes { totalCount } } } }"))["viewer"] == {
        "user": {"sharedMailboxes": {"totalCount": 0}}
    }
    assert await share(bob, bob, id=box) == ["NOT_FOUND"]


async def test_whom_nobody_names_outside_of_the_domain(
    ada: Client, root: Client, world: Environment
) -> None:
    await team(ada)
    made = await mutate(
        root,
        "userCreate",
        "user { id }",
        username="far",
        address="far@away.example",
        password=PASSWORD,
    )
    far = {"id": made["user"]["id"]}, {"address": "far@away.example"}, {"username": "far"}
    for user in (*far, {"address": "no@away.example"}, {"id": str(global_ids.encode("User", 7))}):
        given: dict[str, Any] = {"mailbox": {"path": "Team"}, "user": user, "rights": READ}
        answer = await mutate(ada, "mailboxShareSet", **given)
        said = [(error["code"], error["path"]) for error in answer["errors"]]
        assert said == [("NOT_FOUND", ["user"])], user
    world.apply_options(
        CommittedOptions(replace(world.options, share_across_domains=True), world.options_position)
    )
    given["user"] = far[1]
    assert (await mutate(ada, "mailboxShareSet", **given))["errors"] == []


async def test_the_journal_of_both_tells_of_a_share(ada: Client, bob: Client) -> None:
    await team(ada)
    box = (await ada.box("Team")).id
    last = {who.user.id: len(await journal(ada.world, who.user.id)) for who in (ada, bob)}
    for rights in (READ, READ, ["READ", "SEEN"], []):
        await share(ada, bob, *rights)
    told = [kind for kind, _ in (await journal(ada.world, ada.user.id))[last[ada.user.id] :]]
    assert told == [ChangeKind.MAILBOX_UPDATED] * 3
    assert (await journal(ada.world, bob.user.id))[last[bob.user.id] :] == [
        (ChangeKind.MAILBOX_CREATED, [box]),
        (ChangeKind.MAILBOX_UPDATED, [box]),
        (ChangeKind.MAILBOX_DELETED, [box]),
    ]
    await examine(ada.world)


async def test_shares_end_with_their_folder_and_with_either_account(
    ada: Client, bob: Client, root: Client
) -> None:
    box, eve = await team(ada, "Plan"), await make_client(ada.world, ada.http, "eve")
    await share(ada, bob, *READ)
    await share(ada, eve, *READ)
    await share(bob, ada, *READ, path="INBOX")
    gone = {"users": {"usernames": ["eve"]}}
    assert (await mutate(root, "userDelete", "deletedIds", **gone))["errors"] == []
    assert await share(bob, eve, *READ, path="INBOX") == ["NOT_FOUND"]
    table = MailboxShare.__tablename__
    asked = f"SELECT user_id FROM {table} ORDER BY user_id"  # noqa: S608 - our own name
    assert len(await rows(ada.world, asked)) == 2
    await mutate(ada, "mailboxDelete", "deletedIds", mailboxes=[{"path": "Team"}])
    kind, keys_ = (await journal(ada.world, bob.user.id))[-1]
    assert (kind, box_id(keys_[0])) == (ChangeKind.MAILBOX_DELETED, box)
    gone = {"users": {"usernames": ["bob"]}}
    assert (await mutate(root, "userDelete", "deletedIds", **gone))["errors"] == []
    assert await rows(ada.world, asked) == []
    assert (await journal(ada.world, ada.user.id))[-1][0] is ChangeKind.MAILBOX_DELETED


async def test_an_administrator_reads_what_is_shared_and_no_more(ada: Client) -> None:
    boss = await make_client(ada.world, ada.http, "boss", role=Role.ADMIN)
    box = await team(ada, "Plan")
    await append_unread_messages(ada, "INBOX", "Private")
    await share(ada, boss, *READ)
    asked = """query ($b: ID!) { mailbox(by: {id: $b}) { messages { nodes {
      subject text sourceUrl thread { subject } } } } }"""
    (told,) = (await boss(asked, b=box))["mailbox"]["messages"]["nodes"]
    assert (told["subject"], told["thread"]["subject"]) == ("Plan", "Plan")
    assert b"Subject: Plan" in (await boss.http.get(told["sourceUrl"])).content
    (message,) = await keys(ada, "INBOX")
    for field in ("subject", "text", "sourceUrl"):
        answer = await boss.raw(
            f"query ($m: ID!) {{ message(by: {{id: $m}}) {{ {field} }} }}", m=message
        )
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN", field
    found = '{ messages(users: {usernames: ["ada"]}, filter: {text: "Plan"}) { totalCount } }'
    assert (await boss.raw(found))["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_folders_shared_are_paged_by_owner(ada: Client, bob: Client) -> None:
    eve = await make_client(ada.world, ada.http, "eve")
    paths = [f"Team/{n}" for n in range(3)]
    for owner in (ada, eve):
        await create_mailboxes(owner, *paths)
        for path in paths:
            await share(owner, bob, "LOOKUP", path=path)
    document = """query ($after: String) { viewer { user {
      sharedMailboxes(first: 2, after: $after) {
      totalCount pageInfo { endCursor hasNextPage } nodes { path owner { username } } } } } }"""
    seen: list[tuple[str, str]] = []
    after, more = None, True
    while more:
        page = (await bob(document, after=after))["viewer"]["user"]["sharedMailboxes"]
        assert page["totalCount"] == 6
        seen += [(one["owner"]["username"], one["path"]) for one in page["nodes"]]
        after, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]
    assert sorted(seen) == sorted((name, path) for name in ("ada", "eve") for path in paths)
    assert [name for name, _ in seen] == [*["ada"] * 3, *["eve"] * 3]


@pytest.mark.parametrize("many", [1, 20])
async def test_lists_cost_the_same_for_many(
    ada: Client, bob: Client, statements: list[str], many: int
) -> None:
    paths = [f"Team/{n}" for n in range(many)]
    await create_mailboxes(ada, *paths)
    for path in paths:
        await append_unread_messages(ada, path, f"Plan {path}")
        await share(ada, bob, *READ, path=path)
    document = """{ viewer { user { sharedMailboxes(first: 50) { totalCount nodes {
      path myRights owner { username } acl { grantee { username } user { username } rights }
      messages(first: 2) { totalCount nodes { subject thread { subject } } } } } } } }"""
    await bob(document)
    del statements[:]
    found = (await bob(document))["viewer"]["user"]["sharedMailboxes"]
    assert len(found["nodes"]) == many
    sent = [one for one in statements if "api_keys" not in one]
    assert len(sent) == COST


async def test_limits_of_sharing(ada: Client, bob: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resolvers.mailboxes.shares.MAX_GRANTEES", 1)
    eve = await make_client(ada.world, ada.http, "eve")
    await team(ada)
    assert await share(ada, bob, *READ) == []
    assert await share(ada, bob, "READ", "SEEN") == []
    assert await share(ada, eve, *READ) == ["LIMIT_REACHED"]
    monkeypatch.setattr("resolvers.mailboxes.shares.MAX_OWNERS", 1)
    assert await share(eve, bob, *READ, path="INBOX") == ["LIMIT_REACHED"]
    assert await share(ada, bob, *READ, path="INBOX") == []


def test_rights_are_written_and_read() -> None:
    every = frozenset(ShareRight)
    assert decode_rights(encode_rights(every)) == every
    assert decode_rights(encode_rights([])) == frozenset()
    assert decode_rights(encode_rights([ShareRight.POST, ShareRight.POST])) == {ShareRight.POST}


async def test_private_annotations_stay_with_their_owner(ada: Client, bob: Client) -> None:
    box = await team(ada)
    for key in ("/private/comment", "/shared/comment"):
        given = {"mailbox": {"path": "Team"}, "key": key, "value": key}
        await mutate(ada, "mailboxMetadataSet", "keys: entries { key }", **given)
    await share(ada, bob, *ShareRight)
    asked = """query ($b: ID!) { mailbox(by: {id: $b}) { metadata(prependPrefix: true) { key }
      metadataEntry(key: "/private/comment") { value } } }"""
    found = {"metadata": [{"key": "/shared/comment"}], "metadataEntry": None}
    assert (await bob(asked, b=box))["mailbox"] == found
