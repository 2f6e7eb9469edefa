"""Reads from PostgreSQL without transactions; the driver alone runs prepared statements.

If the caller of a read is cancelled, PostgreSQL gets a request to cancel its statement.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVarTuple

from sqlalchemy import Engine, PoolProxiedConnection, Select, event
from sqlalchemy import Row as CoreRow
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.store.dependent_selects import Result, SelectStep, SelectSteps, run_steps_async
from models.store.outages import storage_failure
from models.store.prepared_statements import CompiledStatement, LazyRows, PreparedStatement
from models.store.read_slots import ReadSlots, current_read_owner

Columns = TypeVarTuple("Columns")

log = logging.getLogger(__name__)

CHECK_AFTER_IDLE = 1.0  # seconds after which a connection may have ended without a message
CONNECTIONS_PER_POOL = 4  # selects of a kind that the driver runs at once
SEARCHES_PER_OWNER = 2
READS_PER_OWNER = 4  # of the connections of the read engine
CANCEL_TIMEOUT = 5.0  # seconds for PostgreSQL to end a cancelled statement


class PostgresReaders:
    """Connections that only read, each statement alone: no BEGIN, no ROLLBACK, no ping.

    A select that fails, as on a closed connection, runs again on `checked_engine`, the engine of
    transactions, which checks its connections.
    """

    def __init__(self, read_engine: AsyncEngine, checked_engine: AsyncEngine) -> None:
        self._read_engine, self._checked_engine = read_engine, checked_engine
        self.engine = read_engine.sync_engine
        self._logged_statements = set[str]()
        # separate, so that slow searches do not take the connections of quick reads
        self._quick_reads, self._searches = DriverPool(read_engine), DriverPool(read_engine)
        self._read_slots, self._search_slots = (
            ReadSlots(READS_PER_OWNER),
            ReadSlots(SEARCHES_PER_OWNER),
        )

    async def read(
        self, statement: Select[*Columns], parameters: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        """Return the rows of any select."""
        async with _hold_slot(self._read_slots):
            return await self._read_or_repeat_on_checked_engine(statement, parameters)

    async def _read_or_repeat_on_checked_engine(
        self, statement: Select[*Columns], parameters: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        try:
            async with self._read_engine.connect() as connection:
                return (await connection.execute(statement, parameters)).all()
        except DBAPIError as problem:
            if not problem.connection_invalidated:
                raise
            return await self._read_on_checked_engine(statement, parameters)

    async def read_prepared(
        self, statement: PreparedStatement, parameters: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Return the few rows of a prepared select, which always uses the same index."""
        return await self._read_by_driver_or_checked_path(self._quick_reads, statement, parameters)

    async def read_many_prepared(
        self, statement: PreparedStatement, parameters: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Return the rows of a prepared select, of which one user can run only some at once."""
        async with _hold_slot(self._read_slots):
            return await self.read_prepared(statement, parameters)

    async def run_select_steps(self, steps: SelectSteps[Result]) -> Result:
        """Run dependent selects, each with a plan for its values, and return their result."""
        return await run_steps_async(steps, self._read_step)

    async def _read_step(self, step: SelectStep) -> Sequence[Any]:
        statement, parameters = step
        if isinstance(statement, PreparedStatement):
            async with _hold_slot(self._search_slots):
                return await self._read_by_driver_or_checked_path(
                    self._searches, statement, parameters
                )
        return await self.read(statement, parameters)

    async def _read_by_driver_or_checked_path(
        self, pool: "DriverPool", statement: PreparedStatement, parameters: Mapping[str, Any]
    ) -> Sequence[Any]:
        driven, values = statement.compile_with_values_and_notify(self.engine, parameters)
        try:
            return LazyRows(driven, await pool.fetch(driven, values))
        except Exception as problem:  # noqa: BLE001 - a second failure is raised as usual
            rows = await self._read_on_checked_engine(statement.statement, parameters)
            self._log_failed_statement_once(driven.sql, problem)
            return rows

    def _log_failed_statement_once(self, sql: str, problem: Exception) -> None:
        """Log a failure of the driver that is no lost connection: each read would take two tries.

        The same statement has succeeded on the checked engine.
        """
        is_outage = storage_failure(problem) is not None or isinstance(problem, OSError)
        if is_outage or sql in self._logged_statements:
            return
        self._logged_statements.add(sql)
        log.warning("A prepared statement failed at the first try", exc_info=problem)

    async def _read_on_checked_engine(
        self, statement: Select[*Columns], parameters: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        async with self._checked_engine.connect() as connection:
            return (await connection.execute(statement, parameters)).all()

    async def close(self) -> None:
        """Close all connections."""
        await self._quick_reads.close()
        await self._searches.close()
        await self._read_engine.dispose()


@asynccontextmanager
async def _hold_slot(slots: ReadSlots) -> AsyncGenerator[None]:
    """Hold a slot of the current owner of reads."""
    owner = current_read_owner.get()
    await slots.acquire(owner)
    try:
        yield
    finally:
        slots.release(owner)


def ping_idle_connections_at_checkout(engine: Engine) -> None:
    """Let no transaction begin on a connection that has ended.

    A ping of the database takes three round trips. So only idle connections are pinged; the driver
    knows whether a connection that was just in use has ended.
    """

    def note_checkin(_driver: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    def check_connection(driver: Any, record: Any, _proxy: Any) -> None:
        idle_since = record.info.get("idle_since")
        try:
            if driver.driver_connection.is_closed():
                raise DisconnectionError
            if idle_since is not None and time.monotonic() - idle_since > CHECK_AFTER_IDLE:
                engine.dialect.do_ping(driver)
        except engine.dialect.loaded_dbapi.Error as ended:
            raise DisconnectionError from ended

    event.listen(engine, "checkin", note_checkin)
    event.listen(engine, "checkout", check_connection)


class DriverConnection(NamedTuple):
    """A connection of the driver, and the SQLAlchemy connection around it."""

    driver: Any
    pooled: PoolProxiedConnection


class DriverPool:
    """A few connections of an engine that the driver uses without SQLAlchemy."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._idle: list[DriverConnection] = []
        self._slots = asyncio.Semaphore(CONNECTIONS_PER_POOL)
        self._closing = set[asyncio.Task[None]]()  # connections with a cancelled statement

    async def fetch(self, compiled: CompiledStatement, values: Sequence[Any]) -> list[Any]:
        """Return the driver's rows. A connection is not used again after a failure."""
        async with self._slots:
            connection = self._idle.pop() if self._idle else await self._open_connection()
            try:
                records: list[Any] = await connection.driver.fetch(compiled.sql, *values)
            except asyncio.CancelledError:
                # `terminate` would drop the driver's request to cancel the statement
                closing = asyncio.ensure_future(_close_or_terminate(connection.driver))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                raise
            except BaseException:
                connection.driver.terminate()
                raise
            self._idle.append(connection)
            return records

    async def _open_connection(self) -> "DriverConnection":
        driver_connection = await self._engine.raw_connection()
        connection = DriverConnection(driver_connection.driver_connection, driver_connection)
        driver_connection.detach()
        for type_name in ("json", "jsonb"):  # text, which is decoded when it is needed
            await connection.driver.reset_type_codec(type_name, schema="pg_catalog")
        return connection

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await _close_or_terminate(self._idle.pop().driver)
        await asyncio.gather(*self._closing)


async def _close_or_terminate(driver: Any) -> None:
    """Close a connection, after PostgreSQL has ended its statement if that is cancelled."""
    try:
        await driver.close(timeout=CANCEL_TIMEOUT)
    except Exception:  # noqa: BLE001 - it has ended, or the server does not answer
        driver.terminate()
