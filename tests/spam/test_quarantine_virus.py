"""Messages with a virus that are quarantined instead of refused, received by LMTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graph.types import global_ids
from mail.smtp import lmtp
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.user_operations import set_user_columns
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.scanner_servers import reply_as_clamd
from tests.support.operations.domain_operations import error_summary, run_mutation
from tests.support.operations.quarantine_operations import (
    QUARANTINE_RELEASE,
    SPAM_HEADERS,
    list_inbox_subjects,
    load_quarantine_rows,
)
from tests.support.servers.scripted_server import run_scripted_server

pytestmark = pytest.mark.usefixtures("verify_consistency")
VIRUS_NAME = "Win.Test"
CREATE_SENDER_RULE = """mutation ($input: SenderRuleCreateInput!) { senderRuleCreate(input: $input)
  { errors { message } } }"""


@pytest.fixture
async def lmtp_client(environment: Environment, tmp_path: Path) -> AsyncIterator[SmtpTestClient]:
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    lmtp_client = await connect_lmtp(listener.port)
    async with run_scripted_server(
        reply_as_clamd(f"stream: {VIRUS_NAME} FOUND\0".encode())
    ) as port:
        change_options(environment, clamd_address=f"127.0.0.1:{port}", virus_action="quarantine")
        yield lmtp_client
    await lmtp_client.close()
    await listener.close(1)


async def test_virus_is_quarantined_per_user_and_released_by_admin_only(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient, http: httpx.AsyncClient
) -> None:
    environment = ada.environment
    domain_admin = await make_domain_admin(environment, http, "chief", [AdminPermission.QUARANTINE])
    await set_user_columns(bob, spam_level=100)
    recipients = (ada.address, bob.address)
    assert (
        await deliver_for_reply_codes(lmtp_client, raw_message("Ill"), *recipients)
        == ["250 2.0.0"] * 2
    )
    assert [await message_special_use(client, "Ill") for client in (ada, bob)] == [None, None]
    rows = await load_quarantine_rows(environment)
    assert {(row.user_id, row.virus) for row in rows} == {
        (ada.user.id, VIRUS_NAME),
        (bob.user.id, VIRUS_NAME),
    }
    item_ids = {row.user_id: global_ids.encode("QuarantineItem", row.id) for row in rows}
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_ids[ada.user.id]}]
    )
    assert error_summary(errors)[::3] == ("FORBIDDEN", "DOMAIN_ADMIN")
    _, errors = await run_mutation(
        bob, QUARANTINE_RELEASE, quarantineItems=[{"id": item_ids[ada.user.id]}]
    )
    assert error_summary(errors)[0] == "NOT_FOUND"
    assert (await list_inbox_subjects(ada), len(await load_quarantine_rows(environment))) == ([], 2)
    _, errors = await run_mutation(
        domain_admin, QUARANTINE_RELEASE, quarantineItems=[{"id": item_ids[ada.user.id]}]
    )
    assert (errors, await list_inbox_subjects(ada)) == ([], ["Ill"])
    assert [row.user_id for row in await load_quarantine_rows(environment)] == [bob.user.id]


async def test_allow_rule_does_not_exempt_message_with_virus(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    rule = {"scope": {"global": True}, "action": "ALLOW", "patterns": ["*@example.com"]}
    assert (await root(CREATE_SENDER_RULE, input=rule))["senderRuleCreate"]["errors"] == []
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Ill"), ada.address) == [
        "250 2.0.0"
    ]
    assert (
        await list_inbox_subjects(ada),
        [row.virus for row in await load_quarantine_rows(ada.environment)],
    ) == (
        [],
        [VIRUS_NAME],
    )


@pytest.mark.parametrize(
    ("virus", "reply", "quarantined_count"), [("reject", "550 5.7.1", 0), ("tag", "250 2.0.0", 1)]
)
async def test_virus_action_applies_before_spam_score(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, virus: str, reply: str, quarantined_count: int
) -> None:
    change_options(ada.environment, virus_action=virus, spam_quarantine_score=50)
    assert await deliver_for_reply_codes(
        lmtp_client, raw_message("Ill", **SPAM_HEADERS), ada.address
    ) == [reply]
    assert len(await load_quarantine_rows(ada.environment)) == quarantined_count


async def test_message_with_virus_too_large_for_quarantine_is_refused(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    change_options(ada.environment, quarantine_max_message_size=500)
    large = raw_message("Large", body="x" * 500)
    assert await deliver_for_reply_codes(lmtp_client, large, ada.address) == ["550 5.7.1"]
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Small"), ada.address) == [
        "250 2.0.0"
    ]
    assert [row.subject for row in await load_quarantine_rows(ada.environment)] == ["Small"]


async def test_forwarding_address_refuses_message_with_virus(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await add_forwarding_address(ada.environment, "list", "dave@far.example")
    assert await deliver_for_reply_codes(lmtp_client, raw_message("On"), "list@example.org") == [
        "550 5.7.1"
    ]
    assert await load_quarantine_rows(ada.environment) == []
