"""Follow the queue entries of all users as they change.

It reads the journals of the users, so that senders write nothing more and hold no shared lock.
"""

from collections.abc import AsyncGenerator, Collection, Sequence

from sqlalchemy import select
from sqlmodel import col

from models.events import journal
from models.events.event_types import SUBMISSION_EVENT_TYPES
from models.events.journal import Stream
from models.events.wakeups import wait_for_any_event_or_timeout
from models.store.columns import ColumnRow
from resolvers.changes.stream_reader import POLL_SECONDS
from resolvers.context import Context
from resolvers.queue.loaders import QueueEntryConditions, load_matching_or_finished_queue_entries

STREAMS_PER_READ = 250
MAX_SELECTED_STREAMS = 5000  # if more have changed, all streams are read


async def follow_queue_entries(
    ctx: Context, conditions: QueueEntryConditions
) -> AsyncGenerator[ColumnRow]:
    """Yield the entries that meet the conditions after each change.

    Changes of one user keep their order. Several changes of an entry between two reads are
    reported as one.
    """
    with ctx.environment.wakeups.follow_all_streams() as wakeup:
        positions: dict[int, int] = {
            entry.id: entry.last for entry in await _load_stream_positions(ctx)
        }
        while True:
            changed_streams: Collection[int] | None = wakeup.take_streams()
            if not changed_streams:
                await wait_for_any_event_or_timeout([wakeup], POLL_SECONDS)
                # None: read all, since a wake-up of another process can be lost
                changed_streams = wakeup.take_streams() or None
            async for submission_ids in _yield_changed_submissions_and_advance(
                ctx, positions, changed_streams
            ):
                ctx.clear_loaded()
                for row in await load_matching_or_finished_queue_entries(
                    ctx, submission_ids, conditions
                ):
                    yield row


async def _load_stream_positions(
    ctx: Context, stream_ids: Collection[int] | None = None
) -> Sequence[ColumnRow]:
    """Load the last and the last deleted position of these streams, or of all."""
    columns = (Stream.id, Stream.last, Stream.pruned_position)
    statement = select(*map(col, columns)).order_by(col(Stream.id))
    if stream_ids is not None:
        statement = statement.where(col(Stream.id).in_(sorted(stream_ids)))
    return await ctx.read(statement)


async def _yield_changed_submissions_and_advance(
    ctx: Context, positions: dict[int, int], changed_streams: Collection[int] | None
) -> AsyncGenerator[Sequence[int]]:
    """Yield the ids of submissions that changed after these positions, and advance them.

    A new stream is read from its beginning.
    """
    if changed_streams is not None and len(changed_streams) > MAX_SELECTED_STREAMS:
        changed_streams = None
    streams = await _load_stream_positions(ctx, changed_streams)
    for row in streams:  # deleted changes can't be read, which after a restore are all
        positions[row.id] = max(positions.get(row.id, 0), row.pruned_position)
    streams_behind = [(row.id, row.last) for row in streams if row.last > positions[row.id]]
    for start in range(0, len(streams_behind), STREAMS_PER_READ):
        end_positions = dict(streams_behind[start : start + STREAMS_PER_READ])
        start_positions = {stream_id: positions.get(stream_id, 0) for stream_id in end_positions}
        while start_positions:
            rows = await ctx.read(journal.next_changes_select(start_positions))
            events = list(journal.events_after_positions(rows, start_positions))
            object_ids = (e.object_id for e in events if e.type in SUBMISSION_EVENT_TYPES)
            if submission_ids := list(dict.fromkeys(object_ids)):
                yield submission_ids
            start_positions = _advance_read_positions_and_return_unread(
                positions, start_positions, end_positions, rows
            )


def _advance_read_positions_and_return_unread(
    positions: dict[int, int],
    start_positions: dict[int, int],
    end_positions: dict[int, int],
    changes: Sequence[ColumnRow],
) -> dict[int, int]:
    """Advance the positions to the last read changes; return the streams with unread changes.

    The changes are ordered by stream. If there can be more, all streams before the last are
    read completely.
    """
    read_positions: dict[int, int] = {row.stream_id: row.last for row in changes}
    last_stream_id = changes[-1].stream_id if len(changes) >= journal.MAX_BATCH_EVENTS else None
    for stream_id, start in start_positions.items():
        requested_end = start + journal.MAX_BATCH_EVENTS + journal.MAX_IDS_PER_ROW
        if last_stream_id is not None and stream_id >= last_stream_id:
            positions[stream_id] = read_positions.get(stream_id, start)
        else:
            positions[stream_id] = max(
                read_positions.get(stream_id, start),
                # without changes in between, which were deleted
                end_positions[stream_id]
                if end_positions[stream_id] <= requested_end
                else start + journal.MAX_BATCH_EVENTS,
            )
    return {key: positions[key] for key in start_positions if positions[key] < end_positions[key]}
