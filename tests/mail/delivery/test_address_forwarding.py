"""Addresses that forward to SMTP servers on loopback, and addresses whose mail is dropped."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.addresses import srs
from mail.mime.header_encoding import NamedAddress
from mail.recipients import recipient_routes
from models.events.event_types import SUBMISSION_EVENT_TYPES
from models.events.journal import PLATFORM, Change
from models.events.wakeups import QUEUE
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.mail.forwarding_addresses import add_forwarding_address, allow_private_targets
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_for_messages,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.servers.webhook_receiver import run_webhook_receiver
from tests.support.stores.row_counts import count_rows
from tests.support.time_limits import HANG_SECONDS

LIST_ADDRESS = "list@example.org"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_forwarded_message_has_an_srs_sender(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", "dave@far.example", "eve@far.example")
    raw = raw_message("Onward")
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        assert await send_transaction(lmtp_client, raw, LIST_ADDRESS) == ACCEPTED_REPLIES
        await wait_for_messages(smtp_server)
    statement = select(func.count().label("many")).where(
        col(Change.stream_id) == PLATFORM, col(Change.type).in_(SUBMISSION_EVENT_TYPES)
    )
    # one when it is queued, one when it is sent
    assert (await environment.database.read(statement))[0].many == 2
    (message,) = smtp_server.messages
    assert sorted(message.to) == ["dave@far.example", "eve@far.example"]
    assert message.raw == b"Delivered-To: list@example.org\r\n" + raw
    local_part, _, domain = message.sender.rpartition("@")
    assert domain == "example.org"
    assert srs.verified_original_sender(environment, local_part) == "carol@far.example"
    assert not await load_inbox_rows(ada)


async def test_local_members_receive_the_message_once(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_forwarding_address(ada.environment, "both", ada.address, bob.address)
    await add_forwarding_address(
        ada.environment, "list", "both@example.org", ada.address, "list@example.org"
    )
    rcpt_replies, data_replies = await send_transaction(
        lmtp_client, raw_message("All"), LIST_ADDRESS, ada.address, "both@example.org"
    )
    assert rcpt_replies == ["250 2.1.5"] * 3
    assert data_replies == ["250 2.0.0"] * 3
    for client in (ada, bob):
        assert [row.subject for row in await load_inbox_rows(client)] == ["All"]
    assert await count_rows(ada.environment, Submission) == 0


async def test_message_to_dropping_address_is_accepted_and_deleted(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_forwarding_address(ada.environment, "hole")
    assert (
        await send_transaction(lmtp_client, raw_message("Lost"), "hole@example.org")
        == ACCEPTED_REPLIES
    )
    assert not await load_inbox_rows(ada)
    assert await count_rows(ada.environment, Submission) == 0


async def test_repeated_delivery_is_not_forwarded_again(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_forwarding_address(ada.environment, "list", "dave@far.example")
    for raw in (raw_message("One"), raw_message("One"), raw_message("Two")):
        assert await send_transaction(lmtp_client, raw, LIST_ADDRESS) == ACCEPTED_REPLIES
    assert await count_rows(ada.environment, Submission) == 2
    replies = await deliver_at_once(lmtp_client, raw_message("At once"), 5)
    assert replies == ["250 2.0.0"] * 5
    assert await count_rows(ada.environment, Submission) == 3


async def deliver_at_once(lmtp_client: SmtpTestClient, raw: bytes, count: int) -> list[str]:
    """Deliver one message over several connections at the same time."""
    port = lmtp_client.writer.get_extra_info("peername")[1]

    async def deliver() -> str:
        client = await connect_lmtp(port)
        _, (code,) = await send_transaction(client, raw, LIST_ADDRESS)
        await client.close()
        return str(code)

    return list(await asyncio.gather(*(deliver() for _ in range(count))))


async def test_daily_forward_limit_refuses_more_messages(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await add_forwarding_address(
        ada.environment, "list", "dave@far.example", "eve@far.example", forwards_per_day=3
    )
    # Two of three forwards.
    assert await send_transaction(lmtp_client, raw_message("1"), LIST_ADDRESS) == ACCEPTED_REPLIES
    assert await send_transaction(lmtp_client, raw_message("2"), LIST_ADDRESS) == ACCEPTED_REPLIES
    assert await send_transaction(lmtp_client, raw_message("3"), LIST_ADDRESS) == (
        ["450 4.2.1"],
        [],
    )
    clock.tick(days=1, seconds=1)
    assert await send_transaction(lmtp_client, raw_message("3"), LIST_ADDRESS) == ACCEPTED_REPLIES
    assert await count_rows(ada.environment, QueueEntry) == 6


async def test_mail_loop_is_refused(ada: GraphQLClient, lmtp_client: SmtpTestClient) -> None:
    await add_forwarding_address(ada.environment, "list", "dave@far.example")
    looped = b"Delivered-To: list@example.org\r\n" + raw_message("Again")
    assert await send_transaction(lmtp_client, looped, LIST_ADDRESS) == (
        ["250 2.1.5"],
        ["554 5.4.6"],
    )
    many_hops = b"Received: from a by b\r\n" * 30 + raw_message("Far")
    assert await send_transaction(lmtp_client, many_hops, LIST_ADDRESS, ada.address) == (
        ["250 2.1.5", "250 2.1.5"],
        ["554 5.4.6", "250 2.0.0"],
    )
    assert await count_rows(ada.environment, Submission) == 0


async def test_full_mailbox_does_not_delay_other_members(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", ada.address, bob.address)
    await set_quota(environment, bob, 1)
    assert (
        await send_transaction(lmtp_client, raw_message("Room"), LIST_ADDRESS) == ACCEPTED_REPLIES
    )
    assert [row.subject for row in await load_inbox_rows(ada)] == ["Room"]
    assert not await load_inbox_rows(bob)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await poll_until(deferral_condition(environment))
        await set_quota(environment, bob, bob.user.quota)
        clock.tick(minutes=10)
        environment.wakeups.announce({QUEUE: environment.new_id()})
        await poll_until(lambda: has_mail(bob))
    assert [row.subject for row in await load_inbox_rows(bob)] == ["Room"]
    assert len(await load_inbox_rows(ada)) == 1


async def set_quota(environment: Environment, client: GraphQLClient, allowed: int | None) -> None:
    async with environment.write_session() as session:
        statement = update(User).where(col(User.id) == client.user.id)
        await session.exec(statement.values(quota=allowed))


def deferral_condition(environment: Environment) -> Any:
    async def is_deferred() -> bool:
        rows = await environment.database.read(select(col(QueueEntry.last_code)))
        return [row.last_code for row in rows] == [452]

    return is_deferred


async def has_mail(client: GraphQLClient) -> bool:
    return bool(await load_inbox_rows(client))


async def test_forwarding_failure_is_reported_to_the_original_sender(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    """DSNs of our queue and bounces of other servers both reach the original sender."""
    environment = ada.environment
    await add_forwarding_address(environment, "list", "dave@far.example")
    refusing_server = FakeSmtpServer(rcpt_replies={"dave": "550 5.1.1 Nobody"})
    async with (
        run_smtp_server(refusing_server) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        assert (
            await send_transaction(lmtp_client, raw_message("Lost"), LIST_ADDRESS)
            == ACCEPTED_REPLIES
        )
        await wait_for_messages(smtp_server)
        (dsn,) = smtp_server.messages
        assert (dsn.sender, dsn.to) == ("<>", ["carol@far.example"])
        assert b"550 5.1.1 Nobody" in dsn.raw
        bounce_address = srs.rewrite_sender(environment, "carol@far.example", "example.org")
        assert (
            await send_transaction(lmtp_client, raw_message("Bounce"), bounce_address, sender="")
            == ACCEPTED_REPLIES
        )
        await wait_for_messages(smtp_server, 2)
        assert (smtp_server.messages[1].sender, smtp_server.messages[1].to) == (
            "<>",
            ["carol@far.example"],
        )
    assert await send_transaction(lmtp_client, raw_message("Spam"), bounce_address) == (
        ["550 5.1.1"],
        [],
    )
    forged_address = bounce_address.replace("carol", "mallory")
    assert await send_transaction(lmtp_client, raw_message("Spam"), forged_address, sender="") == (
        ["550 5.1.1"],
        [],
    )


async def test_submitted_message_is_forwarded_the_same_way(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", bob.address, "dave@far.example")
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await queue_message(ada, NamedAddress(LIST_ADDRESS))
        await wait_for_messages(smtp_server)
        await poll_until(lambda: has_mail(bob))
    assert smtp_server.messages[0].to == ["dave@far.example"]
    assert b"Return-Path" not in smtp_server.messages[0].raw
    local_part = smtp_server.messages[0].sender.rpartition("@")[0]
    assert srs.verified_original_sender(environment, local_part) == ada.address


async def test_resolution_has_few_statements(
    ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", ada.address, bob.address)
    del statements[:]
    accepted = await recipient_routes.accept_recipient(environment, ada.address, "")
    assert [account.recipient.user_id for account in accepted.accounts] == [ada.user.id]
    assert len(statements) == 2
    await recipient_routes.accept_recipient(environment, LIST_ADDRESS, "")
    # Ada's address, the list, all its targets, two accounts
    assert len(statements) == 2 + 1 + 2 + 2


async def test_relay_target_gets_the_message_for_the_list_address(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    environment = allow_private_targets(ada.environment)
    raw = raw_message("Relayed")
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await add_forwarding_address(
            environment, "list", f"smtp://127.0.0.1:{smtp_server.port}", "dave@far.example"
        )
        assert await send_transaction(lmtp_client, raw, LIST_ADDRESS) == ACCEPTED_REPLIES
        await wait_for_messages(smtp_server, 2)
    messages_by_sender = {message.sender: message for message in smtp_server.messages}
    message = messages_by_sender.pop("carol@far.example")
    assert message.to == [LIST_ADDRESS]
    assert message.raw == b"Delivered-To: list@example.org\r\n" + raw
    assert [message.to for message in messages_by_sender.values()] == [["dave@far.example"]]


async def test_webhook_target_gets_the_message_as_body(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    environment = allow_private_targets(ada.environment)
    raw = raw_message("Posted")
    async with (
        run_webhook_receiver() as receiver,
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await add_forwarding_address(environment, "list", receiver.url)
        assert await send_transaction(lmtp_client, raw, LIST_ADDRESS) == ACCEPTED_REPLIES
        async with asyncio.timeout(HANG_SECONDS):
            await receiver.request_arrived.wait()
    (request,) = receiver.requests
    assert request.raw == b"Delivered-To: list@example.org\r\n" + raw
    assert request.headers["content-type"] == "message/rfc822"
    assert request.headers["x-envelope-from"] == "carol@far.example"
    assert request.headers["x-envelope-to"] == LIST_ADDRESS
    assert not smtp_server.messages


@pytest.mark.parametrize("target", ["smtp://127.0.0.1:{}", "http://127.0.0.1:{}/x"])
async def test_private_target_is_not_contacted(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, target: str
) -> None:
    environment = ada.environment
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await add_forwarding_address(environment, "list", target.format(smtp_server.port))
        assert (
            await send_transaction(lmtp_client, raw_message("In"), LIST_ADDRESS) == ACCEPTED_REPLIES
        )

        async def was_tried() -> bool:
            rows = await environment.database.read(select(col(QueueEntry.last_response)))
            return bool(rows[0].last_response)

        await poll_until(was_tried)
        (row,) = await environment.database.read(
            select(col(QueueEntry.last_code), col(QueueEntry.state))
        )
    assert (row.last_code, row.state) == (451, DeliveryState.DEFERRED)
    assert not smtp_server.session_count


@pytest.mark.parametrize(
    "targets",
    [
        ("nobody@example.org",),
        ("off@example.org",),
        ("list@example.org",),
        ("back@example.org", "nobody@example.org"),
    ],
    ids=["unknown", "inactive", "loop", "loop and unknown"],
)
async def test_address_whose_targets_take_no_mail_is_refused(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, targets: tuple[str, ...]
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "off", "dave@far.example", active=False)
    await add_forwarding_address(environment, "back", LIST_ADDRESS)
    await add_forwarding_address(environment, "list", *targets)
    (replies, data_replies) = await send_transaction(lmtp_client, raw_message("Lost"), LIST_ADDRESS)
    assert (replies[0][:1], data_replies) == ("5", [])


async def test_unknown_target_beside_others_is_skipped(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_forwarding_address(ada.environment, "list", "nobody@example.org", ada.address)
    assert await send_transaction(lmtp_client, raw_message("Hi"), LIST_ADDRESS) == ACCEPTED_REPLIES
    assert len(await load_inbox_rows(ada)) == 1


async def test_address_that_forwards_to_a_discarding_one_accepts_mail(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_forwarding_address(ada.environment, "drop")
    await add_forwarding_address(ada.environment, "list", "drop@example.org")
    assert await send_transaction(lmtp_client, raw_message("Hi"), LIST_ADDRESS) == ACCEPTED_REPLIES


async def test_rewritten_target_gets_the_mail(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    document = """mutation ($input: RecipientRewriteCreateInput!) {
      recipientRewriteCreate(input: $input) { errors { code message } } }"""
    for source in ("@old.example", "moved@example.org"):
        values = {"from": source, "to": "@example.org" if source[0] == "@" else ada.address}
        payload = await root(document, input=values)
        assert payload["recipientRewriteCreate"]["errors"] == []
    await add_forwarding_address(ada.environment, "list", "ada@old.example", "moved@example.org")
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        sent = await send_transaction(lmtp_client, raw_message("Hi"), LIST_ADDRESS)
        assert sent == ACCEPTED_REPLIES

        async def has_arrived() -> bool:
            return len(await load_inbox_rows(ada)) > 0

        await poll_until(has_arrived)
    assert server.messages == []
