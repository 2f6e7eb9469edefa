"""Readers of one stored blob: whole and verified, or in steps that take little memory."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import zstandard

from mail.storage.blobs.compression import expand, verify
from mail.storage.blobs.errors import Corrupt
from models.files.blobs import Blob
from models.store.columns import Picked, picked
from models.store.object_store import Store

COLUMNS = tuple(picked(Blob, ("id", "digest", "size", "stored_size", "codec", "name", "data")))
STEP = 256 * 1024  # most bytes that `stream` yields at once
WHOLE = 1024 * 1024  # uncompressed bytes; a blob up to this size is always read as a whole
LARGE = 64 * 1024  # bytes; from this size on a thread decompresses
AHEAD = (
    1024 * 1024
)  # compressed bytes in memory: more than one step needs, see _decompressed_chunks


async def read(store: Store, blob: Picked) -> bytes:
    """Read and verify the content of a blob. Raises CorruptBlob if it is lost or damaged."""
    packed = blob.data if blob.name is None else await _object(store, blob)
    if blob.size < LARGE:
        return _content(blob, packed)
    return await asyncio.to_thread(_content, blob, packed)


async def _object(store: Store, blob: Picked) -> bytes:
    try:
        return await store.get(blob.name)
    except KeyError as problem:
        raise _lost(blob) from problem


def _content(blob: Picked, packed: bytes) -> bytes:
    try:
        return verify(blob.digest, expand(blob.codec, packed, blob.size))
    except Corrupt as problem:
        raise _damaged(blob, problem) from problem


def _lost(blob: Picked) -> Corrupt:
    return Corrupt(f"The object {blob.name} of {blob.digest} is lost")


def _damaged(blob: Picked, reason: object) -> Corrupt:
    place = "row" if blob.name is None else f"object {blob.name}"
    return Corrupt(f"The {place} of {blob.digest} is damaged: {reason}")


async def stream(
    store: Store, blob: Picked, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield the content from `start` to `end`, at most 256 KiB at once.

    Raises CorruptBlob before the last bytes of a damaged blob. A partial range of a blob over 1
    MiB is not verified, since the digest covers the whole content.
    """
    end = blob.size if end is None else min(end, blob.size)
    if blob.size <= WHOLE:
        content = await read(store, blob)
        for at in range(start, end, STEP):
            yield content[at : min(at + STEP, end)]
        return
    part = _part(store, blob, start, end)
    async with aclosing(_verified(blob, part) if end - start == blob.size else part) as steps:
        async for step in steps:
            yield step


async def _part(store: Store, blob: Picked, start: int, end: int) -> AsyncGenerator[bytes]:
    """Yield a range of the content without verifying the digest."""
    if blob.codec == "raw":
        packed = _packed(store, blob, start, end)
        async with aclosing(packed):
            async for chunk in packed:
                for at in range(0, len(chunk), STEP):
                    yield chunk[at : at + STEP]
        return
    if blob.codec != "zstd":
        raise _damaged(blob, f"there is no codec {blob.codec!r}")
    reached = 0
    async with aclosing(_expanded(store, blob)) as steps:
        async for step in steps:
            reached += len(step)
            wanted = step[max(0, start - reached + len(step)) :]
            if wanted and reached > start:
                yield wanted[: len(wanted) - max(0, reached - end)]
            if reached >= end:
                return
    raise Corrupt(f"The content of {blob.digest} ends too soon")


async def _verified(blob: Picked, steps: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the chunks of a whole blob; the last one only after the digest is verified."""
    digest, held = hashlib.sha256(), b""
    async with aclosing(steps):
        async for step in steps:
            if held:
                yield held
            digest.update(step)
            held = step
    if digest.hexdigest() != blob.digest:
        raise Corrupt(f"The content of {blob.digest} has another digest")
    yield held


async def _packed(store: Store, blob: Picked, start: int, end: int) -> AsyncGenerator[bytes]:
    """Yield the stored bytes of a blob, compressed or not, from `start` to `end`."""
    if blob.name is None:
        yield blob.data[start:end]
        return
    try:
        async for chunk in store.stream(blob.name, start, end):
            yield chunk
    except KeyError as problem:
        raise _lost(blob) from problem


class _Ahead:
    """A buffer of compressed bytes for a synchronous reader."""

    def __init__(self, source: AsyncIterator[bytes], digest: str) -> None:
        self._source = source
        self._digest = digest
        self._bytes = bytearray()
        self._ended = False

    async def fill(self) -> None:
        """Wait until the buffer holds enough for one step, or the source has ended."""
        while not self._ended and len(self._bytes) < AHEAD:
            chunk = await anext(self._source, None)
            self._ended = chunk is None
            self._bytes += chunk or b""

    def read(self, size: int) -> bytes:
        """Remove and return at most `size` bytes of the buffer."""
        if not self._bytes and not self._ended:
            raise Corrupt(f"The frame of {self._digest} needs more input for a step than it can")
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        return taken


async def _expanded(store: Store, blob: Picked) -> AsyncGenerator[bytes]:
    """Yield the whole content of a compressed blob in chunks.

    A step is two blocks of zstd, each at most 128 KiB compressed or not, so a step never needs
    READ_AHEAD bytes. However small a frame is, at most one step of it is decompressed at once.
    """
    async with aclosing(_packed(store, blob, 0, blob.stored_size)) as packed:
        ahead = _Ahead(packed, blob.digest)
        source: Any = ahead  # the library calls only the `read` method of a file
        reader = zstandard.ZstdDecompressor().stream_reader(source)
        left = blob.size
        try:
            while left:
                await ahead.fill()
                step = reader.read(min(STEP, left))
                if not step:
                    return
                left -= len(step)
                yield step
        except zstandard.ZstdError as problem:
            raise Corrupt(f"The frame of {blob.digest} cannot be expanded: {problem}") from problem
