"""What a store of large bytes can do. The stores themselves: mail/blobs."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol


class Stored(NamedTuple):
    """An object as `list` tells of it."""

    name: str
    modified: datetime
    size: int


class Store(Protocol):
    """Objects by name. What `put` has returned from survives a power cut."""

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""

    async def put_file(self, name: str, path: Path) -> None:
        """Store what the file holds, without having it all in memory."""

    async def get(self, name: str) -> bytes:
        """The whole object; KeyError where there is none."""

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Its bytes from `start` up to, not with, `end`."""

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""

    def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """The same in pieces of at most 1 MiB."""

    async def delete(self, names: Sequence[str]) -> None:
        """Remove these; those that are not there are no error."""

    def list(self) -> AsyncIterator[Stored]:
        """All objects, and what interrupted writes have left."""

    async def close(self) -> None:
        """Let go of connections and threads."""
