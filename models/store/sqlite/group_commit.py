"""Transactions that share one write to the disk: how an SQLite database is written."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from models.store import cancel_safety
from models.store.committed_transactions import COMMITTED
from models.store.outages import StorageUnavailable, storage_failure
from models.store.sqlite.wal_checkpoints import CheckpointThread
from models.store.sqlite.write_lock import WriteLock

MAX_GROUP_SIZE = 32  # transactions in a group
MAX_GROUP_SECONDS = 0.005  # time that a group stays open, which delays its callers

Result = TypeVar("Result")


@dataclass
class CommitGroup:
    """Transactions that share one transaction of SQLite, and so one write to the disk."""

    connection: AsyncConnection
    began_at: float = field(default_factory=time.monotonic)
    transaction_count: int = 0
    committed: asyncio.Future[None] = field(default_factory=asyncio.Future)
    # why SQLite rolled the transaction back before its commit
    failure: StorageUnavailable | None = None


class GroupCommit:
    """Lets the transactions of the process use the only writer of an SQLite database in turn.

    Each has its own savepoint. While others wait, the transaction of SQLite stays open for them. No
    caller continues before its changes are on the disk.
    """

    def __init__(
        self, engine: AsyncEngine, write_lock: WriteLock, checkpoints: CheckpointThread
    ) -> None:
        self._engine = engine.execution_options(merganser_write=True)
        self._checkpoints = checkpoints
        self.write_lock = write_lock
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._open_group: CommitGroup | None = None

    @asynccontextmanager
    async def write_session(self) -> AsyncGenerator[AsyncSession]:
        """Open a session in a savepoint, and wait until its group is committed."""
        await self._acquire_lock_committing_if_cancelled()
        with (
            cancel_safety.delay_cancellation()
        ):  # from here on it ends normally, even if it is cancelled
            try:
                group = self._open_group = self._open_group or await self._begin_group()
                try:
                    async with self._session_in_savepoint(group) as session:
                        yield session
                finally:
                    if self._needs_group_commit_now(group):
                        await self._commit_group_and_settle_future(group)
            finally:
                self._lock.release()
            await cancel_safety.await_to_end(group.committed)
            session.info[COMMITTED] = True

    async def _begin_group(self) -> CommitGroup:
        await self.write_lock.acquire()
        try:
            return CommitGroup(await self._engine.connect())
        except BaseException:
            self.write_lock.release()
            raise

    @asynccontextmanager
    async def locked_without_open_group(self) -> AsyncGenerator[None]:
        """Hold the lock without an open group, for a writer with its own connection."""
        async with self._lock:
            if self._open_group:
                await self._commit_group_and_settle_future(self._open_group)
            yield

    async def _acquire_lock_committing_if_cancelled(self) -> None:
        self._waiting += 1
        try:
            await self._lock.acquire()
        except asyncio.CancelledError:
            if self._open_group and self._waiting == 1 and not self._lock.locked():
                # it was kept open for this caller alone
                await self._commit_group_and_settle_future(self._open_group)
            raise
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def _session_in_savepoint(self, group: CommitGroup) -> AsyncGenerator[AsyncSession]:
        group.transaction_count += 1
        try:
            async with AsyncSession(
                group.connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
            ) as session:
                try:
                    yield session
                    # releases the savepoint: another one's failure does not matter
                    await session.commit()
                except Exception as problem:
                    await _note_if_sqlite_rolled_back(group, problem)
                    raise
        except Exception:
            if group.failure is not None:  # there is no savepoint to roll back to
                raise group.failure from group.failure.__cause__
            raise

    def _needs_group_commit_now(self, group: CommitGroup) -> bool:
        old = time.monotonic() - group.began_at > MAX_GROUP_SECONDS
        return (
            group.failure is not None
            or not self._waiting
            or group.transaction_count >= MAX_GROUP_SIZE
            or old
        )

    async def _commit_group_and_settle_future(self, group: CommitGroup) -> None:
        self._open_group = None
        try:
            if group.failure is not None:
                raise group.failure
            await group.connection.commit()
        except Exception as problem:  # noqa: BLE001 - each transaction of the group raises it
            group.committed.set_exception(problem)
            group.committed.exception()  # marks it as retrieved, if no caller waits
        else:
            group.committed.set_result(None)
            self._checkpoints.start_if_due()
        finally:
            try:
                await group.connection.close()
            finally:
                self.write_lock.release()


async def _note_if_sqlite_rolled_back(group: CommitGroup, problem: Exception) -> None:
    """Note why SQLite rolled the transaction of a group back, if it did.

    It does so when the disk is full, or fails: https://www.sqlite.org/lang_transaction.html After a
    failed flush SQLAlchemy has ended it, for any reason: nothing is noted then, unless the failure
    is one of the database.
    """
    driver: Any = (await group.connection.get_raw_connection()).driver_connection
    if driver.in_transaction:
        return
    failure = storage_failure(problem)
    if failure is None:
        if not group.connection.in_transaction():
            return
        failure = StorageUnavailable()
    group.failure = failure
    if failure is not problem:
        failure.__cause__ = problem


@dataclass(frozen=True, slots=True)
class WriteJob:
    """A synchronous transaction that waits for the writer's thread."""

    work: Callable[[Connection], Any]
    result: asyncio.Future[Any]


class JobOutcome(NamedTuple):
    """The result of a write job, or the error that rolled it back."""

    result: Any
    error: Exception | None


class WriteQueue:
    """Runs functions of a connection in the writer's thread, several in one transaction."""

    def __init__(
        self, engine: Engine, group_commit: GroupCommit, checkpoints: CheckpointThread
    ) -> None:
        self.engine = engine
        self._checkpoints = checkpoints
        self._group_commit = group_commit
        self._thread = ThreadPoolExecutor(1, "writer")
        self._waiting_jobs: deque[WriteJob] = deque()
        self._running: asyncio.Task[None] | None = None
        # To take it from the pool and return it would cost as much as a small transaction.
        self._connection: Connection | None = None

    async def run_transaction(self, work: Callable[[Connection], Result]) -> Result:
        """Run a function in a transaction, and return its result after the commit."""
        job = WriteJob(work, asyncio.get_running_loop().create_future())
        self._waiting_jobs.append(job)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run_jobs())
        outcome: Result = await job.result
        return outcome

    async def _run_jobs(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting_jobs:
            async with self._group_commit.locked_without_open_group():
                jobs = [
                    self._waiting_jobs.popleft()
                    for _ in range(min(MAX_GROUP_SIZE, len(self._waiting_jobs)))
                ]
                try:
                    outcomes = await loop.run_in_executor(
                        self._thread, self._commit_jobs_with_write_lock, jobs
                    )
                except Exception as broken:  # noqa: BLE001 - each transaction of the group raises it
                    outcomes = [JobOutcome(None, broken)] * len(jobs)
            # those for which there was no time
            self._waiting_jobs.extendleft(reversed(jobs[len(outcomes) :]))
            for job, (value, problem) in zip(jobs, outcomes, strict=False):
                if job.result.done():
                    continue  # the caller was cancelled; the work is done nevertheless
                if problem:
                    job.result.set_exception(problem)
                else:
                    job.result.set_result(value)

    def _commit_jobs_with_write_lock(self, jobs: list[WriteJob]) -> list[JobOutcome]:
        self._group_commit.write_lock.acquire_blocking()
        try:
            return self._run_and_commit_jobs_until_time_limit(jobs)
        finally:
            self._group_commit.write_lock.release()

    def _run_and_commit_jobs_until_time_limit(self, jobs: list[WriteJob]) -> list[JobOutcome]:
        if self._connection is None:
            self._connection = self.engine.connect()
        connection, outcomes = self._connection, list[JobOutcome]()
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN IMMEDIATE")
        try:
            if len(jobs) == 1:  # no savepoint is needed
                outcomes.append(JobOutcome(jobs[0].work(connection), None))
            else:
                began = time.monotonic()
                for job in jobs:
                    outcomes.append(_run_in_savepoint(connection, job))
                    if time.monotonic() - began > MAX_GROUP_SECONDS:
                        break
            driver.execute("COMMIT")
        except BaseException:
            if driver.in_transaction:  # SQLite has rolled it back if the disk is full
                driver.execute("ROLLBACK")
            raise
        self._checkpoints.start_if_due()
        return outcomes

    async def close(self) -> None:
        if self._running:
            await self._running
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
        self._checkpoints.close()
        self.engine.dispose()
        self._group_commit.write_lock.close()


def _run_in_savepoint(connection: Connection, job: WriteJob) -> JobOutcome:
    """Run one of several jobs; roll it back if it fails. Return its result or its error."""
    driver: Any = connection.connection.driver_connection  # SQLAlchemy takes as long as the job
    driver.execute("SAVEPOINT unit")
    try:
        outcome = job.work(connection)
    except Exception as broken:
        if not driver.in_transaction:  # SQLite has rolled back, with the jobs before
            raise
        driver.execute("ROLLBACK TO unit")
        driver.execute("RELEASE unit")
        return JobOutcome(None, broken)
    driver.execute("RELEASE unit")
    return JobOutcome(outcome, None)
