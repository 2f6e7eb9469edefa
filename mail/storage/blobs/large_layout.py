"""Message layouts that are too large to be held for each message of a list."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from mail.storage.blobs import blob_reader
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.memory_limit import MemoryLimit
from mail.storage.blobs.message_layout import (
    BlobSpan,
    LiteralSpan,
    MessageLayout,
    parse_layout,
    parse_layout_entries,
)
from models.store.columns import ColumnRow
from models.store.object_store import ObjectStoreProtocol

# bytes; a larger layout is read when its bytes are needed
MAX_LAYOUT_IN_MEMORY = blob_reader.MAX_WHOLE_READ
ENTRIES_READ_SIZE = 64 * 1024  # bytes that hold the entries of nearly every layout
COPIES_PER_READ = 4  # compressed, decompressed, decoded and normalized bytes of one message
# bytes of large messages that one process reads at the same time
READ_MEMORY = MemoryLimit(128 << 20)


class LazyMessageLayout(MessageLayout):
    """A message layout without its bytes in memory. `blob` is the row of the layout."""

    def __init__(self, entries: list[LiteralSpan | BlobSpan], blob: ColumnRow) -> None:
        super().__init__(b"", entries)
        self.blob = blob

    def literal_bytes(self, span: LiteralSpan, start: int, end: int) -> bytes:
        """Raise RuntimeError: the bytes need `StoredMessage.run_on_source` or `stream_raw`."""
        raise RuntimeError(f"The bytes {start} to {end} of {span} are not in memory")

    async def load(self, store: ObjectStoreProtocol) -> MessageLayout:
        """Read and verify the whole layout. Hold READ_MEMORY while the result is used."""
        return parse_layout(await blob_reader.read_and_verify_content(store, self.blob))


async def read_lazy_or_whole_layout(store: ObjectStoreProtocol, blob: ColumnRow) -> MessageLayout:
    """Read the entries of a large layout; the whole layout if they exceed ENTRIES_READ_SIZE."""
    head = blob_reader.stream_content(store, blob, 0, ENTRIES_READ_SIZE)
    async with aclosing(head):
        start = b"".join([chunk async for chunk in head])
    try:
        return LazyMessageLayout(parse_layout_entries(start, blob.size), blob)
    except CorruptBlob:
        return parse_layout(await blob_reader.read_and_verify_content(store, blob))


class LiteralReader:
    """A reader of the literal bytes between two offsets of the message, in order.

    If the range is the whole message, the digest of the layout is verified before the last
    bytes.
    """

    def __init__(
        self, store: ObjectStoreProtocol, layout: LazyMessageLayout, start: int, end: int
    ) -> None:
        spans = [
            (entry.layout_offset + max(start, entry.start) - entry.start,
             entry.layout_offset + min(end, entry.end) - entry.start)
            for entry in layout.spans_between(start, end)
            if isinstance(entry, LiteralSpan)
        ]  # fmt: skip
        first, last = (spans[0][0], spans[-1][1]) if spans else (0, 0)
        self._skip = 0
        if start <= 0 and end >= len(layout):  # the whole layout is read and verified
            self._skip, first, last = first, 0, layout.blob.size
        self.stream = blob_reader.stream_content(store, layout.blob, first, last)
        self._rest = b""

    async def read_exactly(self, count: int) -> AsyncGenerator[bytes]:
        """Yield the next `count` bytes in chunks. Raises CorruptBlob if the layout ends before."""
        while count:
            while not self._rest or self._skip:
                chunk = self._rest or await anext(self.stream, b"")
                if not chunk:
                    raise CorruptBlob("The skeleton ends too soon")
                self._rest = chunk[self._skip :]
                self._skip -= len(chunk) - len(self._rest)
            data, self._rest = self._rest[:count], self._rest[count:]
            count -= len(data)
            yield data

    async def close(self) -> None:
        """Close the stream."""
        await self.stream.aclose()
