"""Running a queue worker, and reading queue entries and submissions."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.message import EmailMessage
from types import SimpleNamespace
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.envelope.delivery_jobs import QueueLimits
from mail.mime.header_encoding import NamedAddress
from mail.outbound.worker import run_until_stopped
from mail.queue import message_body
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from models.events.wakeups import QUEUE
from models.messages.tables import Message
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.submission.tables import Submission, SubmissionState
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import GraphQLClient, client_context
from tests.support.mail.parsed_messages import parse_message
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeSmtpServer,
    run_smtp_server,
    trusting_tls_context,
)
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS

POLL_INTERVAL = 60.0  # seconds; tests wake the worker instead
WORKER_LIMITS = QueueLimits(
    poll_interval=POLL_INTERVAL,
    connect_timeout=HANG_SECONDS,
    reply_timeout=HANG_SECONDS,
    final_reply_timeout=HANG_SECONDS,
)
REMOTE_RECIPIENTS = [NamedAddress("carol@example.net", "Carol"), NamedAddress("dave@example.net")]

State = DeliveryState


@asynccontextmanager
async def run_queue_worker(
    environment: Environment, route: OutboundSettings, limits: QueueLimits = WORKER_LIMITS
) -> AsyncGenerator[asyncio.Event]:
    """Run a queue worker in the background, and stop it at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_until_stopped(environment, route, stop=stop, limits=limits))
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, HANG_SECONDS)


async def queue_message(client: GraphQLClient, *recipients: NamedAddress, **fields: Any) -> int:
    """Queue a message and return the id of its submission."""
    request = SendRequest(
        to=recipients or REMOTE_RECIPIENTS, subject="Hello", text="Hi.\n.\n..dots\n", **fields
    )
    sent = await submission_create.compose_and_queue_message(client_context(client), request)
    assert sent.submission is not None
    return int(sent.submission.id)


async def load_queue_entries(environment: Environment, submission_id: int) -> dict[str, Any]:
    """Read the queue entries of a submission by the local part of the recipient."""
    statement = select(*core_table(QueueEntry).c).where(
        col(QueueEntry.submission_id) == submission_id
    )
    return {
        row.recipient.partition("@")[0]: row for row in await environment.database.read(statement)
    }


async def load_submission_state(environment: Environment, submission_id: int) -> SubmissionState:
    """Read the state of a submission."""
    statement = select(col(Submission.state)).where(col(Submission.id) == submission_id)
    (row,) = await environment.database.read(statement)
    return SubmissionState(row.state)


async def poll_until(is_true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until an async function returns true."""
    async with asyncio.timeout(HANG_SECONDS):
        while not await is_true():  # noqa: ASYNC110 - no event for rows
            await asyncio.sleep(0.01)


async def wait_until_tried(environment: Environment, submission_id: int) -> dict[str, Any]:
    """Return the queue entries when each was tried and none has a lease."""

    async def is_idle() -> bool:
        rows = (await load_queue_entries(environment, submission_id)).values()
        return all(row.lease is None and row.last_code is not None for row in rows)

    await poll_until(is_idle)
    return await load_queue_entries(environment, submission_id)


def wake_queue_worker(environment: Environment) -> None:
    """Wake the queue worker."""
    environment.wakeups.announce({QUEUE: environment.new_id()})


def relay_settings(server: FakeSmtpServer, query: str = "") -> OutboundSettings:
    """Settings that relay all messages to this server."""
    return OutboundSettings(
        parse_next_hop(f"smtp://127.0.0.1:{server.port}{query}"),
        trusted_context=trusting_tls_context(),
    )


async def load_inbox_rows(client: GraphQLClient) -> list[Any]:
    """Read the rows of the messages in the inbox."""
    statement = select(
        col(Message.subject),
        col(Message.content_type),
        col(Message.envelope_from),
        col(Message.preview),
        col(Message.bcc),
        col(Message.blob_id),
    ).where(col(Message.mailbox_id) == (await client.load_mailbox()).id)
    return list(await client.environment.database.read(statement.order_by(col(Message.id))))


async def load_queued_messages(environment: Environment) -> list[bytes]:
    """Read all messages of the queue, byte for byte, the oldest first."""
    columns = col(Submission.id), col(Submission.blob_id)
    messages = []
    for row in await environment.database.read(select(*columns).order_by(col(Submission.id))):
        job: Any = SimpleNamespace(submission_id=row.id, blob_id=row.blob_id)
        messages.append(await message_body.read_message(environment, job))
    return messages


async def load_submission_blob_id(environment: Environment, submission_id: int) -> int:
    """Read the blob id of a submission."""
    statement = select(col(Submission.blob_id)).where(col(Submission.id) == submission_id)
    (row,) = await environment.database.read(statement)
    return int(row.blob_id)


async def is_entry_in_state(
    environment: Environment, submission_id: int, name: str, expected_state: DeliveryState
) -> bool:
    """True if the entry of the recipient with this local part is in this state."""
    return (await load_queue_entries(environment, submission_id))[name].state is expected_state


async def wait_for_messages(server: FakeSmtpServer, count: int = 1) -> None:
    """Wait until the server has received this many messages."""

    async def has_received() -> bool:
        return len(server.messages) >= count

    await poll_until(has_received)


async def relay_queued_mail(
    environment: Environment, expected_count: int = 1
) -> list[tuple[Any, EmailMessage]]:
    """Deliver the queue to a test server. Return envelope and message of each mail."""
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):

        async def has_received_all() -> bool:
            return len(server.messages) >= expected_count

        await poll_until(has_received_all)
        for row in await select_rows(
            environment, "SELECT DISTINCT submission_id FROM queue_entries"
        ):
            await wait_until_tried(environment, row[0])
        return [(envelope, parse_message(envelope.raw)) for envelope in server.messages]
