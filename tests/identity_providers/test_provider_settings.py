"""The mutations and fields of identity providers: values, roles, secrets and the test."""

import json
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col
from starlette.responses import JSONResponse, Response

from models.admin.audit_log import AuditLogEntry
from models.identity_providers import IdentityLink, IdentityProvider
from models.runtime.environment import Environment
from resolvers.auth import authentication
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.provider_metadata import ProviderMetadata
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.sign_in_environment import basic_auth_header
from tests.support.case_loop import each_case
from tests.support.identity_providers.scripted_provider import (
    ProviderEndpoint,
    ScriptedProvider,
    discovery_document,
)
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient
from tests.support.oauth.provider_flow import tokens_by_provider

SECRET = "the secret of the client"  # noqa: S105 - of a test
SET = """
    mutation ($input: IdentityProviderSetInput!) {
      identityProviderSet(input: $input) {
        domain { identityProvider {
          issuer clientId hasClientSecret scopes usernameClaim groupsClaim
          adminGroups activeClaim userCreationAllowed passwordSignInAllowed
          redirectUri backchannelLogoutUri updatedAt
        } }
        errors { code message path }
      }
    }
"""
DELETE = """
    mutation { identityProviderDelete(input: {domains: [{name: "example.org"}]}) {
      domains { name identityProvider { issuer } } errors { code path } } }
"""
TEST = """
    mutation { identityProviderTest(input: {domain: {name: "example.org"}}) {
      succeeded steps { kind succeeded message } errors { code path } } }
"""
READ = '{ domain(by: {name: "example.org"}) { identityProvider { issuer hasClientSecret } } }'


def provider_input(issuer: str = "https://idp.example.com", **changes: Any) -> dict[str, Any]:
    values = {
        "domain": {"name": "example.org"},
        "issuer": issuer,
        "clientId": "merganser",
        "clientSecret": SECRET,
    }
    return {"input": {**values, **changes}}


async def set_provider(client: GraphQLClient, **changes: Any) -> dict[str, Any]:
    payload = (await client(SET, **provider_input(**changes)))["identityProviderSet"]
    domain = payload.pop("domain")
    return {"identityProvider": domain and domain["identityProvider"], **payload}


@pytest.mark.usefixtures("browser")
async def test_provider_is_set_replaced_and_deleted(root: GraphQLClient) -> None:
    created = await set_provider(root)
    assert created == {
        "identityProvider": {
            "issuer": "https://idp.example.com",
            "clientId": "merganser",
            "hasClientSecret": True,
            "scopes": ["openid", "profile", "email"],
            "usernameClaim": "email",
            "groupsClaim": "groups",
            "adminGroups": [],
            "activeClaim": None,
            "userCreationAllowed": False,
            "passwordSignInAllowed": True,
            "redirectUri": "https://mail.example.org/oauth/callback/example.org",
            "backchannelLogoutUri": "https://mail.example.org/oauth/backchannel-logout/example.org",
            "updatedAt": None,
        },
        "errors": [],
    }
    changes = {
        "scopes": ["openid"],
        "adminGroups": ["admins", "admins"],
        "userCreationAllowed": True,
    }
    replaced = (await set_provider(root, **changes))["identityProvider"]
    assert (replaced["scopes"], replaced["adminGroups"]) == (["openid"], ["admins"])
    assert replaced["userCreationAllowed"]
    assert replaced["updatedAt"]
    payload = (await root(DELETE))["identityProviderDelete"]
    assert payload == {"domains": [{"name": "example.org", "identityProvider": None}], "errors": []}
    again = (await root(DELETE))["identityProviderDelete"]
    assert again["errors"] == [{"code": "NOT_FOUND", "path": ["domains", "0"]}]


@pytest.mark.usefixtures("browser")
async def test_secret_is_only_kept_for_the_same_issuer_and_client(
    root: GraphQLClient, environment: Environment
) -> None:
    without_secret = provider_input()["input"]
    del without_secret["clientSecret"]
    for changes, is_kept in (
        ({}, True),
        ({"userCreationAllowed": True}, True),
        ({"clientId": "another"}, False),
        ({"issuer": "https://other.example.com"}, False),
    ):
        await set_provider(root)
        stored = await load_secret(environment)
        payload = (await root(SET, input={**without_secret, **changes}))["identityProviderSet"]
        if is_kept:
            assert payload["errors"] == []
        else:
            (error,) = payload["errors"]
            assert (error["code"], error["path"]) == ("VALIDATION", ["clientSecret"])
        assert await load_secret(environment) == stored
    public = await set_provider(root, clientSecret=None)
    assert public["identityProvider"]["hasClientSecret"] is False
    assert await load_secret(environment) is None


async def load_secret(environment: Environment) -> str | None:
    (row,) = await environment.database.read(select(col(IdentityProvider.client_secret)))
    secret: str | None = row.client_secret
    return secret


@pytest.mark.usefixtures("browser")
async def test_secret_is_encrypted_and_in_no_log(
    root: GraphQLClient, environment: Environment
) -> None:
    await set_provider(root)
    stored = await load_secret(environment)
    assert stored is not None
    assert SECRET not in stored
    columns = (col(AuditLogEntry.before), col(AuditLogEntry.after), col(AuditLogEntry.mutation))
    entries = await environment.database.read(select(*columns))
    assert "identityProviderSet" in [row.mutation for row in entries]
    assert SECRET not in json.dumps([row.after for row in entries])


WRONG_VALUES: list[tuple[dict[str, Any], list[str], str]] = [
    ({"issuer": "idp.example.com"}, ["issuer"], "URL"),
    ({"issuer": "https://user@idp.example.com"}, ["issuer"], "URL"),
    ({"issuer": "https://idp.example.com/?tenant=1"}, ["issuer"], "URL"),
    ({"issuer": "https://idp.example.com/#x"}, ["issuer"], "URL"),
    ({"issuer": "https://" + "x" * 3000}, ["issuer"], "URL"),
    ({"clientId": ""}, ["clientId"], "LENGTH"),
    ({"clientId": "x" * 513}, ["clientId"], "LENGTH"),
    ({"clientSecret": "a\nb"}, ["clientSecret"], "LENGTH"),
    ({"scopes": ["email"]}, ["scopes"], "REQUIRED"),
    ({"scopes": ["openid", "a b"]}, ["scopes", "1"], "SYNTAX"),
    ({"scopes": ["openid"] * 21}, ["scopes"], "MAX"),
    ({"usernameClaim": ""}, ["usernameClaim"], "LENGTH"),
    ({"groupsClaim": "x" * 129}, ["groupsClaim"], "LENGTH"),
    ({"activeClaim": "a\n"}, ["activeClaim"], "LENGTH"),
    ({"adminGroups": ["ok", ""]}, ["adminGroups", "1"], "LENGTH"),
    ({"adminGroups": ["x"] * 101}, ["adminGroups"], "MAX"),
]


@pytest.mark.usefixtures("browser")
async def test_wrong_values_are_refused(root: GraphQLClient) -> None:
    document = SET.replace("code message path", "code path ... on ValidationError { constraint }")
    for case in each_case(WRONG_VALUES):
        with case as (changes, path, constraint):
            payload = await root(document, **provider_input(**changes))
            (error,) = payload["identityProviderSet"]["errors"]
            assert error == {"code": "VALIDATION", "path": path, "constraint": constraint}
            assert (await root(READ))["domain"]["identityProvider"] is None


@pytest.mark.parametrize(
    "issuer",
    ["http://idp.example.com", "https://127.0.0.1", "https://10.0.0.1:8443", "https://idp.local"],
)
async def test_issuers_without_tls_or_in_private_networks_are_refused(
    root: GraphQLClient, issuer: str
) -> None:
    payload = await set_provider(root, issuer=issuer)
    assert [error["path"] for error in payload["errors"]] == [["issuer"]]


@pytest.mark.usefixtures("browser")
async def test_only_an_admin_sets_and_tests_providers(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await set_provider(root)
    domain_admin = await make_domain_admin(ada.environment, ada.http, "dora")
    for client in (ada, domain_admin):
        for document, variables in ((SET, provider_input()), (DELETE, {}), (TEST, {})):
            response = await client.execute(document, **variables)
            (payload,) = response["data"].values()
            assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    provider = (await domain_admin(READ))["domain"]["identityProvider"]
    assert provider == {"issuer": "https://idp.example.com", "hasClientSecret": True}
    response = await ada.execute(READ)
    assert "idp.example.com" not in json.dumps(response)


async def test_test_reports_each_step(
    browser: OauthBrowser,
    root: GraphQLClient,
    provider: ScriptedProvider,
) -> None:
    del browser
    await set_provider(root, issuer=provider.issuer)
    provider.responses[ProviderEndpoint.TOKEN] = JSONResponse({"error": "invalid_grant"}, 400)
    payload = (await root(TEST))["identityProviderTest"]
    assert payload["succeeded"]
    assert [(item["kind"], item["succeeded"]) for item in payload["steps"]] == [
        ("DISCOVERY", True),
        ("PKCE", True),
        ("CLIENT", True),
        ("LOGOUT", True),
    ]
    provider.discovery_changes |= {
        "backchannel_logout_supported": False,
        "code_challenge_methods_supported": ["plain"],
    }
    provider.responses[ProviderEndpoint.TOKEN] = JSONResponse({"error": "invalid_client"}, 401)
    payload = (await root(TEST))["identityProviderTest"]
    assert not payload["succeeded"]
    problems = {item["kind"]: item["message"] for item in payload["steps"]}
    assert problems["DISCOVERY"] is None
    assert "S256" in problems["PKCE"]
    assert "invalid_client" in problems["CLIENT"]
    assert "back-channel" in problems["LOGOUT"]
    provider.responses[ProviderEndpoint.DISCOVERY] = Response(status_code=404)
    payload = (await root(TEST))["identityProviderTest"]
    (result,) = payload["steps"]
    assert (result["kind"], "status 404" in result["message"]) == ("DISCOVERY", True)


async def test_users_see_their_link(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    root: GraphQLClient,
    ada: GraphQLClient,
) -> None:
    await set_provider(root, issuer=provider.issuer)
    document = "{ user { identityLink { issuer subject createdAt lastSignInAt } } }"
    assert (await ada(document))["user"]["identityLink"] is None
    await tokens_by_provider(browser, webmail, provider)
    link = (await ada(document))["user"]["identityLink"]
    assert (link["issuer"], link["subject"]) == (provider.issuer, "ada-1")


@pytest.mark.usefixtures("browser")
async def test_password_rule_applies_to_every_way_of_signing_in(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    authenticate = (
        'mutation { authenticate(input: {username: "ada", '
        'password: "correct horse battery staple"}) { errors { code message } } }'
    )
    assert (await ada(authenticate))["authenticate"]["errors"] == []
    create = (
        'mutation { appPasswordCreate(input: {description: "x", scopes: [MAIL]}) { password } }'
    )
    app_password = (await ada(create))["appPasswordCreate"]["password"]
    await set_provider(root, passwordSignInAllowed=False)
    headers = basic_auth_header("ada", app_password)
    viewer = await authentication.authenticate_request(ada.environment, headers)
    assert viewer.user_id == ada.user.id
    (error,) = (await ada(authenticate))["authenticate"]["errors"]
    assert (error["code"], "identity provider" in error["message"]) == ("FORBIDDEN", True)
    payload = await root(
        'mutation { userUpdate(input: {users: {usernames: ["ada"]}, set: {allowLocal: true}})'
        " { users { allowLocal } errors { code message } } }"
    )
    assert payload["userUpdate"] == {"users": [{"allowLocal": True}], "errors": []}
    assert (await ada(authenticate))["authenticate"]["errors"] == []


@pytest.mark.parametrize(
    "url",
    ["http://idp.example.com/x", "https://a@idp.example.com/", "https://x/#y", "https://x/\r\n"],
)
def test_endpoints_of_an_https_issuer_are_https(url: str) -> None:
    issuer = "https://idp.example.com"
    document = discovery_document(issuer)
    ProviderMetadata.from_document(issuer, document)
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
        with pytest.raises(ProviderFailure, match=name):
            ProviderMetadata.from_document(issuer, {**document, name: url})


async def test_new_client_ends_the_checks_of_the_former_one(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    root: GraphQLClient,
    environment: Environment,
) -> None:
    """A provider refuses the refresh tokens of another client, as if all had left."""
    await set_provider(root, issuer=provider.issuer)
    await tokens_by_provider(browser, webmail, provider)
    due = select(col(IdentityLink.check_due_at), col(IdentityLink.refresh_token))
    (row,) = await environment.database.read(due)
    assert row.refresh_token
    await set_provider(root, issuer=provider.issuer, clientId="another")
    (row,) = await environment.database.read(due)
    assert (row.check_due_at, row.refresh_token) == (None, None)
    provider.client_id = "another"
    provider.claims["sub"] = "ada-of-another-client"  # subjects can be pairwise
    await tokens_by_provider(browser, webmail, provider)
