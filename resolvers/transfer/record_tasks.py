"""Tasks that create objects from the records of an uploaded CSV or JSON Lines file."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs.blob_writer import upsert_blob_rows
from models.admin.tasks import Task, TaskKind
from models.errors import InvalidInput, RequestError, require_found
from models.events.event_types import EventType
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table, select_columns
from models.transfer import ImportArchive
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import DomainAdmin, User
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import (
    TaskStepPlan,
    TaskStepPlanner,
    TaskStepResult,
    insert_tasks_and_wake_workers,
)
from resolvers.auth import credential_status
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.files.stored_files import blob_rows_of_uncompressed_object, read_tenant_id
from resolvers.files.uploads import ReceivedFile
from resolvers.transfer import import_archives, record_files
from resolvers.transfer.exports import require_below_running_task_limit
from resolvers.transfer.record_files import FileRecord
from resolvers.viewer import Viewer

MAX_UNFINISHED_TASKS = 2  # of a user, of one kind
CHUNK_RECORDS = 100  # of one transaction
HEAD_SIZE = 64 * 1024  # bytes
MAX_LISTED = 1000  # errors or warnings in the result
MAX_SHOWN_LENGTH = 500  # characters of a message or of a name in a path, which can quote the file
FILE_PATH = ["file"]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of some records."""

    created_count: int
    errors: list[dict[str, Any]]  # one item for each error: line, code, path, message
    warnings: list[dict[str, Any]]  # code, message


class RecordBatch(Protocol):
    """Some records of a file, validated and ready to be stored."""

    ctx: Context
    lines: dict[int, int]  # line numbers by index in the chunk
    total: int | None  # number of records of the file, in the first batch

    async def stream_ids(self) -> Collection[int]:
        """Return the ids of the streams to lock for the transaction of `store`."""
        ...

    async def store(self) -> BatchResult:
        """Store what can be stored, in the open transaction or in one of its own."""
        ...


@dataclass(frozen=True, slots=True)
class RecordTaskKind:
    """What the tasks of one kind create from a file."""

    kind: TaskKind
    mutation: str
    columns: Collection[str]  # names that the header of a CSV file can have
    objects: str  # such as "users", in messages
    prepare_batch: Callable[[Context, Sequence[FileRecord]], Awaitable[RecordBatch]]

    def open_file_and_yield_planner(
        self, ctx: Context, task_order: dict[str, Any], checkpoint: Mapping[str, Any]
    ) -> AbstractAsyncContextManager[TaskStepPlanner]:
        """Keep the file open for a run of a task of this kind."""
        return _open_file_and_yield_planner(self, ctx, task_order, checkpoint)


async def queue_record_task(
    ctx: Context, task_kind: RecordTaskKind, upload_id: int, file_format: UserFileFormat | None
) -> Task:
    """Queue a task that creates the objects of an upload, and moves the upload to the task.

    Raises InvalidInput if the header of a CSV file has an unknown column, LimitReached if two such
    tasks of the viewer are unfinished, NotFound if the viewer has no such upload.
    """
    owner_id = require_user_id(ctx)
    upload: ColumnRow = require_found(
        await ctx.load(uploads.load_own_complete_uploads_by_id, upload_id),
        str(upload_id),
        path=FILE_PATH,
    )
    head = await uploads.read_upload_head(ctx, upload, HEAD_SIZE)
    file_format = file_format or record_files.detect_format(head)
    record_files.require_known_csv_columns(head, file_format, task_kind.columns)
    default_name = task_kind.objects
    file = ReceivedFile(b"", upload.size, upload.digest, filename=upload.filename or default_name)
    stored_file = await blob_rows_of_uncompressed_object(
        ctx.environment, await read_tenant_id(ctx, owner_id), file, upload.blob_name
    )
    viewer, archive_id = ctx.viewer, ctx.environment.new_id()
    order = {
        "archive": archive_id,
        "format": file_format,
        "role": viewer.role,
        "administers": sorted(viewer.administered_domains),
        "permissions": sorted(viewer.permissions),
    }
    async with ctx.write_session(owner_id) as session:
        await require_below_running_task_limit(ctx, owner_id, task_kind.kind, MAX_UNFINISHED_TASKS)
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, task_kind.kind, [order], user_id=owner_id
        )

        def take_over_upload(transaction: DatabaseTransaction) -> None:
            import_archives.delete_upload_row(transaction, owner_id, upload_id, FILE_PATH)
            row = {
                "id": archive_id,
                "user_id": owner_id,
                "task_id": task.id,
                "filename": file.filename,
                "size": file.size,
                "blob_id": upsert_blob_rows(transaction, stored_file)[stored_file.layout_digest],
                "created_at": transaction.environment.now(),
            }
            transaction.connection.execute(insert(core_table(ImportArchive)), row)

        await ctx.environment.run_in_session(session, take_over_upload)
        await ctx.record_change(session, owner_id, EventType.TASK_CREATED, [task.id])
        new_values = {"file": file.filename}
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            NewAuditLogEntry(task_kind.mutation, "Task", task.id, None, None, new_values),
        )
    return task


async def create_from_local_file(
    ctx: Context,
    task_kind: RecordTaskKind,
    path: Path,
    head: bytes,
    file_format: UserFileFormat | None,
) -> AsyncGenerator[BatchResult]:
    """Create the objects of a local file, part by part; yield the result of each part."""
    file_format = file_format or record_files.detect_format(head)
    record_files.require_known_csv_columns(head, file_format, task_kind.columns)
    with closing(record_files.read_records(path, file_format, task_kind.columns)) as records:
        while chunk := await asyncio.to_thread(list[FileRecord], islice(records, CHUNK_RECORDS)):
            yield await (await task_kind.prepare_batch(ctx, chunk)).store()


@asynccontextmanager
async def _open_file_and_yield_planner(
    task_kind: RecordTaskKind,
    ctx: Context,
    task_order: dict[str, Any],
    checkpoint: Mapping[str, Any],
) -> AsyncGenerator[TaskStepPlanner]:
    """Keep the file open for a run of the task.

    Yield the planner, placed after the finished records.
    """
    file_format = UserFileFormat(task_order["format"])
    async with import_archives.open_server_file_or_archive_copy(
        ctx, None, col(ImportArchive.id) == task_order["archive"]
    ) as path:
        total = None
        if not checkpoint:
            total = await asyncio.to_thread(_count_records, task_kind, path, file_format)
        with closing(record_files.read_records(path, file_format, task_kind.columns)) as records:
            finished_count = checkpoint.get("at", 0)
            await asyncio.to_thread(_skip_records, records, finished_count)

            async def plan_batch(
                ctx: Context, order: dict[str, Any], _: dict[str, Any]
            ) -> TaskStepPlan:
                chunk = await asyncio.to_thread(list[FileRecord], islice(records, CHUNK_RECORDS))
                requester_ctx = ctx.copy_for_viewer(
                    await _require_requester_with_present_rights(ctx, task_kind, order)
                )
                batch = await task_kind.prepare_batch(requester_ctx, chunk)
                batch.total = total
                return TaskStepPlan(sorted(await batch.stream_ids()), prepared=batch)

            yield plan_batch


def _count_records(task_kind: RecordTaskKind, path: Path, file_format: UserFileFormat) -> int:
    with closing(record_files.read_records(path, file_format, task_kind.columns)) as records:
        return sum(1 for _ in records)


def _skip_records(records: Iterable[FileRecord], count: int) -> None:
    for _ in islice(records, count):
        pass


async def _require_requester_with_present_rights(
    ctx: Context, task_kind: RecordTaskKind, order: Mapping[str, Any]
) -> Viewer:
    """Return the viewer of the requester, with its present rights, but no more than when it asked.

    Raises InvalidInput if the requester can no longer create such objects.
    """
    statement = select(*select_columns(User)).where(
        col(User.id) == ctx.viewer.user_id, credential_status.is_user_enabled_sql()
    )
    row = next(iter(await ctx.read(statement)), None)
    role = Role(order["role"])
    if row is None or not row.role.includes(role):
        text = f"The user who started the import can no longer create {task_kind.objects}."
        raise InvalidInput(text, constraint=ValidationConstraint.ROLE, path=FILE_PATH)
    domain_rows = await ctx.read(
        select(col(DomainAdmin.domain_id)).where(col(DomainAdmin.user_id) == row.id)
    )
    domain_ids, permissions = set(order["administers"]), set(order["permissions"])
    if row.role is Role.DOMAIN_ADMIN:
        domain_ids &= {domain_row.domain_id for domain_row in domain_rows}
        permissions &= set(row.admin_permissions)
    return Viewer(
        row.id,
        role,
        frozenset({Scope.FULL}),
        frozenset(map(_parse_permission, permissions)),
        frozenset(domain_ids),
    )


def _parse_permission(name: str) -> AdminPermission | UserPermission:
    admin_permissions = AdminPermission.__members__
    return AdminPermission(name) if name in admin_permissions else UserPermission(name)


def batch_result(
    ctx: Context, lines: Mapping[int, int], errors: Mapping[int, Sequence[RequestError]]
) -> BatchResult:
    """Return the result of a batch, and clear the warnings of its context.

    `lines` and `errors` have the index of the record in the chunk as key.
    """
    listed_errors = [
        {
            "line": lines[index],
            "code": error.code,
            "path": [part[:MAX_SHOWN_LENGTH] for part in error.path],
            "message": error.message[:MAX_SHOWN_LENGTH],
        }
        for index, record_errors in sorted(errors.items())
        for error in record_errors
    ]
    listed_warnings = [
        {"code": warning.code, "message": warning.message} for warning in ctx.warnings
    ]
    ctx.warnings.clear()
    return BatchResult(len(lines) - len(errors), listed_errors, listed_warnings)


async def plan_nothing(
    _ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Return an empty plan: `open_planner` yields the planner."""
    return TaskStepPlan()


async def store_prepared_batch(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Store the objects of one batch; return the task step with the total counts."""
    batch: RecordBatch = task_plan.prepared
    previous: dict[str, Any] = {
        "at": 0,
        "createdCount": 0,
        "refusedCount": 0,
        "errors": [],
        "warnings": [],
    }
    previous |= checkpoint
    if not batch.lines:
        await import_archives.delete_archive(session, order)
        return TaskStepResult(previous, total=batch.total)
    batch.ctx = ctx.copy_for_viewer(batch.ctx.viewer)
    result = await batch.store()
    ctx.environment.reach_fault_point("records stored")
    checkpoint_after = {
        "at": previous["at"] + len(batch.lines),
        "createdCount": previous["createdCount"] + result.created_count,
        "refusedCount": previous["refusedCount"] + len(batch.lines) - result.created_count,
        "errors": [*previous["errors"], *result.errors][:MAX_LISTED],
        "warnings": [*previous["warnings"], *result.warnings][:MAX_LISTED],
    }
    return TaskStepResult(
        checkpoint_after, done_count=len(batch.lines), has_more=True, total=batch.total
    )
