"""Addresses that forward, and those whose mail is dropped: to real servers on loopback."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.addresses import srs
from mail.mime.header_encoding import NamedAddress
from mail.recipients import recipient_routes
from models.events.journal import PLATFORM, Change, ChangeKind
from models.events.wakeups import QUEUE
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import Client, Clock, raw_message
from tests.support.mail.forwarding_addresses import add_forwarding_address, allow_private_targets
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import (
    inbox,
    relay,
    send,
    until,
    wait_for_messages,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.servers.webhook_receiver import receiving
from tests.support.stores.row_counts import row_count

LIST = "list@example.org"
pytestmark = pytest.mark.usefixtures("examined")


async def test_mail_is_sent_on_with_a_sender_of_ours(ada: Client, neighbour: Neighbour) -> None:
    world = ada.world
    await add_forwarding_address(world, "list", "dave@far.example", "eve@far.example")
    raw = raw_message("Onward")
    async with listening(Server()) as there, working(world, relay(there)):
        assert await send_transaction(neighbour, raw, LIST) == ACCEPTED_REPLIES
        await wait_for_messages(there)
    told = select(func.count().label("many")).where(
        col(Change.stream_id) == PLATFORM, col(Change.kind) == ChangeKind.SUBMISSION_CHANGED
    )
    assert (await world.database.read(told))[0].many == 2  # it is in the queue, and it is sent
    (mail,) = there.mails
    assert sorted(mail.to) == ["dave@far.example", "eve@far.example"]
    assert mail.raw == b"Delivered-To: list@example.org\r\n" + raw
    local, _, domain = mail.sender.rpartition("@")
    assert domain == "example.org"
    assert srs.original_sender(world, local) == "carol@far.example"
    assert not await inbox(ada)


async def test_accounts_here_have_it_at_once_and_each_once(
    ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    await add_forwarding_address(ada.world, "both", ada.address, bob.address)
    await add_forwarding_address(
        ada.world, "list", "both@example.org", ada.address, "list@example.org"
    )
    rcpt, codes = await send_transaction(
        neighbour, raw_message("All"), LIST, ada.address, "both@example.org"
    )
    assert rcpt == ["250 2.1.5"] * 3
    assert codes == ["250 2.0.0"] * 3
    for client in (ada, bob):
        assert [row.subject for row in await inbox(client)] == ["All"]
    assert await row_count(ada.world, Submission) == 0


async def test_what_is_dropped_is_taken_and_gone(ada: Client, neighbour: Neighbour) -> None:
    await add_forwarding_address(ada.world, "hole")
    assert (
        await send_transaction(neighbour, raw_message("Lost"), "hole@example.org")
        == ACCEPTED_REPLIES
    )
    assert not await inbox(ada)
    assert await row_count(ada.world, Submission) == 0


async def test_a_repeat_is_not_sent_on_again(ada: Client, neighbour: Neighbour) -> None:
    await add_forwarding_address(ada.world, "list", "dave@far.example")
    for raw in (raw_message("One"), raw_message("One"), raw_message("Two")):
        assert await send_transaction(neighbour, raw, LIST) == ACCEPTED_REPLIES
    assert await row_count(ada.world, Submission) == 2
    ours = await connect_many(neighbour, raw_message("At once"), 5)
    assert ours == ["250 2.0.0"] * 5
    assert await row_count(ada.world, Submission) == 3


async def connect_many(neighbour: Neighbour, raw: bytes, many: int) -> list[str]:
    """The same message by several connections at once."""
    port = neighbour.writer.get_extra_info("peername")[1]

    async def one() -> str:
        other = await connect(port)
        _, (code,) = await send_transaction(other, raw, LIST)
        await other.close()
        return str(code)

    return list(await asyncio.gather(*(one() for _ in range(many))))


async def test_a_day_has_a_limit(ada: Client, neighbour: Neighbour, clock: Clock) -> None:
    await add_forwarding_address(
        ada.world, "list", "dave@far.example", "eve@far.example", forwards_max=3
    )
    assert (
        await send_transaction(neighbour, raw_message("1"), LIST) == ACCEPTED_REPLIES
    )  # two of three
    assert await send_transaction(neighbour, raw_message("2"), LIST) == ACCEPTED_REPLIES
    assert await send_transaction(neighbour, raw_message("3"), LIST) == (["450 4.2.1"], [])
    clock.tick(days=1, seconds=1)
    assert await send_transaction(neighbour, raw_message("3"), LIST) == ACCEPTED_REPLIES
    assert await row_count(ada.world, QueueEntry) == 6


async def test_what_goes_in_circles_is_refused(ada: Client, neighbour: Neighbour) -> None:
    await add_forwarding_address(ada.world, "list", "dave@far.example")
    seen = b"Delivered-To: list@example.org\r\n" + raw_message("Again")
    assert await send_transaction(neighbour, seen, LIST) == (["250 2.1.5"], ["554 5.4.6"])
    hops = b"Received: from a by b\r\n" * 30 + raw_message("Far")
    assert await send_transaction(neighbour, hops, LIST, ada.address) == (
        ["250 2.1.5", "250 2.1.5"],
        ["554 5.4.6", "250 2.0.0"],
    )
    assert await row_count(ada.world, Submission) == 0


async def test_one_without_room_holds_up_nobody(
    ada: Client, bob: Client, neighbour: Neighbour, clock: Clock
) -> None:
    world = ada.world
    await add_forwarding_address(world, "list", ada.address, bob.address)
    await quota(world, bob, 1)
    assert await send_transaction(neighbour, raw_message("Room"), LIST) == ACCEPTED_REPLIES
    assert [row.subject for row in await inbox(ada)] == ["Room"]
    assert not await inbox(bob)
    async with listening(Server()) as there, working(world, relay(there)):
        await until(deferred_of(world))
        await quota(world, bob, bob.user.quota)
        clock.tick(minutes=10)
        world.wakeups.announce({QUEUE: world.new_id()})
        await until(lambda: has_mail(bob))
    assert [row.subject for row in await inbox(bob)] == ["Room"]
    assert len(await inbox(ada)) == 1


async def quota(world: Environment, client: Client, allowed: int | None) -> None:
    async with world.write_session() as session:
        this = update(User).where(col(User.id) == client.user.id)
        await session.exec(this.values(quota=allowed))


def deferred_of(world: Environment) -> Any:
    async def deferred() -> bool:
        rows = await world.database.read(select(col(QueueEntry.last_code)))
        return [row.last_code for row in rows] == [452]

    return deferred


async def has_mail(client: Client) -> bool:
    return bool(await inbox(client))


async def test_a_failure_is_told_to_the_first_sender(ada: Client, neighbour: Neighbour) -> None:
    """By us, where the queue gives up, and by others, whose bounces find back."""
    world = ada.world
    await add_forwarding_address(world, "list", "dave@far.example")
    refusing = Server(replies={"dave": "550 5.1.1 Nobody"})
    async with listening(refusing) as there, working(world, relay(there)):
        assert await send_transaction(neighbour, raw_message("Lost"), LIST) == ACCEPTED_REPLIES
        await wait_for_messages(there)
        (report,) = there.mails
        assert (report.sender, report.to) == ("<>", ["carol@far.example"])
        assert b"550 5.1.1 Nobody" in report.raw
        back = srs.rewrite_sender(world, "carol@far.example", "example.org")
        assert (
            await send_transaction(neighbour, raw_message("Bounce"), back, sender="")
            == ACCEPTED_REPLIES
        )
        await wait_for_messages(there, 2)
        assert (there.mails[1].sender, there.mails[1].to) == ("<>", ["carol@far.example"])
    assert await send_transaction(neighbour, raw_message("Spam"), back) == (["550 5.1.1"], [])
    forged = back.replace("carol", "mallory")
    assert await send_transaction(neighbour, raw_message("Spam"), forged, sender="") == (
        ["550 5.1.1"],
        [],
    )


async def test_what_we_send_ourselves_goes_the_same_way(ada: Client, bob: Client) -> None:
    world = ada.world
    await add_forwarding_address(world, "list", bob.address, "dave@far.example")
    async with listening(Server()) as there, working(world, relay(there)):
        await send(ada, NamedAddress(LIST))
        await wait_for_messages(there)
        await until(lambda: has_mail(bob))
    assert there.mails[0].to == ["dave@far.example"]
    assert b"Return-Path" not in there.mails[0].raw
    local = there.mails[0].sender.rpartition("@")[0]
    assert srs.original_sender(world, local) == ada.address


async def test_resolution_takes_few_statements(
    ada: Client, bob: Client, statements: list[str]
) -> None:
    world = ada.world
    await add_forwarding_address(world, "list", ada.address, bob.address)
    del statements[:]
    taken = await recipient_routes.accept_recipient(world, ada.address, "")
    assert [person.recipient.user_id for person in taken.accounts] == [ada.user.id]
    assert len(statements) == 2
    await recipient_routes.accept_recipient(world, LIST, "")
    assert len(statements) == 2 + 1 + 2 + 2  # hers, the list, all its targets, two accounts


async def test_a_relay_gets_it_for_the_address_itself(ada: Client, neighbour: Neighbour) -> None:
    world = allow_private_targets(ada.world)
    raw = raw_message("Relayed")
    async with listening(Server()) as there, working(world, relay(there)):
        await add_forwarding_address(
            world, "list", f"smtp://127.0.0.1:{there.port}", "dave@far.example"
        )
        assert await send_transaction(neighbour, raw, LIST) == ACCEPTED_REPLIES
        await wait_for_messages(there, 2)
    by_sender = {mail.sender: mail for mail in there.mails}
    mail = by_sender.pop("carol@far.example")
    assert mail.to == [LIST]
    assert mail.raw == b"Delivered-To: list@example.org\r\n" + raw
    assert [mail.to for mail in by_sender.values()] == [["dave@far.example"]]


async def test_a_page_gets_it_as_a_body(ada: Client, neighbour: Neighbour) -> None:
    world = allow_private_targets(ada.world)
    raw = raw_message("Posted")
    async with (
        receiving() as page,
        listening(Server()) as there,
        working(world, relay(there)),
    ):
        await add_forwarding_address(world, "list", page.url)
        assert await send_transaction(neighbour, raw, LIST) == ACCEPTED_REPLIES
        async with asyncio.timeout(10):
            await page.came.wait()
    (got,) = page.got
    assert got.raw == b"Delivered-To: list@example.org\r\n" + raw
    assert got.headers["content-type"] == "message/rfc822"
    assert got.headers["x-envelope-from"] == "carol@far.example"
    assert got.headers["x-envelope-to"] == LIST
    assert not there.mails


@pytest.mark.parametrize("target", ["smtp://127.0.0.1:{}", "http://127.0.0.1:{}/x"])
async def test_what_is_inside_is_not_reached(
    ada: Client, neighbour: Neighbour, target: str
) -> None:
    world = ada.world
    async with listening(Server()) as there, working(world, relay(there)):
        await add_forwarding_address(world, "list", target.format(there.port))
        assert await send_transaction(neighbour, raw_message("In"), LIST) == ACCEPTED_REPLIES

        async def tried() -> bool:
            rows = await world.database.read(select(col(QueueEntry.last_response)))
            return bool(rows[0].last_response)

        await until(tried)
        (row,) = await world.database.read(select(col(QueueEntry.last_code), col(QueueEntry.state)))
    assert (row.last_code, row.state) == (451, DeliveryState.DEFERRED)
    assert not there.sessions
