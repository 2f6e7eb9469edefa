"""The database: reads, write sessions and, for hot paths, transactions on a plain connection."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, TypeVarTuple

import orjson
from sqlalchemy import (
    Connection,
    Engine,
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
from models.observability.statement_counts import (
    count_statements_of_engine,
    keep_count_in_thread,
)
from models.observability.traces import TimedBlock
from models.store import cancel_safety, text_folding
from models.store.committed_transactions import commit_even_if_cancelled, is_committed, note_commit
from models.store.dependent_selects import SelectStep, SelectSteps, run_steps_async
from models.store.facts import upsert_write_probe
from models.store.generated_id_collision import (
    GeneratedIdCollision,
    make_engine_raise_generated_id_collisions,
)
from models.store.outage_log import OUTAGES
from models.store.outages import is_deadlock, storage_failure
from models.store.postgres.address import is_postgres
from models.store.postgres.reader import PostgresReaders, ping_idle_connections_at_checkout
from models.store.postgres.stream_gate import StreamGate
from models.store.prepared_statements import PreparedStatement
from models.store.sqlite.group_commit import GroupCommit, WriteQueue
from models.store.sqlite.lost_savepoint import make_engine_raise_cause_of_lost_savepoints
from models.store.sqlite.planner_statistics import refresh_statistics
from models.store.sqlite.reader import THREAD_COUNT, SqliteReaders
from models.store.sqlite.wal_checkpoints import CheckpointThread
from models.store.sqlite.write_lock import WriteLock

Columns = TypeVarTuple("Columns")
Result = TypeVar("Result")


def _json_text(value: object) -> str:
    """Serialize a value with unescaped non-ASCII characters, since searches compare them."""
    return orjson.dumps(value).decode()


DURATION = metrics.histogram(
    "merganser_database_seconds",
    "Duration of database work, including the wait for a connection: read, a "
    "query; prepared_query; search; transaction; statement, a transaction of one statement.",
    "work",
)
# Settings of PostgreSQL for reads. A word that all messages have needs another plan than a rare
# one, so each statement is planned with its values. A page takes less time than to compile it or
# to start parallel workers. Rows by key take no longer than rows in order.
POSTGRES_READ_SETTINGS = (
    "plan_cache_mode = force_custom_plan",
    "jit = off",
    "max_parallel_workers_per_gather = 0",
    "random_page_cost = 1.1",
)
POOL_TIMEOUT = 10.0  # seconds that a transaction waits for a connection of the pool
ENGINE_OPTIONS: dict[str, Any] = {
    "json_serializer": _json_text,
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
        self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any] | None = None
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

            self.engine = postgres_engine(url, pool_timeout=POOL_TIMEOUT, **ENGINE_OPTIONS)
        else:
            creator = {"async_creator_fn": cancel_safety.open_uncancelled_sqlite_connection}
            self.engine = create_async_engine(url, connect_args=creator, **ENGINE_OPTIONS)
        self.dialect = self.engine.dialect.name
        self._readers: SqliteReaders | PostgresReaders
        self._group_commit: GroupCommit | None = None
        self._write_queue: WriteQueue | None = None
        self._stream_gate: StreamGate | None = None
        self._heartbeat_engine: AsyncEngine | None = (
            None  # has a connection that only heartbeats use
        )
        if self.dialect == "sqlite":
            event.listen(self.engine.sync_engine, "connect", _configure_sqlite_writer)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite_transaction)
            make_engine_raise_cause_of_lost_savepoints(self.engine.sync_engine)
            writer = create_engine(
                make_url(url).set(drivername="sqlite"),
                isolation_level="AUTOCOMMIT",
                **ENGINE_OPTIONS,
            )  # `WriteQueue` begins and ends its transactions
            event.listen(writer, "connect", _configure_sqlite_writer)
            write_lock = WriteLock(make_url(url).database)
            checkpoints = CheckpointThread(writer)
            self._readers, self._group_commit = (
                SqliteReaders(_sqlite_reader_engine(url)),
                GroupCommit(self.engine, write_lock, checkpoints),
            )
            self._write_queue = WriteQueue(writer, self._group_commit, checkpoints)
        else:
            self._stream_gate = StreamGate()
            self._heartbeat_engine = postgres_engine(
                url, pool_size=1, pool_timeout=POOL_TIMEOUT, **ENGINE_OPTIONS
            )
            reading = postgres_engine(
                url, isolation_level="AUTOCOMMIT", pool_timeout=POOL_TIMEOUT, **ENGINE_OPTIONS
            )
            event.listen(reading.sync_engine, "connect", _configure_postgres_reader)
            ping_idle_connections_at_checkout(self.engine.sync_engine)
            self._readers = PostgresReaders(reading, self.engine)

        for engine in self.engines:
            make_engine_raise_generated_id_collisions(engine)
            count_statements_of_engine(engine)

    @property
    def engines(self) -> list[Engine]:
        """All engines of statements, except that of heartbeats."""
        engines = [self._write_queue.engine] if self._write_queue else []
        return [self.engine.sync_engine, self._readers.engine, *engines]

    async def read(
        self, statement: Select[*Columns], parameters: Mapping[str, Any] | None = None
    ) -> Sequence[CoreRow[*Columns]]:
        """Return the rows of a select, never instances.

        Hot paths build their select once, and pass the values of its parameters here. Like all
        methods of this class, raises StorageUnavailable if the database can't answer now.
        """
        if (transaction := self._current_transaction_or_none()) is not None:
            rows = await transaction.read(statement, parameters)
            if rows is not None:
                return rows
        with TimedBlock(DURATION, "database read", "read"), _outage_guard:
            return await self._readers.read(statement, parameters)

    def _current_transaction_or_none(self) -> OpenTransaction | None:
        """Return the open transaction of the current request on this database, or None."""
        transaction = current_transaction.get()
        return (
            transaction
            if transaction is not None and transaction.database is self and transaction.is_open
            else None
        )

    async def read_prepared(
        self,
        statement: PreparedStatement,
        parameters: Mapping[str, Any],
        *,
        reads_many_rows: bool = False,
    ) -> Sequence[Any]:
        """Return the rows of a prepared select with these values of its parameters.

        Set `reads_many_rows` if the select can read more than some hundred rows.
        """
        if self._current_transaction_or_none() is not None:
            return await self.read(statement.statement, parameters)
        with TimedBlock(DURATION, "database prepared query", "prepared_query"), _outage_guard:
            if reads_many_rows:
                return await self._readers.read_many_prepared(statement, parameters)
            return await self._readers.read_prepared(statement, parameters)

    async def run_select_steps(self, steps: SelectSteps[Result]) -> Result:
        """Run dependent selects one after the other, and return their result."""
        if self._current_transaction_or_none() is not None:
            return await run_steps_async(steps, self._read_step)
        with TimedBlock(DURATION, "database search", "search"), _outage_guard:
            return await self._readers.run_select_steps(steps)

    async def _read_step(self, step: SelectStep) -> Sequence[Any]:
        """Return the rows of one step of dependent selects."""
        statement, parameters = step
        plain = statement.statement if isinstance(statement, PreparedStatement) else statement
        return await self.read(plain, parameters)

    async def ping(self) -> None:
        """Read from the database; raises if it does not answer."""
        await self.read(select(literal(1)))

    async def check_writable(self) -> None:
        """Write a row; raises if the database can't be written."""
        await self.run_transaction(upsert_write_probe)

    def hold_stream_gate_places(
        self, stream_ids: Sequence[int]
    ) -> AbstractAsyncContextManager[None]:
        """Wait for a place among the transactions of these streams before taking a connection.

        On SQLite all transactions wait for one writer, without a connection each.
        """
        return (
            self._stream_gate.hold_places(stream_ids)
            if self._stream_gate and stream_ids
            else nullcontext()
        )

    @asynccontextmanager
    async def write_session(self) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that is committed at the end of the block, or rolled back on an error.

        If the task is cancelled during the commit, CancelledError is raised after the commit has
        ended. `is_committed` shows whether the transaction is stored.
        """
        opened: AsyncSession | None = None
        with TimedBlock(DURATION, "database transaction", "transaction"), _outage_guard:
            try:
                async with (
                    self._group_commit.write_session()
                    if self._group_commit
                    else self._postgres_session() as opened
                ):
                    yield opened
            finally:
                if is_committed(opened):
                    note_commit()

    async def run_transaction(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work`, a synchronous function, in a transaction on a plain connection.

        On SQLite it takes one hop to the writer's thread, for any number of statements, and shares
        its wait for the disk with other transactions.
        """
        with TimedBlock(DURATION, "database statement", "statement"), _outage_guard:
            if self._write_queue:
                outcome = await self._write_queue.run_transaction(keep_count_in_thread(work))
            else:
                async with self.engine.begin() as connection:
                    outcome = await connection.run_sync(work)
            note_commit()
            return outcome

    async def refresh_planner_statistics(self) -> None:
        """Update the statistics of SQLite's query planner. Call it after many writes."""
        if self.dialect == "sqlite":
            await self.run_transaction(refresh_statistics)

    async def run_heartbeat_transaction(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction on the connection that is reserved for heartbeats.

        Heartbeats must not be late. On SQLite it waits for the only writer, like all transactions.
        """
        if self._heartbeat_engine is None:
            return await self.run_transaction(work)
        with TimedBlock(DURATION, "database statement", "statement"), _outage_guard:
            async with self._heartbeat_engine.begin() as connection:
                return await connection.run_sync(work)

    @asynccontextmanager
    async def _postgres_session(self) -> AsyncGenerator[AsyncSession]:
        """Open a session, and commit it at the end of the block."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            yield session
            await commit_even_if_cancelled(session)

    async def close(self) -> None:
        """Close all connections."""
        if self._write_queue:
            await self._write_queue.close()
        await self._readers.close()
        if self._heartbeat_engine is not None:
            await self._heartbeat_engine.dispose()
        await self.engine.dispose()


def is_retryable_conflict(problem: BaseException | None) -> bool:
    """True if the database rolled a transaction back because of another one, as in a deadlock.

    Nothing of it is stored, and it can be retried.
    """
    return isinstance(problem, GeneratedIdCollision) or is_deadlock(problem)


class _OutageGuard:
    """Raises StorageUnavailable for temporary failures of the database, and counts them."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, problem: BaseException | None, _trace: object
    ) -> None:
        if problem is None:
            if not OUTAGES.is_quiet:
                OUTAGES.end_outages_if_quiet()
            return
        if not isinstance(problem, Exception) or (failure := storage_failure(problem)) is None:
            return
        if failure is problem and failure.is_noted:
            return
        if failure is not problem:
            failure.__cause__ = problem
        OUTAGES.count_failure_and_log_first(failure)
        failure.is_noted = True
        if failure is not problem:
            raise failure from problem


_outage_guard = _OutageGuard()  # it has no state between calls


def _configure_sqlite_writer(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite_transaction` sends BEGIN
    for pragma in (
        "journal_mode=WAL",
        "foreign_keys=ON",
        "synchronous=FULL",  # what was acknowledged survives a power cut
        "busy_timeout=5000",
        "wal_autocheckpoint=4000",  # pages: fewer commits wait for a checkpoint
    ):
        connection.execute(f"PRAGMA {pragma}")
    text_folding.add_fold_text_to_sqlite(connection)


def _sqlite_reader_engine(url: str) -> Engine:
    """Create the engine of reads: a connection for each thread, and one for the event loop."""
    engine = create_engine(
        make_url(url).set(drivername="sqlite"),
        isolation_level="AUTOCOMMIT",
        pool_size=THREAD_COUNT + 1,
        connect_args={"cached_statements": 512},
        **ENGINE_OPTIONS,
    )
    event.listen(engine, "connect", _configure_sqlite_reader)
    return engine


def _configure_sqlite_reader(connection: Any, _record: Any) -> None:
    for pragma in ("query_only=ON", "busy_timeout=5000", "mmap_size=268435456"):
        connection.execute(f"PRAGMA {pragma}")
    text_folding.add_fold_text_to_sqlite(connection)


def _configure_postgres_reader(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for setting in POSTGRES_READ_SETTINGS:
        cursor.execute(f"SET {setting}")
    cursor.close()
    connection.commit()


def _begin_sqlite_transaction(connection: Connection) -> None:
    # A writer takes the lock first. A reader that becomes a writer can fail with SQLITE_BUSY at
    # once, in spite of busy_timeout.
    writing = connection.get_execution_options().get("merganser_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
