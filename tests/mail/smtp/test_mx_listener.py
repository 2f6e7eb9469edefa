"""The MX listener over real sockets, with a backend in memory."""

import asyncio
import smtplib
import ssl
from contextlib import suppress
from typing import Any

import pytest

from mail.inbound.scan_rejection import SpamRefused
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.smtp.mx_server import MxListener, MxRules
from models.errors import Forbidden, NotFound, OverQuota, ServiceUnavailable
from models.runtime.options import MIB
from tests.conftest import ManualClock
from tests.support.loop_clock import LoopClock
from tests.support.mail_servers.lmtp_client import SmtpTestClient, wait_until
from tests.support.mail_servers.mx_listeners import (
    OpenMxListener,
    RecordingBackend,
    authority,
    backend,
    client,
    mx_listener,
    open_listener,
    send_message,
)
from tests.support.mail_servers.smtp_client import (
    CertificateAuthority,
    connect_smtp,
    connect_with_implicit_tls,
    start_tls,
)
from tests.support.time_limits import HANG_SECONDS

__all__ = ["authority", "backend", "client", "mx_listener", "open_listener"]
OVER_QUOTA = OverQuota(used=1, limit=1)


async def test_ehlo_lists_extensions(mx_listener: MxListener) -> None:
    client = await connect_smtp(mx_listener.port, greet=False)
    assert await client.read_reply() == "220 mx.example.org ESMTP"
    offers = ["PIPELINING", f"SIZE {64 * MIB}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
    offers.append("DSN")
    assert (await client.run_command("EHLO mx.example.net")).splitlines() == [
        "250-mx.example.org",
        *(f"250-{offer}" for offer in offers),
        "250 STARTTLS",
    ]
    assert await client.run_command("HELO mx.example.net") == "250 mx.example.org"
    await client.close()


async def test_message_gets_received_field_and_client_is_recorded(
    client: SmtpTestClient, backend: RecordingBackend
) -> None:
    reply = await send_message(client, b"Subject: Hi\r\n\r\nHello\r\n", "ada@example.org")
    queue_id = reply.rpartition(" ")[2]
    assert reply == f"250 2.0.0 OK: queued as {queue_id}"
    (message,), (arrival,) = backend.accepted_messages, backend.arrivals
    assert message.raw.decode() == (
        "Received: from mx.example.net ([127.0.0.1])\r\n"
        f"\tby mx.example.org with ESMTP\r\n\tid {queue_id}; Tue, 01 Jan 2030 00:00:00 +0000\r\n"
        "Subject: Hi\r\n\r\nHello\r\n"
    )
    assert (arrival.client.ip_address, arrival.client.helo_name) == ("127.0.0.1", "mx.example.net")
    assert (arrival.client.tls_description, arrival.client.username) == (None, None)
    second_reply = await send_message(client, b"Subject: Hi\r\n\r\nHello\r\n", "ada@example.org")
    assert second_reply.startswith("250 ")
    # The digest excludes our Received field.
    assert backend.arrivals[1].content_digest == arrival.content_digest


@pytest.mark.parametrize(
    ("greeting", "more", "protocol"),
    [("HELO x", "", "SMTP"), ("EHLO x", "", "ESMTP"), ("EHLO x", " SMTPUTF8", "UTF8SMTP")],
)
async def test_received_field_names_protocol(
    client: SmtpTestClient, backend: RecordingBackend, greeting: str, more: str, protocol: str
) -> None:
    await client.run_command(greeting)
    await send_message(client, b"\r\nHello\r\n", "ada@example.org", more=more)
    assert f"with {protocol}\r\n".encode() in backend.accepted_messages[0].raw


async def test_starttls_session_is_recorded(
    mx_listener: MxListener, authority: CertificateAuthority, backend: RecordingBackend
) -> None:
    client = await connect_smtp(mx_listener.port)
    await start_tls(client, authority.client_context())
    assert "STARTTLS" not in await client.run_command("EHLO mx.example.net")
    assert (await client.run_command("STARTTLS")).startswith("503 5.5.1")
    await send_message(client, b"Subject: Hi\r\n" * 30_000 + b"\r\nHello\r\n", "ada@example.org")
    assert b"with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n" in backend.accepted_messages[0].raw
    assert backend.arrivals[0].client.tls_description == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    assert (await client.run_command("QUIT")).startswith("221")
    assert await client.read_until_closed() == b""
    await client.close()


async def test_smtplib_client_sends_over_tls(
    mx_listener: MxListener, authority: CertificateAuthority, backend: RecordingBackend
) -> None:
    def send_by_smtplib() -> Any:
        with smtplib.SMTP("127.0.0.1", mx_listener.port, timeout=HANG_SECONDS) as smtp:
            smtp._host = "mx.example.org"  # type: ignore[attr-defined]  # noqa: SLF001
            smtp.starttls(context=authority.client_context())
            return smtp.sendmail(
                "carol@example.net", ["ada@example.org", "nobody@example.org"], "Hello\n"
            )

    refused = await asyncio.to_thread(send_by_smtplib)
    text = b"5.1.1 Recipient address rejected: User unknown"
    assert refused == {"nobody@example.org": (550, text)}
    assert backend.accepted_messages[0].to == ["ada@example.org"]


async def test_implicit_tls_is_accepted(
    open_listener: OpenMxListener, authority: CertificateAuthority, backend: RecordingBackend
) -> None:
    mx_listener = await open_listener(implicit_tls=True)
    client = await connect_with_implicit_tls(mx_listener.port, authority.client_context())
    assert (await send_message(client, b"\r\nHello\r\n", "ada@example.org")).startswith("250")
    assert backend.arrivals[0].client.tls_description
    await client.close()


async def test_new_certificate_is_used_at_once(
    mx_listener: MxListener, authority: CertificateAuthority
) -> None:
    authority.issue_certificate("other.example.org")
    client = await connect_smtp(mx_listener.port)
    await start_tls(client, authority.client_context(), "other.example.org")
    (authority.folder / "server.pem").write_text("half a fi")
    second_client = await connect_smtp(mx_listener.port)
    await start_tls(second_client, authority.client_context(), "other.example.org")
    await client.close()
    await second_client.close()


async def test_commands_after_starttls_abort_handshake(mx_listener: MxListener) -> None:
    client = await connect_smtp(mx_listener.port)
    assert (await client.run_command("STARTTLS")).startswith("220")
    client.send_bytes(b"EHLO mallory\r\nMAIL FROM:<m@example.net>\r\n")
    assert b"250" not in await client.read_until_closed()
    await client.close()
    await wait_until(lambda: not mx_listener.sessions)


async def test_starttls_is_refused_without_certificate(open_listener: OpenMxListener) -> None:
    mx_listener = await open_listener(tls=False)
    client = await connect_smtp(mx_listener.port)
    assert "STARTTLS" not in await client.run_command("EHLO x")
    assert (await client.run_command("STARTTLS")).startswith("502 5.5.1")
    await client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_tls_1_1_is_refused(mx_listener: MxListener, authority: CertificateAuthority) -> None:
    context = authority.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    client = await connect_smtp(mx_listener.port)
    await client.run_command("STARTTLS")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.writer.start_tls(context, server_hostname="mx.example.org")


async def test_message_refused_by_all_recipients_is_refused(
    client: SmtpTestClient, backend: RecordingBackend
) -> None:
    backend.errors_by_name = {"ada": OVER_QUOTA, "bob": Forbidden("no")}
    reply = await send_message(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply == "452 4.2.2 Mailbox full"  # the client should retry
    backend.errors_by_name = {"ada": Forbidden("no"), "bob": Forbidden("no")}
    reply = await send_message(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply.startswith("550 5.7.1")
    assert not backend.deferred_addresses


@pytest.mark.parametrize(
    ("error", "is_retried"),
    [
        (OVER_QUOTA, True),
        (ServiceUnavailable("no"), True),
        (OSError("no disk"), True),
        (Forbidden("no"), False),
        (NotFound("bob"), False),
        (SpamRefused("spam"), False),
    ],
)
async def test_only_temporary_failures_are_retried_if_another_recipient_has_the_message(
    client: SmtpTestClient, backend: RecordingBackend, error: Exception, *, is_retried: bool
) -> None:
    backend.errors_by_name = {"bob": error}
    reply = await send_message(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply.startswith("250 2.0.0")
    retried_and_refused = (["bob@example.org"], []) if is_retried else ([], ["bob@example.org"])
    assert (backend.deferred_addresses, backend.refused_addresses) == retried_and_refused
    assert backend.accepted_messages[0].to == ["ada@example.org"]


async def test_queue_failure_is_temporary_error(
    client: SmtpTestClient, backend: RecordingBackend
) -> None:
    backend.errors_by_name, backend.enqueue_error = {"bob": OVER_QUOTA}, OSError("no disk")
    reply = await send_message(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply == "451 4.3.0 Temporary local problem, please try again later"


async def test_mail_loop_is_refused(client: SmtpTestClient, backend: RecordingBackend) -> None:
    header = b"Received: from a by b; now\r\n" * 30
    reply = await send_message(client, header + b"\r\nHello\r\n", "ada@example.org")
    assert reply.startswith("554 5.4.6")
    assert not backend.accepted_messages
    quoted = b"Subject: Hi\r\n\r\n" + header
    assert (await send_message(client, quoted, "ada@example.org")).startswith("250")


@pytest.mark.parametrize("raw", [b" by a friend\r\n\r\nHi\r\n", b"\tx\r\n"])
async def test_leading_folded_line_does_not_extend_received_field(
    client: SmtpTestClient, backend: RecordingBackend, raw: bytes
) -> None:
    assert (await send_message(client, raw, "ada@example.org")).startswith("250")
    received_field, rest = backend.accepted_messages[0].raw.split(b"\r\n\r\n", 1)
    assert received_field.startswith(b"Received: from mx.example.net")
    assert received_field.count(b"\r\n") == 2
    assert rest == raw


@pytest.mark.parametrize(
    ("command", "expected_lookups"),
    [(b"RCPT TO:<ada@example.org>", 100), (b"RCPT TO:<guess@example.org>", 51)],
)
async def test_recipient_lookups_per_session_are_limited(
    open_listener: OpenMxListener, backend: RecordingBackend, command: bytes, expected_lookups: int
) -> None:
    mx_listener = await open_listener(max_commands=2000, max_unknown_recipients=50)
    client = await connect_smtp(mx_listener.port)
    client.send_bytes(b"MAIL FROM:<c@example.net>\r\n" + (command + b"\r\n") * 10_000)
    with suppress(ConnectionError):  # the server closes the connection while the client sends
        await client.read_until_closed()
    await wait_until(lambda: not mx_listener.sessions)
    assert backend.accept_count == expected_lookups
    assert not backend.accepted_messages
    await client.close()


async def test_too_many_commands_end_session(open_listener: OpenMxListener) -> None:
    mx_listener = await open_listener(max_commands=10)
    client = await connect_smtp(mx_listener.port)
    client.send_bytes(b"NOOP\r\n" * 9)
    assert (await client.read_until_closed()).endswith(
        b"421 4.7.0 mx.example.org Error: too many commands\r\n"
    )
    await client.close()


async def test_slow_clients_time_out(open_listener: OpenMxListener) -> None:
    loop_clock, listener = LoopClock(), await open_listener(command_timeout=300)
    client = await connect_smtp(listener.port, greet=False)
    assert (await client.read_reply()).startswith("220")
    client_in_data = await connect_smtp(listener.port)
    await client_in_data.start_data("ada@example.org")
    client_in_data.send_bytes(b"Hello")
    assert len(listener.sessions) == 2
    await loop_clock.advance_until(lambda: not listener.sessions, step_seconds=10)
    assert b"421 4.4.2" in await client.read_until_closed()
    assert b"421 4.4.2" in await client_in_data.read_until_closed()
    for open_client in (client, client_in_data):
        await open_client.close()


@pytest.mark.parametrize("limit_name", ["session_timeout", "message_timeout"])
async def test_slow_data_does_not_extend_timeout(
    open_listener: OpenMxListener, limit_name: str
) -> None:
    loop_clock, mx_listener = LoopClock(), await open_listener(**{limit_name: 3600})
    client = await connect_smtp(mx_listener.port)
    await client.start_data("ada@example.org")

    def has_ended_or_gets_data() -> bool:
        # The server closes the connection while the client sends.
        with suppress(ConnectionError):
            client.send_bytes(b"x\r\n")
        return not mx_listener.sessions

    await loop_clock.advance_until(has_ended_or_gets_data, step_seconds=10)
    await client.close()
    assert mx_listener.byte_budget.used == 0


async def test_invalid_ehlo_name_is_refused(client: SmtpTestClient) -> None:
    for name in ("", "a b", "<x>", "x" * 256, "x\tReceived: y", "(comment"):
        assert (await client.run_command(f"EHLO {name}")).startswith("501 5.5.4"), name
    assert (await client.run_command("EHLO [IPv6:::1]")).startswith("250-")


async def test_auth_is_not_offered(client: SmtpTestClient) -> None:
    assert "AUTH" not in await client.run_command("EHLO x")
    assert (await client.run_command("AUTH PLAIN AGEAYg==")).startswith("500 5.5.1")


async def test_connections_of_a_network_are_limited(open_listener: OpenMxListener) -> None:
    mx_listener = await open_listener(max_connections_per_network=2)
    first, second = await connect_smtp(mx_listener.port), await connect_smtp(mx_listener.port)
    third = await connect_smtp(mx_listener.port, greet=False)
    assert (await third.read_reply()).startswith("421 4.7.0")
    assert await third.read_until_closed() == b""
    await first.run_command("QUIT")
    await wait_until(lambda: len(mx_listener.sessions) == 1)
    fourth = await connect_smtp(mx_listener.port)
    for open_client in (first, second, third, fourth):
        await open_client.close()
    await wait_until(lambda: not mx_listener.sessions)
    assert mx_listener.connection_limiter.in_use_count == 0


async def test_messages_per_network_and_hour_are_limited(
    open_listener: OpenMxListener, backend: RecordingBackend, clock: ManualClock
) -> None:
    mx_listener = await open_listener(MxRules(network_hourly=3, network_hourly_per_account=2))
    client = await connect_smtp(mx_listener.port)
    for _ in range(2):
        assert (await send_message(client, b"\r\nHi\r\n", "ada@example.org")).startswith("250")
    await client.run_command("MAIL FROM:<c@example.net>")
    assert (await client.run_command("RCPT TO:<ada@example.org>")).startswith("450 4.2.1")
    assert (await client.run_command("RCPT TO:<bob@example.org>")).startswith("250")
    await client.run_command("DATA")
    client.send_bytes(b"\r\nHi\r\n.\r\n")
    assert (await client.read_reply()).startswith("250")
    assert (await client.run_command("MAIL FROM:<c@example.net>")).startswith("450 4.7.1")
    clock.tick(hours=1)
    assert (await send_message(client, b"\r\nHi\r\n", "ada@example.org")).startswith("250")
    assert len(backend.accepted_messages) == 4
    await client.close()


async def test_refused_message_does_not_count_for_limit(
    open_listener: OpenMxListener, backend: RecordingBackend
) -> None:
    mx_listener = await open_listener(MxRules(network_hourly=1))
    backend.errors_by_name = {"ada": OVER_QUOTA}
    client = await connect_smtp(mx_listener.port)
    for _ in range(3):
        assert (await send_message(client, b"\r\nHi\r\n", "ada@example.org")).startswith("452")
    await client.close()


async def test_slow_recipient_lookup_is_temporary_error(
    open_listener: OpenMxListener, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx_listener = await open_listener(MxRules(recipient_timeout=0.1))
    never_set = asyncio.Event()

    async def accept_never(_address: str, _sender: str) -> AcceptedRecipient:
        await never_set.wait()
        raise NotFound("nobody")

    monkeypatch.setattr(backend, "accept_recipient", accept_never)
    client = await connect_smtp(mx_listener.port)
    await client.run_command("MAIL FROM:<c@example.net>")
    assert (await client.run_command("RCPT TO:<ada@example.org>")).startswith("451 4.3.0")
    await client.close()
