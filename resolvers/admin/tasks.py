"""Background tasks: a worker leases a task and continues it from its last checkpoint."""

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, or_, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.files.upload_removal import forget_objects
from mail.storage.blobs.errors import Corrupt
from models.admin.tasks import Task, TaskState
from models.errors import Damaged, Forbidden, Invalid, NotFound, Refused
from models.events.journal import PLATFORM, ChangeKind
from models.events.wakeups import TASKS
from models.runtime import leases
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role, Scope
from resolvers import pagination
from resolvers.access import own
from resolvers.admin import audits
from resolvers.admin.task_steps import Kind, Plan, Planner
from resolvers.auth import security_messages
from resolvers.context import Context, Viewer
from resolvers.filters import apply_task
from resolvers.mailboxes import repair
from resolvers.mailboxes import update as mailbox_update
from resolvers.messages import deleted_messages
from resolvers.messages.bulk import bulk_changes, storage_tiers
from resolvers.notifications import webhook_replay
from resolvers.pagination import Scan, by_keys
from resolvers.queue import mutations as queue_mutations
from resolvers.search import index_tasks
from resolvers.spam import quarantine_digest
from resolvers.transfer import exports, imports, passphrases
from resolvers.users import delete as user_delete
from resolvers.users import purge
from resolvers.users.creation import file_create
from resolvers.users.quota import quota_recalculation, quota_warnings

PAUSE_AFTER_ERROR = 60.0  # after an unexpected error
IDLE = 15.0  # between checks without wake-up
TOLD = (  # members of the last checkpoint that are in the result
    "corrected", "left", "stored", "known", "refused", "untold", "created", "errors", "warnings",
)  # fmt: skip
ATTEMPTS = 5  # without progress
BROKEN = "it broke on our side"
MOST = 250  # per call

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskWhere:
    """Conditions of a task list; all must hold."""

    kind: str | None = None
    states: tuple[TaskState, ...] | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the tasks that the viewer can see.

    These are the viewer's own and requested ones, for administrators all. Audit copies by
    others are for ROOT only, since another ADMIN can be the audited user.
    """
    if ctx.viewer.role is Role.ROOT:
        return true()
    if ctx.viewer.role is Role.ADMIN:
        return (col(Task.kind) != audits.KIND) | (col(Task.actor_id) == ctx.viewer.user_id)
    return or_(col(Task.user_id) == own(ctx), col(Task.actor_id) == own(ctx))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load tasks by id, in the given order. None for ids that the viewer can't see."""
    return await by_keys(ctx, select(*picked(Task)).where(_visible(ctx)), col(Task.id), ids)


def _terms(ctx: Context, where: TaskWhere) -> list[ColumnElement[bool]]:
    terms = [_visible(ctx)]
    if where.states is not None:
        terms.append(col(Task.state).in_(where.states))
    if where.kind:
        terms.append(col(Task.kind) == where.kind)
    return terms


async def count(ctx: Context, where: TaskWhere) -> int:
    """Count the visible tasks that meet the conditions."""
    asked = select(func.count()).select_from(Task).where(*_terms(ctx, where))
    (row,) = await ctx.read(asked)
    return int(row[0])


async def pages(ctx: Context, where: TaskWhere, ask: Ask, columns: frozenset[str]) -> Page[Picked]:
    """Read a page of tasks, the newest first."""
    names = {"id", "created_at", *columns}
    rows = select(*picked(Task, names)).where(*_terms(ctx, where))
    place = (col(Task.created_at), col(Task.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=True))


async def cancel(ctx: Context, ids: list[int]) -> None:
    """Cancel tasks at their next step; finished tasks stay as they are.

    Raises NotFound if the viewer can't see a task, InvalidInput if there are too many, and
    Forbidden if a task can't be cancelled half-way, such as the deletion of a user.
    """
    if len(ids) > MOST:
        raise Invalid(f"at most {MOST} tasks", constraint="max", path=["ids"])
    rows = await ctx.load_all(by_ids, ids)
    for index, (key, row) in enumerate(zip(ids, rows, strict=True)):
        if row is None:
            raise NotFound(str(key), path=["ids"], index=index)
        if row.kind in KINDS and not KINDS[row.kind].stoppable:
            raise Forbidden("this task does not end half-way", path=["ids"])
    streams = {_stream(row) for row in rows if row}
    async with ctx.write(*streams) as session:
        connection = await session.connection()
        these = update(Task).where(col(Task.id).in_(ids))
        await connection.execute(
            these.where(col(Task.state) == TaskState.QUEUED).values(
                state=TaskState.CANCELLED, finished_at=ctx.world.now(), cancelled=True
            )
        )
        await connection.execute(
            these.where(col(Task.state) == TaskState.RUNNING).values(cancelled=True)
        )
        for row in rows:
            if row:
                await _forget(session, row)
                await ctx.record(session, _stream(row), ChangeKind.TASK_CHANGED, [row.id])


async def _forget(session: AsyncSession, row: Picked) -> None:
    """Delete the passphrase from the order of a finished task."""
    if passphrases.NAME in row.order:
        ended = col(Task.id) == row.id, col(Task.finished_at).is_not(None)
        this = update(Task).where(*ended).values(order=passphrases.without(row.order))
        await (await session.connection()).execute(this)


def _stream(row: Any) -> int:
    return PLATFORM if row.user_id is None else int(row.user_id)


async def run(world: World) -> None:
    """Run waiting tasks until cancelled, including tasks of dead workers."""
    async with leases.registered(world):
        await _work_on(world)


async def _work_on(world: World) -> None:
    with world.wakeups.listen([TASKS]) as bell:
        while True:
            bell.clear()
            try:
                await _work_on_all(world)
            except Exception:  # keep running: the database can be back at the next attempt
                log.exception("tasks could not be looked for")
            try:
                async with asyncio.timeout(
                    IDLE
                ):  # unlike wait_for, it is also cancelled by a wake-up
                    await bell.wait()
            except TimeoutError:
                continue


async def _work_on_all(world: World) -> None:
    """Run each due task. A task that fails is retried later, after the others."""
    while (row := await _claim(world)) is not None:
        try:
            await _do_or_abandon(world, row)
        except Exception:
            log.exception("a task could not go on", extra={"task": row.id, "kind": row.kind})


async def work(world: World) -> bool:
    """Lease and run the next free task. Returns False if there is none."""
    row = await _claim(world)
    if row is None:
        return False
    await _do_or_abandon(world, row)
    return True


async def _do_or_abandon(world: World, row: Picked) -> None:
    try:
        with leases.in_use(world, row.lease):
            await _do(world, row)
    except Exception:
        mine = col(Task.id) == row.id, col(Task.lease) == row.lease
        leases.abandon(world, Task, *mine, after=PAUSE_AFTER_ERROR)
        raise


async def _do(world: World, row: Picked) -> None:
    """Run a task until it is finished, fails or raises an unexpected error."""
    viewer = Viewer(row.user_id or 0, Role.USER, frozenset({Scope.MASTER}))
    ctx = Context(world, viewer, origin=row.order.get("origin"), reason=row.order.get("reason"))
    log.info("task begun", extra={"task": row.id, "kind": row.kind, "attempt": row.attempts})
    if row.attempts > ATTEMPTS:  # its earlier attempts ended with the death of their workers
        await _end(ctx, row, TaskState.FAILED, error=BROKEN)
        return
    try:
        await _chunks(ctx, row)
    except Refused as refusal:
        result = await _result(ctx, row)
        await _end(ctx, row, TaskState.FAILED, result=result, error=refusal.message)
    except Corrupt as damage:  # another attempt would find the same bytes
        extra = {"task": row.id, "kind": row.kind, "damage": str(damage)}
        log.warning("a task ended at damaged bytes", extra=extra)
        result = await _result(ctx, row)
        await _end(ctx, row, TaskState.FAILED, result=result, error=Damaged().message)
    except Exception:
        if row.attempts >= ATTEMPTS:
            await _end(ctx, row, TaskState.FAILED, error=BROKEN)
        raise


async def _claim(world: World) -> Picked | None:
    """Lease the oldest due task; interrupted tasks come last.

    A task that kills its server would otherwise be first again after each restart and block the
    others. Among the interrupted ones, tasks with progress since the interruption come first.
    """
    now, lease = world.now(), world.key()
    process_id = await leases.ensure_registered(world)
    due = (
        select(col(Task.id))
        .where(
            col(Task.finished_at).is_(None),
            col(Task.kind).in_(KINDS),
            or_(col(Task.not_before).is_(None), col(Task.not_before) <= now),
            leases.is_free(Task),
        )
        .order_by(
            case((col(Task.state) == TaskState.RUNNING, 1), else_=0),
            col(Task.attempts),
            col(Task.created_at),
            col(Task.id),
        )
        .limit(1)
    )
    if not await world.database.read(due):
        return None  # an idle worker writes nothing
    # a scalar and no IN: PostgreSQL can run an IN once per task and lease all tasks
    one = due.with_for_update(skip_locked=True).scalar_subquery()
    claim = (
        update(Task)
        .where(col(Task.id) == one, leases.is_registered(process_id))
        .values(
            state=TaskState.RUNNING,
            **leases.held(process_id, lease),
            attempts=Task.attempts + 1,
            started_at=func.coalesce(Task.started_at, now),
        )
        .returning(*picked(Task))
    )
    async with world.write() as session:
        return (await (await session.connection()).execute(claim)).first()


async def _chunks(ctx: Context, row: Picked) -> None:
    """Run the steps of a task, each with its progress in one transaction."""
    kind, order, checkpoint = KINDS[row.kind], row.order, row.checkpoint or {}
    begun = kind.begun(ctx, order, checkpoint) if kind.begun else nullcontext(kind.plan)
    async with begun as plan:
        await _by_chunks(ctx, row, plan)


async def _by_chunks(ctx: Context, row: Picked, plan: Planner) -> None:
    kind, order = KINDS[row.kind], row.order
    checkpoint, done = row.checkpoint or {}, row.done
    state, more = TaskState.SUCCEEDED, True
    while more:
        held = await plan(ctx, order, checkpoint)
        async with ctx.write(_stream(row), *held.streams) as session:
            if await _asked_to_stop(session, row):
                state = TaskState.CANCELLED
                break
            step = await kind.step(ctx, session, order, checkpoint, held)
            checkpoint, more, done = step.checkpoint, step.more, done + step.done
            values = {"checkpoint": checkpoint, "done": done, "attempts": 0}
            if step.total is not None:
                values["total"] = step.total
            await _note(ctx, session, row, values)
        await forget_objects(ctx.world, step.objects)
    if done:  # it can have changed many messages
        await ctx.world.database.refresh_statistics()
    await _end(ctx, row, state, result=_facts(checkpoint, done))


async def _result(ctx: Context, row: Picked) -> dict[str, Any]:
    """Return the result of a task that can't continue."""
    asked = select(col(Task.checkpoint), col(Task.done)).where(col(Task.id) == row.id)
    ((checkpoint, done),) = await ctx.read(asked)
    return _facts(checkpoint or {}, done)


def _facts(checkpoint: dict[str, Any], done: int) -> dict[str, Any]:
    facts = {name: value for name, value in checkpoint.items() if name in TOLD}
    return {"changed": done, **facts}


async def _no_plan(_ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]) -> Plan:
    return Plan()


OF_MESSAGES = Kind(bulk_changes.plan, bulk_changes.step)
KINDS = {
    "MESSAGE_UPDATE": OF_MESSAGES,
    "MESSAGE_MOVE": OF_MESSAGES,
    "MESSAGE_COPY": OF_MESSAGES,
    "MESSAGE_DELETE": OF_MESSAGES,
    "MESSAGE_DEDUPLICATE": OF_MESSAGES,
    deleted_messages.KIND: Kind(deleted_messages.plan, deleted_messages.step),
    storage_tiers.KIND: Kind(storage_tiers.plan, storage_tiers.step),
    exports.KIND: Kind(exports.plan, exports.step),
    apply_task.KIND: Kind(apply_task.plan, apply_task.step),
    imports.KIND: Kind(imports.plan, imports.step, begun=imports.begun),
    audits.KIND: Kind(audits.plan, audits.step, stoppable=False),
    user_delete.KIND: Kind(purge.plan, purge.step, stoppable=False),
    file_create.KIND: Kind(file_create.plan, file_create.step, begun=file_create.begun),
    repair.KIND: Kind(repair.plan, repair.step),
    mailbox_update.KIND: Kind(_no_plan, mailbox_update.step),
    quota_recalculation.KIND: Kind(quota_recalculation.plan, quota_recalculation.step),
    webhook_replay.KIND: Kind(webhook_replay.plan, webhook_replay.step),
    quota_warnings.KIND: Kind(quota_warnings.plan, quota_warnings.step),
    security_messages.KIND: Kind(security_messages.plan, security_messages.step, stoppable=False),
    quarantine_digest.KIND: Kind(quarantine_digest.plan, quarantine_digest.step),
    queue_mutations.DELETE: Kind(queue_mutations.plan, queue_mutations.step_delete),
    queue_mutations.FLUSH: Kind(queue_mutations.plan, queue_mutations.step_flush),
    **index_tasks.KINDS,
}


async def _asked_to_stop(session: AsyncSession, row: Picked) -> bool:
    asked = select(col(Task.cancelled)).where(col(Task.id) == row.id)
    return bool((await (await session.connection()).execute(asked)).scalar())


async def _note(ctx: Context, session: AsyncSession, row: Picked, values: dict[str, Any]) -> None:
    """Store the progress of a task and record it. Raises TaskLeaseLost if the lease has ended."""
    held = update(Task).where(col(Task.id) == row.id, col(Task.lease) == row.lease).values(**values)
    if not (await (await session.connection()).execute(held)).rowcount:
        raise LeaseLost
    await ctx.record(session, _stream(row), ChangeKind.TASK_CHANGED, [row.id])


class LeaseLost(Exception):
    """Another worker has leased the task."""


async def _end(
    ctx: Context,
    row: Picked,
    state: TaskState,
    *,
    result: dict[str, Any] | None = None,
    error: str | None = None,
) -> None:
    values = {"state": state, "finished_at": ctx.world.now(), "result": result, "error": error}
    values |= {"lease": None, "holder": None}
    async with ctx.write(_stream(row)) as session:
        await _note(ctx, session, row, values)
        await _forget(session, row)
    log.info("task ended", extra={"task": row.id, "state": state})
