"""Import archives into accounts, by tasks that continue after an interruption."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import ColumnElement, delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.mail_sources import HEAD, Source, known, messages, source
from mail.archives.source_message import Unusable
from mail.mailboxes import paths
from mail.storage.blobs import blob_reader
from mail.storage.blobs.blob_writer import Kept, blob_ids
from mail.storage.blobs.compression import digest_of
from mail.storage.blobs.object_stores import object_name
from models.admin.tasks import Task
from models.errors import Forbidden, Invalid, NotFound, OverQuota, check_limit, found
from models.events.journal import ChangeKind
from models.files.blobs import Blob, Upload
from models.runtime.environment import Turn, World
from models.store.columns import Picked, table_of
from models.transfer import ImportArchive
from models.users.roles import Role, Scope, opened
from resolvers.access import own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.task_steps import Plan, Planner, Step, queue
from resolvers.connectors import transfer
from resolvers.context import Context, Needs
from resolvers.files import uploads
from resolvers.files.stored_files import raw, tenant_of
from resolvers.files.uploads import Received
from resolvers.messages.content_access import openable
from resolvers.transfer import import_writer, passphrases
from resolvers.transfer.exports import check_running
from resolvers.transfer.import_writer import Import, Outcome, Reading, Ready
from resolvers.users.selection import managed_one

KIND = "ACCOUNT_IMPORT"
RUNNING = 2  # unfinished imports of a user
OPERATORS = Needs(role=Role.ROOT, scope=Scope.MASTER)


@dataclass(frozen=True, slots=True)
class NewImport:
    """An archive to import: an upload, bytes of the request, or a file on the server."""

    user_id: int | None = None  # None: the viewer
    upload_id: int | None = None
    content: bytes | None = None
    path: str | None = None
    mailbox: str | None = None  # one for all mail; None: the mailboxes of the archive
    dedupe: bool = True
    settings: bool = True
    passphrase: str | None = field(default=None, repr=False)  # decrypts passwords in the archive


async def create(ctx: Context, new: NewImport) -> Task:
    """Queue a task that imports an archive.

    Raises Invalid if the file is no archive, LimitReached if two imports of the user are
    unfinished. A file on the server requires ROOT and must be below the import folder of the
    settings.
    """
    if sum(each is not None for each in (new.upload_id, new.content, new.path)) != 1:
        text = "give the archive, or its path on the server: one of them"
        raise Invalid(text, constraint="exclusive", path=["archive"])
    user_id = own(ctx) if new.user_id is None else new.user_id
    openable(ctx, user_id)
    user = await managed_one(ctx, user_id)
    into = paths.checked_path(new.mailbox, path_in=["mailbox"]) if new.mailbox else None
    order = {
        "archive": None,
        "path": new.path,
        "mailbox": into,
        "dedupe": new.dedupe,
        "settings": new.settings and Scope.SETTINGS in opened(ctx.viewer.scopes),
        "unset": new.settings and Scope.SETTINGS not in opened(ctx.viewer.scopes),
        **passphrases.sealed(ctx, user.id, new.passphrase, settings=new.settings),
    }
    if new.path is not None:
        await check_path(ctx, new.path)
        return await _queued(ctx, user, order, None)
    received, name = await _received(ctx, new)
    if new.content is not None:
        await uploads.put(ctx.world, name, received.source)
    kept = await raw(ctx.world, await tenant_of(ctx, user.id), received, name)
    return await _queued(ctx, user, order, (kept, received, new.upload_id))


async def _received(ctx: Context, new: NewImport) -> tuple[Received, str]:
    """Return the archive and the name of its object in the store."""
    if new.content is not None:
        most = ctx.world.options.upload_max
        check_limit(len(new.content), most, f"at most {most} bytes", path=["archive"])
        _recognised(new.content[:HEAD], ["archive"])
        digest = digest_of(new.content)
        name = object_name(digest, ctx.world.key())
        return Received(new.content, len(new.content), digest, filename="archive"), name
    return await sent(ctx, new.upload_id or 0)


async def sent(
    ctx: Context, upload_id: int, path: Sequence[str] = ("archive",)
) -> tuple[Received, str]:
    """Return an uploaded archive of the viewer, and the name of its object in the store.

    Raises NotFound if there is no such upload, Invalid if it is no archive.
    """
    row: Picked = found(await ctx.load(uploads.by_ids, upload_id), str(upload_id), path=path)
    head = await uploads.read_head(ctx, row, HEAD)
    _recognised(head, path)
    return Received(b"", row.size, row.digest, filename=row.filename or "archive"), row.blob_name


def _recognised(head: bytes, path: Sequence[str]) -> None:
    """Raise Invalid if a file does not begin like a supported archive."""
    try:
        known(head)
    except Unusable as problem:
        raise Invalid(str(problem), constraint="archive", path=path) from problem


async def check_path(ctx: Context, text: str, path: Sequence[str] = ("path",)) -> None:
    """Raise an error if a file on the server can't be imported.

    Forbidden if the viewer is not ROOT, NotFound if there is no such file, Invalid if it is no
    archive.
    """
    ctx.viewer.require(OPERATORS)
    await asyncio.to_thread(_check, _below(ctx.world, text, path), path)


def _check(file: Path, path: Sequence[str]) -> None:
    """Raise Invalid if the file is no supported archive."""
    with file.open("rb") as there:
        _recognised(there.read(HEAD), path)


def _below(world: World, text: str, path_in: Sequence[str] = ("path",)) -> Path:
    """Return the file of this path below the import folder, after following links.

    Raises Forbidden if no import folder is set, NotFound if the path is no file inside it.
    """
    folder = world.options.import_folder
    if folder is None:
        raise Forbidden("no folder for imports is set: MERGANSER_IMPORT_FOLDER", path=path_in)
    try:
        there = folder.resolve(strict=True)
        path = (there / text).resolve(strict=True)
        if path.is_relative_to(there) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):
        pass
    raise NotFound(text, path=path_in)


async def _queued(
    ctx: Context,
    user: Picked,
    order: dict[str, Any],
    archive: tuple[Kept, Received, int | None] | None,
) -> Task:
    """Insert the task of an import, with its archive, and record it."""
    async with ctx.write(user.id) as session:
        await check_running(ctx, user.id, KIND, RUNNING)
        key = ctx.world.key() if archive else None
        what = {**order, "archive": key}
        (task,) = await queue(ctx, session, KIND, [what], user_id=user.id)
        if archive and key:
            kept, received, upload = archive

            def store(turn: Turn) -> None:
                if upload is not None:
                    take_over(turn, ctx.viewer.user_id, upload)
                row = {
                    "id": key,
                    "user_id": user.id,
                    "task_id": task.id,
                    "filename": received.filename or "archive",
                    "size": received.size,
                    "blob_id": blob_ids(turn, kept)[kept.root],
                    "created_at": turn.world.now(),
                }
                turn.connection.execute(insert(table_of(ImportArchive)), row)

            await ctx.world.join(session, store)
        await ctx.record(session, user.id, ChangeKind.TASK_CHANGED, [task.id])
        if user.id != ctx.viewer.user_id:
            after = {"path": order["path"], "mailbox": order["mailbox"]}
            deed = Done("accountImport", "User", user.id, user.domain_id, None, after)
            await admin_log.note(ctx, session, deed)
    return task


def take_over(turn: Turn, user_id: int, upload_id: int, path: Sequence[str] = ("archive",)) -> None:
    """Delete the upload row of a user, because an archive now owns its bytes.

    Raises NotFound if there is no such upload.
    """
    mine = col(Upload.user_id) == user_id
    gone = delete(Upload).where(col(Upload.id) == upload_id, mine)
    if not turn.connection.execute(gone).rowcount:
        raise NotFound(str(upload_id), path=path)


@asynccontextmanager
async def begun(
    ctx: Context, order: dict[str, Any], checkpoint: Mapping[str, Any]
) -> AsyncGenerator[Planner]:
    """Open the archive for one run of the task, and yield the planner of its steps.

    Raises Invalid if the archive can't be read or has changed since the last run.
    """
    async with lying(ctx, order["path"], col(ImportArchive.id) == order["archive"]) as path:
        try:
            most = ctx.world.options.message_max
            origin = await asyncio.to_thread(source, path, most)
        except Unusable as problem:
            raise Invalid(str(problem), constraint="archive", path=["archive"]) from problem
        if checkpoint and checkpoint.get("stamp", "") not in ("", origin.stamp) and order["path"]:
            raise Invalid("the file has changed since", constraint="archive", path=["path"])
        start = checkpoint.get("begun") or ctx.world.key()
        work = await import_writer.opened(ctx, ctx.viewer.user_id, order["mailbox"], start)
        work.outcome = Outcome(**checkpoint.get("outcome", {}))
        work.dedupe = order["dedupe"]
        rest = messages(origin, checkpoint.get("after"))
        yield _Run(work, origin, Reading(rest)).plan


@asynccontextmanager
async def lying(
    ctx: Context, given: str | None, archive: ColumnElement[bool]
) -> AsyncGenerator[Path]:
    """Provide an archive as a local file: a file on the server, or a copy of the stored one.

    Raises NotFound if it does not exist. The copy is deleted at the end.
    """
    if given is not None:
        yield await asyncio.to_thread(_below, ctx.world, given)
        return
    asked = (
        select(*blob_reader.COLUMNS, col(ImportArchive.filename))
        .join(ImportArchive, col(ImportArchive.blob_id) == col(Blob.id))
        .where(archive)
    )
    blob = found(next(iter(await ctx.read(asked)), None), "archive", path=["archive"])
    with tempfile.TemporaryDirectory(prefix="merganser-import-") as folder:
        path = Path(folder) / "archive"
        chunks = blob_reader.stream(ctx.world.blobs, blob)
        with path.open("wb") as file:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        yield path


@dataclass(slots=True)
class Made:
    """What a step stores, and its checkpoint."""

    work: Import
    note: dict[str, Any]
    ready: list[Ready]
    kept: list[Kept]
    handled: int = 0
    total: int | None = None
    last: bool = False


@dataclass(slots=True)
class _Run:
    """One run of an import task, with its open archive."""

    work: Import
    origin: Source
    reading: Reading

    async def plan(self, _ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
        """Read the next messages and store their blobs.

        The first step creates mailboxes and settings, the last one connectors. Raises Invalid
        if the archive can't be read any further.
        """
        if trouble := checkpoint.get("trouble"):
            raise Invalid(trouble, constraint="archive", path=["archive"])
        work = self.work
        note = {**checkpoint, "begun": work.begun, "stamp": self.origin.stamp}
        if not checkpoint:
            await self._furnish(order)
            account = self.origin.account
            return Plan(made=Made(work, note, [], [], total=account.messages if account else None))
        group = await asyncio.to_thread(self.reading.group)
        if self.reading.trouble and not group:
            raise Invalid(self.reading.trouble, constraint="archive", path=["archive"])
        if not group:
            await self._connect(order)
            return Plan(made=Made(work, note, [], [], last=True))
        ready = [one for one in [await import_writer.read(work, each) for each in group] if one]
        note["after"] = group[-1].after
        kept = await import_writer.keep(work, ready)
        return Plan(made=Made(work, note, ready, kept, len(group)))

    async def _furnish(self, order: dict[str, Any]) -> None:
        """Create the mailboxes and settings of the account record, if the archive has one."""
        account = self.origin.account
        if account is None:
            return
        if order["settings"]:  # before the mailboxes: encrypted ones need the public key
            await import_writer.settle(self.work, account)
        elif order["unset"] and any(
            getattr(account, name)
            for name in (
                *("settings", "key_values", "labels", "identities"),
                *("filters", "scripts", "sender_rules", "connectors"),
            )
        ):
            self.work.outcome.refuse("settings", "this needs the scope SETTINGS")
        await import_writer.furnish(self.work, account, notes=order["settings"])
        if order["settings"]:
            await import_writer.introduce(self.work, account)

    async def _connect(self, order: dict[str, Any]) -> None:
        """Import connectors after all messages, since they would fetch the messages again."""
        if self.origin.account is not None and order["settings"]:
            ctx = self.work.ctx
            word = passphrases.opened(ctx.world, ctx.viewer.user_id, order)
            await transfer.bring(self.work, self.origin.account, word)


async def step(
    ctx: Context, session: AsyncSession, order: dict[str, Any], _: dict[str, Any], held: Plan
) -> Step:
    """Insert the messages of a step. If the account is full, insert as many as fit and end."""
    made: Made = held.made
    outcome, work = made.work.outcome, made.work
    if made.last:
        await forget(session, order)
        return Step(_noted(made.note, outcome))
    try:
        async with ctx.write(work.user.id) as inner:
            await import_writer.put(work, inner, made.ready, made.kept)
        outcome.stored += len(made.ready)
    except OverQuota:
        await _fill(ctx, made)
    ctx.world.fault("imported")
    return Step(_noted(made.note, outcome), done=made.handled, more=True, total=made.total)


async def _fill(ctx: Context, made: Made) -> None:
    """Insert messages one after the other until the quota is used up."""
    for ready, kept in zip(made.ready, made.kept, strict=True):
        try:
            async with ctx.write(made.work.user.id) as inner:
                await import_writer.put(made.work, inner, [ready], [kept])
        except OverQuota as full:
            made.note["trouble"] = f"the account is full: {full.message}"
            return
        made.work.outcome.stored += 1
        made.note["after"] = ready.found.after


def _noted(note: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return the checkpoint with the outcome, which the result of the task shows."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(asdict(outcome)))
    facts = {"stored": outcome.stored, "known": outcome.known, "untold": outcome.untold}
    return {**note, **facts, "refused": plain["skipped"], "outcome": plain}


async def forget(session: AsyncSession, order: dict[str, Any]) -> None:
    """Delete the archive of a task."""
    if order["archive"] is not None:
        gone = delete(ImportArchive).where(col(ImportArchive.id) == order["archive"])
        await (await session.connection()).execute(gone)


async def plan(_ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]) -> Plan:
    """Plan nothing: `open_import_planner` yields the planner."""
    return Plan()
