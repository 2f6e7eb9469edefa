"""OAuth clients and grants in the schema: create, change, revoke, delete, and who sees them."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import insert, select

from models.auth.security_log import SecurityEventAction
from models.oauth.tables import OauthClient, OauthGrant
from models.store.columns import core_table
from resolvers.oauth import clients
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient, add_client, set_password

CREATE = """mutation ($input: OauthClientCreateInput!) { oauthClientCreate(input: $input) {
  clientSecret oauthClient { id clientId name hasSecret redirectUris grantTypes scopes maker
    createdAt updatedAt secretRotatedAt lastUsedAt grantCount }
  errors { code path message } } }"""
URIS = ["https://app.example.com/callback"]
GRANTS = (
    "{ user { oauthGrants { totalCount nodes { id clientName clientId scopes lastUsedAt } } } }"
)


async def create(client: GraphQLClient, **values: Any) -> Any:
    given = {"name": "Webmail", "redirectUris": URIS, **values}
    return (await client(CREATE, input=given))["oauthClientCreate"]


async def test_created_client_gets_tokens_with_its_secret(
    browser: OauthBrowser, root: GraphQLClient
) -> None:
    payload = await create(root, scopes=["OPENID", "MAIL"])
    shown = payload["oauthClient"]
    assert shown | {"id": "", "clientId": "", "createdAt": ""} == {
        "id": "", "clientId": "", "name": "Webmail", "hasSecret": True, "redirectUris": URIS,
        "grantTypes": ["AUTHORIZATION_CODE", "REFRESH_TOKEN"], "scopes": ["OPENID", "MAIL"],
        "maker": "key root", "createdAt": "", "updatedAt": None, "secretRotatedAt": None,
        "lastUsedAt": None, "grantCount": 0,
    }  # fmt: skip
    client = TestClient(0, shown["clientId"], payload["clientSecret"])
    tokens = await browser.get_tokens(client)
    assert tokens["scope"] == "openid mail"
    (row,) = await root.environment.database.read(select(core_table(OauthClient)))
    assert payload["clientSecret"] not in repr(row)
    data = await root(
        "query ($id: String!) { oauthClient(by: {clientId: $id}) { grantCount } }",
        id=shown["clientId"],
    )
    assert data["oauthClient"] == {"grantCount": 1}


async def test_public_client_has_no_secret(root: GraphQLClient) -> None:
    payload = await create(root, hasSecret=False)
    assert (payload["clientSecret"], payload["oauthClient"]["hasSecret"]) == (None, False)
    data = await root(
        "mutation ($id: ID!) { oauthClientSecretRotate(input: {oauthClient: {id: $id}}) "
        "{ clientSecret errors { code path } } }",
        id=payload["oauthClient"]["id"],
    )
    assert data["oauthClientSecretRotate"] == {
        "clientSecret": None,
        "errors": [{"code": "VALIDATION", "path": ["oauthClient"]}],
    }


# for each case: the changed values, and the path of the error
WRONG_VALUES: list[tuple[dict[str, Any], list[str]]] = [
    ({"name": ""}, ["name"]),
    ({"name": "x" * 101}, ["name"]),
    ({"name": "a\u202eb"}, ["name"]),
    ({"redirectUris": []}, ["redirectUris"]),
    ({"redirectUris": ["https://a.example/#x"]}, ["redirectUris", "0"]),
    ({"redirectUris": [*URIS, "http://a.example/"]}, ["redirectUris", "1"]),
    ({"grantTypes": []}, ["grantTypes"]),
    ({"grantTypes": ["REFRESH_TOKEN"]}, ["grantTypes"]),
    ({"scopes": []}, ["scopes"]),
]


async def test_wrong_client_is_refused(root: GraphQLClient) -> None:
    for case in each_case(WRONG_VALUES):
        with case as (values, path):
            payload = await create(root, **values)
            assert payload["oauthClient"] is None
            assert payload["clientSecret"] is None
            assert [error["code"] for error in payload["errors"]] == ["VALIDATION"]
            assert [str(part) for part in payload["errors"][0]["path"]][: len(path)] == path
            assert not await root.environment.database.read(select(core_table(OauthClient)))


async def test_number_of_clients_is_limited(
    root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_CLIENTS", 1)
    await create(root)
    payload = await create(root)
    assert [error["code"] for error in payload["errors"]] == ["LIMIT_REACHED"]


async def test_rotated_secret_replaces_the_old_one(
    browser: OauthBrowser, webmail: TestClient, root: GraphQLClient
) -> None:
    tokens = await browser.get_tokens(webmail)
    data = await root(
        "mutation ($id: String!) { oauthClientSecretRotate(input: {oauthClient: {clientId: $id}}) "
        "{ clientSecret oauthClient { secretRotatedAt } } }",
        id=webmail.client_id,
    )
    secret = data["oauthClientSecretRotate"]["clientSecret"]
    assert secret != webmail.secret
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 401
    webmail.secret = secret
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 200


async def test_update_changes_what_a_request_can_name(
    browser: OauthBrowser, webmail: TestClient, root: GraphQLClient
) -> None:
    consent = await browser.sign_in(await browser.open(webmail), "ada")
    data = await root(
        "mutation ($id: String!) { oauthClientUpdate(input: {oauthClients: [{clientId: $id}], "
        'set: {redirectUris: ["https://new.example/cb"]}}) '
        "{ oauthClients { name redirectUris } errors { code } } }",
        id=webmail.client_id,
    )
    assert data["oauthClientUpdate"]["oauthClients"] == [
        {"name": "Webmail", "redirectUris": ["https://new.example/cb"]}
    ]
    assert (await browser.open(webmail)).status_code == 400
    # a consent page that was shown before the change has no effect
    assert (await browser.send(consent, choice="allow")).status_code == 400


async def test_deleted_client_ends_its_grants_and_tokens(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, root: GraphQLClient
) -> None:
    tokens = await browser.get_tokens(webmail)
    assert await browser.is_accepted(tokens["access_token"])
    data = await root(
        "mutation ($id: String!) { oauthClientDelete(input: {oauthClients: [{clientId: $id}]}) "
        "{ deletedIds errors { code } } }",
        id=webmail.client_id,
    )
    assert len(data["oauthClientDelete"]["deletedIds"]) == 1
    assert not await browser.is_accepted(tokens["access_token"])
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 401
    assert (await ada(GRANTS))["user"]["oauthGrants"]["totalCount"] == 0


async def test_user_lists_and_revokes_grants(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await set_password(bob.environment, bob.user.id)
    bobs_tokens = await browser.get_tokens(webmail, "bob")
    tokens = await browser.get_tokens(webmail, scope="openid mail")
    assert await browser.is_accepted(tokens["access_token"])
    grants = (await ada(GRANTS))["user"]["oauthGrants"]
    (grant,) = grants["nodes"]
    assert grants["totalCount"] == 1
    assert (grant["clientName"], grant["clientId"]) == ("Webmail", webmail.client_id)
    assert grant["scopes"] == ["OPENID", "MAIL"]
    assert grant["lastUsedAt"]
    revoke = (
        "mutation ($id: ID!) { oauthGrantRevoke(input: {oauthGrants: [{id: $id}]}) "
        "{ deletedIds errors { code } } }"
    )
    refused = (await bob(revoke, id=grant["id"]))["oauthGrantRevoke"]
    assert refused == {"deletedIds": [], "errors": [{"code": "NOT_FOUND"}]}
    assert await browser.is_accepted(tokens["access_token"])
    assert (await ada(revoke, id=grant["id"]))["oauthGrantRevoke"]["errors"] == []
    assert not await browser.is_accepted(tokens["access_token"])
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 400
    assert await browser.is_accepted(bobs_tokens["access_token"])
    log = await ada("{ user { securityLog { nodes { action } } } }")
    actions = {node["action"] for node in log["user"]["securityLog"]["nodes"]}
    assert {
        SecurityEventAction.OAUTH_GRANT_CREATED,
        SecurityEventAction.OAUTH_GRANT_REVOKED,
    } <= actions


async def test_grant_that_is_revoked_during_a_refresh_gives_no_lasting_token(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, clock: ManualClock
) -> None:
    tokens = await browser.get_tokens(webmail)
    (grant,) = (await ada(GRANTS))["user"]["oauthGrants"]["nodes"]
    response, _ = await asyncio.gather(
        browser.refresh(webmail, tokens["refresh_token"]),
        ada(
            "mutation ($id: ID!) { oauthGrantRevoke(input: {oauthGrants: [{id: $id}]}) "
            "{ deletedIds } }",
            id=grant["id"],
        ),
    )
    clock.tick(seconds=1)
    if response.status_code == 200:
        assert not await browser.is_accepted(response.json()["access_token"])


async def test_user_sees_the_scopes_of_tokens_of_clients(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    await browser.get_tokens(webmail, scope="openid mail")
    data = await ada("{ user { accessTokens { nodes { scopes oauthScopes protocol } } } }")
    assert data["user"]["accessTokens"]["nodes"] == [
        {"scopes": ["MAIL"], "oauthScopes": ["OPENID", "MAIL"], "protocol": "HTTP"}
    ]


async def test_client_can_not_revoke_grants_with_its_token(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    tokens = await browser.get_tokens(webmail)
    (grant,) = (await ada(GRANTS))["user"]["oauthGrants"]["nodes"]
    client = GraphQLClient(browser.http, ada.environment, ada.user, tokens["access_token"])
    data = await client(
        "mutation ($id: ID!) { oauthGrantRevoke(input: {oauthGrants: [{id: $id}]}) "
        "{ errors { code } } }",
        id=grant["id"],
    )
    assert data["oauthGrantRevoke"]["errors"] == [{"code": "FORBIDDEN"}]


async def test_clients_are_filtered_and_sorted(root: GraphQLClient) -> None:
    for name in ("Beta", "alpha", "Gamma"):
        await create(root, name=name)
    data = await root(
        "{ a: oauthClients(orderBy: NAME_DESC) { nodes { name } totalCount } "
        'b: oauthClients(filter: {query: "A"}, first: 2) { nodes { name } totalCount '
        "pageInfo { hasNextPage } } }"
    )
    assert [node["name"] for node in data["a"]["nodes"]] == ["alpha", "Gamma", "Beta"]
    assert (data["b"]["totalCount"], data["b"]["pageInfo"]["hasNextPage"]) == (3, True)


async def test_lists_need_as_many_statements_for_one_parent_as_for_many(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    environment, now = ada.environment, ada.environment.now()
    queries = (
        "{ oauthClients { nodes { name grantCount } } }",
        "{ users { nodes { oauthGrants(first: 2) { nodes { clientName } totalCount } } } }",
    )
    counts = []
    for added in (1, 20):
        for number in range(added):
            client = await add_client(environment, f"App {added} {number}")
            rows = [
                {"id": environment.new_id(), "user_id": user_id, "client_id": client.row_id,
                 "scopes": ["mail"], "created_at": now}
                for user_id in (ada.user.id, bob.user.id)[: 1 if added == 1 else 2]
            ]  # fmt: skip
            async with environment.write_session() as session:
                await (await session.connection()).execute(insert(OauthGrant), rows)
        for query in queries:
            await root(query)
            del statements[:]
            await root(query)
            counts.append(len(statements))
    assert counts[:2] == counts[2:]
