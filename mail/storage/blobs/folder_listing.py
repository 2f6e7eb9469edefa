"""Ordered lists of the objects and folders below the folder of a store."""

import heapq
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from stat import S_ISREG

from mail.storage.blobs.object_names import is_visible_folder, is_visible_name
from models.store.object_store import ObjectRange, StoredObject

NAMES_PER_SCAN = 1000  # names of one folder that are in memory; more are read by another scan


def objects_in_range(folder: Path, object_range: ObjectRange) -> Sequence[StoredObject]:
    """Return the visible objects of a range, in its order."""
    return list(islice(_iterate_objects(folder, "", object_range), object_range.limit))


def folders_in_range(folder: Path, object_range: ObjectRange) -> Sequence[str]:
    """Return the folders with objects directly below the prefix of a range, in its order."""
    folders = (
        key
        for key in _iterate_keys(folder, object_range.prefix, object_range, folders_only=True)
        if object_range.is_beyond_cursor(key) and _has_objects(folder, key)
    )
    return list(islice(folders, object_range.limit))


def find_object(folder: Path, name: str) -> StoredObject | None:
    """Return the entry of an object with its version, or None if it does not exist."""
    try:
        facts = (folder / name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not S_ISREG(facts.st_mode):
        return None
    modified_at = datetime.fromtimestamp(facts.st_mtime, UTC)
    version = f"{facts.st_mtime_ns:x}-{facts.st_size:x}-{facts.st_ino:x}"
    return StoredObject(name, modified_at, facts.st_size, version)


def delete_empty_parents(folder: Path, name: str) -> None:
    """Delete the folders of a deleted object that are empty, up to the first part of its name."""
    parents = name.split("/")[1:-1]
    for count in range(len(parents), 0, -1):
        path = folder.joinpath(name.split("/", 1)[0], *parents[:count])
        try:
            path.rmdir()
        except OSError:  # not empty, or already deleted
            return


def _has_objects(folder: Path, level: str) -> bool:
    return next(_iterate_objects(folder, level, ObjectRange(level, 1)), None) is not None


def _iterate_objects(
    folder: Path, level: str, object_range: ObjectRange
) -> Generator[StoredObject]:
    """Yield the objects of a range below a folder, which is empty or ends with a slash."""
    for key in _iterate_keys(folder, level, object_range):
        if key.endswith("/"):
            yield from _iterate_objects(folder, key, object_range)
        elif (stored := find_object(folder, key)) is not None:  # else it was deleted since
            yield stored._replace(version="")


def _iterate_keys(
    folder: Path, level: str, object_range: ObjectRange, *, folders_only: bool = False
) -> Iterator[str]:
    """Yield the names of objects and folders directly below a folder, in the order of the range.

    A folder has a slash at its end: so names are in the order of their bytes on every level.
    """
    select = heapq.nlargest if object_range.is_descending else heapq.nsmallest
    last_key: str | None = None
    while True:
        beyond_last = object_range._replace(cursor=last_key)
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / level) as entries:
            keys = select(
                NAMES_PER_SCAN,
                (
                    key
                    for key in (_key_of_entry(level, entry) for entry in entries)
                    if (key.endswith("/") or not folders_only)
                    and beyond_last.is_beyond_cursor(key)
                    and _can_be_in_range(key, object_range)
                ),
            )
            yield from keys
            if len(keys) == NAMES_PER_SCAN:
                last_key = keys[-1]
                continue
        return


def _key_of_entry(level: str, entry: os.DirEntry[str]) -> str:
    """Return the name of an entry, of a folder with a slash. Only shards can be symbolic links."""
    key = level + entry.name
    return f"{key}/" if entry.is_dir(follow_symlinks=not level) else key


def _can_be_in_range(name_or_folder: str, object_range: ObjectRange) -> bool:
    """True if the object is in the range, or if the folder can contain an object of the range."""
    prefix, cursor = object_range.prefix, object_range.cursor
    if not name_or_folder.endswith("/"):
        return (
            is_visible_name(name_or_folder)
            and name_or_folder.startswith(prefix)
            and object_range.is_beyond_cursor(name_or_folder)
        )
    is_on_path = name_or_folder.startswith(prefix) or prefix.startswith(name_or_folder)
    is_beyond_or_around_cursor = object_range.is_beyond_cursor(name_or_folder) or (
        cursor is not None and cursor.startswith(name_or_folder)
    )
    return is_visible_folder(name_or_folder) and is_on_path and is_beyond_or_around_cursor
