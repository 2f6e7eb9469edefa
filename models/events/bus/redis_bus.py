"""Wake-ups by Redis, or what speaks as it does: between all processes that use it."""

import asyncio
from collections.abc import Callable

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from models.events.bus import Heard

LOOK = 10.0  # seconds between two signs of life
PATIENCE = 5.0  # seconds to give one


class RedisBus:
    """Publishes, and subscribes to, one channel."""

    name = "redis"

    def __init__(self, url: str, channel: str) -> None:
        # No retry of its own: after a break we must look, and it would not tell us of one.
        self._redis = Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=PATIENCE,
            socket_timeout=PATIENCE,
        )
        self._channel = channel

    async def send(self, message: str) -> None:
        """Publish to all who have subscribed."""
        await self._redis.publish(self._channel, message)

    async def hear(self, heard: Heard, begun: Callable[[], None]) -> None:
        """Hear until the connection breaks."""
        async with self._redis.pubsub() as subscribed:
            await subscribed.subscribe(self._channel)
            silent = False
            while True:
                message = await subscribed.get_message(timeout=LOOK)
                if message is None:
                    if silent:
                        raise TimeoutError
                    silent = True
                    await subscribed.ping()
                    continue
                silent = False
                if message["type"] == "subscribe":
                    begun()
                elif message["type"] == "message":
                    heard(message["data"].decode())

    async def close(self) -> None:
        """Let go of all connections."""
        await asyncio.shield(self._redis.aclose())
