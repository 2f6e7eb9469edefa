"""Reports of ours: who is told of what, when, and in which form."""

import email
from dataclasses import replace
from datetime import timedelta
from email import policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope.delivery_jobs import Action, Job, Result, To
from mail.envelope.dsn_parameters import ALL, FULL, NOTHING, On, Wish
from mail.mime.header_encoding import Named
from mail.queue.dsn_writer import About, Told, report, written
from models.messages.tables import Message
from models.queue.tables import Delivery, DeliveryState
from models.runtime.environment import Adopted, World
from models.submission.tables import Submission
from resolvers.messages import content
from resolvers.submission import composition
from resolvers.submission import create as submission_create
from resolvers.submission.create import Outgoing, Written
from tests.conftest import Client, Clock, context
from tests.support.mail_servers.dsn_servers import Reporter
from tests.support.mail_servers.queue_worker import (
    FAR,
    State,
    bodies,
    deliveries,
    inbox,
    is_now,
    relay,
    ring,
    send,
    settled,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening

LATER = {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"}
RAW = b"Message-ID: <1@example.org>\r\nSubject: Hi\r\n\r\nsecret\r\n"


def parsed(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    assert b"\n" not in raw.replace(b"\r\n", b"")
    return message


def fields(message: EmailMessage) -> tuple[Any, list[Any]]:
    """What is said of the message, and of each recipient."""
    status: Any = list(message.iter_parts())[1]
    about, *each = status.get_payload()
    return about, each


async def asked(ada: Client, *to: Named) -> int:
    """Queue a message whose sender wants to know of all."""
    outgoing = Outgoing(to=to or FAR, subject="Hello", text="Hi.", request_dsn=True)
    sent = await submission_create.send(context(ada), outgoing)
    assert sent.submission is not None
    return int(sent.submission.id)


# ---------------------------------------------------------------- delays


async def test_a_delay_is_told_of_once_and_when_it_is_time(
    ada: Client, world: World, clock: Clock
) -> None:
    async with listening(Server(dict(LATER))) as there, working(world, relay(there)):
        key = await send(ada)
        rows = await settled(world, key)
        assert await inbox(ada) == []

        clock.tick(hours=3, minutes=59)
        ring(world)
        await until(lambda: tried(world, key, 2))
        rows = await deliveries(world, key)
        assert await inbox(ada) == []
        begun = rows["carol"].created_at
        assert {row.next_at for row in rows.values()} == {begun + timedelta(hours=4)}

        clock.tick(minutes=2)
        ring(world)
        await until(lambda: tried(world, key, 3))
        (notice,) = await inbox(ada)
        rows = await deliveries(world, key)
        assert {row.delay_told_at for row in rows.values()} == {world.now()}
        clock.tick(hours=10)
        ring(world)
        await until(lambda: tried(world, key, 4))
    assert len(await inbox(ada)) == 1
    assert (notice.subject, notice.envelope_from) == ("Your message is delayed", "")
    assert "carol@example.net" in notice.preview
    raw = await newest(ada)
    about, (carol, dave) = fields(parsed(raw))
    assert about["Reporting-MTA"] == "dns; mx.example.org"
    assert (carol["Action"], carol["Status"]) == ("delayed", "4.2.1")
    assert carol["Final-Recipient"] == "rfc822; carol@example.net"
    assert carol["Diagnostic-Code"] == "smtp; 450 4.2.1 Later"
    until_ = parsedate_to_datetime(dave["Will-Retry-Until"])
    assert until_ == (begun + timedelta(days=5)).replace(microsecond=0)
    assert "450 4.2.1 Later" in raw.decode()


async def newest(ada: Client) -> bytes:
    """The last message in the INBOX, byte for byte."""
    theirs = select(col(Message.id)).where(col(Message.mailbox_id) == (await ada.box()).id)
    rows = await ada.world.database.read(theirs.order_by(col(Message.id)))
    stored = await content.one(context(ada), rows[-1].id)
    assert stored is not None
    return stored.layout.slice(0, stored.size)


async def tried(world: World, key: int, many: int) -> bool:
    rows = (await deliveries(world, key)).values()
    return all(row.attempts == many and row.lease is None for row in rows)


async def test_with_0_no_delay_is_told_of(ada: Client, world: World, clock: Clock) -> None:
    options = replace(world.options, queue_delay_notice=timedelta(0))
    world.adopt(Adopted(options, 1))
    async with listening(Server(dict(LATER))) as there, working(world, relay(there)):
        key = await send(ada)
        await settled(world, key)
        clock.tick(hours=30)
        ring(world)
        await until(lambda: tried(world, key, 2))
    assert await inbox(ada) == []


async def test_what_is_sent_later_waits_from_then_on(
    ada: Client, world: World, clock: Clock
) -> None:
    async with listening(Server(dict(LATER))) as there, working(world, relay(there)):
        key = await send(ada, send_time=world.now() + timedelta(days=1))
        clock.tick(days=1, minutes=1)
        ring(world)
        await settled(world, key)
    assert await inbox(ada) == []


# ---------------------------------------------------------------- successes


async def test_who_asks_is_told_what_was_handed_on_to_a_server_without_reports(
    ada: Client, world: World
) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        key = await asked(ada)
        await settled(world, key)
        await until(lambda: has_mail(ada))
    (told,) = await inbox(ada)  # both recipients in one
    assert told.subject == "Your message went on"
    _, (carol, dave) = fields(parsed(await newest(ada)))
    assert (carol["Action"], dave["Action"]) == ("relayed", "relayed")
    assert carol["Status"] == "2.0.0"
    assert "carol@example.net" in told.preview


async def has_mail(client: Client, many: int = 1) -> bool:
    return len(await inbox(client)) >= many


async def test_who_asks_is_told_of_a_delivery_here(ada: Client, bob: Client, world: World) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        key = await asked(ada, Named(bob.address))
        await settled(world, key)
        await until(lambda: has_mail(ada))
    (told,) = await inbox(ada)
    assert told.subject == "Your message was delivered"
    _, (row,) = fields(parsed(await newest(ada)))
    assert (row["Action"], row["Status"], row["Diagnostic-Code"]) == ("delivered", "2.0.0", None)


async def test_a_server_that_reports_is_asked_and_we_say_nothing(ada: Client, world: World) -> None:
    elsewhere = Reporter()
    async with listening(elsewhere), working(world, relay(elsewhere)):
        key = await asked(ada)
        rows = await settled(world, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert await inbox(ada) == []
    (_, mail), (_, carol), (_, dave) = elsewhere.asked
    assert mail[0] == "RET=HDRS"
    (queue_id,) = await queue_ids(world)
    assert mail[1].startswith(f"ENVID={queue_id}.")
    assert carol == ["NOTIFY=DELAY,FAILURE,SUCCESS", "ORCPT=rfc822;carol@example.net"]
    assert dave == ["NOTIFY=DELAY,FAILURE,SUCCESS", "ORCPT=rfc822;dave@example.net"]


async def queue_ids(world: World) -> list[str]:
    return [row.queue_id for row in await world.database.read(select(col(Submission.queue_id)))]


async def test_who_does_not_ask_names_the_message_only(ada: Client, world: World) -> None:
    elsewhere = Reporter()
    async with listening(elsewhere), working(world, relay(elsewhere)):
        await settled(world, await send(ada, Named("a+b=c@example.net")))
    (_, mail), (_, to) = elsewhere.asked
    assert [word.partition("=")[0] for word in mail] == ["ENVID"]
    assert to == ["ORCPT=rfc822;a+2Bb+3Dc@example.net"]


# ---------------------------------------------------------------- never


async def wishing(ada: Client, wish: Wish, *, sender: str | None = None) -> int:
    """Hand in a message with this wish for each recipient; the key of its submission."""
    ctx = context(ada)
    account = await composition.account_of(ctx, ada.user.id)
    to = ["carol@example.net", "dave@example.net"]
    wishes = dict.fromkeys(to, wish)
    given = Written(RAW, ada.address if sender is None else sender, to, None, wishes=wishes)
    key, _ = await submission_create.store(ctx, account, given)
    assert key is not None
    return key


async def test_never_is_never(ada: Client, world: World, clock: Clock) -> None:
    replies = {"carol": "550 5.1.1 No", "dave": "450 4.2.1 Later"}
    async with listening(Server(replies)) as there, working(world, relay(there)):
        key = await wishing(ada, NOTHING)
        await settled(world, key)
        clock.tick(hours=5)
        ring(world)
        await until(lambda: is_tried_twice(world, key))
        clock.tick(days=5)
        ring(world)
        await until(lambda: is_now(world, key, "dave", State.EXPIRED))
    assert await inbox(ada) == []


async def is_tried_twice(world: World, key: int) -> bool:
    row = (await deliveries(world, key))["dave"]
    return bool(row.attempts == 2 and row.lease is None)


async def test_only_what_is_asked_for_is_told(ada: Client, world: World) -> None:
    replies = {"carol": "550 5.1.1 No"}
    async with listening(Server(replies)) as there, working(world, relay(there)):
        await settled(world, await wishing(ada, Wish(frozenset({On.SUCCESS}))))
        await until(lambda: has_mail(ada))
    (told,) = await inbox(ada)
    assert told.subject == "Your message went on"
    assert "carol" not in told.preview


async def test_nobody_is_told_of_what_nobody_sends(ada: Client, world: World) -> None:
    elsewhere = Reporter({"carol": "550 No"})
    async with listening(elsewhere), working(world, relay(elsewhere)):
        await settled(world, await wishing(ada, ALL, sender=""))
    assert await inbox(ada) == []
    assert await bodies(world) == [RAW]
    (_, mail), (_, carol), (_, dave) = elsewhere.asked
    assert (mail, carol[0], dave[0]) == ([], "NOTIFY=NEVER", "NOTIFY=NEVER")


async def test_a_delay_that_is_not_asked_for_is_not_told_of(
    ada: Client, world: World, clock: Clock
) -> None:
    async with listening(Server(dict(LATER))) as there, working(world, relay(there)):
        key = await wishing(ada, Wish(frozenset({On.FAILURE})))
        await settled(world, key)
        clock.tick(hours=9)
        ring(world)
        await until(lambda: tried(world, key, 2))
    assert await inbox(ada) == []


# ---------------------------------------------------------------- form


def made(world: World, wish: Wish, *, sender: str = "ada@example.org", raw: bytes = RAW) -> bytes:
    now = world.now()
    to = [To(1, "gone@example.net", 1, now, wish=wish)]
    job = Job(1, 2, "q", 3, 4, 5, sender, "example.net", now, to)
    return report(world, job, {1: Result.refused(550, "5.1.1 No", "mx.example.net")}, raw)


def test_what_the_sender_called_it_comes_back(world: World) -> None:
    wish = Wish(None, "rfc822;first@example.com", "A B+C=1")
    about, (row,) = fields(parsed(made(world, wish)))
    assert about["Original-Envelope-Id"] == "A B+C=1"
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Remote-MTA"], row["Final-Log-ID"]) == ("dns; mx.example.net", "q")


def test_the_whole_message_comes_back_where_that_is_wanted_and_it_is_small(world: World) -> None:
    *_, whole = parsed(made(world, Wish(ret=FULL))).iter_parts()
    assert whole.get_content_type() == "message/rfc822"
    assert whole.get_content().get_content() == "secret\r\n"
    large = RAW + b"x" * 900 * 2000
    for raw in (RAW.partition(b"\r\n\r\n")[0], large):
        *_, head = parsed(made(world, Wish(ret=FULL), raw=raw)).iter_parts()
        assert head.get_content_type() == "text/rfc822-headers"
    *_, head = parsed(made(world, Wish())).iter_parts()
    assert "secret" not in head.as_string()
    assert len(list(parsed(made(world, Wish(), raw=b"")).iter_parts())) == 2


def test_what_is_not_ascii_goes_through_any_server(world: World) -> None:
    raw = "Message-ID: <1@example.org>\r\nSubject: Grüße\r\n\r\nHallo\r\n".encode()
    whole = made(world, Wish(), raw=raw)
    assert whole.isascii()
    head: Any = list(parsed(whole).iter_parts())[2]
    assert "Subject: Grüße" in head.get_payload(decode=True).decode()


def test_who_has_an_address_beyond_ascii_reads_such_addresses(world: World) -> None:
    about = About("jörg@example.org", world.now(), "q", Wish())
    said = Result.refused(550, "5.1.1 No", "mx.example.net")
    told = [Told("çelik@bücher.example", Action.FAILED, said)]
    raw = "Subject: Grüße\r\n\r\nHallo\r\n".encode()
    message = parsed(written(world, about, told, raw))
    kinds = [part.get_content_type() for part in message.iter_parts()]
    assert kinds == ["text/plain", "message/global-delivery-status", "message/global-headers"]
    assert (
        "Final-Recipient: utf-8; çelik@bücher.example" in written(world, about, told, raw).decode()
    )


def test_nothing_that_a_server_said_gets_out_of_its_field(world: World) -> None:
    said = Result.refused(550, "No\r\nFinal-Recipient: rfc822; eve@x\r\n\r\n--\x00\x1b", "mx")
    told = [Told("gone@example.net", Action.FAILED, said)]
    about = About("ada@example.org", world.now(), "q", Wish())
    message = parsed(written(world, about, told, RAW))
    _, rows = fields(message)
    assert [row["Final-Recipient"] for row in rows] == ["rfc822; gone@example.net"]
    text = next(message.iter_parts()).get_content()
    assert "\r\n\r\n--" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("result", "action", "wanted"),
    [
        (Result.refused(550, "5.7.1 No"), Action.FAILED, "5.7.1"),
        (Result.refused(550, "No"), Action.FAILED, "5.0.0"),
        (Result(DeliveryState.EXPIRED, 451, "4.3.0 Later"), Action.FAILED, "4.4.7"),
        (Result(DeliveryState.RELAYED, 250, "OK"), Action.RELAYED, "2.0.0"),
        (Result(DeliveryState.RELAYED, 250, "2.6.0 OK"), Action.RELAYED, "2.6.0"),
    ],
)
def test_each_fate_has_its_code(world: World, result: Result, action: Action, wanted: str) -> None:
    about = About("ada@example.org", world.now(), "q", Wish())
    told = [Told("gone@example.net", action, result)]
    _, (row,) = fields(parsed(written(world, about, told, RAW)))
    assert row["Status"] == wanted


async def test_a_copy_by_a_rule_is_told_of_to_nobody(ada: Client, world: World) -> None:
    key = await wishing(ada, ALL)
    async with world.write(ada.user.id) as session:
        this = update(Submission).where(col(Submission.id) == key).values(copy_of=1)
        await session.exec(this)
    async with listening(Server({"carol": "550 No"})) as there, working(world, relay(there)):
        await settled(world, key)
    assert await inbox(ada) == []
    assert len(await world.database.read(select(col(Delivery.id)))) == 2


SEND = """mutation ($input: MessageSendInput!) {
  messageSend(input: $input) { submission { queueId } errors { code message } } }"""


@pytest.mark.parametrize(("wanted", "notify"), [(True, "DELAY,FAILURE,SUCCESS"), (False, None)])
async def test_a_client_asks_by_the_api(
    ada: Client, world: World, wanted: bool, notify: str | None
) -> None:
    given = {"to": [{"address": "carol@example.net"}], "text": "Hi", "requestDsn": wanted}
    answer = (await ada(SEND, input=given))["messageSend"]
    assert answer["errors"] == []
    row = await world.database.read(select(col(Delivery.notify), col(Delivery.orcpt)))
    assert [tuple(each) for each in row] == [(notify, None)]
