"""Delivery of the queue to servers on loopback, and its results."""

import email
from datetime import timedelta
from email import policy
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.compose.message_builder import without_bcc
from mail.compose.message_draft import OutgoingFile
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
from models.events.event_types import SUBMISSION_EVENT_TYPES
from models.events.journal import Change
from models.files.blobs import Blob, SubmissionBlob
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.submission.tables import Submission, SubmissionState
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.mail_servers.queue_worker import (
    REMOTE_RECIPIENTS,
    State,
    is_entry_in_state,
    load_inbox_rows,
    load_queue_entries,
    load_submission_blob_id,
    load_submission_state,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.stores.counter_check import select_rows


async def test_message_is_relayed_unchanged_without_bcc(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada, bcc=[NamedAddress("eve@example.org.example")])
        rows = await wait_until_tried(environment, key)
        job = DeliveryJob(
            0,
            key,
            "",
            0,
            ada.user.tenant_id,
            await load_submission_blob_id(environment, key),
            "",
            "",
            environment.now(),
            [],
        )
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert (await load_submission_state(environment, key)) is SubmissionState.SENT
    sent = without_bcc(await message_body.read_message(environment, job))
    assert {mail.raw for mail in server.messages} == {sent}
    assert b"Bcc" not in sent
    assert b"\r\n.\r\n..dots\r\n" in sent
    assert sorted(mail.to for mail in server.messages) == [
        ["carol@example.net", "dave@example.net"],
        ["eve@example.org.example"],
    ]
    assert {(mail.sender, mail.greeting_name) for mail in server.messages} == {
        ("ada@example.org", "mx.example.org")
    }
    assert rows["carol"].delivered_at == environment.now()
    assert (rows["carol"].next_at, rows["carol"].holder) == (None, None)


async def test_each_recipient_has_own_delivery_result(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    replies = {"slow": "450 4.2.1 Later", "gone": "550 5.1.1 No such user"}
    recipients = [NamedAddress(f"{name}@example.net") for name in ("good", "slow", "gone")]
    async with (
        run_smtp_server(FakeSmtpServer(replies)) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada, *recipients)
        rows = await wait_until_tried(environment, key)
        assert {name: (row.state, row.last_code) for name, row in rows.items()} == {
            "good": (State.RELAYED, 250),
            "slow": (State.DEFERRED, 450),
            "gone": (State.BOUNCED, 550),
        }
        assert server.session_count == 1
        assert (await load_submission_state(environment, key)) is SubmissionState.SENDING
        retry_delay_time = rows["slow"].next_at - environment.now()
        assert timedelta(seconds=48) <= retry_delay_time <= timedelta(seconds=72)

        del server.rcpt_replies["slow"]
        clock.tick(seconds=73)
        wake_queue_worker(environment)
        await poll_until(lambda: is_entry_in_state(environment, key, "slow", State.RELAYED))
    rows = await load_queue_entries(environment, key)
    assert (rows["slow"].attempts, rows["good"].attempts) == (2, 1)
    assert (await load_submission_state(environment, key)) is SubmissionState.PARTIAL
    assert [mail.to for mail in server.messages] == [["good@example.net"], ["slow@example.net"]]
    (bounce,) = await load_inbox_rows(ada)
    assert bounce.content_type == "multipart/report"
    assert bounce.envelope_from == ""
    assert "gone@example.net" in bounce.preview
    assert "slow" not in bounce.preview


async def test_submission_states_are_in_user_journal(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer({"carol": "550 No"})) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada)
        await wait_until_tried(environment, key)
    query = select(col(Change.facts)).where(
        col(Change.stream_id) == ada.user.id, col(Change.type).in_(SUBMISSION_EVENT_TYPES)
    )
    rows = await environment.database.read(query.order_by(col(Change.last)))
    assert [row.facts["state"] for row in rows] == ["QUEUED", "SENDING", "PARTIAL"]


async def test_entry_expires_after_five_days(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    replies = {"carol": "451 4.3.0 Never", "dave": "451 4.3.0 Never"}
    async with (
        run_smtp_server(FakeSmtpServer(replies)) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada)
        rows = await wait_until_tried(environment, key)
        assert {row.state for row in rows.values()} == {State.DEFERRED}
        clock.tick(days=5)
        wake_queue_worker(environment)
        await poll_until(lambda: is_entry_in_state(environment, key, "carol", State.EXPIRED))
        await wait_until_tried(environment, key)
    assert (await load_submission_state(environment, key)) is SubmissionState.FAILED
    (bounce,) = await load_inbox_rows(ada)
    assert "not accepted in time" in bounce.preview


@pytest.mark.parametrize(
    ("reply", "expected_state", "dsn_count"),
    [("451 4.3.0 Full", State.DEFERRED, 0), ("554 5.6.0 Unwanted", State.BOUNCED, 1)],
)
async def test_reply_after_dot_applies_to_all_recipients(
    ada: GraphQLClient,
    environment: Environment,
    reply: str,
    expected_state: DeliveryState,
    dsn_count: int,
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer(data_replies=[reply])) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada)
        rows = await wait_until_tried(environment, key)
    assert [(row.state, row.final_dot_at) for row in rows.values()] == [(expected_state, None)] * 2
    assert len(await load_inbox_rows(ada)) == dsn_count


async def test_connection_lost_after_dot_is_retried_and_marked(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer(hangs_up_after_data=True)) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada)
        rows = await wait_until_tried(environment, key)
        for row in rows.values():
            assert (row.state, row.final_dot_at) == (State.DEFERRED, environment.now())
            assert "did not confirm the message" in row.last_response
        clock.tick(minutes=2)
        wake_queue_worker(environment)
        await poll_until(lambda: is_entry_in_state(environment, key, "dave", State.RELAYED))
    first_copy, second_copy = server.messages
    # The same Message-ID lets the recipient detect the duplicate.
    assert first_copy.raw == second_copy.raw


async def test_local_recipients_are_delivered_without_next_hop(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    unreachable = OutboundSettings(parse_next_hop("127.0.0.1:1"))
    async with run_queue_worker(environment, unreachable):
        recipients = [
            NamedAddress("bob@example.org"),
            NamedAddress("nobody@example.org"),
            NamedAddress("b.ob+x@Example.org"),
        ]
        key = await queue_message(ada, *recipients, bcc=[NamedAddress(ada.address)])
        rows = await wait_until_tried(environment, key)
    assert {name: row.state for name, row in rows.items()} == {
        "bob": State.DELIVERED,
        "b.ob+x": State.DELIVERED,
        "ada": State.DELIVERED,
        "nobody": State.BOUNCED,
    }
    (mail,) = await load_inbox_rows(bob)  # two of the recipients are the same user
    assert (mail.subject, mail.bcc, mail.envelope_from) == ("Hello", [], ada.address)
    assert [mail.subject for mail in await load_inbox_rows(ada)] == [
        "Hello",
        "Your message could not be delivered",
    ]


async def test_undeliverable_bounce_is_not_bounced(
    ada: GraphQLClient, environment: Environment
) -> None:
    key = await queue_message(ada, NamedAddress("nobody@example.org"))
    async with environment.write_session(ada.user.id) as session:
        statement = update(Submission).where(col(Submission.id) == key).values(envelope_from="")
        await session.exec(statement)
    async with run_queue_worker(environment, OutboundSettings(parse_next_hop("127.0.0.1:1"))):
        rows = await wait_until_tried(environment, key)
    assert rows["nobody"].state is State.BOUNCED
    assert await load_inbox_rows(ada) == []


async def test_large_message_with_dots_arrives_unchanged(
    ada: GraphQLClient, environment: Environment
) -> None:
    text = "".join(f"{'.' * (n % 5)}{n}\n.\n" for n in range(20_000))[: 1 << 17]
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        file = OutgoingFile(environment.random_bytes(1 << 20))
        request = SendRequest(to=REMOTE_RECIPIENTS, text=text, attachments=[file])
        payload = await submission_create.compose_and_queue_message(client_context(ada), request)
        assert payload.submission is not None
        await wait_until_tried(environment, payload.submission.id)
    (mail,) = server.messages
    parsed = email.message_from_bytes(mail.raw, policy=policy.default)
    text_part, file_part = parsed.iter_parts()
    assert text_part.get_content().splitlines() == text.splitlines()
    assert file_part.get_content() == file.content


def test_retry_delay_grows_to_four_hours_with_jitter() -> None:
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
    ("pause", "age", "expected"),
    [
        (timedelta(milliseconds=1), timedelta(0), timedelta(seconds=1)),
        (timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=5)),
        (timedelta(minutes=5), timedelta(hours=2), timedelta(minutes=30)),
        (timedelta(minutes=5), timedelta(days=4), DEFAULT_BACKOFF[-1]),
    ],
)
def test_delay_while_paused_grows_with_age(
    pause: timedelta, age: timedelta, expected: timedelta
) -> None:
    assert delay_while_paused(pause, age) == expected


@pytest.mark.parametrize(
    ("states", "was_attempted", "expected"),
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
def test_submission_state_follows_entry_states(
    states: list[DeliveryState], was_attempted: bool, expected: SubmissionState
) -> None:
    assert (
        state_from_deliveries(states, SubmissionState.SCHEDULED, was_attempted=was_attempted)
        is expected
    )


def test_dsn_is_machine_readable(environment: Environment) -> None:
    now = environment.now()
    recipients = [
        JobRecipient(1, "jörg@bücher.example", 1, now),
        JobRecipient(2, "gone@example.net", 1, now),
    ]
    job = DeliveryJob(1, 2, "q", 3, 4, 5, "ada@example.org", "example.net", now, recipients)
    results = {
        1: DeliveryResult.from_refusal(550, "5.6.7 No UTF-8"),
        2: DeliveryResult.from_refusal(554, "Unwanted\r\nX: y", "mx.example.net"),
    }
    raw = b"Message-ID: <1@example.org>\r\nBcc: eve@example.net\r\nSubject: Hi\r\n\r\nsecret"
    message = email.message_from_bytes(
        report_from_results(environment, job, results, raw), policy=policy.default
    )
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["References"] == "<1@example.org>"
    assert message.get_param("report-type") == "delivery-status"
    parts: list[Any] = list(message.iter_parts())
    _, status, original = parts
    message_fields, first_recipient, second_recipient = status.get_payload()
    assert message_fields["Reporting-MTA"] == "dns; mx.example.org"
    assert first_recipient["Final-Recipient"] == r"utf-8; j\x{F6}rg@b\x{FC}cher.example"
    assert (first_recipient["Status"], first_recipient["Action"]) == ("5.6.7", "failed")
    assert (second_recipient["Final-Recipient"], second_recipient["Status"]) == (
        "rfc822; gone@example.net",
        "5.0.0",
    )
    assert second_recipient["Diagnostic-Code"] == "smtp; 554 Unwanted X: y"
    assert "Subject: Hi" in original.get_payload()
    assert "eve@" not in original.get_payload()


async def test_blobs_of_sent_submission_are_deleted(
    ada: GraphQLClient, environment: Environment
) -> None:
    deferring_server = FakeSmtpServer({"later": "451 4.3.0 Later"})
    async with (
        run_smtp_server(deferring_server) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        sent_key = await queue_message(ada, NamedAddress("carol@example.net"))
        waiting_key = await queue_message(
            ada, NamedAddress("carol@example.net"), NamedAddress("later@example.net")
        )
        for key in (sent_key, waiting_key):
            await wait_until_tried(environment, key)
    assert (await housekeeping.run_housekeeping_round(environment)).sent > 0
    remaining = await environment.database.read(
        select(col(SubmissionBlob.submission_id)).distinct()
    )
    assert [row.submission_id for row in remaining] == [waiting_key]
    assert (await check_consistency(environment)).findings == []


async def test_damaged_message_is_deferred_until_repair(
    ada: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_smtp_server(FakeSmtpServer()) as server:
        key = await queue_message(ada)
        blobs = await select_rows(environment, "SELECT id, data FROM blobs ORDER BY id")
        await set_blob_data(environment, {key: data[:-1] for key, data in blobs})
        async with run_queue_worker(environment, relay_settings(server)):
            delivery_rows = await wait_until_tried(environment, key)
            assert {(row.state, row.last_response) for row in delivery_rows.values()} == {
                (State.DEFERRED, "4.3.0 The stored message is damaged")
            }
            lines = [
                record for record in caplog.records if record.msg == "A queued message is damaged"
            ]
            assert lines
            assert not [record for record in caplog.records if record.exc_info]
            await set_blob_data(environment, dict(blobs))
            clock.tick(hours=1)
            wake_queue_worker(environment)
            await poll_until(partial(is_entry_in_state, environment, key, "carol", State.RELAYED))


async def set_blob_data(environment: Environment, data: dict[int, bytes]) -> None:
    async with environment.write_session() as session:
        for key, content in data.items():
            change = update(Blob).where(col(Blob.id) == key).values(data=content)
            await (await session.connection()).execute(change)
