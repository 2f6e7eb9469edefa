"""The way of a message: by queue id, Message-ID and recipient, and who may know of it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.delivery.listener_backend import LocalBackend
from mail.maintenance import housekeeping
from mail.mime.header_encoding import NamedAddress
from mail.storage import message_trace
from models.runtime.environment import CommittedOptions, Environment
from models.submission.tables import Submission
from tests.conftest import Client, Clock, heard, raw_message
from tests.support.accounts.user_operations import change, chief, create
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import relay, send, settled, wait_for_messages, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.sieve_operations import put
from tests.support.operations.trace_operations import (
    MESSAGE_TRACE_QUERY,
    message_id_header,
    trace_events,
    trace_steps,
)
from tests.support.stores.counter_check import rows

CAROL = "carol@example.com"
LOOK = "give queueId or messageId; messageTraceEvents finds messages by address and time"
pytestmark = pytest.mark.usefixtures("examined")


async def come(neighbour: Neighbour, raw: bytes, *to: str) -> list[str]:
    """The queue ids that the neighbour was told; where it was refused the reply."""
    await neighbour.begin(*to, sender=CAROL)
    neighbour.send(raw + b".\r\n")
    replies = [await neighbour.hear() for _ in to]
    return [reply.removeprefix("250 2.0.0 Delivered as ") for reply in replies]


async def test_the_id_of_the_250_leads_to_each_step(
    ada: Client, bob: Client, root: Client, neighbour: Neighbour
) -> None:
    raw = raw_message("Steps")
    assert bob.address == "bob@example.org"
    queue_id, same = await come(neighbour, raw, ada.address, "B.ob+x@example.org")
    assert queue_id == same
    found = await trace_steps(root, queueId=queue_id, address="bob@example.org")
    (_, _, _, where) = found.pop(2)
    assert where == "uid 1"
    assert found == [
        ("MTA", "accepted", "B.ob+x@example.org", "from <carol@example.com>"),
        ("SPAM", "judged", "B.ob+x@example.org", "no spam, score 0, by SCORE"),
    ]
    both = await trace_events(root, queueId=queue_id)
    assert sorted(both) == ["accepted", "accepted", "judged", "judged", "stored", "stored"]
    whole = message_id_header(raw)
    assert await trace_steps(root, messageId=whole) == await trace_steps(
        root, messageId=whole.strip("<>")
    )
    assert len(await trace_steps(root, messageId=whole)) == 6
    assert await trace_steps(root, messageId="<other@example.com>") == []


async def test_what_is_refused_forwarded_and_dropped_is_told(
    ada: Client, root: Client, neighbour: Neighbour
) -> None:
    world = ada.world
    await add_forwarding_address(world, "list", "dave@far.example")
    await add_forwarding_address(world, "drop")
    assert (await change(ada, targets=["eve@far.example"]))[1] == []
    to = (ada.address, "list@example.org", "drop@example.org")
    async with listening(Server()) as there, working(world, relay(there)):
        queue_id, *_ = await come(neighbour, raw_message("On"), *to)
        await wait_for_messages(there, 2)
        keys = await rows(world, "SELECT id FROM submissions")
        for (key,) in keys:
            await settled(world, key)
    by: dict[str, list[str]] = {address: [] for address in to}
    others: list[str] = []
    for _, event, address, detail in await trace_steps(root, queueId=queue_id):
        by.get(address, others).append(event if detail is None else f"{event}: {detail}")
    assert [one.partition(":")[0] for one in by[ada.address]] == [
        "accepted", "judged", "stored", "sent on",
    ]  # fmt: skip
    assert by["list@example.org"][1:] == ["sent on: to dave@far.example"]
    assert by["drop@example.org"][1:] == ["dropped"]
    found = sorted(one.partition(":")[0] for one in others)
    assert found == ["queued", "queued", "relayed", "relayed"]
    assert any("attempts 1" in one and "answer 250" in one for one in others)
    spam = b"X-Spam-Flag: YES\r\n" + raw_message("Spam")
    refused, *_ = await come(neighbour, spam, "list@example.org")
    assert refused.startswith("554 5.7.1")
    said = await trace_steps(root, messageId=message_id_header(spam))
    assert [event for _, event, _, _ in said] == ["accepted", "refused"]
    assert said[1][3] == "Held: spam is not sent on"


async def test_who_was_turned_away_is_told_with_those_who_were_not(
    ada: Client, bob: Client, root: Client, neighbour: Neighbour
) -> None:
    raw = raw_message("Some")
    boss = await chief(root, domain="example.org")
    await come(neighbour, raw_message("Filling"), bob.address)
    assert (await change(root, bob, quota=1))[1] == []
    neighbour.send(f"MAIL FROM:<{CAROL}>\r\n".encode())
    for one in ("nobody@example.org", ada.address, bob.address, "x@far.example"):
        neighbour.send(f"RCPT TO:<{one}>\r\n".encode())
    neighbour.send(b"DATA\r\n")
    heard = [await neighbour.hear() for _ in range(6)]
    assert [reply[:3] for reply in heard] == ["250", "550", "250", "452", "550", "354"]
    neighbour.send(raw + b".\r\n")
    queue_id = (await neighbour.hear()).removeprefix("250 2.0.0 Delivered as ")
    away = [
        ("nobody@example.org", "550 5.1.1 No such user here"),
        ("bob@example.org", "452 4.2.2 Mailbox full"),
        ("x@far.example", "550 5.1.1 No such user here"),
    ]
    for given in ({"queueId": queue_id}, {"messageId": message_id_header(raw)}):
        found = await trace_steps(root, **given)
        assert [step[2:] for step in found if step[1] == "turned away"] == away
        seen = await trace_steps(boss, **given)
        assert [step[2:] for step in seen if step[1] == "turned away"] == away[:2]
        assert [event for _, event, address, _ in found if address == ada.address] == [
            "accepted", "judged", "stored",
        ]  # fmt: skip


async def test_what_is_refused_by_a_script_or_as_spam_was_judged_before(
    ada: Client, bob: Client, root: Client, neighbour: Neighbour
) -> None:
    await put(ada, 'require "reject"; reject "Not this.";')
    raw = raw_message("No")
    refused, _ = await come(neighbour, raw, ada.address, bob.address)
    assert refused == "550 5.7.1 Not this."
    (judged, said) = (
        await trace_steps(root, messageId=message_id_header(raw), address=ada.address)
    )[1:]
    assert judged[1:] == ("judged", ada.address, "no spam, score 0, by SCORE")
    assert said[1:] == ("refused", ada.address, "Rejected: Not this.")


async def test_what_our_users_send_is_found_by_both_ids(
    ada: Client, bob: Client, root: Client
) -> None:
    world = ada.world
    async with listening(Server()) as there, working(world, relay(there)):
        key = await send(ada, NamedAddress("bob@example.org"), NamedAddress("carol@example.net"))
        await settled(world, key)
    asked = select(col(Submission.queue_id)).where(col(Submission.id) == key)
    ((queue_id,),) = await world.database.read(asked)
    ((header,),) = await rows(
        world, "SELECT message_id FROM messages WHERE user_id = :u", u=bob.user.id
    )
    for given in ({"queueId": queue_id}, {"messageId": header}):
        found = await trace_events(root, **given)
        assert sorted(found) == [
            "accepted", "delivered", "judged", "queued", "relayed", "stored",
        ]  # fmt: skip


async def test_administrators_see_their_domains_and_users_nothing(
    ada: Client, root: Client, world: Environment
) -> None:
    await add_forwarding_address(world, "list", "dave@far.example")
    _, errors = await create(root, username="eve", address="eve@other.example")
    assert errors == []
    boss = await chief(root, domain="other.example")
    house = LocalBackend(world)
    to = ("eve@other.example", ada.address, "list@example.org")
    raw = raw_message("Both")
    await house.deliver(raw, [await house.accept_recipient(one, CAROL) for one in to], CAROL)
    seen = await trace_steps(boss, messageId=message_id_header(raw))
    assert {address for _, _, address, _ in seen} == {"eve@other.example"}
    assert len(seen) == 3
    everything = await trace_steps(root, messageId=message_id_header(raw))
    assert {"queued", "pending"} <= {event for _, event, _, _ in everything}
    answer = await ada.raw(MESSAGE_TRACE_QUERY, messageId=message_id_header(raw))
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    key = await send(ada, NamedAddress("carol@example.net"))
    ((queue_id,),) = await rows(world, "SELECT queue_id FROM submissions WHERE id = :k", k=key)
    assert await trace_steps(boss, queueId=queue_id) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, LOOK),
        ({"queueId": "a", "messageId": "b"}, LOOK),
        ({"queueId": " "}, "from 1 to 1000 characters"),
        ({"messageId": "x" * 1001}, "from 1 to 1000 characters"),
        ({"queueId": "a", "address": "x" * 1001}, "at most 1000 characters"),
    ],
)
async def test_what_cannot_be_looked_for_is_refused(
    root: Client, given: dict[str, Any], words: str
) -> None:
    (error,) = (await root.raw(MESSAGE_TRACE_QUERY, **given))["errors"]
    assert (error["message"], error["extensions"]["code"]) == (words, "BAD_USER_INPUT")


@pytest.mark.parametrize("odd", ["*", "<>", "%", "\U0001f4a9"])
async def test_odd_texts_find_nothing(root: Client, odd: str) -> None:
    for name in ("queueId", "messageId"):
        assert await trace_steps(root, **{name: f"x{odd}"}) == []
    assert await trace_steps(root, queueId="x", address=odd) == []


async def test_no_header_of_a_stranger_stops_anything(
    ada: Client, root: Client, world: Environment
) -> None:
    house = LocalBackend(world)
    for text in ("<" + "y" * 900 + "@x>", "<a\0b@x>", "no brackets"):
        raw = f"Message-ID: {text}\r\n\r\nbody {len(text)}".encode()
        (outcome,) = await house.deliver(raw, [await house.accept_recipient(ada.address, "")], "")
        assert not isinstance(outcome, BaseException)
    assert len(await trace_events(root, messageId="<" + "y" * 900 + "@x>")) == 3
    many = await rows(world, "SELECT id FROM message_steps")
    assert len(many) == 9


async def test_nothing_is_written_where_it_is_off_and_old_steps_go(
    ada: Client, world: Environment, clock: Clock
) -> None:
    house = LocalBackend(world)

    async def letter(subject: str) -> int:
        raw = raw_message(subject)
        await house.deliver(raw, [await house.accept_recipient(ada.address, CAROL)], CAROL)
        await send(ada)
        await message_trace.flush(world)
        return len(await rows(world, "SELECT id FROM message_steps"))

    assert await letter("a") == 5
    clock.tick(days=8)
    assert (await housekeeping.run_round(world, sweep=False)).steps == 5
    world.apply_options(CommittedOptions(replace(world.options, trace_for=timedelta(0)), 1))
    assert await letter("b") == 0


async def test_what_waits_is_bounded_and_what_is_lost_is_counted(
    ada: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_trace, "MAX_WAITING", 2)
    house = LocalBackend(world)
    before = message_trace.LOST_STEPS.value()
    for subject in ("a", "b"):
        await house.deliver(
            raw_message(subject), [await house.accept_recipient(ada.address, CAROL)], CAROL
        )
    await message_trace.flush(world)
    assert len(await rows(world, "SELECT id FROM message_steps")) == 2
    assert message_trace.LOST_STEPS.value() - before == 4


async def test_a_delivery_waits_for_none_of_it(ada: Client, world: Environment) -> None:
    house, statements = LocalBackend(world), heard(world.database)
    there = [await house.accept_recipient(ada.address, CAROL)]
    await house.deliver(raw_message("a"), there, CAROL)
    assert not [one for one in statements if "message_steps" in one]
    await message_trace.flush(world)
    (one,) = [one for one in statements if "message_steps" in one]
    assert one.startswith("INSERT")
