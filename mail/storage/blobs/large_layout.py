"""Message layouts that are too large to be held for each message of a list."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from mail.storage.blobs import blob_reader
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.memory_limit import ByteRoom
from mail.storage.blobs.message_layout import Gap, Literal, Skeleton, open_skeleton, read_layout
from models.store.columns import Picked
from models.store.object_store import Store

HELD = blob_reader.WHOLE  # bytes; a larger layout is read when its bytes are needed
HEAD = 64 * 1024  # bytes that hold the entries of nearly every layout
COPIES = 4  # compressed, decompressed, decoded and normalized bytes of one message
READING = ByteRoom(128 << 20)  # bytes of large messages that one process reads at the same time


class Outline(Skeleton):
    """A message layout without its bytes in memory. `blob` is the row of the layout."""

    def __init__(self, entries: list[Literal | Gap], blob: Picked) -> None:
        super().__init__(b"", entries)
        self.blob = blob

    def literal(self, entry: Literal, start: int, end: int) -> bytes:
        """Raise RuntimeError: the bytes need `StoredMessage.examine` or `stream_raw`."""
        raise RuntimeError(f"The bytes {start} to {end} of {entry} are not in memory")

    async def load(self, store: Store) -> Skeleton:
        """Read and verify the whole layout. Hold READ_MEMORY while the result is used."""
        return open_skeleton(await blob_reader.read(store, self.blob))


async def read_outline(store: Store, blob: Picked) -> Skeleton:
    """Read the entries of a large layout; the whole layout if they exceed ENTRIES_READ_SIZE."""
    head = blob_reader.stream(store, blob, 0, HEAD)
    async with aclosing(head):
        start = b"".join([chunk async for chunk in head])
    try:
        return Outline(read_layout(start, blob.size), blob)
    except Corrupt:
        return open_skeleton(await blob_reader.read(store, blob))


class LiteralReader:
    """A reader of the literal bytes between two offsets of the message, in order.

    If the range is the whole message, the digest of the layout is verified before the last
    bytes.
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
        if start <= 0 and end >= len(outline):  # the whole layout is read and verified
            self._skip, first, last = first, 0, outline.blob.size
        self.stream = blob_reader.stream(store, outline.blob, first, last)
        self._rest = b""

    async def take(self, count: int) -> AsyncGenerator[bytes]:
        """Yield the next `count` bytes in chunks. Raises CorruptBlob if the layout ends before."""
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
        """Close the stream."""
        await self.stream.aclose()
