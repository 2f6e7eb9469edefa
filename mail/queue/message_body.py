"""The bytes of a message on its way: at once, or step by step where it is large."""

from contextlib import aclosing

from mail.envelope.delivery_jobs import Job
from mail.queue.dsn_writer import HEAD
from mail.storage import message_content
from mail.storage.blobs.errors import Corrupt
from mail.storage.message_content import Stored, gathered
from models.runtime.environment import World

LARGE = 1 << 20  # bytes; from here on it is not whole in memory where it goes elsewhere


async def stored(world: World, job: Job) -> Stored:
    """The message, byte for byte as it was stored; what reads it meets Corrupt."""
    return await message_content.submitted(world, job.submission_id, job.blob_id)


async def message(world: World, job: Job) -> bytes:
    """The whole message. Corrupt where it is lost or damaged."""
    return await gathered((await stored(world, job)).whole())


async def head(world: World, job: Job) -> bytes:
    """The beginning of the message: what a report has of it. Nothing where it is lost."""
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
