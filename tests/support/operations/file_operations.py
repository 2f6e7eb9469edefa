"""Stored files and their shares."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation

FILE_FIELDS = "file { id filename contentType size sha256 createdAt url }"
SHARE_FIELDS = "fileShare { id url mode hasPassword expiresAt lastAccessAt accessCount }"
LARGE_CONTENT = bytes(range(256)) * 12_000  # larger than a file that is kept in memory
FILES_QUERY = """query ($filter: FileFilter, $order: FileOrder! = CREATED_AT_DESC, $first: Int,
  $after: String) { viewer { user { files(
  filter: $filter, orderBy: $order, first: $first, after: $after
) { nodes { id filename shares { id } } totalCount pageInfo { hasNextPage endCursor } } } } }"""


async def upload_file(client: GraphQLClient, text: str = "Ducks.", **fields: Any) -> Any:
    """Store a text file and return the payload."""
    return await execute_mutation(
        client, "fileUpload", FILE_FIELDS, **{"content": {"text": text}, **fields}
    )


async def store_file(client: GraphQLClient, text: str = "Ducks.", **fields: Any) -> Any:
    """Store the file pond.txt and return it."""
    payload = await upload_file(client, text, **{"filename": "pond.txt", **fields})
    assert payload["errors"] == []
    return payload["file"]


async def share_file(client: GraphQLClient, file: Any, **fields: Any) -> Any:
    """Create a share of a file and return it."""
    payload = await execute_mutation(
        client, "fileShareCreate", SHARE_FIELDS, file={"id": file["id"]}, **fields
    )
    assert payload["errors"] == []
    return payload["fileShare"]


async def delete_by_ids(client: GraphQLClient, mutation: str, *ids: str) -> Any:
    list_field = {"fileDelete": "files", "fileShareDelete": "fileShares"}[mutation]
    input_fields = {list_field: [{"id": global_id} for global_id in ids]}
    return await execute_mutation(client, mutation, "deletedIds", **input_fields)


async def list_files(client: GraphQLClient, **variables: Any) -> Any:
    return (await client(FILES_QUERY, **variables))["viewer"]["user"]["files"]
