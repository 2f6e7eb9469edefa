"""The requests about caches that each server process answers."""

from resolvers.cache.listing import LIST_CACHE_ENTRIES
from resolvers.cache.maintenance import FLUSH_CACHES, REMOVE_CACHED_VALUES, RESCAN_BLOB_CACHES

CACHE_REQUEST_KINDS = (
    LIST_CACHE_ENTRIES,
    FLUSH_CACHES,
    REMOVE_CACHED_VALUES,
    RESCAN_BLOB_CACHES,
)
