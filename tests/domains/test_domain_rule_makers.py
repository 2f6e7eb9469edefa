"""Rules for a whole domain skip accounts above their maker, with the maker's role of today."""

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from mail.delivery import pipeline, quarantine
from mail.inbound import spam_check
from mail.mime.header_encoding import NamedAddress
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from tests.conftest import Client, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.queue_worker import send
from tests.support.operations.domain_operations import done, told
from tests.support.operations.rewrite_and_bcc_operations import (
    RULE_CREATE,
    RULE_UPDATE,
    come,
    copied,
    rule,
)

SPY = "spy@far.example"
WHOLE = "@example.org"
SENDER_RULE = """mutation ($input: SenderRuleCreateInput!) { senderRuleCreate(input: $input) {
  rules { id } errors { code path } } }"""


async def change_role(client: Client, role: Role) -> None:
    async with client.world.write_session(client.user.id) as session:
        connection = await session.connection()
        await connection.execute(
            update(User).where(col(User.id) == client.user.id).values(role=role)
        )


@pytest.fixture
async def chief(world: Environment, http: Any) -> Client:
    """A DOMAIN_ADMIN of example.org with every permission."""
    return await make_domain_admin(world, http, "chief", list(AdminPermission))


@pytest.mark.parametrize("direction", ["SENDER", "RECIPIENT"])
async def test_a_copy_rule_cannot_name_an_account_above_its_maker(
    chief: Client, over: Client, ada: Client, direction: str
) -> None:
    other = await make_domain_admin(ada.world, ada.http, "other")
    for above in (over, other):
        _, errors = await done(
            chief, RULE_CREATE, match=above.address, bccTo=SPY, direction=direction
        )
        assert told(errors)[:2] == ("FORBIDDEN", ["match"])
    own = await rule(chief, ada.address, SPY, direction=direction)
    _, errors = await done(chief, RULE_UPDATE, ids=[own], match=over.address)
    assert told(errors)[:2] == ("FORBIDDEN", ["match"])
    admins = await rule(over, over.address, SPY, direction=direction)
    _, errors = await done(chief, RULE_UPDATE, ids=[admins], bccTo="more@far.example")
    assert told(errors)[:2] == ("FORBIDDEN", ["match"])


async def test_a_copy_rule_for_a_domain_skips_received_mail_of_accounts_above(
    chief: Client, over: Client, ada: Client
) -> None:
    await rule(chief, WHOLE, SPY)
    for client in (over, ada, chief):
        await come(ada.world, client.address, raw=raw_message(client.user.username))
    assert len(await copied(ada.world)) == 2


async def test_a_copy_rule_for_a_domain_skips_sent_mail_of_accounts_above(
    chief: Client, over: Client, ada: Client
) -> None:
    await rule(chief, WHOLE, SPY, direction="SENDER")
    for client in (over, ada, chief):
        await send(client, NamedAddress("to@far.example"))
    assert len(await copied(ada.world)) == 2


async def test_the_role_of_the_maker_counts_as_it_is_now(
    chief: Client, over: Client, ada: Client
) -> None:
    await rule(over, WHOLE, SPY)
    await come(ada.world, chief.address)
    assert len(await copied(ada.world)) == 1
    await change_role(over, Role.DOMAIN_ADMIN)
    await come(ada.world, chief.address, raw=raw_message("Later"))
    assert len(await copied(ada.world)) == 1
    await come(ada.world, ada.address)
    assert len(await copied(ada.world)) == 2


async def test_a_rewrite_for_a_domain_skips_accounts_above(
    over: Client, ada: Client, world: Environment, http: Any
) -> None:
    document = """mutation ($input: RecipientRewriteCreateInput!) {
      recipientRewriteCreate(input: $input) { errors { code path } } }"""
    top = await make_client(world, http, "top", role=Role.ROOT)
    given = {"from": top.address, "to": ada.address}
    answer = (await over(document, input=given))["recipientRewriteCreate"]
    assert answer["errors"] == [{"code": "FORBIDDEN", "path": ["from"]}]
    given = {"from": WHOLE, "to": ada.address}
    assert (await over(document, input=given))["recipientRewriteCreate"]["errors"] == []
    assert (await address_resolution.load_recipient(world, top.address)).user_id == top.user.id
    assert (await address_resolution.load_recipient(world, over.address)).user_id == ada.user.id


async def test_a_sender_rule_for_a_domain_skips_accounts_above(
    chief: Client, over: Client, ada: Client
) -> None:
    given = {"scope": {"domain": "example.org"}, "action": "BLOCK"}
    given |= {"patterns": ["boss@far.example"]}
    assert (await chief(SENDER_RULE, input=given))["senderRuleCreate"]["errors"] == []
    world = ada.world
    for client, unwanted in ((over, False), (ada, True), (chief, True)):
        to = await address_resolution.load_recipient(world, client.address)
        letter = await received_messages.read_message(raw_message(client.user.username))
        (taken,) = await spam_check.compute_verdicts(
            world, letter, "boss@far.example", [to], from_trusted_server=True
        )
        assert taken.verdict.is_spam is unwanted


async def test_held_mail_of_accounts_above_is_not_shown(
    chief: Client, over: Client, ada: Client
) -> None:
    document = """{ quarantine { nodes { id subject } } }"""
    world = ada.world
    for client in (over, ada):
        held = await pipeline.read_incoming(
            world, raw_message(client.user.username), "carol@far.example"
        )
        to = await address_resolution.load_recipient(world, client.address)
        await quarantine.quarantine_message(world, held, to, quarantine.QuarantineReason(9.0))
    found = (await chief(document))["quarantine"]["nodes"]
    assert [one["subject"] for one in found] == ["ada"]
