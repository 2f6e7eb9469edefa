"""Test shared mailboxes: who can share, and what grantees and strangers see."""

from dataclasses import replace
from typing import Any

import pytest

from graph.types import global_ids
from models.domains.tables import Domain
from models.events.event_types import EventType
from models.mailboxes.shares import MailboxShare, ShareRight, decode_rights, encode_rights
from models.runtime.environment import CommittedOptions, Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    list_message_ids,
    mailbox_global_id,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.accounts.user_operations import PASSWORD
from tests.support.lists.list_rows import add_rows
from tests.support.operations.mailbox_operations import append_unread_messages, create_mailboxes
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    select_rows,
)

ALL_QUERIES = """
query ($box: ID!, $message: ID!, $thread: ID!, $text: String!) {
  mailbox(by: {id: $box}) { id }
  node(id: $box) { id }
  message(by: {id: $message}) { id }
  uid: message(by: {uid: {mailbox: {id: $box}, uid: 1}}) { id }
  again: node(id: $message) { id }
  thread(by: {id: $thread}) { id }
  whole: node(id: $thread) { id }
  messages(filter: {subject: $text}) { totalCount nodes { id } }
  words: messages(filter: {query: $text}) { totalCount nodes { id } }
  within: messages(filter: {mailbox: {id: $box}}) { totalCount nodes { id } }
  viewer { user { sharedMailboxes { totalCount nodes { id } } mailboxes { nodes { path } } } }
}
"""
MAILBOX_QUERY = """
query ($box: ID!, $text: String!) { mailbox(by: {id: $box}) {
  path myRights user { username } owner { username name address } messageCount
  shares { user { username } grantee { username } rights } parent { path }
  messages { totalCount nodes { subject text mailbox { path } thread { subject messageCount
    mailboxes { nodes { path } } participants { address } messages { nodes { subject } } } } }
  words: messages(filter: {query: $text}) { totalCount nodes { subject snippet } }
  read: messages(filter: {text: $text}) { nodes { subject } }
  masked: messages(filter: {mailboxPatterns: ["*"]}) { nodes { subject } }
} }
"""
NOTHING_VISIBLE = {
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
LIST_STATEMENT_COUNT = 11  # for a list with all nested fields, of any length
OWN_MAILBOXES = [{"path": path} for path in ("INBOX", "Drafts", "Junk", "Sent", "Trash")]


async def query_as_viewer(owner: GraphQLClient, viewer: GraphQLClient) -> Any:
    """Run every query that leads to the first message of the owner's mailbox, as the viewer."""
    (message,) = await list_message_ids(owner, "Team")
    document = "query ($m: ID!) { message(by: {id: $m}) { thread { id } mailbox { id } } }"
    location = (await owner(document, m=message))["message"]
    variables = {"box": location["mailbox"]["id"], "thread": location["thread"]["id"]}
    results = await viewer(ALL_QUERIES, message=message, text="Plan", **variables)
    user = results.pop("viewer")["user"]
    assert user["mailboxes"]["nodes"] == OWN_MAILBOXES
    return results, user["sharedMailboxes"]


async def test_stranger_finds_nothing_by_any_query(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_team_mailbox(ada, "Plan")
    assert await query_as_viewer(ada, bob) == (NOTHING_VISIBLE, {"totalCount": 0, "nodes": []})
    eve = await make_client(ada.environment, ada.http, "eve")
    await share_mailbox(ada, eve, *READ_RIGHTS)
    assert await query_as_viewer(ada, bob) == (NOTHING_VISIBLE, {"totalCount": 0, "nodes": []})


async def test_lookup_right_shows_mailbox_without_messages(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "Plan")
    assert await share_mailbox(ada, bob, "LOOKUP") == []
    results, shared = await query_as_viewer(ada, bob)
    assert shared == {"totalCount": 1, "nodes": [{"id": mailbox_id}]}
    assert results == {**NOTHING_VISIBLE, "mailbox": {"id": mailbox_id}, "node": {"id": mailbox_id}}
    inside = (await bob(MAILBOX_QUERY, box=mailbox_id, text="Plan"))["mailbox"]
    assert inside["myRights"] == ["LOOKUP"]
    assert inside["messages"] == {"totalCount": 0, "nodes": []}


async def test_read_right_shows_only_the_shared_mailbox(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_mailboxes(ada, "Team/Secret")
    await append_unread_messages(ada, "Team", "Plan")
    await append_unread_messages(ada, "Team/Secret", "Re: Plan")
    await append_unread_messages(ada, "INBOX", "Plan elsewhere")
    mailbox_id = mailbox_global_id((await ada.load_mailbox("Team")).id)
    await share_mailbox(ada, bob, *READ_RIGHTS)
    results, shared = await query_as_viewer(ada, bob)
    (message,) = await list_message_ids(ada, "Team")
    for query in ("message", "uid", "again"):
        assert results[query] == {"id": message}
    assert results["thread"] == results["whole"] != None  # noqa: E711 - both exist
    # these search only bob's own mail
    assert results["words"]["totalCount"] == results["messages"]["totalCount"] == 0
    assert shared["totalCount"] == 1
    inside = (await bob(MAILBOX_QUERY, box=mailbox_id, text="Plan"))["mailbox"]
    assert inside.pop("words")["nodes"][0]["subject"] == "Plan"
    assert inside.pop("read") == inside.pop("masked") == {"nodes": [{"subject": "Plan"}]}
    thread = {
        "subject": "Plan",
        "messageCount": 1,
        "mailboxes": {"nodes": [{"path": "Team"}]},
        "participants": [{"address": "carol@example.com"}],
        "messages": {"nodes": [{"subject": "Plan"}]},
    }
    node = {
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
        "messageCount": 1,
        "shares": [
            {
                "user": {"username": "bob"},
                "grantee": {"username": "bob"},
                "rights": ["LOOKUP", "READ"],
            }
        ],
        "parent": None,
        "messages": {"totalCount": 1, "nodes": [node]},
    }


async def test_thread_subject_is_taken_from_shared_messages(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await append_unread_messages(ada, "INBOX", "Plan")
    mailbox_id = await create_team_mailbox(ada)
    reply = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"path": "Team"}}
    await append_unread_messages(ada, "INBOX", "Re: Plan")
    move = await run_mailbox_mutation(
        ada, "messageMove", "movedCount", select={"filter": {"subject": "Re: Plan"}}, to=reply["to"]
    )
    assert move["movedCount"] == 1
    await share_mailbox(ada, bob, *READ_RIGHTS)
    (node,) = (await bob(MAILBOX_QUERY, box=mailbox_id, text="Plan"))["mailbox"]["messages"][
        "nodes"
    ]
    assert (node["thread"]["subject"], node["thread"]["messageCount"]) == ("Re: Plan", 1)


async def test_revoked_share_takes_effect_with_next_request(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Plan")
    await share_mailbox(ada, bob, *ShareRight)
    assert (await query_as_viewer(ada, bob))[0]["message"]
    assert await share_mailbox(ada, bob) == []
    assert await query_as_viewer(ada, bob) == (NOTHING_VISIBLE, {"totalCount": 0, "nodes": []})
    assert (await ada('{ mailbox(by: {path: "Team"}) { shares { rights } } }'))["mailbox"] == {
        "shares": []
    }


async def test_download_of_shared_message_needs_read_right(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Plan")
    (message,) = await list_message_ids(ada, "Team")
    path = f"/rest/messages/{message}/message.eml"
    assert (await bob.http.get(path, headers=bob.headers)).status_code == 404
    await share_mailbox(ada, bob, *READ_RIGHTS)
    assert b"Subject: Plan" in (await bob.http.get(path, headers=bob.headers)).content
    document = "query ($m: ID!) { message(by: {id: $m}) { sourceUrl } }"
    url = (await bob(document, m=message))["message"]["sourceUrl"]
    assert f"user={bob.user.id}&" in url
    assert b"Subject: Plan" in (await bob.http.get(url)).content
    await share_mailbox(ada, bob, "LOOKUP")
    assert (await bob.http.get(url)).status_code == 404
    assert (await bob.http.get(path, headers=bob.headers)).status_code == 404


async def test_grantee_sees_only_own_rights(ada: GraphQLClient, bob: GraphQLClient) -> None:
    mailbox_id = await create_team_mailbox(ada, "Plan")
    eve = await make_client(ada.environment, ada.http, "eve")
    await share_mailbox(ada, bob, "READ", "INSERT")
    await share_mailbox(ada, eve, "LOOKUP", "ADMIN")
    document = (
        "query ($b: ID!) { mailbox(by: {id: $b}) { myRights shares { grantee { username } } } }"
    )
    all_entries = [{"grantee": {"username": name}} for name in ("bob", "eve")]
    assert (await ada(document, b=mailbox_id))["mailbox"]["shares"] == all_entries
    assert (await eve(document, b=mailbox_id))["mailbox"]["shares"] == all_entries
    bob_view = (await bob(document, b=mailbox_id))["mailbox"]
    assert bob_view == {"myRights": ["LOOKUP", "READ", "INSERT"], "shares": all_entries[:1]}
    owner_rights = (await ada(document, b=mailbox_id))["mailbox"]["myRights"]
    assert owner_rights == [right.value for right in ShareRight]


async def test_rights_needed_to_share_a_mailbox(ada: GraphQLClient, bob: GraphQLClient) -> None:
    mailbox_id = await create_team_mailbox(ada)
    eve = await make_client(ada.environment, ada.http, "eve")
    assert await share_mailbox(bob, eve, *READ_RIGHTS, id=mailbox_id) == ["NOT_FOUND"]
    assert await share_mailbox(ada, "nobody", *READ_RIGHTS) == ["NOT_FOUND"]
    assert await share_mailbox(ada, ada, *READ_RIGHTS) == ["VALIDATION"]
    await share_mailbox(ada, bob, "READ", "WRITE")
    assert await share_mailbox(bob, eve, *READ_RIGHTS, id=mailbox_id) == ["FORBIDDEN"]
    await share_mailbox(ada, bob, "READ", "ADMIN")
    assert await share_mailbox(bob, eve, "READ", "ADMIN", id=mailbox_id) == []
    assert await share_mailbox(bob, eve, "READ", "WRITE", id=mailbox_id) == ["FORBIDDEN"]
    assert await share_mailbox(bob, bob, *ShareRight, id=mailbox_id) == ["FORBIDDEN"]
    assert await share_mailbox(bob, ada, *READ_RIGHTS, id=mailbox_id) == ["VALIDATION"]
    assert await share_mailbox(eve, bob, "LOOKUP", id=mailbox_id) == []
    assert await share_mailbox(bob, eve, id=mailbox_id) == ["FORBIDDEN"]
    assert await share_mailbox(bob, bob, id=mailbox_id) == []  # bob gives up his share
    assert (await bob("{ viewer { user { sharedMailboxes { totalCount } } } }"))["viewer"] == {
        "user": {"sharedMailboxes": {"totalCount": 0}}
    }
    assert await share_mailbox(bob, bob, id=mailbox_id) == ["NOT_FOUND"]


async def test_share_across_domains_needs_setting(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await create_team_mailbox(ada)
    created = await run_mailbox_mutation(
        root,
        "userCreate",
        "user { id }",
        username="far",
        address="far@away.example",
        password=PASSWORD,
    )
    references = {"id": created["user"]["id"]}, {"address": "far@away.example"}, {"username": "far"}
    for user in (
        *references,
        {"address": "no@away.example"},
        {"id": str(global_ids.encode("User", 7))},
    ):
        arguments: dict[str, Any] = {
            "mailbox": {"path": "Team"},
            "user": user,
            "rights": READ_RIGHTS,
        }
        answer = await run_mailbox_mutation(ada, "mailboxShareSet", **arguments)
        errors = [(error["code"], error["path"]) for error in answer["errors"]]
        assert errors == [("NOT_FOUND", ["user"])], user
    environment.use_options_unless_outdated(
        CommittedOptions(
            replace(environment.options, share_across_domains=True), environment.options_position
        )
    )
    arguments["user"] = references[1]
    assert (await run_mailbox_mutation(ada, "mailboxShareSet", **arguments))["errors"] == []


async def test_share_changes_are_in_both_journals(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_team_mailbox(ada)
    mailbox_id = (await ada.load_mailbox("Team")).id
    entry_counts = {
        client.user.id: len(await load_journal_entries(ada.environment, client.user.id))
        for client in (ada, bob)
    }
    for rights in (READ_RIGHTS, READ_RIGHTS, ["READ", "SEEN"], []):
        await share_mailbox(ada, bob, *rights)
    kinds = [
        kind
        for kind, _ in (await load_journal_entries(ada.environment, ada.user.id))[
            entry_counts[ada.user.id] :
        ]
    ]
    assert kinds == [EventType.MAILBOX_UPDATED] * 3
    assert (await load_journal_entries(ada.environment, bob.user.id))[
        entry_counts[bob.user.id] :
    ] == [
        (EventType.MAILBOX_CREATED, [mailbox_id]),
        (EventType.MAILBOX_UPDATED, [mailbox_id]),
        (EventType.MAILBOX_DELETED, [mailbox_id]),
    ]
    await assert_store_consistent(ada.environment)


async def test_shares_are_deleted_with_mailbox_or_account(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "Plan")
    eve = await make_client(ada.environment, ada.http, "eve")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    await share_mailbox(ada, eve, *READ_RIGHTS)
    await share_mailbox(bob, ada, *READ_RIGHTS, path="INBOX")
    user_selection = {"users": {"usernames": ["eve"]}}
    assert (await run_mailbox_mutation(root, "userDelete", "deletedIds", **user_selection))[
        "errors"
    ] == []
    assert await share_mailbox(bob, eve, *READ_RIGHTS, path="INBOX") == ["NOT_FOUND"]
    table = MailboxShare.__tablename__
    query = f"SELECT user_id FROM {table} ORDER BY user_id"  # noqa: S608 - own table name
    assert len(await select_rows(ada.environment, query)) == 2
    await run_mailbox_mutation(ada, "mailboxDelete", "deletedIds", mailboxes=[{"path": "Team"}])
    kind, mailbox_ids = (await load_journal_entries(ada.environment, bob.user.id))[-1]
    assert (kind, mailbox_global_id(mailbox_ids[0])) == (EventType.MAILBOX_DELETED, mailbox_id)
    user_selection = {"users": {"usernames": ["bob"]}}
    assert (await run_mailbox_mutation(root, "userDelete", "deletedIds", **user_selection))[
        "errors"
    ] == []
    assert await select_rows(ada.environment, query) == []
    assert (await load_journal_entries(ada.environment, ada.user.id))[-1][
        0
    ] is EventType.MAILBOX_DELETED


async def test_admin_reads_only_the_shared_mailbox(ada: GraphQLClient) -> None:
    admin = await make_client(ada.environment, ada.http, "boss", role=Role.ADMIN)
    mailbox_id = await create_team_mailbox(ada, "Plan")
    await append_unread_messages(ada, "INBOX", "Private")
    await share_mailbox(ada, admin, *READ_RIGHTS)
    document = """query ($b: ID!) { mailbox(by: {id: $b}) { messages { nodes {
      subject text sourceUrl thread { subject } } } } }"""
    (node,) = (await admin(document, b=mailbox_id))["mailbox"]["messages"]["nodes"]
    assert (node["subject"], node["thread"]["subject"]) == ("Plan", "Plan")
    assert b"Subject: Plan" in (await admin.http.get(node["sourceUrl"])).content
    (message,) = await list_message_ids(ada, "INBOX")
    for field in ("subject", "text", "sourceUrl"):
        answer = await admin.execute(
            f"query ($m: ID!) {{ message(by: {{id: $m}}) {{ {field} }} }}", m=message
        )
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN", field
    search_document = (
        '{ messages(users: {usernames: ["ada"]}, filter: {text: "Plan"}) { totalCount } }'
    )
    assert (await admin.execute(search_document))["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_shared_mailboxes_are_paged_by_owner(ada: GraphQLClient, bob: GraphQLClient) -> None:
    eve = await make_client(ada.environment, ada.http, "eve")
    paths = [f"Team/{n}" for n in range(3)]
    for owner in (ada, eve):
        await create_mailboxes(owner, *paths)
        for path in paths:
            await share_mailbox(owner, bob, "LOOKUP", path=path)
    document = """query ($after: String) { viewer { user {
      sharedMailboxes(first: 2, after: $after) {
      totalCount pageInfo { endCursor hasNextPage } nodes { path owner { username } } } } } }"""
    entries: list[tuple[str, str]] = []
    after, has_next = None, True
    while has_next:
        page = (await bob(document, after=after))["viewer"]["user"]["sharedMailboxes"]
        assert page["totalCount"] == 6
        entries += [(mailbox["owner"]["username"], mailbox["path"]) for mailbox in page["nodes"]]
        after, has_next = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]
    assert sorted(entries) == sorted((name, path) for name in ("ada", "eve") for path in paths)
    assert [name for name, _ in entries] == [*["ada"] * 3, *["eve"] * 3]


@pytest.mark.parametrize("mailbox_count", [1, 20])
async def test_shared_list_statement_count_is_independent_of_mailboxes(
    ada: GraphQLClient, bob: GraphQLClient, statements: list[str], mailbox_count: int
) -> None:
    paths = [f"Team/{n}" for n in range(mailbox_count)]
    await create_mailboxes(ada, *paths)
    for path in paths:
        await append_unread_messages(ada, path, f"Plan {path}")
        await share_mailbox(ada, bob, *READ_RIGHTS, path=path)
    document = """{ viewer { user { sharedMailboxes(first: 50) { totalCount nodes {
      path myRights owner { username } shares { grantee { username } user { username } rights }
      messages(first: 2) { totalCount nodes { subject thread { subject } } } } } } } }"""
    await bob(document)
    del statements[:]
    connection = (await bob(document))["viewer"]["user"]["sharedMailboxes"]
    assert len(connection["nodes"]) == mailbox_count
    counted = [statement for statement in statements if "api_keys" not in statement]
    assert len(counted) == LIST_STATEMENT_COUNT


async def test_share_over_limit_of_grantees_or_owners_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.mailboxes.shares.MAX_GRANTEES", 1)
    eve = await make_client(ada.environment, ada.http, "eve")
    await create_team_mailbox(ada)
    assert await share_mailbox(ada, bob, *READ_RIGHTS) == []
    assert await share_mailbox(ada, bob, "READ", "SEEN") == []
    assert await share_mailbox(ada, eve, *READ_RIGHTS) == ["LIMIT_REACHED"]
    monkeypatch.setattr("resolvers.mailboxes.shares.MAX_OWNERS", 1)
    assert await share_mailbox(eve, bob, *READ_RIGHTS, path="INBOX") == ["LIMIT_REACHED"]
    assert await share_mailbox(ada, bob, *READ_RIGHTS, path="INBOX") == []


def test_rights_are_encoded_and_decoded() -> None:
    all_rights = frozenset(ShareRight)
    assert decode_rights(encode_rights(all_rights)) == all_rights
    assert decode_rights(encode_rights([])) == frozenset()
    assert decode_rights(encode_rights([ShareRight.POST, ShareRight.POST])) == {ShareRight.POST}


async def test_private_annotations_are_hidden_from_grantee(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada)
    for key in ("/private/comment", "/shared/comment"):
        arguments = {"mailbox": {"path": "Team"}, "key": key, "value": key}
        await run_mailbox_mutation(
            ada, "mailboxAnnotationSet", "keys: annotations { key }", **arguments
        )
    await share_mailbox(ada, bob, *ShareRight)
    document = """query ($b: ID!) { mailbox(by: {id: $b}) { annotations(prependPrefix: true) { key }
      annotation(key: "/private/comment") { value } } }"""
    expected = {"annotations": [{"key": "/shared/comment"}], "annotation": None}
    assert (await bob(document, b=mailbox_id))["mailbox"] == expected


SHARED_MESSAGE = """query ($box: ID!, $message: ID!) {
  mailbox(by: {id: $box}) {
    annotations(prependPrefix: true) { key } private: annotation(key: "/private/comment") { key }
    shares { grantee { username } } }
  message(by: {id: $message}) { subject user { username } }
}"""


@pytest.mark.parametrize("role", [Role.USER, Role.DOMAIN_ADMIN, Role.ADMIN])
async def test_share_shows_private_annotations_and_owner_to_administrators_only(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, role: Role
) -> None:
    await add_rows(environment, Domain, 1, name="other.example")
    grantee = await make_client(environment, ada.http, "rita")
    if role is Role.DOMAIN_ADMIN:  # of another domain than the owner's
        permissions = list(AdminPermission)
        domains = ("other.example",)
        grantee = await make_domain_admin(
            environment, ada.http, "gail", permissions, domains=domains
        )
    elif role is Role.ADMIN:
        grantee = await make_client(environment, ada.http, "gina", role=Role.ADMIN)
    mailbox_id = await create_team_mailbox(ada, "Plans")
    for key in ("/private/comment", "/shared/comment"):
        arguments = {"mailbox": {"path": "Team"}, "key": key, "value": "x"}
        answer = await run_mailbox_mutation(
            ada, "mailboxAnnotationSet", "annotations { key }", **arguments
        )
        assert answer["errors"] == []
    assert await share_mailbox(ada, bob, *READ_RIGHTS) == []
    assert await share_mailbox(ada, grantee, *READ_RIGHTS) == []
    (message_id,) = await list_message_ids(ada, "Team")
    seen = await grantee(SHARED_MESSAGE, box=mailbox_id, message=message_id)
    is_administrator = role is Role.ADMIN
    assert seen["message"] == {
        "subject": "Plans",
        "user": {"username": "ada"} if is_administrator else None,
    }
    keys = [entry["key"] for entry in seen["mailbox"]["annotations"]]
    private_keys = ["/private/comment"] if is_administrator else []
    assert keys == [*private_keys, "/shared/comment"]
    assert (seen["mailbox"]["private"] is not None) is is_administrator
    grantees = {share["grantee"]["username"] for share in seen["mailbox"]["shares"]}
    others = {"bob"} if is_administrator else set[str]()
    assert grantees == {grantee.user.username} | others
