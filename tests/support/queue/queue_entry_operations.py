"""Queue entries of accounts and of the platform, and their list."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.mime.header_encoding import NamedAddress
from mail.queue.enqueue import NewSubmission, SubmissionOwner, enqueue
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient
from tests.support.mail_servers.queue_worker import (
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server

QUEUE = """query ($filter: QueueFilter, $first: Int, $after: String) {
  queue(filter: $filter, first: $first, after: $after) {
    totalCount pageInfo { hasNextPage endCursor } nodes {
      id queueId queueName sender size arrivedAt nextAttemptAt lastError
      user { username } submission { id }
      recipients { recipient state queueName nextAttemptAt attempts } } } }"""
TEMPORARY_REPLIES = {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"}


async def list_entries(client: GraphQLClient, **arguments: Any) -> list[Any]:
    return list((await client(QUEUE, **arguments))["queue"]["nodes"])


async def load_queue_id(environment: Environment, submission_id: int) -> str:
    (row,) = await environment.database.read(
        select(col(Submission.queue_id)).where(col(Submission.id) == submission_id)
    )
    return str(row.queue_id)


async def enqueue_platform_message(
    environment: Environment, template_id: int, sender: str = ""
) -> int:
    """Enqueue a message of the platform with the bytes of another submission."""
    (row,) = await environment.database.read(
        select(col(Submission.blob_id), col(Submission.tenant_id), col(Submission.size)).where(
            col(Submission.id) == template_id
        )
    )
    submission = NewSubmission(
        sender, ["eve@example.net"], row.size, row.blob_id, [row.blob_id], None, environment.now()
    )
    return await environment.run_transaction(
        lambda transaction: enqueue(transaction, SubmissionOwner(None, row.tenant_id), submission),
        0,
    )


async def send_deferred(client: GraphQLClient, *recipients: NamedAddress) -> int:
    """Send a message that is deferred after one attempt."""
    async with (
        run_smtp_server(FakeSmtpServer(dict(TEMPORARY_REPLIES))) as smtp_server,
        run_queue_worker(client.environment, relay_settings(smtp_server)),
    ):
        submission_id = await queue_message(client, *recipients)
        await wait_until_tried(client.environment, submission_id)
    return submission_id
