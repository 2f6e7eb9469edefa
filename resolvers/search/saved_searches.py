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

from models.errors import InvalidInput, LimitReached, NotFound
from models.events.journal import ChangeKind
from models.search.saved_searches import SavedSearch
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import PageRequest
from resolvers import sql_text
from resolvers.access import is_visible, require_user_id
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest
from resolvers.context import Context
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_lookups import READ_FIELDS, iterate_parts
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.loaders import NEWEST_FIRST, MessageListing
from resolvers.pagination import read_all_by_keys, read_by_keys

MAX_SAVED_SEARCHES = 100  # of an account
MAX_NAME_LENGTH = 128
MAX_FILTER_LENGTH = 16 << 10  # characters of a filter as JSON
MIN_COUNT_INTERVAL = timedelta(seconds=1)  # between two counts of one subscriber
PAUSE_PER_COUNT_TIME = 20  # pause after a count, as a multiple of its duration
RECOUNT_CHANGE_KINDS = frozenset(  # changes that can change the counts
    kind
    for kind in ChangeKind
    if kind.startswith(("MESSAGE_", "MAILBOX_")) or kind is ChangeKind.SAVED_SEARCH_CHANGED
)
UNSEEN = MessageConditions(seen=False)

ConditionsBuilder = Callable[[Mapping[str, Any]], MessageConditions]  # from stored filter fields


class SavedSearchCounts(NamedTuple):
    """The number of messages that a search matches, and how many of these are unseen."""

    total: int
    unseen: int


async def load_own_saved_searches_by_id(
    ctx: Context, search_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the viewer's saved searches, in the order of the IDs; None if not found."""
    statement = select(*select_columns(SavedSearch)).where(is_visible(ctx, SavedSearch))
    return await read_by_keys(ctx, statement, col(SavedSearch.id), search_ids)


async def load_visible_saved_searches_by_user(
    ctx: Context, user_ids: list[int]
) -> list[list[ColumnRow]]:
    """Load the saved searches of these users, sorted by name. Empty for other users."""
    statement = select(*select_columns(SavedSearch)).where(is_visible(ctx, SavedSearch))
    found = await read_all_by_keys(ctx, statement, col(SavedSearch.user_id), user_ids)
    return [sorted(rows, key=lambda row: (row.folded, row.id)) for rows in found]


def listing_for_count(
    user_id: int, conditions: MessageConditions, *, only_unseen: bool = False
) -> MessageListing:
    """Return the listing that counts the matches of a search."""
    if only_unseen:
        conditions = (
            UNSEEN if conditions.is_empty else MessageConditions(every=(conditions, UNSEEN))
        )
    return MessageListing(user_id, PageRequest(NEWEST_FIRST, 0), frozenset(), conditions=conditions)


async def count_matches(
    ctx: Context, user_id: int, conditions: MessageConditions
) -> SavedSearchCounts:
    """Count the messages that a search matches."""
    counts = [
        listing_for_count(user_id, conditions),
        listing_for_count(user_id, conditions, only_unseen=True),
    ]
    total, unseen = await ctx.load_many(message_loaders.count_listings, counts)
    return SavedSearchCounts(total, unseen)


def require_countable_conditions(conditions: MessageConditions) -> None:
    """Raise Invalid if a filter has a condition that reads the messages at each count."""
    for one in iterate_parts(conditions):
        for name in READ_FIELDS:
            if getattr(one, name) is not None:
                text = "messages would be read for it at each count: use query, which is indexed"
                raise InvalidInput(text, constraint="unsupported", path=["filter", name])


async def save_search(
    ctx: Context, name: str, fields: Mapping[str, Any], conditions: MessageConditions
) -> None:
    """Store a search under a name and replace the search of the same name.

    Raises Invalid if the filter cannot be used, LimitReached if it is too long or 100 are
    stored.
    """
    valid_name = _validate_name(name)
    require_countable_conditions(conditions)
    if (size := len(json.dumps(fields, ensure_ascii=False))) > MAX_FILTER_LENGTH:
        text = f"a search has at most {MAX_FILTER_LENGTH} characters"
        raise LimitReached(text, limit=MAX_FILTER_LENGTH, used=size, path=["filter"])
    user_id = require_user_id(ctx)
    await count_matches(ctx, user_id, conditions)  # raises if the filter cannot be evaluated
    async with ctx.write_session(user_id) as session:
        statement = instances(SavedSearch).where(
            is_visible(ctx, SavedSearch), col(SavedSearch.folded) == valid_name.casefold()
        )
        search = (await session.exec(statement)).first()
        if search is None:
            await _require_room_for_saved_search(ctx)
            search = SavedSearch(
                id=ctx.environment.new_id(),
                user_id=user_id,
                name=valid_name,
                folded=valid_name.casefold(),
                created_at=ctx.environment.now(),
            )
        elif (search.name, search.filter) == (valid_name, dict(fields)):
            return
        search.name, search.filter = valid_name, dict(fields)
        session.add(search)
        await session.flush()
        await ctx.record_change(session, user_id, ChangeKind.SAVED_SEARCH_CHANGED, [search.id])


async def delete_saved_search(ctx: Context, name: str) -> None:
    """Delete the viewer's saved search with this name. Raises NotFound if there is none."""
    folded, user_id = _validate_name(name).casefold(), require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        statement = instances(SavedSearch).where(
            is_visible(ctx, SavedSearch), col(SavedSearch.folded) == folded
        )
        search = (await session.exec(statement)).first()
        if search is None:
            raise NotFound(name[:MAX_NAME_LENGTH], path=["name"])
        await session.delete(search)
        await session.flush()
        await ctx.record_change(session, user_id, ChangeKind.SAVED_SEARCH_CHANGED, [search.id])


def _validate_name(name: str) -> str:
    """Return a validated name. Raises Invalid if it is empty or too long."""
    valid_name = sql_text.validate_text(name, max_length=MAX_NAME_LENGTH, path=["name"])
    if valid_name is None:
        raise InvalidInput("a search has a name", constraint="required", path=["name"])
    return valid_name


async def _require_room_for_saved_search(ctx: Context) -> None:
    """Raise LimitReached if the viewer has 100 saved searches."""
    (row,) = await ctx.read(select(func.count().label("many")).where(is_visible(ctx, SavedSearch)))
    if row.many >= MAX_SAVED_SEARCHES:
        text = f"at most {MAX_SAVED_SEARCHES} searches are kept"
        raise LimitReached(text, limit=MAX_SAVED_SEARCHES, used=row.many, path=["name"])


async def follow_saved_search(
    ctx: Context,
    search_id: int,
    build_conditions: ConditionsBuilder,
    min_interval: timedelta = MIN_COUNT_INTERVAL,
) -> AsyncGenerator[tuple[ColumnRow, SavedSearchCounts]]:
    """Yield a saved search with its counts, first at once, then whenever one of them changes.

    The search is counted after changes of mailboxes or messages, at most once per
    `min_interval`, and less often if counting is slow: a subscriber uses at most a twentieth of
    a processor. Ends when the search is deleted. Raises NotFound if the viewer has no search
    with this ID.
    """
    last_count, since = None, await stream_reader.load_last_stream_positions(ctx)
    batches = stream_reader.follow_changes(
        ctx, FollowRequest(since, RECOUNT_CHANGE_KINDS, min_interval=timedelta(0))
    )
    while True:
        ctx.clear_loaded()
        started_at = monotonic()
        (row,) = await load_own_saved_searches_by_id(ctx, [search_id])
        if row is None and last_count is None:
            raise NotFound(str(search_id), path=["id"])
        if row is None:
            break
        now = row, await count_matches(ctx, row.user_id, build_conditions(row.filter))
        spent = monotonic() - started_at
        if now != last_count:
            last_count = now
            yield now
        await asyncio.sleep(max(min_interval.total_seconds(), PAUSE_PER_COUNT_TIME * spent))
        while (batch := await anext(batches)).has_more or not (batch.events or batch.resync_reason):
            pass  # one count covers all events read here
    await batches.aclose()
