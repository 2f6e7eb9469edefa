"""SMTP smuggling: only CRLF.CRLF ends a message in each listener."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mail.smtp.spool_file import DataParser
from tests.support.mail.smuggled_messages import FALSE_END_SEQUENCES, SMUGGLED_TRANSACTION
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.memory_listeners import (
    AUTH_PLAIN_RESPONSE,
    LISTENER_KINDS,
    MemoryListener,
    run_memory_listener,
)
from tests.support.mail_servers.smtp_client import start_tls
from tests.support.time_limits import HANG_SECONDS

RECEIVED_FIELD = re.compile(rb"(Received: [^\r\n]+(\r\n\t[^\r\n]+)*\r\n)?")


@pytest.fixture(params=LISTENER_KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryListener]:
    async with run_memory_listener(request.param, tmp_path) as running_server:
        yield running_server


def remove_dot_stuffing(data: bytes) -> bytes:
    """Remove dot stuffing from sent lines (RFC 5321, section 4.5.2)."""
    lines = data.split(b"\r\n")
    return b"\r\n".join(line.removeprefix(b".") for line in lines)


def check_only_message(server: MemoryListener, expected: bytes) -> None:
    """Check that one message was received, unchanged and for one recipient."""
    (message,) = server.backend.accepted_messages
    assert (message.sender, message.to) == ("carol@example.net", ["ada@example.org"])
    received_field, _, rest = message.raw.partition(b"Subject: ")
    assert RECEIVED_FIELD.fullmatch(received_field)
    assert b"Subject: " + rest == expected
    server.backend.accepted_messages.clear()


async def check_session_in_step(client: SmtpTestClient) -> None:
    """Check that no other reply is pending."""
    assert await client.run_command("NOOP") == "250 2.0.0 OK"


async def test_false_end_sequence_does_not_end_message(server: MemoryListener) -> None:
    client = await server.open_sending_session()
    for end in FALSE_END_SEQUENCES:
        raw = b"Subject: x\r\n\r\nHello" + end + SMUGGLED_TRANSACTION
        await client.start_data("ada@example.org")
        client.send_bytes(raw + b".\r\n")
        assert (await client.read_reply()).startswith("250 2.0.0"), end
        await check_session_in_step(client)
        check_only_message(server, remove_dot_stuffing(raw))
    await client.close()


async def test_message_sent_in_two_segments_ends_correctly(server: MemoryListener) -> None:
    """A second connection makes sure that the server reads the segments one by one."""
    client = await server.open_sending_session()
    raw = b"Subject: x\r\n\r\nHello\n.\r\n..\r\n\r\n.\r\r\n"
    for cut in range(1, len(raw) + 3):
        data = raw + b".\r\n"
        await client.start_data("ada@example.org")
        client.send_bytes(data[:cut])
        await client.writer.drain()
        other_client = await server.open_sending_session()  # the first segment has been read by now
        client.send_bytes(data[cut:])
        assert (await client.read_reply()).startswith("250 2.0.0"), cut
        await check_session_in_step(client)
        await other_client.close()
        check_only_message(server, remove_dot_stuffing(raw))
    await client.close()


@pytest.mark.parametrize("end", FALSE_END_SEQUENCES)
def test_parser_fed_byte_by_byte_ignores_false_ends(end: bytes) -> None:
    raw = b"Subject: x\r\n\r\nHello" + end + SMUGGLED_TRANSACTION
    parser = DataParser()
    content = b""
    for position in range(len(raw)):
        added, rest = parser.split_at_end_of_data(raw[position : position + 1])
        content += added
        assert (parser.has_ended, rest) == (False, b"")
    for last in (b".", b"\r", b"\n"):
        added, rest = parser.split_at_end_of_data(last)
        content += added
    assert (parser.has_ended, rest, content) == (True, b"", remove_dot_stuffing(raw))


@pytest.mark.parametrize("line", [b"NOOP", b"", b"NO\rOP", b"MAIL FROM:<a@b.example>", b"x" * 99])
async def test_command_with_bare_lf_closes_session(server: MemoryListener, line: bytes) -> None:
    for previous_command in (b"", b"RSET\r\n"):
        client = await (server.open_sending_session() if previous_command else server.connect())
        client.send_bytes(previous_command + line + b"\n" + b"NOOP\r\nRSET\r\n")
        if previous_command:
            assert (await client.read_reply()).startswith("250")
        assert (await client.read_reply()).startswith("521 5.5.2 Error: bare <LF>")
        assert await client.read_until_closed() == b""
        await client.close()
    assert server.backend.accepted_messages == []


@pytest.mark.parametrize("line", [b"NO\rOP", b"NOOP\r\r", b"\rNOOP", b"NOOP\rRSET"])
async def test_command_with_bare_cr_is_refused(server: MemoryListener, line: bytes) -> None:
    client = await server.open_sending_session()
    client.send_bytes(line + b"\r\n")
    assert (await client.read_reply()).startswith("500 5.5.2")
    await check_session_in_step(client)
    await client.close()


async def test_auth_response_with_bare_lf_closes_session(tmp_path: Path) -> None:
    async with run_memory_listener("submission", tmp_path) as server:
        client = await server.connect()
        await client.run_command("EHLO x")
        await start_tls(client, server.authority.client_context())
        assert (await client.run_command("AUTH PLAIN")).startswith("334")
        client.send_bytes(AUTH_PLAIN_RESPONSE.encode() + b"\nNOOP\r\n")
        assert (await client.read_reply()).startswith("521 5.5.2")
        assert await client.read_until_closed() == b""
        assert server.backend.sign_in_attempts == []


async def test_pipelined_second_message_is_accepted(server: MemoryListener) -> None:
    client = await server.open_sending_session()
    envelope = b"MAIL FROM:<carol@example.net>\r\nRCPT TO:<ada@example.org>\r\nDATA\r\n"
    client.send_bytes(envelope + b"Subject: 1\r\n.\r\n" + envelope + b"Subject: 2\r\n.\r\nNOOP\r\n")
    codes = [(await client.read_reply())[:3] for _ in range(9)]
    assert codes == ["250", "250", "354", "250"] * 2 + ["250"]
    subjects = [
        message.raw.rpartition(b"Subject: ")[2] for message in server.backend.accepted_messages
    ]
    assert subjects == [b"1\r\n", b"2\r\n"]
    await client.close()


async def test_message_without_end_is_not_accepted(server: MemoryListener) -> None:
    for end in FALSE_END_SEQUENCES:
        client = await server.open_sending_session()
        await client.start_data("ada@example.org")
        client.send_bytes(b"Subject: x\r\n\r\nHello" + end)
        await client.writer.drain()
        await client.close()
    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(*(session.closed for session in list(server.listener.sessions)))
    assert server.backend.accepted_messages == []


async def test_dot_lines_are_accepted_by_all_listeners(tmp_path: Path) -> None:
    """The parser state of one message does not affect the next."""
    async with AsyncExitStack() as stack:
        for kind in LISTENER_KINDS:
            (tmp_path / kind).mkdir()
            server = await stack.enter_async_context(run_memory_listener(kind, tmp_path / kind))
            client = await server.open_sending_session()
            for raw in (b"", b"..\r\n", b"..\r\n..\r\n", b"\r\n..\r\n"):
                await client.start_data("ada@example.org")
                client.send_bytes(raw + b".\r\n")
                assert (await client.read_reply()).startswith("250")
                await check_session_in_step(client)
                assert server.backend.accepted_messages.pop().raw.endswith(remove_dot_stuffing(raw))
            await client.close()


@pytest.mark.parametrize("blank", [b" ", b"\t"])
async def test_leading_folded_line_does_not_extend_received_field(
    server: MemoryListener, blank: bytes
) -> None:
    raw = blank + b"; dmarc=pass header.from=bank.example\r\nFrom: x@bank.example\r\n\r\nHi\r\n"
    client = await server.open_sending_session()
    for first_size in (1, 20):
        await client.start_data("ada@example.org")
        client.send_bytes(raw[:first_size])
        await client.writer.drain()
        client.send_bytes(raw[first_size:] + b".\r\n")
        assert (await client.read_reply()).startswith("250 2.0.0")
        header, separator, rest = (b"\r\n" + server.backend.accepted_messages.pop().raw).partition(
            b"\r\n" * 2
        )
        assert separator
        assert RECEIVED_FIELD.fullmatch(header.removeprefix(b"\r\n") + b"\r\n" * bool(header))
        assert rest == raw
    await client.close()
