"""Verify that a target has all files and objects of a backup."""

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from mail.backup.manifest import BackupManifest
from mail.backup.object_copy import ReportObjects
from mail.backup.object_list import (
    ListedObject,
    SortedEntries,
    iterate_stored_objects,
    read_listed_objects,
)
from mail.backup.target import DATABASE_SUFFIX, OBJECTS_SUFFIX, BackupTarget
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_names import is_admin_name
from models.store.object_store import ObjectStoreProtocol


@dataclass(slots=True)
class BackupDamage:
    """A text for each damaged file or object, and the names of the copies that have other bytes."""

    problems: list[str] = field(default_factory=list)
    damaged_copies: list[str] = field(default_factory=list)


async def find_damage(
    target: BackupTarget,
    manifest: BackupManifest,
    object_list: Path,
    *,
    reads_objects: bool,
    report_objects: ReportObjects,
) -> BackupDamage:
    """Find the files and objects of a backup that are missing or damaged.

    By default compares the presence and size of each. With `reads_objects` also reads every object
    and compares its SHA-256.
    """
    damage = BackupDamage()
    problems = damage.problems
    for suffix, expected in (
        (DATABASE_SUFFIX, manifest.database),
        (OBJECTS_SUFFIX, manifest.objects),
    ):
        if await target.file_size(manifest.id, suffix) != expected.size:
            problems.append(f"The file {manifest.id}{suffix} is missing, or has another size.")
    stored = SortedEntries(iterate_stored_objects(target.objects))
    for count, listed in enumerate(read_listed_objects(object_list), start=1):
        if is_admin_name(listed.name):  # its copy has another name, out of the order
            size = await target.objects.size(listed.copy_name)
        else:
            found = await stored.find(listed.name)
            size = None if found is None else found.size
        if size is None:
            problems.append(f"The object {listed.name} is missing.")
        elif size != listed.size:
            problems.append(f"The object {listed.name} has {size} bytes instead of {listed.size}.")
            damage.damaged_copies.append(listed.copy_name)
        elif reads_objects and not await _has_hash(target.objects, listed):
            problems.append(f"The bytes of the object {listed.name} have changed.")
            damage.damaged_copies.append(listed.copy_name)
        report_objects(count, manifest.object_count)
    return damage


async def _has_hash(store: ObjectStoreProtocol, listed: ListedObject) -> bool:
    """True if the stored bytes of an object have the listed SHA-256."""
    digest = hashlib.sha256()
    try:
        async with aclosing(store.stream(listed.copy_name, 0, listed.size)) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
                await asyncio.sleep(0)
    except (KeyError, CorruptBlob):
        return False
    return digest.hexdigest() == listed.sha256
