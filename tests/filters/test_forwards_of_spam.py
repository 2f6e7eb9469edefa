"""Filters and scripts don't forward spam: the message is kept."""

from dataclasses import replace

import pytest

from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import try_update_users
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.operations.filter_operations import add_filter
from tests.support.operations.sieve_operations import put_sieve_script

pytestmark = pytest.mark.usefixtures("verify_consistency")

TARGET = "eve@example.net"
RULES = ("filter", "filter, delete", "filter, script", "script")


async def add_rule_that_forwards(client: GraphQLClient, rule: str) -> None:
    """Add a filter or a script that forwards all mail to `TARGET` and keeps no copy."""
    if rule == "script":
        await put_sieve_script(client, f'redirect "{TARGET}";')
        return
    await add_filter(client, {}, {"forwardTo": [TARGET], "delete": rule == "filter, delete"})
    if rule == "filter, script":
        await put_sieve_script(client, "discard;")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("is_junk", [True, False])
async def test_message_with_high_score_is_kept_in_place_of_forward(
    ada: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
    rule: str,
    is_junk: bool,
) -> None:
    await add_rule_that_forwards(ada, rule)
    assert (await try_update_users(ada, spam={"level": 50 if is_junk else 100}))[1] == []
    raw = raw_message("Suspicious", **{"X-Spam-Score": "9.9"})
    assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    assert await queued_envelopes(environment) == []
    mailbox = "Junk" if is_junk else "INBOX"
    assert await subjects_by_mailbox(environment, ada) == {mailbox: ["Suspicious"]}


@pytest.mark.parametrize("rule", RULES)
async def test_score_below_limit_is_forwarded(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, rule: str
) -> None:
    await add_rule_that_forwards(ada, rule)
    assert (await try_update_users(ada, spam={"level": 100}))[1] == []
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, spam_no_forward_score=101), 1)
    )
    raw = raw_message("Suspicious", **{"X-Spam-Score": "9.9"})
    assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    assert [recipient for _, recipient in await queued_envelopes(environment)] == [TARGET]
    kept = {"INBOX": ["Suspicious"]} if rule == "filter" else {}
    assert await subjects_by_mailbox(environment, ada) == kept
