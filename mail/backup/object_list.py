"""The list of the objects of a backup: a file of JSON lines in the order of the names.

Lists and listings of object stores are compared line by line, so memory use doesn't depend on the
number of objects.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Generic, NamedTuple, Protocol, TypeVar

import orjson

from mail.backup.manifest import BackupFile
from mail.storage.blobs.object_names import is_admin_name
from models.store.object_store import BrowsableObjectStore, ObjectRange, StoredObject

HASH_CHUNK_SIZE = 1 << 20  # bytes that are read at once
PAGE_SIZE = 1000  # names of one page of a listing


class NamedObject(NamedTuple):
    """An object that the copied database names, and the size that it must have."""

    name: str
    size: int


class ListedObject(NamedTuple):
    """An object of a backup: its stored bytes' size and SHA-256."""

    name: str
    size: int
    sha256: str

    @property
    def copy_name(self) -> str:
        """The name of the copy in the target.

        An administrator can replace an object under its name, so its copy is named after the
        content. The names of other objects are never used again.
        """
        if is_admin_name(self.name):
            return f"{self.sha256[:2]}/{self.sha256}.admin"
        return self.name


class HasName(Protocol):
    """Anything with the name of an object."""

    @property
    def name(self) -> str:
        """The name."""


Entry = TypeVar("Entry", bound=HasName)


class SortedEntries(Generic[Entry]):
    """Finds entries by name in an iterator in the order of names. Names must be asked in order."""

    def __init__(self, entries: AsyncIterator[Entry]) -> None:
        self._entries = entries
        self._current: Entry | None = None
        self._has_begun = False

    async def find(self, name: str) -> Entry | None:
        """Return the entry with this name, or None if there is none."""
        if not self._has_begun:
            self._has_begun = True
            self._current = await anext(self._entries, None)
        while self._current is not None and self._current.name < name:
            self._current = await anext(self._entries, None)
        return self._current if self._current is not None and self._current.name == name else None


def write_line(file: IO[bytes], values: NamedObject | ListedObject) -> None:
    """Append an entry to a list."""
    file.write(orjson.dumps(list(values), option=orjson.OPT_APPEND_NEWLINE))


def read_named_objects(path: Path) -> Iterator[NamedObject]:
    """Yield the entries of a list that has no hashes."""
    with path.open("rb") as file:
        for line in file:
            yield NamedObject(*orjson.loads(line))


def read_listed_objects(path: Path) -> Iterator[ListedObject]:
    """Yield the entries of a list."""
    with path.open("rb") as file:
        for line in file:
            yield ListedObject(*orjson.loads(line))


async def iterate_listed_objects(path: Path | None) -> AsyncIterator[ListedObject]:
    """Yield the entries of a list; nothing without a list."""
    if path is not None:
        for listed in read_listed_objects(path):
            yield listed


async def iterate_stored_objects(
    store: BrowsableObjectStore, prefix: str = ""
) -> AsyncIterator[StoredObject]:
    """Yield the objects of a store in the order of their names, with those of administrators."""
    cursor: str | None = None
    while True:
        page = await store.list_page(ObjectRange(prefix, PAGE_SIZE, cursor))
        for stored in page:
            yield stored
        if len(page) < PAGE_SIZE:
            return
        cursor = page[-1].name


def describe_file(path: Path) -> BackupFile:
    """Compute the size and hash of a file. It reads the whole file: run it in a thread."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_SIZE):
            digest.update(chunk)
            size += len(chunk)
    return BackupFile(size, digest.hexdigest())
