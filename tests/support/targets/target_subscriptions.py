"""Follow a target's changes over a WebSocket, as a caller."""

import asyncio
import json
from typing import Any

from tests.support.servers.live_server import Follower
from tests.support.targets.target_accounts import Server
from tests.support.targets.target_objects import Specimens
from tests.support.targets.target_queries import document, verdict

PATIENCE = 30.0  # seconds in which a stream begins or is refused, on a busy machine
AGAIN = 0.5  # seconds after which a change is made once more: nothing tells who listens by now
HOLD = "mutation ($input: QueueHoldInput!) { queueHold(input: $input) { errors { message } } }"


async def follow(server: Server, name: str, caller: str, target: Specimens) -> str:
    """Allowed if data of the target came, refused if the server said so.

    A stream that tells nothing is neither: silence does not prove that it stays silent.
    """
    nobody: Any = None
    text, variables = document(name, target, {})
    secret = server.secrets[caller]
    follower = await server.house.follow(nobody, text, secret=secret, **variables)
    begun = asyncio.get_running_loop().time()
    changed_at = 0.0
    try:
        while (found := _said(name, follower, target)) is None:
            now = asyncio.get_running_loop().time()
            if now - begun > PATIENCE:
                return f"silent after {follower.got}"
            if name == "Subscription.queueChanges" and now - changed_at > AGAIN:
                await _touch(server, target)
                changed_at = now
            await asyncio.sleep(0.005)
        return found
    finally:
        await follower.leave()


def _said(name: str, follower: Follower, target: Specimens) -> str | None:
    """What the frames say so far; None if more may come."""
    for payload in follower.got:
        said = verdict(name, target, payload, json.dumps(payload))
        if said != "refused" or payload.get("errors"):
            return said
    if follower.over and follower.over["type"] == "error":
        answer = {"data": None, "errors": follower.over["payload"]}
        return verdict(name, target, answer, json.dumps(answer))
    return None


async def _touch(server: Server, target: Specimens) -> None:
    """Hold the target's entry in the queue, and free it: its followers hear of both."""
    for hold in (True, False):
        given = {"queueIds": [target.value("queueId")], "hold": hold}
        answer = (await server.post("root-key", HOLD, {"input": given})).json()
        assert answer["data"]["queueHold"]["errors"] == []
