"""Skeletons too large to be held for each message that an operation lists."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from mail.storage.blobs import blob_reader
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.memory_limit import ByteRoom
from mail.storage.blobs.message_layout import Gap, Literal, Skeleton, open_skeleton, read_layout
from models.store.columns import Picked
from models.store.object_store import Store

HELD = blob_reader.WHOLE  # bytes of a skeleton; a larger one is read when its bytes are needed
HEAD = 64 * 1024  # bytes in which the layout of nearly every skeleton fits
COPIES = 4  # packed, expanded, decoded and normalized bytes of one message, at most
READING = ByteRoom(128 << 20)  # bytes of large messages that one process holds for reading


class Outline(Skeleton):
    """The layout of a message whose bytes are not in memory; `blob` is the row of its skeleton."""

    def __init__(self, entries: list[Literal | Gap], blob: Picked) -> None:
        super().__init__(b"", entries)
        self.blob = blob

    def literal(self, entry: Literal, start: int, end: int) -> bytes:
        """Raise RuntimeError: the caller must use `Stored.examine` or `Stored.whole`."""
        raise RuntimeError(f"The bytes {start} to {end} of {entry} are not in memory")

    async def load(self, store: Store) -> Skeleton:
        """Read the whole skeleton, verified. Hold READING as long as it is used."""
        return open_skeleton(await blob_reader.read(store, self.blob))


async def read_outline(store: Store, blob: Picked) -> Skeleton:
    """Read the layout of a large skeleton; the whole, if its layout is not within HEAD."""
    head = blob_reader.stream(store, blob, 0, HEAD)
    async with aclosing(head):
        start = b"".join([chunk async for chunk in head])
    try:
        return Outline(read_layout(start, blob.size), blob)
    except Corrupt:
        return open_skeleton(await blob_reader.read(store, blob))


class LiteralReader:
    """Reads the literals of an outline between two offsets of the message, in their order.

    If they are all literals, the digest of the skeleton is verified before the last bytes.
    """

    def __init__(self, store: Store, outline: Outline, start: int, end: int) -> None:
        spans = [
            (entry.offset + max(start, entry.start) - entry.start,
             entry.offset + min(end, entry.end) - entry.start)
            for entry in outline.entries(start, end)
            if isinstance(entry, Literal)
        ]  # fmt: skip
        first, last = (spans[0][0], spans[-1][1]) if spans else (0, 0)
        self._skip = 0
        if start <= 0 and end >= len(outline):  # all of it is verified
            self._skip, first, last = first, 0, outline.blob.size
        self.stream = blob_reader.stream(store, outline.blob, first, last)
        self._rest = b""

    async def take(self, count: int) -> AsyncGenerator[bytes]:
        """Yield the next `count` bytes."""
        while count:
            while not self._rest or self._skip:
                chunk = self._rest or await anext(self.stream, b"")
                if not chunk:
                    raise Corrupt("The skeleton ends too soon")
                self._rest = chunk[self._skip :]
                self._skip -= len(chunk) - len(self._rest)
            found, self._rest = self._rest[:count], self._rest[count:]
            count -= len(found)
            yield found

    async def close(self) -> None:
        """End the stream; of a whole skeleton, verify it first."""
        await self.stream.aclose()
