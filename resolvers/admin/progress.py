"""Follow running work to its end: tasks, connector runs and submissions."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple

from models.errors import NotFound
from models.events.event_types import (
    CONNECTOR_EVENT_TYPES,
    SUBMISSION_EVENT_TYPES,
    TASK_EVENT_TYPES,
    EventType,
)
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow
from models.submission.tables import SubmissionState
from resolvers.access import require_user_id
from resolvers.admin import tasks
from resolvers.changes import stream_reader
from resolvers.changes.managed_streams import ManagedStreams
from resolvers.changes.stream_reader import FollowRequest
from resolvers.changes.visible_streams import SelectStreams, load_viewer_streams_and_note_sharing
from resolvers.connectors import loaders as connector_loaders
from resolvers.context import Context
from resolvers.submission import loaders as submission_loaders

UNFINISHED_STATES = frozenset(
    {
        SubmissionState.SCHEDULED,
        SubmissionState.UNDOABLE,
        SubmissionState.QUEUED,
        SubmissionState.SENDING,
    }
)


class FollowedWork(NamedTuple):
    """A kind of work and how its progress is followed."""

    load_by_id: Callable[[Context, list[int]], Awaitable[Sequence[ColumnRow | None]]]
    event_types: frozenset[EventType]
    changed_object_id: Callable[[ColumnRow], int]  # the object id in change events
    visible_state: Callable[[ColumnRow], object]  # differs if there is progress to report


_FOLLOWED_TASK = FollowedWork(
    tasks.load_visible_tasks_by_id,
    TASK_EVENT_TYPES,
    lambda row: row.id,
    lambda row: (row.state, row.done_count, row.total_count),
)
_FOLLOWED_RUN = FollowedWork(
    connector_loaders.load_visible_runs_by_id,
    CONNECTOR_EVENT_TYPES,
    lambda row: row.connector_id,
    lambda row: row,
)


def follow_task_until_finished(ctx: Context, task_id: int) -> AsyncGenerator[ColumnRow]:
    """Yield the current task, and each change of its state or count, until it has finished.

    Raises NotFound if the viewer can't see it. Stops if the viewer can no longer see it.
    """
    return _require_and_follow_work_until_finished(ctx, task_id, _FOLLOWED_TASK)


def follow_connector_run_until_finished(ctx: Context, run_id: int) -> AsyncGenerator[ColumnRow]:
    """Yield the current connector run and each change, until it has finished.

    Raises NotFound as `follow_task_until_finished`.
    """
    return _require_and_follow_work_until_finished(ctx, run_id, _FOLLOWED_RUN)


async def _require_and_follow_work_until_finished(
    ctx: Context, work_id: int, kind: FollowedWork
) -> AsyncGenerator[ColumnRow]:
    (row,) = await kind.load_by_id(ctx, [work_id])
    if row is None:
        raise NotFound(str(work_id), path=["id"])
    select_streams = _selector_of_work_stream(
        PLATFORM if row.user_id is None else row.user_id, ctx, kind.event_types
    )
    request = FollowRequest(
        await stream_reader.load_last_stream_positions(ctx, select_streams),
        kind.event_types,
        select_streams=select_streams,
        object_ids={kind.changed_object_id(row)},
    )
    # read again: from this position on no change is missed
    (row,) = await kind.load_by_id(ctx, [work_id])
    batches, last_state = stream_reader.follow_changes(ctx, request), None
    while row:
        if last_state != kind.visible_state(row):
            last_state = kind.visible_state(row)
            yield row
        if row.finished_at:
            break
        await stream_reader.wait_for_events(batches)
        (row,) = await kind.load_by_id(ctx, [work_id])
    await batches.aclose()


def _selector_of_work_stream(
    stream_id: int, ctx: Context, event_types: frozenset[EventType]
) -> SelectStreams:
    """Return a stream selector for the stream of work that the viewer can see."""
    if stream_id == ctx.viewer.user_id != PLATFORM:
        return load_viewer_streams_and_note_sharing

    async def select_other_stream(_ctx: Context) -> ManagedStreams:
        return ManagedStreams({stream_id: event_types})

    return select_other_stream


async def follow_submissions(ctx: Context) -> AsyncGenerator[ColumnRow]:
    """Yield each submission of the viewer after it changes."""
    require_user_id(ctx)
    async for batch in stream_reader.follow_changes(
        ctx, FollowRequest(ctx.last_seen_position, SUBMISSION_EVENT_TYPES)
    ):
        submission_ids = list(dict.fromkeys(event.object_id for event in batch.events))
        for row in (
            await submission_loaders.load_own_submissions_by_id(ctx, submission_ids)
            if submission_ids
            else []
        ):
            if row:
                yield row


async def follow_submission_until_finished(
    ctx: Context, submission_id: int
) -> AsyncGenerator[ColumnRow]:
    """Yield the current submission of the viewer and each change, until it is finished.

    Raises NotFound if the viewer has no such submission.
    """
    position = await stream_reader.load_last_stream_positions(ctx)
    (row,) = await submission_loaders.load_own_submissions_by_id(ctx, [submission_id])
    if row is None:
        raise NotFound(str(submission_id), path=["submission"])
    batches = stream_reader.follow_changes(
        ctx, FollowRequest(position, SUBMISSION_EVENT_TYPES, object_ids={submission_id})
    )
    while row:
        yield row
        if row.state not in UNFINISHED_STATES:
            break
        await stream_reader.wait_for_events(batches)
        (row,) = await submission_loaders.load_own_submissions_by_id(ctx, [submission_id])
    await batches.aclose()


async def follow_connector_runs(ctx: Context) -> AsyncGenerator[ColumnRow]:
    """Yield the last run of each of the viewer's connectors after it changes."""
    require_user_id(ctx)
    async for batch in stream_reader.follow_changes(
        ctx, FollowRequest(ctx.last_seen_position, CONNECTOR_EVENT_TYPES)
    ):
        connector_ids = list(dict.fromkeys(event.object_id for event in batch.events))
        for row in (
            await connector_loaders.load_own_last_runs_by_connector(ctx, connector_ids)
            if connector_ids
            else []
        ):
            if row:
                yield row
