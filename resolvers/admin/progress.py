"""Follow running work to its end: tasks, connector runs and submissions."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple

from models.errors import NotFound
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked
from models.submission.tables import SubmissionState
from resolvers.access import own
from resolvers.admin import tasks
from resolvers.changes import stream_reader
from resolvers.changes.managed_streams import Overheard
from resolvers.changes.stream_reader import Asked
from resolvers.changes.visible_streams import Hear, hearing
from resolvers.connectors import loaders as connector_loaders
from resolvers.context import Context
from resolvers.submission import create as submission_create

TASKS = frozenset({ChangeKind.TASK_CHANGED})
CONNECTORS = frozenset({ChangeKind.CONNECTOR_CHANGED})
SUBMISSIONS = frozenset({ChangeKind.SUBMISSION_CHANGED})
UNDER_WAY = frozenset(
    {
        SubmissionState.SCHEDULED,
        SubmissionState.HELD_FOR_UNDO,
        SubmissionState.QUEUED,
        SubmissionState.SENDING,
    }
)


class Work(NamedTuple):
    """A kind of work and how its progress is followed."""

    by_ids: Callable[[Context, list[int]], Awaitable[Sequence[Picked | None]]]
    kinds: frozenset[ChangeKind]
    changed: Callable[[Picked], int]  # the object id in change events
    told: Callable[[Picked], object]  # differs if there is progress to report


_TASK = Work(tasks.by_ids, TASKS, lambda row: row.id, lambda row: (row.state, row.done, row.total))
_RUN = Work(
    connector_loaders.runs_by_ids, CONNECTORS, lambda row: row.connector_id, lambda row: row
)


def of_task(ctx: Context, key: int) -> AsyncGenerator[Picked]:
    """Yield a task as it is, and whenever its state or count changes, until it has finished.

    Raises NotFound if the viewer can't see it. Stops if the viewer can no longer see it.
    """
    return _to_its_end(ctx, key, _TASK)


def of_run(ctx: Context, key: int) -> AsyncGenerator[Picked]:
    """Yield a connector run as it is and after each change, until it has finished.

    Raises NotFound as `follow_task`.
    """
    return _to_its_end(ctx, key, _RUN)


async def _to_its_end(ctx: Context, key: int, work: Work) -> AsyncGenerator[Picked]:
    (row,) = await work.by_ids(ctx, [key])
    if row is None:
        raise NotFound(str(key), path=["id"])
    hear = _of_stream(PLATFORM if row.user_id is None else row.user_id, ctx, work.kinds)
    wanted = Asked(
        await stream_reader.standing(ctx, hear), work.kinds, hear=hear, objects={work.changed(row)}
    )
    (row,) = await work.by_ids(ctx, [key])  # read again: from this position on no change is missed
    batches, told = stream_reader.follow(ctx, wanted), None
    while row:
        if told != work.told(row):
            told = work.told(row)
            yield row
        if row.finished_at:
            break
        await anext(batches)
        (row,) = await work.by_ids(ctx, [key])
    await batches.aclose()


def _of_stream(stream: int, ctx: Context, kinds: frozenset[ChangeKind]) -> Hear:
    """Return a stream selector for the stream of work that the viewer can see."""
    if stream == ctx.viewer.user_id != PLATFORM:
        return hearing

    async def others(_ctx: Context) -> Overheard:
        return Overheard({stream: kinds})

    return others


async def of_submissions(ctx: Context) -> AsyncGenerator[Picked]:
    """Yield each submission of the viewer after it changes."""
    own(ctx)
    async for batch in stream_reader.follow(ctx, Asked(kinds=SUBMISSIONS)):
        keys = list(dict.fromkeys(event.object_id for event in batch.events))
        for row in await submission_create.by_ids(ctx, keys) if keys else []:
            if row:
                yield row


async def of_submission(ctx: Context, key: int) -> AsyncGenerator[Picked]:
    """Yield a submission of the viewer as it is and after each change, until it is finished.

    Raises NotFound if the viewer has no such submission.
    """
    since = await stream_reader.standing(ctx)
    (row,) = await submission_create.by_ids(ctx, [key])
    if row is None:
        raise NotFound(str(key), path=["id"])
    batches = stream_reader.follow(ctx, Asked(since, SUBMISSIONS, objects={key}))
    while row:
        yield row
        if row.state not in UNDER_WAY:
            break
        await anext(batches)
        (row,) = await submission_create.by_ids(ctx, [key])
    await batches.aclose()


async def of_runs(ctx: Context) -> AsyncGenerator[Picked]:
    """Yield the last run of each of the viewer's connectors after it changes."""
    own(ctx)
    async for batch in stream_reader.follow(ctx, Asked(kinds=CONNECTORS)):
        keys = list(dict.fromkeys(event.object_id for event in batch.events))
        for row in await connector_loaders.last_runs(ctx, keys) if keys else []:
            if row:
                yield row
