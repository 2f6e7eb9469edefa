"""Tasks of administrators that fill, rebuild and optimize the text index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes import paths
from mail.search import index_rebuild, index_worker
from mail.search.index_worker import BATCH, SHOWN
from models.admin.tasks import Task
from models.errors import Conflict, Invalid
from models.events.journal import PLATFORM, ChangeKind
from models.events.wakeups import UNINDEXED
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import ring
from models.search import text_index
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from resolvers.admin.task_steps import Kind, Plan, Step, queue
from resolvers.context import Context, Needs
from resolvers.mailboxes.loaders import fitting
from resolvers.mailboxes.owners import owners
from resolvers.users.selection import Users

BUILD, REBUILD, OPTIMIZE = "SEARCH_INDEX_BUILD", "SEARCH_INDEX_REBUILD", "SEARCH_INDEX_OPTIMIZE"
OPERATORS = Needs(role=Role.ADMIN, scope=Scope.MASTER)
TOGETHER = 1000  # a request indexes up to this number itself; more become a task
LOOKED = 5000
WAIT = text("NOT messages.indexed")  # spelled as in the partial database index


@dataclass(frozen=True, slots=True)
class Asked:
    """Which unindexed messages to index."""

    masks: Sequence[str]
    max_recent: int | None = None  # skip mailboxes with more of them
    queue: bool = False  # queue a task even for few messages


@dataclass(frozen=True, slots=True)
class Outcome:
    """The number of messages indexed, or the task that indexes them."""

    indexed: int | None = None
    task: Task | None = None


async def build(ctx: Context, asked: Asked, users: Users) -> Outcome:
    """Index the unindexed messages of matching mailboxes, at once if they are few, else by a task.

    Raises Forbidden if the viewer is no administrator, Invalid for a bad mask or number.
    """
    ctx.viewer.require(OPERATORS)
    paths.pattern(asked.masks)
    order: dict[str, Any] = {"ids": await _ids(ctx, users), "masks": list(asked.masks)}
    if asked.max_recent is not None:
        if asked.max_recent < 0:
            raise Invalid("not below 0", constraint="min", path=["maxRecent"])
        order["without"] = await _crowded(ctx, order, asked.max_recent)
    if not (asked.queue or ctx.writing):
        rows = await ctx.read(_waiting(ctx, order).limit(TOGETHER + 1))
        if len(rows) <= TOGETHER:
            return Outcome(indexed=await _put(ctx, rows))
    return Outcome(task=await _task(ctx, BUILD, order, await _many(ctx, _waiting(ctx, order))))


async def rebuild(ctx: Context, users: Users) -> Task:
    """Queue a task that indexes the messages of these users again.

    On SQLite, and for all users, the task creates a whole new index. Raises Conflict if such a
    task is unfinished.
    """
    ctx.viewer.require(OPERATORS)
    order = {"ids": await _ids(ctx, users)}
    if ctx.world.database.dialect == "sqlite":
        order["ids"] = None
    if order["ids"] is None:
        going = select(col(Task.id)).where(col(Task.kind) == REBUILD, _goes_on())
        if any(True for _ in await ctx.read(going)):
            words = "the index is being made anew already: wait for that task, or cancel it"
            raise Conflict(words, path=["users"])
    return await _task(ctx, REBUILD, order, await _many(ctx, _all(order)))


async def optimize(ctx: Context) -> Task:
    """Queue a task that optimizes the index.

    On SQLite it merges index segments; on PostgreSQL it deletes rows of deleted messages.
    """
    ctx.viewer.require(OPERATORS)
    total = None
    if ctx.world.database.dialect == "postgresql":
        listed = select(func.count()).select_from(text_index.rows("postgresql"))
        ((total,),) = await ctx.read(listed)
    return await _task(ctx, OPTIMIZE, {}, total)


def _goes_on() -> Any:
    """Return the WHERE clause for unfinished tasks."""
    return col(Task.finished_at).is_(None)


async def _ids(ctx: Context, users: Users) -> list[int] | None:
    """Return the IDs of the selected users; None for all users."""
    rows = None if users.all else await owners(ctx, users, "users")
    return None if rows is None else [row.id for row in rows]


async def _put(ctx: Context, rows: Sequence[Picked]) -> int:
    """Index these messages and return how many were new."""
    found = []
    for start in range(0, len(rows), BATCH):
        found += await index_worker.entries(ctx.world, rows[start : start + BATCH], ctx.read)
    if not found:
        return 0
    async with ctx.write() as session:
        return await (await session.connection()).run_sync(index_worker.put, found)


async def _task(ctx: Context, kind: str, order: dict[str, Any], total: int | None) -> Task:
    """Insert a task and record it in the platform's journal."""
    async with ctx.write(PLATFORM) as session:
        (task,) = await queue(ctx, session, kind, [order], total=total)
        await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, [task.id])
    return task


async def _many(ctx: Context, rows: Any) -> int:
    """Return the number of messages of a SELECT."""
    counted = rows.with_only_columns(col(Message.id)).order_by(None).subquery()
    ((many,),) = await ctx.read(select(func.count()).select_from(counted))
    return int(many)


def _all(order: dict[str, Any]) -> Any:
    """Return a SELECT of the messages of these users, by ID."""
    asked = select(*picked(Message, SHOWN)).order_by(col(Message.id))
    ids = order["ids"]
    return asked if ids is None else asked.where(col(Message.user_id).in_(ids))


def _waiting(ctx: Context, order: dict[str, Any]) -> Any:
    """Return a SELECT of the unindexed messages in the mailboxes of a task order."""
    boxes = select(col(Mailbox.id)).where(fitting(ctx, paths.pattern(order["masks"])))
    asked = _all(order).where(WAIT, col(Message.mailbox_id).in_(boxes))
    return asked.where(col(Message.mailbox_id).not_in(order.get("without", ())))


async def _crowded(ctx: Context, order: dict[str, Any], most: int) -> list[int]:
    """Return the IDs of mailboxes with more than `max_unindexed` unindexed messages."""
    asked = _waiting(ctx, order).with_only_columns(col(Message.mailbox_id)).order_by(None)
    rows = asked.group_by(col(Message.mailbox_id)).having(func.count() > most)
    return [row.mailbox_id for row in await ctx.read(rows)]


async def _rows(ctx: Context, asked: Any, checkpoint: dict[str, Any]) -> Sequence[Picked]:
    """Read the next batch of messages after a checkpoint."""
    behind = asked.where(col(Message.id) > checkpoint.get("at", 0))
    return await ctx.read(behind.limit(BATCH))


def _behind(rows: Sequence[Picked], done: int) -> Step:
    """Return the step result with the last of these rows as checkpoint."""
    return Step({"at": rows[-1].id}, done, more=True)


async def _plan_build(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    rows = await _rows(ctx, _waiting(ctx, order), checkpoint)
    return Plan(made=(rows, await index_worker.entries(ctx.world, rows)))


async def _build(
    _ctx: Context, session: AsyncSession, _: dict[str, Any], checkpoint: dict[str, Any], held: Plan
) -> Step:
    rows, found = held.made
    if not rows:
        return Step(checkpoint)
    return _behind(rows, await (await session.connection()).run_sync(index_worker.put, found))


async def _plan_rebuild(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    rows = await _rows(ctx, _all(order), checkpoint)
    return Plan(made=(rows, await index_worker.entries(ctx.world, rows, again=True)))


async def _rebuild(
    _ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    held: Plan,
) -> Step:
    rows, found = held.made
    connection = await session.connection()
    if order["ids"] is not None:
        if not rows:
            return Step(checkpoint)
        return _behind(rows, await index_rebuild.renew(connection, found))
    if not checkpoint:
        await index_rebuild.begin(connection)
    if not rows:
        await index_rebuild.swap(connection)
        ring(session, UNINDEXED)
        return Step(checkpoint)
    return _behind(rows, await index_rebuild.add(connection, found))


async def _plan_optimize(ctx: Context, _: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    if ctx.world.database.dialect == "sqlite":
        return Plan()
    (key,) = text_index.rows("postgresql").c
    asked = select(key).where(key > checkpoint.get("at", 0)).order_by(key).limit(LOOKED)
    return Plan(ids=[row.rowid for row in await ctx.read(asked)])


async def _optimize(
    ctx: Context, session: AsyncSession, _: dict[str, Any], checkpoint: dict[str, Any], held: Plan
) -> Step:
    connection, at = await session.connection(), checkpoint.get("at", 0)
    if ctx.world.database.dialect == "sqlite":
        more = await index_rebuild.merge(connection, first=not at)
        return Step({"at": at + 1}, done=1, more=more)
    if not held.ids:
        return Step(checkpoint)
    last = held.ids[-1]
    gone = await connection.execute(text_index.DEAD, {"after": at, "last": last})
    corrected = checkpoint.get("corrected", 0) + gone.rowcount
    return Step({"at": last, "corrected": corrected}, done=len(held.ids), more=True)


KINDS = {
    BUILD: Kind(_plan_build, _build),
    REBUILD: Kind(_plan_rebuild, _rebuild),
    OPTIMIZE: Kind(_plan_optimize, _optimize),
}
