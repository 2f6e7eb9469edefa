"""Garbage collection of blobs and objects without references."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import SQLModel, col, select

from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.garbage_collector import (
    REFERENCE_COLUMNS,
    CollectedGarbage,
    collect_garbage,
)
from mail.storage.blobs.object_stores import FolderStore, new_object_name
from models.files.blobs import Blob, MessageBlob, SubmissionBlob, Upload
from models.messages.tables import Message, Thread
from models.runtime.environment import Environment
from models.store.database import Database
from models.submission.tables import Submission
from models.users.tables import User
from tests.support.time_limits import HANG_SECONDS

OLD_AGE, YOUNG_AGE = timedelta(hours=25), timedelta(hours=23)


@dataclass
class BlobStoreFiller:
    """A database and an object store, with methods that fill them."""

    environment: Environment
    store: FolderStore
    user_id: int

    async def add_blob(self, content: bytes, age: timedelta, *, inline: bool = False) -> Blob:
        """Add a blob without references. With `inline` it has no object."""
        blob_id = self.environment.new_id()
        blob = Blob(
            id=blob_id,
            tenant_id=1,
            digest=content_digest(content),
            size=len(content),
            stored_size=len(content),
            codec="raw",
            name=None if inline else new_object_name(content_digest(content), blob_id),
            data=content if inline else None,
            created_at=self.environment.now() - age,
        )
        if blob.name:
            await self.put_object(blob.name, content, age)
        await self.add_rows(blob)
        return blob

    async def put_object(self, name: str, content: bytes, age: timedelta) -> str:
        await self.store.put(name, content)
        modified_at = (self.environment.now() - age).timestamp()
        os.utime(self.store.folder / name, (modified_at, modified_at))
        return name

    async def add_rows(self, *rows: SQLModel) -> None:
        async with self.environment.write_session() as session:
            for row in rows:
                session.add(row)
                await session.flush()

    async def list_remaining(self) -> tuple[set[int], set[str]]:
        """Return the IDs of the blob rows and the names of the objects that exist."""
        rows = await self.environment.database.read(select(col(Blob.id)))
        return {row.id for row in rows}, {stored.name async for stored in self.store.list()}

    async def add_message(self, blob: Blob) -> Message:
        now = self.environment.now()
        thread = Thread(id=self.environment.new_id(), user_id=self.user_id, created_at=now)
        message = Message(
            id=self.environment.new_id(),
            user_id=self.user_id,
            uid=1,
            modseq=1,
            thread_id=thread.id,
            blob_id=blob.id,
            sha256=blob.digest,
            received_at=now,
            listed_at=now,
            saved_at=now,
            size=blob.size,
            mime_structure=b"",
        )
        reference = MessageBlob(message_id=message.id, blob_id=blob.id)
        await self.add_rows(thread, message, reference)
        return message

    async def add_submission(self, blob: Blob) -> Submission:
        submission = Submission(
            id=self.environment.new_id(),
            user_id=self.user_id,
            tenant_id=0,
            queue_id="1",
            blob_id=blob.id,
            size=blob.size,
            envelope_from="ada@example.org",
            created_at=self.environment.now(),
        )
        reference = SubmissionBlob(submission_id=submission.id, blob_id=blob.id)
        await self.add_rows(submission, reference)
        return submission

    def new_upload(self, name: str) -> Upload:
        now = self.environment.now()
        return Upload(
            id=self.environment.new_id(),
            user_id=self.user_id,
            size=1,
            digest="",
            content_type="text/plain",
            blob_name=name,
            created_at=now,
            expires_at=now,
        )


@pytest.fixture
async def filler(database: Database, tmp_path: Path) -> AsyncIterator[BlobStoreFiller]:
    store = FolderStore(tmp_path / "blobs")
    now = datetime.now(UTC)  # since files have the system time
    environment = Environment(
        database, object_store=store, signing_secret=bytes(32), now=lambda: now
    )
    user = User(
        id=environment.new_id(),
        username="ada",
        username_key="ada",
        tenant_id=1,
        created_at=now,
        updated_at=now,
    )
    new_filler = BlobStoreFiller(environment, store, user.id)
    await new_filler.add_rows(user)
    yield new_filler
    await store.close()


async def test_unreferenced_blob_is_deleted_with_its_object(filler: BlobStoreFiller) -> None:
    await filler.add_blob(b"in the store", OLD_AGE)
    await filler.add_blob(b"in the row", OLD_AGE, inline=True)
    assert await collect_garbage(filler.environment, filler.store) == CollectedGarbage(2, 1, 22)
    assert await filler.list_remaining() == (set(), set())


async def test_young_blobs_and_objects_are_kept(filler: BlobStoreFiller) -> None:
    blob = await filler.add_blob(b"young", YOUNG_AGE)
    name = await filler.put_object(new_object_name("ab" * 32, 1), b"of a unit under way", YOUNG_AGE)
    assert await collect_garbage(filler.environment, filler.store) == CollectedGarbage()
    assert await filler.list_remaining() == ({blob.id}, {blob.name, name})
    assert await collect_garbage(
        filler.environment, filler.store, grace_period=timedelta(hours=22)
    ) == CollectedGarbage(1, 2, 24)


async def test_referenced_blobs_are_kept(filler: BlobStoreFiller) -> None:
    blobs = [await filler.add_blob(bytes([index]), OLD_AGE) for index in range(4)]
    message = await filler.add_message(blobs[0])
    submission = await filler.add_submission(blobs[1])
    await filler.add_rows(
        MessageBlob(message_id=message.id, blob_id=blobs[2].id),
        SubmissionBlob(submission_id=submission.id, blob_id=blobs[3].id),
    )
    remaining_before = await filler.list_remaining()
    assert await collect_garbage(filler.environment, filler.store) == CollectedGarbage()
    assert await filler.list_remaining() == remaining_before


def test_foreign_keys_to_blobs_are_reference_columns() -> None:
    foreign_keys = {
        f"{table.name}.{column.name}"
        for table in SQLModel.metadata.tables.values()
        for column in table.columns
        if any(key.target_fullname == "blobs.id" for key in column.foreign_keys)
    }
    references: Any = REFERENCE_COLUMNS
    assert {f"{column.table.name}.{column.key}" for column in references} == foreign_keys


async def test_objects_without_row_are_deleted_and_uploads_kept(filler: BlobStoreFiller) -> None:
    digest = content_digest(b"abc")
    blob = await filler.add_blob(b"abc", OLD_AGE)
    await filler.add_message(blob)
    uploaded = await filler.put_object(new_object_name(digest, 1), b"abc", OLD_AGE)
    await filler.put_object(new_object_name(digest, 2), b"abc", OLD_AGE)
    await filler.put_object("ab/.part-left", b"abc", OLD_AGE)
    await filler.add_rows(filler.new_upload(uploaded))
    assert (
        await collect_garbage(filler.environment, filler.store, list_objects=False)
        == CollectedGarbage()
    )
    assert await collect_garbage(filler.environment, filler.store) == CollectedGarbage(0, 2, 6)
    assert await filler.list_remaining() == ({blob.id}, {blob.name, uploaded})


async def test_garbage_is_collected_in_batches(
    filler: BlobStoreFiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.storage.blobs.garbage_collector.BATCH_SIZE", 3)
    kept_blobs = [await filler.add_blob(bytes([index]), OLD_AGE) for index in range(4)]
    for blob in kept_blobs:
        await filler.add_message(blob)
    for index in range(7):
        await filler.add_blob(bytes([100 + index]), OLD_AGE)
        await filler.put_object(new_object_name("cd" * 32, index), b"x", OLD_AGE)
    assert await collect_garbage(filler.environment, filler.store) == CollectedGarbage(7, 14, 14)
    assert await filler.list_remaining() == (
        {blob.id for blob in kept_blobs},
        {blob.name for blob in kept_blobs},
    )


async def test_blob_referenced_during_collection_is_kept(filler: BlobStoreFiller) -> None:
    referenced_blob = await filler.add_blob(b"needed", OLD_AGE)
    blob = await filler.add_blob(b"taken up", OLD_AGE)
    message = await filler.add_message(referenced_blob)
    async with filler.environment.write_session() as session:
        session.add(MessageBlob(message_id=message.id, blob_id=blob.id))
        await session.flush()
        collect_task = asyncio.create_task(collect_garbage(filler.environment, filler.store))
        await asyncio.sleep(0.2)
    assert await asyncio.wait_for(collect_task, HANG_SECONDS) == CollectedGarbage()
    assert await filler.store.get(str(blob.name)) == b"taken up"
