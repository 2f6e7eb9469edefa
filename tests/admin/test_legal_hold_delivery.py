"""Received mail that an account does not store: legal holds of the account keep a copy."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from mail.maintenance import housekeeping
from models.runtime.environment import Environment
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.user_operations import execute_mutation, user_global_id
from tests.support.mail.forwarding_addresses import set_account_forwarding
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.filter_operations import add_filter
from tests.support.operations.platform.legal_hold_operations import start_legal_hold
from tests.support.operations.quarantine_operations import (
    QUARANTINE_DELETE,
    QUARANTINE_RELEASE_ERRORS,
    delivery_header_fields,
    make_mixed_message,
    quarantine_message,
    set_options,
)
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

COPIES_QUERY = """query ($id: ID!) { legalHold(by: {id: $id}) { messageCount size brokenPosition
  messages(first: 50) { nodes {
    subject origin mailboxPath envelopeFrom envelopeTo size hasAttachments } } } }"""
FAR_ADDRESS = "eve@far.example"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_copies(client: GraphQLClient, legal_hold_id: str) -> list[Any]:
    """Load the copies of a legal hold; check its counters and its hash chain."""
    legal_hold = (await client(COPIES_QUERY, id=legal_hold_id))["legalHold"]
    nodes: list[Any] = legal_hold["messages"]["nodes"]
    assert (legal_hold["messageCount"], legal_hold["size"], legal_hold["brokenPosition"]) == (
        len(nodes), sum(node["size"] for node in nodes), None,
    )  # fmt: skip
    return nodes


async def load_copied_subjects(client: GraphQLClient, legal_hold_id: str) -> list[str]:
    """Load the subjects of the copies of a legal hold."""
    return [node["subject"] for node in await load_copies(client, legal_hold_id)]


async def delete_by_filter(client: GraphQLClient) -> None:
    await add_filter(client, {}, {"delete": True})


async def redirect_by_filter(client: GraphQLClient) -> None:
    await add_filter(client, {}, {"delete": True, "forwardTo": [FAR_ADDRESS]})


async def discard_by_script(client: GraphQLClient) -> None:
    await put_sieve_script(client, "discard;")


async def redirect_by_script(client: GraphQLClient) -> None:
    await put_sieve_script(client, f'redirect "{FAR_ADDRESS}";')


async def forward_and_delete(client: GraphQLClient) -> None:
    await set_account_forwarding(client, FAR_ADDRESS)
    await add_filter(client, {}, {"delete": True})


RULES = [
    (delete_by_filter, 0),
    (redirect_by_filter, 1),
    (discard_by_script, 0),
    (redirect_by_script, 1),
    (forward_and_delete, 1),
]


@pytest.mark.parametrize(("add_rule", "queued_count"), RULES)
async def test_mail_that_rules_do_not_store_is_copied_once(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    lmtp_client: SmtpTestClient,
    add_rule: Callable[[GraphQLClient], Awaitable[None]],
    queued_count: int,
) -> None:
    environment = ada.environment
    await add_rule(ada)
    position = await load_stream_position(environment, ada.user.id)
    assert await deliver_without_queue_id(lmtp_client, raw_message("Before")) == [DELIVERED_REPLY]
    entries_without_hold = await load_journal_entries(environment, ada.user.id, position)
    legal_hold_id = await start_legal_hold(admin_client, ada)
    position = await load_stream_position(environment, ada.user.id)
    raw = raw_message("Held", body="x" * 300_000)
    for _ in range(2):  # the client repeats the delivery
        assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    (copy,) = await load_copies(admin_client, legal_hold_id)
    assert (copy["subject"], copy["origin"], copy["mailboxPath"]) == ("Held", "RECEIVED", None)
    assert (copy["envelopeFrom"], copy["envelopeTo"]) == ("carol@example.com", [ada.address])
    response = await admin_client.http.get(
        f"/rest/legal-holds/{legal_hold_id}/export.mbox", headers=admin_client.headers
    )
    assert delivery_header_fields(ada) + raw in response.content
    # the account shows nothing of it
    assert await subjects_by_mailbox(environment, ada) == {}
    assert await select_rows(environment, "SELECT used, message_count FROM users") == [
        (0, 0), (0, 0),
    ]  # fmt: skip
    entries = await load_journal_entries(environment, ada.user.id, position)
    assert {entry[0] for entry in entries} == {entry[0] for entry in entries_without_hold}
    assert len(await queued_envelopes(environment)) == 2 * queued_count


async def test_mail_that_is_kept_since_its_forward_fails_is_copied_once(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
) -> None:
    await forward_and_delete(ada)
    legal_hold_id = await start_legal_hold(admin_client, ada)
    spam_header = {"X-Spam-Score": "1000", "X-Spam-Flag": "YES"}
    set_options(environment, spam_no_forward_score=1)
    raw = raw_message("Spam", **spam_header)
    assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    (stored,) = (await subjects_by_mailbox(environment, ada)).values()
    assert stored == ["Spam"]
    assert await load_copied_subjects(admin_client, legal_hold_id) == ["Spam"]


async def test_discarded_mail_outside_the_period_is_not_copied(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    clock: ManualClock,
    lmtp_client: SmtpTestClient,
) -> None:
    await delete_by_filter(ada)
    legal_hold_id = await start_legal_hold(
        admin_client, ada, endsAt=(clock() + timedelta(hours=1)).isoformat()
    )
    for subject in ("Within", "After"):
        assert await deliver_without_queue_id(lmtp_client, raw_message(subject)) == [
            DELIVERED_REPLY
        ]
        clock.tick(hours=2)
    assert await load_copied_subjects(admin_client, legal_hold_id) == ["Within"]


async def test_only_discarded_mail_needs_a_statement_for_legal_holds(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, statements: list[str]
) -> None:
    await add_filter(ada, {"subject": "gone"}, {"delete": True})
    counts = []
    for subject in ("Kept", "Gone"):
        del statements[:]
        assert await deliver_without_queue_id(lmtp_client, raw_message(subject)) == [
            DELIVERED_REPLY
        ]
        legal_hold_statements = [sql for sql in statements if "FROM legal_holds" in sql]
        counts.append(sum(not sql.startswith("UPDATE mailboxes") for sql in legal_hold_statements))
    assert counts == [0, 1]


async def delete_item(ada: GraphQLClient, _root: GraphQLClient, item_id: str) -> None:
    _, errors = await run_mutation(ada, QUARANTINE_DELETE, quarantineItems=[{"id": item_id}])
    assert errors == []


async def let_item_expire(ada: GraphQLClient, _root: GraphQLClient, _item_id: str) -> None:
    await housekeeping.run_housekeeping_round(ada.environment)


async def exceed_the_item_limit(ada: GraphQLClient, _root: GraphQLClient, _item_id: str) -> None:
    set_options(ada.environment, quarantine_max_messages_per_user=1)
    await quarantine_message(ada, "Newer")


async def release_into_redirect(ada: GraphQLClient, _root: GraphQLClient, item_id: str) -> None:
    await redirect_by_filter(ada)
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE_ERRORS, quarantineItems=[{"id": item_id}]
    )
    assert errors == []


async def purge_user(ada: GraphQLClient, root: GraphQLClient, _item_id: str) -> None:
    payload = await execute_mutation(
        root, "userPurge", "purgedIds", users={"ids": [user_global_id(ada)]}
    )
    assert payload["errors"] == []
    while await tasks.run_next_task(ada.environment):
        pass


@pytest.mark.parametrize(
    "remove_item",
    [delete_item, let_item_expire, exceed_the_item_limit, release_into_redirect, purge_user],
)
async def test_item_quarantined_before_the_legal_hold_is_copied_when_it_is_removed(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    root: GraphQLClient,
    clock: ManualClock,
    remove_item: Callable[[GraphQLClient, GraphQLClient, str], Awaitable[None]],
) -> None:
    item_id = await quarantine_message(ada, make_mixed_message())
    legal_hold_id = await start_legal_hold(admin_client, ada)
    assert await load_copies(admin_client, legal_hold_id) == []
    if remove_item is let_item_expire:
        clock.tick(days=365)
    await remove_item(ada, root, item_id)
    copies = [
        node
        for node in await load_copies(admin_client, legal_hold_id)
        if node["subject"] == "Mixed"
    ]
    assert [(node["origin"], node["mailboxPath"]) for node in copies] == [("RECEIVED", None)]
    (copy,) = copies
    assert (copy["envelopeFrom"], copy["envelopeTo"]) == ("carol@example.com", [ada.address])
    assert copy["hasAttachments"]
    response = await admin_client.http.get(
        f"/rest/legal-holds/{legal_hold_id}/export.mbox", headers=admin_client.headers
    )
    assert make_mixed_message() in response.content


async def test_item_quarantined_under_the_legal_hold_is_copied_once(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    legal_hold_id = await start_legal_hold(admin_client, ada)
    item_id = await quarantine_message(ada, "Offer")
    await delete_item(ada, root, item_id)
    assert await load_copied_subjects(admin_client, legal_hold_id) == ["Offer"]
