"""Rules for a whole domain skip accounts above the current role of their maker."""

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
from tests.conftest import GraphQLClient, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.lost_rights import LOSSES, load_security_actions, lose_rights
from tests.support.mail_servers.queue_worker import queue_message
from tests.support.operations.domain_operations import error_summary, run_mutation
from tests.support.operations.rewrite_and_bcc_operations import (
    BCC_RULE_CREATE,
    BCC_RULE_UPDATE,
    create_bcc_rule,
    deliver_incoming,
    load_copy_recipients,
)

COPY_ADDRESS = "spy@far.example"
DOMAIN_PATTERN = "@example.org"
SENDER_RULE_CREATE = """mutation ($input: SenderRuleCreateInput!) {
  senderRuleCreate(input: $input) { senderRules { id } errors { code path } } }"""


async def change_role(client: GraphQLClient, role: Role) -> None:
    async with client.environment.write_session(client.user.id) as session:
        connection = await session.connection()
        await connection.execute(
            update(User).where(col(User.id) == client.user.id).values(role=role)
        )


@pytest.fixture
async def domain_admin(environment: Environment, http: Any) -> GraphQLClient:
    """A domain administrator of example.org with every permission."""
    return await make_domain_admin(environment, http, "chief", list(AdminPermission))


@pytest.mark.parametrize("direction", ["SENDER", "RECIPIENT"])
async def test_bcc_rule_for_account_above_its_maker_is_refused(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient, direction: str
) -> None:
    other_admin = await make_domain_admin(ada.environment, ada.http, "other")
    for target in (admin_client, other_admin):
        _, errors = await run_mutation(
            domain_admin,
            BCC_RULE_CREATE,
            match=target.address,
            bccTo=COPY_ADDRESS,
            direction=direction,
        )
        assert error_summary(errors)[:2] == ("FORBIDDEN", ["match"])
    own_rule_id = await create_bcc_rule(
        domain_admin, ada.address, COPY_ADDRESS, direction=direction
    )
    _, errors = await run_mutation(
        domain_admin,
        BCC_RULE_UPDATE,
        bccRules=[{"id": own_rule_id}],
        set={"match": admin_client.address},
    )
    assert error_summary(errors)[:2] == ("FORBIDDEN", ["set", "match"])
    admin_rule_id = await create_bcc_rule(
        admin_client, admin_client.address, COPY_ADDRESS, direction=direction
    )
    _, errors = await run_mutation(
        domain_admin,
        BCC_RULE_UPDATE,
        bccRules=[{"id": admin_rule_id}],
        set={"bccTo": "more@far.example"},
    )
    assert error_summary(errors)[:2] == ("FORBIDDEN", ["set", "match"])


async def test_domain_bcc_rule_skips_received_mail_of_higher_roles(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    await create_bcc_rule(domain_admin, DOMAIN_PATTERN, COPY_ADDRESS)
    for client in (admin_client, ada, domain_admin):
        await deliver_incoming(
            ada.environment, client.address, raw=raw_message(client.user.username)
        )
    assert len(await load_copy_recipients(ada.environment)) == 2


async def test_domain_bcc_rule_skips_sent_mail_of_higher_roles(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    await create_bcc_rule(domain_admin, DOMAIN_PATTERN, COPY_ADDRESS, direction="SENDER")
    for client in (admin_client, ada, domain_admin):
        await queue_message(client, NamedAddress("to@far.example"))
    assert len(await load_copy_recipients(ada.environment)) == 2


async def test_domain_bcc_rule_follows_current_role_of_its_maker(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    await create_bcc_rule(admin_client, DOMAIN_PATTERN, COPY_ADDRESS)
    await deliver_incoming(ada.environment, domain_admin.address)
    assert len(await load_copy_recipients(ada.environment)) == 1
    await change_role(admin_client, Role.DOMAIN_ADMIN)
    await deliver_incoming(ada.environment, domain_admin.address, raw=raw_message("Later"))
    assert len(await load_copy_recipients(ada.environment)) == 1
    await deliver_incoming(ada.environment, ada.address, raw=raw_message("Latest"))
    assert len(await load_copy_recipients(ada.environment)) == 2


@pytest.mark.parametrize("loss", LOSSES)
async def test_bcc_rules_end_when_their_maker_loses_its_rights(
    domain_admin: GraphQLClient, root: GraphQLClient, ada: GraphQLClient, loss: str
) -> None:
    for match in (DOMAIN_PATTERN, ada.address):
        await create_bcc_rule(domain_admin, match, COPY_ADDRESS)
    await create_bcc_rule(root, DOMAIN_PATTERN, COPY_ADDRESS, direction="SENDER")
    await lose_rights(root, domain_admin, loss)
    rules = (await root("{ bccRules { nodes { direction } } }"))["bccRules"]["nodes"]
    assert rules == [{"direction": "SENDER"}]
    actions = await load_security_actions(ada.environment, ada)
    assert actions == ["BCC_RULE_CREATED", "BCC_RULE_DELETED"]


async def test_domain_rewrite_skips_higher_roles(
    admin_client: GraphQLClient, ada: GraphQLClient, environment: Environment, http: Any
) -> None:
    document = """mutation ($input: RecipientRewriteCreateInput!) {
      recipientRewriteCreate(input: $input) { errors { code path } } }"""
    root_client = await make_client(environment, http, "top", role=Role.ROOT)
    arguments = {"from": root_client.address, "to": ada.address}
    payload = (await admin_client(document, input=arguments))["recipientRewriteCreate"]
    assert payload["errors"] == [{"code": "FORBIDDEN", "path": ["from"]}]
    arguments = {"from": DOMAIN_PATTERN, "to": ada.address}
    assert (await admin_client(document, input=arguments))["recipientRewriteCreate"]["errors"] == []
    assert (
        await address_resolution.load_recipient_below_limits(environment, root_client.address)
    ).user_id == root_client.user.id
    assert (
        await address_resolution.load_recipient_below_limits(environment, admin_client.address)
    ).user_id == ada.user.id


async def test_domain_sender_rule_skips_higher_roles(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    arguments = {"scope": {"domain": {"name": "example.org"}}, "action": "BLOCK"}
    arguments |= {"patterns": ["boss@far.example"]}
    assert (await domain_admin(SENDER_RULE_CREATE, input=arguments))["senderRuleCreate"][
        "errors"
    ] == []
    environment = ada.environment
    for client, is_blocked in ((admin_client, False), (ada, True), (domain_admin, True)):
        recipient = await address_resolution.load_recipient_below_limits(
            environment, client.address
        )
        message = await received_messages.parse_storable_message(raw_message(client.user.username))
        (accepted_recipient,) = await spam_check.compute_verdicts_and_set_junk_mailboxes(
            environment, message, "boss@far.example", [recipient], from_trusted_server=True
        )
        assert accepted_recipient.verdict.is_spam is is_blocked


async def test_quarantine_hides_messages_of_higher_roles(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    document = """{ quarantine { nodes { id subject } } }"""
    environment = ada.environment
    for client in (admin_client, ada):
        incoming = await pipeline.read_and_verify_incoming(
            environment, raw_message(client.user.username), "carol@far.example"
        )
        recipient = await address_resolution.load_recipient_below_limits(
            environment, client.address
        )
        await quarantine.quarantine_message(
            environment, incoming, recipient, quarantine.QuarantineReason(9.0)
        )
    messages = (await domain_admin(document))["quarantine"]["nodes"]
    assert [message["subject"] for message in messages] == ["ada"]
