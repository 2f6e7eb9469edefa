"""Subscriptions of a caller to the changes of a target, over WebSocket."""

import asyncio
import json
from typing import Any

from tests.support.servers.live_server import SubscriptionFollower
from tests.support.targets.target_accounts import TargetServer
from tests.support.targets.target_objects import TargetObjects
from tests.support.targets.target_queries import query_document, query_verdict
from tests.support.time_limits import HANG_SECONDS

CHANGE_INTERVAL = (
    0.5  # seconds; changes are repeated, since no event tells that the stream has begun
)
HOLD_AND_RELEASE = """mutation ($refs: [QueueEntryRef!]!) {
  queueHold(input: {queueEntries: $refs}) { errors { message } }
  queueRelease(input: {queueEntries: $refs}) { errors { message } } }"""


async def follow_target(server: TargetServer, name: str, caller: str, target: TargetObjects) -> str:
    """Allowed if data of the target came, refused if the server said so.

    A stream without events is neither: silence does not prove that it stays silent.
    """
    no_client: Any = None
    document_text, variables = query_document(name, target, {})
    secret = server.secrets[caller]
    follower = await server.live_server.follow(no_client, document_text, secret=secret, **variables)
    started_at = asyncio.get_running_loop().time()
    changed_at = 0.0
    try:
        while (verdict_text := _verdict_so_far(name, follower, target)) is None:
            now = asyncio.get_running_loop().time()
            if now - started_at > HANG_SECONDS:
                return f"silent after {follower.payloads}"
            if name == "Subscription.queueEntryChanged" and now - changed_at > CHANGE_INTERVAL:
                await _hold_and_release(server, target)
                changed_at = now
            await asyncio.sleep(0.005)
        return verdict_text
    finally:
        await follower.unsubscribe()


def _verdict_so_far(name: str, follower: SubscriptionFollower, target: TargetObjects) -> str | None:
    """The verdict of the frames so far; None if more can come."""
    for payload in follower.payloads:
        verdict_text = query_verdict(name, target, payload, json.dumps(payload))
        if verdict_text != "refused" or payload.get("errors"):
            return verdict_text
    if follower.end_frame and follower.end_frame["type"] == "error":
        response = {"data": None, "errors": follower.end_frame["payload"]}
        return query_verdict(name, target, response, json.dumps(response))
    return None


async def _hold_and_release(server: TargetServer, target: TargetObjects) -> None:
    """Hold and release the target's queue entry; both are changes that followers see."""
    variables = {"refs": [{"queueId": target.value("queueId")}]}
    response = (await server.post("root-key", HOLD_AND_RELEASE, variables)).json()
    assert response["data"]["queueHold"]["errors"] == []
    assert response["data"]["queueRelease"]["errors"] == []
