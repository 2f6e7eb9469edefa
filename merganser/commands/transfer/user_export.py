"""`merganser export`: write an account into a file, completely or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mail.archives import archive_writer
from mail.archives.archive_writer import (
    SUFFIXES_AND_MEDIA_TYPES,
    ArchiveChunk,
    ArchiveState,
    ExportFormat,
)
from merganser.commands.transfer.user_import import find_user_or_fail_command
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.environment_factory import user_context
from models.runtime.environment import Environment
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.transfer import export_writer, passphrases
from resolvers.transfer.export_writer import ExportPosition

# takes the number of messages, returns a function that takes the number written
StartProgress = Callable[[int], Callable[[int], None]]


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """The account to export, and the file and options of the export."""

    path: Path
    username_or_address: str  # username or address
    format: ExportFormat | None = None  # None: from the file name
    mailbox: str | None = None
    includes_settings: bool = True
    passphrase: str | None = field(default=None, repr=False)  # encrypts the passwords of connectors


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """The number of messages and bytes in the file, and the messages that could not be read."""

    messages: int
    bytes: int
    damaged_messages: list[str]


def export_format_or_fail_command(path: Path) -> ExportFormat:
    """The format that the extension of a file means. Raises CommandError if it is unknown."""
    for kind, (ending, _) in SUFFIXES_AND_MEDIA_TYPES.items():
        if path.suffix.lower() == f".{ending}":
            return kind
    endings = ", ".join(f".{ending}" for ending, _ in SUFFIXES_AND_MEDIA_TYPES.values())
    raise CommandError(
        f"--format is required for {path.name}, or a file name that ends with {endings}."
    )


async def export_account(
    environment: Environment, order: ExportOrder, start_progress: StartProgress
) -> ExportSummary:
    """Write an account into a new file.

    Raises CommandError if the file exists or can't be written, if there is no such user or
    mailbox, or if a passphrase is given and the file has no settings.
    """
    file_format = order.format or export_format_or_fail_command(order.path)
    passphrase = passphrases.validate_passphrase(order.passphrase)
    if passphrase is not None and (file_format is ExportFormat.MBOX or not order.includes_settings):
        raise CommandError(
            "Passwords are part of the settings, which are not exported.", exit_code=EXIT_USAGE
        )
    user = await find_user_or_fail_command(environment, order.username_or_address)
    ctx = user_context(environment, user.id)
    ids = await _load_message_ids_or_fail_command(ctx, order.mailbox)
    temporary_path = order.path.with_name(f".{order.path.name}.part")
    try:
        if order.path.exists():
            raise CommandError(f"{order.path} already exists.")
        with (
            temporary_path.open("wb") as file,
            temporary_path.with_suffix(".directory").open("w+b") as directory,
        ):
            writer = ExportFileWriter(
                ctx, file_format, order.includes_settings, ids, file, directory, passphrase
            )
            outcome = await writer.write_archive(start_progress)
            file.flush()
            os.fsync(file.fileno())
        temporary_path.rename(order.path)
    except OSError as problem:
        raise CommandError(
            f"Cannot write {order.path}: {(problem.strerror or '').lower()}."
        ) from problem
    finally:
        temporary_path.unlink(missing_ok=True)
        temporary_path.with_suffix(".directory").unlink(missing_ok=True)
    return outcome


async def _load_message_ids_or_fail_command(
    ctx: Context, mailbox_path: str | None
) -> list[int] | None:
    if mailbox_path is None:
        return None
    row = await ctx.load(
        mailbox_loaders.load_visible_by_selectors,
        (ctx.viewer.user_id, MailboxSelector(path=mailbox_path)),
    )
    if row is None:
        raise CommandError(f"Mailbox not found: {mailbox_path}.")
    conditions = MessageConditions(mailbox=MailboxSelector(id=row.id))
    return await export_writer.load_visible_message_ids(
        ctx, ctx.viewer.user_id, MessageSelector(conditions=conditions)
    )


@dataclass(slots=True)
class ExportFileWriter:
    """Writes an account into a file. The directory of the archive is kept in a second file."""

    ctx: Context
    format: ExportFormat
    includes_settings: bool
    message_ids: list[int] | None
    file: IO[bytes]
    directory: IO[bytes]
    passphrase: str | None = field(default=None, repr=False)

    async def write_archive(self, start_progress: StartProgress) -> ExportSummary:
        """Write the archive, and report the number of exported messages."""
        state, damaged, written_count = ArchiveState(), list[str](), 0
        after: ExportPosition = None
        order = {"ids": self.message_ids, "settings": self.includes_settings}
        chunk, total = await export_writer.encode_account_record(
            self.ctx, self.format, state, order, self.passphrase
        )
        self._write_chunk(chunk)
        progress = start_progress(total)
        while part := await export_writer.encode_next_chunk(
            self.ctx, self.format, state, self.message_ids, after
        ):
            self._write_chunk(part.archive_chunk)
            after, written_count = part.next_position, written_count + part.done_count
            damaged += part.unreadable_messages
            progress(written_count)
        last, end = archive_writer.archive_and_directory_end(self.format, state)
        self.file.write(last)
        self.directory.seek(0)
        shutil.copyfileobj(self.directory, self.file)
        self.file.write(end)
        return ExportSummary(state.messages, self.file.tell(), damaged)

    def _write_chunk(self, chunk: ArchiveChunk) -> None:
        self.file.write(chunk.data)
        self.directory.write(chunk.directory)
