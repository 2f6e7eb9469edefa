"""Attachments by their global ID."""

from typing import Any

import httpx
import pytest

from graph.http.download_urls import attachment_id
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail.multipart_message import ATTACHMENTS, build_message
from tests.support.operations.quarantine_operations import (
    make_mixed_message,
    quarantine_message,
    set_permissions_of_ada,
)

FIELDS = """__typename id section sha256 filename contentType disposition transferEncoding inline
  contentId size text"""
LIST_QUERY = f"{{ viewer {{ user {{ messages {{ nodes {{ attachments {{ {FIELDS} }} }} }} }} }} }}"
NODES_QUERY = f"query ($ids: [ID!]!) {{ nodes(ids: $ids) {{ ... on Attachment {{ {FIELDS} }} }} }}"
QUARANTINE_QUERY = f"""{{ viewer {{ user {{ quarantine {{
  nodes {{ attachments {{ {FIELDS} }} }} }} }} }} }}"""
URL_QUERY = "query ($id: ID!) { node(id: $id) { ... on Attachment { url } } }"


async def list_attachments(client: GraphQLClient) -> list[dict[str, Any]]:
    user = (await client(LIST_QUERY))["viewer"]["user"]
    return [item for message in user["messages"]["nodes"] for item in message["attachments"]]


async def load_nodes(client: GraphQLClient, attachments: list[dict[str, Any]]) -> list[Any]:
    ids = [attachment["id"] for attachment in attachments]
    return list((await client(NODES_QUERY, ids=ids))["nodes"])


async def test_nodes_are_the_attachments_of_the_messages(ada: GraphQLClient) -> None:
    for size in (3, 1):
        await deliver_to(ada, build_message(ATTACHMENTS[:size]))
    attachments = await list_attachments(ada)
    assert len(attachments) == 4
    reordered = [*reversed(attachments), attachments[0]]
    assert await load_nodes(ada, reordered) == reordered
    url = (await ada(URL_QUERY, id=attachments[0]["id"]))["node"]["url"]
    assert len((await ada.http.get(url)).content) == attachments[0]["size"]


async def test_number_of_statements_does_not_depend_on_number_of_messages(
    ada: GraphQLClient, statements: Any
) -> None:
    for _ in range(20):
        await deliver_to(ada, build_message(ATTACHMENTS[:1]))
    attachments = await list_attachments(ada)
    document = "query ($ids: [ID!]!) { nodes(ids: $ids) { id ... on Attachment { size } } }"
    counts = set()
    for ids in ([attachments[0]["id"]], [attachment["id"] for attachment in attachments]):
        await ada(document, ids=ids)
        statements.clear()
        assert len((await ada(document, ids=ids))["nodes"]) == len(ids)
        counts.add(len(statements))
    assert len(counts) == 1, counts


async def test_unknown_and_malformed_ids(ada: GraphQLClient) -> None:
    message_id = (await deliver_to(ada, build_message(ATTACHMENTS[:1]))).message_id
    ids = [attachment_id(message_id, 1), attachment_id(message_id + 1, 0), "att_AAAA"]
    answer = await ada.execute(NODES_QUERY, ids=ids)
    assert answer["data"] == {"nodes": [None, None, None]}
    (error,) = answer["errors"]
    assert error["path"] == ["nodes", 2]
    assert error["extensions"]["code"] == "BAD_ID"


async def test_other_users_see_no_attachment(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    await deliver_to(ada, build_message(ATTACHMENTS[:1]))
    attachments = await list_attachments(ada)
    over = await make_client(environment, http, "over", role=Role.ADMIN)
    here = await make_domain_admin(environment, http, "here", [AdminPermission.IMPERSONATE])
    for client in (bob, over, here):
        assert await load_nodes(client, attachments) == [None]
        assert (await client(URL_QUERY, id=attachments[0]["id"])) == {"node": None}
    assert await load_nodes(root, attachments) == attachments
    events = "{ viewer { user { securityLog { nodes { action } } } } }"
    log = (await ada(events))["viewer"]["user"]["securityLog"]["nodes"]
    assert "MESSAGES_READ" in {event["action"] for event in log}


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_attachments_in_quarantine_need_the_permission(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, is_allowed: bool
) -> None:
    await quarantine_message(ada, make_mixed_message())
    (item,) = (await ada(QUARANTINE_QUERY))["viewer"]["user"]["quarantine"]["nodes"]
    attachments = item["attachments"]
    assert attachments
    await set_permissions_of_ada(
        root, "QUARANTINE", *(["QUARANTINE_ATTACHMENTS"] if is_allowed else [])
    )
    assert await load_nodes(ada, attachments) == (
        attachments if is_allowed else [None] * len(attachments)
    )
    assert await load_nodes(bob, attachments) == [None] * len(attachments)
