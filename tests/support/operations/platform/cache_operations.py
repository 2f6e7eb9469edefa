"""Operations on caches, and a client of a server with a blob cache."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from graph.app import create_app
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.stores.blob_caches import CachedBucket

CACHE_ENTRIES = """
query ($filter: CacheFilter, $orderBy: CacheEntryOrder! = NAME_ASC, $first: Int, $after: String,
    $last: Int, $before: String) {
  cacheEntries(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
      before: $before) {
    totalCount unresponsiveNodes pageInfo { endCursor startCursor hasNextPage hasPreviousPage }
    nodes { name kind user { username } size lastUsedAt dirty pendingCount node pid } } }
"""
REMOVAL_FIELDS = "entryCount size unresponsiveNodes"
FLUSH_FIELDS = "entryCount size lostCount unresponsiveNodes"
RESCAN_FIELDS = "entryCount size incompleteNodes unresponsiveNodes"
UNPACK_FIELDS = "mailboxes { path uidValidity uidNext messageCount } files skippedCount"
NO_REMOVAL = {"entryCount": 0, "size": 0, "unresponsiveNodes": [], "errors": []}


@dataclass(frozen=True)
class CacheServer:
    """A server whose object store is a bucket with a blob cache, and its clients."""

    cached: CachedBucket
    http: httpx.AsyncClient
    object_store: Any

    def client_of(self, client: GraphQLClient) -> GraphQLClient:
        """Return the client, which sends its requests to this server."""
        environment = replace(client.environment, object_store=self.object_store)
        return replace(client, http=self.http, environment=environment)


@asynccontextmanager
async def open_cache_server(
    client: GraphQLClient, cached: CachedBucket, folder: Path
) -> AsyncGenerator[CacheServer]:
    """Open a server on the database of a client, with a blob cache."""
    environment = replace(client.environment, object_store=cached.store)
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=folder))
    async with httpx.AsyncClient(transport=transport, base_url="http://cached") as http:
        yield CacheServer(cached, http, cached.store)


async def list_entries(client: GraphQLClient, **variables: Any) -> Any:
    """Return a page of the cache entries."""
    return (await client(CACHE_ENTRIES, **variables))["cacheEntries"]


async def listed_names(client: GraphQLClient, **entry_filter: Any) -> list[str]:
    """Return the names of all entries that meet a filter."""
    result = await list_entries(client, filter=entry_filter, first=250)
    assert result["totalCount"] == len(result["nodes"])
    assert result["unresponsiveNodes"] == []
    return [node["name"] for node in result["nodes"]]


async def clean_cache(client: GraphQLClient, **fields: Any) -> Any:
    """Run cacheClean and return its payload."""
    return await execute_mutation(client, "cacheClean", REMOVAL_FIELDS, **fields)


async def rescan_cache(client: GraphQLClient, **fields: Any) -> Any:
    """Run cacheRescan and return its payload."""
    return await execute_mutation(client, "cacheRescan", RESCAN_FIELDS, **fields)


async def flush_cache(client: GraphQLClient, **fields: Any) -> Any:
    """Run cacheFlush and return its payload."""
    return await execute_mutation(client, "cacheFlush", FLUSH_FIELDS, **fields)


async def unpack_bundle(client: GraphQLClient, **fields: Any) -> Any:
    """Run cacheUnpack and return its payload."""
    fields = {"bundleName": "ada", "path": "admin/restore", **fields}
    return await execute_mutation(client, "cacheUnpack", UNPACK_FIELDS, **fields)
