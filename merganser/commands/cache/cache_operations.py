"""List cache entries for the command line."""

from dataclasses import dataclass
from typing import Any

from merganser.server.environment_factory import root_context
from models.runtime.environment import Environment
from models.store.keyset_pages import MAX_PAGE_SIZE, PageRequest
from resolvers.cache import listing
from resolvers.cache.entries import CacheEntryRow
from resolvers.cache.listing import CacheConditions, CacheEntryOrder
from resolvers.users import loaders as user_loaders

ORDERING = "cache-entries"
ORDER = CacheEntryOrder.LAST_USED_AT_DESC


@dataclass(frozen=True, slots=True)
class ListedCacheEntries:
    """Cache entries as JSON values, and the nodes that did not answer."""

    entries: list[dict[str, Any]]
    silent_nodes: list[str]


async def load_entries_as_json(
    environment: Environment, conditions: CacheConditions, limit: int
) -> ListedCacheEntries:
    """Load at most `limit` cache entries of all nodes, those used last first, as JSON values."""
    ctx, cursor = root_context(environment), None
    rows, silent_nodes = list[CacheEntryRow](), set[str]()
    while len(rows) < limit:
        page_request = PageRequest(ORDERING, min(MAX_PAGE_SIZE, limit - len(rows)), cursor)
        result = await listing.read_cache_entry_page(ctx, conditions, page_request, ORDER)
        rows += result.page.rows
        silent_nodes.update(result.unresponsive_nodes)
        if not result.page.has_next:
            break
        cursor = listing.LIST_ORDERS[ORDER].cursor_of_row(rows[-1], ORDERING)
    user_ids = sorted({row.user_id for row in rows if row.user_id})
    users = await ctx.load_many(user_loaders.load_visible_users_by_id, user_ids)
    users_by_id = dict(zip(user_ids, users, strict=True))
    entries = []
    for row in rows:
        user = users_by_id.get(row.user_id) if row.user_id else None
        values = row._asdict() | {
            "kind": row.kind.value,
            "user": user.username if user else None,
            "last_used_at": row.last_used_at.isoformat(timespec="seconds"),
        }
        entries.append({key: values[key] for key in values if key not in {"id", "user_id"}})
    return ListedCacheEntries(entries, sorted(silent_nodes))
