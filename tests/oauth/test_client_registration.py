"""Dynamic registration of public clients (RFC 7591): metadata, limits, and unused clients."""

import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from graph.oauth.registration_route import MAX_METADATA_BYTES
from graph.types import global_ids
from mail.maintenance import housekeeping
from models.auth.credentials import AccessToken
from models.oauth.tables import OauthClient, OauthRefreshToken
from models.runtime.environment import Environment
from models.store.columns import core_table
from resolvers.auth import authentication
from resolvers.oauth import clients, registration
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.oauth.oauth_flow import (
    ISSUER,
    REDIRECT_URI,
    OauthBrowser,
    TestClient,
    add_client,
    set_public_url,
)

BOTH_GRANT_TYPES = ["authorization_code", "refresh_token"]
CREATE = """mutation { oauthClientCreate(
  input: {name: "Webmail", redirectUris: ["https://a.example/"]}
) { oauthClient { clientId } errors { code } } }"""


@pytest.fixture(autouse=True)
def allow_registration(browser: OauthBrowser, environment: Environment) -> None:
    """Turn registration on."""
    del browser
    set_public_url(environment, oauth_registration=True)


async def register(browser: OauthBrowser, **metadata: Any) -> httpx.Response:
    given = {"redirect_uris": [REDIRECT_URI], "client_name": "Notes", **metadata}
    return await browser.http.post("/oauth/register", json=given)


async def client_rows(environment: Environment) -> list[Any]:
    return list(await environment.database.read(select(core_table(OauthClient))))


async def test_registered_client_gets_tokens(
    browser: OauthBrowser, environment: Environment
) -> None:
    response = await register(
        browser,
        grant_types=BOTH_GRANT_TYPES,
        response_types=["code"],
        token_endpoint_auth_method="none",  # noqa: S106 - a name
        scope="openid mail unknown domain_admin",
        logo_uri="https://evil.example/logo",
        software_statement="x.y.z",
        contacts=["x"] * 100,
    )
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    registered = response.json()
    client_id = registered.pop("client_id")
    assert registered == {
        "client_id_issued_at": int(environment.now().timestamp()),
        "client_name": "Notes",
        "redirect_uris": [REDIRECT_URI],
        "grant_types": BOTH_GRANT_TYPES,
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "scope": "openid mail",
    }
    client = TestClient(0, client_id, None)
    tokens = await browser.get_tokens(client)
    assert tokens["scope"] == "openid mail"
    assert (await browser.refresh(client, tokens["refresh_token"])).status_code == 200


async def test_client_can_not_choose_its_identifier(
    browser: OauthBrowser, ada: GraphQLClient
) -> None:
    """It could choose the subject of a user (RFC 9700, section 4.15)."""
    subject = global_ids.encode("User", ada.user.id)
    registered = (await register(browser, client_id=subject, sub=subject)).json()
    assert registered["client_id"] != subject
    assert "sub" not in registered


async def test_defaults_are_those_of_the_rfc_and_of_created_clients(browser: OauthBrowser) -> None:
    response = await register(browser, client_name=None)
    registered = response.json()
    assert registered["grant_types"] == ["authorization_code"]
    assert registered["scope"] == "openid profile email"
    assert registered["client_name"] == "app.example.com"


async def test_registration_is_off_by_default(
    browser: OauthBrowser, environment: Environment
) -> None:
    endpoint = f"{ISSUER}/oauth/register"
    for is_on in (True, False):
        set_public_url(environment, oauth_registration=is_on)
        for name in ("openid-configuration", "oauth-authorization-server"):
            document = (await browser.http.get(f"/.well-known/{name}")).json()
            assert document.get("registration_endpoint") == (endpoint if is_on else None)
    assert (await register(browser)).status_code == 404
    assert await client_rows(environment) == []
    assert type(environment.options)().oauth_registration is False


WRONG_REDIRECT_URIS: list[Any] = [
    None, [], "https://a.example/", [1], [None], ["http://a.example/"],
    ["https://a.example/#x"], ["https://u@a.example/"], ["javascript:alert(1)"],
    ["https://a.example/" + "x" * 1000], [f"https://a.example/{n}" for n in range(21)],
]  # fmt: skip


async def test_wrong_redirect_uri_is_refused(
    browser: OauthBrowser, environment: Environment
) -> None:
    for case in each_case(WRONG_REDIRECT_URIS):
        with case as uris:
            response = await register(browser, redirect_uris=uris)
            assert (response.status_code, response.json()["error"]) == (400, "invalid_redirect_uri")
            assert await client_rows(environment) == []


WRONG_METADATA: list[dict[str, Any]] = [
    {"token_endpoint_auth_method": "client_secret_basic"},
    {"token_endpoint_auth_method": ["none"]},
    {"token_endpoint_auth_method": None},
    {"response_types": ["token"]},
    {"response_types": ["code", "token"]},
    {"response_types": "code"},
    {"grant_types": ["password", "authorization_code"]},
    {"grant_types": ["refresh_token"]},
    {"grant_types": []},
    {"grant_types": ["authorization_code"] * 21},
    {"grant_types": {"authorization_code": 1}},
    {"scope": ""},
    {"scope": "full admin"},
    {"scope": ["mail"]},
    {"client_name": ""},
    {"client_name": "x" * 101},
    {"client_name": "a\u202eb"},
    {"client_name": "\ud800"},
    {"client_name": ["Notes"]},
    {"client_name": "", "scope": ""},
]


async def test_wrong_metadata_are_refused(browser: OauthBrowser, environment: Environment) -> None:
    for case in each_case(WRONG_METADATA):
        with case as metadata:
            content = json.dumps({"redirect_uris": [REDIRECT_URI], **metadata})
            response = await browser.http.post(
                "/oauth/register", content=content, headers={"Content-Type": "application/json"}
            )
            assert (response.status_code, response.json()["error"]) == (
                400,
                "invalid_client_metadata",
            )
            assert response.json()["error_description"].isascii()
            assert await client_rows(environment) == []


# for each case: the body, its type, and the status of the response
MALFORMED_BODIES: list[tuple[bytes, str, int]] = [
    (b"", "application/json", 400),
    (b"[]", "application/json", 400),
    (b"{", "application/json", 400),
    (b"\xff", "application/json", 400),
    (b"[" * 10_000, "application/json", 400),
    (b"9" * 10_000, "application/json", 400),
    (b"{}", "text/plain", 415),
    (b"{}", "", 415),
    (b'{"x": "' + b"x" * MAX_METADATA_BYTES + b'"}', "application/json", 413),
]


async def test_malformed_body_is_refused(browser: OauthBrowser) -> None:
    for case in each_case(MALFORMED_BODIES):
        with case as (content, content_type, status):
            headers = {"Content-Type": content_type}
            response = await browser.http.post("/oauth/register", content=content, headers=headers)
            assert response.status_code == status
            assert response.json()["error"] == "invalid_client_metadata"


async def test_rate_of_registrations_of_an_address_is_limited(browser: OauthBrowser) -> None:
    statuses = [(await register(browser)).status_code for _ in range(6)]
    assert statuses[0] == 201
    assert statuses[-1] == 429
    limited = await register(browser)
    assert limited.json()["error"] == "temporarily_unavailable"
    assert int(limited.headers["retry-after"]) > 0


async def test_number_of_registered_clients_is_limited(
    browser: OauthBrowser, root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "MAX_REGISTERED_CLIENTS", 1)
    monkeypatch.setattr(clients, "MAX_CLIENTS", 1)
    assert (await register(browser)).status_code == 201
    assert (await register(browser)).status_code == 503
    created = (await root(CREATE))["oauthClientCreate"]  # has a limit of its own
    assert created["errors"] == []
    assert (await root(CREATE))["oauthClientCreate"]["errors"] == [{"code": "LIMIT_REACHED"}]


async def test_registration_is_recorded(browser: OauthBrowser, root: GraphQLClient) -> None:
    await register(browser)
    data = await root(
        "{ oauthClients { nodes { name hasSecret maker } } "
        'auditLog(filter: {mutation: "oauthClientCreate"}) { nodes { actor role after } } }'
    )
    assert data["oauthClients"]["nodes"] == [
        {"name": "Notes", "hasSecret": False, "maker": "dynamic registration"}
    ]
    (entry,) = data["auditLog"]["nodes"]
    assert (entry["actor"], entry["role"]) == ("dynamic registration", "PUBLIC")
    assert entry["after"]["redirectUris"] == [REDIRECT_URI]


async def test_unused_registered_clients_are_deleted(
    browser: OauthBrowser, environment: Environment, clock: ManualClock
) -> None:
    set_public_url(environment, oauth_registration=True, oauth_refresh_token_ttl=timedelta(days=60))
    await add_client(environment, "Created")
    used = TestClient(
        0, (await register(browser, grant_types=BOTH_GRANT_TYPES)).json()["client_id"], None
    )
    unused = (await register(browser, client_name="Unused")).json()["client_id"]
    tokens = await browser.get_tokens(used)
    await authentication.wait_for_background_tasks(environment)
    clock.tick(days=29, hours=23)
    await housekeeping.run_housekeeping_round(environment)
    assert len(await client_rows(environment)) == 3
    clock.tick(hours=2)
    counts = await housekeeping.run_housekeeping_round(environment)
    assert counts.oauth_clients == 1
    remaining = {row.client_id for row in await client_rows(environment)}
    assert remaining == {"client-created", used.client_id}
    assert unused not in remaining
    assert (await browser.refresh(used, tokens["refresh_token"])).status_code == 200
    await authentication.wait_for_background_tasks(environment)
    clock.tick(days=30)
    await housekeeping.run_housekeeping_round(environment)
    assert len(await client_rows(environment)) == 2  # its refresh token is valid
    async with environment.write_session() as session:
        for table in (OauthRefreshToken, AccessToken):
            await (await session.connection()).execute(delete(table).where(col(table.id) > 0))
    await housekeeping.run_housekeeping_round(environment)
    assert [row.client_id for row in await client_rows(environment)] == ["client-created"]
