"""Store named searches, and count their matches for subscriptions."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlmodel import col
from sqlmodel import select as instances

from models.errors import Invalid, LimitReached, NotFound
from models.events.journal import ChangeKind
from models.search.saved_searches import SavedSearch
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask
from resolvers import sql_text
from resolvers.access import own, visible
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import Asked
from resolvers.context import Context
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_lookups import READ, parts
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.messages.loaders import NEWEST, Listing
from resolvers.pagination import all_by_keys, by_keys

MOST = 100  # of an account
LONGEST = 128
SIZE = 16 << 10  # characters of a filter as JSON
WINDOW = timedelta(seconds=1)  # between two counts of one subscriber
REST = 20  # pause after a count, as a multiple of its duration
COUNTED = frozenset(  # changes that can change the counts
    kind
    for kind in ChangeKind
    if kind.startswith(("MESSAGE_", "MAILBOX_")) or kind is ChangeKind.SAVED_SEARCH_CHANGED
)
UNSEEN = MessageWhere(seen=False)

Meant = Callable[[Mapping[str, Any]], MessageWhere]  # from stored filter fields


class Figures(NamedTuple):
    """The number of messages that a search matches, and how many of these are unseen."""

    total: int
    unseen: int


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's saved searches, in the order of the IDs; None if not found."""
    mine = select(*picked(SavedSearch)).where(visible(ctx, SavedSearch))
    return await by_keys(ctx, mine, col(SavedSearch.id), ids)


async def of_users(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """Load the saved searches of these users by name. Those of other users are not visible."""
    asked = select(*picked(SavedSearch)).where(visible(ctx, SavedSearch))
    found = await all_by_keys(ctx, asked, col(SavedSearch.user_id), keys)
    return [sorted(rows, key=lambda row: (row.folded, row.id)) for rows in found]


def listing(user_id: int, where: MessageWhere, *, unseen: bool = False) -> Listing:
    """Return the listing that counts the matches of a search."""
    if unseen:
        where = UNSEEN if where.everything else MessageWhere(every=(where, UNSEEN))
    return Listing(user_id, Ask(NEWEST, 0), frozenset(), where=where)


async def figures(ctx: Context, user_id: int, where: MessageWhere) -> Figures:
    """Count the messages that a search matches."""
    both = [listing(user_id, where), listing(user_id, where, unseen=True)]
    total, unseen = await ctx.load_all(message_loaders.counts, both)
    return Figures(total, unseen)


def check(where: MessageWhere) -> None:
    """Raise Invalid if a filter has a condition that reads the messages at each count."""
    for one in parts(where):
        for name in READ:
            if getattr(one, name) is not None:
                text = "messages would be read for it at each count: use query, which is indexed"
                raise Invalid(text, constraint="unsupported", path=["filter", name])


async def keep(ctx: Context, name: str, fields: Mapping[str, Any], where: MessageWhere) -> None:
    """Store a search under a name and replace the search of the same name.

    Raises Invalid if the filter cannot be used, LimitReached if it is too long or 100 are
    stored.
    """
    shown = _named(name)
    check(where)
    if (size := len(json.dumps(fields, ensure_ascii=False))) > SIZE:
        text = f"a search has at most {SIZE} characters"
        raise LimitReached(text, limit=SIZE, used=size, path=["filter"])
    user_id = own(ctx)
    await figures(ctx, user_id, where)  # raises if the filter cannot be evaluated
    async with ctx.write(user_id) as session:
        asked = instances(SavedSearch).where(
            visible(ctx, SavedSearch), col(SavedSearch.folded) == shown.casefold()
        )
        search = (await session.exec(asked)).first()
        if search is None:
            await _check_room(ctx)
            search = SavedSearch(
                id=ctx.world.key(),
                user_id=user_id,
                name=shown,
                folded=shown.casefold(),
                created_at=ctx.world.now(),
            )
        elif (search.name, search.filter) == (shown, dict(fields)):
            return
        search.name, search.filter = shown, dict(fields)
        session.add(search)
        await session.flush()
        await ctx.record(session, user_id, ChangeKind.SAVED_SEARCH_CHANGED, [search.id])


async def remove(ctx: Context, name: str) -> None:
    """Delete the viewer's saved search with this name. Raises NotFound if there is none."""
    folded, user_id = _named(name).casefold(), own(ctx)
    async with ctx.write(user_id) as session:
        asked = instances(SavedSearch).where(
            visible(ctx, SavedSearch), col(SavedSearch.folded) == folded
        )
        search = (await session.exec(asked)).first()
        if search is None:
            raise NotFound(name[:LONGEST], path=["name"])
        await session.delete(search)
        await session.flush()
        await ctx.record(session, user_id, ChangeKind.SAVED_SEARCH_CHANGED, [search.id])


def _named(name: str) -> str:
    """Return a validated name. Raises Invalid if it is empty or too long."""
    shown = sql_text.checked(name, most=LONGEST, path=["name"])
    if shown is None:
        raise Invalid("a search has a name", constraint="required", path=["name"])
    return shown


async def _check_room(ctx: Context) -> None:
    """Raise LimitReached if the viewer has 100 saved searches."""
    (row,) = await ctx.read(select(func.count().label("many")).where(visible(ctx, SavedSearch)))
    if row.many >= MOST:
        text = f"at most {MOST} searches are kept"
        raise LimitReached(text, limit=MOST, used=row.many, path=["name"])


async def follow(
    ctx: Context, key: int, meant: Meant, window: timedelta = WINDOW
) -> AsyncGenerator[tuple[Picked, Figures]]:
    """Yield a saved search with its counts, first at once, then whenever one of them changes.

    The search is counted after changes of mailboxes or messages, at most once per
    `min_interval`, and less often if counting is slow: a subscriber uses at most a twentieth of
    a processor. Ends when the search is deleted. Raises NotFound if the viewer has no search
    with this ID.
    """
    told, since = None, await stream_reader.standing(ctx)
    batches = stream_reader.follow(ctx, Asked(since, COUNTED, window=timedelta(0)))
    while True:
        ctx.forget()
        begun = monotonic()
        (row,) = await by_ids(ctx, [key])
        if row is None and told is None:
            raise NotFound(str(key), path=["id"])
        if row is None:
            break
        now = row, await figures(ctx, row.user_id, meant(row.filter))
        spent = monotonic() - begun
        if now != told:
            told = now
            yield now
        await asyncio.sleep(max(window.total_seconds(), REST * spent))
        while (batch := await anext(batches)).more or not (batch.events or batch.resync):
            pass  # one count covers all events read here
    await batches.aclose()
