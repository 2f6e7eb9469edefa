"""DSN requests (RFC 3461) are kept in the quarantine and answered after the release."""

from dataclasses import replace
from typing import Any

import pytest

from graph.types import global_ids
from mail.delivery import pipeline, quarantine
from mail.delivery.listener_backend import LocalBackend
from mail.envelope.dsn_parameters import ALL_REPORTS
from mail.recipients import address_resolution
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import try_update_users
from tests.support.mail.dsn_messages import DSN_SENDER, NOTIFY_ALL
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.queued_deliveries import only_queued_dsn, queued_dsn_requests
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import load_inbox_rows
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.filter_operations import add_filter
from tests.support.operations.id_references import id_refs
from tests.support.operations.quarantine_operations import (
    QUARANTINE_REASON,
    QUARANTINE_RELEASE,
    load_quarantine_rows,
    set_options,
)

SPAM_MESSAGE = b"X-Spam-Flag: YES\r\n" + raw_message("Offer")
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
def quarantining_client(lmtp_client: SmtpTestClient, environment: Environment) -> SmtpTestClient:
    """LMTP client whose spam headers are trusted. Spam is quarantined."""
    set_options(environment, spam_quarantine_score=1)
    return lmtp_client


async def deliver_spam(
    quarantining_client: SmtpTestClient,
    mail_parameters: str,
    recipient: str,
    sender: str = DSN_SENDER,
) -> None:
    assert (
        await quarantining_client.run_command(f"MAIL FROM:<{sender}> {mail_parameters}".rstrip())
    ).startswith("250")
    assert (await quarantining_client.run_command(f"RCPT TO:{recipient}")).startswith("250")
    await quarantining_client.run_command("DATA")
    assert (await quarantining_client.run_command(SPAM_MESSAGE.decode() + "\r\n.")).startswith(
        "250"
    )


async def release_all(ada: GraphQLClient) -> None:
    items = [
        global_ids.encode("QuarantineItem", item.id)
        for item in await load_quarantine_rows(ada.environment)
    ]
    assert items
    assert (await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=id_refs(items)))[1] == []


async def test_success_dsn_is_sent_after_release(
    quarantining_client: SmtpTestClient, ada: GraphQLClient, environment: Environment
) -> None:
    recipient = f"<{ada.address}> {NOTIFY_ALL} ORCPT=rfc822;first@example.com"
    await deliver_spam(quarantining_client, "ENVID=No+2B1 RET=HDRS", recipient)
    assert (await queued_dsn_requests(environment), await load_inbox_rows(ada)) == ([], [])
    await release_all(ada)
    assert await queued_dsn_requests(environment) == [("", DSN_SENDER, "NEVER")]
    message_fields, (recipient_fields,), subject = await only_queued_dsn(environment)
    assert subject == "Your message was delivered"
    assert message_fields["Original-Envelope-Id"] == "No+1"
    assert recipient_fields["Original-Recipient"] == "rfc822;first@example.com"
    assert (recipient_fields["Final-Recipient"], recipient_fields["Action"]) == (
        f"rfc822; {ada.address}",
        "delivered",
    )
    assert len(await load_inbox_rows(ada)) == 1


@pytest.mark.parametrize(
    ("sender", "notify"),
    [
        (DSN_SENDER, ""),
        (DSN_SENDER, "NOTIFY=FAILURE"),
        (DSN_SENDER, "NOTIFY=NEVER"),
        ("", NOTIFY_ALL),
    ],
)
async def test_release_sends_no_dsn_without_success_request(
    quarantining_client: SmtpTestClient,
    ada: GraphQLClient,
    environment: Environment,
    sender: str,
    notify: str,
) -> None:
    await deliver_spam(quarantining_client, "", f"<{ada.address}> {notify}".rstrip(), sender)
    await release_all(ada)
    assert await queued_dsn_requests(environment) == []
    assert len(await load_inbox_rows(ada)) == 1


async def test_dsn_names_the_address_of_the_sender(
    quarantining_client: SmtpTestClient, ada: GraphQLClient, environment: Environment
) -> None:
    await add_forwarding_address(environment, "desk", ada.address)
    await deliver_spam(quarantining_client, "", f"<desk@example.org> {NOTIFY_ALL}")
    await release_all(ada)
    _, (recipient_fields,), _ = await only_queued_dsn(environment)
    assert recipient_fields["Final-Recipient"] == "rfc822; desk@example.org"


@pytest.mark.parametrize(
    ("requested", "expected"), [("NOTIFY=NEVER", "NEVER"), (NOTIFY_ALL, "DELAY,FAILURE")]
)
async def test_forwarded_message_keeps_the_dsn_request(
    quarantining_client: SmtpTestClient,
    ada: GraphQLClient,
    environment: Environment,
    requested: str,
    expected: str,
) -> None:
    await add_filter(ada, {}, {"forwardTo": ["eve@far.example"]})
    assert (await try_update_users(ada, forwardTo=["dave@far.example"]))[1] == []
    await deliver_spam(quarantining_client, "", f"<{ada.address}> {requested}")
    await release_all(ada)
    notify_by_recipient: Any = {
        recipient: notify for _, recipient, notify in await queued_dsn_requests(environment)
    }
    assert {notify_by_recipient["eve@far.example"], notify_by_recipient["dave@far.example"]} == {
        expected
    }


async def test_unverified_sender_gets_no_dsn(ada: GraphQLClient, environment: Environment) -> None:
    recipient = await address_resolution.load_recipient_below_limits(environment, ada.address)
    for sender, spf in ((DSN_SENDER, "example.net"), ("carol@unsure.example", None)):
        incoming = await pipeline.read_and_verify_incoming(
            environment, raw_message(spf or "None"), sender
        )
        incoming.from_trusted_server = False
        authentication = {"spf": spf, "results": f"mx.example.org; spf={spf}"}
        incoming.message = replace(incoming.message, authentication=authentication)
        incoming.dsn_requests[recipient.user_id, recipient.mailbox_id] = ALL_REPORTS
        await quarantine.quarantine_message(environment, incoming, recipient, QUARANTINE_REASON)
    await release_all(ada)
    assert await queued_dsn_requests(environment) == [("", DSN_SENDER, "NEVER")]
    assert len(await load_inbox_rows(ada)) == 2


async def test_crash_after_delivery_loses_no_dsn(
    ada: GraphQLClient, environment: Environment
) -> None:
    backend, raw = LocalBackend(environment), raw_message("Plain")
    accepted = replace(
        await backend.accept_recipient(ada.address, DSN_SENDER), dsn_request=ALL_REPORTS
    )
    incoming = await pipeline.read_and_verify_incoming(environment, raw, DSN_SENDER)
    # the process ends before the reply
    await pipeline.deliver_to_accepted_recipients(environment, incoming, [accepted])
    assert (await queued_dsn_requests(environment), len(await load_inbox_rows(ada))) == ([], 1)
    for _ in range(2):  # the other server retries
        await backend.deliver(raw, [accepted], DSN_SENDER)
        assert await queued_dsn_requests(environment) == [("", DSN_SENDER, "NEVER")]
    assert len(await load_inbox_rows(ada)) == 1
