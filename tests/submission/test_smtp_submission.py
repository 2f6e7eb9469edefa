"""SMTP submission: sender checks, limits and queued messages."""

import asyncio
import smtplib
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from mail.queue import message_body as body
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.messages.tables import Message
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import ManualClock
from tests.support.case_loop import each_case
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.smtp_client import (
    CertificateAuthority,
    connect_smtp,
    connect_with_implicit_tls,
    start_tls,
)
from tests.support.mail_servers.submission_client import (
    PASSWORD,
    RECIPIENT,
    SHORT_MESSAGE,
    auth_plain_response,
    sign_in_by_auth_plain,
    submit_message,
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


async def count_rows(environment: Environment, table: Any) -> int:
    (row,) = await environment.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


async def load_queued_message(environment: Environment) -> tuple[list[str], bytes]:
    """Load the recipients and bytes of the only message in the queue."""
    (row,) = await environment.database.read(select(col(Submission.id), col(Submission.blob_id)))
    recipient_query = select(col(QueueEntry.recipient)).order_by(col(QueueEntry.id))
    job: Any = SimpleNamespace(submission_id=row.id, blob_id=row.blob_id)
    recipients = [entry.recipient for entry in await environment.database.read(recipient_query)]
    return recipients, await body.read_message(environment, job)


@pytest.mark.usefixtures("user")
async def test_mail_is_refused_before_sign_in(client: SmtpTestClient) -> None:
    assert "250 AUTH PLAIN LOGIN" in await client.run_command("EHLO x")
    assert (await client.run_command("MAIL FROM:<ada@example.org>")).startswith("530 5.7.0")
    assert (await client.run_command("AUTH CRAM-MD5")).startswith("504 5.5.4")
    await sign_in_by_auth_plain(client)
    assert "AUTH" not in await client.run_command("EHLO x")
    assert (await client.run_command(f"AUTH PLAIN {auth_plain_response()}")).startswith("503 5.5.1")
    assert (await client.run_command("MAIL FROM:<ada@example.org> AUTH=<>")).startswith("250")


@pytest.mark.usefixtures("user")
async def test_forged_authentication_results_are_removed(
    environment: Environment, client: SmtpTestClient
) -> None:
    await sign_in_by_auth_plain(client)
    forged_field = b"Authentication-Results: MX.example.org 1; dkim=pass\r\n"
    await submit_message(
        client, forged_field + SHORT_MESSAGE.replace(b"Subject", forged_field + b"Subject", 1)
    )
    assert b"authentication-results" not in (await load_queued_message(environment))[1].lower()


@pytest.mark.usefixtures("user")
async def test_smtplib_client_sends_message(
    environment: Environment, listener: Listener, authority: CertificateAuthority
) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Bcc"] = "ada@example.org", RECIPIENT, "bob@example.net"
    message["Subject"] = "Hi"
    message.set_content("Hello\n")

    def send_by_smtplib() -> None:
        with smtplib.SMTP("127.0.0.1", listener.port, timeout=HANG_SECONDS) as smtp:
            smtp._host = "mx.example.org"  # type: ignore[attr-defined]  # noqa: SLF001
            smtp.starttls(context=authority.client_context())
            smtp.login("ada", PASSWORD)
            smtp.send_message(message)

    await asyncio.to_thread(send_by_smtplib)
    recipients, raw = await load_queued_message(environment)
    assert recipients == [RECIPIENT, "bob@example.net"]
    header = raw.partition(b"\r\n\r\n")[0].decode()
    assert header.startswith("Received: by mx.example.org with ESMTPSA (TLSv1.3")
    assert "127.0.0.1" not in header
    assert "\r\nDate: Tue, 01 Jan 2030 00:00:00 +0000" in header
    assert "\r\nMessage-ID: <" in header


@pytest.mark.usefixtures("user")
async def test_submission_over_implicit_tls(
    environment: Environment, tmp_path: Path, authority: CertificateAuthority
) -> None:
    config = SmtpListenerConfig(
        certificates=CertificateFiles(authority.issue_certificate()), implicit_tls=True
    )
    listener = Listener(environment, tmp_path / "spool", config, SmtpSubmissionService(environment))
    await listener.start(host="127.0.0.1", port=0)
    client = await connect_with_implicit_tls(listener.port, authority.client_context())
    assert "STARTTLS" not in await client.run_command("EHLO x")
    await sign_in_by_auth_plain(client)
    reply = await submit_message(client)
    (row,) = await environment.database.read(select(col(Submission.queue_id)))
    assert reply == f"250 2.0.0 OK: queued as {row.queue_id}"
    await client.close()
    await listener.close(1)


@pytest.mark.usefixtures("user")
async def test_valid_date_and_message_id_are_kept(
    environment: Environment, client: SmtpTestClient
) -> None:
    await sign_in_by_auth_plain(client)
    header_fields = b"Date: Mon, 31 Dec 2029 10:00:00 +0100\r\nMessage-ID: <a@b>\r\n"
    assert (await submit_message(client, header_fields + SHORT_MESSAGE)).startswith("250")
    _, raw = await load_queued_message(environment)
    assert raw.endswith(header_fields + SHORT_MESSAGE)


@pytest.mark.usefixtures("user")
async def test_invalid_date_and_message_id_are_replaced(
    environment: Environment, client: SmtpTestClient
) -> None:
    await sign_in_by_auth_plain(client)
    invalid_fields = b"Date: yesterday\r\n\tor so\r\nMessage-ID: none\r\n \r\n"
    body = SHORT_MESSAGE.replace(b"Hello\r\n", b"a\nb\rc\r\n..\r\n")
    assert (await submit_message(client, invalid_fields + body)).startswith("250")
    _, raw = await load_queued_message(environment)
    assert b"yesterday" not in raw
    assert b"or so" not in raw
    assert raw.count(b"\r\nDate: ") == raw.count(b"\r\nMessage-ID: ") == 1
    assert raw.endswith(b"\r\n\r\na\r\nb\r\nc\r\n.\r\n")


FOREIGN_SENDERS: list[str] = [
    "bob@example.org",
    "ada@elsewhere.example",
    "carol@example.net",
    "ada@example.org.x",
]


@pytest.mark.usefixtures("user", "bob")
async def test_foreign_sender_is_refused(environment: Environment, client: SmtpTestClient) -> None:
    await sign_in_by_auth_plain(client)
    for case in each_case(FOREIGN_SENDERS):
        with case as sender:
            reply = await client.run_command(f"MAIL FROM:<{sender}>")
            assert (
                reply
                == f"553 5.7.1 Sender address rejected: You are not allowed to send as {sender}"
            )
            forged = SHORT_MESSAGE.replace(b"ada@example.org", sender.encode())
            assert (await submit_message(client, forged)).startswith("550 5.7.1")
            assert (await submit_message(client, forged, sender="")).startswith("550 5.7.1")
            assert (
                await submit_message(
                    client, b"Sender: " + sender.encode() + b"\r\n" + SHORT_MESSAGE
                )
            )[:9] == "550 5.7.1"
            assert await count_rows(environment, Submission) == 0


FOREIGN_ADDRESS = b"boss@example.org"
FORGED_MESSAGES = [
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


@pytest.mark.usefixtures("user")
async def test_forged_from_field_is_refused(
    environment: Environment, client: SmtpTestClient
) -> None:
    await sign_in_by_auth_plain(client)
    for case in each_case(FORGED_MESSAGES):
        with case as raw:
            reply = await submit_message(client, raw)
            assert reply[:9] in {"550 5.7.1", "554 5.6.0"}, reply
            assert await count_rows(environment, Submission) == 0


@pytest.mark.usefixtures("user")
async def test_oversized_header_is_refused(client: SmtpTestClient) -> None:
    await sign_in_by_auth_plain(client)
    raw = b"From: ada@example.org\r\n" + b"X: y\r\n" * 60_000 + b"\r\nHi\r\n"
    assert (await submit_message(client, raw)).startswith("554 5.6.0")


@pytest.mark.usefixtures("user")
async def test_recipients_over_daily_limit_are_refused(
    environment: Environment, client: SmtpTestClient, clock: ManualClock
) -> None:
    await update_ada(environment, recipients_per_day=2)
    await sign_in_by_auth_plain(client)
    assert (await submit_message(client, SHORT_MESSAGE, RECIPIENT, "bob@example.net")).startswith(
        "250"
    )
    assert (await client.run_command("MAIL FROM:<ada@example.org>")).startswith("450 4.7.1")
    clock.tick(days=1)
    assert (await submit_message(client)).startswith("250")
    assert (await submit_message(client)).startswith("250")


@pytest.mark.usefixtures("user")
async def test_recipients_over_message_limit_are_refused(
    environment: Environment, listener: Listener, authority: CertificateAuthority
) -> None:
    object.__setattr__(
        environment, "options", replace(environment.options, submission_max_recipients=2)
    )
    client = await connect_smtp(listener.port)
    await start_tls(client, authority.client_context())
    await sign_in_by_auth_plain(client)
    await client.run_command("MAIL FROM:<ada@example.org>")
    assert (await client.run_command("RCPT TO:<a b>")).startswith("553 5.1.3")
    assert (await client.run_command("RCPT TO:<x>")).startswith("553 5.1.3")
    codes = [(await client.run_command(f"RCPT TO:<{n}@example.net>"))[:9] for n in range(2)]
    assert codes == ["250 2.1.5"] * 2
    assert (await client.run_command("RCPT TO:<z@example.net>")).startswith("452 4.5.3")
    await client.close()


@pytest.mark.usefixtures("user")
async def test_sent_copy_is_stored_if_enabled(
    environment: Environment, client: SmtpTestClient
) -> None:
    await sign_in_by_auth_plain(client)
    assert (await submit_message(client)).startswith("250")
    assert await count_rows(environment, Message) == 0
    await update_ada(environment, upload_sent_messages=True)
    assert (await submit_message(client)).startswith("250")
    (row,) = await environment.database.read(
        select(col(Message.subject), col(Message.seen), col(Message.envelope_to))
    )
    assert (row.subject, row.seen, row.envelope_to) == ("Hi", True, [RECIPIENT])
    await update_ada(environment, quota=1)
    assert (await submit_message(client)).startswith("250")  # it is sent, but without a copy
    assert await count_rows(environment, Message) == 1
    assert await count_rows(environment, Submission) == 3
    await update_ada(environment, quota=None)
