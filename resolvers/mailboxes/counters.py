"""A stream of the counters of mailboxes."""

from collections.abc import AsyncGenerator, Iterable, Sequence

from sqlalchemy import select
from sqlmodel import col

from models.events.event_types import EventType
from models.events.journal import JournalEvent
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from resolvers.access import is_visible_or_managed, require_user_id
from resolvers.changes import managed_streams, stream_reader
from resolvers.changes.stream_reader import FollowRequest
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights

MAX_MAILBOXES_PER_EVENT = 250
COUNTER_CHANGE_KINDS = frozenset(
    event_type for event_type in EventType if event_type.startswith(("MAILBOX_", "MESSAGE_"))
)


async def list_mailboxes_then_follow_counters(
    ctx: Context, user_id: int | None
) -> AsyncGenerator[Sequence[ColumnRow]]:
    """Yield all mailboxes of an account, then repeatedly the mailboxes with changed counters.

    One event has at most MAX_MAILBOXES_PER_EVENT mailboxes. For the viewer's own account it
    includes the mailboxes that others share.
    """
    hear = managed_streams.selector_of_user_stream(user_id)
    # read before the rows, so that no change is lost
    since = await stream_reader.load_last_stream_positions(ctx, hear)
    rows = await _load_mailboxes_of_user_or_own_and_shared(ctx, user_id)
    last_counters = {row.id: _message_and_unseen_counts(row) for row in rows}
    for event_rows in _rows_by_event(rows) or [rows]:
        yield event_rows
    async for batch in stream_reader.follow_changes(
        ctx, FollowRequest(since, COUNTER_CHANGE_KINDS, select_streams=hear)
    ):
        keys = sorted(_affected_mailbox_ids(batch.events))
        rows = (
            await _load_mailboxes_of_user_or_own_and_shared(ctx, user_id)
            if batch.resync_reason
            else await _load_still_visible(ctx, keys)
        )
        changed = [
            row for row in rows if last_counters.get(row.id) != _message_and_unseen_counts(row)
        ]
        last_counters |= {row.id: _message_and_unseen_counts(row) for row in changed}
        for event_rows in _rows_by_event(changed):
            yield event_rows


def _rows_by_event(rows: Sequence[ColumnRow]) -> list[Sequence[ColumnRow]]:
    """Return the rows in lists of at most MAX_MAILBOXES_PER_EVENT."""
    starts = range(0, len(rows), MAX_MAILBOXES_PER_EVENT)
    return [rows[start : start + MAX_MAILBOXES_PER_EVENT] for start in starts]


def _message_and_unseen_counts(mailbox_row: ColumnRow) -> tuple[int, int]:
    """Return the numbers of all and of unseen messages of a mailbox."""
    return mailbox_row.message_count, mailbox_row.unseen_count


async def _load_mailboxes_of_user_or_own_and_shared(
    ctx: Context, user_id: int | None
) -> Sequence[ColumnRow]:
    statement = select(*select_columns(Mailbox)).where(
        col(Mailbox.user_id) == (user_id or require_user_id(ctx)),
        is_visible_or_managed(ctx, Mailbox),
    )
    rows = list(await ctx.read(statement.order_by(col(Mailbox.path))))
    shared = (
        []
        if user_id
        else [row.mailbox_id for row in await mailbox_rights.load_shares_with_viewer(ctx)]
    )
    return rows + (await _load_still_visible(ctx, shared) if shared else [])


async def _load_still_visible(ctx: Context, mailbox_ids: list[int]) -> list[ColumnRow]:
    """Load those of these mailboxes that exist and that the viewer can see."""
    return (
        [row for row in await mailbox_loaders.load_visible_by_ids(ctx, mailbox_ids) if row]
        if mailbox_ids
        else []
    )


def _affected_mailbox_ids(events: Iterable[JournalEvent]) -> set[int]:
    """Return the IDs of the mailboxes with counters that these events can change."""
    mailbox_ids: set[int | None] = set()
    for event in events:
        if event.type.startswith("MAILBOX_"):
            mailbox_ids.add(event.object_id)
        else:
            mailbox_ids |= {event.facts.get("mailbox"), event.facts.get("fromMailbox")}
    return {key for key in mailbox_ids if key}
