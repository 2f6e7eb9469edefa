"""Work that goes on, followed to its end: tasks, and messages on their way."""

from collections.abc import AsyncGenerator

from models.columns import Picked
from models.errors import NotFound
from models.journal import PLATFORM, ChangeKind
from models.submission import SubmissionState
from resolvers import changes, connectors, submission, tasks
from resolvers.access import own
from resolvers.changes import Asked
from resolvers.context import Context
from resolvers.hearing import Hear, hearing
from resolvers.overseeing import Overheard

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


async def of_task(ctx: Context, key: int) -> AsyncGenerator[Picked]:
    """A task as it is, and whenever it is at another state or count, until it has ended.

    NotFound where the viewer sees none; it ends also where they see it no longer.
    """
    (row,) = await tasks.by_ids(ctx, [key])
    if row is None:
        raise NotFound(str(key), path=["id"])
    hear = _of_stream(PLATFORM if row.user_id is None else row.user_id, ctx, TASKS)
    since, told = await changes.standing(ctx, hear), None
    (row,) = await tasks.by_ids(ctx, [key])
    batches = changes.follow(ctx, Asked(since, TASKS, hear=hear, objects={key}))
    while row:
        if told != (row.state, row.done, row.total):
            told = row.state, row.done, row.total
            yield row
        if row.finished_at:
            break
        await anext(batches)
        (row,) = await tasks.by_ids(ctx, [key])
    await batches.aclose()


def _of_stream(stream: int, ctx: Context, kinds: frozenset[ChangeKind]) -> Hear:
    """How work of a stream is heard by one who sees the work itself."""
    if stream == ctx.viewer.user_id != PLATFORM:
        return hearing

    async def others(_ctx: Context) -> Overheard:
        return Overheard({stream: kinds})

    return others


async def of_submissions(ctx: Context) -> AsyncGenerator[Picked]:
    """Each of the viewer's submissions that moves on."""
    own(ctx)
    async for batch in changes.follow(ctx, Asked(kinds=SUBMISSIONS)):
        keys = list(dict.fromkeys(event.object_id for event in batch.events))
        for row in await submission.by_ids(ctx, keys) if keys else []:
            if row:
                yield row


async def of_submission(ctx: Context, key: int) -> AsyncGenerator[Picked]:
    """One of the viewer's submissions as it is, and whenever it moves on, until it has ended."""
    since = await changes.standing(ctx)
    (row,) = await submission.by_ids(ctx, [key])
    if row is None:
        raise NotFound(str(key), path=["id"])
    batches = changes.follow(ctx, Asked(since, SUBMISSIONS, objects={key}))
    while row:
        yield row
        if row.state not in UNDER_WAY:
            break
        await anext(batches)
        (row,) = await submission.by_ids(ctx, [key])
    await batches.aclose()


async def of_runs(ctx: Context) -> AsyncGenerator[Picked]:
    """Each run of the viewer's own connectors that moves on."""
    own(ctx)
    async for batch in changes.follow(ctx, Asked(kinds=CONNECTORS)):
        keys = list(dict.fromkeys(event.object_id for event in batch.events))
        for row in await connectors.last_runs(ctx, keys) if keys else []:
            if row:
                yield row


async def of_run(ctx: Context, key: int) -> AsyncGenerator[Picked]:
    """A run as it is, and whenever it moves on, until it has ended; NotFound as for tasks."""
    (row,) = await connectors.runs_by_ids(ctx, [key])
    if row is None:
        raise NotFound(str(key), path=["id"])
    hear = _of_stream(row.user_id, ctx, CONNECTORS)
    since, told = await changes.standing(ctx, hear), None
    (row,) = await connectors.runs_by_ids(ctx, [key])
    wanted = Asked(since, CONNECTORS, hear=hear, objects={row.connector_id} if row else set())
    batches = changes.follow(ctx, wanted)
    while row:
        if told != row:
            told = row
            yield row
        if row.finished_at:
            break
        await anext(batches)
        (row,) = await connectors.runs_by_ids(ctx, [key])
    await batches.aclose()
