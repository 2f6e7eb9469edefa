"""Wake-ups over PostgreSQL's NOTIFY, between all processes of a database."""

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy.pool import NullPool

from models.events.bus import MessageHandler
from models.store.postgres.connection import postgres_engine
from models.store.postgres.reader import DriverConnection

CHANNEL = "merganser"
PING_INTERVAL = 10.0  # seconds
PING_TIMEOUT = 5.0  # seconds


class PostgresBus:
    """One connection, separate from those of transactions, that listens and notifies.

    Transactions don't notify: that would make their commits wait for each other.
    """

    name = "postgresql"

    def __init__(self, url: str) -> None:
        self._engine = postgres_engine(url, poolclass=NullPool)
        self._connection: DriverConnection | None = None
        self._lock = asyncio.Lock()

    async def _get_or_open_driver_connection(self) -> Any:
        """Return the connection of the driver; open it if there is none."""
        if self._connection is None:
            driver_connection = await self._engine.raw_connection()
            self._connection = DriverConnection(
                driver_connection.driver_connection, driver_connection
            )
            driver_connection.detach()
        return self._connection.driver

    async def _execute_or_drop_connection(self, statement: str, *values: str) -> None:
        """Execute a statement, and drop the connection if that fails."""
        async with self._lock:
            driver = await self._get_or_open_driver_connection()
            try:
                await driver.fetch(statement, *values)
            except BaseException:
                self._connection = None
                driver.terminate()
                raise

    async def send(self, message: str) -> None:
        """Notify all listening processes."""
        await self._execute_or_drop_connection("SELECT pg_notify($1, $2)", CHANNEL, message)

    async def receive_until_disconnected(
        self, on_message: MessageHandler, on_connected: Callable[[], None]
    ) -> None:
        """Listen until the connection ends."""
        ended = asyncio.Event()
        async with self._lock:
            driver = await self._get_or_open_driver_connection()
            driver.add_termination_listener(lambda _driver: ended.set())
            await driver.add_listener(
                CHANNEL, lambda _driver, _pid, _channel, text: on_message(text)
            )
        on_connected()
        try:
            while not ended.is_set() and not driver.is_closed():
                try:
                    async with asyncio.timeout(PING_INTERVAL):
                        await ended.wait()
                except TimeoutError:
                    async with asyncio.timeout(PING_TIMEOUT):
                        await self._execute_or_drop_connection("SELECT ''")
        finally:
            if self._connection is not None and self._connection.driver is driver:
                self._connection = None
            driver.terminate()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.driver.close()
        await self._engine.dispose()
