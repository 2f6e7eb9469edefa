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

from mail.files.resumable_file import ResumableFile, UploadBytesLostError
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_stores import new_object_name
from models.files.blobs import UploadPart
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, select_columns


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

    def column_values(self, part_id: int, upload_id: int) -> dict[str, object]:
        """Return the column values of its row."""
        return {
            "id": part_id,
            "upload_id": upload_id,
            "start": self.start,
            "size": self.size,
            "digest": self.digest,
            "name": self.name,
        }


def are_parts_shared(environment: Environment) -> bool:
    """True if several servers can receive parts of one upload."""
    return environment.database.dialect == "postgresql"


async def store_part(
    environment: Environment, file: ResumableFile, start: int, end: int
) -> StoredPart:
    """Store the bytes of the file from `start` to before `end` as an object.

    The bytes are held in memory.
    """
    content, digest = await asyncio.to_thread(_read_and_hash, file, start, end)
    name = new_object_name(digest, environment.new_id())
    await environment.object_store.put(name, content)
    return StoredPart(start, end - start, digest, name)


def _read_and_hash(file: ResumableFile, start: int, end: int) -> tuple[bytes, str]:
    content = file.read(start, end)
    return content, hashlib.sha256(content).hexdigest()


def delete_part_rows(transaction: DatabaseTransaction, upload_ids: Sequence[int]) -> list[str]:
    """Delete the parts of uploads and return the names of their objects.

    Lock or change the rows of the uploads first: then no other request adds a part.
    """
    of_uploads = col(UploadPart.upload_id).in_(upload_ids)
    removal = delete(UploadPart).where(of_uploads).returning(col(UploadPart.name))
    return list(transaction.connection.execute(removal).scalars())


async def fetch_missing_bytes_and_hash(
    environment: Environment, file: ResumableFile, upload_id: int, *, size: int, request_start: int
) -> str:
    """Write missing bytes of the upload to the file, and return the SHA-256 of the upload.

    Bytes from `request_start` on were received by this request. On PostgreSQL the bytes before are
    compared with the parts, and fetched if they differ. Raises UploadBytesLostError if a part can't
    be read.
    """
    upload_hash, position = hashlib.sha256(), 0
    if request_start and are_parts_shared(environment):
        for part in await _load_earlier_parts(environment, upload_id, request_start):
            if part.start != position:
                break
            upload_hash = await _fetch_part_if_differing_and_extend_hash(
                environment, file, part, upload_hash
            )
            position = part.start + part.size
        if position != request_start:
            raise UploadBytesLostError(f"No part has the bytes from {position} on.")
    await asyncio.to_thread(file.update_hashes, position, size, upload_hash)
    return upload_hash.hexdigest()


async def _load_earlier_parts(
    environment: Environment, upload_id: int, before_offset: int
) -> Sequence[ColumnRow]:
    part = select(*select_columns(UploadPart)).where(
        col(UploadPart.upload_id) == upload_id, col(UploadPart.start) < before_offset
    )
    return await environment.database.read(part.order_by(col(UploadPart.start)))


async def _fetch_part_if_differing_and_extend_hash(
    environment: Environment, file: ResumableFile, part: ColumnRow, upload_hash: "hashlib._Hash"
) -> "hashlib._Hash":
    """Return the hash of the upload up to the end of a part.

    If the file has other bytes there, the part is fetched into it. Raises UploadBytesLostError.
    """
    end = part.start + part.size
    part_hash, extended = hashlib.sha256(), upload_hash.copy()
    await asyncio.to_thread(file.update_hashes, part.start, end, part_hash, extended)
    if part_hash.hexdigest() == part.digest:
        return extended
    await _fetch_part(environment, file, part)
    part_hash = hashlib.sha256()
    await asyncio.to_thread(file.update_hashes, part.start, end, part_hash, upload_hash)
    if part_hash.hexdigest() != part.digest:
        raise UploadBytesLostError(f"The object {part.name} has other bytes than were stored.")
    return upload_hash


async def _fetch_part(environment: Environment, file: ResumableFile, part: ColumnRow) -> None:
    """Write the object of a part to the file. Raises UploadBytesLostError."""
    at = part.start
    try:
        async with aclosing(environment.object_store.stream(part.name, 0, part.size)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, at, chunk)
                at += len(chunk)
    except (KeyError, CorruptBlob) as problem:
        raise UploadBytesLostError(f"The object {part.name} can't be read.") from problem
