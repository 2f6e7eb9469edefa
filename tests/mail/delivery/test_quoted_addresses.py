"""Senders and recipients with quoted, long and international local parts."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.mime.header_encoding import needs_smtputf8, with_ascii_domain
from models.admin.tasks import TaskState
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    poll_until,
    relay_settings,
    run_queue_worker,
    wait_for_messages,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.autoreply_operations import set_autoreply
from tests.support.operations.connector_operations import (
    add_connector,
    dovecot_account,
    run_connector,
    shared_dovecot,
)
from tests.support.operations.filter_operations import add_filter
from tests.support.servers.dovecot_server import DovecotAccount

ONWARD = raw_message("Onward")
LIST_ADDRESS = "list@example.org"
MESSAGES = "{ messages { nodes { id from { address } } } }"
LIST_BOUNCES = "bounces+12345-ada=example.org@em1234.mail.newsletter.example"
TRACE = """query ($id: String) { deliveryTrace(filter: {queueId: $id}, orderBy: AT_ASC) {
  nodes { event address detail } } }"""
SENDERS = [
    '"eve smith"@origin.example',
    '"a@b"@origin.example',
    '"a\\"b"@origin.example',
    "x" * 64 + "@origin.example",
    '"' + "x" * 30 + " " + "y" * 31 + '"@origin.example',
    "jörg@origin.example",
    '"jörg ö"@origin.example',
    "anna@bücher.example",
    LIST_BOUNCES,
    "y" * 64 + "@" + ".".join(["x" * 60] * 3) + ".example",
]
__all__ = ["dovecot_account", "shared_dovecot"]
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def send_as(
    client: SmtpTestClient, sender: str, *recipients: str, raw: bytes = ONWARD
) -> Any:
    parameter = "" if sender.isascii() else " SMTPUTF8"
    reply = await client.run_command(f"MAIL FROM:<{sender}>{parameter}")
    assert reply.startswith("250 2.1.0")
    codes = [(await client.run_command(f"RCPT TO:<{to}>"))[:9] for to in recipients]
    await client.run_command("DATA")
    client.send_bytes(raw + b".\r\n")
    return codes, [(await client.read_reply())[:9] for _ in recipients]


async def test_forwarded_message_and_its_reports_reach_every_sender(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", "dave@far.example")
    await add_forwarding_address(environment, "other", "nobody@far.example")
    for case in each_case(SENDERS):
        with case as sender:
            server = FakeSmtpServer(rcpt_replies={"nobody": "550 5.1.1 Nobody"})
            async with (
                run_smtp_server(server) as smtp_server,
                run_queue_worker(environment, relay_settings(smtp_server)),
            ):
                assert await send_as(lmtp_client, sender, LIST_ADDRESS) == ACCEPTED_REPLIES
                await wait_for_messages(smtp_server)
                forwarded = smtp_server.messages[0]
                assert forwarded.to == ["dave@far.example"]
                assert forwarded.sender.isascii()
                assert len(forwarded.sender.rpartition("@")[0]) <= 64
                assert await send_as(lmtp_client, sender, "other@example.org") == ACCEPTED_REPLIES
                await wait_for_messages(smtp_server, 2)
                report = smtp_server.messages[1]
                assert report.to == [with_ascii_domain(sender)]
                assert report.sender in {"", "<>"}
                assert b"550 5.1.1 Nobody" in report.raw
                await lmtp_client.run_command("MAIL FROM:<> SMTPUTF8")
                reply = await lmtp_client.run_command(f"RCPT TO:<{forwarded.sender}>")
                assert reply.startswith("250 2.1.5")
                await lmtp_client.run_command("DATA")
                lmtp_client.send_bytes(raw_message("Bounce") + b".\r\n")
                assert (await lmtp_client.read_reply()).startswith("250 2.0.0")
                await wait_for_messages(smtp_server, 3)
                assert smtp_server.messages[2].to == [with_ascii_domain(sender)]


@pytest.mark.parametrize("sender", [sender for sender in SENDERS if not sender.isascii()])
async def test_international_senders_over_a_next_hop_without_smtputf8(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient, sender: str
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", "dave@far.example")
    await add_forwarding_address(environment, "other", "nobody@far.example")
    server = FakeSmtpServer(rcpt_replies={"nobody": "550 5.1.1 Nobody"}, smtp_options={})
    async with (
        run_smtp_server(server) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        assert await send_as(lmtp_client, sender, LIST_ADDRESS) == ACCEPTED_REPLIES
        await wait_for_messages(smtp_server)
        assert await send_as(lmtp_client, sender, "other@example.org") == ACCEPTED_REPLIES
        if not needs_smtputf8(sender):
            await wait_for_messages(smtp_server, 2)
            assert smtp_server.messages[1].to == [with_ascii_domain(sender)]
            return

        async def is_report_finished() -> bool:
            return bool(await load_failed_reports(environment, sender))

        await poll_until(is_report_finished)
    (report,) = await load_failed_reports(environment, sender)
    assert "does not support SMTPUTF8" in report.last_response
    steps = (await root(TRACE, id=report.queue_id))["deliveryTrace"]["nodes"]
    assert [step["event"] for step in steps if step["address"] == sender][-1] == "BOUNCED"


@pytest.mark.parametrize("sender", [sender for sender in SENDERS if sender != LIST_BOUNCES])
async def test_autoreply_and_reply_reach_every_sender(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, sender: str
) -> None:
    await set_autoreply(ada)
    raw = raw_message("Plans", From=f"Eve <{sender}>", To=ada.address)
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        assert await send_as(lmtp_client, sender, ada.address, raw=raw) == ACCEPTED_REPLIES
        await wait_for_messages(server)
        (original,) = (await ada(MESSAGES))["messages"]["nodes"]
        reference = {"message": {"id": original["id"]}, "relation": "REPLY"}
        answer = {"text": "Yes.", "original": reference}
        payload = await execute_mutation(ada, "messageSend", "messages { subject }", **answer)
        assert payload["errors"] == []
        await wait_for_messages(server, 2)
    assert [message.to for message in server.messages] == [[with_ascii_domain(sender)]] * 2


async def test_fetched_messages_of_every_sender_are_stored_and_forwarded(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    await add_filter(ada, {}, {"forwardTo": ["dave@far.example"]})
    for sender in SENDERS:
        fields = {"Return_Path": f"<{sender}>", "From": f"Eve <{sender}>"}
        dovecot_account.save_message(raw_message(f"From {sender}", **fields))
    connector_id = await add_connector(ada, dovecot_account, apply_filters=True)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, len(SENDERS)), run.log
    messages = (await ada(MESSAGES))["messages"]["nodes"]
    assert {message["from"]["address"] for message in messages} == set(SENDERS)
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        await wait_for_messages(server, len(SENDERS))
    assert all(message.to == ["dave@far.example"] for message in server.messages)


async def load_failed_reports(environment: Environment, sender: str) -> list[Any]:
    """Load the reports to a sender that could not be delivered."""
    statement = (
        select(col(QueueEntry.last_response), col(Submission.queue_id))
        .join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
        .where(
            col(Submission.envelope_from) == "",
            col(QueueEntry.recipient) == sender,
            col(QueueEntry.state) == DeliveryState.BOUNCED,
        )
    )
    return list(await environment.database.read(statement))


async def test_quoted_recipient_is_equal_to_the_unquoted_one(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    local, _, domain = ada.address.partition("@")
    for quoted in (f'"{local}"', f'"{local[0]}\\{local[1:]}"'):
        assert (
            await send_transaction(lmtp_client, raw_message("Quoted"), f"{quoted}@{domain}")
            == ACCEPTED_REPLIES
        )
    assert [row.subject for row in await load_inbox_rows(ada)] == ["Quoted"]
    rcpt_replies, _ = await send_transaction(
        lmtp_client, raw_message("Other"), f'"{local} x"@{domain}'
    )
    assert rcpt_replies == ["550 5.1.1"]
