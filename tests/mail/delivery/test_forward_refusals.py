"""Messages that an account does not forward, although rules delete them, are stored."""

from itertools import product

import pytest

from mail.delivery.account_forwards import FORWARDS, ForwardOutcome
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import set_user_columns
from tests.support.mail.forwarding_addresses import (
    FORWARD_TARGET,
    set_account_forwarding,
)
from tests.support.mail.inbound_messages import deliver_to_users
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.filter_operations import add_filter
from tests.support.operations.id_references import id_refs
from tests.support.operations.quarantine_operations import (
    QUARANTINE_RELEASE,
    load_quarantine_rows,
    quarantine_message,
)
from tests.support.operations.sieve_operations import put_sieve_script

pytestmark = pytest.mark.usefixtures("verify_consistency")

RULES = ("filter", "script", "redirect")
HEADER_LINES = {  # that cause the outcome
    ForwardOutcome.LOOP: b"Delivered-To: ada@example.org\r\n",
    ForwardOutcome.NO_TARGET: b"Delivered-To: %s\r\n" % FORWARD_TARGET.encode(),
    ForwardOutcome.SPAM: b"X-Spam-Score: 9.9\r\n",
}
MAILBOXES = {  # where a message is stored that a rule deletes
    ForwardOutcome.SENT: {},
    ForwardOutcome.SPAM: {"Junk": ["Hello"]},
    ForwardOutcome.LIMIT_REACHED: {"INBOX": ["Hello"]},
    ForwardOutcome.LOOP: {"INBOX": ["Hello"]},
    ForwardOutcome.NO_TARGET: {"INBOX": ["Hello"]},
    ForwardOutcome.NOT_ENCRYPTED: {"INBOX": ["Hello"]},
}


async def prepare_account(ada: GraphQLClient, rule: str, outcome: ForwardOutcome) -> None:
    """Let the account forward all mail with this outcome, and let a rule delete the message."""
    await set_account_forwarding(ada, FORWARD_TARGET)
    if outcome is ForwardOutcome.NOT_ENCRYPTED:
        await set_user_columns(ada, encrypt_forwarded=True, openpgp_public_key="no key")
    if rule == "filter":
        await add_filter(ada, {}, {"delete": True})
    else:
        action = "discard" if rule == "script" else 'redirect "frank@far.example"'
        await put_sieve_script(ada, f"{action};")
    if outcome is ForwardOutcome.LIMIT_REACHED:
        await set_user_columns(ada, forwards_per_day=1)
        await deliver_to_users(ada.environment, ada, raw=raw_message("First"))


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        (rule, outcome)
        for rule, outcome in product(RULES, ForwardOutcome)
        if (rule, outcome) != ("redirect", ForwardOutcome.LIMIT_REACHED)  # it reaches the limit
    ],
)
async def test_deleted_message_is_stored_if_the_account_does_not_forward_it(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, rule: str, outcome: ForwardOutcome
) -> None:
    await prepare_account(ada, rule, outcome)
    count_before = FORWARDS.value(outcome.lower())
    raw = HEADER_LINES.get(outcome, b"") + raw_message("Hello")
    for _ in range(2):  # a repeated delivery changes nothing
        assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
        assert await subjects_by_mailbox(ada.environment, ada) == MAILBOXES[outcome]
    assert FORWARDS.value(outcome.lower()) == count_before + 2
    recipients = [recipient for _, recipient in await queued_envelopes(ada.environment)]
    is_forwarded = outcome in {ForwardOutcome.SENT, ForwardOutcome.LIMIT_REACHED}  # or the first
    assert recipients.count(FORWARD_TARGET) == is_forwarded


@pytest.mark.parametrize("is_forwarded", [True, False])
async def test_released_message_is_stored_if_the_account_does_not_forward_it(
    ada: GraphQLClient, is_forwarded: bool
) -> None:
    item_id = await quarantine_message(ada, "Hello")
    await set_account_forwarding(ada, FORWARD_TARGET)
    if not is_forwarded:
        await set_user_columns(ada, encrypt_forwarded=True, openpgp_public_key="no key")
    await put_sieve_script(ada, 'redirect "frank@far.example";')
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=id_refs([item_id]))
    assert errors == []
    stored = {} if is_forwarded else {"INBOX": ["Hello"]}
    assert await subjects_by_mailbox(ada.environment, ada) == stored
    recipients = [recipient for _, recipient in await queued_envelopes(ada.environment)]
    forwards = [FORWARD_TARGET] if is_forwarded else []
    assert recipients == ["frank@far.example", *forwards]
    assert await load_quarantine_rows(ada.environment) == []
