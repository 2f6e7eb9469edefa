"""Messages in ZIP, tar and JSON lines archives, of this server or of others.

Entry names are never used as paths on this machine, and nothing is unpacked to disk. In an archive
of this server the record of a message counts, and not the entry name.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mail.archives import json_lines, tar_format, zip_format
from mail.archives.json_lines import ACCOUNT, FOLDER, MANIFEST, Account, Told, Wrong
from mail.archives.source_message import (
    INBOX,
    Found,
    Unusable,
    dated,
    folder_of,
    maildir_flags,
    wired,
)
from mail.archives.zip_format import Broken

RATIO = 100  # unpacked bytes per byte of the archive, on average,
SPARE = 64 << 20  # beyond this number of bytes
LARGER = 4096  # bytes of a line besides the message in base64
NAME = 4096  # characters of an entry name that are read


@dataclass(frozen=True, slots=True)
class Packed:
    """An archive on disk with its format."""

    path: Path
    kind: str  # zip, tar or json
    most: int  # larger messages are skipped


_Entry = tar_format.Entry | zip_format.Entry


def kind_of(head: bytes) -> str | None:
    """Return the archive format (zip, tar or json) of a file's first bytes, else None."""
    if head.startswith((zip_format.LOCAL, zip_format.END)):
        return "zip"
    if tar_format.known(head):
        return "tar"
    return "json" if head.lstrip().startswith(b"{") else None


def account_of(origin: Packed) -> Account | None:
    """Return the account record of an archive, None if it has none.

    Raises DamagedArchiveError if the archive can't be read.
    """
    with origin.path.open("rb") as file:
        if origin.kind == "json":
            record = _record(file.readline(json_lines.MOST + 1))
            if record.get("kind") != "account":
                raise Broken("lines of JSON, but none that tells of an account comes first")
            return _checked(record)
        walk = _Walk(origin, file)
        for entry in walk.entries(0):
            if entry.name != ACCOUNT:
                return None
            return _checked(_record(walk.content(entry, json_lines.MOST)))
    return None


def _checked(record: Mapping[str, Any]) -> Account:
    """Raises DamagedArchiveError if a field of the record is invalid."""
    try:
        return json_lines.account(record)
    except Wrong as problem:
        raise Broken(str(problem)) from problem


def _record(text: bytes) -> dict[str, Any]:
    """Parse the JSON of a record. Raises DamagedArchiveError if it is too large or invalid."""
    try:
        if len(text) > json_lines.MOST:
            raise Broken("a record larger than any of ours")
        return json_lines.parsed(text)
    except Wrong as problem:
        raise Broken("an archive of ours that is damaged, or was cut off") from problem


def messages(origin: Packed, after: str | None) -> Iterator[Found]:
    """Yield the messages after a checkpoint, and the entries that have to be skipped.

    Raises DamagedArchiveError if the archive is damaged or cut off.
    """
    with origin.path.open("rb") as file:
        if origin.kind == "json":
            yield from _lines(origin, file, int(after or 0))
        else:
            yield from _files(_Walk(origin, file), after)


@dataclass(slots=True)
class _Walk:
    """Reads the entries of a ZIP or tar, and limits the unpacked bytes."""

    origin: Packed
    file: IO[bytes]
    size: int = field(init=False)
    within: zip_format.Directory | None = field(init=False, default=None)
    out: int = field(init=False, default=0)  # of all entries read so far

    def __post_init__(self) -> None:
        self.size = self.file.seek(0, 2)
        if self.origin.kind == "zip":
            self.within = zip_format.directory(self.file)

    def entries(self, at: int) -> Iterator[_Entry]:
        """Yield the entries from an offset on; 0 is the first entry."""
        if self.within is None:
            yield from tar_format.entries(self.file, at)
        else:
            yield from zip_format.entries(self.file, self.within, at or self.within.start)

    def content(self, entry: _Entry, most: int) -> bytes:
        """Return the bytes of an entry.

        Raises UnusableMessageError if the entry is too large or damaged, and DamagedArchiveError if
        the archive unpacks to too many bytes.
        """
        if entry.odd:
            raise Unusable(entry.odd)
        if entry.size > most:
            raise Unusable("larger than MERGANSER_MESSAGE_MAX")
        if isinstance(entry, zip_format.Entry) and entry.packed > most + SPARE:
            raise Unusable("packed into more than it is")
        self.out += entry.size
        if self.out > self.size * RATIO + SPARE:
            raise Broken(f"an archive that unpacks to more than {RATIO} times its size")
        if isinstance(entry, tar_format.Entry):
            return tar_format.content(self.file, entry)
        try:
            return zip_format.content(self.file, entry)
        except Broken as problem:
            raise Unusable(str(problem)) from problem


def _files(walk: _Walk, after: str | None) -> Iterator[Found]:
    """Yield the messages of a ZIP or tar.

    A checkpoint has three numbers: the offset of the next entry, the offset of its manifest (-1:
    none), and the number of its records that were used.
    """
    at, told_at, had = (int(part) for part in (after or "0 -1 0").split())
    told: dict[str, Mapping[str, Any]] = {}
    if told_at >= 0:
        told = _told(walk, next(iter(walk.entries(told_at))))
        told = dict(islice(told.items(), had, None))
    begun = at
    for entry in walk.entries(at):
        here, begun = begun, entry.next
        if entry.name.startswith(MANIFEST):
            yield from _lacking(told, f"{here} -1 0", here)
            told, told_at, had = _told(walk, entry), here, 0
            continue
        if entry.name == ACCOUNT or (entry.name.endswith("/") and not entry.odd):
            continue
        name = entry.name[:NAME]
        record = told.pop(entry.name, None)
        had += record is not None
        bare = Found(name, INBOX, f"{entry.next} {told_at} {had}", entry.end)
        try:
            yield _message(walk, entry, bare, record)
        except Unusable as problem:
            yield bare.refused(str(problem))
    yield from _lacking(told, f"{begun} -1 0", walk.size)


def _lacking(told: Mapping[str, Any], after: str, at: int) -> Iterator[Found]:
    """Yield a skipped message for each record of a manifest without an entry."""
    for name in told:
        yield Found(name[:NAME], INBOX, after, at, reason="told of in the archive, but not there")


def _told(walk: _Walk, entry: _Entry) -> dict[str, Mapping[str, Any]]:
    """Return the records of a manifest by file name.

    Raises DamagedArchiveError if it can't be read.
    """
    try:
        text = walk.content(entry, json_lines.MOST)
        lines = [json_lines.parsed(line) for line in text.splitlines()]
        return {record["file"]: record for record in lines if isinstance(record["file"], str)}
    except (Unusable, Wrong, KeyError) as problem:
        raise Broken("an archive of ours that is damaged: a manifest is none") from problem


def _message(walk: _Walk, entry: _Entry, bare: Found, record: Mapping[str, Any] | None) -> Found:
    """Read the message of an entry, with its record or with what the entry name says.

    Raises UnusableMessageError if the entry is no message.
    """
    if record is not None:
        raw = walk.content(entry, walk.origin.most)
        return _known(bare, raw, record)
    if entry.name.startswith(FOLDER):
        raise Unusable("a file of ours that we do not know")
    parts = entry.name.split("/")
    if entry.name.startswith("/") or ".." in parts or "" in parts:
        raise Unusable("a name that leads out of the archive")
    in_maildir = len(parts) > 1 and parts[-2] in ("cur", "new")
    if not in_maildir and not entry.name.lower().endswith(".eml"):
        raise Unusable("neither an .eml file nor one of a Maildir")
    raw = wired(walk.content(entry, walk.origin.most))
    if not raw:
        raise Unusable("empty")
    at = entry.at if isinstance(entry, tar_format.Entry) else None
    received = _instant(at) if in_maildir else dated(raw[: 1 << 16]) or _instant(at)
    levels = parts[:-2] if in_maildir else parts[:-1]
    if in_maildir and levels[:1] == ["Maildir"]:
        levels = levels[1:]
    folder = folder_of(levels) if in_maildir else "/".join(levels) or INBOX
    flags = maildir_flags(parts[-1]) if in_maildir else []
    return bare.with_message(raw, folder=folder, received_at=received, flags=flags)


def _instant(seconds: float | None) -> datetime | None:
    """Return the UTC time of seconds since 1970, None if missing or out of range."""
    try:
        return None if not seconds else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _known(bare: Found, raw: bytes, record: Mapping[str, Any]) -> Found:
    """Return a message with the facts of its record.

    Raises UnusableMessageError if the record is invalid or has another digest.
    """
    try:
        told: Told = json_lines.told(record)
    except Wrong as problem:
        raise Unusable(str(problem)) from problem
    if told.digest is not None and hashlib.sha256(raw).hexdigest() != told.digest:
        raise Unusable("damaged: it has another digest than is told")
    return Found(
        bare.name,
        told.mailbox,
        bare.after,
        bare.at,
        raw,
        received_at=told.received_at,
        flags=told.flags,
        sender=told.sender,
        told=told,
    )


def _lines(origin: Packed, file: IO[bytes], at: int) -> Iterator[Found]:
    """Yield the messages of JSON lines from an offset on. A checkpoint is an offset in bytes."""
    longest = json_lines.MOST + LARGER + origin.most // 3 * 4
    file.seek(at)
    number = 0
    while line := file.readline(longest):
        at += len(line)
        if not line.endswith(b"\n"):
            raise Broken("lines of JSON that were cut off, or one that is too long")
        number += 1
        record = _parsed(line)
        if record.get("kind") == "account":
            continue
        if record.get("kind") == "end":
            return
        bare = Found(f"{origin.path.name}, at byte {at - len(line)}", INBOX, str(at), at)
        try:
            yield _known(bare, _source(record, origin.most), record)
        except Unusable as problem:
            yield bare.refused(str(problem))
    raise Broken("lines of JSON without their end: they were cut off")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return json_lines.parsed(line)
    except Wrong as problem:
        raise Broken("lines of JSON, one of which is none") from problem


def _source(record: Mapping[str, Any], most: int) -> bytes:
    """Return the message bytes of a record.

    Raises UnusableMessageError if they are not base64 or too large.
    """
    source = record.get("source")
    try:
        raw = base64.b64decode(source if isinstance(source, str) else "?", validate=True)
    except (binascii.Error, ValueError) as problem:
        raise Unusable("its source is not base64") from problem
    if len(raw) > most:
        raise Unusable("larger than MERGANSER_MESSAGE_MAX")
    return raw
