"""DSNs that the queue writes: their recipients, times and content."""

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
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail.dsn_messages import (
    SUBMITTED_MESSAGE,
    dsn_fields,
    send_with_dsn_request,
    submit_with_dsn_request,
)
from tests.support.mail.parsed_messages import parse_smtp_message
from tests.support.mail.stored_messages import newest_inbox_message
from tests.support.mail_servers.dsn_servers import DsnSmtpServer
from tests.support.mail_servers.queue_worker import (
    State,
    is_entry_in_state,
    load_inbox_rows,
    load_queue_entries,
    load_queued_messages,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server

TEMPORARY_REPLIES = {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"}


async def test_delay_notice_is_sent_once_after_four_hours(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer(dict(TEMPORARY_REPLIES))) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada)
        rows = await wait_until_tried(environment, key)
        assert await load_inbox_rows(ada) == []

        clock.tick(hours=3, minutes=59)
        wake_queue_worker(environment)
        await poll_until(lambda: has_attempts(environment, key, 2))
        rows = await load_queue_entries(environment, key)
        assert await load_inbox_rows(ada) == []
        created_at = rows["carol"].created_at
        assert {row.next_at for row in rows.values()} == {created_at + timedelta(hours=4)}

        clock.tick(minutes=2)
        wake_queue_worker(environment)
        await poll_until(lambda: has_attempts(environment, key, 3))
        (notice,) = await load_inbox_rows(ada)
        rows = await load_queue_entries(environment, key)
        assert {row.delay_reported_at for row in rows.values()} == {environment.now()}
        clock.tick(hours=10)
        wake_queue_worker(environment)
        await poll_until(lambda: has_attempts(environment, key, 4))
    assert len(await load_inbox_rows(ada)) == 1
    assert (notice.subject, notice.envelope_from) == ("Your message is delayed", "")
    assert "carol@example.net" in notice.preview
    raw = await newest_inbox_message(ada)
    message_fields, (carol, dave) = dsn_fields(parse_smtp_message(raw))
    assert message_fields["Reporting-MTA"] == "dns; mx.example.org"
    assert (carol["Action"], carol["Status"]) == ("delayed", "4.2.1")
    assert carol["Final-Recipient"] == "rfc822; carol@example.net"
    assert carol["Diagnostic-Code"] == "smtp; 450 4.2.1 Later"
    retry_until = parsedate_to_datetime(dave["Will-Retry-Until"])
    assert retry_until == (created_at + timedelta(days=5)).replace(microsecond=0)
    assert "450 4.2.1 Later" in raw.decode()


async def has_attempts(environment: Environment, key: int, count: int) -> bool:
    rows = (await load_queue_entries(environment, key)).values()
    return all(row.attempts == count and row.lease is None for row in rows)


async def test_delay_notice_setting_of_0_sends_none(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    options = replace(environment.options, queue_delay_notice_after=timedelta(0))
    environment.use_options_unless_outdated(CommittedOptions(options, 1))
    async with (
        run_smtp_server(FakeSmtpServer(dict(TEMPORARY_REPLIES))) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada)
        await wait_until_tried(environment, key)
        clock.tick(hours=30)
        wake_queue_worker(environment)
        await poll_until(lambda: has_attempts(environment, key, 2))
    assert await load_inbox_rows(ada) == []


async def test_delay_of_scheduled_message_counts_from_send_at(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer(dict(TEMPORARY_REPLIES))) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await queue_message(ada, send_at=environment.now() + timedelta(days=1))
        clock.tick(days=1, minutes=1)
        wake_queue_worker(environment)
        await wait_until_tried(environment, key)
    assert await load_inbox_rows(ada) == []


async def test_relayed_dsn_is_sent_for_server_without_dsn(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await send_with_dsn_request(ada)
        await wait_until_tried(environment, key)
        await poll_until(lambda: has_inbox_messages(ada))
    (dsn,) = await load_inbox_rows(ada)  # one DSN for both recipients
    assert dsn.subject == "Your message was relayed"
    _, (carol, dave) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert (carol["Action"], dave["Action"]) == ("relayed", "relayed")
    assert carol["Status"] == "2.0.0"
    assert "carol@example.net" in dsn.preview


async def has_inbox_messages(client: GraphQLClient, count: int = 1) -> bool:
    return len(await load_inbox_rows(client)) >= count


async def test_delivered_dsn_is_sent_for_local_delivery(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await send_with_dsn_request(ada, NamedAddress(bob.address))
        await wait_until_tried(environment, key)
        await poll_until(lambda: has_inbox_messages(ada))
    (dsn,) = await load_inbox_rows(ada)
    assert dsn.subject == "Your message was delivered"
    _, (row,) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert (row["Action"], row["Status"], row["Diagnostic-Code"]) == ("delivered", "2.0.0", None)


async def test_dsn_request_is_passed_to_server_with_dsn(
    ada: GraphQLClient, environment: Environment
) -> None:
    reporter = DsnSmtpServer()
    async with run_smtp_server(reporter), run_queue_worker(environment, relay_settings(reporter)):
        key = await send_with_dsn_request(ada)
        rows = await wait_until_tried(environment, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert await load_inbox_rows(ada) == []
    (_, mail), (_, carol), (_, dave) = reporter.dsn_parameters
    assert mail[0] == "RET=HDRS"
    (queue_id,) = await queue_ids(environment)
    assert mail[1].startswith(f"ENVID={queue_id}.")
    assert carol == ["NOTIFY=DELAY,FAILURE,SUCCESS", "ORCPT=rfc822;carol@example.net"]
    assert dave == ["NOTIFY=DELAY,FAILURE,SUCCESS", "ORCPT=rfc822;dave@example.net"]


async def queue_ids(environment: Environment) -> list[str]:
    return [
        row.queue_id for row in await environment.database.read(select(col(Submission.queue_id)))
    ]


async def test_message_without_dsn_request_has_envid_and_orcpt(
    ada: GraphQLClient, environment: Environment
) -> None:
    reporter = DsnSmtpServer()
    async with run_smtp_server(reporter), run_queue_worker(environment, relay_settings(reporter)):
        await wait_until_tried(
            environment, await queue_message(ada, NamedAddress("a+b=c@example.net"))
        )
    (_, mail), (_, rcpt) = reporter.dsn_parameters
    assert [word.partition("=")[0] for word in mail] == ["ENVID"]
    assert rcpt == ["ORCPT=rfc822;a+2Bb+3Dc@example.net"]


async def test_notify_never_sends_no_dsn(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    replies = {"carol": "550 5.1.1 No", "dave": "450 4.2.1 Later"}
    async with (
        run_smtp_server(FakeSmtpServer(replies)) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await submit_with_dsn_request(ada, NO_REPORTS)
        await wait_until_tried(environment, key)
        clock.tick(hours=5)
        wake_queue_worker(environment)
        await poll_until(lambda: has_second_attempt(environment, key))
        clock.tick(days=5)
        wake_queue_worker(environment)
        await poll_until(lambda: is_entry_in_state(environment, key, "dave", State.EXPIRED))
    assert await load_inbox_rows(ada) == []


async def has_second_attempt(environment: Environment, key: int) -> bool:
    row = (await load_queue_entries(environment, key))["dave"]
    return bool(row.attempts == 2 and row.lease is None)


async def test_notify_success_sends_no_failure_dsn(
    ada: GraphQLClient, environment: Environment
) -> None:
    replies = {"carol": "550 5.1.1 No"}
    async with (
        run_smtp_server(FakeSmtpServer(replies)) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_until_tried(
            environment,
            await submit_with_dsn_request(ada, DsnRequest(frozenset({NotifyCondition.SUCCESS}))),
        )
        await poll_until(lambda: has_inbox_messages(ada))
    (dsn,) = await load_inbox_rows(ada)
    assert dsn.subject == "Your message was relayed"
    assert "carol" not in dsn.preview


async def test_null_sender_gets_no_dsn(ada: GraphQLClient, environment: Environment) -> None:
    reporter = DsnSmtpServer({"carol": "550 No"})
    async with run_smtp_server(reporter), run_queue_worker(environment, relay_settings(reporter)):
        await wait_until_tried(
            environment, await submit_with_dsn_request(ada, ALL_REPORTS, sender="")
        )
    assert await load_inbox_rows(ada) == []
    assert await load_queued_messages(environment) == [SUBMITTED_MESSAGE]
    (_, mail), (_, carol), (_, dave) = reporter.dsn_parameters
    assert (mail, carol[0], dave[0]) == ([], "NOTIFY=NEVER", "NOTIFY=NEVER")


async def test_notify_failure_sends_no_delay_notice(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer(dict(TEMPORARY_REPLIES))) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        key = await submit_with_dsn_request(ada, DsnRequest(frozenset({NotifyCondition.FAILURE})))
        await wait_until_tried(environment, key)
        clock.tick(hours=9)
        wake_queue_worker(environment)
        await poll_until(lambda: has_attempts(environment, key, 2))
    assert await load_inbox_rows(ada) == []


def build_failure_dsn(
    environment: Environment,
    dsn_request: DsnRequest,
    *,
    sender: str = "ada@example.org",
    raw: bytes = SUBMITTED_MESSAGE,
) -> bytes:
    now = environment.now()
    recipients = [JobRecipient(1, "gone@example.net", 1, now, dsn_request=dsn_request)]
    job = DeliveryJob(1, 2, "q", 3, 4, 5, sender, "example.net", now, recipients)
    return report_from_results(
        environment, job, {1: DeliveryResult.from_refusal(550, "5.1.1 No", "mx.example.net")}, raw
    )


def test_dsn_contains_envid_and_original_recipient(environment: Environment) -> None:
    dsn_request = DsnRequest(None, "rfc822;first@example.com", "A B+C=1")
    message_fields, (row,) = dsn_fields(
        parse_smtp_message(build_failure_dsn(environment, dsn_request))
    )
    assert message_fields["Original-Envelope-Id"] == "A B+C=1"
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Remote-MTA"], row["Final-Log-ID"]) == ("dns; mx.example.net", "q")


def test_ret_full_returns_whole_message_if_small(
    environment: Environment,
) -> None:
    *_, original = parse_smtp_message(
        build_failure_dsn(environment, DsnRequest(ret=FULL))
    ).iter_parts()
    assert original.get_content_type() == "message/rfc822"
    assert original.get_content().get_content() == "secret\r\n"
    large_message = SUBMITTED_MESSAGE + b"x" * 900 * 2000
    for raw in (SUBMITTED_MESSAGE.partition(b"\r\n\r\n")[0], large_message):
        *_, header_part = parse_smtp_message(
            build_failure_dsn(environment, DsnRequest(ret=FULL), raw=raw)
        ).iter_parts()
        assert header_part.get_content_type() == "text/rfc822-headers"
    *_, header_part = parse_smtp_message(build_failure_dsn(environment, DsnRequest())).iter_parts()
    assert "secret" not in header_part.as_string()
    assert (
        len(
            list(
                parse_smtp_message(
                    build_failure_dsn(environment, DsnRequest(), raw=b"")
                ).iter_parts()
            )
        )
        == 2
    )


def test_dsn_of_non_ascii_message_is_ascii(environment: Environment) -> None:
    raw = "Message-ID: <1@example.org>\r\nSubject: Grüße\r\n\r\nHallo\r\n".encode()
    report = build_failure_dsn(environment, DsnRequest(), raw=raw)
    assert report.isascii()
    header_part: Any = list(parse_smtp_message(report).iter_parts())[2]
    assert "Subject: Grüße" in header_part.get_payload(decode=True).decode()


def test_dsn_to_non_ascii_address_is_global(environment: Environment) -> None:
    reported_message = ReportedMessage("jörg@example.org", environment.now(), "q", DsnRequest())
    result = DeliveryResult.from_refusal(550, "5.1.1 No", "mx.example.net")
    reported_recipients = [ReportedRecipient("çelik@bücher.example", DsnAction.FAILED, result)]
    raw = "Subject: Grüße\r\n\r\nHallo\r\n".encode()
    message = parse_smtp_message(
        build_report(environment, reported_message, reported_recipients, raw)
    )
    content_types = [part.get_content_type() for part in message.iter_parts()]
    assert content_types == [
        "text/plain",
        "message/global-delivery-status",
        "message/global-headers",
    ]
    assert (
        "Final-Recipient: utf-8; çelik@bücher.example"
        in build_report(environment, reported_message, reported_recipients, raw).decode()
    )


def test_server_response_adds_no_dsn_field(environment: Environment) -> None:
    result = DeliveryResult.from_refusal(
        550, "No\r\nFinal-Recipient: rfc822; eve@x\r\n\r\n--\x00\x1b", "mx"
    )
    reported_recipients = [ReportedRecipient("gone@example.net", DsnAction.FAILED, result)]
    reported_message = ReportedMessage("ada@example.org", environment.now(), "q", DsnRequest())
    message = parse_smtp_message(
        build_report(environment, reported_message, reported_recipients, SUBMITTED_MESSAGE)
    )
    _, rows = dsn_fields(message)
    assert [row["Final-Recipient"] for row in rows] == ["rfc822; gone@example.net"]
    text = next(message.iter_parts()).get_content()
    assert "\r\n\r\n--" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("result", "action", "expected_status"),
    [
        (DeliveryResult.from_refusal(550, "5.7.1 No"), DsnAction.FAILED, "5.7.1"),
        (DeliveryResult.from_refusal(550, "No"), DsnAction.FAILED, "5.0.0"),
        (DeliveryResult(DeliveryState.EXPIRED, 451, "4.3.0 Later"), DsnAction.FAILED, "4.4.7"),
        (DeliveryResult(DeliveryState.RELAYED, 250, "OK"), DsnAction.RELAYED, "2.0.0"),
        (DeliveryResult(DeliveryState.RELAYED, 250, "2.6.0 OK"), DsnAction.RELAYED, "2.6.0"),
    ],
)
def test_dsn_status_of_each_delivery_result(
    environment: Environment, result: DeliveryResult, action: DsnAction, expected_status: str
) -> None:
    reported_message = ReportedMessage("ada@example.org", environment.now(), "q", DsnRequest())
    reported_recipients = [ReportedRecipient("gone@example.net", action, result)]
    _, (row,) = dsn_fields(
        parse_smtp_message(
            build_report(environment, reported_message, reported_recipients, SUBMITTED_MESSAGE)
        )
    )
    assert row["Status"] == expected_status


async def test_copy_by_bcc_rule_gets_no_dsn(ada: GraphQLClient, environment: Environment) -> None:
    key = await submit_with_dsn_request(ada, ALL_REPORTS)
    async with environment.write_session(ada.user.id) as session:
        statement = update(Submission).where(col(Submission.id) == key).values(copy_of=1)
        await session.exec(statement)
    async with (
        run_smtp_server(FakeSmtpServer({"carol": "550 No"})) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_until_tried(environment, key)
    assert await load_inbox_rows(ada) == []
    assert len(await environment.database.read(select(col(QueueEntry.id)))) == 2


MESSAGE_SEND = """mutation ($input: MessageSendInput!) {
  messageSend(input: $input) { submissions { queueId } errors { code message } } }"""


@pytest.mark.parametrize(
    ("request_dsn", "notify"), [(True, "DELAY,FAILURE,SUCCESS"), (False, None)]
)
async def test_request_dsn_of_message_send_is_queued(
    ada: GraphQLClient, environment: Environment, request_dsn: bool, notify: str | None
) -> None:
    send_input = {"to": [{"address": "carol@example.net"}], "text": "Hi", "requestDsn": request_dsn}
    payload = (await ada(MESSAGE_SEND, input=send_input))["messageSend"]
    assert payload["errors"] == []
    rows = await environment.database.read(select(col(QueueEntry.notify), col(QueueEntry.orcpt)))
    assert [tuple(row) for row in rows] == [(notify, None)]
