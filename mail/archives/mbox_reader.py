"""Messages of an mbox file of any program, with one message in memory at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from mail.archives import mbox_format
from mail.archives.foreign_message import read_foreign_message
from mail.archives.source_message import (
    SourceMessage,
    UnusableMessageError,
    parse_date_field_or_none,
)
from mail.archives.state_fields import with_message_and_state
from mail.mime.header_fields import UTF8_BOM

_FROM_LINE = re.compile(rb"From (\S*) (?:.*\b\d{1,2}:\d{2}|.*\d{4}$)")  # a time, or a year last
_QUOTED_FROM_LINE = re.compile(rb"^>+From ")
_ASCTIME = re.compile(
    rb"(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) +(?P<time>\d{1,2}:\d{2}(?::\d{2})?)"
    rb"(?: +[A-Z]{2,5})?(?: +(?P<zone>[+-]\d{4}))? +(?P<year>\d{4})(?: +(?P<behind>[+-]\d{4}))?"
)
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MAX_LINE_READ = 1 << 20  # bytes of a line that are read at once
_MAX_FROM_LINE_BYTES = 1000


class LineReader(Protocol):
    """A file that is read line by line."""

    def readline(self, size: int = -1, /) -> bytes:
        """Return the next line, at most `size` bytes of it; empty at the end."""
        ...


@dataclass(frozen=True, slots=True)
class MboxFile:
    """An open mbox file, read from the start of a From line on, and its name for people."""

    file: LineReader
    name: str
    folder: str  # path of a mailbox
    max_message_bytes: int  # larger messages are skipped


def is_mbox(first_bytes: bytes) -> bool:
    """True if the first line of a file that is not blank is a From line."""
    text = first_bytes.removeprefix(UTF8_BOM).lstrip(b"\r\n")[:_MAX_FROM_LINE_BYTES]
    return _FROM_LINE.match(re.split(rb"[\r\n]", text, maxsplit=1)[0].rstrip()) is not None


def has_cr_line_ends(first_bytes: bytes) -> bool:
    """True if lines end with a CR alone, as on old Macintosh computers."""
    return b"\r" in first_bytes and b"\n" not in first_bytes


def read_mbox_messages_and_skips(mbox: MboxFile, start: int) -> Iterator[SourceMessage]:
    """Yield the messages of an mbox file whose next line is at the offset `start`.

    A checkpoint is the offset of the next From line.
    """
    offset, line = start, mbox.file.readline(_MAX_LINE_READ)
    if not start:
        first_line = line.removeprefix(UTF8_BOM)
        while first_line and not first_line.strip():
            offset += len(line)
            first_line = line = mbox.file.readline(_MAX_LINE_READ)
    while line:
        entry = _read_mbox_entry(mbox.file, mbox.max_message_bytes)
        end = offset + len(line) + entry.read_bytes
        source_message = SourceMessage(f"{mbox.name}, at byte {offset}", mbox.folder, str(end), end)
        try:
            yield _message_of_mbox_entry(source_message, line, entry, mbox.max_message_bytes)
        except UnusableMessageError as problem:
            yield source_message.with_skip_reason(str(problem))
        offset, line = end, entry.next_from_line


@dataclass(frozen=True, slots=True)
class _MboxEntry:
    """The unquoted lines of a message in an mbox file, up to the next From line."""

    content: bytes  # incomplete if larger than `max_bytes`
    size: int  # bytes of all lines
    read_bytes: int  # of the file, up to the next From line
    next_from_line: bytes  # empty at the end of the file


def _read_mbox_entry(file: LineReader, max_bytes: int) -> _MboxEntry:
    """Read the lines after a From line.

    A line longer than one read comes in several pieces; only the first one begins a line.
    """
    content = bytearray()  # objects for short lines would need many times their size
    size, read_bytes, after_blank_line, at_line_start, last_line = 0, 0, True, True, b""
    while line := file.readline(_MAX_LINE_READ):
        if (
            after_blank_line
            and at_line_start
            and line.startswith(b"From ")
            and _FROM_LINE.match(line.rstrip())
        ):
            break
        read_bytes += len(line)
        after_blank_line = at_line_start and line in (b"\n", b"\r\n")
        if at_line_start and _QUOTED_FROM_LINE.match(line):
            line = line[1:]
        at_line_start = line.endswith(b"\n")
        size += len(line)
        if size <= max_bytes:
            content += line
            last_line = line
    if after_blank_line and content and size <= max_bytes:
        size -= len(last_line)  # it belongs to the next From line, or to the file's end
        del content[size:]
    return _MboxEntry(bytes(content), size, read_bytes, line)


def _message_of_mbox_entry(
    source_message: SourceMessage, from_line: bytes, entry: _MboxEntry, max_bytes: int
) -> SourceMessage:
    """Return a message with the sender, time and flags of its From line and header.

    Raises UnusableMessageError if the entry is too large or no message.
    """
    if entry.size > max_bytes:
        raise UnusableMessageError("The message is larger than MERGANSER_MESSAGE_MAX_SIZE.")
    raw = mbox_format.restore_exact_message_or_none(entry.content, from_line)
    if raw is None:
        if not entry.content:
            raise UnusableMessageError("The message is empty.")
        raw = read_foreign_message(entry.content)
    match = _FROM_LINE.match(from_line.rstrip().removeprefix(UTF8_BOM))
    sender = match[1].decode("utf-8", "replace") if match else ""
    header = raw[: raw.find(b"\r\n\r\n") + 2] if b"\r\n\r\n" in raw else raw[: 1 << 16]
    received_at = _parse_from_line_date_or_none(from_line) or parse_date_field_or_none(header)
    message = with_message_and_state(source_message, raw, received_at)
    return replace(message, sender=sender if "@" in sender else None)


def _parse_from_line_date_or_none(line: bytes) -> datetime | None:
    """Return the UTC time of a From line, None if it can't be read."""
    match = _ASCTIME.search(line)
    if match is None or match["month"] not in _MONTHS:
        return None
    zone = (match["zone"] or match["behind"] or b"+0000").decode()
    month = _MONTHS.index(match["month"]) + 1
    clock = match["time"].decode()
    text = f"{match['year'].decode()}-{month:02}-{int(match['day']):02} {clock}"
    try:
        form = "%Y-%m-%d %H:%M:%S %z" if clock.count(":") > 1 else "%Y-%m-%d %H:%M %z"
        return datetime.strptime(f"{text} {zone}", form).astimezone(UTC)
    except ValueError:
        return None
