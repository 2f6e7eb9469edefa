"""Follow the change journal."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, select
from sqlmodel import col

from models.errors import InvalidInput
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import Change, JournalEvent, Stream, StreamPositions
from models.events.wakeups import FollowerWakeup
from models.observability import metrics
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.store.prepared_statements import (
    MAX_KEYS_OF_QUICK_READ,
    is_in_parameter,
    prepare_cached,
)
from models.validation_constraints import ValidationConstraint
from resolvers.auth import credential_cache
from resolvers.changes.event_folding import drop_superseded_events
from resolvers.changes.visible_streams import (
    FollowedStreams,
    SelectStreams,
    load_viewer_streams_and_note_sharing,
)
from resolvers.context import Context

log = logging.getLogger(__name__)

RESYNCS_METRIC = metrics.counter(
    "merganser_change_resyncs",
    "RESYNC events that were sent to subscribers, by reason.",
    "reason",
)
LAG_METRIC = metrics.histogram(
    "merganser_change_lag_seconds",
    "Time from a change to its event for a subscriber that has received all earlier ones.",
)
POLL_SECONDS = 15.0  # between checks for changes whose wake-up was lost
EventFilter = Callable[[Context, Sequence[JournalEvent]], Awaitable[Sequence[JournalEvent]]]
MAX_UNREPORTED_EVENTS = 1000  # invisible ones of other users, for which a position is not reported


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
class PositionUpdate:
    """A later position of a follower that has nothing else to receive."""

    position: StreamPositions
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class FollowRequest:
    """Which changes a follower reads. The default is all changes of the viewer from now on."""

    after_position: StreamPositions | None = None
    types: Collection[EventType] | None = None  # None: all
    mailbox_ids: Collection[int] | None = None  # None: all
    min_interval: timedelta = timedelta(milliseconds=50)  # between two batches
    select_streams: SelectStreams = load_viewer_streams_and_note_sharing
    object_ids: Collection[int] = ()  # only changes of these; empty: all
    filter_events: EventFilter | None = (
        None  # its number of statements must not depend on the number of events
    )
    folds_events: bool = False  # only the last of equivalent events of an object in a batch


async def load_stream_bounds(ctx: Context, stream_ids: Sequence[int]) -> dict[int, ColumnRow]:
    """Load the last position and the last deleted position of streams, by stream id."""
    statement = _select_stream_bounds(ctx.environment.database.dialect)
    rows = await ctx.read_prepared(
        statement,
        streams=list(stream_ids),
        reads_many_rows=len(stream_ids) > MAX_KEYS_OF_QUICK_READ,
    )
    return {row.id: row for row in rows}


@prepare_cached
def _select_stream_bounds(dialect: str) -> Select[*tuple[Any, ...]]:
    columns = col(Stream.id), col(Stream.last), col(Stream.pruned_position)
    return select(*columns).where(is_in_parameter(dialect, col(Stream.id), "streams"))


async def load_last_stream_positions(
    ctx: Context, select_streams: SelectStreams = load_viewer_streams_and_note_sharing
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
    start = await _load_start_position(ctx, request, streams, overflow_limit=None)
    if start.resync_reason:
        RESYNCS_METRIC.add(start.resync_reason)
        return EventBatch([], dict(start.position), resync_reason=start.resync_reason)
    batch, _ = await _read_next_batch(ctx, start.position, request, streams, limit)
    return batch or EventBatch([], streams.positions_in_streams(start.position))


async def follow_changes(ctx: Context, request: FollowRequest) -> AsyncGenerator[EventBatch]:
    """Yield the changes after a position: first the missed ones, then new ones as they come.

    By default these are changes of the viewer and of mailboxes shared with the viewer, with the
    rights at the time of delivery. The first batch is sent at once; events within
    `min_interval` of it are collected, and folded on request. A batch with `has_more` is always
    followed by another one, which can be empty. Raises InvalidInput for a position of other
    streams.
    """
    drop_count = credential_cache.drop_count(ctx.environment)
    streams = await request.select_streams(ctx)
    with ExitStack() as exit_stack:
        wakeup, listened_ids = FollowerWakeup(), set[int]()
        is_live, position, incarnation = False, None, ctx.environment.incarnation
        reported = EventBatch([], {})
        while True:
            for stream_id in set(streams.stream_ids) - listened_ids:
                exit_stack.enter_context(ctx.environment.wakeups.follow([stream_id], wakeup))
                listened_ids.add(stream_id)
            if position is None or incarnation.base != ctx.environment.incarnation.base:
                incarnation = ctx.environment.incarnation
                start = await _load_start_position(
                    ctx,
                    request if position is None else replace(request, after_position=position),
                    streams,
                    overflow_limit=ctx.environment.options.subscriptions_max_lag_events,
                )
                position = start.position
                reported = EventBatch([], dict(position), resync_reason=start.resync_reason)
                if reported.resync_reason:
                    RESYNCS_METRIC.add(reported.resync_reason)
                    yield reported
            wakeup.clear()  # before reading: a later change sets it again
            batch, streams = await _read_next_batch(
                ctx, position, request, streams, journal.MAX_BATCH_EVENTS
            )
            if batch is None and reported.has_more:
                batch = EventBatch([], position)
            if batch is None:
                is_live = True
                await wakeup.wait()
                continue
            drop_count = await _drop_ended_subscribers_if_needed(ctx, batch, drop_count)
            if _needs_report(streams, reported, batch):
                reported = batch
                _record_batch_metrics(ctx, batch, is_live=is_live)
                yield _folded_batch(batch) if request.folds_events else batch
            is_live = is_live and not batch.has_more
            position = dict(batch.position)
            if not batch.has_more:
                await asyncio.sleep(request.min_interval.total_seconds())
                # every change since the read sets the wake-up
                if listened_ids.issuperset(streams.stream_ids):
                    is_live = True
                    await wakeup.wait()


async def wait_for_events(batches: AsyncGenerator[EventBatch]) -> None:
    """Read batches until one has events or a resync, and until no further events exist already.

    So one reading of the rows afterwards covers all events that were read here.
    """
    is_affected, has_more = False, False
    while has_more or not is_affected:
        batch = await anext(batches)
        is_affected = is_affected or bool(batch.events or batch.resync_reason)
        has_more = batch.has_more


async def _drop_ended_subscribers_if_needed(
    ctx: Context, batch: EventBatch, drop_count: int
) -> int:
    """Drop subscribers whose credential may have ended since `drop_count`; return the new count."""
    new_drop_count = credential_cache.drop_count(ctx.environment)
    if ctx.drop_ended_subscribers and (batch.may_end_credential or drop_count != new_drop_count):
        await ctx.drop_ended_subscribers()
        return new_drop_count
    return drop_count


def _folded_batch(batch: EventBatch) -> EventBatch:
    """Return the batch without the events that later ones make superfluous."""
    return replace(batch, events=drop_superseded_events(batch.events))


def _needs_report(streams: FollowedStreams, reported: EventBatch, batch: EventBatch) -> bool:
    """True if a batch has events or a new position for the follower.

    The position of a stream that is not reported counts after many events, so that the follower
    does not fall behind without knowing.
    """
    if batch.events or batch.resync_reason or reported.has_more:
        return True
    return any(
        batch.position.get(stream) != reported.position.get(stream)
        for stream in streams.reported_stream_ids
    ) or (events_between(reported.position, batch.position) >= MAX_UNREPORTED_EVENTS)


def events_between(earlier: StreamPositions, later: StreamPositions) -> int:
    """Return the number of events between two positions, in the streams that both have."""
    return sum(number - earlier.get(stream, number) for stream, number in later.items())


class _StartPosition(NamedTuple):
    """The position to read from, and the reason if it is not the requested one."""

    position: StreamPositions
    resync_reason: ResyncReason | None


async def _load_start_position(
    ctx: Context, request: FollowRequest, streams: FollowedStreams, *, overflow_limit: int | None
) -> _StartPosition:
    """Return the position to start at, and the reason if it is not the requested one.

    Raises InvalidInput for a position of other streams.
    """
    if request.after_position and not streams.includes_position(request.after_position):
        raise InvalidInput(
            "The cursor is a position in the events of another user.",
            constraint=ValidationConstraint.CURSOR,
            path=["after"],
        )
    streams_by_id = await load_stream_bounds(ctx, streams.stream_ids)
    current_position = {key: row.last for key, row in streams_by_id.items()}
    if request.after_position is None:
        if ctx.subscription_start:
            ctx.subscription_start.on_start(dict(current_position))
        return _StartPosition(current_position, None)
    positions_in_streams = streams.positions_in_streams(request.after_position)
    start_position = {
        stream_id: positions_in_streams.get(stream_id, 0) for stream_id in current_position
    }
    resync_reason = _resync_reason(start_position, streams_by_id, ctx.environment.incarnation.base)
    if resync_reason:
        return _StartPosition(current_position, resync_reason)
    if overflow_limit is not None and request.types is not None:
        start_position = await _skip_changes_of_other_types(
            ctx, request.types, start_position, current_position, overflow_limit
        )
    if (
        overflow_limit is not None
        and events_between(start_position, current_position) > overflow_limit
    ):
        return _StartPosition(current_position, ResyncReason.OVERFLOW)
    return _StartPosition(start_position, None)


async def _skip_changes_of_other_types(
    ctx: Context,
    types: Collection[EventType],
    start_position: StreamPositions,
    current_position: StreamPositions,
    overflow_limit: int,
) -> dict[int, int]:
    """Return a later position, if more than `overflow_limit` changes follow this one.

    No change of these types is between the two positions. So a follower that has received all of
    them continues, however many others there were.
    """
    position = dict(start_position)
    if events_between(position, current_position) <= overflow_limit:
        return position
    is_requested: ColumnElement[bool] = col(Change.type).in_(types)
    if not {EventType.MESSAGE_ADDED, EventType.MESSAGE_PURGED}.isdisjoint(types):
        # a move is visible as one of these in a share, also of a draft that is replaced
        is_requested |= col(Change.facts)["fromMailbox"].as_string().is_not(None)
    for stream_id, number in position.items():
        is_unread = col(Change.last).between(number + 1, current_position[stream_id])
        statement = select(col(Change.last)).where(col(Change.stream_id) == stream_id, is_unread)
        first_requested = statement.where(is_requested).order_by(col(Change.last)).limit(1)
        rows = await ctx.read(first_requested)
        first = rows[0].last - journal.MAX_IDS_PER_ROW if rows else current_position[stream_id]
        position[stream_id] = max(number, first)
    return position


def _record_batch_metrics(ctx: Context, batch: EventBatch, *, is_live: bool) -> None:
    """Count a resync by its reason, or record the lag of a live batch in seconds."""
    if batch.resync_reason:
        RESYNCS_METRIC.add(batch.resync_reason)
    elif is_live and batch.events:
        LAG_METRIC.observe(max(0.0, (ctx.environment.now() - batch.events[0].at).total_seconds()))


def _resync_reason(
    start_position: StreamPositions, streams_by_id: dict[int, ColumnRow], incarnation_base: int
) -> ResyncReason | None:
    """Return why a client can't continue at its position and must load its data again, or None."""
    if any(
        position_number < incarnation_base <= streams_by_id[stream_id].pruned_position
        for stream_id, position_number in start_position.items()
    ):
        return ResyncReason.STORE_RESTORED
    if any(number > streams_by_id[key].last for key, number in start_position.items()):
        return ResyncReason.CURSOR_UNKNOWN
    if any(number < streams_by_id[key].pruned_position for key, number in start_position.items()):
        return ResyncReason.CURSOR_EXPIRED
    return None


class _NextBatch(NamedTuple):
    """The next events, None if there are none, and the streams at the time of reading."""

    batch: EventBatch | None
    streams: FollowedStreams


async def _read_next_batch(
    ctx: Context,
    from_position: StreamPositions,
    request: FollowRequest,
    streams: FollowedStreams,
    limit: int,
) -> _NextBatch:
    """Read the next events, with the viewer's rights at the time of reading.

    Returns None as batch if there are none, and the streams as they are then.
    """
    change_rows = await ctx.read(
        *journal.next_changes_select_and_parameters(from_position, limit + 1)
    )
    position_after_gap = _position_after_pruned_changes(change_rows, from_position)
    if position_after_gap is None and len(change_rows) <= limit:
        position_after_gap = await _position_after_pruned_changes_of_unread_streams(
            ctx, change_rows, from_position
        )
    if position_after_gap:
        return _NextBatch(
            EventBatch(
                [], position_after_gap, resync_reason=ResyncReason.CURSOR_EXPIRED, has_more=True
            ),
            streams,
        )
    if not change_rows:
        return _NextBatch(None, streams)
    events = list(islice(journal.events_after_positions(change_rows, from_position), limit + 1))
    page_events = events[:limit]  # the next event shows that there are more
    may_end = streams.may_end_credential(page_events)
    if streams.needs_reload(page_events):
        streams = await request.select_streams(ctx)
    visible_events = [
        visible_event
        for event in page_events
        if (visible_event := streams.visible_event_or_none(event))
    ]
    requested_events: Sequence[JournalEvent] = [
        event for event in visible_events if _is_requested_event(event, request)
    ]
    if request.filter_events and requested_events:
        requested_events = await request.filter_events(ctx, requested_events)
    position = streams.positions_in_streams(page_events[-1].positions)
    return _NextBatch(
        EventBatch(
            requested_events,
            position,
            has_more=len(events) > len(page_events),
            may_end_credential=may_end,
        ),
        streams,
    )


def _position_after_pruned_changes(
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


async def _position_after_pruned_changes_of_unread_streams(
    ctx: Context, changes: Sequence[ColumnRow], position: StreamPositions
) -> StreamPositions | None:
    """Return the position after the deleted changes of streams that have grown without a change.

    This happens if the position of a stream is raised by more than one read covers. Returns None,
    without a statement, if no stream has grown without a change.
    """
    wakeups, read_ids = ctx.environment.wakeups, {change.stream_id for change in changes}
    silent_ids = [
        stream_id
        for stream_id, number in position.items()
        if stream_id not in read_ids and wakeups.known_position(stream_id) > number
    ]
    if not silent_ids:
        return None
    gaps = {
        stream_id: row.pruned_position
        for stream_id, row in (await load_stream_bounds(ctx, silent_ids)).items()
        if row.pruned_position > position[stream_id]
    }
    return {**position, **gaps} if gaps else None


def _is_requested_event(event: JournalEvent, request: FollowRequest) -> bool:
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


async def poll_followed_streams_until_cancelled(environment: Environment) -> None:
    """Poll for changes whose wake-up was lost, with one query for the whole process."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            await wake_followers_of_changed_streams(environment)
        except Exception:  # keep running: the next attempt can succeed
            log.exception("Could not read the journal")


async def wake_followers_of_changed_streams(environment: Environment) -> None:
    """Wake the followers of every followed stream that has new changes."""
    if followed := environment.wakeups.followed_streams:
        statement = select(col(Stream.id), col(Stream.last)).where(col(Stream.id).in_(followed))
        for stream, last in await environment.database.read(statement):
            environment.wakeups.wake_followers(stream, last)
