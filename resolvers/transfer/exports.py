"""Export accounts as files: a task writes the file, which can be downloaded until it expires."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives import archive_writer
from mail.archives.archive_writer import SUFFIXES_AND_MEDIA_TYPES, ArchiveState, ExportFormat
from mail.storage.blobs import blob_reader
from mail.storage.blobs.blob_writer import (
    StoredMessageBlobs,
    store_objects_and_prepare_blob_rows,
    upsert_blob_rows,
)
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.damage_check import (
    MAX_VERIFIED_BYTES,
    require_intact_blobs_and_return_budget,
)
from mail.storage.blobs.message_layout import NewBlob
from models.admin.tasks import Task, TaskKind, TaskState
from models.errors import LimitReached, NotFound, require_found
from models.events.event_types import EventType
from models.files.blobs import Blob
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.keyset_pages import Page
from models.transfer import Export, ExportPart
from models.users.roles import Role, Scope, expand_scopes
from resolvers import pagination
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult, insert_tasks_and_wake_workers
from resolvers.context import Context
from resolvers.files.stored_files import read_tenant_id
from resolvers.list_orders import OwnerPageKey, list_orders, read_owner_pages
from resolvers.messages.content_access import (
    require_readable_account,
    write_content_read_to_security_log,
)
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.pagination import read_by_keys
from resolvers.transfer import export_writer, passphrases
from resolvers.users.selection import require_managed_user


class UserExportOrder(StrEnum):
    """The order of a list of exports; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(UserExportOrder)
TASK_KIND = TaskKind.USER_EXPORT
MAX_RUNNING_EXPORTS = 2  # unfinished exports of a user
MAX_STORED_EXPORTS = 5  # exports of a user; a new one deletes the oldest
# one of these is needed for exports with settings
SETTINGS_SCOPES = frozenset({Scope.READ, Scope.SETTINGS})
DATA_PART, DIRECTORY_PART, END_PART = range(3)
PIECES_PER_READ = 100  # blobs read together, possibly with their bytes
MAX_REPORTED_MESSAGES = 50  # unreadable messages listed in the result


@dataclass(frozen=True, slots=True)
class NewExport:
    """An export to be created: of messages that match conditions, or of the whole account."""

    user_id: int
    format: ExportFormat = ExportFormat.EML_ZIP
    conditions: MessageConditions | None = None
    with_settings: bool = True
    passphrase: str | None = field(default=None, repr=False)


def is_readable_unexpired_export_sql(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for exports the viewer may see: the own ones, and all for ROOT.

    Exports with settings are visible only to credentials that can read settings.
    """
    is_readable = (
        true() if ctx.viewer.role is Role.ROOT else col(Export.user_id) == ctx.viewer.user_id
    )
    is_unexpired = is_readable & (col(Export.expires_at) > ctx.environment.now())
    return (
        is_unexpired
        if SETTINGS_SCOPES & expand_scopes(ctx.viewer.scopes)
        else is_unexpired & ~col(Export.settings)
    )


async def load_visible_exports_by_id(ctx: Context, export_ids: list[int]) -> list[ColumnRow | None]:
    """Load exports in the order of the IDs; None for one the viewer may not see."""
    return await read_by_keys(
        ctx,
        select(*select_columns(Export)).where(is_readable_unexpired_export_sql(ctx)),
        col(Export.id),
        export_ids,
    )


async def load_export_pages(ctx: Context, page_keys: list[OwnerPageKey]) -> list[Page[ColumnRow]]:
    """Load pages of the exports of users that the viewer may see."""
    return await read_owner_pages(ctx, Export, page_keys, _select_visible_exports_of_user)


async def count_exports(ctx: Context, page_keys: list[OwnerPageKey]) -> list[int]:
    """Count the exports of the lists, in the order of the keys."""
    statements = [_select_visible_exports_of_user(ctx, key.owner_id, {"id"}) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


def _select_visible_exports_of_user(
    ctx: Context, user_id: int, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    statement = select(*select_columns(Export, columns))
    return statement.where(is_readable_unexpired_export_sql(ctx), col(Export.user_id) == user_id)


async def load_export_states_or_failed(ctx: Context, export_ids: list[int]) -> list[TaskState]:
    """Return the task state of each export; FAILED if an unfinished export has no task."""
    statement = (
        select(col(Export.id), col(Export.finished_at), col(Task.state))
        .outerjoin(Task, col(Task.id) == col(Export.task_id))
        .where(is_readable_unexpired_export_sql(ctx), col(Export.id).in_(export_ids))
    )
    states_by_id = {
        row.id: TaskState.SUCCEEDED if row.finished_at else row.state or TaskState.FAILED
        for row in await ctx.read(statement)
    }
    return [states_by_id.get(key, TaskState.FAILED) for key in export_ids]


async def create_and_queue_export(ctx: Context, new_export: NewExport) -> int:
    """Create an export, queue the task that writes it, and return the export ID.

    Raises Forbidden if the viewer may not read the mail, LimitReached if two exports are
    unfinished.
    """
    require_readable_account(ctx, new_export.user_id)
    user = await require_managed_user(ctx, new_export.user_id)
    foreign = user.id != ctx.viewer.user_id
    settings = new_export.with_settings and bool(SETTINGS_SCOPES & expand_scopes(ctx.viewer.scopes))
    carried = new_export.with_settings and new_export.format is not ExportFormat.MBOX
    secret = passphrases.encrypted_passphrase_field(
        ctx, user.id, new_export.passphrase, with_settings=carried
    )
    ids = await _load_selected_message_ids(ctx, new_export)
    now, key = ctx.environment.now(), ctx.environment.new_id()
    async with ctx.write_session(user.id) as session:
        await _require_export_limit_and_delete_oldest(ctx, session, user.id)
        order = {
            "export": key,
            "format": new_export.format,
            "ids": ids,
            "settings": settings,
            **secret,
        }
        total = None if ids is None else len(ids)
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, TASK_KIND, [order], user_id=user.id, total_count=total
        )
        ending, _ = SUFFIXES_AND_MEDIA_TYPES[new_export.format]
        row = Export(
            id=key,
            user_id=user.id,
            task_id=task.id,
            format=new_export.format,
            filename=f"{user.username}-{now:%Y-%m-%d}.{ending}",
            settings=settings and new_export.format is not ExportFormat.MBOX,
            created_at=now,
            expires_at=now + ctx.environment.options.exports_retention,
        )
        session.add(row)
        await ctx.record_change(session, user.id, EventType.TASK_CREATED, [task.id])
        if foreign:
            after = {"format": new_export.format, "settings": settings, "passphrase": bool(secret)}
            entry = NewAuditLogEntry("userExport", "User", user.id, user.domain_id, None, after)
            await audit_log.insert_audit_log_entries(ctx, session, entry)
            await write_content_read_to_security_log(ctx, [user.id])
    return key


async def _load_selected_message_ids(ctx: Context, new_export: NewExport) -> list[int] | None:
    """Return the IDs of the messages that match; None for the whole account."""
    if new_export.conditions is None or new_export.conditions.is_empty:
        return None
    return await export_writer.load_visible_message_ids(
        ctx, new_export.user_id, MessageSelector(conditions=new_export.conditions)
    )


async def _require_export_limit_and_delete_oldest(
    ctx: Context, session: AsyncSession, user_id: int
) -> None:
    """Raise LimitReached if too many exports are unfinished. Delete the oldest finished ones."""
    await require_below_running_task_limit(ctx, user_id, TASK_KIND, MAX_RUNNING_EXPORTS)
    statement = select(col(Export.id)).where(
        col(Export.user_id) == user_id, col(Export.finished_at).is_not(None)
    )
    newest = statement.order_by(col(Export.created_at).desc(), col(Export.id).desc())
    old = [row.id for row in await ctx.read(newest.offset(MAX_STORED_EXPORTS - 1))]
    if old:
        await (await session.connection()).execute(delete(Export).where(col(Export.id).in_(old)))


async def require_below_running_task_limit(
    ctx: Context, user_id: int, task_kind: TaskKind, max_running: int
) -> None:
    """Raise LimitReached if a user has this many unfinished tasks of a kind."""
    statement = select(func.count()).select_from(Task)
    conditions = (
        col(Task.user_id) == user_id,
        col(Task.kind) == task_kind,
        col(Task.finished_at).is_(None),
    )
    ((running,),) = await ctx.read(statement.where(*conditions))
    if running >= max_running:
        raise LimitReached(
            f"A user has at most {max_running} unfinished tasks of this kind.",
            limit=max_running,
            used=running,
        )


@dataclass(frozen=True, slots=True)
class StoredExport:
    """A finished export that can be downloaded."""

    export: ColumnRow
    blob_ids_and_sizes: list[tuple[int, int]]  # blob ID and size, in order
    ctx: Context

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(size for _, size in self.blob_ids_and_sizes)

    async def require_undamaged_within_budget(self, start: int, end: int) -> None:
        """Raise CorruptBlob if bytes from `start` to `end` are damaged.

        Checks as much as the budget of `check_pieces` allows. Raises NotFound if the export was
        deleted.
        """
        blob_ids, at, budget = list[int](), 0, MAX_VERIFIED_BYTES
        for key, size in self.blob_ids_and_sizes:
            if max(start - at, 0) < min(end - at, size):
                blob_ids.append(key)
            at += size
        for nth in range(0, len(blob_ids), PIECES_PER_READ):
            keys = blob_ids[nth : nth + PIECES_PER_READ]
            rows = await self.ctx.read(select(*blob_reader.COLUMNS).where(col(Blob.id).in_(keys)))
            if len(rows) < len(set(keys)):
                raise NotFound(str(self.export.id))  # it was removed after the export was read
            budget = await require_intact_blobs_and_return_budget(
                self.ctx.environment.object_store, rows, budget
            )

    async def stream_bytes(self, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` to `end`."""
        at = 0
        for key, size in self.blob_ids_and_sizes:
            first, last = max(start - at, 0), min(end - at, size)
            at += size
            if first >= last:
                continue
            statement = select(*blob_reader.COLUMNS).where(col(Blob.id) == key)
            blob = require_found(next(iter(await self.ctx.read(statement)), None))
            chunks = blob_reader.stream_content(
                self.ctx.environment.object_store, blob, first, last
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk


async def open_finished_export_and_log_access(
    ctx: Context, user_id: int, export_id: int
) -> StoredExport:
    """Return a finished export. Raises NotFound if there is none or it is unfinished.

    A download of another user's export, which only ROOT can do, is written to the security log.
    """
    row = require_found(await ctx.load(load_visible_exports_by_id, export_id), str(export_id))
    if row.user_id != user_id or row.finished_at is None:
        raise NotFound(str(export_id))
    if row.user_id != ctx.viewer.user_id:
        await write_content_read_to_security_log(ctx, [row.user_id])
    statement = select(col(ExportPart.blob_id), col(ExportPart.size)).where(
        col(ExportPart.export_id) == export_id
    )
    rows = await ctx.read(statement.order_by(col(ExportPart.part), col(ExportPart.position)))
    return StoredExport(row, [(row.blob_id, row.size) for row in rows], ctx)


@dataclass(frozen=True, slots=True)
class StoredExportPart:
    """A stored part of an export chunk: its number, its size in bytes and its blobs."""

    number: int
    size: int
    stored_blobs: StoredMessageBlobs


@dataclass(frozen=True, slots=True)
class PreparedExportChunk:
    """The stored parts of the next chunk, and what its transaction reports."""

    parts: Sequence[StoredExportPart]
    checkpoint: dict[str, Any]
    done_count: int
    total: int | None  # if the chunk determines it


async def store_next_export_chunk_blobs(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Write the next chunk and store its blobs."""
    kind, state = ExportFormat(task_order["format"]), ArchiveState(**checkpoint.get("state", {}))
    note = {**checkpoint}
    done_count, total, chunk_parts = 0, None, list[tuple[int, bytes]]()
    if not checkpoint:
        passphrase = passphrases.decrypt_passphrase_or_none(
            ctx.environment, ctx.viewer.user_id, task_order
        )
        chunk, total = await export_writer.encode_account_record(
            ctx, kind, state, task_order, passphrase
        )
        chunk_parts, note["after"] = (
            [(DATA_PART, chunk.data), (DIRECTORY_PART, chunk.directory)],
            None,
        )
    elif part := await export_writer.encode_next_chunk(
        ctx, kind, state, task_order["ids"], checkpoint["after"]
    ):
        chunk_parts = [
            (DATA_PART, part.archive_chunk.data),
            (DIRECTORY_PART, part.archive_chunk.directory),
        ]
        note |= {"after": part.next_position, "storedCount": state.messages}
        refused = [[text.partition(":")[0], text] for text in part.unreadable_messages]
        note["refused"] = [*checkpoint.get("refused", []), *refused][:MAX_REPORTED_MESSAGES]
        done_count = part.done_count
    else:
        last, end = archive_writer.archive_and_directory_end(kind, state)
        chunk_parts, note["ended"] = [(DATA_PART, last), (END_PART, end)], True
    note |= {"state": state.checkpoint(), "position": checkpoint.get("position", 0) + 1}
    tenant = await read_tenant_id(ctx, ctx.viewer.user_id)
    parts = [
        StoredExportPart(
            part,
            len(content),
            await store_objects_and_prepare_blob_rows(
                ctx.environment, tenant, NewBlob(content_digest(content), content), ()
            ),
        )
        for part, content in chunk_parts
        if content
    ]
    return TaskStepPlan(prepared=PreparedExportChunk(parts, note, done_count, total))


async def insert_export_chunk_parts(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    _: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Insert the parts of the chunk, and set the expiry of the export anew.

    After the last chunk, the export is marked as finished. Raises NotFound if it was deleted.
    """
    chunk: PreparedExportChunk = task_plan.prepared
    note = chunk.checkpoint
    now, key = ctx.environment.now(), task_order["export"]
    values: dict[str, Any] = {"expires_at": now + ctx.environment.options.exports_retention}
    if note.get("ended"):
        size = func.coalesce(func.sum(col(ExportPart.size)), 0)
        total_size = select(size).where(col(ExportPart.export_id) == key)
        values |= {"finished_at": now, "size": total_size.scalar_subquery()}
    await ctx.environment.run_in_session(
        session,
        lambda transaction: _insert_export_parts(transaction, key, note["position"], chunk.parts),
    )
    statement = update(Export).where(col(Export.id) == key).values(**values)
    if not (await (await session.connection()).execute(statement)).rowcount:
        raise NotFound(str(key), path=["export"])
    ctx.environment.reach_fault_point("exported")
    return TaskStepResult(
        note, done_count=chunk.done_count, has_more=not note.get("ended"), total=chunk.total
    )


def _insert_export_parts(
    transaction: DatabaseTransaction,
    export_id: int,
    position: int,
    parts: Sequence[StoredExportPart],
) -> None:
    """Insert rows for the stored blobs of a chunk."""
    rows: list[Mapping[str, Any]] = [
        {
            "id": transaction.environment.new_id(),
            "export_id": export_id,
            "part": part.number,
            "position": position,
            "size": part.size,
            "blob_id": upsert_blob_rows(transaction, part.stored_blobs)[
                part.stored_blobs.layout_digest
            ],
        }
        for part in parts
    ]
    if rows:
        transaction.connection.execute(insert(core_table(ExportPart)), rows)
