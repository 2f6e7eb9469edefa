"""A stream of the counters of mailboxes."""

from collections.abc import AsyncGenerator, Iterable, Sequence

from sqlalchemy import select
from sqlmodel import col

from models.events.journal import ChangeKind, Event
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked
from resolvers.access import own, records
from resolvers.changes import managed_streams, stream_reader
from resolvers.changes.stream_reader import Asked
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights

COUNTING = frozenset(kind for kind in ChangeKind if kind.startswith(("MAILBOX_", "MESSAGE_")))


async def follow(ctx: Context, user_id: int | None) -> AsyncGenerator[Sequence[Picked]]:
    """Yield all mailboxes of an account, then repeatedly the mailboxes with changed counters.

    For the viewer's own account it includes the mailboxes that others share.
    """
    hear = managed_streams.account(user_id)
    since = await stream_reader.standing(
        ctx, hear
    )  # read before the rows, so that no change is lost
    rows = await _all(ctx, user_id)
    told = {row.id: _figures(row) for row in rows}
    yield rows
    async for batch in stream_reader.follow(ctx, Asked(since, COUNTING, hear=hear)):
        keys = sorted(_touched(batch.events))
        rows = await _all(ctx, user_id) if batch.resync else await _some(ctx, keys)
        changed = [row for row in rows if told.get(row.id) != _figures(row)]
        told |= {row.id: _figures(row) for row in changed}
        if changed:
            yield changed


def _figures(row: Picked) -> tuple[int, int]:
    """Return total and unseen messages of a mailbox."""
    return row.total, row.unseen


async def _all(ctx: Context, user_id: int | None) -> Sequence[Picked]:
    theirs = select(*picked(Mailbox)).where(
        col(Mailbox.user_id) == (user_id or own(ctx)), records(ctx, Mailbox)
    )
    rows = list(await ctx.read(theirs.order_by(col(Mailbox.path))))
    shared = [] if user_id else [row.mailbox_id for row in await mailbox_rights.all_of(ctx)]
    return rows + (await _some(ctx, shared) if shared else [])


async def _some(ctx: Context, keys: list[int]) -> list[Picked]:
    """Load those of these mailboxes that exist and that the viewer can see."""
    return [row for row in await mailbox_loaders.by_ids(ctx, keys) if row] if keys else []


def _touched(events: Iterable[Event]) -> set[int]:
    """Return the IDs of the mailboxes with counters that these events can change."""
    found: set[int | None] = set()
    for event in events:
        if event.kind.startswith("MAILBOX_"):
            found.add(event.object_id)
        else:
            found |= {event.facts.get("mailbox"), event.facts.get("fromMailbox")}
    return {key for key in found if key}
