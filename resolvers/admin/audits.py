"""Audits: created and ended by administrators, with a log of every access to the copies."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, false, func, insert, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage import audit_copies
from models.admin.audits import Audit, AuditAccess, AuditCopy
from models.admin.tasks import Task, TaskState
from models.errors import (
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    require_all_found,
    require_found,
)
from models.events.journal import PLATFORM, ChangeKind
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from resolvers import pagination
from resolvers.admin import admin_log
from resolvers.admin.admin_log import NewAdminLogEntry
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult, insert_tasks
from resolvers.auth import security_log
from resolvers.context import Context
from resolvers.pagination import PageScan, read_by_keys
from resolvers.users.selection import load_managed_user

TASK_KIND = "AUDIT_COPY"  # the task that copies the stored messages
CHUNK_SIZE = 500  # messages per transaction
MAX_ACTIVE_AUDITS = 10  # per user
MAX_AUDIT_TIME = timedelta(days=36_500)
MAX_REASON_LENGTH = 1000  # characters
NEWEST, COPIES, ACCESSES = "audits-", "copies+", "accesses-"
LIST_ACTION, EXPORT_ACTION = "list", "export"
AUDIT_SORT_KEY = (col(Audit.created_at), col(Audit.id))
COPY_SORT_KEY = (col(AuditCopy.position), col(AuditCopy.id))
ACCESS_SORT_KEY = (col(AuditAccess.at), col(AuditAccess.id))


@dataclass(frozen=True, slots=True)
class NewAudit:
    """An audit to create, of the mail that arrives from `start` on and before `end`."""

    user_id: int
    expires_at: datetime
    start: datetime | None = None
    end: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class AuditPageKey:
    """A page of the copies or accesses of one audit, with the selected columns."""

    audit_id: int
    page_request: PageRequest
    columns: frozenset[str]


def is_visible_audit(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for visible audits.

    ROOT sees all, an ADMIN all except audits of the own account.
    """
    viewer, is_not_removed = ctx.viewer, ~col(Audit.removed)
    if viewer.role is Role.ROOT:
        return is_not_removed
    if viewer.role is Role.ADMIN:
        return is_not_removed & (col(Audit.user_id) != viewer.user_id)
    return false()


def _is_of_visible_active_audit(ctx: Context, audit_id_column: Any) -> ColumnElement[bool]:
    """Return the WHERE clause for rows of visible audits that have not ended."""
    audit_ids = select(col(Audit.id)).where(is_visible_audit(ctx), col(Audit.ended_at).is_(None))
    clause: ColumnElement[bool] = audit_id_column.in_(audit_ids)
    return clause


async def create_audit(ctx: Context, new_audit: NewAudit) -> int:
    """Create an audit and return its id.

    A task copies the stored messages; new ones are copied on arrival. Raises InvalidInput,
    NotFound, Forbidden for the viewer's own account, and LimitReached if the user has too many
    active audits.
    """
    now = ctx.environment.now()
    if not now < new_audit.expires_at <= now + MAX_AUDIT_TIME:
        raise InvalidInput("an audit ends in the future", constraint="range", path=["expires"])
    if new_audit.start and new_audit.end and new_audit.start >= new_audit.end:
        raise InvalidInput("the end comes after the start", constraint="range", path=["end"])
    if new_audit.reason and len(new_audit.reason) > MAX_REASON_LENGTH:
        raise InvalidInput(
            f"at most {MAX_REASON_LENGTH} characters", constraint="max", path=["reason"]
        )
    user = await load_managed_user(ctx, new_audit.user_id)
    if user.id == ctx.viewer.user_id:
        raise Forbidden("nobody audits the own account", path=["user"])
    async with ctx.write_session(PLATFORM, user.id) as session:
        statement = select(func.count()).select_from(Audit)
        ((count,),) = await ctx.read(
            statement.where(col(Audit.user_id) == user.id, col(Audit.ended_at).is_(None))
        )
        if count >= MAX_ACTIVE_AUDITS:
            raise LimitReached(
                f"at most {MAX_ACTIVE_AUDITS} audits of an account",
                limit=MAX_ACTIVE_AUDITS,
                used=count,
            )
        audit_id, (_, actor_name) = (
            ctx.environment.new_id(),
            await security_log.load_actor_id_and_name(session, ctx.viewer),
        )
        (task,) = await insert_tasks(ctx, session, TASK_KIND, [{"audit": audit_id}])
        audit = Audit(
            id=audit_id,
            user_id=user.id,
            username=user.username,
            start=new_audit.start,
            end=new_audit.end,
            expires=new_audit.expires_at,
            reason=new_audit.reason,
            created_at=now,
            created_by=actor_name,
            task_id=task.id,
        )
        session.add(audit)
        await ctx.record_change(session, PLATFORM, ChangeKind.TASK_CHANGED, [task.id])
        values_after = {
            "user": user.username,
            "start": new_audit.start,
            "end": new_audit.end,
            "expires": new_audit.expires_at,
        }
        await admin_log.log_changes(
            ctx,
            session,
            NewAdminLogEntry("auditCreate", "Audit", audit_id, None, None, values_after),
        )
    return audit_id


async def end_audits_and_mark_removed(ctx: Context, ids: Sequence[int]) -> None:
    """End audits early, all or none. Housekeeping deletes the copies later.

    Raises NotFound if the viewer can't see an audit.
    """
    async with ctx.write_session(PLATFORM) as session:
        rows = {row.id: row for row in await ctx.load_many(load_audits_by_id, ids) if row}
        require_all_found(ids, rows)
        statement = update(Audit).where(col(Audit.id).in_(rows))
        now = ctx.environment.now()
        connection = await session.connection()
        await connection.execute(statement.values(removed=True))
        await connection.execute(
            statement.where(col(Audit.ended_at).is_(None)).values(ended_at=now)
        )
        entries = [
            NewAdminLogEntry(
                "auditDelete", "Audit", row.id, None, {"user": row.username, "copies": row.copies}
            )
            for row in rows.values()
        ]
        await admin_log.log_changes(ctx, session, *entries)


async def load_audits_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load audits by id, in the given order. None for ids that the viewer can't see."""
    return await read_by_keys(
        ctx, select(*select_columns(Audit)).where(is_visible_audit(ctx)), col(Audit.id), ids
    )


async def load_copy_task_states_by_audit(ctx: Context, ids: list[int]) -> list[TaskState]:
    """Return the states of the tasks that make the first copies; CANCELLED for missing audits."""
    statement = (
        select(col(Audit.id), col(Audit.copied), col(Task.state))
        .outerjoin(Task, col(Task.id) == col(Audit.task_id))
        .where(is_visible_audit(ctx), col(Audit.id).in_(ids))
    )
    states_by_id = {
        row.id: TaskState.SUCCEEDED if row.copied else row.state or TaskState.FAILED
        for row in await ctx.read(statement)
    }
    return [states_by_id.get(key, TaskState.CANCELLED) for key in ids]


async def read_audit_page(
    ctx: Context, user_id: int | None, page_request: PageRequest, columns: frozenset[str]
) -> Page[ColumnRow]:
    """Read a page of audits of one user or of all users, the newest first."""
    statement = select(*select_columns(Audit, {"id", "created_at", *columns})).where(
        *_audit_list_clauses(ctx, user_id)
    )
    return await pagination.read_page(
        ctx, PageScan(statement, page_request, AUDIT_SORT_KEY, is_descending=True)
    )


async def count_audits(ctx: Context, user_id: int | None) -> int:
    """Count the visible audits of one user or of all users."""
    (row,) = await ctx.read(
        select(func.count()).select_from(Audit).where(*_audit_list_clauses(ctx, user_id))
    )
    return int(row[0])


def _audit_list_clauses(ctx: Context, user_id: int | None) -> list[ColumnElement[bool]]:
    return [is_visible_audit(ctx), true() if user_id is None else col(Audit.user_id) == user_id]


async def load_copy_pages_and_log_access(
    ctx: Context, page_keys: list[AuditPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of copies in chain order, and log the access in the same transaction."""
    columns = frozenset({"id", "position"}).union(*(key.columns for key in page_keys))
    scans = []
    for page_key in page_keys:
        statement = select(*select_columns(AuditCopy, columns)).where(
            *_copy_list_clauses(ctx, page_key)
        )
        scans.append(PageScan(statement, page_key.page_request, COPY_SORT_KEY, is_descending=False))
    async with ctx.separate_write_session() as (separate_ctx, session):
        await _log_access(separate_ctx, session, [key.audit_id for key in page_keys], LIST_ACTION)
        return await pagination.read_pages(separate_ctx, scans)


async def count_copies_by_audit(ctx: Context, page_keys: list[AuditPageKey]) -> list[int]:
    """Count the copies of audits, in the given order."""
    count = func.count().label("many")
    statements = [
        select(count).select_from(AuditCopy).where(*_copy_list_clauses(ctx, key))
        for key in page_keys
    ]
    return [row.many for (row,) in await pagination.read_union(ctx, statements)]


def _copy_list_clauses(ctx: Context, page_key: AuditPageKey) -> list[ColumnElement[bool]]:
    return [
        col(AuditCopy.audit_id) == page_key.audit_id,
        _is_of_visible_active_audit(ctx, col(AuditCopy.audit_id)),
    ]


async def load_copies_by_id_and_log_access(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load copies by id, in the given order, and log the access. None if the viewer sees none."""
    statement = select(*select_columns(AuditCopy)).where(
        _is_of_visible_active_audit(ctx, col(AuditCopy.audit_id))
    )
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None for _ in ids]
    async with ctx.separate_write_session() as (separate_ctx, session):
        rows = await read_by_keys(separate_ctx, statement, col(AuditCopy.id), ids)
        await _log_access(
            separate_ctx, session, sorted({row.audit_id for row in rows if row}), LIST_ACTION
        )
    return rows


async def load_access_pages_by_audit(
    ctx: Context, page_keys: list[AuditPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the accesses to audits, the latest first."""
    columns = frozenset({"id", "at"}).union(*(key.columns for key in page_keys))
    scans = []
    for page_key in page_keys:
        statement = select(*select_columns(AuditAccess, columns)).where(
            *_access_list_clauses(ctx, page_key)
        )
        scans.append(
            PageScan(statement, page_key.page_request, ACCESS_SORT_KEY, is_descending=True)
        )
    return await pagination.read_pages(ctx, scans)


async def count_accesses_by_audit(ctx: Context, page_keys: list[AuditPageKey]) -> list[int]:
    """Count the accesses to audits, in the given order."""
    count = func.count().label("many")
    statements = [
        select(count).select_from(AuditAccess).where(*_access_list_clauses(ctx, key))
        for key in page_keys
    ]
    return [row.many for (row,) in await pagination.read_union(ctx, statements)]


def _access_list_clauses(ctx: Context, page_key: AuditPageKey) -> list[ColumnElement[bool]]:
    audit_ids = select(col(Audit.id)).where(is_visible_audit(ctx))
    return [
        col(AuditAccess.audit_id) == page_key.audit_id,
        col(AuditAccess.audit_id).in_(audit_ids),
    ]


async def load_accesses_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load accesses by id, in the given order. None for ids that the viewer can't see."""
    audit_ids = select(col(Audit.id)).where(is_visible_audit(ctx))
    statement = select(*select_columns(AuditAccess)).where(col(AuditAccess.audit_id).in_(audit_ids))
    return await read_by_keys(ctx, statement, col(AuditAccess.id), ids)


async def _log_access(
    ctx: Context, session: AsyncSession, audit_ids: Sequence[int], action: str
) -> None:
    """Insert an access row of the viewer for each visible active audit."""
    statement = select(col(Audit.id)).where(
        col(Audit.id).in_(audit_ids), is_visible_audit(ctx), col(Audit.ended_at).is_(None)
    )
    visible_ids = {row.id for row in await ctx.read(statement)}
    if not visible_ids:
        return
    actor_id, actor_name = await security_log.load_actor_id_and_name(session, ctx.viewer)
    rows = [
        {
            "id": ctx.environment.new_id(),
            "audit_id": key,
            "at": ctx.environment.now(),
            "actor": actor_name,
            "actor_id": actor_id or None,
            "role": ctx.viewer.role,
            "ip": ctx.client_ip,
            "action": action,
        }
        for key in sorted(visible_ids)
    ]
    await (await session.connection()).execute(insert(AuditAccess), rows)


async def export_mbox_and_log_access(
    ctx: Context, audit_id: int, *, verifies_copies: bool = False
) -> AsyncGenerator[bytes]:
    """Return the copies of an audit as an mbox file, after the access is logged.

    Raises NotFound if there is no active audit. With `verifies_copies`, raises the error of
    `audit_copies` for a damaged copy before the first byte.
    """
    async with ctx.write_session() as session:
        row: ColumnRow = require_found(await ctx.load(load_audits_by_id, audit_id), str(audit_id))
        if row.ended_at is not None:
            raise NotFound(str(audit_id))
        await _log_access(ctx, session, [audit_id], EXPORT_ACTION)
    if verifies_copies:
        await audit_copies.check_blobs_of_copies(ctx.environment, audit_id, row.copies)
    return audit_copies.stream_mbox(ctx.environment, audit_id, row.copies)


async def find_broken_position(ctx: Context, audit: ColumnRow) -> int | None:
    """Return the position where the chain of copies is broken.

    None if it is intact or the audit has ended.
    """
    return (
        None
        if audit.ended_at is not None
        else await audit_copies.first_broken_position(ctx.environment, audit)
    )


async def plan_lock_of_audited_user(
    ctx: Context, task_order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Plan the next chunk.

    Locks the stream of the user, so that no message is deleted before the copy.
    """
    statement = select(col(Audit.user_id)).where(col(Audit.id) == task_order["audit"])
    return TaskStepPlan([row.user_id for row in await ctx.read(statement)])


async def copy_next_messages(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    _: TaskStepPlan,
) -> TaskStepResult:
    """Copy the next messages, including deleted ones, in the order of their ids."""
    statement = select(*select_columns(Audit)).where(
        col(Audit.id) == task_order["audit"], col(Audit.ended_at).is_(None)
    )
    audit = next(iter(await ctx.read(statement)), None)
    if audit is None:
        return TaskStepResult(checkpoint)
    message_ids = select(col(Message.id)).where(
        col(Message.user_id) == audit.user_id, col(Message.id) > checkpoint.get("after", 0)
    )
    if audit.start:
        message_ids = message_ids.where(col(Message.received_at) >= audit.start)
    if audit.end:
        message_ids = message_ids.where(col(Message.received_at) < audit.end)
    ids = [
        message.id
        for message in await ctx.read(message_ids.order_by(col(Message.id)).limit(CHUNK_SIZE))
    ]
    copied_count = (
        await ctx.environment.run_in_session(
            session,
            lambda transaction: audit_copies.copy_messages_without_copy(transaction, audit, ids),
        )
        if ids
        else 0
    )
    has_more = len(ids) == CHUNK_SIZE
    if not has_more:
        completion = update(Audit).where(col(Audit.id) == audit.id).values(copied=True)
        await (await session.connection()).execute(completion)
    return TaskStepResult(
        {"after": ids[-1] if ids else checkpoint.get("after", 0)},
        done_count=copied_count,
        has_more=has_more,
    )
