"""The bytes of a message on its way."""

from sqlalchemy import select
from sqlmodel import col

from mail.blobs.codec import expand
from mail.blobs.pack import open_skeleton, rebuild
from mail.queue.jobs import Job
from models.blobs import Blob
from models.columns import Picked
from models.world import World

_COLUMNS = (col(Blob.codec), col(Blob.size), col(Blob.name), col(Blob.data))


async def message(world: World, job: Job) -> bytes:
    """The whole message, byte for byte as it was stored."""
    (root,) = await world.database.read(select(*_COLUMNS).where(col(Blob.id) == job.blob_id))

    async def fetch(digest: str) -> bytes:
        asked = select(*_COLUMNS).where(
            col(Blob.tenant_id) == job.tenant_id, col(Blob.digest) == digest
        )
        (row,) = await world.database.read(asked)
        return await _content(world, row)

    skeleton = open_skeleton(await _content(world, root))
    return b"".join([piece async for piece in rebuild(skeleton, fetch)])


async def _content(world: World, row: Picked) -> bytes:
    data = row.data if row.name is None else await world.blobs.get(row.name)
    return expand(row.codec, data, row.size)
