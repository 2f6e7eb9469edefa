"""Reads from SQLite: in threads, where they can be interrupted, or on the event loop."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, TypeVarTuple, cast

from sqlalchemy import Engine, PoolProxiedConnection, Select
from sqlalchemy import Row as CoreRow

from models.store.dependent_selects import SelectStep, SelectSteps, run_steps
from models.store.prepared_statements import LazyRows, PreparedStatement
from models.store.sqlite.interruptible_threads import InterruptibleRead, InterruptibleThreads

Columns = TypeVarTuple("Columns")
Result = TypeVar("Result")

THREAD_COUNT = 4
THREADS_PER_OWNER = 2
SQLITE_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_LOCKED)


class SqliteReaders:
    """Threads that read an SQLite database, each with its own connection.

    A statement is one hop to a thread and back. Through aiosqlite it is a dozen. If the caller of
    a read is cancelled, its statement is interrupted, and its thread serves the next read.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._threads = InterruptibleThreads(THREAD_COUNT, THREADS_PER_OWNER, "reader")
        self._loop_connection: PoolProxiedConnection | None = None

    async def read(
        self, statement: Select[*Columns], parameters: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        return await self._threads.run(
            lambda read: self._read_in_thread(read, statement, parameters)
        )

    def _read_in_thread(
        self,
        read: InterruptibleRead,
        statement: Select[*Columns],
        parameters: Mapping[str, Any] | None,
    ) -> Sequence[CoreRow[*Columns]]:
        with (
            self.engine.connect() as connection,
            read.allow_interrupt(_sqlite_connection(connection.connection)),
        ):
            return connection.execute(statement, parameters).all()

    async def read_prepared(
        self, statement: PreparedStatement, parameters: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Return the few rows of a prepared select, read on the event loop's thread.

        A hop to a thread would cost as much again. If the database is locked for a moment, as
        during its recovery, the select waits in a thread.
        """
        if self._loop_connection is None:
            self._loop_connection = self.engine.raw_connection()
            self._loop_connection.cursor().execute("PRAGMA busy_timeout=0")
        driven, values = statement.compile_with_values_and_notify(self.engine, parameters)
        cursor = self._loop_connection.cursor()
        try:
            return LazyRows(driven, cursor.execute(driven.sql, values).fetchall())
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode not in SQLITE_BUSY_CODES:
                raise
            return await self.read(statement.statement, parameters)
        finally:
            cursor.close()

    async def read_many_prepared(
        self, statement: PreparedStatement, parameters: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Return the rows of a prepared select, read in a thread."""
        return await self._threads.run(lambda read: self._read_step(read, (statement, parameters)))

    async def run_select_steps(self, steps: SelectSteps[Result]) -> Result:
        """Run dependent selects in one thread, and return their result."""
        return await self._threads.run(
            lambda read: run_steps(steps, lambda step: self._read_step(read, step))
        )

    def _read_step(self, read: InterruptibleRead, step: SelectStep) -> Sequence[Any]:
        statement, parameters = step
        if not isinstance(statement, PreparedStatement):
            return self._read_in_thread(read, statement, parameters)
        driven, values = statement.compile_with_values_and_notify(self.engine, parameters)
        connection = self.engine.raw_connection()
        try:
            with read.allow_interrupt(_sqlite_connection(connection)):
                rows = connection.cursor().execute(driven.sql, values).fetchall()
            return LazyRows(driven, rows)
        finally:
            connection.close()

    async def close(self) -> None:
        """Close the connections. Cancelled reads are interrupted, others end first."""
        if self._loop_connection is not None:
            self._loop_connection.close()
        self._threads.close()
        self.engine.dispose()


def _sqlite_connection(connection: PoolProxiedConnection) -> sqlite3.Connection:
    """Return the connection of the driver."""
    return cast(sqlite3.Connection, connection.driver_connection)
