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
from models.errors import Forbidden, Invalid, LimitReached, NotFound, all_found, found
from models.events.journal import PLATFORM, ChangeKind
from models.messages.tables import Message
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from resolvers import pagination
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.task_steps import Plan, Step, queue
from resolvers.auth import security_log
from resolvers.context import Context
from resolvers.pagination import Scan, by_keys
from resolvers.users.selection import managed_one

KIND = "AUDIT_COPY"  # the task that copies the stored messages
CHUNK = 500  # messages per transaction
MOST = 10  # per user
LONGEST = timedelta(days=36_500)
REASON = 1000  # characters
NEWEST, COPIES, ACCESSES = "audits-", "copies+", "accesses-"
LISTED, EXPORTED = "list", "export"
AGE = (col(Audit.created_at), col(Audit.id))
CHAIN = (col(AuditCopy.position), col(AuditCopy.id))
LOOKED = (col(AuditAccess.at), col(AuditAccess.id))


@dataclass(frozen=True, slots=True)
class NewAudit:
    """An audit to create, of the mail that arrives from `start` on and before `end`."""

    user_id: int
    expires: datetime
    start: datetime | None = None
    end: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class OfAudit:
    """A page of the copies or accesses of one audit, with the selected columns."""

    audit_id: int
    ask: Ask
    columns: frozenset[str]


def seen(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for visible audits.

    ROOT sees all, an ADMIN all except audits of the own account.
    """
    viewer, there = ctx.viewer, ~col(Audit.removed)
    if viewer.role is Role.ROOT:
        return there
    if viewer.role is Role.ADMIN:
        return there & (col(Audit.user_id) != viewer.user_id)
    return false()


def _of_seen(ctx: Context, column: Any) -> ColumnElement[bool]:
    """Return the WHERE clause for rows of visible audits that have not ended."""
    there = select(col(Audit.id)).where(seen(ctx), col(Audit.ended_at).is_(None))
    term: ColumnElement[bool] = column.in_(there)
    return term


async def create(ctx: Context, new: NewAudit) -> int:
    """Create an audit and return its id.

    A task copies the stored messages; new ones are copied on arrival. Raises InvalidInput,
    NotFound, Forbidden for the viewer's own account, and LimitReached if the user has too many
    active audits.
    """
    now = ctx.world.now()
    if not now < new.expires <= now + LONGEST:
        raise Invalid("an audit ends in the future", constraint="range", path=["expires"])
    if new.start and new.end and new.start >= new.end:
        raise Invalid("the end comes after the start", constraint="range", path=["end"])
    if new.reason and len(new.reason) > REASON:
        raise Invalid(f"at most {REASON} characters", constraint="max", path=["reason"])
    user = await managed_one(ctx, new.user_id)
    if user.id == ctx.viewer.user_id:
        raise Forbidden("nobody audits the own account", path=["user"])
    async with ctx.write(PLATFORM, user.id) as session:
        running = select(func.count()).select_from(Audit)
        ((many,),) = await ctx.read(
            running.where(col(Audit.user_id) == user.id, col(Audit.ended_at).is_(None))
        )
        if many >= MOST:
            raise LimitReached(f"at most {MOST} audits of an account", limit=MOST, used=many)
        key, (_, name) = ctx.world.key(), await security_log.actor(session, ctx.viewer)
        (task,) = await queue(ctx, session, KIND, [{"audit": key}])
        row = Audit(
            id=key,
            user_id=user.id,
            username=user.username,
            start=new.start,
            end=new.end,
            expires=new.expires,
            reason=new.reason,
            created_at=now,
            created_by=name,
            task_id=task.id,
        )
        session.add(row)
        await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, [task.id])
        after = {"user": user.username, "start": new.start, "end": new.end, "expires": new.expires}
        await admin_log.note(ctx, session, Done("auditCreate", "Audit", key, None, None, after))
    return key


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """End audits early, all or none. Housekeeping deletes the copies later.

    Raises NotFound if the viewer can't see an audit.
    """
    async with ctx.write(PLATFORM) as session:
        rows = {row.id: row for row in await ctx.load_all(by_ids, ids) if row}
        all_found(ids, rows)
        these = update(Audit).where(col(Audit.id).in_(rows))
        now = ctx.world.now()
        connection = await session.connection()
        await connection.execute(these.values(removed=True))
        await connection.execute(these.where(col(Audit.ended_at).is_(None)).values(ended_at=now))
        log = [
            Done("auditDelete", "Audit", row.id, None, {"user": row.username, "copies": row.copies})
            for row in rows.values()
        ]
        await admin_log.note(ctx, session, *log)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load audits by id, in the given order. None for ids that the viewer can't see."""
    return await by_keys(ctx, select(*picked(Audit)).where(seen(ctx)), col(Audit.id), ids)


async def states(ctx: Context, ids: list[int]) -> list[TaskState]:
    """Return the states of the tasks that make the first copies; CANCELLED for missing audits."""
    asked = (
        select(col(Audit.id), col(Audit.copied), col(Task.state))
        .outerjoin(Task, col(Task.id) == col(Audit.task_id))
        .where(seen(ctx), col(Audit.id).in_(ids))
    )
    known = {
        row.id: TaskState.SUCCEEDED if row.copied else row.state or TaskState.FAILED
        for row in await ctx.read(asked)
    }
    return [known.get(key, TaskState.CANCELLED) for key in ids]


async def page(
    ctx: Context, user_id: int | None, ask: Ask, columns: frozenset[str]
) -> Page[Picked]:
    """Read a page of audits of one user or of all users, the newest first."""
    rows = select(*picked(Audit, {"id", "created_at", *columns})).where(*_of(ctx, user_id))
    return await pagination.one(ctx, Scan(rows, ask, AGE, falling=True))


async def count(ctx: Context, user_id: int | None) -> int:
    """Count the visible audits of one user or of all users."""
    (row,) = await ctx.read(select(func.count()).select_from(Audit).where(*_of(ctx, user_id)))
    return int(row[0])


def _of(ctx: Context, user_id: int | None) -> list[ColumnElement[bool]]:
    return [seen(ctx), true() if user_id is None else col(Audit.user_id) == user_id]


async def copies(ctx: Context, keys: list[OfAudit]) -> list[Page[Picked]]:
    """Load pages of copies in chain order, and log the access in the same transaction."""
    columns = frozenset({"id", "position"}).union(*(key.columns for key in keys))
    scans = []
    for key in keys:
        rows = select(*picked(AuditCopy, columns)).where(*_copies_of(ctx, key))
        scans.append(Scan(rows, key.ask, CHAIN, falling=False))
    async with ctx.aside() as (apart, session):
        await _looked(apart, session, [key.audit_id for key in keys], LISTED)
        return await pagination.pages(apart, scans)


async def copy_counts(ctx: Context, keys: list[OfAudit]) -> list[int]:
    """Count the copies of audits, in the given order."""
    many = func.count().label("many")
    scans = [select(many).select_from(AuditCopy).where(*_copies_of(ctx, key)) for key in keys]
    return [row.many for (row,) in await pagination.together(ctx, scans)]


def _copies_of(ctx: Context, key: OfAudit) -> list[ColumnElement[bool]]:
    return [col(AuditCopy.audit_id) == key.audit_id, _of_seen(ctx, col(AuditCopy.audit_id))]


async def copies_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load copies by id, in the given order, and log the access. None if the viewer sees none."""
    theirs = select(*picked(AuditCopy)).where(_of_seen(ctx, col(AuditCopy.audit_id)))
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None for _ in ids]
    async with ctx.aside() as (apart, session):
        rows = await by_keys(apart, theirs, col(AuditCopy.id), ids)
        await _looked(apart, session, sorted({row.audit_id for row in rows if row}), LISTED)
    return rows


async def accesses(ctx: Context, keys: list[OfAudit]) -> list[Page[Picked]]:
    """Load pages of the accesses to audits, the latest first."""
    columns = frozenset({"id", "at"}).union(*(key.columns for key in keys))
    scans = []
    for key in keys:
        rows = select(*picked(AuditAccess, columns)).where(*_accesses_of(ctx, key))
        scans.append(Scan(rows, key.ask, LOOKED, falling=True))
    return await pagination.pages(ctx, scans)


async def access_counts(ctx: Context, keys: list[OfAudit]) -> list[int]:
    """Count the accesses to audits, in the given order."""
    many = func.count().label("many")
    scans = [select(many).select_from(AuditAccess).where(*_accesses_of(ctx, key)) for key in keys]
    return [row.many for (row,) in await pagination.together(ctx, scans)]


def _accesses_of(ctx: Context, key: OfAudit) -> list[ColumnElement[bool]]:
    there = select(col(Audit.id)).where(seen(ctx))
    return [col(AuditAccess.audit_id) == key.audit_id, col(AuditAccess.audit_id).in_(there)]


async def accesses_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load accesses by id, in the given order. None for ids that the viewer can't see."""
    there = select(col(Audit.id)).where(seen(ctx))
    theirs = select(*picked(AuditAccess)).where(col(AuditAccess.audit_id).in_(there))
    return await by_keys(ctx, theirs, col(AuditAccess.id), ids)


async def _looked(ctx: Context, session: AsyncSession, audits: Sequence[int], action: str) -> None:
    """Insert an access row of the viewer for each visible active audit."""
    there = select(col(Audit.id)).where(
        col(Audit.id).in_(audits), seen(ctx), col(Audit.ended_at).is_(None)
    )
    known = {row.id for row in await ctx.read(there)}
    if not known:
        return
    actor_id, name = await security_log.actor(session, ctx.viewer)
    rows = [
        {
            "id": ctx.world.key(),
            "audit_id": key,
            "at": ctx.world.now(),
            "actor": name,
            "actor_id": actor_id or None,
            "role": ctx.viewer.role,
            "ip": ctx.client_ip,
            "action": action,
        }
        for key in sorted(known)
    ]
    await (await session.connection()).execute(insert(AuditAccess), rows)


async def exported(ctx: Context, key: int, *, check: bool = False) -> AsyncGenerator[bytes]:
    """Return the copies of an audit as an mbox file, after the access is logged.

    Raises NotFound if there is no active audit. With `verifies_copies`, raises the error of
    `audit_copies` for a damaged copy before the first byte.
    """
    async with ctx.write() as session:
        row: Picked = found(await ctx.load(by_ids, key), str(key))
        if row.ended_at is not None:
            raise NotFound(str(key))
        await _looked(ctx, session, [key], EXPORTED)
    if check:
        await audit_copies.check(ctx.world, key, row.copies)
    return audit_copies.mbox(ctx.world, key, row.copies)


async def broken_at(ctx: Context, row: Picked) -> int | None:
    """Return the position where the chain of copies is broken.

    None if it is intact or the audit has ended.
    """
    return None if row.ended_at is not None else await audit_copies.broken_at(ctx.world, row)


async def plan(ctx: Context, order: dict[str, Any], _checkpoint: dict[str, Any]) -> Plan:
    """Plan the next chunk: lock the stream of the user so that no message is deleted meanwhile."""
    asked = select(col(Audit.user_id)).where(col(Audit.id) == order["audit"])
    return Plan([row.user_id for row in await ctx.read(asked)])


async def step(
    ctx: Context, session: AsyncSession, order: dict[str, Any], checkpoint: dict[str, Any], _: Plan
) -> Step:
    """Copy the next messages, including deleted ones, in the order of their ids."""
    asked = select(*picked(Audit)).where(
        col(Audit.id) == order["audit"], col(Audit.ended_at).is_(None)
    )
    row = next(iter(await ctx.read(asked)), None)
    if row is None:
        return Step(checkpoint)
    theirs = select(col(Message.id)).where(
        col(Message.user_id) == row.user_id, col(Message.id) > checkpoint.get("after", 0)
    )
    if row.start:
        theirs = theirs.where(col(Message.received_at) >= row.start)
    if row.end:
        theirs = theirs.where(col(Message.received_at) < row.end)
    ids = [each.id for each in await ctx.read(theirs.order_by(col(Message.id)).limit(CHUNK))]
    done = (
        await ctx.world.join(session, lambda turn: audit_copies.existing(turn, row, ids))
        if ids
        else 0
    )
    more = len(ids) == CHUNK
    if not more:
        ended = update(Audit).where(col(Audit.id) == row.id).values(copied=True)
        await (await session.connection()).execute(ended)
    return Step({"after": ids[-1] if ids else checkpoint.get("after", 0)}, done=done, more=more)
