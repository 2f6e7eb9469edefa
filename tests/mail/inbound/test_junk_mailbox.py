"""What is spam lies in Junk, and all else in INBOX: from the delivery to the folder."""

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.delivery import pipeline
from mail.delivery.listener_backend import LocalBackend
from mail.inbound import incoming_message
from mail.recipients import recipient_routes
from mail.storage.received_messages import read_message
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.users.tables import User
from resolvers.auth import authentication
from tests.conftest import Client, raw_message
from tests.support.mail.inbound_messages import OUTSIDE_SENDER, SPAM_FLAG_HEADER, deliver_to_users

CREATE = """mutation ($input: SenderRuleCreateInput!) { senderRuleCreate(input: $input) {
rules { id } errors { message } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def lies(client: Client, subject: str) -> SpecialUse | None:
    asked = (
        select(col(Mailbox.special_use))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(col(Message.user_id) == client.user.id, col(Message.subject) == subject)
    )
    (row,) = await client.world.database.read(asked)
    return SpecialUse(row.special_use)


async def level(client: Client, value: int) -> None:
    async with client.world.write_session() as session:
        this = update(User).where(col(User.id) == client.user.id)
        await session.exec(this.values(spam_level=value))


async def rule(client: Client, **given: Any) -> None:
    made = await client(CREATE, input=given)
    assert made["senderRuleCreate"]["errors"] == []


async def test_each_recipient_is_judged_alone(ada: Client, bob: Client) -> None:
    await level(bob, 100)
    await deliver_to_users(ada.world, ada, bob, raw=raw_message("Offer", **SPAM_FLAG_HEADER))
    assert await lies(ada, "Offer") is SpecialUse.JUNK
    assert await lies(bob, "Offer") is SpecialUse.INBOX
    await deliver_to_users(ada.world, ada, bob, raw=raw_message("Letter"))
    assert await lies(ada, "Letter") is SpecialUse.INBOX
    await level(bob, 0)
    await deliver_to_users(ada.world, ada, bob, raw=raw_message("Strict"))
    assert await lies(ada, "Strict") is SpecialUse.INBOX
    assert await lies(bob, "Strict") is SpecialUse.JUNK


async def test_rules_decide_by_their_place(ada: Client, bob: Client, root: Client) -> None:
    world = ada.world
    everybody: dict[str, Any] = {"scope": {"global": True}}
    await rule(root, **everybody, action="BLOCK", patterns=["*@example.com"])
    await deliver_to_users(world, ada, bob, raw=raw_message("One"))
    assert [await lies(client, "One") for client in (ada, bob)] == [SpecialUse.JUNK] * 2
    his = {"scope": {"domain": "example.org"}}
    await rule(root, **his, action="ALLOW", patterns=["example.com"])
    await deliver_to_users(world, ada, bob, raw=raw_message("Two", **SPAM_FLAG_HEADER))
    assert [await lies(client, "Two") for client in (ada, bob)] == [SpecialUse.INBOX] * 2
    mine: dict[str, Any] = {"scope": {"user": {"username": "bob"}}}
    await rule(bob, **mine, action="BLOCK", patterns=[OUTSIDE_SENDER])
    await deliver_to_users(world, ada, bob, raw=raw_message("Three"))
    assert await lies(ada, "Three") is SpecialUse.INBOX
    assert await lies(bob, "Three") is SpecialUse.JUNK


async def test_what_we_send_ourselves_may_say_what_it_likes(ada: Client, bob: Client) -> None:
    """Fields of a filter are believed of a neighbour's filter only."""
    raw = raw_message("Own", **SPAM_FLAG_HEADER)
    mail = incoming_message.IncomingMessage(raw, await read_message(raw), ada.address)
    taken = await recipient_routes.accept_recipient(ada.world, bob.address, ada.address)
    await pipeline.deliver(ada.world, mail, [taken])
    assert await lies(bob, "Own") is SpecialUse.INBOX


async def test_without_rules_nothing_is_asked(
    ada: Client, root: Client, statements: list[str]
) -> None:
    async def cost(subject: str, **fields: str) -> int:
        house = LocalBackend(ada.world)
        there = await house.accept_recipient(ada.address, OUTSIDE_SENDER)
        del statements[:]
        await house.deliver(raw_message(subject, **fields), [there], OUTSIDE_SENDER)
        return len(statements)

    bare = await cost("Bare")
    assert await cost("Spam", **SPAM_FLAG_HEADER) == bare + 1  # where Junk is
    await rule(root, scope={"global": True}, action="BLOCK", patterns=["far.example"])
    await authentication.wait_for_background_tasks(
        root.world
    )  # what is written of the key that was used
    assert await cost("Ruled") == bare + 2  # tags, and rules
