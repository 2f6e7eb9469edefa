"""The bytes of a message on its way: at once, or step by step where it is large."""

from mail import contents
from mail.contents import Stored, gathered
from mail.queue.jobs import Job
from models.world import World

LARGE = 1 << 20  # bytes; from here on it is not whole in memory where it goes elsewhere


async def stored(world: World, job: Job) -> Stored:
    """The message, byte for byte as it was stored; what reads it meets Corrupt."""
    return await contents.submitted(world, job.submission_id, job.blob_id)


async def message(world: World, job: Job) -> bytes:
    """The whole message. Corrupt where it is lost or damaged."""
    return await gathered((await stored(world, job)).whole())
