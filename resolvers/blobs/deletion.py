"""Deletion of objects that nothing uses, at once or in steps of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs.garbage_collector import (
    GRACE_PERIOD,
    collect_garbage,
    load_object_names_in_use,
)
from mail.storage.blobs.object_names import is_visible_name
from mail.storage.blobs.tiered_store import is_name_of_store
from models.admin.tasks import TaskKind
from models.errors import require_found
from models.events.incarnation import DroppedObject
from models.store.object_store import BrowsableObjectStore, ObjectRange
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult
from resolvers.blobs.loaders import StoredBlob
from resolvers.blobs.validation import require_store
from resolvers.context import Context

DELETE_TASK_KIND = TaskKind.BLOB_DELETE
COLLECT_TASK_KIND = TaskKind.BLOB_COLLECT
BLOBS_PER_STEP = 1000  # of a task


@dataclass(frozen=True, slots=True)
class DeletedBlobs:
    """The number of deleted objects and of their stored bytes, and of objects that are in use."""

    deleted_count: int = 0
    freed_bytes: int = 0
    refused_count: int = 0


@dataclass(frozen=True, slots=True)
class DeletionPosition:
    """Where the next step of a deletion continues.

    `path_index` is that of the path, and `after` the last object below it that was handled.
    """

    path_index: int = 0
    after: str | None = None


@dataclass(frozen=True, slots=True)
class DeletionStep:
    """What a step of a deletion has done, and where the next one continues; None after the last."""

    deleted: DeletedBlobs = field(default_factory=DeletedBlobs)
    next_position: DeletionPosition | None = None


async def reasons_to_keep(ctx: Context, blobs: Sequence[StoredBlob]) -> dict[StoredBlob, str]:
    """Return why objects can't be deleted. Objects without a reason can.

    A delivery stores the object before the row that names it. So an object without a row is kept
    for a day, as the garbage collector does, and for the restore window of a backup.
    """
    mail_blobs = [blob for blob in blobs if not blob.is_written_by_administrators]
    if not mail_blobs:
        return {}
    now, options = ctx.environment.now(), ctx.environment.options
    names = [blob.path for blob in mail_blobs]
    used_names = await load_object_names_in_use(ctx.environment, names)
    restorable_names = (
        set(names) - await _names_dropped_before_window(ctx, names)
        if options.backup_restore_window
        else set[str]()
    )
    reasons = {}
    for blob in mail_blobs:
        if blob.path in used_names and is_name_of_store(
            ctx.environment.object_store, blob.store, blob.path
        ):
            reasons[blob] = "The blob is in use."
        elif blob.modified_at > now - GRACE_PERIOD:
            reasons[blob] = "The blob is less than a day old: a running delivery can use it."
        elif blob.path in restorable_names:
            reasons[blob] = "The blob is kept for a restored database: use blobCollect."
    return reasons


async def _names_dropped_before_window(ctx: Context, names: Sequence[str]) -> set[str]:
    """Return those of the names that no restored database can need any more."""
    dropped_before = ctx.environment.now() - ctx.environment.options.backup_restore_window
    name = col(DroppedObject.name)
    statement = select(name).where(name.in_(names), col(DroppedObject.at) <= dropped_before)
    return {row.name for row in await ctx.environment.database.read(statement)}


async def delete_unused_blobs(
    ctx: Context, store: BrowsableObjectStore, blobs: Sequence[StoredBlob]
) -> DeletedBlobs:
    """Delete the objects of one store that nothing uses, and count the others."""
    reasons = await reasons_to_keep(ctx, blobs)
    unused = [blob for blob in blobs if blob not in reasons]
    if unused:
        await store.delete([blob.path for blob in unused])
    return DeletedBlobs(len(unused), sum(blob.size for blob in unused), len(reasons))


async def delete_blobs_of_next_step(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Delete the next objects of a task, before the transaction that records the progress.

    After a crash in between, the counts lack the objects of one step.
    """
    store_name = task_order["store"]
    store = require_store(ctx, store_name)
    position = DeletionPosition(**checkpoint.get("position", {}))
    paths = task_order["paths"]
    if task_order["recursive"]:
        step = await _delete_next_blobs_below_path(ctx, store, store_name, paths, position)
    else:
        end = position.path_index + BLOBS_PER_STEP
        found = [await store.find(path) for path in paths[position.path_index : end]]
        blobs = [StoredBlob.of_object(store_name, stored) for stored in found if stored]
        next_position = DeletionPosition(end) if end < len(paths) else None
        step = DeletionStep(await delete_unused_blobs(ctx, store, blobs), next_position)
    return TaskStepPlan(prepared=step)


async def _delete_next_blobs_below_path(
    ctx: Context,
    store: BrowsableObjectStore,
    store_name: str,
    paths: Sequence[str],
    position: DeletionPosition,
) -> DeletionStep:
    """Delete the object with a path first, then the objects below it."""
    path = paths[position.path_index].rstrip("/")
    found = list(await store.list_page(ObjectRange(f"{path}/", BLOBS_PER_STEP, position.after)))
    next_position = (
        replace(position, after=found[-1].name)
        if len(found) == BLOBS_PER_STEP
        else DeletionPosition(position.path_index + 1)
        if position.path_index + 1 < len(paths)
        else None
    )
    if position.after is None and is_visible_name(path):
        same = await store.find(path)
        found = [same, *found] if same is not None else found
    blobs = [StoredBlob.of_object(store_name, stored) for stored in found]
    return DeletionStep(await delete_unused_blobs(ctx, store, blobs), next_position)


async def add_deleted_counts_to_step_result(
    _ctx: Context,
    _session: AsyncSession,
    _task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Add the counts of a step to the checkpoint."""
    step: DeletionStep = require_found(task_plan.prepared)
    deleted = step.deleted
    counts = {
        "deletedCount": checkpoint.get("deletedCount", 0) + deleted.deleted_count,
        "freedBytes": checkpoint.get("freedBytes", 0) + deleted.freed_bytes,
        "refusedCount": checkpoint.get("refusedCount", 0) + deleted.refused_count,
    }
    position = step.next_position
    members: Mapping[str, Any] = (
        {} if position is None else {"position": {"path_index": position.path_index,
                                                  "after": position.after}}
    )  # fmt: skip
    return TaskStepResult(
        {**counts, **members}, deleted.deleted_count, has_more=position is not None
    )


async def collect_garbage_now(
    ctx: Context, _task_order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Run the garbage collector as housekeeping does once a day.

    After a crash it starts again, and the counts lack what was removed before.
    """
    environment = ctx.environment
    collected = await collect_garbage(
        environment,
        environment.object_store,
        keep_objects_for=environment.options.backup_restore_window,
    )
    return TaskStepPlan(prepared=collected)


async def record_collected_garbage(
    _ctx: Context,
    _session: AsyncSession,
    _task_order: dict[str, Any],
    _checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Return the counts of the garbage collector."""
    collected = require_found(task_plan.prepared)
    counts = {"deletedCount": collected.blob_count, "freedBytes": collected.byte_count}
    return TaskStepResult(counts, collected.blob_count)
