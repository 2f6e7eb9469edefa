"""Access tokens with fewer scopes than FULL: what they can do, and that they never get more."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from graph.types import global_ids
from models.auth.credentials import AccessToken
from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.errors import Forbidden
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.auth.passwords import password_hashes
from resolvers.auth.sign_in import SignInRequest
from resolvers.auth.token_scopes import SCOPES_WITHOUT_TOKENS, TOKEN_SCOPES
from resolvers.viewer import GuardRule
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.authenticators import enable_totp, mutation_document, totp_code
from tests.support.accounts.credential_check_process import OtherProcess, commit_statement
from tests.support.accounts.sign_in_environment import PASSWORD, SignInEnvironment
from tests.support.case_loop import each_case
from tests.support.clients.http_requests import VIEWER_QUERY, post_document
from tests.support.clients.plain_http import plain_client
from tests.support.servers.live_server import LiveServer, wait_until

SIGN_IN = """
mutation ($input: AuthenticateInput!) {
  authenticate(input: $input) {
    token scopes requiredTwoFactorMethods
    errors { code path ... on ValidationError { constraint } }
  }
}
"""
TOKENS_QUERY = "{ user { accessTokens(orderBy: CREATED_AT_ASC) { nodes { id scopes current } } } }"
CHANGES_SUBSCRIPTION = "subscription { changes { cursor events { type } } }"
TEMPORARY_PASSWORD = "Ab3Ab3Ab3Ab3"  # noqa: S105 - a test's


@pytest.fixture
async def eve(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    """A client of a user with a password."""
    return await make_client(environment, http, "eve", password=PASSWORD)


async def sign_in(eve: GraphQLClient, *scopes: str, **fields: Any) -> GraphQLClient:
    """Sign in for a token with these scopes, or for a full one; return a client with it."""
    limit = {"scopes": list(scopes)} if scopes else {}
    payload = (
        await post_document(
            eve.http, SIGN_IN, input={"username": "eve", "password": PASSWORD, **limit, **fields}
        )
    )["data"]["authenticate"]
    assert payload["errors"] == []
    return replace(eve, secret=payload["token"])


async def store_temporary_password(environment: Environment) -> None:
    """Give all users a temporary password."""
    stored = await password_hashes.hash_password(environment, TEMPORARY_PASSWORD)
    async with environment.write_session() as session:
        await session.exec(update(User).values(temporary_password=stored))


async def load_viewer(client: GraphQLClient) -> Any:
    return (await client(VIEWER_QUERY))["viewer"]


async def count_tokens(environment: Environment) -> int:
    query = select(func.count(col(AccessToken.id)).label("many"))
    (row,) = await environment.database.read(query)
    return int(row.many)


async def test_sign_in_without_scopes_is_full(eve: GraphQLClient) -> None:
    payload = (
        await post_document(eve.http, SIGN_IN, input={"username": "eve", "password": PASSWORD})
    )["data"]["authenticate"]
    assert (payload["scopes"], payload["errors"]) == (["FULL"], [])
    viewer = await load_viewer(replace(eve, secret=payload["token"]))
    assert (viewer["scopes"], viewer["token"]["scopes"]) == (["FULL"], ["FULL"])


async def test_token_has_only_the_requested_scopes(eve: GraphQLClient) -> None:
    client = await sign_in(eve, "SUBMIT", "MAIL_READ", "SUBMIT")
    viewer = await load_viewer(client)
    assert sorted(viewer["scopes"]) == ["MAIL_READ", "SUBMIT"]
    assert viewer["token"]["scopes"] == ["MAIL_READ", "SUBMIT"]
    assert (await client("{ messages(first: 1) { nodes { id } } }"))["messages"]["nodes"] == []
    refused = {
        "apiKeyCreate": {"name": "k"},
        "appPasswordCreate": {"description": "Phone"},
        "mailboxCreate": {"paths": ["Box"]},
        "userUpdate": {"set": {"name": "Eve"}},
        "accessTokenRevoke": {"all": True},
        "totpSetup": {},
    }
    for name, values in refused.items():
        payload = (await client(mutation_document(name), input=values))[name]
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"], name


async def test_full_among_other_scopes_is_full(eve: GraphQLClient) -> None:
    client = await sign_in(eve, "MAIL_READ", "FULL")
    assert (await load_viewer(client))["token"]["scopes"] == ["FULL"]


# for each case: the scopes of the input, and the path of the error
REFUSED_SCOPES: list[tuple[list[str], list[str]]] = [
    ([], ["scopes"]),
    (["MAIL_READ"] * (len(TOKEN_SCOPES) + 1), ["scopes"]),
    *((["MAIL_READ", scope.value], ["scopes", "1"]) for scope in sorted(SCOPES_WITHOUT_TOKENS)),
]


async def test_scopes_that_no_token_can_have_are_refused(eve: GraphQLClient) -> None:
    for case in each_case(REFUSED_SCOPES):
        with case as (scopes, path):
            given = {"username": "eve", "password": PASSWORD, "scopes": scopes}
            payload = (await post_document(eve.http, SIGN_IN, input=given))["data"]["authenticate"]
            assert [(error["code"], error["path"]) for error in payload["errors"]] == [
                ("VALIDATION", path)
            ]
            assert (payload["token"], payload["scopes"]) == (None, [])
            assert await count_tokens(eve.environment) == 0


async def test_unknown_scope_is_refused_before_the_sign_in(eve: GraphQLClient) -> None:
    given = {"username": "eve", "password": PASSWORD, "scopes": ["EVERYTHING"]}
    response = await post_document(eve.http, SIGN_IN, input=given)
    (error,) = response["errors"]
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert await count_tokens(eve.environment) == 0


async def test_token_list_shows_scopes_to_its_user_only(
    eve: GraphQLClient, ada: GraphQLClient
) -> None:
    await sign_in(eve, "SETTINGS")
    full_client = await sign_in(eve)
    nodes = (await full_client(TOKENS_QUERY))["user"]["accessTokens"]["nodes"]
    assert [(node["scopes"], node["current"]) for node in nodes] == [
        (["SETTINGS"], False),
        (["FULL"], True),
    ]
    query = "query ($id: ID!) { node(id: $id) { ... on AccessToken { scopes } } }"
    assert (await ada(query, id=nodes[0]["id"]))["node"] is None
    assert (await full_client(query, id=nodes[0]["id"]))["node"] == {"scopes": ["SETTINGS"]}


async def test_security_log_names_the_requested_scopes(eve: GraphQLClient) -> None:
    await sign_in(eve, "SUBMIT", "MAIL_READ")
    query = select(col(SecurityEvent.detail)).where(
        col(SecurityEvent.action) == SecurityEventAction.SIGN_IN_ATTEMPTED
    )
    (row,) = await eve.environment.database.read(query)
    expected = {"scope": "FULL", "source": "master", "scopes": ["MAIL_READ", "SUBMIT"]}
    assert row.detail == expected


async def test_second_factor_keeps_the_requested_scopes(eve: GraphQLClient) -> None:
    secret, _ = await enable_totp(eve)
    client = await sign_in(eve, "MAIL_READ")
    assert (await load_viewer(client))["role"] == "PUBLIC"
    code = totp_code(eve.environment, secret, 1)
    verified = await client(mutation_document("totpVerify", "valid"), input={"token": code})
    assert verified["totpVerify"] == {"valid": True, "errors": []}
    viewer = await load_viewer(client)
    assert (viewer["role"], viewer["scopes"]) == ("USER", ["MAIL_READ"])


async def set_password(client: GraphQLClient, existing_password: str) -> Any:
    change = {"set": {"password": "another long password"}, "existingPassword": existing_password}
    return (await client(mutation_document("userUpdate"), input=change))["userUpdate"]["errors"]


async def test_settings_scope_does_not_set_a_password(eve: GraphQLClient) -> None:
    (error,) = await set_password(await sign_in(eve, "SETTINGS"), PASSWORD)
    assert error["code"] == "FORBIDDEN"


async def test_new_password_after_a_temporary_one_gives_only_the_requested_scopes(
    eve: GraphQLClient,
) -> None:
    await store_temporary_password(eve.environment)
    client = await sign_in(eve, "SETTINGS", "MAIL_READ", password=TEMPORARY_PASSWORD)
    viewer = await load_viewer(client)
    assert (viewer["scopes"], viewer["token"]["scopes"]) == (["SETTINGS"], ["SETTINGS"])
    assert await set_password(client, TEMPORARY_PASSWORD) == []
    viewer = await load_viewer(client)
    assert sorted(viewer["scopes"]) == ["MAIL_READ", "SETTINGS"]
    assert viewer["token"]["scopes"] == ["MAIL_READ", "SETTINGS"]
    assert (await client("{ messages(first: 1) { nodes { id } } }"))["messages"]["nodes"] == []
    payload = (await client(mutation_document("apiKeyCreate"), input={"name": "k"}))["apiKeyCreate"]
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]


async def test_temporary_password_requires_a_scope_that_sets_passwords(
    eve: GraphQLClient,
) -> None:
    await store_temporary_password(eve.environment)
    given = {"username": "eve", "password": TEMPORARY_PASSWORD, "scopes": ["MAIL_READ"]}
    payload = (await post_document(eve.http, SIGN_IN, input=given))["data"]["authenticate"]
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [
        ("FORBIDDEN", ["scopes"])
    ]
    assert (payload["token"], payload["scopes"]) == (None, [])
    assert await count_tokens(eve.environment) == 0


@pytest.mark.parametrize("limit", [None, frozenset({Scope.SETTINGS})])
async def test_temporary_password_gives_the_scope_that_sets_a_password(
    sign_in_environment: SignInEnvironment, limit: frozenset[Scope] | None
) -> None:
    await store_temporary_password(sign_in_environment.environment)
    attempt = SignInRequest(token=True, token_scopes=limit)
    signed_in = await sign_in_environment.sign_in("ada", TEMPORARY_PASSWORD, attempt)
    assert signed_in.token_scopes == {Scope.SETTINGS}
    viewer = await sign_in_environment.authenticate(signed_in.token or "")
    assert (viewer.scopes, viewer.new_password_only) == (frozenset({Scope.SETTINGS}), True)


async def test_limit_also_narrows_a_token_that_acts_as_the_user(
    sign_in_environment: SignInEnvironment,
) -> None:
    maker_id = await sign_in_environment.add_user("rex", role=Role.ADMIN)
    token = await sign_in_environment.create_token("ada", token_scopes=frozenset({Scope.MAIL_READ}))
    await commit_statement(sign_in_environment, update(AccessToken).values(actor_id=maker_id))
    viewer = await sign_in_environment.authenticate(token)
    assert (viewer.actor_id, viewer.scopes) == (maker_id, frozenset({Scope.MAIL_READ}))


async def test_administrator_with_few_scopes_has_no_rights_of_the_role(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("rex", role=Role.ADMIN)
    token = await sign_in_environment.create_token("rex", token_scopes=frozenset({Scope.MAIL_READ}))
    viewer = await sign_in_environment.authenticate(token)
    assert (viewer.role, viewer.scopes) == (Role.ADMIN, frozenset({Scope.MAIL_READ}))
    with pytest.raises(Forbidden, match="FULL"):
        viewer.require(GuardRule(role=Role.ADMIN, scope=Scope.FULL))


async def test_narrowed_token_is_noticed_by_caches_and_open_connections(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    environment = sign_in_environment.environment
    scopes = frozenset({Scope.MAIL_READ, Scope.SUBMIT})
    token = await sign_in_environment.create_token("ada", token_scopes=scopes)
    viewer = await other_process.use_for_30_seconds(token)
    assert viewer.scopes == scopes
    has_narrowed = authentication.record_use_and_return_has_ended_or_changed
    assert not await has_narrowed(environment, viewer)
    statement = update(AccessToken).values(scopes=[Scope.MAIL_READ.value])
    await commit_statement(sign_in_environment, statement)
    sign_in_environment.clock.tick(seconds=1)
    assert (await other_process.authenticate(token)).scopes == {Scope.MAIL_READ}
    assert await has_narrowed(environment, viewer)


async def test_scopes_apply_to_rest_routes(eve: GraphQLClient, http: httpx.AsyncClient) -> None:
    stored = await deliver_to(eve, "Hello")
    message_id = global_ids.encode("Message", stored.message_id)
    path = f"/rest/messages/{message_id}/message.eml"
    for scopes, status in ((("SUBMIT",), 403), (("MAIL_READ",), 200), ((), 200)):
        client = await sign_in(eve, *scopes)
        assert (await http.get(path, headers=client.headers)).status_code == status, scopes
    for scope, status in (("MAIL_READ", 403), ("SUBMIT", 201)):
        headers = (await sign_in(eve, scope)).headers
        upload = await http.post("/rest/uploads", content=b"x", headers=headers)
        assert upload.status_code == status, scope


async def test_scopes_apply_to_websockets(eve: GraphQLClient, live_server: LiveServer) -> None:
    reader = await live_server.follow(await sign_in(eve, "MAIL_READ"), CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.subscriber_count == 1)
    await deliver_to(eve, "Hello")
    await wait_until(lambda: bool(reader.payloads))
    assert reader.events
    await reader.unsubscribe()
    refused_client = await sign_in(eve, "SETTINGS")
    code = await live_server.follow_until_refused(refused_client, CHANGES_SUBSCRIPTION)
    assert code == "FORBIDDEN"


async def test_scopes_apply_to_event_streams(eve: GraphQLClient, live_server: LiveServer) -> None:
    reader = await live_server.stream(await sign_in(eve, "MAIL_READ"), CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.subscriber_count == 1)
    await deliver_to(eve, "Hello")
    await wait_until(lambda: bool(reader.payloads))
    assert reader.events
    await reader.unsubscribe()
    user_id = global_ids.encode("User", eve.user.id)
    url = f"http://127.0.0.1:{live_server.port}/rest/users/{user_id}/updates"
    refused_client = await sign_in(eve, "SETTINGS")
    async with plain_client() as http:
        assert (await http.get(url, headers=refused_client.headers)).status_code == 403
