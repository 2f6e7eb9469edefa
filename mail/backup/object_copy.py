"""Copy objects to a target, unless an earlier backup of the target has them."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mail.backup.manifest import BackupFile
from mail.backup.object_list import (
    ListedObject,
    NamedObject,
    SortedEntries,
    iterate_listed_objects,
    iterate_stored_objects,
    read_named_objects,
    write_line,
)
from mail.backup.target import BackupTarget, copy_object_to_file
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_names import ADMIN_PREFIX
from models.store.object_store import BrowsableObjectStore, ObjectStoreProtocol

BATCH_SIZE = 256  # objects whose entries are in memory
CONCURRENT_COPIES = 8
MAX_BYTES_IN_MEMORY = 4 << 20  # bytes; a larger object is copied through a file
Entry = TypeVar("Entry")
Result = TypeVar("Result")
ReportObjects = Callable[[int, int], None]  # objects done, all objects


@dataclass(slots=True)
class CopiedObjects:
    """The counts of a copy, and the objects that could not be copied."""

    object_count: int = 0
    object_bytes: int = 0
    copied_count: int = 0
    copied_bytes: int = 0
    lost_names: list[str] = field(default_factory=list)  # missing, or with another size


@dataclass(frozen=True, slots=True)
class ObjectTransfer:
    """Copies single objects from one store to another, through a folder if they are large."""

    source: ObjectStoreProtocol
    destination: ObjectStoreProtocol
    work_folder: Path

    async def copy(
        self,
        named: NamedObject,
        destination_name: str,
        expected_sha256: str | None = None,
        *,
        is_stored: bool = False,
    ) -> ListedObject:
        """Copy an object, and return its entry. The destination syncs it to the disk.

        With `is_stored` the destination has it, so only its hash is computed. Raises KeyError if
        it is missing, and CorruptBlob if its size or hash differs.
        """
        if named.size <= MAX_BYTES_IN_MEMORY:
            data = await self.source.get(named.name)
            digest = hashlib.sha256(data).hexdigest()
            _require_equal(named, BackupFile(len(data), digest), expected_sha256)
            if not is_stored:
                await self.destination.put(destination_name, data)
            return ListedObject(destination_name, named.size, digest)
        with tempfile.TemporaryDirectory(dir=self.work_folder) as folder:
            path = Path(folder) / "object"
            read = await copy_object_to_file(self.source, named.name, named.size, path)
            _require_equal(named, read, expected_sha256)
            if not is_stored:
                await self.destination.put_file(destination_name, path)
        return ListedObject(destination_name, named.size, read.sha256)


@dataclass(frozen=True, slots=True)
class ObjectToCopy:
    """An object without an entry in the list of the earlier backup."""

    named: NamedObject
    is_stored: bool  # the target has an object of this name and size


@dataclass(frozen=True, slots=True)
class ObjectCopy:
    """A copy of the objects that a database names, with those of administrators."""

    source: ObjectStoreProtocol
    browsable_source: BrowsableObjectStore | None  # None: objects of administrators are unknown
    target: BackupTarget
    work_folder: Path

    async def copy_all(
        self,
        names_path: Path,
        known_list: Path | None,
        new_list: Path,
        *,
        object_count: int,
        report_objects: ReportObjects,
    ) -> CopiedObjects:
        """Copy the named objects and write their list. `known_list` is of an earlier backup.

        An object whose copy has the right size is not copied again. It is read if the earlier list
        does not have it, since an interrupted backup copied it.
        """
        copied = CopiedObjects()
        known = SortedEntries(iterate_listed_objects(known_list))
        stored = SortedEntries(iterate_stored_objects(self.target.objects))
        admin_objects = [entry async for entry in self._copy_admin_objects(copied)]
        with new_list.open("wb") as file:
            done_count = 0
            for batch in batches(read_named_objects(names_path)):
                entry_by_name: dict[str, ListedObject] = {}
                unlisted: list[ObjectToCopy] = []
                for named in batch:
                    entry, copy = await known.find(named.name), await stored.find(named.name)
                    is_stored = copy is not None and copy.size == named.size
                    if is_stored and entry is not None and entry.size == named.size:
                        entry_by_name[named.name] = entry
                    else:
                        unlisted.append(ObjectToCopy(named, is_stored))
                for new_entry in await self._copy_concurrently(unlisted, copied):
                    entry_by_name[new_entry.name] = new_entry
                for name in sorted(entry_by_name):
                    write_line(file, entry_by_name[name])
                    copied.object_count += 1
                    copied.object_bytes += entry_by_name[name].size
                done_count += len(batch)
                report_objects(done_count, object_count)
            for entry in admin_objects:  # at the end: no other name is searched after them
                write_line(file, entry)
                copied.object_count += 1
                copied.object_bytes += entry.size
        return copied

    async def _copy_concurrently(
        self, objects: Sequence[ObjectToCopy], copied: CopiedObjects
    ) -> list[ListedObject]:
        """Copy the objects, and return the entries of those that are not lost."""
        slots = asyncio.Semaphore(CONCURRENT_COPIES)

        async def copy_in_slot(wanted: ObjectToCopy) -> ListedObject | None:
            async with slots:
                return await self._copy_or_record_loss(wanted, copied)

        entries = await gather_or_cancel([copy_in_slot(wanted) for wanted in objects])
        return [entry for entry in entries if entry is not None]

    async def _copy_or_record_loss(
        self, wanted: ObjectToCopy, copied: CopiedObjects
    ) -> ListedObject | None:
        """Copy an object, and return its entry; None if it is missing or has another size."""
        named = wanted.named
        try:
            transfer = ObjectTransfer(self.source, self.target.objects, self.work_folder)
            entry = await transfer.copy(named, named.name, is_stored=wanted.is_stored)
        except (KeyError, CorruptBlob):
            copied.lost_names.append(named.name)
            return None
        if not wanted.is_stored:
            copied.copied_count += 1
            copied.copied_bytes += named.size
        return entry

    async def _copy_admin_objects(self, copied: CopiedObjects) -> AsyncIterator[ListedObject]:
        """Copy the objects of administrators that the target does not have; yield all of them.

        An administrator can replace them, so each of them is read.
        """
        if self.browsable_source is None:
            return
        async for stored in iterate_stored_objects(self.browsable_source, ADMIN_PREFIX):
            with tempfile.TemporaryDirectory(dir=self.work_folder) as folder:
                path = Path(folder) / "object"
                found = await self.source.size(stored.name)  # it can be replaced since the list
                try:
                    read = await copy_object_to_file(self.source, stored.name, found or 0, path)
                except KeyError:  # deleted since it was listed
                    continue
                if not read.sha256:  # replaced twice
                    copied.lost_names.append(stored.name)
                    continue
                entry = ListedObject(stored.name, read.size, read.sha256)
                if await self.target.objects.size(entry.copy_name) != entry.size:
                    await self.target.objects.put_file(entry.copy_name, path)
                    copied.copied_count += 1
                    copied.copied_bytes += entry.size
            yield entry


def _require_equal(named: NamedObject, found: BackupFile, expected_sha256: str | None) -> None:
    if found.size != named.size:
        raise CorruptBlob(f"The object {named.name} has {found.size} bytes, not {named.size}")
    if expected_sha256 is not None and found.sha256 != expected_sha256:
        raise CorruptBlob(f"The bytes of the object {named.name} have changed")


def batches(objects: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the objects in lists of at most 256."""
    iterator = iter(objects)
    while batch := list(islice(iterator, BATCH_SIZE)):
        yield batch


async def gather_or_cancel(copies: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Wait for all copies. If one fails, the others are cancelled before the error is raised."""
    tasks = [asyncio.create_task(copy) for copy in copies]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
