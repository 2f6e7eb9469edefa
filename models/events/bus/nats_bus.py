"""Wake-ups over NATS, between all processes that use the same subject."""

import asyncio
from collections.abc import Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from models.events.bus import MessageHandler

PING_INTERVAL = 1  # seconds; two pings without a reply end the connection
TIMEOUT = 2  # seconds


class NatsBus:
    """Publishes to one subject, and subscribes to it."""

    name = "nats"

    def __init__(self, url: str, subject: str) -> None:
        self._url, self._subject = url, subject
        self._out: Client | None = None

    async def _connect(self) -> Client:
        # Without automatic reconnects: after a break followers must read, and need to know of it.
        return await nats.connect(
            self._url,
            allow_reconnect=False,
            connect_timeout=TIMEOUT,
            ping_interval=PING_INTERVAL,
            error_cb=_ignore_error,
        )

    async def send(self, message: str) -> None:
        """Publish a message to all subscribers."""
        client, self._out = self._out, None
        if client is None or not client.is_connected:
            client = await self._connect()
        await client.publish(self._subject, message.encode())
        await client.flush(TIMEOUT)
        self._out = client  # a client that failed is not used again

    async def receive_until_disconnected(
        self, on_message: MessageHandler, on_connected: Callable[[], None]
    ) -> None:
        """Receive until the connection breaks."""
        client = await self._connect()
        try:

            async def handle_message(message: Msg) -> None:
                on_message(message.data.decode())

            await client.subscribe(self._subject, cb=handle_message)
            await client.flush(TIMEOUT)
            on_connected()
            while client.is_connected:  # noqa: ASYNC110 - only some ends are events
                await asyncio.sleep(PING_INTERVAL)
        finally:
            await client.close()

    async def close(self) -> None:
        """Close the sending connection."""
        if self._out is not None:
            await self._out.close()


async def _ignore_error(_problem: Exception) -> None:
    """Ignore an error: `send` and `receive` raise for a broken connection."""
