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
from mail.storage.blobs.object_stores import FolderStore, object_name
from models.files.blobs import Blob, MessageBlob, SubmissionBlob, Upload
from models.messages.tables import Message, Thread
from models.runtime.environment import Environment
from models.store.database import Database
from models.submission.tables import Submission
from models.users.tables import User

OLD, YOUNG = timedelta(hours=25), timedelta(hours=23)


@dataclass
class Place:
    """A store with rows and one with objects, and ways to fill them."""

    world: Environment
    store: FolderStore
    user_id: int

    async def blob(self, content: bytes, age: timedelta, *, inline: bool = False) -> Blob:
        """A blob that nothing refers to; without an object when `inline`."""
        key = self.world.new_id()
        blob = Blob(
            id=key,
            tenant_id=1,
            digest=content_digest(content),
            size=len(content),
            stored_size=len(content),
            codec="raw",
            name=None if inline else object_name(content_digest(content), key),
            data=content if inline else None,
            created_at=self.world.now() - age,
        )
        if blob.name:
            await self.object(blob.name, content, age)
        await self.add(blob)
        return blob

    async def object(self, name: str, content: bytes, age: timedelta) -> str:
        await self.store.put(name, content)
        when = (self.world.now() - age).timestamp()
        os.utime(self.store.folder / name, (when, when))
        return name

    async def add(self, *rows: SQLModel) -> None:
        async with self.world.write_session() as session:
            for row in rows:
                session.add(row)
                await session.flush()

    async def left(self) -> tuple[set[int], set[str]]:
        """Ids of the rows and names of the objects that are there."""
        rows = await self.world.database.read(select(col(Blob.id)))
        return {row.id for row in rows}, {stored.name async for stored in self.store.list()}

    async def message(self, blob: Blob) -> Message:
        now = self.world.now()
        thread = Thread(id=self.world.new_id(), user_id=self.user_id, created_at=now)
        message = Message(
            id=self.world.new_id(),
            user_id=self.user_id,
            uid=1,
            modseq=1,
            thread_id=thread.id,
            blob_id=blob.id,
            digest=blob.digest,
            received_at=now,
            listed_at=now,
            saved_at=now,
            size=blob.size,
            structure=b"",
        )
        needs = MessageBlob(message_id=message.id, blob_id=blob.id)
        await self.add(thread, message, needs)
        return message

    async def submission(self, blob: Blob) -> Submission:
        submission = Submission(
            id=self.world.new_id(),
            user_id=self.user_id,
            tenant_id=0,
            queue_id="1",
            blob_id=blob.id,
            size=blob.size,
            envelope_from="ada@example.org",
            created_at=self.world.now(),
        )
        needs = SubmissionBlob(submission_id=submission.id, blob_id=blob.id)
        await self.add(submission, needs)
        return submission

    def upload(self, name: str) -> Upload:
        now = self.world.now()
        return Upload(
            id=self.world.new_id(),
            user_id=self.user_id,
            size=1,
            digest="",
            content_type="text/plain",
            blob_name=name,
            created_at=now,
            expires_at=now,
        )


@pytest.fixture
async def place(database: Database, tmp_path: Path) -> AsyncIterator[Place]:
    store = FolderStore(tmp_path / "blobs")
    now = datetime.now(UTC)  # as the files are dated by it
    world = Environment(database, object_store=store, signing_secret=bytes(32), now=lambda: now)
    user = User(
        id=world.new_id(),
        username="ada",
        username_key="ada",
        tenant_id=1,
        created_at=now,
        updated_at=now,
    )
    found = Place(world, store, user.id)
    await found.add(user)
    yield found
    await store.close()


async def test_what_nothing_needs_goes_with_its_object(place: Place) -> None:
    await place.blob(b"in the store", OLD)
    await place.blob(b"in the row", OLD, inline=True)
    assert await collect_garbage(place.world, place.store) == CollectedGarbage(2, 1, 22)
    assert await place.left() == (set(), set())


async def test_what_is_young_stays(place: Place) -> None:
    blob = await place.blob(b"young", YOUNG)
    name = await place.object(object_name("ab" * 32, 1), b"of a unit under way", YOUNG)
    assert await collect_garbage(place.world, place.store) == CollectedGarbage()
    assert await place.left() == ({blob.id}, {blob.name, name})
    assert await collect_garbage(
        place.world, place.store, grace_period=timedelta(hours=22)
    ) == CollectedGarbage(1, 2, 24)


async def test_what_messages_and_submissions_need_stays(place: Place) -> None:
    blobs = [await place.blob(bytes([index]), OLD) for index in range(4)]
    message = await place.message(blobs[0])
    submission = await place.submission(blobs[1])
    await place.add(
        MessageBlob(message_id=message.id, blob_id=blobs[2].id),
        SubmissionBlob(submission_id=submission.id, blob_id=blobs[3].id),
    )
    before = await place.left()
    assert await collect_garbage(place.world, place.store) == CollectedGarbage()
    assert await place.left() == before


def test_every_foreign_key_to_a_blob_counts() -> None:
    keys = {
        f"{table.name}.{column.name}"
        for table in SQLModel.metadata.tables.values()
        for column in table.columns
        if any(key.target_fullname == "blobs.id" for key in column.foreign_keys)
    }
    references: Any = REFERENCE_COLUMNS
    assert {f"{column.table.name}.{column.key}" for column in references} == keys


async def test_objects_that_no_row_names_go_and_uploads_stay(place: Place) -> None:
    digest = content_digest(b"abc")
    blob = await place.blob(b"abc", OLD)
    await place.message(blob)
    uploaded = await place.object(object_name(digest, 1), b"abc", OLD)
    await place.object(object_name(digest, 2), b"abc", OLD)
    await place.object("ab/.part-left", b"abc", OLD)
    await place.add(place.upload(uploaded))
    assert await collect_garbage(place.world, place.store, list_objects=False) == CollectedGarbage()
    assert await collect_garbage(place.world, place.store) == CollectedGarbage(0, 2, 6)
    assert await place.left() == ({blob.id}, {blob.name, uploaded})


async def test_more_than_a_round_goes_in_several(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.storage.blobs.garbage_collector.BATCH_SIZE", 3)
    kept = [await place.blob(bytes([index]), OLD) for index in range(4)]
    for blob in kept:
        await place.message(blob)
    for index in range(7):
        await place.blob(bytes([100 + index]), OLD)
        await place.object(object_name("cd" * 32, index), b"x", OLD)
    assert await collect_garbage(place.world, place.store) == CollectedGarbage(7, 14, 14)
    assert await place.left() == ({blob.id for blob in kept}, {blob.name for blob in kept})


async def test_a_blob_that_a_delivery_takes_up_meanwhile_stays(place: Place) -> None:
    needed = await place.blob(b"needed", OLD)
    blob = await place.blob(b"taken up", OLD)
    message = await place.message(needed)
    async with place.world.write_session() as session:
        session.add(MessageBlob(message_id=message.id, blob_id=blob.id))
        await session.flush()
        collecting = asyncio.create_task(collect_garbage(place.world, place.store))
        await asyncio.sleep(0.2)
    assert await asyncio.wait_for(collecting, 10) == CollectedGarbage()
    assert await place.store.get(str(blob.name)) == b"taken up"
