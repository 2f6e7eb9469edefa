"""Export accounts as files: a task writes the file, which can be downloaded until it expires."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives import archive_writer
from mail.archives.archive_writer import ENDINGS, ExportFormat, State
from mail.storage.blobs import blob_reader
from mail.storage.blobs.blob_writer import Kept, blob_ids, keep
from mail.storage.blobs.compression import digest_of
from mail.storage.blobs.damage_check import BUDGET, check_pieces
from mail.storage.blobs.message_layout import Piece
from models.admin.tasks import Task, TaskState
from models.errors import LimitReached, NotFound, found
from models.events.journal import ChangeKind
from models.files.blobs import Blob
from models.runtime.environment import Turn
from models.store.columns import Picked, picked, table_of
from models.transfer import Export, ExportPiece
from models.users.roles import Role, Scope, opened
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.task_steps import Plan, Step, queue
from resolvers.context import Context
from resolvers.files.stored_files import tenant_of
from resolvers.messages.content_access import openable, witnessed
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.pagination import all_by_keys, by_keys
from resolvers.transfer import export_writer, passphrases
from resolvers.users.selection import managed_one

KIND = "ACCOUNT_EXPORT"
RUNNING = 2  # unfinished exports of a user
KEPT = 5  # exports of a user; a new one deletes the oldest
WHOLE = frozenset({Scope.READ, Scope.SETTINGS})  # one of these is needed for exports with settings
DATA, DIRECTORY, END = range(3)
CHECKED = 100  # blobs read together, possibly with their bytes
TOLD = 50  # unreadable messages listed in the result


@dataclass(frozen=True, slots=True)
class NewExport:
    """An export to be created: of messages that match conditions, or of the whole account."""

    user_id: int
    format: ExportFormat = ExportFormat.EML_ZIP
    where: MessageWhere | None = None
    settings: bool = True
    passphrase: str | None = field(default=None, repr=False)


def seen(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for exports the viewer may see: the own ones, and all for ROOT.

    Exports with settings are visible only to credentials that can read settings.
    """
    theirs = true() if ctx.viewer.role is Role.ROOT else col(Export.user_id) == ctx.viewer.user_id
    there = theirs & (col(Export.expires_at) > ctx.world.now())
    return there if WHOLE & opened(ctx.viewer.scopes) else there & ~col(Export.settings)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load exports in the order of the IDs; None for one the viewer may not see."""
    return await by_keys(ctx, select(*picked(Export)).where(seen(ctx)), col(Export.id), ids)


async def of_users(ctx: Context, user_ids: list[int]) -> list[list[Picked]]:
    """Load the exports of these users, newest first."""
    asked = select(*picked(Export)).where(seen(ctx))
    newest = asked.order_by(col(Export.created_at).desc(), col(Export.id).desc())
    return await all_by_keys(ctx, newest, col(Export.user_id), user_ids)


async def states(ctx: Context, ids: list[int]) -> list[TaskState]:
    """Return the task state of each export; FAILED if an unfinished export has no task."""
    asked = (
        select(col(Export.id), col(Export.finished_at), col(Task.state))
        .outerjoin(Task, col(Task.id) == col(Export.task_id))
        .where(seen(ctx), col(Export.id).in_(ids))
    )
    known = {
        row.id: TaskState.SUCCEEDED if row.finished_at else row.state or TaskState.FAILED
        for row in await ctx.read(asked)
    }
    return [known.get(key, TaskState.FAILED) for key in ids]


async def create(ctx: Context, new: NewExport) -> int:
    """Create an export, queue the task that writes it, and return the export ID.

    Raises Forbidden if the viewer may not read the mail, LimitReached if two exports are
    unfinished.
    """
    openable(ctx, new.user_id)
    user = await managed_one(ctx, new.user_id)
    foreign = user.id != ctx.viewer.user_id
    if foreign:
        await witnessed(ctx, [user.id])
    settings = new.settings and bool(WHOLE & opened(ctx.viewer.scopes))
    carried = new.settings and new.format is not ExportFormat.MBOX
    secret = passphrases.sealed(ctx, user.id, new.passphrase, settings=carried)
    ids = await _chosen(ctx, new)
    now, key = ctx.world.now(), ctx.world.key()
    async with ctx.write(user.id) as session:
        await _room(ctx, session, user.id)
        order = {
            "export": key,
            "format": new.format,
            "ids": ids,
            "settings": settings,
            **secret,
        }
        total = None if ids is None else len(ids)
        (task,) = await queue(ctx, session, KIND, [order], user_id=user.id, total=total)
        ending, _ = ENDINGS[new.format]
        row = Export(
            id=key,
            user_id=user.id,
            task_id=task.id,
            format=new.format,
            filename=f"{user.username}-{now:%Y-%m-%d}.{ending}",
            settings=settings and new.format is not ExportFormat.MBOX,
            created_at=now,
            expires_at=now + ctx.world.options.exports_for,
        )
        session.add(row)
        await ctx.record(session, user.id, ChangeKind.TASK_CHANGED, [task.id])
        if foreign:
            after = {"format": new.format, "settings": settings, "passphrase": bool(secret)}
            deed = Done("accountExport", "User", user.id, user.domain_id, None, after)
            await admin_log.note(ctx, session, deed)
    return key


async def _chosen(ctx: Context, new: NewExport) -> list[int] | None:
    """Return the IDs of the messages that match; None for the whole account."""
    if new.where is None or new.where.everything:
        return None
    return await export_writer.chosen(ctx, new.user_id, Selection(where=new.where))


async def _room(ctx: Context, session: AsyncSession, user_id: int) -> None:
    """Raise LimitReached if too many exports are unfinished. Delete the oldest finished ones."""
    await check_running(ctx, user_id, KIND, RUNNING)
    asked = select(col(Export.id)).where(
        col(Export.user_id) == user_id, col(Export.finished_at).is_not(None)
    )
    newest = asked.order_by(col(Export.created_at).desc(), col(Export.id).desc())
    old = [row.id for row in await ctx.read(newest.offset(KEPT - 1))]
    if old:
        await (await session.connection()).execute(delete(Export).where(col(Export.id).in_(old)))


async def check_running(ctx: Context, user_id: int, kind: str, most: int) -> None:
    """Raise LimitReached if a user has this many unfinished tasks of a kind."""
    many = select(func.count()).select_from(Task)
    theirs = col(Task.user_id) == user_id, col(Task.kind) == kind, col(Task.finished_at).is_(None)
    ((running,),) = await ctx.read(many.where(*theirs))
    if running >= most:
        raise LimitReached(f"{most} of an account at once", limit=most, used=running)


@dataclass(frozen=True, slots=True)
class Whole:
    """A finished export that can be downloaded."""

    row: Picked
    parts: list[tuple[int, int]]  # blob ID and size, in order
    ctx: Context

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(size for _, size in self.parts)

    async def check(self, start: int, end: int) -> None:
        """Raise Corrupt if bytes from `start` to `end` are damaged.

        Checks as much as the budget of `check_pieces` allows. Raises NotFound if the export was
        deleted.
        """
        wanted, at, budget = list[int](), 0, BUDGET
        for key, size in self.parts:
            if max(start - at, 0) < min(end - at, size):
                wanted.append(key)
            at += size
        for nth in range(0, len(wanted), CHECKED):
            keys = wanted[nth : nth + CHECKED]
            rows = await self.ctx.read(select(*blob_reader.COLUMNS).where(col(Blob.id).in_(keys)))
            if len(rows) < len(set(keys)):
                raise NotFound(str(self.row.id))  # removed meanwhile
            budget = await check_pieces(self.ctx.world.blobs, rows, budget)

    async def stream(self, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` to `end`."""
        at = 0
        for key, size in self.parts:
            first, last = max(start - at, 0), min(end - at, size)
            at += size
            if first >= last:
                continue
            asked = select(*blob_reader.COLUMNS).where(col(Blob.id) == key)
            blob = found(next(iter(await self.ctx.read(asked)), None))
            chunks = blob_reader.stream(self.ctx.world.blobs, blob, first, last)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk


async def whole(ctx: Context, user_id: int, key: int) -> Whole:
    """Return a finished export. Raises NotFound if there is none or it is unfinished.

    A download of another user's export, which only ROOT can do, is written to the security log.
    """
    row = found(await ctx.load(by_ids, key), str(key))
    if row.user_id != user_id or row.finished_at is None:
        raise NotFound(str(key))
    if row.user_id != ctx.viewer.user_id:
        await witnessed(ctx, [row.user_id])
    asked = select(col(ExportPiece.blob_id), col(ExportPiece.size)).where(
        col(ExportPiece.export_id) == key
    )
    rows = await ctx.read(asked.order_by(col(ExportPiece.part), col(ExportPiece.position)))
    return Whole(row, [(each.blob_id, each.size) for each in rows], ctx)


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Write the next chunk and store its blobs."""
    kind, state = ExportFormat(order["format"]), State(**checkpoint.get("state", {}))
    note = {**checkpoint}
    done, total, written = 0, None, list[tuple[int, bytes]]()
    if not checkpoint:
        word = passphrases.opened(ctx.world, ctx.viewer.user_id, order)
        chunk, total = await export_writer.begun(ctx, kind, state, order, word)
        written, note["after"] = [(DATA, chunk.data), (DIRECTORY, chunk.directory)], None
    elif part := await export_writer.cut(ctx, kind, state, order["ids"], checkpoint["after"]):
        written = [(DATA, part.chunk.data), (DIRECTORY, part.chunk.directory)]
        note |= {"after": part.after, "stored": state.messages}
        refused = [[text.partition(":")[0], text] for text in part.damaged]
        note["refused"] = [*checkpoint.get("refused", []), *refused][:TOLD]
        done = part.done
    else:
        last, end = archive_writer.ended(kind, state)
        written, note["ended"] = [(DATA, last), (END, end)], True
    note |= {"state": state.plain(), "position": checkpoint.get("position", 0) + 1}
    tenant = await tenant_of(ctx, ctx.viewer.user_id)
    kept = [
        (part, len(content), await keep(ctx.world, tenant, Piece(digest_of(content), content), ()))
        for part, content in written
        if content
    ]
    return Plan(made=(kept, note, done, total))


async def step(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    _: dict[str, Any],
    held: Plan,
) -> Step:
    """Insert the pieces of the chunk; after the last chunk mark the export as finished.

    Raises NotFound if the export was deleted.
    """
    kept, note, done, total = held.made
    now, key = ctx.world.now(), order["export"]
    values: dict[str, Any] = {"expires_at": now + ctx.world.options.exports_for}
    if note.get("ended"):
        size = func.coalesce(func.sum(col(ExportPiece.size)), 0)
        written = select(size).where(col(ExportPiece.export_id) == key)
        values |= {"finished_at": now, "size": written.scalar_subquery()}
    await ctx.world.join(session, lambda turn: _pieces(turn, key, note["position"], kept))
    this = update(Export).where(col(Export.id) == key).values(**values)
    if not (await (await session.connection()).execute(this)).rowcount:
        raise NotFound(str(key), path=["export"])
    ctx.world.fault("exported")
    return Step(note, done=done, more=not note.get("ended"), total=total)


def _pieces(turn: Turn, key: int, position: int, kept: list[tuple[int, int, Kept]]) -> None:
    """Insert rows for the stored blobs of a chunk."""
    rows: list[Mapping[str, Any]] = [
        {
            "id": turn.world.key(),
            "export_id": key,
            "part": part,
            "position": position,
            "size": size,
            "blob_id": blob_ids(turn, one)[one.root],
        }
        for part, size, one in kept
    ]
    if rows:
        turn.connection.execute(insert(table_of(ExportPiece)), rows)
