"""Test messageRedirect without `to`: forwarding to the original targets again."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from models.messages.tables import Message
from models.users.tables import User
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.shared_mailboxes import (
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.accounts.user_operations import try_update_users
from tests.support.mail.forwarding_addresses import add_forwarding_address, allow_private_targets
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import (
    relay_settings,
    run_queue_worker,
    wait_for_messages,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.filter_operations import add_filter
from tests.support.operations.filter_operations import delete_filters as remove_filter
from tests.support.operations.quarantine_operations import QUARANTINE_RELEASE, quarantine_message
from tests.support.operations.send_operations import MESSAGE_REDIRECT, forward_errors
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver
from tests.support.stores.counter_check import select_rows

DAVE, EVE = "dave@far.example", "eve@far.example"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def forward_again(client: GraphQLClient, message_id: str, **extra: Any) -> Any:
    arguments = {"message": {"id": message_id}, **extra}
    return (await client(MESSAGE_REDIRECT, input=arguments))["messageRedirect"]


async def set_targets(client: GraphQLClient, *addresses: str, **extra: Any) -> None:
    assert (await try_update_users(client, forwardTo=list(addresses), **extra))[1] == []


async def deliver_message(
    client: GraphQLClient, lmtp_client: SmtpTestClient, raw: bytes | None = None
) -> str:
    """Deliver a message by LMTP and return its ID."""
    assert (
        await send_transaction(lmtp_client, raw or raw_message("Onward"), client.address)
        == ACCEPTED_REPLIES
    )
    return await newest_message_id(client)


async def newest_message_id(client: GraphQLClient) -> str:
    query = select(col(Message.id)).where(col(Message.user_id) == client.user.id)
    message_rows = await client.environment.database.read(query.order_by(col(Message.id)))
    return str(global_ids.encode("Message", message_rows[-1].id))


async def load_queued_recipients(client: GraphQLClient) -> list[tuple[Any, ...]]:
    """Load recipient and relay or webhook of the queue entries of a user."""
    query = "SELECT recipient, via FROM queue_entries WHERE user_id = :user ORDER BY id"
    return [tuple(row) for row in await select_rows(client.environment, query, user=client.user.id)]


async def load_forward_targets(client: GraphQLClient, message_id: str) -> list[tuple[Any, ...]]:
    """Load the original forward targets of a message."""
    document = (
        "query ($id: ID!) { message(by: {id: $id}) { forwardTargets { number type value } } }"
    )
    message = (await client(document, id=message_id))["message"]
    return [tuple(target.values()) for target in message["forwardTargets"]]


def forwarded_targets(answer: Any) -> list[tuple[Any, ...]]:
    assert answer["errors"] == []
    return [tuple(target.values()) for target in answer["forwardTargets"]]


async def test_message_is_forwarded_to_all_or_one_original_target(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_filter(ada, {}, {"forwardTo": [EVE, DAVE]})
    await set_targets(ada, "DAVE@far.example", "frank@far.example")
    message_id = await deliver_message(ada, lmtp_client)
    await set_targets(ada)  # the targets at delivery time count
    (filter_row,) = await select_rows(ada.environment, "SELECT id FROM filters")
    await remove_filter(ada, global_ids.encode("Filter", filter_row[0]))
    all_targets = [(1, "MAIL", EVE), (2, "MAIL", DAVE), (3, "MAIL", "frank@far.example")]
    assert await load_forward_targets(ada, message_id) == all_targets
    assert forwarded_targets(await forward_again(ada, message_id)) == all_targets
    assert await load_queued_recipients(ada) == [(address, None) for _, _, address in all_targets]
    assert (
        forwarded_targets(await forward_again(ada, message_id, originalTarget=2))
        == all_targets[1:2]
    )
    assert (await load_queued_recipients(ada))[3:] == [(DAVE, None)]
    assert (
        forwarded_targets(await forward_again(ada, message_id, originalTarget=None, to=None))
        == all_targets
    )


async def test_forward_without_original_targets_does_nothing(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    message_id = await deliver_message(ada, lmtp_client)
    await set_targets(ada, DAVE)  # this message was not forwarded
    for extra in ({}, {"originalTarget": 1}):
        answer = await forward_again(ada, message_id, **extra)
        assert (answer["submission"], forwarded_targets(answer)) == (None, [])
    message_id = await deliver_message(ada, lmtp_client, raw_message("Second"))
    answer = await forward_again(ada, message_id, originalTarget=2)
    assert (answer["submission"], forwarded_targets(answer)) == (None, [])
    assert await load_queued_recipients(ada) == []
    flags = "{ viewer { user { messages { nodes { imap { flags } } } } } }"
    nodes = (await ada(flags))["viewer"]["user"]["messages"]["nodes"]
    assert [item["imap"]["flags"] for item in nodes] == [[], []]


async def test_invalid_forward_arguments_are_refused(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_targets(ada, DAVE)
    message_id = await deliver_message(ada, lmtp_client)
    for extra, refusal in (
        ({"originalTarget": 1, "to": [EVE]}, ("VALIDATION", ["originalTarget"], None)),
        ({"originalTarget": 0}, ("VALIDATION", ["originalTarget"], None)),
        ({"originalTarget": -1}, ("VALIDATION", ["originalTarget"], None)),
        ({"to": []}, ("VALIDATION", ["to"], None)),
    ):
        assert forward_errors(await forward_again(ada, message_id, **extra)) == [refusal]
    assert await load_queued_recipients(ada) == []


@asynccontextmanager
async def relay_and_webhook(
    ada: GraphQLClient,
) -> AsyncGenerator[tuple[FakeSmtpServer, WebhookReceiver]]:
    """Run a relay that requires sign-in, a webhook receiver and a queue worker."""
    environment = allow_private_targets(ada.environment)
    server = FakeSmtpServer()
    server.smtp_options = {"auth_require_tls": False, "authenticator": server.authenticate}
    async with (
        run_smtp_server(server, tls=True) as listening_server,
        run_webhook_receiver() as webhook,
        run_queue_worker(environment, relay_settings(listening_server)),
    ):
        yield listening_server, webhook


async def test_relay_and_webhook_get_message_with_hidden_password(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    raw = raw_message("Relayed")
    async with relay_and_webhook(ada) as (server, webhook):
        host = f"127.0.0.1:{server.port}"
        await set_targets(ada, f"smtps://us:secret@{host}", webhook.url)
        message_id = await deliver_message(ada, lmtp_client, raw)
        await webhook.wait_for_requests(1)
        answer = await forward_again(ada, message_id)
        assert forwarded_targets(answer) == [
            (1, "RELAY", f"smtps://us:***@{host}"),
            (2, "HTTP", webhook.url),
        ]
        query = "SELECT id FROM submissions WHERE user_id IS NOT NULL"
        ((submission_id,),) = await select_rows(ada.environment, query)
        await wait_until_tried(ada.environment, submission_id)
        await wait_for_messages(server, 2)  # the first was forwarded on arrival
    assert await load_queued_recipients(ada) == [
        (ada.address, f"smtps://us:***@{host}"),
        (ada.address, webhook.url),
    ]
    assert set(server.logins) == {"us"}
    (received,) = (received for received in server.messages if received.sender == ada.address)
    assert received.to == [ada.address]
    assert received.raw.endswith(raw)
    request = webhook.requests[-1]
    assert request.raw.endswith(raw)
    assert request.headers["x-envelope-to"] == ada.address
    document = """query ($by: SubmissionRef!) { submission(by: $by) {
        state recipients { recipient state lastResponse } } }"""
    shown_submission = (await ada(document, by={"queueId": answer["submission"]["queueId"]}))[
        "submission"
    ]
    assert shown_submission["state"] == "SENT"
    assert "secret" not in str(shown_submission)


async def test_forward_to_relay_with_unknown_password_is_conflict(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    relay_url = "smtps://us:secret@relay.example"
    redirect_filter = await add_filter(ada, {}, {"forwardTo": [relay_url]})
    await set_targets(ada, DAVE)
    message_id = await deliver_message(ada, lmtp_client)
    assert forwarded_targets(await forward_again(ada, message_id))[0] == (
        1,
        "RELAY",
        "smtps://us:***@relay.example",
    )
    await remove_filter(ada, redirect_filter["id"])
    assert forward_errors(await forward_again(ada, message_id)) == [("CONFLICT", ["message"], None)]
    assert forward_errors(await forward_again(ada, message_id, originalTarget=1)) == [
        ("CONFLICT", ["originalTarget"], None)
    ]
    assert forwarded_targets(await forward_again(ada, message_id, originalTarget=2)) == [
        (2, "MAIL", DAVE)
    ]
    await set_targets(ada, relay_url)  # any current target can provide the password
    assert len(forwarded_targets(await forward_again(ada, message_id))) == 2


async def test_shared_reader_cannot_forward_to_owners_targets(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_targets(ada, DAVE)
    await create_team_mailbox(ada)
    assert await share_mailbox(ada, bob, "READ") == []
    message_id = await deliver_message(ada, lmtp_client)
    assert forward_errors(await forward_again(bob, message_id)) == [
        ("NOT_FOUND", ["message"], None)
    ]
    moved = await run_mailbox_mutation(
        ada, "messageMove", "movedCount", select={"ids": [message_id]}, to={"path": "Team"}
    )
    assert moved["errors"] == []
    for extra in ({}, {"originalTarget": 1}, {"originalTarget": 9}):
        assert forward_errors(await forward_again(bob, message_id, **extra)) == [
            ("FORBIDDEN_OPERATION", ["message"], None)
        ]
    assert (
        await load_forward_targets(ada, message_id),
        await load_forward_targets(bob, message_id),
    ) == ([(1, "MAIL", DAVE)], [])
    assert forwarded_targets(await forward_again(bob, message_id, to=[EVE])) == [(1, "MAIL", EVE)]
    assert await load_queued_recipients(ada) == []


async def test_own_copy_keeps_original_targets_but_foreign_copy_does_not(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_targets(ada, DAVE)
    message_id = await deliver_message(ada, lmtp_client)
    await run_mailbox_mutation(bob, "mailboxCreate", paths=["Team"])
    assert await share_mailbox(bob, ada, "READ", "INSERT") == []
    foreign_mailbox = {"id": global_ids.encode("Mailbox", (await bob.load_mailbox("Team")).id)}
    for target in ({"path": "Sent"}, foreign_mailbox):
        copied = await run_mailbox_mutation(
            ada, "messageCopy", "copiedCount", select={"ids": [message_id]}, to=target
        )
        assert copied["errors"] == []
    assert forwarded_targets(await forward_again(ada, await newest_message_id(ada))) == [
        (1, "MAIL", DAVE)
    ]
    assert forwarded_targets(await forward_again(bob, await newest_message_id(bob))) == []


async def test_forward_is_refused_if_forwards_must_be_encrypted(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_targets(ada, DAVE)
    message_id = await deliver_message(ada, lmtp_client)
    async with ada.environment.write_session() as session:
        await session.exec(update(User).values(encrypt_forwarded=True))
    assert forward_errors(await forward_again(ada, message_id)) == [("CONFLICT", ["message"], None)]
    assert forwarded_targets(await forward_again(ada, message_id, to=[DAVE])) == [(1, "MAIL", DAVE)]
    async with ada.environment.write_session() as session:
        await session.exec(update(Message).values(encrypted=True))
    assert forwarded_targets(await forward_again(ada, message_id)) == [(1, "MAIL", DAVE)]


async def test_target_that_became_own_address_is_skipped(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_targets(ada, DAVE, "soon@example.org")
    message_id = await deliver_message(ada, lmtp_client)
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { code } } }"""
    arguments = {"address": "soon@example.org", "user": {"username": "ada"}}
    assert (await root(document, input=arguments))["addressCreate"]["errors"] == []
    assert forwarded_targets(await forward_again(ada, message_id)) == [(1, "MAIL", DAVE)]
    assert forwarded_targets(await forward_again(ada, message_id, originalTarget=2)) == []


async def test_targets_of_forwarding_address_are_not_original_targets(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_forwarding_address(ada.environment, "list", ada.address, DAVE)
    assert (
        await send_transaction(lmtp_client, raw_message("List"), "list@example.org")
        == ACCEPTED_REPLIES
    )
    assert forwarded_targets(await forward_again(ada, await newest_message_id(ada))) == []


async def test_redirects_of_script_are_original_targets(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    document = """mutation ($input: SieveScriptSetInput!) {
        sieveScriptSet(input: $input) { errors { code message } } }"""
    script = f'require "copy"; redirect :copy "{EVE}";'
    arguments = {"name": "s", "content": script, "activate": True}
    assert (await ada(document, input=arguments))["sieveScriptSet"]["errors"] == []
    await set_targets(ada, DAVE)
    message_id = await deliver_message(ada, lmtp_client)
    assert forwarded_targets(await forward_again(ada, message_id)) == [
        (1, "MAIL", EVE),
        (2, "MAIL", DAVE),
    ]


async def test_refused_redirect_is_no_original_target(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_targets(ada, DAVE)
    assert (await try_update_users(root, ada, limits={"forwardsPerDay": 1}))[1] == []
    assert forwarded_targets(await forward_again(ada, await deliver_message(ada, lmtp_client))) == [
        (1, "MAIL", DAVE)
    ]
    assert (
        forwarded_targets(
            await forward_again(ada, await deliver_message(ada, lmtp_client, raw_message("Two")))
        )
        == []
    )


async def test_released_quarantine_message_has_original_targets(ada: GraphQLClient) -> None:
    await add_filter(ada, {}, {"forwardTo": [EVE]})
    await set_targets(ada, DAVE)
    item_id = await quarantine_message(ada, "Offer")
    assert (await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}]))[1] == []
    assert forwarded_targets(await forward_again(ada, await newest_message_id(ada))) == [
        (1, "MAIL", EVE), (2, "MAIL", DAVE),
    ]  # fmt: skip


async def test_repeated_delivery_records_targets_once(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_targets(ada, DAVE)
    raw = raw_message("Again")
    for _ in range(2):
        assert await send_transaction(lmtp_client, raw, ada.address) == ACCEPTED_REPLIES
    assert forwarded_targets(await forward_again(ada, await newest_message_id(ada))) == [
        (1, "MAIL", DAVE)
    ]


async def test_bcc_copy_does_not_use_the_relay(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    document = """mutation ($input: BccRuleCreateInput!) {
        bccRuleCreate(input: $input) { errors { code message } } }"""
    arguments = {"match": ada.address, "bccTo": "boss@example.org", "direction": "SENDER"}
    assert (await root(document, input=arguments))["bccRuleCreate"]["errors"] == []
    await set_targets(ada, "smtps://us:secret@relay.example")
    message_id = await deliver_message(ada, lmtp_client)
    assert len(forwarded_targets(await forward_again(ada, message_id))) == 1
    query = """SELECT d.recipient, d.via FROM queue_entries d JOIN submissions s
        ON s.id = d.submission_id WHERE s.copy_of IS NOT NULL"""
    assert await select_rows(ada.environment, query) == [("boss@example.org", None)]
