"""Archives that are written in chunks. A few numbers keep the state between two chunks."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from mail.archives import json_lines, mbox_format, tar_format, zip_format
from mail.archives.json_lines import ACCOUNT, MANIFEST, Outgoing


class ExportFormat(StrEnum):
    """The file format of an export."""

    MBOX = "MBOX"
    EML_ZIP = "EML_ZIP"
    MAILDIR_TAR = "MAILDIR_TAR"
    JSON = "JSON"


ENDINGS = {
    ExportFormat.MBOX: ("mbox", "application/mbox"),
    ExportFormat.EML_ZIP: ("zip", "application/zip"),
    ExportFormat.MAILDIR_TAR: ("tar", "application/x-tar"),
    ExportFormat.JSON: ("jsonl", "application/jsonl"),
}


def kind_of(kind: ExportFormat) -> str:
    """Return the media type of an export format."""
    return ENDINGS[kind][1]


@dataclass(slots=True)
class State:
    """How much of an archive is written."""

    offset: int = 0  # bytes
    directory: int = 0  # bytes of the ZIP directory, which follows all entries
    entries: int = 0
    messages: int = 0
    chunks: int = 0

    def plain(self) -> dict[str, int]:
        """Return the state as a dict for a checkpoint."""
        return asdict(self)


@dataclass(slots=True)
class Chunk:
    """The next bytes of an archive, and of its ZIP directory."""

    data: bytes
    directory: bytes = b""


def begun(kind: ExportFormat, state: State, account: Mapping[str, Any], at: datetime) -> Chunk:
    """Return the first chunk of an archive, with the account record."""
    record = {"format": json_lines.FORMAT, "version": json_lines.VERSION, **account}
    if kind is ExportFormat.MBOX:
        return Chunk(b"")
    if kind is ExportFormat.JSON:
        return _counted(state, Chunk(json_lines.line({"kind": "account", **record})))
    return _entries(kind, state, [(ACCOUNT, json_lines.line(record), at)])


def put(kind: ExportFormat, state: State, messages: Sequence[Outgoing], at: datetime) -> Chunk:
    """Return the chunk of the next messages. Run it in a thread, since it compresses."""
    state.messages += len(messages)
    state.chunks += 1
    if kind is ExportFormat.MBOX:
        parts = [mbox_format.entry(m.raw, m.told.sender, m.told.received_at) for m in messages]
        return _counted(state, Chunk(b"".join(parts)))
    if kind is ExportFormat.JSON:
        return _counted(state, Chunk(b"".join(map(_line, messages))))
    named = [(_name(kind, each), each) for each in messages]
    lines = b"".join(json_lines.line(json_lines.written(m.told, file=name)) for name, m in named)
    told = (f"{MANIFEST}{state.chunks:07}.jsonl", lines, at)
    files = [(name, each.raw, each.told.received_at) for name, each in named]
    return _entries(kind, state, [told, *files])


def ended(kind: ExportFormat, state: State) -> tuple[bytes, bytes]:
    """Return the last bytes of the archive, and the last bytes of its directory."""
    if kind is ExportFormat.MAILDIR_TAR:
        return tar_format.END, b""
    if kind is ExportFormat.JSON:
        return json_lines.line({"kind": "end", "messages": state.messages}), b""
    if kind is ExportFormat.EML_ZIP:
        return b"", zip_format.end(state.entries, state.directory, state.offset)
    return b"", b""


def _counted(state: State, chunk: Chunk) -> Chunk:
    """Add the length of a chunk to the state, and return the chunk."""
    state.offset += len(chunk.data)
    state.directory += len(chunk.directory)
    return chunk


def _line(message: Outgoing) -> bytes:
    source = base64.b64encode(message.raw).decode()
    return json_lines.line({**json_lines.written(message.told, kind="message"), "source": source})


def _name(kind: ExportFormat, message: Outgoing) -> str:
    told, number = message.told, message.number
    if kind is ExportFormat.EML_ZIP:
        return f"{json_lines.folder(told.mailbox, message.mailbox_id)}/{number:07}.eml"
    place = json_lines.maildir(told.mailbox, message.mailbox_id)
    stamp = int(told.received_at.timestamp())
    flags = json_lines.letters(told.flags)
    return f"Maildir/{place}cur/{stamp}.{number:07}.merganser:2,{flags}"


def _entries(
    kind: ExportFormat, state: State, files: Sequence[tuple[str, bytes, datetime]]
) -> Chunk:
    """Return the chunk of files, given as name, content and modification time."""
    data, directory = io.BytesIO(), io.BytesIO()
    for name, content, at in files:
        if kind is ExportFormat.MAILDIR_TAR:
            data.write(tar_format.entry(name, content, at))
        else:
            local, told = zip_format.entry(name, content, at, state.offset + data.tell())
            data.write(local)
            directory.write(told)
        state.entries += 1
    return _counted(state, Chunk(data.getvalue(), directory.getvalue()))
