"""A message whose mailbox is deleted during its delivery goes to INBOX and is not refused."""

import asyncio

import pytest

from mail.delivery import pipeline, plan_execution, subaddress_mailbox
from mail.delivery.delivery_plan import run_scripts_and_plan_deliveries
from mail.delivery.listener_backend import LocalBackend
from mail.inbound.spam_check import compute_verdicts_and_set_junk_mailboxes
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import execute_mutation, try_update_users
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.operations.sieve_operations import put_sieve_script

pytestmark = pytest.mark.usefixtures("verify_consistency")
CAROL = "carol@example.com"


@pytest.mark.parametrize("script", [None, "keep;"])
async def test_message_for_deleted_mailbox_is_stored_in_inbox(
    ada: GraphQLClient, environment: Environment, script: str | None
) -> None:
    assert (await try_update_users(ada, subaddressAction="SUBFOLDER"))[1] == []
    if script is not None:
        await put_sieve_script(ada, script)
    incoming = await pipeline.read_and_verify_incoming(environment, raw_message("Hello"), CAROL)
    accepted = await LocalBackend(environment).accept_recipient("ada+news@example.org", CAROL)
    (verdict,) = await compute_verdicts_and_set_junk_mailboxes(
        environment,
        incoming.message,
        CAROL,
        [accepted.accounts[0].recipient],
        from_trusted_server=True,
    )
    verdict = await subaddress_mailbox.find_or_create_subaddress_mailbox(environment, verdict)
    (plan,) = await run_scripts_and_plan_deliveries(environment, incoming, [verdict])
    answer = await execute_mutation(
        ada, "mailboxDelete", "deletedIds", mailboxes=[{"path": "INBOX/news"}]
    )
    assert answer["errors"] == []
    await plan_execution.execute_plan(environment, incoming, plan, asyncio.Semaphore())
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Hello"]}
