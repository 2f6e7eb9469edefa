"""Automatic replies of forwarding addresses, delivered by the queue to SMTP servers on loopback."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col

from mail.autoreply import reply_sender
from mail.maintenance.housekeeping import run_housekeeping_round
from mail.smtp import lmtp
from models.addresses.tables import Address
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.mail.parsed_messages import body_text, parse_message
from tests.support.mail.queued_deliveries import queued_reply_recipients
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.mail_servers.lmtp_transactions import deliver_message
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    poll_until,
    relay_settings,
    run_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.address_operations import try_update_addresses
from tests.support.operations.autoreply_operations import (
    AUTOREPLY_ADDRESS,
    AUTOREPLY_SETTINGS,
    make_autoreply_address,
    send_message_to_address,
    set_autoreply,
)
from tests.support.operations.spam_operations import create_sender_rules
from tests.support.stores.counter_check import select_rows
from tests.support.stores.store_damage import rename_table

pytestmark = pytest.mark.usefixtures("verify_consistency", "ada")


async def reply_recipients(environment: Environment) -> list[str]:
    """Return the recipients of replies. Forwarded bounces have an empty sender too."""
    return [to for to in await queued_reply_recipients(environment) if to != "dave@far.example"]


async def test_autoreply_is_sent_from_the_address(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await make_autoreply_address(root, name="Our desk", sendAs=False)
    await send_message_to_address(lmtp_client, Subject="Re: Lunch?", Message_ID="<b@far.example>")
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):

        async def are_both_sent() -> bool:
            return len(smtp_server.messages) == 2

        await poll_until(are_both_sent)
    (sent_reply,) = [message for message in smtp_server.messages if message.sender == "<>"]
    reply = parse_message(sent_reply.raw)
    assert sent_reply.to == ["carol@far.example"]
    assert (reply["From"], reply["To"]) == (f"Our desk <{AUTOREPLY_ADDRESS}>", "carol@far.example")
    assert (reply["Subject"], reply["In-Reply-To"]) == ("Auto: Re: Lunch?", "<b@far.example>")
    assert reply["Auto-Submitted"] == "auto-replied"
    assert body_text(reply) == "We have it."
    owners = await select_rows(environment, "SELECT DISTINCT user_id FROM submissions")
    assert owners == [(None,)]


async def test_sender_gets_one_reply_per_interval(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await make_autoreply_address(root, autoreply={**AUTOREPLY_SETTINGS, "interval": "P2D"})
    for sender in ("carol@far.example", "Carol+x@FAR.example", "eve@far.example"):
        await send_message_to_address(lmtp_client, sender)
    clock.tick(days=1, hours=23)
    await send_message_to_address(lmtp_client)
    assert await reply_recipients(environment) == ["carol@far.example", "eve@far.example"]
    clock.tick(hours=1)
    assert (await run_housekeeping_round(environment)).autoreply_senders == 2
    await send_message_to_address(lmtp_client)
    assert (await reply_recipients(environment))[2:] == ["carol@far.example"]
    _, errors = await try_update_addresses(
        root, AUTOREPLY_ADDRESS, autoreply={"text": "Another absence."}
    )
    assert errors == []
    await send_message_to_address(lmtp_client)
    assert (await reply_recipients(environment))[3:] == ["carol@far.example"]


async def test_each_address_replies_once_to_the_same_sender(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await make_autoreply_address(root)
    await make_autoreply_address(root, "desk@example.org")
    await set_autoreply(ada)
    for to in (AUTOREPLY_ADDRESS, "desk@example.org", "ada@example.org", AUTOREPLY_ADDRESS):
        await send_message_to_address(lmtp_client, to=to)
    assert await reply_recipients(environment) == ["carol@far.example"] * 3


async def test_repeated_delivery_is_answered_once(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await make_autoreply_address(root)
    raw = raw_message("x", To=AUTOREPLY_ADDRESS)
    for _ in range(2):
        await deliver_message(lmtp_client, raw, AUTOREPLY_ADDRESS, sender="carol@far.example")
    assert len(await select_rows(environment, "SELECT id FROM submissions")) == 2
    assert await reply_recipients(environment) == ["carol@far.example"]


async def test_repeated_delivery_sends_reply_that_failed_before(
    root: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await make_autoreply_address(root, autoreply={**AUTOREPLY_SETTINGS, "text": "the heron knows"})
    raw = raw_message("a secret", To=AUTOREPLY_ADDRESS)
    await rename_table(environment, "autoreply_senders", "away")
    try:
        (reply,) = await deliver_message(
            lmtp_client, raw, AUTOREPLY_ADDRESS, sender="carol@far.example"
        )
    finally:
        await rename_table(environment, "away", "autoreply_senders")
    assert reply.startswith("250 2.0.0")  # forwarded nevertheless
    (record,) = [
        record for record in caplog.records if record.message == "Automatic reply not sent"
    ]
    assert record.exc_text
    for secret in ("carol@", "heron", "a secret"):
        assert secret not in record.exc_text
    assert await reply_recipients(environment) == []
    await deliver_message(lmtp_client, raw, AUTOREPLY_ADDRESS, sender="carol@far.example")
    assert len(await select_rows(environment, "SELECT id FROM submissions")) == 2
    assert await reply_recipients(environment) == ["carol@far.example"]


async def test_concurrent_deliveries_get_one_reply(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await make_autoreply_address(root)
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    clients = [await connect_lmtp(listener.port) for _ in range(20)]
    try:
        await asyncio.gather(*(send_message_to_address(client) for client in clients))
        assert await reply_recipients(environment) == ["carol@far.example"]
    finally:
        for client in clients:
            await client.close()
        await listener.close(1)


async def test_replies_per_day_are_limited(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await make_autoreply_address(root)
    await send_message_to_address(lmtp_client)
    assert await select_rows(environment, "SELECT replied FROM addresses WHERE answers") == [(1,)]
    async with environment.write_session() as session:
        statement = update(Address).where(col(Address.answers))
        await session.exec(statement.values(replied=reply_sender.MAX_REPLIES_PER_DAY - 1))
    await send_message_to_address(lmtp_client, "dan@far.example")
    await send_message_to_address(lmtp_client, "eve@far.example")
    assert await reply_recipients(environment) == ["carol@far.example", "dan@far.example"]
    clock.tick(days=1)
    await send_message_to_address(lmtp_client, "eve@far.example")
    assert (await reply_recipients(environment))[2:] == ["eve@far.example"]
    assert await select_rows(environment, "SELECT replied FROM addresses WHERE answers") == [(1,)]


async def test_automatic_list_and_bcc_messages_get_no_reply(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await make_autoreply_address(root)
    for sender in ("", "mailer-daemon@far.example", "no-reply@far.example", "x-bounces@a.example"):
        await send_message_to_address(lmtp_client, sender)
    for headers in (
        {"Auto_Submitted": "auto-generated"},
        {"List_Id": "<x.far.example>"},
        {"Precedence": "bulk"},
        {"X_Auto_Response_Suppress": "OOF"},
        {"To": "dave@far.example"},
        {"To": "ada@example.org"},
    ):
        await send_message_to_address(lmtp_client, **headers)
    # a message from the address itself
    await send_message_to_address(lmtp_client, AUTOREPLY_ADDRESS)
    assert await reply_recipients(environment) == []
    await send_message_to_address(lmtp_client)
    assert await reply_recipients(environment) == ["carol@far.example"]


async def test_spam_gets_no_reply(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    # its account stores spam in Junk
    await make_autoreply_address(root, forwardTo=["ada@example.org"])
    await create_sender_rules(root, {"domain": {"name": "example.org"}}, "eve@far.example")
    await send_message_to_address(lmtp_client, "eve@far.example")
    await send_message_to_address(lmtp_client, X_Spam_Flag="YES")
    assert await reply_recipients(environment) == []
    await send_message_to_address(lmtp_client, "fay@far.example")
    assert await reply_recipients(environment) == ["fay@far.example"]


async def test_refused_message_gets_no_reply(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await make_autoreply_address(root, limits={"forwardsPerDay": 1})
    await send_message_to_address(lmtp_client, reply="554 5.4.6", Delivered_To=AUTOREPLY_ADDRESS)
    await send_message_to_address(lmtp_client, reply="554 5.7.1", X_Spam_Score="9.9")
    assert await reply_recipients(environment) == []
    await send_message_to_address(lmtp_client)
    assert await reply_recipients(environment) == ["carol@far.example"]
    assert (await lmtp_client.run_command("MAIL FROM:<eve@far.example>")).startswith("250")
    assert (await lmtp_client.run_command(f"RCPT TO:<{AUTOREPLY_ADDRESS}>")).startswith("450 4.2.1")
    assert await reply_recipients(environment) == ["carol@far.example"]


async def test_target_account_does_not_reply_too(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada)
    await make_autoreply_address(root, forwardTo=["ada@example.org"])
    await make_autoreply_address(root, "first@example.org", forwardTo=[AUTOREPLY_ADDRESS])
    await send_message_to_address(lmtp_client)
    assert len(await load_inbox_rows(ada)) == 1
    assert await reply_recipients(environment) == ["carol@far.example"]
    await send_message_to_address(lmtp_client, "eve@far.example", to="first@example.org")
    assert len(await load_inbox_rows(ada)) == 2
    counts = await select_rows(environment, "SELECT count(*) FROM autoreply_senders")
    assert counts == [(2,)]  # the address that received the message, not the one it forwards to


@pytest.mark.usefixtures("bob")
async def test_catch_all_replies_from_the_written_address(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    autoreply = {**AUTOREPLY_SETTINGS, "internalText": "Ask Bob."}
    targets = ["ada@example.org"]
    await make_autoreply_address(
        root, "*@example.org", allowWildcard=True, autoreply=autoreply, forwardTo=targets
    )
    await send_message_to_address(lmtp_client, to="who.ever+x@example.org")
    await send_message_to_address(lmtp_client, "bob@example.org", to="else@example.org")
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):

        async def is_sent() -> bool:
            return len(smtp_server.messages) == 1

        await poll_until(is_sent)
    reply = parse_message(smtp_server.messages[0].raw)
    assert (reply["From"], body_text(reply)) == ("who.ever+x@example.org", "We have it.")
    assert await reply_recipients(environment) == ["carol@far.example", "bob@example.org"]


async def test_autoreplies_are_not_read_if_all_are_disabled(
    root: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
    statements: list[str],
) -> None:
    async def autoreply_statements() -> list[str]:
        del statements[:]
        await send_message_to_address(lmtp_client)
        return [statement for statement in statements if "autoreplies" in statement]

    await make_autoreply_address(root, autoreply={"text": "We have it."})
    assert await autoreply_statements() == []
    _, errors = await try_update_addresses(root, AUTOREPLY_ADDRESS, autoreply={"enabled": True})
    assert errors == []
    assert len(await autoreply_statements()) == 2  # before the reply, and when it is reserved
    _, errors = await try_update_addresses(root, AUTOREPLY_ADDRESS, autoreply={"enabled": False})
    assert errors == []
    assert await autoreply_statements() == []
    assert await reply_recipients(environment) == ["carol@far.example"]


async def test_message_trace_shows_whether_a_reply_was_sent(
    root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    document = """query ($id: String!) {
      deliveryTrace(filter: {messageIdHeader: $id}, orderBy: AT_ASC) {
        nodes { event address detail } } }"""
    await make_autoreply_address(root)
    events = list[str]()
    for number in range(2):
        message_id = f"<way{number}@far.example>"
        await send_message_to_address(lmtp_client, Message_ID=message_id)
        steps = (await root(document, id=message_id))["deliveryTrace"]["nodes"]
        events += [
            f"{event['event']}: {event['detail']}"
            for event in steps
            if event["address"] == AUTOREPLY_ADDRESS
        ]
    assert [event for event in events if "AUTOREPLY" in event] == [
        "AUTOREPLY_SENT: answered", "AUTOREPLY_NOT_SENT: answered_before",
    ]  # fmt: skip
