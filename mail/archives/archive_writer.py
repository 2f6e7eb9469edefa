"""Archives that are written in chunks. A few numbers keep the state between two chunks."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from mail.archives import json_lines, mbox_format, tar_format, zip_format
from mail.archives.json_lines import ACCOUNT_FILE, MANIFEST_PREFIX, ExportedMessage


class ExportFormat(StrEnum):
    """The file format of an export."""

    MBOX = "MBOX"
    EML_ZIP = "EML_ZIP"
    MAILDIR_TAR = "MAILDIR_TAR"
    JSON = "JSON"


SUFFIXES_AND_MEDIA_TYPES = {
    ExportFormat.MBOX: ("mbox", "application/mbox"),
    ExportFormat.EML_ZIP: ("zip", "application/zip"),
    ExportFormat.MAILDIR_TAR: ("tar", "application/x-tar"),
    ExportFormat.JSON: ("jsonl", "application/jsonl"),
}


def media_type(export_format: ExportFormat) -> str:
    """Return the media type of an export format."""
    return SUFFIXES_AND_MEDIA_TYPES[export_format][1]


@dataclass(slots=True)
class ArchiveState:
    """How much of an archive is written."""

    offset: int = 0  # bytes
    directory: int = 0  # bytes of the ZIP directory, which follows all entries
    entries: int = 0
    messages: int = 0
    chunks: int = 0

    def checkpoint(self) -> dict[str, int]:
        """Return the state as a dict for a checkpoint."""
        return asdict(self)


@dataclass(slots=True)
class ArchiveChunk:
    """The next bytes of an archive, and of its ZIP directory."""

    data: bytes
    directory: bytes = b""


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A file to write into a tar or ZIP archive."""

    name: str
    content: bytes
    modified_at: datetime


def encode_account_chunk_and_advance_state(
    export_format: ExportFormat,
    state: ArchiveState,
    account: Mapping[str, Any],
    modified_at: datetime,
) -> ArchiveChunk:
    """Return the first chunk of an archive, with the account record."""
    record = {"format": json_lines.FORMAT, "version": json_lines.VERSION, **account}
    if export_format is ExportFormat.MBOX:
        return ArchiveChunk(b"")
    if export_format is ExportFormat.JSON:
        return _add_chunk_size_to_state(
            state, ArchiveChunk(json_lines.json_line({"kind": "account", **record}))
        )
    account_entry = ArchiveEntry(ACCOUNT_FILE, json_lines.json_line(record), modified_at)
    return _encode_entries_chunk_and_advance_state(export_format, state, [account_entry])


def encode_messages_chunk_and_advance_state(
    export_format: ExportFormat,
    state: ArchiveState,
    messages: Sequence[ExportedMessage],
    modified_at: datetime,
) -> ArchiveChunk:
    """Return the chunk of the next messages. Run it in a thread, since it compresses."""
    state.messages += len(messages)
    state.chunks += 1
    if export_format is ExportFormat.MBOX:
        parts = [
            mbox_format.encode_mbox_entry(m.raw, m.record.sender, m.record.received_at)
            for m in messages
        ]
        return _add_chunk_size_to_state(state, ArchiveChunk(b"".join(parts)))
    if export_format is ExportFormat.JSON:
        return _add_chunk_size_to_state(
            state, ArchiveChunk(b"".join(map(_json_line_with_source, messages)))
        )
    named_messages = [(_entry_name(export_format, message), message) for message in messages]
    lines = b"".join(
        json_lines.json_line(json_lines.json_object_from_record(m.record, file=name))
        for name, m in named_messages
    )
    manifest = ArchiveEntry(f"{MANIFEST_PREFIX}{state.chunks:07}.jsonl", lines, modified_at)
    message_entries = [
        ArchiveEntry(name, message.raw, message.record.received_at)
        for name, message in named_messages
    ]
    return _encode_entries_chunk_and_advance_state(
        export_format, state, [manifest, *message_entries]
    )


def archive_and_directory_end(
    export_format: ExportFormat, state: ArchiveState
) -> tuple[bytes, bytes]:
    """Return the last bytes of the archive, and the last bytes of its directory."""
    if export_format is ExportFormat.MAILDIR_TAR:
        return tar_format.END, b""
    if export_format is ExportFormat.JSON:
        return json_lines.json_line({"kind": "end", "messages": state.messages}), b""
    if export_format is ExportFormat.EML_ZIP:
        return b"", zip_format.directory_end_records(state.entries, state.directory, state.offset)
    return b"", b""


def _add_chunk_size_to_state(state: ArchiveState, chunk: ArchiveChunk) -> ArchiveChunk:
    """Add the length of a chunk to the state, and return the chunk."""
    state.offset += len(chunk.data)
    state.directory += len(chunk.directory)
    return chunk


def _json_line_with_source(message: ExportedMessage) -> bytes:
    source = base64.b64encode(message.raw).decode()
    return json_lines.json_line(
        {**json_lines.json_object_from_record(message.record, kind="message"), "source": source}
    )


def _entry_name(export_format: ExportFormat, message: ExportedMessage) -> str:
    record, number = message.record, message.number
    if export_format is ExportFormat.EML_ZIP:
        return (
            f"{json_lines.portable_folder_path(record.mailbox, message.mailbox_id)}/{number:07}.eml"
        )
    folder = json_lines.maildir_folder_prefix_or_empty(record.mailbox, message.mailbox_id)
    stamp = int(record.received_at.timestamp())
    flags = json_lines.maildir_flag_letters(record.flags)
    return f"Maildir/{folder}cur/{stamp}.{number:07}.merganser:2,{flags}"


def _encode_entries_chunk_and_advance_state(
    export_format: ExportFormat, state: ArchiveState, entries: Sequence[ArchiveEntry]
) -> ArchiveChunk:
    """Return the chunk of files."""
    data, directory = io.BytesIO(), io.BytesIO()
    for entry in entries:
        if export_format is ExportFormat.MAILDIR_TAR:
            data.write(tar_format.encode_tar_entry(entry.name, entry.content, entry.modified_at))
        else:
            local, directory_entry = zip_format.local_and_directory_entry(
                entry.name, entry.content, entry.modified_at, state.offset + data.tell()
            )
            data.write(local)
            directory.write(directory_entry)
        state.entries += 1
    return _add_chunk_size_to_state(state, ArchiveChunk(data.getvalue(), directory.getvalue()))
