"""Addresses with an account and other targets, and mail that must not be forwarded."""

from collections.abc import AsyncIterator

import pytest

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.user_operations import try_update_users
from tests.support.mail.forwarding_addresses import FORWARD_TARGET, add_forwarding_address
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.mail_servers.scanner_servers import reply_as_clamd, rspamd_reply
from tests.support.operations.quarantine_operations import load_quarantine_rows
from tests.support.servers.scripted_server import run_scripted_server
from tests.support.servers.webhook_receiver import run_webhook_receiver

pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def scanners(environment: Environment) -> AsyncIterator[None]:
    """Servers like rspamd and clamd that find spam and a virus."""
    async with (
        run_webhook_receiver() as rspamd_server,
        run_scripted_server(reply_as_clamd(b"stream: Eicar FOUND\0")) as clamd_port,
    ):
        rspamd_server.response = rspamd_reply(20.0)
        rspamd_url = f"http://127.0.0.1:{rspamd_server.port}"
        change_options(environment, rspamd_url=rspamd_url)
        change_options(environment, clamd_address=f"127.0.0.1:{clamd_port}")
        yield


@pytest.mark.usefixtures("scanners")
@pytest.mark.parametrize(
    ("reason", "mailbox"),
    [("scan", "INBOX"), ("virus", "Junk"), ("quarantine", None), ("header", "INBOX")],
)
async def test_address_is_accepted_if_its_account_takes_what_is_not_forwarded(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, reason: str, mailbox: str | None
) -> None:
    environment = ada.environment
    if reason in {"scan", "header"}:
        change_options(environment, clamd_address="")
    if reason != "scan":
        change_options(environment, rspamd_url="")
    change_options(environment, virus_action="quarantine" if reason == "quarantine" else "tag")
    assert (await try_update_users(ada, spam={"level": 100}))[1] == []
    await add_forwarding_address(environment, "both", FORWARD_TARGET, ada.address)
    await add_forwarding_address(environment, "far", FORWARD_TARGET)
    raw = (b"X-Spam-Score: 9.9\r\n" if reason == "header" else b"") + raw_message("Hello")
    replies = await deliver_without_queue_id(
        lmtp_client, raw, "both@example.org", "far@example.org"
    )
    assert replies[0] == DELIVERED_REPLY
    assert replies[1][:3] in {"550", "554"}
    assert await subjects_by_mailbox(environment, ada) == ({mailbox: ["Hello"]} if mailbox else {})
    assert len(await load_quarantine_rows(environment)) == (mailbox is None)
    assert await queued_envelopes(environment) == []
