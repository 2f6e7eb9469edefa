"""Messages in ZIP, tar and JSON lines archives, of this server or of others.

Entry names are never used as paths on this machine, and nothing is unpacked to disk. In an archive
of this server the record of a message counts, and not the entry name.
"""

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mail.archives import json_lines, mbox_reader, tar_format, zip_format
from mail.archives.byte_streams import CrToLfStream, FileRange, ZipEntryStream
from mail.archives.foreign_message import read_foreign_message
from mail.archives.json_lines import (
    ACCOUNT_FILE,
    MANIFEST_PREFIX,
    RECORDS_FOLDER,
    AccountRecord,
    InvalidRecordError,
    MessageRecord,
)
from mail.archives.mbox_reader import MboxFile
from mail.archives.source_message import (
    INBOX,
    SourceMessage,
    UnusableMessageError,
    mailbox_path_from_maildir,
    maildir_flags,
    parse_date_field_or_none,
    text_from_file_name,
)
from mail.archives.state_fields import with_message_and_state
from mail.archives.zip_format import DamagedArchiveError

MAX_COMPRESSION_RATIO = 100  # unpacked bytes per byte of the archive, on average,
RATIO_ALLOWANCE = 64 << 20  # beyond this number of bytes
JSON_LINE_OVERHEAD = 4096  # bytes of a line besides the message in base64
MAX_NAME_LENGTH = 4096  # characters of an entry name that are read
MBOX_BUFFER_BYTES = 1 << 16  # bytes of an mbox in the archive that are read at once


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """An archive on disk with its format."""

    path: Path
    kind: str  # zip, tar or json
    max_message_bytes: int  # larger messages are skipped


_Entry = tar_format.TarEntry | zip_format.ZipEntry


def detect_archive_format_or_none(first_bytes: bytes) -> str | None:
    """Return the archive format (zip, tar or json) of a file's first bytes, else None."""
    if first_bytes.startswith((zip_format.LOCAL, zip_format.END)):
        return "zip"
    if tar_format.is_tar(first_bytes):
        return "tar"
    return "json" if first_bytes.lstrip().startswith(b"{") else None


def read_account_record_of_archive(archive: ArchiveFile) -> AccountRecord | None:
    """Return the account record of an archive, None if it has none.

    Raises DamagedArchiveError if the archive can't be read.
    """
    record = read_account_object_of_archive(archive)
    return None if record is None else _account_from_record(record)


def read_account_object_of_archive(archive: ArchiveFile) -> dict[str, Any] | None:
    """Return the JSON object of the account record of an archive, None if it has none.

    Raises DamagedArchiveError if the archive can't be read.
    """
    with archive.path.open("rb") as file:
        if archive.kind == "json":
            record = _parse_json_record_within_limit(file.readline(json_lines.MAX_RECORD_BYTES + 1))
            if record.get("kind") != "account":
                raise DamagedArchiveError(
                    "The first line of the JSON Lines file is not an account record."
                )
            return record
        walk = _EntryReader(archive, file)
        for entry in walk.entries(0):
            if entry.name != ACCOUNT_FILE:
                return None
            return _parse_json_record_within_limit(
                walk.read_content_within_limits(entry, json_lines.MAX_RECORD_BYTES)
            )
    return None


def _account_from_record(record: Mapping[str, Any]) -> AccountRecord:
    """Raises DamagedArchiveError if a field of the record is invalid."""
    try:
        return json_lines.parse_account_record(record)
    except InvalidRecordError as problem:
        raise DamagedArchiveError(str(problem)) from problem


def _parse_json_record_within_limit(text: bytes) -> dict[str, Any]:
    """Parse the JSON of a record. Raises DamagedArchiveError if it is too large or invalid."""
    try:
        if len(text) > json_lines.MAX_RECORD_BYTES:
            raise DamagedArchiveError("A record of the archive is too large.")
        return json_lines.parse_json_object(text)
    except InvalidRecordError as problem:
        raise DamagedArchiveError("The archive is damaged or truncated.") from problem


def read_archive_messages_and_skips(
    archive: ArchiveFile, checkpoint: str | None
) -> Iterator[SourceMessage]:
    """Yield the messages after a checkpoint, and the entries that have to be skipped.

    Raises DamagedArchiveError if the archive is damaged or cut off.
    """
    with archive.path.open("rb") as file:
        if archive.kind == "json":
            yield from _read_json_lines(archive, file, int(checkpoint or 0))
        else:
            yield from _read_file_entries(_EntryReader(archive, file), checkpoint)


@dataclass(slots=True)
class _EntryReader:
    """Reads the entries of a ZIP or tar, and limits the unpacked bytes."""

    archive: ArchiveFile
    file: IO[bytes]
    size: int = field(init=False)
    zip_directory: zip_format.ZipDirectory | None = field(init=False, default=None)
    unpacked_bytes: int = field(init=False, default=0)  # of all entries read so far

    def __post_init__(self) -> None:
        self.size = self.file.seek(0, 2)
        if self.archive.kind == "zip":
            self.zip_directory = zip_format.find_central_directory_or_raise(self.file)

    def entries(self, start: int) -> Iterator[_Entry]:
        """Yield the entries from an offset on; 0 is the first entry."""
        if self.zip_directory is None:
            yield from tar_format.read_tar_entries(self.file, start)
        else:
            yield from zip_format.read_zip_entries(
                self.file, self.zip_directory, start or self.zip_directory.start
            )

    def read_content_within_limits(self, entry: _Entry, max_bytes: int) -> bytes:
        """Return the bytes of an entry.

        Raises UnusableMessageError if the entry is too large or damaged, and DamagedArchiveError if
        the archive unpacks to too many bytes.
        """
        if entry.unusable_reason:
            raise UnusableMessageError(entry.unusable_reason)
        if entry.size > max_bytes:
            raise UnusableMessageError("The message is larger than MERGANSER_MESSAGE_MAX_SIZE.")
        if (
            isinstance(entry, zip_format.ZipEntry)
            and entry.packed_size > max_bytes + RATIO_ALLOWANCE
        ):
            raise UnusableMessageError(
                "The message decompresses to more bytes than the archive states."
            )
        self.add_unpacked_bytes_within_limit(entry.size)
        if isinstance(entry, tar_format.TarEntry):
            return tar_format.read_content(self.file, entry)
        try:
            return zip_format.read_zip_entry_content(self.file, entry)
        except DamagedArchiveError as problem:
            raise UnusableMessageError(str(problem)) from problem

    def add_unpacked_bytes_within_limit(self, size: int) -> None:
        """Raises DamagedArchiveError if the archive unpacks to too many bytes."""
        self.unpacked_bytes += size
        if self.unpacked_bytes > self.size * MAX_COMPRESSION_RATIO + RATIO_ALLOWANCE:
            raise DamagedArchiveError(
                f"The archive decompresses to more than {MAX_COMPRESSION_RATIO} times its size."
            )

    def open_content(self, entry: _Entry) -> io.BufferedReader:
        """Open an entry as a file. Opening and reading raise DamagedArchiveError."""
        stream = (
            FileRange(self.file, entry.offset, entry.size)
            if isinstance(entry, tar_format.TarEntry)
            else ZipEntryStream(self.file, entry)
        )
        return io.BufferedReader(stream, MBOX_BUFFER_BYTES)


def _read_file_entries(reader: _EntryReader, checkpoint: str | None) -> Iterator[SourceMessage]:
    """Yield the messages of a ZIP or tar.

    A checkpoint has three numbers: the offset of the next entry, the offset of its manifest (-1:
    none), and the number of its records that were used. If the next message is inside an mbox, the
    fourth number is its offset in that entry.
    """
    numbers = [int(part) for part in (checkpoint or "0 -1 0").split()]
    at, manifest_offset, used_records = numbers[:3]
    mbox_offset = sum(numbers[3:])  # of the first entry only
    records: dict[str, Mapping[str, Any]] = {}
    if manifest_offset >= 0:
        records = _message_records_by_file_name(reader, next(iter(reader.entries(manifest_offset))))
        records = dict(islice(records.items(), used_records, None))
    next_offset = at
    for entry in reader.entries(at):
        entry_offset, next_offset = next_offset, entry.next_offset
        if entry.name.startswith(MANIFEST_PREFIX):
            yield from _skipped_messages_of_missing_entries(
                records, f"{entry_offset} -1 0", entry_offset
            )
            records = _message_records_by_file_name(reader, entry)
            manifest_offset = entry_offset
            used_records = 0
            continue
        if entry.name == ACCOUNT_FILE or (entry.name.endswith("/") and not entry.unusable_reason):
            continue
        record = records.pop(entry.name, None)
        used_records += record is not None
        manifest_position = f"{manifest_offset} {used_records}"
        if record is not None or not _is_file_of_operating_system(entry.name):
            source_message = SourceMessage(
                entry.name[:MAX_NAME_LENGTH],
                INBOX,
                f"{entry.next_offset} {manifest_position}",
                entry.end,
            )
            mbox_position = _MboxPosition(f"{entry_offset} {manifest_position}", mbox_offset)
            yield from _read_messages_of_entry(reader, entry, source_message, record, mbox_position)
        mbox_offset = 0
    yield from _skipped_messages_of_missing_entries(records, f"{next_offset} -1 0", reader.size)


def _is_file_of_operating_system(entry_name: str) -> bool:
    """True if macOS added this file to the archive. It is never mail."""
    *folders, name = entry_name.split("/")
    return "__MACOSX" in folders or name.startswith("._") or name == ".DS_Store"


@dataclass(frozen=True, slots=True)
class _MboxPosition:
    """The position in an entry that is an mbox."""

    checkpoint: str  # of the entry; the offset in it follows
    offset: int  # of the next message in the entry


def _read_messages_of_entry(
    reader: _EntryReader,
    entry: _Entry,
    source_message: SourceMessage,
    record: Mapping[str, Any] | None,
    mbox_position: _MboxPosition,
) -> Iterator[SourceMessage]:
    """Yield the message of an entry, or the messages of an mbox, or the reason for a skip."""
    try:
        file = _open_mbox_or_none(reader, entry) if record is None else None
        if file is None:
            yield _read_message_of_entry_or_raise(reader, entry, source_message, record)
        else:
            yield from _read_mbox_of_entry(reader, entry, file, mbox_position)
    except UnusableMessageError as problem:
        yield source_message.with_skip_reason(str(problem))


def _open_mbox_or_none(reader: _EntryReader, entry: _Entry) -> io.BufferedReader | None:
    """Open an entry if it is an mbox, by its first line. Raises UnusableMessageError."""
    if entry.unusable_reason or _is_message_file(entry.name) or not _is_safe_name(entry.name):
        return None
    try:
        file = reader.open_content(entry)
        return file if mbox_reader.is_mbox(file.peek(MBOX_BUFFER_BYTES)) else None
    except DamagedArchiveError as problem:
        raise UnusableMessageError(str(problem)) from problem


def _read_mbox_of_entry(
    reader: _EntryReader, entry: _Entry, file: io.BufferedReader, position: _MboxPosition
) -> Iterator[SourceMessage]:
    """Yield the messages of an mbox in the archive. Raises UnusableMessageError if it is damaged.

    Raises DamagedArchiveError if the archive unpacks to too many bytes.
    """
    reader.add_unpacked_bytes_within_limit(entry.size)
    size = entry.size if isinstance(entry, tar_format.TarEntry) else entry.packed_size
    try:
        has_cr_line_ends = mbox_reader.has_cr_line_ends(file.peek(MBOX_BUFFER_BYTES))
        for start in range(0, position.offset, MBOX_BUFFER_BYTES):
            file.read(min(MBOX_BUFFER_BYTES, position.offset - start))
        mbox = MboxFile(
            io.BufferedReader(CrToLfStream(file)) if has_cr_line_ends else file,
            entry.name[:MAX_NAME_LENGTH],
            _mailbox_path_from_mbox(entry.name),
            reader.archive.max_message_bytes,
        )
        for message in mbox_reader.read_mbox_messages_and_skips(mbox, position.offset):
            yield replace(
                message,
                checkpoint=f"{position.checkpoint} {message.progress}",
                progress=entry.end - size + size * message.progress // max(entry.size, 1),
            )
    except DamagedArchiveError as problem:
        raise UnusableMessageError(str(problem)) from problem


def _mailbox_path_from_mbox(entry_name: str) -> str:
    """Return the mailbox path of an mbox file in an archive.

    Google Takeout has `Takeout/Mail/NAME.mbox`, Apple Mail `NAME.mbox/mbox`, and Thunderbird
    `NAME.sbd/NAME`.
    """
    levels = entry_name.split("/")
    if len(levels) > 1 and levels[-1] == "mbox":
        levels.pop()
    if levels[:2] == ["Takeout", "Mail"]:
        levels = levels[2:]
    levels = [level.removesuffix(".mbox").removesuffix(".sbd") for level in levels]
    return INBOX if levels in ([], ["mbox"]) else "/".join(levels)


def _skipped_messages_of_missing_entries(
    records: Mapping[str, Any], checkpoint: str, progress: int
) -> Iterator[SourceMessage]:
    """Yield a skipped message for each record of a manifest without an entry."""
    for name in records:
        yield SourceMessage(
            name[:MAX_NAME_LENGTH],
            INBOX,
            checkpoint,
            progress,
            reason="The file of the message is missing in the archive.",
        )


def _message_records_by_file_name(
    reader: _EntryReader, manifest_entry: _Entry
) -> dict[str, Mapping[str, Any]]:
    """Return the records of a manifest by file name.

    Raises DamagedArchiveError if it can't be read.
    """
    try:
        text = reader.read_content_within_limits(manifest_entry, json_lines.MAX_RECORD_BYTES)
        lines = json_lines.parse_json_objects(text)
        return {record["file"]: record for record in lines if isinstance(record["file"], str)}
    except (UnusableMessageError, InvalidRecordError, KeyError) as problem:
        raise DamagedArchiveError(
            "The archive is damaged: a manifest can't be parsed."
        ) from problem


def _read_message_of_entry_or_raise(
    reader: _EntryReader,
    entry: _Entry,
    source_message: SourceMessage,
    record: Mapping[str, Any] | None,
) -> SourceMessage:
    """Read the message of an entry, with its record or with what the entry name says.

    Raises UnusableMessageError if the entry is no message.
    """
    if record is not None:
        raw = reader.read_content_within_limits(entry, reader.archive.max_message_bytes)
        return _message_checked_against_record(source_message, raw, record)
    if entry.name.startswith(RECORDS_FOLDER):
        raise UnusableMessageError("The archive contains an unknown file.")
    if not _is_safe_name(entry.name):
        raise UnusableMessageError("The file name points outside of the archive.")
    if not _is_message_file(entry.name):
        raise UnusableMessageError(
            "The file is neither an .eml file, an mbox file nor a file of a Maildir."
        )
    parts = entry.name.split("/")
    in_maildir = _is_in_maildir(entry.name)
    content = reader.read_content_within_limits(entry, reader.archive.max_message_bytes)
    if not content:
        raise UnusableMessageError("The file is empty.")
    raw = read_foreign_message(content)
    at = entry.modified_at if isinstance(entry, tar_format.TarEntry) else None
    received = _utc_from_timestamp_or_none(at)
    if not in_maildir:
        source_message = replace(source_message, folder="/".join(parts[:-1]) or INBOX)
        received = parse_date_field_or_none(raw[: 1 << 16]) or received
        return with_message_and_state(source_message, raw, received)
    folder = mailbox_path_from_maildir(parts[1:-2] if parts[0] == "Maildir" else parts[:-2])
    flags = maildir_flags(parts[-1])
    return source_message.with_message(raw, folder=folder, received_at=received, flags=flags)


def _is_safe_name(entry_name: str) -> bool:
    """True if the name is a path inside the archive."""
    return not {"", ".."} & set(entry_name.split("/"))


def _is_message_file(entry_name: str) -> bool:
    """True if an entry is one message by its name, or a record of this server."""
    is_record = entry_name.startswith(RECORDS_FOLDER)
    return is_record or _is_in_maildir(entry_name) or entry_name.lower().endswith(".eml")


def _is_in_maildir(entry_name: str) -> bool:
    return entry_name.split("/")[-2:-1] in (["cur"], ["new"])


def _utc_from_timestamp_or_none(seconds: float | None) -> datetime | None:
    """Return the UTC time of seconds since 1970, None if missing or out of range."""
    try:
        return None if not seconds else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _message_checked_against_record(
    source_message: SourceMessage, raw: bytes, record: Mapping[str, Any]
) -> SourceMessage:
    """Return a message with the facts of its record.

    Raises UnusableMessageError if the record is invalid or has another digest.
    """
    try:
        stored_record: MessageRecord = json_lines.parse_message_record(record)
    except InvalidRecordError as problem:
        raise UnusableMessageError(str(problem)) from problem
    if stored_record.digest is not None and hashlib.sha256(raw).hexdigest() != stored_record.digest:
        raise UnusableMessageError("The message is damaged: its digest differs from the manifest.")
    return SourceMessage(
        source_message.name,
        stored_record.mailbox,
        source_message.checkpoint,
        source_message.progress,
        raw,
        received_at=stored_record.received_at,
        flags=stored_record.flags,
        sender=stored_record.sender,
        record=stored_record,
    )


def _read_json_lines(archive: ArchiveFile, file: IO[bytes], start: int) -> Iterator[SourceMessage]:
    """Yield the messages of JSON lines from an offset on. A checkpoint is an offset in bytes."""
    longest = json_lines.MAX_RECORD_BYTES + JSON_LINE_OVERHEAD + archive.max_message_bytes // 3 * 4
    file.seek(start)
    number = 0
    while line := file.readline(longest):
        start += len(line)
        if not line.endswith(b"\n"):
            raise DamagedArchiveError("A line of the JSON Lines file is truncated or too long.")
        number += 1
        record = _parse_line(line)
        if record.get("kind") == "account":
            continue
        if record.get("kind") == "end":
            return
        source_message = SourceMessage(
            f"{text_from_file_name(archive.path.name)}, at byte {start - len(line)}",
            INBOX,
            str(start),
            start,
        )
        try:
            yield _message_checked_against_record(
                source_message, _decode_message_source(record, archive.max_message_bytes), record
            )
        except UnusableMessageError as problem:
            yield source_message.with_skip_reason(str(problem))
    raise DamagedArchiveError("The JSON Lines file is truncated: the last record is missing.")


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        return json_lines.parse_json_object(line)
    except InvalidRecordError as problem:
        raise DamagedArchiveError("A line of the JSON Lines file is not JSON.") from problem


def _decode_message_source(record: Mapping[str, Any], max_bytes: int) -> bytes:
    """Return the message bytes of a record.

    Raises UnusableMessageError if they are not base64 or too large.
    """
    source = record.get("source")
    try:
        raw = base64.b64decode(source if isinstance(source, str) else "?", validate=True)
    except (binascii.Error, ValueError) as problem:
        raise UnusableMessageError("The source of the message is not base64.") from problem
    if len(raw) > max_bytes:
        raise UnusableMessageError("The message is larger than MERGANSER_MESSAGE_MAX_SIZE.")
    return raw
