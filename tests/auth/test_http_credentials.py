"""Credentials over HTTP."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from models.runtime.environment import Environment
from models.runtime.idempotency import IdempotentPayload
from models.store.columns import core_table
from models.users.roles import Role, Scope
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, make_client, make_key
from tests.support.accounts.sign_in_environment import MASTER_SCOPES, PASSWORD
from tests.support.clients.http_requests import VIEWER_QUERY, post_document

AUTHENTICATE = """
mutation ($name: String!, $password: String!, $scope: Scope! = MASTER, $token: Boolean! = true,
          $ttl: Duration, $check: Boolean! = false, $key: String) {
  authenticate(input: {username: $name, password: $password, scope: $scope, token: $token,
      tokenTtl: $ttl, options: {validateOnly: $check, idempotencyKey: $key}}) {
    user { username } scope requirePasswordChange token expiresAt
    errors { __typename code message path ... on RateLimitedError { retryAfter } }
  }
}
"""

REVOKE = """
mutation ($ids: [ID!], $all: Boolean! = false) {
  tokenRevoke(input: {ids: $ids, all: $all}) { revoked errors { code index path } }
}
"""

CREATE = """
mutation ($name: String!, $role: Role! = USER, $user: UserRef, $key: String) {
  apiKeyCreate(input: {name: $name, role: $role, user: $user, options: {idempotencyKey: $key}}) {
    apiKey { id name role scopes readOnly expiresAt user { username } }
    secret replayed errors { __typename code path }
  }
}
"""

LIST = """
query ($first: Int, $after: String) {
  apiKeys(first: $first, after: $after) {
    nodes { name user { username } } totalCount pageInfo { endCursor hasNextPage }
  }
}
"""


@pytest.fixture
async def eve(world: Environment) -> str:
    """The name of somebody who has a password."""
    boss = Context(world, Viewer(role=Role.ROOT, scopes=MASTER_SCOPES))
    await creation_create.create_user(
        boss, NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    )
    return "eve"


async def entered(http: httpx.AsyncClient, name: str, password: str = PASSWORD, **more: Any) -> Any:
    answer = await post_document(http, AUTHENTICATE, name=name, password=password, **more)
    assert "errors" not in answer, answer
    return answer["data"]["authenticate"]


async def test_a_password_earns_a_token_that_is_its_user(http: httpx.AsyncClient, eve: str) -> None:
    done = await entered(http, "Eve@Example.org")
    assert done == {
        "user": {"username": "eve"},
        "scope": "MASTER",
        "requirePasswordChange": False,
        "token": done["token"],
        "expiresAt": "2030-01-15T00:00:00Z",
        "errors": [],
    }
    viewer = (await post_document(http, VIEWER_QUERY, done["token"]))["data"]["viewer"]
    assert (viewer["role"], viewer["scopes"], viewer["apiKey"]) == ("USER", ["MASTER"], None)
    assert viewer["user"] == {"username": eve}
    assert viewer["token"]["current"] is True


async def test_wrong_and_unknown_have_one_answer(http: httpx.AsyncClient, eve: str) -> None:
    wrong, unknown = await entered(http, eve, "wrong"), await entered(http, "nobody")
    assert wrong == unknown
    assert [error["__typename"] for error in wrong["errors"]] == ["AuthenticationFailedError"]
    assert (wrong["user"], wrong["token"]) == (None, None)


async def test_who_fails_too_often_is_told_how_long_to_wait(
    http: httpx.AsyncClient, eve: str
) -> None:
    for _ in range(12):
        await entered(http, eve, "wrong")
    (error,) = (await entered(http, eve))["errors"]
    assert (error["code"], error["retryAfter"]) == ("RATE_LIMITED", "PT120S")


async def test_a_trial_gives_no_token(http: httpx.AsyncClient, eve: str) -> None:
    done = await entered(http, eve, check=True)
    assert (done["errors"], done["token"], done["user"]) == ([], None, {"username": eve})


async def test_a_sign_in_is_never_answered_twice(
    http: httpx.AsyncClient, eve: str, world: Environment
) -> None:
    done = await entered(http, eve, key="k")
    assert [error["path"] for error in done["errors"]] == [["options", "idempotencyKey"]]
    assert await world.database.read(select(core_table(IdempotentPayload))) == []


async def test_nobody_is_a_viewer_without_anything(http: httpx.AsyncClient) -> None:
    assert (await post_document(http, VIEWER_QUERY))["data"]["viewer"] == {
        "role": "PUBLIC",
        "scopes": [],
        "readOnly": False,
        "user": None,
        "apiKey": None,
        "token": None,
    }


async def test_a_revoked_token_is_refused(http: httpx.AsyncClient, eve: str) -> None:
    token = (await entered(http, eve))["token"]
    none = await post_document(http, REVOKE)
    assert none["data"]["tokenRevoke"] == {"revoked": 0, "errors": []}
    wrong = await post_document(http, REVOKE, token, ids=["tok_AAAAAAAAAAE"])
    assert [error["index"] for error in wrong["data"]["tokenRevoke"]["errors"]] == [0]
    assert (await post_document(http, REVOKE, token, ids=[]))["data"]["tokenRevoke"]["revoked"] == 0
    assert (await post_document(http, REVOKE, token))["data"]["tokenRevoke"]["revoked"] == 1
    refused = await post_document(http, VIEWER_QUERY, token)
    assert [error["extensions"]["code"] for error in refused["errors"]] == ["UNAUTHENTICATED"]


async def test_a_key_is_made_listed_used_and_deleted(ada: Client, http: httpx.AsyncClient) -> None:
    made = (await ada(CREATE, name="backup"))["apiKeyCreate"]
    assert made["errors"] == []
    assert made["apiKey"]["user"] == {"username": "ada"}
    viewer = (await post_document(http, VIEWER_QUERY, made["secret"]))["data"]["viewer"]
    assert viewer["apiKey"] == {"name": "backup"}
    keys = (await ada(LIST, first=1))["apiKeys"]
    assert keys["nodes"] == [{"name": "backup", "user": {"username": "ada"}}]
    assert (keys["totalCount"], keys["pageInfo"]["hasNextPage"]) == (2, True)
    rest = (await ada(LIST, after=keys["pageInfo"]["endCursor"]))["apiKeys"]
    assert [node["name"] for node in rest["nodes"]] == ["ada"]
    gone = (
        "mutation ($id: ID!) { apiKeyDelete(input: {ids: [$id]}) { deletedIds errors { code } } }"
    )
    done = (await ada(gone, id=made["apiKey"]["id"]))["apiKeyDelete"]
    assert done == {"deletedIds": [made["apiKey"]["id"]], "errors": []}
    assert "errors" in await post_document(http, VIEWER_QUERY, made["secret"])


async def test_a_secret_is_shown_once_and_kept_nowhere(ada: Client, world: Environment) -> None:
    first = (await ada(CREATE, name="k", key="once"))["apiKeyCreate"]
    again = (await ada(CREATE, name="k", key="once"))["apiKeyCreate"]
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert first["secret"].startswith("mgk_")
    assert again["secret"] is None
    assert again["apiKey"] == first["apiKey"]
    kept = await world.database.read(select(core_table(IdempotentPayload)))
    assert first["secret"] not in repr(kept)


async def test_nobody_makes_keys_for_others_unseen(ada: Client, bob: Client, root: Client) -> None:
    for user in ({"username": "bob"}, {"address": "bob@example.org"}, {"username": "nobody"}):
        (error,) = (await ada(CREATE, name="k", user=user))["apiKeyCreate"]["errors"]
        assert (error["code"], error["path"]) == ("NOT_FOUND", ["user"])
    (error,) = (await ada(CREATE, name="k", role="ADMIN"))["apiKeyCreate"]["errors"]
    assert error["__typename"] == "ForbiddenError"
    made = (await root(CREATE, name="k", user={"username": "bob"}))["apiKeyCreate"]
    assert made["apiKey"]["user"] == {"username": "bob"}
    assert (await bob(LIST))["apiKeys"]["totalCount"] == 2


async def test_listing_keys_costs_the_same_however_many(ada: Client, statements: list[str]) -> None:
    async def cost() -> int:
        del statements[:]
        await ada(LIST, first=50)
        return len(statements)

    await ada(CREATE, name="first")
    one = await cost()
    for nth in range(10):
        await ada(CREATE, name=f"key {nth}")
    assert await cost() == one


async def test_keys_need_the_scope_master(world: Environment, http: httpx.AsyncClient) -> None:
    client = await make_client(world, http, "dan")
    scopes = [Scope.READ]
    client.secret = await make_key(world, "narrow", user_id=client.user.id, scopes=scopes)
    (error,) = (await client(CREATE, name="k"))["apiKeyCreate"]["errors"]
    assert error["__typename"] == "ForbiddenError"
    assert (await client(LIST))["apiKeys"]["totalCount"] == 2
