"""Sign-in by SMTP AUTH: refusals, throttling, and the end of signed-in sessions."""

import asyncio
import base64
import smtplib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.envelope.smtp_replies import AUTHENTICATION_THROTTLED_REPLY, CREDENTIALS_INVALID_REPLY
from mail.smtp.submission_server import SubmissionListener as Listener
from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.runtime.environment import Environment
from resolvers.auth import authentication
from resolvers.auth.passwords import password_hashes
from tests.conftest import GraphQLClient
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import (
    PASSWORD,
    RECIPIENT,
    SHORT_MESSAGE,
    auth_plain_response,
    sign_in_by_auth_plain,
)
from tests.support.mail_servers.submission_listeners import (
    authority,
    client,
    listener,
    update_ada,
    user,
)
from tests.support.time_limits import HANG_SECONDS

__all__ = ["authority", "client", "listener", "user"]


@pytest.mark.usefixtures("user")
async def test_sign_in_is_refused_before_tls(listener: Listener) -> None:
    client = await connect_smtp(listener.port)
    extensions = await client.run_command("EHLO x")
    assert "STARTTLS" in extensions
    assert "AUTH" not in extensions
    assert (await client.run_command(f"AUTH PLAIN {auth_plain_response()}")).startswith(
        "538 5.7.11"
    )
    assert (await client.run_command("MAIL FROM:<ada@example.org>")).startswith("530 5.7.0")
    await client.close()


@pytest.mark.usefixtures("user")
async def test_auth_plain_and_login_exchanges(
    listener: Listener, authority: CertificateAuthority
) -> None:
    async def run_commands(*lines: str) -> str:
        client = await connect_smtp(listener.port)
        await start_tls(client, authority.client_context())
        replies = [await client.run_command(line) for line in lines]
        await client.close()
        return replies[-1]

    name, password = (base64.b64encode(text.encode()).decode() for text in ("ada", PASSWORD))
    assert (await run_commands("AUTH PLAIN", auth_plain_response())).startswith("235")
    assert (
        await run_commands(
            "AUTH PLAIN "
            + auth_plain_response("Ada@Example.ORG", authorization_id="Ada@Example.ORG")
        )
    )[0] == "2"
    assert (await run_commands("AUTH LOGIN", name, password)).startswith("235")
    assert (await run_commands(f"AUTH LOGIN {name}", password)).startswith("235")
    assert (await run_commands("AUTH PLAIN", "*")).startswith("501 5.7.0")
    assert (await run_commands("AUTH LOGIN", name, "*")).startswith("501 5.7.0")
    for initial_response in ("!", "=", "YQ==", "/w==", auth_plain_response(authorization_id="bob")):
        assert (await run_commands(f"AUTH PLAIN {initial_response}")).startswith("501 5.5.2"), (
            initial_response
        )


@pytest.mark.usefixtures("user")
async def test_failed_sign_ins_look_alike_and_are_throttled(
    listener: Listener, authority: CertificateAuthority
) -> None:
    async def try_sign_in(name: str, password: str) -> list[str]:
        client = await connect_smtp(listener.port)
        await start_tls(client, authority.client_context())
        replies = [
            await client.run_command(f"AUTH PLAIN {auth_plain_response(name, password)}")
            for _ in range(3)
        ]
        assert (await client.read_until_closed()).startswith(b"421 4.7.0")
        await client.close()
        return replies

    wrong_replies = [CREDENTIALS_INVALID_REPLY] * 3
    throttled_replies = [AUTHENTICATION_THROTTLED_REPLY] * 3
    for name in ("ada", "nobody"):
        all_replies = [await try_sign_in(name, "wrong") for _ in range(5)]
        assert all_replies == [wrong_replies] * 4 + [throttled_replies], name
    assert await try_sign_in("ada", PASSWORD) == throttled_replies


@pytest.mark.parametrize(
    "name", ["ada\0", "\0", "ada\r\nx", "\u202eada", "a" * 1_400, "ada@\0", "a@b@c", "\ud7ff", ""]
)
@pytest.mark.usefixtures("user")
async def test_odd_username_or_password_is_refused_without_error(
    client: SmtpTestClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for credentials in ((name, PASSWORD), ("ada", name)):
        first, last = (base64.b64encode(item.encode()).decode() for item in credentials)
        assert (await client.run_command(f"AUTH LOGIN {first or '='}")).startswith("334")
        assert await client.run_command(last or "=") == CREDENTIALS_INVALID_REPLY
    await sign_in_by_auth_plain(client)
    assert not [item for item in caplog.records if item.levelname == "ERROR"]
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    "columns",
    [
        {"suspended": True},
        {"active": False},
        {"disabled_scopes": ["SMTP"]},
        {"second_factors": ["TOTP"]},
        {"smtp_allowed_networks": ["192.0.2.0/24"]},
    ],
)
@pytest.mark.usefixtures("user")
async def test_user_without_smtp_access_cannot_sign_in(
    environment: Environment, client: SmtpTestClient, columns: dict[str, Any]
) -> None:
    await update_ada(environment, **columns)
    reply = await client.run_command(f"AUTH PLAIN {auth_plain_response()}")
    assert reply == CREDENTIALS_INVALID_REPLY


@pytest.mark.usefixtures("user")
async def test_user_signs_in_from_allowed_network(
    environment: Environment, client: SmtpTestClient
) -> None:
    await update_ada(environment, smtp_allowed_networks=["192.0.2.0/24", "127.0.0.0/8"])
    await sign_in_by_auth_plain(client)


async def test_app_password_needs_smtp_scope(ada: GraphQLClient, client: SmtpTestClient) -> None:
    document = """mutation ($input: AppPasswordCreateInput!) {
      appPasswordCreate(input: $input) { password errors { message } } }"""
    passwords = {}
    for scope in ("SMTP", "IMAP"):
        arguments = {"description": scope, "scopes": [scope]}
        passwords[scope] = (await ada(document, input=arguments))["appPasswordCreate"]["password"]
    assert (
        await client.run_command(f"AUTH PLAIN {auth_plain_response(password=passwords['IMAP'])}")
    ).startswith("535")
    await sign_in_by_auth_plain(client, password=passwords["SMTP"])
    # Failures are logged after the reply.
    await authentication.wait_for_background_tasks(ada.environment)
    rows = await ada.environment.database.read(
        select(col(SecurityEvent.protocol), col(SecurityEvent.result)).where(
            col(SecurityEvent.action) == SecurityEventAction.SIGN_IN_ATTEMPTED
        )
    )
    assert {(row.protocol, row.result) for row in rows} == {
        ("SMTP", "SUCCESS"),
        ("SMTP", "FAILURE"),
    }


@pytest.mark.parametrize("columns", [{"suspended": True}, {"auth_version": 2}])
@pytest.mark.usefixtures("user")
async def test_session_ends_when_sign_in_is_revoked(
    environment: Environment, client: SmtpTestClient, columns: dict[str, Any]
) -> None:
    await sign_in_by_auth_plain(client)
    await update_ada(environment, **columns)
    assert (await client.run_command("MAIL FROM:<ada@example.org>")).startswith("421 4.7.0")


CREATE_APP_CREDENTIAL = """mutation ($input: AppPasswordCreateInput!) {
  appPasswordCreate(input: $input) {
    appPassword { id } password errors { message } } }"""
USER_UPDATE = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
  errors { message } } }"""


@asynccontextmanager
async def signed_in_smtp_client(
    listener: Listener, authority: CertificateAuthority, password: str
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Sign in with smtplib. Yield a function that sends a message."""

    def connect_and_sign_in() -> smtplib.SMTP:
        smtp = smtplib.SMTP("127.0.0.1", listener.port, timeout=HANG_SECONDS)
        smtp._host = "mx.example.org"  # type: ignore[attr-defined]  # noqa: SLF001
        smtp.starttls(context=authority.client_context())
        smtp.login("ada", password)
        return smtp

    smtp = await asyncio.to_thread(connect_and_sign_in)

    async def send() -> None:
        await asyncio.to_thread(smtp.sendmail, "ada@example.org", [RECIPIENT], SHORT_MESSAGE)

    try:
        yield send
    finally:
        await asyncio.to_thread(smtp.close)


async def test_password_change_ends_only_password_sessions(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
) -> None:
    await update_ada(
        ada.environment, password=await password_hashes.hash_password(ada.environment, PASSWORD)
    )
    app_password = (
        await ada(CREATE_APP_CREDENTIAL, input={"description": "Phone", "scopes": ["SMTP"]})
    )["appPasswordCreate"]
    password_client = signed_in_smtp_client(listener, authority, PASSWORD)
    async with (
        password_client as send_by_password,
        signed_in_smtp_client(
            listener, authority, app_password["password"]
        ) as send_by_app_password,
    ):
        await send_by_password()
        await send_by_app_password()
        arguments = {"users": {"usernames": ["ada"]}, "set": {"password": "another horse battery"}}
        assert (await admin_client(USER_UPDATE, input=arguments))["userUpdate"]["errors"] == []
        await send_by_app_password()
        with pytest.raises(smtplib.SMTPSenderRefused, match="no longer valid") as raised:
            await send_by_password()
        assert raised.value.smtp_code == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            await send_by_password()


@pytest.mark.parametrize(
    "mutation",
    [
        "appPasswordDelete(input: {appPasswords: [{id: $id}]})",
        "appPasswordUpdate(input: {appPasswords: [{id: $id}], set: {active: false}})",
        "appPasswordUpdate(input: {appPasswords: [{id: $id}], set: {scopes: [IMAP]}})",
        'userUpdate(input: {users: {usernames: ["ada"]}, set: {disabledScopes: [SMTP]}})',
    ],
)
async def test_session_ends_with_its_app_password(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
    mutation: str,
) -> None:
    app_password = (
        await ada(CREATE_APP_CREDENTIAL, input={"description": "Phone", "scopes": ["SMTP"]})
    )["appPasswordCreate"]
    async with signed_in_smtp_client(listener, authority, app_password["password"]) as send:
        await send()
        change_field = mutation.replace("$id", f'"{app_password["appPassword"]["id"]}"')
        actor = admin_client if "userUpdate" in mutation else ada
        answer = await actor("mutation { done: " + change_field + " { errors { message } } }")
        assert answer["done"]["errors"] == []
        with pytest.raises(smtplib.SMTPSenderRefused, match="no longer valid"):
            await send()


@pytest.mark.usefixtures("user")
async def test_passwords_are_not_logged(
    client: SmtpTestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    wrong = "not my secret"
    await client.run_command(f"AUTH PLAIN {auth_plain_response('ada', wrong)}")
    await sign_in_by_auth_plain(client)
    for text in (PASSWORD, wrong, auth_plain_response()):
        assert text not in caplog.text
