"""Follow a target's changes over a WebSocket, as a caller."""

import asyncio
import json
from typing import Any

from tests.live import Follower
from tests.targets.accounts import Server
from tests.targets.reads import document, verdict
from tests.targets.specimens import Specimens

SILENCE = 1.0  # seconds in which a stream that is refused tells nothing
PATIENCE = 30.0  # seconds in which one that is allowed begins, on a busy machine
HOLD = "mutation ($input: QueueHoldInput!) { queueHold(input: $input) { errors { message } } }"


async def follow(
    server: Server, name: str, caller: str, target: Specimens, *, patient: bool
) -> str:
    """Allowed if data of the target came, refused if the server said so or told nothing.

    With `patient` data is waited for: an allowed stream must not count as a silent one.
    """
    nobody: Any = None
    text, variables = document(name, target, {})
    secret = server.secrets[caller]
    follower = await server.house.follow(nobody, text, secret=secret, **variables)
    try:
        if name == "Subscription.queueChanges":
            await asyncio.sleep(0.1)  # the server has begun to listen
            await _touch(server, target)
        async with asyncio.timeout(PATIENCE if patient else SILENCE):
            while (found := _said(name, follower, target)) is None:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.005)
        return found
    except TimeoutError:
        return f"silent after {follower.got}" if follower.got else "refused"
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
