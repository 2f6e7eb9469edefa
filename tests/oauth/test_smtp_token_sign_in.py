"""Sign-in to submission with a token: XOAUTH2 and OAUTHBEARER (RFC 7628)."""

import asyncio
import base64
import json
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.smtp.bearer_responses import BearerCredentials, parse_bearer_response_or_none
from mail.smtp.credential_watch import CHANGE_BATCH_SECONDS
from mail.smtp.submission_server import SubmissionListener as Listener
from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import submit_message
from tests.support.mail_servers.submission_listeners import authority, listener
from tests.support.oauth.oauth_flow import PASSWORD, OauthBrowser, TestClient, add_client
from tests.support.oauth.token_ends import end_token

__all__ = ["authority", "listener"]

END_TIMEOUT = 15.0  # seconds on a busy machine; shorter than a sweep of all credentials


def xoauth2(username: str, token: str) -> str:
    text = f"user={username}\x01auth=Bearer {token}\x01\x01"
    return "XOAUTH2 " + base64.b64encode(text.encode()).decode()


def oauthbearer(username: str, token: str) -> str:
    name = f"a={username}" if username else ""
    text = f"n,{name},\x01host=mx.example.org\x01port=587\x01auth=Bearer {token}\x01\x01"
    return "OAUTHBEARER " + base64.b64encode(text.encode()).decode()


async def connect(listener: Listener, authority: CertificateAuthority) -> SmtpTestClient:
    client = await connect_smtp(listener.port)
    await start_tls(client, authority.client_context())
    return client


async def sign_in_reply(client: SmtpTestClient, response: str) -> tuple[str, Any]:
    """The final reply to a sign-in, and the error of its challenge."""
    reply = await client.run_command(f"AUTH {response}")
    if not reply.startswith("334 "):
        return reply, None
    error = json.loads(base64.b64decode(reply.split(" ", 1)[1]))
    return await client.run_command(""), error


async def test_token_signs_in_and_sends(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
) -> None:
    tokens = await browser.get_tokens(webmail, scope="smtp")
    for build in (xoauth2, oauthbearer):
        client = await connect(listener, authority)
        assert "XOAUTH2 OAUTHBEARER" in await client.run_command("EHLO x")
        reply, _ = await sign_in_reply(client, build("ada@example.org", tokens["access_token"]))
        assert reply.startswith("235 2.7.0")
        assert (await submit_message(client)).startswith("250 2")
        await client.close()
    is_sign_in = col(SecurityEvent.action) == SecurityEventAction.SIGN_IN_ATTEMPTED
    statement = select(col(SecurityEvent.detail)).where(is_sign_in)
    rows = await ada.environment.database.read(statement)
    assert {"scope": "SMTP", "source": "access token"} in [row.detail for row in rows]


async def test_oauthbearer_needs_no_name(
    browser: OauthBrowser, webmail: TestClient, listener: Listener, authority: CertificateAuthority
) -> None:
    tokens = await browser.get_tokens(webmail, scope="smtp")
    client = await connect(listener, authority)
    reply, _ = await sign_in_reply(client, oauthbearer("", tokens["access_token"]))
    assert reply.startswith("235 2.7.0")
    await client.close()


@pytest.mark.usefixtures("bob")
async def test_wrong_token_is_refused_as_the_rfcs_say(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
) -> None:
    mail_only = (await browser.get_tokens(webmail, scope="mail submit"))["access_token"]
    smtp = (await browser.get_tokens(webmail, scope="smtp"))["access_token"]
    for response in (
        xoauth2("ada", mail_only),
        xoauth2("bob", smtp),
        xoauth2("nobody", smtp),
        xoauth2("ada", "mgt_" + "x" * 43),
        xoauth2("ada", ada.secret),
        xoauth2("ada", "x" * 300),
        oauthbearer("bob@example.org", smtp),
        oauthbearer("", "mgt_" + "x" * 43),
    ):
        client = await connect(listener, authority)
        reply, error = await sign_in_reply(client, response)
        assert reply.startswith("535 5.7.8")
        assert error["scope"] == "smtp"
        assert error["status"] == ("401" if response.startswith("X") else "invalid_token")
        await client.close()


async def test_malformed_response_is_refused(
    browser: OauthBrowser, listener: Listener, authority: CertificateAuthority
) -> None:
    del browser
    client = await connect(listener, authority)
    for text in ("", "user=ada", "user=ada\x01auth=Basic x\x01\x01", "\x01\x01", "auth=Bearer x"):
        encoded = base64.b64encode(text.encode()).decode() or "="
        for mechanism in ("XOAUTH2", "OAUTHBEARER"):
            reply = await client.run_command(f"AUTH {mechanism} {encoded}")
            assert reply.startswith("501 5.5.2")
    assert (await client.run_command("AUTH XOAUTH2 %%%")).startswith("501 5.5.2")
    await client.close()


async def test_wrong_tokens_are_throttled_as_passwords(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
) -> None:
    smtp = (await browser.get_tokens(webmail, scope="smtp"))["access_token"]
    for _ in range(ada.environment.options.sign_in_max_failures):
        client = await connect(listener, authority)
        await sign_in_reply(client, xoauth2("ada", "mgt_" + "x" * 43))
        await client.close()
    client = await connect(listener, authority)
    reply, _ = await sign_in_reply(client, xoauth2("ada", smtp))
    assert reply.startswith("454 4.7.0")
    await client.close()
    await authentication.wait_for_background_tasks(ada.environment)


@pytest.mark.parametrize("way", ["token", "grant", "client", "sessions", "suspension", "account"])
async def test_session_is_closed_when_its_token_has_ended(
    browser: OauthBrowser,
    root: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
    way: str,
) -> None:
    webmail = await add_client(root.environment)
    await assert_session_ends(browser, webmail, root, await connect(listener, authority), way)


async def test_session_is_closed_when_its_user_revokes_all_tokens(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
) -> None:
    client = await connect(listener, authority)
    await assert_session_ends(browser, webmail, ada, client, "tokens of the user")


async def assert_session_ends(
    browser: OauthBrowser,
    webmail: TestClient,
    administrator: GraphQLClient,
    client: SmtpTestClient,
    way: str,
) -> None:
    """Check that a session with a token is closed after the end of the token."""
    tokens = await browser.get_tokens(webmail, scope="smtp")
    await sign_in_reply(client, xoauth2("ada", tokens["access_token"]))
    assert (await client.run_command("MAIL FROM:<ada@example.org>")).startswith("250")
    await end_token(way, browser, webmail, tokens["access_token"], administrator)
    async with asyncio.timeout(END_TIMEOUT):
        assert (await client.read_until_closed()).startswith(b"421 4.3.2")
    await client.close()


async def test_session_is_closed_when_its_token_expires(
    browser: OauthBrowser,
    webmail: TestClient,
    listener: Listener,
    authority: CertificateAuthority,
    clock: ManualClock,
) -> None:
    tokens = await browser.get_tokens(webmail, scope="smtp")
    client = await connect(listener, authority)
    await sign_in_reply(client, xoauth2("ada", tokens["access_token"]))
    clock.tick(hours=1)
    async with asyncio.timeout(END_TIMEOUT):
        assert (await client.read_until_closed()).startswith(b"421 4.3.2")
    await client.close()


async def test_session_stays_open_when_another_token_ends(
    browser: OauthBrowser, webmail: TestClient, listener: Listener, authority: CertificateAuthority
) -> None:
    tokens = await browser.get_tokens(webmail, scope="smtp")
    other_tokens = await browser.get_tokens(webmail, scope="smtp")
    client = await connect(listener, authority)
    await sign_in_reply(client, xoauth2("ada", tokens["access_token"]))
    await browser.post_as_client("/oauth/revoke", webmail, token=other_tokens["access_token"])
    await asyncio.sleep(3 * CHANGE_BATCH_SECONDS)
    assert (await client.run_command("MAIL FROM:<ada@example.org>")).startswith("250")
    await client.close()


async def test_message_in_data_ends_before_its_session(
    browser: OauthBrowser, webmail: TestClient, listener: Listener, authority: CertificateAuthority
) -> None:
    """The connection is not cut in the message. Its token is refused at its end."""
    tokens = await browser.get_tokens(webmail, scope="smtp")
    client = await connect(listener, authority)
    await sign_in_reply(client, xoauth2("ada", tokens["access_token"]))
    await client.start_data("bob@example.com", sender="ada@example.org")
    client.send_bytes(b"Subject: Late\r\n\r\n")
    await browser.post_as_client("/oauth/revoke", webmail, token=tokens["access_token"])
    await asyncio.sleep(3 * CHANGE_BATCH_SECONDS)
    client.send_bytes(b"Hello\r\n.\r\n")
    assert (await client.read_until_closed()).startswith(b"421 4.7.0")
    await client.close()


async def test_token_that_ends_during_its_sign_in_opens_no_session(
    browser: OauthBrowser,
    webmail: TestClient,
    listener: Listener,
    authority: CertificateAuthority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = await browser.get_tokens(webmail, scope="smtp")
    sign_in = listener.backend.sign_in_by_token

    async def sign_in_and_revoke(_: Any, *arguments: Any) -> Any:
        submitter = await sign_in(*arguments)
        await browser.post_as_client("/oauth/revoke", webmail, token=tokens["access_token"])
        return submitter

    monkeypatch.setattr(SmtpSubmissionService, "sign_in_by_token", sign_in_and_revoke)
    client = await connect(listener, authority)
    await sign_in_reply(client, xoauth2("ada", tokens["access_token"]))
    async with asyncio.timeout(END_TIMEOUT):
        assert (await client.read_until_closed()).startswith(b"421 4.3.2")
    await client.close()


async def test_session_with_a_password_is_closed_after_a_suspension(
    browser: OauthBrowser, root: GraphQLClient, listener: Listener, authority: CertificateAuthority
) -> None:
    del browser
    client = await connect(listener, authority)
    await client.run_command("EHLO x")
    credentials = base64.b64encode(f"\0ada\0{PASSWORD}".encode()).decode()
    assert (await client.run_command(f"AUTH PLAIN {credentials}")).startswith("235")
    await root(
        'mutation { userUpdate(input: {users: {usernames: ["ada"]}, set: {suspended: true}}) '
        "{ errors { code } } }"
    )
    async with asyncio.timeout(END_TIMEOUT):
        assert (await client.read_until_closed()).startswith(b"421 4.3.2")
    await client.close()


async def test_smtp_that_is_turned_off_refuses_tokens(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
) -> None:
    tokens = await browser.get_tokens(webmail, scope="smtp")
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id)
        await (await session.connection()).execute(statement.values(disabled_scopes=["SMTP"]))
    client = await connect(listener, authority)
    reply, _ = await sign_in_reply(client, xoauth2("ada", tokens["access_token"]))
    assert reply.startswith("535 5.7.8")
    await client.close()


@pytest.mark.parametrize(
    ("mechanism", "text", "expected"),
    [
        ("XOAUTH2", "user=ada\x01auth=Bearer t\x01\x01", BearerCredentials("ada", "t")),
        ("XOAUTH2", "user=ada\x01auth=bearer t\x01\x01", BearerCredentials("ada", "t")),
        ("XOAUTH2", "user=\x01auth=Bearer t\x01\x01", None),
        ("XOAUTH2", "user=ada\x01auth=Bearer t\x01", None),
        ("XOAUTH2", "user=ada\x01auth=Bearer \x01\x01", None),
        ("OAUTHBEARER", "n,a=a=2Cb=3Dc,\x01auth=Bearer t\x01\x01", BearerCredentials("a,b=c", "t")),
        ("OAUTHBEARER", "n,,\x01auth=Bearer t\x01\x01", BearerCredentials(None, "t")),
        ("OAUTHBEARER", "p=tls-unique,,\x01auth=Bearer t\x01\x01", None),
        ("OAUTHBEARER", "n,a=,\x01auth=Bearer t\x01\x01", None),
        ("OAUTHBEARER", "n,a=x\x01auth=Bearer t\x01\x01", None),
    ],
)
def test_bearer_responses_are_parsed(
    mechanism: str, text: str, expected: BearerCredentials | None
) -> None:
    assert parse_bearer_response_or_none(mechanism, text) == expected
