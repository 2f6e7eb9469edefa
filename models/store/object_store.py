"""The interface of object stores, which mail/storage/blobs implements."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol


class StoredObject(NamedTuple):
    """An entry of the list of objects."""

    name: str
    modified_at: datetime
    size: int


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
