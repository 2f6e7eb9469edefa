"""Mail in files: an mbox, a Maildir, a folder of .eml files, or an archive of them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from mail.archives import archive_reader, mbox_format
from mail.archives.archive_reader import ArchiveFile
from mail.archives.foreign_message import is_start_of_message, read_foreign_message
from mail.archives.json_lines import AccountRecord
from mail.archives.source_message import (
    INBOX,
    SourceMessage,
    UnusableMessageError,
    mailbox_path_from_maildir,
    maildir_flags,
    parse_date_field_or_none,
)
from mail.archives.zip_format import DamagedArchiveError
from mail.mime.header_fields import UTF8_BOM

_FROM_LINE = re.compile(rb"From (\S*) .*?\b(\d{1,2}:\d{2}.*|.*\d{4})$")
_QUOTED_FROM_LINE = re.compile(rb"^>+From ")
_ASCTIME = re.compile(
    rb"(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) +(?P<time>\d{1,2}:\d{2}(?::\d{2})?)"
    rb"(?: +[A-Z]{2,5})?(?: +(?P<zone>[+-]\d{4}))? +(?P<year>\d{4})(?: +(?P<behind>[+-]\d{4}))?"
)
_STATUS = re.compile(rb"^(?:X-)?Status:[ \t]*([A-Za-z]*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_MBOX_STATUS_FLAGS = {
    "R": "\\Seen",
    "F": "\\Flagged",
    "A": "\\Answered",
    "T": "\\Draft",
    "D": "\\Deleted",
}
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MAX_LINE_READ = 1 << 20  # bytes of a line that are read at once
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
HEAD_BYTES = 4096  # first bytes that show the format of a file
_SERVER_FILES = (
    "dovecot",
    "maildirfolder",
    "courier",
    "subscriptions",
)  # files of mail servers in a Maildir


@dataclass(frozen=True, slots=True)
class MailSource:
    """A file or folder that messages are read from.

    `total` counts bytes of a single file, else files.
    """

    path: Path
    source_format: str  # mbox, maildir, eml, zip, tar or json
    total: int
    stamp: str  # changes when checkpoints of it may be invalid
    max_message_bytes: int = field(default=1 << 26)  # larger messages are skipped
    account: AccountRecord | None = None  # if the archive has an account record

    @property
    def is_single_file(self) -> bool:
        """True if it is one file, so that checkpoints in it are offsets in bytes."""
        return self.source_format not in ("maildir", "eml")


def inspect_mail_source(path: Path, max_message_bytes: int) -> MailSource:
    """Return the mail source at a path.

    Raises UnusableMessageError if it has no mail, and OSError if it can't be read.
    """
    if path.is_dir():
        if _is_maildir(path) or any(
            _is_maildir(entry_path) for entry_path in path.iterdir() if entry_path.is_dir()
        ):
            return MailSource(
                path, "maildir", sum(1 for _ in _maildir_files(path, None)), "", max_message_bytes
            )
        total = sum(1 for _ in _eml_and_other_files(path, None))
        return MailSource(path, "eml", total, "", max_message_bytes)
    facts = path.stat()
    with path.open("rb") as file:
        kind = (
            "eml"
            if path.suffix.lower() == ".eml"
            else detect_mail_format_or_raise(file.read(HEAD_BYTES))
        )
    if kind == "eml":
        return MailSource(path, kind, 1, "", max_message_bytes)
    stamp = f"{facts.st_ino}.{facts.st_size}.{facts.st_mtime_ns}"
    if kind == "mbox":
        return MailSource(path, kind, facts.st_size, stamp, max_message_bytes)
    try:
        account = archive_reader.read_account_record_of_archive(
            ArchiveFile(path, kind, max_message_bytes)
        )
    except (DamagedArchiveError, UnusableMessageError) as problem:
        raise UnusableMessageError(str(problem)) from problem
    return MailSource(path, kind, facts.st_size, stamp, max_message_bytes, account)


def detect_mail_format_or_raise(first_bytes: bytes) -> str:
    """Return the source format of a file's first bytes. Raises UnusableMessageError."""
    first_bytes = first_bytes.removeprefix(UTF8_BOM)
    first = first_bytes.partition(b"\n")[0][:1000]
    if _FROM_LINE.match(first.rstrip()):
        return "mbox"
    if kind := archive_reader.detect_archive_format_or_none(first_bytes):
        return kind
    if first_bytes.startswith(_COMPRESSED_MAGIC):
        raise UnusableMessageError(
            "The file is compressed as a whole: decompress it to a tar archive or an mbox file."
        )
    if is_start_of_message(first_bytes):
        return "eml"
    raise UnusableMessageError("The file is not an mbox file, Maildir or supported archive.")


def read_source_messages_and_skips(
    source: MailSource, checkpoint: str | None
) -> Iterator[SourceMessage]:
    """Yield all messages after a checkpoint, with one in memory at a time."""
    if source.source_format == "mbox":
        yield from _read_mbox(source, int(checkpoint or 0))
    elif source.source_format in ("zip", "tar", "json"):
        yield from archive_reader.read_archive_messages_and_skips(
            ArchiveFile(source.path, source.source_format, source.max_message_bytes), checkpoint
        )
    elif source.source_format == "maildir":
        yield from _read_message_files(source, _maildir_files(source.path, checkpoint))
    else:
        yield from _read_message_files(source, _eml_and_other_files(source.path, checkpoint))


def _read_mbox(source: MailSource, start: int) -> Iterator[SourceMessage]:
    with source.path.open("rb") as file:
        file.seek(start)
        line = file.readline(_MAX_LINE_READ)
        if not start:
            line = line.removeprefix(UTF8_BOM)
        while line:
            entry_start, head = file.tell() - len(line), line
            entry = _read_mbox_entry(file, source.max_message_bytes)
            lines, line = entry.lines, entry.next_from_line
            end = file.tell() - len(line)
            source_message = SourceMessage(
                f"{source.path.name}, at byte {entry_start}", INBOX, str(end), end
            )
            raw = mbox_format.restore_exact_message_or_none(lines, head)
            if entry.size > source.max_message_bytes:
                yield source_message.with_skip_reason(
                    "The message is larger than MERGANSER_MESSAGE_MAX_SIZE."
                )
            elif raw is None and not lines:
                yield source_message.with_skip_reason("The message is empty.")
            else:
                try:
                    raw = read_foreign_message(b"".join(lines)) if raw is None else raw
                    yield _message_of_mbox_entry(source_message, head, raw)
                except UnusableMessageError as problem:
                    yield source_message.with_skip_reason(str(problem))


@dataclass(frozen=True, slots=True)
class _MboxEntry:
    """The unquoted lines of a message in an mbox file, up to the next From line."""

    lines: list[bytes]  # the first `max_bytes`
    size: int  # bytes of all lines
    next_from_line: bytes  # empty at the end of the file


def _read_mbox_entry(file: IO[bytes], max_bytes: int) -> _MboxEntry:
    """Read the lines after a From line.

    A line longer than one read comes in several pieces; only the first one begins a line.
    """
    lines: list[bytes] = []
    size, after_blank_line, at_line_start = 0, True, True
    while line := file.readline(_MAX_LINE_READ):
        if (
            after_blank_line
            and at_line_start
            and line.startswith(b"From ")
            and _FROM_LINE.match(line.rstrip())
        ):
            break
        after_blank_line = at_line_start and line in (b"\n", b"\r\n")
        if at_line_start and _QUOTED_FROM_LINE.match(line):
            line = line[1:]
        at_line_start = line.endswith(b"\n")
        size += len(line)
        if size <= max_bytes:
            lines.append(line)
    if after_blank_line and lines and size <= max_bytes:
        size -= len(lines.pop())  # it belongs to the next From line, or to the file's end
    return _MboxEntry(lines, size, line)


def _message_of_mbox_entry(
    source_message: SourceMessage, from_line: bytes, raw: bytes
) -> SourceMessage:
    """Return a message with the sender, time and flags of its From line and header."""
    match = _FROM_LINE.match(from_line.rstrip())
    sender = match[1].decode("utf-8", "replace") if match else ""
    header = raw[: raw.find(b"\r\n\r\n") + 2] if b"\r\n\r\n" in raw else raw[: 1 << 16]
    status_letters = b"".join(_STATUS.findall(header)).decode().upper()
    return source_message.with_message(
        raw,
        received_at=_parse_from_line_date_or_none(from_line) or parse_date_field_or_none(header),
        sender=sender if "@" in sender else None,
        flags=[
            flag
            for flag_letter, flag in _MBOX_STATUS_FLAGS.items()
            if flag_letter in status_letters
        ],
    )


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


@dataclass(frozen=True, slots=True)
class _MessageFile:
    """A message file of a Maildir or folder."""

    path: Path
    folder: str
    sort_key: str  # does not change when flags in the file name change
    skip_reason: str = ""


def _read_message_files(
    source: MailSource, files: Iterator[_MessageFile]
) -> Iterator[SourceMessage]:
    """Yield the message of each file, or the reason why it is skipped."""
    for number, file in enumerate(files, 1):
        name = str(file.path.relative_to(source.path) if file.path != source.path else file.path)
        source_message = SourceMessage(name, file.folder, file.sort_key, number)
        try:
            yield _read_message_of_file_or_raise(source, source_message, file)
        except OSError as problem:
            reason = (problem.strerror or "The file can't be read.").lower()
            yield SourceMessage(
                source_message.name,
                source_message.folder,
                source_message.checkpoint,
                number,
                reason=reason,
            )
        except UnusableMessageError as problem:
            yield SourceMessage(
                source_message.name,
                source_message.folder,
                source_message.checkpoint,
                number,
                reason=str(problem),
            )


def _read_message_of_file_or_raise(
    source: MailSource, source_message: SourceMessage, file: _MessageFile
) -> SourceMessage:
    """Raises UnusableMessageError or OSError if the file is no message."""
    if file.skip_reason:
        raise UnusableMessageError(file.skip_reason)
    facts = file.path.stat()
    if facts.st_size > source.max_message_bytes:
        raise UnusableMessageError("The message is larger than MERGANSER_MESSAGE_MAX_SIZE.")
    if not facts.st_size:
        raise UnusableMessageError("The file is empty.")
    raw = read_foreign_message(file.path.read_bytes())
    if source.source_format == "maildir":
        received = datetime.fromtimestamp(facts.st_mtime, UTC)  # the Maildir's own rule
        flags = maildir_flags(file.path.name)
    else:
        received = parse_date_field_or_none(raw[: 1 << 16]) or datetime.fromtimestamp(
            facts.st_mtime, UTC
        )
        flags = []
    return SourceMessage(
        source_message.name,
        source_message.folder,
        source_message.checkpoint,
        source_message.progress,
        raw,
        received_at=received,
        flags=flags,
    )


def _is_maildir(path: Path) -> bool:
    return (path / "cur").is_dir() and (path / "new").is_dir()


def _maildir_files(path: Path, checkpoint: str | None) -> Iterator[_MessageFile]:
    """Yield the messages of a Maildir and its folders in an order that renaming keeps."""
    for folder, maildir in sorted(_find_maildirs(path)):
        names: list[tuple[str, str, Path]] = []
        for part in ("cur", "new"):
            with os.scandir(maildir / part) as entries:
                names += [
                    (f"{folder}\0{entry.name.partition(':2,')[0]}", entry.name, maildir / part)
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_file()
                ]
        for key, name, directory in sorted(names):
            if checkpoint is None or key > checkpoint:
                yield _MessageFile(directory / name, folder, key)


def _find_maildirs(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield mailbox path and directory of each Maildir: Maildir++ and nested ones."""
    for place, folders, _ in os.walk(path):
        folders[:] = [folder for folder in folders if folder not in ("cur", "new", "tmp")]
        folder = Path(place)
        if _is_maildir(folder):
            yield mailbox_path_from_maildir(folder.relative_to(path).parts), folder


def _eml_and_other_files(path: Path, checkpoint: str | None) -> Iterator[_MessageFile]:
    """Yield the .eml files below a folder by path; other files get a skip reason."""
    if path.is_file():
        if checkpoint is None:
            yield _MessageFile(path, INBOX, path.name)
        return
    for place, folders, names in os.walk(path):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        here = Path(place)
        folder = "/".join(here.relative_to(path).parts) or INBOX
        for name in sorted(names):
            key = f"{'/'.join(here.relative_to(path).parts)}\0{name}"
            if name.startswith(".") or (
                checkpoint is not None and _path_sort_key(key) <= _path_sort_key(checkpoint)
            ):
                continue
            other = "" if name.lower().endswith(".eml") else "The file is not an .eml file."
            yield _MessageFile(here / name, folder, key, other)


def _path_sort_key(key: str) -> tuple[list[str], str]:
    folder, _, name = key.partition("\0")
    return folder.split("/") if folder else [], name
