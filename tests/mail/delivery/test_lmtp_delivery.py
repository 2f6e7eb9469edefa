"""Messages delivered by LMTP into a database."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlmodel import col

from mail.smtp.lmtp import LmtpListener
from models.addresses.tables import Address
from models.files.blobs import Blob
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, make_user, raw_message
from tests.support.mail.trace_header_lines import trace_header
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp

SENDER = "carol@example.net"


async def deliver_to(lmtp_client: SmtpTestClient, raw: bytes, *to: str) -> list[str]:
    """Deliver a message and return the reply codes, one per recipient."""
    await lmtp_client.start_data(*to)
    lmtp_client.send_bytes(raw + b".\r\n")
    return [(await lmtp_client.read_reply())[:9] for _ in to]


async def stored_rows(environment: Environment) -> Sequence[Any]:
    statement = select(col(Message.user_id), col(Message.subject), col(Message.size))
    return await environment.database.read(statement.order_by(col(Message.id)))


async def update_user(environment: Environment, client: GraphQLClient, **columns: object) -> None:
    async with environment.write_session() as session:
        await session.exec(update(User).where(col(User.id) == client.user.id).values(**columns))


async def rename_message_column(environment: Environment, column: str, new_name: str) -> None:
    statement = text(f"ALTER TABLE messages RENAME COLUMN {column} TO {new_name}")
    async with environment.write_session() as session:
        await (await session.connection()).execute(statement)


async def test_each_recipient_gets_the_message(
    environment: Environment, ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    raw = raw_message("Both of you")
    codes = await deliver_to(lmtp_client, raw, ada.address, bob.address)
    assert codes == ["250 2.0.0"] * 2
    assert sorted(await stored_rows(environment)) == sorted(
        (client.user.id, "Both of you", len(trace_header(client.address, SENDER) + raw))
        for client in (ada, bob)
    )


async def test_repeated_recipient_gets_one_message_and_every_reply(
    environment: Environment, ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    recipients = (ada.address, "A.da+news@example.org", ada.address)
    assert await deliver_to(lmtp_client, raw_message(), *recipients) == ["250 2.0.0"] * 3
    assert len(await stored_rows(environment)) == 1


async def test_repeated_delivery_is_stored_once_within_a_day(
    environment: Environment, ada: GraphQLClient, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    for _ in range(2):
        assert await deliver_to(lmtp_client, raw_message(), ada.address) == ["250 2.0.0"]
    assert len(await stored_rows(environment)) == 1
    clock.tick(days=1, seconds=1)
    await deliver_to(lmtp_client, raw_message(), ada.address)
    assert len(await stored_rows(environment)) == 2


async def test_two_messages_with_one_message_id_are_both_stored(
    environment: Environment, ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    for body in ("one", "two"):
        raw = raw_message(body=body, Message_ID="<same@example.com>")
        assert await deliver_to(lmtp_client, raw, ada.address) == ["250 2.0.0"]
    assert len(await stored_rows(environment)) == 2


async def test_large_message_is_stored_and_leaves_no_spool_file(
    environment: Environment,
    ada: GraphQLClient,
    lmtp_client: SmtpTestClient,
    lmtp_listener: LmtpListener,
) -> None:
    raw = raw_message("Large", body="Line of text\r\n" * 200_000)
    assert await deliver_to(lmtp_client, raw, ada.address) == ["250 2.0.0"]
    assert await stored_rows(environment) == [
        (ada.user.id, "Large", len(trace_header(ada.address, SENDER) + raw))
    ]
    assert not await asyncio.to_thread(lambda: list(lmtp_listener.spool_folder.iterdir()))


async def test_invalid_recipient_is_refused_at_rcpt(
    environment: Environment, ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await update_user(environment, ada, active=False)
    await update_user(environment, bob, quota=100, used=100)
    await lmtp_client.run_command("MAIL FROM:<>")
    for address, reply in (
        (ada.address, "550 5.1.1"),
        (bob.address, "452 4.2.2"),
        ("nobody@example.org", "550 5.1.1"),
        ("ada@elsewhere.org", "550 5.1.1"),
        ("ada", "55"),
        ("@example.org", "55"),
    ):
        assert (await lmtp_client.run_command(f"RCPT TO:<{address}>")).startswith(reply)


async def test_byte_budget_allows_the_largest_message(
    environment: Environment, tmp_path: Path
) -> None:
    for message_max in (1 << 20, 1 << 30):
        options = replace(environment.options, message_max_size=message_max)
        limits = LmtpListener(replace(environment, options=options), tmp_path / "spool").limits
        assert limits.max_message_size == message_max <= limits.byte_budget


async def test_limits_are_divided_among_processes(environment: Environment, tmp_path: Path) -> None:
    single_process_limits = LmtpListener(environment, tmp_path / "spool").limits
    shared_listener = LmtpListener(environment, tmp_path / "spool", process_count=4)
    assert (shared_listener.limits.max_connections, shared_listener.limits.byte_budget) == (
        single_process_limits.max_connections // 4,
        single_process_limits.byte_budget // 4,
    )
    assert shared_listener.byte_budget.limit == single_process_limits.byte_budget // 4
    minimum_limits = LmtpListener(environment, tmp_path / "spool", process_count=100).limits
    assert (minimum_limits.max_connections, minimum_limits.byte_budget) == (
        20,
        environment.options.message_max_size,
    )


async def test_suspended_user_receives_mail(
    environment: Environment, ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await update_user(environment, ada, suspended=True)
    assert await deliver_to(lmtp_client, raw_message(), ada.address) == ["250 2.0.0"]


async def test_full_mailbox_does_not_prevent_the_other_delivery(
    environment: Environment, ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await update_user(environment, ada, quota=100)
    codes = await deliver_to(lmtp_client, raw_message(), ada.address, bob.address)
    assert codes == ["452 4.2.2", "250 2.0.0"]
    assert [row.user_id for row in await stored_rows(environment)] == [bob.user.id]


async def test_user_deleted_after_rcpt_is_refused(
    environment: Environment, lmtp_client: SmtpTestClient, ada: GraphQLClient
) -> None:
    eve = await make_user(environment, "eve")
    await lmtp_client.start_data("eve@example.org", ada.address)
    async with environment.write_session() as session:
        await session.exec(delete(Address).where(col(Address.user_id) == eve.id))
        await session.exec(delete(Mailbox).where(col(Mailbox.user_id) == eve.id))
        await session.exec(delete(User).where(col(User.id) == eve.id))
    lmtp_client.send_bytes(raw_message() + b".\r\n")
    assert [(await lmtp_client.read_reply())[:9] for _ in range(2)] == ["550 5.1.1", "250 2.0.0"]


async def test_disconnect_during_data_leaves_no_rows_and_no_blobs(
    environment: Environment, ada: GraphQLClient, lmtp_listener: LmtpListener
) -> None:
    lmtp_client = await connect_lmtp(lmtp_listener.port)
    await lmtp_client.start_data(ada.address)
    lmtp_client.send_bytes(raw_message(body="x\r\n" * 1_000_000))
    lmtp_client.writer.write_eof()
    assert await lmtp_client.read_until_closed() == b""
    await lmtp_client.close()
    assert not await stored_rows(environment)
    assert await environment.database.read(select(func.count()).select_from(Blob)) == [(0,)]


async def test_database_error_is_logged_without_message_content(
    environment: Environment,
    ada: GraphQLClient,
    lmtp_client: SmtpTestClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await rename_message_column(environment, "subject", "away")
    assert await deliver_to(lmtp_client, raw_message("Top secret"), ada.address) == ["451 4.3.0"]
    (error_record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(error_record)["user"] == ada.user.id
    assert "Top secret" not in caplog.text
    assert ada.address not in caplog.text
    await rename_message_column(environment, "away", "subject")
    assert await deliver_to(lmtp_client, raw_message("Top secret"), ada.address) == ["250 2.0.0"]
