"""Marks of blobs whose stored bytes were found damaged.

A delivery with the same bytes stores them again instead of using a marked blob. The mark is
`damaged_at` in the row of the blob, so that all processes and servers use it.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable
from datetime import datetime
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, update
from sqlmodel import col

from models.files.blobs import Blob
from models.store.columns import ColumnRow
from models.store.database import Database
from models.store.object_store import ObjectStoreProtocol

log = logging.getLogger(__name__)

MAX_KNOWN_OBJECTS = 10_000  # names of damaged objects that a process remembers


class BlobDamageMarks:
    """The damaged objects of a store that this process has found, and the writes of their marks."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self.database = database
        self._now = now
        self._has_mark_by_name: dict[str, bool] = {}  # of each damaged object, oldest first
        self._writes: dict[tuple[int, str | None], asyncio.Task[None]] = {}

    def is_damaged(self, object_name: str) -> bool:
        """True if this process has found the object damaged. Its mark can be unwritten yet."""
        return object_name in self._has_mark_by_name

    def add(self, blob: ColumnRow) -> None:
        """Remember a damaged blob, and write its mark in the background.

        The caller can be inside a transaction, which a write of its own would wait for.
        """
        key: tuple[int, str | None] = (blob.id, blob.name)
        if blob.name is not None:
            if self._has_mark_by_name.setdefault(blob.name, False):
                return
            if len(self._has_mark_by_name) > MAX_KNOWN_OBJECTS:
                del self._has_mark_by_name[next(iter(self._has_mark_by_name))]
        if key not in self._writes:
            write = asyncio.create_task(self._write_mark(*key), context=contextvars.Context())
            self._writes[key] = write
            write.add_done_callback(lambda _: self._writes.pop(key, None))

    async def _write_mark(self, blob_id: int, object_name: str | None) -> None:
        """Write the mark, unless the blob has other bytes by now."""
        statement = (
            update(Blob)
            .where(
                col(Blob.id) == blob_id,
                col(Blob.name).is_not_distinct_from(object_name),
                col(Blob.damaged_at).is_(None),
            )
            .values(damaged_at=self._now())
        )

        def mark(connection: Connection) -> None:
            connection.execute(statement).close()

        try:
            await self.database.run_transaction(mark)
        except Exception as problem:  # noqa: BLE001 - any outage: the next read tries it again
            extra = {"blob": blob_id, "problem": type(problem).__name__}
            log.warning("Could not mark a damaged object", extra=extra)
        else:
            if object_name in self._has_mark_by_name:
                self._has_mark_by_name[object_name] = True

    async def wait_for_writes(self) -> None:
        """Wait until the marks of all blobs that were added before are written."""
        if self._writes:
            await asyncio.wait(list(self._writes.values()))


_MARKS_BY_STORE: WeakKeyDictionary[ObjectStoreProtocol, BlobDamageMarks] = WeakKeyDictionary()


def register_damage_marks(
    store: ObjectStoreProtocol, database: Database, now: Callable[[], datetime]
) -> None:
    """Keep the marks of damaged objects of this store in this database."""
    marks = _MARKS_BY_STORE.get(store)
    if marks is None or marks.database is not database:
        _MARKS_BY_STORE[store] = BlobDamageMarks(database, now)


def add_damage_mark(store: ObjectStoreProtocol, blob: ColumnRow) -> None:
    """Mark a blob whose bytes in this store were found damaged."""
    if (marks := _MARKS_BY_STORE.get(store)) is not None:
        marks.add(blob)


def is_object_known_damaged(store: ObjectStoreProtocol, object_name: str) -> bool:
    """True if this process has found the object damaged."""
    marks = _MARKS_BY_STORE.get(store)
    return marks is not None and marks.is_damaged(object_name)


async def wait_for_damage_marks(store: ObjectStoreProtocol) -> None:
    """Wait until the marks of damaged objects of this store are in the database."""
    if (marks := _MARKS_BY_STORE.get(store)) is not None:
        await marks.wait_for_writes()
