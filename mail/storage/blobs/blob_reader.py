"""Readers of one stored blob: whole and verified, or in steps that take little memory."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import zstandard

from mail.storage.blob_cache.cached_store import forget_object_if_store_has_cache
from mail.storage.blobs.compression import decompress, verify_digest
from mail.storage.blobs.errors import CorruptBlob
from models.files.blobs import Blob
from models.files.damage_marks import add_damage_mark
from models.store.columns import ColumnRow, select_columns
from models.store.object_store import ObjectStoreProtocol

COLUMNS = tuple(
    select_columns(Blob, ("id", "digest", "size", "stored_size", "codec", "name", "data"))
)
MAX_CHUNK_SIZE = 256 * 1024  # most bytes that `stream` yields at once
MAX_WHOLE_READ = 1024 * 1024  # uncompressed bytes; a blob up to this size is always read as a whole
THREAD_THRESHOLD = 64 * 1024  # bytes; from this size on a thread decompresses
# compressed bytes in memory: more than one step needs, see _decompressed_chunks
READ_AHEAD = 1024 * 1024


async def read_and_verify_content(store: ObjectStoreProtocol, blob: ColumnRow) -> bytes:
    """Read and verify the content of a blob. Raises CorruptBlob if it is lost or damaged.

    If the bytes come from the blob cache and are wrong, the object itself is read. A damaged
    blob is marked, so that the next delivery of these bytes stores them again.
    """
    try:
        return await _read_and_verify_once(store, blob)
    except CorruptBlob:
        if blob.name is None or not await forget_object_if_store_has_cache(store, blob.name):
            add_damage_mark(store, blob)
            raise
    try:
        return await _read_and_verify_once(store, blob)
    except CorruptBlob:
        add_damage_mark(store, blob)
        raise


async def _read_and_verify_once(store: ObjectStoreProtocol, blob: ColumnRow) -> bytes:
    packed = blob.data if blob.name is None else await _require_object_bytes(store, blob)
    if blob.size < THREAD_THRESHOLD:
        return _verified_content(blob, packed)
    return await asyncio.to_thread(_verified_content, blob, packed)


async def _require_object_bytes(store: ObjectStoreProtocol, blob: ColumnRow) -> bytes:
    try:
        return await store.get(blob.name)
    except KeyError as problem:
        raise _lost_object_error(blob) from problem


def _verified_content(blob: ColumnRow, stored_bytes: bytes) -> bytes:
    """Decompress the bytes and verify their digest. Raises the error of a damaged blob."""
    try:
        return verify_digest(blob.digest, decompress(blob.codec, stored_bytes, blob.size))
    except CorruptBlob as problem:
        raise _damaged_blob_error(blob, problem) from problem


def _lost_object_error(blob: ColumnRow) -> CorruptBlob:
    return CorruptBlob(f"The object {blob.name} of {blob.digest} is lost")


def _damaged_blob_error(blob: ColumnRow, reason: object) -> CorruptBlob:
    location = "row" if blob.name is None else f"object {blob.name}"
    return CorruptBlob(f"The {location} of {blob.digest} is damaged: {reason}")


async def stream_content(
    store: ObjectStoreProtocol, blob: ColumnRow, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield the content from `start` to `end`, at most 256 KiB at once.

    Raises CorruptBlob before the last bytes of a damaged blob, and marks the blob. A partial range
    of a blob over 1 MiB is not verified, since the digest covers the whole content.
    """
    end = blob.size if end is None else min(end, blob.size)
    if blob.size <= MAX_WHOLE_READ:
        content = await read_and_verify_content(store, blob)
        for at in range(start, end, MAX_CHUNK_SIZE):
            yield content[at : min(at + MAX_CHUNK_SIZE, end)]
        return
    chunks = _stream_unverified_range(store, blob, start, end)
    try:
        async with aclosing(
            _verified_chunks(blob, chunks) if end - start == blob.size else chunks
        ) as steps:
            async for step in steps:
                yield step
    except CorruptBlob:
        add_damage_mark(store, blob)
        if blob.name is not None:
            # the next call reads the object itself
            await forget_object_if_store_has_cache(store, blob.name)
        raise


async def _stream_unverified_range(
    store: ObjectStoreProtocol, blob: ColumnRow, start: int, end: int
) -> AsyncGenerator[bytes]:
    """Yield a range of the content without verifying the digest."""
    if blob.codec == "raw":
        packed = _stream_stored_bytes(store, blob, start, end)
        async with aclosing(packed):
            async for chunk in packed:
                for at in range(0, len(chunk), MAX_CHUNK_SIZE):
                    yield chunk[at : at + MAX_CHUNK_SIZE]
        return
    if blob.codec != "zstd":
        raise _damaged_blob_error(blob, f"there is no codec {blob.codec!r}")
    reached = 0
    async with aclosing(_decompressed_chunks(store, blob)) as steps:
        async for step in steps:
            reached += len(step)
            wanted_bytes = step[max(0, start - reached + len(step)) :]
            if wanted_bytes and reached > start:
                yield wanted_bytes[: len(wanted_bytes) - max(0, reached - end)]
            if reached >= end:
                return
    raise CorruptBlob(f"The content of {blob.digest} ends too soon")


async def _verified_chunks(blob: ColumnRow, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the chunks of a whole blob; the last one only after the digest is verified."""
    digest, last_chunk = hashlib.sha256(), b""
    async with aclosing(chunks):
        async for step in chunks:
            if last_chunk:
                yield last_chunk
            digest.update(step)
            last_chunk = step
    if digest.hexdigest() != blob.digest:
        raise CorruptBlob(f"The content of {blob.digest} has another digest")
    yield last_chunk


async def _stream_stored_bytes(
    store: ObjectStoreProtocol, blob: ColumnRow, start: int, end: int
) -> AsyncGenerator[bytes]:
    """Yield the stored bytes of a blob, compressed or not, from `start` to `end`."""
    if blob.name is None:
        yield blob.data[start:end]
        return
    try:
        async for chunk in store.stream(blob.name, start, end):
            yield chunk
    except KeyError as problem:
        raise _lost_object_error(blob) from problem


class _ReadAheadBuffer:
    """A buffer of compressed bytes for a synchronous reader."""

    def __init__(self, source: AsyncIterator[bytes], digest: str) -> None:
        self._source = source
        self._digest = digest
        self._bytes = bytearray()
        self._ended = False

    async def fill(self) -> None:
        """Wait until the buffer holds enough for one step, or the source has ended."""
        while not self._ended and len(self._bytes) < READ_AHEAD:
            chunk = await anext(self._source, None)
            self._ended = chunk is None
            self._bytes += chunk or b""

    def read(self, size: int) -> bytes:
        """Remove and return at most `size` bytes of the buffer."""
        if not self._bytes and not self._ended:
            raise CorruptBlob(
                f"The frame of {self._digest} needs more input for one step than is allowed"
            )
        data = bytes(self._bytes[:size])
        del self._bytes[:size]
        return data


async def _decompressed_chunks(
    store: ObjectStoreProtocol, blob: ColumnRow
) -> AsyncGenerator[bytes]:
    """Yield the whole content of a compressed blob in chunks.

    A step is two blocks of zstd, each at most 128 KiB compressed or not, so a step never needs
    READ_AHEAD bytes. However small a frame is, at most one step of it is decompressed at once.
    """
    async with aclosing(_stream_stored_bytes(store, blob, 0, blob.stored_size)) as packed:
        ahead = _ReadAheadBuffer(packed, blob.digest)
        source: Any = ahead  # the library calls only the `read` method of a file
        reader = zstandard.ZstdDecompressor().stream_reader(source)
        left = blob.size
        try:
            while left:
                await ahead.fill()
                step = reader.read(min(MAX_CHUNK_SIZE, left))
                if not step:
                    return
                left -= len(step)
                yield step
        except zstandard.ZstdError as problem:
            raise CorruptBlob(
                f"The frame of {blob.digest} cannot be expanded: {problem}"
            ) from problem
