"""Attacks on SMTP and LMTP listeners: injected, slow, oversized and numerous commands."""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import pytest

from mail.smtp.line_protocol import MAX_COMMAND_LINE
from tests.support.loop_clock import LoopClock
from tests.support.mail_servers.lmtp_client import SmtpTestClient, wait_until
from tests.support.mail_servers.memory_listeners import (
    AUTH_PLAIN_RESPONSE,
    LISTENER_KINDS,
    MemoryListener,
    run_memory_listener,
)
from tests.support.mail_servers.smtp_client import start_tls
from tests.support.time_limits import HANG_SECONDS

OpenListener = Callable[..., AbstractAsyncContextManager[MemoryListener]]
MAIL = b"MAIL FROM:<carol@example.net>\r\n"
RCPT = b"RCPT TO:<ada@example.org>\r\n"
WHOLE_TRANSACTION = MAIL + RCPT + b"DATA\r\nHello\r\n.\r\n"
FORGED_TRANSACTION = (
    b"MAIL FROM:<mallory@example.net>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nForged\r\n.\r\n"
)
KINDS_WITH_STARTTLS = ["mx", "submission"]


@pytest.fixture(params=LISTENER_KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryListener]:
    async with run_memory_listener(request.param, tmp_path) as running_server:
        yield running_server


@pytest.fixture
async def client(server: MemoryListener) -> AsyncIterator[SmtpTestClient]:
    new_client = await server.open_sending_session()
    yield new_client
    await new_client.close()


async def read_reply_codes(client: SmtpTestClient, raw: bytes, count: int) -> list[str]:
    """Send data, read this number of reply codes and check that no other reply follows."""
    client.send_bytes(raw)
    reply_codes = [(await client.read_reply())[:9].split(" ")[0] for _ in range(count)]
    assert await client.run_command("NOOP") == "250 2.0.0 OK"
    return reply_codes


async def wait_until_closed(server: MemoryListener) -> None:
    await wait_until(lambda: not server.listener.sessions)
    assert server.listener.byte_budget.used == 0


PIPELINED_CASES = [
    (WHOLE_TRANSACTION, "250 250 354 250"),
    (WHOLE_TRANSACTION * 3, "250 250 354 250 " * 3),
    (WHOLE_TRANSACTION + b"RSET\r\n" + WHOLE_TRANSACTION, "250 250 354 250 250 250 250 354 250"),
    (MAIL + MAIL + RCPT + b"DATA\r\nHello\r\n.\r\n", "250 503 250 354 250"),
    (MAIL + RCPT + b"RSET\r\nDATA\r\n" + WHOLE_TRANSACTION, "250 250 250 503 250 250 354 250"),
    (MAIL + b"DATA\r\n" + RCPT + b"DATA\r\nHello\r\n.\r\n", "250 503 250 354 250"),
    (RCPT + b"DATA\r\n" + WHOLE_TRANSACTION, "503 503 250 250 354 250"),
    (MAIL + b"RCPT TO:<a b>\r\nDATA\r\nRSET\r\n", "250 553 503 250"),
    (MAIL + RCPT + b"DATA now\r\nDATA\r\nHello\r\n.\r\n", "250 250 501 354 250"),
    (MAIL + RCPT + b"DATA\r\n.\r\nRSET\r\nNOOP\r\n", "250 250 354 250 250 250"),
    (MAIL + RCPT + b"VRFY bob\r\nHELP\r\nDATA\r\n.\r\n", "250 250 252 214 354 250"),
    (MAIL + RCPT + b"FOO\r\n\r\nDATA\r\n.\r\n", "250 250 500 500 354 250"),
    (b"\r\n\r\n" + WHOLE_TRANSACTION, "500 500 250 250 354 250"),
]


@pytest.mark.parametrize(("raw", "replies"), PIPELINED_CASES)
async def test_pipelined_commands_are_answered_in_order(
    server: MemoryListener, client: SmtpTestClient, raw: bytes, replies: str
) -> None:
    expected = replies.split()
    assert await read_reply_codes(client, raw, len(expected)) == expected
    assert len(server.backend.accepted_messages) == expected.count("354")
    assert all(message.to == ["ada@example.org"] for message in server.backend.accepted_messages)


@pytest.mark.parametrize(
    ("raw", "replies"),
    [
        (b"", "221"),
        (MAIL, "250 221"),
        (MAIL + RCPT, "250 250 221"),
        (WHOLE_TRANSACTION, "250 250 354 250 221"),
        (WHOLE_TRANSACTION + MAIL, "250 250 354 250 250 221"),
    ],
)
async def test_commands_after_quit_are_ignored(
    server: MemoryListener, client: SmtpTestClient, raw: bytes, replies: str
) -> None:
    client.send_bytes(raw + b"QUIT\r\n" + WHOLE_TRANSACTION + b"NOOP\r\n")
    reply_lines = (await client.read_until_closed()).decode().splitlines()
    assert [line[:3] for line in reply_lines] == replies.split()
    assert len(server.backend.accepted_messages) == replies.count("354")


async def test_greeting_resets_transaction(server: MemoryListener, client: SmtpTestClient) -> None:
    reply_codes = await read_reply_codes(
        client, MAIL + RCPT + server.greeting_command + b"\r\nDATA\r\n", 4
    )
    assert [code[:3] for code in reply_codes] == ["250", "250", "250", "503"]
    assert server.backend.accepted_messages == []


async def test_commands_sent_byte_by_byte_are_accepted(
    server: MemoryListener, client: SmtpTestClient
) -> None:
    for position in range(len(WHOLE_TRANSACTION)):
        client.send_bytes(WHOLE_TRANSACTION[position : position + 1])
        await client.writer.drain()
    assert [(await client.read_reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
    assert len(server.backend.accepted_messages) == 1


@pytest.mark.parametrize("kind", KINDS_WITH_STARTTLS)
@pytest.mark.parametrize(
    "injected",
    [
        FORGED_TRANSACTION,
        b"EHLO mallory\r\n" + FORGED_TRANSACTION,
        b"EHLO mallory\r\nAUTH PLAIN "
        + AUTH_PLAIN_RESPONSE.encode()
        + b"\r\n"
        + FORGED_TRANSACTION,
        b"EHLO mallory\r\nMAIL FROM:<mall",
        b"NOOP\n",
        b"\x00",
    ],
)
async def test_commands_pipelined_before_tls_are_discarded(
    tmp_path: Path, kind: str, injected: bytes
) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.connect()
        client.send_bytes(b"EHLO x\r\nSTARTTLS\r\n" + injected)
        assert (await client.read_reply()).startswith("250")
        assert (await client.read_reply()).startswith("220")
        await client.writer.start_tls(
            server.authority.client_context(), server_hostname="mx.example.org"
        )
        assert (await client.run_command("RCPT TO:<ada@example.org>")).startswith(
            "503 5.5.1 Need MAIL"
        )
        assert (await client.run_command("MAIL FROM:<carol@example.net>")).startswith(
            "503 5.5.1 Send HELO"
        )
        offers = await client.run_command("EHLO x")
        assert ("AUTH PLAIN LOGIN" in offers) == (kind == "submission")
        assert (
            server.backend.accepted_messages,
            server.backend.checked_recipients,
            server.backend.sign_in_attempts,
        ) == ([], [], [])
        await client.close()


@pytest.mark.parametrize("kind", KINDS_WITH_STARTTLS)
async def test_transaction_begun_before_tls_is_reset(tmp_path: Path, kind: str) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.connect()
        client.send_bytes(
            b"EHLO x\r\nMAIL FROM:<carol@example.net>\r\nRCPT TO:<bob@example.org>\r\n"
        )
        for _ in range(3):
            await client.read_reply()
        await start_tls(client, server.authority.client_context())
        assert (await client.run_command("DATA")).startswith("503")
        assert (await client.run_command("RCPT TO:<ada@example.org>")).startswith("503")
        await client.close()


async def test_sign_in_without_tls_is_refused(tmp_path: Path) -> None:
    async with run_memory_listener("submission", tmp_path) as server:
        client = await server.connect()
        for hello in (b"EHLO x", b"HELO x"):
            assert "AUTH" not in await client.run_command(hello)
            for line in (
                f"AUTH PLAIN {AUTH_PLAIN_RESPONSE}",
                "AUTH PLAIN",
                "AUTH LOGIN YWRh",
                "AUTH",
                "AUTH X",
            ):
                assert (await client.run_command(line)).startswith("538 5.7.11"), line
        assert (await client.run_command("MAIL FROM:<carol@example.net>")).startswith("530")
        assert server.backend.sign_in_attempts == []
        await client.close()


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_tls_and_http_requests_are_refused(tmp_path: Path, kind: str) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client_hello = ssl.MemoryBIO()
        tls = ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), client_hello, server_hostname="x"
        )
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        http = b"POST / HTTP/1.1\r\nHost: mx\r\nContent-Length: 99\r\n\r\n" + WHOLE_TRANSACTION
        # A ClientHello can hold a bare LF, which ends the session.
        for raw, final_codes in (
            (client_hello.read() + b"\r\n", (b"221", b"521")),
            (http, (b"221",)),
        ):
            client = await server.connect()
            client.send_bytes(raw + b"QUIT\r\n")
            reply_lines = (await client.read_until_closed()).splitlines()
            assert reply_lines[-1].startswith(final_codes)
            assert all(line.startswith((b"5", b"221")) for line in reply_lines)
            await client.close()
        assert server.backend.accepted_messages == []


def encode_base64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.fixture
async def submission_server(tmp_path: Path) -> AsyncIterator[MemoryListener]:
    async with run_memory_listener("submission", tmp_path, max_mistakes=100) as running_server:
        yield running_server


async def connect_with_tls(submission_server: MemoryListener) -> SmtpTestClient:
    client = await submission_server.connect()
    await client.run_command("EHLO x")
    await start_tls(client, submission_server.authority.client_context())
    return client


BROKEN_AUTH_EXCHANGES = [
    (["AUTH"], "504"),
    (["AUTH "], "504"),
    (["AUTH PLAIN PLAIN PLAIN"], "501"),
    (["AUTH =PLAIN"], "504"),
    (["AUTH CRAM-MD5"], "504"),
    (["AUTH EXTERNAL ="], "504"),
    (["AUTH PLAIN ="], "501"),
    (["AUTH PLAIN *"], "501"),
    (["AUTH PLAIN", "*"], "501"),
    (["AUTH PLAIN", ""], "501"),
    (["AUTH PLAIN", "="], "501"),
    (["AUTH PLAIN", "QUIT"], "501"),
    (["AUTH PLAIN", "MAIL FROM:<carol@example.net>"], "501"),
    (["AUTH PLAIN", AUTH_PLAIN_RESPONSE[:-1]], "501"),
    (["AUTH PLAIN", AUTH_PLAIN_RESPONSE + "="], "501"),
    (["AUTH PLAIN", AUTH_PLAIN_RESPONSE + " "], "501"),
    (["AUTH PLAIN", "\t" + AUTH_PLAIN_RESPONSE], "501"),
    (["AUTH PLAIN", AUTH_PLAIN_RESPONSE[:4] + "\0" + AUTH_PLAIN_RESPONSE[4:]], "501"),
    (["AUTH PLAIN", "grüße"], "501"),
    (["AUTH PLAIN", "A" * 2040], "501"),
    (["AUTH PLAIN", "A" * 100_000], "500"),
    (["AUTH PLAIN " + "A" * 100_000], "500"),
    (["AUTH PLAIN " + encode_base64("ada\0secret")], "501"),
    (["AUTH PLAIN " + encode_base64("\0ada\0secret\0")], "501"),
    (["AUTH PLAIN " + encode_base64("bob\0ada\0secret")], "501"),
    (["AUTH PLAIN " + encode_base64("\0\0\0\0\0")], "501"),
    (["AUTH PLAIN " + encode_base64(b"\0ada\0\xff\xfe")], "501"),
    (["AUTH PLAIN " + encode_base64(b"\0ada\0\xed\xa0\x80")], "501"),
    (["AUTH LOGIN", "*"], "501"),
    (["AUTH LOGIN", encode_base64("ada"), "*"], "501"),
    (["AUTH LOGIN", "!", ], "501"),
    (["AUTH LOGIN", encode_base64("ada"), "!"], "501"),
    (["AUTH LOGIN !"], "501"),
    (["AUTH LOGIN", "A" * 100_000], "500"),
]  # fmt: skip


async def test_broken_auth_is_refused_and_session_continues(
    submission_server: MemoryListener,
) -> None:
    client = await connect_with_tls(submission_server)
    for lines, code in BROKEN_AUTH_EXCHANGES:
        *first_replies, last_reply = [await client.run_command(line) for line in lines]
        assert all(reply.startswith("334") for reply in first_replies), lines
        assert last_reply.startswith(code), lines
        assert await client.run_command("NOOP") == "250 2.0.0 OK"
        assert (await client.run_command("MAIL FROM:<carol@example.net>")).startswith("530"), lines
    assert submission_server.backend.sign_in_attempts == []
    assert (await client.run_command(f"AUTH PLAIN {AUTH_PLAIN_RESPONSE}")).startswith("235")
    assert submission_server.backend.sign_in_attempts == [("ada", "secret")]
    await client.close()


async def test_repeated_sign_in_failures_close_connection(
    submission_server: MemoryListener,
) -> None:
    wrong_credentials = [
        encode_base64("\0ada\0wrong"),
        encode_base64("\0\0"),
        encode_base64("\0nobody\0secret"),
    ]
    client = await connect_with_tls(submission_server)
    replies = [
        await client.run_command(f"AUTH PLAIN {credentials}") for credentials in wrong_credentials
    ]
    assert set(replies) == {"535 5.7.8 Authentication credentials invalid"}
    assert (await client.read_until_closed()).startswith(b"421 4.7.0")
    await client.close()


async def test_commands_after_failed_sign_in_are_refused(submission_server: MemoryListener) -> None:
    client = await connect_with_tls(submission_server)
    client.send_bytes(
        f"AUTH PLAIN {encode_base64('|ada|wrong'.replace('|', chr(0)))}\r\n".encode()
        + WHOLE_TRANSACTION
    )
    replies = [(await client.read_reply())[:3] for _ in range(6)]
    assert replies == ["535", "530", "503", "503", "500", "500"]
    assert submission_server.backend.accepted_messages == []
    await client.close()


SLOW_STAGES = ["greeting", "command", "data", "sign-in", "hands"]


async def connect_slow_client(server: MemoryListener, stage: str) -> SmtpTestClient:
    """Connect a client that is slow from this stage on."""
    if stage in {"greeting", "hands"}:
        client = await server.connect()
        if stage == "hands":
            await client.run_command(server.greeting_command)
            assert (await client.run_command("STARTTLS")).startswith("220")
        return client
    if stage == "sign-in":
        client = await connect_with_tls(server)
        assert (await client.run_command("AUTH PLAIN")).startswith("334")
        return client
    client = await server.open_sending_session()
    if stage == "data":
        await client.start_data("ada@example.org")
    return client


def has_stage(kind: str, stage: str) -> bool:
    """True if this kind of listener has the stage."""
    return (stage != "sign-in" or kind == "submission") and (stage != "hands" or kind != "lmtp")


@pytest.mark.parametrize(
    ("kind", "stage"),
    [(kind, stage) for kind in LISTENER_KINDS for stage in SLOW_STAGES if has_stage(kind, stage)],
)
async def test_slow_clients_time_out_and_others_are_served(
    tmp_path: Path, kind: str, stage: str
) -> None:
    loop_clock = LoopClock()
    limits = {"message_timeout" if stage == "data" else "command_timeout": 3600}
    async with run_memory_listener(kind, tmp_path, **limits) as server:
        slow_clients = [await connect_slow_client(server, stage) for _ in range(10)]
        other_client = await server.open_sending_session()
        await other_client.start_data("ada@example.org")
        other_client.send_bytes(b"Hello\r\n.\r\n")
        assert (await other_client.read_reply()).startswith("250")
        assert (await other_client.run_command("QUIT")).startswith("221")
        await other_client.close()
        piece = b"\x16" if stage == "hands" else b"x"

        def have_ended_or_get_data() -> bool:
            """Return whether all sessions have ended. If not, the clients send another byte."""
            for slow_client in slow_clients:
                # The server closes the connection while the client sends.
                with suppress(ConnectionError):
                    slow_client.send_bytes(piece)
            return not server.listener.sessions

        await loop_clock.advance_until(have_ended_or_get_data, step_seconds=60)
        for slow_client in slow_clients:
            slow_client.writer.transport.abort()
        await wait_until_closed(server)
        assert [
            message.raw.endswith(b"Hello\r\n") for message in server.backend.accepted_messages
        ] == [True]


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_client_that_reads_no_replies_times_out(tmp_path: Path, kind: str) -> None:
    loop_clock = LoopClock()
    async with run_memory_listener(kind, tmp_path, command_timeout=3600) as server:
        client_socket = socket.socket()
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client_socket.setblocking(False)
        with client_socket:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client_socket, ("127.0.0.1", server.listener.port))
            commands = (server.greeting_command + b"\r\n") * 100_000
            sending = asyncio.ensure_future(loop.sock_sendall(client_socket, commands))
            await wait_until(lambda: bool(server.listener.sessions))
            await loop_clock.advance_until(
                lambda: not server.listener.sessions and sending.done(), step_seconds=60
            )
            # The server closes the connection while the client sends.
            with suppress(ConnectionError):
                await sending
            await wait_until_closed(server)
        other_client = await server.open_sending_session()
        assert await other_client.run_command("NOOP") == "250 2.0.0 OK"
        await other_client.close()


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_connections_above_limit_are_refused(tmp_path: Path, kind: str) -> None:
    network_limit = 100 if kind == "lmtp" else 5
    async with run_memory_listener(
        kind, tmp_path, max_connections=8, max_connections_per_network=network_limit
    ) as server:
        expected_limit = 8 if kind == "lmtp" else 5
        open_clients = [await server.connect() for _ in range(expected_limit)]
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.listener.port)
            client = SmtpTestClient(reader, writer)
            assert (await client.read_until_closed()).startswith(b"421 4.")
            await client.close()
        assert (await open_clients[0].run_command("NOOP")).startswith("250")
        for open_client in open_clients:
            open_client.abort_connection()
        await wait_until_closed(server)
        next_client = await server.connect()
        assert (await next_client.run_command("NOOP")).startswith("250")
        await next_client.close()


async def test_10000_recipients_are_limited_and_session_continues(tmp_path: Path) -> None:
    for kind in LISTENER_KINDS:
        (tmp_path / kind).mkdir()
        async with run_memory_listener(kind, tmp_path / kind) as server:
            max_recipients = server.listener.limits.max_recipients
            client = await server.open_sending_session()
            client.send_bytes(MAIL + RCPT * 10_000 + b"DATA\r\nHello\r\n.\r\n")
            assert (await client.read_reply()).startswith("250 2.1.0")
            reply_codes = [(await client.read_reply())[:9] for _ in range(10_000)]
            assert reply_codes == ["250 2.1.5"] * max_recipients + ["452 4.5.3"] * (
                10_000 - max_recipients
            )
            assert (await client.read_reply()).startswith("354")
            for _ in range(max_recipients if kind == "lmtp" else 1):
                assert (await client.read_reply()).startswith("250 2.0.0")
            assert await client.run_command("NOOP") == "250 2.0.0 OK"
            assert len(server.backend.accepted_messages[0].to) == max_recipients
            await client.close()


@pytest.mark.parametrize(
    "line", [b"FOO", b"", b"\xff\xfe", b"MAIL", b"RCPT TO:<x>", b"MAIL FROM:<> X=Y", b"DATA"]
)
async def test_too_many_mistakes_end_session(
    server: MemoryListener, client: SmtpTestClient, line: bytes
) -> None:
    client.send_bytes((line + b"\r\n") * 10_000)
    received = bytearray()
    with suppress(ConnectionError):  # the server closes the connection while the client sends
        async with asyncio.timeout(HANG_SECONDS):
            while piece := await client.reader.read(4096):
                received += piece
    replies = received.splitlines()
    assert len(replies) <= server.listener.limits.max_mistakes + 2
    await wait_until_closed(server)


async def test_too_long_line_is_refused_and_session_continues(
    server: MemoryListener, client: SmtpTestClient
) -> None:
    expected_replies = {
        b"NOOP ": "250 ",
        b"MAIL FROM:<": "553 5.1.7",
        b"\0": "500 5.5.2 Bad ",
        b"\xff": "500 ",
    }
    for verb, reply in expected_replies.items():
        assert (await client.run_command(verb.ljust(MAX_COMMAND_LINE - 2, b"x"))).startswith(
            reply
        ), verb
        for size in (MAX_COMMAND_LINE - 1, MAX_COMMAND_LINE, 100_000, 3_000_000):
            long_line_reply = await client.run_command(verb.ljust(size, b"x"))
            assert long_line_reply == "500 5.5.2 Line too long", (verb, size)
    assert await client.run_command("NOOP") == "250 2.0.0 OK"
    assert server.backend.accepted_messages == []


async def test_unterminated_line_uses_bounded_memory(
    server: MemoryListener, client: SmtpTestClient
) -> None:
    for _ in range(64):
        client.send_bytes(b"x" * 100_000)
        await client.writer.drain()
    (session,) = server.listener.sessions
    assert len(session._command_reader._buffer) < 400_000  # type: ignore[attr-defined]  # noqa: SLF001
    client.send_bytes(b"\r\n")
    assert (await client.read_reply()).startswith("500 5.5.2 Line too long")
    assert await client.run_command("NOOP") == "250 2.0.0 OK"
