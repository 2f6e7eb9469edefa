"""Unpack an exported account below `admin/` of an object store, to inspect or recover it."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mail.archives import json_lines
from mail.archives.archive_reader import ArchiveFile, read_account_object_of_archive
from mail.archives.mail_sources import (
    MailSource,
    inspect_mail_source,
    read_source_messages_and_skips,
)
from mail.archives.source_message import SourceMessage, UnusableMessageError
from mail.archives.zip_format import DamagedArchiveError
from models.errors import Conflict, InvalidInput, LimitReached, require_within_limit
from models.store.columns import ColumnRow
from models.store.keyset_pages import MAX_INT64
from models.store.object_store import BrowsableObjectStore, ObjectRange
from models.validation_constraints import ValidationConstraint
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.blobs.mutations import (
    put_object_or_raise_conflict,
    require_own_upload,
    temporary_file_with_content,
    temporary_file_with_upload,
    write_audit_log_and_delete_upload,
)
from resolvers.blobs.validation import require_admin_path, require_store
from resolvers.context import Context

MAX_FILES = 10_000  # of a bundle
MAX_BYTES = 1 << 30  # of the unpacked messages of a bundle
MAX_MAILBOX_PATH = 1000  # characters
MAX_FOLDER_NAME = 150  # characters; longer ones get a number
WRITES_AT_ONCE = 8
WRITE_BATCH_BYTES = 64 << 20  # bytes of the messages that are written at the same time
UNPACK_SECONDS = 600.0  # that the mutation can take
MAIL_FOLDER, ACCOUNT_FILE, MESSAGES_FILE = "mail", "account.json", "messages.jsonl"
MUTATION, TARGET_KIND = "cacheUnpack", "Blob"
_BUNDLE_NAME = re.compile(r"[A-Za-z0-9_@+=,-][A-Za-z0-9._@+=,-]{0,99}", re.ASCII)
_UNSAFE = re.compile(rb"[^A-Za-z0-9._@+,-]")


@dataclass(frozen=True, slots=True)
class BundleSource:
    """The bytes of a bundle, or the id of the upload that has them."""

    data: bytes | None = None
    upload_id: int | None = None


@dataclass(frozen=True, slots=True)
class BundleTarget:
    """The folder below `admin/` of an object store in which the folder of a bundle is created."""

    store: str
    path: str
    bundle_name: str


@dataclass(slots=True)
class UnpackedMailbox:
    """A mailbox of a bundle. The UIDs are None if the bundle does not tell them."""

    path: str
    folder_name: str  # in the object store
    uid_validity: int | None = None
    uid_next: int | None = None
    message_count: int = 0


@dataclass(slots=True)
class UnpackedBundle:
    """What a bundle has: mailboxes, paths of the stored objects, and messages that are damaged."""

    mailboxes: list[UnpackedMailbox] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    skipped_count: int = 0


def _refused_archive(reason: str) -> InvalidInput:
    return InvalidInput(reason, constraint=ValidationConstraint.ARCHIVE, path=["bundle"])


@dataclass(slots=True)
class _BundleReader:
    """Reads the account record and the messages of a bundle. Its methods run in threads."""

    source: MailSource
    folder: str  # of the bundle, in the object store
    account: Mapping[str, Any] | None = None
    mailboxes: dict[str, UnpackedMailbox] = field(default_factory=dict)
    skipped_count: int = 0
    byte_count: int = 0
    message_count: int = 0

    @classmethod
    def open(cls, path: Path, folder: str, max_message_bytes: int) -> "_BundleReader":
        """Open a bundle. Raises InvalidInput if it is no archive of an account."""
        try:
            source = inspect_mail_source(path, max_message_bytes)
            reader = cls(source, folder)
            if source.source_format in ("zip", "tar", "json"):
                archive = ArchiveFile(path, source.source_format, max_message_bytes)
                reader.account = read_account_object_of_archive(archive)
        except (UnusableMessageError, DamagedArchiveError) as problem:
            raise _refused_archive(str(problem)) from problem
        for record in source.account.mailboxes if source.account else ():
            mailbox = reader.get_or_create_mailbox(record["path"])
            mailbox.uid_validity = _uid_or_none(record.get("uidValidity"))
            mailbox.uid_next = _uid_or_none(record.get("uidNext"))
        return reader

    def get_or_create_mailbox(self, path: str) -> UnpackedMailbox:
        """Return the mailbox with a path. Raises InvalidInput if it is too long."""
        path = path.encode(errors="replace").decode()
        if len(path) > MAX_MAILBOX_PATH:
            raise _refused_archive("The path of a mailbox in the archive is too long.")
        mailbox = self.mailboxes.get(path)
        if mailbox is None:
            if len(self.mailboxes) >= json_lines.MAX_ITEMS:
                raise _refused_archive("The archive has too many mailboxes.")
            mailbox = UnpackedMailbox(path, _folder_name(path, len(self.mailboxes) + 1))
            self.mailboxes[path] = mailbox
        return mailbox

    def messages(self) -> Iterator[tuple[str, SourceMessage]]:
        """Yield the messages with the paths of their objects, and count them.

        Raises InvalidInput if the archive is damaged, and LimitReached if it is too large.
        """
        self.skipped_count = self.byte_count = self.message_count = 0
        for mailbox in self.mailboxes.values():
            mailbox.message_count = 0
        try:
            for message in read_source_messages_and_skips(self.source, None):
                if message.raw is None:
                    self._skip_one()
                    continue
                self._count_or_raise_limit_reached(len(message.raw))
                mailbox = self.get_or_create_mailbox(message.folder)
                mailbox.message_count += 1
                name = f"{self.message_count:06}.eml"
                yield f"{self.folder}/{MAIL_FOLDER}/{mailbox.folder_name}/{name}", message
        except (UnusableMessageError, DamagedArchiveError) as problem:
            raise _refused_archive(str(problem)) from problem

    def _skip_one(self) -> None:
        self.skipped_count += 1
        if self.skipped_count > MAX_FILES:
            raise _refused_archive("The archive has too many entries that are no messages.")

    def _count_or_raise_limit_reached(self, size: int) -> None:
        self.message_count += 1
        self.byte_count += size
        for name, limit, used in (
            ("messages", MAX_FILES, self.message_count),
            ("bytes of messages", MAX_BYTES, self.byte_count),
        ):
            if used > limit:
                text = f"A bundle has at most {limit:,} {name}. Import larger ones."
                raise LimitReached(text, limit=limit, used=used, path=["bundle"])


def _uid_or_none(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INT64:
        return value
    return None


def _folder_name(path: str, number: int) -> str:
    """Return a folder name for a mailbox: other characters are written as = and two hex digits."""
    name = _UNSAFE.sub(lambda match: b"=%02X" % ord(match[0]), path.encode()).decode()
    if name.startswith("."):
        name = f"=2E{name[1:]}"
    return name if name and len(name) <= MAX_FOLDER_NAME else f"mailbox-{number}"


def _message_line(path: str, folder: str, message: SourceMessage) -> bytes:
    """Return the line of a message in the list of messages."""
    file = path.removeprefix(f"{folder}/")
    if message.record is not None:
        return json_lines.json_line(json_lines.json_object_from_record(message.record, file=file))
    line = {
        "file": file,
        "mailbox": message.folder.encode(errors="replace").decode(),
        "receivedAt": message.received_at,
        "flags": list(message.flags),
    }
    return json_lines.json_line(line)


async def store_bundle_objects_and_delete_upload(
    ctx: Context, source: BundleSource, target: BundleTarget
) -> UnpackedBundle:
    """Store the messages and records of a bundle as objects, all or none, and delete its upload.

    A dry run reads the bundle and stores nothing. Raises InvalidInput for a wrong path or a
    damaged archive, NotFound for an unknown upload, Conflict if the folder has objects, and
    LimitReached if the bundle is too large.
    """
    store = require_store(ctx, target.store)
    if not _BUNDLE_NAME.fullmatch(target.bundle_name):
        raise InvalidInput(
            "A bundle name has 1 to 100 characters of A-Z, a-z, 0-9 and ._@+=,- and does not "
            "begin with a dot.",
            constraint=ValidationConstraint.PATTERN,
            path=["bundleName"],
        )
    folder = f"{target.path}/{target.bundle_name}"
    longest = f"{folder}/{MAIL_FOLDER}/{'x' * MAX_FOLDER_NAME}/000000.eml"
    require_admin_path(target.path)
    require_admin_path(longest)
    upload = None
    if source.upload_id is not None:
        upload = await require_own_upload(ctx, source.upload_id, ["bundle"])
    if await store.list_page(ObjectRange(f"{folder}/", 1)):
        raise Conflict("The folder of the bundle has objects already.", path=["bundleName"])
    async with _temporary_bundle_file(ctx, source.data, upload) as path:
        max_size = ctx.environment.options.message_max_size
        reader = await asyncio.to_thread(_BundleReader.open, path, folder, max_size)
        # the whole archive is read once before the first object is stored
        contents = await asyncio.to_thread(_read_paths_and_build_json_files, reader)
        if not ctx.is_dry_run:
            await _store_all_or_none(store, reader, contents.small_files)
    bundle = UnpackedBundle(list(reader.mailboxes.values()), contents.paths, reader.skipped_count)
    values = {
        "store": target.store,
        "path": folder,
        "fileCount": len(bundle.paths),
        "size": reader.byte_count,
    }
    entry = NewAuditLogEntry(MUTATION, TARGET_KIND, after=values)
    await write_audit_log_and_delete_upload(ctx, entry, upload)
    return bundle


@asynccontextmanager
async def _temporary_bundle_file(
    ctx: Context, data: bytes | None, upload: ColumnRow | None
) -> AsyncGenerator[Path]:
    """Provide the bundle as a temporary file, which exists inside the block."""
    if upload is not None:
        async with temporary_file_with_upload(ctx, upload) as path:
            yield path
        return
    content = data or b""
    max_size = ctx.environment.options.upload_max_size
    text = f"A bundle has at most {max_size} bytes."
    require_within_limit(len(content), max_size, text, path=["bundle"])

    async def chunks() -> AsyncGenerator[bytes]:
        yield content

    async with temporary_file_with_content(ctx, chunks()) as received:
        yield received.path


@dataclass(frozen=True, slots=True)
class _BundleContents:
    """The paths of all objects of a bundle, and the contents of those without a message."""

    paths: list[str]
    small_files: Mapping[str, bytes]


def _read_paths_and_build_json_files(reader: _BundleReader) -> _BundleContents:
    """Read the archive once; return the paths of all objects, and the contents of the JSON files.

    The contents of the messages are not kept.
    """
    paths, lines = list[str](), list[bytes]()
    for path, message in reader.messages():
        paths.append(path)
        lines.append(_message_line(path, reader.folder, message))
    files = {f"{reader.folder}/{MESSAGES_FILE}": b"".join(lines)}
    if reader.account is not None:
        files[f"{reader.folder}/{ACCOUNT_FILE}"] = json_lines.json_line(reader.account)
    return _BundleContents([*files, *paths], files)


async def _store_all_or_none(
    store: BrowsableObjectStore, reader: _BundleReader, small_files: Mapping[str, bytes]
) -> None:
    """Store the files and messages. After an error the stored ones are deleted."""
    paths: list[str] = []
    messages = reader.messages()
    try:
        batch = dict(small_files)
        while batch:
            paths += batch
            results = await asyncio.gather(
                *(put_object_or_raise_conflict(store, path, data) for path, data in batch.items()),
                return_exceptions=True,  # all writes have ended before objects are deleted
            )
            for problem in results:
                if problem is not None:
                    raise problem
            batch = await asyncio.to_thread(_take_next_message_batch, messages)
    except BaseException:
        await asyncio.shield(store.delete(paths))
        raise


def _take_next_message_batch(messages: Iterator[tuple[str, SourceMessage]]) -> dict[str, bytes]:
    """Return the bytes of the next messages by path; empty at the end of the archive."""
    batch: dict[str, bytes] = {}
    byte_count = 0
    for path, message in messages:
        batch[path] = message.raw or b""
        byte_count += len(batch[path])
        if len(batch) >= WRITES_AT_ONCE or byte_count >= WRITE_BATCH_BYTES:
            break
    return batch
