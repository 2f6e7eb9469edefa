"""Read the bytes of a queued message: completely, or in pieces if it is large."""

from contextlib import aclosing

from mail.envelope.delivery_jobs import Job
from mail.queue.dsn_writer import HEAD
from mail.storage import message_content
from mail.storage.blobs.errors import Corrupt
from mail.storage.message_content import Stored, gathered
from models.runtime.environment import World

LARGE = 1 << 20  # larger messages are streamed to other servers


async def stored(world: World, job: Job) -> Stored:
    """Open the stored message of a job. Reading it raises Corrupt if it is damaged."""
    return await message_content.submitted(world, job.submission_id, job.blob_id)


async def message(world: World, job: Job) -> bytes:
    """Read the whole message of a job. Raises Corrupt if it is missing or damaged."""
    return await gathered((await stored(world, job)).whole())


async def head(world: World, job: Job) -> bytes:
    """Read the beginning of a message, as a DSN needs it. Empty if the message is damaged."""
    found = b""
    try:
        async with aclosing((await stored(world, job)).whole()) as pieces:
            async for piece in pieces:
                found += piece
                if len(found) > HEAD:
                    break
    except Corrupt:
        return b""
    return found
