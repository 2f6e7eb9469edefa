"""The LMTP listener over real sockets, with a backend in memory."""

import asyncio
import logging
import smtplib
import socket

import pytest

from mail.smtp.lmtp import LmtpListener
from mail.smtp.spool_file import MAX_IN_MEMORY
from models.errors import Forbidden, OverQuota
from models.runtime.options import MIB
from tests.support.mail_servers.lmtp_client import (
    InMemoryBackend,
    SmtpTestClient,
    connect_lmtp,
    wait_until,
)
from tests.support.mail_servers.lmtp_listeners import (
    OpenLmtpListener,
    backend,
    client,
    lmtp_listener,
    open_listener,
    spool_files,
)

__all__ = ["backend", "client", "lmtp_listener", "open_listener"]
OVER_QUOTA = OverQuota(used=1, limit=1)


async def test_last_reply_does_not_wait_for_acknowledgement(lmtp_listener: LmtpListener) -> None:
    (server,) = lmtp_listener._servers  # noqa: SLF001 - connections inherit its options
    assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_lhlo_lists_extensions_without_version(lmtp_listener: LmtpListener) -> None:
    client = await connect_lmtp(lmtp_listener.port, greet=False)
    assert await client.read_reply() == "220 mx.example.org LMTP"
    assert (await client.run_command("LHLO mx.example.net")).splitlines() == [
        "250-mx.example.org",
        "250-PIPELINING",
        f"250-SIZE {64 * MIB}",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-ENHANCEDSTATUSCODES",
        "250 DSN",
    ]
    await client.close()


async def test_each_recipient_gets_reply_in_order(
    client: SmtpTestClient, backend: InMemoryBackend
) -> None:
    backend.errors_by_name["bob"] = OVER_QUOTA
    await client.start_data(
        "ada@example.org", "bob@example.org", "eve@example.org", "ada@example.org"
    )
    client.send_bytes(b"Subject: Hi\r\n\r\nHello\r\n.\r\n")
    assert [(await client.read_reply())[:9] for _ in range(4)] == [
        "250 2.0.0",
        "452 4.2.2",
        "250 2.0.0",
        "250 2.0.0",
    ]
    assert (await client.run_command("NOOP")).startswith("250 2.0.0")
    (message,) = backend.accepted_messages
    assert message.raw == b"Subject: Hi\r\n\r\nHello\r\n"
    assert message.sender == "carol@example.net"


async def test_several_messages_in_one_segment_are_accepted(
    client: SmtpTestClient, backend: InMemoryBackend
) -> None:
    envelope = (
        b"MAIL FROM:<>\r\nRCPT TO:<ada@example.org>\r\nRCPT TO:<nobody@example.org>\r\nDATA\r\n"
    )
    client.send_bytes((envelope + b"Hello\r\n.\r\n") * 2 + b"QUIT\r\n")
    codes = [line[:3] for line in (await client.read_until_closed()).decode().splitlines()]
    assert codes == ["250", "250", "550", "354", "250"] * 2 + ["221"]
    assert [message.raw for message in backend.accepted_messages] == [b"Hello\r\n"] * 2
    assert backend.accepted_messages[0].sender == ""


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("RCPT TO:<nobody@example.org>", "550 5.1.1 Recipient address rejected: User unknown"),
        ("RCPT TO:<ada@elsewhere.org>", "550 5.1.1 Recipient address rejected: User unknown"),
        ("RCPT TO:<bob@example.org>", "452 4.2.2 Mailbox full"),
        ("RCPT TO:<eve@example.org>", "550 5.7.1 Rejected for policy reasons"),
        ("RCPT TO:<ada@bücher.example>", "553 5.6.7"),
        ("RCPT TO:<>", "553 5.1.3"),
        ("RCPT TO:<a b@example.org>", "553 5.1.3"),
        ("RCPT TO:<ada@example.org", "553 5.1.3"),
        ("RCPT TO:<ada@example.org> NOTIFY=NEVER", "250 2.1.5"),
        ("RCPT TO:<ada@example.org> NOTIFIED=NEVER", "555 5.5.4"),
        ("RCPT ada@example.org", "501 5.5.4"),
        ("RCPT", "501 5.5.4"),
        ("MAIL FROM:<carol@example.net>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("DATA now", "501 5.5.4"),
        ("EHLO mx.example.net", "500 5.5.1"),
        ("HELO mx.example.net", "500 5.5.1"),
        ("LHLO", "501 5.5.4"),
        ("AUTH PLAIN AGEAYg==", "500 5.5.1"),
        ("STARTTLS", "500 5.5.1"),
        ("GET / HTTP/1.1", "500 5.5.1"),
        ("VRFY ada@example.org", "252 2.0.0"),
        ("VRFY", "501 5.5.4"),
        ("RSET now", "501 5.5.4"),
        ("RSET", "250 2.0.0"),
        ("HELP", "214 2.0.0"),
        ("", "500 5.5.2"),
        (b"NO\0OP", "500 5.5.2"),
        (b"RCPT TO:<ada\0@example.org>", "500 5.5.2"),
        (b"RCPT TO:<\xff\xfe@example.org>", "500 5.5.2"),
        ("NOOP " + "x" * 2100, "500 5.5.2 Line too long"),
        ("NOOP " + "x" * 300_000, "500 5.5.2 Line too long"),
    ],
)
async def test_command_gets_reply_and_session_continues(
    client: SmtpTestClient, backend: InMemoryBackend, line: str | bytes, reply: str
) -> None:
    backend.errors_by_name |= {"RCPT bob": OVER_QUOTA, "RCPT eve": Forbidden("no")}
    await client.run_command("MAIL FROM:<carol@example.net>")
    assert (await client.run_command(line)).startswith(reply)
    assert await client.run_command("NOOP") == "250 2.0.0 OK"


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("<>", "250"),
        ("<carol@example.net> SIZE=100 BODY=8BITMIME", "250"),
        ("<@one.example,@two.example:carol@example.net>", "250"),
        ('<"carol > of the net"@example.net>', "250"),
        (" <carol@example.net>", "250"),
        ("<carol@bücher.example> SMTPUTF8", "250"),
        ("<carol@bücher.example>", "553 5.6.7"),
        ("<carol@example.net> SMTPUTF8=yes", "501 5.5.4"),
        ("<carol@example.net> SIZE=many", "501 5.5.4"),
        ("<carol@example.net> BODY=BINARYMIME", "501 5.5.4"),
        ("<carol@example.net> AUTH=<>", "555 5.5.4"),
        ("<carol@example.net> -", "501 5.5.4"),
        ("carol@example.net", "553 5.1.7"),
        (f"<carol@example.net> SIZE={64 * MIB}", "250"),
        (f"<carol@example.net> SIZE={64 * MIB + 1}", "552 5.3.4"),
    ],
)
async def test_mail_path_and_parameters_are_validated(
    client: SmtpTestClient, path: str, reply: str
) -> None:
    assert (await client.run_command(f"MAIL FROM:{path}")).startswith(reply)


async def test_mail_without_lhlo_is_refused(lmtp_listener: LmtpListener) -> None:
    client = await connect_lmtp(lmtp_listener.port, greet=False)
    await client.read_reply()
    assert (await client.run_command("MAIL FROM:<>")).startswith("503 5.5.1")
    assert (await client.run_command("RCPT TO:<ada@example.org>")).startswith("503 5.5.1")
    await client.close()


async def test_non_ascii_address_is_accepted_with_smtputf8(
    client: SmtpTestClient, backend: InMemoryBackend
) -> None:
    await client.start_data(
        "ada@bücher.example", sender="é@example.net", mail_parameters=" SMTPUTF8"
    )
    assert (await client.run_command("Hi\r\n.")).startswith("250")
    assert backend.accepted_messages[0].to == ["ada@bücher.example"]
    assert backend.accepted_messages[0].sender == "é@example.net"


async def test_8bit_dots_and_bare_line_ends_are_unchanged(
    client: SmtpTestClient, backend: InMemoryBackend
) -> None:
    raw = b"Subject: \xff\xfe\r\n\r\n..two\r\n.\r one\nbare\r\n\r\n" + bytes(range(256)) + b"\r\n"
    await client.start_data("ada@example.org")
    client.send_bytes(raw.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    assert (await client.read_reply()).startswith("250")
    assert backend.accepted_messages[0].raw == raw


async def test_empty_message_is_accepted(client: SmtpTestClient, backend: InMemoryBackend) -> None:
    await client.start_data("ada@example.org")
    assert (await client.run_command(".")).startswith("250")
    assert backend.accepted_messages[0].raw == b""


async def test_large_message_is_spooled_and_its_file_is_removed(
    client: SmtpTestClient, lmtp_listener: LmtpListener, backend: InMemoryBackend
) -> None:
    raw = b"".join(b"%070d\r\n" % line for line in range(5 * MAX_IN_MEMORY // 72))
    await client.start_data("ada@example.org")
    client.send_bytes(raw + b".\r\n")
    assert (await client.read_reply()).startswith("250")
    assert backend.accepted_messages[0].raw == raw
    assert backend.accepted_messages[0].was_spooled
    assert not spool_files(lmtp_listener)
    assert lmtp_listener.byte_budget.used == 0


async def test_message_error_is_returned_for_each_recipient(
    open_listener: OpenLmtpListener, backend: InMemoryBackend
) -> None:
    lmtp_listener = await open_listener(max_message_size=3 * MIB)
    client = await connect_lmtp(lmtp_listener.port)
    for raw, reply in (
        (b"x\r\n" * (MIB + 1), "552 5.3.4 Message size exceeds fixed maximum message size"),
        (b"x" * (MIB + 1) + b"\r\n", "500 5.5.2 Line too long"),
    ):
        await client.start_data("ada@example.org", "bob@example.org")
        client.send_bytes(raw + b".\r\n")
        assert [await client.read_reply(), await client.read_reply()] == [reply, reply]
    await client.start_data("ada@example.org")
    assert (await client.run_command("Hello\r\n.")).startswith("250")
    assert [message.raw for message in backend.accepted_messages] == [b"Hello\r\n"]
    assert not spool_files(lmtp_listener)
    assert lmtp_listener.byte_budget.used == 0
    await client.close()


async def test_message_up_to_size_limit_is_accepted(
    open_listener: OpenLmtpListener, backend: InMemoryBackend
) -> None:
    lmtp_listener = await open_listener(max_message_size=1000)
    client = await connect_lmtp(lmtp_listener.port)
    for size, code in ((1000, "250"), (1001, "552")):
        await client.start_data("ada@example.org")
        client.send_bytes(b"x" * (size - 2) + b"\r\n.\r\n")
        assert (await client.read_reply()).startswith(code)
    assert [len(message.raw) for message in backend.accepted_messages] == [1000]
    await client.close()


async def test_byte_budget_is_shared_by_all_sessions(
    open_listener: OpenLmtpListener, backend: InMemoryBackend
) -> None:
    lmtp_listener = await open_listener(byte_budget=1000)
    first_client = await connect_lmtp(lmtp_listener.port)
    second_client = await connect_lmtp(lmtp_listener.port)
    backend.delivery_allowed.clear()
    await first_client.start_data("ada@example.org")
    first_client.send_bytes(b"x" * 600 + b"\r\n.\r\n")
    await backend.delivery_started.wait()
    assert await second_client.run_command("MAIL FROM:<> SIZE=600") == (
        "452 4.3.1 Insufficient system storage"
    )
    await second_client.start_data("bob@example.org")
    second_client.send_bytes(b"x" * 600 + b"\r\n.\r\n")
    assert (await second_client.read_reply()).startswith("452 4.3.1")
    backend.delivery_allowed.set()
    assert (await first_client.read_reply()).startswith("250")
    await second_client.start_data("bob@example.org", mail_parameters=" SIZE=600")
    assert (await second_client.run_command("x" * 600 + "\r\n.")).startswith("250")
    await first_client.close()
    await second_client.close()


async def test_disk_below_reserve_is_reported_at_mail_command(
    open_listener: OpenLmtpListener,
) -> None:
    client = await connect_lmtp((await open_listener(disk_reserve=1 << 62)).port)
    assert (await client.run_command("MAIL FROM:<>")).startswith("452 4.3.1")
    await client.close()


async def test_recipients_per_message_are_limited(open_listener: OpenLmtpListener) -> None:
    client = await connect_lmtp((await open_listener(max_recipients=2)).port)
    await client.run_command("MAIL FROM:<>")
    replies = [await client.run_command("RCPT TO:<ada@example.org>") for _ in range(3)]
    assert [reply[:9] for reply in replies] == ["250 2.1.5", "250 2.1.5", "452 4.5.3"]
    await client.close()


async def test_unknown_recipients_do_not_count_as_mistakes(open_listener: OpenLmtpListener) -> None:
    client = await connect_lmtp((await open_listener(max_mistakes=2)).port)
    await client.run_command("MAIL FROM:<>")
    for _ in range(5):
        assert (await client.run_command("RCPT TO:<nobody@example.org>")).startswith("550")
    await client.close()


async def test_connection_above_limit_is_refused(open_listener: OpenLmtpListener) -> None:
    lmtp_listener = await open_listener(max_connections=1)
    first_client = await connect_lmtp(lmtp_listener.port)
    second_client = await connect_lmtp(lmtp_listener.port, greet=False)
    reply = await second_client.read_until_closed()
    assert reply.startswith(b"421 4.3.2 mx.example.org Too many concurrent connections")
    assert (await first_client.run_command("NOOP")).startswith("250")
    await first_client.close()
    await second_client.close()
    await wait_until(lambda: not lmtp_listener.sessions)
    third_client = await connect_lmtp(lmtp_listener.port)
    assert (await third_client.run_command("NOOP")).startswith("250")
    await third_client.close()


@pytest.mark.parametrize("failing_key", ["RCPT ada", "ada"])
async def test_internal_error_is_logged_once_without_addresses(
    client: SmtpTestClient,
    backend: InMemoryBackend,
    caplog: pytest.LogCaptureFixture,
    failing_key: str,
) -> None:
    backend.errors_by_name[failing_key] = ConnectionRefusedError("The database does not respond")
    await client.run_command("MAIL FROM:<>")
    reply = await client.run_command("RCPT TO:<ada@example.org>")
    if failing_key == "ada":
        await client.run_command("DATA")
        reply = await client.run_command("Subject: secret\r\n.")
    assert reply == "451 4.3.0 Temporary local problem, please try again later"
    assert (await client.run_command("NOOP")).startswith("250")
    (error_record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error_record.exc_info
    assert "ada@" not in str(vars(error_record))
    assert "secret" not in caplog.text


async def test_client_mistakes_are_not_logged(
    client: SmtpTestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mail")
    for line in ("FOO", "RCPT", b"NO\0OP", "MAIL FROM:<a b>", "x" * 3000, "DATA"):
        assert (await client.run_command(line)).startswith("5")
    assert not [record for record in caplog.records if record.name.startswith("mail.")]


async def test_smtplib_client_sends_by_lmtp(
    lmtp_listener: LmtpListener, backend: InMemoryBackend
) -> None:
    def send_by_smtplib() -> None:
        with smtplib.LMTP("127.0.0.1", lmtp_listener.port) as client:
            client.sendmail("carol@example.net", "ada@example.org", b".dot\r\n\r\nHello\r\n")

    await asyncio.to_thread(send_by_smtplib)
    assert backend.accepted_messages[0].raw == b".dot\r\n\r\nHello\r\n"
