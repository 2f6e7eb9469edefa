"""The end of accounts by their provider: logout tokens, claims, and checks with refresh tokens."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col
from starlette.responses import JSONResponse, Response

from graph.oauth.texts.page_texts import ENGLISH
from mail.maintenance import housekeeping
from models.auth.application_passwords import ApplicationPassword
from models.auth.credentials import AccessToken, ApiKey
from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.identity_providers import IdentityLink, IdentityProvider, IdentitySession
from models.oauth.tables import OauthRefreshToken
from models.runtime.environment import Environment
from models.users.roles import Role
from models.users.tables import DomainAdmin, User
from resolvers.identity_providers.account_checks import (
    check_account_and_end_access_if_ended,
    reserve_links_due_for_check,
)
from resolvers.identity_providers.provider_records import refresh_token_purpose
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.identity_providers.scripted_provider import (
    ProviderEndpoint,
    ScriptedProvider,
)
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient
from tests.support.oauth.provider_flow import (
    add_provider,
    sign_in_at_provider,
    tokens_by_provider,
)
from tests.support.servers.live_server import LiveServer
from tests.support.time_limits import HANG_SECONDS

LOGOUT_URL = "/oauth/backchannel-logout/example.org"


@pytest.fixture(autouse=True)
async def _provider_of_domain(provider: ScriptedProvider, environment: Environment) -> None:
    await add_provider(environment, provider.issuer, active_claim="active")
    provider.claims["active"] = True


@pytest.fixture
async def signed_in(browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider) -> None:
    """Ada has signed in at the provider."""
    await tokens_by_provider(browser, webmail, provider)


async def send_logout(browser: OauthBrowser, token: str, url: str = LOGOUT_URL) -> httpx.Response:
    return await browser.http.post(url, data={"logout_token": token})


async def create_app_password(user: GraphQLClient) -> str:
    payload = await user(
        'mutation { appPasswordCreate(input: {description: "phone", scopes: [SMTP]})'
        " { password errors { message } } }"
    )
    return str(payload["appPasswordCreate"]["password"])


async def count_rows(environment: Environment, table: Any, user_id: int) -> int:
    statement = select(col(table.id)).where(col(table.user_id) == user_id)
    return len(await environment.database.read(statement))


async def is_suspended(environment: Environment, user_id: int) -> bool:
    (row,) = await environment.database.read(
        select(col(User.suspended)).where(col(User.id) == user_id)
    )
    return bool(row.suspended)


async def test_logout_by_subject_ends_all_access_at_once(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    assert await create_app_password(ada)
    response = await send_logout(browser, provider.logout_token())
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
    assert not await browser.is_accepted(tokens["access_token"])
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 400
    for table in (AccessToken, ApplicationPassword, ApiKey):
        assert await count_rows(ada.environment, table, ada.user.id) == 0
    assert not await is_suspended(ada.environment, ada.user.id)
    events = select(col(SecurityEvent.detail)).where(
        col(SecurityEvent.action) == SecurityEventAction.SESSION_TERMINATED
    )
    (event,) = await ada.environment.database.read(events)
    assert event.detail["reason"] == "back-channel logout"


async def test_logout_closes_open_connections(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, live_server: LiveServer
) -> None:
    live_server.endpoint.connection_watch.check_interval = 3600  # only the event can close them
    tokens = await tokens_by_provider(browser, webmail, provider)
    socket = await live_server.open_websocket(secret=tokens["access_token"])
    assert (await send_logout(browser, provider.logout_token())).status_code == 200
    async with asyncio.timeout(HANG_SECONDS):
        await socket.wait_closed()
    assert socket.close_code == 4403


async def test_logout_by_session_ends_only_the_tokens_of_that_session(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    provider.claims["sid"] = "session-1"
    first = await tokens_by_provider(browser, webmail, provider)
    provider.claims["sid"] = "session-2"
    second = await tokens_by_provider(browser, webmail, provider)
    by_password = await browser.get_tokens(webmail)
    assert await create_app_password(ada)
    response = await send_logout(browser, provider.logout_token(sid="session-1"))
    assert response.status_code == 200
    assert not await browser.is_accepted(first["access_token"])
    assert (await browser.refresh(webmail, first["refresh_token"])).status_code == 400
    for tokens in (second, by_password):
        assert await browser.is_accepted(tokens["access_token"])
    assert await count_rows(ada.environment, ApplicationPassword, ada.user.id) == 1
    sessions = await ada.environment.database.read(select(col(IdentitySession.session_digest)))
    assert len(sessions) == 1


@pytest.mark.parametrize("session_id", [None, "session-1"])
async def test_logout_ends_a_page_that_waits_for_consent(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, session_id: str | None
) -> None:
    provider.claims["sid"] = "session-1"
    consent = await sign_in_at_provider(browser, webmail, provider)
    await send_logout(browser, provider.logout_token(sid=session_id))
    assert (await browser.send(consent, choice="allow")).status_code == 400


async def test_logout_of_others_changes_nothing(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, root: GraphQLClient
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    await root('mutation { domainCreate(input: {name: "other.example"}) { errors { message } } }')
    for token, url, status in (
        (provider.logout_token(sub="another"), LOGOUT_URL, 200),
        (provider.logout_token(sid="unknown"), LOGOUT_URL, 200),
        (provider.logout_token(), LOGOUT_URL.replace("example.org", "other.example"), 400),
        (provider.logout_token(), LOGOUT_URL.replace("example.org", "unknown.example"), 400),
        (provider.logout_token(), LOGOUT_URL.replace("example.org", "a%00b%ED%A0%80"), 400),
    ):
        response = await send_logout(browser, token, url)
        assert response.status_code == status
        assert await browser.is_accepted(tokens["access_token"])


def forged(provider: ScriptedProvider) -> str:
    provider.rotate_keys(publish_new=False)
    return provider.logout_token()


def id_token(provider: ScriptedProvider) -> str:
    return provider.id_token("nonce", "access token")


INVALID_LOGOUT_TOKENS: list[Callable[[ScriptedProvider], str]] = [
    lambda _: "",
    lambda _: "a.b.c",
    lambda _: "x" * 70_000,
    forged,
    id_token,
    lambda provider: provider.logout_token({"alg": "none"}),
    lambda provider: provider.logout_token({"alg": "HS256"}),
    lambda provider: provider.logout_token({"typ": "at+jwt"}),
    lambda provider: provider.logout_token(events=None),
    lambda provider: provider.logout_token(events={}),
    lambda provider: provider.logout_token(events=["x"]),
    lambda provider: provider.logout_token(nonce="nonce"),
    lambda provider: provider.logout_token(iss="https://other.example"),
    lambda provider: provider.logout_token(aud="another"),
    lambda provider: provider.logout_token(exp=1),
    lambda provider: provider.logout_token(jti=None),
    lambda provider: provider.logout_token(sub=None),
    lambda provider: provider.logout_token(iat=int(provider.now()) - 3600),
]


async def test_invalid_logout_tokens_are_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    for case in each_case(INVALID_LOGOUT_TOKENS):
        with case as make_token:
            response = await send_logout(browser, make_token(provider))
            assert response.status_code in (400, 413), response.text
            assert response.json()["error"] == "invalid_request"
            assert await browser.is_accepted(tokens["access_token"])


@pytest.mark.parametrize("value", [False, "false", 0, "no", None])
async def test_claim_at_a_sign_in_suspends_the_account(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    value: object,
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    if value is None:  # a missing claim proves nothing
        del provider.claims["active"]
    else:
        provider.claims["active"] = value
    page = await sign_in_at_provider(browser, webmail, provider)
    is_ended = value is not None
    assert page.status_code == (403 if is_ended else 502)
    assert (ENGLISH.account_ended in page.text) is is_ended
    assert await browser.is_accepted(tokens["access_token"]) is not is_ended
    assert await is_suspended(ada.environment, ada.user.id) is is_ended


async def check_due_account(environment: Environment, clock: ManualClock) -> bool:
    """Run the check that is due in an hour; False if none is due."""
    clock.tick(minutes=59)
    assert await reserve_links_due_for_check(environment) == []
    clock.tick(minutes=2)
    links = await reserve_links_due_for_check(environment)
    if not links:
        return False
    assert await reserve_links_due_for_check(environment) == []  # not in two processes
    await check_account_and_end_access_if_ended(environment, links[0])
    return True


async def test_check_keeps_an_account_that_exists(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    clock: ManualClock,
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    for _ in range(2):
        assert await check_due_account(environment, clock)
    used = [
        request.form["refresh_token"]
        for request in provider.requests_to(ProviderEndpoint.TOKEN)
        if request.form["grant_type"] == "refresh_token"
    ]
    assert len(set(used)) == 2  # the new refresh token is stored
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 200


async def test_check_suspends_an_account_by_its_claim(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    clock: ManualClock,
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    assert await create_app_password(ada)
    provider.claims["active"] = False
    assert await check_due_account(ada.environment, clock)
    assert await is_suspended(ada.environment, ada.user.id)
    assert await count_rows(ada.environment, ApplicationPassword, ada.user.id) == 0
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 400
    assert not await check_due_account(ada.environment, clock)


async def test_check_ends_access_if_the_provider_refuses_the_refresh_token(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    clock: ManualClock,
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    assert await create_app_password(ada)
    provider.responses[ProviderEndpoint.TOKEN] = JSONResponse({"error": "invalid_grant"}, 400)
    assert await check_due_account(ada.environment, clock)
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 400
    assert not await is_suspended(ada.environment, ada.user.id)
    # the reason can be a new password at the provider
    assert await count_rows(ada.environment, ApplicationPassword, ada.user.id) == 1


@pytest.mark.parametrize(
    "response",
    [
        Response(status_code=503),
        JSONResponse({"error": "invalid_client"}, 401),
        JSONResponse({"error": "temporarily_unavailable"}, 400),
        JSONResponse({"access_token": "x", "id_token": "forged"}),
    ],
)
@pytest.mark.usefixtures("signed_in")
async def test_check_changes_nothing_if_the_provider_fails(
    provider: ScriptedProvider, environment: Environment, clock: ManualClock, response: Response
) -> None:
    provider.responses[ProviderEndpoint.TOKEN] = response
    assert await check_due_account(environment, clock)
    clock.tick(minutes=61)  # the next attempt
    del provider.responses[ProviderEndpoint.TOKEN]
    (link,) = await reserve_links_due_for_check(environment)
    await check_account_and_end_access_if_ended(environment, link)
    (row,) = await environment.database.read(select(col(OauthRefreshToken.replaced_at)))
    assert row.replaced_at is None


async def test_killed_check_does_not_end_the_account(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    clock: ManualClock,
) -> None:
    """A killed process can have used the refresh token, and lost the new one."""
    tokens = await tokens_by_provider(browser, webmail, provider)
    clock.tick(minutes=61)
    assert await reserve_links_due_for_check(environment)  # and the process is killed
    provider.responses[ProviderEndpoint.TOKEN] = JSONResponse({"error": "invalid_grant"}, 400)
    clock.tick(minutes=3)
    (link,) = await reserve_links_due_for_check(environment)
    await check_account_and_end_access_if_ended(environment, link)
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 200
    (row,) = await environment.database.read(select(col(IdentityLink.check_due_at)))
    assert row.check_due_at is None


async def test_local_accounts_are_not_changed(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    clock: ManualClock,
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    assert await create_app_password(ada)
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(allow_local=True)
        await (await session.connection()).execute(statement)
    await send_logout(browser, provider.logout_token())
    provider.claims["active"] = False
    assert not await check_due_account(ada.environment, clock)
    assert await count_rows(ada.environment, ApplicationPassword, ada.user.id) == 1


async def test_refresh_tokens_of_the_provider_are_encrypted(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    (row,) = await environment.database.read(select(col(IdentityLink.refresh_token)))
    sent = provider.requests_to(ProviderEndpoint.TOKEN)
    assert row.refresh_token
    assert "." in row.refresh_token  # key name and ciphertext
    assert sent


async def test_sessions_without_tokens_are_deleted(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    clock: ManualClock,
) -> None:
    provider.claims["sid"] = "session-1"
    await tokens_by_provider(browser, webmail, provider)
    clock.tick(days=2)
    await housekeeping.run_housekeeping_round(environment)
    assert len(await environment.database.read(select(col(IdentitySession.id)))) == 1
    clock.tick(seconds=timedelta(days=31).total_seconds())
    await housekeeping.run_housekeeping_round(environment)
    assert not await environment.database.read(select(col(OauthRefreshToken.id)))
    await housekeeping.run_housekeeping_round(environment)
    assert not await environment.database.read(select(col(IdentitySession.id)))


async def test_next_refresh_token_is_stored_before_the_claims_are_read(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    clock: ManualClock,
) -> None:
    """The provider accepts the used token no more, also if its answer is useless."""
    await tokens_by_provider(browser, webmail, provider)
    answer = {"access_token": "a", "refresh_token": "the next one", "id_token": "forged"}
    provider.responses[ProviderEndpoint.TOKEN] = JSONResponse(answer)
    assert await check_due_account(environment, clock)
    (row,) = await environment.database.read(
        select(col(IdentityLink.id), col(IdentityLink.refresh_token))
    )
    purpose = refresh_token_purpose(row.id)
    assert environment.secret_box.decrypt(row.refresh_token, purpose) == "the next one"


async def test_check_does_not_end_a_sign_in_that_happened_meanwhile(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    clock: ManualClock,
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    clock.tick(minutes=61)
    (link,) = await reserve_links_due_for_check(environment)
    tokens = await tokens_by_provider(browser, webmail, provider)
    provider.responses[ProviderEndpoint.TOKEN] = JSONResponse({"error": "invalid_grant"}, 400)
    await check_account_and_end_access_if_ended(environment, link)
    assert await browser.is_accepted(tokens["access_token"])


async def test_logout_token_works_once(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    token = provider.logout_token()
    assert (await send_logout(browser, token)).status_code == 200
    tokens = await tokens_by_provider(browser, webmail, provider)
    assert (await send_logout(browser, token)).status_code == 200
    assert await browser.is_accepted(tokens["access_token"])


@pytest.mark.parametrize("columns", [{"role": Role.ROOT}, {"domain_id": None}])
async def test_provider_does_not_end_users_of_others(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    columns: dict[str, object],
) -> None:
    """Platform administrators and users of other domains are not under its control."""
    await tokens_by_provider(browser, webmail, provider)
    assert await create_app_password(ada)
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(columns)
        await (await session.connection()).execute(statement)
    await send_logout(browser, provider.logout_token())
    assert await count_rows(ada.environment, ApplicationPassword, ada.user.id) == 1


async def test_deleted_users_lose_their_link(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, root: GraphQLClient
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    payload = await root(
        'mutation { userDelete(input: {users: {usernames: ["ada"]}}) { errors { message } } }'
    )
    assert payload["userDelete"]["errors"] == []
    assert await root.environment.database.read(select(col(IdentityLink.id))) == []


async def test_unlinked_user_signs_in_with_a_new_account_of_the_provider(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, root: GraphQLClient
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    provider.claims["sub"] = "ada-2"
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 403
    payload = await root(
        'mutation { identityLinkDelete(input: {users: {usernames: ["ada"]}})'
        " { users { username } errors { message } } }"
    )
    assert payload["identityLinkDelete"] == {"users": [{"username": "ada"}], "errors": []}
    assert not await browser.is_accepted(tokens["access_token"])
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 200


async def test_unlinked_user_loses_the_role_that_groups_gave(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, root: GraphQLClient
) -> None:
    async with root.environment.write_session() as session:
        statement = update(IdentityProvider).values(admin_groups=["mail-admins"])
        await (await session.connection()).execute(statement)
    provider.claims["groups"] = ["mail-admins"]
    await tokens_by_provider(browser, webmail, provider)
    assert await role_and_domain_count(root.environment) == (Role.DOMAIN_ADMIN, 1)
    payload = await root(
        'mutation { identityLinkDelete(input: {users: {usernames: ["ada"]}})'
        " { users { role } errors { message } } }"
    )
    assert payload["identityLinkDelete"] == {"users": [{"role": "USER"}], "errors": []}
    assert await role_and_domain_count(root.environment) == (Role.USER, 0)
    await tokens_by_provider(browser, webmail, provider)
    assert await role_and_domain_count(root.environment) == (Role.DOMAIN_ADMIN, 1)
    provider.claims["groups"] = []
    await tokens_by_provider(browser, webmail, provider)
    assert await role_and_domain_count(root.environment) == (Role.USER, 0)


async def role_and_domain_count(environment: Environment) -> tuple[Role, int]:
    """Return the role of Ada and the number of domains that administrators have."""
    ada = select(col(User.role)).where(col(User.username) == "ada")
    (user,) = await environment.database.read(ada)
    domains = await environment.database.read(select(col(DomainAdmin.domain_id)))
    return user.role, len(domains)
