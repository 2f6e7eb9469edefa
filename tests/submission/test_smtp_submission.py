"""Submission by SMTP: who may sign in, whom they may send as, and what is queued."""

import asyncio
import base64
import smtplib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.queue import message_body as body
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.auth.security_log import SecurityEvent
from models.messages.tables import Message
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.auth.passwords import password_hashes
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import Client, Clock, make_user
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.smtp_client import Authority, connect, secured, wrapped
from tests.support.mail_servers.submission_client import (
    PASSWORD,
    RECIPIENT,
    SHORT_MESSAGE,
    auth_plain_response,
    sign_in_by_auth_plain,
    submit_message,
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def user(world: Environment) -> User:
    return await make_user(world, "ada", password=PASSWORD)


@pytest.fixture
async def listener(
    world: Environment, tmp_path: Path, authority: Authority
) -> AsyncIterator[Listener]:
    terms = SmtpListenerConfig(certificates=CertificateFiles(authority.issue()))
    made = Listener(world, tmp_path / "spool", terms, SmtpSubmissionService(world))
    await made.start(host="127.0.0.1", port=0)
    yield made
    await made.close(1)


@pytest.fixture
async def client(listener: Listener, authority: Authority) -> AsyncIterator[Neighbour]:
    """A connection with TLS."""
    neighbour = await connect(listener.port)
    await secured(neighbour, authority.client())
    yield neighbour
    await neighbour.close()


async def change(world: Environment, **columns: Any) -> None:
    async with world.write_session() as session:
        mine = col(User.username) == "ada"
        await session.exec(update(User).where(mine).values(**columns))


async def many(world: Environment, table: Any) -> int:
    (row,) = await world.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


async def queued(world: Environment) -> tuple[list[str], bytes]:
    """The recipients of the only message in the queue, and its bytes."""
    (row,) = await world.database.read(select(col(Submission.id), col(Submission.blob_id)))
    named = select(col(QueueEntry.recipient)).order_by(col(QueueEntry.id))
    job: Any = SimpleNamespace(submission_id=row.id, blob_id=row.blob_id)
    to = [one.recipient for one in await world.database.read(named)]
    return to, await body.read_message(world, job)


# ---------------------------------------------------------------- signing in


@pytest.mark.usefixtures("user")
async def test_nothing_is_said_before_tls(listener: Listener) -> None:
    client = await connect(listener.port)
    offers = await client.say("EHLO x")
    assert "STARTTLS" in offers
    assert "AUTH" not in offers
    assert (await client.say(f"AUTH PLAIN {auth_plain_response()}")).startswith("538 5.7.11")
    assert (await client.say("MAIL FROM:<ada@example.org>")).startswith("530 5.7.0")
    await client.close()


@pytest.mark.usefixtures("user")
async def test_nothing_is_taken_before_signing_in(client: Neighbour) -> None:
    assert "250 AUTH PLAIN LOGIN" in await client.say("EHLO x")
    assert (await client.say("MAIL FROM:<ada@example.org>")).startswith("530 5.7.0")
    assert (await client.say("AUTH CRAM-MD5")).startswith("504 5.5.4")
    await sign_in_by_auth_plain(client)
    assert "AUTH" not in await client.say("EHLO x")
    assert (await client.say(f"AUTH PLAIN {auth_plain_response()}")).startswith("503 5.5.1")
    assert (await client.say("MAIL FROM:<ada@example.org> AUTH=<>")).startswith("250")


@pytest.mark.usefixtures("user")
async def test_ways_to_sign_in(listener: Listener, authority: Authority) -> None:
    async def say(*lines: str) -> str:
        client = await connect(listener.port)
        await secured(client, authority.client())
        replies = [await client.say(line) for line in lines]
        await client.close()
        return replies[-1]

    name, password = (base64.b64encode(each.encode()).decode() for each in ("ada", PASSWORD))
    assert (await say("AUTH PLAIN", auth_plain_response())).startswith("235")
    assert (
        await say(f"AUTH PLAIN {auth_plain_response('Ada@Example.ORG', wanted='Ada@Example.ORG')}")
    )[0] == "2"
    assert (await say("AUTH LOGIN", name, password)).startswith("235")
    assert (await say(f"AUTH LOGIN {name}", password)).startswith("235")
    assert (await say("AUTH PLAIN", "*")).startswith("501 5.7.0")
    assert (await say("AUTH LOGIN", name, "*")).startswith("501 5.7.0")
    for shown in ("!", "=", "YQ==", "/w==", auth_plain_response(wanted="bob")):
        assert (await say(f"AUTH PLAIN {shown}")).startswith("501 5.5.2"), shown


@pytest.mark.usefixtures("user")
async def test_failures_are_alike_and_throttled(listener: Listener, authority: Authority) -> None:
    async def tries(name: str, password: str) -> list[str]:
        client = await connect(listener.port)
        await secured(client, authority.client())
        replies = [
            await client.say(f"AUTH PLAIN {auth_plain_response(name, password)}") for _ in range(3)
        ]
        assert (await client.ended()).startswith(b"421 4.7.0")
        await client.close()
        return replies

    wrong = ["535 5.7.8 That does not sign anybody in"] * 3
    many = ["454 4.7.0 Too many failures, wait before the next try"] * 3
    for name in ("ada", "nobody"):
        told = [await tries(name, "wrong") for _ in range(5)]
        assert told == [wrong] * 4 + [many], name
    assert await tries("ada", PASSWORD) == many


@pytest.mark.parametrize(
    "name", ["ada\0", "\0", "ada\r\nx", "\u202eada", "a" * 1_400, "ada@\0", "a@b@c", "\ud7ff", ""]
)
@pytest.mark.usefixtures("user")
async def test_odd_names_and_passwords_are_wrong_and_no_more(
    client: Neighbour, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for shown in ((name, PASSWORD), ("ada", name)):
        first, last = (base64.b64encode(each.encode()).decode() for each in shown)
        assert (await client.say(f"AUTH LOGIN {first or '='}")).startswith("334")
        assert await client.say(last or "=") == "535 5.7.8 That does not sign anybody in"
    await sign_in_by_auth_plain(client)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    "columns",
    [
        {"suspended": True},
        {"disabled": True},
        {"disabled_scopes": ["SMTP"]},
        {"second_factors": ["TOTP"]},
        {"smtp_allowed_networks": ["192.0.2.0/24"]},
    ],
)
@pytest.mark.usefixtures("user")
async def test_who_may_not_sign_in(
    world: Environment, client: Neighbour, columns: dict[str, Any]
) -> None:
    await change(world, **columns)
    reply = await client.say(f"AUTH PLAIN {auth_plain_response()}")
    assert reply == "535 5.7.8 That does not sign anybody in"


@pytest.mark.usefixtures("user")
async def test_networks_that_are_allowed(world: Environment, client: Neighbour) -> None:
    await change(world, smtp_allowed_networks=["192.0.2.0/24", "127.0.0.0/8"])
    await sign_in_by_auth_plain(client)


async def test_passwords_of_programs(ada: Client, client: Neighbour) -> None:
    made = """mutation ($input: AppPasswordCreateInput!) {
      appPasswordCreate(input: $input) { password errors { message } } }"""
    texts = {}
    for scope in ("SMTP", "IMAP"):
        given = {"description": scope, "scopes": [scope]}
        texts[scope] = (await ada(made, input=given))["appPasswordCreate"]["password"]
    assert (
        await client.say(f"AUTH PLAIN {auth_plain_response(password=texts['IMAP'])}")
    ).startswith("535")
    await sign_in_by_auth_plain(client, password=texts["SMTP"])
    await authentication.wait_for_background_tasks(
        ada.world
    )  # failures are noted behind the answer
    rows = await ada.world.database.read(
        select(col(SecurityEvent.protocol), col(SecurityEvent.result)).where(
            col(SecurityEvent.action) == "authenticate"
        )
    )
    assert {(row.protocol, row.result) for row in rows} == {("SMTP", "success"), ("SMTP", "fail")}


@pytest.mark.parametrize("columns", [{"suspended": True}, {"auth_version": 2}])
@pytest.mark.usefixtures("user")
async def test_a_session_ends_with_what_it_was_signed_in_by(
    world: Environment, client: Neighbour, columns: dict[str, Any]
) -> None:
    await sign_in_by_auth_plain(client)
    await change(world, **columns)
    assert (await client.say("MAIL FROM:<ada@example.org>")).startswith("421 4.7.0")


APP = """mutation ($input: AppPasswordCreateInput!) {
  appPasswordCreate(input: $input) {
    appPassword { id } password errors { message } } }"""
UPDATE_USER = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
  errors { message } } }"""


@asynccontextmanager
async def program(
    listener: Listener, authority: Authority, password: str
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """An SMTP client of the standard library that has signed in; call to send a message."""

    def begin() -> smtplib.SMTP:
        smtp = smtplib.SMTP("127.0.0.1", listener.port, timeout=60)
        smtp._host = "mx.example.org"  # type: ignore[attr-defined]  # noqa: SLF001
        smtp.starttls(context=authority.client())
        smtp.login("ada", password)
        return smtp

    smtp = await asyncio.to_thread(begin)

    async def send() -> None:
        await asyncio.to_thread(smtp.sendmail, "ada@example.org", [RECIPIENT], SHORT_MESSAGE)

    yield send
    await asyncio.to_thread(smtp.close)


async def test_a_new_password_ends_only_sessions_of_the_password(
    ada: Client, over: Client, listener: Listener, authority: Authority
) -> None:
    await change(ada.world, password=await password_hashes.hash_password(ada.world, PASSWORD))
    made = (await ada(APP, input={"description": "Phone", "scopes": ["SMTP"]}))["appPasswordCreate"]
    own = program(listener, authority, PASSWORD)
    async with own as by_password, program(listener, authority, made["password"]) as by_app:
        await by_password()
        await by_app()
        given = {"users": {"usernames": ["ada"]}, "set": {"password": "another horse battery"}}
        assert (await over(UPDATE_USER, input=given))["userUpdate"]["errors"] == []
        await by_app()
        with pytest.raises(smtplib.SMTPSenderRefused, match="Sign in again") as refused:
            await by_password()
        assert refused.value.smtp_code == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            await by_password()


@pytest.mark.parametrize(
    "mutation",
    [
        "appPasswordDelete(input: {ids: [$id]})",
        "appPasswordUpdate(input: {ids: [$id], active: false})",
        "appPasswordUpdate(input: {ids: [$id], scopes: [IMAP]})",
        'userUpdate(input: {users: {usernames: ["ada"]}, set: {disabledScopes: [SMTP]}})',
    ],
)
async def test_a_session_ends_with_its_application_password(
    ada: Client, over: Client, listener: Listener, authority: Authority, mutation: str
) -> None:
    made = (await ada(APP, input={"description": "Phone", "scopes": ["SMTP"]}))["appPasswordCreate"]
    async with program(listener, authority, made["password"]) as send:
        await send()
        changing = mutation.replace("$id", f'"{made["appPassword"]["id"]}"')
        by = over if "userUpdate" in mutation else ada
        done = await by("mutation { done: " + changing + " { errors { message } } }")
        assert done["done"]["errors"] == []
        with pytest.raises(smtplib.SMTPSenderRefused, match="Sign in again"):
            await send()


# ---------------------------------------------------------------- what is queued


@pytest.mark.usefixtures("user")
async def test_results_in_our_name_are_removed(world: Environment, client: Neighbour) -> None:
    await sign_in_by_auth_plain(client)
    claims = b"Authentication-Results: MX.example.org 1; dkim=pass\r\n"
    await submit_message(client, claims + SHORT_MESSAGE.replace(b"Subject", claims + b"Subject", 1))
    assert b"authentication-results" not in (await queued(world))[1].lower()


@pytest.mark.usefixtures("user")
async def test_an_ordinary_program_sends(
    world: Environment, listener: Listener, authority: Authority
) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Bcc"] = "ada@example.org", RECIPIENT, "bob@example.net"
    message["Subject"] = "Hi"
    message.set_content("Hello\n")

    def work() -> None:
        with smtplib.SMTP("127.0.0.1", listener.port, timeout=10) as smtp:
            smtp._host = "mx.example.org"  # type: ignore[attr-defined]  # noqa: SLF001
            smtp.starttls(context=authority.client())
            smtp.login("ada", PASSWORD)
            smtp.send_message(message)

    await asyncio.to_thread(work)
    to, raw = await queued(world)
    assert to == [RECIPIENT, "bob@example.net"]
    head = raw.partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("Received: by mx.example.org with ESMTPSA (TLSv1.3")
    assert "127.0.0.1" not in head
    assert "\r\nDate: Tue, 01 Jan 2030 00:00:00 +0000" in head
    assert "\r\nMessage-ID: <" in head


@pytest.mark.usefixtures("user")
async def test_over_tls_from_the_first_byte(
    world: Environment, tmp_path: Path, authority: Authority
) -> None:
    terms = SmtpListenerConfig(certificates=CertificateFiles(authority.issue()), implicit_tls=True)
    listener = Listener(world, tmp_path / "spool", terms, SmtpSubmissionService(world))
    await listener.start(host="127.0.0.1", port=0)
    client = await wrapped(listener.port, authority.client())
    assert "STARTTLS" not in await client.say("EHLO x")
    await sign_in_by_auth_plain(client)
    reply = await submit_message(client)
    (row,) = await world.database.read(select(col(Submission.queue_id)))
    assert reply == f"250 2.0.0 Queued as {row.queue_id}"
    await client.close()
    await listener.close(1)


@pytest.mark.usefixtures("user")
async def test_what_is_there_stays(world: Environment, client: Neighbour) -> None:
    await sign_in_by_auth_plain(client)
    own = b"Date: Mon, 31 Dec 2029 10:00:00 +0100\r\nMessage-ID: <a@b>\r\n"
    assert (await submit_message(client, own + SHORT_MESSAGE)).startswith("250")
    _, raw = await queued(world)
    assert raw.endswith(own + SHORT_MESSAGE)


@pytest.mark.usefixtures("user")
async def test_what_cannot_be_read_is_replaced(world: Environment, client: Neighbour) -> None:
    await sign_in_by_auth_plain(client)
    odd = b"Date: yesterday\r\n\tor so\r\nMessage-ID: none\r\n \r\n"
    body = SHORT_MESSAGE.replace(b"Hello\r\n", b"a\nb\rc\r\n..\r\n")
    assert (await submit_message(client, odd + body)).startswith("250")
    _, raw = await queued(world)
    assert b"yesterday" not in raw
    assert b"or so" not in raw
    assert raw.count(b"\r\nDate: ") == raw.count(b"\r\nMessage-ID: ") == 1
    assert raw.endswith(b"\r\n\r\na\r\nb\r\nc\r\n.\r\n")


@pytest.mark.parametrize(
    "sender", ["bob@example.org", "ada@elsewhere.example", "carol@example.net", "ada@example.org.x"]
)
@pytest.mark.usefixtures("user", "bob")
async def test_nobody_sends_as_somebody_else(
    world: Environment, client: Neighbour, sender: str
) -> None:
    await sign_in_by_auth_plain(client)
    reply = await client.say(f"MAIL FROM:<{sender}>")
    assert reply == f"553 5.7.1 you may not send as {sender}"
    forged = SHORT_MESSAGE.replace(b"ada@example.org", sender.encode())
    assert (await submit_message(client, forged)).startswith("550 5.7.1")
    assert (await submit_message(client, forged, sender="")).startswith("550 5.7.1")
    assert (await submit_message(client, b"Sender: " + sender.encode() + b"\r\n" + SHORT_MESSAGE))[
        :9
    ] == "550 5.7.1"
    assert await many(world, Submission) == 0


BOSS = b"boss@example.org"
FORGED = [
    b"From: ada@example.org, boss@example.org\r\n\r\nHi\r\n",
    b"From: ada@example.org\r\nFrom: boss@example.org\r\n\r\nHi\r\n",
    b"From: ada@example.org\rFrom: boss@example.org\r\n\r\nHi\r\n",
    b"From: ada@example.org\nFrom : boss@example.org\r\n\r\nHi\r\n",
    b"X: y\rFrom: boss@example.org\r\nFrom: ada@example.org\r\n\r\nHi\r\n",
    b"From: ada@example.org\r\n \r\nFrom: boss@example.org\r\n\r\nHi\r\n",
    b" From: boss@example.org\r\nFrom: ada@example.org\r\n\r\nHi\r\n",
    b"no field\r\nFrom: ada@example.org\r\n\r\nHi\r\n",
    b"From boss@example.org\r\nFrom: ada@example.org\r\n\r\nHi\r\n",
    b"From: ada@example.org\r\nSender: ada@example.org\r\nSender: boss@example.org\r\n\r\nHi\r\n",
    b"From: team: boss@example.org, ada@example.org;\r\n\r\nHi\r\n",
    b"From: <>\r\n\r\nHi\r\n",
    b"From: somebody\r\n\r\nHi\r\n",
    b"Subject: Hi\r\n\r\nFrom: ada@example.org\r\n",
    b"\r\nFrom: ada@example.org\r\n",
]


@pytest.mark.parametrize("raw", FORGED)
@pytest.mark.usefixtures("user")
async def test_nobody_writes_as_somebody_else(
    world: Environment, client: Neighbour, raw: bytes
) -> None:
    await sign_in_by_auth_plain(client)
    reply = await submit_message(client, raw)
    assert reply[:9] in {"550 5.7.1", "554 5.6.0"}, reply
    assert await many(world, Submission) == 0


@pytest.mark.usefixtures("user")
async def test_a_header_without_end_is_refused(client: Neighbour) -> None:
    await sign_in_by_auth_plain(client)
    raw = b"From: ada@example.org\r\n" + b"X: y\r\n" * 60_000 + b"\r\nHi\r\n"
    assert (await submit_message(client, raw)).startswith("554 5.6.0")


@pytest.mark.usefixtures("user")
async def test_so_many_recipients_a_day(
    world: Environment, client: Neighbour, clock: Clock
) -> None:
    await change(world, recipients=2)
    await sign_in_by_auth_plain(client)
    assert (await submit_message(client, SHORT_MESSAGE, RECIPIENT, "bob@example.net")).startswith(
        "250"
    )
    assert (await client.say("MAIL FROM:<ada@example.org>")).startswith("450 4.7.1")
    clock.tick(days=1)
    assert (await submit_message(client)).startswith("250")
    assert (await submit_message(client)).startswith("250")


@pytest.mark.usefixtures("user")
async def test_so_many_recipients_of_a_message(
    world: Environment, listener: Listener, authority: Authority
) -> None:
    object.__setattr__(world, "options", replace(world.options, max_recipients=2))
    client = await connect(listener.port)
    await secured(client, authority.client())
    await sign_in_by_auth_plain(client)
    await client.say("MAIL FROM:<ada@example.org>")
    assert (await client.say("RCPT TO:<a b>")).startswith("553 5.1.3")
    assert (await client.say("RCPT TO:<x>")).startswith("553 5.1.3")
    codes = [(await client.say(f"RCPT TO:<{n}@example.net>"))[:9] for n in range(2)]
    assert codes == ["250 2.1.5"] * 2
    assert (await client.say("RCPT TO:<z@example.net>")).startswith("452 4.5.3")
    await client.close()


@pytest.mark.usefixtures("user")
async def test_a_copy_is_kept_where_it_is_wanted(world: Environment, client: Neighbour) -> None:
    await sign_in_by_auth_plain(client)
    assert (await submit_message(client)).startswith("250")
    assert await many(world, Message) == 0
    await change(world, upload_sent_messages=True)
    assert (await submit_message(client)).startswith("250")
    (row,) = await world.database.read(
        select(col(Message.subject), col(Message.seen), col(Message.envelope_to))
    )
    assert (row.subject, row.seen, row.envelope_to) == ("Hi", True, [RECIPIENT])
    await change(world, quota=1)
    assert (await submit_message(client)).startswith("250")  # it goes out all the same
    assert await many(world, Message) == 1
    assert await many(world, Submission) == 3
    await change(world, quota=None)


@pytest.mark.usefixtures("user")
async def test_no_password_is_in_the_log(
    client: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    other = "not my secret"
    await client.say(f"AUTH PLAIN {auth_plain_response('ada', other)}")
    await sign_in_by_auth_plain(client)
    for text in (PASSWORD, other, auth_plain_response()):
        assert text not in caplog.text
