"""Mail in files: an mbox, a Maildir, a folder of .eml files, or an archive of them."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from mail.archives import archive_reader, mbox_reader
from mail.archives.archive_reader import ArchiveFile
from mail.archives.byte_streams import CrToLfStream
from mail.archives.foreign_message import is_start_of_message, read_foreign_message
from mail.archives.json_lines import AccountRecord
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
from mail.mime.header_fields import UTF8_BOM

_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
HEAD_BYTES = 4096  # first bytes that show the format of a file


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
    if mbox_reader.is_mbox(first_bytes):
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
        has_cr_line_ends = mbox_reader.has_cr_line_ends(file.read(HEAD_BYTES))
        file.seek(start)
        lines = io.BufferedReader(CrToLfStream(file)) if has_cr_line_ends else file
        mbox = MboxFile(
            lines, text_from_file_name(source.path.name), INBOX, source.max_message_bytes
        )
        yield from mbox_reader.read_mbox_messages_and_skips(mbox, start)


@dataclass(frozen=True, slots=True)
class _MessageFile:
    """A message file of a Maildir or folder."""

    path: Path
    folder: str
    # Does not change when flags in the file name change. Has no NUL: PostgreSQL can't store it.
    sort_key: str
    skip_reason: str = ""


def _read_message_files(
    source: MailSource, files: Iterator[_MessageFile]
) -> Iterator[SourceMessage]:
    """Yield the message of each file, or the reason why it is skipped."""
    for number, file in enumerate(files, 1):
        path = file.path.relative_to(source.path) if file.path != source.path else file.path
        name = text_from_file_name(str(path))
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
    modified_at = datetime.fromtimestamp(facts.st_mtime, UTC)
    if source.source_format == "maildir":  # its own rule: the time and name of the file
        flags = maildir_flags(file.path.name)
        return source_message.with_message(raw, received_at=modified_at, flags=flags)
    received_at = parse_date_field_or_none(raw[: 1 << 16]) or modified_at
    return with_message_and_state(source_message, raw, received_at)


def _is_maildir(path: Path) -> bool:
    return (path / "cur").is_dir() and (path / "new").is_dir()


def _maildir_files(path: Path, checkpoint: str | None) -> Iterator[_MessageFile]:
    """Yield the messages of a Maildir and its folders in an order that renaming keeps."""
    maildirs = sorted(_find_maildirs(path))
    # Maildir++ and nested folders can have the same mailbox path: their files are one list.
    for folder, same_folder in groupby(maildirs, key=itemgetter(0)):
        files = [file for _, maildir in same_folder for file in _find_files(folder, maildir)]
        for file in sorted(files, key=lambda file: (file.sort_key, file.path)):
            if checkpoint is None or _folder_and_name(file.sort_key) > _folder_and_name(checkpoint):
                yield file


def _find_files(folder: str, maildir: Path) -> Iterator[_MessageFile]:
    """Yield the messages of one directory with `cur` and `new`, in any order."""
    for part in ("cur", "new"):
        with os.scandir(maildir / part) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    name = text_from_file_name(entry.name).partition(":2,")[0]
                    yield _MessageFile(maildir / part / entry.name, folder, f"{folder}/{name}")


def _find_maildirs(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield mailbox path and directory of each Maildir: Maildir++ and nested ones."""
    for place, folders, _ in os.walk(path):
        folders[:] = [folder for folder in folders if folder not in ("cur", "new", "tmp")]
        folder = Path(place)
        if _is_maildir(folder):
            mailbox_path = mailbox_path_from_maildir(_folder_names(folder, path))
            yield mailbox_path.replace("\0", "\N{REPLACEMENT CHARACTER}"), folder


def _eml_and_other_files(path: Path, checkpoint: str | None) -> Iterator[_MessageFile]:
    """Yield the .eml files below a folder by path; other files get a skip reason."""
    if path.is_file():
        if checkpoint is None:
            yield _MessageFile(path, INBOX, text_from_file_name(path.name))
        return
    for place, folders, names in os.walk(path):
        folders[:] = sorted(
            (folder for folder in folders if not folder.startswith(".")), key=text_from_file_name
        )
        here = Path(place)
        folder = "/".join(_folder_names(here, path))
        for name in sorted(names, key=text_from_file_name):
            key = f"{folder}/{text_from_file_name(name)}"
            if name.startswith(".") or (
                checkpoint is not None and _path_sort_key(key) <= _path_sort_key(checkpoint)
            ):
                continue
            other = "" if name.lower().endswith(".eml") else "The file is not an .eml file."
            yield _MessageFile(here / name, folder or INBOX, key, other)


def _folder_names(folder: Path, root: Path) -> tuple[str, ...]:
    """Return the names of the folders on the way from the root to a folder."""
    return tuple(map(text_from_file_name, folder.relative_to(root).parts))


def _path_sort_key(key: str) -> tuple[list[str], str]:
    folder, name = _folder_and_name(key)
    return folder.split("/") if folder else [], name


def _folder_and_name(key: str) -> tuple[str, str]:
    """Return the folder and the file name of a sort key. NUL separates them in old checkpoints."""
    folder, _, name = key.replace("\0", "/").rpartition("/")
    return folder, name
