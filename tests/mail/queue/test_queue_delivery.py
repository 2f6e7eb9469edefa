"""The queue against real servers on loopback: who gets what, and what came of it."""

import email
from datetime import timedelta
from email import policy
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.compose.message_builder import OutgoingFile, without_bcc
from mail.consistency import check_consistency
from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, JobRecipient
from mail.maintenance import housekeeping
from mail.mime.header_encoding import NamedAddress
from mail.queue import message_body
from mail.queue.delivery_results import (
    DEFAULT_BACKOFF,
    delay_while_paused,
    retry_delay,
    state_from_deliveries,
)
from mail.queue.dsn_writer import report_from_results
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from models.events.journal import Change, ChangeKind, JournalEntry, record_entry
from models.files.blobs import Blob, SubmissionBlob
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import Client, Clock, context
from tests.support.mail_servers.queue_worker import (
    FAR,
    State,
    blob_of,
    deliveries,
    inbox,
    is_now,
    relay,
    ring,
    send,
    settled,
    state,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening, server_tls, trust
from tests.support.stores.counter_check import rows


async def test_a_message_goes_to_the_next_hop_as_it_was_built(
    ada: Client, world: Environment
) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        key = await send(ada, bcc=[NamedAddress("eve@example.org.example")])
        rows = await settled(world, key)
        job = DeliveryJob(
            0, key, "", 0, ada.user.tenant_id, await blob_of(world, key), "", "", world.now(), []
        )
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert (await state(world, key)) is SubmissionState.SENT
    sent = without_bcc(await message_body.read_message(world, job))
    assert {mail.raw for mail in there.mails} == {sent}
    assert b"Bcc" not in sent
    assert b"\r\n.\r\n..dots\r\n" in sent
    assert sorted(mail.to for mail in there.mails) == [
        ["carol@example.net", "dave@example.net"],
        ["eve@example.org.example"],
    ]
    assert {(mail.sender, mail.helo) for mail in there.mails} == {
        ("ada@example.org", "mx.example.org")
    }
    assert rows["carol"].delivered_at == world.now()
    assert (rows["carol"].next_at, rows["carol"].holder) == (None, None)


async def test_each_recipient_has_its_own_answer(
    ada: Client, world: Environment, clock: Clock
) -> None:
    replies = {"slow": "450 4.2.1 Later", "gone": "550 5.1.1 No such user"}
    names = [NamedAddress(f"{name}@example.net") for name in ("good", "slow", "gone")]
    async with listening(Server(replies)) as there, working(world, relay(there)):
        key = await send(ada, *names)
        rows = await settled(world, key)
        assert {name: (row.state, row.last_code) for name, row in rows.items()} == {
            "good": (State.RELAYED, 250),
            "slow": (State.DEFERRED, 450),
            "gone": (State.BOUNCED, 550),
        }
        assert there.sessions == 1
        assert (await state(world, key)) is SubmissionState.SENDING
        wait = rows["slow"].next_at - world.now()
        assert timedelta(seconds=48) <= wait <= timedelta(seconds=72)

        del there.replies["slow"]
        clock.tick(seconds=73)
        ring(world)
        await until(lambda: is_now(world, key, "slow", State.RELAYED))
    rows = await deliveries(world, key)
    assert (rows["slow"].attempts, rows["good"].attempts) == (2, 1)
    assert (await state(world, key)) is SubmissionState.PARTIAL
    assert [mail.to for mail in there.mails] == [["good@example.net"], ["slow@example.net"]]
    (bounce,) = await inbox(ada)
    assert bounce.content_type == "multipart/report"
    assert bounce.envelope_from == ""
    assert "gone@example.net" in bounce.preview
    assert "slow" not in bounce.preview


async def test_every_change_is_in_the_journal_of_the_account(
    ada: Client, world: Environment
) -> None:
    async with listening(Server({"carol": "550 No"})) as there, working(world, relay(there)):
        key = await send(ada)
        await settled(world, key)
    asked = select(col(Change.facts)).where(
        col(Change.stream_id) == ada.user.id, col(Change.kind) == ChangeKind.SUBMISSION_CHANGED
    )
    rows = await world.database.read(asked.order_by(col(Change.last)))
    assert [row.facts["state"] for row in rows] == ["QUEUED", "SENDING", "PARTIAL"]


async def test_what_nobody_takes_for_five_days_is_given_up(
    ada: Client, world: Environment, clock: Clock
) -> None:
    replies = {"carol": "451 4.3.0 Never", "dave": "451 4.3.0 Never"}
    async with listening(Server(replies)) as there, working(world, relay(there)):
        key = await send(ada)
        rows = await settled(world, key)
        assert {row.state for row in rows.values()} == {State.DEFERRED}
        clock.tick(days=5)
        ring(world)
        await until(lambda: is_now(world, key, "carol", State.EXPIRED))
        await settled(world, key)
    assert (await state(world, key)) is SubmissionState.FAILED
    (bounce,) = await inbox(ada)
    assert "nobody took it in time" in bounce.preview


@pytest.mark.parametrize(
    ("reply", "state_", "many"),
    [("451 4.3.0 Full", State.DEFERRED, 0), ("554 5.6.0 Unwanted", State.BOUNCED, 1)],
)
async def test_the_answer_to_the_dot_counts_for_all(
    ada: Client, world: Environment, reply: str, state_: DeliveryState, many: int
) -> None:
    async with listening(Server(after_dot=[reply])) as there, working(world, relay(there)):
        key = await send(ada)
        rows = await settled(world, key)
    assert [(row.state, row.final_dot_at) for row in rows.values()] == [(state_, None)] * 2
    assert len(await inbox(ada)) == many


async def test_a_silent_end_after_the_dot_is_tried_again_and_marked(
    ada: Client, world: Environment, clock: Clock
) -> None:
    async with listening(Server(hang_up=True)) as there, working(world, relay(there)):
        key = await send(ada)
        rows = await settled(world, key)
        for row in rows.values():
            assert (row.state, row.final_dot_at) == (State.DEFERRED, world.now())
            assert "did not say" in row.last_response
        clock.tick(minutes=2)
        ring(world)
        await until(lambda: is_now(world, key, "dave", State.RELAYED))
    first, second = there.mails
    assert first.raw == second.raw  # the same Message-ID: whoever has it twice can tell


async def test_local_recipients_need_no_server(
    ada: Client, bob: Client, world: Environment
) -> None:
    nobody = OutboundSettings(parse_next_hop("127.0.0.1:1"))
    async with working(world, nobody):
        to = [
            NamedAddress("bob@example.org"),
            NamedAddress("nobody@example.org"),
            NamedAddress("b.ob+x@Example.org"),
        ]
        key = await send(ada, *to, bcc=[NamedAddress(ada.address)])
        rows = await settled(world, key)
    assert {name: row.state for name, row in rows.items()} == {
        "bob": State.DELIVERED,
        "b.ob+x": State.DELIVERED,
        "ada": State.DELIVERED,
        "nobody": State.BOUNCED,
    }
    (mail,) = await inbox(bob)  # two of the recipients are one person
    assert (mail.subject, mail.bcc, mail.envelope_from) == ("Hello", [], ada.address)
    assert [mail.subject for mail in await inbox(ada)] == [
        "Hello",
        "Your message could not be delivered",
    ]


async def test_without_room_for_a_report_the_state_still_tells(
    ada: Client, world: Environment
) -> None:
    key = await send(ada, NamedAddress("nobody@example.org"))
    async with world.write_session(ada.user.id) as session:
        await session.exec(update(User).where(col(User.id) == ada.user.id).values(quota=10))
    with world.wakeups.follow([ada.user.id]) as bell:
        async with working(world, OutboundSettings(parse_next_hop("127.0.0.1:1"))):
            await settled(world, key)
        bell.clear()
        async with world.write_session(ada.user.id) as session:
            entry = JournalEntry(ChangeKind.SUBMISSION_CHANGED, [key])
            await record_entry(session, ada.user.id, entry, at=world.now())
        assert bell.is_set()  # the report's number went back, and nobody was told of it
    assert (await state(world, key)) is SubmissionState.FAILED
    assert await inbox(ada) == []


async def test_a_bounce_is_never_bounced(ada: Client, world: Environment) -> None:
    key = await send(ada, NamedAddress("nobody@example.org"))
    async with world.write_session(ada.user.id) as session:
        nobody = update(Submission).where(col(Submission.id) == key).values(envelope_from="")
        await session.exec(nobody)
    async with working(world, OutboundSettings(parse_next_hop("127.0.0.1:1"))):
        rows = await settled(world, key)
    assert rows["nobody"].state is State.BOUNCED
    assert await inbox(ada) == []


async def test_dots_and_large_messages_arrive_as_they_are(ada: Client, world: Environment) -> None:
    text = "".join(f"{'.' * (n % 5)}{n}\n.\n" for n in range(120_000))[: 1 << 20]
    async with listening(Server()) as there, working(world, relay(there)):
        file = OutgoingFile(world.random_bytes(9 << 20))
        outgoing = SendRequest(to=FAR, text=text, attachments=[file])
        sent = await submission_create.send_message(context(ada), outgoing)
        assert sent.submission is not None
        await settled(world, sent.submission.id)
    (mail,) = there.mails
    parsed = email.message_from_bytes(mail.raw, policy=policy.default)
    first, second = parsed.iter_parts()
    assert first.get_content().splitlines() == text.splitlines()
    assert second.get_content() == file.content


@pytest.mark.parametrize(
    ("features", "to", "text"),
    [
        ({}, "jörg@example.net", "5.6.7"),
        ({"data_size_limit": 100}, "carol@example.net", "5.3.4"),
    ],
)
async def test_what_the_server_cannot_take_is_bounced_with_the_reason(
    ada: Client, world: Environment, features: dict[str, Any], to: str, text: str
) -> None:
    async with listening(Server(features=features)) as there, working(world, relay(there)):
        (row,) = (await settled(world, await send(ada, NamedAddress(to)))).values()
    assert (row.state, row.last_response[:5]) == (State.BOUNCED, text)
    assert there.mails == []
    assert len(await inbox(ada)) == 1


async def test_an_address_beyond_ascii_goes_to_a_server_that_takes_it(
    ada: Client, world: Environment
) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        await settled(world, await send(ada, NamedAddress("jörg@bücher.example")))
    (mail,) = there.mails
    assert mail.to == ["jörg@xn--bcher-kva.example"]
    assert {"SMTPUTF8", "BODY=8BITMIME"} <= set(mail.options)
    assert any(option.startswith("SIZE=") for option in mail.options)


@pytest.mark.parametrize("query", ["?tls=required", "?tls=never", ""])
async def test_encryption_is_used_as_the_operator_says(
    ada: Client, world: Environment, query: str
) -> None:
    server = Server(features={"tls_context": server_tls()})
    async with listening(server) as there, working(world, relay(there, query)):
        rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert there.mails[0].encrypted is (query != "?tls=never")


async def test_required_encryption_is_never_done_without(ada: Client, world: Environment) -> None:
    async with listening(Server()) as there, working(world, relay(there, "?tls=required")):
        rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert rows["carol"].last_response.startswith("4.7.5")
    assert there.mails == []


async def test_an_unknown_certificate_is_refused_where_it_matters(
    ada: Client, world: Environment
) -> None:
    server = Server(features={"tls_context": server_tls()})
    async with listening(server) as there:
        route = OutboundSettings(parse_next_hop(f"smtp://127.0.0.1:{there.port}?tls=required"))
        async with working(world, route):
            rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert there.mails == []


@pytest.mark.parametrize(
    ("password", "state_", "text"),
    [("secret", State.RELAYED, "2.0.0 Taken"), ("wrong", State.DEFERRED, "4.7.0 Our password")],
)
async def test_signing_in_to_the_next_hop(
    ada: Client, world: Environment, password: str, state_: DeliveryState, text: str
) -> None:
    server = Server()
    server.features = {"auth_require_tls": False, "authenticator": server.authenticate}
    async with listening(server, tls=True) as there:
        hop = parse_next_hop(f"smtps://us%40here:{password}@127.0.0.1:{there.port}")
        async with working(world, OutboundSettings(hop, trusted_context=trust())):
            rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {state_}
    assert rows["carol"].last_response.startswith(text)
    assert there.logins[0] == "us@here"


async def test_a_password_never_goes_out_in_the_clear(ada: Client, world: Environment) -> None:
    server = Server()
    server.features = {"auth_require_tls": False, "authenticator": server.authenticate}
    async with listening(server) as there:
        hop = parse_next_hop(f"smtp://us:secret@127.0.0.1:{there.port}")
        async with working(world, OutboundSettings(hop, trusted_context=trust())):
            rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert (there.logins, there.mails) == ([], [])


async def test_a_server_that_is_not_there_is_tried_later(ada: Client, world: Environment) -> None:
    async with working(world, OutboundSettings(parse_next_hop("127.0.0.1:1"))):
        rows = await settled(world, await send(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert await inbox(ada) == []


def test_pauses_grow_to_four_hours_and_jitter_a_fifth() -> None:
    assert [retry_delay(n, 0.5) for n in range(1, 10)] == [
        *DEFAULT_BACKOFF,
        DEFAULT_BACKOFF[-1],
        DEFAULT_BACKOFF[-1],
    ]
    assert (retry_delay(7, 0.0), retry_delay(7, 1.0)) == (
        timedelta(hours=3.2),
        timedelta(hours=4.8),
    )


@pytest.mark.parametrize(
    ("alone", "age", "wanted"),
    [
        (timedelta(milliseconds=1), timedelta(0), timedelta(seconds=1)),
        (timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=5)),
        (timedelta(minutes=5), timedelta(hours=2), timedelta(minutes=30)),
        (timedelta(minutes=5), timedelta(days=4), DEFAULT_BACKOFF[-1]),
    ],
)
def test_what_is_not_tried_is_put_off_for_a_share_of_its_age(
    alone: timedelta, age: timedelta, wanted: timedelta
) -> None:
    assert delay_while_paused(alone, age) == wanted


@pytest.mark.parametrize(
    ("states", "tried", "wanted"),
    [
        ([State.PENDING], False, SubmissionState.SCHEDULED),
        ([State.PENDING, State.CANCELLED], False, SubmissionState.SCHEDULED),
        ([State.PENDING, State.DEFERRED], False, SubmissionState.SENDING),
        ([State.DEFERRED, State.BOUNCED], True, SubmissionState.SENDING),
        ([State.RELAYED, State.DELIVERED], True, SubmissionState.SENT),
        ([State.RELAYED, State.BOUNCED], True, SubmissionState.PARTIAL),
        ([State.RELAYED, State.CANCELLED], True, SubmissionState.PARTIAL),
        ([State.BOUNCED, State.EXPIRED], True, SubmissionState.FAILED),
        ([State.CANCELLED], False, SubmissionState.CANCELLED),
    ],
)
def test_a_submission_is_the_sum_of_its_deliveries(
    states: list[DeliveryState], tried: bool, wanted: SubmissionState
) -> None:
    assert state_from_deliveries(states, SubmissionState.SCHEDULED, was_attempted=tried) is wanted


def test_a_report_can_be_read_by_programs(world: Environment) -> None:
    now = world.now()
    to = [
        JobRecipient(1, "jörg@bücher.example", 1, now),
        JobRecipient(2, "gone@example.net", 1, now),
    ]
    job = DeliveryJob(1, 2, "q", 3, 4, 5, "ada@example.org", "example.net", now, to)
    results = {
        1: DeliveryResult.from_refusal(550, "5.6.7 No UTF-8"),
        2: DeliveryResult.from_refusal(554, "Unwanted\r\nX: y", "mx.example.net"),
    }
    raw = b"Message-ID: <1@example.org>\r\nBcc: eve@example.net\r\nSubject: Hi\r\n\r\nsecret"
    message = email.message_from_bytes(
        report_from_results(world, job, results, raw), policy=policy.default
    )
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["References"] == "<1@example.org>"
    assert message.get_param("report-type") == "delivery-status"
    parts: list[Any] = list(message.iter_parts())
    _, status, original = parts
    about, first, second = status.get_payload()
    assert about["Reporting-MTA"] == "dns; mx.example.org"
    assert first["Final-Recipient"] == r"utf-8; j\x{F6}rg@b\x{FC}cher.example"
    assert (first["Status"], first["Action"]) == ("5.6.7", "failed")
    assert (second["Final-Recipient"], second["Status"]) == ("rfc822; gone@example.net", "5.0.0")
    assert second["Diagnostic-Code"] == "smtp; 554 Unwanted X: y"
    assert "Subject: Hi" in original.get_payload()
    assert "eve@" not in original.get_payload()


async def test_bytes_are_kept_for_what_is_still_to_be_sent_and_no_longer(
    ada: Client, world: Environment
) -> None:
    refusing = Server({"later": "451 4.3.0 Later"})
    async with listening(refusing) as server, working(world, relay(server)):
        gone = await send(ada, NamedAddress("carol@example.net"))
        waits = await send(
            ada, NamedAddress("carol@example.net"), NamedAddress("later@example.net")
        )
        for key in (gone, waits):
            await settled(world, key)
    assert (await housekeeping.run_round(world)).sent > 0
    left = await world.database.read(select(col(SubmissionBlob.submission_id)).distinct())
    assert [row.submission_id for row in left] == [waits]
    assert (await check_consistency(world)).findings == []


async def test_a_damaged_message_waits_for_its_repair(
    ada: Client, world: Environment, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(Server()) as there:
        key = await send(ada)
        blobs = await rows(world, "SELECT id, data FROM blobs ORDER BY id")
        await _set_data(world, {key: data[:-1] for key, data in blobs})
        async with working(world, relay(there)):
            found = await settled(world, key)
            assert {(row.state, row.last_response) for row in found.values()} == {
                (State.DEFERRED, "4.3.0 The stored message is damaged")
            }
            lines = [one for one in caplog.records if one.msg == "a queued message is damaged"]
            assert lines
            assert not [one for one in caplog.records if one.exc_info]
            await _set_data(world, dict(blobs))
            clock.tick(hours=1)
            ring(world)
            await until(partial(is_now, world, key, "carol", State.RELAYED))


async def _set_data(world: Environment, data: dict[int, bytes]) -> None:
    async with world.write_session() as session:
        for key, content in data.items():
            change = update(Blob).where(col(Blob.id) == key).values(data=content)
            await (await session.connection()).execute(change)
