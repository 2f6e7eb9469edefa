"""Store named searches, and count their matches for subscriptions."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple, NoReturn

from sqlalchemy import func, select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Conflict, InvalidInput, LimitReached, NotFound
from models.events.event_types import EventType
from models.search.saved_searches import SavedSearch
from models.store.columns import ColumnRow
from models.store.keyset_pages import PageRequest
from models.store.prepared_statements import raw_values, sorted_rows
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest
from resolvers.context import Context
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_lookups import (
    READ_FIELDS,
    iterate_nested_conditions_requiring_limits,
)
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import MessageListing
from resolvers.messages.message_orders import NEWEST_FIRST
from resolvers.pagination import read_own_rows_by_id, read_own_rows_of_users
from resolvers.search import search_scope
from resolvers.search.query_parser import fields_from_valid_query

MAX_SAVED_SEARCHES = 100  # of an account
MAX_NAME_LENGTH = 128
MAX_FILTER_LENGTH = 16 << 10  # characters of a filter as JSON
MIN_COUNT_INTERVAL = timedelta(seconds=1)  # between two counts of one subscriber
PAUSE_PER_COUNT_TIME = 20  # pause after a count, as a multiple of its duration
RECOUNT_EVENT_TYPES = frozenset(  # changes that can change the counts
    event_type
    for event_type in EventType
    if event_type.startswith(("MESSAGE_", "MAILBOX_", "SAVED_SEARCH_"))
)
UNSEEN = MessageConditions(seen=False)

ConditionsBuilder = Callable[[Mapping[str, Any]], MessageConditions]  # from stored filter fields


@dataclass(frozen=True, slots=True)
class SavedSearchChange:
    """New values of saved searches; None keeps the value. A filter is in JSON and converted."""

    name: str | None = None
    fields: Mapping[str, Any] | None = None
    conditions: MessageConditions | None = None


class SavedSearchCounts(NamedTuple):
    """The number of messages that a search matches, and how many of these are unseen."""

    message_count: int
    unseen_count: int


async def load_own_saved_searches_by_id(
    ctx: Context, search_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the viewer's saved searches, in the order of the IDs; None if not found."""
    return await read_own_rows_by_id(ctx, SavedSearch, search_ids)


async def load_visible_saved_searches_by_user(
    ctx: Context, user_ids: list[int]
) -> list[Sequence[ColumnRow]]:
    """Load the saved searches of these users, sorted by name. Empty for other users."""
    return [
        sorted_rows(rows, raw_values(rows, "folded"))
        for rows in await read_own_rows_of_users(ctx, SavedSearch, user_ids)
    ]


def listing_for_count(
    user_id: int, conditions: MessageConditions, *, only_unseen: bool = False
) -> MessageListing:
    """Return the listing that counts the matches of a search."""
    if only_unseen:
        conditions = (
            UNSEEN if conditions.is_empty else MessageConditions(every=(conditions, UNSEEN))
        )
    return MessageListing(user_id, PageRequest(NEWEST_FIRST, 0), frozenset(), conditions=conditions)


async def count_messages_of_search(
    ctx: Context, user_id: int, conditions: MessageConditions
) -> SavedSearchCounts:
    """Count the messages that a search matches."""
    counts = [
        listing_for_count(user_id, conditions),
        listing_for_count(user_id, conditions, only_unseen=True),
    ]
    total, unseen = await ctx.load_many(message_loaders.count_visible_messages_of_listings, counts)
    return SavedSearchCounts(total, unseen)


async def require_storable_conditions(
    ctx: Context, conditions: MessageConditions, *, path: Sequence[str]
) -> None:
    """Raise InvalidInput if a saved search can't have one of these conditions.

    It reads the messages at each count, or names a mailbox that the viewer doesn't own. `path` is
    that of the filter or text in the input.
    """
    await search_scope.validate_mailboxes_of_search(
        ctx, conditions, [require_user_id(ctx)], path=path
    )
    for condition in iterate_nested_conditions_requiring_limits(conditions):
        for name in READ_FIELDS:
            if getattr(condition, name) is not None:
                _raise_uncountable([*path, name] if path[-1] == "filter" else path)


def _raise_uncountable(path: Sequence[str]) -> NoReturn:
    """Raise InvalidInput for a condition that reads the messages at each count."""
    text = "A saved search can't have this condition: use `query`, which is indexed."
    raise InvalidInput(text, constraint=ValidationConstraint.UNSUPPORTED, path=path)


async def load_own_saved_search_ids_by_name(ctx: Context, names: Sequence[str]) -> dict[str, int]:
    """Load the IDs of the viewer's saved searches by name, in any case."""
    folded_by_name = {name: name.strip().casefold() for name in names}
    statement = select(col(SavedSearch.id), col(SavedSearch.folded)).where(
        is_own_or_shared(ctx, SavedSearch),
        col(SavedSearch.folded).in_(set(folded_by_name.values())),
    )
    ids = {row.folded: int(row.id) for row in await ctx.read(statement)}
    return {name: ids[folded] for name, folded in folded_by_name.items() if folded in ids}


async def create_saved_search(
    ctx: Context, name: str, fields: Mapping[str, Any], conditions: MessageConditions
) -> int:
    """Store a search under a new name and return its ID.

    Raises InvalidInput if the filter can't be used, Conflict if the name is in use, and
    LimitReached if the filter is too long or 100 searches are stored.
    """
    await _require_usable_filter(ctx, fields, conditions, path=["filter"])
    return await _insert_saved_search(ctx, _validate_search_name(name, path=["name"]), fields)


async def import_saved_search(ctx: Context, name: str, query: str) -> None:
    """Store a search of an account record, which is a search text, unless the user has it.

    Raises InvalidInput if the text has a problem or names a mailbox or thread by its ID, which
    another server doesn't have. Raises Conflict if another search has the name, or LimitReached.
    """
    valid_name = _validate_search_name(name, path=["name"])
    fields = fields_from_valid_query(query, ctx.environment.now())
    _require_importable_fields(fields)
    _require_short_filter(fields, path=["query"])
    own_searches = await ctx.load(load_visible_saved_searches_by_user, require_user_id(ctx))
    if (valid_name.casefold(), fields) not in [(row.folded, row.filter) for row in own_searches]:
        await _insert_saved_search(ctx, valid_name, fields)


def _require_importable_fields(fields: Mapping[str, Any]) -> None:
    """Raise InvalidInput for a condition that a saved search of another server can't have."""
    for name, value in fields.items():
        if name in READ_FIELDS:
            _raise_uncountable(["query"])
        mailboxes = value if name == "mailboxes" else [value] if name == "mailbox" else []
        if name == "thread" or any("id" in mailbox for mailbox in mailboxes):
            text = f"The condition `{name}` names an object of another server."
            raise InvalidInput(
                text, constraint=ValidationConstraint.UNSUPPORTED, path=["query", name]
            )
        for inner in value if name in ("and", "or") else [value] if name == "not" else []:
            _require_importable_fields(inner)


async def _insert_saved_search(ctx: Context, valid_name: str, fields: Mapping[str, Any]) -> int:
    """Store a search under a new name and return its ID. Raises Conflict or LimitReached."""
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        await _require_free_name(ctx, valid_name, path=["name"])
        await _require_below_saved_search_limit(ctx)
        search = SavedSearch(
            id=ctx.environment.new_id(),
            user_id=user_id,
            name=valid_name,
            folded=valid_name.casefold(),
            filter=dict(fields),
            created_at=ctx.environment.now(),
        )
        session.add(search)
        await session.flush()
        await ctx.record_change(session, user_id, EventType.SAVED_SEARCH_CREATED, [search.id])
        return int(search.id)


async def update_saved_searches(
    ctx: Context, search_ids: Sequence[int], change: SavedSearchChange
) -> None:
    """Set the name or the filter of the viewer's saved searches: all or none.

    Raises NotFound for the first that doesn't exist, Conflict if the new name is in use, and as
    `create_saved_search`.
    """
    if change == SavedSearchChange():
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    name = None
    if change.name is not None:
        name = _validate_search_name(change.name, path=["set", "name"])
        if len(set(search_ids)) > 1:
            text = "Several saved searches can't have the same name."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["set", "name"]
            )
    if change.fields is not None and change.conditions is not None:
        await _require_usable_filter(ctx, change.fields, change.conditions, path=["set", "filter"])
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        changed_ids = []
        for search in await _require_own_saved_searches(ctx, session, search_ids):
            new_name = name or search.name
            fields = search.filter if change.fields is None else dict(change.fields)
            if new_name.casefold() != search.folded:
                await _require_free_name(ctx, new_name, path=["set", "name"])
            if (search.name, search.filter) != (new_name, fields):
                search.name, search.folded, search.filter = new_name, new_name.casefold(), fields
                session.add(search)
                changed_ids.append(search.id)
        if changed_ids:
            await session.flush()
            await ctx.record_change(session, user_id, EventType.SAVED_SEARCH_UPDATED, changed_ids)


async def delete_saved_searches(ctx: Context, search_ids: Sequence[int]) -> None:
    """Delete saved searches of the viewer: all or none. Raises NotFound."""
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        searches = await _require_own_saved_searches(ctx, session, search_ids)
        for search in searches:
            await session.delete(search)
        await session.flush()
        await ctx.record_change(
            session, user_id, EventType.SAVED_SEARCH_DELETED, [search.id for search in searches]
        )


async def _require_own_saved_searches(
    ctx: Context, session: AsyncSession, search_ids: Sequence[int]
) -> list[SavedSearch]:
    """Load the viewer's saved searches, each once. Raises NotFound for the first missing one."""
    statement = instances(SavedSearch).where(
        is_own_or_shared(ctx, SavedSearch), col(SavedSearch.id).in_(search_ids)
    )
    searches = {search.id: search for search in (await session.exec(statement)).all()}
    for nth, search_id in enumerate(search_ids):
        if search_id not in searches:
            raise NotFound(str(search_id), path=["savedSearches", str(nth), "id"])
    return [searches[search_id] for search_id in dict.fromkeys(search_ids)]


async def _require_usable_filter(
    ctx: Context,
    fields: Mapping[str, Any],
    conditions: MessageConditions,
    *,
    path: Sequence[str],
) -> None:
    """Raise an error if a filter is too long, or can't be evaluated."""
    _require_short_filter(fields, path=path)
    await count_messages_of_search(ctx, require_user_id(ctx), conditions)


def _require_short_filter(fields: Mapping[str, Any], *, path: Sequence[str]) -> None:
    """Raise LimitReached if a filter is too long."""
    if (size := len(json.dumps(fields, ensure_ascii=False))) > MAX_FILTER_LENGTH:
        text = f"The search text has at most {MAX_FILTER_LENGTH} characters."
        raise LimitReached(text, limit=MAX_FILTER_LENGTH, used=size, path=path)


async def _require_free_name(ctx: Context, name: str, *, path: Sequence[str]) -> None:
    """Raise Conflict if the viewer has a saved search with this name, in any case."""
    if await load_own_saved_search_ids_by_name(ctx, [name]):
        raise Conflict("Another saved search has this name.", path=path)


def _validate_search_name(name: str, *, path: Sequence[str]) -> str:
    """Return a validated name. Raises InvalidInput if it is empty or too long."""
    valid_name = sql_text.validated_trimmed_text(name, max_length=MAX_NAME_LENGTH, path=path)
    if valid_name is None:
        raise InvalidInput(
            "A name is required.", constraint=ValidationConstraint.REQUIRED, path=path
        )
    return valid_name


async def _require_below_saved_search_limit(ctx: Context) -> None:
    """Raise LimitReached if the viewer has 100 saved searches."""
    (row,) = await ctx.read(
        select(func.count().label("many")).where(is_own_or_shared(ctx, SavedSearch))
    )
    if row.many >= MAX_SAVED_SEARCHES:
        text = f"At most {MAX_SAVED_SEARCHES} saved searches are allowed."
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
        ctx, FollowRequest(since, RECOUNT_EVENT_TYPES, min_interval=timedelta(0))
    )
    while True:
        ctx.clear_loaded()
        started_at = monotonic()
        (row,) = await load_own_saved_searches_by_id(ctx, [search_id])
        if row is None and last_count is None:
            raise NotFound(str(search_id), path=["id"])
        if row is None:
            break
        now = row, await count_messages_of_search(ctx, row.user_id, build_conditions(row.filter))
        spent = monotonic() - started_at
        if now != last_count:
            last_count = now
            yield now
        await asyncio.sleep(max(min_interval.total_seconds(), PAUSE_PER_COUNT_TIME * spent))
        await stream_reader.wait_for_events(batches)
    await batches.aclose()
