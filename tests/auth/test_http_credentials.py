"""Sign-in, token and API key operations over HTTP."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from models.runtime.environment import Environment
from models.runtime.idempotency import IdempotentPayload
from models.store.columns import core_table
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_api_key, make_client
from tests.support.accounts.sign_in_environment import FULL_SCOPES, PASSWORD
from tests.support.clients.http_requests import VIEWER_QUERY, post_document

AUTHENTICATE = """
mutation ($name: String!, $password: String!, $scopes: [Scope!], $ttl: Duration,
          $check: Boolean! = false, $key: String) {
  authenticate(input: {username: $name, password: $password, scopes: $scopes,
      tokenTtl: $ttl, options: {validateOnly: $check, idempotencyKey: $key}}) {
    user { username } scopes passwordChangeRequired token expiresAt
    errors { __typename code message path ... on RateLimitedError { retryAfter } }
  }
}
"""

REVOKE_MUTATION = """
mutation ($tokens: [AccessTokenRef!], $all: Boolean! = false) {
  accessTokenRevoke(input: {accessTokens: $tokens, all: $all}) { revokedCount errors { code path } }
}
"""

API_KEY_CREATE = """
mutation ($name: String!, $role: Role! = USER, $user: UserRef, $key: String) {
  apiKeyCreate(input: {name: $name, role: $role, user: $user, options: {idempotencyKey: $key}}) {
    apiKey { id name role scopes readOnly expiresAt user { username } }
    secret replayed errors { __typename code path }
  }
}
"""

API_KEYS_QUERY = """
query ($first: Int, $after: String) {
  apiKeys(first: $first, after: $after) {
    nodes { name user { username } } totalCount pageInfo { endCursor hasNextPage }
  }
}
"""


@pytest.fixture
async def eve(environment: Environment) -> str:
    """The username of a user with a password."""
    root_context = Context(environment, Viewer(role=Role.ROOT, scopes=FULL_SCOPES))
    await creation_create.create_user(
        root_context, NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    )
    return "eve"


async def sign_in(
    http: httpx.AsyncClient, name: str, password: str = PASSWORD, **extra: Any
) -> Any:
    response = await post_document(http, AUTHENTICATE, name=name, password=password, **extra)
    assert "errors" not in response, response
    return response["data"]["authenticate"]


async def test_token_lifetime_of_zero_is_refused(http: httpx.AsyncClient, eve: str) -> None:
    (error,) = (await sign_in(http, eve, ttl="PT0S"))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["tokenTtl"])


async def test_sign_in_returns_a_token_of_the_user(http: httpx.AsyncClient, eve: str) -> None:
    payload = await sign_in(http, "Eve@Example.org")
    assert payload == {
        "user": {"username": "eve"},
        "scopes": ["FULL"],
        "passwordChangeRequired": False,
        "token": payload["token"],
        "expiresAt": "2030-01-15T00:00:00Z",
        "errors": [],
    }
    viewer = (await post_document(http, VIEWER_QUERY, payload["token"]))["data"]["viewer"]
    assert (viewer["role"], viewer["scopes"], viewer["apiKey"]) == ("USER", ["FULL"], None)
    assert viewer["user"] == {"username": eve}
    assert viewer["token"]["current"] is True


async def test_wrong_password_and_unknown_user_have_equal_responses(
    http: httpx.AsyncClient, eve: str
) -> None:
    wrong_payload = await sign_in(http, eve, "wrong")
    unknown_payload = await sign_in(http, "nobody")
    assert wrong_payload == unknown_payload
    assert [error["__typename"] for error in wrong_payload["errors"]] == [
        "AuthenticationFailedError"
    ]
    assert (wrong_payload["user"], wrong_payload["token"]) == (None, None)


async def test_rate_limit_error_has_retry_after(http: httpx.AsyncClient, eve: str) -> None:
    for _ in range(12):
        await sign_in(http, eve, "wrong")
    (error,) = (await sign_in(http, eve))["errors"]
    assert (error["code"], error["retryAfter"]) == ("RATE_LIMITED", "PT120S")


async def test_validate_only_sign_in_returns_no_token(http: httpx.AsyncClient, eve: str) -> None:
    payload = await sign_in(http, eve, check=True)
    assert (payload["errors"], payload["token"], payload["user"]) == ([], None, {"username": eve})


async def test_sign_in_refuses_idempotency_key(
    http: httpx.AsyncClient, eve: str, environment: Environment
) -> None:
    payload = await sign_in(http, eve, key="k")
    assert [error["path"] for error in payload["errors"]] == [["options", "idempotencyKey"]]
    assert await environment.database.read(select(core_table(IdempotentPayload))) == []


async def test_anonymous_viewer_has_only_the_public_role(http: httpx.AsyncClient) -> None:
    assert (await post_document(http, VIEWER_QUERY))["data"]["viewer"] == {
        "role": "PUBLIC",
        "scopes": [],
        "readOnly": False,
        "user": None,
        "apiKey": None,
        "token": None,
    }


async def test_revoked_token_is_refused(http: httpx.AsyncClient, eve: str) -> None:
    token = (await sign_in(http, eve))["token"]
    anonymous_response = await post_document(http, REVOKE_MUTATION)
    assert anonymous_response["data"]["accessTokenRevoke"] == {"revokedCount": 0, "errors": []}
    unknown_id_response = await post_document(
        http, REVOKE_MUTATION, token, tokens=[{"id": "tok_AAAAAAAAAAE"}]
    )
    assert [
        error["path"] for error in unknown_id_response["data"]["accessTokenRevoke"]["errors"]
    ] == [["accessTokens", "0"]]
    assert (await post_document(http, REVOKE_MUTATION, token, tokens=[]))["data"][
        "accessTokenRevoke"
    ]["revokedCount"] == 0
    assert (await post_document(http, REVOKE_MUTATION, token))["data"]["accessTokenRevoke"][
        "revokedCount"
    ] == 1
    refused_response = await post_document(http, VIEWER_QUERY, token)
    assert [error["extensions"]["code"] for error in refused_response["errors"]] == [
        "UNAUTHENTICATED"
    ]


async def test_key_is_created_used_listed_and_deleted(
    ada: GraphQLClient, http: httpx.AsyncClient
) -> None:
    created = (await ada(API_KEY_CREATE, name="backup"))["apiKeyCreate"]
    assert created["errors"] == []
    assert created["apiKey"]["user"] == {"username": "ada"}
    viewer = (await post_document(http, VIEWER_QUERY, created["secret"]))["data"]["viewer"]
    assert viewer["apiKey"] == {"name": "backup"}
    first_page = (await ada(API_KEYS_QUERY, first=1))["apiKeys"]
    assert first_page["nodes"] == [{"name": "backup", "user": {"username": "ada"}}]
    assert (first_page["totalCount"], first_page["pageInfo"]["hasNextPage"]) == (2, True)
    second_page = (await ada(API_KEYS_QUERY, after=first_page["pageInfo"]["endCursor"]))["apiKeys"]
    assert [node["name"] for node in second_page["nodes"]] == ["ada"]
    delete_mutation = """mutation ($id: ID!) {
      apiKeyDelete(input: {apiKeys: [{id: $id}]}) { deletedIds errors { code } } }"""
    deleted = (await ada(delete_mutation, id=created["apiKey"]["id"]))["apiKeyDelete"]
    assert deleted == {"deletedIds": [created["apiKey"]["id"]], "errors": []}
    assert "errors" in await post_document(http, VIEWER_QUERY, created["secret"])


async def test_key_secret_is_returned_once_and_not_stored(
    ada: GraphQLClient, environment: Environment
) -> None:
    first = (await ada(API_KEY_CREATE, name="k", key="once"))["apiKeyCreate"]
    repeated = (await ada(API_KEY_CREATE, name="k", key="once"))["apiKeyCreate"]
    assert (first["replayed"], repeated["replayed"]) == (False, True)
    assert first["secret"].startswith("mgk_")
    assert repeated["secret"] is None
    assert repeated["apiKey"] == first["apiKey"]
    stored_payloads = await environment.database.read(select(core_table(IdempotentPayload)))
    assert first["secret"] not in repr(stored_payloads)


async def test_user_creates_no_key_for_other_user_or_higher_role(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    for user in ({"username": "bob"}, {"address": "bob@example.org"}, {"username": "nobody"}):
        (error,) = (await ada(API_KEY_CREATE, name="k", user=user))["apiKeyCreate"]["errors"]
        assert (error["code"], error["path"]) == ("NOT_FOUND", ["user"])
    (error,) = (await ada(API_KEY_CREATE, name="k", role="ADMIN"))["apiKeyCreate"]["errors"]
    assert error["__typename"] == "ForbiddenError"
    created = (await root(API_KEY_CREATE, name="k", user={"username": "bob"}))["apiKeyCreate"]
    assert created["apiKey"]["user"] == {"username": "bob"}
    assert (await bob(API_KEYS_QUERY))["apiKeys"]["totalCount"] == 2


async def test_key_list_runs_constant_statements(ada: GraphQLClient, statements: list[str]) -> None:
    async def count_statements() -> int:
        del statements[:]
        await ada(API_KEYS_QUERY, first=50)
        return len(statements)

    await ada(API_KEY_CREATE, name="first")
    count_before = await count_statements()
    for number in range(10):
        await ada(API_KEY_CREATE, name=f"key {number}")
    assert await count_statements() == count_before


async def test_key_creation_needs_scope_master(
    environment: Environment, http: httpx.AsyncClient
) -> None:
    client = await make_client(environment, http, "dan")
    scopes = [Scope.READ]
    client.secret = await make_api_key(environment, "narrow", user_id=client.user.id, scopes=scopes)
    (error,) = (await client(API_KEY_CREATE, name="k"))["apiKeyCreate"]["errors"]
    assert error["__typename"] == "ForbiddenError"
    assert (await client(API_KEYS_QUERY))["apiKeys"]["totalCount"] == 2
