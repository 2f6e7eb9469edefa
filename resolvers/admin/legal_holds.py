"""Legal holds: created and ended by administrators, with a log of every access to the copies."""

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, insert, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage import held_copies
from models.admin.legal_holds import (
    HeldCopy,
    LegalHold,
    LegalHoldAccess,
    LegalHoldAccessAction,
)
from models.admin.tasks import Task, TaskState
from models.errors import (
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    require_all_found,
    require_found,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.held_copy_task import TASK_KIND
from resolvers.admin.legal_hold_conditions import (
    HeldCopyPageKey,
    LegalHoldAccessPageKey,
    access_clauses,
    copy_clauses,
)
from resolvers.admin.task_steps import insert_tasks_and_wake_workers
from resolvers.auth import log_actors
from resolvers.context import Context
from resolvers.list_orders import (
    SortColumn,
    list_orders,
    read_list_pages,
    read_ordered_page,
)
from resolvers.pagination import PageScan, read_by_keys
from resolvers.users.selection import require_managed_user

MAX_ACTIVE_LEGAL_HOLDS = 10  # per user
MAX_LEGAL_HOLD_TIME = timedelta(days=36_500)
MAX_REASON_LENGTH = 1000  # characters


class LegalHoldOrder(StrEnum):
    """The order of a list of legal holds; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


class HeldCopyOrder(StrEnum):
    """The order of a list of copies, by their position in the hash chain."""

    POSITION_ASC = "POSITION_ASC"
    POSITION_DESC = "POSITION_DESC"


class LegalHoldAccessOrder(StrEnum):
    """The order of a list of accesses; ties by id."""

    AT_ASC = "AT_ASC"
    AT_DESC = "AT_DESC"


LEGAL_HOLD_ORDERS = list_orders(LegalHoldOrder)
COPY_ORDERS = list_orders(HeldCopyOrder, {"POSITION": SortColumn("position", int)})
ACCESS_ORDERS = list_orders(LegalHoldAccessOrder, {"AT": SortColumn("at", datetime)})


@dataclass(frozen=True, slots=True)
class NewLegalHold:
    """A legal hold to create, of the mail that arrives from `starts_at` on and before `ends_at`."""

    user_id: int
    expires_at: datetime
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    reason: str | None = None


def is_visible_legal_hold(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for visible legal holds.

    ROOT sees all, an ADMIN all except legal holds of the own account.
    """
    viewer, is_not_removed = ctx.viewer, ~col(LegalHold.removed)
    if viewer.role is Role.ROOT:
        return is_not_removed
    if viewer.role is Role.ADMIN:
        return is_not_removed & (col(LegalHold.user_id) != viewer.user_id)
    return false()


def _is_of_visible_active_legal_hold(
    ctx: Context, legal_hold_id_column: Any
) -> ColumnElement[bool]:
    """Return the WHERE clause for rows whose legal hold is visible and has not ended."""
    legal_hold_ids = select(col(LegalHold.id)).where(
        is_visible_legal_hold(ctx), col(LegalHold.ended_at).is_(None)
    )
    clause: ColumnElement[bool] = legal_hold_id_column.in_(legal_hold_ids)
    return clause


async def create_legal_hold(ctx: Context, new_legal_hold: NewLegalHold) -> int:
    """Create a legal hold and return its id.

    A task copies the stored messages; new ones are copied on arrival. Raises InvalidInput,
    NotFound, Forbidden for the viewer's own account, and LimitReached if the user has too many
    active legal holds.
    """
    _validate_new_legal_hold(new_legal_hold, ctx.environment.now())
    user = await require_managed_user(ctx, new_legal_hold.user_id)
    if user.id == ctx.viewer.user_id:
        raise Forbidden("Your own account can't have a legal hold.", path=["user"])
    async with ctx.write_session(PLATFORM, user.id) as session:
        await _require_below_active_legal_hold_limit(ctx, user.id)
        legal_hold = await _insert_legal_hold_and_task(ctx, session, user, new_legal_hold)
        values_after = {
            "user": user.username,
            "startsAt": new_legal_hold.starts_at,
            "endsAt": new_legal_hold.ends_at,
            "expiresAt": new_legal_hold.expires_at,
        }
        entry = NewAuditLogEntry(
            "legalHoldCreate", "LegalHold", legal_hold.id, None, None, values_after
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
        return legal_hold.id


def _validate_new_legal_hold(new_legal_hold: NewLegalHold, now: datetime) -> None:
    """Raise InvalidInput if the times or the reason are not allowed."""
    if not now < new_legal_hold.expires_at <= now + MAX_LEGAL_HOLD_TIME:
        raise InvalidInput(
            "The end of a legal hold must be in the future and at most P36500D ahead.",
            constraint=ValidationConstraint.RANGE,
            path=["expiresAt"],
        )
    if (
        new_legal_hold.starts_at
        and new_legal_hold.ends_at
        and new_legal_hold.starts_at >= new_legal_hold.ends_at
    ):
        raise InvalidInput(
            "The end must be after the start.",
            constraint=ValidationConstraint.RANGE,
            path=["endsAt"],
        )
    if new_legal_hold.reason and len(new_legal_hold.reason) > MAX_REASON_LENGTH:
        raise InvalidInput(
            f"The reason has at most {MAX_REASON_LENGTH} characters.",
            constraint=ValidationConstraint.MAX,
            path=["reason"],
        )


async def _require_below_active_legal_hold_limit(ctx: Context, user_id: int) -> None:
    """Raise LimitReached if the user has MAX_ACTIVE_LEGAL_HOLDS active legal holds."""
    statement = select(func.count()).select_from(LegalHold)
    ((count,),) = await ctx.read(
        statement.where(col(LegalHold.user_id) == user_id, col(LegalHold.ended_at).is_(None))
    )
    if count >= MAX_ACTIVE_LEGAL_HOLDS:
        raise LimitReached(
            f"An account has at most {MAX_ACTIVE_LEGAL_HOLDS} active legal holds.",
            limit=MAX_ACTIVE_LEGAL_HOLDS,
            used=count,
        )


async def _insert_legal_hold_and_task(
    ctx: Context, session: AsyncSession, user: ColumnRow, new_legal_hold: NewLegalHold
) -> LegalHold:
    """Insert a legal hold and the task that copies the stored messages."""
    legal_hold_id = ctx.environment.new_id()
    actor = await log_actors.load_log_actor(session, ctx.viewer)
    (task,) = await insert_tasks_and_wake_workers(
        ctx, session, TASK_KIND, [{"legal_hold": legal_hold_id}]
    )
    legal_hold = LegalHold(
        id=legal_hold_id,
        user_id=user.id,
        username=user.username,
        starts_at=new_legal_hold.starts_at,
        ends_at=new_legal_hold.ends_at,
        expires_at=new_legal_hold.expires_at,
        reason=new_legal_hold.reason,
        created_at=ctx.environment.now(),
        created_by=actor.name,
        task_id=task.id,
    )
    session.add(legal_hold)
    await ctx.record_change(session, PLATFORM, EventType.TASK_CREATED, [task.id])
    return legal_hold


async def end_legal_holds_and_mark_removed(ctx: Context, ids: Sequence[int]) -> None:
    """End legal holds early, all or none. Housekeeping deletes the copies later.

    Raises NotFound if the viewer can't see a legal hold.
    """
    async with ctx.write_session(PLATFORM) as session:
        rows = {
            row.id: row for row in await ctx.load_many(load_visible_legal_holds_by_id, ids) if row
        }
        require_all_found(ids, rows)
        statement = update(LegalHold).where(col(LegalHold.id).in_(rows))
        now = ctx.environment.now()
        connection = await session.connection()
        await connection.execute(statement.values(removed=True))
        await connection.execute(
            statement.where(col(LegalHold.ended_at).is_(None)).values(ended_at=now)
        )
        entries = [
            NewAuditLogEntry(
                "legalHoldEnd",
                "LegalHold",
                row.id,
                None,
                {"user": row.username, "copies": row.copies},
            )
            for row in rows.values()
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


async def load_visible_legal_holds_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load legal holds by id, in the given order. None for ids that the viewer can't see."""
    return await read_by_keys(
        ctx,
        select(*select_columns(LegalHold)).where(is_visible_legal_hold(ctx)),
        col(LegalHold.id),
        ids,
    )


async def load_copy_task_states_by_legal_hold(ctx: Context, ids: list[int]) -> list[TaskState]:
    """Return the states of the first copy tasks; CANCELLED for missing legal holds."""
    statement = (
        select(col(LegalHold.id), col(LegalHold.copied), col(Task.state))
        .outerjoin(Task, col(Task.id) == col(LegalHold.task_id))
        .where(is_visible_legal_hold(ctx), col(LegalHold.id).in_(ids))
    )
    states_by_id = {
        row.id: TaskState.SUCCEEDED if row.copied else row.state or TaskState.FAILED
        for row in await ctx.read(statement)
    }
    return [states_by_id.get(key, TaskState.CANCELLED) for key in ids]


async def read_visible_legal_hold_page(
    ctx: Context,
    user_id: int | None,
    page_request: PageRequest,
    columns: Collection[str],
    order: LegalHoldOrder = LegalHoldOrder.CREATED_AT_DESC,
) -> Page[ColumnRow]:
    """Read a page of legal holds of one user or of all users.

    Raises InvalidInput for a cursor of another order.
    """
    list_order = LEGAL_HOLD_ORDERS[order]
    statement = select(*select_columns(LegalHold, {"id", list_order.column, *columns})).where(
        *_legal_hold_list_clauses(ctx, user_id)
    )
    return await read_ordered_page(ctx, statement, LegalHold, page_request, list_order)


async def count_visible_legal_holds(ctx: Context, user_id: int | None) -> int:
    """Count the visible legal holds of one user or of all users."""
    (row,) = await ctx.read(
        select(func.count()).select_from(LegalHold).where(*_legal_hold_list_clauses(ctx, user_id))
    )
    return int(row[0])


def _legal_hold_list_clauses(ctx: Context, user_id: int | None) -> list[ColumnElement[bool]]:
    return [
        is_visible_legal_hold(ctx),
        true() if user_id is None else col(LegalHold.user_id) == user_id,
    ]


async def load_copy_pages_and_log_access(
    ctx: Context, page_keys: list[HeldCopyPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the copies of legal holds, and log the access in the same transaction.

    The conditions are tested on at most MAX_TESTED_ROWS copies for each page. Raises InvalidInput
    for a cursor of another order, or if a text of the conditions is too long.
    """
    async with ctx.separate_or_nested_write_session() as (separate_ctx, session):
        await _insert_access_rows_of_legal_holds(
            separate_ctx,
            session,
            [key.owner_id for key in page_keys],
            LegalHoldAccessAction.LIST,
        )
        return await pagination.read_pages(separate_ctx, _copy_page_scans(separate_ctx, page_keys))


def _copy_page_scans(ctx: Context, page_keys: Sequence[HeldCopyPageKey]) -> list[PageScan]:
    columns = {"id"}.union(*({key.order.column, *key.columns} for key in page_keys))
    for key in page_keys:
        key.order.require_fitting_cursor(key.page_request)
    return [
        PageScan(
            _select_copies(ctx, key.owner_id, columns),
            key.page_request,
            key.order.sort_key(HeldCopy),
            is_descending=key.order.is_descending,
            tested_conditions=copy_clauses(key.conditions),
        )
        for key in page_keys
    ]


async def count_visible_copies_by_legal_hold(
    ctx: Context, page_keys: list[HeldCopyPageKey]
) -> list[int]:
    """Count the copies of each list, in the given order."""
    statements = [
        _select_copies(ctx, key.owner_id, ["id"]).where(*copy_clauses(key.conditions))
        for key in page_keys
    ]
    return await pagination.count_rows(ctx, statements)


def _select_copies(
    ctx: Context, legal_hold_id: int, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(HeldCopy, columns)).where(
        col(HeldCopy.legal_hold_id) == legal_hold_id,
        _is_of_visible_active_legal_hold(ctx, col(HeldCopy.legal_hold_id)),
    )


async def load_copies_by_id_and_log_access(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load copies by id, in the given order, and log the access. None if the viewer sees none."""
    statement = select(*select_columns(HeldCopy)).where(
        _is_of_visible_active_legal_hold(ctx, col(HeldCopy.legal_hold_id))
    )
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None for _ in ids]
    async with ctx.separate_or_nested_write_session() as (separate_ctx, session):
        rows = await read_by_keys(separate_ctx, statement, col(HeldCopy.id), ids)
        await _insert_access_rows_of_legal_holds(
            separate_ctx,
            session,
            sorted({row.legal_hold_id for row in rows if row}),
            LegalHoldAccessAction.LIST,
        )
    return rows


async def load_visible_access_pages_by_legal_hold(
    ctx: Context, page_keys: list[LegalHoldAccessPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the accesses to legal holds.

    Raises InvalidInput for a cursor of another order.
    """
    return await read_list_pages(ctx, LegalHoldAccess, page_keys, _select_accesses)


async def count_visible_accesses_by_legal_hold(
    ctx: Context, page_keys: list[LegalHoldAccessPageKey]
) -> list[int]:
    """Count the accesses of each list, in the given order."""
    statements = [_select_accesses(ctx, key, ["id"]) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


def _select_accesses(
    ctx: Context, page_key: LegalHoldAccessPageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    legal_hold_ids = select(col(LegalHold.id)).where(is_visible_legal_hold(ctx))
    return select(*select_columns(LegalHoldAccess, columns)).where(
        col(LegalHoldAccess.legal_hold_id) == page_key.owner_id,
        col(LegalHoldAccess.legal_hold_id).in_(legal_hold_ids),
        *access_clauses(page_key.conditions),
    )


async def load_visible_accesses_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load accesses by id, in the given order. None for ids that the viewer can't see."""
    legal_hold_ids = select(col(LegalHold.id)).where(is_visible_legal_hold(ctx))
    statement = select(*select_columns(LegalHoldAccess)).where(
        col(LegalHoldAccess.legal_hold_id).in_(legal_hold_ids)
    )
    return await read_by_keys(ctx, statement, col(LegalHoldAccess.id), ids)


async def _insert_access_rows_of_legal_holds(
    ctx: Context,
    session: AsyncSession,
    legal_hold_ids: Sequence[int],
    action: LegalHoldAccessAction,
) -> None:
    """Insert an access row of the viewer for each visible active legal hold."""
    statement = select(col(LegalHold.id)).where(
        col(LegalHold.id).in_(legal_hold_ids),
        is_visible_legal_hold(ctx),
        col(LegalHold.ended_at).is_(None),
    )
    visible_ids = {row.id for row in await ctx.read(statement)}
    if not visible_ids:
        return
    actor = await log_actors.load_log_actor(session, ctx.viewer)
    rows = [
        {
            "id": ctx.environment.new_id(),
            "legal_hold_id": key,
            "at": ctx.environment.now(),
            "actor": actor.name,
            "actor_id": actor.user_id,
            "role": ctx.viewer.role,
            "ip": ctx.client_ip,
            "action": action,
        }
        for key in sorted(visible_ids)
    ]
    await (await session.connection()).execute(insert(LegalHoldAccess), rows)


async def export_mbox_and_log_access(
    ctx: Context, legal_hold_id: int, *, verifies_copies: bool = False
) -> AsyncGenerator[bytes]:
    """Return the copies of a legal hold as an mbox file, after the access is logged.

    Raises NotFound if there is no active legal hold. With `verifies_copies`, raises the error of
    `held_copies` for a damaged copy before the first byte.
    """
    async with ctx.write_session() as session:
        row: ColumnRow = require_found(
            await ctx.load(load_visible_legal_holds_by_id, legal_hold_id), str(legal_hold_id)
        )
        if row.ended_at is not None:
            raise NotFound(str(legal_hold_id))
        await _insert_access_rows_of_legal_holds(
            ctx, session, [legal_hold_id], LegalHoldAccessAction.EXPORT
        )
    if verifies_copies:
        await held_copies.require_intact_blobs_of_copies(ctx.environment, legal_hold_id, row.copies)
    return held_copies.stream_mbox(ctx.environment, legal_hold_id, row.copies)


async def find_broken_chain_position(ctx: Context, legal_hold: ColumnRow) -> int | None:
    """Return the position where the chain of copies is broken.

    None if it is intact or the legal hold has ended.
    """
    return (
        None
        if legal_hold.ended_at is not None
        else await held_copies.find_first_broken_position(ctx.environment, legal_hold)
    )
