"""Files of the blob cache: bytes of one object, with a SHA-256 for each chunk.

A file has a header, the digests of the chunks, a digest of all that and of the object's name, and
then the bytes. So a range is verified without reading the other chunks, and a file under the name
of another object is damaged.
"""

import hashlib
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

CHUNK_SIZE = 256 * 1024  # bytes that one digest covers
_MAGIC = b"MGBLOB01"
# magic, chunk size, size in bytes, time in microseconds since 1970, 1 for a whole object
_HEADER = struct.Struct("<8sIQqB")
_DIGEST_SIZE = hashlib.sha256().digest_size


class DamagedCacheFile(Exception):
    """The file is no file of the cache, belongs to another object, or its bytes have changed."""


def _chunk_count(size: int) -> int:
    return -(-size // CHUNK_SIZE)


def content_offset(size: int) -> int:
    """Return the position in a file at which the bytes of an object with this size begin."""
    return _HEADER.size + (_chunk_count(size) + 1) * _DIGEST_SIZE


def file_size(size: int) -> int:
    """Return the size of the file with an object of this size."""
    return content_offset(size) + size


@dataclass(frozen=True, slots=True)
class CachedObjectFacts:
    """What the header of a file says: the size, the time it was stored, and if it is whole.

    A file that is not whole has the first bytes of its object.
    """

    size: int  # bytes
    stored_at: int  # microseconds since 1970
    is_whole: bool


class CacheFileWriter:
    """Writes a file of the cache in steps. The methods can be called by any thread."""

    def __init__(self, path: Path, name: str, facts: CachedObjectFacts) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.path = path
        self.name = name
        self.facts = facts
        self._handle = os.open(path, flags, 0o600)
        self._lock = threading.Lock()
        self._is_closed = False
        self._written_size = 0
        self._digests = bytearray()
        self._chunk_digest = hashlib.sha256()

    @property
    def file_size(self) -> int:
        """The size of the file when it is complete."""
        return file_size(self.facts.size)

    def reserve_space(self) -> None:
        """Reserve the space of the whole file. Raises OSError if the disk is full."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._handle, 0, self.file_size)
        else:
            os.truncate(self._handle, self.file_size)

    def append(self, data: bytes) -> None:
        """Write the next bytes of the object. Does nothing after `close`."""
        with self._lock:
            if self._is_closed:
                return
            _write_all(self._handle, data, content_offset(self.facts.size) + self._written_size)
            view = memoryview(data)
            while view:
                step = view[: CHUNK_SIZE - self._written_size % CHUNK_SIZE]
                self._chunk_digest.update(step)
                self._written_size += len(step)
                view = view[len(step) :]
                if self._written_size % CHUNK_SIZE == 0:
                    self._append_chunk_digest()

    def _append_chunk_digest(self) -> None:
        """Keep the digest of the finished chunk for the header, and begin the next chunk."""
        self._digests += self._chunk_digest.digest()
        self._chunk_digest = hashlib.sha256()

    def finish_if_complete(self) -> bool:
        """Write the header and close the file, and return True; False if bytes are missing."""
        with self._lock:
            if self._is_closed or self._written_size != self.facts.size:
                return False
            if self._written_size % CHUNK_SIZE:
                self._append_chunk_digest()
            facts = self.facts
            header = _HEADER.pack(_MAGIC, CHUNK_SIZE, facts.size, facts.stored_at, facts.is_whole)
            header += self._digests
            _write_all(self._handle, header + _header_digest(self.name, header), 0)
        self.close()
        return True

    def close(self) -> None:
        """Close the file. It can be closed already."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._handle)


class CacheFileReader:
    """Reads and verifies a file of the cache. The methods can be called by any thread.

    Raises FileNotFoundError if the file does not exist, and DamagedCacheFile.
    """

    def __init__(self, path: Path, name: str) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._lock = threading.Lock()
        self._is_closed = False
        self._handle = os.open(path, flags)
        try:
            self.used_at = os.fstat(self._handle).st_mtime  # seconds since 1970
            self.facts, self._digests = _read_header_and_chunk_digests(self._handle, name)
        except BaseException:
            self.close()
            raise

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`. Raises DamagedCacheFile.

        Returns no bytes after `close`.
        """
        first, last = start // CHUNK_SIZE, _chunk_count(end)
        at, stop = first * CHUNK_SIZE, min(last * CHUNK_SIZE, self.facts.size)
        with self._lock:
            if self._is_closed:
                return b""
            data = os.pread(self._handle, stop - at, content_offset(self.facts.size) + at)
        if len(data) != stop - at:
            raise DamagedCacheFile("bytes are missing")
        view = memoryview(data)
        for chunk in range(first, last):
            chunk_at = chunk * CHUNK_SIZE - at
            digest = hashlib.sha256(view[chunk_at : chunk_at + CHUNK_SIZE]).digest()
            if digest != self._digests[chunk * _DIGEST_SIZE : (chunk + 1) * _DIGEST_SIZE]:
                raise DamagedCacheFile("a chunk has another digest")
        return data if (start, end) == (at, stop) else data[start - at : end - at]

    def verify_all(self) -> None:
        """Read and verify all bytes in steps of 1 MiB. Raises DamagedCacheFile."""
        step = 4 * CHUNK_SIZE
        for at in range(0, self.facts.size, step):
            self.read(at, min(at + step, self.facts.size))

    def mark_used(self, at: float) -> None:
        """Set the time of the last use, in seconds since 1970. Does nothing after `close`."""
        with self._lock:
            if not self._is_closed:
                os.utime(self._handle, (at, at))

    def close(self) -> None:
        """Close the file. It can be closed already."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._handle)


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written_size = os.pwrite(handle, view, offset)
        offset += written_size
        view = view[written_size:]


def _read_header_and_chunk_digests(handle: int, name: str) -> tuple[CachedObjectFacts, bytes]:
    """Return the header of a file and the digests of its chunks. Raises DamagedCacheFile."""
    head = os.pread(handle, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        raise DamagedCacheFile("the header is missing")
    magic, chunk_size, size, stored_at, is_whole = _HEADER.unpack(head)
    # the size of the file limits the bytes that are read for the digests
    if (magic, chunk_size) != (_MAGIC, CHUNK_SIZE) or os.fstat(handle).st_size != file_size(size):
        raise DamagedCacheFile("the header is invalid")
    digests = os.pread(handle, content_offset(size) - _HEADER.size, _HEADER.size)
    chunk_digests, digest = digests[:-_DIGEST_SIZE], digests[-_DIGEST_SIZE:]
    if digest != _header_digest(name, head + chunk_digests):
        raise DamagedCacheFile("the header has another digest")
    return CachedObjectFacts(size, stored_at, bool(is_whole)), chunk_digests


def _header_digest(name: str, header: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + header).digest()
