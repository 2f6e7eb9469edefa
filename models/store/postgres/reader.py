"""Reads from PostgreSQL without transactions; the driver alone runs prepared statements."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVarTuple

from sqlalchemy import Engine, PoolProxiedConnection, Select, event
from sqlalchemy import Row as CoreRow
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.store.dependent_selects import Outcome, Step, Steps, told_later
from models.store.prepared_statements import Driven, Prepared, Rows

Columns = TypeVarTuple("Columns")

RESTED = 1.0  # seconds after which a connection may have ended without a message
TOGETHER = 4  # selects of a kind that the driver runs at once


class PostgresReaders:
    """Connections that only read, each statement alone: no BEGIN, no ROLLBACK, no ping.

    A select that fails, as on a closed connection, runs again on `checked_engine`, the engine of
    transactions, which checks its connections.
    """

    def __init__(self, reading: AsyncEngine, safe: AsyncEngine) -> None:
        self._reading, self._safe = reading, safe
        self.engine = reading.sync_engine
        # separate, so that slow searches do not take the connections of quick reads
        self._near, self._far = Direct(reading), Direct(reading)

    async def read(
        self, statement: Select[*Columns], given: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        """Return the rows of any select."""
        try:
            async with self._reading.connect() as connection:
                return (await connection.execute(statement, given)).all()
        except DBAPIError as problem:
            if not problem.connection_invalidated:
                raise
            return await self._again(statement, given)

    async def find(self, statement: Prepared, given: Mapping[str, Any]) -> Sequence[Any]:
        """Return the few rows of a prepared select, which always uses the same index."""
        return await self._direct(self._near, statement, given)

    async def follow(self, steps: Steps[Outcome]) -> Outcome:
        """Run dependent selects, each with a plan for its values, and return their result."""
        return await told_later(steps, self._step)

    async def _step(self, step: Step) -> Sequence[Any]:
        statement, given = step
        if isinstance(statement, Prepared):
            return await self._direct(self._far, statement, given)
        return await self.read(statement, given)

    async def _direct(
        self, direct: "Direct", statement: Prepared, given: Mapping[str, Any]
    ) -> Sequence[Any]:
        driven, values = statement.ready(self.engine, given)
        try:
            return Rows(driven, await direct.rows(driven, values))
        except Exception:  # noqa: BLE001 - the second try raises it as usual
            return await self._again(statement.made, given)

    async def _again(
        self, statement: Select[*Columns], given: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        async with self._safe.connect() as connection:
            return (await connection.execute(statement, given)).all()

    async def close(self) -> None:
        """Close all connections."""
        await self._near.close()
        await self._far.close()
        await self._reading.dispose()


def look_first(engine: Engine) -> None:
    """Let no transaction begin on a connection that has ended.

    A ping of the database takes three round trips. So only idle connections are pinged; the driver
    knows whether a connection that was just in use has ended.
    """

    def returned(_driver: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    def taken(driver: Any, record: Any, _proxy: Any) -> None:
        idle_since = record.info.get("idle_since")
        try:
            if driver.driver_connection.is_closed():
                raise DisconnectionError
            if idle_since is not None and time.monotonic() - idle_since > RESTED:
                engine.dialect.do_ping(driver)
        except engine.dialect.loaded_dbapi.Error as ended:
            raise DisconnectionError from ended

    event.listen(engine, "checkin", returned)
    event.listen(engine, "checkout", taken)


class Held(NamedTuple):
    """A connection of the driver, and the SQLAlchemy connection around it."""

    driver: Any
    made: PoolProxiedConnection


class Direct:
    """A few connections of an engine that the driver uses without SQLAlchemy."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._free: list[Held] = []
        self._room = asyncio.Semaphore(TOGETHER)

    async def rows(self, driven: Driven, values: Sequence[Any]) -> list[Any]:
        """Return the driver's rows. A connection is not used again after a failure."""
        async with self._room:
            held = self._free.pop() if self._free else await self._opened()
            try:
                found: list[Any] = await held.driver.fetch(driven.sql, *values)
            except BaseException:
                held.driver.terminate()
                raise
            self._free.append(held)
            return found

    async def _opened(self) -> "Held":
        made = await self._engine.raw_connection()
        held = Held(made.driver_connection, made)
        made.detach()
        return held

    async def close(self) -> None:
        """Close the idle connections."""
        while self._free:
            await self._free.pop().driver.close()
