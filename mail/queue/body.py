"""The bytes of a message on its way."""

from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlmodel import col

from mail import pieces
from mail.blobs.errors import Corrupt
from mail.blobs.pack import open_skeleton, rebuild
from mail.queue.jobs import Job
from models.blobs import Blob, SubmissionBlob
from models.columns import Picked
from models.world import World

_NEEDED: Select[*tuple[Any, ...]] = (
    select(*pieces.COLUMNS)
    .join(SubmissionBlob, col(SubmissionBlob.blob_id) == col(Blob.id))
    .where(col(SubmissionBlob.submission_id) == bindparam("submission"))
)
_ROOT = _NEEDED.where(col(Blob.id) == bindparam("root"))
_PIECE = _NEEDED.where(col(Blob.digest) == bindparam("digest"))


async def message(world: World, job: Job) -> bytes:
    """The whole message, byte for byte as it was stored. Corrupt where it is lost or damaged."""

    async def piece(statement: Select[*tuple[Any, ...]], **named: Any) -> bytes:
        rows = await world.database.read(statement.params(submission=job.submission_id, **named))
        row: Picked | None = next(iter(rows), None)
        if row is None:
            raise Corrupt(f"The submission {job.submission_id} lacks a piece: {named}")
        return await pieces.read(world.blobs, row)

    skeleton = open_skeleton(await piece(_ROOT, root=job.blob_id))
    parts = rebuild(skeleton, lambda digest: piece(_PIECE, digest=digest))
    return b"".join([part async for part in parts])
