"""Wake-ups over PostgreSQL's NOTIFY, between all processes of a database."""

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy.pool import NullPool

from models.events.bus import Heard
from models.store.postgres.connection import postgres_engine
from models.store.postgres.reader import Held

CHANNEL = "merganser"
LOOK = 10.0  # seconds
PATIENCE = 5.0  # seconds


class PostgresBus:
    """One connection, separate from those of transactions, that listens and notifies.

    Transactions don't notify: that would make their commits wait for each other.
    """

    name = "postgresql"

    def __init__(self, url: str) -> None:
        self._engine = postgres_engine(url, poolclass=NullPool)
        self._held: Held | None = None
        self._turn = asyncio.Lock()

    async def _driver(self) -> Any:
        """Return the connection of the driver; open it if there is none."""
        if self._held is None:
            made = await self._engine.raw_connection()
            self._held = Held(made.driver_connection, made)
            made.detach()
        return self._held.driver

    async def _do(self, statement: str, *values: str) -> None:
        """Execute a statement, and drop the connection if that fails."""
        async with self._turn:
            driver = await self._driver()
            try:
                await driver.fetch(statement, *values)
            except BaseException:
                self._held = None
                driver.terminate()
                raise

    async def send(self, message: str) -> None:
        """Notify all listening processes."""
        await self._do("SELECT pg_notify($1, $2)", CHANNEL, message)

    async def hear(self, heard: Heard, begun: Callable[[], None]) -> None:
        """Listen until the connection ends."""
        ended = asyncio.Event()
        async with self._turn:
            driver = await self._driver()
            driver.add_termination_listener(lambda _driver: ended.set())
            await driver.add_listener(CHANNEL, lambda _driver, _pid, _channel, text: heard(text))
        begun()
        try:
            while not ended.is_set() and not driver.is_closed():
                try:
                    async with asyncio.timeout(LOOK):
                        await ended.wait()
                except TimeoutError:
                    async with asyncio.timeout(PATIENCE):
                        await self._do("SELECT ''")
        finally:
            if self._held is not None and self._held.driver is driver:
                self._held = None
            driver.terminate()

    async def close(self) -> None:
        """Close the connection."""
        if self._held is not None:
            await self._held.driver.close()
        await self._engine.dispose()
