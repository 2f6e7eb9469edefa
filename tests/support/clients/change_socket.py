"""A subscription to changes on an open socket of the protocol graphql-transport-ws."""

import json

from websockets.asyncio.client import ClientConnection

CURSOR_QUERY = "{ viewer { user { cursor } } }"
CHANGES_SUBSCRIPTION = """
subscription ($after: Cursor) { changes(after: $after) { events { type } } }
"""


async def subscribe_to_later_changes(socket: ClientConnection) -> None:
    """Subscribe to all changes that are committed after this call."""
    query = {"id": "cursor", "type": "subscribe", "payload": {"query": CURSOR_QUERY}}
    await socket.send(json.dumps(query))
    result = json.loads(await socket.recv())
    assert result["type"] == "next", result
    assert json.loads(await socket.recv())["type"] == "complete"
    after = result["payload"]["data"]["viewer"]["user"]["cursor"]
    payload = {"query": CHANGES_SUBSCRIPTION, "variables": {"after": after}}
    await socket.send(json.dumps({"id": "changes", "type": "subscribe", "payload": payload}))
