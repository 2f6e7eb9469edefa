"""Other people's mail: records for administrators, contents for nobody but ROOT, who is noted."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import encode
from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import Client, make_client, receive
from tests.support.accounts.domain_admins import make_domain_admin

RECORDS = """
query ($name: String!) {
  user(by: {username: $name}) {
    mailboxes { path total }
    messages { totalCount nodes { id size flags receivedAt from { address } mailbox { path } } }
  }
}"""
CONTENTS = (
    "subject", "intro", "text", "html", "source", "sourceUrl", "structure { section }",
    "headersText", "attachments { filename }", 'bodyPart(section: "1")', 'header(name: "To")',
    "thread { subject }",
)  # fmt: skip


@pytest.fixture
async def letter(ada: Client) -> str:
    return encode("Message", (await receive(ada, "Between us")).message_id)


async def read_by(client: Client, letter: str, field: str) -> Any:
    """The answer to each of the roads to a field of a message."""
    roads = (
        "query ($id: ID!) { message(by: {id: $id}) { FIELD } }",
        "query ($id: ID!) { node(id: $id) { ... on Message { FIELD } } }",
        '{ user(by: {username: "ada"}) { messages { nodes { FIELD } } } }',
        """{ user(by: {username: "ada"}) { mailbox(by: {path: "INBOX"}) {
            messages(filter: {seen: false}) { nodes { FIELD } } } } }""",
    )
    documents = [road.replace("FIELD", field) for road in roads]
    asked = [document for document in documents for _ in range(2)]  # compiled the second time
    return [await client.raw(document, id=letter) for document in asked]


async def administrators(world: Environment, http: httpx.AsyncClient) -> list[Client]:
    """Those who see Ada's mail as records."""
    permissions = [AdminPermission.LOGIN_AS]
    return [
        await make_client(world, http, "over", role=Role.ADMIN),
        await make_domain_admin(world, http, "here", permissions),
    ]


async def strangers(world: Environment, http: httpx.AsyncClient) -> list[Client]:
    """Those who see nothing of it."""
    await make_client(world, http, "eve")
    elsewhere = await make_client(world, http, "dan", role=Role.ADMIN)
    document = """mutation { userCreate(input: {
        username: "x@example.net", passwordDisabled: true}) { errors { message } } }"""
    assert not (await elsewhere(document))["userCreate"]["errors"]
    permissions = [AdminPermission.LOGIN_AS]
    return [
        await make_client(world, http, "mallory"),
        await make_domain_admin(world, http, "unlicensed"),
        await make_domain_admin(world, http, "afar", permissions, domains=["example.net"]),
    ]


async def test_administrators_see_folders_and_messages_as_records(
    world: Environment, http: httpx.AsyncClient, letter: str
) -> None:
    for client in await administrators(world, http):
        for _ in range(2):
            seen = (await client(RECORDS, name="ada"))["user"]
            inbox = next(box for box in seen["mailboxes"] if box["path"] == "INBOX")
            assert inbox["total"] == 1
            (node,) = seen["messages"]["nodes"]
            assert node["id"] == letter
            assert node["from"]["address"] == "carol@example.com"
            assert seen["messages"]["totalCount"] == 1
    assert not await events(world)


@pytest.mark.parametrize("field", CONTENTS)
async def test_nobody_but_root_reads_what_is_in_them(
    world: Environment, http: httpx.AsyncClient, letter: str, field: str
) -> None:
    for client in await administrators(world, http):
        for answer in await read_by(client, letter, field):
            assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
            assert "Between us" not in str(answer)
    bytes_ = await http.get(f"/rest/messages/{letter}/message.eml", headers=client.headers)
    assert bytes_.status_code == 403


async def test_ones_own_are_read_beside_others(
    world: Environment, http: httpx.AsyncClient, letter: str
) -> None:
    over, _ = await administrators(world, http)
    own = encode("Message", (await receive(over, "To myself")).message_id)
    document = "query ($ids: [ID!]!) { nodes(ids: $ids) { ... on Message { text } } }"
    answer = await over.raw(document, ids=[own, letter])
    assert answer["data"]["nodes"][0]["text"].strip() == "Hi there."
    assert answer["data"]["nodes"][1]["text"] is None
    assert [error["path"] for error in answer["errors"]] == [["nodes", 1, "text"]]


async def test_strangers_see_nothing(
    world: Environment, http: httpx.AsyncClient, letter: str
) -> None:
    for client in await strangers(world, http):
        for field in ("id", "subject", "text"):
            answers = await read_by(client, letter, field)
            assert letter not in str(answers)
            assert "Between us" not in str(answers)
        seen = (await client.raw(RECORDS, name="ada"))["data"]["user"]
        if seen is not None:  # a domain's administrator without LOGIN_AS sees the account
            assert seen["mailboxes"] == []
            assert seen["messages"]["totalCount"] == 0
        path = f"/rest/messages/{letter}/message.eml"
        assert (await http.get(path, headers=client.headers)).status_code == 404


async def events(world: Environment) -> list[Any]:
    """What the security log has of mail that was read."""
    asked = select(col(SecurityEvent.user_id), col(SecurityEvent.by), col(SecurityEvent.count))
    return list(await world.database.read(asked.where(col(SecurityEvent.action) == "read mail")))


@pytest.mark.parametrize("field", CONTENTS)
async def test_root_reads_and_its_owner_is_told(
    root: Client, ada: Client, letter: str, field: str
) -> None:
    answers = await read_by(root, letter, field)
    assert not any("errors" in answer for answer in answers), answers
    (told,) = await events(root.world)
    assert told.user_id == ada.user.id
    assert told.by
    assert told.count >= len(answers)


async def test_root_reads_bytes_and_its_owner_is_told(
    root: Client, http: httpx.AsyncClient, letter: str
) -> None:
    path = f"/rest/messages/{letter}/message.eml"
    read = await http.get(path, headers=root.headers)
    assert b"Between us" in read.content
    assert len(await events(root.world)) == 1


async def test_ones_own_reading_is_not_noted(ada: Client, letter: str) -> None:
    await read_by(ada, letter, "subject text")
    assert not await events(ada.world)
