"""Parts of unfinished uploads: objects that every server of the store can read.

On PostgreSQL any server can receive the next bytes of an upload. So bytes are only acknowledged
when they are an object and `Upload.received` was moved in the transaction that added the part.
The file of mail/files/resumable_file.py only saves a download: it can lack the bytes of earlier
requests, and the digest of each part shows whether it has them.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlmodel import col

from mail.files.resumable_file import Arriving, Lost
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.object_stores import object_name
from models.files.blobs import UploadPart
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked


@dataclass(frozen=True, slots=True)
class StoredPart:
    """An object with bytes of an upload. No row refers to it yet."""

    start: int
    size: int
    digest: str
    name: str

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.start + self.size

    def row(self, key: int, upload_id: int) -> dict[str, object]:
        """Return the column values of its row."""
        return {
            "id": key,
            "upload_id": upload_id,
            "start": self.start,
            "size": self.size,
            "digest": self.digest,
            "name": self.name,
        }


def is_shared(world: World) -> bool:
    """True if several servers can receive parts of one upload."""
    return world.database.dialect == "postgresql"


async def store(world: World, file: Arriving, start: int, end: int) -> StoredPart:
    """Store the bytes of the file from `start` to before `end` as an object.

    The bytes are held in memory.
    """
    content, digest = await asyncio.to_thread(_read, file, start, end)
    name = object_name(digest, world.key())
    await world.blobs.put(name, content)
    return StoredPart(start, end - start, digest, name)


def _read(file: Arriving, start: int, end: int) -> tuple[bytes, str]:
    content = file.read(start, end)
    return content, hashlib.sha256(content).hexdigest()


def delete_parts(turn: Turn, upload_ids: Sequence[int]) -> list[str]:
    """Delete the parts of uploads and return the names of their objects.

    Lock or change the rows of the uploads first: then no other request adds a part.
    """
    of_uploads = col(UploadPart.upload_id).in_(upload_ids)
    removal = delete(UploadPart).where(of_uploads).returning(col(UploadPart.name))
    return list(turn.connection.execute(removal).scalars())


async def complete_file(
    world: World, file: Arriving, upload_id: int, *, size: int, own_from: int
) -> str:
    """Write missing bytes of the upload to the file, and return the SHA-256 of the upload.

    Bytes from `request_start` on were received by this request. On PostgreSQL the bytes before are
    compared with the parts, and fetched if they differ. Raises UploadBytesLostError if a part can't
    be read.
    """
    whole, at = hashlib.sha256(), 0
    if own_from and is_shared(world):
        for part in await _earlier_parts(world, upload_id, own_from):
            if part.start != at:
                break
            whole = await _add_part(world, file, part, whole)
            at = part.start + part.size
        if at != own_from:
            raise Lost(f"no part has the bytes from {at} on")
    await asyncio.to_thread(file.hash, at, size, whole)
    return whole.hexdigest()


async def _earlier_parts(world: World, upload_id: int, before: int) -> Sequence[Picked]:
    part = select(*picked(UploadPart)).where(
        col(UploadPart.upload_id) == upload_id, col(UploadPart.start) < before
    )
    return await world.database.read(part.order_by(col(UploadPart.start)))


async def _add_part(
    world: World, file: Arriving, part: Picked, whole: "hashlib._Hash"
) -> "hashlib._Hash":
    """Return the hash of the upload up to the end of a part.

    If the file has other bytes there, the part is fetched into it. Raises UploadBytesLostError.
    """
    end = part.start + part.size
    found, extended = hashlib.sha256(), whole.copy()
    await asyncio.to_thread(file.hash, part.start, end, found, extended)
    if found.hexdigest() == part.digest:
        return extended
    await _fetch(world, file, part)
    found = hashlib.sha256()
    await asyncio.to_thread(file.hash, part.start, end, found, whole)
    if found.hexdigest() != part.digest:
        raise Lost(f"the object {part.name} has other bytes than were stored")
    return whole


async def _fetch(world: World, file: Arriving, part: Picked) -> None:
    """Write the object of a part to the file. Raises UploadBytesLostError."""
    at = part.start
    try:
        async with aclosing(world.blobs.stream(part.name, 0, part.size)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, at, chunk)
                at += len(chunk)
    except (KeyError, Corrupt) as problem:
        raise Lost(f"the object {part.name} cannot be read") from problem
