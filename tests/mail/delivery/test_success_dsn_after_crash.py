"""Success DSNs of a process that ends before it has created them."""

import asyncio
import time
from dataclasses import replace

import pytest
from sqlalchemy import delete, select, update
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryResult
from mail.envelope.dsn_parameters import ALL_REPORTS, DsnRequest, NotifyCondition
from mail.maintenance import housekeeping
from mail.mime.header_encoding import NamedAddress
from mail.queue import pending_reports, recipient_leases
from mail.queue.delivery_results import (
    record_if_leased_and_store_reports,
    record_results_and_report,
)
from models.files.blobs import SubmissionBlob
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail.dsn_messages import (
    dsn_fields,
    send_with_dsn_request,
    submit_with_dsn_request,
)
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.parsed_messages import parse_smtp_message
from tests.support.mail.stored_messages import newest_inbox_message
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    is_entry_in_state,
    load_inbox_rows,
    load_queue_entries,
    load_queued_messages,
    poll_until,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server


class SimulatedCrash(BaseException):
    """The simulated end of the process."""


def crashing_environment(environment: Environment, fault_point: str = "owed") -> Environment:
    def reach_fault_point(reached_point: str) -> None:
        if reached_point == fault_point:
            raise SimulatedCrash

    return replace(environment, reach_fault_point=reach_fault_point)


async def are_delivered(environment: Environment, *local_parts: str) -> bool:
    """True if the recipients have their mail and no process holds a lease on it."""
    rows = await environment.database.read(
        select(col(QueueEntry.recipient), col(QueueEntry.delivered_at))
    )
    delivered_local_parts = {
        row.recipient.partition("@")[0] for row in rows if row.delivered_at is not None
    }
    return set(local_parts) <= delivered_local_parts


async def crash_after_delivery(
    environment: Environment, server: FakeSmtpServer, *local_parts: str
) -> None:
    """Let a worker crash right after it has recorded the deliveries."""
    async with run_queue_worker(crashing_environment(environment), relay_settings(server)):
        await poll_until(lambda: are_delivered(environment, *local_parts))
    assert await count_owed_reports(environment) == len(local_parts)


async def send_and_crash(ada: GraphQLClient, environment: Environment) -> int:
    """Send to Carol and Dave and crash before the DSN. Return the submission ID."""
    async with run_smtp_server(FakeSmtpServer()) as smtp_server:
        submission_id = await send_with_dsn_request(ada)
        await crash_after_delivery(environment, smtp_server, "carol", "dave")
    return submission_id


async def count_owed_reports(environment: Environment) -> int:
    statement = select(col(QueueEntry.id)).where(col(QueueEntry.pending_dsn_action).is_not(None))
    return len(await environment.database.read(statement))


async def is_no_report_owed(environment: Environment) -> bool:
    return not await count_owed_reports(environment)


async def send_owed_reports(environment: Environment) -> None:
    """Search for owed reports twice, and send those that no worker is sending."""
    await pending_reports.send_reports_still_owed(
        environment, await pending_reports.send_reports_still_owed(environment, ())
    )


async def test_owed_report_is_sent_once_by_a_later_search(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    async with run_smtp_server(FakeSmtpServer()) as smtp_server:
        submission_id = await send_with_dsn_request(ada)
        await crash_after_delivery(environment, smtp_server, "carol", "dave")
        rows = await load_queue_entries(environment, submission_id)
        assert {(row.state, row.pending_dsn_action) for row in rows.values()} == {
            (State.RELAYED, "relayed")
        }
        assert await load_inbox_rows(ada) == []
        async with run_queue_worker(
            environment, relay_settings(smtp_server)
        ):  # another worker may still be sending it
            await asyncio.sleep(0.2)
            assert await load_inbox_rows(ada) == []
        clock.tick(hours=-1)
        worker_options = replace(WORKER_LIMITS, report_poll_interval=0.1)
        async with (
            run_queue_worker(environment, relay_settings(smtp_server), worker_options),
            run_queue_worker(environment, relay_settings(smtp_server), worker_options),
        ):
            await poll_until(lambda: is_no_report_owed(environment))
        async with run_queue_worker(environment, relay_settings(smtp_server)):
            await asyncio.sleep(0.2)
    assert len(smtp_server.messages) == 1
    (dsn,) = await load_inbox_rows(ada)
    assert (dsn.subject, dsn.envelope_from) == ("Your message was relayed", "")
    message_fields, (carol, dave) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert message_fields["Reporting-MTA"] == "dns; mx.example.org"
    assert (carol["Final-Recipient"], carol["Action"]) == ("rfc822; carol@example.net", "relayed")
    assert dave["Status"] == "2.0.0"
    assert b"Subject: Hello" in await newest_inbox_message(ada)


async def test_running_worker_sends_an_owed_report(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    """The worker sends it at its second search, whatever the time of day is."""
    worker_options = replace(WORKER_LIMITS, report_poll_interval=3.0)
    async with run_smtp_server(FakeSmtpServer()) as smtp_server:
        await send_with_dsn_request(ada)
        await crash_after_delivery(environment, smtp_server, "carol", "dave")
        started_at = time.monotonic()
        async with run_queue_worker(environment, relay_settings(smtp_server), worker_options):
            clock.tick(hours=1)
            await asyncio.sleep(0.3)
            assert await load_inbox_rows(ada) == []
            clock.tick(hours=-2)
            await poll_until(lambda: is_no_report_owed(environment))
        assert time.monotonic() - started_at >= worker_options.report_poll_interval
    assert len(await load_inbox_rows(ada)) == 1


async def test_slow_worker_does_not_report_again(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await send_with_dsn_request(ada)
    (job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
    results = {to.delivery_id: DeliveryResult(State.RELAYED, 250, "OK") for to in job.recipients}
    with pytest.raises(SimulatedCrash):
        await record_results_and_report(crashing_environment(environment), job, results, b"")
    clock.tick(minutes=3)
    await send_owed_reports(environment)
    assert len(await load_inbox_rows(ada)) == 1
    # The slow worker continues.
    await record_if_leased_and_store_reports(
        environment, job, {}, {NotifyCondition.SUCCESS: results}, b""
    )
    assert len(await load_inbox_rows(ada)) == 1


async def test_simultaneous_searches_send_one_report(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    async with run_smtp_server(FakeSmtpServer()) as smtp_server:
        await send_with_dsn_request(ada)
        await crash_after_delivery(environment, smtp_server, "carol", "dave")
    clock.tick(minutes=3)
    await asyncio.gather(*(send_owed_reports(environment) for _ in range(3)))
    assert len(await load_inbox_rows(ada)) == 1


async def test_refused_recipient_beside_an_owed_report_is_reported(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    """The crash comes before the refusal is recorded, so that recipient is tried again."""
    async with run_smtp_server(FakeSmtpServer({"dave": "550 5.1.1 No"})) as smtp_server:
        submission_id = await send_with_dsn_request(ada)
        await crash_after_delivery(environment, smtp_server, "carol")
        clock.tick(minutes=3)
        async with run_queue_worker(
            environment,
            relay_settings(smtp_server),
            replace(WORKER_LIMITS, report_poll_interval=0.2),
        ):
            await poll_until(
                lambda: is_entry_in_state(environment, submission_id, "dave", State.BOUNCED)
            )
            await poll_until(lambda: is_no_report_owed(environment))
    subjects = sorted(dsn.subject for dsn in await load_inbox_rows(ada))
    assert subjects == ["Your message could not be delivered", "Your message was relayed"]


async def test_report_of_local_and_forwarded_delivery_is_correct(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await add_forwarding_address(environment, "list", "far@far.example", bob.address)
    async with run_smtp_server(FakeSmtpServer()) as smtp_server:
        await send_with_dsn_request(
            ada, NamedAddress(bob.address), NamedAddress("list@example.org")
        )
        await crash_after_delivery(environment, smtp_server, "bob", "list")
    clock.tick(minutes=3)
    await send_owed_reports(environment)
    assert [dsn.subject for dsn in await load_inbox_rows(ada)] == [
        "Your message was delivered",
        "Your message was relayed",
    ]
    _, (row,) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert (row["Action"], row["Status"]) == ("expanded", "2.0.0")


async def test_remote_sender_gets_the_owed_report(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    """The platform forwards the message, and no local inbox gets a report."""
    submission_id = await submit_with_dsn_request(ada, ALL_REPORTS, sender="far@far.example")
    async with environment.write_session(ada.user.id) as session:
        await session.exec(
            update(Submission).where(col(Submission.id) == submission_id).values(user_id=None)
        )
    async with run_smtp_server(FakeSmtpServer()) as smtp_server:
        await crash_after_delivery(environment, smtp_server, "carol", "dave")
    clock.tick(minutes=3)
    await send_owed_reports(environment)
    assert await load_inbox_rows(ada) == []
    dsn_body = (await load_queued_messages(environment))[-1]
    assert b"Action: relayed" in dsn_body
    assert b"To: far@far.example" in dsn_body
    assert await count_owed_reports(environment) == 0


@pytest.mark.parametrize("reason", ["nobody", "copy", "unasked"])
async def test_no_report_is_owed_without_a_sender_or_request(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, reason: str
) -> None:
    dsn_request = DsnRequest() if reason == "unasked" else ALL_REPORTS
    submission_id = await submit_with_dsn_request(
        ada, dsn_request, sender="" if reason == "nobody" else "ada@example.org"
    )
    if reason == "copy":
        async with environment.write_session(ada.user.id) as session:
            statement = update(Submission).where(col(Submission.id) == submission_id)
            await session.exec(statement.values(copy_of=1))
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(crashing_environment(environment), relay_settings(smtp_server)),
    ):
        await wait_until_tried(environment, submission_id)
    assert await count_owed_reports(environment) == 0
    clock.tick(minutes=3)
    await send_owed_reports(environment)
    assert await load_inbox_rows(ada) == []


async def test_message_blobs_are_kept_until_the_report_is_sent(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await send_and_crash(ada, environment)
    clock.tick(minutes=3)
    statement = select(col(SubmissionBlob.blob_id)).where(
        col(SubmissionBlob.submission_id) == submission_id
    )
    await housekeeping.run_housekeeping_round(environment)
    assert await environment.database.read(statement)
    await send_owed_reports(environment)
    await housekeeping.run_housekeeping_round(environment)
    assert not await environment.database.read(statement)


async def test_report_without_message_blobs_is_sent(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await send_and_crash(ada, environment)
    async with environment.write_session(ada.user.id) as session:
        condition = col(SubmissionBlob.submission_id) == submission_id
        await session.exec(delete(SubmissionBlob).where(condition))
        await session.exec(
            update(Submission).where(col(Submission.id) == submission_id).values(blob_id=1)
        )
    clock.tick(minutes=3)
    await send_owed_reports(environment)
    assert len(list(parse_smtp_message(await newest_inbox_message(ada)).iter_parts())) == 2


async def test_recipient_that_bounced_meanwhile_is_not_reported_as_success(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await send_and_crash(ada, environment)
    async with environment.write_session(ada.user.id) as session:
        condition = col(QueueEntry.recipient) == "carol@example.net"
        statement = update(QueueEntry).where(
            col(QueueEntry.submission_id) == submission_id, condition
        )
        await session.exec(statement.values(state=State.BOUNCED))
    clock.tick(minutes=3)
    await send_owed_reports(environment)
    _, (row,) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert row["Final-Recipient"] == "rfc822; dave@example.net"
    assert await count_owed_reports(environment) == 0
