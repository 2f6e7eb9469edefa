"""Reports of ours: who is told of what, when, and in which form."""

from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, DsnAction, JobRecipient
from mail.envelope.dsn_parameters import ALL_REPORTS, FULL, NO_REPORTS, DsnRequest, NotifyCondition
from mail.mime.header_encoding import NamedAddress
from mail.queue.dsn_writer import (
    ReportedMessage,
    ReportedRecipient,
    build_report,
    report_from_results,
)
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import CommittedOptions, Environment
from models.submission.tables import Submission
from tests.conftest import Client, Clock
from tests.support.mail.dsn_messages import (
    SUBMITTED_MESSAGE,
    dsn_fields,
    send_with_dsn_request,
    submit_with_dsn_request,
)
from tests.support.mail.parsed_messages import parse_smtp_message
from tests.support.mail.stored_messages import newest_inbox_message
from tests.support.mail_servers.dsn_servers import Reporter
from tests.support.mail_servers.queue_worker import (
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


# ---------------------------------------------------------------- delays


async def test_a_delay_is_told_of_once_and_when_it_is_time(
    ada: Client, world: Environment, clock: Clock
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
    raw = await newest_inbox_message(ada)
    about, (carol, dave) = dsn_fields(parse_smtp_message(raw))
    assert about["Reporting-MTA"] == "dns; mx.example.org"
    assert (carol["Action"], carol["Status"]) == ("delayed", "4.2.1")
    assert carol["Final-Recipient"] == "rfc822; carol@example.net"
    assert carol["Diagnostic-Code"] == "smtp; 450 4.2.1 Later"
    until_ = parsedate_to_datetime(dave["Will-Retry-Until"])
    assert until_ == (begun + timedelta(days=5)).replace(microsecond=0)
    assert "450 4.2.1 Later" in raw.decode()


async def tried(world: Environment, key: int, many: int) -> bool:
    rows = (await deliveries(world, key)).values()
    return all(row.attempts == many and row.lease is None for row in rows)


async def test_with_0_no_delay_is_told_of(ada: Client, world: Environment, clock: Clock) -> None:
    options = replace(world.options, queue_delay_notice=timedelta(0))
    world.apply_options(CommittedOptions(options, 1))
    async with listening(Server(dict(LATER))) as there, working(world, relay(there)):
        key = await send(ada)
        await settled(world, key)
        clock.tick(hours=30)
        ring(world)
        await until(lambda: tried(world, key, 2))
    assert await inbox(ada) == []


async def test_what_is_sent_later_waits_from_then_on(
    ada: Client, world: Environment, clock: Clock
) -> None:
    async with listening(Server(dict(LATER))) as there, working(world, relay(there)):
        key = await send(ada, send_time=world.now() + timedelta(days=1))
        clock.tick(days=1, minutes=1)
        ring(world)
        await settled(world, key)
    assert await inbox(ada) == []


# ---------------------------------------------------------------- successes


async def test_who_asks_is_told_what_was_handed_on_to_a_server_without_reports(
    ada: Client, world: Environment
) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        key = await send_with_dsn_request(ada)
        await settled(world, key)
        await until(lambda: has_mail(ada))
    (told,) = await inbox(ada)  # both recipients in one
    assert told.subject == "Your message went on"
    _, (carol, dave) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert (carol["Action"], dave["Action"]) == ("relayed", "relayed")
    assert carol["Status"] == "2.0.0"
    assert "carol@example.net" in told.preview


async def has_mail(client: Client, many: int = 1) -> bool:
    return len(await inbox(client)) >= many


async def test_who_asks_is_told_of_a_delivery_here(
    ada: Client, bob: Client, world: Environment
) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        key = await send_with_dsn_request(ada, NamedAddress(bob.address))
        await settled(world, key)
        await until(lambda: has_mail(ada))
    (told,) = await inbox(ada)
    assert told.subject == "Your message was delivered"
    _, (row,) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert (row["Action"], row["Status"], row["Diagnostic-Code"]) == ("delivered", "2.0.0", None)


async def test_a_server_that_reports_is_asked_and_we_say_nothing(
    ada: Client, world: Environment
) -> None:
    elsewhere = Reporter()
    async with listening(elsewhere), working(world, relay(elsewhere)):
        key = await send_with_dsn_request(ada)
        rows = await settled(world, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert await inbox(ada) == []
    (_, mail), (_, carol), (_, dave) = elsewhere.asked
    assert mail[0] == "RET=HDRS"
    (queue_id,) = await queue_ids(world)
    assert mail[1].startswith(f"ENVID={queue_id}.")
    assert carol == ["NOTIFY=DELAY,FAILURE,SUCCESS", "ORCPT=rfc822;carol@example.net"]
    assert dave == ["NOTIFY=DELAY,FAILURE,SUCCESS", "ORCPT=rfc822;dave@example.net"]


async def queue_ids(world: Environment) -> list[str]:
    return [row.queue_id for row in await world.database.read(select(col(Submission.queue_id)))]


async def test_who_does_not_ask_names_the_message_only(ada: Client, world: Environment) -> None:
    elsewhere = Reporter()
    async with listening(elsewhere), working(world, relay(elsewhere)):
        await settled(world, await send(ada, NamedAddress("a+b=c@example.net")))
    (_, mail), (_, to) = elsewhere.asked
    assert [word.partition("=")[0] for word in mail] == ["ENVID"]
    assert to == ["ORCPT=rfc822;a+2Bb+3Dc@example.net"]


# ---------------------------------------------------------------- never


async def test_never_is_never(ada: Client, world: Environment, clock: Clock) -> None:
    replies = {"carol": "550 5.1.1 No", "dave": "450 4.2.1 Later"}
    async with listening(Server(replies)) as there, working(world, relay(there)):
        key = await submit_with_dsn_request(ada, NO_REPORTS)
        await settled(world, key)
        clock.tick(hours=5)
        ring(world)
        await until(lambda: is_tried_twice(world, key))
        clock.tick(days=5)
        ring(world)
        await until(lambda: is_now(world, key, "dave", State.EXPIRED))
    assert await inbox(ada) == []


async def is_tried_twice(world: Environment, key: int) -> bool:
    row = (await deliveries(world, key))["dave"]
    return bool(row.attempts == 2 and row.lease is None)


async def test_only_what_is_asked_for_is_told(ada: Client, world: Environment) -> None:
    replies = {"carol": "550 5.1.1 No"}
    async with listening(Server(replies)) as there, working(world, relay(there)):
        await settled(
            world,
            await submit_with_dsn_request(ada, DsnRequest(frozenset({NotifyCondition.SUCCESS}))),
        )
        await until(lambda: has_mail(ada))
    (told,) = await inbox(ada)
    assert told.subject == "Your message went on"
    assert "carol" not in told.preview


async def test_nobody_is_told_of_what_nobody_sends(ada: Client, world: Environment) -> None:
    elsewhere = Reporter({"carol": "550 No"})
    async with listening(elsewhere), working(world, relay(elsewhere)):
        await settled(world, await submit_with_dsn_request(ada, ALL_REPORTS, sender=""))
    assert await inbox(ada) == []
    assert await bodies(world) == [SUBMITTED_MESSAGE]
    (_, mail), (_, carol), (_, dave) = elsewhere.asked
    assert (mail, carol[0], dave[0]) == ([], "NOTIFY=NEVER", "NOTIFY=NEVER")


async def test_a_delay_that_is_not_asked_for_is_not_told_of(
    ada: Client, world: Environment, clock: Clock
) -> None:
    async with listening(Server(dict(LATER))) as there, working(world, relay(there)):
        key = await submit_with_dsn_request(ada, DsnRequest(frozenset({NotifyCondition.FAILURE})))
        await settled(world, key)
        clock.tick(hours=9)
        ring(world)
        await until(lambda: tried(world, key, 2))
    assert await inbox(ada) == []


# ---------------------------------------------------------------- form


def made(
    world: Environment,
    wish: DsnRequest,
    *,
    sender: str = "ada@example.org",
    raw: bytes = SUBMITTED_MESSAGE,
) -> bytes:
    now = world.now()
    to = [JobRecipient(1, "gone@example.net", 1, now, dsn_request=wish)]
    job = DeliveryJob(1, 2, "q", 3, 4, 5, sender, "example.net", now, to)
    return report_from_results(
        world, job, {1: DeliveryResult.from_refusal(550, "5.1.1 No", "mx.example.net")}, raw
    )


def test_what_the_sender_called_it_comes_back(world: Environment) -> None:
    wish = DsnRequest(None, "rfc822;first@example.com", "A B+C=1")
    about, (row,) = dsn_fields(parse_smtp_message(made(world, wish)))
    assert about["Original-Envelope-Id"] == "A B+C=1"
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Remote-MTA"], row["Final-Log-ID"]) == ("dns; mx.example.net", "q")


def test_the_whole_message_comes_back_where_that_is_wanted_and_it_is_small(
    world: Environment,
) -> None:
    *_, whole = parse_smtp_message(made(world, DsnRequest(ret=FULL))).iter_parts()
    assert whole.get_content_type() == "message/rfc822"
    assert whole.get_content().get_content() == "secret\r\n"
    large = SUBMITTED_MESSAGE + b"x" * 900 * 2000
    for raw in (SUBMITTED_MESSAGE.partition(b"\r\n\r\n")[0], large):
        *_, head = parse_smtp_message(made(world, DsnRequest(ret=FULL), raw=raw)).iter_parts()
        assert head.get_content_type() == "text/rfc822-headers"
    *_, head = parse_smtp_message(made(world, DsnRequest())).iter_parts()
    assert "secret" not in head.as_string()
    assert len(list(parse_smtp_message(made(world, DsnRequest(), raw=b"")).iter_parts())) == 2


def test_what_is_not_ascii_goes_through_any_server(world: Environment) -> None:
    raw = "Message-ID: <1@example.org>\r\nSubject: Grüße\r\n\r\nHallo\r\n".encode()
    whole = made(world, DsnRequest(), raw=raw)
    assert whole.isascii()
    head: Any = list(parse_smtp_message(whole).iter_parts())[2]
    assert "Subject: Grüße" in head.get_payload(decode=True).decode()


def test_who_has_an_address_beyond_ascii_reads_such_addresses(world: Environment) -> None:
    about = ReportedMessage("jörg@example.org", world.now(), "q", DsnRequest())
    said = DeliveryResult.from_refusal(550, "5.1.1 No", "mx.example.net")
    told = [ReportedRecipient("çelik@bücher.example", DsnAction.FAILED, said)]
    raw = "Subject: Grüße\r\n\r\nHallo\r\n".encode()
    message = parse_smtp_message(build_report(world, about, told, raw))
    kinds = [part.get_content_type() for part in message.iter_parts()]
    assert kinds == ["text/plain", "message/global-delivery-status", "message/global-headers"]
    assert (
        "Final-Recipient: utf-8; çelik@bücher.example"
        in build_report(world, about, told, raw).decode()
    )


def test_nothing_that_a_server_said_gets_out_of_its_field(world: Environment) -> None:
    said = DeliveryResult.from_refusal(
        550, "No\r\nFinal-Recipient: rfc822; eve@x\r\n\r\n--\x00\x1b", "mx"
    )
    told = [ReportedRecipient("gone@example.net", DsnAction.FAILED, said)]
    about = ReportedMessage("ada@example.org", world.now(), "q", DsnRequest())
    message = parse_smtp_message(build_report(world, about, told, SUBMITTED_MESSAGE))
    _, rows = dsn_fields(message)
    assert [row["Final-Recipient"] for row in rows] == ["rfc822; gone@example.net"]
    text = next(message.iter_parts()).get_content()
    assert "\r\n\r\n--" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("result", "action", "wanted"),
    [
        (DeliveryResult.from_refusal(550, "5.7.1 No"), DsnAction.FAILED, "5.7.1"),
        (DeliveryResult.from_refusal(550, "No"), DsnAction.FAILED, "5.0.0"),
        (DeliveryResult(DeliveryState.EXPIRED, 451, "4.3.0 Later"), DsnAction.FAILED, "4.4.7"),
        (DeliveryResult(DeliveryState.RELAYED, 250, "OK"), DsnAction.RELAYED, "2.0.0"),
        (DeliveryResult(DeliveryState.RELAYED, 250, "2.6.0 OK"), DsnAction.RELAYED, "2.6.0"),
    ],
)
def test_each_fate_has_its_code(
    world: Environment, result: DeliveryResult, action: DsnAction, wanted: str
) -> None:
    about = ReportedMessage("ada@example.org", world.now(), "q", DsnRequest())
    told = [ReportedRecipient("gone@example.net", action, result)]
    _, (row,) = dsn_fields(parse_smtp_message(build_report(world, about, told, SUBMITTED_MESSAGE)))
    assert row["Status"] == wanted


async def test_a_copy_by_a_rule_is_told_of_to_nobody(ada: Client, world: Environment) -> None:
    key = await submit_with_dsn_request(ada, ALL_REPORTS)
    async with world.write_session(ada.user.id) as session:
        this = update(Submission).where(col(Submission.id) == key).values(copy_of=1)
        await session.exec(this)
    async with listening(Server({"carol": "550 No"})) as there, working(world, relay(there)):
        await settled(world, key)
    assert await inbox(ada) == []
    assert len(await world.database.read(select(col(QueueEntry.id)))) == 2


SEND = """mutation ($input: MessageSendInput!) {
  messageSend(input: $input) { submission { queueId } errors { code message } } }"""


@pytest.mark.parametrize(("wanted", "notify"), [(True, "DELAY,FAILURE,SUCCESS"), (False, None)])
async def test_a_client_asks_by_the_api(
    ada: Client, world: Environment, wanted: bool, notify: str | None
) -> None:
    given = {"to": [{"address": "carol@example.net"}], "text": "Hi", "requestDsn": wanted}
    answer = (await ada(SEND, input=given))["messageSend"]
    assert answer["errors"] == []
    row = await world.database.read(select(col(QueueEntry.notify), col(QueueEntry.orcpt)))
    assert [tuple(each) for each in row] == [(notify, None)]
