"""Stored files and their shares."""

from typing import Any

from tests.conftest import Client
from tests.support.accounts.user_operations import run

FILE_FIELDS = "file { id filename contentType size hash createdAt url }"
SHARE_FIELDS = "share { id url mode hasPassword expiresAt lastAccessAt accessCount }"
LARGE_CONTENT = bytes(range(256)) * 12_000  # larger than a file that is kept in memory


async def upload_file(client: Client, text: str = "Ducks.", **fields: Any) -> Any:
    """Store a text file and return the payload."""
    return await run(client, "fileUpload", FILE_FIELDS, **{"content": {"text": text}, **fields})


async def store_file(client: Client, text: str = "Ducks.", **fields: Any) -> Any:
    """Store the file pond.txt and return it."""
    payload = await upload_file(client, text, **{"filename": "pond.txt", **fields})
    assert payload["errors"] == []
    return payload["file"]


async def share_file(client: Client, file: Any, **fields: Any) -> Any:
    """Create a share of a file and return it."""
    payload = await run(client, "fileShareCreate", SHARE_FIELDS, file=file["id"], **fields)
    assert payload["errors"] == []
    return payload["share"]
