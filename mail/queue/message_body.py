"""Read the bytes of a queued message: completely, or in pieces if it is large."""

from contextlib import aclosing

from mail.envelope.delivery_jobs import DeliveryJob
from mail.queue.dsn_writer import MAX_HEADER_BYTES
from mail.storage import message_open
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.message_content import StoredMessage, read_all
from models.runtime.environment import Environment

STREAMING_MIN_BYTES = 1 << 20  # larger messages are streamed to other servers


async def open_message(environment: Environment, job: DeliveryJob) -> StoredMessage:
    """Open the stored message of a job. Reading it raises CorruptBlob if it is damaged."""
    return await message_open.open_submission(environment, job.submission_id, job.blob_id)


async def read_message(environment: Environment, job: DeliveryJob) -> bytes:
    """Read the whole message of a job. Raises CorruptBlob if it is missing or damaged."""
    return await read_all((await open_message(environment, job)).stream_raw())


async def read_beginning_or_empty(environment: Environment, job: DeliveryJob) -> bytes:
    """Read the beginning of a message, as a DSN needs it. Empty if the message is damaged."""
    head_bytes = b""
    try:
        async with aclosing((await open_message(environment, job)).stream_raw()) as chunks:
            async for chunk in chunks:
                head_bytes += chunk
                if len(head_bytes) > MAX_HEADER_BYTES:
                    break
    except CorruptBlob:
        return b""
    return head_bytes
