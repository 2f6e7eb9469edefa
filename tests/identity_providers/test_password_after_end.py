"""Passwords after the provider has ended an account: no way to sign in accepts them."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlmodel import col

from mail.smtp.submission_server import SubmissionListener as Listener
from models.auth.security_log import SecurityEvent, SecurityEventAction, SecurityEventResult
from models.errors import Forbidden, Unauthenticated
from models.identity_providers import IdentityProvider
from models.runtime.environment import Environment
from models.users.roles import Role
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.auth.sign_in import REQUIRED_PROVIDER
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.sign_in_environment import basic_auth_header
from tests.support.identity_providers.scripted_provider import ScriptedProvider
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import auth_plain_response
from tests.support.mail_servers.submission_listeners import authority, listener
from tests.support.oauth.oauth_flow import PASSWORD, OauthBrowser, TestClient
from tests.support.oauth.provider_flow import (
    add_provider,
    provider_url,
    sign_in_at_provider,
    tokens_by_provider,
)

__all__ = ["authority", "listener"]

AUTHENTICATE = """mutation ($input: AuthenticateInput!) { authenticate(input: $input) {
  user { username } token errors { code message ... on ForbiddenError { requires } } } }"""
VERIFY_MUTATION = """mutation ($input: PasswordVerifyInput!) { passwordVerify(input: $input) {
  user { username } errors { code message ... on ForbiddenError { requires } } } }"""
LINK = "{ user { identityLink { accessEndedAt } } }"
LOGOUT_URL = "/oauth/backchannel-logout/example.org"
IsAccepted = Callable[[], Awaitable[bool]]  # tries the password


@pytest.fixture(autouse=True)
async def _provider_of_domain(provider: ScriptedProvider, environment: Environment) -> None:
    await add_provider(environment, provider.issuer, active_claim="active")
    provider.claims["active"] = True


async def end_by_logout(browser: OauthBrowser, provider: ScriptedProvider, **changes: Any) -> None:
    """Send a logout token, with `sub` only."""
    form = {"logout_token": provider.logout_token(**changes)}
    assert (await browser.http.post(LOGOUT_URL, data=form)).status_code == 200


async def change_user(client: GraphQLClient, **columns: Any) -> None:
    async with client.environment.write_session() as session:
        statement = update(User).where(col(User.id) == client.user.id).values(columns)
        await (await session.connection()).execute(statement)


async def is_accepted_by_authenticate(client: GraphQLClient, password: str = PASSWORD) -> bool:
    """Try `authenticate`. A refusal must be typed, and name the provider."""
    given = {"username": "ada@example.org", "password": password}
    payload = (await client(AUTHENTICATE, input=given))["authenticate"]
    assert bool(payload["token"]) is not bool(payload["errors"])
    return is_password_accepted(payload)


async def is_accepted_by_password_verify(
    client: GraphQLClient, scope: str, protocol: str = "API"
) -> bool:
    """Try `passwordVerify`. A refusal must be typed, and name the provider."""
    given = {
        "username": "ada@example.org",
        "password": PASSWORD,
        "scope": scope,
        "protocol": protocol,
    }
    return is_password_accepted((await client(VERIFY_MUTATION, input=given))["passwordVerify"])


def is_password_accepted(payload: Mapping[str, Any]) -> bool:
    """True if a payload has no error; its only error must name the provider."""
    if not payload["errors"]:
        return True
    (error,) = payload["errors"]
    assert (error["code"], error["requires"]) == ("FORBIDDEN", REQUIRED_PROVIDER)
    assert payload["user"] is None
    return False


async def is_accepted_by_basic_auth(environment: Environment) -> bool:
    headers = basic_auth_header("ada", PASSWORD)
    try:
        viewer = await authentication.authenticate_request(environment, headers)
    except Forbidden as refusal:
        if refusal.requires != REQUIRED_PROVIDER:
            raise
        return False
    return bool(viewer.user_id)


async def is_accepted_by_submission(listener: Listener, authority: CertificateAuthority) -> bool:
    client = await connect_smtp(listener.port)
    await start_tls(client, authority.client_context())
    await client.run_command("EHLO x")
    reply = await client.run_command(f"AUTH PLAIN {auth_plain_response('ada', PASSWORD)}")
    await client.close()
    return reply.startswith("235")


async def is_accepted_on_the_page(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> bool:
    """Try the sign-in page. After a refusal it sends the browser to the provider."""
    page = await browser.sign_in(await browser.open(webmail), "ada")
    if "Allow access?" in page.text:
        return True
    assert provider_url(page).startswith(provider.issuer)
    return False


@pytest.fixture
def ways(
    request: pytest.FixtureRequest,
    root: GraphQLClient,
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
) -> dict[str, IsAccepted]:
    """All ways to sign in with the password of the account, by name."""
    server: Any = request.getfixturevalue("listener")
    certificates: Any = request.getfixturevalue("authority")
    by_verify = partial(is_accepted_by_password_verify, root)
    return {
        "token": partial(is_accepted_by_authenticate, root),
        "front end": partial(by_verify, "FULL"),
        "IMAP": partial(by_verify, "IMAP", "IMAP"),
        "POP3": partial(by_verify, "POP3", "POP3"),
        "SMTP": partial(by_verify, "SMTP", "SMTP"),
        "Basic": partial(is_accepted_by_basic_auth, root.environment),
        "submission": partial(is_accepted_by_submission, server, certificates),
        "OAuth page": partial(is_accepted_on_the_page, browser, webmail, provider),
    }


async def test_no_way_accepts_the_password_until_the_next_sign_in_at_the_provider(
    ways: dict[str, IsAccepted],
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    assert {name: await try_password() for name, try_password in ways.items()} == dict.fromkeys(
        ways, True
    )
    await end_by_logout(browser, provider)
    assert {name: await try_password() for name, try_password in ways.items()} == dict.fromkeys(
        ways, False
    )
    await sign_in_at_provider(browser, webmail, provider)
    assert {name: await try_password() for name, try_password in ways.items()} == dict.fromkeys(
        ways, True
    )
    assert ada.user.id


async def test_temporary_password_is_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, root: GraphQLClient
) -> None:
    """A new password of an administrator does not lift the end."""
    await tokens_by_provider(browser, webmail, provider)
    await end_by_logout(browser, provider)
    payload = await root(
        'mutation { userPasswordReset(input: {user: {username: "ada"}})'
        " { password errors { message } } }"
    )
    password = payload["userPasswordReset"]["password"]
    assert password
    assert not await is_accepted_by_authenticate(root, password)
    await sign_in_at_provider(browser, webmail, provider)
    assert await is_accepted_by_authenticate(root, password)


async def test_refusal_is_before_the_second_factor(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    root: GraphQLClient,
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    await change_user(ada, second_factors=["EXTERNAL"])
    await end_by_logout(browser, provider)
    assert not await is_accepted_by_authenticate(root)


async def test_end_and_refusal_are_logged_and_shown(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    root: GraphQLClient,
    clock: ManualClock,
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    link = LINK.replace("user {", 'user(by: {username: "ada"}) {')
    assert (await root(link))["user"]["identityLink"] == {"accessEndedAt": None}
    await end_by_logout(browser, provider)
    ended_at = (await root(link))["user"]["identityLink"]["accessEndedAt"]
    assert ended_at.startswith(clock().isoformat()[:19])
    assert not await is_accepted_by_authenticate(root)
    await authentication.wait_for_background_tasks(root.environment)
    columns = (col(SecurityEvent.action), col(SecurityEvent.result), col(SecurityEvent.detail))
    rows = await root.environment.database.read(select(*columns).order_by(col(SecurityEvent.id)))
    end, refusal = rows[-2:]
    assert end.action == SecurityEventAction.SESSION_TERMINATED
    assert end.detail["passwordSignIn"] is False
    assert (refusal.action, refusal.result) == (
        SecurityEventAction.SIGN_IN_ATTEMPTED,
        SecurityEventResult.FAILURE,
    )
    assert "identity provider has ended" in refusal.detail["reason"]


@pytest.mark.parametrize("columns", [{"allow_local": True}, {"role": Role.ADMIN}])
async def test_password_of_an_account_outside_of_the_directory_is_accepted(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    columns: dict[str, object],
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    await end_by_logout(browser, provider)
    assert not await is_accepted_by_basic_auth(ada.environment)
    await change_user(ada, **columns)
    assert await is_accepted_by_basic_auth(ada.environment)


@pytest.mark.parametrize("lift", ["unlink", "no provider"])
async def test_end_is_lifted_with_the_link(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    root: GraphQLClient,
    lift: str,
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    await end_by_logout(browser, provider)
    assert not await is_accepted_by_basic_auth(root.environment)
    if lift == "unlink":
        await root('mutation { identityLinkDelete(input: {users: {usernames: ["ada"]}}) '
                   "{ errors { message } } }")  # fmt: skip
    else:
        async with root.environment.write_session() as session:
            await (await session.connection()).execute(delete(IdentityProvider))
    assert await is_accepted_by_basic_auth(root.environment)


async def test_end_of_a_session_of_the_provider_keeps_the_password(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    """A user who signs out at the provider sends `sid`: the account has not ended."""
    provider.claims["sid"] = "session-1"
    tokens = await tokens_by_provider(browser, webmail, provider)
    await end_by_logout(browser, provider, sid="session-1")
    assert not await browser.is_accepted(tokens["access_token"])
    assert await is_accepted_by_basic_auth(ada.environment)


async def test_password_stays_refused_when_the_suspension_by_a_claim_is_lifted(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await tokens_by_provider(browser, webmail, provider)
    provider.claims["active"] = False
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 403
    with pytest.raises(Unauthenticated):
        await is_accepted_by_basic_auth(ada.environment)
    await change_user(ada, suspended=False)
    assert not await is_accepted_by_basic_auth(ada.environment)
    provider.claims["active"] = True
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 200
    assert await is_accepted_by_basic_auth(ada.environment)
