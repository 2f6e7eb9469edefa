"""The end of LMTP sessions: lost and silent clients, too many mistakes, errors and shutdown."""

import asyncio
import logging
import re

import pytest

from mail.smtp.lmtp import LmtpListener
from mail.smtp.spool_file import MAX_IN_MEMORY
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


async def test_too_many_mistakes_close_connection(open_listener: OpenLmtpListener) -> None:
    client = await connect_lmtp((await open_listener(max_mistakes=2)).port)
    client.send_bytes(b"FOO\r\n" * 5)
    replies = (await client.read_until_closed()).decode().splitlines()
    assert [reply[:9] for reply in replies] == ["500 5.5.1"] * 3 + ["421 4.7.0"]
    await client.close()


@pytest.mark.parametrize("stage", ["command", "data"])
async def test_silent_client_times_out(
    open_listener: OpenLmtpListener, backend: InMemoryBackend, stage: str
) -> None:
    lmtp_listener = await open_listener(command_timeout=2)
    client = await connect_lmtp(lmtp_listener.port)
    if stage == "data":
        await client.start_data("ada@example.org")
        client.send_bytes(b"Hello\r\n" * 400_000)
    reply = await client.read_until_closed()
    assert reply == b"421 4.4.2 mx.example.org Error: timeout exceeded\r\n"
    await client.close()
    assert not backend.accepted_messages
    assert not spool_files(lmtp_listener)
    assert lmtp_listener.byte_budget.used == 0


@pytest.mark.parametrize("by_reset", [True, False])
async def test_client_lost_during_data_leaves_nothing(
    lmtp_listener: LmtpListener,
    backend: InMemoryBackend,
    caplog: pytest.LogCaptureFixture,
    *,
    by_reset: bool,
) -> None:
    caplog.set_level(logging.DEBUG, "mail.smtp.session")
    client = await connect_lmtp(lmtp_listener.port)
    await client.start_data("ada@example.org")
    client.send_bytes(b"Subject: secret\r\n" * (3 * MAX_IN_MEMORY // 17))
    await wait_until(lambda: lmtp_listener.byte_budget.used > 2 * MAX_IN_MEMORY)
    assert spool_files(lmtp_listener)
    if by_reset:
        client.abort_connection()
    else:
        client.writer.write_eof()
        assert await client.read_until_closed() == b""
    await client.close()
    await wait_until(lambda: not lmtp_listener.sessions)
    assert not backend.accepted_messages
    assert not spool_files(lmtp_listener)
    assert lmtp_listener.byte_budget.used == 0
    assert [record.getMessage() for record in caplog.records] == ["Session ended in DATA"]


async def test_half_closed_client_gets_delivery_reply(
    client: SmtpTestClient, backend: InMemoryBackend
) -> None:
    backend.delivery_allowed.clear()
    await client.start_data("ada@example.org")
    client.send_bytes(b"Hello\r\n.\r\n")
    client.writer.write_eof()
    await backend.delivery_started.wait()
    backend.delivery_allowed.set()
    assert re.fullmatch(
        rb"250 2\.0\.0 OK: queued as [0-9a-f]{20}\r\n", await client.read_until_closed()
    )


async def test_delivery_continues_after_client_is_lost(
    client: SmtpTestClient, lmtp_listener: LmtpListener, backend: InMemoryBackend
) -> None:
    backend.delivery_allowed.clear()
    await client.start_data("ada@example.org")
    client.send_bytes(b"Hello\r\n.\r\n")
    await backend.delivery_started.wait()
    client.abort_connection()
    await wait_until(lambda: not lmtp_listener.sessions)
    backend.delivery_allowed.set()
    await wait_until(lambda: not lmtp_listener.byte_budget.used)
    assert len(backend.accepted_messages) == 1


async def test_reply_is_sent_after_delivery(
    client: SmtpTestClient, backend: InMemoryBackend
) -> None:
    backend.delivery_allowed.clear()
    await client.start_data("ada@example.org")
    client.send_bytes(b"Hello\r\n.\r\n")
    await backend.delivery_started.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.reader.read(1)
    backend.delivery_allowed.set()
    assert (await client.read_reply()).startswith("250")


async def test_close_finishes_data_and_ends_idle_sessions(
    lmtp_listener: LmtpListener, backend: InMemoryBackend
) -> None:
    idle_client = await connect_lmtp(lmtp_listener.port)
    busy_client = await connect_lmtp(lmtp_listener.port)
    await busy_client.start_data("ada@example.org")
    close_task = asyncio.create_task(lmtp_listener.close(10))
    assert (await idle_client.read_until_closed()).startswith(b"421 4.3.2")
    busy_client.send_bytes(b"Hello\r\n.\r\n")
    delivery_reply, shutdown_reply, remainder = (await busy_client.read_until_closed()).split(
        b"\r\n"
    )
    assert delivery_reply.startswith(b"250 2.0.0 OK: queued as ")
    assert shutdown_reply.startswith(b"421 4.3.2 mx.example.org Service shutting down")
    assert remainder == b""
    await close_task
    assert len(backend.accepted_messages) == 1
    with pytest.raises(ConnectionRefusedError):
        await connect_lmtp(lmtp_listener.port)
    await idle_client.close()
    await busy_client.close()


async def test_close_ends_after_timeout(
    lmtp_listener: LmtpListener, backend: InMemoryBackend
) -> None:
    client = await connect_lmtp(lmtp_listener.port)
    await client.start_data("ada@example.org")
    client.send_bytes(b"Hello\r\n" * 300_000)
    await wait_until(lambda: lmtp_listener.byte_budget.used > MAX_IN_MEMORY)
    await lmtp_listener.close(0.1)
    assert (await client.read_until_closed()).startswith(b"421 4.3.2")
    assert not backend.accepted_messages
    assert not spool_files(lmtp_listener)
    await client.close()


@pytest.mark.parametrize("failing_point", ["data", "reply"])
async def test_internal_error_in_data_ends_session(
    open_listener: OpenLmtpListener, backend: InMemoryBackend, failing_point: str
) -> None:
    def raise_at_fault_point(fault_point: str) -> None:
        if fault_point == failing_point:
            raise RuntimeError(failing_point)

    client = await connect_lmtp((await open_listener(raise_at_fault_point)).port)
    await client.start_data("ada@example.org")
    client.send_bytes(b"Hello\r\n.\r\nNOOP\r\n")
    reply = await client.read_until_closed()
    assert reply == b"421 4.3.0 mx.example.org Temporary local problem, closing connection\r\n"
    assert len(backend.accepted_messages) == (failing_point == "reply")
    await client.close()
