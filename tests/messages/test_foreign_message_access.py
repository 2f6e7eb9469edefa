"""Test access to other users' mail:

metadata for administrators, content only for ROOT, with a log entry.
"""

from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import encode
from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case

METADATA_QUERY = """
query ($name: String!) {
  user(by: {username: $name}) {
    mailboxes { nodes { path messageCount } }
    messages { totalCount nodes {
      id size imap { flags } receivedAt from { address } mailbox { path } } }
  }
}"""
CONTENT_FIELDS = (
    "subject", "preview", "text", "html", "rawSource", "sourceUrl", "mimeStructure { section }",
    "rawHeader", "attachments { filename }", 'bodyPart(section: "1")', 'header(name: "To")',
    "priority", "thread { subject }",
)  # fmt: skip
REFUSED_FIELDS = ("subject", "preview", "sourceUrl", "attachments", "mimeStructure")
PAGE_WITH_CONTENT = """{ user(by: {username: "ada"}) { messages { nodes {
  id size subject preview sourceUrl attachments { url } mimeStructure { url }
  thread { id subject } } } } }"""


@pytest.fixture
async def message_id(ada: GraphQLClient) -> str:
    return encode("Message", (await deliver_to(ada, "Between us")).message_id)


async def read_field(client: GraphQLClient, message_id: str, field: str) -> Any:
    """Return the responses of each query that leads to a field of a message."""
    templates = (
        "query ($id: ID!) { message(by: {id: $id}) { FIELD } }",
        "query ($id: ID!) { node(id: $id) { ... on Message { FIELD } } }",
        '{ user(by: {username: "ada"}) { messages { nodes { FIELD } } } }',
        """{ user(by: {username: "ada"}) { mailbox(by: {path: "INBOX"}) {
            messages(filter: {seen: false}) { nodes { FIELD } } } } }""",
    )
    documents = [template.replace("FIELD", field) for template in templates]
    # A repeated document is compiled.
    repeated_documents = [document for document in documents for _ in range(2)]
    return [await client.execute(document, id=message_id) for document in repeated_documents]


async def make_administrators(
    environment: Environment, http: httpx.AsyncClient
) -> list[GraphQLClient]:
    """Create the administrators that see Ada's mail as metadata."""
    permissions = [AdminPermission.IMPERSONATE]
    return [
        await make_client(environment, http, "over", role=Role.ADMIN),
        await make_domain_admin(environment, http, "here", permissions),
    ]


async def make_strangers(environment: Environment, http: httpx.AsyncClient) -> list[GraphQLClient]:
    """Create users that see nothing of Ada's mail."""
    await make_client(environment, http, "eve")
    other_admin = await make_client(environment, http, "dan", role=Role.ADMIN)
    document = """mutation { userCreate(input: {
        username: "x@example.net", passwordDisabled: true}) { errors { message } } }"""
    assert not (await other_admin(document))["userCreate"]["errors"]
    permissions = [AdminPermission.IMPERSONATE]
    return [
        await make_client(environment, http, "mallory"),
        await make_domain_admin(environment, http, "unlicensed"),
        await make_domain_admin(environment, http, "afar", permissions, domains=["example.net"]),
    ]


async def test_admin_sees_mailboxes_and_message_metadata(
    environment: Environment, http: httpx.AsyncClient, message_id: str
) -> None:
    for client in await make_administrators(environment, http):
        for _ in range(2):
            user = (await client(METADATA_QUERY, name="ada"))["user"]
            inbox = next(
                mailbox for mailbox in user["mailboxes"]["nodes"] if mailbox["path"] == "INBOX"
            )
            assert inbox["messageCount"] == 1
            (node,) = user["messages"]["nodes"]
            assert node["id"] == message_id
            assert node["from"]["address"] == "carol@example.com"
            assert user["messages"]["totalCount"] == 1
    assert not await read_mail_events(environment)


async def test_admin_cannot_read_message_content(
    environment: Environment, http: httpx.AsyncClient, message_id: str
) -> None:
    administrators = await make_administrators(environment, http)
    for case in each_case(CONTENT_FIELDS):
        with case as field:
            for client in administrators:
                for answer in await read_field(client, message_id, field):
                    assert {error["extensions"]["code"] for error in answer["errors"]} == {
                        "FORBIDDEN"
                    }
                    assert "Between us" not in str(answer)
    for client in administrators:
        path = f"/rest/messages/{message_id}/message.eml"
        assert (await http.get(path, headers=client.headers)).status_code == 403


async def test_refused_fields_leave_the_other_fields_of_the_page(
    environment: Environment, http: httpx.AsyncClient, message_id: str
) -> None:
    for client in await make_administrators(environment, http):
        for _ in range(2):  # a repeated document is compiled
            answer = await client.execute(PAGE_WITH_CONTENT)
            (node,) = answer["data"]["user"]["messages"]["nodes"]
            thread = node.pop("thread")
            assert (thread["subject"], bool(thread["id"])) == (None, True)
            assert (node.pop("id"), node.pop("size") > 0) == (message_id, True)
            assert node == dict.fromkeys(REFUSED_FIELDS)
            refused_paths = {tuple(error["path"][4:]) for error in answer["errors"]}
            assert refused_paths == {*((name,) for name in REFUSED_FIELDS), ("thread", "subject")}
            assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}


async def test_admin_reads_own_message_next_to_foreign_one(
    environment: Environment, http: httpx.AsyncClient, message_id: str
) -> None:
    admin, _ = await make_administrators(environment, http)
    own_id = encode("Message", (await deliver_to(admin, "To myself")).message_id)
    document = "query ($ids: [ID!]!) { nodes(ids: $ids) { ... on Message { text } } }"
    answer = await admin.execute(document, ids=[own_id, message_id])
    assert answer["data"]["nodes"][0]["text"].strip() == "Hi there."
    assert answer["data"]["nodes"][1]["text"] is None
    assert [error["path"] for error in answer["errors"]] == [["nodes", 1, "text"]]


async def test_stranger_sees_no_mail(
    environment: Environment, http: httpx.AsyncClient, message_id: str
) -> None:
    for client in await make_strangers(environment, http):
        for field in ("id", "subject", "text"):
            answers = await read_field(client, message_id, field)
            assert message_id not in str(answers)
            assert "Between us" not in str(answers)
        user = (await client.execute(METADATA_QUERY, name="ada"))["data"]["user"]
        if user is not None:  # a domain administrator without IMPERSONATE sees the account
            assert user["mailboxes"]["nodes"] == []
            assert user["messages"]["totalCount"] == 0
        path = f"/rest/messages/{message_id}/message.eml"
        assert (await http.get(path, headers=client.headers)).status_code == 404


async def read_mail_events(environment: Environment) -> list[Any]:
    """Load the entries of the security log for mail that was read."""
    query = select(col(SecurityEvent.user_id), col(SecurityEvent.by), col(SecurityEvent.count))
    return list(
        await environment.database.read(query.where(col(SecurityEvent.action) == "MESSAGES_READ"))
    )


@pytest.mark.parametrize("field", CONTENT_FIELDS)
async def test_read_by_root_is_logged_for_owner(
    root: GraphQLClient, ada: GraphQLClient, message_id: str, field: str
) -> None:
    answers = await read_field(root, message_id, field)
    assert not any("errors" in answer for answer in answers), answers
    (event,) = await read_mail_events(root.environment)
    assert event.user_id == ada.user.id
    assert event.by
    assert event.count >= len(answers)


async def test_download_by_root_is_logged_for_owner(
    root: GraphQLClient, http: httpx.AsyncClient, message_id: str
) -> None:
    path = f"/rest/messages/{message_id}/message.eml"
    response = await http.get(path, headers=root.headers)
    assert b"Between us" in response.content
    assert len(await read_mail_events(root.environment)) == 1


async def test_read_by_root_in_dry_run_is_logged_for_owner(
    root: GraphQLClient, ada: GraphQLClient, message_id: str
) -> None:
    document = """mutation ($id: ID!) {
        messageUpdate(input: {
            select: {ids: [$id]}, set: {seen: true}, options: {validateOnly: true}
        }) { messages { subject text } errors { message } } }"""
    payload = (await root(document, id=message_id))["messageUpdate"]
    assert payload["messages"][0]["subject"] == "Between us"
    await authentication.wait_for_background_tasks(root.environment)
    (event,) = await read_mail_events(root.environment)
    assert (event.user_id, event.by) == (ada.user.id, "key root")


async def test_own_read_is_not_logged(ada: GraphQLClient, message_id: str) -> None:
    await read_field(ada, message_id, "subject text")
    assert not await read_mail_events(ada.environment)
