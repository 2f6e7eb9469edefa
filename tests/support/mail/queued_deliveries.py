"""Read the delivery queue without the API."""

import email
from email import policy
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.support.mail_servers.queue_worker import load_queued_messages
from tests.support.stores.counter_check import select_rows


async def queued_reply_recipients(environment: Environment) -> list[str]:
    """The recipients of all autoreplies in the order of their queue entries."""
    sql = (
        "SELECT d.recipient FROM queue_entries d JOIN submissions s ON s.id = d.submission_id "
        "WHERE s.envelope_from = '' ORDER BY d.id"
    )
    return [row[0] for row in await select_rows(environment, sql)]


async def queued_dsn_requests(environment: Environment) -> list[tuple[str | None, ...]]:
    """Sender, recipient and NOTIFY of each queue entry."""
    query = select(
        col(Submission.envelope_from), col(QueueEntry.recipient), col(QueueEntry.notify)
    ).join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
    return [
        tuple(row) for row in await environment.database.read(query.order_by(col(QueueEntry.id)))
    ]


async def only_queued_dsn(environment: Environment) -> tuple[Any, list[Any], str]:
    """The only queued DSN: fields of the message, fields of each recipient, and its subject."""
    (raw,) = await load_queued_messages(environment)
    message = email.message_from_bytes(raw, policy=policy.default)
    status_part: Any = list(message.iter_parts())[1]
    message_fields, *recipient_fields = status_part.get_payload()
    return message_fields, recipient_fields, str(message["Subject"])


async def queued_envelopes(environment: Environment) -> list[tuple[str, str]]:
    """Envelope sender and recipient of each queue entry."""
    sql = (
        "SELECT s.envelope_from, d.recipient FROM queue_entries d "
        "JOIN submissions s ON s.id = d.submission_id ORDER BY d.id"
    )
    return [(row[0], row[1]) for row in await select_rows(environment, sql)]
