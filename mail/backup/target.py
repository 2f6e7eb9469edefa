"""The folder or bucket that has the backups of one store.

`objects/` has the objects of all backups, under the names of the object store. `db/` has three
files for each backup: `ID.database`, `ID.objects` (the list of its objects) and `ID.manifest.json`.
The manifest is written last: a backup without it is incomplete, and is ignored.
"""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mail.backup.errors import BackupError
from mail.backup.manifest import BackupFile, BackupManifest, manifest_from_json
from mail.backup.object_list import iterate_stored_objects
from mail.storage.blobs.object_names import PART_PREFIX
from mail.storage.blobs.object_stores import FolderStore, open_store
from models.store.object_store import BrowsableObjectStore, ObjectStoreProtocol

FILES_PREFIX = "db/"  # object names begin with two hexadecimal digits
MANIFEST_SUFFIX = ".manifest.json"
DATABASE_SUFFIX = ".database"
OBJECTS_SUFFIX = ".objects"
NAMED_ID_COUNT = 10  # IDs that the message about an unknown one names
REMAINS_MIN_AGE = timedelta(days=1)  # of files and objects of interrupted backups before removal


def backup_id(now: datetime) -> str:
    """The ID of a backup that begins now. IDs are in the order of time."""
    utc = now.astimezone(UTC)
    return f"{utc:%Y%m%dT%H%M%S}.{utc.microsecond // 1000:03}Z"


def folder_or_url(text: str) -> str:
    """The path of a folder, or the URL of a bucket as the settings of object stores take it."""
    parts = urlsplit(text)
    if parts.scheme == "file" and not parts.netloc:
        return unquote(parts.path)
    return text if "://" in text else str(Path(text).absolute())


def location_of_objects(target: str) -> str:
    """The URL or path of the objects in a target. The query of a URL is kept."""
    if "://" not in target:
        return str(Path(target) / "objects")
    parts = urlsplit(target)
    return parts._replace(path=f"{parts.path.rstrip('/')}/objects").geturl()


class BackupTarget:
    """The files and objects of a target. Raises ValueError if the URL is wrong."""

    def __init__(self, location: str) -> None:
        self.location = location.partition("?")[0]  # without options, for messages
        self._files = _browsable(open_store(location))
        self.objects = _browsable(open_store(location_of_objects(location)))

    @property
    def folder(self) -> Path | None:
        """The folder of the target; None for a bucket."""
        return self._files.folder if isinstance(self._files, FolderStore) else None

    async def list_ids(self) -> Sequence[str]:
        """List the IDs of the complete backups, the oldest first."""
        return [
            stored.name.removeprefix(FILES_PREFIX).removesuffix(MANIFEST_SUFFIX)
            async for stored in iterate_stored_objects(self._files, FILES_PREFIX)
            if stored.name.endswith(MANIFEST_SUFFIX)
        ]

    async def list_manifests(self) -> Sequence[BackupManifest]:
        """Read the manifests of the complete backups, the oldest first. Raises BackupError."""
        return [await self.read_manifest(id_) for id_ in await self.list_ids()]

    async def read_manifest(self, id_: str) -> BackupManifest:
        """Read the manifest of a backup. Raises BackupError if it is missing or damaged."""
        name = f"{FILES_PREFIX}{id_}{MANIFEST_SUFFIX}"
        try:
            return manifest_from_json(await self._files.get(name), f"{self.location}/{name}")
        except (KeyError, ValueError):
            ids = ", ".join((await self.list_ids())[-NAMED_ID_COUNT:])
            raise BackupError(
                f"{self.location} has no complete backup {id_}. The newest ones are: "
                f"{ids or 'none'}."
            ) from None

    async def write_manifest(self, manifest: BackupManifest) -> None:
        """Write the manifest, which completes a backup."""
        await self._files.put(f"{FILES_PREFIX}{manifest.id}{MANIFEST_SUFFIX}", manifest.to_json())

    async def store_file(self, id_: str, suffix: str, path: Path) -> None:
        """Store a file of a backup. A file on the disk of the target is moved, else copied."""
        name = f"{FILES_PREFIX}{id_}{suffix}"
        if self.folder is not None and path.is_relative_to(self.folder):
            await asyncio.to_thread(sync_and_rename, path, self.folder / name)
        else:
            await self._files.put_file(name, path)

    async def fetch_file(self, id_: str, suffix: str, expected: BackupFile, folder: Path) -> Path:
        """Copy a file of a backup to a folder, and return its path.

        Raises BackupError if the file is missing, or if its size or hash differs.
        """
        name = f"{FILES_PREFIX}{id_}{suffix}"
        path = folder / f"{id_}{suffix}"
        try:
            found = await copy_object_to_file(self._files, name, expected.size, path)
        except KeyError:
            raise BackupError(f"{self.location}/{name} is missing.") from None
        if found != expected:
            raise BackupError(f"{self.location}/{name} is damaged: its size or hash differs.")
        return path

    async def file_size(self, id_: str, suffix: str) -> int | None:
        """Return the size of a file of a backup, or None if it is missing."""
        return await self._files.size(f"{FILES_PREFIX}{id_}{suffix}")

    async def delete_backups(self, ids: Sequence[str]) -> None:
        """Delete the files of backups; the manifest first, so that no half backup is complete."""
        for suffix in (MANIFEST_SUFFIX, DATABASE_SUFFIX, OBJECTS_SUFFIX):
            await self._files.delete([f"{FILES_PREFIX}{id_}{suffix}" for id_ in ids])

    async def delete_remains(self, complete_ids: Sequence[str], now: datetime) -> None:
        """Delete what interrupted backups left: files after a day, and unfinished parts at once.

        `complete_ids` are the backups to keep. No other backup may write to the target.
        """
        kept_ids = set(complete_ids)
        remains = [
            stored.name
            async for stored in iterate_stored_objects(self._files, FILES_PREFIX)
            if now - stored.modified_at > REMAINS_MIN_AGE
            and stored.name.endswith((DATABASE_SUFFIX, OBJECTS_SUFFIX))
            and stored.name.removeprefix(FILES_PREFIX).rpartition(".")[0] not in kept_ids
        ]
        await self._files.delete(remains)
        for store in (self._files, self.objects):
            if isinstance(store, FolderStore):  # in a bucket, unfinished objects are invisible
                parts = [
                    stored.name
                    async for stored in store.list()
                    if stored.name.partition("/")[2].startswith(PART_PREFIX)
                ]
                await store.delete(parts)

    async def close(self) -> None:
        """Close connections and threads."""
        await self._files.close()
        await self.objects.close()


async def copy_object_to_file(
    store: ObjectStoreProtocol, name: str, expected_size: int, path: Path
) -> BackupFile:
    """Copy an object to a file, and return its size and hash. Raises KeyError if it is missing."""
    size = await store.size(name)
    if size is None:
        raise KeyError(name)
    if size != expected_size:
        return BackupFile(size, "")  # damaged: there is no need to read it
    digest = hashlib.sha256()
    with path.open("wb") as file:
        async for chunk in store.stream(name, 0, size):
            file.write(chunk)
            digest.update(chunk)
    return BackupFile(size, digest.hexdigest())


def _browsable(store: ObjectStoreProtocol) -> BrowsableObjectStore:
    if not isinstance(store, BrowsableObjectStore):
        raise BackupError("The target must be a folder or a bucket.")
    return store


def sync_and_rename(path: Path, destination: Path) -> None:
    """Sync a file to the disk and give it its name."""
    if not destination.parent.is_dir():
        destination.parent.mkdir()
        _sync_folder(destination.parent.parent)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.rename(destination)
    _sync_folder(destination.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
