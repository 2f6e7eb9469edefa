"""Wake-ups over Redis or a compatible server, between all processes that use it."""

import asyncio
from collections.abc import Callable

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from models.events.bus import MessageHandler

PING_INTERVAL = 10.0  # seconds
TIMEOUT = 5.0  # seconds


class RedisBus:
    """Publishes to one channel, and subscribes to it."""

    name = "redis"

    def __init__(self, url: str, channel: str) -> None:
        # Without automatic retries: after a break followers must read, and need to know of it.
        self._redis = Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
        )
        self._channel = channel

    async def send(self, message: str) -> None:
        """Publish a message to all subscribers."""
        await self._redis.publish(self._channel, message)

    async def receive_until_disconnected(
        self, on_message: MessageHandler, on_connected: Callable[[], None]
    ) -> None:
        """Receive until the connection breaks."""
        async with self._redis.pubsub() as subscribed:
            await subscribed.subscribe(self._channel)
            silent = False
            while True:
                message = await subscribed.get_message(timeout=PING_INTERVAL)
                if message is None:
                    if silent:
                        raise TimeoutError
                    silent = True
                    await subscribed.ping()
                    continue
                silent = False
                if message["type"] == "subscribe":
                    on_connected()
                elif message["type"] == "message":
                    on_message(message["data"].decode())

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.shield(self._redis.aclose())
