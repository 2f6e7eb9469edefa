"""The interface of object stores, which mail/storage/blobs implements."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


class StoredObject(NamedTuple):
    """An entry of the list of objects."""

    name: str
    modified_at: datetime
    size: int
    version: str = ""  # differs after each change of the object; only `find` sets it


class ObjectRange(NamedTuple):
    """The objects whose names begin with `prefix`, in the order of their names' bytes.

    With `cursor` only those after this name or, if the order is descending, before it. At most
    `limit` of them are read.
    """

    prefix: str
    limit: int
    cursor: str | None = None
    is_descending: bool = False

    def is_beyond_cursor(self, name: str) -> bool:
        """True if the name follows the cursor in the order of the range."""
        if self.cursor is None:
            return True
        return name < self.cursor if self.is_descending else name > self.cursor


class ObjectStoreProtocol(Protocol):
    """A store of objects by name. An object survives a power cut once `put` has returned."""

    async def put(self, name: str, data: bytes) -> None:
        """Store bytes under a name."""

    async def put_file(self, name: str, path: Path) -> None:
        """Store the contents of a file, without holding all of them in memory."""

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises KeyError if it does not exist."""

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but not including, `end`."""

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""

    def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end` in parts of at most 1 MiB."""

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects. Names that do not exist are no error."""

    def list(self) -> AsyncIterator[StoredObject]:
        """Yield all objects, and the remains of interrupted writes."""

    async def close(self) -> None:
        """Close connections and threads."""


@runtime_checkable
class BrowsableObjectStore(ObjectStoreProtocol, Protocol):
    """A single object store, whose objects can be listed page by page."""

    async def find(self, name: str) -> StoredObject | None:
        """Return the entry of an object with its version, or None if it does not exist."""

    async def list_page(self, object_range: ObjectRange) -> Sequence[StoredObject]:
        """List visible objects in the order of their names, with constant memory."""

    async def list_folders(self, object_range: ObjectRange) -> Sequence[str]:
        """List the folders directly below the prefix of a range, with a slash at their end.

        The prefix is empty or ends with a slash.
        """
