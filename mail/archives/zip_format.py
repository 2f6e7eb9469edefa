"""ZIP archives, with one entry in memory at a time.

Entries are written with their sizes in the local header; ZIP64 fields follow from 4 GiB or 65,535
entries on. Entries are read in the order of the central directory.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
STORED, DEFLATED = 0, 8
UTF8, ENCRYPTED = 0x800, 0x1
ZIP64_SHORT, ZIP64_LONG = 0xFFFF, 0xFFFFFFFF  # the number is in a ZIP64 field
MAX_END_BYTES = 22 + 0xFFFF  # end record with the longest comment
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_FIRST_YEAR = 1980  # the first year of a DOS date


class DamagedArchiveError(Exception):
    """The file is no archive of its format, or it is damaged or cut off."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A file in the central directory. `next_offset` is where the next entry begins there."""

    name: str
    offset: int
    packed_size: int  # bytes in the archive
    size: int  # bytes of the file
    method: int
    crc: int
    next_offset: int
    unusable_reason: str = ""  # "" for a readable file

    @property
    def end(self) -> int:
        """The approximate offset where the entry ends in the archive."""
        return self.offset + self.packed_size


def local_and_directory_entry(
    name: str, content: bytes, modified_at: datetime, offset: int
) -> tuple[bytes, bytes]:
    """Return a file as a local entry for an offset, and its entry of the central directory."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = deflate.compress(content) + deflate.flush()
    method = DEFLATED if len(packed) < len(content) else STORED
    body = packed if method == DEFLATED else content
    path = name.encode()
    time, date = _dos_time_and_date(modified_at)
    facts = (20, UTF8, method, time, date, zlib.crc32(content), len(body), len(content))
    local = _LOCAL.pack(LOCAL, *facts, len(path), 0) + path + body
    needs_zip64 = offset >= ZIP64_LONG
    extra = struct.pack("<HHQ", 1, 8, offset) if needs_zip64 else b""
    made_by = 3 << 8 | (45 if needs_zip64 else 20)  # Unix, which has the rights below
    mode = (stat.S_IFREG | 0o600) << 16
    directory_fields = (len(path), len(extra), 0, 0, 0, mode, ZIP64_LONG if needs_zip64 else offset)
    return local, _CENTRAL.pack(CENTRAL, made_by, *facts, *directory_fields) + path + extra


def directory_end_records(entry_count: int, directory_size: int, directory_offset: int) -> bytes:
    """Return the end records of a ZIP, with ZIP64 records if they are needed."""
    zip64_records = b""
    if entry_count >= ZIP64_SHORT or directory_size >= ZIP64_LONG or directory_offset >= ZIP64_LONG:
        facts = (45, 45, 0, 0, entry_count, entry_count, directory_size, directory_offset)
        zip64_records = _END64.pack(END64, _END64.size - 12, *facts)
        zip64_records += _LOCATOR.pack(LOCATOR, 0, directory_offset + directory_size, 1)
    short_count = min(entry_count, ZIP64_SHORT)
    short_size = min(directory_size, ZIP64_LONG)
    short_offset = min(directory_offset, ZIP64_LONG)
    return zip64_records + _END.pack(
        END, 0, 0, short_count, short_count, short_size, short_offset, 0
    )


def _dos_time_and_date(at: datetime) -> tuple[int, int]:
    at = at.astimezone(UTC)
    year = min(max(at.year - _FIRST_YEAR, 0), 127)
    time = at.hour << 11 | at.minute << 5 | at.second // 2
    return time, year << 9 | at.month << 5 | at.day


@dataclass(frozen=True, slots=True)
class ZipDirectory:
    """The range of the central directory, and the entry count of the end record."""

    start: int
    end: int
    entry_count: int


def find_central_directory_or_raise(file: IO[bytes]) -> ZipDirectory:
    """Find the central directory. Raises DamagedArchiveError if there is none in the file."""
    length = file.seek(0, 2)
    tail_at = max(0, length - MAX_END_BYTES)
    file.seek(tail_at)
    tail = file.read(MAX_END_BYTES)
    position = tail.rfind(END)
    if position < 0 or len(tail) - position < _END.size:
        raise DamagedArchiveError("The ZIP archive is truncated: its end is missing.")
    _, disk, _, _, entries, size, start, _ = _END.unpack_from(tail, position)
    if disk:
        raise DamagedArchiveError("ZIP archives in several files are not supported.")
    before = position - _LOCATOR.size
    if before >= 0 and tail.startswith(LOCATOR, before):
        _, _, at, _ = _LOCATOR.unpack_from(tail, before)
        file.seek(min(at, length))
        block = file.read(_END64.size)
        if len(block) < _END64.size or not block.startswith(END64):
            raise DamagedArchiveError("The end of the ZIP archive is damaged.")
        *_, entries, size, start = _END64.unpack(block)
    if start + size > tail_at + position:
        raise DamagedArchiveError(
            "The ZIP archive is truncated or damaged: its directory is outside of the file."
        )
    return ZipDirectory(start, start + size, entries)


def read_zip_entries(
    file: IO[bytes], directory: ZipDirectory, start: int, min_offset: int = 0
) -> Iterator[ZipEntry]:
    """Yield the entries of the central directory from `start` on.

    Each entry must begin after the end of the one before, the first at `min_offset` or later. So no
    entry appears twice, and the unpacked size is in proportion to the file. Raises
    DamagedArchiveError if the directory is invalid.
    """
    while start < directory.end:
        file.seek(start)
        head = file.read(_CENTRAL.size)
        if len(head) < _CENTRAL.size or not head.startswith(CENTRAL):
            raise DamagedArchiveError("The directory of the ZIP archive is damaged.")
        fields = _CENTRAL.unpack(head)
        (
            _,
            _,
            _,
            bits,
            method,
            _,
            _,
            crc,
            packed,
            size,
            name_length,
            extra_size,
            comment_size,
            *_,
        ) = fields
        mode, offset = fields[-2] >> 16, fields[-1]
        name, extra = file.read(name_length), file.read(extra_size)
        size, packed, offset = _sizes_and_offset_with_zip64(extra, size, packed, offset)
        start += _CENTRAL.size + name_length + extra_size + comment_size
        if (
            start > directory.end
            or offset < min_offset
            or offset + _LOCAL.size + packed > directory.start
        ):
            raise DamagedArchiveError(
                "The ZIP archive is damaged: its entries overlap or are outside of the file."
            )
        min_offset = offset + _LOCAL.size + packed
        odd = _unusable_reason_or_empty(bits, method, mode)
        text = name.decode("utf-8" if bits & UTF8 else "cp437", "replace")
        yield ZipEntry(text, offset, packed, size, method, crc, start, odd)


def _sizes_and_offset_with_zip64(extra: bytes, *sizes_and_offset: int) -> list[int]:
    """Return size, packed size and offset, from the ZIP64 fields if present."""
    values, at = list(sizes_and_offset), 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            missing = [nth for nth, value in enumerate(values) if value == ZIP64_LONG]
            if len(body) < 8 * len(missing):
                raise DamagedArchiveError("The directory of the ZIP archive is damaged.")
            for index, nth in enumerate(missing):
                (values[nth],) = struct.unpack_from("<Q", body, 8 * index)
        at += 4 + length
    return values


def _unusable_reason_or_empty(flags: int, method: int, file_mode: int) -> str:
    """Return why an entry can't be read, "" if it can."""
    if flags & ENCRYPTED:
        return "The file is encrypted."
    if method not in (STORED, DEFLATED):
        return "The compression or encryption of the file is not supported."
    kind = stat.S_IFMT(file_mode)
    return "The entry is not a file." if kind and kind not in (stat.S_IFREG, stat.S_IFDIR) else ""


def find_packed_content(file: IO[bytes], entry: ZipEntry) -> int:
    """Return the offset of the packed bytes of an entry, and seek to it.

    Raises DamagedArchiveError if the local header is missing.
    """
    file.seek(entry.offset)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(LOCAL):
        raise DamagedArchiveError(
            "The ZIP archive is damaged: the entry is not where the directory says."
        )
    *_, name_length, extra_size = _LOCAL.unpack(head)
    return file.seek(name_length + extra_size, 1)


def read_zip_entry_content(file: IO[bytes], entry: ZipEntry) -> bytes:
    """Return the bytes of an entry.

    Raises DamagedArchiveError if size or checksum differ from the central directory.
    """
    find_packed_content(file, entry)
    packed = file.read(entry.packed_size)
    if entry.method == STORED:
        content_size = packed
    else:
        inflate = zlib.decompressobj(-15)
        try:
            content_size = inflate.decompress(packed, entry.size + 1)
        except zlib.error as problem:
            raise DamagedArchiveError(
                "The ZIP archive is damaged: the entry can't be decompressed."
            ) from problem
    if len(content_size) != entry.size or zlib.crc32(content_size) != entry.crc:
        raise DamagedArchiveError(
            "The ZIP archive is damaged: the entry differs from the directory."
        )
    return content_size
