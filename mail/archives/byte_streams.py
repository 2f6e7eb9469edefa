"""Parts of an archive as files that are read from the start to the end."""

import io
import zlib
from typing import IO, TYPE_CHECKING, Protocol

from mail.archives.zip_format import DEFLATED, DamagedArchiveError, ZipEntry, find_packed_content

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK_BYTES = 1 << 16  # packed bytes that are read at once


class ByteReader(Protocol):
    """A file that is read in blocks."""

    def read(self, size: int = -1, /) -> bytes | None:
        """Return at most `size` bytes; empty at the end."""
        ...


class ByteStream(io.RawIOBase):
    """A file that can only be read. Subclasses implement `read_some`."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill a buffer with the next bytes. Returns fewer bytes only at the end."""
        view, position = memoryview(buffer).cast("B"), 0
        while position < len(view) and (content := self.read_some(len(view) - position)):
            view[position : position + len(content)] = content
            position += len(content)
        return position

    def read_some(self, size: int) -> bytes:
        """Return 1 to `size` bytes; empty at the end."""
        raise NotImplementedError


class FileRange(ByteStream):
    """A range of bytes of a file. The position of the file may change between two reads."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._offset, self._end = file, offset, offset + size

    def read_some(self, size: int) -> bytes:
        """Return the next bytes of the range."""
        self._file.seek(self._offset)
        content = self._file.read(min(size, self._end - self._offset))
        self._offset += len(content)
        return content


class ZipEntryStream(ByteStream):
    """The unpacked content of a ZIP entry.

    Raises DamagedArchiveError if size or checksum differ from the central directory.
    """

    def __init__(self, file: IO[bytes], entry: ZipEntry) -> None:
        self._packed = FileRange(file, find_packed_content(file, entry), entry.packed_size)
        self._inflate = zlib.decompressobj(-15) if entry.method == DEFLATED else None
        self._entry, self._remaining, self._crc = entry, entry.size, 0

    def read_some(self, size: int) -> bytes:
        """Unpack the next bytes."""
        if not self._remaining:
            return b""
        try:
            content = self._unpack(min(size, self._remaining))
        except zlib.error as problem:
            raise DamagedArchiveError(
                "The ZIP archive is damaged: the entry can't be decompressed."
            ) from problem
        self._remaining -= len(content)
        self._crc = zlib.crc32(content, self._crc)
        if not content or (not self._remaining and self._crc != self._entry.crc):
            raise DamagedArchiveError(
                "The ZIP archive is damaged: the entry differs from the directory."
            )
        return content

    def _unpack(self, size: int) -> bytes:
        """Return 1 to `size` unpacked bytes; empty if no packed bytes are left."""
        if self._inflate is None:
            return self._packed.read_some(size)
        content, packed = b"", b"?"
        # After the end of the deflated data, zlib would keep all further bytes in memory.
        while packed and not content and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._packed.read_some(_CHUNK_BYTES)
            content = self._inflate.decompress(packed, size)
        return content


class CrToLfStream(ByteStream):
    """A file whose line ends are CR, read with LF instead. All offsets stay the same."""

    def __init__(self, file: ByteReader) -> None:
        self._file = file

    def read_some(self, size: int) -> bytes:
        """Return the next bytes with LF instead of CR."""
        return (self._file.read(size) or b"").replace(b"\r", b"\n")
