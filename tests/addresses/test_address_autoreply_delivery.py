"""Addresses that forward answer by themselves: to real servers on loopback, by the queue."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col

from mail.autoreply import reply_sender
from mail.maintenance.housekeeping import run_round
from mail.smtp import lmtp
from models.addresses.tables import Address
from models.runtime.environment import Environment
from tests.conftest import Client, Clock, raw_message
from tests.support.mail.parsed_messages import body_text, parse_message
from tests.support.mail.queued_deliveries import queued_reply_recipients
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.mail_servers.lmtp_transactions import deliver_message
from tests.support.mail_servers.queue_worker import inbox, relay, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.address_operations import change
from tests.support.operations.autoreply_operations import (
    AUTOREPLY_ADDRESS,
    AUTOREPLY_SETTINGS,
    make_autoreply_address,
    send_message_to_address,
    set_autoreply,
)
from tests.support.operations.spam_operations import create_sender_rules
from tests.support.stores.counter_check import rows
from tests.support.stores.store_damage import rename_table

pytestmark = pytest.mark.usefixtures("examined", "ada")


async def answered(world: Environment) -> list[str]:
    """Who was answered: bounces that were sent on have no sender either."""
    return [to for to in await queued_reply_recipients(world) if to != "dave@far.example"]


async def test_who_writes_is_answered_in_its_own_name(
    root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await make_autoreply_address(root, name="Our desk", sendAs=False)
    await send_message_to_address(neighbour, Subject="Re: Lunch?", Message_ID="<b@far.example>")
    async with listening(Server()) as there, working(world, relay(there)):

        async def come() -> bool:
            return len(there.mails) == 2

        await until(come)
    (mail,) = [one for one in there.mails if one.sender == "<>"]
    said = parse_message(mail.raw)
    assert mail.to == ["carol@far.example"]
    assert (said["From"], said["To"]) == (f"Our desk <{AUTOREPLY_ADDRESS}>", "carol@far.example")
    assert (said["Subject"], said["In-Reply-To"]) == ("Auto: Re: Lunch?", "<b@far.example>")
    assert said["Auto-Submitted"] == "auto-replied"
    assert body_text(said) == "We have it."
    owners = await rows(world, "SELECT DISTINCT user_id FROM submissions")
    assert owners == [(None,)]


async def test_a_sender_has_one_answer_in_the_interval(
    root: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await make_autoreply_address(root, autoreply={**AUTOREPLY_SETTINGS, "interval": "P2D"})
    for sender in ("carol@far.example", "Carol+x@FAR.example", "eve@far.example"):
        await send_message_to_address(neighbour, sender)
    clock.tick(days=1, hours=23)
    await send_message_to_address(neighbour)
    assert await answered(world) == ["carol@far.example", "eve@far.example"]
    clock.tick(hours=1)
    assert (await run_round(world)).autoreply_senders == 2
    await send_message_to_address(neighbour)
    assert (await answered(world))[2:] == ["carol@far.example"]
    _, errors = await change(root, AUTOREPLY_ADDRESS, autoreply={"text": "Another absence."})
    assert errors == []
    await send_message_to_address(neighbour)
    assert (await answered(world))[3:] == ["carol@far.example"]


async def test_each_address_remembers_for_itself(
    root: Client, ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await make_autoreply_address(root)
    await make_autoreply_address(root, "desk@example.org")
    await set_autoreply(ada)
    for to in (AUTOREPLY_ADDRESS, "desk@example.org", "ada@example.org", AUTOREPLY_ADDRESS):
        await send_message_to_address(neighbour, to=to)
    assert await answered(world) == ["carol@far.example"] * 3


async def test_what_comes_again_is_answered_once(
    root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await make_autoreply_address(root)
    raw = raw_message("x", To=AUTOREPLY_ADDRESS)
    for _ in range(2):
        await deliver_message(neighbour, raw, AUTOREPLY_ADDRESS, sender="carol@far.example")
    assert len(await rows(world, "SELECT id FROM submissions")) == 2
    assert await answered(world) == ["carol@far.example"]


async def test_what_a_crash_prevented_the_repeat_brings(
    root: Client, world: Environment, neighbour: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    await make_autoreply_address(root, autoreply={**AUTOREPLY_SETTINGS, "text": "the heron knows"})
    raw = raw_message("a secret", To=AUTOREPLY_ADDRESS)
    await rename_table(world, "autoreply_senders", "away")
    try:
        (reply,) = await deliver_message(
            neighbour, raw, AUTOREPLY_ADDRESS, sender="carol@far.example"
        )
    finally:
        await rename_table(world, "away", "autoreply_senders")
    assert reply.startswith("250 2.0.0")  # it is sent on all the same
    (record,) = [each for each in caplog.records if each.message == "not answered"]
    assert record.exc_text
    for secret in ("carol@", "heron", "a secret"):
        assert secret not in record.exc_text
    assert await answered(world) == []
    await deliver_message(neighbour, raw, AUTOREPLY_ADDRESS, sender="carol@far.example")
    assert len(await rows(world, "SELECT id FROM submissions")) == 2
    assert await answered(world) == ["carol@far.example"]


async def test_twenty_deliveries_at_once_have_one_answer(
    root: Client, world: Environment, tmp_path: Path
) -> None:
    await make_autoreply_address(root)
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    neighbours = [await connect(listener.port) for _ in range(20)]
    try:
        await asyncio.gather(*(send_message_to_address(each) for each in neighbours))
        assert await answered(world) == ["carol@far.example"]
    finally:
        for each in neighbours:
            await each.close()
        await listener.close(1)


async def test_no_more_than_the_daily_number_is_answered(
    root: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await make_autoreply_address(root)
    await send_message_to_address(neighbour)
    assert await rows(world, "SELECT replied FROM addresses WHERE answers") == [(1,)]
    async with world.write_session() as session:
        this = update(Address).where(col(Address.answers))
        await session.exec(this.values(replied=reply_sender.MAX_REPLIES_PER_DAY - 1))
    await send_message_to_address(neighbour, "dan@far.example")
    await send_message_to_address(neighbour, "eve@far.example")
    assert await answered(world) == ["carol@far.example", "dan@far.example"]
    clock.tick(days=1)
    await send_message_to_address(neighbour, "eve@far.example")
    assert (await answered(world))[2:] == ["eve@far.example"]
    assert await rows(world, "SELECT replied FROM addresses WHERE answers") == [(1,)]


async def test_programs_lists_and_blind_copies_are_not_answered(
    root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await make_autoreply_address(root)
    for sender in ("", "mailer-daemon@far.example", "no-reply@far.example", "x-bounces@a.example"):
        await send_message_to_address(neighbour, sender)
    for head in (
        {"Auto_Submitted": "auto-generated"},
        {"List_Id": "<x.far.example>"},
        {"Precedence": "bulk"},
        {"X_Auto_Response_Suppress": "OOF"},
        {"To": "dave@far.example"},
        {"To": "ada@example.org"},
    ):
        await send_message_to_address(neighbour, **head)
    await send_message_to_address(neighbour, AUTOREPLY_ADDRESS)  # its own
    assert await answered(world) == []
    await send_message_to_address(neighbour)
    assert await answered(world) == ["carol@far.example"]


async def test_spam_is_not_answered(root: Client, world: Environment, neighbour: Neighbour) -> None:
    await make_autoreply_address(root, targets=["ada@example.org"])  # who takes it as Junk
    await create_sender_rules(root, {"domain": "example.org"}, "eve@far.example")
    await send_message_to_address(neighbour, "eve@far.example")
    await send_message_to_address(neighbour, X_Spam_Flag="YES")
    assert await answered(world) == []
    await send_message_to_address(neighbour, "fay@far.example")
    assert await answered(world) == ["fay@far.example"]


async def test_what_is_refused_is_not_answered(
    root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await make_autoreply_address(root, forwards=1)
    await send_message_to_address(neighbour, reply="554 5.4.6", Delivered_To=AUTOREPLY_ADDRESS)
    await send_message_to_address(neighbour, reply="554 5.7.1", X_Spam_Score="9.9")
    assert await answered(world) == []
    await send_message_to_address(neighbour)
    assert await answered(world) == ["carol@far.example"]
    assert (await neighbour.say("MAIL FROM:<eve@far.example>")).startswith("250")
    assert (await neighbour.say(f"RCPT TO:<{AUTOREPLY_ADDRESS}>")).startswith("450 4.2.1")
    assert await answered(world) == ["carol@far.example"]


async def test_an_account_behind_it_does_not_answer_as_well(
    root: Client, ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    await make_autoreply_address(root, targets=["ada@example.org"])
    await make_autoreply_address(root, "first@example.org", targets=[AUTOREPLY_ADDRESS])
    await send_message_to_address(neighbour)
    assert len(await inbox(ada)) == 1
    assert await answered(world) == ["carol@far.example"]
    await send_message_to_address(neighbour, "eve@far.example", to="first@example.org")
    assert len(await inbox(ada)) == 2
    froms = await rows(world, "SELECT count(*) FROM autoreply_senders")
    assert froms == [(2,)]  # of the two addresses that forward the one that was written to


@pytest.mark.usefixtures("bob")
async def test_a_pattern_answers_as_what_was_written_to(
    root: Client, world: Environment, neighbour: Neighbour
) -> None:
    autoreply = {**AUTOREPLY_SETTINGS, "internalText": "Ask Bob."}
    targets = ["ada@example.org"]
    await make_autoreply_address(
        root, "*@example.org", allowWildcard=True, autoreply=autoreply, targets=targets
    )
    await send_message_to_address(neighbour, to="who.ever+x@example.org")
    await send_message_to_address(neighbour, "bob@example.org", to="else@example.org")
    async with listening(Server()) as there, working(world, relay(there)):

        async def come() -> bool:
            return len(there.mails) == 1

        await until(come)
    said = parse_message(there.mails[0].raw)
    assert (said["From"], body_text(said)) == ("who.ever+x@example.org", "We have it.")
    assert await answered(world) == ["carol@far.example", "bob@example.org"]


async def test_where_none_is_on_nothing_is_asked(
    root: Client, world: Environment, neighbour: Neighbour, statements: list[str]
) -> None:
    async def asked() -> list[str]:
        del statements[:]
        await send_message_to_address(neighbour)
        return [sent for sent in statements if "autoreplies" in sent]

    await make_autoreply_address(root, autoreply={"text": "We have it."})
    assert await asked() == []
    _, errors = await change(root, AUTOREPLY_ADDRESS, autoreply={"enabled": True})
    assert errors == []
    assert len(await asked()) == 2  # before the answer, and while it is held
    _, errors = await change(root, AUTOREPLY_ADDRESS, autoreply={"enabled": False})
    assert errors == []
    assert await asked() == []
    assert await answered(world) == ["carol@far.example"]


async def test_the_way_of_a_message_says_whether_it_was_answered(
    root: Client, neighbour: Neighbour
) -> None:
    document = "query ($id: String!) { messageTrace(messageId: $id) { event address detail } }"
    await make_autoreply_address(root)
    told = list[str]()
    for number in range(2):
        key = f"<way{number}@far.example>"
        await send_message_to_address(neighbour, Message_ID=key)
        steps = (await root(document, id=key))["messageTrace"]
        told += [
            f"{one['event']}: {one['detail']}"
            for one in steps
            if one["address"] == AUTOREPLY_ADDRESS
        ]
    assert [one for one in told if "answered" in one] == [
        "answered: answered", "not answered: answered_before",
    ]  # fmt: skip
