"""tar archives (POSIX.1-2001, pax), with one entry in memory at a time."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO

from mail.archives.zip_format import Broken

BLOCK = 512
END = bytes(2 * BLOCK)
WORDS = 1 << 20  # of an extension header
NUMBER = 0o200  # marks a number that is not written in digits
LARGEST = 1 << 62
_WORDS = (b"x", b"g", b"L", b"K")  # headers about the entry after them
_FILES = (b"0", b"\0", b"5", b"7")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the archive; `next_offset` is where the entry after it begins."""

    name: str
    offset: int  # of its content
    size: int
    at: float  # seconds since 1970
    next: int
    odd: str = ""  # "" for a file

    @property
    def end(self) -> int:
        """The offset where the entry ends in the archive."""
        return self.next


def entry(name: str, content: bytes, at: datetime) -> bytes:
    """Return a file as an entry of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    info.mtime = int(at.timestamp())
    head = info.tobuf(tarfile.PAX_FORMAT)
    return head + content + bytes(-len(content) % BLOCK)


def known(head: bytes) -> bool:
    """True if the first bytes of a file are a tar header with a valid checksum."""
    return len(head) >= BLOCK and any(head[:BLOCK]) and _sum(head[:BLOCK]) == _checksum(head)


def entries(file: IO[bytes], at: int) -> Iterator[Entry]:
    """Yield the entries from an offset on.

    Raises DamagedArchiveError if the archive is damaged or cut off.
    """
    length = file.seek(0, 2)
    name: str | None = None  # of the extension headers before the entry
    size: int | None = None
    while (head := _head(file, at)) is not None:
        kind, here = head[156:157], _number(head[124:136]) if size is None else size
        begin, after = at + BLOCK, at + BLOCK + (here + BLOCK - 1) // BLOCK * BLOCK
        if after > length:
            raise Broken("a tar that ends in a file: it was cut off")
        if kind in _WORDS:
            name, size = _said(kind, file.read(_few(here)), name)
        else:
            odd = "" if kind in _FILES else "not a file"
            shown = _name(head) if name is None else name
            shown += "/" if kind == b"5" and not shown.endswith("/") else ""
            yield Entry(shown, begin, here, _number(head[136:148]), after, odd)
            name, size = None, None
        at = after


def _head(file: IO[bytes], at: int) -> bytes | None:
    """Return the header block at an offset, None at the end of the archive.

    Raises DamagedArchiveError if it is cut off or has another checksum.
    """
    file.seek(at)
    head = file.read(BLOCK)
    if len(head) < BLOCK:
        raise Broken("a tar without its end: it was cut off")
    if not any(head):
        return None
    if _sum(head) != _checksum(head):
        raise Broken("a tar that is damaged: a header is not what it claims to be")
    return head


def _few(size: int) -> int:
    """Return the size of an extension header. Raises DamagedArchiveError beyond 1 MiB."""
    if size > WORDS:
        raise Broken(f"a tar with a header of more than {WORDS} bytes")
    return size


def _said(kind: bytes, words: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Return name and size of the next entry, as far as an extension header has them."""
    if kind == b"L":
        return words.rstrip(b"\0").decode("utf-8", "replace"), None
    return _pax(words, name) if kind == b"x" else (name, None)


def content(file: IO[bytes], known: Entry) -> bytes:
    """Return the bytes of an entry."""
    file.seek(known.offset)
    return file.read(known.size)


def _sum(head: bytes) -> int:
    return sum(head) - sum(head[148:156]) + 8 * 0x20


def _checksum(head: bytes) -> int:
    try:
        return int(head[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return -1


def _number(field: bytes) -> int:
    """Parse an octal or binary number. Raises DamagedArchiveError if it is invalid."""
    if field[0] & NUMBER:
        found = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        try:
            found = int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            raise Broken("a tar that is damaged: a number is none") from None
    if not 0 <= found < LARGEST:
        raise Broken("a tar with an entry larger than any disk")
    return found


def _name(head: bytes) -> str:
    name, prefix = head[:100].rstrip(b"\0"), b""
    if head[257:262] == b"ustar":
        prefix = head[345:500].split(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax(words: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Return name and size of the next entry, as far as a pax header has them."""
    size: int | None = None
    while words:
        digits, _, _ = words.partition(b" ")
        if not digits.isdigit() or not len(digits) + 2 < (many := int(digits)) <= len(words):
            raise Broken("a tar that is damaged: a header is none")
        key, _, value = words[len(digits) + 1 : many - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size":
            if not value.isdigit() or int(value) >= LARGEST:
                raise Broken("a tar that is damaged: a size is none")
            size = int(value)
        words = words[many:]
    return name, size
