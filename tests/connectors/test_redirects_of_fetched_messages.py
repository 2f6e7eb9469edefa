"""The account learns if a fetched message that its rules redirect can't be delivered."""

from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.user_operations import try_update_users
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import (
    newest_inbox_message,
    stored_messages_by_path,
    subjects_by_mailbox,
)
from tests.support.mail_servers.queue_worker import poll_until, relay_settings, run_queue_worker
from tests.support.mail_servers.scanner_servers import rspamd_reply
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.connector_operations import (
    add_connector,
    dovecot_account,
    run_connector,
    shared_dovecot,
)
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.filter_operations import add_filter
from tests.support.operations.quarantine_operations import (
    QUARANTINE_RELEASE_ERRORS,
    SPAM_HEADERS,
    deliver_message_to,
    load_quarantine_rows,
)
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.sample_mutations.mutation_call import MutationCall
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver

__all__ = ["dovecot_account", "shared_dovecot"]
pytestmark = pytest.mark.usefixtures("verify_consistency")
EVE = "eve@example.net"


@pytest.fixture
async def rspamd_server(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    """A server that answers like rspamd. It finds no spam."""
    async with run_webhook_receiver() as receiver:
        receiver.response = rspamd_reply(1.0)
        change_options(environment, rspamd_url=f"http://127.0.0.1:{receiver.port}")
        yield receiver


async def fetch_and_release(
    ada: GraphQLClient, rspamd_server: WebhookReceiver, account: DovecotAccount, **values: Any
) -> None:
    """Fetch a message into the quarantine and release it."""
    change_options(ada.environment, spam_quarantine_score=60)
    rspamd_server.response = rspamd_reply(14.0)
    await run_connector(ada.environment, await add_connector(ada, account, **values))
    assert await queued_envelopes(ada.environment) == []
    await release_all(ada)


async def release_all(client: GraphQLClient) -> None:
    items = await load_quarantine_rows(client.environment)
    refs = [{"id": global_ids.encode("QuarantineItem", item.id)} for item in items]
    _, errors = await run_mutation(client, QUARANTINE_RELEASE_ERRORS, quarantineItems=refs)
    assert (len(items), errors) == (1, [])


@pytest.mark.parametrize("rule", ["script", "filter"])
@pytest.mark.parametrize(
    "released_and_domain", list(product([False, True], [None, "else.example"]))
)
async def test_account_gets_dsn_of_redirected_message(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    rspamd_server: WebhookReceiver,
    rule: str,
    released_and_domain: tuple[bool, str | None],
) -> None:
    is_released, target_domain = released_and_domain
    if rule == "script":
        await put_sieve_script(ada, f'redirect "{EVE}";')
    else:
        await add_filter(ada, {}, {"delete": True, "forwardTo": [EVE]})
    dovecot_account.save_message(raw_message("Onward"))
    values = {"apply_filters": True, "target_domain": target_domain}
    if is_released:
        await fetch_and_release(ada, rspamd_server, dovecot_account, **values)
    else:
        connector_id = await add_connector(ada, dovecot_account, **values)
        await run_connector(ada.environment, connector_id)
    ((sender, recipient),) = await queued_envelopes(ada.environment)
    assert (sender.rpartition("@")[2], recipient) == ("example.org", EVE)

    async def has_dsn() -> bool:
        return "INBOX" in await subjects_by_mailbox(ada.environment, ada)

    refusing_server = FakeSmtpServer({"eve": "550 5.1.1 Unknown"})
    async with (
        run_smtp_server(refusing_server) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        await poll_until(has_dsn)
    assert await subjects_by_mailbox(ada.environment, ada) == {
        "INBOX": ["Your message could not be delivered"]
    }
    assert b"Hi there." in await newest_inbox_message(ada)
    assert [to for _, to in await queued_envelopes(ada.environment)] == [EVE, ada.address]


async def test_bounce_of_another_server_keeps_its_empty_sender_if_released(
    ada: GraphQLClient,
) -> None:
    await put_sieve_script(ada, f'redirect "{EVE}";')
    change_options(ada.environment, spam_quarantine_score=50)
    raw = raw_message("Bounce", **SPAM_HEADERS)
    await deliver_message_to(ada.environment, ada, raw=raw, sender="")
    await release_all(ada)
    assert await queued_envelopes(ada.environment) == [("", EVE)]


async def test_released_message_is_stored_as_when_it_was_fetched(
    ada: GraphQLClient,
    root: GraphQLClient,
    dovecot_account: DovecotAccount,
    rspamd_server: WebhookReceiver,
) -> None:
    assert (await try_update_users(ada, forwardTo=[EVE]))[1] == []
    bcc_rule = {"match": ada.address, "bccTo": "copies@else.example", "direction": "RECIPIENT"}
    assert (await MutationCall("bccRuleCreate", bcc_rule)(root))["errors"] == []
    raw = raw_message("Offer")
    dovecot_account.save_message(raw)
    await fetch_and_release(ada, rspamd_server, dovecot_account)
    assert await queued_envelopes(ada.environment) == []
    row, stored = (await stored_messages_by_path(ada))["INBOX"]
    assert (row.envelope_from, stored) == (None, raw)
