"""The database: reads, write sessions and, for hot paths, transactions on a plain connection."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, TypeVarTuple

import orjson
from sqlalchemy import (
    Connection,
    Engine,
    PoolProxiedConnection,
    Select,
    create_engine,
    event,
    literal,
    make_url,
    select,
)
from sqlalchemy import Row as CoreRow
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from models.observability import metrics
from models.observability.traces import Timed
from models.store import cancel_safety, text_folding
from models.store.committed_transactions import commit, is_committed, note_commit
from models.store.dependent_selects import Step, Steps, told, told_later
from models.store.facts import write_probe
from models.store.key_collision import KeyCollision, raise_key_collisions
from models.store.outage_log import OUTAGES
from models.store.outages import is_deadlock, unavailable
from models.store.postgres.address import is_postgres
from models.store.postgres.reader import PostgresReaders, look_first
from models.store.postgres.stream_gate import StreamGate
from models.store.prepared_statements import Prepared, Rows
from models.store.sqlite.group_commit import Batches, GroupCommit
from models.store.sqlite.lost_savepoint import raise_first_failure
from models.store.sqlite.planner_statistics import refresh_statistics
from models.store.sqlite.wal_checkpoints import Checkpoints
from models.store.sqlite.write_lock import StoreTurn

Columns = TypeVarTuple("Columns")
Outcome = TypeVar("Outcome")


def _json(value: object) -> str:
    """Serialize a value with unescaped non-ASCII characters, since searches compare them."""
    return orjson.dumps(value).decode()


STORE = metrics.histogram(
    "merganser_store_seconds",
    "Time at the store, waiting for a turn included: read, a select; find, one that was made "
    "once; unit, a unit of work; apply, one in one go.",
    "work",
)
# Settings of PostgreSQL for reads. A word that all messages have needs another plan than a rare
# one, so each statement is planned with its values. A page takes less time than to compile it or
# to start parallel workers. Rows by key take no longer than rows in order.
READING = (
    "plan_cache_mode = force_custom_plan",
    "jit = off",
    "max_parallel_workers_per_gather = 0",
    "random_page_cost = 1.1",
)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_LOCKED)
POOL_WAIT = 10.0  # seconds that a transaction waits for a connection of the pool
COMMON: dict[str, Any] = {
    "json_serializer": _json,
    "json_deserializer": orjson.loads,
    "hide_parameters": True,  # parameters must not be logged
}


class OpenTransaction(Protocol):
    """A transaction that the current request has open; its reads use it."""

    database: "Database"

    @property
    def is_open(self) -> bool:
        """True from the first write of the transaction to its end."""

    async def read(
        self, statement: Select[*tuple[Any, ...]], given: Mapping[str, Any] | None = None
    ) -> Sequence[Any] | None:
        """Return the rows as the transaction sees them; None if it has ended."""


# The transaction of the request that the current task works for.
current_transaction: ContextVar[OpenTransaction | None] = ContextVar(
    "current_transaction", default=None
)


class Database:
    """The database of a process.

    Inside an open transaction of a request (`current_transaction`), every read uses that
    transaction. So code that only knows the database sees what the request has written.

    Reads return Core rows, writes use instances: an instance costs four times its row. A session
    lives as long as one transaction, never as long as a request: sibling fields of a query run at
    once, and a session serves one task.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        if is_postgres(url):
            from models.store.postgres.connection import postgres_engine  # noqa: PLC0415 - needs asyncpg

            self.engine = postgres_engine(url, pool_timeout=POOL_WAIT, **COMMON)
        else:
            creator = {"async_creator_fn": cancel_safety.connect}
            self.engine = create_async_engine(url, connect_args=creator, **COMMON)
        self.dialect = self.engine.dialect.name
        self._readers: Readers | PostgresReaders
        self._group: GroupCommit | None = None
        self._batches: Batches | None = None
        self._gate: StreamGate | None = None
        self._aside: AsyncEngine | None = None  # has a connection that only heartbeats use
        if self.dialect == "sqlite":
            event.listen(self.engine.sync_engine, "connect", _tune_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
            raise_first_failure(self.engine.sync_engine)
            writer = create_engine(
                make_url(url).set(drivername="sqlite"), isolation_level="AUTOCOMMIT", **COMMON
            )  # `WriteQueue` begins and ends its transactions
            event.listen(writer, "connect", _tune_sqlite)
            turn = StoreTurn(make_url(url).database)
            checkpoints = Checkpoints(writer)
            self._readers, self._group = Readers(url), GroupCommit(self.engine, turn, checkpoints)
            self._batches = Batches(writer, self._group, checkpoints)
        else:
            self._gate = StreamGate()
            self._aside = postgres_engine(url, pool_size=1, pool_timeout=POOL_WAIT, **COMMON)
            reading = postgres_engine(
                url, isolation_level="AUTOCOMMIT", pool_timeout=POOL_WAIT, **COMMON
            )
            event.listen(reading.sync_engine, "connect", _tune_postgres)
            look_first(self.engine.sync_engine)
            self._readers = PostgresReaders(reading, self.engine)

        for engine in self.engines:
            raise_key_collisions(engine)

    @property
    def engines(self) -> list[Engine]:
        """All engines of statements, except that of heartbeats."""
        more = [self._batches.engine] if self._batches else []
        return [self.engine.sync_engine, self._readers.engine, *more]

    async def read(
        self, statement: Select[*Columns], given: Mapping[str, Any] | None = None
    ) -> Sequence[CoreRow[*Columns]]:
        """Return the rows of a select, never instances.

        Hot paths build their select once, and pass the values of its parameters here. Like all
        methods of this class, raises StorageUnavailable if the database can't answer now.
        """
        if (transaction := self._joined()) is not None:
            rows = await transaction.read(statement, given)
            if rows is not None:
                return rows
        with Timed(STORE, "store read", "read"), _failures:
            return await self._readers.read(statement, given)

    def _joined(self) -> OpenTransaction | None:
        """Return the open transaction of the current request on this database, or None."""
        found = current_transaction.get()
        return found if found is not None and found.database is self and found.is_open else None

    async def find(self, statement: Prepared, given: Mapping[str, Any]) -> Sequence[Any]:
        """Return the rows of a prepared select with these values of its parameters."""
        if self._joined() is not None:
            return await self.read(statement.made, given)
        with Timed(STORE, "store find", "find"), _failures:
            return await self._readers.find(statement, given)

    async def follow(self, steps: Steps[Outcome]) -> Outcome:
        """Run dependent selects one after the other, and return their result."""
        if self._joined() is not None:
            return await told_later(steps, self._step)
        with Timed(STORE, "store search", "search"), _failures:
            return await self._readers.follow(steps)

    async def _step(self, step: Step) -> Sequence[Any]:
        """Return the rows of one step of dependent selects."""
        statement, given = step
        plain = statement.made if isinstance(statement, Prepared) else statement
        return await self.read(plain, given)

    async def ping(self) -> None:
        """Read from the database; raises if it does not answer."""
        await self.read(select(literal(1)))

    async def probe(self) -> None:
        """Write a row; raises if the database can't be written."""
        await self.apply(write_probe)

    def queued(self, streams: Sequence[int]) -> AbstractAsyncContextManager[None]:
        """Wait for a place among the transactions of these streams before taking a connection.

        On SQLite all transactions wait for one writer, without a connection each.
        """
        return self._gate.enter(streams) if self._gate and streams else nullcontext()

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that is committed at the end of the block, or rolled back on an error.

        If the task is cancelled during the commit, CancelledError is raised after the commit has
        ended. `is_committed` shows whether the transaction is stored.
        """
        opened: AsyncSession | None = None
        with Timed(STORE, "store unit", "unit"), _failures:
            try:
                async with self._group.write() if self._group else self._write_alone() as opened:
                    yield opened
            finally:
                if is_committed(opened):
                    note_commit()

    async def apply(self, work: Callable[[Connection], Outcome]) -> Outcome:
        """Run `work`, a synchronous function, in a transaction on a plain connection.

        On SQLite it takes one hop to the writer's thread, for any number of statements, and shares
        its wait for the disk with other transactions.
        """
        with Timed(STORE, "store apply", "apply"), _failures:
            if self._batches:
                outcome = await self._batches.apply(work)
            else:
                async with self.engine.begin() as connection:
                    outcome = await connection.run_sync(work)
            note_commit()
            return outcome

    async def refresh_statistics(self) -> None:
        """Update the statistics of SQLite's query planner. Call it after many writes."""
        if self.dialect == "sqlite":
            await self.apply(refresh_statistics)

    async def apply_aside(self, work: Callable[[Connection], Outcome]) -> Outcome:
        """Run `work` in a transaction on the connection that is reserved for heartbeats.

        Heartbeats must not be late. On SQLite it waits for the only writer, like all transactions.
        """
        if self._aside is None:
            return await self.apply(work)
        with Timed(STORE, "store apply", "apply"), _failures:
            async with self._aside.begin() as connection:
                return await connection.run_sync(work)

    @asynccontextmanager
    async def _write_alone(self) -> AsyncGenerator[AsyncSession]:
        """Open a session, and commit it at the end of the block."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            yield session
            await commit(session)

    async def close(self) -> None:
        """Close all connections."""
        if self._batches:
            await self._batches.close()
        await self._readers.close()
        if self._aside is not None:
            await self._aside.dispose()
        await self.engine.dispose()


def crossed(problem: BaseException | None) -> bool:
    """True if the database rolled a transaction back because of another one, as in a deadlock.

    Nothing of it is stored, and it can be retried.
    """
    return isinstance(problem, KeyCollision) or is_deadlock(problem)


class _Failures:
    """Raises StorageUnavailable for temporary failures of the database, and counts them."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, problem: BaseException | None, _trace: object
    ) -> None:
        if problem is None:
            if not OUTAGES.is_quiet:
                OUTAGES.note_success()
            return
        if not isinstance(problem, Exception) or (failure := unavailable(problem)) is None:
            return
        if failure is problem and failure.is_noted:
            return
        if failure is not problem:
            failure.__cause__ = problem
        OUTAGES.note_failure(failure)
        failure.is_noted = True
        if failure is not problem:
            raise failure from problem


_failures = _Failures()  # it has no state between calls


class Readers:
    """Threads that read an SQLite database, each with its own connection.

    A statement is one hop to a thread and back. Through aiosqlite it is a dozen.
    """

    THREADS = 4

    def __init__(self, url: str) -> None:
        plain = make_url(url).set(drivername="sqlite")
        self.engine = create_engine(
            plain,
            isolation_level="AUTOCOMMIT",
            pool_size=self.THREADS + 1,
            connect_args={"cached_statements": 512},
            **COMMON,
        )
        event.listen(self.engine, "connect", _tune_reader)
        self._threads = ThreadPoolExecutor(self.THREADS, "reader")
        self._near: PoolProxiedConnection | None = None

    async def read(
        self, statement: Select[*Columns], given: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, statement, given)

    def _read(
        self, statement: Select[*Columns], given: Mapping[str, Any] | None
    ) -> Sequence[CoreRow[*Columns]]:
        with self.engine.connect() as connection:
            return connection.execute(statement, given).all()

    async def find(self, statement: Prepared, given: Mapping[str, Any]) -> Sequence[Any]:
        """Return the few rows of a prepared select, read on the event loop's thread.

        A hop to a thread would cost as much again. If the database is locked for a moment, as
        during its recovery, the select waits in a thread.
        """
        if self._near is None:
            self._near = self.engine.raw_connection()
            self._near.cursor().execute("PRAGMA busy_timeout=0")
        driven, values = statement.ready(self.engine, given)
        cursor = self._near.cursor()
        try:
            return Rows(driven, cursor.execute(driven.sql, values).fetchall())
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode not in BUSY:
                raise
            return await self.read(statement.made, given)
        finally:
            cursor.close()

    async def follow(self, steps: Steps[Outcome]) -> Outcome:
        """Run dependent selects in one thread, and return their result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, told, steps, self._ask)

    def _ask(self, step: Step) -> Sequence[Any]:
        statement, given = step
        if not isinstance(statement, Prepared):
            return self._read(statement, given)
        driven, values = statement.ready(self.engine, given)
        connection = self.engine.raw_connection()
        try:
            return Rows(driven, connection.cursor().execute(driven.sql, values).fetchall())
        finally:
            connection.close()

    async def close(self) -> None:
        if self._near is not None:
            self._near.close()
        self._threads.shutdown()
        self.engine.dispose()


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite_transaction` sends BEGIN
    for pragma in (
        "journal_mode=WAL",
        "foreign_keys=ON",
        "synchronous=FULL",  # what was acknowledged survives a power cut
        "busy_timeout=5000",
        "wal_autocheckpoint=4000",  # pages: fewer commits wait for a checkpoint
    ):
        connection.execute(f"PRAGMA {pragma}")
    text_folding.add_to_sqlite(connection)


def _tune_reader(connection: Any, _record: Any) -> None:
    for pragma in ("query_only=ON", "busy_timeout=5000", "mmap_size=268435456"):
        connection.execute(f"PRAGMA {pragma}")
    text_folding.add_to_sqlite(connection)


def _tune_postgres(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for setting in READING:
        cursor.execute(f"SET {setting}")
    cursor.close()
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock first. A reader that becomes a writer can fail with SQLITE_BUSY at
    # once, in spite of busy_timeout.
    writing = connection.get_execution_options().get("merganser_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
