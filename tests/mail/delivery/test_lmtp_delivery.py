"""Mail that comes by LMTP into a real store."""

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
from tests.conftest import Client, Clock, make_user, raw_message
from tests.support.mail.trace_header_lines import top
from tests.support.mail_servers.lmtp_client import Neighbour, connect

FAR = "carol@example.net"


async def send(neighbour: Neighbour, raw: bytes, *to: str) -> list[str]:
    """The enhanced code for each recipient."""
    await neighbour.begin(*to)
    neighbour.send(raw + b".\r\n")
    return [(await neighbour.hear())[:9] for _ in to]


async def stored(world: Environment) -> Sequence[Any]:
    rows = select(col(Message.user_id), col(Message.subject), col(Message.size))
    return await world.database.read(rows.order_by(col(Message.id)))


async def change(world: Environment, client: Client, **columns: object) -> None:
    async with world.write_session() as session:
        await session.exec(update(User).where(col(User.id) == client.user.id).values(**columns))


async def rename(world: Environment, column: str, name: str) -> None:
    statement = text(f"ALTER TABLE messages RENAME COLUMN {column} TO {name}")
    async with world.write_session() as session:
        await (await session.connection()).execute(statement)


async def test_each_recipient_has_the_message(
    world: Environment, ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    raw = raw_message("Both of you")
    codes = await send(neighbour, raw, ada.address, bob.address)
    assert codes == ["250 2.0.0"] * 2
    assert sorted(await stored(world)) == sorted(
        (client.user.id, "Both of you", len(top(client.address, FAR) + raw))
        for client in (ada, bob)
    )


async def test_whoever_is_named_twice_has_it_once_and_two_replies(
    world: Environment, ada: Client, neighbour: Neighbour
) -> None:
    twice = (ada.address, "A.da+news@example.org", ada.address)
    assert await send(neighbour, raw_message(), *twice) == ["250 2.0.0"] * 3
    assert len(await stored(world)) == 1


async def test_a_repeat_after_a_lost_reply_is_stored_once(
    world: Environment, ada: Client, neighbour: Neighbour, clock: Clock
) -> None:
    for _ in range(2):
        assert await send(neighbour, raw_message(), ada.address) == ["250 2.0.0"]
    assert len(await stored(world)) == 1
    clock.tick(days=1, seconds=1)
    await send(neighbour, raw_message(), ada.address)
    assert len(await stored(world)) == 2


async def test_two_messages_with_one_message_id_both_arrive(
    world: Environment, ada: Client, neighbour: Neighbour
) -> None:
    for body in ("one", "two"):
        raw = raw_message(body=body, Message_ID="<same@example.com>")
        assert await send(neighbour, raw, ada.address) == ["250 2.0.0"]
    assert len(await stored(world)) == 2


async def test_a_large_message_arrives_through_the_spool(
    world: Environment, ada: Client, neighbour: Neighbour, listener: LmtpListener
) -> None:
    raw = raw_message("Large", body="Line of text\r\n" * 200_000)
    assert await send(neighbour, raw, ada.address) == ["250 2.0.0"]
    assert await stored(world) == [(ada.user.id, "Large", len(top(ada.address, FAR) + raw))]
    assert not await asyncio.to_thread(lambda: list(listener.spool_folder.iterdir()))


async def test_who_may_not_receive_is_refused_before_the_message_comes(
    world: Environment, ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    await change(world, ada, disabled=True)
    await change(world, bob, quota=100, used=100)
    await neighbour.say("MAIL FROM:<>")
    for address, reply in (
        (ada.address, "550 5.1.1"),
        (bob.address, "452 4.2.2"),
        ("nobody@example.org", "550 5.1.1"),
        ("ada@elsewhere.org", "550 5.1.1"),
        ("ada", "55"),
        ("@example.org", "55"),
    ):
        assert (await neighbour.say(f"RCPT TO:<{address}>")).startswith(reply)


async def test_the_largest_message_always_fits_the_budget(
    world: Environment, tmp_path: Path
) -> None:
    for largest in (1 << 20, 1 << 30):
        options = replace(world.options, message_max=largest)
        limits = LmtpListener(replace(world, options=options), tmp_path / "spool").limits
        assert limits.max_message_size == largest <= limits.byte_budget


async def test_several_processes_take_together_what_one_would(
    world: Environment, tmp_path: Path
) -> None:
    whole = LmtpListener(world, tmp_path / "spool").limits
    share = LmtpListener(world, tmp_path / "spool", process_count=4)
    assert (share.limits.max_connections, share.limits.byte_budget) == (
        whole.max_connections // 4,
        whole.byte_budget // 4,
    )
    assert share.byte_budget.limit == whole.byte_budget // 4
    least = LmtpListener(world, tmp_path / "spool", process_count=100).limits
    assert (least.max_connections, least.byte_budget) == (20, world.options.message_max)


async def test_a_suspended_user_receives(
    world: Environment, ada: Client, neighbour: Neighbour
) -> None:
    await change(world, ada, suspended=True)
    assert await send(neighbour, raw_message(), ada.address) == ["250 2.0.0"]


async def test_a_message_that_does_not_fit_one_mailbox_still_goes_to_the_other(
    world: Environment, ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    await change(world, ada, quota=100)
    codes = await send(neighbour, raw_message(), ada.address, bob.address)
    assert codes == ["452 4.2.2", "250 2.0.0"]
    assert [row.user_id for row in await stored(world)] == [bob.user.id]


async def test_a_user_deleted_after_rcpt_is_unknown(
    world: Environment, neighbour: Neighbour, ada: Client
) -> None:
    eve = await make_user(world, "eve")
    await neighbour.begin("eve@example.org", ada.address)
    async with world.write_session() as session:
        await session.exec(delete(Address).where(col(Address.user_id) == eve.id))
        await session.exec(delete(Mailbox).where(col(Mailbox.user_id) == eve.id))
        await session.exec(delete(User).where(col(User.id) == eve.id))
    neighbour.send(raw_message() + b".\r\n")
    assert [(await neighbour.hear())[:9] for _ in range(2)] == ["550 5.1.1", "250 2.0.0"]


async def test_a_client_that_vanishes_inside_data_leaves_no_rows_and_no_blobs(
    world: Environment, ada: Client, listener: LmtpListener
) -> None:
    neighbour = await connect(listener.port)
    await neighbour.begin(ada.address)
    neighbour.send(raw_message(body="x\r\n" * 1_000_000))
    neighbour.writer.write_eof()
    assert await neighbour.ended() == b""
    await neighbour.close()
    assert not await stored(world)
    assert await world.database.read(select(func.count()).select_from(Blob)) == [(0,)]


async def test_a_store_that_fails_is_one_line_in_the_log_without_the_mail(
    world: Environment, ada: Client, neighbour: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    await rename(world, "subject", "away")
    assert await send(neighbour, raw_message("Top secret"), ada.address) == ["451 4.3.0"]
    (bug,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(bug)["user"] == ada.user.id
    assert "Top secret" not in caplog.text
    assert ada.address not in caplog.text
    await rename(world, "away", "subject")
    assert await send(neighbour, raw_message("Top secret"), ada.address) == ["250 2.0.0"]
