"""The list of the API keys that an administrator has created for others, or without a user."""

from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import GraphQLClient

CREATE = """mutation ($input: ApiKeyCreateInput!) { apiKeyCreate(input: $input) {
  apiKey { id } errors { code message path } } }"""
KEYS = """query ($filter: ApiKeyFilter) { apiKeys(filter: $filter) {
  nodes { id name } totalCount } }"""
DELETE = """mutation ($keys: [ApiKeyRef!]!) { apiKeyDelete(input: {apiKeys: $keys}) {
  deletedIds errors { message } } }"""


@pytest.fixture
async def keys(
    admin_client: GraphQLClient, root: GraphQLClient, ada: GraphQLClient
) -> dict[str, str]:
    """The IDs of keys by name: those of the administrator "over", and one of the platform."""
    inputs: dict[str, dict[str, Any]] = {
        "platform": {"role": "ADMIN"},
        "for ada": {"user": {"id": global_ids.encode("User", ada.user.id)}},
        "own": {"user": {"id": global_ids.encode("User", admin_client.user.id)}},
    }
    ids = {}
    for name, values in inputs.items():
        payload = (await admin_client(CREATE, input={"name": name, **values}))["apiKeyCreate"]
        assert payload["errors"] == []
        ids[name] = payload["apiKey"]["id"]
    payload = (await root(CREATE, input={"name": "of root", "role": "ADMIN"}))["apiKeyCreate"]
    return {**ids, "of root": payload["apiKey"]["id"]}


async def names_of(client: GraphQLClient, **maker: str) -> list[str]:
    page = (await client(KEYS, filter={"maker": maker}))["apiKeys"]
    assert page["totalCount"] == len(page["nodes"])
    return sorted(node["name"] for node in page["nodes"])


async def test_keys_of_a_maker_are_listed_and_deleted(
    keys: dict[str, str], root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    username = admin_client.user.username
    assert await names_of(root, username=username) == ["for ada", "platform"]
    assert await names_of(admin_client, username=username) == ["for ada", "platform"]
    refs = [{"id": keys[name]} for name in ("for ada", "platform")]
    payload = (await root(DELETE, keys=refs))["apiKeyDelete"]
    assert payload["errors"] == []
    assert len(payload["deletedIds"]) == 2
    assert await names_of(root, username=username) == []


async def test_deleted_maker_is_named_by_its_id(
    keys: dict[str, str], root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    assert keys
    user_id = global_ids.encode("User", admin_client.user.id)
    payload = await root(
        "mutation ($id: ID!) { userDelete(input: {users: {ids: [$id]}}) { errors { message } } }",
        id=user_id,
    )
    assert payload["userDelete"]["errors"] == []
    assert "platform" in await names_of(root, id=user_id)
    assert await names_of(root, username=admin_client.user.username) == []


async def test_others_find_no_keys_by_their_maker(
    keys: dict[str, str], ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient
) -> None:
    assert keys
    user_id = global_ids.encode("User", admin_client.user.id)
    assert await names_of(bob, id=user_id) == []
    assert await names_of(ada, id=user_id) == ["for ada"]  # its own key
    assert await names_of(ada, username="nobody") == []
