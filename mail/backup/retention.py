"""Delete the old backups of a target, and the objects that only they have."""

import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path

from mail.backup.object_list import (
    NamedObject,
    SortedEntries,
    iterate_stored_objects,
    read_listed_objects,
)
from mail.backup.target import OBJECTS_SUFFIX, REMAINS_MIN_AGE, BackupTarget
from mail.storage.blobs.object_names import is_admin_name

DELETE_BATCH_SIZE = 1000  # names


async def delete_old_backups(
    target: BackupTarget,
    keep_count: int,
    work_folder: Path,
    now: datetime,
    delete_key_copies: Callable[[Sequence[str]], None],
) -> Sequence[str]:
    """Delete all but the newest `keep_count` complete backups, and return their IDs.

    The copies of their keys are deleted at once, so that they don't outlast a later failure.

    Then delete the objects that no kept backup lists. An object that was copied in the last day
    stays, since another backup that runs now may have copied it. Raises BackupError, before
    anything is deleted, if a manifest, or a list of a kept backup, is missing or damaged.
    """
    manifests = await target.list_manifests()
    old, newest = manifests[:-keep_count], manifests[-keep_count:]
    lists = [
        await target.fetch_file(manifest.id, OBJECTS_SUFFIX, manifest.objects, work_folder)
        for manifest in newest
    ]
    old_ids = [manifest.id for manifest in old]
    await target.delete_backups(old_ids)
    delete_key_copies(old_ids)
    await target.delete_remains([manifest.id for manifest in newest], now)
    await _delete_unlisted_objects(target, lists, now)
    return old_ids


async def _delete_unlisted_objects(
    target: BackupTarget, lists: Sequence[Path], now: datetime
) -> None:
    """Delete the objects of a target that are in none of the lists."""
    admin_copies = {
        listed.copy_name
        for path in lists
        for listed in read_listed_objects(path)
        if is_admin_name(listed.name)
    }
    listed_names = SortedEntries(_iterate_listed_objects(lists))
    unlisted: list[str] = []
    async for stored in iterate_stored_objects(target.objects):
        if stored.name in admin_copies or now - stored.modified_at < REMAINS_MIN_AGE:
            continue
        if await listed_names.find(stored.name) is None:
            unlisted.append(stored.name)
        if len(unlisted) == DELETE_BATCH_SIZE:
            await target.objects.delete(unlisted)
            unlisted = []
    await target.objects.delete(unlisted)


async def _iterate_listed_objects(lists: Sequence[Path]) -> AsyncIterator[NamedObject]:
    """Yield the objects of all lists in the order of their names, without those below `admin/`.

    Each list must be sorted. An object that several lists have is yielded several times.
    """
    generators = (
        (
            NamedObject(listed.name, listed.size)
            for listed in read_listed_objects(path)
            if not is_admin_name(listed.name)
        )
        for path in lists
    )
    for named in heapq.merge(*generators):
        yield named
