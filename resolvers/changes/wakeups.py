"""Receive the wake-ups of other processes on the same database."""

import asyncio
import logging
from contextlib import suppress

from models.runtime.environment import Environment
from resolvers.changes import stream_reader

log = logging.getLogger(__name__)

DISCONNECTED_POLL_SECONDS = 1.0  # between checks for changes while the event bus is disconnected


async def receive_wakeups_forever(environment: Environment) -> None:
    """Receive wake-ups until cancelled; poll while disconnected, and once after a reconnect."""
    wakeups, connected = environment.wakeups, asyncio.Event()
    receiver = asyncio.create_task(wakeups.receive_forever(connected.set))
    try:
        while not receiver.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(DISCONNECTED_POLL_SECONDS):
                    await connected.wait()
            if connected.is_set():
                connected.clear()
                wakeups.call_credentials_listeners(None)
            elif not wakeups.is_disconnected:
                continue
            await _wake_workers_and_followers(environment)
    finally:
        receiver.cancel()
        await asyncio.wait([receiver])


async def _wake_workers_and_followers(environment: Environment) -> None:
    environment.wakeups.wake_workers()
    try:
        await stream_reader.wake_followers_of_changed_streams(environment)
    except Exception:  # keep running: the next attempt can succeed
        log.exception("Could not read the journal")
