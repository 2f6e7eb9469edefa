"""Wake-ups by NATS: between all processes that use it."""

import asyncio
from collections.abc import Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from models.events.bus import Heard

LOOK = 1  # seconds between two signs of life; two that are missing end the connection
PATIENCE = 2


class NatsBus:
    """Publishes, and subscribes to, one subject."""

    name = "nats"

    def __init__(self, url: str, subject: str) -> None:
        self._url, self._subject = url, subject
        self._out: Client | None = None

    async def _connected(self) -> Client:
        # No connecting again of its own: after a break we must look, and it would not tell us.
        return await nats.connect(
            self._url,
            allow_reconnect=False,
            connect_timeout=PATIENCE,
            ping_interval=LOOK,
            error_cb=_known,
        )

    async def send(self, message: str) -> None:
        """Publish to all who have subscribed."""
        client, self._out = self._out, None
        if client is None or not client.is_connected:
            client = await self._connected()
        await client.publish(self._subject, message.encode())
        await client.flush(PATIENCE)
        self._out = client  # whatever broke is not used again

    async def hear(self, heard: Heard, begun: Callable[[], None]) -> None:
        """Hear until the connection breaks."""
        client = await self._connected()
        try:

            async def received(message: Msg) -> None:
                heard(message.data.decode())

            await client.subscribe(self._subject, cb=received)
            await client.flush(PATIENCE)
            begun()
            while client.is_connected:  # noqa: ASYNC110 - it tells of some ends only
                await asyncio.sleep(LOOK)
        finally:
            await client.close()

    async def close(self) -> None:
        """Let go of the connection."""
        if self._out is not None:
            await self._out.close()


async def _known(_problem: Exception) -> None:
    """Say nothing: what is broken is found by who sends or hears."""
