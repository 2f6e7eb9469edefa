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
from mail.archives.foreign_message import read_foreign_message
from mail.archives.json_lines import (
    ACCOUNT_FILE,
    MANIFEST_PREFIX,
    RECORDS_FOLDER,
    AccountRecord,
    InvalidRecordError,
    MessageRecord,
)
from mail.archives.source_message import (
    INBOX,
    SourceMessage,
    UnusableMessageError,
    mailbox_path_from_maildir,
    maildir_flags,
    parse_date_field_or_none,
)
from mail.archives.zip_format import DamagedArchiveError

MAX_COMPRESSION_RATIO = 100  # unpacked bytes per byte of the archive, on average,
RATIO_ALLOWANCE = 64 << 20  # beyond this number of bytes
JSON_LINE_OVERHEAD = 4096  # bytes of a line besides the message in base64
MAX_NAME_LENGTH = 4096  # characters of an entry name that are read


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
        self.unpacked_bytes += entry.size
        if self.unpacked_bytes > self.size * MAX_COMPRESSION_RATIO + RATIO_ALLOWANCE:
            raise DamagedArchiveError(
                f"The archive decompresses to more than {MAX_COMPRESSION_RATIO} times its size."
            )
        if isinstance(entry, tar_format.TarEntry):
            return tar_format.read_content(self.file, entry)
        try:
            return zip_format.read_zip_entry_content(self.file, entry)
        except DamagedArchiveError as problem:
            raise UnusableMessageError(str(problem)) from problem


def _read_file_entries(reader: _EntryReader, checkpoint: str | None) -> Iterator[SourceMessage]:
    """Yield the messages of a ZIP or tar.

    A checkpoint has three numbers: the offset of the next entry, the offset of its manifest (-1:
    none), and the number of its records that were used.
    """
    at, manifest_offset, used_records = (int(part) for part in (checkpoint or "0 -1 0").split())
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
            records, manifest_offset, used_records = (
                _message_records_by_file_name(reader, entry),
                entry_offset,
                0,
            )
            continue
        if entry.name == ACCOUNT_FILE or (entry.name.endswith("/") and not entry.unusable_reason):
            continue
        name = entry.name[:MAX_NAME_LENGTH]
        record = records.pop(entry.name, None)
        used_records += record is not None
        source_message = SourceMessage(
            name, INBOX, f"{entry.next_offset} {manifest_offset} {used_records}", entry.end
        )
        try:
            yield _read_message_of_entry_or_raise(reader, entry, source_message, record)
        except UnusableMessageError as problem:
            yield source_message.with_skip_reason(str(problem))
    yield from _skipped_messages_of_missing_entries(records, f"{next_offset} -1 0", reader.size)


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
        lines = [json_lines.parse_json_object(line) for line in text.splitlines()]
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
    parts = entry.name.split("/")
    if entry.name.startswith("/") or ".." in parts or "" in parts:
        raise UnusableMessageError("The file name points outside of the archive.")
    in_maildir = len(parts) > 1 and parts[-2] in ("cur", "new")
    if not in_maildir and not entry.name.lower().endswith(".eml"):
        raise UnusableMessageError("The file is neither an .eml file nor a file of a Maildir.")
    content = reader.read_content_within_limits(entry, reader.archive.max_message_bytes)
    if not content:
        raise UnusableMessageError("The file is empty.")
    raw = read_foreign_message(content)
    at = entry.modified_at if isinstance(entry, tar_format.TarEntry) else None
    received = (
        _utc_from_timestamp_or_none(at)
        if in_maildir
        else parse_date_field_or_none(raw[: 1 << 16]) or _utc_from_timestamp_or_none(at)
    )
    levels = parts[:-2] if in_maildir else parts[:-1]
    if in_maildir and levels[:1] == ["Maildir"]:
        levels = levels[1:]
    folder = mailbox_path_from_maildir(levels) if in_maildir else "/".join(levels) or INBOX
    flags = maildir_flags(parts[-1]) if in_maildir else []
    return source_message.with_message(raw, folder=folder, received_at=received, flags=flags)


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
            f"{archive.path.name}, at byte {start - len(line)}", INBOX, str(start), start
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
