"""Two stores as one: hot, and cold for what is seldom read. The name of an object says which."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

from models.files.blobs import COLD
from models.store.object_store import Store, Stored


class Tiers:
    """An object store that keeps objects whose name ends with COLD in the cold store."""

    def __init__(self, hot: Store, cold: Store) -> None:
        self.hot = hot
        self.cold = cold

    def _of(self, name: str) -> Store:
        return self.cold if name.endswith(COLD) else self.hot

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""
        await self._of(name).put(name, data)

    async def put_file(self, name: str, path: Path) -> None:
        """Store what the file holds, without having it all in memory."""
        await self._of(name).put_file(name, path)

    async def get(self, name: str) -> bytes:
        """The whole object; KeyError where there is none."""
        return await self._of(name).get(name)

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Its bytes from `start` up to, not with, `end`."""
        return await self._of(name).get_range(name, start, end)

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        return await self._of(name).size(name)

    def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """The same in pieces of at most 1 MiB."""
        return self._of(name).stream(name, start, end)

    async def delete(self, names: Sequence[str]) -> None:
        """Remove these; those that are not there are no error."""
        for store in (self.hot, self.cold):
            theirs = [name for name in names if self._of(name) is store]
            if theirs:
                await store.delete(theirs)

    async def list(self) -> AsyncIterator[Stored]:
        """All objects of both, and what interrupted writes have left."""
        for store in (self.hot, self.cold):
            async for stored in store.list():
                yield stored

    async def close(self) -> None:
        """Let go of both."""
        await self.hot.close()
        await self.cold.close()
