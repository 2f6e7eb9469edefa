"""Compression of blobs: "zstd", or "raw" if that is not larger."""

import hashlib
import threading
from pathlib import Path
from typing import NamedTuple

import zstandard

from mail.storage.blobs.errors import CorruptBlob

ZSTD_LEVEL = 3  # 9 takes five times as long and saves little


class _ZstdContexts(threading.local):
    """The zstd contexts of a thread: costly to create, and not safe to share between threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_ZSTD = _ZstdContexts()


def content_digest(content: bytes) -> str:
    """The SHA-256 of `content` in lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def verify_digest(digest: str, content: bytes) -> bytes:
    """Return `content`. Raises CorruptBlob if its digest is not `digest`."""
    if content_digest(content) != digest:
        raise CorruptBlob(f"The content of {digest} has another digest")
    return content


class CompressedBytes(NamedTuple):
    """The codec and the bytes to store."""

    codec: str
    content: bytes


def compress_if_smaller(data: bytes) -> CompressedBytes:
    """Compress `data` and return the codec and the bytes to store.

    Large data belongs into a thread.
    """
    packed = _ZSTD.compressor.compress(data)
    is_smaller = len(packed) < len(data)
    return CompressedBytes("zstd", packed) if is_smaller else CompressedBytes("raw", data)


class CompressedFile(NamedTuple):
    """The codec and the file to store."""

    codec: str
    path: Path


def replace_file_by_smaller_compressed_file(path: Path) -> CompressedFile:
    """Compress a file and return the codec and the file to store. The other file is removed."""
    packed, size = path.with_name(f"{path.name}.zst"), path.stat().st_size
    with path.open("rb") as source, packed.open("wb") as target:
        _ZSTD.compressor.copy_stream(source, target, size=size)
    small = packed.stat().st_size < size
    (path if small else packed).unlink()
    return CompressedFile("zstd", packed) if small else CompressedFile("raw", path)


def decompress(codec: str, stored_bytes: bytes, size: int) -> bytes:
    """Undo `compress`. Raises CorruptBlob unless the content has exactly `size` bytes.

    Never allocates more than `size` bytes, even if the frame claims a larger size.
    """
    match codec:
        case "raw":
            content = stored_bytes
        case "zstd":
            content = _decompress_zstd(stored_bytes, size)
        case _:
            raise CorruptBlob(f"There is no codec {codec!r}")
    if len(content) != size:
        raise CorruptBlob(f"{len(content)} bytes came out instead of {size}")
    return content


def _decompress_zstd(data: bytes, size: int) -> bytes:
    try:
        # zstandard trusts the size in the frame more than the limit it is given.
        claimed = zstandard.frame_content_size(data)
        if claimed != size:
            raise CorruptBlob(f"The frame claims {claimed} bytes instead of {size}")
        return _ZSTD.decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as problem:
        raise CorruptBlob(f"The frame cannot be expanded: {problem}") from problem
