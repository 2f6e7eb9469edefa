"""tar archives (POSIX.1-2001, pax), with one entry in memory at a time."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO

from mail.archives.zip_format import DamagedArchiveError

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_EXTENSION_BYTES = 1 << 20  # of an extension header
BINARY_NUMBER_BIT = 0o200  # marks a number that is not written in digits
MAX_ENTRY_BYTES = 1 << 62
_EXTENSION_TYPES = (b"x", b"g", b"L", b"K")  # headers about the entry after them
_FILE_TYPES = (b"0", b"\0", b"5", b"7")
_RECORD_LENGTH = re.compile(rb"([0-9]{1,19}) ")  # the first field of a pax record
_PAX_SIZE = re.compile(rb"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A file in the archive; `next_offset` is where the entry after it begins."""

    name: str
    offset: int  # of its content
    size: int
    modified_at: float  # seconds since 1970
    next_offset: int
    unusable_reason: str = ""  # "" for a file

    @property
    def end(self) -> int:
        """The offset where the entry ends in the archive."""
        return self.next_offset


def encode_tar_entry(name: str, content: bytes, modified_at: datetime) -> bytes:
    """Return a file as an entry of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    info.mtime = int(modified_at.timestamp())
    head = info.tobuf(tarfile.PAX_FORMAT)
    return head + content + bytes(-len(content) % BLOCK)


def is_tar(first_bytes: bytes) -> bool:
    """True if the first bytes of a file are a tar header with a valid checksum."""
    return (
        len(first_bytes) >= BLOCK
        and any(first_bytes[:BLOCK])
        and _computed_checksum(first_bytes[:BLOCK]) == _stored_checksum(first_bytes)
    )


def read_tar_entries(file: IO[bytes], start: int) -> Iterator[TarEntry]:
    """Yield the entries from an offset on.

    Raises DamagedArchiveError if the archive is damaged or cut off.
    """
    length = file.seek(0, 2)
    name: str | None = None  # of the extension headers before the entry
    size: int | None = None
    while (head := _read_tar_header_block_or_none(file, start)) is not None:
        kind, entry_size = head[156:157], _parse_number(head[124:136]) if size is None else size
        begin, after = start + BLOCK, start + BLOCK + (entry_size + BLOCK - 1) // BLOCK * BLOCK
        if after > length:
            raise DamagedArchiveError("The tar archive is truncated in a file.")
        if kind in _EXTENSION_TYPES:
            name, size = _next_name_and_size_from_extension(
                kind, file.read(_validated_extension_size(entry_size)), name
            )
        else:
            odd = "" if kind in _FILE_TYPES else "The entry is not a file."
            entry_name = _entry_name(head) if name is None else name
            entry_name += "/" if kind == b"5" and not entry_name.endswith("/") else ""
            yield TarEntry(entry_name, begin, entry_size, _parse_number(head[136:148]), after, odd)
            name, size = None, None
        start = after


def _read_tar_header_block_or_none(file: IO[bytes], offset: int) -> bytes | None:
    """Return the header block at an offset, None at the end of the archive.

    Raises DamagedArchiveError if it is cut off or has another checksum.
    """
    file.seek(offset)
    head = file.read(BLOCK)
    if len(head) < BLOCK:
        raise DamagedArchiveError("The tar archive is truncated: its end is missing.")
    if not any(head):
        return None
    if _computed_checksum(head) != _stored_checksum(head):
        raise DamagedArchiveError("The tar archive is damaged: the checksum of a header is wrong.")
    return head


def _validated_extension_size(size: int) -> int:
    """Return the size of an extension header. Raises DamagedArchiveError beyond 1 MiB."""
    if size > MAX_EXTENSION_BYTES:
        raise DamagedArchiveError(
            f"A header of the tar archive has more than {MAX_EXTENSION_BYTES} bytes."
        )
    return size


def _next_name_and_size_from_extension(
    header_type: bytes, data: bytes, known_name: str | None
) -> tuple[str | None, int | None]:
    """Return name and size of the next entry, as far as an extension header has them."""
    if header_type == b"L":
        return data.rstrip(b"\0").decode("utf-8", "replace"), None
    return (
        _next_name_and_size_from_pax(data, known_name)
        if header_type == b"x"
        else (known_name, None)
    )


def read_content(file: IO[bytes], entry: TarEntry) -> bytes:
    """Return the bytes of an entry."""
    file.seek(entry.offset)
    return file.read(entry.size)


def _computed_checksum(head: bytes) -> int:
    return sum(head) - sum(head[148:156]) + 8 * 0x20


def _stored_checksum(head: bytes) -> int:
    """Return the checksum of a tar header; -1 if it is missing or no octal number."""
    try:
        return int(head[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return -1


def _parse_number(field: bytes) -> int:
    """Parse an octal or binary number. Raises DamagedArchiveError if it is invalid."""
    if field[0] & BINARY_NUMBER_BIT:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        try:
            number = int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            raise DamagedArchiveError(
                "The tar archive is damaged: a number can't be parsed."
            ) from None
    if not 0 <= number < MAX_ENTRY_BYTES:
        raise DamagedArchiveError("An entry of the tar archive is too large.")
    return number


def _entry_name(head: bytes) -> str:
    name, prefix = head[:100].rstrip(b"\0"), b""
    if head[257:262] == b"ustar":
        prefix = head[345:500].split(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _next_name_and_size_from_pax(
    data: bytes, known_name: str | None
) -> tuple[str | None, int | None]:
    """Return name and size of the next entry, as far as a pax header has them."""
    name = known_name
    size: int | None = None
    start = 0
    while start < len(data):
        length = _RECORD_LENGTH.match(data, start)
        end = start + int(length[1]) if length else 0
        if length is None or not length.end() + 1 < end <= len(data):
            raise DamagedArchiveError("The tar archive is damaged: a header can't be parsed.")
        key, _, value = data[length.end() : end - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size":
            if not _PAX_SIZE.fullmatch(value) or int(value) >= MAX_ENTRY_BYTES:
                raise DamagedArchiveError("The tar archive is damaged: a size can't be parsed.")
            size = int(value)
        start = end
    return name, size
