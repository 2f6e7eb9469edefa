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
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.scanner_servers import clamd_says, rude
from tests.support.operations.domain_operations import done, told
from tests.support.operations.quarantine_operations import RELEASE, SPAM, held, inbox

pytestmark = pytest.mark.usefixtures("verify_consistency")
VIRUS_NAME = "Win.Test"
CREATE_SENDER_RULE = """mutation ($input: SenderRuleCreateInput!) { senderRuleCreate(input: $input)
  { errors { message } } }"""


@pytest.fixture
async def lmtp_client(environment: Environment, tmp_path: Path) -> AsyncIterator[Neighbour]:
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    lmtp_client = await connect(listener.port)
    async with rude(clamd_says(f"stream: {VIRUS_NAME} FOUND\0".encode())) as port:
        change_options(environment, clamd=f"127.0.0.1:{port}", virus="quarantine")
        yield lmtp_client
    await lmtp_client.close()
    await listener.close(1)


async def test_virus_is_quarantined_per_user_and_released_by_admin_only(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: Neighbour, http: httpx.AsyncClient
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
    rows = await held(environment)
    assert {(row.user_id, row.virus) for row in rows} == {
        (ada.user.id, VIRUS_NAME),
        (bob.user.id, VIRUS_NAME),
    }
    item_ids = {row.user_id: global_ids.encode("QuarantineItem", row.id) for row in rows}
    _, errors = await done(ada, RELEASE, ids=[item_ids[ada.user.id]])
    assert told(errors)[::3] == ("FORBIDDEN", "DOMAIN_ADMIN")
    _, errors = await done(bob, RELEASE, ids=[item_ids[ada.user.id]])
    assert told(errors)[0] == "NOT_FOUND"
    assert (await inbox(ada), len(await held(environment))) == ([], 2)
    _, errors = await done(domain_admin, RELEASE, ids=[item_ids[ada.user.id]])
    assert (errors, await inbox(ada)) == ([], ["Ill"])
    assert [row.user_id for row in await held(environment)] == [bob.user.id]


async def test_allow_rule_does_not_exempt_message_with_virus(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: Neighbour
) -> None:
    rule = {"scope": {"global": True}, "action": "ALLOW", "patterns": ["*@example.com"]}
    assert (await root(CREATE_SENDER_RULE, input=rule))["senderRuleCreate"]["errors"] == []
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Ill"), ada.address) == [
        "250 2.0.0"
    ]
    assert (await inbox(ada), [row.virus for row in await held(ada.environment)]) == (
        [],
        [VIRUS_NAME],
    )


@pytest.mark.parametrize(
    ("virus", "reply", "quarantined_count"), [("reject", "550 5.7.1", 0), ("tag", "250 2.0.0", 1)]
)
async def test_virus_action_applies_before_spam_score(
    ada: GraphQLClient, lmtp_client: Neighbour, virus: str, reply: str, quarantined_count: int
) -> None:
    change_options(ada.environment, virus=virus, spam_quarantine=50)
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Ill", **SPAM), ada.address) == [
        reply
    ]
    assert len(await held(ada.environment)) == quarantined_count


async def test_message_with_virus_too_large_for_quarantine_is_refused(
    ada: GraphQLClient, lmtp_client: Neighbour
) -> None:
    change_options(ada.environment, quarantine_max=500)
    large = raw_message("Large", body="x" * 500)
    assert await deliver_for_reply_codes(lmtp_client, large, ada.address) == ["550 5.7.1"]
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Small"), ada.address) == [
        "250 2.0.0"
    ]
    assert [row.subject for row in await held(ada.environment)] == ["Small"]


async def test_forwarding_address_refuses_message_with_virus(
    ada: GraphQLClient, lmtp_client: Neighbour
) -> None:
    await add_forwarding_address(ada.environment, "list", "dave@far.example")
    assert await deliver_for_reply_codes(lmtp_client, raw_message("On"), "list@example.org") == [
        "550 5.7.1"
    ]
    assert await held(ada.environment) == []
