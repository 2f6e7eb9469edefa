"""A DSN for a user whose mailbox is full waits in the queue, like other mail."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail.dsn_messages import send_with_dsn_request
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail_servers.queue_worker import (
    State,
    is_entry_in_state,
    load_inbox_rows,
    load_submission_state,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server

pytestmark = pytest.mark.usefixtures("verify_consistency")
NOBODY = "nobody@example.org"
NO_NEXT_HOP = OutboundSettings(parse_next_hop("127.0.0.1:1"))
FAILED_SUBJECT = "Your message could not be delivered"


async def set_quota(client: GraphQLClient, quota: int | None) -> None:
    async with client.environment.write_session(client.user.id) as session:
        await session.exec(update(User).where(col(User.id) == client.user.id).values(quota=quota))


async def queue_undeliverable_message(client: GraphQLClient, sender: str | None = None) -> int:
    """Queue a message to an unknown user of this server, and fill the mailbox of its sender."""
    key = await queue_message(client, NamedAddress(NOBODY))
    if sender is not None:
        async with client.environment.write_session(client.user.id) as session:
            statement = update(Submission).where(col(Submission.id) == key)
            await session.exec(statement.values(envelope_from=sender))
    await set_quota(client, 10)
    return key


async def dsn_entries(environment: Environment) -> list[Any]:
    """The queue entries of DSNs."""
    statement = (
        select(
            col(QueueEntry.submission_id),
            col(QueueEntry.recipient),
            col(QueueEntry.state),
            col(QueueEntry.last_response),
        )
        .join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
        .where(col(Submission.envelope_from) == "")
    )
    return list(await environment.database.read(statement))


async def wait_until_deferred(environment: Environment) -> int:
    """Wait until the only DSN was tried and deferred; return its submission ID."""

    async def is_deferred() -> bool:
        return [entry.state for entry in await dsn_entries(environment)] == [State.DEFERRED]

    await poll_until(is_deferred)
    (entry,) = await dsn_entries(environment)
    assert (entry.recipient, entry.last_response) == ("ada@example.org", "4.2.2 Mailbox full")
    return int(entry.submission_id)


@pytest.mark.parametrize("sender", [None, "shared@far.example"])
async def test_dsn_is_delivered_when_the_mailbox_has_room(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, sender: str | None
) -> None:
    key = await queue_undeliverable_message(ada, sender)
    async with run_queue_worker(environment, NO_NEXT_HOP):
        await wait_until_tried(environment, key)
        dsn_id = await wait_until_deferred(environment)
        assert (await load_submission_state(environment, key)) is SubmissionState.FAILED
        assert await load_inbox_rows(ada) == []
        await set_quota(ada, None)
        clock.tick(hours=1)
        wake_queue_worker(environment)
        await poll_until(partial(is_entry_in_state, environment, dsn_id, "ada", State.DELIVERED))
    (row,) = await load_inbox_rows(ada)
    assert (row.subject, row.envelope_from) == (FAILED_SUBJECT, "")


async def test_expired_dsn_causes_no_further_dsn(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await queue_undeliverable_message(ada)
    async with run_queue_worker(environment, NO_NEXT_HOP):
        dsn_id = await wait_until_deferred(environment)
        clock.tick(seconds=(environment.options.queue_lifetime + timedelta(1)).total_seconds())
        wake_queue_worker(environment)
        await poll_until(partial(is_entry_in_state, environment, dsn_id, "ada", State.EXPIRED))
    assert await load_inbox_rows(ada) == []
    assert [to for _, to in await queued_envelopes(environment)] == [NOBODY, "ada@example.org"]
    await set_quota(ada, None)  # the consistency check compares it with the quota of the domain


async def test_success_dsn_is_queued_once(ada: GraphQLClient, environment: Environment) -> None:
    async with run_smtp_server(FakeSmtpServer()) as server:
        key = await send_with_dsn_request(ada)
        await set_quota(ada, 10)
        async with run_queue_worker(environment, relay_settings(server)):
            await wait_until_tried(environment, key)
            await wait_until_deferred(environment)
    statement = select(col(QueueEntry.id)).where(col(QueueEntry.pending_dsn_action).is_not(None))
    assert await environment.database.read(statement) == []
    await set_quota(ada, None)  # the consistency check compares it with the quota of the domain
