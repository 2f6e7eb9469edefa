"""Create users from an uploaded CSV or JSON Lines file, in a task."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs.blob_writer import upsert_blob_rows
from models.admin.tasks import Task, TaskKind
from models.errors import ErrorCollector, InvalidInput, RequestError, require_found
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
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.files import uploads
from resolvers.files.stored_files import blob_rows_of_uncompressed_object, read_tenant_id
from resolvers.files.uploads import ReceivedFile
from resolvers.transfer import import_archives
from resolvers.transfer.exports import require_below_running_task_limit
from resolvers.users.creation import bulk_create, user_records
from resolvers.users.creation import insert as creation_insert
from resolvers.users.creation.create import NewUser
from resolvers.users.creation.insert import PreparedUser
from resolvers.users.creation.user_records import UserRecord
from resolvers.viewer import Viewer

KIND = TaskKind.USERS_CREATE
MUTATION = "usersCreateFromFile"
MAX_UNFINISHED_TASKS = 2  # of a user
CHUNK_USERS = 100  # of one transaction
HEAD_SIZE = 64 * 1024  # bytes
MAX_LISTED = 1000  # errors or warnings in the result
FILE_PATH = ["file"]
MAX_TRIES = 2  # if a concurrent transaction took a name


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of some records."""

    created_count: int
    errors: list[dict[str, Any]]  # one item for each error: line, code, path, message
    warnings: list[dict[str, Any]]  # code, message


async def queue_file_create(
    ctx: Context, upload_id: int, file_format: UserFileFormat | None
) -> Task:
    """Queue a task that creates the users of an upload, and moves the upload to the task.

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
    file_format = file_format or user_records.detect_format(head)
    user_records.require_known_csv_columns(head, file_format)
    file = ReceivedFile(b"", upload.size, upload.digest, filename=upload.filename or "users")
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
        await require_below_running_task_limit(ctx, owner_id, KIND, MAX_UNFINISHED_TASKS)
        (task,) = await insert_tasks_and_wake_workers(ctx, session, KIND, [order], user_id=owner_id)

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
        await ctx.record_change(session, owner_id, EventType.TASK_CHANGED, [task.id])
        new_values = {"file": file.filename}
        await audit_log.insert_audit_log_entries(
            ctx, session, NewAuditLogEntry(MUTATION, "Task", task.id, None, None, new_values)
        )
    return task


async def create_users_from_local_file(
    ctx: Context, path: Path, head: bytes, file_format: UserFileFormat | None
) -> AsyncGenerator[BatchResult]:
    """Create the users of a local file, part by part; yield the result of each part."""
    file_format = file_format or user_records.detect_format(head)
    user_records.require_known_csv_columns(head, file_format)
    with closing(user_records.read_user_records(path, file_format)) as records:
        while chunk := await asyncio.to_thread(list[UserRecord], islice(records, CHUNK_USERS)):
            yield await (await UserBatch.prepare(ctx, chunk)).store()


@asynccontextmanager
async def open_file_and_yield_planner(
    ctx: Context, task_order: dict[str, Any], checkpoint: Mapping[str, Any]
) -> AsyncGenerator[TaskStepPlanner]:
    """Keep the file open for a run of the task.

    Yield the planner, placed after the finished records.
    """
    file_format = UserFileFormat(task_order["format"])
    async with import_archives.open_server_file_or_archive_copy(
        ctx, None, col(ImportArchive.id) == task_order["archive"]
    ) as path:
        total = None if checkpoint else await asyncio.to_thread(_count_records, path, file_format)
        with closing(user_records.read_user_records(path, file_format)) as records:
            finished_count = checkpoint.get("at", 0)
            await asyncio.to_thread(_skip_records, records, finished_count)

            async def plan_batch(
                ctx: Context, order: dict[str, Any], _: dict[str, Any]
            ) -> TaskStepPlan:
                chunk = await asyncio.to_thread(list[UserRecord], islice(records, CHUNK_USERS))
                requester_ctx = ctx.copy_for_viewer(
                    await _require_requester_with_present_rights(ctx, order)
                )
                batch = await UserBatch.prepare(requester_ctx, chunk)
                batch.total = total
                return TaskStepPlan(
                    await creation_insert.stream_ids_to_lock(ctx, batch.prepared.values()),
                    prepared=batch,
                )

            yield plan_batch


def _count_records(path: Path, file_format: UserFileFormat) -> int:
    with closing(user_records.read_user_records(path, file_format)) as records:
        return sum(1 for _ in records)


def _skip_records(records: Iterable[UserRecord], count: int) -> None:
    for _ in islice(records, count):
        pass


async def _require_requester_with_present_rights(ctx: Context, order: Mapping[str, Any]) -> Viewer:
    """Return the viewer of the requester, with its present rights, but no more than when it asked.

    Raises InvalidInput if the requester can no longer create users.
    """
    statement = select(*select_columns(User)).where(
        col(User.id) == ctx.viewer.user_id, credential_status.is_user_enabled_sql()
    )
    row = next(iter(await ctx.read(statement)), None)
    role = Role(order["role"])
    if row is None or not row.role.includes(role):
        text = "The user who started the import can no longer create users."
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


@dataclass(slots=True)
class UserBatch:
    """Some records of a file, validated and with hashed passwords, ready to be stored."""

    ctx: Context
    lines: dict[int, int]  # line numbers by index in the chunk
    prepared: dict[int, PreparedUser]
    errors: dict[int, list[RequestError]]
    total: int | None = None

    @classmethod
    async def prepare(cls, ctx: Context, records: Sequence[UserRecord]) -> "UserBatch":
        """Validate records and hash their passwords. Stores nothing."""
        errors, new_users, problems = dict[int, list[RequestError]](), dict[int, NewUser](), {}
        for index, record in enumerate(records):
            if record.problem:
                errors[index] = [record.problem]
                continue
            problems[index] = ErrorCollector()
            try:
                new_users[index] = await _user_from_record(ctx, record, problems[index])
            except RequestError as refusal:
                errors[index] = refusal.all_errors
        checked_users, more_errors = await bulk_create.validate_new_users(ctx, new_users, problems)
        errors |= more_errors
        prepared = {nth: item.prepared for nth, item in checked_users.items()}
        for index, collision in (
            await creation_insert.find_collisions_and_limit_errors(ctx, prepared)
        ).items():
            errors[index] = collision.all_errors
            checked_users.pop(index)
        prepared = await password_hashes.retry_while_hash_workers_are_busy(
            partial(bulk_create.hash_passwords_and_build_welcomes, ctx, checked_users)
        )
        return cls(ctx, {nth: record.line for nth, record in enumerate(records)}, prepared, errors)

    async def store(self) -> BatchResult:
        """Store the users that can be stored, in one transaction or savepoint.

        Raises IntegrityError if names collide at each try.
        """
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                store_errors = await creation_insert.store_users_and_return_errors(
                    self.ctx, self.prepared, mutation=MUTATION, allow_partial=True
                )
                break
            except IntegrityError:  # a concurrent transaction took a name: the next try finds it
                if not tries_left:
                    raise
        errors = {**self.errors, **{nth: error.all_errors for nth, error in store_errors.items()}}
        listed_errors = [
            {
                "line": self.lines[nth],
                "code": error.code,
                "path": error.path,
                "message": error.message,
            }
            for nth, refusals in sorted(errors.items())
            for error in refusals
        ]
        listed_warnings = [
            {"code": warning.code, "message": warning.message} for warning in self.ctx.warnings
        ]
        self.ctx.warnings.clear()
        return BatchResult(len(self.lines) - len(errors), listed_errors, listed_warnings)


async def _user_from_record(ctx: Context, record: UserRecord, problems: ErrorCollector) -> NewUser:
    """Return the new user of a record, with the ids of its domains. Raises NotFound."""
    new_user, domain_names = user_records.user_from_record(record, problems)
    if domain_names:
        domain_refs = [DomainIdOrName(name=name) for name in domain_names]
        rows = await domain_loaders.require_administered_domains_by_ref(
            ctx, domain_refs, path="administers"
        )
        new_user = replace(new_user, administers=[row.id for row in rows])
    return new_user


async def plan_nothing(
    _ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Return an empty plan: `open_planner` yields the planner."""
    return TaskStepPlan()


async def store_prepared_user_batch(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Store the users of one batch; return the task step with the total counts."""
    batch: UserBatch = task_plan.prepared
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
        return TaskStepResult(previous)
    batch.ctx = ctx.copy_for_viewer(batch.ctx.viewer)
    result = await batch.store()
    ctx.environment.reach_fault_point("users stored")
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
