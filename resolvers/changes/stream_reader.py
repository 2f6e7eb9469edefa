"""Follow the change journal."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from itertools import islice

from sqlalchemy import select
from sqlmodel import col

from models.errors import InvalidInput
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import JournalEvent, Stream, StreamPositions
from models.observability import metrics
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.auth import credential_cache
from resolvers.changes.visible_streams import FollowedStreams, SelectStreams, load_viewer_streams
from resolvers.context import Context

log = logging.getLogger(__name__)

RESYNCS_METRIC = metrics.counter(
    "merganser_change_resyncs", "Followers who were told to read afresh, and why.", "reason"
)
LAG_METRIC = metrics.histogram(
    "merganser_change_lag_seconds",
    "Time from a change to the batch that brings it to a follower who had read all before it.",
)
POLL_SECONDS = 15.0  # between checks for changes whose wake-up was lost
EventFilter = Callable[[Context, Sequence[JournalEvent]], Awaitable[Sequence[JournalEvent]]]
FOLDABLE_TYPES = frozenset(
    {EventType.MESSAGE_UPDATED, EventType.SUBMISSION_CHANGED, EventType.TASK_CHANGED}
)
LAST_VALUE_FACTS = frozenset(
    {"modseq", "flags"}
)  # facts whose value in the last change replaces earlier ones


class ResyncReason(StrEnum):
    """Why a stream cannot go on from a position."""

    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    CURSOR_UNKNOWN = "CURSOR_UNKNOWN"
    OVERFLOW = "OVERFLOW"
    STORE_RESTORED = "STORE_RESTORED"


@dataclass(frozen=True, slots=True)
class EventBatch:
    """The events of one wake-up, and the position after them.

    With `resync_reason` it has no events: the client must read everything before that position
    again.
    """

    events: Sequence[JournalEvent]
    position: StreamPositions
    has_more: bool = False
    resync_reason: ResyncReason | None = None
    may_end_credential: bool = False  # the events can have ended the follower's credential


@dataclass(frozen=True, slots=True)
class FollowRequest:
    """Which changes a follower reads. The default is all changes of the viewer from now on."""

    after_position: StreamPositions | None = None
    types: Collection[EventType] | None = None  # None: all
    mailbox_ids: Collection[int] | None = None  # None: all
    min_interval: timedelta = timedelta(milliseconds=50)  # between two batches
    select_streams: SelectStreams = load_viewer_streams
    object_ids: Collection[int] = ()  # only changes of these; empty: all
    filter_events: EventFilter | None = (
        None  # its number of statements must not depend on the number of events
    )
    folds_events: bool = False  # only the last of equivalent events of an object in a batch


async def load_stream_bounds(ctx: Context, stream_ids: Sequence[int]) -> dict[int, ColumnRow]:
    """Load the last position and the last deleted position of streams, by stream id."""
    statement = select(col(Stream.id), col(Stream.last), col(Stream.gone)).where(
        col(Stream.id).in_(stream_ids)
    )
    return {row.id: row for row in await ctx.read(statement)}


async def load_last_stream_positions(
    ctx: Context, select_streams: SelectStreams = load_viewer_streams
) -> dict[int, int]:
    """Return the last positions of the selected streams; by default those the viewer follows."""
    streams = await select_streams(ctx)
    return {
        stream_id: row.last
        for stream_id, row in (await load_stream_bounds(ctx, streams.stream_ids)).items()
    }


async def load_last_stream_positions_by_user(
    ctx: Context, user_ids: list[int]
) -> list[StreamPositions | None]:
    """Load the positions of users' streams, in the given order. None for an unknown user.

    The viewer's position includes the streams of shared mailboxes.
    """
    viewer_id, position_by_user = ctx.viewer.user_id, dict[int, StreamPositions]()
    if viewer_id in user_ids and (
        ctx.query_position or ctx.viewer.share_visibility.has_shared_mailboxes
    ):
        position_by_user[viewer_id] = ctx.query_position or await load_last_stream_positions(ctx)
    other_ids = [user_id for user_id in user_ids if user_id not in position_by_user]
    rows = await load_stream_bounds(ctx, other_ids) if other_ids else {}
    position_by_user |= {key: {key: row.last} for key, row in rows.items()}
    return [position_by_user.get(key) for key in user_ids]


async def read_event_page(ctx: Context, request: FollowRequest, limit: int) -> EventBatch:
    """Return the next events after a position, at most `limit`, without waiting.

    It reads as far back as the journal is kept. `object_ids` is used as in `follow_changes`.
    Raises InvalidInput for a position of other streams.
    """
    streams = await request.select_streams(ctx)
    position, resync_reason = await _resolve_start_position(
        ctx, request, streams, overflow_limit=None
    )
    if resync_reason:
        RESYNCS_METRIC.add(resync_reason)
        return EventBatch([], dict(position), resync_reason=resync_reason)
    batch, _ = await _read_next_batch(ctx, position, request, streams, limit)
    return batch or EventBatch([], streams.positions_in_streams(position))


async def follow_changes(ctx: Context, request: FollowRequest) -> AsyncGenerator[EventBatch]:
    """Yield the changes after a position: first the missed ones, then new ones as they come.

    By default these are changes of the viewer and of mailboxes shared with the viewer, with the
    rights at the time of delivery. The first batch is sent at once; events within
    `min_interval` of it are collected, and folded on request. Raises InvalidInput for a
    position of other streams.
    """
    drop_count, streams = (
        credential_cache.drop_count(ctx.environment),
        await request.select_streams(ctx),
    )
    with ExitStack() as exit_stack:
        wakeup, listened_ids = asyncio.Event(), set[int]()
        is_live, position, incarnation = False, None, ctx.environment.incarnation
        while True:
            for stream_id in set(streams.stream_ids) - listened_ids:
                exit_stack.enter_context(ctx.environment.wakeups.follow([stream_id], wakeup))
                listened_ids.add(stream_id)
            if position is None or incarnation.base != ctx.environment.incarnation.base:
                incarnation, overflow_limit = (
                    ctx.environment.incarnation,
                    ctx.environment.options.subscriptions_max_lag_events,
                )
                start_request = (
                    request if position is None else replace(request, after_position=position)
                )
                position, resync_reason = await _resolve_start_position(
                    ctx, start_request, streams, overflow_limit=overflow_limit
                )
                if resync_reason:
                    RESYNCS_METRIC.add(resync_reason)
                    yield EventBatch([], dict(position), resync_reason=resync_reason)
            wakeup.clear()  # before reading: a later change sets it again
            batch, streams = await _read_next_batch(
                ctx, position, request, streams, journal.MAX_BATCH_EVENTS
            )
            if batch is None:
                is_live = True
                await wakeup.wait()
                continue
            if ctx.drop_ended_subscribers and (
                batch.may_end_credential
                or drop_count != credential_cache.drop_count(ctx.environment)
            ):
                drop_count = credential_cache.drop_count(ctx.environment)
                await ctx.drop_ended_subscribers()
            if (
                batch.resync_reason
                or batch.events
                or _has_advanced(streams, position, batch.position)
            ):
                _record_batch_metrics(ctx, batch, is_live=is_live)
                yield (
                    replace(batch, events=_drop_superseded_events(batch.events))
                    if request.folds_events
                    else batch
                )
            is_live = is_live and not batch.has_more
            position = dict(batch.position)
            if not batch.has_more:
                await asyncio.sleep(request.min_interval.total_seconds())
                if listened_ids.issuperset(
                    streams.stream_ids
                ):  # every change since the read sets the wake-up
                    is_live = True
                    await wakeup.wait()


def _drop_superseded_events(events: Sequence[JournalEvent]) -> Sequence[JournalEvent]:
    """Return the events without those that a later event of the same object makes superfluous.

    Such events have the same type and origin, and differ only in LAST_VALUE_FACTS.
    """
    if len(events) == 1:
        return events
    kept_events, event_keys = list[JournalEvent](), set[tuple[object, ...]]()
    for event in reversed(events):
        if event.type in FOLDABLE_TYPES:
            compared_facts = sorted(
                one for one in event.facts.items() if one[0] not in LAST_VALUE_FACTS
            )
            event_key = (
                event.type,
                event.stream_id,
                event.object_id,
                event.origin,
                repr(compared_facts),
            )
            if event_key in event_keys:
                continue
            event_keys.add(event_key)
        kept_events.append(event)
    return kept_events[::-1]


def _has_advanced(
    streams: FollowedStreams, old_position: StreamPositions, new_position: StreamPositions
) -> bool:
    return any(
        new_position.get(stream) != old_position.get(stream)
        for stream in streams.reported_stream_ids
    )


async def _resolve_start_position(
    ctx: Context, request: FollowRequest, streams: FollowedStreams, *, overflow_limit: int | None
) -> tuple[StreamPositions, ResyncReason | None]:
    """Return the position to start at, and the reason if it is not the requested one.

    Raises InvalidInput for a position of other streams.
    """
    if request.after_position and not streams.includes_position(request.after_position):
        raise InvalidInput(
            "a position in somebody else's stream",
            constraint=ValidationConstraint.CURSOR,
            path=["after"],
        )
    streams_by_id = await load_stream_bounds(ctx, streams.stream_ids)
    current_position = {key: row.last for key, row in streams_by_id.items()}
    if request.after_position is None:
        if ctx.subscription_start:
            ctx.subscription_start.on_start(dict(current_position))
        return current_position, None
    positions_in_streams = streams.positions_in_streams(request.after_position)
    start_position = {
        stream_id: positions_in_streams.get(stream_id, 0) for stream_id in current_position
    }
    resync_reason = _resync_reason(
        start_position, streams_by_id, overflow_limit, ctx.environment.incarnation.base
    )
    return (current_position if resync_reason else start_position), resync_reason


def _record_batch_metrics(ctx: Context, batch: EventBatch, *, is_live: bool) -> None:
    if batch.resync_reason:
        RESYNCS_METRIC.add(batch.resync_reason)
    elif is_live and batch.events:
        LAG_METRIC.observe(max(0.0, (ctx.environment.now() - batch.events[0].at).total_seconds()))


def _resync_reason(
    start_position: StreamPositions,
    streams_by_id: dict[int, ColumnRow],
    overflow_limit: int | None,
    incarnation_base: int,
) -> ResyncReason | None:
    if any(
        position_number < incarnation_base <= streams_by_id[stream_id].gone
        for stream_id, position_number in start_position.items()
    ):
        return ResyncReason.STORE_RESTORED
    if any(number > streams_by_id[key].last for key, number in start_position.items()):
        return ResyncReason.CURSOR_UNKNOWN
    if any(number < streams_by_id[key].gone for key, number in start_position.items()):
        return ResyncReason.CURSOR_EXPIRED
    event_count = sum(streams_by_id[key].last - number for key, number in start_position.items())
    return (
        ResyncReason.OVERFLOW
        if overflow_limit is not None and event_count > overflow_limit
        else None
    )


async def _read_next_batch(
    ctx: Context,
    from_position: StreamPositions,
    request: FollowRequest,
    streams: FollowedStreams,
    limit: int,
) -> tuple[EventBatch | None, FollowedStreams]:
    """Read the next events, with the viewer's rights at the time of reading.

    Returns None as batch if there are none, and the streams as they are then.
    """
    change_rows = await ctx.read(
        *journal.next_changes_select_and_parameters(from_position, limit + 1)
    )
    if not change_rows:
        return None, streams
    position_after_gap = _position_after_gap(change_rows, from_position)
    if position_after_gap:
        return EventBatch(
            [], position_after_gap, resync_reason=ResyncReason.CURSOR_EXPIRED, has_more=True
        ), streams
    events = list(islice(journal.events_after_positions(change_rows, from_position), limit + 1))
    page_events = events[:limit]  # the next event shows that there are more
    may_end = streams.may_end_credential(page_events)
    if streams.needs_reload(page_events):
        streams = await request.select_streams(ctx)
    visible_events = [
        visible_event for event in page_events if (visible_event := streams.visible_event(event))
    ]
    requested_events: Sequence[JournalEvent] = [
        event for event in visible_events if _is_requested(event, request)
    ]
    if request.filter_events and requested_events:
        requested_events = await request.filter_events(ctx, requested_events)
    position = streams.positions_in_streams(page_events[-1].positions)
    return EventBatch(
        requested_events,
        position,
        has_more=len(events) > len(page_events),
        may_end_credential=may_end,
    ), streams


def _position_after_gap(
    changes: Sequence[ColumnRow], position: StreamPositions
) -> StreamPositions | None:
    """Return the position before the oldest kept change of each stream with a gap.

    Returns None if no change after `position` was deleted.
    """
    first_by_stream: dict[int, int] = {}
    for change in changes:
        first_by_stream.setdefault(change.stream_id, change.last - len(change.ids))
    gaps = {
        stream_id: number
        for stream_id, number in first_by_stream.items()
        if number > position[stream_id]
    }
    return {**position, **gaps} if gaps else None


def _is_requested(event: JournalEvent, request: FollowRequest) -> bool:
    if request.types is not None and event.type not in request.types:
        return False
    if request.object_ids and event.object_id not in request.object_ids:
        return False
    if request.mailbox_ids is None:
        return True
    related_mailbox_ids = {event.facts.get("mailbox"), event.facts.get("fromMailbox")}
    if event.type.startswith("MAILBOX_"):
        related_mailbox_ids.add(event.object_id)
    return bool(related_mailbox_ids.intersection(request.mailbox_ids))


async def poll_followed_streams(environment: Environment) -> None:
    """Poll for changes whose wake-up was lost, with one query for the whole process."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            await wake_followers_of_changed_streams(environment)
        except Exception:  # keep running: the next attempt can succeed
            log.exception("the journal could not be read")


async def wake_followers_of_changed_streams(environment: Environment) -> None:
    """Wake the followers of every followed stream that has new changes."""
    if followed := environment.wakeups.followed_streams:
        statement = select(col(Stream.id), col(Stream.last)).where(col(Stream.id).in_(followed))
        for stream, last in await environment.database.read(statement):
            environment.wakeups.wake_followers(stream, last)
