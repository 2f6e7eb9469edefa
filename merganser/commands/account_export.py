"""`merganser export`: write an account into a file, completely or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mail.archives import archive_writer
from mail.archives.archive_writer import ENDINGS, Chunk, ExportFormat, State
from merganser.commands.account_import import user_named
from merganser.errors import MISUSED, Trouble
from merganser.server.environment_factory import on_behalf
from models.runtime.environment import World
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import Named
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.transfer import export_writer, passphrases
from resolvers.transfer.export_writer import After

# takes the number of messages, returns a function that takes the number written
Began = Callable[[int], Callable[[int], None]]


@dataclass(frozen=True, slots=True)
class Order:
    """The account to export, and the file and options of the export."""

    path: Path
    user: str  # username or address
    format: ExportFormat | None = None  # None: from the file name
    mailbox: str | None = None
    settings: bool = True
    passphrase: str | None = field(default=None, repr=False)  # encrypts the passwords of connectors


@dataclass(frozen=True, slots=True)
class Outcome:
    """The number of messages and bytes in the file, and the messages that could not be read."""

    messages: int
    bytes: int
    damaged: list[str]


def format_of(path: Path) -> ExportFormat:
    """The format that the extension of a file means. Raises CommandError if it is unknown."""
    for kind, (ending, _) in ENDINGS.items():
        if path.suffix.lower() == f".{ending}":
            return kind
    known = ", ".join(f".{ending}" for ending, _ in ENDINGS.values())
    raise Trouble(f"say with --format how to write {path.name}, or name it {known}")


async def export(environment: World, order: Order, began: Began) -> Outcome:
    """Write an account into a new file.

    Raises CommandError if the file exists or can't be written, if there is no such user or
    mailbox, or if a passphrase is given and the file has no settings.
    """
    kind = order.format or format_of(order.path)
    word = passphrases.checked(order.passphrase)
    if word is not None and (kind is ExportFormat.MBOX or not order.settings):
        raise Trouble("passwords are part of the settings, and these are left out", code=MISUSED)
    user = await user_named(environment, order.user)
    ctx = on_behalf(environment, user.id)
    ids = await _ids(ctx, order.mailbox)
    part = order.path.with_name(f".{order.path.name}.part")
    try:
        if order.path.exists():
            raise Trouble(f"{order.path} is there already")
        with part.open("wb") as file, part.with_suffix(".directory").open("w+b") as directory:
            writer = Writer(ctx, kind, order.settings, ids, file, directory, word)
            outcome = await writer.write(began)
            file.flush()
            os.fsync(file.fileno())
        part.rename(order.path)
    except OSError as problem:
        raise Trouble(f"cannot write {order.path}: {(problem.strerror or '').lower()}") from problem
    finally:
        part.unlink(missing_ok=True)
        part.with_suffix(".directory").unlink(missing_ok=True)
    return outcome


async def _ids(ctx: Context, path: str | None) -> list[int] | None:
    if path is None:
        return None
    row = await ctx.load(mailbox_loaders.named, (ctx.viewer.user_id, Named(path=path)))
    if row is None:
        raise Trouble(f"there is no mailbox {path}")
    where = MessageWhere(mailbox=Named(id=row.id))
    return await export_writer.chosen(ctx, ctx.viewer.user_id, Selection(where=where))


@dataclass(slots=True)
class Writer:
    """Writes an account into a file. The directory of the archive is kept in a second file."""

    ctx: Context
    kind: ExportFormat
    settings: bool
    ids: list[int] | None
    file: IO[bytes]
    directory: IO[bytes]
    passphrase: str | None = field(default=None, repr=False)

    async def write(self, began: Began) -> Outcome:
        """Write the archive, and report the number of exported messages."""
        state, damaged, done = State(), list[str](), 0
        after: After = None
        what = {"ids": self.ids, "settings": self.settings}
        chunk, total = await export_writer.begun(self.ctx, self.kind, state, what, self.passphrase)
        self._put(chunk)
        progress = began(total)
        while part := await export_writer.cut(self.ctx, self.kind, state, self.ids, after):
            self._put(part.chunk)
            after, done = part.after, done + part.done
            damaged += part.damaged
            progress(done)
        last, end = archive_writer.ended(self.kind, state)
        self.file.write(last)
        self.directory.seek(0)
        shutil.copyfileobj(self.directory, self.file)
        self.file.write(end)
        return Outcome(state.messages, self.file.tell(), damaged)

    def _put(self, chunk: Chunk) -> None:
        self.file.write(chunk.data)
        self.directory.write(chunk.directory)
