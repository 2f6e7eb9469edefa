"""Spam is stored in Junk and other mail in the inbox."""

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.delivery import pipeline
from mail.delivery.listener_backend import LocalBackend
from mail.inbound import incoming_message
from mail.recipients import recipient_routes
from mail.storage.received_messages import parse_storable_message
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.users.tables import User
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, raw_message
from tests.support.mail.inbound_messages import OUTSIDE_SENDER, SPAM_FLAG_HEADER, deliver_to_users

CREATE_RULE = """mutation ($input: SenderRuleCreateInput!) { senderRuleCreate(input: $input) {
senderRules { id } errors { message } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def special_use_of(client: GraphQLClient, subject: str) -> SpecialUse | None:
    statement = (
        select(col(Mailbox.special_use))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(col(Message.user_id) == client.user.id, col(Message.subject) == subject)
    )
    (row,) = await client.environment.database.read(statement)
    return SpecialUse(row.special_use)


async def set_spam_level(client: GraphQLClient, value: int) -> None:
    async with client.environment.write_session() as session:
        statement = update(User).where(col(User.id) == client.user.id)
        await session.exec(statement.values(spam_level=value))


async def create_sender_rule(client: GraphQLClient, **arguments: Any) -> None:
    payload = await client(CREATE_RULE, input=arguments)
    assert payload["senderRuleCreate"]["errors"] == []


async def test_spam_verdict_depends_on_the_recipient(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await set_spam_level(bob, 100)
    await deliver_to_users(ada.environment, ada, bob, raw=raw_message("Offer", **SPAM_FLAG_HEADER))
    assert await special_use_of(ada, "Offer") is SpecialUse.JUNK
    assert await special_use_of(bob, "Offer") is SpecialUse.INBOX
    await deliver_to_users(ada.environment, ada, bob, raw=raw_message("Letter"))
    assert await special_use_of(ada, "Letter") is SpecialUse.INBOX
    await set_spam_level(bob, 0)
    await deliver_to_users(ada.environment, ada, bob, raw=raw_message("Strict"))
    assert await special_use_of(ada, "Strict") is SpecialUse.INBOX
    assert await special_use_of(bob, "Strict") is SpecialUse.JUNK


async def test_sender_rule_of_a_narrower_scope_wins(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    environment = ada.environment
    platform_scope: dict[str, Any] = {"scope": {"global": True}}
    await create_sender_rule(root, **platform_scope, action="BLOCK", patterns=["*@example.com"])
    await deliver_to_users(environment, ada, bob, raw=raw_message("One"))
    assert [await special_use_of(client, "One") for client in (ada, bob)] == [SpecialUse.JUNK] * 2
    domain_scope = {"scope": {"domain": {"name": "example.org"}}}
    await create_sender_rule(root, **domain_scope, action="ALLOW", patterns=["example.com"])
    await deliver_to_users(environment, ada, bob, raw=raw_message("Two", **SPAM_FLAG_HEADER))
    assert [await special_use_of(client, "Two") for client in (ada, bob)] == [SpecialUse.INBOX] * 2
    user_scope: dict[str, Any] = {"scope": {"user": {"username": "bob"}}}
    await create_sender_rule(bob, **user_scope, action="BLOCK", patterns=[OUTSIDE_SENDER])
    await deliver_to_users(environment, ada, bob, raw=raw_message("Three"))
    assert await special_use_of(ada, "Three") is SpecialUse.INBOX
    assert await special_use_of(bob, "Three") is SpecialUse.JUNK


async def test_spam_headers_of_own_messages_are_ignored(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    """Spam headers are trusted only if a trusted server has added them."""
    raw = raw_message("Own", **SPAM_FLAG_HEADER)
    mail = incoming_message.IncomingMessage(raw, await parse_storable_message(raw), ada.address)
    accepted = await recipient_routes.accept_recipient(ada.environment, bob.address, ada.address)
    await pipeline.deliver_to_accepted_recipients(ada.environment, mail, [accepted])
    assert await special_use_of(bob, "Own") is SpecialUse.INBOX


async def test_spam_and_rules_add_few_statements(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(subject: str, **fields: str) -> int:
        backend = LocalBackend(ada.environment)
        recipient = await backend.accept_recipient(ada.address, OUTSIDE_SENDER)
        del statements[:]
        await backend.deliver(raw_message(subject, **fields), [recipient], OUTSIDE_SENDER)
        return len(statements)

    base_count = await count_statements("Bare")
    assert await count_statements("Spam", **SPAM_FLAG_HEADER) == base_count + 1  # the Junk mailbox
    await create_sender_rule(root, scope={"global": True}, action="BLOCK", patterns=["far.example"])
    # The last use of the API key is written in the background.
    await authentication.wait_for_background_tasks(root.environment)
    assert await count_statements("Ruled") == base_count + 2  # tags and rules
